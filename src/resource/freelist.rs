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
    pub(crate) fn idle_end(&self, now: Tick, idle_timeout_ns: u64) -> Option<Ended> {
        if now.nanos_since(self.rested) > idle_timeout_ns {
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
    fn record(&self) -> &Record;

    fn since(&self) -> Tick {
        self.record().rested
    }
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

    /// Takes out those whose time is over: the too old, and the oldest of those that rest for too long, but not so
    /// many of these that fewer than `stock` are left.
    pub(crate) fn take_ended(&mut self, now: Tick, idle_timeout: Duration, stock: usize) -> Vec<E> {
        let mut ended = self.take_where(usize::MAX, |entry| now >= entry.record().dies);
        while self.len() > stock
            && self.0.front().is_some_and(|oldest| oldest.record().idle_for(now) > idle_timeout)
        {
            ended.extend(self.0.pop_front());
        }
        ended
    }

    /// When [`take_ended`](Self::take_ended) finds the next.
    pub(crate) fn next_end(&self, idle_timeout: Duration, stock: usize) -> Option<Tick> {
        let oldest = self.0.front().filter(|_| self.len() > stock);
        let idle_end = oldest.map(|oldest| oldest.since().after(idle_timeout));
        let deaths = self.0.iter().map(|entry| entry.record().dies);
        deaths.chain(idle_end).min().filter(|end| *end != Tick::NEVER)
    }

    /// Takes some out, the oldest first.
    pub(crate) fn take_where(&mut self, at_most: usize, of: impl Fn(&E) -> bool) -> Vec<E> {
        let mut out = Vec::new();
        if self.0.iter().any(&of) {
            let mut stay = VecDeque::with_capacity(self.0.len());
            for entry in self.0.drain(..) {
                if out.len() < at_most && of(&entry) { out.push(entry) } else { stay.push_back(entry) }
            }
            self.0 = stay;
        }
        out
    }

    pub(crate) fn count(&self, of: impl Fn(&E) -> bool) -> usize {
        self.0.iter().filter(|entry| of(entry)).count()
    }

    pub(crate) fn take_all(&mut self) -> VecDeque<E> {
        std::mem::take(&mut self.0)
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

    fn record(uses: usize) -> Record {
        let at = Tick::from_millis;
        Record { born: at(0), dies: at(1000), rested: at(500), uses, generation: 0 }
    }

    #[test]
    fn newest_out_first_and_oldest_given_up_first() {
        let mut list = Freelist::new();
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
            let mut list = Freelist::new();
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
