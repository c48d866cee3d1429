use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{ConnInfo, DEFAULT_SOCKET_DIRECTORY, Endpoint, Password};

/// Why the password file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PasswordFileError {
    #[error("could not read the password file `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("the password file `{}` is not a plain file", path.display())]
    NotAFile { path: PathBuf },

    #[error("the password file `{}` has mode {mode:03o}: others may read it (it must be 0600 or less)", path.display())]
    Permissions { path: PathBuf, mode: u32 },
}

impl ConnInfo {
    /// The password for one server: the one given, else from `passfile`, else from `~/.pgpass`.
    ///
    /// `database` is `replication` for a replication connection, as libpq's own clients look it up.
    pub(crate) fn password_for(
        &self,
        endpoint: &Endpoint,
        database: &str,
        user: &str,
    ) -> Result<Option<Password>, PasswordFileError> {
        if self.password.is_some() {
            return Ok(self.password.clone());
        }
        let text = if let Some(path) = &self.passfile {
            read(path)?
        } else {
            let Some(path) = home().map(|home| home.join(".pgpass")) else { return Ok(None) };
            match read(&path) {
                // Nobody has to have one.
                Err(PasswordFileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    return Ok(None);
                }
                outcome => outcome?,
            }
        };
        Ok(find(&text, &names(endpoint), &endpoint.port.to_string(), database, user).map(Password))
    }
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from).or_else(|| {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
        user.map(|user| user.dir)
    })
}

fn read(path: &Path) -> Result<String, PasswordFileError> {
    let failed = |source| PasswordFileError::Read { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(PasswordFileError::NotAFile { path: path.to_owned() });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(PasswordFileError::Permissions { path: path.to_owned(), mode });
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// The names under which a server may stand in the file: the standard socket directory is `localhost`.
fn names(endpoint: &Endpoint) -> Vec<&str> {
    let standard = [DEFAULT_SOCKET_DIRECTORY, "/run/postgresql"];
    let local = standard.contains(&endpoint.host.trim_end_matches('/')).then_some("localhost");
    [endpoint.host.as_str()].into_iter().chain(local).collect()
}

/// The password of the first line that fits; `*` fits anything, a backslash takes the next character as it is.
fn find(text: &str, hosts: &[&str], port: &str, database: &str, user: &str) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        let mut field = || {
            let (raw, tail) = split_field(rest)?;
            rest = tail;
            Some(raw)
        };
        let fits = |raw: &str, wanted: &str| raw == "*" || unescape(raw) == wanted;
        let host = field()?;
        let fitting = hosts.iter().any(|wanted| fits(host, wanted))
            & fits(field()?, port)
            & fits(field()?, database)
            & fits(field()?, user);
        (fitting && !rest.is_empty()).then(|| {
            // What follows an unescaped colon is no longer the password.
            unescape(split_field(rest).map_or(rest, |(password, _)| password))
        })
    })
}

/// Cuts at the first colon that no backslash precedes.
fn split_field(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b':' if !escaped => return Some((&text[..at], &text[at + 1..])),
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut characters = text.chars();
    let mut plain = String::with_capacity(text.len());
    while let Some(c) = characters.next() {
        plain.push(if c == '\\' { characters.next().unwrap_or(c) } else { c });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_first_fitting_line_wins() {
        let text = "# a comment:*:*:*:no\n\
                    db1:5432:app:bob:one\n\
                    db1:*:replication:bob:two\n\
                    *:*:*:carol:th\\:r\\\\ee:ignored\n\
                    db1:5432:app:bob:late\n\
                    incomplete:5432\n\
                    localhost:5432:*:dave:four\n";
        let find = |hosts: &[&str], database, user| find(text, hosts, "5432", database, user);
        assert_eq!(find(&["db1"], "app", "bob").as_deref(), Some("one"));
        assert_eq!(find(&["db1"], "replication", "bob").as_deref(), Some("two"));
        assert_eq!(find(&["x"], "y", "carol").as_deref(), Some(r"th:r\ee"));
        assert_eq!(find(&["/run/postgresql", "localhost"], "y", "dave").as_deref(), Some("four"));
        assert_eq!(find(&["db2"], "app", "bob"), None);
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pgpass");
        std::fs::write(&path, "*:*:*:*:secret\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let info: ConnInfo = format!("host=h passfile={}", path.display()).parse().unwrap();
        let error = info.password_for(&info.endpoints[0], "postgres", "u").unwrap_err();
        assert!(matches!(error, PasswordFileError::Permissions { mode: 0o640, .. }), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let password = info.password_for(&info.endpoints[0], "postgres", "u").unwrap();
        assert_eq!(password, Some(Password("secret".to_owned())));
        assert!(!format!("{password:?}").contains("secret"));
    }

    proptest! {
        #[test]
        fn escaped_fields_are_found(fields in prop::collection::vec("[^\0\r\n]{1,12}", 5)) {
            let escape = |text: &String| text.replace('\\', r"\\").replace(':', r"\:");
            let line = fields.iter().map(escape).collect::<Vec<_>>().join(":");
            prop_assume!(!line.starts_with('#'));
            let found = find(&line, &[&fields[0]], &fields[1], &fields[2], &fields[3]);
            prop_assert_eq!(found, Some(fields[4].clone()));
        }

        #[test]
        fn no_text_makes_it_panic(text in r"[\\:*a\n#]{0,60}") {
            find(&text, &["a"], "a", "a", "a");
        }
    }
}
