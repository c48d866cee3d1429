//! Connections to the server.

use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

use crate::error::LabError;

/// How long a server may take to accept a connection.
const CONNECT_BOUND: Duration = Duration::from_secs(10);

pub(crate) fn parse(conninfo: &str) -> Result<Config, LabError> {
    let mut config = Config::from_str(conninfo).map_err(|source| LabError::Conninfo { source })?;
    config.connect_timeout(CONNECT_BOUND).application_name("holdfast-lab");
    Ok(config)
}

/// Connects; the connection is driven by a task that ends when the client is dropped or the server is gone.
pub(crate) async fn connect(config: &Config) -> Result<Client, LabError> {
    let (client, connection) = config.connect(NoTls).await.map_err(|source| LabError::Connect { source })?;
    // What ends the connection is told to the client's next call.
    tokio::spawn(async move { connection.await.ok() });
    Ok(client)
}

/// Connects, and makes the database first if the server has none of that name.
pub(crate) async fn connect_or_create_database(config: &Config) -> Result<Client, LabError> {
    let source = match connect(config).await {
        Err(LabError::Connect { source }) if source.code() == Some(&SqlState::INVALID_CATALOG_NAME) => source,
        result => return result,
    };
    let Some(name) = config.get_dbname() else { return Err(LabError::Connect { source }) };
    let mut elsewhere = config.clone();
    let client = connect(elsewhere.dbname("postgres")).await?;
    let statement = format!("create database \"{}\"", name.replace('"', "\"\""));
    client.batch_execute(&statement).await.map_err(LabError::database("make the database"))?;
    connect(config).await
}
