//! An address as the books see it.

use std::sync::Arc;
use std::task::Waker;

use tokio::task;

use super::{Grant, Shared};
use crate::address::Address;
use crate::budget::member::{COUNTED, Member, Notice, Seating, Victim};
use crate::budget::partition::Partition;
use crate::budget::slot::Slot;
use crate::clock::Tick;
use crate::error::DialError;
use crate::stats::Event;
use crate::sync::Ordering;

impl<C: Send + 'static> Member for Shared<C> {
    fn seating(&self) -> &Seating {
        &self.seating
    }

    fn notice(&self) -> &'static Notice {
        &self.published().notice
    }

    /// What is taken off the freelist here can be given out by nobody (I4).
    fn evict(self: Arc<Self>) -> Option<Box<dyn Victim>> {
        let mut state = self.lock();
        let entry = state.idle.take_oldest();
        state.warm = entry.is_some();
        state.calm &= state.warm;
        if state.warm {
            state.tally.add(Event::Evicted, 1);
        }
        state.publish();
        drop(state);
        entry.map(|entry| entry as Box<dyn Victim>)
    }

    fn serve(&self, slot: Slot) -> Result<(Option<Waker>, usize), Slot> {
        let mut state = self.lock();
        let Some(rare) = state.several_mut() else { return Err(slot) };
        let Some((place, waiter)) = rare.queued.pop_front() else { return Err(slot) };
        rare.dialing.insert(place, waiter.clone());
        self.note_queue(!rare.queued.is_empty());
        Ok((waiter.caller.cell.grant(Grant::Slot(slot)), rare.queued.len()))
    }

    fn queued(&self) -> usize {
        self.lock().queued()
    }

    fn dial_ended(&self, dials: usize) -> Option<(usize, Vec<Waker>)> {
        let mut state = self.lock();
        let rare = state.several_mut()?;
        let wakers = rare.requeue_stranded(dials)?;
        self.note_queue(true);
        Some((rare.queued.len(), wakers))
    }

    fn cooled(&self) {
        let spent = {
            let mut state = self.lock();
            (state.warm, state.calm) = (false, false);
            state.take_spent()
        };
        drop(spent);
    }

    fn partition(&self) -> &Arc<Partition> {
        self.partition()
    }

    fn coming(&self) -> usize {
        self.published().notice.lent()
    }

    fn address(&self) -> &Address {
        &self.address
    }

    fn waits(&self) -> Vec<(Tick, Option<task::Id>)> {
        let state = self.lock();
        state.callers().map(|caller| (caller.cell.since, caller.cell.task)).collect()
    }

    fn last_error(&self) -> Option<DialError> {
        self.last_error()
    }

    fn shut(&self) {
        self.end();
    }

    fn counted(&self) -> [u64; COUNTED.len()] {
        [&self.published().reused, self.room.waits()].map(|counter| counter.load(Ordering::Relaxed))
    }
}
