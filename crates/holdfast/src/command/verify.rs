use std::error::Error;

use clap::Args;
use holdfast_repository::{Budget, Prover, RepositoryError, Severity, Unread, VerifyOptions, VerifyReport, verify};
use holdfast_runtime::Progress;

use crate::config::{RepositorySettings, default_parallel};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::{Doing as _, Failure};
use crate::table::{self, Lines as _, Table};
use crate::time;

const EXAMPLES: &str = "\
Examples:
  holdfast verify
  holdfast verify --budget 10%
  holdfast verify --source chat --json";

/// Proves that everything in the repositories can be read back.
///
/// Reads, authenticates and decodes every object, and checks that the log is complete between the points that can be
/// recovered. Exits with 3 if anything that was promised is damaged or missing, and names it and what it affects.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Only what belongs to this source.
    #[arg(long)]
    source: Option<String>,

    /// Read no more than this, as in 50GiB or 10%: what was proved longest ago comes first.
    ///
    /// What earlier runs have proved is kept in the repository. Run every day with 10%, everything is read every ten days. That all
    /// objects are there, and the log without gaps, is looked at each time.
    #[arg(long, value_name = "SIZE|PERCENT", value_parser = budget)]
    budget: Option<Budget>,

    /// How many objects are read at once.
    #[arg(long, value_name = "N", value_parser = super::parallel)]
    parallel: Option<usize>,
}

pub(crate) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let config = context.config()?;
    let Options { source, parallel, budget } = options;
    let repositories: Vec<&RepositorySettings> = match &source {
        Some(source) => config.repositories_of(source, None)?,
        None => config.repositories().collect(),
    };
    if repositories.is_empty() {
        config.repository(None)?;
    }
    let options = VerifyOptions {
        source,
        parallel: parallel.unwrap_or_else(default_parallel),
        inspect_log: Some(holdfast_recovery::inspect_log),
        keeps_log: None,
        budget,
        by: Some(Prover { host: host(), version: env!("CARGO_PKG_VERSION").to_owned() }),
    };
    let mut results = Vec::new();
    for settings in repositories {
        let keyring = match context.keyring(settings).await {
            Ok(keyring) => keyring,
            Err(failure) => match lost_config(&*failure) {
                Some(error) => {
                    results.push((settings.name.clone(), VerifyReport::unusable(error)));
                    continue;
                }
                None => return Err(failure),
            },
        };
        let progress = Progress::new();
        let shown = context.show(&progress);
        let keeps_log = super::expire::keeps_log(&config, settings, &keyring).await;
        let options = VerifyOptions { keeps_log, ..options.clone() };
        let report = verify(&keyring, &options, &progress).await;
        drop(shown);
        let report = report.doing(|| format!("could not verify the repository `{}`", settings.name))?;
        results.push((settings.name.clone(), report));
    }
    let json = results.iter().map(|(name, report)| {
        let mut value = serde_json::to_value(report)?;
        value["repository"] = name.as_str().into();
        Ok(value)
    });
    let json = json.collect::<Result<Vec<_>, serde_json::Error>>()?;
    context.output.result(&serde_json::json!({ "repositories": json }), || {
        results.iter().map(|(name, report)| text(name, report)).collect()
    })?;
    let has_errors = results.iter().any(|(_, report)| report.has_errors());
    Ok(if has_errors { Exit::Losses } else { Exit::Done })
}

fn budget(text: &str) -> Result<Budget, String> {
    match text.strip_suffix('%') {
        Some(share) => match share.parse() {
            Ok(share @ 1..=100) => Ok(Budget::Share(share)),
            _ => Err("expected a share from 1% to 100%".to_owned()),
        },
        None => Ok(Budget::Bytes(super::positive_size(text)?.get())),
    }
}

fn host() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

/// A repository whose configuration is lost is a finding, as any other damage is.
fn lost_config<'a>(failure: &'a (dyn Error + 'static)) -> Option<&'a RepositoryError> {
    std::iter::successors(Some(failure), |error: &&(dyn Error + 'static)| (*error).source())
        .find_map(|error| error.downcast_ref::<RepositoryError>())
        .filter(|error| error.is_config_lost())
}

fn text(name: &str, report: &VerifyReport) -> String {
    let VerifyReport { snapshots, packs, maps, log_objects, bytes, left, findings } = report;
    let mut text = format!(
        "repository `{name}`: {}, {}, {}, {}, {} read\n",
        table::count(*snapshots, "snapshot"),
        table::count(*packs, "pack"),
        table::count(*maps, "map"),
        table::count(*log_objects, "log object"),
        table::size(*bytes)
    );
    let mut findings: Vec<_> = findings.iter().collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let mut found = Table::bare();
    for finding in &findings {
        let severity = match finding.severity {
            Severity::Error => "ERROR",
            Severity::Note => "note",
        };
        found.row([severity, &finding.object, &finding.problem]);
        for affected in &finding.affects {
            found.row(["", "  affects", affected]);
        }
    }
    text.push_str(&found.text());
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    if let Some(Unread { objects, bytes, oldest }) = left.filter(|left| left.objects > 0) {
        let oldest =
            oldest.map_or_else(|| "some never".to_owned(), |at| format!("the oldest on {}", time::show_seconds(at)));
        text.line(format_args!(
            "not read this time: {}, {}; proved before, {oldest}",
            table::count(objects, "object"),
            table::size(bytes)
        ));
    }
    match (errors, left) {
        (0, Some(_)) => text.push_str("everything is there, and what was read can be read back\n"),
        (0, None) => text.push_str("everything can be read back\n"),
        (errors, _) => text.line(format_args!("ERRORS: {errors}; what was promised cannot all be read back")),
    }
    text
}
