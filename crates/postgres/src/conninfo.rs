//! Where a server is and how to prove who we are, as libpq writes it.
//!
//! A [`ConnInfo`] is parsed from a keyword string (`host=/run/postgresql user=holdfast sslmode=verify-full`) or from a
//! URI (`postgresql://holdfast@db1,db2/postgres?target_session_attrs=primary`). Keywords that this crate does not act
//! upon are refused by name, so that nobody believes in a setting that has no effect. The environment (`PGHOST` and
//! its kin) is not read.
//!
//! It differs from libpq in four points, all on purpose:
//!
//! * `connect_timeout` is 10 seconds unless set, and cannot be infinite;
//! * `dbname` is `postgres` unless set, because Holdfast needs some database and not a particular one;
//! * `sslmode=verify-ca` and `verify-full` without `sslrootcert` use the certificates that the system trusts;
//! * a password file that others may read is an error when its password is needed, not a warning.

mod parse;
mod pgpass;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

pub use parse::ParseConnInfoError;
pub use pgpass::PasswordFileError;

/// Where PostgreSQL puts its socket on Debian, Ubuntu, RHEL and their relatives.
const DEFAULT_SOCKET_DIRECTORY: &str = "/var/run/postgresql";
const DEFAULT_PORT: u16 = 5432;

/// How to reach a server. See the [module documentation](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnInfo {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) user: Option<String>,
    pub(crate) dbname: String,
    pub(crate) password: Option<Password>,
    pub(crate) passfile: Option<PathBuf>,
    pub(crate) application_name: String,
    pub(crate) options: Option<String>,
    pub(crate) connect_timeout: Duration,
    pub(crate) session_attrs: SessionAttrs,
    pub(crate) tls: TlsOptions,
    pub(crate) keepalive: Keepalive,
}

impl Default for ConnInfo {
    fn default() -> Self {
        Self {
            endpoints: vec![Endpoint::new(String::new(), None, DEFAULT_PORT)],
            user: None,
            dbname: "postgres".to_owned(),
            password: None,
            passfile: None,
            application_name: "holdfast".to_owned(),
            options: None,
            connect_timeout: Duration::from_secs(10),
            session_attrs: SessionAttrs::Any,
            tls: TlsOptions::default(),
            keepalive: Keepalive::default(),
        }
    }
}

impl ConnInfo {
    /// Sets `application_name`; `synchronous_standby_names` matches a replication connection by it.
    #[must_use]
    pub fn with_application_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.application_name);
        self
    }

    #[must_use]
    pub fn with_dbname(mut self, name: &str) -> Self {
        name.clone_into(&mut self.dbname);
        self
    }

    #[must_use]
    pub fn with_user(mut self, name: &str) -> Self {
        self.user = Some(name.to_owned());
        self
    }

    #[must_use]
    pub fn with_password(mut self, password: &str) -> Self {
        self.password = Some(Password(password.to_owned()));
        self
    }

    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The servers in the order in which they are tried.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The role, if the text names one; otherwise the connection is made as the operating system's user.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    pub fn dbname(&self) -> &str {
        &self.dbname
    }

    pub fn application_name(&self) -> &str {
        &self.application_name
    }

    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }
}

impl FromStr for ConnInfo {
    type Err = ParseConnInfoError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse::parse(text)
    }
}

/// For logs: the servers, the role and the database, never the password.
impl fmt::Display for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(f, "{separator}{endpoint}")?;
        }
        if let Some(user) = &self.user {
            write!(f, " user={user}")?;
        }
        write!(f, " dbname={}", self.dbname)
    }
}

/// One server: a host and a port, or a directory that holds a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A host name, an address, or the directory of a Unix socket.
    pub(crate) host: String,
    /// Where to connect if not to what `host` resolves to; certificates are still checked against `host`.
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
}

impl Endpoint {
    fn new(host: String, address: Option<IpAddr>, port: u16) -> Self {
        let host = match (host.is_empty(), address) {
            (false, _) => host,
            (true, Some(address)) => address.to_string(),
            (true, None) => DEFAULT_SOCKET_DIRECTORY.to_owned(),
        };
        Self { host, address, port }
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The socket's path, if this is a server on this machine reached through one.
    pub fn socket(&self) -> Option<PathBuf> {
        (self.host.starts_with('/') && self.address.is_none())
            .then(|| Path::new(&self.host).join(format!(".s.PGSQL.{}", self.port)))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.socket() {
            Some(path) => path.display().fmt(f),
            None if self.host.contains(':') => write!(f, "[{}]:{}", self.host, self.port),
            None => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A password, which does not print.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Password(String);

impl Password {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// Which of several servers will do (`target_session_attrs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionAttrs {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// How much the server has to prove (`sslmode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    /// Encrypted if the server can, plain otherwise: guards against nobody who can alter the traffic.
    #[default]
    Prefer,
    /// Encrypted, to whoever answers; with `sslrootcert` the same as `verify-ca`, as in libpq.
    Require,
    /// Encrypted, to a server whose certificate comes from a trusted authority.
    VerifyCa,
    /// The same, and the certificate is for the host that was asked for.
    VerifyFull,
}

/// Whether the login must be bound to the server's certificate (`channel_binding`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChannelBinding {
    Disable,
    #[default]
    Prefer,
    Require,
}

/// Which authorities vouch for servers (`sslrootcert`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Roots {
    /// Nothing was said: the system's, where verification is asked for.
    #[default]
    Unset,
    System,
    File(PathBuf),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsOptions {
    pub(crate) mode: SslMode,
    pub(crate) roots: Roots,
    /// The client's certificate and its key.
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) channel_binding: ChannelBinding,
}

/// How soon a connection to a dead host is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keepalive {
    pub(crate) enabled: bool,
    pub(crate) idle: Duration,
    pub(crate) interval: Duration,
    pub(crate) count: u32,
    /// How long sent bytes may stay unacknowledged; zero leaves it to the kernel (about 15 minutes).
    pub(crate) user_timeout: Duration,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            enabled: true,
            idle: Duration::from_secs(30),
            interval: Duration::from_secs(10),
            count: 3,
            user_timeout: Duration::from_mins(1),
        }
    }
}
