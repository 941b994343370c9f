//! Idle connections as they are looked after: by the keeper; and those found busy, while callers wait, by the task that hastens.
//! What is looked at is taken out, since dialers are asked outside of the lock; a caller that comes meanwhile waits for it
//! rather than dial.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::{Shared, State};
use crate::budget::partition::Partition;
use crate::clock::{self, Tick};
use crate::conn::Entry;
use crate::dial::Fitness;
use crate::resource::settings::{Settings, Span};
use crate::runtime;
use crate::stats::Event;
use crate::sync::Ordering;
use crate::upkeep::{self, Bell, Cause, Findings, Tended};

/// How many are looked at before the rest are at hand again.
const BATCH: usize = 64;

/// After how long a rest a connection is watched: not while it is used ten times a second, since to begin and end that
/// takes longer than a get.
const REST: Duration = Duration::from_millis(100);

impl<C: Send + 'static> Shared<C> {
    /// Looks at connections that were taken out. Returns whether any of them had to be closed.
    fn look_at(&self, entries: Vec<Box<Entry<C>>>) -> bool {
        let mut closed = false;
        let mut lent = Lent { shared: self, number: entries.len() };
        for mut entry in entries {
            match self.ask_idle(&mut entry) {
                // News to whoever looked for it meanwhile. If it has rung again, that is for the next round, not at once.
                None => _ = Self::rest(entry, true),
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

    /// Callers wait, and connections rest that were found busy: asks whether they still are. Those of another runtime are
    /// asked about there.
    pub(crate) fn ask_busy(&self, runtime: runtime::Id) {
        let busy = self.lend(|entry| entry.busy && entry.runtime.is_none_or(|at| at == runtime));
        let mut lent = Lent { shared: self, number: busy.len() };
        let (now, tick) = (clock::now(), Span::new(clock::resolution()));
        for mut entry in busy {
            let checked = catch_unwind(AssertUnwindSafe(|| Self::check(&mut entry, now, tick)));
            let fitness = checked.unwrap_or_else(|_panic| {
                self.count(Event::Panic);
                Fitness::Broken
            });
            match fitness.end() {
                Some(event) => entry.discard(event),
                None => {
                    entry.busy = fitness == Fitness::Busy;
                    let news = !entry.busy;
                    Self::rest(entry, news);
                }
            }
            lent.one_less(); // afterwards, as above
        }
    }

    /// Asks the dialer whether an idle connection is still fit, and has its stream wake the keeper from now on. `Some`: it is not.
    fn ask_idle(&self, entry: &mut Entry<C>) -> Option<Event> {
        if entry.is_gone() {
            return Some(Event::Stale);
        }
        let waker = entry.watch().begin_look();
        let conn = entry.conn.as_mut()?;
        let asked = || {
            let asked = std::future::poll_fn(|cx| self.dialer.poll_idle(conn, cx));
            // The keeper's task may be at the end of its cooperative budget, where everything is pending.
            let asked = std::pin::pin!(tokio::task::unconstrained(asked));
            asked.poll(&mut Context::from_waker(&waker))
        };
        match catch_unwind(AssertUnwindSafe(asked)) {
            Ok(Poll::Pending) => None,
            Ok(Poll::Ready(fitness)) => {
                entry.busy |= fitness == Fitness::Busy;
                fitness.end()
            }
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
        let mut state = self.lock();
        let lent = state.idle.take_where(BATCH, |entry| of(entry));
        state.published.notice.lent.fetch_add(lent.len() as u32, Ordering::Relaxed);
        lent
    }

    fn give_back(&self, number: usize) {
        let nobody_waits = {
            let state = self.lock();
            state.published.notice.lent.fetch_sub(number as u32, Ordering::Relaxed);
            state.publish();
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

/// What a glance at the idle ones of an address tells.
struct Survey {
    /// When the first of them has to go.
    end: Option<Tick>,
    /// How many are not watched.
    fresh: usize,
    /// How many of those have rested for long.
    ripe: usize,
}

impl<C> State<C> {
    fn survey(&self, now: Tick) -> Survey {
        let Settings { idle_timeout, min_idle: stock, .. } = *self.settings;
        let end = self.idle.next_end(idle_timeout.duration(), stock);
        let (mut fresh, mut ripe) = (0, 0);
        for entry in self.idle.iter().filter(|entry| !entry.is_watched()) {
            fresh += 1;
            ripe += usize::from(is_ripe(entry, now));
        }
        Survey { end, fresh, ripe }
    }
}

/// Whether it is to be watched.
fn is_ripe<C>(entry: &Entry<C>, now: Tick) -> bool {
    !entry.is_watched() && entry.record.idle_for(now) >= REST
}

impl<C: Send + 'static> Tended for Shared<C> {
    fn tend(self: Arc<Self>, cause: Cause, now: Tick) -> Findings {
        if self.resting() > 0 {
            upkeep::watch(&self); // by whom that was seen to, its runtime may have ended
        }
        let mut state = self.lock();
        // One of the fresh has its turn as such, too, and it is then that it stays one or not.
        let is_listed = cause == Cause::Due && state.noted;
        if !is_listed {
            (state.tended, state.noted) = (true, true);
        }
        let mut survey = state.survey(now);
        let ends = survey.end.is_some_and(|end| end <= now);
        if ends || survey.ripe > 0 {
            let Settings { idle_timeout, min_idle: stock, .. } = *state.settings;
            let ended = state.idle.take_ended(now, idle_timeout.duration(), stock);
            state.publish();
            drop(state);
            let mut closed = !ended.is_empty();
            for entry in ended {
                entry.discard(Event::Expired);
            }
            // Each once: one that rings while it is looked at is not watched, and left to the next round.
            while survey.ripe > 0 {
                let lent = self.lend(|entry| is_ripe(entry, now));
                if lent.is_empty() {
                    break;
                }
                survey.ripe = survey.ripe.saturating_sub(lent.len());
                closed |= self.look_at(lent);
            }
            if closed {
                upkeep::restock(&self);
            }
            state = self.lock();
            survey = state.survey(now);
        }
        if !is_listed {
            state.tended = survey.fresh > 0;
            state.noted = state.tended;
        }
        // The keeper comes back at the earliest it was told of; later ones it learns then.
        let due = survey.end.filter(|end| state.due <= now || *end < state.due);
        state.due = due.unwrap_or(state.due);
        Findings { fresh: !is_listed && state.tended, due }
    }

    fn answer(self: Arc<Self>) {
        self.bell.answer();
        let mut closed = false;
        loop {
            let rung = self.lend(Entry::has_rung);
            if rung.is_empty() {
                break;
            }
            closed |= self.look_at(rung);
        }
        if closed {
            upkeep::restock(&self);
        }
    }

    fn bell(&self) -> &Bell {
        &self.bell
    }

    fn partition(&self) -> Arc<Partition> {
        Arc::clone(Shared::partition(self))
    }
}
