//! Callers in line at one address, and the dials they count on: who gets in, who leaves, and what a dial's
//! end means to whom.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use tokio::runtime;

use super::{Failure, Grant, Shared, State, Waiter};
use crate::budget::books::{Books, SeatId};
use crate::budget::queue::{Cell, Place};
use crate::budget::slot::{Kind, Slot};
use crate::clock::{self, Tick};
use crate::conn::Entry;
use crate::dial::SharedLease;
use crate::error::{DialError, Phase};
use crate::resource::attempt::Terms;
use crate::resource::settings::Settings;
use crate::stats::Event;
use crate::sync::{MutexGuard, Ordering, ShortMutexGuard};

/// What a caller found when it got in line.
pub(crate) enum Queued {
    /// In line; the slot it brought is now a dial's.
    At(Place, Option<Slot>),
    /// Something came to rest since it looked: it has to look again, with what it brought.
    LookAgain(Option<Slot>),
    /// The budget's limit is zero.
    Never,
    /// The address pauses after failed dials; the last one's error.
    Paused(DialError, Option<Slot>),
    /// The budget, or the resource, is closed.
    Closed(Option<Slot>),
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
        let like = |waiter: &Waiter<C>| waiter.runtime == runtime;
        let rare = state.rare();
        let keep_dial = rare.queued.iter().any(|(_, waiter)| like(waiter))
            || rare.dialing.iter().any(|(_, waiter)| waiter.orphaned && like(waiter));
        drop(state);
        self.ledger().settle(books);
        // Nobody grants to a cell that is in no line.
        Left { granted: cell.leave(), phase, keep_dial }
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
        let queued = state.rare.as_ref().map(|rare| &rare.queued);
        place.zip(queued).is_some_and(|(place, queued)| queued.contains(place))
    }

    /// A dial begins, which is counted: on what terms, if nobody says otherwise.
    pub(crate) fn begin_dial(&self) -> Terms {
        let terms = {
            let mut state = self.state.lock();
            state.tally.add(Event::Dial, 1);
            let Settings { dial_timeout: timeout, max_lifetime, .. } = *state.settings;
            Terms { generation: state.generation, timeout, max_lifetime }
        };
        self.partition().count(Event::Dial, 1);
        terms
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
        let waiter = if state.closed { None } else { self.next_for(&mut books, &mut state, &entry) };
        let (waker, left) = match waiter {
            Some(waiter) => (waiter.cell.grant(Grant::Conn(entry)), None),
            None => (None, Some(entry)),
        };
        let (rare, limits) = state.rare_and_limits();
        let former = rare.last_error.take();
        if let Some(waiter) = initiator.and_then(|place| rare.dialing.get_mut(place)) {
            waiter.orphaned = true;
        }
        rare.note_move();
        rare.pace.succeeded(limits, left.is_none());
        rare.requeue_stranded(self.dials(&books));
        // It is about to be put, as a rule.
        let is_over = state.closed || self.is_crowded(&books, &mut state);
        let spent = if is_over { None } else { self.calm_down(&mut books, &mut state) };
        self.sync(&mut books, &state);
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
        let tells = |waiter: &Waiter<C>| permanent || !pauses || !waiter.patient;
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
            wakers.extend(waiter.cell.grant(Grant::Failed(failure)));
        }
        let pauses = rare.pace.pause_end().is_some();
        if pauses && !self.has_connections(&books) {
            let error = rare.failure();
            for waiter in rare.queued.remove_all(tells) {
                wakers.extend(waiter.cell.grant(Grant::Failed(Failure::Paused(error.clone()))));
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
            let theirs = rare.queued.iter().filter(|(_, waiter)| waiter.runtime == Some(runtime));
            theirs.filter_map(|(_, waiter)| waiter.cell.take_waker()).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Some time has passed: if no dial has ended in `span`, twice as many may be under way, where callers queue for want
    /// of them. Wakes those whose patience ends within `soon`. `false`: nobody of this runtime queues.
    pub(crate) fn hasten(&self, span: Duration, soon: Duration, runtime: runtime::Id) -> bool {
        let (mut books, mut state) = self.both();
        let (rare, limits) = state.rare_and_limits();
        if !rare.queued.iter().any(|(_, waiter)| waiter.runtime == Some(runtime)) {
            rare.hastened_on.retain(|other| *other != runtime);
            return false;
        }
        let now = clock::now();
        let wakes = |waiter: &Waiter<C>| waiter.woken_before.since(now) <= soon;
        let waiters = rare.queued.iter().filter(|(_, waiter)| wakes(waiter));
        let wakers: Vec<_> = waiters.filter_map(|(_, waiter)| waiter.cell.take_waker()).collect();
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
    pub(crate) fn enqueue(self: &Arc<Self>, waiter: &Waiter<C>, brought: Option<Slot>, rests: u32) -> Queued {
        let (mut books, mut state) = self.both();
        let (mut brought, mut spared) = (brought, None);
        if brought.is_none() && self.lacks_a_slot(&books, &state, waiter, rests) {
            drop(state); // the search looks at others
            if let Some((victim, slot)) = books.spare(self.partition().account) {
                (brought, spared) = (slot, Some(victim));
            }
            state = self.state.lock();
        }
        let (queued, unused) = self.line_up(books, state, waiter, brought, rests);
        let Some(victim) = spared else { return queued };
        self.ledger().close_spared(victim);
        drop(unused);
        match queued {
            // Served by what came back meanwhile.
            Queued::At(place, Some(slot)) if !waiter.cell.is_waiting() => {
                drop(slot);
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
        waiter: &Waiter<C>,
        brought: Option<Slot>,
        rests: u32,
    ) -> (Queued, Option<Slot>) {
        if state.closed || books.is_closed(self.partition().account) {
            return (Queued::Closed(brought), None);
        }
        if state.rests != rests && !waiter.fresh {
            return (Queued::LookAgain(brought), None);
        }
        if brought.is_none() && books.attainable(self.partition().account) == 0 {
            return (Queued::Never, None);
        }
        let now = clock::now();
        let (rare, limits) = state.rare_and_limits();
        rare.pace.probe(now);
        if rare.pace.pause(now).is_some() && !waiter.patient && !self.has_connections(&books) {
            let first = rare.pace.pause_end().is_none() && rare.queued.is_empty() && self.dials(&books) == 0;
            if !first {
                return (Queued::Paused(rare.failure(), brought), None);
            }
        }
        let seat = books.be_seated(self);
        if rare.queued.is_empty() && rare.dialing.is_empty() {
            rare.pace.begin(limits);
        }
        if waiter.immediate {
            rare.pace.urge(books.dials_of(seat));
        }
        let (place, may_dial) = (rare.next_place(), rare.pace.allowed(limits));
        self.set_may_dial(may_dial);
        state.calm = false;
        // One that wants none of the idle ones needs their room if the address has no other.
        let surplus = match waiter.fresh && books.slots_of(seat) >= self.max_conns() {
            true => state.idle.take_oldest(),
            false => None,
        };
        self.publish(&state);
        let brought = match brought {
            Some(slot) if self.may_dial_with(&books, &state, seat, &slot) => Brought::Dials(slot),
            // It waits as any other; the slot is not kept from the others meanwhile.
            Some(slot) => Brought::GoesBack(slot),
            None => books.slot_at_once(self.partition(), seat).map_or(Brought::Nothing, Brought::Dials),
        };
        let waiter = Waiter { generation: state.generation, ..waiter.clone() };
        match &brought {
            Brought::Dials(_) => state.rare().dialing.insert(place, waiter),
            Brought::GoesBack(_) | Brought::Nothing => {
                state.rare().queued.insert(place, waiter);
                self.note_queue(true);
                books.sync(seat, state.queued());
            }
        }
        drop(state); // the slot may leave another address, whose lock that takes
        let (slot, unused) = match brought {
            Brought::Dials(mut slot) => {
                books.reassign(&mut slot, Some(seat), Kind::Dialing);
                (Some(slot), None)
            }
            Brought::GoesBack(slot) => (None, Some(slot)),
            Brought::Nothing => (None, None),
        };
        self.ledger().settle(books);
        if let Some(entry) = surplus {
            entry.discard(Event::Retired);
        }
        (Queued::At(place, slot), unused)
    }

    /// Whether one who gets in line now could dial at once if it had a slot, and may have that of something idle. Not
    /// while this thread evicts: what is called there is seen to afterwards.
    fn lacks_a_slot(&self, books: &Books, state: &State<C>, waiter: &Waiter<C>, rests: u32) -> bool {
        let slots = self.seating.get().map_or(0, |seat| books.slots_of(seat));
        state.rare.is_none()
            && !state.closed
            && (state.rests == rests || waiter.fresh)
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
