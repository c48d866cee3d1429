use std::time::Duration;

use bytes::BytesMut;
use holdfast_postgres::replication::{SlotLifetime, SlotReserve, WalStatus};
use holdfast_postgres::{Client, Event, Purpose, ReplicationError, ReplicationStream};
use holdfast_types::{Lsn, Segment, SegmentSize, Timeline};
use nix::sys::signal::Signal;

use crate::fixture::{Server, eventually};

const SIZE: SegmentSize = SegmentSize::DEFAULT;

/// Reads the stream up to `end` at least.
async fn collect(stream: &mut ReplicationStream, end: Lsn) -> BytesMut {
    let mut bytes = BytesMut::new();
    while stream.position() < end {
        let event = tokio::time::timeout(Duration::from_secs(30), stream.next()).await.expect("WAL arrives").unwrap();
        let mut next = Some(event);
        // Gather what has come with it.
        while let Some(event) = next {
            if let Event::Wal { data, server_end, start, .. } = event {
                assert!(server_end >= start.advance(data.len() as u64));
                bytes.extend_from_slice(&data);
            }
            next = stream.try_next_buffered().unwrap();
        }
    }
    bytes
}

/// The same bytes from the files of the server.
fn from_files(server: &Server, start: Lsn, length: usize) -> Vec<u8> {
    let end = start.advance(length as u64);
    let mut segment = Segment::containing(Timeline::FIRST, start, SIZE);
    let mut bytes = Vec::new();
    while segment.start(SIZE) < end {
        let content = std::fs::read(server.data().join("pg_wal").join(segment.file_name(SIZE))).unwrap();
        let from = start.bytes_since(segment.start(SIZE)) as usize;
        let to = end.bytes_since(segment.start(SIZE)).min(SIZE.get()) as usize;
        bytes.extend_from_slice(&content[from..to]);
        segment = segment.next();
    }
    bytes
}

async fn current_lsn(client: &mut Client) -> Lsn {
    client.query_one("SELECT pg_current_wal_flush_lsn()").await.unwrap().parse(0).unwrap()
}

/// Writes about so much log, to the end of a segment.
async fn generate(client: &mut Client, megabytes: u32) -> Lsn {
    let sql = format!(
        "CREATE TABLE IF NOT EXISTS filler (text text); \
         INSERT INTO filler SELECT md5(n::text) FROM generate_series(1, {megabytes} * 9000) n; \
         SELECT pg_switch_wal()"
    );
    client.execute(&sql).await.unwrap();
    current_lsn(client).await
}

#[tokio::test]
async fn streamed_wal_is_the_servers_wal() {
    let server = Server::start().await;
    let mut sql = server.sql().await;
    let mut client = server.replication().await;
    let identity = client.identify_system().await.unwrap();
    assert_eq!(identity.timeline, Timeline::FIRST);

    assert_eq!(sql.read_slot("holdfast").await.unwrap(), None);
    client.create_physical_slot("holdfast", SlotLifetime::Persistent, SlotReserve::Immediately).await.unwrap();
    let slot = sql.read_slot("holdfast").await.unwrap().unwrap();
    assert!(slot.physical && !slot.active && !slot.temporary && slot.restart_lsn.is_some());
    assert_eq!(slot.wal_status, Some(WalStatus::Reserved));
    let again = client.create_physical_slot("holdfast", SlotLifetime::Persistent, SlotReserve::Immediately).await;
    assert_eq!(again.unwrap_err().server_error().unwrap().sqlstate, "42710");

    let start = Segment::containing(Timeline::FIRST, identity.xlogpos, SIZE).start(SIZE);
    let mut stream = client.start_physical(Some("holdfast"), Timeline::FIRST, start).await.unwrap();
    let mut expected_start = start;
    let mut streamed = 0;
    for megabytes in [1, 40, 3] {
        let end = generate(&mut sql, megabytes).await;
        let bytes = collect(&mut stream, end).await;
        assert!(bytes == from_files(&server, expected_start, bytes.len()), "the bytes differ after {expected_start}");
        expected_start = expected_start.advance(bytes.len() as u64);
        streamed += bytes.len();
        stream.status(expected_start, expected_start, expected_start, true).await.unwrap();
        // The reply that was asked for.
        while !matches!(stream.next().await.unwrap(), Event::Keepalive { .. }) {}
        expected_start = stream.position();
    }
    assert!(streamed > 16 << 20, "several segments: {streamed}");
    let slot = sql.read_slot("holdfast").await.unwrap().unwrap();
    assert!(slot.active && slot.active_pid.is_some());
    assert!(slot.restart_lsn.unwrap() > start, "what is flushed need not be kept");

    // A dropped wait loses nothing.
    for _ in 0..3 {
        let nothing = tokio::time::timeout(Duration::from_millis(20), stream.next()).await;
        assert!(nothing.is_err() || matches!(nothing, Ok(Ok(Event::Keepalive { .. } | Event::Wal { .. }))));
    }
    let resumed = stream.position();
    let end = generate(&mut sql, 2).await;
    let bytes = collect(&mut stream, end).await;
    assert!(bytes == from_files(&server, resumed, bytes.len()));

    // A second user of the slot has to wait; the connection of a stopped stream serves again.
    let other = server.replication().await;
    let busy = other.start_physical(Some("holdfast"), Timeline::FIRST, start).await.unwrap_err();
    assert!(busy.is_retryable() && busy.to_string().contains("holdfast"), "{busy:?}");
    generate(&mut sql, 20).await;
    let mut client = stream.stop().await.unwrap();
    assert_eq!(client.identify_system().await.unwrap().system_id, identity.system_id);
    client.drop_slot("holdfast").await.unwrap();
    assert_eq!(sql.read_slot("holdfast").await.unwrap(), None);
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let server = Server::start().await;
    let start = server.replication().await.identify_system().await.unwrap().xlogpos;
    let slot = server.replication().await.start_physical(Some("absent"), Timeline::FIRST, start).await;
    assert!(slot.as_ref().is_err_and(|e| e.is_slot_missing() && !e.is_retryable()), "{slot:?}");
    let timeline = server.replication().await.start_physical(None, Timeline::new(7), start).await;
    assert!(timeline.is_err_and(|e| !e.is_retryable() && !e.is_wal_removed()));
    let name = server.replication().await.start_physical(Some("a\"b"), Timeline::FIRST, start).await;
    assert!(matches!(name, Err(ReplicationError::SlotName { .. })));
    let purpose = server.sql().await.start_physical(None, Timeline::FIRST, start).await;
    assert!(matches!(purpose, Err(ReplicationError::Purpose { expected: Purpose::Replication, .. })));
    let purpose = server.replication().await.read_slot("x").await;
    assert!(matches!(purpose, Err(ReplicationError::Purpose { expected: Purpose::Sql, .. })));

    // WAL that is gone is a gap, not something to wait for.
    let mut sql = server.sql().await;
    generate(&mut sql, 1).await;
    let first = Segment::containing(Timeline::FIRST, start, SIZE);
    std::fs::remove_file(server.data().join("pg_wal").join(first.file_name(SIZE))).unwrap();
    let outcome = match server.replication().await.start_physical(None, Timeline::FIRST, first.start(SIZE)).await {
        Ok(mut stream) => stream.next().await.map(drop),
        Err(error) => Err(error),
    };
    assert!(outcome.as_ref().is_err_and(|e| e.is_wal_removed() && !e.is_retryable()), "{outcome:?}");
}

#[tokio::test]
async fn a_shutdown_ends_the_stream_after_the_last_byte() {
    let mut server = Server::start().await;
    let mut client = server.replication().await;
    let identity = client.identify_system().await.unwrap();
    let start = Segment::containing(Timeline::FIRST, identity.xlogpos, SIZE).start(SIZE);
    let mut stream = client.start_physical(None, Timeline::FIRST, start).await.unwrap();
    let mut sql = server.sql().await;
    let end = generate(&mut sql, 1).await;
    drop(sql);
    let mut bytes = collect(&mut stream, end).await;
    let position = stream.position();
    stream.status(position, position, position, false).await.unwrap();
    server.signal(Signal::SIGINT);
    loop {
        match stream.next().await.unwrap() {
            Event::Wal { data, .. } => {
                bytes.extend_from_slice(&data);
                let position = stream.position();
                stream.status(position, position, position, false).await.unwrap();
            }
            Event::Keepalive { reply_requested, .. } => {
                let position = stream.position();
                if reply_requested {
                    stream.status(position, position, position, false).await.unwrap();
                }
            }
            Event::Closed => break,
            event @ Event::EndOfTimeline { .. } => panic!("{event:?}"),
        }
    }
    assert_eq!(stream.next().await.unwrap(), Event::Closed);
    server.wait();
    assert!(bytes == from_files(&server, start, bytes.len()));

    // Killed in the middle, it is a lost connection instead.
    server.launch(&[]).await;
    let mut client = server.replication().await;
    let start = client.identify_system().await.unwrap().xlogpos;
    let mut stream = client.start_physical(None, Timeline::FIRST, start).await.unwrap();
    server.signal(Signal::SIGQUIT);
    let error = loop {
        match stream.next().await {
            Ok(event) => assert!(!matches!(event, Event::Closed), "it did not shut down in order"),
            Err(error) => break error,
        }
    };
    assert!(error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn application_name_makes_a_synchronous_standby() {
    let server = Server::start().await;
    let info = server.info("postgres").with_application_name("holdfast_sync");
    let mut client = Client::connect(&info, Purpose::Replication).await.unwrap();
    let start = client.identify_system().await.unwrap().xlogpos;
    let mut stream = client.start_physical(None, Timeline::FIRST, start).await.unwrap();
    let mut sql = server.sql().await;
    sql.execute("ALTER SYSTEM SET synchronous_standby_names = 'holdfast_sync'").await.unwrap();
    sql.execute("SELECT pg_reload_conf()").await.unwrap();
    let state = async || {
        let mut sql = server.sql().await;
        let row = sql.query_one("SELECT sync_state FROM pg_stat_replication").await.unwrap();
        row.get(0) == Some("sync")
    };
    let position = stream.position();
    stream.status(position, position, position, false).await.unwrap();
    eventually("the stream is the synchronous standby", state).await;

    let commit = sql.execute("CREATE TABLE safe ()");
    tokio::pin!(commit);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut commit).await;
    assert!(early.is_err(), "a commit returned although nothing was reported as flushed");
    let report = async {
        loop {
            let event = stream.next().await.unwrap();
            assert!(!matches!(event, Event::Closed));
            let position = stream.position();
            stream.status(position, position, position, false).await.unwrap();
        }
    };
    tokio::select! {
        done = &mut commit => { done.unwrap(); }
        () = report => {}
        () = tokio::time::sleep(Duration::from_secs(30)) => panic!("the commit does not return"),
    }
}
