//! Idle connections given out: the newest that is fit; or, where others queue, a place behind them, in the same lock. Those
//! that are unfit are closed on the way, or set aside where somebody else may take them.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use super::state::add_locked;
use super::{Caller, Locked, Shared};
use crate::budget::Site;
use crate::budget::queue::Place;
use crate::budget::slot::{Lease, Slot};
use crate::clock::{self, Tick};
use crate::conn::{Conn, Entry};
use crate::dial::{CheckContext, Fitness};
use crate::resource::settings::{Settings, Span};
use crate::runtime::Whereabouts;
use crate::stats::Event;
use crate::upkeep;

/// After how long a new connection that nobody has looked at may well have ended.
const LONG: Duration = Duration::from_secs(1);

/// What to do with an idle connection that was taken to be given out.
enum Verdict {
    Give,
    /// Not now, or not here.
    SetAside,
    Discard(Event),
}

/// A reuse that is counted already, since that costs least under the lock; taken back unless it comes to that.
pub(super) struct Counted<'a, C>(pub(super) &'a Shared<C>);

impl<C> Drop for Counted<'_, C> {
    #[cold]
    fn drop(&mut self) {
        self.0.lock().published.count_reuse(u64::MAX); // one less
    }
}

/// Idle connections that were passed over; they go back whatever happens.
pub(super) struct Aside<C>(pub(super) Vec<Box<Entry<C>>>);

impl<C> Aside<C> {
    /// Those that are busy here are so for others; the rest somebody else may have missed.
    fn is_news(entry: &Entry<C>) -> bool {
        !entry.busy
    }

    fn news(&self) -> u32 {
        self.0.iter().map(|entry| u32::from(Self::is_news(entry))).sum()
    }
}

impl<C> Drop for Aside<C> {
    fn drop(&mut self) {
        for entry in self.0.drain(..) {
            let news = Self::is_news(&entry);
            Shared::rest(entry, news);
        }
    }
}

/// An idle connection that was taken, and by what it is judged.
pub(crate) struct Taken<C> {
    entry: Box<Entry<C>>,
    idle_timeout: Span,
    tick: Span,
    /// There is a stock to be kept, and fewer rest.
    stocks: bool,
}

/// Nothing was idle, or is wanted: what a caller needs to know who gets in line.
#[derive(Clone, Copy)]
pub(crate) struct Missed {
    /// As of this many rests.
    pub(crate) rests: u32,
    /// There is a stock to be kept, and fewer rest.
    pub(crate) stocks: bool,
    /// The resource's.
    pub(crate) wait_timeout: Option<Duration>,
}

/// What a caller found that comes where others queue.
pub(crate) enum Found<C> {
    Idle(Taken<C>),
    /// A place behind them, until its wait ends.
    Place(Place, Tick),
    /// Neither.
    Nothing,
}

impl<C> Locked<'_, C> {
    #[inline]
    pub(in crate::resource) fn take_idle(mut self) -> Result<Taken<C>, Missed> {
        match self.take_newest() {
            Some(taken) => Ok(taken),
            None => {
                self.publish();
                Err(self.missed())
            }
        }
    }

    #[inline]
    fn take_newest(&mut self) -> Option<Taken<C>> {
        let entry = self.idle.take_newest()?;
        self.publish();
        self.published.count_reuse(1);
        let Settings { min_idle, idle_timeout, tick, .. } = *self.settings;
        // Those of the stock may rest for as long as they live.
        let idle_timeout = if self.idle.len() < min_idle { Span::FOR_EVER } else { idle_timeout };
        Some(Taken { entry, idle_timeout, tick, stocks: self.is_short() })
    }

    fn missed(&self) -> Missed {
        Missed { rests: self.idle.rests, stocks: self.is_short(), wait_timeout: self.settings.wait_timeout }
    }
}

impl<C> Shared<C> {
    /// Something idle, for who asked a moment ago.
    pub(crate) fn take_idle_again(&self, site: Site) -> Result<(Conn<C>, bool), Missed> {
        let taken = self.lock().take_idle()?;
        self.give(taken, clock::now(), None, site)
    }

    /// What was taken, or another that is fit, and whether there is a stock to look after. Closes those it finds unfit.
    #[inline]
    pub(crate) fn give(
        &self,
        mut taken: Taken<C>,
        now: Tick,
        waker: Option<&Waker>,
        site: Site,
    ) -> Result<(Conn<C>, bool), Missed> {
        let counted = Counted(self);
        match Self::judge(&mut taken, now, waker) {
            Verdict::Give => {
                std::mem::forget(counted);
                Ok((Conn::new(taken.entry, site), taken.stocks))
            }
            unfit => {
                drop(counted);
                self.take_another(taken, unfit, now, site)
            }
        }
    }

    /// For a caller that comes where others queue: what is idle, or a place behind them, if all that can be done for them
    /// has been done: then there is nothing to be done for this one either, and the books need not know of it.
    pub(crate) fn take_or_queue(
        &self,
        now: Tick,
        wait: Option<Duration>,
        caller: &Arc<Caller<C>>,
    ) -> Found<C> {
        let mut state = self.dialer.lock_alone(self.room);
        state.touch(now);
        if let Some(taken) = state.take_newest() {
            return Found::Idle(taken);
        }
        state.publish();
        let wait = wait.or(state.settings.wait_timeout);
        let Some(rare) = state.several().filter(|_| !state.closed) else { return Found::Nothing };
        let behind = wait.is_none_or(|wait| wait >= upkeep::LONG_WAIT)
            && !rare.queued.is_empty()
            && caller.wants.runtime.is_some_and(|runtime| rare.hastened_on.contains(&runtime))
            && rare.pace.is_well()
            && !self.ledger().is_unsettled();
        if !behind {
            return Found::Nothing;
        }
        let end = wait.map_or(Tick::NEVER, |wait| now.after(wait));
        add_locked(self.room.waits(), 1);
        Found::Place(state.awaits_slot(caller, end, None), end)
    }

    /// For who wants nothing that is idle: a second try, which is no further use of the address.
    pub(crate) fn pass_over_idle(&self) -> Missed {
        self.lock().missed()
    }

    /// Goes on where the newest one was unfit.
    #[cold]
    fn take_another(
        &self,
        mut taken: Taken<C>,
        mut verdict: Verdict,
        now: Tick,
        site: Site,
    ) -> Result<(Conn<C>, bool), Missed> {
        let mut aside = Aside(Vec::new());
        loop {
            match verdict {
                Verdict::Give => return Ok((Conn::new(taken.entry, site), taken.stocks)),
                Verdict::Discard(event) => taken.entry.discard(event),
                Verdict::SetAside => aside.0.push(taken.entry),
            }
            taken = self.lock().take_idle().map_err(|missed| {
                // What comes back of its own doing is no news to itself.
                Missed { rests: missed.rests.wrapping_add(aside.news()), ..missed }
            })?;
            let counted = Counted(self);
            verdict = Self::judge(&mut taken, now, None);
            if let Verdict::Give = verdict {
                std::mem::forget(counted);
            }
        }
    }

    /// Whether an idle connection can be given out here and now.
    #[inline]
    fn judge(taken: &mut Taken<C>, now: Tick, waker: Option<&Waker>) -> Verdict {
        let Taken { entry, idle_timeout, tick, .. } = taken;
        if entry.is_gone() {
            return Verdict::Discard(Event::Stale);
        }
        if let Some(ended) = entry.record.idle_end(now, idle_timeout.nanos()) {
            return Verdict::Discard(ended.event());
        }
        if let Some(runtime) = entry.runtime {
            match crate::runtime::whereabouts(runtime, waker) {
                Whereabouts::Here => {}
                Whereabouts::Elsewhere => return Verdict::Discard(Event::Retired),
                // Of no use here, but there may be a caller elsewhere.
                Whereabouts::Nowhere => return Verdict::SetAside,
            }
        }
        match Self::check(entry, now, *tick) {
            Fitness::Fit => Verdict::Give,
            unfit => match unfit.end() {
                Some(event) => Verdict::Discard(event),
                None => {
                    entry.busy = true;
                    Verdict::SetAside
                }
            },
        }
    }

    #[inline]
    pub(super) fn check(entry: &mut Entry<C>, now: Tick, tick: Span) -> Fitness {
        let cx = CheckContext::new(now.nanos_since(entry.record.rested), tick.nanos());
        entry.conn.as_mut().map_or(Fitness::Broken, |conn| entry.shared.dialer.check(conn, &cx))
    }

    /// What to do with a connection that was handed over: give it out, or close it and keep its slot. A new one is as good as
    /// its dial told, unless it has lain for long: its peer may speak first, which a check would take amiss.
    pub(crate) fn judge_handed(mut entry: Box<Entry<C>>) -> Result<Box<Entry<C>>, Option<Slot>> {
        let (now, was_new) = (clock::now(), entry.is_new());
        if was_new && now.since(entry.record.born) < LONG {
            return Ok(entry);
        }
        let check = || Self::check(&mut entry, now, Span::new(clock::resolution()));
        let checked = catch_unwind(AssertUnwindSafe(check));
        if let Ok(Fitness::Fit) = checked {
            return Ok(entry);
        }
        if !was_new {
            drop(Counted(&*entry.shared));
        }
        match checked {
            Ok(unfit) => Err(entry.end(unfit.end().unwrap_or(Event::Retired)).and_then(Lease::into_slot)),
            Err(panic) => resume_unwind(panic), // it is the caller's own
        }
    }
}
