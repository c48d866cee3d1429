use clap::Args;
use holdfast_repository::{Copied, Keyring, Left, Repaired, Repository, copy, repair as repair_repository};
use holdfast_runtime::Progress;

use crate::context::Context;
use crate::exit::Exit;
use crate::failure::{CommandError, Doing as _, Failure};
use crate::table::{self, Lines as _};

const EXAMPLES: &str = "\
Examples:
  holdfast copy --from main --to offsite
  holdfast copy --from main --to offsite --source chat --json";

const REPAIR_EXAMPLES: &str = "\
Examples:
  holdfast repair main --from offsite --dry-run
  holdfast repair main --from offsite";

/// Brings a repository up from another one of the same content.
///
/// Copies what the other lacks: keys, snapshots with all that they need, log. Both are of one identity, as `holdfast init --like` makes
/// them. It can be broken off and begun again at any time, and run while backups are made. It needs an identity.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// The repository that has it.
    #[arg(long, value_name = "NAME")]
    from: String,
    /// The repository that gets it.
    #[arg(long, value_name = "NAME")]
    to: String,
    /// Only what belongs to this source.
    #[arg(long)]
    source: Option<String>,
}

/// Replaces what is damaged in a repository by what another one of the same content has.
///
/// Reads all of the repository. What is damaged is taken from the other, byte for byte, if it is whole there; what is missing is copied.
/// Says what neither has. Exits with 3 if anything is left that way.
#[derive(Debug, Args)]
#[command(after_help = REPAIR_EXAMPLES)]
pub(crate) struct RepairOptions {
    /// The repository to repair.
    repository: String,
    /// The repository that has good copies.
    #[arg(long, value_name = "NAME")]
    from: String,
    /// Say what would be replaced, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Both, for one who reads the first.
async fn both(context: &Context, from: &str, to: &str) -> Result<(Keyring, Repository), Failure> {
    let config = context.config()?;
    let (from, to) = (config.repository(Some(from))?, config.repository(Some(to))?);
    if from.name == to.name {
        let problem = format!("`{}` is one and the same repository", from.name);
        return Err(CommandError::usage(problem, "Name two.").into());
    }
    Ok((context.keyring(from).await?, context.repository(to).await?))
}

pub(crate) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let Options { from, to, source } = options;
    let (keyring, target) = both(context, &from, &to).await?;
    let progress = Progress::new();
    let shown = context.show(&progress);
    let outcome = copy(&keyring, &target, source.as_deref(), &progress).await;
    drop(shown);
    let copied = outcome.doing(|| format!("could not copy from `{from}` to `{to}`"))?;
    let mut json = serde_json::to_value(&copied)?;
    (json["from"], json["to"]) = (from.into(), to.into());
    context.output.result(&json, || text(&copied))?;
    Ok(if copied.left.is_empty() { Exit::Done } else { Exit::Losses })
}

pub(crate) async fn repair(context: &Context, options: RepairOptions) -> Result<Exit, Failure> {
    let RepairOptions { repository, from, dry_run } = options;
    let (there, here) = both(context, &from, &repository).await?;
    // What is sealed here opens with the same identities.
    let here = there.of(here);
    let progress = Progress::new();
    let shown = context.show(&progress);
    let outcome = repair_repository(&here, &there, dry_run, &progress).await;
    drop(shown);
    let repaired = outcome.doing(|| format!("could not repair `{repository}` from `{from}`"))?;
    let mut json = serde_json::to_value(&repaired)?;
    (json["repository"], json["dry_run"]) = (repository.into(), dry_run.into());
    context.output.result(&json, || repaired_text(&repaired, dry_run))?;
    Ok(if repaired.left.is_empty() && repaired.brought.left.is_empty() { Exit::Done } else { Exit::Losses })
}

fn text(copied: &Copied) -> String {
    let Copied { snapshots, objects, bytes, left } = copied;
    let mut text = format!(
        "copied {}, {}, {}\n",
        table::count(*snapshots, "snapshot"),
        table::count(*objects, "other object"),
        table::size(*bytes)
    );
    lines(&mut text, left);
    text
}

fn repaired_text(repaired: &Repaired, dry_run: bool) -> String {
    let Repaired { replaced, brought, left } = repaired;
    let mut text = String::new();
    for object in replaced {
        text.line(format_args!("{} {object}", if dry_run { "would replace" } else { "replaced" }));
    }
    lines(&mut text, left);
    if !dry_run {
        text.push_str(&self::text(brought));
    }
    if text.is_empty() {
        text.push_str("nothing is damaged\n");
    }
    text
}

fn lines(text: &mut String, left: &[Left]) {
    for Left { object, why } in left {
        text.line(format_args!("LEFT: {object}: {why}"));
    }
}
