//! The server of a source, and how its log stands in the repository.

mod log;

use std::path::{Path, PathBuf};

use holdfast_backup::prove_local;
use holdfast_pgformat::control::ControlFile;
use holdfast_postgres::replication::WalStatus;
use holdfast_postgres::{Client, ConnInfo, Purpose, ServerInfo, SlotState, check_rights};
use holdfast_repository::Repository;

use super::checklist::{Checklist, Entry};
use crate::config::Source;
use crate::failure::Failure;
use crate::table;

const SUPPORTED: std::ops::RangeInclusive<u32> = 13..=18;

pub(super) async fn check(source: &Source, repository: Option<&Repository>, checklist: &mut Checklist) {
    let name = source.name.as_str();
    let mut client = match Client::connect(&source.connection, Purpose::Sql).await {
        Ok(client) => client,
        Err(error) => return checklist.add(Entry::error(name, "server", &error)),
    };
    let info = match ServerInfo::read(&mut client).await {
        Ok(info) => info,
        Err(error) => return checklist.add(Entry::error(name, "server", &error)),
    };
    let role = if info.in_recovery { "standby" } else { "primary" };
    let found = format!("PostgreSQL {}, {role}, timeline {}, at {}", info.version, info.timeline.get(), info.lsn);
    checklist.add(if SUPPORTED.contains(&info.major()) {
        Entry::ok(name, "server", found)
    } else {
        Entry::fail(name, "server", found, "Versions 13 to 18 are supported.")
    });
    rights(name, &mut client, checklist).await;
    replication(source, &info, checklist).await;
    settings(name, &info, checklist);
    match &source.backup.connection {
        None => checklist.add(data_directory(source, &info, &mut client).await),
        Some(standby) => check_standby(source, standby, &mut client, &info, checklist).await,
    }
    slot(source, &mut client, &info, checklist).await;
    client.close().await;
    if let Some(repository) = repository {
        log::check(source, &info, repository, checklist).await;
    }
}

/// The server that backups are taken from, where that is another one.
async fn check_standby(
    source: &Source,
    standby: &ConnInfo,
    primary: &mut Client,
    primary_info: &ServerInfo,
    checklist: &mut Checklist,
) {
    const WHAT: &str = "backups from";
    let name = source.name.as_str();
    let outcome = async {
        let mut client = Client::connect(standby, Purpose::Sql).await?;
        let info = ServerInfo::read(&mut client).await?;
        let is_same_server = client.started_at().await? == primary.started_at().await?;
        let files = data_directory(source, &info, &mut client).await;
        client.close().await;
        Ok::<_, Failure>((info, is_same_server, files))
    };
    let (info, is_same_server, files) = match outcome.await {
        Ok(found) => found,
        Err(error) => return checklist.add(Entry::error(name, WHAT, error.as_ref())),
    };
    checklist.add(if info.system_id != primary_info.system_id {
        let found = format!("cluster {}, which is not the source's, {}", info.system_id, primary_info.system_id);
        Entry::fail(
            name,
            WHAT,
            found,
            "`connection` in the backup table must lead to a standby of the source's server.",
        )
    } else if info.in_recovery {
        Entry::ok(name, WHAT, format!("a standby, timeline {}, at {}", info.timeline.get(), info.lsn))
    } else if is_same_server {
        Entry::ok(name, WHAT, "the primary itself")
    } else {
        let hint = "If it was promoted, `connection` of the source must lead to it, for the receiver too.";
        Entry::fail(name, WHAT, format!("no standby: it is on timeline {} by itself", info.timeline.get()), hint)
    });
    checklist.add(files);
}

async fn rights(name: &str, client: &mut Client, checklist: &mut Checklist) {
    match check_rights(client).await {
        Ok(findings) if findings.is_empty() => checklist.add(Entry::ok(name, "rights", "all that are needed")),
        Ok(findings) => {
            for finding in findings {
                let found = format!("may not {}", finding.right);
                checklist.add(if finding.right.is_essential() {
                    Entry::fail(name, "rights", found, finding.hint)
                } else {
                    Entry::warning(name, "rights", found, finding.hint)
                });
            }
        }
        Err(error) => checklist.add(Entry::error(name, "rights", &error)),
    }
}

/// `pg_hba.conf` admits replication by lines of its own, so only trying it tells.
async fn replication(source: &Source, info: &ServerInfo, checklist: &mut Checklist) {
    let name = source.name.as_str();
    let mut client = match Client::connect(&source.connection, Purpose::Replication).await {
        Ok(client) => client,
        Err(error) => return checklist.add(Entry::error(name, "replication", &error)),
    };
    checklist.add(match client.identify_system().await {
        Ok(identity) if identity.system_id == info.system_id => Entry::ok(name, "replication", "can connect"),
        Ok(_) => Entry::fail(
            name,
            "replication",
            "the connection for replication leads to another cluster",
            "With several hosts in `connection`, set target_session_attrs.",
        ),
        Err(error) => Entry::error(name, "replication", &error),
    });
    client.close().await;
}

fn settings(name: &str, info: &ServerInfo, checklist: &mut Checklist) {
    let level = info.wal_level.as_str();
    checklist.add(if level == "minimal" {
        let hint = "Set `wal_level = replica` in postgresql.conf and restart the server: without it no backup can be \
                    brought forward.";
        Entry::fail(name, "wal_level", level, hint)
    } else {
        Entry::ok(name, "wal_level", level)
    });
    if !info.full_page_writes {
        let hint = "Backups turn it on while they run; on a standby it has to be on at the primary.";
        checklist.add(Entry::warning(name, "full_page_writes", "off", hint));
    }
    if !info.data_checksums {
        let hint = "Damaged pages cannot be told from good ones. `pg_checksums --enable` adds checksums to a stopped \
                    cluster.";
        checklist.add(Entry::warning(name, "data checksums", "off", hint));
    }
}

async fn data_directory(source: &Source, info: &ServerInfo, client: &mut Client) -> Entry {
    const WHAT: &str = "data directory";
    let name = source.name.as_str();
    let named = source.data_directory.clone().or_else(|| info.files.data_directory.as_ref().map(PathBuf::from));
    let Some(path) = named else {
        let hint = "Set `data_directory` for the source, or grant pg_read_all_settings to the role.";
        return Entry::fail(name, WHAT, "the server does not say where it is", hint);
    };
    let shown = path.display();
    match read_control(&path) {
        Err(problem) => {
            let hint = "Backups read the files themselves: run them where the data directory is, as the user that \
                        owns it or in its group.";
            Entry::fail(name, WHAT, format!("{shown} cannot be read: {problem}"), hint)
        }
        Ok(control) if control.system_id != info.system_id => Entry::fail(
            name,
            WHAT,
            format!("{shown} belongs to cluster {}, the server to {}", control.system_id, info.system_id),
            "`connection` and `data_directory` must be of the same cluster.",
        ),
        Ok(_) => match prove_local(&path, client).await {
            Ok(()) => Entry::ok(name, WHAT, format!("{shown} is readable and the server's")),
            Err(error) => Entry::error(name, WHAT, &error),
        },
    }
}

fn read_control(directory: &Path) -> Result<ControlFile, String> {
    let bytes = std::fs::read(directory.join("global/pg_control")).map_err(|error| error.to_string())?;
    std::fs::read_dir(directory.join("base")).map_err(|error| error.to_string())?;
    // A read may meet the server's write; once more is enough to tell that from damage.
    ControlFile::parse(&bytes).or_else(|first| {
        std::fs::read(directory.join("global/pg_control"))
            .map_err(|error| error.to_string())
            .and_then(|bytes| ControlFile::parse(&bytes).map_err(|_| first.to_string()))
    })
}

async fn slot(source: &Source, client: &mut Client, info: &ServerInfo, checklist: &mut Checklist) {
    let (name, slot) = (source.name.as_str(), source.slot.as_str());
    match client.read_slot(slot).await {
        Ok(Some(state)) => checklist.add(slot_state(name, &state)),
        Ok(None) => checklist.add(Entry::warning(
            name,
            "slot",
            format!("there is no slot `{slot}`"),
            format!("`holdfast wal receive {name} --create-slot` makes it. Without it, archive with `wal push`."),
        )),
        Err(error) => checklist.add(Entry::error(name, "slot", &error)),
    }
    // In MiB; -1 is without limit.
    let limit = info.setting("max_slot_wal_keep_size").and_then(|text| text.parse::<i64>().ok());
    checklist.add(match limit {
        Some(0..) | None => {
            let found = limit.map_or("unknown".to_owned(), |mib| table::size(mib.unsigned_abs() << 20));
            Entry::ok(name, "max_slot_wal_keep_size", found)
        }
        Some(_) => Entry::warning(
            name,
            "max_slot_wal_keep_size",
            "unlimited",
            "If the receiver stays away, log fills the server's disk and stops it. A limit ends the slot instead, and \
             leaves a gap that a new backup closes.",
        ),
    });
}

fn slot_state(name: &str, state: &SlotState) -> Entry {
    let receive = format!("Run `holdfast wal receive {name}` as a service.");
    let slot = &state.name;
    if !state.physical {
        return Entry::fail(name, "slot", format!("`{slot}` is a logical slot"), "Choose another `slot`.");
    }
    match (state.wal_status, state.active) {
        (Some(WalStatus::Lost), _) => Entry::fail(
            name,
            "slot",
            format!("`{slot}` has lost log that it was to keep"),
            format!("Drop it (`SELECT pg_drop_replication_slot('{slot}')`), make it anew, and take a backup."),
        ),
        (Some(WalStatus::Unreserved), _) => {
            Entry::warning(name, "slot", format!("`{slot}` is about to lose log"), receive)
        }
        (_, true) => Entry::ok(name, "slot", format!("`{slot}` is in use")),
        (_, false) => Entry::warning(name, "slot", format!("nobody receives from `{slot}`"), receive),
    }
}
