//! Who the servers run as.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use nix::unistd::{Uid, User};

/// The user that PostgreSQL runs as when the tests run as root.
const SERVER_USER: &str = "postgres";

/// The user to change to before a server is started, or `None` if it can run as ourselves.
fn server_user() -> Option<&'static User> {
    static USER: OnceLock<Option<User>> = OnceLock::new();
    USER.get_or_init(|| {
        if !Uid::effective().is_root() {
            return None;
        }
        let user = User::from_name(SERVER_USER).expect("the user database can be read");
        Some(user.expect("PostgreSQL refuses to run as root, and there is no user `postgres` to run it as"))
    })
    .as_ref()
}

/// A command that runs as the OS user of the servers, in `/`, without the caller's `PG*` variables, and speaking
/// English. Supplementary groups are cleared along with the user (the standard library does so when root changes
/// the uid).
pub fn command_as_server_user(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.env("LC_ALL", "C").current_dir("/");
    if let Some(user) = server_user() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        command.env("HOME", &user.dir).env("USER", &user.name).env("LOGNAME", &user.name);
    }
    command
}

/// Gives a file, or a directory with all that is in it, to the OS user of the servers. Links are given, not followed.
/// Does nothing when the servers run as ourselves.
pub fn own(path: &Path) {
    let Some(user) = server_user() else { return };
    give(path, user).unwrap_or_else(|error| panic!("could not give {} to {SERVER_USER}: {error}", path.display()));
}

fn give(path: &Path, user: &User) -> std::io::Result<()> {
    std::os::unix::fs::lchown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    if path.symlink_metadata()?.is_dir() {
        for entry in path.read_dir()? {
            give(&entry?.path(), user)?;
        }
    }
    Ok(())
}
