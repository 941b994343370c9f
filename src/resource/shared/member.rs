//! An address as the books see it.

use std::sync::Arc;
use std::task::Waker;

use tokio::task;

use super::{Grant, Published, Shared};
use crate::address::Address;
use crate::budget::ledger::{Member, Notice, Partition, Seating, Victim};
use crate::budget::slot::Slot;
use crate::clock::Tick;
use crate::error::DialError;
use crate::stats::Event;
use crate::sync::{AtomicU64, Ordering};

impl<C: Send + 'static> Member for Shared<C> {
    fn seating(&self) -> &Seating {
        &self.seating
    }

    fn notice(&self) -> &'static Notice {
        &self.state.published.notice
    }

    /// What is taken off the freelist here can be given out by nobody (I4).
    fn evict(self: Arc<Self>) -> Option<Box<dyn Victim>> {
        let mut state = self.state.lock();
        let entry = state.idle.take_oldest();
        state.warm = entry.is_some();
        state.calm &= state.warm;
        if state.warm {
            state.tally.add(Event::Evicted, 1);
        }
        self.publish(&state);
        drop(state);
        entry.map(|entry| entry as Box<dyn Victim>)
    }

    fn serve(&self, slot: Slot) -> Result<(Option<Waker>, usize), Slot> {
        let mut state = self.state.lock();
        let Some(rare) = state.several_mut() else { return Err(slot) };
        let Some((place, waiter)) = rare.queued.pop_front() else { return Err(slot) };
        rare.dialing.insert(place, waiter.clone());
        Ok((waiter.caller.cell.grant(Grant::Slot(slot)), rare.queued.len()))
    }

    fn queued(&self) -> usize {
        self.state.lock().queued()
    }

    fn dial_ended(&self, dials: usize) -> Option<(usize, Vec<Waker>)> {
        let mut state = self.state.lock();
        let rare = state.several_mut()?;
        let wakers = rare.requeue_stranded(dials)?;
        Some((rare.queued.len(), wakers))
    }

    fn cooled(&self) {
        let spent = {
            let mut state = self.state.lock();
            (state.warm, state.calm) = (false, false);
            self.take_spent(&mut state)
        };
        drop(spent);
    }

    fn leaves(&self) {
        for ((event, n), reported) in
            self.unreported().into_iter().zip(&self.reported).filter(|((_, n), _)| *n > 0)
        {
            reported.fetch_add(n, Ordering::Relaxed);
            self.partition().count(event, n);
        }
    }

    fn partition(&self) -> &Arc<Partition> {
        self.partition()
    }

    fn max_conns(&self) -> usize {
        self.max_conns()
    }

    fn may_dial(&self) -> usize {
        self.may_dial()
    }

    fn coming(&self) -> usize {
        self.state.published.notice.lent()
    }

    fn address(&self) -> &Address {
        &self.address
    }

    fn waits(&self) -> Vec<(Tick, Option<task::Id>)> {
        let state = self.state.lock();
        state.callers().map(|caller| (caller.cell.since, caller.cell.task)).collect()
    }

    fn last_error(&self) -> Option<DialError> {
        self.last_error()
    }

    fn shut(&self) {
        self.end();
    }

    fn unreported(&self) -> [(Event, u64); 2] {
        let Published { reused, waits, .. } = self.state.published;
        let [reused_before, waits_before] = &self.reported;
        // A reuse is taken back when what was taken turns out unfit.
        let since = |now: &AtomicU64, before: &AtomicU64| {
            now.load(Ordering::Relaxed).saturating_sub(before.load(Ordering::Relaxed))
        };
        [(Event::Reused, since(reused, reused_before)), (Event::Wait, since(waits, waits_before))]
    }
}
