//! Callers who queue for long: more dials for them if those under way take their time, and a probe after a pause. Both
//! are asked for from outside, by tasks of the callers' runtimes.

use std::time::Duration;

use tokio::runtime;

use super::{Shared, Waiter};
use crate::clock::{self, Tick};
use crate::stats::Event;
use crate::sync::wake_all;

impl<C> Shared<C> {
    /// When to probe the address for those who queue here, if it pauses and nobody of this runtime has been told to yet.
    /// Whoever asks has to [probe](Self::probe) it then.
    pub(crate) fn await_probe(&self, runtime: runtime::Id) -> Option<Tick> {
        let mut state = self.lock();
        let rare = state.several_mut()?;
        let awaits = !rare.probed_on.contains(&runtime) && !rare.queued.is_empty();
        let end = rare.pace.pause_end().filter(|_| awaits)?;
        rare.probed_on.push(runtime);
        Some(end)
    }

    /// Whether somebody of this runtime has to be told to [hasten](Self::hasten), since callers queue here and nobody does.
    pub(crate) fn await_haste(&self, runtime: runtime::Id) -> bool {
        let mut state = self.lock();
        let Some(rare) = state.several_mut() else { return false };
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
            let mut state = self.lock();
            let Some(rare) = state.several_mut() else { return };
            rare.hastened_on.retain(|other| *other != runtime);
            let theirs = rare.queued.iter().filter(|(_, waiter)| waiter.wants.runtime == Some(runtime));
            theirs.filter_map(|(_, waiter)| waiter.caller.cell.take_waker()).collect()
        };
        wake_all(wakers);
    }

    /// Some time has passed: if no dial has ended in `span`, twice as many may be under way, where callers queue for want
    /// of them; and if the address's pause is over, a dial probes it. Wakes those whose patience ends within `soon`.
    /// `false`: nobody of this runtime queues.
    pub(crate) fn hasten(&self, span: Duration, soon: Duration, runtime: runtime::Id) -> bool {
        let (mut books, mut state) = self.both();
        let (rare, limits) = state.ensure_rare_and_limits();
        if !rare.queued.iter().any(|(_, waiter)| waiter.wants.runtime == Some(runtime)) {
            rare.hastened_on.retain(|other| *other != runtime);
            return false;
        }
        let now = clock::now();
        let wakes = |waiter: &Waiter<C>| waiter.wait_ends.since(now) <= soon;
        let waiters = rare.queued.iter().filter(|(_, waiter)| wakes(waiter));
        let wakers: Vec<_> = waiters.filter_map(|(_, waiter)| waiter.caller.cell.take_waker()).collect();
        let dials = self.dials(&books);
        // The clock is a tick or two behind the timer.
        let stalled = now.since(rare.moved) >= span - span / 8;
        if stalled && dials > 0 && dials >= rare.pace.allowed(limits) {
            rare.pace.hasten(dials);
            rare.moved = now;
        }
        rare.pace.probe(now); // who was to may be on a runtime that is not driven
        let spared = self.make_way(&books, &mut state);
        self.sync(&mut books, &state);
        drop(state);
        self.ledger().settle(books);
        wake_all(wakers);
        if let Some(entry) = spared {
            entry.discard(Event::Retired);
        }
        true
    }

    /// Lets one dial probe the address, if its pause ends at `end` or before; whoever waited to say so is gone.
    pub(crate) fn probe(&self, end: Tick, runtime: runtime::Id) {
        let (mut books, mut state) = self.both();
        let Some(rare) = state.several_mut() else { return };
        rare.probed_on.retain(|other| *other != runtime);
        rare.pace.probe(end);
        let spared = self.make_way(&books, &mut state);
        self.sync(&mut books, &state);
        drop(state);
        self.ledger().settle(books);
        if let Some(entry) = spared {
            entry.discard(Event::Retired);
        }
    }
}
