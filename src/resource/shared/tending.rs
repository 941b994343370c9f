//! Idle connections as the keeper looks after them. It takes out what it looks at, since dialers are asked outside of
//! the lock; a caller that comes meanwhile waits for it rather than dial.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};

use super::Shared;
use crate::clock::Tick;
use crate::conn::Entry;
use crate::dial::Fitness;
use crate::resource::settings::Settings;
use crate::stats::Event;
use crate::sync::Ordering;
use crate::upkeep::{self, Bell, Findings, Keeper, Tended, Watch};

/// How many are looked at before the rest are at hand again.
const BATCH: usize = 64;

impl<C> Shared<C> {
    /// Looks at connections that were taken out. Returns whether any of them had to be closed.
    fn look_at(&self, entries: Vec<Box<Entry<C>>>) -> bool {
        let mut closed = false;
        let mut lent = Lent { shared: self, number: entries.len() };
        for mut entry in entries {
            match self.ask_idle(&mut entry) {
                None => {
                    // One that rings while it is looked at is looked at again in the next round, not at once.
                    if entry.watch().is_some_and(Watch::has_rung) {
                        entry.concerns_nobody();
                    }
                    Self::rest(entry, true); // news to whoever looked for it meanwhile
                }
                Some(event) => {
                    closed = true;
                    entry.discard(event);
                }
            }
            // Afterwards: who waits for it must not be told to dial while it comes back.
            lent.one_less();
        }
        closed
    }

    /// Asks the dialer whether an idle connection is still fit, and has its stream wake the keeper. `Some`: it is not.
    fn ask_idle(&self, entry: &mut Entry<C>) -> Option<Event> {
        if entry.is_gone() {
            return Some(Event::Stale);
        }
        let (Some(waker), Some(conn)) = (entry.watch().map(Watch::begin_look), &mut entry.conn) else {
            return None;
        };
        let asked = || {
            let asked = std::future::poll_fn(|cx| self.dialer.poll_idle(conn, cx));
            // The keeper's task may be at the end of its cooperative budget, where everything is pending.
            let asked = std::pin::pin!(tokio::task::unconstrained(asked));
            asked.poll(&mut Context::from_waker(&waker))
        };
        match catch_unwind(AssertUnwindSafe(asked)) {
            Ok(Poll::Pending | Poll::Ready(Fitness::Fit | Fitness::Busy)) => None,
            Ok(Poll::Ready(Fitness::Closed)) => Some(Event::Stale),
            Ok(Poll::Ready(Fitness::Dirty)) => Some(Event::Dirty),
            Ok(Poll::Ready(Fitness::Broken)) => Some(Event::Broken),
            Err(_panic) => {
                self.count(Event::Panic);
                Some(Event::Broken)
            }
        }
    }
}

/// Connections that the keeper has taken out.
struct Lent<'a, C> {
    shared: &'a Shared<C>,
    number: usize,
}

impl<C> Lent<'_, C> {
    fn one_less(&mut self) {
        self.number -= 1;
        self.shared.give_back(1);
    }
}

impl<C> Drop for Lent<'_, C> {
    fn drop(&mut self) {
        if self.number > 0 {
            self.shared.give_back(self.number);
        }
    }
}

impl<C> Shared<C> {
    /// Takes some of the idle ones out, to be looked at.
    fn lend(&self, of: impl Fn(&Entry<C>) -> bool) -> Vec<Box<Entry<C>>> {
        let mut state = self.state.lock();
        let lent = state.idle.take_where(BATCH, |entry| of(entry));
        self.state.published.notice.lent.fetch_add(lent.len() as u32, Ordering::Relaxed);
        lent
    }

    fn give_back(&self, number: usize) {
        let nobody_waits = {
            let state = self.state.lock();
            self.state.published.notice.lent.fetch_sub(number as u32, Ordering::Relaxed);
            self.publish(&state);
            state.queued() == 0
        };
        if !nobody_waits {
            let (mut books, state) = self.both();
            self.sync(&mut books, &state);
            drop(state);
            self.ledger().settle(books);
        }
    }
}

impl<C: Send + 'static> Tended for Shared<C> {
    fn tend(&self, keeper: &Arc<Keeper>, now: Tick) -> Findings {
        let Settings { idle_timeout, min_idle: stock, tick, .. } = self.setting(Settings::clone);
        let (idle_timeout, tick) = (idle_timeout.duration(), tick.duration());
        let (ended, bell) = {
            let mut state = self.state.lock();
            state.tended = true;
            let ended = state.idle.take_ended(now, idle_timeout, stock);
            self.publish(&state);
            let bell = state.bell.get_or_insert_with(|| Bell::new(self.me.clone(), keeper));
            (ended, Arc::clone(bell))
        };
        let mut closed = !ended.is_empty();
        for entry in ended {
            entry.discard(Event::Expired);
        }
        let unwatched = |entry: &Entry<C>| entry.watch().is_none() && entry.record.idle_for(now) > tick;
        // Each once: one that rings while it is looked at is not watched, and left to the next round.
        let mut left = self.state.lock().idle.count(|entry| unwatched(entry));
        while left > 0 {
            let mut lent = self.lend(unwatched);
            if lent.is_empty() {
                break;
            }
            left = left.saturating_sub(lent.len());
            for entry in &mut lent {
                entry.concerns_keeper(Watch::begin(&bell));
            }
            closed |= self.look_at(lent);
        }
        if closed && let Some(this) = self.me.upgrade() {
            this.restock();
        }
        let mut state = self.state.lock();
        let fresh = state.idle.count(|entry| entry.watch().is_none()) > 0;
        state.tended = fresh;
        let end = state.idle.next_end(idle_timeout, stock);
        // The keeper comes back at the earliest it was told of; later ones it learns then.
        let due = end.filter(|end| state.due <= now || *end < state.due);
        state.due = due.unwrap_or(state.due);
        Findings { fresh, due }
    }

    fn answer(&self) {
        let Some(bell) = self.state.lock().bell.clone() else { return };
        bell.answer();
        let mut closed = false;
        loop {
            let rung = self.lend(|entry| entry.watch().is_some_and(Watch::has_rung));
            if rung.is_empty() {
                break;
            }
            closed |= self.look_at(rung);
        }
        if closed && let Some(this) = self.me.upgrade() {
            this.restock();
        }
    }

    fn restock(self: Arc<Self>) {
        upkeep::restock(&self);
    }
}
