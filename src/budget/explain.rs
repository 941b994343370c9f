//! What a budget looks like from outside: numbers, and who stands behind them.

use std::fmt;
use std::time::Duration;

use super::ledger::Partition;
use super::slot::Kind;
use crate::address::Address;
use crate::clock;
use crate::stats::{BudgetCounts, BudgetStats, Event};

/// How many addresses an explanation names.
const NAMED: usize = 20;

pub(super) fn stats(partition: &Partition) -> BudgetStats {
    let books = partition.ledger.lock();
    let counts = books.counts(partition.account);
    // Reuse is counted by each address for itself, and handed in when its last connection goes.
    let unreported: u64 = books.seats_of(partition.account).map(|seat| seat.member.unreported_reuse()).sum();
    drop(books);
    let mut stats = BudgetStats {
        limit: counts.limit,
        effective_limit: counts.effective_limit,
        in_use: counts.in_use,
        idle: counts.idle,
        dialing: counts.dialing,
        closing: counts.closing,
        held: counts.held,
        waiting: counts.waiting,
        foreign_fds: partition.ledger.foreign,
        reused: unreported,
        ..BudgetStats::default()
    };
    stats.count(&partition.tally);
    stats
}

/// Who holds a budget's slots and who waits for them, at one moment. Made by
/// [`Budget::explain`](crate::Budget::explain); display it.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), fdpool::AcquireError> {
/// let budget = fdpool::Budget::new(3);
/// let slot = budget.acquire_many(2).await?;
/// assert!(budget.explain().to_string().contains("2 held outside of connections"));
/// # drop(slot); Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Explain {
    counts: BudgetCounts,
    /// Most slots first.
    addresses: Vec<AddressLine>,
    applicants: usize,
    longest_application: Duration,
    dropped: u64,
}

#[derive(Clone, Debug)]
struct AddressLine {
    address: Address,
    connected: usize,
    idle: usize,
    dialing: usize,
    closing: usize,
    longest_wait: Option<Duration>,
}

impl AddressLine {
    fn slots(&self) -> usize {
        self.connected + self.dialing + self.closing
    }
}

impl Explain {
    pub(super) fn of(partition: &Partition) -> Self {
        let now = clock::now();
        let books = partition.ledger.lock();
        let mut addresses: Vec<_> = books
            .seats_of(partition.account)
            .map(|seat| AddressLine {
                address: seat.member.address().clone(),
                connected: seat.counts.get(Kind::Connected),
                idle: usize::from(seat.member.hint().0.idle),
                dialing: seat.counts.get(Kind::Dialing),
                closing: seat.counts.get(Kind::Closing),
                longest_wait: seat.member.oldest_wait().map(|since| now.since(since)),
            })
            .collect();
        let waits =
            || books.applicants_of(partition.account).map(|applicant| now.since(applicant.cell.since));
        let (applicants, longest_application) = (waits().count(), waits().max().unwrap_or_default());
        let counts = books.counts(partition.account);
        drop(books);
        addresses.sort_by_key(|line| std::cmp::Reverse((line.longest_wait, line.slots())));
        let dropped = partition.tally.read(Event::Dropped);
        Self { counts, addresses, applicants, longest_application, dropped }
    }
}

impl fmt::Display for Explain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.counts)?;
        if self.counts.effective_limit < self.counts.limit {
            let lost = self.counts.limit - self.counts.effective_limit;
            writeln!(f, "  {lost} slots are out of use: the process ran out of descriptors")?;
        }
        for line in self.addresses.iter().take(NAMED) {
            let in_use = line.connected.saturating_sub(line.idle);
            let AddressLine { address, idle, dialing, closing, .. } = line;
            write!(f, "  {address}: {in_use} in use, {idle} idle, {dialing} dialing, {closing} closing")?;
            match line.longest_wait {
                Some(wait) => writeln!(f, "; its first caller waits for {wait:.1?}")?,
                None => writeln!(f)?,
            }
        }
        if let Some(more) = self.addresses.len().checked_sub(NAMED).filter(|more| *more > 0) {
            writeln!(f, "  and {more} more addresses")?;
        }
        if self.counts.held > 0 {
            writeln!(f, "  {} held outside of connections", self.counts.held)?;
        }
        if self.applicants > 0 {
            let (callers, longest) = (self.applicants, self.longest_application);
            writeln!(f, "  {callers} callers of acquire() wait, the first for {longest:.1?}")?;
        }
        if self.dropped > 0 {
            let dropped = self.dropped;
            writeln!(
                f,
                "  {dropped} connections were dropped without put(): is one forgotten on some path?"
            )?;
        }
        Ok(())
    }
}
