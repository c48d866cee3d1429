//! Servers that do not do what PostgreSQL does.

use std::time::Duration;

use holdfast_postgres::{Client, ConnectError, Event, Purpose, ReplicationError, ReplicationStream};
use holdfast_types::{Lsn, Timeline};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

struct Fake {
    folder: TempDir,
    listener: UnixListener,
}

impl Fake {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
        Self { folder, listener }
    }

    /// Connects to the server that `script` plays.
    async fn connect<F: Future<Output = ()>>(
        &self,
        rest: &str,
        script: impl FnOnce(UnixStream) -> F,
    ) -> Result<Client, ConnectError> {
        let text = format!("host={} user=u password=secret connect_timeout=5 {rest}", self.folder.path().display());
        let info = text.parse().unwrap();
        let play = async {
            let (mut stream, _) = self.listener.accept().await.unwrap();
            let length = stream.read_u32().await.unwrap();
            stream.read_exact(&mut vec![0; length as usize - 4]).await.unwrap();
            script(stream).await;
        };
        let (client, ()) = tokio::join!(Client::connect(&info, Purpose::Replication), play);
        client
    }
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag], (body.len() as u32 + 4).to_be_bytes().as_slice(), body].concat()
}

async fn read_message(stream: &mut UnixStream) -> Vec<u8> {
    stream.read_u8().await.unwrap();
    let length = stream.read_u32().await.unwrap();
    let mut body = vec![0; length as usize - 4];
    stream.read_exact(&mut body).await.unwrap();
    body
}

fn authentication(kind: u32, body: &[u8]) -> Vec<u8> {
    message(b'R', &[&kind.to_be_bytes(), body].concat())
}

fn welcome() -> Vec<u8> {
    [authentication(0, b""), message(b'S', b"server_version\x0015.4\0"), message(b'Z', b"I")].concat()
}

/// The server's part of SCRAM up to its proof, which is a wrong one.
async fn scram(stream: &mut UnixStream) {
    stream.write_all(&authentication(10, b"SCRAM-SHA-256\0\0")).await.unwrap();
    let first = String::from_utf8(read_message(stream).await).unwrap();
    let nonce = first.rsplit("r=").next().unwrap().to_owned();
    let challenge = format!("r={nonce}more,s=c2FsdA==,i=4096");
    stream.write_all(&authentication(11, challenge.as_bytes())).await.unwrap();
    read_message(stream).await;
}

#[tokio::test]
async fn a_server_that_does_not_know_the_password_is_found_out() {
    let fake = Fake::new();
    let outcome = fake.connect("", async |mut stream: UnixStream| {
        scram(&mut stream).await;
        let proof = b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        stream.write_all(&[authentication(12, proof), welcome()].concat()).await.unwrap();
    });
    let error = outcome.await.unwrap_err();
    assert!(matches!(error, ConnectError::ServerProof { .. }) && !error.is_retryable(), "{error:?}");

    let outcome = fake.connect("", async |mut stream: UnixStream| {
        scram(&mut stream).await;
        stream.write_all(&welcome()).await.unwrap();
    });
    let error = outcome.await.unwrap_err();
    assert!(matches!(error, ConnectError::Protocol { .. }), "the proof may not be left out: {error:?}");

    let outcome = fake.connect("channel_binding=require", async |mut stream: UnixStream| {
        stream.write_all(&welcome()).await.unwrap();
    });
    let error = outcome.await.unwrap_err();
    assert!(matches!(error, ConnectError::ChannelBinding { .. }), "nor the whole login: {error:?}");
}

#[tokio::test]
async fn logins_that_make_no_sense() {
    let fake = Fake::new();
    for (answer, retryable) in [
        (authentication(7, b""), false),
        (authentication(10, b"SCRAM-SHA-9\0\0"), false),
        (authentication(10, b"SCRAM-SHA-256"), false),
        (b"R\x7f\xff\xff\xff".to_vec(), false),
        ([authentication(0, b""), message(b'Z', b"I")].concat(), false),
        // The connection ends.
        (authentication(0, b""), true),
        (Vec::new(), true),
    ] {
        let outcome = fake.connect("", async |mut stream: UnixStream| stream.write_all(&answer).await.unwrap());
        let error = outcome.await.unwrap_err();
        assert_eq!(error.is_retryable(), retryable, "{error:?}");
    }
}

/// A stream from 0/1000 on; the script goes on after the command.
async fn stream(fake: &Fake) -> (ReplicationStream, UnixStream) {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let client = fake.connect("", async |mut stream: UnixStream| {
        stream.write_all(&welcome()).await.unwrap();
        stream.write_all(&message(b'W', b"\0\0\0")).await.unwrap();
        sender.send(stream).unwrap();
    });
    let client = client.await.unwrap();
    let stream = client.start_physical(None, Timeline::FIRST, Lsn::new(0x1000)).await.unwrap();
    let mut server = receiver.await.unwrap();
    let command = read_message(&mut server).await;
    assert_eq!(command, b"START_REPLICATION PHYSICAL 0/1000 TIMELINE 1\0");
    (stream, server)
}

fn wal(start: u64, data: &[u8]) -> Vec<u8> {
    let header = [b"w".as_slice(), &start.to_be_bytes(), &0x9000u64.to_be_bytes(), &7i64.to_be_bytes()].concat();
    message(b'd', &[&header, data].concat())
}

#[tokio::test]
async fn gaps_and_nonsense_end_a_stream() {
    let fake = Fake::new();
    for start in [0x1003, 0x1005, 0, u64::MAX] {
        let (mut stream, mut server) = stream(&fake).await;
        server.write_all(&[wal(0x1000, b"1234"), wal(start, b"5678")].concat()).await.unwrap();
        let Event::Wal { start: at, data, server_end, server_time } = stream.next().await.unwrap() else { panic!() };
        assert_eq!((at.get(), data.as_ref(), server_end.get()), (0x1000, b"1234".as_slice(), 0x9000));
        assert_eq!(server_time.to_postgresql(), 7);
        let error = stream.next().await.unwrap_err();
        let ReplicationError::Discontinuity { expected, got, .. } = error else { panic!("{error:?}") };
        assert_eq!((expected.get(), got.get()), (0x1004, start));
    }
    for body in [b"".as_slice(), b"x", b"w", b"k1234", &[b'w'; 25], &[b'k'; 19]] {
        let (mut stream, mut server) = stream(&fake).await;
        server.write_all(&message(b'd', body)).await.unwrap();
        let error = stream.next().await.unwrap_err();
        assert!(matches!(error, ReplicationError::Message { .. }) && !error.is_retryable(), "{error:?}");
    }
    // Half a message and then nothing is a lost connection, not an end.
    let (mut stream, mut server) = stream(&fake).await;
    server.write_all(&wal(0x1000, b"1234")[..20]).await.unwrap();
    drop(server);
    let error = stream.next().await.unwrap_err();
    assert!(matches!(error, ReplicationError::Broken { .. }) && error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn the_end_of_a_timeline_survives_dropped_futures() {
    let fake = Fake::new();
    let (mut stream, mut server) = stream(&fake).await;
    let field = |name: &[u8]| [name, &[0; 19]].concat();
    let columns = [2u16.to_be_bytes().to_vec(), field(b"next_tli"), field(b"next_tli_startpos")].concat();
    let row = [b"\0\x02\0\0\0\x012\0\0\0\x06".as_slice(), b"0/1004"].concat();
    let end = [
        wal(0x1000, b"1234"),
        message(b'c', b""),
        message(b'T', &columns),
        message(b'D', &row),
        message(b'C', b"START_STREAMING\0"),
        message(b'C', b"START_REPLICATION\0"),
        message(b'Z', b"I"),
    ]
    .concat();
    // Byte by byte, with a wait given up after each.
    let mut events = Vec::new();
    for byte in end {
        server.write_all(&[byte]).await.unwrap();
        while let Ok(event) = tokio::time::timeout(Duration::from_millis(1), stream.next()).await {
            events.push(event.unwrap());
            if matches!(events.last(), Some(Event::EndOfTimeline { .. })) {
                break;
            }
        }
    }
    assert!(matches!(events[..], [Event::Wal { .. }, Event::EndOfTimeline { .. }]), "{events:?}");
    assert_eq!(events[1], Event::EndOfTimeline { next: Timeline::new(2), start: Lsn::new(0x1004) });
    let mut client = stream.into_client().unwrap();
    let mut answer = [0; 5];
    server.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, *b"c\0\0\0\x04", "our own end of the COPY, once");
    let next = client.identify_system();
    assert!(tokio::time::timeout(Duration::from_millis(50), next).await.is_err());
    assert_eq!(read_message(&mut server).await, b"IDENTIFY_SYSTEM\0");
}

#[tokio::test]
async fn what_a_server_sent_before_it_went_is_not_lost() {
    let fake = Fake::new();
    for in_order in [true, false] {
        let (mut stream, mut server) = stream(&fake).await;
        let end = if in_order { message(b'C', b"COPY 0\0") } else { Vec::new() };
        server.write_all(&[wal(0x1000, b"1234"), wal(0x1004, b"5678"), end].concat()).await.unwrap();
        drop(server);
        // Nobody reads these any more.
        for _ in 0..3 {
            let position = stream.position();
            stream.status(position, position, position, true).await.unwrap();
        }
        for expected in [b"1234", b"5678"] {
            assert!(matches!(stream.next().await.unwrap(), Event::Wal { data, .. } if data == expected.as_slice()));
        }
        if in_order {
            assert_eq!(stream.next().await.unwrap(), Event::Closed);
        } else {
            let error = stream.next().await.unwrap_err();
            assert!(matches!(error, ReplicationError::Broken { .. }) && error.is_retryable(), "{error:?}");
        }
    }
}
