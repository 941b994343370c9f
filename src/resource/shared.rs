//! One address: what it keeps is in [`mod@state`], [`callers`] and [`rare`], how connections are given out and back in [`reuse`] and
//! [`rest`], the callers in line in [`mod@line`] and [`haste`], their dials in [`dials`], those of its stock in [`stock`], what
//! the keeper does in [`mod@tending`]. Decides under the locks, in the order ledger, address, cell; closes, wakes and logs after
//! them.

use std::sync::Arc;

use super::attempt::{Dialer, ErasedDial};
use super::home::{self, AnyRoom};
use super::settings::Settings;
use crate::address::Address;
use crate::budget::books::Books;
use crate::budget::ledger::Ledger;
use crate::budget::member::Seating;
use crate::budget::partition::Partition;
use crate::budget::slot::Kind;
use crate::budget::{Budget, Hold, Site};
use crate::clock::{self, Tick};
use crate::error::{GetDetails, Phase};
use crate::stats::{Event, ResourceStats};
use crate::sync::{AtomicBool, AtomicU32, MutexGuard, Ordering};
use crate::upkeep::{Bell, Watched};

mod callers;
mod closing;
mod dials;
mod haste;
mod line;
mod member;
mod rare;
mod rest;
mod reuse;
mod state;
mod stock;
mod tending;

pub(crate) use dials::Begun;
pub(crate) use line::{Left, Queued};
use reuse::Aside;
pub(crate) use reuse::{Found, Missed};

pub(crate) use callers::{Caller, Failure, Grant, Waiter, Wants};
pub(crate) use state::{Locked, Published, State};
pub(crate) use stock::Restock;

/// One address. Handles, connections and dials hold it; the books hold it while it has slots or waiters.
///
/// What the warm path reads is together, and then what a dial does, so that they are few lines of the cache.
#[repr(C)]
pub(crate) struct Shared<C> {
    /// Idle connections, lines, generation, behind a lock that is held for a few instructions; nothing of the user's runs
    /// under it, and no other lock is taken but those of cells. The first who queues and the last who leaves hold the
    /// ledger's lock too; those behind others only this one.
    room: &'static dyn AnyRoom,
    pub(crate) dialer: Dialer<C>,
    /// Somebody queues. A hint.
    others_queue: AtomicBool,
    bell: Bell,
    /// Whether somebody watches whether the address moves.
    pub(crate) watched: Watched,
    handles: AtomicU32,
    pub(crate) budget: Budget,
    seating: Seating,
    pub(crate) address: Address,
}

impl<C> Shared<C> {
    pub(crate) fn new(
        room: &'static dyn AnyRoom,
        address: Address,
        budget: Budget,
        dialer: Arc<dyn ErasedDial<C>>,
    ) -> Self {
        Self {
            room,
            dialer: Dialer::new(dialer),
            budget,
            address,
            seating: Seating::none(),
            handles: AtomicU32::new(1),
            watched: Watched::by_nobody(),
            bell: Bell::default(),
            others_queue: AtomicBool::new(false),
        }
    }

    #[inline]
    pub(crate) fn lock(&self) -> Locked<'_, C> {
        self.dialer.lock(self.room)
    }

    pub(crate) fn published(&self) -> &'static Published {
        self.room.published()
    }

    pub(crate) fn partition(&self) -> &Arc<Partition> {
        &self.budget.partition
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.budget.partition.ledger
    }

    /// Whether who holds its connections is noted.
    pub(crate) fn tracks(&self) -> bool {
        self.ledger().holds.is_some()
    }

    /// What the settings say now.
    pub(crate) fn setting<T>(&self, of: impl FnOnce(&Settings) -> T) -> T {
        of(&self.lock().settings)
    }

    /// Counts a handle more. Whoever is told `true` by [`one_handle_less`](Self::one_handle_less) had the last.
    pub(crate) fn one_handle_more(&self) {
        self.handles.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn one_handle_less(&self) -> bool {
        // AcqRel: what was done by the other handles comes before what the last one's end does.
        self.handles.fetch_sub(1, Ordering::AcqRel) == 1
    }

    pub(crate) fn has_one_handle(&self) -> bool {
        // Acquire: pairs with the release above. What another handle did comes before what follows its end.
        self.handles.load(Ordering::Acquire) == 1
    }

    /// Notes who has a connection, if that is tracked.
    pub(crate) fn note_hold(&self, site: Site) -> Option<Hold> {
        let holds = self.ledger().holds.as_ref()?;
        Some(holds.note(Some(self.address.clone()), 1, site))
    }

    fn both(&self) -> (MutexGuard<'_, Books>, Locked<'_, C>) {
        let books = self.ledger().lock();
        let state = self.lock();
        (books, state)
    }

    /// Not under the address's lock.
    pub(crate) fn count(&self, event: Event) {
        self.lock().tally.add(event, 1);
        self.partition().count(event, 1);
    }

    /// Slots that the address has, and how many of them are dials'.
    fn taken(&self, books: &Books) -> (usize, usize) {
        self.seating.get().map_or((0, 0), |seat| (books.slots_of(seat), books.dials_of(seat)))
    }

    /// Slots that the address has, of whatever use.
    pub(crate) fn slots_out(&self) -> usize {
        let books = self.ledger().lock();
        self.seating.get().map_or(0, |seat| books.slots_of(seat))
    }

    /// Whether anything is open here, or being dialled.
    pub(crate) fn has_slots(&self) -> bool {
        self.seating.get().is_some()
    }

    /// Connections that rest here, at a glance.
    pub(crate) fn resting(&self) -> usize {
        self.published().notice.idle()
    }

    pub(crate) fn stats(&self) -> ResourceStats {
        let (books, state) = self.both();
        let mut stats = ResourceStats::default();
        if let Some(seat) = self.seating.get() {
            let counts = books.counts_of(seat);
            stats.idle = state.resting();
            stats.in_use = counts.get(Kind::Connected).saturating_sub(stats.idle);
            stats.dialing = counts.get(Kind::Dialing);
            stats.closing = counts.get(Kind::Closing);
        }
        stats.waiting = state.dialing() + state.queued();
        stats.count(&state.tally);
        stats.reused += state.published.reused.load(Ordering::Relaxed);
        stats.waits += self.room.waits().load(Ordering::Relaxed);
        stats
    }

    pub(crate) fn details(&self, phase: Phase, since: Tick, timed_out: bool) -> Box<GetDetails> {
        let counts = self.ledger().lock().counts_of_late(self.partition().account);
        let (address, elapsed) = (self.address.clone(), clock::now().since(since));
        tracing::debug!(%address, %phase, ?elapsed, %counts, timed_out, "get failed");
        let retry_in = self.lock().several().and_then(|rare| rare.pace.pause(clock::now()));
        Box::new(GetDetails { address, phase, elapsed, counts, timed_out, retry_in })
    }
}

impl<C> Drop for Shared<C> {
    fn drop(&mut self) {
        let mut state = self.lock();
        let vacant = State::new(Arc::clone(&state.settings));
        let left = std::mem::replace(&mut *state, vacant);
        drop(state);
        drop(left);
        home::move_out(self.room);
        if !self.dialer.end() {
            self.partition().count(Event::Panic, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it costs to know an address, of which there may be a million, and to have something idle there.
    #[test]
    fn an_address_is_small() {
        assert!(size_of::<Shared<()>>() <= 80);
        assert!(size_of::<crate::conn::Entry<()>>() <= 88);
    }

    /// Behind the lock, which is a word: of the idle ones the newest, and how many they are.
    #[test]
    fn what_a_warm_pair_uses_of_a_room_is_one_line_of_the_cache() {
        let hot = size_of::<Published>() + size_of::<usize>() + std::mem::offset_of!(State<()>, idle);
        assert!(hot + 2 * size_of::<usize>() <= 64);
    }
}
