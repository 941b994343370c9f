//! What a budget looks like from outside: numbers, and who stands behind them.

use std::collections::HashMap;
use std::fmt;
use std::panic::Location;
use std::time::Duration;

use tokio::task;

use super::books::{AccountId, Books, ROOT, Seat};
use super::holds::{Noted, POOLED, ResourceId};
use super::partition::Partition;
use super::slot::Kind;
use crate::address::Address;
use crate::clock::{self, Tick};
use crate::error::DialError;
use crate::stats::{BudgetCounts, BudgetStats, Event, Tally};
use crate::sync::Ordering;
use crate::text::{Number, Rounded, form};

/// How many addresses an explanation names.
const NAMED: usize = 20;

/// How long nothing has to move before it looks as if nothing ever will.
const STANDSTILL: Duration = Duration::from_secs(1);

pub(super) fn stats(partition: &Partition) -> BudgetStats {
    let books = partition.ledger.lock();
    let counts = books.counts(partition.account);
    // Some events are counted by each address for itself, and handed in when its last connection goes.
    let unreported = Tally::default();
    for (event, n) in books.seats_of(partition.account).flat_map(Seat::unreported) {
        unreported.add(event, n);
    }
    let mut stats = BudgetStats {
        limit: counts.limit,
        effective_limit: counts.effective_limit,
        in_use: counts.in_use,
        idle: counts.idle,
        dialing: counts.dialing,
        closing: counts.closing,
        held: counts.held,
        waiting: counts.waiting,
        foreign_fds: partition.ledger.foreign.load(Ordering::Relaxed),
        ..BudgetStats::default()
    };
    stats.count(&unreported);
    stats.count(&partition.tally);
    drop(books); // what an address hands in moves from the one to the other
    stats
}

/// Who holds a budget's slots and who waits for them, at one moment. Made by
/// [`Budget::explain`](crate::Budget::explain); display it.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let budget = fdpool::Budget::builder().limit(3).track_holds(true).build()?;
/// let slot = budget.acquire_many(2).await?;
/// let told = budget.explain().to_string();
/// assert!(told.contains("2 held outside of connections"));
/// assert!(told.contains(file!()), "and where they were acquired: {told}");
/// # drop(slot); Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Explain {
    counts: BudgetCounts,
    /// Longest waits first, then most slots.
    addresses: Vec<AddressLine>,
    applicants: usize,
    longest_application: Duration,
    dropped: usize,
    /// `None`: they are not tracked.
    holders: Option<Vec<Holder>>,
    /// For how long every slot has been one that a task took which has waited for another since.
    stalled_for: Option<Duration>,
    closed: bool,
    missing: Missing,
}

/// Slots of the limit that cannot be had, by cause. None of a closed budget's, which says so.
#[derive(Clone, Copy, Debug, Default)]
struct Missing {
    /// The budget it is part of has fewer.
    above: usize,
    /// Of the whole budget, as far as that is what holds this one back: there are no descriptors for them.
    process: usize,
}

impl Missing {
    fn of(books: &Books, account: AccountId) -> Self {
        if books.is_closed(account) {
            return Self::default();
        }
        let (effective, whole) = (books.effective_limit(account), books.effective_limit(ROOT));
        let missing = books.limit(account).saturating_sub(effective);
        let process = match missing {
            1.. if effective == whole => books.limit(ROOT).saturating_sub(whole),
            _ => 0,
        };
        Self { above: if account == ROOT { 0 } else { missing }, process }
    }
}

#[derive(Clone, Debug)]
struct AddressLine {
    resource: ResourceId,
    address: Address,
    connected: usize,
    idle: usize,
    dialing: usize,
    closing: usize,
    waiting: usize,
    longest_wait: Option<Duration>,
    last_error: Option<DialError>,
}

impl AddressLine {
    fn slots(&self) -> usize {
        self.connected + self.dialing + self.closing
    }

    fn in_use(&self) -> usize {
        self.connected.saturating_sub(self.idle)
    }
}

/// Who has slots: see [`Explain`] and [`CloseReport`](crate::CloseReport).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Holder {
    /// Of the connections; `None` for slots held outside of connections.
    pub address: Option<Address>,
    /// How many slots.
    pub slots: usize,
    /// For how long. `None`: the budget does not [track](crate::BudgetBuilder::track_holds) it, or it is a dial, or
    /// nobody's: a descriptor that is still to be closed.
    pub held_for: Option<Duration>,
    /// The place in the code that called `get` or `acquire`. `None`: as above, or an object of a pool that
    /// does not tell who called it.
    pub site: Option<&'static Location<'static>>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Some(address) => write!(f, "{address}: {}", self.slots)?,
            None => write!(f, "outside of connections: {}", self.slots)?,
        }
        if let Some(held_for) = self.held_for {
            write!(f, ", held for {}", Rounded(held_for))?;
        }
        match (self.site, self.held_for) {
            (Some(site), _) => write!(f, ", since {site}"),
            (None, Some(_)) => write!(f, ", {POOLED}"),
            (None, None) => Ok(()),
        }
    }
}

/// What an account has open at each of its addresses.
fn address_lines(books: &Books, account: AccountId, now: Tick) -> Vec<AddressLine> {
    let line = |seat: &Seat| {
        let waits = seat.member.waits();
        AddressLine {
            resource: ResourceId::of(&*seat.member),
            address: seat.member.address().clone(),
            connected: seat.slots.get(Kind::Connected),
            idle: seat.idle(),
            dialing: seat.slots.get(Kind::Dialing),
            closing: seat.slots.get(Kind::Closing),
            waiting: waits.len(),
            longest_wait: waits.iter().map(|(since, _)| now.since(*since)).max(),
            last_error: seat.member.last_error(),
        }
    };
    books.seats_of(account).map(line).collect()
}

/// Who still has something, of one resource or of all: the holds that are tracked, the longest first, then what nobody
/// is noted for, dials and what is closing, by the addresses with most.
pub(super) fn holders(partition: &Partition, of: Option<ResourceId>) -> Vec<Holder> {
    let now = clock::now();
    let (mut lines, held) = {
        let books = partition.ledger.lock();
        let lines = address_lines(&books, partition.account, now);
        (lines, books.counts(partition.account).held)
    };
    let mut tracked =
        partition.ledger.holds.as_ref().map_or_else(Vec::new, |holds| holds.of(partition.account));
    let mut noted: HashMap<Option<ResourceId>, usize> = HashMap::new();
    for hold in &tracked {
        *noted.entry(hold.resource).or_default() += hold.slots;
    }
    // What has come or gone since the books were read is not made up for.
    let rest = |of, slots: usize| slots.saturating_sub(noted.get(&of).copied().unwrap_or_default());
    lines.retain(|line| of.is_none_or(|of| line.resource == of));
    let lines = lines.into_iter().map(|line| {
        let slots = rest(Some(line.resource), line.slots());
        (Some(line.address), slots)
    });
    let mut untracked: Vec<_> = lines.collect();
    untracked.sort_by_key(|(_, slots)| std::cmp::Reverse(*slots));
    if of.is_none() {
        untracked.push((None, rest(None, held)));
    }
    untracked.retain(|(_, slots)| *slots > 0);
    tracked.retain(|noted| of.is_none() || noted.resource == of);
    let tracked = tracked.into_iter().map(|noted| noted.holder(now));
    let untracked = untracked.into_iter();
    let untracked = untracked.map(|(address, slots)| Holder { address, slots, held_for: None, site: None });
    tracked.chain(untracked).collect()
}

impl Noted {
    fn holder(self, now: Tick) -> Holder {
        let Self { address, slots, since, site, .. } = self;
        Holder { address, slots, held_for: Some(now.since(since)), site }
    }
}

/// For how long every slot has been one that a task took which has waited for another since.
fn stalled_for(
    held: &[Noted],
    waits: &HashMap<task::Id, Tick>,
    counts: &BudgetCounts,
    now: Tick,
) -> Option<Duration> {
    let slots: usize = held.iter().map(|noted| noted.slots).sum();
    if counts.waiting == 0 || slots < counts.effective_limit {
        return None;
    }
    // A wait that is older than the hold is another future's of the same task.
    let waited = |noted: &Noted| {
        let since = waits.get(&noted.task?).filter(|since| **since >= noted.since)?;
        Some(now.since(*since))
    };
    held.iter().map(waited).min().flatten() // `None` is the least
}

impl Explain {
    pub(super) fn of(partition: &Partition) -> Self {
        let now = clock::now();
        let books = partition.ledger.lock();
        let account = partition.account;
        let mut addresses = address_lines(&books, account, now);
        let waits = || books.applicants_of(account).map(|applicant| now.since(applicant.cell.since));
        let (applicants, longest_application) = (waits().count(), waits().max().unwrap_or_default());
        let of_gets = books.seats_of(account).flat_map(|seat| seat.member.waits());
        let of_applicants =
            books.applicants_of(account).map(|applicant| (applicant.cell.since, applicant.cell.task));
        let mut waits: HashMap<task::Id, Tick> = HashMap::new();
        for (since, task) in of_gets.chain(of_applicants) {
            let Some(task) = task else { continue };
            waits.entry(task).and_modify(|latest| *latest = since.max(*latest)).or_insert(since);
        }
        let (counts, closed) = (books.counts(account), books.is_closed(account));
        let missing = Missing::of(&books, account);
        drop(books);
        addresses.sort_by_key(|line| std::cmp::Reverse((line.longest_wait, line.slots())));
        let dropped = partition.tally.read(Event::Dropped) as usize;
        let held = partition.ledger.holds.as_ref().map(|holds| holds.of(account));
        let stalled_for = held.as_ref().and_then(|held| stalled_for(held, &waits, &counts, now));
        let holders = held.map(|held| held.into_iter().map(|noted| noted.holder(now)).collect());
        Self {
            counts,
            addresses,
            applicants,
            longest_application,
            dropped,
            holders,
            stalled_for,
            closed,
            missing,
        }
    }

    /// Whether it looks as if tasks that have slots wait for each other: each slot was taken by a task that has waited
    /// for another one since, for at least a second. Such tasks take what they need at once, with
    /// [`acquire_many`](crate::Budget::acquire_many).
    ///
    /// It is a suspicion. A slot is known by the task that took it, not by the one that has it now. If it was passed on,
    /// as an accept loop does with the slot of each connection, it comes back when that other task is done; so it does
    /// if one task runs several futures at once, and the one that waits is not the one that has the slot. And a wait
    /// with a timeout ends, as a [`get`](crate::ConnResource::get) does after 30 s unless set otherwise.
    ///
    /// Nor is every deadlock seen:
    ///
    /// - none, if the budget does not [track](crate::BudgetBuilder::track_holds) holds;
    /// - none with a slot that no task took: threads in [`blocking_acquire`](crate::Budget::blocking_acquire), and what
    ///   runs in `block_on` itself, have no name;
    /// - none where slots are left, but too few for an `acquire_many`, or kept for children, or where `max_conns` is
    ///   what a caller waits for;
    /// - of a child that is full, the child tells, not its parent; of tasks that wait for a slot of one child and have one of
    ///   another, the parent.
    pub fn is_deadlocked(&self) -> bool {
        self.stalled_for.is_some_and(|stalled| stalled >= STANDSTILL)
    }

    /// The longest holds first. Empty if the budget does not [track](crate::BudgetBuilder::track_holds) them.
    pub fn holders(&self) -> &[Holder] {
        self.holders.as_deref().unwrap_or_default()
    }
}

impl fmt::Display for Explain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.counts)?;
        if self.closed {
            writeln!(f, "  closed")?;
        }
        let Missing { above, process } = self.missing;
        if above > 0 {
            let (above, are) = (Number(above, "slot"), form(above, "is", "are"));
            writeln!(f, "  {above} {are} out of reach: the budget it is part of has fewer")?;
        }
        if process > 0 {
            let (lost, are) = (Number(process, "slot"), form(process, "is", "are"));
            let of_all = if above > 0 { " of all" } else { "" };
            writeln!(f, "  {lost}{of_all} {are} out of use: the rest of the process has the descriptors")?;
        }
        if let Some(stalled) = self.stalled_for.filter(|_| self.is_deadlocked()) {
            writeln!(
                f,
                "  every slot was taken by a task that has waited for another for {} or longer: unless they passed \
                 them on, none comes back before one of them gives up; see acquire_many()",
                Rounded(stalled)
            )?;
        }
        for line in self.addresses.iter().take(NAMED) {
            line.fmt(f)?;
        }
        if let Some(more) = self.addresses.len().checked_sub(NAMED).filter(|more| *more > 0) {
            writeln!(f, "  and {more} more")?;
        }
        if self.counts.held > 0 {
            writeln!(f, "  {} held outside of connections", self.counts.held)?;
        }
        if self.applicants > 0 {
            let waiting = Waiting(self.applicants, self.longest_application);
            writeln!(f, "  {} of acquire() {waiting}", Number(self.applicants, "caller"))?;
        }
        match &self.holders {
            Some(holders) if !holders.is_empty() => {
                writeln!(f, "  the longest holds:")?;
                for holder in holders.iter().take(NAMED) {
                    writeln!(f, "    {holder}")?;
                }
            }
            Some(_) => {}
            None if self.counts.waiting > 0 => {
                writeln!(f, "  BudgetBuilder::track_holds() would tell since when and from where")?;
            }
            None => {}
        }
        if self.dropped > 0 {
            let (dropped, were) = (Number(self.dropped, "connection"), form(self.dropped, "was", "were"));
            writeln!(f, "  {dropped} {were} dropped without put(): is one forgotten on some path?")?;
        }
        Ok(())
    }
}

/// So many, of whom the first waits for so long: the rest of a sentence.
struct Waiting(usize, Duration);

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(waiting, longest) = self;
        write!(f, "{} for {}", form(*waiting, "waits,", "wait, the first"), Rounded(*longest))
    }
}

impl fmt::Display for AddressLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, idle, dialing, closing, waiting, .. } = self;
        let in_use = self.in_use();
        write!(f, "  {address}: {in_use} in use, {idle} idle, {dialing} dialing, {closing} closing")?;
        if let Some(longest) = self.longest_wait {
            write!(f, "; {waiting} {}", Waiting(*waiting, longest))?;
        }
        match &self.last_error {
            Some(error) => writeln!(f, "; the last dial failed: {error}"),
            None => writeln!(f),
        }
    }
}
