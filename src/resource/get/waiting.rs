//! What a get keeps that cannot be served at once, and until when it waits for what.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::budget::queue::Place;
use crate::clock::{self, Tick};
use crate::patience::Patience;
use crate::resource::attempt::Attempt;
use crate::resource::shared::Caller;
use crate::upkeep;

/// What a get that cannot be served at once keeps.
pub(super) struct Slow<'a, C> {
    pub(super) caller: Arc<Caller<C>>,
    /// In line; `None` once it was served or has left.
    pub(super) place: Option<Place>,
    /// Its dial, with the runtime it is polled on.
    pub(super) attempt: Option<(Attempt, Option<Handle>)>,
    /// Kept until that has an outcome for this caller, or the caller queues again.
    dialled: Option<Dialled>,
    deadline: Option<Instant>,
    wait_deadline: Option<Instant>,
    /// What came of its own haste.
    haste: Option<Box<Haste>>,
    /// When its wait ends, while it has no timer. `NEVER`: it does not, or has one.
    wait_ends: Tick,
    pub(super) patience: Patience<'a>,
}

/// A dial of a caller's own.
struct Dialled {
    began: Tick,
    timeout: Option<Duration>,
    /// It has served another, on whose dial the caller counts since: until when, if not for as long as that takes.
    counts: Option<Option<Instant>>,
}

/// Dials that a timeout of its own has failed: after those it rests for a while, in line as if it had a dial.
struct Haste {
    failures: u32,
    /// While it rests: until when, and when it looks whether all has been closed. The books do not know of it.
    rests: Option<(Instant, Instant)>,
}

/// How often who rests looks.
const LOOK: Duration = Duration::from_millis(250);

impl<C> Slow<'_, C> {
    pub(super) fn new(caller: Arc<Caller<C>>) -> Self {
        Self {
            caller,
            place: None,
            attempt: None,
            dialled: None,
            deadline: None,
            wait_deadline: None,
            haste: None,
            wait_ends: Tick::NEVER,
            patience: Patience::default(),
        }
    }

    /// Gets in line, where the whole get and the wait may take so long. A long wait needs no timer until it looks after itself.
    #[inline]
    pub(super) fn begin_wait(
        &mut self,
        place: Place,
        timeout: Option<Duration>,
        wait: Option<Duration>,
        now: Tick,
    ) {
        self.place = Some(place);
        self.deadline = timeout.and_then(clock::deadline);
        if timeout.is_none() && wait.is_none_or(|wait| wait >= upkeep::LONG_WAIT) {
            self.wait_ends = wait.map_or(Tick::NEVER, |wait| now.after(wait));
        } else {
            self.wait_deadline = wait.and_then(clock::deadline);
        }
    }

    /// In line already, where its wait ends then.
    pub(super) fn goes_on_waiting(&mut self, place: Place, wait_ends: Tick) {
        (self.place, self.wait_ends) = (Some(place), wait_ends);
    }

    /// Begins a dial of its own.
    #[inline]
    pub(super) fn dial(
        &mut self,
        attempt: (Attempt, Option<Handle>),
        began: Tick,
        timeout: Option<Duration>,
    ) {
        self.attempt = Some(attempt);
        self.dialled = Some(Dialled { began, timeout, counts: None });
    }

    /// Whether it has dialled, and not queued again since.
    pub(super) fn has_dialled(&self) -> bool {
        self.dialled.is_some()
    }

    /// How many dials its haste has failed.
    pub(super) fn failures_of_haste(&self) -> u32 {
        self.haste.as_ref().map_or(0, |haste| haste.failures)
    }

    /// Its own haste has failed another dial: it rests for so long.
    pub(super) fn rest_from_haste(&mut self, pause: Duration) {
        let failures = self.failures_of_haste().saturating_add(1);
        let rests = clock::deadline(pause).map(|end| (end, end.min(clock::instant() + LOOK)));
        self.part_with_dial(clock::now());
        self.haste = Some(Box::new(Haste { failures, rests }));
    }

    /// When it gives up, as things are.
    #[inline]
    pub(super) fn patient_until(&mut self, queues_again: bool) -> Option<Instant> {
        match self.attempt {
            None => self.keep_wait(queues_again).into_iter().chain(self.deadline).min(),
            Some(_) => self.deadline,
        }
    }

    pub(super) fn rests(&self) -> bool {
        self.next_look().is_some()
    }

    pub(super) fn next_look(&self) -> Option<Instant> {
        self.haste.as_ref()?.rests.map(|(_, look)| look)
    }

    /// Without a dial of its own it keeps its time itself: when it gives up to wait. That is for a slot; or for another's dial,
    /// which may take as long as its own might have, if it does not try again whatever happens.
    fn keep_wait(&mut self, queues_again: bool) -> Option<Instant> {
        let now = clock::now();
        if queues_again || self.caller.wants.patient {
            self.part_with_dial(now);
        }
        if let Some(Dialled { began, timeout, counts }) = &mut self.dialled {
            let end = |timeout: Duration| clock::deadline(began.after(timeout).since(now));
            return *counts.get_or_insert_with(|| timeout.and_then(end));
        }
        if self.wait_ends != Tick::NEVER {
            let wait_ends = std::mem::replace(&mut self.wait_ends, Tick::NEVER);
            self.wait_deadline = clock::deadline(wait_ends.since(now));
        }
        self.wait_deadline
    }

    /// Its dial is nothing to it any more: while it had one, it waited for no slot.
    fn part_with_dial(&mut self, now: Tick) {
        if let Some(Dialled { began, .. }) = self.dialled.take() {
            let dialled = now.since(began);
            self.wait_ends = self.wait_ends.after(dialled);
            self.wait_deadline = self.wait_deadline.and_then(|end| end.checked_add(dialled));
        }
    }

    /// Its time to look has come, or its rest is over.
    pub(super) fn look(&mut self) {
        let Some(Haste { rests, .. }) = self.haste.as_deref_mut() else { return };
        *rests = rests.filter(|(end, look)| look < end).map(|(end, look)| (end, end.min(look + LOOK)));
    }
}
