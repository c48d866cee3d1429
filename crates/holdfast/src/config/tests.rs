use std::collections::BTreeSet;

use jiff::SignedDuration;
use proptest::prelude::*;

use super::reference::SETTINGS;
use super::*;

fn parse(content: &str) -> Result<Config, ConfigError> {
    Config::parse("/etc/holdfast/holdfast.toml".into(), content)
}

fn refusal(content: &str) -> (usize, usize, String, String) {
    match parse(content) {
        Err(ConfigError::Invalid { line, column, problem, hint, .. }) => {
            (line, column, problem, hint.unwrap_or_default())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_reference_example_is_valid_and_sets_everything() {
    let config = parse(&reference::example()).unwrap();
    let source = config.source("chat").unwrap();
    assert_eq!((source.repository.as_str(), source.slot.as_str()), ("main", "holdfast_chat"));
    assert_eq!(source.connection.user(), Some("holdfast"));
    let impact = &source.backup.impact;
    assert_eq!((source.backup.parallel, impact.rate_limit), (2, Some(ByteSize::mib(200))));
    assert_eq!((impact.iops_limit, impact.nice), (Some(2000), 10));
    assert_eq!(impact.latency.limit, Limit::Fixed(Duration::from_millis(20)));
    assert!(source.backup.windows.is_some());
    assert_eq!(source.wal.interval, Duration::from_millis(250));
    assert_eq!(source.backup.connection.as_ref().and_then(ConnInfo::user), Some("holdfast"));
    let retention = source.retention.as_ref().unwrap();
    assert_eq!((retention.rules.last, retention.rules.daily), (3, 7));
    assert_eq!(retention.rules.window, Some(SignedDuration::from_hours(14 * 24)));
    let bound = ReplayBound { target: Duration::from_secs(30), rate: ByteSize::mib(64) };
    assert_eq!(source.backup.replay_bound(), Some(bound));
    let repository = config.repository_of("chat").unwrap();
    assert_eq!(repository.recipients.as_ref().map(Vec::len), Some(1));
    assert!(source.spool.is_some() && source.data_directory.is_some() && repository.identity_file.is_some());
}

#[test]
fn backups_are_gentle_and_nothing_bounds_the_replay_unless_told_otherwise() {
    let config = parse("[repository.main]\npath = \"/r\"\n[source.chat]\n").unwrap();
    let backup = &config.source("chat").unwrap().backup;
    assert_eq!((backup.checkpoint, backup.replay_bound()), (StartCheckpoint::Spread, None));
    assert_eq!(config.backup_settings("unknown").replay_rate, ByteSize::mib(32));
}

/// The keys that a table takes, from what serde says when it refuses one.
fn keys_of(table: &str) -> BTreeSet<String> {
    let table = table.replace("NAME", "x");
    let content = format!("[{table}]\n'no such key' = 1\n");
    let error = toml::from_str::<file::ConfigToml>(&content).unwrap_err();
    let keys = error.message().split('`').skip(3).step_by(2).map(str::to_owned).collect();
    assert_ne!(keys, BTreeSet::new(), "{error}");
    keys
}

#[test]
fn every_key_is_in_the_reference_and_every_table_refuses_others() {
    for table in [
        reference::REPOSITORY,
        reference::SOURCE,
        reference::BACKUP,
        reference::WAL,
        reference::RETENTION,
        reference::PLACES,
    ] {
        let mut known = keys_of(table);
        if table == reference::SOURCE {
            for inner in ["backup", "wal", "retention", "places"] {
                assert!(known.remove(inner));
            }
        }
        let documented: BTreeSet<_> =
            SETTINGS.iter().filter(|setting| setting.table == table).map(|setting| setting.key.to_owned()).collect();
        assert_eq!(known, documented, "[{table}]");
    }
}

#[test]
fn refusals_name_the_place_and_help() {
    let repository = "[repository.main]\npath = \"/r\"\n";
    let cases = [
        ("[source.chat.wal]\nintervall = \"1s\"", (4, 1), "unknown key `intervall`", "Did you mean `interval`?"),
        ("[source.chat]\ninterval = \"1s\"", (4, 1), "unknown key `interval`", "belongs into [source.NAME.wal]"),
        ("[sorce.chat]", (3, 2), "unknown key `sorce`", "Did you mean `source`?"),
        ("[source.chat.wal]\ninterval = \"500\"", (4, 12), "not a length of time", "\"500ms\""),
        ("[source.chat.wal]\ninterval = \"2min\"", (4, 12), "from 10ms to 60s", ""),
        ("[source.chat.backup]\nparallel = 0", (4, 12), "0 is not a number from 1 to 256", ""),
        ("[source.chat.backup]\nparallel = \"2\"", (4, 12), "invalid type", ""),
        ("[source.chat.backup]\nrate_limit = \"200 parsecs\"", (4, 14), "is not a size", ""),
        ("[source.chat.backup]\nrate_limit = \"0B\"", (4, 14), "nothing at all", ""),
        ("[source.chat.backup]\ncheckpoint = \"slow\"", (4, 14), "no kind of checkpoint", "\"spread\""),
        ("[source.chat.backup]\nnice = 20", (4, 8), "20 is not a number from 0 to 19", ""),
        ("[source.chat.backup]\nio_class = \"gentle\"", (4, 12), "no I/O class", "\"idle\""),
        ("[source.chat.backup]\nlatency_limit = \"0s\"", (4, 17), "from 0.1ms to 60s", ""),
        (
            "[source.chat.backup]\nlatency_limit = \"off\"\nlatency_query = \"SELECT 1\"",
            (5, 17),
            "needs a limit",
            "latency_limit",
        ),
        ("[source.chat.backup]\nwindows = [\"22-6\"]", (4, 12), "is no window", "\"22:00-06:00\""),
        ("[source.chat.backup]\ntime_zone = \"Mars\"", (4, 13), "no time zone", "IANA"),
        ("[source.chat.backup]\nconnection = \"hast=x\"", (4, 14), "hast", ""),
        ("[source.chat.backup]\nreplay_target = \"30\"", (4, 17), "not a length of time", "unit"),
        ("[source.chat.backup]\nreplay_target = \"0s\"", (4, 17), "from 1s to 24h", ""),
        ("[source.chat.backup]\nreplay_rate = \"0B\"", (4, 15), "nothing at all is replayed", "restore --start"),
        ("[source.chat]\nrepository = \"mian\"", (4, 14), "no [repository.mian]", "Did you mean `main`?"),
        ("[source.chat]\nspool = \"spool\"", (4, 9), "not an absolute path", ""),
        ("[source.chat]\nslot = \"Chat\"", (4, 8), "name of a replication slot", "a-z"),
        ("[source.chat]\nconnection = \"hast=x\"", (4, 14), "hast", ""),
        ("[source.\"a/b\"]", (3, 9), "cannot be the name of a source", "letters"),
        ("[source.chat", (3, 13), "", ""),
    ];
    for (content, place, problem, hint) in cases {
        let (line, column, found, found_hint) = refusal(&format!("{repository}{content}\n"));
        assert_eq!((line, column), place, "{content}: {found}");
        assert!(found.contains(problem) && found_hint.contains(hint), "{content}: {found} / {found_hint}");
    }
    let (line, _, problem, hint) =
        refusal("[repository.a]\npath = \"/a\"\n[repository.b]\npath = \"/b\"\n[source.chat]\n");
    assert_eq!((line, problem.as_str()), (5, "there are several repositories"));
    assert!(hint.contains("repository = "));
    assert!(refusal("[repository.a]\n").2.contains("path"));
}

#[test]
fn sources_that_are_not_configured_are_looked_for_in_the_only_repository() {
    let config = parse("[repository.main]\npath = \"/r\"\n").unwrap();
    assert_eq!(config.repository_of("chat").unwrap().name, "main");
    assert!(matches!(config.repository_of("../x"), Err(ConfigError::SourceName { .. })));
    assert!(matches!(config.source("chat"), Err(ConfigError::NoSuchSource { .. })));
    let config = parse("[repository.a]\npath = \"/a\"\n[repository.b]\npath = \"/b\"\n").unwrap();
    assert!(config.repository_of("chat").is_err());
}

#[test]
fn slots_have_names_that_postgresql_takes() {
    assert_eq!(default_slot("Chat-EU.1"), "holdfast_chat_eu_1");
    assert_eq!(default_slot(&"x".repeat(63)).len(), 63);
}

#[test]
fn the_reference_in_the_documents_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == reference::markdown(), "run `holdfast generate reference > docs/configuration.md`");
}

/// It is a configuration, or shown where it is none.
fn is_answered(content: &str) {
    match parse(content) {
        Ok(config) => assert!(config.sources().all(|source| config.repository(Some(&source.repository)).is_ok())),
        Err(error) => {
            let ConfigError::Invalid { line, .. } = &error else { panic!("{error:?}") };
            assert!(*line <= content.lines().count() + 1, "{error:?}\n{content}");
            assert!(!error.to_string().is_empty());
        }
    }
}

proptest! {
    #[test]
    fn any_text_is_answered(text: String, parts in prop::collection::vec("[a-z_.]{0,9}|[ \\[\\]=\"'\n#0-9{},-]", 0..60)) {
        is_answered(&text);
        is_answered(&parts.concat());
    }

    /// Letters are removed, doubled, or become others; lines change places.
    #[test]
    fn a_damaged_file_is_answered(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<char>(), 0..5u8), 1..6),
    ) {
        let mut text: Vec<char> = reference::example().chars().collect();
        for (at, letter, kind) in changes {
            let at = at.index(text.len().max(1));
            match kind {
                _ if text.is_empty() => text.push(letter),
                0 => text[at] = letter,
                1 => text.insert(at, text[at]),
                2 => drop(text.remove(at)),
                3 => text.truncate(at),
                _ => {
                    let line = text[at..].iter().position(|letter| *letter == '\n').unwrap_or_default();
                    text.rotate_left(at + line);
                }
            }
        }
        is_answered(&text.into_iter().collect::<String>());
    }
}
