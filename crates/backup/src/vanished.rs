//! Files of the base that are gone or shorter, though the log does not say why.
//!
//! What a backup reads is what its directory listing names, so a file that somebody deleted, a tablespace that was not
//! mounted, or a file that lost its end would be missing from the snapshot without a word. The base has them, and whatever
//! the server itself removes or cuts, it logs; what it does not log:
//!
//! * A file grows by pages that hold nothing, and a crash or a failover can take them away again.
//! * A drop that was logged before the base began can be carried out after the base was read. So whoever is suspected is
//!   looked up in the catalogue: what the server does not know is not missed.
//! * Removing a database, files go before the record comes.
//!
//! In the usual case nothing is suspected, and this costs a look at two listings.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_changes::{ChangeMap, Changes};
use holdfast_format::map::RunSource;
use holdfast_pgformat::page::PAGE_SIZE;
use holdfast_pgformat::{Fork, Relation, RelationFile, path};
use holdfast_postgres::client::{Client, Purpose};
use holdfast_repository::Keyring;
use holdfast_runtime::Cancel;

use crate::BackupError;
use crate::audit::{fetch, is_unused};
use crate::base::Base;
use crate::copy::RELSEG_BLOCKS;
use crate::scan::{PGDATA, Scan};
use crate::snapshot::BackupOptions;

/// More are counted, not named.
const NAMED: usize = 10;
/// How long a database may take to be removed, once that is seen.
const DROP_BOUND: Duration = Duration::from_mins(10);
/// How long nobody may be able to connect to one, while none of its files goes.
const STUCK_BOUND: Duration = Duration::from_mins(1);
const ASKING_BOUND: Duration = Duration::from_secs(20);

/// A file that should have more pages than it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Suspect {
    /// As in the snapshot.
    pub name: Vec<u8>,
    pub file: RelationFile,
    /// Pages that it must have, as far as the log says.
    pub must: u32,
    /// Pages that it has; `None` if it is not there.
    pub has: Option<u32>,
}

impl Suspect {
    fn missing_from(&self) -> u32 {
        self.has.unwrap_or(0)
    }

    fn is_short(&self) -> bool {
        self.missing_from() < self.must
    }

    /// What the log says of a further stretch.
    fn excuse(&mut self, map: &ChangeMap) {
        self.must = required(&self.file, self.must, map);
    }
}

/// How many of the pages that a file had in the base must still be there.
fn required(file: &RelationFile, pages: u32, map: &ChangeMap) -> u32 {
    let Some(first) = file.first_block(RELSEG_BLOCKS) else { return 0 };
    match map.changes(file.relation(), Fork::Main) {
        Changes::Everything(_) => 0,
        Changes::Pages { limit, .. } => limit.map_or(pages, |limit| limit.saturating_sub(first).min(pages)),
    }
}

/// Compares what the base had, by name and size, with what is listed now.
pub(crate) fn suspects<'a>(
    base: impl Iterator<Item = (&'a [u8], u64)>,
    listed: &Scan,
    map: &ChangeMap,
) -> Vec<Suspect> {
    let now: HashMap<&[u8], u64> = listed.files.iter().map(|task| (task.name.as_slice(), task.size)).collect();
    // Their main forks are not listed. A base that met one while it was being made has it all the same.
    let unlogged = path::unlogged(listed.files.iter().filter_map(|task| task.relation.as_ref()));
    let in_pages = |bytes: u64| (bytes / PAGE_SIZE as u64) as u32;
    let mut suspects: Vec<Suspect> = base
        .filter_map(|(name, size)| {
            let relative = name.strip_prefix(PGDATA)?.strip_prefix(b"/")?;
            let file = RelationFile::parse(relative)?;
            let is_judged = !file.temporary
                && file.fork == Fork::Main
                && !unlogged.contains(&file.relation())
                && !path::is_of_other_release(relative, &listed.version_directory);
            let has = now.get(name).copied().map(in_pages);
            let suspect = Suspect { name: name.to_vec(), file, must: required(&file, in_pages(size), map), has };
            (is_judged && suspect.is_short()).then_some(suspect)
        })
        .collect();
    suspects.sort_by(|a, b| a.name.cmp(&b.name));
    suspects
}

/// All that it takes to find out what became of the suspects.
pub(crate) struct Inquiry<'a> {
    pub keyring: &'a Keyring,
    pub base: &'a Base,
    pub options: &'a BackupOptions,
    pub data_directory: &'a Path,
    pub listed: &'a Scan,
    pub cancel: &'a Cancel,
}

/// What an inquiry finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vanished {
    /// What cannot be explained, one sentence each.
    pub incidents: Vec<String>,
    /// What cannot be judged before the log since the backup began is there.
    pub unclear: Vec<Suspect>,
}

impl Inquiry<'_> {
    /// `since` is what the log says of the time since this backup began, if that is known.
    pub(crate) async fn run(
        &self,
        mut suspects: Vec<Suspect>,
        since: Option<&ChangeMap>,
    ) -> Result<Vanished, BackupError> {
        let mut unclear = Vec::new();
        if let Some(since) = since {
            for suspect in &mut suspects {
                suspect.excuse(since);
            }
        } else {
            // Only the log could tell that a file was cut. Whether one may be gone the catalogue knows as well.
            unclear.extend(suspects.extract_if(.., |suspect| suspect.has.is_some()));
        }
        let mut missing = Vec::new();
        for suspect in suspects {
            if suspect.is_short() && self.held_something(&suspect).await? {
                missing.push(suspect);
            }
        }
        let mut guilty = Vec::new();
        for (database, suspects) in by_database(missing) {
            // The server may not answer for long, and waiting for a database to go may take longer still.
            tokio::select! {
                found = Box::pin(self.look_up(database, suspects)) => guilty.extend(found?),
                () = self.cancel.cancelled() => self.cancel.check()?,
            }
        }
        guilty.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        Ok(Vanished { incidents: self.say(guilty), unclear })
    }

    /// Whether anything but empty pages lay where there is nothing now.
    async fn held_something(&self, suspect: &Suspect) -> Result<bool, BackupError> {
        let Some((_, runs, map)) = self.base.file(&suspect.name) else { return Ok(false) };
        let page = PAGE_SIZE as u64;
        let (from, to) = (u64::from(suspect.missing_from()) * page, u64::from(suspect.must) * page);
        let mut at = 0;
        let mut last = None;
        for run in runs {
            let part = at.max(from)..(at + run.len).min(to);
            let begin = at;
            at += run.len;
            let RunSource::Frame { frame, at: start } = run.source else { continue };
            if part.is_empty() {
                continue;
            }
            if last.as_ref().is_none_or(|(known, _)| *known != frame) {
                last = match fetch(self.keyring, self.base, (map, frame)).await {
                    Ok(plain) => Some((frame, plain)),
                    // Nothing excuses the file then.
                    Err(BackupError::Repository(error)) if error.is_damage() => return Ok(true),
                    Err(error) => return Err(error),
                };
            }
            let plain = last.as_ref().map_or(&[][..], |(_, plain)| plain.as_slice());
            let within = |bytes: u64| (bytes - begin) as usize + start as usize;
            let held = plain.get(within(part.start)..within(part.end));
            if held.is_none_or(|held| !held.chunks(PAGE_SIZE).all(is_unused)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Those that the catalogue knows, and those of which it cannot be asked; with their names.
    async fn look_up(
        &self,
        database: u32,
        suspects: Vec<Suspect>,
    ) -> Result<Vec<(Suspect, Option<String>)>, BackupError> {
        let named = |suspects: Vec<Suspect>, name: Option<&str>| {
            suspects.into_iter().map(|suspect| (suspect, name.map(str::to_owned))).collect()
        };
        let folders = self.folders_of(database);
        let begun = Instant::now();
        let (mut seen, mut wait) = ((begun, usize::MAX), Duration::from_millis(200));
        loop {
            let known_as = tokio::time::timeout(ASKING_BOUND, self.database(database)).await.ok().flatten();
            let (name, mut is_going) = match known_as {
                // It was dropped.
                Some(None) => return Ok(Vec::new()),
                Some(Some((name, is_going))) => (Some(name), is_going),
                None => (None, false),
            };
            is_going |= suspects.iter().any(|suspect| self.has_lost_its_database(suspect));
            if let Some(name) = name.as_deref().filter(|_| !is_going) {
                let asked = tokio::time::timeout(ASKING_BOUND, self.ask((database != 0).then_some(name), &suspects));
                if let Some(names) = asked.await.ok().flatten() {
                    return Ok(known(&suspects, &names));
                }
            }
            // Nobody can connect to one that is being dropped, and its row is there until the last of its files is gone.
            let left = count_files(&folders);
            if left < seen.1 {
                seen = (Instant::now(), left);
            }
            let (is_over, is_stuck) = (begun.elapsed() > DROP_BOUND, seen.0.elapsed() > STUCK_BOUND);
            if is_over || is_stuck {
                let partly = name.filter(|_| is_going).map(|name| format!("of database {name}, only partly dropped"));
                return Ok(named(suspects, partly.as_deref()));
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(2));
        }
    }

    /// Where the base has files of a database, in all tablespaces.
    fn folders_of(&self, database: u32) -> HashSet<PathBuf> {
        let folder = |name: &[u8]| {
            let relative = name.strip_prefix(PGDATA)?.strip_prefix(b"/")?;
            let (folder, _) = relative.split_at(relative.iter().rposition(|byte| *byte == b'/')?);
            let is_of_it = RelationFile::parse(relative)?.database == database;
            is_of_it.then(|| self.data_directory.join(String::from_utf8_lossy(folder).as_ref()))
        };
        self.base.files().filter_map(|(name, _)| folder(name)).collect()
    }

    /// Removing a database begins with its folders.
    fn has_lost_its_database(&self, suspect: &Suspect) -> bool {
        let Some(slash) = suspect.name.iter().rposition(|byte| *byte == b'/') else { return false };
        let (folder, _) = suspect.name.split_at(slash);
        let name = [folder, b"/PG_VERSION"].concat();
        let relative = name.get(PGDATA.len() + 1..).unwrap_or_default();
        let path = self.data_directory.join(String::from_utf8_lossy(relative).as_ref());
        self.base.file(&name).is_some() && !path.exists()
    }

    /// The name of a database, and whether a drop of it has begun. `None`: could not find out. `Some(None)`: there is no
    /// such database.
    async fn database(&self, database: u32) -> Option<Option<(String, bool)>> {
        if database == 0 {
            // Those of the whole cluster: any will do.
            return Some(Some((String::new(), false)));
        }
        let mut client = Client::connect(&self.options.connection, Purpose::Sql).await.ok()?;
        // DATCONNLIMIT_INVALID_DB of pg_database.h, set since the minor releases of August 2023.
        let sql =
            format!("SELECT datname, datconnlimit = -2 AS going FROM pg_catalog.pg_database WHERE oid = {database}");
        let rows = client.query(&sql).await.ok()?;
        client.close().await;
        match rows.first() {
            Some(row) => Some(Some((row.text("datname").ok()?.to_owned(), row.truth("going").ok()?))),
            None => Some(None),
        }
    }

    /// The names of those that the catalogue of a database knows; `None`: could not find out.
    async fn ask(&self, database: Option<&str>, suspects: &[Suspect]) -> Option<HashMap<Relation, String>> {
        let mut connection = self.options.connection.clone();
        if let Some(database) = database {
            connection = connection.with_dbname(database);
        }
        let mut client = Client::connect(&connection, Purpose::Sql).await.ok()?;
        let relations: HashSet<Relation> = suspects.iter().map(|suspect| suspect.file.relation()).collect();
        let mut names = HashMap::new();
        for relation in relations {
            let sql = format!(
                "SELECT pg_catalog.pg_filenode_relation({}, {})::pg_catalog.regclass::pg_catalog.text AS name",
                relation.tablespace, relation.relfilenode
            );
            let row = client.query_one(&sql).await.ok()?;
            if let Some(name) = row.optional_text("name").ok()? {
                let name = database.map_or_else(|| name.to_owned(), |database| format!("{database}: {name}"));
                names.insert(relation, name);
            }
        }
        client.close().await;
        Some(names)
    }

    fn say(&self, guilty: Vec<(Suspect, Option<String>)>) -> Vec<String> {
        let base = &self.base.summary.id;
        let mut empty: BTreeMap<u32, usize> = BTreeMap::new();
        let mut sentences = Vec::new();
        for (suspect, name) in guilty {
            let tablespace = suspect.file.tablespace;
            if self.is_empty_tablespace(tablespace) {
                *empty.entry(tablespace).or_default() += 1;
                continue;
            }
            let file = String::from_utf8_lossy(&suspect.name);
            let name = name.map(|name| format!(" ({name})")).unwrap_or_default();
            sentences.push(match suspect.has {
                None => format!("{file}{name} is gone since snapshot {base}, and the log does not say why"),
                Some(has) => {
                    let must = suspect.must;
                    format!("{file}{name} has {has} pages of the {must} that snapshot {base} has, and the log does not say why")
                }
            });
        }
        let more = sentences.len().saturating_sub(NAMED);
        sentences.truncate(NAMED);
        if more > 0 {
            sentences.push(format!("and {more} more files are gone or shorter"));
        }
        for (tablespace, files) in empty {
            sentences.push(format!(
                "pg_tblspc/{tablespace} is not there or is empty, and {files} files that snapshot {base} has in it are gone: \
                 is it mounted?"
            ));
        }
        sentences
    }

    fn is_empty_tablespace(&self, tablespace: u32) -> bool {
        let folder = format!("pgdata/pg_tblspc/{tablespace}/").into_bytes();
        let is_linked = |name: &[u8]| name.starts_with(b"pgdata/pg_tblspc/");
        let mut files = self.listed.files.iter().filter(|task| is_linked(&task.name));
        let is_custom =
            !matches!(tablespace, holdfast_pgformat::DEFAULT_TABLESPACE | holdfast_pgformat::GLOBAL_TABLESPACE);
        is_custom && !files.any(|task| task.name.starts_with(&folder) && task.size > 0)
    }
}

/// Fewer and fewer while a database is removed.
fn count_files(folders: &HashSet<PathBuf>) -> usize {
    folders.iter().filter_map(|folder| Some(std::fs::read_dir(folder).ok()?.count())).sum()
}

fn by_database(suspects: Vec<Suspect>) -> BTreeMap<u32, Vec<Suspect>> {
    let mut sorted: BTreeMap<u32, Vec<Suspect>> = BTreeMap::new();
    for suspect in suspects {
        sorted.entry(suspect.file.database).or_default().push(suspect);
    }
    sorted
}

fn known(suspects: &[Suspect], names: &HashMap<Relation, String>) -> Vec<(Suspect, Option<String>)> {
    let known = |suspect: &Suspect| Some((suspect.clone(), Some(names.get(&suspect.file.relation())?.clone())));
    suspects.iter().filter_map(known).collect()
}

#[cfg(test)]
mod tests {
    use holdfast_pgformat::WalDecoder;
    use holdfast_pgformat::path::tablespace_version_directory;
    use holdfast_types::{Lsn, SegmentSize};

    use super::*;
    use crate::scan::FileTask;
    use crate::select::Reading;

    fn listing(files: &[(&str, u64)]) -> Scan {
        let task = |(name, pages): &(&str, u64)| FileTask {
            path: PathBuf::new(),
            name: format!("pgdata/{name}").into_bytes(),
            size: pages * PAGE_SIZE as u64,
            mode: 0o600,
            modified: 0,
            relation: RelationFile::parse(name.as_bytes()),
            reading: Reading::Whole,
        };
        let version_directory = tablespace_version_directory(18, 202_506_291);
        Scan { files: files.iter().map(task).collect(), version_directory, ..Scan::default() }
    }

    fn found(base: &[(&str, u64)], now: &[(&str, u64)], map: &ChangeMap) -> Vec<(String, u32, Option<u32>)> {
        let base = listing(base);
        let base = base.files.iter().map(|task| (task.name.as_slice(), task.size));
        let name = |suspect: &Suspect| String::from_utf8_lossy(&suspect.name).replace("pgdata/", "");
        let suspects = suspects(base, &listing(now), map);
        suspects.iter().map(|suspect| (name(suspect), suspect.must, suspect.has)).collect()
    }

    #[test]
    fn what_is_gone_or_shorter_without_a_word_is_suspected() {
        let space = "pg_tblspc/16400/PG_18_202506291/5/16402";
        let base = [("base/5/1", 10), ("base/5/2", 10), ("base/5/3", 10), (space, 1), ("base/5/3_vm", 4)];
        let now = [("base/5/1", 10), ("base/5/2", 4)];
        let expected =
            [("base/5/2", 10, Some(4)), ("base/5/3", 10, None), (space, 1, None)].map(|(n, m, h)| (n.to_owned(), m, h));
        assert_eq!(found(&base, &now, &ChangeMap::default()), expected);
        assert_eq!(found(&now, &base, &ChangeMap::default()), [], "growing is no loss");
    }

    #[test]
    fn what_a_server_does_by_itself_is_not() {
        // Tombstones of a drop, other forks, temporary relations, unlogged ones, other releases.
        let base = [
            ("base/5/1", 0),
            ("base/5/2_fsm", 3),
            ("base/5/t3_16402", 3),
            ("base/5/4", 3),
            ("pg_tblspc/16400/PG_15_202209061/5/16402", 3),
            ("base/5/PG_VERSION", 1),
        ];
        assert_eq!(found(&base, &[("base/5/4_init", 1)], &ChangeMap::default()), []);
    }

    /// Real log: what it cuts and drops may be gone, what it does not name may not.
    #[test]
    fn the_log_excuses_as_far_as_it_goes() {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../pgformat/tests/fixtures/15/workload.wal");
        let bytes = std::fs::read(fixture).unwrap();
        let start = Lsn::new(u64::from_le_bytes(bytes[8..16].try_into().unwrap()));
        let size = u64::from(u32::from_le_bytes(bytes[32..36].try_into().unwrap()));
        let mut decoder = WalDecoder::new(15, SegmentSize::new(size).unwrap(), start).unwrap();
        let mut map = ChangeMap::default();
        decoder.feed(&bytes, &mut |record| map.note(&record)).ok();
        let mut limits = 0;
        for (relation, fork, limit, _) in map.recorded() {
            let path = format!("base/{}/{}", relation.database, relation.relfilenode);
            let Some(file) = RelationFile::parse(path.as_bytes()).filter(|file| file.relation() == relation) else {
                continue;
            };
            if fork != Fork::Main || matches!(map.changes(relation, fork), Changes::Everything(_)) {
                continue;
            }
            limits += u32::from(limit.is_some());
            assert_eq!(required(&file, 1000, &map), limit.unwrap_or(1000).min(1000));
            let second = RelationFile { segment: 1, ..file };
            assert_eq!(required(&second, 1000, &map), if limit.is_some() { 0 } else { 1000 });
        }
        assert!(limits > 0, "nothing was cut or dropped in that log");
    }
}
