//! The process's descriptors in a test's hands: it is alone with them, says how many there are, and uses them up.
#![allow(dead_code, unreachable_pub, reason = "every test binary uses a part of it")]

use std::fs::{self, File};
use std::sync::Mutex;

use rlimit::Resource;

/// Runs a test while no other of this process does, its runtime's making included.
pub fn alone(test: impl Future<Output = ()>) {
    static PROCESS: Mutex<()> = Mutex::new(());
    let _alone = PROCESS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

/// How many descriptors the process has open.
pub fn open() -> usize {
    // The directory's size, since Linux 6.2; before, it was 0.
    match fs::metadata("/proc/self/fd").expect("Linux").len() {
        0 => fs::read_dir("/proc/self/fd").expect("a descriptor to count with").count() - 1, // reading it takes one
        open => open as usize,
    }
}

/// The process's soft limit as a test wants it, until this is dropped.
pub struct SoftLimit(u64);

impl SoftLimit {
    /// Room for so many descriptors more than are open now, whatever this process was started with.
    pub fn leaving(free: u64) -> Self {
        let (soft, hard) = Resource::NOFILE.get().unwrap();
        Resource::NOFILE.set(open() as u64 + free, hard).unwrap();
        Self(soft)
    }
}

impl Drop for SoftLimit {
    fn drop(&mut self) {
        let (_, hard) = Resource::NOFILE.get().unwrap();
        Resource::NOFILE.set(self.0, hard).unwrap();
    }
}

/// All descriptors the process may have but a few are open, until this is dropped.
pub struct Filled {
    // Closed first.
    _files: Vec<File>,
    _limit: SoftLimit,
}

impl Filled {
    pub fn leaving(free: usize) -> Self {
        let limit = SoftLimit::leaving(128);
        let mut files = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            files.push(file);
        }
        files.truncate(files.len() - free);
        Self { _files: files, _limit: limit }
    }
}
