use std::time::Duration;

use holdfast_postgres::client::{identifier, literal};
use holdfast_postgres::server::{Right, check_rights};
use holdfast_postgres::{Client, ConnectError, Purpose, QueryError, ServerInfo};
use holdfast_types::Timeline;

use crate::fixture::{Server, eventually};

#[tokio::test]
async fn queries_errors_and_dropped_futures() {
    let server = Server::start().await;
    let mut client = server.sql().await;
    assert_eq!(client.parameter("server_encoding"), Some("UTF8"));
    assert!(client.major() >= 13 && !client.is_encrypted());

    let rows = client.query("SELECT n, NULL AS nothing, 'é' AS text FROM generate_series(1, 3) n; SELECT 7").await;
    let rows = rows.unwrap();
    assert_eq!(rows.len(), 4);
    assert_eq!((rows[2].parse::<u32>("n"), rows[2].get("nothing"), rows[2].get("text")), (Ok(3), None, Some("é")));
    assert_eq!(rows[3].get(0), Some("7"));
    assert_eq!(client.execute("CREATE TABLE t AS SELECT generate_series(1, 42)").await.unwrap(), 42);
    assert!(client.query("").await.unwrap().is_empty());
    assert!(client.query("COPY t TO STDOUT").await.unwrap().is_empty());
    assert!(client.execute("COPY t FROM STDIN").await.is_err(), "no data is sent by COPY");
    assert!(matches!(client.query("SELECT '\0'").await, Err(QueryError::ZeroByte { .. })));

    let error = client.query("SELECT 1/0").await.unwrap_err();
    let said = error.server_error().unwrap();
    assert_eq!((said.sqlstate.as_str(), said.severity.as_str()), ("22012", "ERROR"));
    assert!(!error.is_retryable() && error.to_string().contains(client.server()));

    // The answer to a query whose future was dropped is not taken for that of the next one.
    for _ in 0..3 {
        let dropped = client.query("SELECT 'stale' FROM pg_sleep(0.2)");
        assert!(tokio::time::timeout(Duration::from_millis(20), dropped).await.is_err());
        let row = client.query_one("SELECT 'fresh'").await.unwrap();
        assert_eq!(row.get(0), Some("fresh"));
    }
    // Also where the beginning of it has been read.
    let dropped = client.query("SELECT repeat('x', 3000), pg_sleep(n / 20 * 0.3) FROM generate_series(1, 20) n");
    assert!(tokio::time::timeout(Duration::from_millis(100), dropped).await.is_err());
    assert!(client.is_waiting());
    client.settle().await.unwrap();
    assert_eq!(client.query_one("SELECT 'fresh'").await.unwrap().get(0), Some("fresh"));

    let nasty = "it's a \"test\" \\ with 'all' of \\' it";
    for conforming in ["on", "off"] {
        client.execute(&format!("SET standard_conforming_strings = {conforming}")).await.unwrap();
        client.execute("SET escape_string_warning = off").await.unwrap();
        let sql = format!("SELECT {} AS {}", literal(nasty), identifier(nasty));
        assert_eq!(client.query_one(&sql).await.unwrap().get(nasty), Some(nasty));
    }
}

#[tokio::test]
async fn a_session_that_is_ended_says_why() {
    let server = Server::start().await;
    let (mut client, mut other) = (server.sql().await, server.sql().await);
    let pid = client.backend_pid();
    other.query(&format!("SELECT pg_terminate_backend({pid})")).await.unwrap();
    let gone = async || {
        let mut look = server.sql().await;
        look.query(&format!("SELECT FROM pg_stat_activity WHERE pid = {pid}")).await.unwrap().is_empty()
    };
    eventually("the backend is gone", gone).await;
    let error = client.query("SELECT 1").await.unwrap_err();
    assert_eq!(error.server_error().map(|error| error.sqlstate.as_str()), Some("57P01"), "{error:?}");
    assert!(error.is_retryable() && client.is_closed());
    assert!(matches!(client.query("SELECT 1").await, Err(QueryError::Closed { .. })));

    other.execute("ALTER SYSTEM SET superuser_reserved_connections = 0").await.unwrap();
    let absent = server.info("postgres").with_dbname("absent");
    let error = Client::connect(&absent, Purpose::Sql).await.unwrap_err();
    assert_eq!(error.server_error().map(|error| error.sqlstate.as_str()), Some("3D000"));
    assert!(!error.is_retryable());
}

/// With every session taken, which is when it matters.
#[tokio::test]
async fn a_query_is_cancelled_without_a_session() {
    let server = Server::start().await;
    let info = server.info("postgres");
    let mut client = server.sql().await;
    let mut others = Vec::new();
    while let Ok(other) = Client::connect(&info, Purpose::Sql).await {
        others.push(other);
        assert!(others.len() < 1000);
    }
    assert!(!client.is_waiting());
    let dropped = client.query("SELECT pg_sleep(600)");
    assert!(tokio::time::timeout(Duration::from_millis(50), dropped).await.is_err());
    assert!(client.is_waiting());
    client.cancel(&info).await.unwrap();
    tokio::time::timeout(Duration::from_mins(1), client.settle()).await.unwrap().unwrap();
    assert!(!client.is_waiting() && !client.is_closed());
    assert_eq!(client.query_one("SELECT 'here'").await.unwrap().get(0), Some("here"));
}

#[tokio::test]
async fn a_silent_server_does_not_hold_us() {
    // It accepts (the kernel does) and never says anything.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let text = format!("host=127.0.0.1 port={port} user=x connect_timeout=1");
    for purpose in [Purpose::Sql, Purpose::Replication] {
        let begun = std::time::Instant::now();
        let error = Client::connect(&text.parse().unwrap(), purpose).await.unwrap_err();
        assert!(matches!(error, ConnectError::Timeout { .. }) && error.is_retryable(), "{error:?}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(error.to_string().contains(&port.to_string()));
    }

    // With several hosts the next one is asked, and one that is what was wanted is found.
    let server = Server::start().await;
    let socket = server.folder().display();
    let text = format!(
        "host=127.0.0.1,{socket} port={port},{} user=postgres connect_timeout=1 target_session_attrs=primary",
        server.port
    );
    Client::connect(&text.parse().unwrap(), Purpose::Sql).await.unwrap();
    Client::connect(&text.parse().unwrap(), Purpose::Replication).await.unwrap();
    let text = text.replace("attrs=primary", "attrs=standby");
    let error = Client::connect(&text.parse().unwrap(), Purpose::Sql).await.unwrap_err();
    let ConnectError::NoServer { attempts } = &error else { panic!("{error:?}") };
    assert!(matches!(attempts[..], [ConnectError::Timeout { .. }, ConnectError::WrongSession { .. }]), "{error}");
    let text = text.replace("attrs=standby", "attrs=prefer-standby");
    Client::connect(&text.parse().unwrap(), Purpose::Sql).await.unwrap();
}

#[tokio::test]
async fn what_is_no_server_is_told_apart() {
    use tokio::io::AsyncWriteExt;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let web_server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // The other side may have gone away at the first strange byte.
            drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
        }
    });
    for mode in ["disable", "prefer", "require"] {
        let text = format!("host=127.0.0.1 port={port} user=x sslmode={mode}");
        let error = Client::connect(&text.parse().unwrap(), Purpose::Sql).await.unwrap_err();
        assert!(matches!(error, ConnectError::Protocol { .. }) && !error.is_retryable(), "{error:?}");
    }
    web_server.abort();
    let text = "host=/nonexistent user=x";
    let error = Client::connect(&text.parse().unwrap(), Purpose::Sql).await.unwrap_err();
    assert!(matches!(error, ConnectError::Io { .. }) && error.is_retryable(), "the server may come up: {error:?}");
}

#[tokio::test]
async fn a_server_describes_itself() {
    let server = Server::start().await;
    let mut client = server.sql().await;
    let space = server.folder().join("space");
    std::fs::create_dir(&space).unwrap();
    crate::fixture::hand_over(&space);
    client.execute(&format!("CREATE TABLESPACE faster LOCATION '{}'", space.display())).await.unwrap();

    let info = ServerInfo::read(&mut client).await.unwrap();
    let identity = server.replication().await.identify_system().await.unwrap();
    assert_eq!(
        (info.system_id, info.timeline, info.timeline),
        (identity.system_id, identity.timeline, Timeline::FIRST)
    );
    assert_eq!((info.version, info.major()), (client.server_version(), client.major()));
    assert_eq!((info.wal_segment_size.get(), info.block_size), (16 << 20, 8192));
    assert!(info.data_checksums && info.full_page_writes && !info.in_recovery && info.lsn >= identity.xlogpos);
    assert_eq!((info.wal_level.as_str(), info.floors.max_wal_senders), ("replica", 8));
    assert_eq!(info.files.data_directory, Some(server.data().display().to_string()));
    let main = info.files.config_file.clone().unwrap();
    assert!(info.files.loaded.as_ref().unwrap().contains(&main), "{:?}", info.files);
    assert_eq!(info.tablespaces.len(), 1);
    assert_eq!(
        (info.tablespaces[0].name.as_str(), info.tablespaces[0].location.clone()),
        ("faster", space.display().to_string())
    );
    let off = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as i64 - info.now.get();
    assert!(off.abs() < 60_000_000, "{off}");
    assert!(check_rights(&mut client).await.unwrap().is_empty(), "a superuser lacks nothing");

    // A role without rights can still look, and is told what it lacks in statements that help.
    client.execute("CREATE ROLE \"plain role\" LOGIN").await.unwrap();
    let mut plain = Client::connect(&server.info("'plain role'"), Purpose::Sql).await.unwrap();
    let info = ServerInfo::read(&mut plain).await.unwrap();
    assert_eq!((info.files.data_directory, info.files.loaded), (None, None));
    let findings = check_rights(&mut plain).await.unwrap();
    let lacking: Vec<_> = findings.iter().map(|finding| finding.right).collect();
    let all = [
        Right::Replication,
        Right::ReadSettings,
        Right::BackupStart,
        Right::BackupStop,
        Right::SwitchWal,
        Right::RestorePoint,
    ];
    assert_eq!(lacking, all);
    for finding in findings {
        let statement = finding.hint.split('`').nth(1).unwrap();
        client.execute(statement).await.unwrap();
    }
    assert_eq!(check_rights(&mut plain).await.unwrap(), []);
    let info = ServerInfo::read(&mut plain).await.unwrap();
    assert!(info.files.data_directory.is_some() && info.files.loaded.is_some());
}
