use clap::Args;
use holdfast_format::manifest::{DamagedPage, Manifest, Summary};
use holdfast_repository::RepositoryError;
use holdfast_types::SnapshotId;

use crate::context::Context;
use crate::exit::Exit;
use crate::failure::{CommandError, Doing as _, Failure};
use crate::table::{self, Lines as _, Table};
use crate::time;

const EXAMPLES: &str = "\
Examples:
  holdfast show chat 20261121T101500Z-5f0c2a9b
  holdfast show chat 20261121T101500Z-5f0c2a9b --json";

/// Shows everything about a snapshot.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// The source's name.
    source: String,
    /// The snapshot's id, as `holdfast list` shows it.
    snapshot: SnapshotId,
    /// Read from this one of the source's repositories only.
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
}

pub(crate) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let Options { source, snapshot, repository } = options;
    let config = context.config()?;
    let (keyring, _) = context.reader(&config, &source, repository.as_deref()).await?;
    let manifest = match keyring.snapshot(&source, &snapshot).await {
        Ok(stored) => stored.manifest,
        Err(error) if RepositoryError::is_not_found(&error) => {
            let location = keyring.repository().location();
            return Err(CommandError::NoSuchSnapshot { source_name: source, id: snapshot.to_string(), location }.into());
        }
        error => error.doing(|| format!("could not open the snapshot {snapshot} of `{source}`"))?.manifest,
    };
    context.output.result(&json(&manifest), || text(&manifest))?;
    Ok(Exit::Done)
}

fn json(manifest: &Manifest) -> serde_json::Value {
    let Manifest {
        summary,
        maps,
        packs,
        backup_label,
        tablespace_map: _,
        pg_control: _,
        tablespaces,
        owner,
        data_directory,
        config_files,
        parameters,
        damage,
    } = manifest;
    let parameters: serde_json::Map<_, _> =
        parameters.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    serde_json::json!({
        "snapshot": super::list::summary_json(summary),
        "data_directory": data_directory,
        "owner": owner,
        "tablespaces": tablespaces,
        "config_files": config_files,
        "parameters": parameters,
        "maps": maps.len(),
        "packs": packs.len(),
        "packs_bytes": packs.iter().map(|pack| pack.bytes).sum::<u64>(),
        "backup_label": String::from_utf8_lossy(backup_label),
        "damage": damage,
    })
}

fn text(manifest: &Manifest) -> String {
    let summary: &Summary = &manifest.summary;
    let version = holdfast_postgres::ServerVersion(summary.server_version);
    let from = if summary.from_standby { "a standby" } else { "the primary" };
    let mut all = Table::bare();
    let duration = (summary.stopped_at.get() - summary.started_at.get()).max(0).cast_unsigned();
    all.row(["snapshot", summary.id.as_str()]);
    all.row(["kind", &format!("{:?}", summary.kind).to_lowercase()]);
    if let Some(base) = &summary.base {
        all.row(["builds on", &format!("{base}, which need not be there any more")]);
    }
    all.row(["source", &format!("{}, PostgreSQL {version}, from {from}", summary.source)]);
    all.row(["system identifier", &summary.system_id.to_string()]);
    all.row(["begun", &time::show(summary.started_at)]);
    all.row(["ended", &time::show(summary.stopped_at)]);
    all.row(["took", &table::duration(std::time::Duration::from_micros(duration))]);
    all.row(["timeline", &summary.timeline.get().to_string()]);
    all.row(["log needed", &format!("{} to {}", summary.start_lsn, summary.stop_lsn)]);
    all.row(["files", &format!("{} with {}", summary.files, table::size(summary.bytes))]);
    if let Some(read) = summary.read_bytes {
        all.row(["read", &table::size(read)]);
    }
    all.row(["stored", &table::size(summary.stored_bytes)]);
    let (packs, maps) = (manifest.packs.len() as u64, manifest.maps.len() as u64);
    all.row(["objects", &format!("{}, {}", table::count(packs, "pack"), table::count(maps, "map"))]);
    all.row(["data directory", &manifest.data_directory]);
    all.row(["owner", &format!("{}:{}", manifest.owner.user, manifest.owner.group)]);
    all.row(["made by", &summary.made_by]);
    let mut text = all.text();
    section(
        &mut text,
        "tablespaces",
        manifest
            .tablespaces
            .iter()
            .map(|tablespace| format!("{} ({}) in {}", tablespace.name, tablespace.oid, tablespace.location)),
    );
    section(&mut text, "configuration files outside the data directory", manifest.config_files.iter().cloned());
    section(&mut text, "settings", manifest.parameters.iter().map(|(name, value)| format!("{name} = {value}")));
    section(&mut text, "DAMAGED PAGES", manifest.damage.iter().map(damaged));
    text
}

pub(crate) fn damaged(page: &DamagedPage) -> String {
    let relation = page.relation.as_ref().map(|relation| format!(" ({relation})")).unwrap_or_default();
    format!("{}{relation}, block {}: {}", page.path, page.block, page.reason)
}

fn section(text: &mut String, heading: &str, lines: impl Iterator<Item = String>) {
    let mut lines = lines.peekable();
    if lines.peek().is_some() {
        text.line(format_args!("\n{heading}:"));
        lines.for_each(|line| text.line(format_args!("  {line}")));
    }
}
