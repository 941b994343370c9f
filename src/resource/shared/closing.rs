//! What ends at an address: connections that lead elsewhere or were told to close, settings that allow for fewer, the
//! handles and the resource itself.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::rare::Detached;
use super::{Aside, Failure, Locked, Shared};
use crate::conn::Entry;
use crate::resource::settings::Settings;
use crate::stats::Event;
use crate::sync::wake_all;

impl<C> Shared<C> {
    /// Closes what is idle now, and what is in use when it is put.
    pub(crate) fn schedule_close(&self) {
        let mut state = self.lock();
        state.generation = state.generation.wrapping_add(1);
        state.closed_before = state.generation;
        self.close_all(state);
    }

    /// The last handle is gone.
    pub(crate) fn retire(&self) {
        let mut state = self.lock();
        (state.closed, state.calm) = (true, false);
        let dials = state.take_detached();
        self.close_all(state);
        dials.iter().for_each(Detached::call_off);
    }

    /// Closed for good: who waits is told, nothing rests any more.
    pub(crate) fn end(&self) {
        let (mut books, mut state) = self.both();
        (state.closed, state.calm) = (true, false);
        let wakers = state.fail_all(&Failure::Closed);
        let dials = state.take_detached();
        let idle = state.idle.take_all();
        state.publish();
        self.sync(&mut books, &state);
        drop(state);
        self.ledger().settle(books);
        dials.iter().for_each(Detached::call_off);
        wake_all(wakers);
        for entry in idle {
            entry.discard(Event::Retired);
        }
    }

    fn close_all(&self, mut state: Locked<'_, C>) {
        let idle = state.idle.take_all();
        state.publish();
        drop(state);
        for entry in idle {
            entry.discard(Event::Retired);
        }
    }

    /// Whether nobody gets in any more.
    pub(crate) fn is_closed(&self) -> bool {
        let (books, state) = self.both();
        state.closed || books.is_closed(self.partition().account)
    }

    /// The address may lead elsewhere than before: closes the idle connections that do not lead there, and those in
    /// use when they are put.
    pub(crate) fn ask_whether_current(&self) {
        let idle = {
            let mut state = self.lock();
            state.generation = state.generation.wrapping_add(1);
            let idle = state.idle.take_all();
            state.publish();
            idle
        };
        tracing::debug!(address = %self.address, idle = idle.len(), "does the address lead elsewhere?");
        // Each goes back as it was put: what leads elsewhere is closed there.
        drop(Aside(idle.into()));
    }

    /// Asks the dialer about a connection that was dialled before the address moved. `false`: it leads elsewhere.
    pub(super) fn bring_up_to_date(&self, entry: &mut Entry<C>) -> bool {
        let (generation, closed_before) = {
            let state = self.lock();
            (state.generation, state.closed_before)
        };
        let dialled = entry.record.generation;
        // Those to be closed, and those whose address moves meanwhile, are seen to by who has the lock.
        if dialled < generation && dialled >= closed_before {
            if !entry.conn.as_ref().is_some_and(|conn| self.is_current(conn)) {
                return false;
            }
            entry.record.generation = generation;
        }
        true
    }

    /// Asked at a put, or by the keeper: a panic is nobody's business there, and is counted.
    fn is_current(&self, conn: &C) -> bool {
        catch_unwind(AssertUnwindSafe(|| self.dialer.is_current(&self.address, conn))).unwrap_or_else(|_| {
            self.count(Event::Panic);
            false
        })
    }

    /// Changes settings, and acts by them.
    pub(crate) fn change_settings(self: &Arc<Self>, change: impl FnOnce(&mut Settings)) {
        let (mut books, mut state) = self.both();
        change(Arc::make_mut(&mut state.settings));
        let Settings { max_conns, max_idle, .. } = *state.settings;
        let mut surplus: Vec<Box<Entry<C>>> = Vec::new();
        while state.idle.len() > max_idle {
            surplus.extend(state.idle.take_oldest());
        }
        // Those whose descriptors have gone elsewhere have no slot any more.
        let slots = self.seating.get().map_or(0, |seat| books.slots_of(seat));
        let gone = surplus.iter().filter(|entry| entry.is_gone()).count();
        let mut left = slots + gone - surplus.len();
        while left > max_conns
            && let Some(entry) = state.idle.take_oldest()
        {
            left -= usize::from(!entry.is_gone());
            surplus.push(entry);
        }
        state.publish();
        self.sync(&mut books, &state);
        // What the keeper looks at anyway it need not be told of again.
        let untended = state.idle.len() > 0 && !std::mem::replace(&mut state.tended, true);
        // The next put looks at all of them.
        (state.warm, state.calm, state.crowded) = (false, false, true);
        drop(state);
        self.ledger().settle(books);
        if untended {
            Self::take_in(self);
        }
        for entry in surplus {
            entry.discard(Event::Retired);
        }
    }

    /// Has a dial go on by itself, until it ends or nobody can want it any more.
    pub(crate) fn detach<F>(&self, dial: F, runtime: &Handle)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let wanted = Arc::new(CancellationToken::new());
        let mut state = self.lock();
        if state.closed {
            drop(state);
            return drop(dial);
        }
        let detached = &mut state.ensure_rare().detached;
        detached.retain(|dial| !dial.is_over());
        detached.push(Detached::of(&wanted));
        drop(state);
        // CANCEL: called off, or with its runtime, the dial is dropped here, and gives its slot back.
        runtime.spawn(async move { wanted.run_until_cancelled(dial).await });
    }
}
