use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::client::ServerVersion;

/// Why the programs of a PostgreSQL version were not found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindBinariesError {
    #[error("the programs of PostgreSQL {major} were not found (looked in {})", list(looked))]
    NotFound { major: u32, looked: Vec<PathBuf> },

    #[error("`{}` is PostgreSQL {found}, and PostgreSQL {wanted} is needed", directory.display())]
    WrongVersion { directory: PathBuf, found: ServerVersion, wanted: u32 },

    #[error("could not run `{}`", program.display())]
    Run {
        program: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("`{}` does not tell its version but `{answer}`", program.display())]
    Answer { program: PathBuf, answer: String },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Where the programs of one PostgreSQL installation are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    directory: PathBuf,
    version: ServerVersion,
}

impl Binaries {
    /// Finds the programs of a major version: in `directory` if one is given and nowhere else; otherwise where Debian,
    /// RHEL and the PostgreSQL project's packages put them, then in the directories of `PATH`.
    pub async fn find(major: u32, directory: Option<&Path>) -> Result<Self, FindBinariesError> {
        if let Some(directory) = directory {
            let missing = || FindBinariesError::NotFound { major, looked: vec![directory.to_owned()] };
            let found = Self::inspect(directory).await?.ok_or_else(missing)?;
            if found.version.major() != major {
                let directory = directory.to_owned();
                return Err(FindBinariesError::WrongVersion { directory, found: found.version, wanted: major });
            }
            return Ok(found);
        }
        let mut looked = vec![
            PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")),
            PathBuf::from(format!("/usr/pgsql-{major}/bin")),
            PathBuf::from(format!("/usr/lib/postgresql{major}/bin")),
        ];
        if let Some(path) = std::env::var_os("PATH") {
            looked.extend(std::env::split_paths(&path).filter(|directory| directory.is_absolute()));
        }
        for directory in &looked {
            match Self::inspect(directory).await {
                Ok(Some(found)) if found.version.major() == major => return Ok(found),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "a directory was passed over"),
            }
        }
        Err(FindBinariesError::NotFound { major, looked })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn version(&self) -> ServerVersion {
        self.version
    }

    /// The path of one program, such as `pg_controldata`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What is in a directory; `None` if there is no complete server.
    async fn inspect(directory: &Path) -> Result<Option<Self>, FindBinariesError> {
        let program = directory.join("postgres");
        if !program.is_file() || !directory.join("pg_ctl").is_file() {
            return Ok(None);
        }
        let failed = |source| FindBinariesError::Run { program: program.clone(), source };
        let run = Command::new(&program).arg("--version").kill_on_drop(true).output();
        let output = tokio::time::timeout(Duration::from_secs(10), run).await;
        let output = output.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?.map_err(failed)?;
        let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match parse_version(&answer) {
            Some(version) => Ok(Some(Self { directory: directory.to_owned(), version })),
            None => Err(FindBinariesError::Answer { program, answer }),
        }
    }
}

/// Reads `postgres (PostgreSQL) 15.18 (Debian 15.18-1)`.
fn parse_version(answer: &str) -> Option<ServerVersion> {
    ServerVersion::parse(answer.split_once("(PostgreSQL) ")?.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_version_answers() {
        let version = parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)");
        assert_eq!(version, Some(ServerVersion(150_018)));
        assert_eq!(parse_version("postgres: command not found"), None);
    }

    #[tokio::test]
    async fn an_empty_directory_has_no_server() {
        let folder = tempfile::tempdir().unwrap();
        let error = Binaries::find(15, Some(folder.path())).await.unwrap_err();
        assert!(matches!(error, FindBinariesError::NotFound { major: 15, .. }));
        assert!(error.to_string().contains(&folder.path().display().to_string()));
    }
}
