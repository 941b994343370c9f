//! The idle connections of one address: newest out first, oldest given up first; and what ends a
//! connection's life. Pure: takes the time, owns no clock and no lock.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Tick;
use crate::stats::Event;

/// What a connection's life is measured by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) born: Tick,
    /// Its lifetime's end, jittered at birth.
    pub(crate) dies: Tick,
    /// Since when it rests; while it is in use, until when it rested last.
    pub(crate) rested: Tick,
    pub(crate) uses: u32,
    /// Of the resource, when its dial began.
    pub(crate) generation: u32,
}

/// Why a healthy connection is not reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Idle,
    Lifetime,
    Uses,
}

impl Ended {
    pub(crate) fn event(self) -> Event {
        match self {
            Ended::Idle | Ended::Lifetime => Event::Expired,
            Ended::Uses => Event::Retired,
        }
    }
}

impl Record {
    #[inline]
    pub(crate) fn idle_for(&self, now: Tick) -> Duration {
        now.since(self.rested)
    }

    /// Whether it may be given out: asked for idle ones.
    #[inline]
    pub(crate) fn idle_end(&self, now: Tick, idle_timeout_ns: u64) -> Option<Ended> {
        if now.nanos_since(self.rested) > idle_timeout_ns {
            Some(Ended::Idle)
        } else if now >= self.dies {
            Some(Ended::Lifetime)
        } else {
            None
        }
    }

    /// Whether it may rest again: asked after each use.
    #[inline]
    pub(crate) fn put_end(&self, max_uses: u32) -> Option<Ended> {
        if self.rested >= self.dies {
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
pub(crate) fn jittered(max_ns: u64, random: u64) -> u64 {
    max_ns - random % (max_ns / 10).max(1)
}

/// What can lie in a freelist.
pub(crate) trait Resting {
    fn record(&self) -> &Record;

    fn since(&self) -> Tick {
        self.record().rested
    }
}

/// Sorted by since when they rest. Most addresses have one idle connection or none: that costs no more room than itself.
/// What those use is first.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Freelist<E> {
    newest: Option<E>,
    len: u32,
    /// How often something has come to rest, so that a search knows whether it missed any: counted by who puts it.
    pub(crate) rests: u32,
    /// The newest last. Empty if there is no newest.
    #[expect(clippy::box_collection, reason = "few addresses have any, and all would keep three words more")]
    older: Option<Box<VecDeque<E>>>,
}

impl<E> Default for Freelist<E> {
    fn default() -> Self {
        Self { newest: None, older: None, len: 0, rests: 0 }
    }
}

impl<E: Resting> Freelist<E> {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    #[inline]
    pub(crate) fn put(&mut self, entry: E) {
        self.len += 1;
        match self.newest.take() {
            None => self.newest = Some(entry),
            Some(newest) => self.put_beside(newest, entry),
        }
    }

    fn put_beside(&mut self, newest: E, entry: E) {
        let older = self.older.get_or_insert_default();
        if newest.since() <= entry.since() {
            older.push_back(newest);
            self.newest = Some(entry);
        } else {
            // One that comes back without having been used.
            let index = older.partition_point(|other| other.since() <= entry.since());
            older.insert(index, entry);
            self.newest = Some(newest);
        }
    }

    #[inline]
    pub(crate) fn take_newest(&mut self) -> Option<E> {
        let newest = self.newest.take()?;
        self.len -= 1;
        if self.len > 0 {
            self.newest = self.older.as_mut().and_then(|older| older.pop_back());
        }
        Some(newest)
    }

    pub(crate) fn take_oldest(&mut self) -> Option<E> {
        let oldest = self.older.as_mut().and_then(|older| older.pop_front()).or_else(|| self.newest.take());
        self.len -= u32::from(oldest.is_some());
        oldest
    }

    /// The oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &E> {
        self.older.iter().flat_map(|older| older.iter()).chain(&self.newest)
    }

    #[inline]
    pub(crate) fn oldest_since(&self) -> Option<Tick> {
        self.iter().next().map(Resting::since)
    }

    /// Takes out those whose time is over: the too old, and the oldest of those that rest for too long, but not so
    /// many of these that fewer than `stock` are left.
    pub(crate) fn take_ended(&mut self, now: Tick, idle_timeout: Duration, stock: usize) -> Vec<E> {
        let mut ended = self.take_where(usize::MAX, |entry| now >= entry.record().dies);
        while self.len() > stock
            && self.iter().next().is_some_and(|oldest| oldest.record().idle_for(now) > idle_timeout)
        {
            ended.extend(self.take_oldest());
        }
        ended
    }

    /// When [`take_ended`](Self::take_ended) finds the next.
    pub(crate) fn next_end(&self, idle_timeout: Duration, stock: usize) -> Option<Tick> {
        let oldest = self.iter().next().filter(|_| self.len() > stock);
        let idle_end = oldest.map(|oldest| oldest.since().after(idle_timeout));
        let deaths = self.iter().map(|entry| entry.record().dies);
        deaths.chain(idle_end).min().filter(|end| *end != Tick::NEVER)
    }

    /// Takes some out, the oldest first.
    pub(crate) fn take_where(&mut self, at_most: usize, of: impl Fn(&E) -> bool) -> Vec<E> {
        let mut out = Vec::new();
        let mut index = 0;
        while out.len() < at_most
            && let Some(entry) = self.at(index)
        {
            if of(entry) {
                out.extend(self.remove(index));
            } else {
                index += 1;
            }
        }
        out
    }

    /// By its place, of which the oldest has the first.
    fn at(&self, index: usize) -> Option<&E> {
        let older = self.older.as_ref().and_then(|older| older.get(index));
        older.or_else(|| self.newest.as_ref().filter(|_| index + 1 == self.len()))
    }

    fn remove(&mut self, index: usize) -> Option<E> {
        if index + 1 == self.len() {
            return self.take_newest();
        }
        let removed = self.older.as_mut().and_then(|older| older.remove(index));
        self.len -= u32::from(removed.is_some());
        removed
    }

    /// The oldest first.
    pub(crate) fn take_all(&mut self) -> VecDeque<E> {
        let mut all = self.older.take().map_or_else(VecDeque::new, |older| *older);
        all.extend(self.newest.take());
        self.len = 0;
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rests since, and its name.
    #[derive(Debug)]
    struct Named(Record, &'static str);

    impl Resting for Named {
        fn record(&self) -> &Record {
            &self.0
        }
    }

    impl PartialEq<(u64, &str)> for Named {
        fn eq(&self, other: &(u64, &str)) -> bool {
            (self.0.rested, self.1) == (Tick::from_millis(other.0), other.1)
        }
    }

    fn named((since, name): (u64, &'static str)) -> Named {
        Named(Record { rested: Tick::from_millis(since), ..record(0) }, name)
    }

    fn names(list: &[Named]) -> Vec<&'static str> {
        list.iter().map(|named| named.1).collect()
    }

    fn record(uses: u32) -> Record {
        let at = Tick::from_millis;
        Record { born: at(0), dies: at(1000), rested: at(500), uses, generation: 0 }
    }

    #[test]
    fn newest_out_first_and_oldest_given_up_first() {
        let mut list = Freelist::default();
        for entry in [(1, "a"), (2, "b"), (2, "c"), (3, "d")] {
            list.put(named(entry));
        }
        assert_eq!(list.oldest_since(), Some(Tick::from_millis(1)));
        assert_eq!(list.take_newest().unwrap(), (3, "d"));
        assert_eq!(list.take_oldest().unwrap(), (1, "a"));
        list.put(named((1, "a")));
        assert_eq!(list.take_oldest().unwrap(), (1, "a"), "goes back to where it was");
        assert_eq!(names(&list.take_all().into_iter().collect::<Vec<_>>()), ["b", "c"]);
        assert!(list.len() == 0 && list.take_newest().is_none() && list.oldest_since().is_none());
    }

    #[test]
    fn those_whose_time_is_over_go_and_a_stock_stays() {
        let at = Tick::from_millis;
        let idle = Duration::from_millis(100);
        let list = |dies: [u64; 4]| {
            let mut list = Freelist::default();
            for (entry, dies) in [(1, "a"), (2, "b"), (50, "c"), (60, "d")].into_iter().zip(dies) {
                let mut entry = named(entry);
                entry.0.dies = at(dies);
                list.put(entry);
            }
            list
        };
        let mut young = list([1000; 4]);
        assert_eq!(young.next_end(idle, 0), Some(at(101)));
        assert!(young.take_ended(at(101), idle, 0).is_empty(), "a moment later");
        assert_eq!(names(&young.take_ended(at(120), idle, 0)), ["a", "b"]);
        assert_eq!(young.next_end(idle, 0), Some(at(150)));
        assert_eq!(young.next_end(idle, 2), Some(at(1000)), "the stock only dies of age");
        assert!(young.take_ended(at(900), idle, 2).is_empty());
        assert_eq!(names(&young.take_ended(at(900), idle, 1)), ["c"]);
        assert_eq!(names(&young.take_ended(at(1000), idle, 1)), ["d"]);
        assert_eq!(young.next_end(idle, 0), None);
        let mut some = list([1000; 4]);
        assert_eq!(names(&some.take_where(2, |entry| entry.1 != "b")), ["a", "c"], "as many as asked for");
        assert_eq!(names(&some.take_where(2, |entry| entry.1 == "d")), ["d"], "the newest, too");
        assert_eq!((some.len(), some.take_newest().unwrap().1), (1, "b"));
        let mut old = list([1000, 70, 1000, 65]);
        assert_eq!(old.next_end(idle, 0), Some(at(65)));
        assert_eq!(names(&old.take_ended(at(120), idle, 0)), ["b", "d", "a"], "each once");
    }

    #[test]
    fn idle_ones_end_by_idleness_and_age() {
        let idle = 100_000_000;
        assert_eq!(record(0).idle_end(Tick::from_millis(600), idle), None);
        assert_eq!(record(0).idle_end(Tick::from_millis(601), idle), Some(Ended::Idle));
        assert_eq!(record(0).idle_end(Tick::from_millis(999), u64::MAX), None);
        assert_eq!(record(0).idle_end(Tick::from_millis(1000), u64::MAX), Some(Ended::Lifetime));
        assert_eq!(record(0).idle_end(Tick::from_millis(400), idle), None, "a clock a tick behind");
    }

    #[test]
    fn used_ones_end_by_age_and_uses() {
        let put = |uses, millis| Record { rested: Tick::from_millis(millis), ..record(uses) }.put_end(3);
        assert_eq!(put(2, 999), None);
        assert_eq!(put(3, 999), Some(Ended::Uses));
        assert_eq!(put(0, 1000), Some(Ended::Lifetime));
    }

    #[test]
    fn jitter_takes_at_most_a_tenth_and_never_adds() {
        for max in [0, 9, 1_800_000_000_000, u64::MAX] {
            for random in [0, 1, 12_345_678_901, u64::MAX] {
                let life = jittered(max, random);
                assert!(life <= max && life >= max - max / 10, "{max:?}: {life:?}");
            }
        }
    }
}
