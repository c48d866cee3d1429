//! Where backups are kept.

use std::path::Path;

use holdfast_repository::{Names, Repository};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, eaccess};

use super::checklist::{Checklist, Entry};
use crate::config::{Location, RepositorySettings, Source};
use crate::context::Context;
use crate::table;

/// Less free space than this deserves a warning.
const SCARCE_PERCENT: u64 = 10;

pub(super) async fn check(
    context: &Context,
    settings: &RepositorySettings,
    checklist: &mut Checklist,
) -> Option<Repository> {
    let name = settings.name.as_str();
    let repository = match context.unpinned(settings).await {
        Ok(repository) => repository,
        Err(error) => {
            checklist.add(Entry::error(name, "repository", error.as_ref()));
            return None;
        }
    };
    let found = format!("{} in {}", repository.id(), repository.location());
    checklist.add(Entry::ok(name, "repository", found));
    if let Some(expected) = &settings.recipients {
        checklist.add(match repository.require_recipients(expected) {
            Ok(()) => Entry::ok(name, "recipients", "as the configuration pins them"),
            Err(error) => Entry::error(name, "recipients", &error),
        });
    }
    if let Location::Directory(path) = &settings.location {
        checklist.add(writable(name, path));
        checklist.add(space(name, "free space", path));
    }
    Some(repository)
}

/// Asks for the right to write, without writing.
fn writable(name: &str, root: &Path) -> Entry {
    let folders =
        ["", Names::CONFIG, Names::KEYS, Names::PACKS, Names::MAPS, Names::SNAPSHOTS, Names::WAL, Names::PIECES];
    let denied = folders.iter().map(|folder| root.join(folder)).filter(|path| path.is_dir()).find_map(|path| {
        let error = eaccess(&path, AccessFlags::W_OK | AccessFlags::X_OK | AccessFlags::R_OK).err()?;
        Some(format!("{} is not writable ({})", path.display(), error.desc()))
    });
    match denied {
        None => Entry::ok(name, "writable", "yes"),
        Some(found) => Entry::fail(name, "writable", found, "Give the directory to the user that runs this."),
    }
}

fn space(of: &str, what: &'static str, path: &Path) -> Entry {
    let hint = "Make room before it is needed.";
    match statvfs(path) {
        Ok(state) => {
            let (free, all) = (state.blocks_available(), state.blocks().max(1));
            let percent = free.saturating_mul(100) / all;
            let found = format!("{} ({percent} %)", table::size(free.saturating_mul(state.fragment_size())));
            if percent < SCARCE_PERCENT { Entry::warning(of, what, found, hint) } else { Entry::ok(of, what, found) }
        }
        Err(error) => Entry::warning(of, what, format!("unknown ({})", error.desc()), hint),
    }
}

pub(super) fn check_spool(source: &Source, checklist: &mut Checklist) {
    let Some(path) = &source.spool else { return };
    // `wal receive` makes it, where it can.
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
    let shown = path.display();
    checklist.add(match eaccess(existing, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) if existing == path => Entry::ok(&source.name, "spool", format!("{shown} is writable")),
        Ok(()) => Entry::ok(&source.name, "spool", format!("{shown} will be made when it is needed")),
        Err(error) => {
            let found = format!("{shown}: {} is not writable ({})", existing.display(), error.desc());
            let hint = "Make the directory and give it to the user that runs `wal receive`.";
            Entry::fail(&source.name, "spool", found, hint)
        }
    });
    if path.is_dir() {
        checklist.add(space(&source.name, "space in the spool", path));
    }
}
