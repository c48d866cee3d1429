use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes};
use holdfast_types::{Lsn, Micros, Timeline};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::ReplicationError;
use crate::client::{Client, Columns, Frame, QueryError, Row};

/// What a stream of WAL brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The bytes of the log from `start` on. `data` is a slice of a read buffer of about a mebibyte, which stays in
    /// memory as long as the slice does.
    Wal { start: Lsn, server_end: Lsn, server_time: Micros, data: Bytes },
    /// A sign of life. If a reply is requested, the server will hang up when it gets no status soon.
    Keepalive { server_end: Lsn, reply_requested: bool, server_time: Micros },
    /// The timeline has ended: its log goes on as timeline `next` from `start`. [`ReplicationStream::into_client`]
    /// gives the connection back.
    EndOfTimeline { next: Timeline, start: Lsn },
    /// The server has shut down after sending everything, up to its last checkpoint.
    Closed,
}

#[derive(Debug)]
enum State {
    Streaming,
    /// The server has ended the COPY and tells where the log goes on; our own end of the COPY is sent or under way.
    Ending {
        columns: Columns,
        next: Option<(Timeline, Lsn)>,
    },
    /// The connection is free again.
    Ended {
        next: Option<(Timeline, Lsn)>,
    },
    Closed,
}

/// WAL as it is written. See the [module documentation](super).
#[derive(Debug)]
pub struct ReplicationStream {
    client: Client,
    server: Arc<str>,
    state: State,
    /// Where the next message has to begin.
    position: Lsn,
}

/// The tags of what a CopyData message can hold.
const WAL_DATA: u8 = b'w';
const KEEPALIVE: u8 = b'k';
const STANDBY_STATUS: u8 = b'r';
/// Three numbers come before the bytes of the log: start, end at the server, time.
const WAL_HEADER_BYTES: usize = 24;
const KEEPALIVE_BYTES: usize = 17;

impl ReplicationStream {
    pub(super) async fn start(mut client: Client, command: &str, lsn: Lsn) -> Result<Self, ReplicationError> {
        let server = client.server_shared();
        let failed =
            |source| ReplicationError::Command { server: server.to_string(), command: command.to_owned(), source };
        client.send(command).await.map_err(failed)?;
        let state = match client.receive().await.map_err(failed)? {
            Frame::CopyBoth => State::Streaming,
            // The timeline ends exactly here, so there is nothing to copy.
            Frame::Columns(body) => {
                let columns = Columns::read(&body).map_err(|source| failed(client.broken(source)))?;
                State::Ending { columns, next: None }
            }
            Frame::Error(body) => {
                let source = client.server_failure(&body).map_err(failed)?;
                return Err(failed(client.refused(source)));
            }
            _ => return Err(failed(client.broken(io::Error::other("an answer that is not a stream")))),
        };
        Ok(Self { client, server, state, position: lsn })
    }

    /// Where the next byte will come from: everything before has been handed on.
    pub fn position(&self) -> Lsn {
        self.position
    }

    pub fn server(&self) -> &str {
        &self.server
    }

    /// Waits for the next event. After the last one ([`Event::EndOfTimeline`], [`Event::Closed`]) it is repeated.
    pub async fn next(&mut self) -> Result<Event, ReplicationError> {
        loop {
            if let Some(event) = self.step()? {
                return Ok(event);
            }
            if let Err(source) = self.client.wire.fill().await {
                let source = self.client.lost(source);
                return Err(self.broken(source));
            }
        }
    }

    /// The next event if it has arrived in full, without waiting: for callers that gather what there is.
    pub fn try_next_buffered(&mut self) -> Result<Option<Event>, ReplicationError> {
        if let Some(event) = self.step()? {
            return Ok(Some(event));
        }
        match self.client.wire.try_fill() {
            Ok(true) => self.step(),
            Ok(false) => Ok(None),
            Err(source) => {
                let source = self.client.lost(source);
                Err(self.broken(source))
            }
        }
    }

    /// Reports how far we are. What is reported as flushed may be removed at the server, and with a synchronous
    /// standby of our name commits return: it must be durable.
    ///
    /// That the server no longer listens is no error here: it may have sent more log before it went, and
    /// [`ReplicationStream::next`] brings that first and then tells how the stream ended.
    pub async fn status(
        &mut self,
        written: Lsn,
        flushed: Lsn,
        applied: Lsn,
        reply_requested: bool,
    ) -> Result<(), ReplicationError> {
        if !matches!(self.state, State::Streaming) {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Micros::new(now.as_micros() as i64).to_postgresql();
        let mut message = [0; 34];
        let mut buffer = message.as_mut_slice();
        buffer.put_u8(STANDBY_STATUS);
        for position in [written, flushed, applied] {
            buffer.put_u64(position.get());
        }
        buffer.put_i64(now);
        buffer.put_u8(reply_requested.into());
        self.send(&message).map_err(|source| ReplicationError::Message {
            server: self.server.to_string(),
            lsn: self.position,
            source,
        })?;
        self.client.wire.flush().await;
        Ok(())
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        frontend::CopyData::new(message)?.write(self.client.output());
        Ok(())
    }

    /// Ends the stream and gives the connection back. WAL that is still on the way is thrown away.
    pub async fn stop(mut self) -> Result<Client, ReplicationError> {
        if matches!(self.state, State::Streaming) {
            frontend::copy_done(self.client.output());
        }
        loop {
            match self.state {
                State::Ended { .. } => return Ok(self.client),
                State::Closed => {
                    let source = QueryError::Closed { server: self.server.to_string() };
                    return Err(self.broken(source));
                }
                // Our end of the COPY is on its way, so the server's own is answered already.
                State::Streaming => match self.receive().await? {
                    Frame::Message(Message::CopyDone) => {
                        self.state = State::Ending { columns: Columns::default(), next: None };
                    }
                    Frame::CopyData(_) => {}
                    Frame::Message(Message::CommandComplete(_)) => self.close(),
                    Frame::Error(body) => return Err(self.refused(&body)),
                    _ => return Err(self.unexpected()),
                },
                State::Ending { .. } => {
                    let frame = self.receive().await?;
                    self.ending(frame)?;
                }
            }
        }
    }

    /// The connection, once the timeline has ended; before that, the stream itself.
    pub fn into_client(self) -> Result<Client, Box<Self>> {
        if matches!(self.state, State::Ended { .. }) { Ok(self.client) } else { Err(Box::new(self)) }
    }

    async fn receive(&mut self) -> Result<Frame, ReplicationError> {
        let frame = self.client.receive().await;
        frame.map_err(|source| self.broken(source))
    }

    /// Works through what has arrived until there is an event to hand on.
    fn step(&mut self) -> Result<Option<Event>, ReplicationError> {
        loop {
            match self.state {
                State::Closed => return Ok(Some(Event::Closed)),
                State::Ended { next: Some((next, start)) } => return Ok(Some(Event::EndOfTimeline { next, start })),
                State::Ended { next: None } => return Err(self.unexpected()),
                State::Streaming | State::Ending { .. } => {}
            }
            let frame = match self.client.take() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(None),
                Err(source) => return Err(self.broken(source)),
            };
            if matches!(self.state, State::Ending { .. }) {
                self.ending(frame)?;
                continue;
            }
            match frame {
                Frame::CopyData(data) => return self.message(data).map(Some),
                Frame::Message(Message::CopyDone) => {
                    // It goes out with the next flush, which the next fill begins with.
                    frontend::copy_done(self.client.output());
                    self.state = State::Ending { columns: Columns::default(), next: None };
                }
                // The end of the command without an end of the COPY: the server shuts down.
                Frame::Message(Message::CommandComplete(_)) => self.close(),
                Frame::Error(body) => return Err(self.refused(&body)),
                _ => return Err(self.unexpected()),
            }
        }
    }

    /// After the COPY: one row says where the log goes on, then the server is ready for the next command.
    fn ending(&mut self, frame: Frame) -> Result<(), ReplicationError> {
        let State::Ending { columns, next } = &mut self.state else { return Ok(()) };
        let read = match frame {
            Frame::Columns(body) => Columns::read(&body).map(|read| *columns = read),
            Frame::Row(body) => Row::read(columns, body).and_then(|row| {
                let timeline = row.parse("next_tli").map_err(io::Error::other)?;
                let start = row.parse("next_tli_startpos").map_err(io::Error::other)?;
                *next = Some((Timeline::new(timeline), start));
                Ok(())
            }),
            Frame::Message(Message::ReadyForQuery(_)) => {
                let next = *next;
                self.client.answered();
                self.state = State::Ended { next };
                Ok(())
            }
            Frame::Error(body) => return Err(self.refused(&body)),
            _ => Ok(()),
        };
        read.map_err(|source| {
            let source = self.client.broken(source);
            self.broken(source)
        })
    }

    fn message(&mut self, mut data: Bytes) -> Result<Event, ReplicationError> {
        let tag = if data.is_empty() { 0 } else { data.get_u8() };
        match tag {
            WAL_DATA if data.len() > WAL_HEADER_BYTES => {
                let start = Lsn::new(data.get_u64());
                let server_end = Lsn::new(data.get_u64());
                let server_time = Micros::from_postgresql(data.get_i64());
                if start != self.position {
                    let (server, expected) = (self.server.to_string(), self.position);
                    return Err(ReplicationError::Discontinuity { server, expected, got: start });
                }
                self.position = start.advance(data.len() as u64);
                Ok(Event::Wal { start, server_end, server_time, data })
            }
            KEEPALIVE if data.len() == KEEPALIVE_BYTES => Ok(Event::Keepalive {
                server_end: Lsn::new(data.get_u64()),
                server_time: Micros::from_postgresql(data.get_i64()),
                reply_requested: data.get_u8() != 0,
            }),
            tag => {
                let problem =
                    format!("a message with tag `{}` of {} bytes", char::from(tag).escape_default(), data.len());
                Err(ReplicationError::Message {
                    server: self.server.to_string(),
                    lsn: self.position,
                    source: io::Error::new(io::ErrorKind::InvalidData, problem),
                })
            }
        }
    }

    fn close(&mut self) {
        self.client.mark_closed();
        self.state = State::Closed;
    }

    fn refused(&mut self, body: &Bytes) -> ReplicationError {
        let source = match self.client.server_failure(body) {
            Ok(source) => self.client.refused(source),
            Err(error) => error,
        };
        self.broken(source)
    }

    fn unexpected(&mut self) -> ReplicationError {
        let source = self.client.broken(io::Error::other("a message that has no place in a stream of WAL"));
        self.broken(source)
    }

    fn broken(&self, source: QueryError) -> ReplicationError {
        ReplicationError::Broken { server: self.server.to_string(), lsn: self.position, source }
    }
}
