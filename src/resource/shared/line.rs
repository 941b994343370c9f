//! Callers in line at one address, and the dials they count on: who gets in, who leaves, and what a dial's
//! end means to whom.

use std::sync::Arc;

use tokio::runtime;

use super::{Failure, Grant, Shared, State, Waiter};
use crate::budget::books::{Books, SeatId};
use crate::budget::queue::{Cell, Place};
use crate::budget::slot::{Kind, Lease, Slot};
use crate::conn::Entry;
use crate::error::{DialError, Phase};
use crate::stats::Event;

/// What a caller found when it got in line.
pub(crate) enum Queued {
    /// In line; the slot it brought is now a dial's.
    At(Place, Option<Slot>),
    /// Something came to rest since it looked: it has to look again, with what it brought.
    LookAgain(Option<Slot>),
    /// The budget's limit is zero.
    Never,
}

/// What becomes of the slot that a caller brought.
enum Brought {
    Nothing,
    Dials(Slot),
    GoesBack(Slot),
}

/// How a caller left the line.
pub(crate) struct Left<C> {
    pub(crate) granted: Option<Grant<C>>,
    pub(crate) phase: Phase,
    /// Others count on its dial.
    pub(crate) keep_dial: bool,
}

impl<C> Shared<C> {
    /// Out of the line, with whatever was granted and not taken.
    ///
    /// Its dial is kept for others who count on it, of the same runtime: those of another cannot use what it makes.
    pub(crate) fn leave(
        &self,
        place: Option<Place>,
        cell: &Cell<Grant<C>>,
        runtime: Option<runtime::Id>,
    ) -> Left<C> {
        let (mut books, mut state) = self.both();
        let seat = self.seating.get();
        let busy = seat.is_some_and(|seat| books.slots_of(seat) >= self.settings.max_conns);
        let phase = if place.is_some_and(|place| state.queued.remove(place).is_some()) {
            if let Some(seat) = seat {
                books.sync(seat, state.queued.len());
            }
            if busy { Phase::WaitingForAddress } else { Phase::WaitingForSlot }
        } else {
            place.and_then(|place| state.dialing.remove(place));
            Phase::Dialing
        };
        let like = |waiter: &Waiter<C>| waiter.runtime == runtime;
        let keep_dial = state.queued.iter().any(|(_, waiter)| like(waiter))
            || state.dialing.iter().any(|(_, waiter)| waiter.orphaned && like(waiter));
        drop(state);
        self.ledger().settle(books);
        // Nobody grants to a cell that is in no line.
        Left { granted: cell.leave(), phase, keep_dial }
    }

    /// Passes on what was granted to a caller that left.
    pub(crate) fn pass_on(&self, grant: Grant<C>) {
        match grant {
            Grant::Conn(entry) => self.rest(entry, true),
            Grant::Slot(slot) => drop(slot),
            Grant::Failed(_) => {}
        }
    }

    /// Whether a caller waits for a slot or for its address, and not for a dial.
    pub(crate) fn is_queued(&self, place: Option<Place>) -> bool {
        let state = self.state.lock();
        place.is_some_and(|place| state.queued.contains(place))
    }

    pub(crate) fn generation(&self) -> u64 {
        self.state.lock().generation
    }

    pub(crate) fn last_error(&self) -> Option<DialError> {
        self.state.lock().last_error.clone()
    }

    /// A dial succeeded: the oldest caller here gets the connection; without callers, it is given back.
    pub(crate) fn dialled(&self, initiator: Option<Place>, mut entry: Box<Entry<C>>) {
        let mut books = self.ledger().lock();
        books.connected(entry.lease_mut());
        let mut state = self.state.lock();
        let former = state.last_error.take();
        let waiter = if state.closed { None } else { self.next_for(&mut books, &mut state, &entry) };
        let (waker, left) = match waiter {
            Some(waiter) => (waiter.cell.grant(Grant::Conn(entry)), None),
            None => (None, Some(entry)),
        };
        if let Some(waiter) = initiator.and_then(|place| state.dialing.get_mut(place)) {
            waiter.orphaned = true;
        }
        self.requeue_stranded(&mut books, &mut state);
        drop(state);
        self.ledger().settle(books);
        if let Some(waker) = waker {
            waker.wake();
        }
        drop(former); // an error is the dialer's: not under a lock (I3)
        if let Some(entry) = left {
            self.rest(entry, true);
        }
    }

    /// A dial failed: its initiator is told if it still waits; else the oldest who waits for a dial, if fewer dials
    /// are left; else the oldest who queues.
    pub(crate) fn dial_failed(&self, initiator: Option<Place>, failure: Failure, mut lease: Option<Lease>) {
        self.count(Event::DialFailure);
        let mut books = self.ledger().lock();
        books.undialled(lease.as_mut());
        let mut state = self.state.lock();
        let former = match &failure {
            Failure::Error(error) => state.last_error.replace(error.clone()),
            Failure::Timeout => None,
        };
        let dials = self.dials(&books);
        let mut waiter = initiator.and_then(|place| state.dialing.remove(place));
        if waiter.is_none() {
            waiter = state.take_stranded(dials).map(|(_, waiter)| waiter);
        }
        if waiter.is_none() {
            waiter = state.queued.pop_front().map(|(_, waiter)| waiter);
            self.sync(&mut books, &state);
        }
        let waker = waiter.and_then(|waiter| waiter.cell.grant(Grant::Failed(failure)));
        drop(state);
        self.ledger().settle(books);
        if let Some(waker) = waker {
            waker.wake();
        }
        drop((former, lease));
    }

    /// A dial found no descriptor, and nothing was idle: its caller waits for a slot, as if it had never had
    /// one.
    pub(crate) fn dial_postponed(
        &self,
        initiator: Option<Place>,
        error: DialError,
        mut lease: Option<Lease>,
    ) {
        let mut books = self.ledger().lock();
        books.undialled(lease.as_mut());
        let mut state = self.state.lock();
        let former = state.last_error.replace(error);
        if let Some((place, waiter)) = initiator.and_then(|place| Some((place, state.dialing.remove(place)?)))
        {
            state.queued.insert(place, waiter);
            self.sync(&mut books, &state);
        }
        self.requeue_stranded(&mut books, &mut state);
        drop(state);
        self.ledger().settle(books);
        drop((former, lease));
    }

    /// Callers that wait for a dial queue again if there are fewer dials than they.
    fn requeue_stranded(&self, books: &mut Books, state: &mut State<C>) {
        if state.requeue_stranded(self.dials(books)) {
            self.sync(books, state);
        }
    }

    /// Dials under way here.
    fn dials(&self, books: &Books) -> usize {
        self.seating.get().map_or(0, |seat| books.dials_of(seat))
    }

    /// Tells the books how many queue here.
    fn sync(&self, books: &mut Books, state: &State<C>) {
        if let Some(seat) = self.seating.get() {
            books.sync(seat, state.queued.len());
        }
    }
}

impl<C> State<C> {
    /// The oldest of those who wait for a dial and have none of their own, if all are more than the dials.
    fn take_stranded(&mut self, dials: usize) -> Option<(Place, Waiter<C>)> {
        if self.dialing.len() <= dials {
            return None;
        }
        let place = self.dialing.iter().find(|(_, waiter)| waiter.orphaned).map(|(place, _)| *place)?;
        self.dialing.remove(place).map(|waiter| (place, waiter))
    }

    /// Puts them back in the queue. Returns whether there were any.
    pub(super) fn requeue_stranded(&mut self, dials: usize) -> bool {
        let mut any = false;
        while let Some((place, waiter)) = self.take_stranded(dials) {
            self.queued.insert(place, Waiter { orphaned: false, ..waiter });
            any = true;
        }
        any
    }
}

impl<C: Send + 'static> Shared<C> {
    /// Gets in line, with a slot it may have brought. Whoever it is first for is served before this returns.
    pub(crate) fn enqueue(self: &Arc<Self>, waiter: Waiter<C>, brought: Option<Slot>, rests: u64) -> Queued {
        let (mut books, mut state) = self.both();
        if state.rests != rests && !waiter.fresh {
            return Queued::LookAgain(brought);
        }
        if brought.is_none() && books.attainable(self.partition().account) == 0 {
            return Queued::Never;
        }
        let seat = books.be_seated(self);
        state.last_place += 1;
        let place = state.last_place;
        // One that wants none of the idle ones needs their room if the address has no other.
        let surplus = match waiter.fresh && books.slots_of(seat) >= self.settings.max_conns {
            true => state.idle.take_oldest(),
            false => None,
        };
        self.publish(&state);
        let brought = match brought {
            Some(slot) if self.may_dial_with(&books, seat, &slot) => Brought::Dials(slot),
            // It waits as any other; the slot is not kept from the others meanwhile.
            Some(slot) => Brought::GoesBack(slot),
            None => Brought::Nothing,
        };
        match &brought {
            Brought::Dials(_) => state.dialing.insert(place, waiter),
            Brought::GoesBack(_) | Brought::Nothing => {
                state.queued.insert(place, waiter);
                books.sync(seat, state.queued.len());
            }
        }
        drop(state); // the slot may leave another address, whose lock that takes
        let slot = match brought {
            Brought::Dials(mut slot) => {
                books.reassign(&mut slot, Some(seat), Kind::Dialing);
                self.ledger().settle(books);
                Some(slot)
            }
            Brought::GoesBack(slot) => {
                self.ledger().settle(books);
                drop(slot);
                None
            }
            Brought::Nothing => {
                self.ledger().settle(books);
                None
            }
        };
        if let Some(entry) = surplus {
            self.discard(entry, Event::Retired);
        }
        Queued::At(place, slot)
    }

    fn may_dial_with(&self, books: &Books, seat: SeatId, slot: &Slot) -> bool {
        let another = books.slots_of(seat) < self.settings.max_conns || slot.sits_at(seat);
        another && books.dial_room(self.partition().account) > 0
    }

    /// A slot for one more connection that nobody waits for: only if it is free, and nobody else wants it.
    pub(crate) fn spare_slot(self: &Arc<Self>) -> Option<Slot> {
        let mut books = self.ledger().lock();
        let account = self.partition().account;
        if self.ledger().is_pressed() || books.free(account) == 0 || books.dial_room(account) == 0 {
            return None;
        }
        let seat = books.be_seated(self);
        if books.slots_of(seat) >= self.settings.max_conns {
            return None;
        }
        Some(books.take_slot(self.partition(), seat))
    }
}
