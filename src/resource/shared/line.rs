//! Callers in line at one address, and the dials they count on: who gets in, who leaves, and what a dial's
//! end means to whom.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use tokio::runtime;

use super::state::Rare;
use super::{Caller, Failure, Grant, Shared, State, Waiter};
use crate::budget::books::{Books, SeatId};
use crate::budget::queue::Place;
use crate::budget::slot::{Kind, Slot};
use crate::clock::{self, Tick};
use crate::conn::Entry;
use crate::dial::SharedLease;
use crate::error::{DialError, Phase};
use crate::resource::attempt::Terms;
use crate::stats::Event;
use crate::sync::{MutexGuard, Ordering, ShortMutexGuard};

/// What a caller found when it got in line.
pub(crate) enum Queued {
    /// In line; with a slot, whether it brought one or there was one, to dial with.
    At(Place, Option<Begun>),
    /// Something came to rest since it looked: it has to look again, with what it brought.
    LookAgain(Option<Slot>),
    /// The budget's limit is zero.
    Never,
    /// The address pauses after failed dials; the last one's error.
    Paused(DialError, Option<Slot>),
    /// The budget, or the resource, is closed.
    Closed(Option<Slot>),
}

/// A slot that is a dial's from now on, and its terms.
pub(crate) struct Begun {
    pub(crate) slot: Slot,
    pub(crate) terms: Terms,
}

/// What becomes of the slot that a caller brought.
enum Brought {
    Nothing,
    /// It brought none, but there was one.
    AtOnce(Slot),
    Dials(Slot),
    GoesBack(Slot),
}

/// What a dial that succeeded leaves to be done after the locks.
struct Dialled<C> {
    waker: Option<Waker>,
    /// Nobody here wanted its connection.
    left: Option<Box<Entry<C>>>,
    /// The error of a dial before it.
    former: Option<DialError>,
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
        let busy = seat.is_some_and(|seat| books.slots_of(seat) >= self.max_conns());
        let phase = if place.is_some_and(|place| state.rare().queued.remove(place).is_some()) {
            self.sync(&mut books, &state);
            match state.rare().pace.pause(clock::now()) {
                _ if busy => Phase::WaitingForAddress,
                Some(_) => Phase::BackingOff,
                None if self.waits_to_dial(&books) => Phase::WaitingToDial,
                None => Phase::WaitingForSlot,
            }
        } else {
            place.and_then(|place| state.rare().dialing.remove(place));
            Phase::Dialing
        };
        let like = |waiter: &Waiter<C>| waiter.wants.runtime == runtime;
        let rare = state.rare();
        let keep_dial = rare.queued.iter().any(|(_, waiter)| like(waiter))
            || rare.dialing.iter().any(|(_, waiter)| waiter.orphaned && like(waiter));
        drop(state);
        self.ledger().settle(books);
        // Nobody grants to a cell that is in no line.
        Left { granted: caller.cell.leave(), phase, keep_dial }
    }

    /// Passes on what was granted to a caller that left.
    pub(crate) fn pass_on(&self, grant: Grant<C>) {
        match grant {
            Grant::Conn(entry) => Self::rest(entry, true),
            Grant::Slot(slot) => drop(slot),
            Grant::Failed(_) => {}
        }
    }

    /// Whether a caller waits for a slot or for its address, and not for a dial.
    pub(crate) fn is_queued(&self, place: Option<Place>) -> bool {
        let state = self.state.lock();
        let queued = state.several().map(|rare| &rare.queued);
        place.zip(queued).is_some_and(|(place, queued)| queued.contains(place))
    }

    /// A dial begins with this slot, which is counted.
    pub(crate) fn begin_dial(&self, slot: Slot) -> Begun {
        let terms = self.state.lock().begin_dial();
        self.partition().count(Event::Dial, 1);
        Begun { slot, terms }
    }

    /// Why the address pauses.
    pub(crate) fn failure(&self) -> DialError {
        self.state.lock().rare().failure()
    }

    pub(crate) fn last_error(&self) -> Option<DialError> {
        self.state.lock().last_error()
    }

    /// A dial succeeded: the oldest caller here gets the connection; without callers, it is given back.
    pub(crate) fn dialled(&self, initiator: Option<Place>, mut entry: Box<Entry<C>>) {
        let mut books = self.ledger().lock();
        books.connected(entry.lease_mut());
        let mut state = self.state.lock();
        let alone = if state.closed { None } else { state.take_alone(initiator, &entry) };
        let Dialled { waker, left, former } = match alone {
            Some(caller) => {
                Dialled { waker: caller.cell.grant(Grant::Conn(entry)), left: None, former: None }
            }
            None => self.dialled_for_several(&mut books, &mut state, initiator, entry),
        };
        // It is about to be put, as a rule.
        let is_over = state.closed || self.is_crowded(&books, &mut state);
        let spent = if is_over { None } else { self.calm_down(&mut books, &mut state) };
        drop(state);
        self.ledger().settle(books);
        if let Some(waker) = waker {
            waker.wake();
        }
        drop((former, spent)); // an error is the dialer's: not under a lock (I3)
        if let Some(entry) = left {
            Self::rest(entry, true);
        }
    }

    fn dialled_for_several(
        &self,
        books: &mut Books,
        state: &mut State<C>,
        initiator: Option<Place>,
        entry: Box<Entry<C>>,
    ) -> Dialled<C> {
        let waiter = if state.closed { None } else { self.next_for(books, state, &entry) };
        let (waker, left) = match waiter {
            Some(waiter) => (waiter.caller.cell.grant(Grant::Conn(entry)), None),
            None => (None, Some(entry)),
        };
        let (rare, limits) = state.rare_and_limits();
        let former = rare.last_error.take();
        if let Some(waiter) = initiator.and_then(|place| rare.dialing.get_mut(place)) {
            waiter.orphaned = true;
        }
        rare.note_move();
        rare.pace.succeeded(limits, left.is_none());
        rare.requeue_stranded(self.dials(books));
        self.sync(books, state);
        Dialled { waker, left, former }
    }

    /// A dial failed: its initiator is told if it still waits; else the oldest who waits for a dial, if fewer dials
    /// are left; else the oldest who queues. Those who wait until the address is well are told of nothing that may
    /// pass. If the address pauses now, so are all who queue for a dial.
    pub(crate) fn dial_failed(
        &self,
        initiator: Option<Place>,
        failure: Failure,
        lease: SharedLease,
        random: u64,
    ) {
        self.count(Event::DialFailure);
        let permanent = matches!(&failure, Failure::Error(error) if error.is_permanent());
        let mut books = self.ledger().lock();
        books.undialled(lease.lock().as_mut());
        let mut state = self.state.lock();
        let (rare, limits) = state.rare_and_limits();
        // Without pauses there is nothing to wait for.
        let pauses = !limits.pause.is_zero();
        let tells = |waiter: &Waiter<C>| permanent || !pauses || !waiter.wants.patient;
        let former = match &failure {
            Failure::Error(error) => rare.last_error.replace(error.clone()),
            Failure::Timeout | Failure::Paused(_) | Failure::Closed => None,
        };
        rare.note_move();
        rare.pace.failed(limits, permanent, clock::now(), random);
        let dials = self.dials(&books);
        let mut waiter = initiator.and_then(|place| Some((place, rare.dialing.remove(place)?)));
        if waiter.is_none() {
            waiter = rare.take_stranded(dials);
        }
        if let Some((place, waiter)) = waiter.take_if(|(_, waiter)| !tells(waiter)) {
            rare.queued.insert(place, Waiter { orphaned: false, ..waiter });
        } else if waiter.is_none() {
            waiter = rare.queued.remove_first(tells);
        }
        let mut wakers = Vec::new();
        if let Some((_, waiter)) = waiter {
            wakers.extend(waiter.caller.cell.grant(Grant::Failed(failure)));
        }
        let pauses = rare.pace.pause_end().is_some();
        if pauses && !self.has_connections(&books) {
            let error = rare.failure();
            for waiter in rare.queued.remove_all(tells) {
                wakers.extend(waiter.caller.cell.grant(Grant::Failed(Failure::Paused(error.clone()))));
            }
        }
        self.sync(&mut books, &state);
        drop(state);
        self.ledger().settle(books);
        wakers.into_iter().for_each(Waker::wake);
        drop((former, lease));
        if pauses {
            tracing::debug!(address = %self.address, "dials failed: the address pauses");
        }
    }

    /// A dial found no descriptor, and nothing was idle: its caller waits for a slot, as if it had never had
    /// one.
    pub(crate) fn dial_postponed(&self, initiator: Option<Place>, error: DialError, lease: SharedLease) {
        let mut books = self.ledger().lock();
        books.undialled(lease.lock().as_mut());
        let mut state = self.state.lock();
        let rare = state.rare();
        let former = rare.last_error.replace(error);
        if let Some((place, waiter)) = initiator.and_then(|place| Some((place, rare.dialing.remove(place)?)))
        {
            rare.queued.insert(place, waiter);
            self.sync(&mut books, &state);
        }
        state.rare().requeue_stranded(self.dials(&books));
        self.sync(&mut books, &state);
        drop(state);
        self.ledger().settle(books);
        drop((former, lease));
    }

    /// When to probe the address for those who queue here, if it pauses and nobody of this runtime has been told to yet.
    /// Whoever asks has to [probe](Self::probe) it then.
    pub(crate) fn await_probe(&self, runtime: runtime::Id) -> Option<Tick> {
        if self.may_dial() > 0 {
            return None; // the usual case, without a lock
        }
        let mut state = self.state.lock();
        let rare = state.rare();
        let awaits = !rare.probed_on.contains(&runtime) && !rare.queued.is_empty();
        let end = rare.pace.pause_end().filter(|_| awaits)?;
        rare.probed_on.push(runtime);
        Some(end)
    }

    /// Whether somebody of this runtime has to be told to [hasten](Self::hasten), since callers queue here and nobody does.
    pub(crate) fn await_haste(&self, runtime: runtime::Id) -> bool {
        let mut state = self.state.lock();
        let rare = state.rare();
        if rare.queued.is_empty() || rare.hastened_on.contains(&runtime) {
            return false;
        }
        if rare.hastened_on.is_empty() {
            rare.moved = clock::now();
        }
        rare.hastened_on.push(runtime);
        true
    }

    /// Whoever was to hasten is gone: those who count on it keep their time themselves.
    pub(crate) fn haste_ended(&self, runtime: runtime::Id) {
        let wakers: Vec<_> = {
            let mut state = self.state.lock();
            let rare = state.rare();
            rare.hastened_on.retain(|other| *other != runtime);
            let theirs = rare.queued.iter().filter(|(_, waiter)| waiter.wants.runtime == Some(runtime));
            theirs.filter_map(|(_, waiter)| waiter.caller.cell.take_waker()).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Some time has passed: if no dial has ended in `span`, twice as many may be under way, where callers queue for want
    /// of them. Wakes those whose patience ends within `soon`. `false`: nobody of this runtime queues.
    pub(crate) fn hasten(&self, span: Duration, soon: Duration, runtime: runtime::Id) -> bool {
        let (mut books, mut state) = self.both();
        let (rare, limits) = state.rare_and_limits();
        if !rare.queued.iter().any(|(_, waiter)| waiter.wants.runtime == Some(runtime)) {
            rare.hastened_on.retain(|other| *other != runtime);
            return false;
        }
        let now = clock::now();
        let wakes = |waiter: &Waiter<C>| waiter.woken_before.since(now) <= soon;
        let waiters = rare.queued.iter().filter(|(_, waiter)| wakes(waiter));
        let wakers: Vec<_> = waiters.filter_map(|(_, waiter)| waiter.caller.cell.take_waker()).collect();
        let dials = self.dials(&books);
        // The clock is a tick or two behind the timer.
        let stalled = now.since(rare.moved) >= span - span / 8;
        if stalled && dials > 0 && dials >= rare.pace.allowed(limits) {
            rare.pace.urge(2 * dials - 1);
            rare.moved = now;
            self.sync(&mut books, &state);
        }
        drop(state);
        self.ledger().settle(books);
        wakers.into_iter().for_each(Waker::wake);
        true
    }

    /// Lets one dial probe the address, if its pause ends at `end` or before; whoever waited to say so is gone.
    pub(crate) fn probe(&self, end: Tick, runtime: runtime::Id) {
        let (mut books, mut state) = self.both();
        let rare = state.rare();
        rare.probed_on.retain(|other| *other != runtime);
        rare.pace.probe(end);
        self.sync(&mut books, &state);
        drop(state);
        self.ledger().settle(books);
    }

    /// Whether there are slots, but as many dials under way as may be.
    fn waits_to_dial(&self, books: &Books) -> bool {
        let account = self.partition().account;
        let barred = books.dial_room(account) == 0 || self.dials(books) >= self.may_dial();
        barred && books.free(account) > 0
    }

    /// Whether something here may come back.
    fn has_connections(&self, books: &Books) -> bool {
        self.seating.get().is_some_and(|seat| books.counts_of(seat).get(Kind::Connected) > 0)
    }

    /// Dials under way here.
    fn dials(&self, books: &Books) -> usize {
        self.seating.get().map_or(0, |seat| books.dials_of(seat))
    }

    /// Whether somebody seems to queue here, read without a lock.
    #[inline]
    pub(crate) fn others_queue(&self) -> bool {
        self.others_queue.load(Ordering::Relaxed)
    }

    /// Written only if it changes: callers read it before each get.
    fn note_queue(&self, others: bool) {
        if self.others_queue() != others {
            self.others_queue.store(others, Ordering::Relaxed);
        }
    }

    /// Tells the books how many queue here, and how many may dial.
    pub(super) fn sync(&self, books: &mut Books, state: &State<C>) {
        self.set_may_dial(state.may_dial());
        self.note_queue(state.queued() > 0);
        if let Some(seat) = self.seating.get() {
            books.sync(seat, state.queued());
        }
    }
}

impl<C: Send + 'static> Shared<C> {
    /// Gets in line, with a slot it may have brought. Whoever it is first for is served before this returns.
    ///
    /// If nobody else waits and all it lacks is the slot of something idle, it brings that.
    pub(crate) fn enqueue(
        self: &Arc<Self>,
        caller: &Arc<Caller<C>>,
        brought: Option<Slot>,
        rests: u32,
    ) -> Queued {
        let (mut books, mut state) = self.both();
        let (mut brought, mut spared) = (brought, None);
        if brought.is_none() && self.lacks_a_slot(&books, &state, caller, rests) {
            drop(state); // the search looks at others
            if let Some((victim, slot)) = books.spare(self.partition().account) {
                (brought, spared) = (slot, Some(victim));
            }
            state = self.state.lock();
        }
        let (queued, unused) = self.line_up(books, state, caller, brought, rests);
        let Some(victim) = spared else { return queued };
        self.ledger().close_spared(victim);
        drop(unused);
        match queued {
            // Served by what came back meanwhile.
            Queued::At(place, Some(begun)) if !caller.cell.is_waiting() => {
                drop(begun);
                Queued::At(place, None)
            }
            queued => queued,
        }
    }

    /// Also returns the slot that was brought, if it is of no use here.
    fn line_up(
        self: &Arc<Self>,
        mut books: MutexGuard<'_, Books>,
        mut state: ShortMutexGuard<'_, State<C>>,
        caller: &Arc<Caller<C>>,
        brought: Option<Slot>,
        rests: u32,
    ) -> (Queued, Option<Slot>) {
        if state.closed || books.is_closed(self.partition().account) {
            return (Queued::Closed(brought), None);
        }
        if state.idle.rests != rests && !caller.wants.fresh {
            return (Queued::LookAgain(brought), None);
        }
        let account = self.partition().account;
        let at_once = brought.is_none() && books.has_slot_at_once(account);
        if brought.is_none() && !at_once && books.attainable(account) == 0 {
            return (Queued::Never, None);
        }
        if let Some((rare, _)) = state.rare_if_any()
            && let Some(error) = self.pauses_for(&books, rare, caller)
        {
            return (Queued::Paused(error, brought), None);
        }
        let seat = books.be_seated(self);
        let dials = books.dials_of(seat);
        if !state.is_deserted() || caller.immediate && dials > 0 {
            let (rare, limits) = state.rare_and_limits();
            if rare.queued.is_empty() && rare.dialing.is_empty() {
                rare.pace.begin(limits);
            }
            if caller.immediate {
                rare.pace.urge(dials);
            }
        }
        self.set_may_dial(state.may_dial());
        state.calm = false;
        // One that wants none of the idle ones needs their room if the address has no other.
        let mut surplus = None;
        if caller.wants.fresh && books.slots_of(seat) >= self.max_conns() {
            surplus = state.idle.take_oldest();
            self.publish(&state);
        }
        let brought = match brought {
            Some(slot) if self.may_dial_with(&books, &state, seat, &slot) => Brought::Dials(slot),
            // It waits as any other; the slot is not kept from the others meanwhile.
            Some(slot) => Brought::GoesBack(slot),
            None if at_once && books.may_dial_another(seat) => {
                Brought::AtOnce(books.take_slot(self.partition(), seat))
            }
            None => Brought::Nothing,
        };
        let (place, terms) = match &brought {
            Brought::AtOnce(_) | Brought::Dials(_) => (state.awaits_dial(caller), Some(state.begin_dial())),
            Brought::GoesBack(_) | Brought::Nothing => {
                let place = state.awaits_slot(caller);
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
        if begun.is_some() {
            self.partition().count(Event::Dial, 1);
        }
        (Queued::At(place, begun), unused)
    }

    /// Whether the address pauses, and one who comes now has nothing to wait for: with the last dial's error.
    fn pauses_for(&self, books: &Books, rare: &mut Rare<C>, caller: &Caller<C>) -> Option<DialError> {
        let now = clock::now();
        rare.pace.probe(now);
        rare.pace.pause(now)?;
        if caller.wants.patient || self.has_connections(books) {
            return None;
        }
        let first = rare.pace.pause_end().is_none() && rare.queued.is_empty() && self.dials(books) == 0;
        (!first).then(|| rare.failure())
    }

    /// Whether one who gets in line now could dial at once if it had a slot, and may have that of something idle. Not
    /// while this thread evicts: what is called there is seen to afterwards.
    fn lacks_a_slot(&self, books: &Books, state: &State<C>, caller: &Caller<C>, rests: u32) -> bool {
        let slots = self.seating.get().map_or(0, |seat| books.slots_of(seat));
        state.is_deserted()
            && !state.closed
            && (state.idle.rests == rests || caller.wants.fresh)
            && slots < self.max_conns()
            && books.lacks_a_slot(self.partition().account)
            && !self.ledger().is_settling()
    }

    fn may_dial_with(&self, books: &Books, state: &State<C>, seat: SeatId, slot: &Slot) -> bool {
        let another = books.slots_of(seat) < self.max_conns() || slot.sits_at(seat);
        let well = self.may_dial() > 0;
        another
            && well
            && books.dials_of(seat) < state.settings.dialing.most
            && books.dial_room(self.partition().account) > 0
    }

    /// A slot for one more connection that nobody waits for: only if it is free, and nobody else wants it.
    pub(crate) fn spare_slot(self: &Arc<Self>) -> Option<Slot> {
        let mut books = self.ledger().lock();
        let account = self.partition().account;
        if books.is_closed(account)
            || self.ledger().is_pressed()
            || books.free(account) == 0
            || books.dial_room(account) == 0
        {
            return None;
        }
        let (slots, dials) =
            self.seating.get().map_or((0, 0), |seat| (books.slots_of(seat), books.dials_of(seat)));
        if slots >= self.max_conns() || dials >= self.may_dial() {
            return None;
        }
        let seat = books.be_seated(self);
        Some(books.take_slot(self.partition(), seat))
    }
}
