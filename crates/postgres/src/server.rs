//! What a server is, and what our role may do there.
//!
//! *Consistency*: the values are read by a few statements one after another. Those that never change in a running
//! server (everything but timeline, recovery state and tablespaces) belong together in any case.

mod rights;

use std::collections::BTreeMap;

use holdfast_types::{Lsn, Micros, SegmentSize, SystemId, Timeline};

pub use rights::{Finding, Right, check_rights};

use crate::client::{Client, QueryError, Row, RowError, ServerVersion};

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    pub version: ServerVersion,
    pub system_id: SystemId,
    pub control_version: u32,
    pub catalog_version: u32,
    pub in_recovery: bool,
    /// The timeline that is written to, on a standby the one that is received or replayed.
    pub timeline: Timeline,
    /// The end of the log: written on a primary, on a standby the furthest received or replayed.
    pub lsn: Lsn,
    /// The server's clock.
    pub now: Micros,
    pub wal_segment_size: SegmentSize,
    pub block_size: u32,
    pub data_checksums: bool,
    pub full_page_writes: bool,
    pub wal_level: String,
    /// The tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    pub files: ServerFiles,
    /// What a standby's or a restored server's settings must not be below.
    pub floors: StandbyFloors,
    settings: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    pub oid: u32,
    pub name: String,
    /// Where `pg_tblspc/<oid>` points to; for a tablespace in place it is that path itself, relative.
    pub location: String,
}

/// Where a server keeps things. PostgreSQL tells members of `pg_read_all_settings` only, so each may be unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerFiles {
    pub data_directory: Option<String>,
    pub config_file: Option<String>,
    pub hba_file: Option<String>,
    pub ident_file: Option<String>,
    /// Every file that settings are read from, the main one included; unknown if the role may not see them.
    pub loaded: Option<Vec<String>>,
    pub ssl_cert: Option<String>,
    pub ssl_key: Option<String>,
    pub ssl_ca: Option<String>,
    pub ssl_crl: Option<String>,
    pub ssl_dh_params: Option<String>,
}

/// A hot standby pauses or stops when one of these is lower than it was on the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyFloors {
    pub max_connections: u32,
    pub max_worker_processes: u32,
    pub max_wal_senders: u32,
    pub max_prepared_transactions: u32,
    pub max_locks_per_transaction: u32,
}

/// The control data and the position, in one row.
const STATE: &str = "\
    SELECT s.system_identifier, s.pg_control_version, s.catalog_version_no, \
        pg_catalog.pg_is_in_recovery() AS in_recovery, \
        CASE WHEN pg_catalog.pg_is_in_recovery() THEN \
            GREATEST(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn(), c.redo_lsn) \
            ELSE pg_catalog.pg_current_wal_insert_lsn() END AS lsn, \
        CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL \
            ELSE pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()) END AS segment, \
        GREATEST((SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver), r.min_recovery_end_timeline, \
            c.timeline_id) AS recovery_timeline, \
        (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::pg_catalog.int8 AS now \
    FROM pg_catalog.pg_control_system() s, pg_catalog.pg_control_checkpoint() c, pg_catalog.pg_control_recovery() r";

const TABLESPACES: &str = "\
    SELECT oid, spcname, pg_catalog.pg_tablespace_location(oid) AS location FROM pg_catalog.pg_tablespace \
    WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid";

/// `undefined_file`: what a function was to look at has gone.
const UNDEFINED_FILE: &str = "58P01";

/// One that is dropped while the server looks it up makes it fail; the next time it is not listed.
async fn tablespaces(client: &mut Client) -> Result<Vec<Row>, QueryError> {
    let mut tries = 0;
    loop {
        match client.query(TABLESPACES).await {
            Err(error) if error.sqlstate() == Some(UNDEFINED_FILE) && tries < 10 => tries += 1,
            outcome => return outcome,
        }
    }
}

impl ServerInfo {
    /// Reads it all. On a connection for SQL.
    pub async fn read(client: &mut Client) -> Result<Self, QueryError> {
        let server = client.server().to_owned();
        let state = client.query_one(STATE).await?;
        // Settings that our role may not see are not in the view.
        let rows = client.query("SELECT name, setting FROM pg_catalog.pg_settings").await?;
        let tablespaces = tablespaces(client).await?;
        let loaded = loaded_files(client).await?;
        let version = client.server_version();
        let read = || {
            let pair =
                |row: &Row| Ok((row.text("name")?.to_owned(), row.optional_text("setting")?.unwrap_or("").to_owned()));
            let settings = rows.iter().map(pair).collect::<Result<BTreeMap<_, _>, RowError>>()?;
            let tablespaces = tablespaces.iter().map(Tablespace::read).collect::<Result<_, _>>()?;
            Self::assemble(version, &state, settings, tablespaces, loaded)
        };
        read().map_err(QueryError::answer(&server))
    }

    fn assemble(
        version: ServerVersion,
        state: &Row,
        settings: BTreeMap<String, String>,
        tablespaces: Vec<Tablespace>,
        loaded: Option<Vec<String>>,
    ) -> Result<Self, RowError> {
        let in_recovery = state.truth("in_recovery")?;
        let timeline = if in_recovery {
            state.parse("recovery_timeline")?
        } else {
            let segment = state.text("segment")?;
            let digits = segment.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
            digits.ok_or_else(|| invalid("segment", segment, "name of a WAL segment"))?
        };
        let file = |name: &str| settings.get(name).filter(|path| !path.is_empty()).cloned();
        Ok(Self {
            version,
            system_id: SystemId::new(state.parse::<i64>("system_identifier")?.cast_unsigned()),
            control_version: state.parse("pg_control_version")?,
            catalog_version: state.parse("catalog_version_no")?,
            in_recovery,
            timeline: Timeline::new(timeline),
            lsn: state.parse("lsn")?,
            now: Micros::new(state.parse("now")?),
            wal_segment_size: segment_size(&settings)?,
            block_size: number(&settings, "block_size")?,
            data_checksums: switch(&settings, "data_checksums")?,
            full_page_writes: switch(&settings, "full_page_writes")?,
            wal_level: text(&settings, "wal_level")?.to_owned(),
            tablespaces,
            files: ServerFiles {
                data_directory: file("data_directory"),
                config_file: file("config_file"),
                hba_file: file("hba_file"),
                ident_file: file("ident_file"),
                loaded,
                ssl_cert: file("ssl_cert_file"),
                ssl_key: file("ssl_key_file"),
                ssl_ca: file("ssl_ca_file"),
                ssl_crl: file("ssl_crl_file"),
                ssl_dh_params: file("ssl_dh_params_file"),
            },
            floors: StandbyFloors {
                max_connections: number(&settings, "max_connections")?,
                max_worker_processes: number(&settings, "max_worker_processes")?,
                max_wal_senders: number(&settings, "max_wal_senders")?,
                max_prepared_transactions: number(&settings, "max_prepared_transactions")?,
                max_locks_per_transaction: number(&settings, "max_locks_per_transaction")?,
            },
            settings,
        })
    }

    pub fn major(&self) -> u32 {
        self.version.major()
    }

    /// Any other setting that our role may see, in PostgreSQL's base unit.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str)
    }
}

/// The checkpoint that a server would start from after a crash: its last one, on a standby its last restartpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastCheckpoint {
    /// Where its record begins.
    pub lsn: Lsn,
    /// Where replay would begin.
    pub redo: Lsn,
}

/// When the server was started, which tells servers apart that are copies of each other.
const STARTED: &str =
    "SELECT (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::pg_catalog.int8 AS at";

impl Client {
    pub async fn checkpoint(&mut self) -> Result<LastCheckpoint, QueryError> {
        let row = self.query_one("SELECT checkpoint_lsn, redo_lsn FROM pg_catalog.pg_control_checkpoint()").await?;
        let read = || Ok(LastCheckpoint { lsn: row.parse("checkpoint_lsn")?, redo: row.parse("redo_lsn")? });
        read().map_err(QueryError::answer(self.server()))
    }

    /// How far a standby has replayed; `None` on a primary.
    pub async fn replayed(&mut self) -> Result<Option<Lsn>, QueryError> {
        const REPLAYED: &str = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN \
                                pg_catalog.pg_last_wal_replay_lsn() END AS lsn";
        let row = self.query_one(REPLAYED).await?;
        row.optional("lsn").map_err(QueryError::answer(self.server()))
    }

    pub async fn started_at(&mut self) -> Result<Micros, QueryError> {
        let row = self.query_one(STARTED).await?;
        Ok(Micros::new(row.parse("at").map_err(QueryError::answer(self.server()))?))
    }
}

impl Tablespace {
    fn read(row: &Row) -> Result<Self, RowError> {
        Ok(Self {
            oid: row.parse("oid")?,
            name: row.text("spcname")?.to_owned(),
            location: row.text("location")?.to_owned(),
        })
    }
}

/// The files that settings come from, as far as the role may know.
async fn loaded_files(client: &mut Client) -> Result<Option<Vec<String>>, QueryError> {
    const INSUFFICIENT_PRIVILEGE: &str = "42501";
    let complete = "SELECT DISTINCT sourcefile FROM pg_catalog.pg_file_settings \
                    WHERE sourcefile IS NOT NULL ORDER BY sourcefile";
    // Files whose every setting is overridden elsewhere are missing here, but it is open to more roles.
    let partial = "SELECT DISTINCT sourcefile FROM pg_catalog.pg_settings \
                   WHERE sourcefile IS NOT NULL ORDER BY sourcefile";
    let rows = match client.query(complete).await {
        Err(error) if error.sqlstate() == Some(INSUFFICIENT_PRIVILEGE) => client.query(partial).await?,
        outcome => outcome?,
    };
    let files = rows.iter().map(|row| row.text("sourcefile").map(str::to_owned)).collect::<Result<Vec<_>, _>>();
    let files = files.map_err(QueryError::answer(client.server()))?;
    // A running server has read at least one file, so an empty list means that it was hidden.
    Ok((!files.is_empty()).then_some(files))
}

type Settings = BTreeMap<String, String>;

fn invalid(column: &str, text: &str, expected: &'static str) -> RowError {
    RowError::Invalid { column: column.to_owned(), text: text.to_owned(), expected }
}

fn text<'a>(settings: &'a Settings, name: &str) -> Result<&'a str, RowError> {
    settings.get(name).map(String::as_str).ok_or_else(|| RowError::NoColumn { column: name.to_owned() })
}

fn number(settings: &Settings, name: &str) -> Result<u32, RowError> {
    let text = text(settings, name)?;
    text.parse().map_err(|_| invalid(name, text, "number"))
}

fn switch(settings: &Settings, name: &str) -> Result<bool, RowError> {
    match text(settings, name)? {
        "on" => Ok(true),
        "off" => Ok(false),
        text => Err(invalid(name, text, "on or off")),
    }
}

fn segment_size(settings: &Settings) -> Result<SegmentSize, RowError> {
    let bytes = number(settings, "wal_segment_size")?;
    SegmentSize::new(bytes.into()).ok_or_else(|| invalid("wal_segment_size", &bytes.to_string(), "WAL segment size"))
}
