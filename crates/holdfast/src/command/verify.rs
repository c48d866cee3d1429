use std::error::Error;

use clap::Args;
use holdfast_repository::{RepositoryError, Severity, VerifyOptions, VerifyReport, verify};
use holdfast_runtime::Progress;

use crate::config::{RepositorySettings, default_parallel};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::{Doing as _, Failure};
use crate::table::{self, Lines as _, Table};

const EXAMPLES: &str = "\
Examples:
  holdfast verify
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

    /// How many objects are read at once.
    #[arg(long, value_name = "N", value_parser = super::parallel)]
    parallel: Option<usize>,
}

pub(crate) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let config = context.config()?;
    let Options { source, parallel } = options;
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

/// A repository whose configuration is lost is a finding, as any other damage is.
fn lost_config<'a>(failure: &'a (dyn Error + 'static)) -> Option<&'a RepositoryError> {
    std::iter::successors(Some(failure), |error: &&(dyn Error + 'static)| (*error).source())
        .find_map(|error| error.downcast_ref::<RepositoryError>())
        .filter(|error| error.is_config_lost())
}

fn text(name: &str, report: &VerifyReport) -> String {
    let VerifyReport { snapshots, packs, maps, log_objects, bytes, findings } = report;
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
    match errors {
        0 => text.push_str("everything can be read back\n"),
        errors => text.line(format_args!("ERRORS: {errors}; what was promised cannot all be read back")),
    }
    text
}
