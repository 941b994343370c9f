//! How many dials one address may have under way, and when it dials again after failures, for its callers and for its stock.
//! Pure: takes the time and chance, owns no clock and no lock.

use std::time::Duration;

use crate::clock::Tick;

/// Failures in a row that are told as they come, before the address pauses.
const FREE_FAILURES: u32 = 3;

/// Dials that haste may begin at a peer of which it is not known whether it answers.
const MOST_UNANSWERED: usize = 8;

/// Without any, a caller would do nothing but fail; and longer ones no timer can tell.
const LEAST_PAUSE: Duration = Duration::from_millis(1);
const MOST_PAUSE: Duration = Duration::from_secs(86_400);

/// What a resource was built with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limits {
    /// Dials under way at once while it is not known whether connections come back.
    pub(crate) first: usize,
    /// Dials under way at once, at most.
    pub(crate) most: usize,
    /// The first pause after failures. Zero: none is ever made.
    pub(crate) pause: Duration,
    /// The longest.
    pub(crate) longest: Duration,
}

/// How an address dials.
///
/// Callers that wait here can be served by a dial, or by a connection that somebody puts. Which will be first
/// nobody knows, so the dials begin few and double as long as they are what serves callers; a connection that
/// comes back ends that. After failures the address pauses, for twice as long each time, and then one dial
/// finds out how things are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    ramp: usize,
    health: Health,
}

/// Whether what is dialled is worth it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// Can become Pausing.
    Well { failures: u32 },
    /// No dial before its end. Can become Probing; or Well, by a dial begun before.
    Pausing { failures: u32, until: Tick },
    /// One dial at a time. Can become Well or Pausing.
    Probing { failures: u32 },
}

impl Pace {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { ramp: limits.first, health: Health::BEST }
    }

    /// How many dials may be under way.
    pub(crate) fn allowed(&self, limits: &Limits) -> usize {
        match self.health {
            Health::Well { .. } => self.ramp.min(limits.most),
            Health::Pausing { .. } => 0,
            Health::Probing { .. } => 1,
        }
    }

    /// How long no dial begins but the one that probes: zero while that is awaited. `None`: the address is well.
    pub(crate) fn pause(&self, now: Tick) -> Option<Duration> {
        match self.health {
            Health::Well { .. } => None,
            Health::Pausing { until, .. } => Some(until.since(now)),
            Health::Probing { .. } => Some(Duration::ZERO),
        }
    }

    /// Lets one dial probe, if the pause is over.
    pub(crate) fn probe(&mut self, now: Tick) {
        self.health.probe(now);
    }

    /// When the pause ends, until that has been noticed.
    pub(crate) fn pause_end(&self) -> Option<Tick> {
        self.health.pause_end()
    }

    /// A caller comes that is the only one here.
    pub(crate) fn begin(&mut self, limits: &Limits) {
        self.ramp = limits.first;
    }

    /// A caller comes that does not wait, and finds so many dials under way.
    pub(crate) fn urge(&mut self, dials: usize) {
        self.ramp = self.ramp.max(dials.saturating_add(1));
    }

    /// None of so many dials under way has ended for long: others may begin beside them, as many again, but few in all. That
    /// it is the peer which is silent is as likely, and each takes a slot until its time is over.
    pub(crate) fn hasten(&mut self, dials: usize) {
        self.ramp = self.ramp.max(dials.saturating_mul(2).min(MOST_UNANSWERED));
    }

    /// Whether a connection that comes back makes no difference.
    pub(crate) fn is_at_first(&self, limits: &Limits) -> bool {
        self.ramp == limits.first
    }

    /// Whether a new one would be as good.
    pub(crate) fn is_untroubled(&self) -> bool {
        self.health == Health::BEST
    }

    /// Whether dials succeed, as far as is known.
    pub(crate) fn is_well(&self) -> bool {
        matches!(self.health, Health::Well { .. })
    }

    /// A caller was served by a connection that came back.
    pub(crate) fn came_back(&mut self, limits: &Limits) {
        self.ramp = limits.first;
    }

    /// A dial succeeded, for a caller that still waited or for nobody.
    pub(crate) fn succeeded(&mut self, limits: &Limits, wanted: bool) {
        if !matches!(self.health, Health::Well { .. }) {
            self.ramp = limits.first;
        }
        self.health = Health::BEST;
        if wanted {
            self.ramp = self.ramp.saturating_add(1);
        }
    }

    /// A dial failed; for good, as far as anybody can tell, or not. `random` is any number.
    pub(crate) fn failed(&mut self, limits: &Limits, permanent: bool, now: Tick, random: u64) {
        self.ramp = limits.first;
        self.health.failed(limits, permanent, now, random);
    }
}

impl Health {
    /// Nothing is known that is not good.
    pub(crate) const BEST: Self = Self::Well { failures: 0 };

    /// See [`Pace::probe`].
    pub(crate) fn probe(&mut self, now: Tick) {
        if let Self::Pausing { failures, until } = *self
            && now >= until
        {
            *self = Self::Probing { failures };
        }
    }

    /// See [`Pace::pause_end`].
    pub(crate) fn pause_end(self) -> Option<Tick> {
        match self {
            Self::Pausing { until, .. } => Some(until),
            Self::Well { .. } | Self::Probing { .. } => None,
        }
    }

    /// See [`Pace::failed`]. `at_once`: pauses, if that is ever done.
    pub(crate) fn failed(&mut self, limits: &Limits, at_once: bool, now: Tick, random: u64) {
        let failures = match *self {
            // Begun before the pause.
            Self::Pausing { .. } => return,
            Self::Well { failures } | Self::Probing { failures } => failures.saturating_add(1),
        };
        *self = if (failures >= FREE_FAILURES || at_once) && !limits.pause.is_zero() {
            let until = now.after(limits.pause_after(failures, random));
            Self::Pausing { failures: failures.max(FREE_FAILURES), until }
        } else {
            Self::Well { failures }
        };
    }
}

impl Limits {
    /// What one caller by itself pauses for, whose own haste has failed so many of its dials.
    pub(crate) fn pause_after_haste(&self, failures: u32, random: u64) -> Duration {
        self.pause_after(FREE_FAILURES.saturating_add(failures), random).clamp(LEAST_PAUSE, MOST_PAUSE)
    }

    /// Twice as long after each failure, and then between half of that and all of it, so that the callers of one
    /// peer do not come back together ("equal jitter"; M. Brooker, Exponential Backoff And Jitter, 2015).
    fn pause_after(&self, failures: u32, random: u64) -> Duration {
        let doublings = failures.saturating_sub(FREE_FAILURES).min(31);
        let whole = self.pause.saturating_mul(1 << doublings).min(self.longest.max(self.pause));
        let half = u64::try_from((whole / 2).as_nanos()).unwrap_or(u64::MAX);
        whole - Duration::from_nanos(random % half.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        first: 2,
        most: usize::MAX,
        pause: Duration::from_millis(100),
        longest: Duration::from_secs(5),
    };

    fn at(millis: u64) -> Tick {
        Tick::from_millis(millis)
    }

    #[test]
    fn dials_double_while_they_are_what_serves() {
        let mut pace = Pace::new(&LIMITS);
        let mut under_way = Vec::new();
        for _ in 0..5 {
            let allowed = pace.allowed(&LIMITS);
            under_way.push(allowed);
            for _ in 0..allowed {
                pace.succeeded(&LIMITS, true);
            }
        }
        assert_eq!(under_way, [2, 4, 8, 16, 32]);
        pace.came_back(&LIMITS);
        assert_eq!(pace.allowed(&LIMITS), 2, "connections come back");
        pace.succeeded(&LIMITS, false);
        assert_eq!(pace.allowed(&LIMITS), 2, "nobody had waited for it");
    }

    #[test]
    fn never_more_than_the_most() {
        let limits = Limits { most: 3, ..LIMITS };
        let mut pace = Pace::new(&limits);
        for _ in 0..10 {
            pace.succeeded(&limits, true);
        }
        assert_eq!(pace.allowed(&limits), 3);
        pace.urge(7);
        assert_eq!(pace.allowed(&limits), 3);
        let limits = Limits { most: 1, ..LIMITS };
        assert_eq!(Pace::new(&limits).allowed(&limits), 1);
    }

    #[test]
    fn a_caller_that_does_not_wait_may_dial() {
        let mut pace = Pace::new(&LIMITS);
        pace.urge(2);
        assert_eq!(pace.allowed(&LIMITS), 3);
        pace.begin(&LIMITS);
        assert_eq!(pace.allowed(&LIMITS), 2);
    }

    #[test]
    fn the_third_failure_in_a_row_pauses_and_one_probe_follows() {
        let mut pace = Pace::new(&LIMITS);
        for _ in 0..2 {
            pace.failed(&LIMITS, false, at(0), 0);
            assert_eq!((pace.allowed(&LIMITS), pace.pause(at(0))), (2, None));
        }
        pace.failed(&LIMITS, false, at(0), 0);
        assert_eq!((pace.allowed(&LIMITS), pace.pause(at(0))), (0, Some(Duration::from_millis(100))));
        pace.failed(&LIMITS, false, at(50), 0);
        assert_eq!(pace.pause(at(50)), Some(Duration::from_millis(50)), "one begun before changes nothing");
        pace.probe(at(99));
        assert_eq!(pace.allowed(&LIMITS), 0, "not yet");
        pace.probe(at(100));
        assert_eq!((pace.allowed(&LIMITS), pace.pause(at(100))), (1, Some(Duration::ZERO)));
        pace.failed(&LIMITS, false, at(100), 0);
        assert_eq!(pace.pause(at(100)), Some(Duration::from_millis(200)));
        assert_eq!(pace.pause_end(), Some(at(300)));
        pace.probe(at(300));
        pace.succeeded(&LIMITS, true);
        assert_eq!((pace.allowed(&LIMITS), pace.pause(at(100))), (3, None));
        pace.failed(&LIMITS, false, at(100), 0);
        assert_eq!(pace.pause(at(100)), None, "the count begins anew");
    }

    #[test]
    fn a_success_between_failures_keeps_the_address_well() {
        let mut pace = Pace::new(&LIMITS);
        for _ in 0..10 {
            pace.failed(&LIMITS, false, at(0), 0);
            pace.failed(&LIMITS, false, at(0), 0);
            pace.succeeded(&LIMITS, true);
        }
        assert_eq!(pace.pause(at(0)), None);
    }

    #[test]
    fn a_dial_begun_before_the_pause_may_end_it() {
        let mut pace = Pace::new(&LIMITS);
        for _ in 0..3 {
            pace.failed(&LIMITS, false, at(0), 0);
        }
        pace.succeeded(&LIMITS, false);
        assert_eq!((pace.allowed(&LIMITS), pace.pause(at(0))), (2, None));
    }

    #[test]
    fn a_permanent_failure_pauses_at_once() {
        let mut pace = Pace::new(&LIMITS);
        pace.failed(&LIMITS, true, at(0), 0);
        assert_eq!(pace.pause(at(0)), Some(Duration::from_millis(100)));
    }

    #[test]
    fn without_a_pause_every_failure_is_told_as_it_comes() {
        let limits = Limits { pause: Duration::ZERO, ..LIMITS };
        let mut pace = Pace::new(&limits);
        for _ in 0..100 {
            pace.failed(&limits, true, at(0), 0);
            assert_eq!((pace.allowed(&limits), pace.pause(at(0))), (2, None));
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_lose_up_to_half() {
        for (failures, whole) in
            [(1, 100), (3, 100), (4, 200), (5, 400), (8, 3200), (9, 5000), (u32::MAX, 5000)]
        {
            let whole = Duration::from_millis(whole);
            assert_eq!(LIMITS.pause_after(failures, 0), whole);
            for random in [1, 12_345_678_901, u64::MAX] {
                let pause = LIMITS.pause_after(failures, random);
                assert!(pause <= whole && pause >= whole / 2, "{failures}: {pause:?}");
            }
        }
        let odd = Limits { pause: Duration::from_secs(9), longest: Duration::from_secs(1), ..LIMITS };
        assert_eq!(odd.pause_after(9, 0), Duration::from_secs(9), "the longest is no shorter than the first");
    }
}
