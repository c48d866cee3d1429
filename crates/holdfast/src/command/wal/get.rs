use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use holdfast_pgformat::control::ControlFile;
use holdfast_recovery::{Asked, Follows, GetOptions, GetOutcome, LatestProgress};
use holdfast_repository::{Keyring, Lineage};
use holdfast_types::{Lsn, Segment, Timeline};

use super::prefetch::{self, Ahead};
use crate::context::Context;
use crate::exit::{self, Exit};
use crate::failure::{CommandError, Doing as _, Failure};

const EXAMPLES: &str = "\
Examples:
  holdfast wal get chat 00000001000000000000002A pg_wal/RECOVERYXLOG

In postgresql.conf (`holdfast restore` writes it):
  restore_command = 'holdfast wal get chat %f \"%p\" --partial'

For a standby, which follows every promotion (recovery_target_timeline = 'latest'):
  restore_command = 'holdfast wal get chat %f \"%p\" --partial --timeline latest'";

/// Fetches one file of the log: PostgreSQL's restore_command.
///
/// Exits with 1 only if the repository was asked and has no such file; PostgreSQL then takes the log to end there. All
/// other failures exit with more than 125, which makes PostgreSQL stop: 126 if it could not find out, 127 for wrong usage
/// or configuration.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// The source's name.
    source: String,
    /// The file's name; PostgreSQL's %f.
    file: String,
    /// Where to put it; PostgreSQL's %p.
    destination: PathBuf,
    /// Of a segment that is not whole, serve what there is, filled up with zeros: for recovery to the newest point.
    #[arg(long)]
    partial: bool,
    /// Recovery stops at this position at the latest: a gap in the log behind it is no error.
    #[arg(long, value_name = "LSN")]
    until: Option<Lsn>,
    /// Serve nothing behind --until, as if the log ended there, however far it has grown.
    #[arg(long, requires = "until")]
    cut: bool,
    /// The timeline that recovery follows, or `latest` (as far as the data directory in which this runs tells): of those before it nothing is served from behind where they were
    /// left, and log missing on the way to it is a gap.
    ///
    /// Without it, a segment that goes on behind such a place is an error.
    #[arg(long, value_name = "N")]
    timeline: Option<Followed>,
    /// Which cluster's log: system identifier and segment size in MiB.
    ///
    /// Otherwise that of the data directory that this runs in, as PostgreSQL runs it, or the only one there is.
    #[arg(long, value_name = "SYSID-MIB", value_parser = lineage)]
    lineage: Option<Lineage>,
    /// Keep the next segments on the way to --timeline ready in this directory, which nothing else may use.
    #[arg(long, value_name = "DIR", requires = "timeline")]
    prefetch: Option<PathBuf>,

    /// Read from this one of the source's repositories only. Else all of them have to answer.
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
}

/// As `recovery_target_timeline` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Followed {
    Latest,
    Timeline(u32),
}

impl FromStr for Followed {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        match text.parse() {
            Ok(number) if number > 0 => Ok(Self::Timeline(number)),
            _ => Err("expected a timeline's number, or `latest`"),
        }
    }
}

impl Options {
    /// Takes the file if it was fetched ahead. Recovery waits for this process once for each segment, so this comes before
    /// anything that takes time: the configuration, the repository, and the key, which may take a second to open if a
    /// passphrase protects it.
    pub(crate) fn take(&self) -> bool {
        let ask = |directory| holdfast_recovery::ask(directory, &self.file, &self.destination);
        self.may_be_taken() && self.prefetch.as_deref().map(ask) == Some(Asked::Taken)
    }

    /// What was fetched ahead knows of no cut: a segment that lies behind one, or is cut, must come from the repository.
    fn may_be_taken(&self) -> bool {
        self.lineage.is_some_and(|lineage| {
            segment(&self.file, lineage)
                .is_none_or(|segment| GetOptions::is_before_cut(self.cut, self.until, segment, lineage.segment_size))
        })
    }
}

pub(super) fn lineage(text: &str) -> Result<Lineage, String> {
    text.parse().map_err(|()| "expected a system identifier and a size in MiB, as in 7412345678901234567-16".to_owned())
}

pub(super) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let Options { source, file, destination, partial, until, cut, timeline, lineage, prefetch, repository } = options;
    let follows = match timeline {
        None => Follows::Unknown,
        Some(Followed::Timeline(number)) => Follows::Timeline(Timeline::new(number)),
        // PostgreSQL runs this in the data directory.
        Some(Followed::Latest) => {
            match LatestProgress::of(Path::new(".")).map_err(CommandError::file("read", Path::new("pg_wal")))? {
                Some(progress) => Follows::Latest(progress),
                None => Follows::Unknown,
            }
        }
    };
    if prefetch.is_some() && timeline == Some(Followed::Latest) {
        let problem = "what is fetched ahead is on the way to one timeline";
        return Err(CommandError::usage(problem, "Give --timeline its number, or leave --prefetch out.").into());
    }
    let config = context.config()?;
    // Before this process opens the repository itself, so that both do it at the same time.
    if let (Some(directory), Some(lineage), Some(timeline)) = (&prefetch, lineage, follows.timeline()) {
        let timeline = timeline.get();
        let (config, source, after) = (config.path.as_path(), source.as_str(), file.as_str());
        let repository = repository.as_deref();
        prefetch::start(&Ahead { config, source, directory, lineage, timeline, until, repository, after });
    }
    let (keyring, _) = context.reader(&config, &source, repository.as_deref()).await?;
    let what = || format!("could not find out about {file} of `{source}`");
    let lineage = match lineage {
        Some(lineage) => lineage,
        None => find_lineage(&keyring, &source).await.doing(what)?,
    };
    let get =
        GetOptions { source: source.clone(), lineage, name: file.clone(), destination, partial, until, cut, follows };
    match holdfast_recovery::get(&keyring, &get).await.doing(what)? {
        GetOutcome::Fetched => Ok(Exit::Done),
        GetOutcome::NotFound => {
            tracing::info!(source, file, "the repository has no such file");
            exit::not_found()
        }
        // A misspelt source has no log either, and that must not end a recovery.
        GetOutcome::NoSuchSource => Err(CommandError::NoLog { source_name: source }.into()),
    }
}

/// The lineage of the cluster that is being recovered.
async fn find_lineage(keyring: &Keyring, source: &str) -> Result<Lineage, Failure> {
    match std::fs::read("global/pg_control") {
        Ok(bytes) => {
            let control = ControlFile::parse(&bytes)?;
            return Ok(Lineage { system_id: control.system_id, segment_size: control.wal_segment_size });
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(CommandError::file("read", Path::new("global/pg_control"))(error).into()),
    }
    let lineages = keyring.repository().lineages(source).await?;
    match lineages.as_slice() {
        [only] => Ok(*only),
        [] => Err(CommandError::NoLog { source_name: source.to_owned() }.into()),
        several => {
            let names: Vec<_> = several.iter().map(ToString::to_string).collect();
            let problem = format!("`{source}` has the log of several clusters: {}", names.join(", "));
            Err(CommandError::usage(problem, "Say which with --lineage.").into())
        }
    }
}

/// The segment that a file name stands for.
pub(super) fn segment(file: &str, lineage: Lineage) -> Option<Segment> {
    Segment::parse(file, lineage.segment_size).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_fetched_ahead_is_not_served_behind_a_cut() {
        let options = |file: &str, until: &str| Options {
            source: "chat".to_owned(),
            file: file.to_owned(),
            destination: PathBuf::new(),
            partial: true,
            until: Some(until.parse().unwrap()),
            cut: true,
            timeline: None,
            lineage: Some("7412345678901234567-16".parse().unwrap()),
            prefetch: None,
            repository: None,
        };
        let segment = "000000010000000000000003";
        assert!(options(segment, "0/4000000").may_be_taken());
        assert!(!options(segment, "0/3FFFFFF").may_be_taken());
        assert!(!options(segment, "0/2000000").may_be_taken());
        assert!(Options { cut: false, ..options(segment, "0/2000000") }.may_be_taken());
        assert!(!Options { lineage: None, ..options(segment, "0/4000000") }.may_be_taken());
    }
}
