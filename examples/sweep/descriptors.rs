//! The process's descriptors, asked of the operating system: how many are open, how many may be.
//! It does not ask the pool: what it counts is there to check the pool by.

use std::fs;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rlimit::Resource;
use thiserror::Error;

/// What the sweep of its own fleet runs under when nothing else is asked for: less than the fleet needs.
const DEFAULT_LIMIT: u64 = 256;
const LISTING: &str = if cfg!(target_os = "linux") { "/proc/self/fd" } else { "/dev/fd" };
const SAMPLE_EVERY: Duration = Duration::from_millis(1);

#[derive(Debug, Error)]
pub(crate) enum LimitError {
    #[error(
        "--nofile {nofile} is more than the hard RLIMIT_NOFILE, {hard}: ask for less, or raise it (ulimit -Hn)"
    )]
    AboveHard { nofile: u64, hard: u64 },
    #[error(
        "a soft RLIMIT_NOFILE of {nofile} leaves no descriptor for a connection: {open} are open already"
    )]
    NothingLeft { nofile: u64, open: u64 },
    #[error("cannot set RLIMIT_NOFILE: {0}")]
    Os(#[from] io::Error),
}

/// The soft limit to sweep under, from what was `asked` for and what is set.
pub(crate) fn limit_to_set(asked: Option<u64>, own_fleet: bool) -> Result<u64, LimitError> {
    let (soft, hard) = Resource::NOFILE.get()?;
    match asked {
        Some(nofile) if nofile > hard => Err(LimitError::AboveHard { nofile, hard }),
        Some(nofile) => Ok(nofile),
        None if own_fleet => Ok(soft.min(DEFAULT_LIMIT)),
        None => Ok(soft),
    }
}

pub(crate) fn set_limit(nofile: u64) -> Result<(), LimitError> {
    let open = open()?;
    if nofile <= open {
        return Err(LimitError::NothingLeft { nofile, open });
    }
    let (_, hard) = Resource::NOFILE.get()?;
    Ok(Resource::NOFILE.set(nofile, hard)?)
}

/// How many descriptors are open now; the count itself leaves none open.
pub(crate) fn open() -> io::Result<u64> {
    if cfg!(target_os = "linux") {
        // Linux 6.2 and newer have the count as the directory's size, without opening it.
        let size = fs::metadata(LISTING)?.len();
        if size > 0 {
            return Ok(size);
        }
    }
    let listed = fs::read_dir(LISTING)?.count() as u64;
    Ok(listed.saturating_sub(1)) // the listing's own
}

/// The same without what is open under `/proc`: the C library looks there for a moment when it gives memory back,
/// whatever the program does.
fn lasting() -> io::Result<u64> {
    if cfg!(not(target_os = "linux")) {
        return open();
    }
    let lasts = |entry: &io::Result<fs::DirEntry>| {
        let file = entry.as_ref().ok().and_then(|entry| fs::read_link(entry.path()).ok());
        file.is_some_and(|file| !file.starts_with("/proc"))
    };
    Ok(fs::read_dir(LISTING)?.filter(lasts).count() as u64)
}

/// A thread that counts the open descriptors every millisecond and keeps the greatest count.
#[derive(Debug)]
pub(crate) struct Sampler {
    /// Never sent to: that it is dropped ends the thread.
    running: Sender<()>,
    thread: JoinHandle<u64>,
}

impl Sampler {
    pub(crate) fn start(at_first: u64) -> io::Result<Sampler> {
        let (running, ended) = mpsc::channel();
        let sample = move || {
            let mut peak = at_first;
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(SAMPLE_EVERY) {
                if open().is_ok_and(|open| open > peak) {
                    peak = lasting().map_or(peak, |open| peak.max(open));
                }
            }
            peak
        };
        let thread = thread::Builder::new().name("descriptors".into()).spawn(sample)?;
        Ok(Sampler { running, thread })
    }

    pub(crate) fn finish(self) -> u64 {
        drop(self.running);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_is_counted() {
        let before = open().unwrap();
        let files: Vec<_> = (0..100).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let with_files = open().unwrap();
        assert!((before + 90..before + 110).contains(&with_files), "{before}, then {with_files}");
        drop(files);
    }

    #[test]
    fn what_is_open_under_proc_does_not_last() {
        let least = |count: fn() -> io::Result<u64>| (0..100).map(|_| count().unwrap()).min().unwrap();
        let before = least(lasting);
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/proc/self/status").unwrap()).collect();
        assert!(least(open) >= 50 && least(lasting) < before + 25);
        drop(files);
    }

    #[test]
    fn the_sampler_keeps_the_peak() {
        let sampler = Sampler::start(12_345).unwrap();
        assert_eq!(sampler.finish(), 12_345);
    }
}
