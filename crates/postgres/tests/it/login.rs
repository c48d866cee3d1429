use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use holdfast_postgres::{Client, ConnInfo, ConnectError, Purpose};

use crate::fixture::{Server, eventually, hand_over, run, write};

/// Certificates made by `openssl`, in the server's folder.
struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn openssl(&self, arguments: &str) {
        run(Command::new("openssl").current_dir(&self.folder).args(arguments.split(' ')));
    }

    fn authority(&self, name: &str, key: &str) {
        self.openssl(&format!(
            "req -x509 -newkey {key} -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.crt"
        ));
    }

    fn signed(&self, name: &str, authority: &str, alternative: &str, digest: &str) {
        self.openssl(&format!("req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"));
        write(&self.path("extensions"), format!("subjectAltName={alternative}\nbasicConstraints=CA:FALSE\n"));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA {authority}.crt -CAkey {authority}.key -CAcreateserial -days 2 -{digest} \
             -extfile extensions -out {name}.crt"
        ));
    }

    /// Lets the server use a certificate from now on.
    fn install(&self, name: &str, data: &Path) {
        for (from, to) in [("crt", "server.crt"), ("key", "server.key")] {
            write(&data.join(to), std::fs::read(self.path(&format!("{name}.{from}"))).unwrap());
        }
    }
}

const ACCESS: &str = "\
    local     all         postgres                 trust\n\
    hostssl   all         scram,limited 127.0.0.1/32 scram-sha-256\n\
    hostssl   replication scram,limited 127.0.0.1/32 scram-sha-256\n\
    host      all         hashed     127.0.0.1/32  md5\n\
    host      all         clear      127.0.0.1/32  password\n\
    hostssl   all         carrier    127.0.0.1/32  cert\n";

struct Setup {
    server: Server,
    certificates: Certificates,
}

impl Setup {
    async fn new() -> Self {
        let mut server = Server::prepare();
        let certificates = Certificates { folder: server.folder().join("certificates") };
        std::fs::create_dir(&certificates.folder).unwrap();
        certificates.authority("authority", "rsa:2048");
        certificates.authority("stranger", "rsa:2048");
        certificates.signed("server", "authority", "DNS:db.example,IP:127.0.0.1", "sha256");
        certificates.signed("carrier", "authority", "DNS:carrier", "sha256");
        certificates.install("server", &server.data());
        let authority = std::fs::read(certificates.path("authority.crt")).unwrap();
        write(&server.data().join("root.crt"), authority);
        write(&server.data().join("pg_hba.conf"), ACCESS);
        let settings =
            ["listen_addresses=127.0.0.1", "ssl=on", "ssl_ca_file=root.crt", "password_encryption=scram-sha-256"];
        server.launch(&settings).await;
        let roles = "CREATE ROLE scram LOGIN REPLICATION PASSWORD 'p w''d';\
                     CREATE ROLE limited LOGIN PASSWORD 'limited'; CREATE ROLE clear LOGIN PASSWORD 'clear';\
                     CREATE ROLE carrier LOGIN; SET password_encryption = md5; CREATE ROLE hashed LOGIN PASSWORD 'hashed'";
        server.sql().await.execute(roles).await.unwrap();
        Self { server, certificates }
    }

    async fn connect(&self, user: &str, rest: &str) -> Result<Client, ConnectError> {
        self.connect_for(Purpose::Sql, user, rest).await
    }

    async fn connect_for(&self, purpose: Purpose, user: &str, rest: &str) -> Result<Client, ConnectError> {
        Client::connect(&self.info(user, rest), purpose).await
    }

    fn info(&self, user: &str, rest: &str) -> ConnInfo {
        // Later keywords win, so `rest` can say otherwise.
        let root = self.certificates.path("authority.crt");
        let text = format!(
            "hostaddr=127.0.0.1 host=db.example port={} user={user} sslmode=verify-full sslrootcert={} {rest}",
            self.server.port,
            root.display()
        );
        text.parse().unwrap()
    }

    /// Changes the server's certificate and waits until it is shown.
    async fn switch_to(&self, name: &str) {
        self.certificates.install(name, &self.server.data());
        self.server.sql().await.query("SELECT pg_reload_conf()").await.unwrap();
        let root = self.certificates.path(&format!("{name}.crt"));
        let rest = format!("password='p w\\'d' sslmode=verify-ca sslrootcert={}", root.display());
        let shown = async || match self.connect("scram", &rest).await {
            Ok(_) => true,
            // A certificate that is refused for any other reason than being unknown is the new one.
            Err(ConnectError::Handshake { source, .. }) => !source.to_string().contains("UnknownIssuer"),
            Err(_) => false,
        };
        eventually("the new certificate is shown", shown).await;
    }
}

const PASSWORD: &str = r"password='p w\'d'";

fn sqlstate(outcome: Result<Client, ConnectError>) -> String {
    let error = outcome.expect_err("the login is refused");
    let said = error.server_error().unwrap_or_else(|| panic!("not refused by the server: {error:?}"));
    assert!(!error.is_retryable(), "{error:?}");
    said.sqlstate.clone()
}

#[tokio::test]
async fn scram_over_verified_tls() {
    let setup = Setup::new().await;
    let mut client = setup.connect("scram", PASSWORD).await.unwrap();
    assert!(client.is_encrypted());
    let row = client.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await.unwrap();
    assert_eq!(row.get("ssl"), Some("t"));
    for binding in ["disable", "prefer", "require"] {
        setup.connect("scram", &format!("{PASSWORD} channel_binding={binding}")).await.unwrap();
    }
    let dropped = client.query("SELECT pg_sleep(600)");
    assert!(tokio::time::timeout(Duration::from_millis(50), dropped).await.is_err());
    client.cancel(&setup.info("scram", PASSWORD)).await.unwrap();
    tokio::time::timeout(Duration::from_mins(1), client.settle()).await.unwrap().unwrap();
    let mut replication = setup.connect_for(Purpose::Replication, "scram", PASSWORD).await.unwrap();
    replication.identify_system().await.unwrap();

    assert_eq!(sqlstate(setup.connect("scram", "password=wrong").await), "28P01");
    let refused = setup.connect_for(Purpose::Replication, "limited", "password=limited").await;
    assert!(matches!(sqlstate(refused).as_str(), "42501" | "28000"), "it has no right to replication");
    assert_eq!(sqlstate(setup.connect("scram", &format!("{PASSWORD} sslmode=disable")).await), "28000");
    let refused = setup.connect("scram", "").await;
    assert!(matches!(refused, Err(ConnectError::PasswordNeeded { .. })), "{refused:?}");

    // The password file is looked up by the socket's host, and as `replication` for replication.
    let passfile = setup.certificates.path("pgpass");
    write(&passfile, "db.example:*:postgres:scram:p w'd\ndb.example:*:replication:scram:no\n");
    let rest = format!("passfile={}", passfile.display());
    setup.connect("scram", &rest).await.unwrap();
    assert_eq!(sqlstate(setup.connect_for(Purpose::Replication, "scram", &rest).await), "28P01");
}

#[tokio::test]
async fn a_server_has_to_prove_what_sslmode_asks_for() {
    let setup = Setup::new().await;
    let refused = async |rest: &str| match setup.connect("scram", &format!("{PASSWORD} {rest}")).await {
        Err(error @ ConnectError::Handshake { .. }) => {
            assert!(!error.is_retryable());
            std::error::Error::source(&error).unwrap().to_string()
        }
        outcome => panic!("{rest}: {outcome:?}"),
    };
    let stranger = format!("sslrootcert={}", setup.certificates.path("stranger.crt").display());
    assert!(refused(&stranger).await.contains("UnknownIssuer"));
    assert!(refused(&format!("{stranger} sslmode=verify-ca")).await.contains("UnknownIssuer"));
    assert!(refused(&format!("{stranger} sslmode=require")).await.contains("UnknownIssuer"), "as in libpq");
    assert!(refused("sslrootcert=''").await.contains("UnknownIssuer"), "the system does not trust it");
    assert!(refused("host=other.example").await.contains("not valid for name"));

    let accepted = async |rest: &str| {
        let client = setup.connect("scram", &format!("{PASSWORD} {rest}")).await;
        assert!(client.unwrap_or_else(|error| panic!("{rest}: {error:?}")).is_encrypted());
    };
    accepted("host=127.0.0.1").await;
    accepted("host=other.example sslmode=verify-ca").await;
    accepted("host=other.example sslmode=require sslrootcert=''").await;
    accepted("host=other.example sslmode=prefer").await;

    let missing = setup.connect("scram", "sslrootcert=/absent").await.unwrap_err();
    assert!(matches!(missing, ConnectError::Tls { .. }) && missing.to_string().contains("db.example"));
}

#[tokio::test]
async fn other_methods_of_login() {
    let setup = Setup::new().await;
    setup.connect("hashed", "password=hashed").await.unwrap();
    setup.connect("hashed", "password=hashed sslmode=disable").await.unwrap();
    assert_eq!(sqlstate(setup.connect("hashed", "password=wrong").await), "28P01");
    setup.connect("clear", "password=clear").await.unwrap();
    let refused = setup.connect("clear", "password=clear sslmode=disable").await;
    assert!(matches!(refused, Err(ConnectError::PasswordInClear { .. })), "{refused:?}");
    for user in ["hashed", "clear"] {
        let refused = setup.connect(user, &format!("password={user} channel_binding=require")).await;
        assert!(matches!(refused, Err(ConnectError::ChannelBinding { .. })), "{refused:?}");
    }

    let (certificate, key) = (setup.certificates.path("carrier.crt"), setup.certificates.path("carrier.key"));
    let rest = format!("sslcert={} sslkey={}", certificate.display(), key.display());
    setup.connect("carrier", &rest).await.unwrap();
    assert!(setup.connect("carrier", "").await.is_err(), "without its certificate it is nobody");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let refused = setup.connect("carrier", &rest).await;
    assert!(matches!(refused, Err(ConnectError::Tls { .. })), "others may read the key: {refused:?}");
}

#[tokio::test]
async fn certificates_of_other_kinds() {
    let setup = Setup::new().await;
    let certificates = &setup.certificates;
    // As in PostgreSQL's manual: signed by itself, and an authority by openssl's default.
    let subject = "-subj /CN=db.example -addext subjectAltName=DNS:db.example";
    certificates
        .openssl(&format!("req -x509 -newkey rsa:2048 -nodes -days 2 {subject} -keyout alone.key -out alone.crt"));
    setup.switch_to("alone").await;
    let root = format!("{PASSWORD} sslrootcert={}", certificates.path("alone.crt").display());
    setup.connect("scram", &format!("{root} channel_binding=require")).await.unwrap();
    let refused = setup.connect("scram", &format!("{root} host=other.example")).await;
    assert!(matches!(refused, Err(ConnectError::Handshake { .. })), "{refused:?}");
    let refused = setup.connect("scram", PASSWORD).await;
    assert!(matches!(refused, Err(ConnectError::Handshake { .. })), "another authority: {refused:?}");

    // That it is trusted as it is does not make it valid for ever.
    certificates.openssl(&format!("req -new -key alone.key {subject} -out expired.csr"));
    write(&certificates.path("database"), "");
    write(&certificates.path("serial"), "01\n");
    write(
        &certificates.path("ca.conf"),
        "[ca]\ndefault_ca=x\n[x]\ndatabase=database\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n\
         copy_extensions=copy\nx509_extensions=e\n[p]\ncommonName=supplied\n[e]\nbasicConstraints=critical,CA:TRUE\n",
    );
    certificates.openssl(
        "ca -batch -config ca.conf -selfsign -keyfile alone.key -in expired.csr -out expired.crt -notext \
         -startdate 20200101000000Z -enddate 20200201000000Z",
    );
    std::fs::copy(certificates.path("alone.key"), certificates.path("expired.key")).unwrap();
    hand_over(&certificates.path("expired.key"));
    setup.switch_to("expired").await;
    let root = format!("{PASSWORD} sslrootcert={}", certificates.path("expired.crt").display());
    let refused = setup.connect("scram", &root).await.unwrap_err();
    let cause = std::error::Error::source(&refused).unwrap().to_string();
    assert!(cause.to_lowercase().contains("expired"), "{cause}");

    // Logins are bound by the hash that the certificate's signature names.
    certificates.authority("curved", "ec -pkeyopt ec_paramgen_curve:P-256");
    for (name, authority, digest) in [
        ("p256", "curved", "sha256"),
        ("p384", "curved", "sha384"),
        ("rsa384", "authority", "sha384"),
        ("rsa512", "authority", "sha512"),
    ] {
        certificates.signed(name, authority, &format!("DNS:{name}.example"), digest);
        certificates.install(name, &setup.server.data());
        setup.server.sql().await.query("SELECT pg_reload_conf()").await.unwrap();
        let root = certificates.path(&format!("{authority}.crt"));
        let rest = format!("{PASSWORD} host={name}.example sslrootcert={} channel_binding=require", root.display());
        let bound = async || match setup.connect("scram", &rest).await {
            Ok(_) => true,
            Err(ConnectError::Handshake { .. }) => false,
            Err(error) => panic!("{name}: {error:?}"),
        };
        eventually(name, bound).await;
    }
}
