use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::body::Reader;
use super::row::RowError;
use crate::conninfo::{PasswordFileError, SessionAttrs};

/// What a server says is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL` or `PANIC`, never translated.
    pub severity: String,
    /// The five characters that stand for the error, as in `57P03`.
    pub sqlstate: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl ServerError {
    pub(crate) fn read(body: &[u8]) -> io::Result<Self> {
        let mut error =
            Self { severity: String::new(), sqlstate: String::new(), message: String::new(), detail: None, hint: None };
        let mut reader = Reader(body);
        loop {
            match reader.u8()? {
                0 => break,
                // `V` is `S` without translation, and comes after it.
                b'S' | b'V' => error.severity = reader.text()?,
                b'C' => error.sqlstate = reader.text()?,
                b'M' => error.message = reader.text()?,
                b'D' => error.detail = Some(reader.text()?),
                b'H' => error.hint = Some(reader.text()?),
                _ => {
                    reader.text()?;
                }
            }
        }
        reader.finish()?;
        Ok(error)
    }

    /// Whether the server ends the session with this.
    pub(crate) fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }

    pub(crate) fn trace(&self, server: &str) {
        let Self { severity, sqlstate, message, detail, .. } = self;
        if severity == "WARNING" {
            tracing::warn!(server, sqlstate, detail, "PostgreSQL warns: {message}");
        } else {
            tracing::debug!(server, sqlstate, detail, "PostgreSQL says: {message}");
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self.sqlstate.as_str() {
            // Serialization failure, deadlock; object in use (the slot of a walsender that has not noticed its end).
            "40001" | "40P01" | "55006" |
            // Shut down by an administrator or a crash, cannot connect now, idle session timeout.
            "57P01" | "57P02" | "57P03" | "57P05" => true,
            // Connection failures and insufficient resources (53300 is too many connections).
            code => code.starts_with("08") || code.starts_with("53"),
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.sqlstate)?;
        if let Some(detail) = &self.detail {
            write!(f, "; detail: {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

/// Why a request on an open connection failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    #[error("the server {server} refused a request")]
    Server {
        server: String,
        #[source]
        source: Box<ServerError>,
    },

    #[error("the connection to {server} was lost")]
    ConnectionLost {
        server: String,
        #[source]
        source: io::Error,
    },

    #[error("the connection to {server} is closed")]
    Closed { server: String },

    #[error("the server {server} does not keep to the protocol")]
    Protocol {
        server: String,
        #[source]
        source: io::Error,
    },

    #[error("an answer of {server} could not be read")]
    Answer {
        server: String,
        #[source]
        source: Box<RowError>,
    },

    #[error("an answer of {server} has {got} rows where {expected} was expected")]
    RowCount { server: String, expected: usize, got: usize },

    #[error("a statement for {server} contains a zero byte")]
    ZeroByte { server: String },
}

impl QueryError {
    /// For `map_err` on values of rows.
    pub(crate) fn answer(server: &str) -> impl Fn(RowError) -> Self + use<> {
        let server = server.to_owned();
        move |source| Self::Answer { server: server.clone(), source: Box::new(source) }
    }

    /// Whether the same request may succeed later, perhaps on a new connection.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Server { source, .. } => source.is_retryable(),
            Self::ConnectionLost { .. } | Self::Closed { .. } => true,
            Self::Protocol { .. } | Self::Answer { .. } | Self::RowCount { .. } | Self::ZeroByte { .. } => false,
        }
    }

    /// What the server said, if it was the server that refused.
    pub fn server_error(&self) -> Option<&ServerError> {
        if let Self::Server { source, .. } = self { Some(source) } else { None }
    }

    pub(crate) fn sqlstate(&self) -> Option<&str> {
        self.server_error().map(|error| error.sqlstate.as_str())
    }
}

/// Why TLS cannot be set up at our end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    #[error("could not read a certificate from `{}`", path.display())]
    Certificate {
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },

    #[error("could not read a private key from `{}`", path.display())]
    Key {
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },

    #[error("the private key `{}` has mode {mode:03o}: others may read it (it must be 0600, or 0640 if root owns it)", path.display())]
    KeyPermissions { path: PathBuf, mode: u32 },

    #[error("`{}` holds no certificate", path.display())]
    NoCertificate { path: PathBuf },

    #[error("the system has no trusted certificates (set sslrootcert)")]
    NoSystemRoots,

    #[error("the certificates are not usable")]
    Configuration(#[source] rustls::Error),

    #[error("`{host}` cannot be the name of a TLS server")]
    ServerName { host: String },
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    #[error("could not resolve the host `{host}`")]
    Resolve {
        host: String,
        #[source]
        source: io::Error,
    },

    #[error("could not connect to {server}")]
    Io {
        server: String,
        #[source]
        source: io::Error,
    },

    #[error("no connection to {server} within {after:?}")]
    Timeout { server: String, after: Duration },

    #[error("could not prepare TLS for {server}")]
    Tls {
        server: String,
        #[source]
        source: TlsError,
    },

    #[error("could not agree on TLS with {server}")]
    Handshake {
        server: String,
        #[source]
        source: io::Error,
    },

    #[error("the server {server} does not offer TLS, which sslmode asks for")]
    TlsNotOffered { server: String },

    #[error("could not find out the name of this process's user, and the connection names none")]
    NoUser,

    #[error("the server {server} asks for a password for `{user}` and none is given")]
    PasswordNeeded { server: String, user: String },

    #[error("could not look up the password for {server}")]
    PasswordFile {
        server: String,
        #[source]
        source: PasswordFileError,
    },

    #[error("the server {server} wants the password of `{user}` in the clear on a connection that is not encrypted")]
    PasswordInClear { server: String, user: String },

    #[error("the server {server} asks for the authentication method `{method}`, which is not supported")]
    Method { server: String, method: String },

    #[error("the login at {server} cannot be bound to its certificate, which channel_binding=require asks for")]
    ChannelBinding { server: String },

    /// The server does not know the password itself, so it is not the server that it says it is.
    #[error("the server {server} failed to prove that it knows the password")]
    ServerProof {
        server: String,
        #[source]
        source: io::Error,
    },

    #[error("the server {server} refused the connection")]
    Server {
        server: String,
        #[source]
        source: Box<ServerError>,
    },

    #[error("the server {server} does not speak PostgreSQL's protocol")]
    Protocol {
        server: String,
        #[source]
        source: io::Error,
    },

    #[error("the server {server} is not what target_session_attrs asks for ({wanted:?})")]
    WrongSession { server: String, wanted: SessionAttrs },

    #[error("none of the servers can be used: {}", list(attempts))]
    NoServer { attempts: Vec<ConnectError> },
}

/// With several attempts there is no one source, so they are told in the message, causes included.
fn list(attempts: &[ConnectError]) -> String {
    let causes = |error: &ConnectError| {
        let first = Some(error as &dyn std::error::Error);
        let chain = std::iter::successors(first, |error| error.source());
        chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    };
    attempts.iter().map(causes).collect::<Vec<_>>().join("; ")
}

impl ConnectError {
    /// Whether connecting may succeed later without anybody changing a setting.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::Handshake { source, .. } => {
                // `InvalidData` is how a TLS alert or a bad certificate arrives.
                !matches!(
                    source.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
                )
            }
            Self::Server { source, .. } => source.is_retryable(),
            Self::Resolve { .. } | Self::Timeout { .. } | Self::WrongSession { .. } => true,
            Self::NoServer { attempts } => attempts.iter().any(Self::is_retryable),
            _ => false,
        }
    }

    /// What the server said, if it was the server that refused.
    pub fn server_error(&self) -> Option<&ServerError> {
        if let Self::Server { source, .. } = self { Some(source) } else { None }
    }

    /// Whether another server may answer better. After a refused login it is not tried, as in libpq: the same
    /// credentials would only be shown around.
    pub(crate) fn tries_next(&self) -> bool {
        match self {
            Self::Server { source, .. } => source.is_retryable(),
            Self::Resolve { .. }
            | Self::Io { .. }
            | Self::Timeout { .. }
            | Self::WrongSession { .. }
            | Self::Protocol { .. }
            | Self::TlsNotOffered { .. }
            | Self::Handshake { .. } => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_all_that_a_server_says() {
        let body = b"SFEHLER\0VERROR\0C55006\0Mslot is active\0Ddetail\0Hhint\0Fslot.c\0\0";
        let error = ServerError::read(body).unwrap();
        assert_eq!(error.to_string(), "slot is active (SQLSTATE 55006); detail: detail; hint: hint");
        assert_eq!(error.severity, "ERROR");
        assert!(error.is_retryable() && !error.is_fatal());
        assert!(ServerError::read(b"SERROR").is_err());
    }

    #[test]
    fn passing_troubles_are_retryable() {
        let error = |sqlstate: &str| ServerError {
            severity: "FATAL".to_owned(),
            sqlstate: sqlstate.to_owned(),
            message: String::new(),
            detail: None,
            hint: None,
        };
        for code in ["57P01", "57P02", "57P03", "53300", "53200", "08006", "55006"] {
            assert!(error(code).is_retryable(), "{code}");
        }
        for code in ["28P01", "28000", "42501", "42704", "58P01", "57014", "3D000"] {
            assert!(!error(code).is_retryable(), "{code}");
        }
    }
}
