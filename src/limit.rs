//! How many slots a process can afford: `RLIMIT_NOFILE`, what is open already, and a reserve.
//! The only file that asks the operating system about descriptors; knows nothing of budgets.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::LimitError;

/// What the operating system says of this process's descriptors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptors {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
    pub(crate) open: usize,
}

impl Descriptors {
    pub(crate) fn measure() -> Result<Self, LimitError> {
        let (soft, hard) = rlimit::Resource::NOFILE.get().map_err(LimitError::read)?;
        Ok(Self { soft, hard, open: open_descriptors().map_err(LimitError::count)? })
    }
}

/// Raises the soft limit to the hard one.
pub(crate) fn raise_soft_limit() -> Result<(), LimitError> {
    rlimit::increase_nofile_limit(u64::MAX).map(drop).map_err(LimitError::raise)
}

/// Slots that all budgets of this process have out.
static COUNTED: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn counted(slots: usize) {
    COUNTED.fetch_add(slots, Ordering::Relaxed);
}

pub(crate) fn uncounted(slots: usize) {
    COUNTED.fetch_sub(slots, Ordering::Relaxed);
}

/// How a budget was sized, to see what has changed since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizing {
    reserve: usize,
    /// Descriptors open then, besides those that are counted.
    pub(crate) foreign: usize,
    /// How often to count at most.
    pub(crate) interval_ms: u64,
}

impl Sizing {
    pub(crate) fn new(reserve: usize, open: usize) -> Self {
        let foreign = open.saturating_sub(COUNTED.load(Ordering::Relaxed));
        // Where the kernel does not tell their number, all of them have to be read.
        let interval_ms = if counting_is_cheap() { 10 } else { 1000 };
        Self { reserve, foreign, interval_ms }
    }

    /// How many descriptors are open that no budget counts, and how many slots that leaves.
    pub(crate) fn measure(&self) -> io::Result<(usize, usize)> {
        let (soft, hard) = rlimit::Resource::NOFILE.get()?;
        // A slot that comes or goes meanwhile makes the rest seem smaller. One that does both between the two loads
        // makes it seem larger, until the next look.
        let before = COUNTED.load(Ordering::Relaxed);
        let open = open_descriptors()?;
        let foreign = open.saturating_sub(before.max(COUNTED.load(Ordering::Relaxed)));
        Ok((foreign, slots(soft, hard, foreign, self.reserve)))
    }
}

#[cfg(target_os = "linux")]
fn counting_is_cheap() -> bool {
    std::fs::metadata("/proc/self/fd").is_ok_and(|directory| directory.len() > 0)
}

#[cfg(not(target_os = "linux"))]
fn counting_is_cheap() -> bool {
    false
}

/// Descriptors to leave to the rest of the process when it did not say: an eighth of the limit, 4 to 64.
pub(crate) fn default_reserve(soft: u64) -> usize {
    (soft / 8).clamp(4, 64) as usize
}

/// The budget for these descriptors: what the soft limit leaves, and never less than one slot.
pub(crate) fn slots(soft: u64, hard: u64, open: usize, reserve: usize) -> usize {
    let ceiling = usize::try_from(soft.min(hard)).unwrap_or(usize::MAX);
    ceiling.saturating_sub(open).saturating_sub(reserve).max(1)
}

/// How many descriptors this process has open now.
#[cfg(target_os = "linux")]
pub(crate) fn open_descriptors() -> io::Result<usize> {
    // Since Linux 6.2 the size of this directory is its number of entries; before, it was 0.
    match std::fs::metadata("/proc/self/fd")?.len() {
        0 => count_entries("/proc/self/fd"),
        open => Ok(usize::try_from(open).unwrap_or(usize::MAX)),
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn open_descriptors() -> io::Result<usize> {
    count_entries("/dev/fd")
}

fn count_entries(directory: &str) -> io::Result<usize> {
    let entries = std::fs::read_dir(directory)?.count();
    Ok(entries.saturating_sub(1)) // reading it took one
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizing_is_right_for_small_usual_and_absurd_limits() {
        let table = [
            // soft, hard, open, slots with the default reserve
            (0, 0, 9, 1),
            (20, 20_000, 9, 7),
            (49, 20_000, 9, 34),
            (49, 20_000, 49, 1),
            (64, 20_000, 9, 47),
            (256, 20_000, 9, 215),
            (1024, 20_000, 9, 951),
            (20_000, 20_000, 9, 19_927),
            (1_073_741_816, 1_073_741_816, 9, 1_073_741_743),
            (u64::MAX, u64::MAX, 9, usize::MAX - 73),
            (u64::MAX, 1024, 9, 951),
        ];
        for (soft, hard, open, expected) in table {
            let reserve = default_reserve(soft.min(hard));
            assert_eq!(slots(soft, hard, open, reserve), expected, "soft {soft}, hard {hard}, open {open}");
        }
    }

    #[test]
    fn sizing_never_underflows_and_never_yields_nothing() {
        for soft in [0, 1, 20, 49, 64, 256, u64::MAX] {
            for open in [0, 1, 48, 49, 50, usize::MAX] {
                for reserve in [0, 1, 64, usize::MAX] {
                    assert!(slots(soft, soft, open, reserve) >= 1);
                }
            }
        }
    }

    #[test]
    fn both_ways_of_counting_agree() {
        // Other tests of this process open and close descriptors meanwhile: ask until two readings agree.
        let agreed = (0..1000).any(|_| {
            open_descriptors().expect("countable") == count_entries("/proc/self/fd").expect("readable")
        });
        assert!(agreed);
    }
}
