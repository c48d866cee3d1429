//! The `restore_command` of a restored cluster.

use std::path::Path;

use holdfast_repository::Lineage;
use holdfast_types::{Lsn, Timeline};

use crate::failure::{CommandError, Failure};

/// Where segments are fetched ahead to: in the data directory, where PostgreSQL runs its commands.
const PREFETCH: &str = "holdfast.prefetch";

/// What makes the directory of one restore another than that of the next in the same place: whatever fetched ahead for the
/// first one may still run, and may do so from another repository.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark(i64);

impl Mark {
    pub(super) fn now() -> Self {
        Self(jiff::Timestamp::now().as_microsecond())
    }
}

/// Runs this same program, with this same configuration, wherever PostgreSQL's shell is.
pub(super) fn restore_command(
    config: &Path,
    source: &str,
    repository: Option<&str>,
    lineage: Lineage,
    timeline: Timeline,
    (until, is_cut): (Option<Lsn>, bool),
    Mark(mark): Mark,
) -> Result<String, Failure> {
    let program = std::env::current_exe().map_err(CommandError::file("find this program:", Path::new("holdfast")))?;
    let program = quote(&program)?;
    let config = quote(config)?;
    let until = until.map(|until| format!(" --until {until}")).unwrap_or_default();
    let cut = if is_cut { " --cut" } else { "" };
    let only = repository.map(|name| quote(Path::new(name))).transpose()?;
    let only = only.map(|name| format!(" --repository {name}")).unwrap_or_default();
    Ok(format!(
        "{program} --config {config} wal get {source} %f \"%p\" --partial{until}{cut} --timeline {timeline} \
         --lineage {lineage} --prefetch {PREFETCH}/{mark:x}{only}"
    ))
}

/// Runs the command as PostgreSQL will, for a file that cannot exist: it has to say that there is none. What it would
/// fail on (an identity or repository that PostgreSQL's user cannot read) shows before hours of restoring, not after.
pub(super) fn prove(restore_command: &str, user: &str) -> Result<(), Failure> {
    use std::os::unix::process::CommandExt as _;
    let line = restore_command.replace("%f", "FFFFFFFF.history").replace("\"%p\"", "/dev/null").replace("%%", "%");
    let mut command = std::process::Command::new("sh");
    command.arg("-c").arg(&line).current_dir("/").stdin(std::process::Stdio::null());
    if nix::unistd::Uid::effective().is_root()
        && let Ok(Some(user)) = nix::unistd::User::from_name(user)
    {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let output = command.output().map_err(CommandError::file("run", Path::new("sh")))?;
    if output.status.code() == Some(1) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
    let problem = format!("as user `{user}`, who runs PostgreSQL, the restore_command fails: {said}");
    let hint =
        "Let that user read the configuration, the identity file and the repository, or run the restore as that user.";
    Err(CommandError::usage(problem, hint).into())
}

/// For a shell, and for PostgreSQL, to which `%` means something.
fn quote(path: &Path) -> Result<String, Failure> {
    let Some(text) = path.to_str().filter(|text| !text.contains(['\n', '\0'])) else {
        let problem = format!("{} cannot be written into restore_command", path.display());
        return Err(CommandError::usage(problem, "Use a path of plain text.").into());
    };
    let text = text.replace('%', "%%");
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+%".contains(c);
    Ok(if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_gets_the_path_back() {
        for path in ["/etc/holdfast/holdfast.toml", "/a b/$HOME/it's.toml", "/100%/x", "/`id`/\"x\""] {
            let quoted = quote(Path::new(path)).unwrap().replace("%%", "%");
            let output = Command::new("sh").arg("-c").arg(format!("printf %s {quoted}")).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), path);
        }
        assert!(quote(Path::new("/a\nb")).is_err());
    }

    #[test]
    fn the_command_is_one_that_wal_get_takes() {
        let lineage: Lineage = "7412345678901234567-16".parse().unwrap();
        let (timeline, until) = (Timeline::new(3), Some(Lsn::new(0x1_0000_00AB)));
        let config = Path::new("/etc/holdfast/holdfast.toml");
        let command = restore_command(config, "chat", None, lineage, timeline, (until, true), Mark(0xfeed)).unwrap();
        let expected = " --config /etc/holdfast/holdfast.toml wal get chat %f \"%p\" --partial --until 1/AB --cut \
                        --timeline 3 --lineage 7412345678901234567-16 --prefetch holdfast.prefetch/feed";
        assert!(command.ends_with(expected), "{command}");
        let words = command.replace('"', "");
        let words: Vec<_> = words.split(' ').map(std::ffi::OsString::from).collect();
        assert!(crate::cli::parse(&words).is_ok());
    }
}
