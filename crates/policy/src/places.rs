//! Whether everything is in as many places as was promised.

use std::collections::{BTreeSet, HashSet};

use holdfast_types::{Lsn, SnapshotId, Timeline};
use serde::Serialize;

/// In how many places everything has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Repositories.
    pub copies: u32,
    /// Different sites among them.
    pub sites: u32,
}

/// What a repository has of a source. One that cannot be asked has nothing, as far as anybody knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    pub repository: String,
    pub site: String,
    pub snapshots: BTreeSet<SnapshotId>,
    /// Where the log ends, without a gap since its newest snapshot.
    pub log: Option<(Timeline, Lsn)>,
}

/// Something that is in fewer places than it has to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shortfall {
    pub snapshot: SnapshotId,
    /// Where it is.
    pub repositories: Vec<String>,
    pub sites: usize,
}

/// How far the log is where it was promised to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LogPlaces {
    /// Where the newest log of all ends.
    pub newest: (Timeline, Lsn),
    /// What is in enough places; `None`: nothing.
    pub kept: Option<(Timeline, Lsn)>,
}

impl LogPlaces {
    /// How much of the newest log is in too few places; `None`: more than can be said in bytes.
    pub fn behind(&self) -> Option<u64> {
        let (timeline, end) = self.newest;
        self.kept.filter(|(kept, _)| *kept == timeline).map(|(_, kept)| end.bytes_since(kept))
    }
}

impl Places {
    fn is_kept(self, holders: &[&Holding]) -> bool {
        let sites: HashSet<&str> = holders.iter().map(|holding| holding.site.as_str()).collect();
        holders.len() >= self.copies as usize && sites.len() >= self.sites as usize
    }

    /// The snapshots that are in too few places, the newest first.
    pub fn shortfalls(self, holdings: &[Holding]) -> Vec<Shortfall> {
        let all: BTreeSet<&SnapshotId> = holdings.iter().flat_map(|holding| &holding.snapshots).collect();
        let mut found = Vec::new();
        for snapshot in all.into_iter().rev() {
            let holders: Vec<&Holding> = holdings.iter().filter(|at| at.snapshots.contains(snapshot)).collect();
            if !self.is_kept(&holders) {
                found.push(Shortfall {
                    snapshot: snapshot.clone(),
                    repositories: holders.iter().map(|holding| holding.repository.clone()).collect(),
                    sites: holders.iter().map(|holding| &holding.site).collect::<BTreeSet<_>>().len(),
                });
            }
        }
        found
    }

    /// `None`: there is no log at all.
    pub fn log(self, holdings: &[Holding]) -> Option<LogPlaces> {
        let mut sorted: Vec<((Timeline, Lsn), &Holding)> =
            holdings.iter().filter_map(|holding| Some((holding.log?, holding))).collect();
        sorted.sort_by_key(|(end, _)| std::cmp::Reverse(*end));
        let newest = sorted.first()?.0;
        // As far as the last one needed has it, all before it have it, too.
        let kept = (1..=sorted.len()).find_map(|count| {
            let holders: Vec<&Holding> = sorted.iter().take(count).map(|(_, holding)| *holding).collect();
            self.is_kept(&holders).then(|| sorted.get(count - 1).map(|(end, _)| *end)).flatten()
        });
        Some(LogPlaces { newest, kept })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> SnapshotId {
        SnapshotId::new("20261121T101500Z", [number; 4]).unwrap()
    }

    fn holding(repository: &str, site: &str, snapshots: &[u8], log: u64) -> Holding {
        Holding {
            repository: repository.to_owned(),
            site: site.to_owned(),
            snapshots: snapshots.iter().map(|number| id(*number)).collect(),
            log: (log > 0).then(|| (Timeline::FIRST, Lsn::new(log))),
        }
    }

    #[test]
    fn copies_and_sites_count() {
        let all = [holding("a", "fra", &[1, 2], 100), holding("b", "fra", &[1, 2], 90), holding("c", "ams", &[1], 50)];
        let places = Places { copies: 2, sites: 2 };
        let short = places.shortfalls(&all);
        assert_eq!(short.len(), 1);
        assert_eq!((&short[0].snapshot, short[0].sites), (&id(2), 1));
        assert_eq!(short[0].repositories, ["a", "b"]);
        let log = places.log(&all).unwrap();
        assert_eq!(log.kept, Some((Timeline::FIRST, Lsn::new(50))));
        assert_eq!(log.behind(), Some(50));
        assert_eq!(Places { copies: 2, sites: 1 }.log(&all).unwrap().behind(), Some(10));
        assert_eq!(Places { copies: 4, sites: 1 }.log(&all).unwrap().kept, None);
        assert_eq!(places.log(&[]), None);
    }

    proptest! {
        /// By the definition: enough of those who have it, for each thing.
        #[test]
        fn nothing_is_passed_over(
            holders in prop::collection::vec((0u8..3, prop::collection::btree_set(0u8..6, 0..6), 0u64..9), 0..5),
            copies in 1u32..4,
            sites in 1u32..4,
        ) {
            let all: Vec<Holding> = holders.iter().enumerate().map(|(number, (site, snapshots, log))| {
                let snapshots: Vec<u8> = snapshots.iter().copied().collect();
                holding(&format!("r{number}"), &format!("s{site}"), &snapshots, *log)
            }).collect();
            let places = Places { copies, sites };
            let enough = |has: &dyn Fn(&Holding) -> bool| {
                let holders: Vec<&Holding> = all.iter().filter(|at| has(at)).collect();
                let sites_of: BTreeSet<&String> = holders.iter().map(|at| &at.site).collect();
                holders.len() >= copies as usize && sites_of.len() >= sites as usize
            };
            let short: Vec<SnapshotId> = places.shortfalls(&all).into_iter().map(|short| short.snapshot).collect();
            for number in 0..6 {
                let is_somewhere = all.iter().any(|at| at.snapshots.contains(&id(number)));
                let is_short = is_somewhere && !enough(&|at| at.snapshots.contains(&id(number)));
                prop_assert_eq!(short.contains(&id(number)), is_short);
            }
            if let Some(log) = places.log(&all) {
                for position in 1..9 {
                    let at = (Timeline::FIRST, Lsn::new(position));
                    let is_kept = log.kept.is_some_and(|kept| at <= kept);
                    prop_assert_eq!(is_kept, enough(&|holding| holding.log.is_some_and(|end| at <= end)));
                }
            }
        }
    }
}
