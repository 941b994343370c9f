//! The idle connections of one address: newest out first, oldest given up first; and what ends a
//! connection's life. Pure: takes the time, owns no clock and no lock.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Tick;

/// What a connection's life is measured by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) born: Tick,
    /// Its lifetime's end, jittered at birth.
    pub(crate) dies: Tick,
    /// Since when it rests; while it is in use, until when it rested last.
    pub(crate) rested: Tick,
    pub(crate) uses: usize,
    /// Of the resource, when its dial began.
    pub(crate) generation: u64,
}

/// Why a healthy connection is not reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Idle,
    Lifetime,
    Uses,
}

impl Record {
    #[inline]
    pub(crate) fn idle_for(&self, now: Tick) -> Duration {
        now.since(self.rested)
    }

    /// Whether it may be given out: asked for idle ones.
    #[inline]
    pub(crate) fn idle_end(&self, now: Tick, idle_timeout: Duration) -> Option<Ended> {
        if self.idle_for(now) > idle_timeout {
            Some(Ended::Idle)
        } else if now >= self.dies {
            Some(Ended::Lifetime)
        } else {
            None
        }
    }

    /// Whether it may be put: asked after each use.
    #[inline]
    pub(crate) fn put_end(&self, now: Tick, max_uses: usize) -> Option<Ended> {
        if now >= self.dies {
            Some(Ended::Lifetime)
        } else if self.uses >= max_uses {
            Some(Ended::Uses)
        } else {
            None
        }
    }
}

/// A lifetime of `max`, or up to a tenth less: connections that were born together do not die together.
/// `random` is any number.
pub(crate) fn jittered(max: Duration, random: u64) -> Duration {
    let tenth = u64::try_from((max / 10).as_nanos()).unwrap_or(u64::MAX);
    max - Duration::from_nanos(random % tenth.max(1))
}

/// What can lie in a freelist.
pub(crate) trait Resting {
    fn since(&self) -> Tick;
}

/// Sorted by since when they rest, the newest last.
#[derive(Debug)]
pub(crate) struct Freelist<E>(VecDeque<E>);

impl<E: Resting> Freelist<E> {
    pub(crate) const fn new() -> Self {
        Self(VecDeque::new())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    #[inline]
    pub(crate) fn put(&mut self, entry: E) {
        match self.0.back() {
            // One that comes back without having been used.
            Some(last) if last.since() > entry.since() => {
                let index = self.0.partition_point(|other| other.since() <= entry.since());
                self.0.insert(index, entry);
            }
            _ => self.0.push_back(entry),
        }
    }

    #[inline]
    pub(crate) fn take_newest(&mut self) -> Option<E> {
        self.0.pop_back()
    }

    pub(crate) fn take_oldest(&mut self) -> Option<E> {
        self.0.pop_front()
    }

    #[inline]
    pub(crate) fn oldest_since(&self) -> Option<Tick> {
        self.0.front().map(Resting::since)
    }

    pub(crate) fn take_all(&mut self) -> VecDeque<E> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Resting for (u64, &'static str) {
        fn since(&self) -> Tick {
            Tick::from_millis(self.0)
        }
    }

    fn record(uses: usize) -> Record {
        let at = Tick::from_millis;
        Record { born: at(0), dies: at(1000), rested: at(500), uses, generation: 0 }
    }

    #[test]
    fn newest_out_first_and_oldest_given_up_first() {
        let mut list = Freelist::new();
        for entry in [(1, "a"), (2, "b"), (2, "c"), (3, "d")] {
            list.put(entry);
        }
        assert_eq!(list.oldest_since(), Some(Tick::from_millis(1)));
        assert_eq!(list.take_newest(), Some((3, "d")));
        assert_eq!(list.take_oldest(), Some((1, "a")));
        list.put((1, "a"));
        assert_eq!(list.take_oldest(), Some((1, "a")), "goes back to where it was");
        assert_eq!(list.take_all(), [(2, "b"), (2, "c")]);
        assert_eq!((list.len(), list.take_newest(), list.oldest_since()), (0, None, None));
    }

    #[test]
    fn idle_ones_end_by_idleness_and_age() {
        let idle = Duration::from_millis(100);
        assert_eq!(record(0).idle_end(Tick::from_millis(600), idle), None);
        assert_eq!(record(0).idle_end(Tick::from_millis(601), idle), Some(Ended::Idle));
        assert_eq!(record(0).idle_end(Tick::from_millis(999), Duration::MAX), None);
        assert_eq!(record(0).idle_end(Tick::from_millis(1000), Duration::MAX), Some(Ended::Lifetime));
        assert_eq!(record(0).idle_end(Tick::from_millis(400), idle), None, "a clock a tick behind");
    }

    #[test]
    fn used_ones_end_by_age_and_uses() {
        assert_eq!(record(2).put_end(Tick::from_millis(999), 3), None);
        assert_eq!(record(3).put_end(Tick::from_millis(999), 3), Some(Ended::Uses));
        assert_eq!(record(0).put_end(Tick::from_millis(1000), 3), Some(Ended::Lifetime));
    }

    #[test]
    fn jitter_takes_at_most_a_tenth_and_never_adds() {
        for max in [Duration::ZERO, Duration::from_nanos(9), Duration::from_secs(1800), Duration::MAX] {
            for random in [0, 1, 12_345_678_901, u64::MAX] {
                let life = jittered(max, random);
                assert!(life <= max && life >= max - max / 10, "{max:?}: {life:?}");
            }
        }
    }
}
