//! What an address keeps only while several callers dial or wait there, or if that goes badly: their lines, its pace, its last
//! error. All of it behind the address's lock.

use std::io;
use std::sync::{Arc, Weak};
use std::task::Waker;

use tokio::runtime;
use tokio_util::sync::CancellationToken;

use super::callers::Waiter;
use super::stock::Stock;
use crate::budget::queue::{Line, Place};
use crate::clock::{self, Tick};
use crate::conn::Entry;
use crate::error::DialError;
use crate::resource::pace::{Limits, Pace};

/// How often one caller may be passed over for those behind it who can use what it cannot: each time, that spares a dial.
const MOST_PASSED_OVER: u32 = 64;

/// What an address has to keep while several dial or wait here, or if that goes badly.
pub(crate) struct Rare<C> {
    /// Callers that wait for a dial.
    pub(super) dialing: Line<Waiter<C>>,
    /// Callers that wait for a slot, or for their address.
    pub(super) queued: Line<Waiter<C>>,
    /// The first of those who was passed over, since it can use none of what came back, and how often.
    passed_over: (Place, u32),
    pub(super) pace: Pace,
    /// Runtimes on which somebody sees to it that the address is probed. Each its own: one may not be driven.
    pub(super) probed_on: Vec<runtime::Id>,
    /// Runtimes on which a task looks after those who queue: see [`hasten`](super::Shared::hasten).
    pub(super) hastened_on: Vec<runtime::Id>,
    /// When a dial ended last, or more were allowed for want of that.
    pub(super) moved: Tick,
    pub(super) detached: Vec<Detached>,
    pub(super) last_error: Option<DialError>,
    pub(super) stock: Stock,
}

/// A dial that nobody polls but a task of its own. Keeps neither the task nor its runtime.
pub(super) struct Detached(Weak<CancellationToken>);

impl Detached {
    /// A dial that goes on in the task that has this, unless it is called off.
    pub(super) fn of(wanted: &Arc<CancellationToken>) -> Self {
        Self(Arc::downgrade(wanted))
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }

    /// Not under a lock: it wakes the task.
    pub(super) fn call_off(&self) {
        if let Some(wanted) = self.0.upgrade() {
            wanted.cancel();
        }
    }
}

/// Where the caller stands who gets a connection.
pub(super) enum Next {
    Dialing(Place),
    Queued(Place),
}

impl<C> Rare<C> {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            dialing: Line::new(),
            queued: Line::new(),
            passed_over: (0, 0),
            pace: Pace::new(limits),
            probed_on: Vec::new(),
            hastened_on: Vec::new(),
            moved: Tick::NEVER,
            detached: Vec::new(),
            last_error: None,
            stock: Stock::new(),
        }
    }

    /// Whether a new one would be as good.
    pub(super) fn is_spent(&self) -> bool {
        self.queued.is_empty()
            && self.dialing.is_empty()
            && self.detached.iter().all(Detached::is_over)
            && self.probed_on.is_empty()
            && self.hastened_on.is_empty()
            && self.last_error.is_none()
            && self.pace.is_untroubled()
            && self.stock.is_untroubled()
    }

    /// The oldest caller who can use a connection, and is free to take it: one in line for a dial may have a slot that
    /// it does not know of yet.
    pub(super) fn first_for(&self, entry: &Entry<C>) -> Option<Next> {
        let queued = self.queued.find(|waiter| waiter.can_use(entry));
        let dialing = self.dialing.find(|waiter| waiter.can_use(entry) && waiter.caller.cell.is_waiting());
        match (dialing, queued) {
            (Some(dialing), Some(queued)) if queued < dialing => Some(Next::Queued(queued)),
            (Some(dialing), _) => Some(Next::Dialing(dialing)),
            (None, queued) => queued.map(Next::Queued),
        }
    }

    /// Takes one of those who queue out of the line who is given what came back.
    pub(super) fn serve_queued(&mut self, place: Place) -> Option<Waiter<C>> {
        let waiter = self.queued.remove(place);
        if let Some(&(first, _)) = self.queued.front()
            && first < place
        {
            let (before, times) = self.passed_over;
            self.passed_over = (first, if before == first { times.saturating_add(1) } else { 1 });
        }
        waiter
    }

    /// Whether it is the turn of one who cannot use a connection: it has been passed over so often that others are to stand
    /// back for it.
    pub(super) fn bars(&self, entry: &Entry<C>) -> bool {
        let (place, times) = self.passed_over;
        times >= MOST_PASSED_OVER
            && self.queued.front().is_some_and(|(first, waiter)| *first == place && !waiter.suits(entry))
    }

    /// A dial has ended. Nobody asks when unless somebody hastens.
    pub(super) fn note_move(&mut self) {
        if !self.hastened_on.is_empty() {
            self.moved = clock::now();
        }
    }

    /// Why the address pauses.
    pub(super) fn failure(&self) -> DialError {
        let timed_out = || DialError::from(io::Error::new(io::ErrorKind::TimedOut, "dials timed out"));
        self.last_error.clone().unwrap_or_else(timed_out)
    }

    /// The oldest of those who wait for a dial and have none of their own, if all are more than the dials.
    pub(super) fn take_stranded(&mut self, dials: usize) -> Option<(Place, Waiter<C>)> {
        if self.dialing.len() <= dials {
            return None;
        }
        let place = self.dialing.iter().find(|(_, waiter)| waiter.orphaned).map(|(place, _)| *place)?;
        self.dialing.remove(place).map(|waiter| (place, waiter))
    }

    /// Puts them back in the queue. `None`: there are none. Else whom to wake after the locks.
    pub(super) fn requeue_stranded(&mut self, dials: usize) -> Option<Vec<Waker>> {
        let (place, first) = self.take_stranded(dials)?;
        let mut wakers: Vec<_> = self.requeue(place, first).into_iter().collect();
        while let Some((place, waiter)) = self.take_stranded(dials) {
            wakers.extend(self.requeue(place, waiter));
        }
        Some(wakers)
    }

    /// Puts one who waited for a dial back in the queue. Who does not wait for a slot is to be woken, and then gives up; who
    /// counted on another's dial, to keep its time otherwise.
    pub(super) fn requeue(&mut self, place: Place, waiter: Waiter<C>) -> Option<Waker> {
        let is_told = waiter.caller.immediate || waiter.orphaned;
        let waker = if is_told { waiter.caller.cell.take_waker() } else { None };
        self.queued.insert(place, Waiter { orphaned: false, ..waiter });
        waker
    }
}
