use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::auth::{Login, authenticate};
use super::tls::Connector;
use super::wire::{Frame, Socket, Wire};
use super::{Client, ConnectError, Purpose, QueryError, ServerError, ServerVersion, TRANSACTIONS};
use crate::conninfo::{ConnInfo, Endpoint, Keepalive, SessionAttrs, SslMode};

impl Client {
    /// Connects to the first server that answers and is what `target_session_attrs` asks for.
    ///
    /// Each address has `connect_timeout` for everything from the first packet to the end of the login.
    pub async fn connect(info: &ConnInfo, purpose: Purpose) -> Result<Self, ConnectError> {
        match info.session_attrs {
            // A standby if there is one, else whatever there is.
            SessionAttrs::PreferStandby => match connect_any(info, purpose, SessionAttrs::Standby).await {
                Err(error) if error.tries_next() || matches!(error, ConnectError::NoServer { .. }) => {
                    connect_any(info, purpose, SessionAttrs::Any).await
                }
                outcome => outcome,
            },
            wanted => connect_any(info, purpose, wanted).await,
        }
    }

    /// Asks the same server, and no other, to give up what it does for this connection. That takes no session there, so it
    /// works where all are taken. The answer, if there was to be one, becomes an error.
    pub async fn cancel(&self, info: &ConnInfo) -> Result<(), ConnectError> {
        let Self { purpose, endpoint, address, .. } = self;
        let attempt = Attempt { info, purpose: *purpose, wanted: SessionAttrs::Any, endpoint, address: *address };
        let after = info.connect_timeout;
        let outcome = tokio::time::timeout(after, attempt.cancel(self)).await;
        outcome.unwrap_or_else(|_| Err(ConnectError::Timeout { server: attempt.server(), after }))
    }
}

async fn connect_any(info: &ConnInfo, purpose: Purpose, wanted: SessionAttrs) -> Result<Client, ConnectError> {
    let mut attempts = Vec::new();
    for endpoint in &info.endpoints {
        let addresses = match addresses(endpoint, info.connect_timeout).await {
            Ok(addresses) => addresses,
            Err(error) => {
                attempts.push(error);
                continue;
            }
        };
        for address in addresses {
            let attempt = Attempt { info, purpose, wanted, endpoint, address };
            match attempt.run().await {
                Ok(client) => return Ok(client),
                Err(error) if error.tries_next() => attempts.push(error),
                Err(error) => return Err(error),
            }
        }
    }
    match attempts.pop() {
        Some(only) if attempts.is_empty() => Err(only),
        last => {
            attempts.extend(last);
            Err(ConnectError::NoServer { attempts })
        }
    }
}

/// Where an endpoint is: `None` stands for its Unix socket.
async fn addresses(endpoint: &Endpoint, timeout: Duration) -> Result<Vec<Option<SocketAddr>>, ConnectError> {
    if endpoint.socket().is_some() {
        return Ok(vec![None]);
    }
    if let Some(address) = endpoint.address {
        return Ok(vec![Some(SocketAddr::new(address, endpoint.port))]);
    }
    let failed = |source| ConnectError::Resolve { host: endpoint.host.clone(), source };
    let lookup = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port));
    let found = tokio::time::timeout(timeout, lookup).await;
    let found = found.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?.map_err(failed)?;
    let addresses: Vec<_> = found.map(Some).collect();
    if addresses.is_empty() { Err(failed(io::ErrorKind::NotFound.into())) } else { Ok(addresses) }
}

/// One try at one address.
struct Attempt<'a> {
    info: &'a ConnInfo,
    purpose: Purpose,
    wanted: SessionAttrs,
    endpoint: &'a Endpoint,
    address: Option<SocketAddr>,
}

impl Attempt<'_> {
    async fn run(&self) -> Result<Client, ConnectError> {
        let mode = self.info.tls.mode;
        let connector = if self.address.is_none() || mode == SslMode::Disable {
            None
        } else {
            let prepared = Connector::new(&self.info.tls, &self.endpoint.host);
            Some(prepared.map_err(|source| ConnectError::Tls { server: self.server(), source })?)
        };
        match self.within_deadline(connector.as_ref()).await {
            // As in libpq, `prefer` is content with a connection that is not encrypted.
            Err(ConnectError::Handshake { server, source }) if mode == SslMode::Prefer => {
                tracing::debug!(server, error = %source, "TLS failed, connecting without it");
                self.within_deadline(None).await
            }
            outcome => outcome,
        }
    }

    fn server(&self) -> String {
        match self.address {
            Some(address) if address.ip().to_string() != self.endpoint.host => format!("{} ({address})", self.endpoint),
            _ => self.endpoint.to_string(),
        }
    }

    async fn within_deadline(&self, connector: Option<&Connector>) -> Result<Client, ConnectError> {
        let after = self.info.connect_timeout;
        let outcome = tokio::time::timeout(after, self.establish(connector)).await;
        outcome.unwrap_or_else(|_| Err(ConnectError::Timeout { server: self.server(), after }))
    }

    async fn establish(&self, connector: Option<&Connector>) -> Result<Client, ConnectError> {
        let server = self.server();
        let failed = |source| ConnectError::Io { server: server.clone(), source };
        let (socket, binding) = self.reach(connector).await?;
        let user = match &self.info.user {
            Some(user) => user.clone(),
            None => system_user().ok_or(ConnectError::NoUser)?,
        };
        let mut wire = Wire::new(socket);
        frontend::startup_message(self.parameters(&user), &mut wire.output).map_err(failed)?;
        let login = Login {
            info: self.info,
            endpoint: self.endpoint,
            // The name under which libpq's own clients look up passwords for physical replication.
            database: if self.purpose == Purpose::Replication { "replication" } else { &self.info.dbname },
            user: &user,
            server: &server,
            binding,
        };
        authenticate(&mut wire, &login).await?;
        wire.logged_in();
        TRANSACTIONS.fetch_add(1, Ordering::Relaxed);
        let mut client = self.first_answers(wire, &server).await?;
        self.check_session(&mut client).await?;
        Ok(client)
    }

    /// A socket to the server, encrypted if there is a connector; with what binds a login to that.
    async fn reach(&self, connector: Option<&Connector>) -> Result<(Socket, Option<Vec<u8>>), ConnectError> {
        let server = self.server();
        let failed = |source| ConnectError::Io { server: server.clone(), source };
        match (self.address, self.endpoint.socket()) {
            (None, Some(path)) => Ok((Socket::Unix(UnixStream::connect(path).await.map_err(failed)?), None)),
            (None, None) => Err(failed(io::ErrorKind::AddrNotAvailable.into())),
            (Some(address), _) => {
                let stream = TcpStream::connect(address).await.map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                keep_alive(&stream, &self.info.keepalive, &server);
                match connector {
                    Some(connector) => self.negotiate_tls(stream, connector, &server).await,
                    None => Ok((Socket::Tcp(stream), None)),
                }
            }
        }
    }

    async fn cancel(&self, client: &Client) -> Result<(), ConnectError> {
        let server = self.server();
        let connector = if client.is_encrypted() {
            let prepared = Connector::new(&self.info.tls, &self.endpoint.host);
            Some(prepared.map_err(|source| ConnectError::Tls { server: server.clone(), source })?)
        } else {
            None
        };
        let failed = |source| ConnectError::Io { server: server.clone(), source };
        let (mut socket, _) = self.reach(connector.as_ref()).await?;
        let mut request = bytes::BytesMut::new();
        frontend::cancel_request(client.backend_pid, client.secret_key, &mut request);
        socket.write_all(&request).await.map_err(failed)?;
        socket.flush().await.map_err(failed)?;
        // There is no answer: the server closes the connection when it has passed the request on.
        match socket.read(&mut [0]).await {
            Err(error) if !matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof) => {
                Err(failed(error))
            }
            _ => Ok(()),
        }
    }

    fn parameters<'a>(&'a self, user: &'a str) -> Vec<(&'a str, &'a str)> {
        let mut parameters = vec![
            ("user", user),
            ("client_encoding", "UTF8"),
            ("application_name", self.info.application_name.as_str()),
        ];
        parameters.push(match self.purpose {
            Purpose::Sql => ("database", self.info.dbname.as_str()),
            Purpose::Replication => ("replication", "true"),
        });
        parameters.extend(self.info.options.as_deref().map(|options| ("options", options)));
        parameters
    }

    /// Asks for TLS, and sets it up if the server agrees.
    async fn negotiate_tls(
        &self,
        mut stream: TcpStream,
        connector: &Connector,
        server: &str,
    ) -> Result<(Socket, Option<Vec<u8>>), ConnectError> {
        let failed = |source| ConnectError::Io { server: server.to_owned(), source };
        let mut request = bytes::BytesMut::new();
        frontend::ssl_request(&mut request);
        stream.write_all(&request).await.map_err(failed)?;
        // Exactly one byte is read: what an intruder might have put after it fails the handshake.
        match stream.read_u8().await.map_err(failed)? {
            b'S' => {}
            b'N' if self.info.tls.mode == SslMode::Prefer => return Ok((Socket::Tcp(stream), None)),
            b'N' => return Err(ConnectError::TlsNotOffered { server: server.to_owned() }),
            // An error so early is not authenticated, so its text is not shown.
            _ => {
                let source = super::body::invalid("the answer to the request for TLS is neither yes nor no");
                return Err(ConnectError::Protocol { server: server.to_owned(), source });
            }
        }
        let handshake = connector.handshake(stream).await;
        let (stream, binding) =
            handshake.map_err(|source| ConnectError::Handshake { server: server.to_owned(), source })?;
        Ok((Socket::Tls(Box::new(stream)), binding))
    }

    /// Reads what follows the login, until the server is ready.
    async fn first_answers(&self, wire: Wire, server: &str) -> Result<Client, ConnectError> {
        let mut client = Client {
            wire,
            server: server.into(),
            purpose: self.purpose,
            version: ServerVersion(0),
            parameters: BTreeMap::new(),
            backend_pid: 0,
            secret_key: 0,
            endpoint: self.endpoint.clone(),
            address: self.address,
            unanswered: 0,
            closed: false,
        };
        let failed = |error| connect_error(error, server);
        loop {
            match client.receive().await.map_err(failed)? {
                Frame::Message(Message::BackendKeyData(body)) => {
                    (client.backend_pid, client.secret_key) = (body.process_id(), body.secret_key());
                }
                Frame::Message(Message::ReadyForQuery(_)) => break,
                Frame::Error(body) => {
                    let error = client.server_failure(&body).map_err(failed)?;
                    return Err(ConnectError::Server { server: server.to_owned(), source: Box::new(error) });
                }
                _ => {}
            }
        }
        let version = client.parameter("server_version").and_then(ServerVersion::parse);
        client.version = version.ok_or_else(|| ConnectError::Protocol {
            server: server.to_owned(),
            source: super::body::invalid("the server does not tell its version"),
        })?;
        if self.purpose == Purpose::Replication {
            client.wire.expect_stream();
        }
        Ok(client)
    }

    async fn check_session(&self, client: &mut Client) -> Result<(), ConnectError> {
        let server = self.server();
        let standby = async |client: &mut Client| match client.parameter("in_hot_standby") {
            Some(value) => Ok(value == "on"),
            // PostgreSQL 13 does not report it; a replication connection understands SHOW.
            None => read_only(client).await,
        };
        let fits = match self.wanted {
            SessionAttrs::Any | SessionAttrs::PreferStandby => true,
            SessionAttrs::ReadWrite => !read_only(client).await.map_err(|e| connect_error(e, &server))?,
            SessionAttrs::ReadOnly => read_only(client).await.map_err(|e| connect_error(e, &server))?,
            SessionAttrs::Primary => !standby(client).await.map_err(|e| connect_error(e, &server))?,
            SessionAttrs::Standby => standby(client).await.map_err(|e| connect_error(e, &server))?,
        };
        if fits { Ok(()) } else { Err(ConnectError::WrongSession { server, wanted: self.wanted }) }
    }
}

async fn read_only(client: &mut Client) -> Result<bool, QueryError> {
    let row = client.query_one("SHOW transaction_read_only").await?;
    Ok(row.text(0).map_err(QueryError::answer(client.server()))? == "on")
}

fn connect_error(error: QueryError, server: &str) -> ConnectError {
    let server = server.to_owned();
    match error {
        QueryError::Server { source, .. } => ConnectError::Server { server, source },
        QueryError::ConnectionLost { source, .. } => ConnectError::Io { server, source },
        QueryError::Protocol { source, .. } => ConnectError::Protocol { server, source },
        other => ConnectError::Protocol { server, source: io::Error::other(other) },
    }
}

pub(super) fn refusal(body: &[u8], server: &str) -> ConnectError {
    match ServerError::read(body) {
        Ok(source) => ConnectError::Server { server: server.to_owned(), source: Box::new(source) },
        Err(source) => ConnectError::Protocol { server: server.to_owned(), source },
    }
}

fn system_user() -> Option<String> {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name)
}

/// Lets the kernel find out that the other side is gone. Where it cannot, the connection is no worse than before.
fn keep_alive(stream: &TcpStream, options: &Keepalive, server: &str) {
    if !options.enabled {
        return;
    }
    let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    let set = || -> nix::Result<()> {
        setsockopt(stream, sockopt::KeepAlive, &true)?;
        // Zero means the system's own value.
        if !options.idle.is_zero() {
            setsockopt(stream, sockopt::TcpKeepIdle, &seconds(options.idle))?;
        }
        if !options.interval.is_zero() {
            setsockopt(stream, sockopt::TcpKeepInterval, &seconds(options.interval))?;
        }
        if options.count > 0 {
            setsockopt(stream, sockopt::TcpKeepCount, &options.count)?;
        }
        let milliseconds = u32::try_from(options.user_timeout.as_millis()).unwrap_or(u32::MAX);
        setsockopt(stream, sockopt::TcpUserTimeout, &milliseconds)
    };
    if let Err(error) = set() {
        tracing::debug!(server, %error, "could not set TCP keepalives");
    }
}
