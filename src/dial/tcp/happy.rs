//! The order in which a name's addresses are tried, and when the next one begins: RFC 8305, "happy eyeballs".
//! Pure: time is what has passed since the race began.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

/// RFC 8305, section 8.
pub(super) const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// What all addresses but the last may take together before they make way for one that has no slot of its own.
/// Half of a resource's default `dial_timeout`: the last address has the other half.
const TOGETHER: Duration = Duration::from_secs(5);

/// A SYN that was lost has been sent again by then.
const LONGEST_SHARE: Duration = Duration::from_secs(2);

/// How long an attempt runs before it makes way, if that must be.
pub(super) fn share(addresses: usize) -> Duration {
    let others = u32::try_from(addresses.saturating_sub(1).max(1)).unwrap_or(u32::MAX);
    (TOGETHER / others).clamp(ATTEMPT_DELAY, LONGEST_SHARE)
}

/// The addresses in the order of RFC 8305, section 4: the families in turn, beginning with that of the first, or with IPv6 or
/// not if that is said; each in the order given. Each address once.
pub(super) fn interleaved(addresses: &[IpAddr], ipv6_leads: Option<bool>) -> Vec<IpAddr> {
    let mut seen = HashSet::new();
    let once = addresses.iter().copied().filter(|address| seen.insert(*address));
    let leading = ipv6_leads.unwrap_or_else(|| addresses.first().is_some_and(IpAddr::is_ipv6));
    let (first, second): (Vec<_>, Vec<_>) = once.partition(|address| address.is_ipv6() == leading);
    let mut order = Vec::with_capacity(first.len() + second.len());
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    loop {
        let before = order.len();
        order.extend(first.next());
        order.extend(second.next());
        if order.len() == before {
            return order;
        }
    }
}

/// When the next address is tried.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    /// `None`: never beside another.
    delay: Option<Duration>,
    share: Duration,
    /// When to look at the next address.
    due: Duration,
}

/// What to do about the next address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Begin: nothing else runs.
    Begin,
    /// Begin beside the others, with a slot of its own. If none is to be had: [`Schedule::without_slot`].
    BeginBeside,
    /// Begin in place of the oldest.
    Replace,
    /// Not before then.
    Wait(Duration),
}

impl Schedule {
    pub(super) fn new(delay: Option<Duration>, addresses: usize) -> Self {
        Self { delay, share: share(addresses), due: Duration::ZERO }
    }

    /// `oldest`: when the oldest attempt that runs began.
    pub(super) fn next(&self, now: Duration, oldest: Option<Duration>) -> Step {
        match oldest {
            None => Step::Begin,
            Some(_) if now < self.due => Step::Wait(self.due),
            Some(_) if self.delay.is_some() => Step::BeginBeside,
            Some(oldest) if now >= oldest + self.share => Step::Replace,
            Some(oldest) => Step::Wait(oldest + self.share),
        }
    }

    /// There was no slot to begin beside the others with.
    pub(super) fn without_slot(&mut self, now: Duration, oldest: Duration) -> Step {
        let replaces = oldest + self.share;
        if now >= replaces {
            return Step::Replace;
        }
        self.due = replaces.min(now + self.delay.unwrap_or(self.share));
        Step::Wait(self.due)
    }

    /// An attempt beside the others found no descriptor: from now on each makes way for the next.
    pub(super) fn without_descriptor(&mut self) {
        self.delay = None;
        self.due = Duration::ZERO;
    }

    /// An attempt began.
    pub(super) fn begun(&mut self, now: Duration) {
        self.due = now + self.delay.unwrap_or(Duration::ZERO);
    }

    /// An attempt failed: the next one need not wait.
    pub(super) fn failed(&mut self) {
        self.due = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(addresses: &[&str]) -> Vec<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_from_the_first_and_keep_their_order() {
        for (given, expected) in [
            (&[][..], &[][..]),
            (&["1.0.0.1"], &["1.0.0.1"]),
            (&["::1", "::2"], &["::1", "::2"]),
            (&["1.0.0.1", "1.0.0.2", "1.0.0.3"], &["1.0.0.1", "1.0.0.2", "1.0.0.3"]),
            (&["::1", "::2", "::3", "1.0.0.1"], &["::1", "1.0.0.1", "::2", "::3"]),
            (&["1.0.0.1", "::1", "::2", "1.0.0.2"], &["1.0.0.1", "::1", "1.0.0.2", "::2"]),
            (&["::1", "1.0.0.1", "::1", "1.0.0.1", "1.0.0.2"], &["::1", "1.0.0.1", "1.0.0.2"]),
        ] {
            assert_eq!(interleaved(&ips(given), None), ips(expected), "{given:?}");
        }
        let given = ips(&["::1", "::2", "1.0.0.1"]);
        assert_eq!(interleaved(&given, Some(false)), ips(&["1.0.0.1", "::1", "::2"]));
        assert_eq!(interleaved(&given, Some(true)), ips(&["::1", "1.0.0.1", "::2"]));
        assert_eq!(interleaved(&given[..2], Some(false)), ips(&["::1", "::2"]), "there are none of that");
    }

    /// Every answer of up to six addresses, of three of each family.
    #[test]
    fn every_address_is_tried_once_and_no_family_twice_while_the_other_waits() {
        let six = ips(&["::1", "::2", "::3", "1.0.0.1", "1.0.0.2", "1.0.0.3"]);
        for code in 0..7_usize.pow(6) {
            let digits = (0..6).map(|place| code / 7_usize.pow(place) % 7);
            let given: Vec<_> = digits.filter_map(|digit| six.get(digit).copied()).collect();
            let order = interleaved(&given, None);
            assert_eq!(order.first(), given.first());
            let (set, once): (HashSet<_>, HashSet<_>) = (given.iter().collect(), order.iter().collect());
            assert_eq!((order.len(), &set), (set.len(), &once));
            for (n, pair) in order.windows(2).enumerate() {
                let alone = order[n..].iter().all(|address| address.is_ipv6() == pair[0].is_ipv6());
                assert!(alone || pair[0].is_ipv6() != pair[1].is_ipv6(), "{order:?}");
            }
        }
    }

    #[test]
    fn all_but_the_last_address_have_half_of_the_default_dial_timeout() {
        assert_eq!(share(1), LONGEST_SHARE);
        assert_eq!(share(2), LONGEST_SHARE);
        assert_eq!(share(6), Duration::from_secs(1));
        assert_eq!(share(usize::MAX), ATTEMPT_DELAY);
        for addresses in 1..=21 {
            assert!(share(addresses) * (addresses as u32 - 1) <= TOGETHER);
        }
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn attempts_begin_a_delay_apart_or_when_one_fails() {
        let mut schedule = Schedule::new(Some(ms(250)), 3);
        assert_eq!(schedule.next(ms(0), None), Step::Begin);
        schedule.begun(ms(0));
        assert_eq!(schedule.next(ms(0), Some(ms(0))), Step::Wait(ms(250)));
        assert_eq!(schedule.next(ms(249), Some(ms(0))), Step::Wait(ms(250)));
        assert_eq!(schedule.next(ms(250), Some(ms(0))), Step::BeginBeside);
        schedule.begun(ms(250));
        assert_eq!(schedule.next(ms(260), Some(ms(0))), Step::Wait(ms(500)));
        schedule.failed();
        assert_eq!(schedule.next(ms(260), Some(ms(0))), Step::BeginBeside);
        assert_eq!(schedule.next(ms(260), None), Step::Begin);
    }

    #[test]
    fn without_slot_the_next_waits_for_the_share_of_the_oldest_and_asks_again_meanwhile() {
        let mut schedule = Schedule::new(Some(ms(250)), 2);
        schedule.begun(ms(0));
        assert_eq!(schedule.without_slot(ms(250), ms(0)), Step::Wait(ms(500)));
        assert_eq!(schedule.next(ms(499), Some(ms(0))), Step::Wait(ms(500)));
        assert_eq!(schedule.next(ms(500), Some(ms(0))), Step::BeginBeside);
        assert_eq!(schedule.without_slot(ms(1900), ms(0)), Step::Wait(ms(2000)));
        assert_eq!(schedule.without_slot(ms(2000), ms(0)), Step::Replace);
    }

    #[test]
    fn without_descriptor_no_other_begins_beside_those_that_run() {
        let mut schedule = Schedule::new(Some(ms(250)), 3);
        schedule.begun(ms(0));
        assert_eq!(schedule.next(ms(250), Some(ms(0))), Step::BeginBeside);
        schedule.begun(ms(250));
        schedule.without_descriptor();
        assert_eq!(schedule.next(ms(250), Some(ms(0))), Step::Wait(ms(2000)));
        schedule.failed();
        assert_eq!(schedule.next(ms(300), None), Step::Begin);
        schedule.begun(ms(300));
        assert_eq!(schedule.next(ms(2299), Some(ms(300))), Step::Wait(ms(2300)));
        assert_eq!(schedule.next(ms(2300), Some(ms(300))), Step::Replace);
    }

    #[test]
    fn without_racing_one_follows_the_other() {
        let mut schedule = Schedule::new(None, 2);
        assert_eq!(schedule.next(ms(0), None), Step::Begin);
        schedule.begun(ms(0));
        assert_eq!(schedule.next(ms(250), Some(ms(0))), Step::Wait(ms(2000)));
        schedule.failed();
        assert_eq!(schedule.next(ms(250), Some(ms(0))), Step::Wait(ms(2000)));
        assert_eq!(schedule.next(ms(250), None), Step::Begin);
        assert_eq!(schedule.next(ms(2000), Some(ms(0))), Step::Replace);
    }
}
