//! An address as the books see it.

use std::sync::Arc;
use std::task::Waker;

use tokio::task;

use super::{Grant, Shared};
use crate::address::Address;
use crate::budget::ledger::{Member, Partition, Seating, Victim};
use crate::budget::slot::Slot;
use crate::budget::victim::Glance;
use crate::clock::Tick;
use crate::conn::Closing;
use crate::error::DialError;
use crate::stats::Event;
use crate::sync::Ordering;

impl<C: Send + 'static> Member for Shared<C> {
    fn seating(&self) -> &Seating {
        &self.seating
    }

    fn hint(&self) -> Glance {
        (self.hint.load(Ordering::Relaxed), self.surplus_since.load(Ordering::Relaxed) as u32)
    }

    /// What is taken off the freelist here can be given out by nobody (I4).
    fn evict(self: Arc<Self>) -> Option<Box<dyn Victim>> {
        let mut state = self.state.lock();
        let entry = state.idle.take_oldest();
        state.warm = entry.is_some();
        self.publish(&state);
        drop(state);
        entry.map(|entry| Box::new(Closing { shared: self, entry }) as Box<dyn Victim>)
    }

    fn serve(&self, slot: Slot) -> Result<(Option<Waker>, usize), Slot> {
        let mut state = self.state.lock();
        let Some((place, waiter)) = state.queued.pop_front() else { return Err(slot) };
        state.dialing.insert(place, waiter.clone());
        Ok((waiter.cell.grant(Grant::Slot(slot)), state.queued.len()))
    }

    fn queued(&self) -> usize {
        self.state.lock().queued.len()
    }

    fn dial_ended(&self, dials: usize) -> Option<usize> {
        let mut state = self.state.lock();
        state.requeue_stranded(dials).then(|| state.queued.len())
    }

    fn cooled(&self) {
        self.state.lock().warm = false;
        let unreported = self.unreported_reuse();
        self.reported.store(self.tally.read(Event::Reused), Ordering::Relaxed);
        if unreported > 0 {
            self.partition().count(Event::Reused, unreported);
        }
    }

    fn partition(&self) -> &Arc<Partition> {
        self.partition()
    }

    fn max_conns(&self) -> usize {
        self.settings.max_conns.get()
    }

    fn may_dial(&self) -> usize {
        self.may_dial.load(Ordering::Relaxed)
    }

    fn coming(&self) -> usize {
        self.lent()
    }

    fn address(&self) -> &Address {
        &self.address
    }

    fn waits(&self) -> Vec<(Tick, Option<task::Id>)> {
        let state = self.state.lock();
        let lines = state.queued.iter().chain(state.dialing.iter());
        lines.map(|(_, waiter)| (waiter.cell.since, waiter.cell.task)).collect()
    }

    fn last_error(&self) -> Option<DialError> {
        self.last_error()
    }

    fn shut(&self) {
        self.end();
    }

    fn unreported_reuse(&self) -> u64 {
        self.tally.read(Event::Reused).saturating_sub(self.reported.load(Ordering::Relaxed))
    }
}
