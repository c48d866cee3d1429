use std::time::Duration;

use holdfast_postgres::cluster::{Binaries, ClusterError, FindBinariesError, PgCtl, Readiness, Running, StopMode};
use holdfast_postgres::cluster::{config, is_running};

use crate::fixture::{Server, binaries, write};

const DEADLINE: Duration = Duration::from_mins(1);

async fn pg_ctl(server: &Server) -> PgCtl {
    let major = binaries().parent().unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap();
    let found = Binaries::find(major, Some(&binaries())).await.unwrap();
    assert_eq!(Binaries::find(major, None).await.unwrap(), found, "it is where Debian puts it");
    let wrong = Binaries::find(major + 1, Some(&binaries())).await;
    assert!(matches!(wrong, Err(FindBinariesError::WrongVersion { .. })));
    assert_eq!(found.version().major(), major);
    PgCtl::new(found, &server.data(), &server.folder().join("log"))
}

#[tokio::test]
async fn a_local_server_is_started_and_stopped() {
    let server = Server::prepare();
    let control = pg_ctl(&server).await;
    assert_eq!(is_running(&server.data()), Running::No);
    assert!(matches!(control.readiness(), Err(ClusterError::NotRunning { .. })));
    control.stop(StopMode::Fast, DEADLINE).await.unwrap();

    let (socket, port) = (server.folder().display().to_string(), server.port.to_string());
    let name = "a 'quoted' \"name\" \\ with $HOME";
    let line = config::setting("cluster_name", name).unwrap();
    let application = config::setting("application_name", "x\\y'z").unwrap();
    write(&server.data().join("postgresql.auto.conf"), line + &application);
    let settings = [
        ("listen_addresses", ""),
        ("unix_socket_directories", socket.as_str()),
        ("port", port.as_str()),
        ("search_path", "it's, \"$user\""),
    ];
    control.start(&settings).await.unwrap();
    assert_eq!(control.wait_ready(DEADLINE).await.unwrap(), Readiness::Ready);
    let Running::Yes { pid } = is_running(&server.data()) else { panic!("it runs") };
    assert!(
        matches!(control.start(&settings).await, Err(ClusterError::AlreadyRunning { pid: found, .. }) if found == pid)
    );

    let mut sql = server.sql().await;
    let value = sql.query_one("SELECT current_setting('cluster_name')").await.unwrap();
    assert_eq!(value.get(0), Some(name));
    let value = sql.query_one("SELECT current_setting('search_path')").await.unwrap();
    assert_eq!(value.get(0), Some("it's, \"$user\""));
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(server.data()).unwrap());
    let process = std::fs::metadata(format!("/proc/{pid}")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&process), owner);

    // A lie in postmaster.pid does not hide the server that works in the directory.
    let path = server.data().join("postmaster.pid");
    let truth = std::fs::read_to_string(&path).unwrap();
    write(&path, truth.replacen(&pid.to_string(), &std::process::id().to_string(), 1));
    assert!(matches!(is_running(&server.data()), Running::Yes { .. }));
    write(&path, truth);

    control.stop(StopMode::Fast, DEADLINE).await.unwrap();
    assert_eq!(is_running(&server.data()), Running::No);
}

#[tokio::test]
async fn a_failed_start_shows_the_log() {
    let server = Server::prepare();
    let control = pg_ctl(&server).await;
    let error = control.start(&[("shared_buffers", "no number")]).await.unwrap_err();
    assert!(matches!(error, ClusterError::Start { .. }), "{error:?}");
    assert!(error.to_string().contains("shared_buffers"), "{error}");
    assert_eq!(is_running(&server.data()), Running::No);

    // A recovery that waits for its log is on its way, and says so until it is stopped.
    write(&server.data().join("standby.signal"), "");
    let socket = server.folder().display().to_string();
    let settings = [("listen_addresses", ""), ("unix_socket_directories", socket.as_str()), ("hot_standby", "off")];
    let readiness = control.start(&settings).await.unwrap();
    assert!(matches!(readiness, Readiness::Starting | Readiness::Standby), "{readiness:?}");
    assert_eq!(control.wait_ready(DEADLINE).await.unwrap(), Readiness::Standby);
    control.stop(StopMode::Immediate, DEADLINE).await.unwrap();
}
