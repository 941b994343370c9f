//! The dials of an address: with what they begin, and what their end means to whom.

use std::sync::Arc;
use std::task::Waker;

use tokio::runtime;

use super::{Failure, Grant, Shared, State, Waiter};
use crate::budget::books::Books;
use crate::budget::queue::Place;
use crate::budget::slot::{Kind, Slot};
use crate::clock;
use crate::conn::Entry;
use crate::dial::SharedLease;
use crate::error::DialError;
use crate::resource::attempt::{Attempt, Job, Terms};
use crate::stats::Event;
use crate::sync::wake_all;

/// A slot that is a dial's from now on, and its terms.
pub(crate) struct Begun {
    pub(crate) slot: Slot,
    pub(crate) terms: Terms,
}

/// What a dial that succeeded leaves to be done after the locks.
struct Dialled<C> {
    waker: Option<Waker>,
    /// Of those who counted on it, and do not wait for another.
    stranded: Option<Vec<Waker>>,
    /// Nobody here wanted its connection.
    left: Option<Box<Entry<C>>>,
    /// The error of a dial before it.
    former: Option<DialError>,
}

impl<C> Shared<C> {
    /// A dial is to begin with this slot.
    pub(crate) fn begin_dial(&self, slot: Slot) -> Begun {
        let terms = self.lock().begin_dial();
        Begun { slot, terms }
    }

    /// The dial itself.
    pub(crate) fn attempt(
        self: &Arc<Self>,
        Begun { slot, terms }: Begun,
        initiator: Option<Place>,
        home: Option<runtime::Id>,
    ) -> Attempt {
        self.partition().count(Event::Dial, 1);
        Arc::clone(&self.dialer).attempt(Arc::clone(self), Job { slot, initiator, terms, home })
    }

    /// Whether something here may come back.
    pub(super) fn has_connections(&self, books: &Books) -> bool {
        self.seating.get().is_some_and(|seat| books.counts_of(seat).get(Kind::Connected) > 0)
    }

    /// Dials under way here.
    pub(super) fn dials(&self, books: &Books) -> usize {
        self.seating.get().map_or(0, |seat| books.dials_of(seat))
    }

    /// Why the address pauses.
    pub(crate) fn failure(&self) -> DialError {
        self.lock().ensure_rare().failure()
    }

    pub(crate) fn last_error(&self) -> Option<DialError> {
        self.lock().last_error()
    }
}

impl<C: Send + 'static> Shared<C> {
    /// A dial succeeded: the oldest caller here gets the connection; without callers, it is given back. Returns whether it is
    /// of use to anybody, then or later.
    pub(crate) fn dialled(self: &Arc<Self>, initiator: Option<Place>, mut entry: Box<Entry<C>>) -> bool {
        let mut books = self.ledger().lock();
        books.connected(entry.lease_mut());
        let mut state = self.lock();
        let alone = if state.closed { None } else { state.take_alone(initiator, &entry) };
        let Dialled { waker, stranded, left, former } = match alone {
            Some(caller) => {
                let waker = caller.cell.grant(Grant::Conn(entry));
                Dialled { waker, stranded: None, left: None, former: None }
            }
            None => self.dialled_for_several(&mut books, &mut state, initiator, entry),
        };
        // It is about to be put, as a rule.
        let is_over = state.closed || self.is_crowded(&books, &mut state);
        let spent = if is_over { None } else { self.calm_down(&mut books, &mut state) };
        drop(state);
        self.ledger().settle(books);
        wake_all(waker);
        wake_all(stranded.into_iter().flatten());
        drop((former, spent)); // an error is the dialer's: not under a lock (I3)
        left.is_none_or(|entry| Self::rest(entry, true))
    }

    fn dialled_for_several(
        self: &Arc<Self>,
        books: &mut Books,
        state: &mut State<C>,
        initiator: Option<Place>,
        entry: Box<Entry<C>>,
    ) -> Dialled<C> {
        let waiter = if state.closed { None } else { self.next_for(books, state, &entry) };
        books.be_seated(self, state.bounds()); // for who queues again: its descriptor may have gone, and its seat with that
        let (waker, left) = match waiter {
            Some(waiter) => (waiter.caller.cell.grant(Grant::Conn(entry)), None),
            None => (None, Some(entry)),
        };
        let (rare, limits) = state.ensure_rare_and_limits();
        let former = rare.last_error.take();
        if let Some(waiter) = initiator.and_then(|place| rare.dialing.get_mut(place)) {
            waiter.orphaned = true;
        }
        rare.note_move();
        rare.pace.succeeded(limits, left.is_none());
        let mut stranded = rare.requeue_stranded(self.dials(books));
        if let Some(stranded) = &mut stranded {
            stranded.extend(self.tell_closed(books, state));
        }
        self.sync(books, state);
        Dialled { waker, stranded, left, former }
    }

    /// A dial failed: its initiator is told if it still waits; else the oldest who waits for a dial, if fewer dials
    /// are left; else the oldest who queues. Those who wait until the address is well are told of nothing that may
    /// pass, and nobody of another's haste. If the address pauses now, so are all who queue for a dial.
    pub(crate) fn dial_failed(
        self: &Arc<Self>,
        initiator: Option<Place>,
        failure: Failure,
        lease: SharedLease,
        random: u64,
    ) {
        self.count(Event::DialFailure);
        let permanent = matches!(&failure, Failure::Error(error) if error.is_permanent());
        let mut books = self.ledger().lock();
        if let Some(slot) = &mut *lease.lock() {
            books.undialled(slot);
            if Arc::strong_count(&lease) == 1 {
                books.returns(slot);
            }
        }
        let mut state = self.lock();
        books.be_seated(self, state.bounds()); // for who queues again: the slot may have gone, and its seat with that
        let (rare, limits) = state.ensure_rare_and_limits();
        // Without pauses there is nothing to wait for.
        let pauses = !limits.pause.is_zero();
        let tells = |waiter: &Waiter<C>| permanent || !pauses || !waiter.wants.patient;
        let hasty = matches!(failure, Failure::Timeout { hasty: true, .. });
        let former = match &failure {
            Failure::Error(error) | Failure::Timeout { hasty: false, cause: Some(error) } => {
                rare.last_error.replace(error.clone())
            }
            Failure::Timeout { .. } | Failure::Paused(_) | Failure::Closed | Failure::Never => None,
        };
        rare.note_move();
        let for_stock = initiator.is_none();
        // One for the stock has callers pause only if it probed: while all is well, they dial for themselves.
        let probed = !rare.pace.is_well();
        if !hasty && (probed || !for_stock) {
            rare.pace.failed(limits, permanent, clock::now(), random);
        }
        let dials = self.dials(&books);
        let own = initiator.and_then(|place| Some((place, rare.dialing.remove(place)?)));
        let is_own = own.is_some();
        let concerns = is_own || !hasty;
        let mut waiter = own.or_else(|| rare.take_stranded(dials));
        let mut wakers = Vec::new();
        // Whose own haste it was is told, and pauses by itself.
        let is_told = |waiter: &Waiter<C>| concerns && (tells(waiter) || is_own && hasty);
        if let Some((place, waiter)) = waiter.take_if(|(_, waiter)| !is_told(waiter)) {
            wakers.extend(rare.requeue(place, waiter));
        } else if waiter.is_none() && concerns {
            waiter = rare.queued.remove_first(tells);
        }
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
        wakers.extend(self.tell_closed(&books, &mut state));
        self.sync(&mut books, &state);
        drop(state);
        self.ledger().settle(books);
        drop((former, lease)); // first: who is told may come for its slot
        wake_all(wakers);
        if pauses {
            tracing::debug!(address = %self.address, "dials failed: the address pauses");
        }
    }

    /// Who queues again where all has been closed, and was not known there, is told now. Returns whom to wake.
    fn tell_closed(&self, books: &Books, state: &mut State<C>) -> Vec<Waker> {
        let closed = state.closed || books.is_closed(self.partition().account);
        if closed { state.fail_all(&Failure::Closed) } else { Vec::new() }
    }

    /// A dial found no descriptor, and nothing was idle: its caller waits for a slot, as if it had never had
    /// one.
    pub(crate) fn dial_postponed(
        self: &Arc<Self>,
        initiator: Option<Place>,
        error: DialError,
        lease: SharedLease,
    ) {
        let mut books = self.ledger().lock();
        if let Some(slot) = &mut *lease.lock() {
            books.undialled(slot);
        }
        drop(books);
        // Before the caller is known to wait: or something would be closed in its stead.
        drop(lease);
        let (mut books, mut state) = self.both();
        books.be_seated(self, state.bounds()); // for who queues again: the slot may have gone, and its seat with that
        let rare = state.ensure_rare();
        let former = rare.last_error.replace(error);
        let mut wakers = Vec::new();
        if let Some((place, waiter)) = initiator.and_then(|place| Some((place, rare.dialing.remove(place)?)))
        {
            wakers.extend(rare.requeue(place, waiter));
        }
        wakers.extend(rare.requeue_stranded(self.dials(&books)).into_iter().flatten());
        wakers.extend(self.tell_closed(&books, &mut state));
        self.sync(&mut books, &state);
        drop(state);
        self.ledger().settle(books);
        wake_all(wakers);
        drop(former);
    }
}
