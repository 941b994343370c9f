//! What is remembered of names: their last answers, and when they are to be asked for again. Takes the time, waits for nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How many names that nobody uses are remembered, at most: a connection just dialled is watched only then, and a
/// name that is dialled now and then has its last answer when the resolver has none.
pub(super) const UNUSED: usize = 1024;

/// How long a lookup in the background may take before another may begin.
pub(super) const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the family leads that was connected to although the resolver named the other first.
const LEADS: Duration = Duration::from_secs(600);

/// All names of one resolver.
#[derive(Debug, Default)]
pub(super) struct Table {
    names: HashMap<Arc<str>, Entry>,
    /// How many of them nobody uses.
    unused: usize,
    /// Grows with each use.
    uses: u64,
}

/// One name.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// Dials and watches.
    users: usize,
    /// When the last of them left.
    used: u64,
    answer: Option<Answer>,
    /// Whether IPv6 is to be tried first, where the answer does not say so, or the other way round; and until when.
    ipv6_leads: Option<(bool, Instant)>,
    /// Grows with each answer that is another.
    version: u64,
    /// How many lookups have begun, and which of them the answer is of.
    asked: u64,
    answered: u64,
    /// A lookup that no dial waits for any more, and until when nobody else asks.
    late: Option<(u64, Instant)>,
    /// When it is to be looked up again, if it is watched.
    due: Option<Instant>,
    /// That has been told.
    failing: bool,
    /// Tells watches to look here again.
    pub(super) news: Arc<Notify>,
}

#[derive(Debug)]
struct Answer {
    /// As the resolver gave them.
    ips: Arc<[IpAddr]>,
    /// The same, as a set.
    sorted: Box<[IpAddr]>,
    at: Instant,
    /// The resolver has said since that there is no such name: it is not dialled any more.
    is_over: bool,
    spared: Option<Spared>,
}

/// Addresses of a family that an answer lacks, where the one before had some: it may be that only the question for that family
/// was lost. Their connections are kept until an answer lacks it for as long as this.
#[derive(Clone, Debug)]
struct Spared {
    ips: Box<[IpAddr]>,
    until: Instant,
}

/// What a watch is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// The answer is another than it was.
    Changed,
    /// Look the name up; nobody else does before [`LOOKUP_TIMEOUT`].
    Refresh,
    Wait(Instant),
}

impl Table {
    /// Somebody uses the name, until they [`leave`](Self::leave) it.
    pub(super) fn enter(&mut self, host: &str) -> Arc<str> {
        if let Some((host, _)) = self.names.get_key_value(host) {
            let host = Arc::clone(host);
            let entry = self.entry(&host);
            entry.users += 1;
            if entry.users == 1 {
                self.unused -= 1;
            }
            return host;
        }
        let host = Arc::<str>::from(host);
        self.names.insert(Arc::clone(&host), Entry { users: 1, ..Entry::default() });
        host
    }

    pub(super) fn leave(&mut self, host: &str) {
        self.uses += 1;
        let used = self.uses;
        let entry = self.entry(host);
        entry.users -= 1;
        entry.used = used;
        if entry.users == 0 {
            self.unused += 1;
            if self.unused > UNUSED {
                self.forget_older_half();
            }
        }
    }

    fn forget_older_half(&mut self) {
        let unused = self.names.values().filter(|entry| entry.users == 0);
        let mut ages: Vec<_> = unused.map(|entry| entry.used).collect();
        let middle = ages.len() / 2;
        let (_, &mut oldest_kept, _) = ages.select_nth_unstable(middle);
        self.names.retain(|_, entry| entry.users > 0 || entry.used >= oldest_kept);
        self.unused = ages.len() - middle;
        self.names.shrink_to(2 * self.names.len());
    }

    /// A name in use.
    pub(super) fn entry(&mut self, host: &str) -> &mut Entry {
        self.names.get_mut(host).expect("BUG: a name in use was forgotten")
    }

    /// Whether an address is in the last answer, or spared. A name of which nothing is known leads anywhere.
    pub(super) fn leads_to(&self, host: &str, ip: IpAddr) -> bool {
        let answer = self.names.get(host).and_then(|entry| entry.answer.as_ref());
        answer.is_none_or(|Answer { sorted, spared, .. }| {
            let spared = spared.iter().flat_map(|spared| &spared.ips);
            sorted.iter().chain(spared).any(|known| known.to_canonical() == ip.to_canonical())
        })
    }

    pub(super) fn ipv6_leads(&self, host: &str, now: Instant) -> Option<bool> {
        let (ipv6, until) = self.names.get(host)?.ipv6_leads?;
        (now < until).then_some(ipv6)
    }

    /// One of a name's addresses was connected to before all others.
    pub(super) fn note_winner(&mut self, host: &str, winner: IpAddr, now: Instant) {
        let led = self.ipv6_leads(host, now);
        let Some(Entry { answer: Some(answer), ipv6_leads, .. }) = self.names.get_mut(host) else { return };
        let first = answer.ips.first().map(IpAddr::is_ipv6);
        if first == Some(winner.is_ipv6()) {
            *ipv6_leads = None;
        } else if led.is_none() {
            *ipv6_leads = Some((winner.is_ipv6(), now + LEADS));
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.names.len()
    }
}

impl Entry {
    /// A lookup begins. Its number orders it among others.
    pub(super) fn ask(&mut self) -> u64 {
        self.asked += 1;
        self.asked
    }

    /// A lookup takes long: nobody else asks before its end, or that time.
    pub(super) fn begin_late(&mut self, lookup: u64, until: Instant) {
        self.late = Some((lookup, until));
    }

    pub(super) fn end_late(&mut self, lookup: u64) {
        self.late.take_if(|(late, _)| *late == lookup);
    }

    /// Whether what is asked now is being asked already, of a resolver that is slow.
    pub(super) fn is_asked_late(&self, now: Instant) -> bool {
        self.late.is_some_and(|(_, until)| now < until)
    }

    /// A lookup has an answer. Tells what the name leads to, which is not that answer if a lookup that began later
    /// had its own before; and whether connections may lead elsewhere since. It is to be asked for again at `due`.
    pub(super) fn answered(
        &mut self,
        lookup: u64,
        ips: Vec<IpAddr>,
        now: Instant,
        due: Instant,
    ) -> (Arc<[IpAddr]>, bool) {
        self.late.take_if(|(late, _)| *late <= lookup);
        if let Some(answer) = self.answer.as_ref().filter(|_| lookup < self.answered) {
            return (Arc::clone(&answer.ips), false);
        }
        let mut sorted = ips.clone();
        sorted.sort_unstable();
        sorted.dedup();
        let former = self.answer.take();
        let spared = former.as_ref().and_then(|former| former.spare(&sorted, now, due));
        let is_new = former
            .is_none_or(|former| *former.sorted != *sorted || former.spared.is_some() && spared.is_none());
        self.version += u64::from(is_new);
        self.answered = lookup;
        (self.due, self.failing) = (Some(due), false);
        let (ips, sorted) = (Arc::from(ips), sorted.into_boxed_slice());
        self.answer = Some(Answer { ips: Arc::clone(&ips), sorted, at: now, is_over: false, spared });
        (ips, is_new)
    }

    /// A lookup failed. Whether that is to be told: the one before did not.
    pub(super) fn failed(&mut self) -> bool {
        !std::mem::replace(&mut self.failing, true)
    }

    /// A lookup in the background failed: the next is due then.
    pub(super) fn put_off(&mut self, due: Instant) {
        self.due = Some(due);
    }

    /// A lookup found that there is no such name. What is connected may stay so.
    pub(super) fn is_no_name(&mut self, lookup: u64) {
        if let Some(answer) = self.answer.as_mut().filter(|_| lookup >= self.answered) {
            answer.is_over = true;
            self.answered = lookup;
        }
    }

    /// A lookup in the background was given up: somebody else may begin one.
    pub(super) fn given_up(&mut self, now: Instant) {
        self.due = Some(now);
    }

    /// The last answer, if it is not older than that.
    pub(super) fn last(&self, stale_for: Duration, now: Instant) -> Option<Arc<[IpAddr]>> {
        let answer = self.answer.as_ref()?;
        let fresh = now.saturating_duration_since(answer.at) < stale_for;
        (fresh && !answer.is_over).then(|| Arc::clone(&answer.ips))
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// For a watch that has seen the answer of a version. `next` is when an answer that came now would be asked for
    /// again.
    pub(super) fn look(&mut self, seen: u64, now: Instant, next: Instant) -> Look {
        if self.version != seen {
            return Look::Changed;
        }
        // Without any answer, nothing says that the connections lead where the name does.
        let due = self.due.unwrap_or(now);
        // Runtimes with paused clocks of their own may share a name: no further off than this clock would have it.
        let due = if due > next.max(now + LOOKUP_TIMEOUT) { next } else { due };
        if due <= now {
            self.due = Some(now + LOOKUP_TIMEOUT);
            return Look::Refresh;
        }
        self.due = Some(due);
        Look::Wait(due)
    }
}

impl Answer {
    /// Of this one, what is spared at the next one. The first that lacks a family has it spared until the next is due.
    fn spare(&self, next: &[IpAddr], now: Instant, due: Instant) -> Option<Spared> {
        let is_lacking = |ip: &IpAddr| !next.iter().any(|other| other.is_ipv4() == ip.is_ipv4());
        let (ips, until) = match &self.spared {
            Some(spared) if spared.ips.iter().all(is_lacking) => (&spared.ips, spared.until),
            _ => (&self.sorted, due),
        };
        let ips: Box<[_]> = ips.iter().filter(|ip| is_lacking(ip)).copied().collect();
        (now < until && !ips.is_empty()).then_some(Spared { ips, until })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const PERIOD: Duration = Duration::from_secs(30);

    fn start() -> Instant {
        clock::deadline(Duration::ZERO).unwrap()
    }

    fn ips(last: &[u8]) -> Vec<IpAddr> {
        last.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect()
    }

    #[test]
    fn an_answer_is_new_if_its_set_is_another() {
        let (mut entry, now) = (Entry::default(), start());
        for (answer, new) in [
            (&[1, 2][..], true),
            (&[2, 1], false),
            (&[2, 1, 1], false),
            (&[2], true),
            (&[2, 3], true),
            (&[2, 3], false),
        ] {
            let (version, lookup) = (entry.version(), entry.ask());
            let (ips_now, is_new) = entry.answered(lookup, ips(answer), now, now);
            assert_eq!((&*ips_now, is_new), (&*ips(answer), new));
            assert_eq!(entry.version() != version, new);
        }
    }

    #[test]
    fn of_two_lookups_the_one_that_began_later_is_right() {
        let (mut entry, now) = (Entry::default(), start());
        let (early, late) = (entry.ask(), entry.ask());
        assert_eq!(entry.answered(late, ips(&[2]), now, now), (ips(&[2]).into(), true));
        assert_eq!(entry.answered(early, ips(&[1]), now, now), (ips(&[2]).into(), false));
    }

    #[test]
    fn the_last_answer_is_good_for_as_long_as_is_said() {
        let (mut entry, now) = (Entry::default(), start());
        assert_eq!(entry.last(PERIOD, now), None);
        let lookup = entry.ask();
        entry.answered(lookup, ips(&[1]), now, now);
        assert_eq!(entry.last(PERIOD, now), Some(ips(&[1]).into()));
        assert_eq!(entry.last(PERIOD, now + PERIOD), None);
        assert_eq!(entry.last(Duration::ZERO, now), None);
        entry.failed();
        assert_eq!(entry.last(PERIOD, now), Some(ips(&[1]).into()), "a failure takes nothing away");
        entry.is_no_name(lookup - 1);
        assert_eq!(entry.last(PERIOD, now), Some(ips(&[1]).into()), "that was before the answer");
        let lookup = entry.ask();
        entry.is_no_name(lookup);
        assert_eq!(entry.last(PERIOD, now), None, "there is no such name any more");
        entry.answered(lookup - 1, ips(&[1]), now, now);
        assert_eq!(entry.last(PERIOD, now), None, "one that began before it says nothing new");
        let lookup = entry.ask();
        assert!(!entry.answered(lookup, ips(&[1]), now, now).1, "nobody has to ask its connections");
        assert_eq!(entry.last(PERIOD, now), Some(ips(&[1]).into()));
    }

    #[test]
    fn a_family_that_one_answer_lacks_is_spared_for_a_while() {
        let [one, two] = [1, 2].map(|n| IpAddr::from([10, 0, 0, n]));
        let [six, seven] = [6, 7].map(|n| IpAddr::from([0, 0, 0, 0, 0, 0, 0, n]));
        let (mut table, now) = (Table::default(), start());
        let host = table.enter("name");
        let mut answers = |ips: &[IpAddr], now: Instant| {
            let entry = table.entry(&host);
            let lookup = entry.ask();
            let is_new = entry.answered(lookup, ips.to_vec(), now, now + PERIOD).1;
            (is_new, [one, two, six, seven].map(|ip| table.leads_to("name", ip)))
        };
        assert_eq!(answers(&[one, six], now), (true, [true, false, true, false]));
        assert_eq!(answers(&[one, seven], now), (true, [true, false, false, true]), "its own family goes");
        let lacking = now + PERIOD;
        assert_eq!(answers(&[one], lacking), (true, [true, false, false, true]));
        assert_eq!(
            answers(&[two], lacking),
            (true, [false, true, false, true]),
            "as of the first that lacks it"
        );
        assert_eq!(answers(&[two, seven], lacking), (true, [false, true, false, true]), "it was nothing");
        assert_eq!(answers(&[two], lacking), (true, [false, true, false, true]));
        let later = lacking + PERIOD;
        assert_eq!(answers(&[two], later), (true, [false, true, false, false]), "it has gone");
        assert_eq!(answers(&[two], later), (false, [false, true, false, false]));
        assert_eq!(answers(&[six], later), (true, [false, true, true, false]), "the other family, too");
        assert_eq!(answers(&[six, one], later), (true, [true, false, true, false]));
    }

    #[test]
    fn one_watch_refreshes_for_all() {
        let (mut entry, now) = (Entry::default(), start());
        let next = |now: Instant| now + PERIOD;
        let lookup = entry.ask();
        entry.answered(lookup, ips(&[1]), now, next(now));
        let seen = entry.version();
        assert_eq!(entry.look(seen, now, next(now)), Look::Wait(now + PERIOD));
        let later = now + PERIOD;
        assert_eq!(entry.look(seen, later, next(later)), Look::Refresh);
        assert_eq!(entry.look(seen, later, next(later)), Look::Wait(later + LOOKUP_TIMEOUT));
        entry.given_up(later);
        assert_eq!(entry.look(seen, later, next(later)), Look::Refresh);
        entry.put_off(next(later));
        assert!(entry.failed());
        assert!(!entry.failed(), "told once");
        assert_eq!(entry.look(seen, later, next(later)), Look::Wait(later + PERIOD));
        let lookup = entry.ask();
        entry.answered(lookup, ips(&[2]), later, next(later));
        assert_eq!(entry.look(seen, later, next(later)), Look::Changed);
        assert!(entry.failed(), "and told again after an answer");
    }

    #[test]
    fn a_watch_of_a_name_without_answer_asks_at_once() {
        let (mut entry, now) = (Entry::default(), start());
        assert_eq!(entry.look(0, now, now + PERIOD), Look::Refresh);
    }

    #[test]
    fn a_clock_that_is_far_ahead_keeps_nobody_waiting() {
        let (mut entry, now) = (Entry::default(), start());
        let (lookup, ahead) = (entry.ask(), now + Duration::from_secs(3600));
        entry.answered(lookup, ips(&[1]), ahead, ahead + PERIOD);
        assert_eq!(entry.look(1, now, now + PERIOD), Look::Wait(now + PERIOD));
        let later = now + PERIOD;
        assert_eq!(entry.look(1, later, later + PERIOD), Look::Refresh);
    }

    #[test]
    fn names_nobody_uses_are_forgotten_the_oldest_first() {
        let mut table = Table::default();
        let used: Vec<_> = (0..10).map(|n| table.enter(&format!("used{n}"))).collect();
        for n in 0..100_000 {
            let host = table.enter(&format!("once{n}"));
            table.leave(&host);
            assert!(table.len() <= used.len() + UNUSED);
        }
        let last = table.enter("once99999");
        assert!(table.len() > UNUSED / 2, "and not all at once");
        for host in &used {
            assert_eq!(table.entry(host).users, 1);
        }
        assert!(table.unused < table.len() && table.names.contains_key("once99998"));
        assert!(!table.names.contains_key("once1"));
        table.leave(&last);
        used.iter().for_each(|host| table.leave(host));
        assert_eq!(table.unused, table.len());
    }

    #[test]
    fn the_family_that_won_leads_for_a_while_and_is_not_prolonged() {
        let [four, six] = ["10.0.0.1", "::6"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let (mut table, now) = (Table::default(), start());
        let host = table.enter("name");
        table.note_winner("name", four, now);
        assert_eq!(table.ipv6_leads("name", now), None, "nothing is known of it");
        let lookup = table.entry(&host).ask();
        table.entry(&host).answered(lookup, vec![six, four], now, now);
        table.note_winner("name", six, now);
        assert_eq!(table.ipv6_leads("name", now), None, "as the resolver says");
        table.note_winner("name", four, now);
        assert_eq!(table.ipv6_leads("name", now), Some(false));
        table.note_winner("name", four, now + LEADS / 2);
        assert_eq!(table.ipv6_leads("name", now + LEADS), None, "the other is tried again");
        table.note_winner("name", four, now + LEADS);
        table.note_winner("name", six, now + LEADS);
        assert_eq!(table.ipv6_leads("name", now + LEADS), None, "it works again");
    }

    #[test]
    fn a_name_leads_to_its_last_answer_however_its_addresses_are_written() {
        let (mut table, now) = (Table::default(), start());
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let [one, two] = [1, 2].map(|n| IpAddr::from([10, 0, 0, n]));
        assert!(table.leads_to("name", one), "nothing is known of it");
        let host = table.enter("name");
        assert!(table.leads_to("name", one));
        let lookup = table.entry(&host).ask();
        table.entry(&host).answered(lookup, vec![one], now, now);
        assert!(
            table.leads_to("name", one) && table.leads_to("name", mapped) && !table.leads_to("name", two)
        );
    }
}
