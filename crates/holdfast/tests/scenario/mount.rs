//! Small file systems, to be filled.

use std::path::{Path, PathBuf};

use holdfast_testkit::own;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Uid;

/// Runs a story on a thread that can mount file systems nobody else sees; what it starts sees them too. Without root
/// the story is left out.
pub(crate) fn in_private_namespace(story: impl FnOnce() + Send + 'static) {
    if !Uid::effective().is_root() {
        println!("SKIPPED: mounting a small file system needs root");
        return;
    }
    let told = std::thread::spawn(|| {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
            println!("SKIPPED: no mount namespace can be made here: {error}");
            return;
        }
        // Or else all that is mounted here would be mounted everywhere.
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("our own namespace can be made private");
        story();
    });
    if let Err(panic) = told.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A file system of a few MiB in memory; unmounted when dropped, by the thread that mounted it.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// On a directory that is made.
    pub(crate) fn mount(path: PathBuf, mib: u64) -> Self {
        std::fs::create_dir_all(&path).expect("the directory can be made");
        let disk = Self { path };
        disk.call(mib, MsFlags::empty()).expect("tmpfs can be mounted");
        own(&disk.path);
        disk
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes room, or takes it.
    pub(crate) fn resize(&self, mib: u64) {
        self.call(mib, MsFlags::MS_REMOUNT).expect("tmpfs can be mounted again");
    }

    /// Leaves hardly more room than is in use, which may grow meanwhile.
    pub(crate) fn fill_up(&self) {
        for _ in 0..100 {
            let stat = nix::sys::statvfs::statvfs(&self.path).expect("a file system says what is free");
            let used = (stat.blocks() - stat.blocks_free()) * stat.fragment_size();
            if self.call((used >> 20) + 2, MsFlags::MS_REMOUNT).is_ok() {
                return;
            }
        }
        panic!("{} grows too fast", self.path.display());
    }

    fn call(&self, mib: u64, flags: MsFlags) -> nix::Result<()> {
        let options = format!("size={mib}m,mode=0755");
        mount(Some("tmpfs"), &self.path, Some("tmpfs"), flags, Some(options.as_str()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.path, MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted until the namespace is gone: {error}", self.path.display());
        }
    }
}
