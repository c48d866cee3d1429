use std::time::Duration;

use holdfast_postgres::backup_api::StartCheckpoint;
use holdfast_postgres::{BackupError, BackupSession, BackupStop, Event, Purpose, ServerInfo};
use holdfast_types::{Segment, SegmentSize, Timeline};

use crate::fixture::{Server, eventually, write};

/// A copy of a running server's files, made by the rules, that follows it as a standby.
async fn clone(primary: &Server, label: &str) -> (Server, BackupStop) {
    let standby = Server::empty();
    let (mut session, start) = BackupSession::start(primary.sql().await, label, StartCheckpoint::Fast).await.unwrap();
    assert!(start.timeline.is_some());
    let mut copy = crate::fixture::command(std::path::Path::new("cp"));
    let copied = copy.arg("-a").arg(primary.data()).arg(standby.data()).output().unwrap();
    // Files may go away while a running server's directory is copied; replay makes up for them.
    let complaints = String::from_utf8_lossy(&copied.stderr);
    assert!(complaints.lines().all(|line| line.ends_with("No such file or directory")), "{complaints}");
    session.position(Duration::from_secs(10)).await.unwrap();
    let (stop, _) = session.stop().await.unwrap();
    assert!(stop.lsn > start.lsn && stop.start_timeline == start.timeline.unwrap());
    assert!(stop.stopped_at > start.started_at);
    std::fs::remove_file(standby.data().join("postmaster.pid")).unwrap();
    write(&standby.data().join("backup_label"), &stop.backup_label);
    write(&standby.data().join("standby.signal"), "");
    (standby, stop)
}

async fn follow(standby: &mut Server, primary: &Server) {
    let conninfo = format!("primary_conninfo=host={} port={} user=postgres", primary.folder().display(), primary.port);
    standby.launch(&[&conninfo, "hot_standby=on"]).await;
    let streaming = async || {
        let mut sql = standby.sql().await;
        sql.query("SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'").await.unwrap().len() == 1
    };
    eventually("the standby streams", streaming).await;
}

#[tokio::test]
async fn a_backup_from_start_to_stop() {
    let server = Server::start().await;
    let mut sql = server.sql().await;
    // A database whose encoding is not ours, and limits that would end the session.
    sql.execute("CREATE DATABASE latin ENCODING LATIN1 TEMPLATE template0").await.unwrap();
    sql.execute("ALTER SYSTEM SET idle_session_timeout = '200ms'").await.unwrap();
    sql.execute("SELECT pg_reload_conf()").await.unwrap();
    let latin = server.info("postgres").with_dbname("latin");
    let client = holdfast_postgres::Client::connect(&latin, Purpose::Sql).await.unwrap();
    let label = "nightly 'café' \\ 7";
    let (mut session, start) = BackupSession::start(client, label, StartCheckpoint::Fast).await.unwrap();
    assert_eq!(start.timeline, Some(Timeline::FIRST));
    let clock = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as i64;
    assert!((clock - start.started_at.get()).abs() < 60_000_000);
    // Longer than the limit that the session must have taken away.
    tokio::time::sleep(Duration::from_millis(500)).await;
    session.position(Duration::from_secs(10)).await.unwrap();
    let (stop, _) = session.stop().await.unwrap();

    let expected = b"LABEL: nightly 'caf\xe9' \\ 7\n";
    assert!(stop.backup_label.windows(expected.len()).any(|part| part == expected), "the database's own bytes");
    let text = String::from_utf8_lossy(&stop.backup_label);
    let segment = Segment::containing(Timeline::FIRST, start.lsn, SegmentSize::DEFAULT);
    let first = format!("START WAL LOCATION: {} (file {})\n", start.lsn, segment.file_name(SegmentSize::DEFAULT));
    assert!(text.starts_with(&first), "{text}");
    assert!(text.ends_with("START TIMELINE: 1\n") && stop.tablespace_map.is_empty());
    assert_eq!((stop.start_timeline, stop.timeline), (Timeline::FIRST, Timeline::FIRST));
}

#[tokio::test]
async fn tablespaces_are_mapped() {
    let server = Server::start().await;
    let space = server.folder().join("a space");
    std::fs::create_dir(&space).unwrap();
    crate::fixture::hand_over(&space);
    let mut sql = server.sql().await;
    sql.execute(&format!("CREATE TABLESPACE faster LOCATION '{}'", space.display())).await.unwrap();
    let oid = ServerInfo::read(&mut sql).await.unwrap().tablespaces[0].oid;
    let (session, _) = BackupSession::start(sql, "x", StartCheckpoint::Fast).await.unwrap();
    let (stop, _) = session.stop().await.unwrap();
    assert_eq!(String::from_utf8(stop.tablespace_map).unwrap(), format!("{oid} {}\n", space.display()));
}

#[tokio::test]
async fn a_lost_session_voids_the_backup() {
    let server = Server::start().await;
    let client = server.sql().await;
    let pid = client.backend_pid();
    let (mut session, start) = BackupSession::start(client, "x", StartCheckpoint::Fast).await.unwrap();
    server.sql().await.query(&format!("SELECT pg_terminate_backend({pid})")).await.unwrap();
    let error = loop {
        if let Err(error) = session.position(Duration::from_secs(10)).await {
            break error;
        }
    };
    assert!(matches!(error, BackupError::SessionLost { .. }) && error.is_retryable(), "{error:?}");
    assert!(error.to_string().contains(&start.lsn.to_string()));
    assert!(matches!(session.stop().await, Err(BackupError::SessionLost { .. })));

    let refused = BackupSession::start(server.replication().await, "x", StartCheckpoint::Fast).await;
    assert!(matches!(refused, Err(BackupError::Purpose { .. })));
    let refused = BackupSession::start(server.sql().await, &"x".repeat(2000), StartCheckpoint::Fast).await;
    let error = refused.expect_err("a label that is too long");
    assert!(error.server_error().is_some() && !error.is_retryable());
}

#[tokio::test]
async fn standby_backup_promotion_and_the_end_of_a_timeline() {
    let primary = Server::start().await;
    let (mut standby, _) = clone(&primary, "first").await;
    follow(&mut standby, &primary).await;
    let mut sql = primary.sql().await;
    sql.execute("CREATE TABLE t AS SELECT generate_series(1, 1000); CHECKPOINT").await.unwrap();

    let info = ServerInfo::read(&mut standby.sql().await).await.unwrap();
    assert!(info.in_recovery && info.timeline == Timeline::FIRST);
    assert_eq!(info.system_id, ServerInfo::read(&mut sql).await.unwrap().system_id);

    // A backup of the standby, from which another can be made.
    let (copy, stop) = clone(&standby, "second").await;
    assert!(String::from_utf8_lossy(&stop.backup_label).contains("BACKUP FROM: standby"));
    assert_eq!(stop.timeline, Timeline::FIRST);
    drop(copy);

    // Stream from the standby, which is then promoted: its first timeline ends under our eyes.
    let mut client = standby.replication().await;
    let identity = client.identify_system().await.unwrap();
    let start =
        Segment::containing(Timeline::FIRST, identity.xlogpos, SegmentSize::DEFAULT).start(SegmentSize::DEFAULT);
    let mut stream = client.start_physical(None, Timeline::FIRST, start).await.unwrap();
    sql.execute("INSERT INTO t VALUES (1)").await.unwrap();
    assert!(matches!(stream.next().await.unwrap(), Event::Wal { .. }));
    standby.sql().await.query("SELECT pg_promote()").await.unwrap();
    let (next, switch) = loop {
        match stream.next().await.unwrap() {
            Event::EndOfTimeline { next, start } => break (next, start),
            Event::Closed => panic!("the server has not shut down"),
            Event::Wal { .. } | Event::Keepalive { .. } => {}
        }
    };
    assert_eq!((next, stream.position()), (Timeline::new(2), switch));
    let event = Event::EndOfTimeline { next, start: switch };
    assert_eq!(stream.next().await.unwrap(), event, "it can be asked for again");
    assert_eq!(stream.try_next_buffered().unwrap(), Some(event.clone()));

    let mut client = stream.into_client().unwrap();
    let (name, content) = client.timeline_history(next).await.unwrap();
    assert_eq!(name, next.history_file());
    assert_eq!(content, std::fs::read(standby.data().join("pg_wal").join(name)).unwrap());
    assert!(String::from_utf8_lossy(&content).contains(&switch.to_string()));

    // Asked for the old timeline at its very end, the server has nothing to copy and says so.
    let mut stream = client.start_physical(None, Timeline::FIRST, switch).await.unwrap();
    assert_eq!(stream.next().await.unwrap(), event);
    let client = stream.into_client().unwrap();
    let mut stream = client.start_physical(None, next, switch).await.unwrap();
    standby.sql().await.execute("CREATE TABLE after_promotion ()").await.unwrap();
    assert!(matches!(stream.next().await.unwrap(), Event::Wal { start, .. } if start == switch));
    assert!(stream.into_client().is_err(), "it still streams");

    let info = ServerInfo::read(&mut standby.sql().await).await.unwrap();
    assert!(!info.in_recovery && info.timeline == next);
    let (session, start) = BackupSession::start(standby.sql().await, "third", StartCheckpoint::Fast).await.unwrap();
    assert_eq!(start.timeline, Some(next));
    let (stop, _) = session.stop().await.unwrap();
    assert_eq!((stop.start_timeline, stop.timeline), (next, next));
}
