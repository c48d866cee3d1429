//! From the file as written to values that hold.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use holdfast_backup::{Impact, LatencyLimit, Limit, Window, Windows};
use holdfast_policy::{Places, Retention};
use holdfast_postgres::ConnInfo;
use holdfast_postgres::backup_api::StartCheckpoint;
use holdfast_repository::{Names, Recipient};
use holdfast_runtime::IoClass;
use holdfast_store::{Address, Service, SftpPlace};
use holdfast_types::ByteSize;
use jiff::SignedDuration;
use jiff::tz::TimeZone;
use toml::Spanned;

use super::error::Problem;
use super::file::{BackupToml, ConfigToml, PlacesToml, RepositoryToml, RetentionToml, SourceToml, Value, WalToml};
use super::{
    BackupSettings, BucketSettings, Location, RepositorySettings, RetentionSettings, Source, WalSettings, suggest,
};

type Repositories = BTreeMap<String, RepositorySettings>;
type Sources = BTreeMap<String, Source>;

pub(super) fn validate(file: ConfigToml) -> Result<(Repositories, Sources), Problem> {
    let ConfigToml { repository, source } = file;
    let mut repositories = Repositories::new();
    for (name, table) in repository {
        repositories.insert(name.get_ref().clone(), check_repository(name, table)?);
    }
    let mut sources = Sources::new();
    for (name, table) in source {
        sources.insert(name.get_ref().clone(), check_source(name, table, &repositories)?);
    }
    Ok((repositories, sources))
}

fn check_repository(name: Spanned<String>, table: RepositoryToml) -> Result<RepositorySettings, Problem> {
    let location = check_location(&name, &table)?;
    let RepositoryToml { site, identity_file, identity_passphrase_file, recipients, .. } = table;
    let recipients = recipients.map(|all| all.iter().map(parse::<Recipient>).collect()).transpose()?;
    Ok(RepositorySettings {
        name: name.into_inner(),
        location,
        site: site.map(Spanned::into_inner),
        identity_file: identity_file.as_ref().map(absolute).transpose()?,
        identity_passphrase_file: identity_passphrase_file.as_ref().map(absolute).transpose()?,
        recipients,
    })
}

fn check_location(name: &Spanned<String>, table: &RepositoryToml) -> Result<Location, Problem> {
    let RepositoryToml { path, url, endpoint, region, path_style, ca_file, credentials_file, .. } = table;
    let RepositoryToml { ssh_key_file, known_hosts_file, .. } = table;
    let of_ssh = [ssh_key_file, known_hosts_file].into_iter().flatten().map(Spanned::span);
    let text = |value: &Value<String>| value.as_ref().map(|value| value.get_ref().clone());
    match (path, url) {
        (None, None) => Err(Problem::new(name.span(), "it has neither a `path` nor a `url`")
            .with_hint("Write `path = \"/var/lib/holdfast\"`, or `url = \"s3://bucket/prefix\"`.")),
        (Some(_), Some(url)) => Err(Problem::new(url.span(), "it has a `path` already")
            .with_hint("A repository is in a directory or in a bucket; make two of them for two places.")),
        (Some(path), None) => {
            let of_buckets = [endpoint, region, ca_file, credentials_file].into_iter().flatten().map(Spanned::span);
            match of_buckets.chain(path_style.as_ref().map(Spanned::span)).chain(of_ssh).next() {
                Some(span) => Err(Problem::new(span, "this is for a repository with a `url`")),
                None => Ok(Location::Directory(absolute(path)?)),
            }
        }
        (None, Some(url)) if url.get_ref().starts_with("sftp://") => {
            let of_buckets = [endpoint, region, ca_file, credentials_file].into_iter().flatten().map(Spanned::span);
            if let Some(span) = of_buckets.chain(path_style.as_ref().map(Spanned::span)).next() {
                return Err(Problem::new(span, "this is for a bucket"));
            }
            let place = SftpPlace::parse(url.get_ref()).ok_or_else(|| {
                Problem::new(url.span(), "expected an address as in `sftp://user@host:22/srv/holdfast`")
            })?;
            Ok(Location::Sftp(SftpPlace {
                key_file: ssh_key_file.as_ref().map(absolute).transpose()?,
                known_hosts_file: known_hosts_file.as_ref().map(absolute).transpose()?,
                ..place
            }))
        }
        (None, Some(url)) => {
            if let Some(span) = of_ssh.into_iter().next() {
                return Err(Problem::new(span, "this is for sftp:// only"));
            }
            let address = parse::<Address>(url)?;
            if let Some(path_style) = path_style
                && address.service != Service::S3
            {
                return Err(Problem::new(path_style.span(), "this is for s3:// only"));
            }
            if let Some(endpoint) = endpoint
                && !["http://", "https://"].iter().any(|scheme| endpoint.get_ref().starts_with(scheme))
            {
                return Err(Problem::new(endpoint.span(), "an endpoint begins with `https://` or `http://`"));
            }
            Ok(Location::Bucket(BucketSettings {
                address,
                endpoint: text(endpoint),
                region: text(region),
                // Servers of one's own seldom have a name for each bucket.
                path_style: path_style.as_ref().map_or(endpoint.is_some(), |value| *value.get_ref()),
                ca_file: ca_file.as_ref().map(absolute).transpose()?,
                credentials_file: credentials_file.as_ref().map(absolute).transpose()?,
            }))
        }
    }
}

fn check_source(name: Spanned<String>, table: SourceToml, repositories: &Repositories) -> Result<Source, Problem> {
    let SourceToml {
        connection,
        repository,
        copies,
        required,
        data_directory,
        slot,
        spool,
        backup,
        wal,
        retention,
        places,
    } = table;
    if !Names::is_source_name(name.get_ref()) {
        return Err(Problem::new(name.span(), format!("`{}` cannot be the name of a source", name.get_ref()))
            .with_hint("Use 1 to 63 letters, digits, `.`, `-` and `_`, not beginning with `.` or `-`."));
    }
    let retention = retention.map(|table| check_retention(&name, &table)).transpose()?;
    let repository = match repository {
        Some(chosen) => known(chosen, repositories)?,
        None => only_repository(&name, repositories)?,
    };
    let mut all = vec![repository.clone()];
    for copy in copies.unwrap_or_default() {
        let span = copy.span();
        let copy = known(copy, repositories)?;
        if all.contains(&copy) {
            return Err(Problem::new(span, format!("`{copy}` is named twice")));
        }
        all.push(copy);
    }
    let count = all.len();
    let mut must_have = Vec::new();
    for named in required.unwrap_or_default() {
        let span = named.span();
        let named = known(named, repositories)?;
        if !all.contains(&named) {
            return Err(Problem::new(span, format!("`{named}` is not a repository of this source"))
                .with_hint("Name it in `copies` as well."));
        }
        must_have.push(named);
    }
    let slot = match slot {
        Some(slot) => slot_name(&slot)?,
        None => super::default_slot(name.get_ref()),
    };
    let places = places.map(|table| check_places(&table, count)).transpose()?;
    Ok(Source {
        name: name.into_inner(),
        connection: connection.as_ref().map(parse::<ConnInfo>).transpose()?.unwrap_or_default(),
        copies: all.split_off(1),
        required: must_have,
        repository,
        data_directory: data_directory.as_ref().map(absolute).transpose()?,
        slot,
        spool: spool.as_ref().map(absolute).transpose()?,
        backup: check_backup(&backup)?,
        wal: check_wal(&wal)?,
        retention,
        places,
    })
}

fn check_places(table: &PlacesToml, all: usize) -> Result<Places, Problem> {
    let PlacesToml { copies, sites } = table;
    let count = |value: &Value<i64>| Ok::<_, Problem>(number(value.as_ref(), 1..=100)?.unwrap_or(1) as u32);
    let places = Places { copies: count(copies)?, sites: count(sites)? };
    for (value, wanted) in [(copies, places.copies), (sites, places.sites)] {
        if let Some(value) = value.as_ref().filter(|_| wanted as usize > all) {
            return Err(Problem::new(value.span(), format!("the source has only {all} of them"))
                .with_hint("Name more repositories in `copies` of the source."));
        }
    }
    Ok(places)
}

fn check_retention(source: &Spanned<String>, table: &RetentionToml) -> Result<RetentionSettings, Problem> {
    let RetentionToml { last, minimum_verified, within, daily, weekly, monthly, yearly, window, time_zone } = table;
    let count = |value: &Value<i64>| Ok(number(value.as_ref(), 0..=100_000)?.map_or(0, |count| count as u32));
    let time = |value: &Value<String>| value.as_ref().map(long_time).transpose();
    let rules = Retention {
        last: count(last)?,
        within: time(within)?,
        daily: count(daily)?,
        weekly: count(weekly)?,
        monthly: count(monthly)?,
        yearly: count(yearly)?,
        window: time(window)?,
        minimum: count(minimum_verified)?,
    };
    rules.check().map_err(|error| {
        Problem::new(source.span(), format!("[source.{}.retention]: {error}", source.get_ref()))
            .with_hint("Write what is to be kept, as in `last = 3` and `daily = 7`; without the table everything is.")
    })?;
    let zone = match time_zone {
        Some(name) => zone_named(name)?,
        // What a day is must not depend on the host that decides.
        None => TimeZone::UTC,
    };
    Ok(RetentionSettings { rules, zone })
}

/// `36h`, `30d`, `12w`.
fn long_time(value: &Spanned<String>) -> Result<SignedDuration, Problem> {
    let text = value.get_ref();
    let parsed = text.find(|c: char| !c.is_ascii_digit()).and_then(|at| {
        let (digits, unit) = text.split_at(at);
        let hours = match unit {
            "h" => 1,
            "d" => 24,
            "w" => 7 * 24,
            _ => return None,
        };
        let hours: i64 = digits.parse::<u32>().ok().map(|number| i64::from(number) * hours)?;
        (1..=100 * 366 * 24).contains(&hours).then(|| SignedDuration::from_hours(hours))
    });
    parsed.ok_or_else(|| {
        Problem::new(value.span(), format!("`{text}` is not a length of time"))
            .with_hint("Write hours, days or weeks, as in \"36h\", \"30d\" or \"12w\"; at most a hundred years.")
    })
}

fn zone_named(name: &Spanned<String>) -> Result<TimeZone, Problem> {
    TimeZone::get(name.get_ref()).map_err(|_| {
        Problem::new(name.span(), format!("`{}` is no time zone", name.get_ref()))
            .with_hint("Write a name of the IANA database, as in \"Europe/Berlin\" or \"UTC\".")
    })
}

/// The name of a repository that there is.
fn known(chosen: Spanned<String>, repositories: &Repositories) -> Result<String, Problem> {
    if repositories.contains_key(chosen.get_ref()) {
        return Ok(chosen.into_inner());
    }
    let problem = Problem::new(chosen.span(), format!("there is no [repository.{}]", chosen.get_ref()));
    let meant = suggest::nearest(chosen.get_ref(), repositories.keys().map(String::as_str));
    Err(match meant {
        Some(meant) => problem.with_hint(format!("Did you mean `{meant}`?")),
        None => problem,
    })
}

fn only_repository(source: &Spanned<String>, repositories: &Repositories) -> Result<String, Problem> {
    let mut names = repositories.keys();
    match (names.next(), names.next()) {
        (Some(only), None) => Ok(only.clone()),
        (None, _) => Err(Problem::new(source.span(), "the source has no repository to go to")
            .with_hint("Add a table [repository.NAME] with a `path`.")),
        (Some(_), Some(_)) => Err(Problem::new(source.span(), "there are several repositories")
            .with_hint(format!("Add `repository = \"NAME\"` to [source.{}].", source.get_ref()))),
    }
}

fn check_backup(table: &BackupToml) -> Result<BackupSettings, Problem> {
    let default = BackupSettings::default();
    let checkpoint = table.checkpoint.as_ref().map(|value| {
        let choices = [("fast", StartCheckpoint::Fast), ("spread", StartCheckpoint::Spread)];
        choose(value, "kind of checkpoint", &choices)
    });
    let replay_rate =
        some_bytes(table.replay_rate.as_ref(), "nothing at all is replayed", "`restore --start` prints how much is.")?;
    Ok(BackupSettings {
        replay_target: table.replay_target.as_ref().map(check_replay_target).transpose()?,
        replay_rate: replay_rate.unwrap_or(default.replay_rate),
        connection: table.connection.as_ref().map(parse::<ConnInfo>).transpose()?,
        parallel: number(table.parallel.as_ref(), 1..=256)?.map_or(default.parallel, |parallel| parallel as usize),
        impact: check_impact(table, &default.impact)?,
        windows: check_windows(table)?,
        level: number(table.compression_level.as_ref(), 1..=19)?.map_or(default.level, |level| level as i32),
        checkpoint: checkpoint.transpose()?.unwrap_or(default.checkpoint),
    })
}

fn check_impact(table: &BackupToml, default: &Impact) -> Result<Impact, Problem> {
    let rate_limit = some_bytes(table.rate_limit.as_ref(), "nothing at all may be read", "Leave `rate_limit` out.")?;
    let io_class = table.io_class.as_ref().map(|value| {
        let choices = [("normal", IoClass::Normal), ("low", IoClass::Low), ("idle", IoClass::Idle)];
        choose(value, "I/O class", &choices)
    });
    let limit = match &table.latency_limit {
        Some(limit) => parse::<Limit>(limit)?,
        None => default.latency.limit,
    };
    if let Some(query) = &table.latency_query
        && limit == Limit::Off
    {
        return Err(Problem::new(query.span(), "a query for the latency needs a limit")
            .with_hint("Remove `latency_limit = \"off\"`, or the query."));
    }
    let latency = LatencyLimit { limit, query: table.latency_query.as_ref().map(|query| query.get_ref().clone()) };
    Ok(Impact {
        rate_limit,
        iops_limit: number(table.iops_limit.as_ref(), 1..=10_000_000)?.map(|limit| limit as u64),
        nice: number(table.nice.as_ref(), 0..=19)?.map_or(default.nice, |nice| nice as i32),
        io_class: io_class.transpose()?.unwrap_or(default.io_class),
        latency,
    })
}

fn check_windows(table: &BackupToml) -> Result<Option<Windows>, Problem> {
    let named = table.time_zone.as_ref().map(zone_named).transpose()?;
    let Some(written) = &table.windows else { return Ok(None) };
    let Some(first) = written.first() else { return Ok(None) };
    let zone = match named {
        Some(zone) => zone,
        None => TimeZone::try_system().map_err(|error| {
            Problem::new(first.span(), format!("the time zone of this host is not known: {error}"))
                .with_hint("Set `time_zone`, as in \"Europe/Berlin\" or \"UTC\".")
        })?,
    };
    let window = |value: &Spanned<String>| {
        parse::<Window>(value)
            .map_err(|problem| problem.with_hint("Write as in \"22:00-06:00\" or \"Mon-Fri 22:00-06:00\"."))
    };
    let windows: Vec<Window> = written.iter().map(window).collect::<Result<_, _>>()?;
    Ok(Some(Windows::new(windows, zone)))
}

/// One of a few words.
fn choose<T: Copy>(value: &Spanned<String>, kind: &str, choices: &[(&str, T)]) -> Result<T, Problem> {
    let found = choices.iter().find(|(word, _)| word == value.get_ref());
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let words: Vec<_> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        Problem::new(value.span(), format!("`{}` is no {kind}", value.get_ref()))
            .with_hint(format!("Write {}.", words.join(" or ")))
    })
}

fn some_bytes(value: Option<&Spanned<String>>, none: &str, hint: &str) -> Result<Option<ByteSize>, Problem> {
    let Some(value) = value else { return Ok(None) };
    match parse::<ByteSize>(value)? {
        size if size.get() == 0 => Err(Problem::new(value.span(), none).with_hint(hint)),
        size => Ok(Some(size)),
    }
}

fn check_replay_target(value: &Spanned<String>) -> Result<Duration, Problem> {
    let target = duration(value)?;
    if (Duration::from_secs(1)..=Duration::from_hours(24)).contains(&target) {
        Ok(target)
    } else {
        Err(Problem::new(value.span(), "the target must be from 1s to 24h"))
    }
}

fn check_wal(table: &WalToml) -> Result<WalSettings, Problem> {
    let WalToml { interval, synchronous } = table;
    let default = WalSettings::default();
    let interval = match interval {
        None => default.interval,
        Some(value) => {
            let interval = duration(value)?;
            if !(Duration::from_millis(10)..=Duration::from_mins(1)).contains(&interval) {
                return Err(Problem::new(value.span(), "the interval must be from 10ms to 60s"));
            }
            interval
        }
    };
    Ok(WalSettings { interval, synchronous: synchronous.unwrap_or(default.synchronous) })
}

fn parse<T: FromStr<Err: Display>>(value: &Spanned<String>) -> Result<T, Problem> {
    value.get_ref().parse().map_err(|error: T::Err| Problem::new(value.span(), error.to_string()))
}

fn number(value: Option<&Spanned<i64>>, range: RangeInclusive<i64>) -> Result<Option<i64>, Problem> {
    let Some(value) = value else { return Ok(None) };
    let number = *value.get_ref();
    if range.contains(&number) {
        return Ok(Some(number));
    }
    let (low, high) = range.into_inner();
    Err(Problem::new(value.span(), format!("{number} is not a number from {low} to {high}")))
}

fn duration(value: &Spanned<String>) -> Result<Duration, Problem> {
    let parsed = value.get_ref().parse::<SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok());
    parsed.ok_or_else(|| {
        Problem::new(value.span(), format!("`{}` is not a length of time", value.get_ref()))
            .with_hint("Write a number with its unit, as in \"500ms\" or \"1s\".")
    })
}

fn absolute(value: &Spanned<String>) -> Result<PathBuf, Problem> {
    let path = PathBuf::from(value.get_ref());
    if path.is_absolute() {
        Ok(path)
    } else {
        // PostgreSQL runs `wal get` and `wal push` in its data directory, systemd runs services in `/`.
        Err(Problem::new(value.span(), format!("`{}` is not an absolute path", path.display()))
            .with_hint("Write it from the root: commands run in different directories."))
    }
}

fn slot_name(value: &Spanned<String>) -> Result<String, Problem> {
    let name = value.get_ref();
    let fits = (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if fits {
        Ok(name.clone())
    } else {
        Err(Problem::new(value.span(), format!("`{name}` cannot be the name of a replication slot"))
            .with_hint("PostgreSQL allows 1 to 63 of a-z, 0-9 and `_`."))
    }
}
