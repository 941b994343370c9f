//! The time that idle connections, lifetimes and histories are measured with: the operating system's
//! coarse clock, or tokio's (which tests pause and advance) with the feature `test-util`.
//! The only file that reads a clock, but for the lock that is waited for by one (`sync::short`); timers that wake somebody are tokio's.

use std::time::Duration;

/// A moment, in nanoseconds since some fixed moment of this process. Comparable with itself only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(u64);

impl Tick {
    pub(crate) const NEVER: Tick = Tick(u64::MAX);

    /// Zero if `earlier` is later: two readings of a coarse clock may disagree by a tick.
    #[inline]
    pub(crate) fn since(self, earlier: Tick) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The same in nanoseconds: on the warm path, where a [`Duration`] is a division.
    #[inline]
    pub(crate) fn nanos_since(self, earlier: Tick) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    pub(crate) fn after(self, span: Duration) -> Tick {
        self.after_nanos(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(crate) fn after_nanos(self, nanos: u64) -> Tick {
        Tick(self.0.saturating_add(nanos))
    }

    /// The next moment that is a multiple of `grain`.
    pub(crate) fn round_up(self, grain: Duration) -> Tick {
        let grain = grain.as_nanos() as u64;
        Tick(self.0.div_ceil(grain).saturating_mul(grain))
    }

    /// For histories: wraps every 49 days.
    #[inline]
    pub(crate) fn millis(self) -> u32 {
        (self.0 / 1_000_000) as u32
    }

    #[cfg(test)]
    pub(crate) fn from_millis(millis: u64) -> Tick {
        Tick(millis * 1_000_000)
    }
}

#[cfg(all(target_os = "linux", not(feature = "test-util")))]
pub(crate) use coarse::{now, resolution};
#[cfg(not(all(target_os = "linux", not(feature = "test-util"))))]
pub(crate) use exact::{now, resolution};

/// When a timer is to fire. `None`: not in this life.
#[expect(clippy::disallowed_methods, reason = "the file that reads clocks")]
pub(crate) fn deadline(after: Duration) -> Option<tokio::time::Instant> {
    tokio::time::Instant::now().checked_add(after)
}

/// Now, as timers know it.
#[expect(clippy::disallowed_methods, reason = "the file that reads clocks")]
pub(crate) fn instant() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// The coarse clock, which costs a quarter of the exact one.
#[cfg(all(target_os = "linux", any(test, not(feature = "test-util"))))]
mod coarse {
    use std::sync::LazyLock;
    use std::time::Duration;

    use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};

    use super::Tick;

    #[inline]
    fn nanos(time: Timespec) -> u64 {
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }

    #[inline]
    pub(crate) fn now() -> Tick {
        Tick(nanos(clock_gettime(ClockId::MonotonicCoarse)))
    }

    /// One tick: 4 ms on most kernels, 10 on some.
    pub(crate) fn resolution() -> Duration {
        static RESOLUTION: LazyLock<Duration> =
            LazyLock::new(|| Duration::from_nanos(nanos(clock_getres(ClockId::MonotonicCoarse))));
        *RESOLUTION
    }
}

/// The exact clock: tokio's in tests, the standard one where there is no coarse one.
#[cfg(not(all(target_os = "linux", not(feature = "test-util"))))]
mod exact {
    use std::sync::LazyLock;
    use std::time::Duration;

    #[cfg(not(feature = "test-util"))]
    use std::time::Instant;
    #[cfg(feature = "test-util")]
    use tokio::time::Instant;

    use super::Tick;

    /// Runtimes with a paused clock may be older than the first reading: leave them room below.
    const HEADROOM: u64 = 1 << 60;

    #[expect(clippy::disallowed_methods, reason = "the file that reads clocks")]
    pub(crate) fn now() -> Tick {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        let now = Instant::now();
        let ahead = now.saturating_duration_since(*START).as_nanos() as u64;
        let behind = START.saturating_duration_since(now).as_nanos() as u64;
        Tick(HEADROOM + ahead - behind)
    }

    pub(crate) fn resolution() -> Duration {
        Duration::from_millis(4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_never_negative() {
        let (earlier, later) = (Tick::from_millis(5), Tick::from_millis(7));
        assert_eq!((later.since(earlier), earlier.since(later)), (Duration::from_millis(2), Duration::ZERO));
        assert_eq!(earlier.after(Duration::MAX), Tick::NEVER);
        assert_eq!(later.millis(), 7);
    }

    #[test]
    #[cfg(target_os = "linux")]
    #[expect(clippy::disallowed_methods, reason = "the coarse clock is held against the exact one")]
    fn the_coarse_clock_keeps_time_to_a_tick() {
        let tick = coarse::resolution();
        // From a step of it on, and from a moment before that: however late the step was, it led to within a tick of then.
        let (mut before, stale) = (std::time::Instant::now(), coarse::now());
        let (exact, coarse) = loop {
            let next = std::time::Instant::now();
            let coarse = coarse::now();
            if coarse != stale {
                break (before, coarse);
            }
            before = next;
        };
        assert!(tick >= Duration::from_millis(1) && tick <= Duration::from_millis(10), "{tick:?}");
        while coarse::now().since(coarse) < 3 * tick {
            std::thread::yield_now();
        }
        assert!(exact.elapsed() >= 2 * tick);
    }
}
