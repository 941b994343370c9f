//! What the books know of an address, and of a connection on its way out; and what an address knows of the books. Knows the
//! insides of neither.

use std::sync::Arc;
use std::task::Waker;

use tokio::task;

use super::books::{Ordinal, SeatId};
use super::partition::Partition;
use super::slot::{Lease, Slot};
use super::victim::{Glance, Hint};
use crate::address::Address;
use crate::clock::Tick;
use crate::error::DialError;
use crate::stats::Event;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// What the ledger needs to know of an address. Called under the ledger's lock, except where it says
/// otherwise; implementations take their own lock inside, and call nothing of the user's.
pub(crate) trait Member: Send + Sync {
    /// Where the address sits in the books, if it has slots or waits for some.
    fn seating(&self) -> &Seating;
    fn notice(&self) -> &'static Notice;
    /// Gives up the idle connection that can be spared best. `None`: it has none, and will call
    /// [`Books::heat`](super::books::Books::heat) when it has one again.
    fn evict(self: Arc<Self>) -> Option<Box<dyn Victim>>;
    /// Hands a slot to the oldest of those who queue here; returns how many queue then. `Err`: nobody does.
    fn serve(&self, slot: Slot) -> Result<(Option<Waker>, usize), Slot>;
    /// How many queue here. The books know whether anybody does, and not always how many.
    fn queued(&self) -> usize;
    /// A slot to dial with came back unused, and so many dials are left. If fewer than callers who wait for one,
    /// they queue for slots again; returns how many queue then, and whom to wake after the lock.
    fn dial_ended(&self, dials: usize) -> Option<(usize, Vec<Waker>)>;
    /// It has no slots left: like [`evict`](Self::evict) when it finds nothing.
    fn cooled(&self);
    fn partition(&self) -> &Arc<Partition>;
    /// Connections that come back presently to those who queue there: nobody dials in their stead.
    fn coming(&self) -> usize;
    fn address(&self) -> &Address;
    /// Since when its callers wait, each, and in which task.
    fn waits(&self) -> Vec<(Tick, Option<task::Id>)>;
    fn last_error(&self) -> Option<DialError>;
    /// The budget is closed: nobody gets in any more, who waits is told, what is idle goes. Called without locks.
    fn shut(&self);
    /// Of the events that an address counts for itself, those so far. Its lock may be held.
    fn counted(&self) -> [u64; COUNTED.len()];
}

/// What each address counts for itself, since it happens on the warm path. The budget is told when it leaves its seat.
pub(crate) const COUNTED: [Event; 2] = [Event::Reused, Event::Wait];

/// An idle connection on its way out.
pub(crate) trait Victim: Send {
    fn lease(&mut self) -> &mut Lease;
    /// Its slot, for somebody else, who is not to use it before the connection is closed. `None`: it is elsewhere.
    fn take_slot(&mut self) -> Option<Slot>;
    /// Closes the connection and gives its slot back, if it has one. Called without locks; does not panic.
    fn close(self: Box<Self>);
}

/// What an address lets the searches for victims know of itself: written under its lock, read without, and so a hint.
#[derive(Debug)]
pub(crate) struct Notice {
    /// See [`Hint::pack`](super::victim::Hint::pack).
    pub(crate) hint: AtomicU64,
    /// Since when the oldest of several idle ones rests.
    pub(crate) surplus_since: AtomicU32,
    /// Idle connections that the keeper looks at just now.
    pub(crate) lent: AtomicU32,
}

impl Default for Notice {
    fn default() -> Self {
        let hint = AtomicU64::new(Hint::UNSEEN.pack());
        Self { hint, surplus_since: AtomicU32::new(0), lent: AtomicU32::new(0) }
    }
}

impl Notice {
    #[inline]
    pub(crate) fn read(&self) -> Glance {
        (self.hint.load(Ordering::Relaxed), self.surplus_since.load(Ordering::Relaxed))
    }

    /// How many connections seem to be idle.
    pub(crate) fn idle(&self) -> usize {
        usize::from(Hint::unpack(self.hint.load(Ordering::Relaxed)).idle)
    }

    #[inline]
    pub(crate) fn lent(&self) -> usize {
        self.lent.load(Ordering::Relaxed) as usize
    }
}

/// The key of a member's seat, and what the books count as its demand. Written under the ledger's lock only.
#[derive(Debug)]
pub(crate) struct Seating {
    seat: AtomicU32,
    demand: AtomicU32,
}

impl Seating {
    pub(crate) fn none() -> Self {
        Self { seat: AtomicU32::new(Ordinal::to_word(None)), demand: AtomicU32::new(0) }
    }

    pub(crate) fn get(&self) -> Option<SeatId> {
        Ordinal::from_word(self.seat.load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, seat: Option<SeatId>) {
        self.seat.store(Ordinal::to_word(seat), Ordering::Relaxed);
    }

    pub(super) fn demand(&self) -> u32 {
        self.demand.load(Ordering::Relaxed)
    }

    pub(super) fn set_demand(&self, demand: u32) {
        self.demand.store(demand, Ordering::Relaxed);
    }
}
