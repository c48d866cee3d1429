//! Loading the data set.

use serde::Serialize;
use tokio_postgres::{Client, GenericClient};

use crate::connection::{connect_or_create_database, parse};
use crate::error::LabError;

/// What a message costs on disk with its indexes and its share of the other tables; measured.
const BYTES_PER_MESSAGE: u64 = 305;

/// A number that changes when a loaded message does, whatever the order in which they are read.
pub(crate) const FINGERPRINT: &str = "coalesce(sum(hashtextextended(body, id + seq * 1000003 \
     + conversation_id * 998244353 + sender_id * 7 + kind)), 0)::text";

/// What is in the data set before anybody writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LoadSummary {
    /// Tells this data set from all others.
    pub load_id: i64,
    /// Accounts.
    pub users: i64,
    /// Devices.
    pub devices: i64,
    /// Conversations.
    pub conversations: i64,
    /// Members and, as each has one, read markers.
    pub members: i64,
    /// Messages; their ids are 1 to this.
    pub messages: i64,
    /// Attachments; their ids are 1 to this.
    pub attachments: i64,
    /// Orders; their ids are 1 to this.
    pub orders: i64,
    /// Over all messages.
    #[serde(skip)]
    pub(crate) fingerprint: String,
}

pub(crate) async fn create(conninfo: &str, size_mib: u64, seed: u64) -> Result<LoadSummary, LabError> {
    let mut client = connect_or_create_database(&parse(conninfo)?).await?;
    if is_loaded(&client).await? {
        return Err(LabError::AlreadyLoaded);
    }
    let failed = LabError::database("load the data set");
    client.batch_execute(SESSION).await.map_err(&failed)?;
    let transaction = client.transaction().await.map_err(&failed)?;
    // setseed takes a fraction.
    let fraction = (seed % 1_000_003) as f64 / 1_000_003.0;
    transaction.execute("select setseed($1)", &[&fraction]).await.map_err(&failed)?;
    transaction.batch_execute(&script(size_mib, seed)).await.map_err(&failed)?;
    transaction.commit().await.map_err(&failed)?;
    client.batch_execute("vacuum (freeze, analyze)").await.map_err(LabError::database("vacuum"))?;
    client.batch_execute("checkpoint").await.map_err(LabError::database("write a checkpoint"))?;
    summary(&client).await
}

/// One process does it all, so that the same seed gives the same data.
const SESSION: &str = "set max_parallel_workers_per_gather = 0; set client_min_messages = warning; \
     set work_mem = '256MB'; set maintenance_work_mem = '512MB'; set synchronous_commit = off; set jit = off";

fn script(size_mib: u64, seed: u64) -> String {
    let wanted = (size_mib.max(1) * 1024 * 1024 / BYTES_PER_MESSAGE).max(1000);
    // A round is dealt out once and repeated, so that small data sets need little and large ones do not sort it all.
    let round = match wanted {
        0..1_000_000 => wanted,
        1_000_000..4_000_000 => 1 << 16,
        _ => 1 << 20,
    };
    let rounds = (wanted + round / 2) / round;
    let messages = rounds * round;
    let small = messages < 1_000_000;
    let load_id: i64 = rand::random();
    let values: [(&str, String); 12] = [
        ("{words}", if small { 5000 } else { 20_000 }.to_string()),
        ("{cjk}", if small { 2000 } else { 6000 }.to_string()),
        ("{pool}", (messages / 128).clamp(64, 32_768).to_string()),
        ("{users}", (messages / 90).max(50).to_string()),
        ("{conversations}", (messages / 60).max(20).to_string()),
        ("{round}", round.to_string()),
        ("{rounds}", rounds.to_string()),
        ("{messages}", messages.to_string()),
        ("{orders}", (messages / 30).to_string()),
        ("{seed}", (seed as i64).to_string()),
        ("{load_id}", format!("({load_id})")),
        ("{fingerprint}", FINGERPRINT.to_owned()),
    ];
    values.iter().fold(include_str!("load.sql").to_owned(), |text, (name, value)| text.replace(name, value))
}

async fn is_loaded(client: &Client) -> Result<bool, LabError> {
    let found = client.query_one("select to_regclass('lab_load') is not null", &[]).await;
    Ok(found.map_err(LabError::database("look for the data set"))?.get(0))
}

/// Reads what was loaded.
pub(crate) async fn summary(client: &impl GenericClient) -> Result<LoadSummary, LabError> {
    let failed = LabError::database("look for the data set");
    let exists = client.query_one("select to_regclass('lab_load') is not null", &[]).await.map_err(&failed)?;
    if !exists.get::<_, bool>(0) {
        return Err(LabError::NoDataSet);
    }
    let row = client.query_opt("select * from lab_load", &[]).await.map_err(&failed)?.ok_or(LabError::NoDataSet)?;
    Ok(LoadSummary {
        load_id: row.get("load_id"),
        users: row.get("users"),
        devices: row.get("devices"),
        conversations: row.get("conversations"),
        members: row.get("members"),
        messages: row.get("messages"),
        attachments: row.get("attachments"),
        orders: row.get("orders"),
        fingerprint: row.get("fingerprint"),
    })
}
