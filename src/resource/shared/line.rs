//! Callers in line at one address: who gets in, with or without a slot, and who leaves.

use std::sync::Arc;

use tokio::runtime;

use super::callers::Stood;
use super::rare::Rare;
use super::reuse::Counted;
use super::{Begun, Caller, Failure, Grant, Locked, Shared, State, Waiter};
use crate::budget::books::{Books, SeatId};
use crate::budget::queue::Place;
use crate::budget::slot::{Kind, Slot};
use crate::clock::{self, Tick};
use crate::error::{DialError, Phase};
use crate::stats::Event;
use crate::sync::{MutexGuard, Ordering, wake_all};

/// What a caller found when it got in line.
pub(crate) enum Queued {
    /// In line; with a slot, whether it brought one or there was one, to dial with.
    At(Place, Option<Begun>),
    /// Something came to rest since it looked: it has to look again, with what it brought.
    LookAgain(Option<Slot>),
    /// Not let in, with what it brought.
    Refused(Failure, Option<Slot>),
}

/// What becomes of the slot that a caller brought.
enum Brought {
    Nothing,
    /// It brought none, but there was one.
    AtOnce(Slot),
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
        caller: &Caller<C>,
        runtime: Option<runtime::Id>,
    ) -> Left<C> {
        let (mut books, mut state) = self.both();
        let seat = self.seating.get();
        let busy = seat.is_some_and(|seat| books.slots_of(seat) >= state.settings.max_conns);
        let phase = match place.and_then(|place| state.step_out(place)) {
            Some(Stood::Queued) => {
                self.sync(&mut books, &state);
                match state.several().and_then(|rare| rare.pace.pause(clock::now())) {
                    _ if busy => Phase::WaitingForAddress,
                    Some(_) => Phase::BackingOff,
                    None if self.waits_to_dial(&books, &state) => Phase::WaitingToDial,
                    None => Phase::WaitingForSlot,
                }
            }
            Some(Stood::Dialing) | None => Phase::Dialing,
        };
        let like = |waiter: &Waiter<C>| waiter.wants.runtime == runtime;
        // Without one there is no dial, or nobody to go on with it: no reason to look at all who are in line.
        let keep_dial = runtime.is_some()
            && state.several().is_some_and(|rare| {
                rare.queued.iter().any(|(_, waiter)| like(waiter))
                    || rare.dialing.iter().any(|(_, waiter)| waiter.orphaned && like(waiter))
            });
        drop(state);
        self.ledger().settle(books);
        // Nobody grants to a cell that is in no line.
        Left { granted: caller.cell.leave(), phase, keep_dial }
    }

    /// Passes on what was granted to a caller that left. A failure is its own.
    pub(crate) fn pass_on(&self, grant: Grant<C>) -> Option<Failure> {
        match grant {
            Grant::Conn(entry) => {
                if !entry.is_new() {
                    drop(Counted(self)); // nobody was given it
                }
                Self::rest(entry, true);
            }
            Grant::Slot(slot) => drop(slot),
            Grant::Failed(failure) => return Some(failure),
        }
        None
    }

    /// Whether a caller waits for a slot or for its address, and not for a dial.
    pub(crate) fn is_queued(&self, place: Option<Place>) -> bool {
        let state = self.lock();
        let queued = state.several().map(|rare| &rare.queued);
        place.zip(queued).is_some_and(|(place, queued)| queued.contains(place))
    }

    /// Whether there are slots, but as many dials under way as may be.
    fn waits_to_dial(&self, books: &Books, state: &State<C>) -> bool {
        let account = self.partition().account;
        let barred = books.dial_room(account) == 0 || self.dials(books) >= state.may_dial();
        barred && books.free(account) > 0
    }

    /// Whether somebody seems to queue here, read without a lock.
    #[inline]
    pub(crate) fn others_queue(&self) -> bool {
        self.others_queue.load(Ordering::Relaxed)
    }

    /// Written only if it changes: callers read it before each get.
    pub(super) fn note_queue(&self, others: bool) {
        if self.others_queue() != others {
            self.others_queue.store(others, Ordering::Relaxed);
        }
    }

    /// Tells the books how many queue here, and what they may have.
    pub(super) fn sync(&self, books: &mut Books, state: &State<C>) {
        self.note_queue(state.queued() > 0);
        if let Some(seat) = self.seating.get() {
            books.bound(seat, state.bounds());
            books.sync(seat, state.queued());
        }
    }
}

impl<C: Send + 'static> Shared<C> {
    /// Gets in line, with a slot it may have brought, or back where it stood. Whoever it is first for is served before this
    /// returns.
    ///
    /// If nobody else waits and all it lacks is the slot of something idle, it brings that.
    pub(crate) fn enqueue(
        self: &Arc<Self>,
        caller: &Arc<Caller<C>>,
        brought: Option<Slot>,
        rests: u32,
        former: Option<Place>,
    ) -> Queued {
        let (mut books, mut state) = self.both();
        let (mut brought, mut spared) = (brought, None);
        if brought.is_none() && self.lacks_a_slot(&books, &state, caller, rests) {
            drop(state); // the search looks at others
            if let Some((victim, slot)) = books.spare(self.partition().account) {
                (brought, spared) = (slot, Some(victim));
            }
            state = self.lock();
        }
        let (queued, unused) = self.admit(books, state, caller, brought, rests, former);
        let Some(victim) = spared else { return queued };
        self.ledger().close_spared(victim);
        drop(unused);
        match queued {
            // Served by what came back meanwhile.
            Queued::At(place, Some(begun)) if !caller.cell.is_waiting() => {
                drop(begun);
                self.lock().tally.take_back(Event::Dial);
                Queued::At(place, None)
            }
            queued => queued,
        }
    }

    /// Back in line where it stood, for a dial of its own that goes on.
    pub(crate) fn rejoin(&self, caller: &Arc<Caller<C>>, place: Place, rests: u32) -> Queued {
        let (mut books, mut state) = self.both();
        if state.closed || books.is_closed(self.partition().account) {
            return Queued::Refused(Failure::Closed, None);
        }
        if state.has_for(caller, rests) {
            return Queued::LookAgain(None);
        }
        state.awaits_dial(caller, Some(place));
        state.calm = false;
        // While it was out of the line another may have counted on its dial.
        let stranded = state.ensure_rare().requeue_stranded(self.dials(&books));
        self.sync(&mut books, &state);
        drop(state);
        self.ledger().settle(books);
        wake_all(stranded.into_iter().flatten());
        Queued::At(place, None)
    }

    /// Lets a caller into the line, unless it has nothing to wait for. Also returns the slot that was brought, if it is of no
    /// use here.
    fn admit(
        self: &Arc<Self>,
        mut books: MutexGuard<'_, Books>,
        mut state: Locked<'_, C>,
        caller: &Arc<Caller<C>>,
        brought: Option<Slot>,
        rests: u32,
        former: Option<Place>,
    ) -> (Queued, Option<Slot>) {
        let at_once = brought.is_none() && books.has_slot_at_once(self.partition().account);
        let has_slot = at_once || brought.is_some();
        if let Some(failure) = self.refuses(&books, &mut state, caller, has_slot) {
            return (Queued::Refused(failure, brought), None);
        }
        if state.has_for(caller, rests) {
            return (Queued::LookAgain(brought), None);
        }
        let seat = books.be_seated(self, state.bounds());
        let dials = books.dials_of(seat);
        if !state.is_deserted() || caller.immediate && dials > 0 {
            let (rare, limits) = state.ensure_rare_and_limits();
            if rare.queued.is_empty() && rare.dialing.is_empty() {
                rare.pace.begin(limits);
            }
            if caller.immediate {
                rare.pace.urge(dials);
            }
            books.bound(seat, state.bounds());
        }
        state.calm = false;
        // One that wants none of the idle ones needs their room if the address has no other.
        let mut surplus = None;
        let lacks_room = || state.lacks_room(books.slots_of(seat), state.queued() + 1);
        if caller.wants.fresh && lacks_room() && state.may_dial() > 0 {
            surplus = state.idle.take_oldest();
            state.publish();
        }
        let brought = match brought {
            Some(slot) if self.may_dial_with(&books, &state, seat, &slot) => Brought::Dials(slot),
            // It waits as any other; the slot is not kept from the others meanwhile.
            Some(slot) => Brought::GoesBack(slot),
            None if at_once && books.may_dial_another(seat, caller.immediate) => {
                Brought::AtOnce(books.take_slot(self.partition(), seat))
            }
            None => Brought::Nothing,
        };
        let (place, terms) = match &brought {
            Brought::AtOnce(_) | Brought::Dials(_) => {
                (state.awaits_dial(caller, former), Some(state.begin_dial()))
            }
            Brought::GoesBack(_) | Brought::Nothing => {
                let place = state.awaits_slot(caller, Tick::NEVER, former);
                self.note_queue(true);
                books.sync(seat, state.queued());
                (place, None)
            }
        };
        drop(state); // the slot may leave another address, whose lock that takes
        let (slot, unused) = match brought {
            Brought::Dials(mut slot) => {
                books.reassign(&mut slot, Some(seat), Kind::Dialing);
                (Some(slot), None)
            }
            Brought::AtOnce(slot) => (Some(slot), None),
            Brought::GoesBack(slot) => (None, Some(slot)),
            Brought::Nothing => (None, None),
        };
        self.ledger().settle(books);
        if let Some(entry) = surplus {
            entry.discard(Event::Retired);
        }
        let begun = slot.zip(terms).map(|(slot, terms)| Begun { slot, terms });
        (Queued::At(place, begun), unused)
    }

    /// Why one who comes now, with or without a slot, is not let in.
    fn refuses(
        &self,
        books: &Books,
        state: &mut State<C>,
        caller: &Caller<C>,
        has_slot: bool,
    ) -> Option<Failure> {
        let account = self.partition().account;
        if state.closed || books.is_closed(account) {
            return Some(Failure::Closed);
        }
        if !has_slot && books.attainable(account) == 0 {
            return Some(Failure::Never);
        }
        let (rare, _) = state.rare_if_any()?;
        self.pauses_for(books, rare, caller).map(Failure::Paused)
    }

    /// Whether the address pauses, and one who comes now has nothing to wait for: with the last dial's error.
    fn pauses_for(&self, books: &Books, rare: &mut Rare<C>, caller: &Caller<C>) -> Option<DialError> {
        let now = clock::now();
        rare.pace.probe(now);
        rare.pace.pause(now)?;
        // What comes back is of no use to who wants a fresh one.
        if caller.wants.patient || !caller.wants.fresh && self.has_connections(books) {
            return None;
        }
        // Who queues already has its turn first, and may not be there for it.
        let first = rare.pace.pause_end().is_none() && self.dials(books) == 0;
        (!first).then(|| rare.failure())
    }

    /// Whether one who gets in line now could dial at once if it had a slot, and may have that of something idle. Not
    /// while this thread evicts: what is called there is seen to afterwards.
    fn lacks_a_slot(&self, books: &Books, state: &State<C>, caller: &Caller<C>, rests: u32) -> bool {
        let slots = self.seating.get().map_or(0, |seat| books.slots_of(seat));
        state.is_deserted()
            && !state.closed
            && !state.has_for(caller, rests)
            && slots < state.settings.max_conns
            && books.lacks_a_slot(self.partition().account)
            && !self.ledger().is_settling()
            // What the keeper looks at comes back.
            && (caller.immediate || self.published().notice.lent() == 0)
    }

    fn may_dial_with(&self, books: &Books, state: &State<C>, seat: SeatId, slot: &Slot) -> bool {
        let another = books.slots_of(seat) < state.settings.max_conns || slot.sits_at(seat);
        let well = state.may_dial() > 0;
        another
            && well
            && books.dials_of(seat) < state.settings.dialing.most
            && books.dial_room(self.partition().account) > 0
    }
}
