//! A connection: logging in, queries in text form, and the messages of the protocol beneath.
//!
//! *Consistency*: answers are matched to requests by order. A request whose future was dropped leaves its answer on
//! the way; the next request waits for that answer and throws it away, so results are never taken for one another.
//!
//! *Cancellation*: every future here may be dropped. A dropped query still runs to its end at the server.
//!
//! *Retries*: none; see `is_retryable()` of [`ConnectError`] and [`QueryError`].

mod auth;
mod body;
mod connect;
mod error;
mod quote;
mod row;
mod tls;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

pub use error::{ConnectError, QueryError, ServerError, TlsError};
pub use quote::{identifier, literal};
pub(crate) use row::Columns;
pub use row::{ColumnIndex, Row, RowError};
pub(crate) use wire::Frame;
use wire::Wire;

use crate::conninfo::Endpoint;

/// What a connection is for. PostgreSQL serves SQL and physical replication on connections of different kinds, and
/// `pg_hba.conf` admits them by different lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Sql,
    /// Physical replication (`replication=true`); matches `replication` in `pg_hba.conf`.
    Replication,
}

/// A PostgreSQL version as `server_version_num` counts it: 150004 is 15.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerVersion(pub u32);

impl ServerVersion {
    pub const fn major(self) -> u32 {
        self.0 / 10_000
    }

    /// Reads `15.4 (Debian 15.4-1)`, `18beta2` or `19devel`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let mut numbers = text[..end].split('.').map(str::parse::<u32>);
        let major = numbers.next()?.ok().filter(|major| (10..1000).contains(major))?;
        let minor = numbers.next().and_then(Result::ok).filter(|minor| *minor < 10_000).unwrap_or(0);
        Some(Self(major * 10_000 + minor))
    }
}

impl std::fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major(), self.0 % 10_000)
    }
}

static TRANSACTIONS: AtomicU64 = AtomicU64::new(0);

/// How many transactions this process has made at servers so far, as they count them: one for each request, and one for each
/// login. Who asks a server how many there were has to know which of them were ours.
pub fn transactions() -> u64 {
    TRANSACTIONS.load(Ordering::Relaxed)
}

/// One connection to one server.
#[derive(Debug)]
pub struct Client {
    pub(crate) wire: Wire,
    /// The endpoint, for messages.
    server: Arc<str>,
    purpose: Purpose,
    version: ServerVersion,
    parameters: BTreeMap<String, String>,
    backend_pid: i32,
    /// What a request to cancel has to know.
    secret_key: i32,
    endpoint: Endpoint,
    /// `None` stands for the endpoint's Unix socket.
    address: Option<SocketAddr>,
    /// How many requests have been sent whose `ReadyForQuery` has not been seen.
    unanswered: u32,
    closed: bool,
}

/// The answer to a simple query: the rows of all its statements, and what the last command reported.
#[derive(Debug, Default)]
struct Answer {
    rows: Vec<Row>,
    affected: u64,
}

impl Client {
    /// The server as messages name it: `db1:5432` or the socket's path.
    pub fn server(&self) -> &str {
        &self.server
    }

    pub(crate) fn server_shared(&self) -> Arc<str> {
        Arc::clone(&self.server)
    }

    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    pub fn server_version(&self) -> ServerVersion {
        self.version
    }

    pub fn major(&self) -> u32 {
        self.version.major()
    }

    /// The process at the server that serves this connection (`pg_stat_activity.pid`).
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// A setting that the server reports of itself, such as `in_hot_standby` or `server_encoding`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Whether the connection is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.wire.is_encrypted()
    }

    /// Whether the connection is known to be over. `false` proves nothing: ask with a query.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Runs one or more statements and returns all their rows.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Row>, QueryError> {
        Ok(self.request(sql).await?.rows)
    }

    /// Runs a statement that gives exactly one row.
    pub async fn query_one(&mut self, sql: &str) -> Result<Row, QueryError> {
        let mut rows = self.query(sql).await?;
        match (rows.pop(), rows.len()) {
            (Some(row), 0) => Ok(row),
            (last, others) => Err(QueryError::RowCount {
                server: self.server.to_string(),
                expected: 1,
                got: others + usize::from(last.is_some()),
            }),
        }
    }

    /// Runs statements for their effect and returns how many rows the last of them touched.
    pub async fn execute(&mut self, sql: &str) -> Result<u64, QueryError> {
        Ok(self.request(sql).await?.affected)
    }

    /// Whether an answer is on the way that nobody waited for.
    pub fn is_waiting(&self) -> bool {
        self.unanswered > 0
    }

    /// Waits for the answers to requests whose futures were dropped, and throws them away.
    pub async fn settle(&mut self) -> Result<(), QueryError> {
        while self.unanswered > 0 {
            self.pass_over().await?;
        }
        Ok(())
    }

    /// Says goodbye, so that the server does not log a lost connection.
    pub async fn close(mut self) {
        frontend::terminate(&mut self.wire.output);
        // The other side may be gone already, which is what was wanted.
        let farewell = tokio::time::timeout(Duration::from_secs(1), self.wire.flush()).await;
        tracing::trace!(server = %self.server, ?farewell, "closed the connection");
    }

    async fn request(&mut self, sql: &str) -> Result<Answer, QueryError> {
        self.send(sql).await?;
        self.answer().await
    }

    /// Sends one simple query, after whatever a dropped future has left behind.
    pub(crate) async fn send(&mut self, sql: &str) -> Result<(), QueryError> {
        if self.closed {
            return Err(QueryError::Closed { server: self.server.to_string() });
        }
        self.settle().await?;
        // To be seen before anything is written: half a message in the output would spoil the connection.
        if sql.contains('\0') {
            return Err(QueryError::ZeroByte { server: self.server.to_string() });
        }
        frontend::query(sql, &mut self.wire.output).map_err(|source| self.broken(source))?;
        self.unanswered += 1;
        TRANSACTIONS.fetch_add(1, Ordering::Relaxed);
        self.wire.flush().await;
        Ok(())
    }

    /// Reads to the end of an answer without looking at it: whoever wanted it is gone, and may have read the beginning.
    async fn pass_over(&mut self) -> Result<(), QueryError> {
        loop {
            match self.receive().await? {
                // Only one that ends the session matters here.
                Frame::Error(body) => drop(self.server_failure(&body)?),
                Frame::Message(Message::CopyInResponse(_)) => self.refuse_copy().await?,
                Frame::Message(Message::ReadyForQuery(_)) => {
                    self.unanswered -= 1;
                    return Ok(());
                }
                Frame::CopyBoth => {
                    return Err(self.broken(io::Error::other("an unexpected COPY in both directions")));
                }
                _ => {}
            }
        }
    }

    async fn refuse_copy(&mut self) -> Result<(), QueryError> {
        let refused = frontend::copy_fail("holdfast sends no data by COPY", &mut self.wire.output);
        refused.map_err(|source| self.broken(source))?;
        self.wire.flush().await;
        Ok(())
    }

    /// Reads to the end of the answer to the oldest request.
    async fn answer(&mut self) -> Result<Answer, QueryError> {
        let mut answer = Answer::default();
        let mut columns = Columns::default();
        let mut failure = None;
        loop {
            match self.receive().await? {
                Frame::Columns(body) => {
                    columns = Columns::read(&body).map_err(|source| self.broken(source))?;
                }
                Frame::Row(body) => {
                    answer.rows.push(Row::read(&columns, body).map_err(|source| self.broken(source))?);
                }
                Frame::Message(Message::CommandComplete(body)) => {
                    let tag = body.tag().map_err(|source| self.broken(source))?;
                    answer.affected = tag.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0);
                }
                Frame::Error(body) => {
                    failure.get_or_insert(self.server_failure(&body)?);
                }
                Frame::Message(Message::CopyInResponse(_)) => self.refuse_copy().await?,
                Frame::Message(Message::ReadyForQuery(_)) => {
                    self.unanswered -= 1;
                    return match failure {
                        Some(source) => Err(self.refused(source)),
                        None => Ok(answer),
                    };
                }
                Frame::CopyBoth => {
                    return Err(self.broken(io::Error::other("an unexpected COPY in both directions")));
                }
                // COPY OUT is read and forgotten; an empty query has no result.
                Frame::CopyData(_) | Frame::Notice(_) | Frame::Sasl(_) | Frame::Message(_) => {}
            }
        }
    }

    /// The next message that is an answer; notices and parameters are dealt with here.
    pub(crate) async fn receive(&mut self) -> Result<Frame, QueryError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(frame);
            }
            if let Err(source) = self.wire.fill().await {
                return Err(self.lost(source));
            }
        }
    }

    /// The next message that has arrived in full, without waiting.
    pub(crate) fn take(&mut self) -> Result<Option<Frame>, QueryError> {
        loop {
            match self.wire.take() {
                Ok(Some(Frame::Notice(body))) => match ServerError::read(&body) {
                    Ok(notice) => notice.trace(&self.server),
                    Err(source) => return Err(self.broken(source)),
                },
                Ok(Some(Frame::Message(Message::ParameterStatus(body)))) => {
                    if let (Ok(name), Ok(value)) = (body.name(), body.value()) {
                        self.parameters.insert(name.to_owned(), value.to_owned());
                    }
                }
                Ok(Some(Frame::Message(Message::NotificationResponse(_)))) => {}
                Ok(frame) => return Ok(frame),
                Err(source) => return Err(self.broken(source)),
            }
        }
    }

    /// Reads an error message. One that ends the session is returned at once, since nothing follows it.
    pub(crate) fn server_failure(&mut self, body: &Bytes) -> Result<ServerError, QueryError> {
        let error = ServerError::read(body).map_err(|source| self.broken(source))?;
        if error.is_fatal() {
            self.closed = true;
            return Err(self.refused(error));
        }
        Ok(error)
    }

    pub(crate) fn refused(&self, source: ServerError) -> QueryError {
        QueryError::Server { server: self.server.to_string(), source: Box::new(source) }
    }

    pub(crate) fn lost(&mut self, source: io::Error) -> QueryError {
        self.closed = true;
        QueryError::ConnectionLost { server: self.server.to_string(), source }
    }

    pub(crate) fn broken(&mut self, source: io::Error) -> QueryError {
        self.closed = true;
        QueryError::Protocol { server: self.server.to_string(), source }
    }

    /// Notes that the server has ended the request (a `ReadyForQuery` seen by someone else).
    pub(crate) fn answered(&mut self) {
        self.unanswered = self.unanswered.saturating_sub(1);
    }

    pub(crate) fn mark_closed(&mut self) {
        self.closed = true;
    }

    pub(crate) fn output(&mut self) -> &mut BytesMut {
        &mut self.wire.output
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_version_texts() {
        for (text, number) in [
            ("15.4 (Debian 15.4-1.pgdg120+1)", 150_004),
            ("13.23", 130_023),
            ("18beta2", 180_000),
            ("19devel", 190_000),
            ("17rc1 (Ubuntu)", 170_000),
        ] {
            assert_eq!(ServerVersion::parse(text), Some(ServerVersion(number)), "{text}");
        }
        assert_eq!(ServerVersion::parse("PostgreSQL"), None);
        assert_eq!(ServerVersion(150_004).to_string(), "15.4");
    }
}
