//! Bytes to messages and back. Hot messages (`CopyData`) are cut out of the read buffer without copying.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use postgres_protocol::message::backend::{
    AUTHENTICATION_TAG, COPY_DATA_TAG, DATA_ROW_TAG, ERROR_RESPONSE_TAG, Header, Message, NOTICE_RESPONSE_TAG,
    ROW_DESCRIPTION_TAG,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

/// `CopyBothResponse`, which `postgres-protocol` does not know.
const COPY_BOTH_TAG: u8 = b'W';
/// Before the server has proved anything, a message has no business being longer.
const MESSAGE_BYTES_BEFORE_LOGIN: usize = 64 << 10;
/// PostgreSQL cannot build a message larger than one of its allocations.
const MESSAGE_BYTES_MAX: usize = 1 << 30;
/// One read buffer: big enough that a stream of WAL (messages of up to 128 KiB) is read several messages at a time.
const READ_BUFFER_BYTES: usize = 1 << 20;
const READ_BUFFER_BYTES_SMALL: usize = 16 << 10;

#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

macro_rules! on_socket {
    ($socket:expr, $stream:ident => $call:expr) => {
        match $socket {
            Socket::Tcp($stream) => $call,
            Socket::Unix($stream) => $call,
            Socket::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_socket!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        on_socket!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_socket!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_socket!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// One message from the server. Bodies that hold lists stay bytes, to be read by [`super::body`].
pub(crate) enum Frame {
    CopyBoth,
    CopyData(Bytes),
    Columns(Bytes),
    Row(Bytes),
    Error(Bytes),
    Notice(Bytes),
    /// The list of SASL mechanisms that the server offers.
    Sasl(Bytes),
    Message(Message),
}

/// The kind of authentication request that offers SASL mechanisms.
const AUTHENTICATION_SASL: &[u8] = &10u32.to_be_bytes();
/// A tag and a length.
const HEADER_BYTES: usize = 5;

pub(crate) struct Wire {
    socket: Socket,
    input: BytesMut,
    /// What is to be sent. It stays here until the socket has taken it, whatever happens to the futures that wait.
    pub(crate) output: BytesMut,
    message_bytes_max: usize,
    read_bytes: usize,
}

/// Without the bytes: they may be secret, and there may be a mebibyte of them.
impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (input, output) = (self.input.len(), self.output.len());
        f.debug_struct("Wire").field("input_bytes", &input).field("output_bytes", &output).finish_non_exhaustive()
    }
}

impl Wire {
    pub(crate) fn new(socket: Socket) -> Self {
        Self {
            socket,
            input: BytesMut::new(),
            output: BytesMut::new(),
            message_bytes_max: MESSAGE_BYTES_BEFORE_LOGIN,
            read_bytes: READ_BUFFER_BYTES_SMALL,
        }
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self.socket, Socket::Tls(_))
    }

    /// Whether a password may be sent as it is: nobody but root can listen on a Unix socket.
    pub(crate) fn is_confidential(&self) -> bool {
        !matches!(self.socket, Socket::Tcp(_))
    }

    pub(crate) fn logged_in(&mut self) {
        self.message_bytes_max = MESSAGE_BYTES_MAX;
    }

    /// Reads in large pieces from here on.
    pub(crate) fn expect_stream(&mut self) {
        self.read_bytes = READ_BUFFER_BYTES;
    }

    /// Cuts the next whole message out of what has been read.
    pub(crate) fn take(&mut self) -> io::Result<Option<Frame>> {
        let Some(header) = Header::parse(&self.input)? else { return Ok(None) };
        // The length counts itself but not the tag; `Header::parse` has refused less than four.
        let total = header.len() as usize + 1;
        if total > self.message_bytes_max {
            let tag = char::from(header.tag()).escape_default();
            let problem = format!("a message of {total} bytes with tag `{tag}` is longer than the protocol allows");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        if self.input.len() < total {
            self.input.reserve(total - self.input.len());
            return Ok(None);
        }
        let mut message = self.input.split_to(total);
        let frame: fn(Bytes) -> Frame = match header.tag() {
            COPY_DATA_TAG => Frame::CopyData,
            COPY_BOTH_TAG => |_| Frame::CopyBoth,
            ROW_DESCRIPTION_TAG => Frame::Columns,
            DATA_ROW_TAG => Frame::Row,
            ERROR_RESPONSE_TAG => Frame::Error,
            NOTICE_RESPONSE_TAG => Frame::Notice,
            AUTHENTICATION_TAG if message[HEADER_BYTES..].starts_with(AUTHENTICATION_SASL) => {
                message.advance(AUTHENTICATION_SASL.len());
                Frame::Sasl
            }
            _ => return Ok(Message::parse(&mut message)?.map(Frame::Message)),
        };
        message.advance(HEADER_BYTES);
        Ok(Some(frame(message.freeze())))
    }

    /// Sends what is left to send and reads more, at least one byte. Nothing is lost if the future is dropped.
    pub(crate) async fn fill(&mut self) -> io::Result<()> {
        self.flush().await;
        self.reserve();
        let count = self.socket.read_buf(&mut self.input).await?;
        Self::not_ended(count)
    }

    /// Reads what has arrived already; says whether that was anything.
    pub(crate) fn try_fill(&mut self) -> io::Result<bool> {
        self.reserve();
        match self.socket.read_buf(&mut self.input).now_or_never() {
            None => Ok(false),
            Some(count) => Self::not_ended(count?).map(|()| true),
        }
    }

    fn reserve(&mut self) {
        if self.input.capacity() - self.input.len() < self.read_bytes / 8 {
            self.input.reserve(self.read_bytes);
        }
    }

    fn not_ended(count: usize) -> io::Result<()> {
        let problem = "the server closed the connection";
        if count == 0 { Err(io::Error::new(io::ErrorKind::UnexpectedEof, problem)) } else { Ok(()) }
    }

    /// Sends all of `output`. If the future is dropped the rest stays for the next call.
    ///
    /// That the other side no longer listens is not an error here. A server that ends a session says why first and
    /// may have sent more before; all of it is still to be read, and whoever reads to its end learns of the end.
    pub(crate) async fn flush(&mut self) {
        if let Err(error) = self.write().await {
            tracing::debug!(%error, bytes = self.output.len(), "the server no longer listens");
            self.output.clear();
        }
    }

    async fn write(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            if self.socket.write_buf(&mut self.output).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        self.socket.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn wire(bytes: &[u8]) -> (Wire, UnixStream) {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(bytes).await.unwrap();
        (Wire::new(Socket::Unix(near)), far)
    }

    #[tokio::test]
    async fn messages_are_cut_wherever_reads_end() {
        let (mut wire, mut far) = wire(b"d\0\0\0\x06hiW\0\0\0\x07\0\0").await;
        wire.fill().await.unwrap();
        assert!(matches!(wire.take(), Ok(Some(Frame::CopyData(data))) if data == "hi"));
        assert!(matches!(wire.take(), Ok(None)), "the second message is not complete");
        far.write_all(b"\0c\0\0\0\x04").await.unwrap();
        wire.fill().await.unwrap();
        assert!(matches!(wire.take(), Ok(Some(Frame::CopyBoth))));
        assert!(matches!(wire.take(), Ok(Some(Frame::Message(Message::CopyDone)))));
        assert!(matches!(wire.try_fill(), Ok(false)), "nothing more has arrived");
        drop(far);
        assert_eq!(wire.fill().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn what_a_dropped_flush_has_not_sent_is_sent_by_the_next() {
        use std::time::Duration;
        let (mut wire, mut far) = wire(b"").await;
        let bytes: Vec<u8> = (0..4u32 << 20).map(|number| ((number * 31) >> 5) as u8).collect();
        wire.output.extend_from_slice(&bytes);
        assert!(tokio::time::timeout(Duration::from_millis(20), wire.flush()).await.is_err(), "nobody reads");
        let left = wire.output.len();
        assert!(0 < left && left < bytes.len());
        let mut arrived = vec![0; bytes.len()];
        let ((), read) = tokio::join!(wire.flush(), far.read_exact(&mut arrived));
        assert!(read.is_ok() && arrived == bytes);
    }

    #[tokio::test]
    async fn absurd_lengths_are_refused_before_memory_is_taken() {
        for bytes in [b"R\x7f\xff\xff\xff", b"R\xff\xff\xff\xff", b"R\0\0\0\x03"] {
            let (mut wire, _far) = wire(bytes).await;
            wire.fill().await.unwrap();
            assert!(wire.take().is_err(), "{bytes:?}");
        }
    }
}
