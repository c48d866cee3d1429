//! Whether anybody brings the log that follows the backup.

use holdfast_postgres::{Client, Purpose, ServerInfo};

use crate::config::Source;
use crate::context::Context;
use crate::failure::Failure;

/// Says what is missing if nobody does: without it the backup is all that can be recovered.
pub(super) async fn remark(context: &Context, source: &Source) {
    if context.output.json || context.output.quiet {
        return;
    }
    match is_received(source).await {
        Ok(true) => {}
        Ok(false) => context.output.note(&format!(
            "No receiver runs: what is committed after this backup is not stored.\n\
             `holdfast wal receive {} --create-slot`, run as a service, stores it.",
            source.name
        )),
        // The backup is made, and this was only a help.
        Err(error) => tracing::debug!(%error, "could not find out whether a receiver runs"),
    }
}

/// By a receiver on the slot, or by the archiver.
async fn is_received(source: &Source) -> Result<bool, Failure> {
    let mut client = Client::connect(&source.connection, Purpose::Sql).await?;
    let slot = client.read_slot(&source.slot).await?;
    let info = ServerInfo::read(&mut client).await?;
    client.close().await;
    let archives = info.setting("archive_mode").is_some_and(|mode| mode != "off")
        && info.setting("archive_command").is_some_and(|command| command.contains("wal push"));
    Ok(archives || slot.is_some_and(|slot| slot.active))
}
