//! A real server of Azure Blob's protocol: Azurite, as Microsoft gives it to developers, on loopback.
//! `scripts/install-azurite.sh` installs it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::daemon::{Daemon, free_port, listens};
use crate::temp_root::TempRoot;
use crate::tools::run;
use crate::user::own;

const BOUND: Duration = Duration::from_mins(1);
const PROGRAM: &str = "/var/cache/holdfast/azurite/node_modules/.bin/azurite-blob";
/// Azurite's own account, the same everywhere.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A running server. Ends with the value.
#[derive(Debug)]
pub struct Azurite {
    port: u16,
    _daemon: Daemon,
    root: TempRoot,
}

impl Azurite {
    pub fn start() -> Self {
        let program = std::env::var_os("HOLDFAST_AZURITE").map_or_else(|| PathBuf::from(PROGRAM), PathBuf::from);
        assert!(program.exists(), "{} is missing: run scripts/install-azurite.sh", program.display());
        let root = TempRoot::new();
        let port = free_port();
        let mut command = Command::new(program);
        command.args(["--skipApiVersionCheck", "--disableTelemetry", "--silent"]);
        command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--location"]).arg(root.path());
        let mut daemon = Daemon::start("azurite-blob", &mut command, &root.join("azurite.log"));
        daemon.wait_until(BOUND, "a server that listens", || listens(port));
        Self { port, _daemon: daemon, root }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/{ACCOUNT}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn account_name(&self) -> &'static str {
        ACCOUNT
    }

    pub fn account_key(&self) -> &'static str {
        KEY
    }

    /// Makes a container, signed as the protocol wants it ("Authorize with Shared Key").
    pub fn make_container(&self, name: &str) {
        let script = r#"set -euo pipefail
            date=$(LC_ALL=C date -u '+%a, %d %b %Y %H:%M:%S GMT')
            key=$(printf %s "$KEY" | openssl base64 -d -A | od -An -v -tx1 | tr -d ' \n')
            text="PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:$date\nx-ms-version:2021-08-06\n/$ACCOUNT/$ACCOUNT/$NAME\nrestype:container"
            signature=$(printf "$text" | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -binary | openssl base64 -A)
            curl --silent --show-error --fail-with-body --request PUT --header "x-ms-date: $date" \
                --header 'x-ms-version: 2021-08-06' --header 'Content-Length: 0' \
                --header "Authorization: SharedKey $ACCOUNT:$signature" "$ENDPOINT/$NAME?restype=container""#;
        let mut command = Command::new("bash");
        command.args(["-c", script]).env("KEY", KEY).env("ACCOUNT", ACCOUNT).env("NAME", name);
        command.env("ENDPOINT", self.endpoint());
        run(&mut command).unwrap_or_else(|error| panic!("{error}"));
    }

    /// The file of credentials for `credentials_file`.
    pub fn credentials_file(&self) -> PathBuf {
        let text = format!("account_name = \"{ACCOUNT}\"\naccount_key = \"{KEY}\"\n");
        secret_file(&self.root.join("credentials.toml"), &text)
    }
}

/// One that only the servers' user may read.
pub(crate) fn secret_file(path: &Path, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).expect("the directory can be written");
    own(path);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    path.to_owned()
}
