//! Idle connections given out: the newest that is fit. Those that are not are closed on the way, or set aside where
//! somebody else may take them.

use std::sync::Arc;
use std::task::Waker;

use super::Shared;
use crate::budget::Site;
use crate::budget::slot::{Lease, Slot};
use crate::clock::{self, Tick};
use crate::conn::{Conn, Entry};
use crate::dial::{CheckContext, Fitness};
use crate::resource::freelist::Ended;
use crate::runtime::Whereabouts;
use crate::stats::Event;

/// What to do with an idle connection that was taken to be given out.
enum Verdict {
    Give,
    /// Not now, or not here.
    SetAside,
    Discard(Event),
}

/// Idle connections that were passed over; they go back whatever happens.
pub(super) struct Aside<'a, C> {
    pub(super) shared: &'a Shared<C>,
    pub(super) entries: Vec<Box<Entry<C>>>,
}

impl<C> Drop for Aside<'_, C> {
    fn drop(&mut self) {
        for entry in self.entries.drain(..) {
            self.shared.rest(entry, false);
        }
    }
}

impl<C> Shared<C> {
    /// The newest idle connection that is fit, and closes those it finds unfit. `Err`: none, as of this many
    /// rests.
    #[inline]
    pub(crate) fn take_idle(
        self: &Arc<Self>,
        seen: Option<u64>,
        waker: Option<&Waker>,
        site: Site,
    ) -> Result<Conn<C>, u64> {
        let now = clock::now();
        let (mut entry, stock) = self.take_newest(now, seen.is_none())?;
        match self.judge(&mut entry, stock, now, waker) {
            Verdict::Give => Ok(Conn::new(Arc::clone(self), entry, site)),
            unfit => self.take_another(entry, unfit, now, site),
        }
    }

    /// And whether it is of those to be kept in stock.
    #[inline]
    fn take_newest(&self, now: Tick, touch: bool) -> Result<(Box<Entry<C>>, bool), u64> {
        let mut state = self.state.lock();
        if touch {
            state.history.touch(now.millis());
        }
        let entry = state.idle.take_newest();
        self.publish(&state);
        let entry = entry.ok_or(state.rests)?;
        self.tally.bump_locked(Event::Reused);
        Ok((entry, state.idle.len() < self.settings.min_idle.get()))
    }

    /// Goes on where the newest one was unfit.
    #[cold]
    fn take_another(
        self: &Arc<Self>,
        mut entry: Box<Entry<C>>,
        mut verdict: Verdict,
        now: Tick,
        site: Site,
    ) -> Result<Conn<C>, u64> {
        let mut aside = Aside { shared: self, entries: Vec::new() };
        loop {
            if let Verdict::Give = verdict {
                return Ok(Conn::new(Arc::clone(self), entry, site));
            }
            {
                let _state = self.state.lock();
                self.tally.unbump_locked(Event::Reused);
            }
            match verdict {
                Verdict::Discard(event) => self.discard(entry, event),
                Verdict::Give | Verdict::SetAside => aside.entries.push(entry),
            }
            let stock;
            (entry, stock) = self.take_newest(now, false)?;
            verdict = self.judge(&mut entry, stock, now, None);
        }
    }

    /// Whether an idle connection can be given out here and now.
    #[inline]
    fn judge(&self, entry: &mut Entry<C>, stock: bool, now: Tick, waker: Option<&Waker>) -> Verdict {
        if entry.is_gone() {
            return Verdict::Discard(Event::Stale);
        }
        match entry.record.idle_end(now, self.settings.idle_timeout.nanos()) {
            None => {}
            Some(Ended::Idle) if stock => {}
            Some(Ended::Idle | Ended::Lifetime) => return Verdict::Discard(Event::Expired),
            Some(Ended::Uses) => return Verdict::Discard(Event::Retired),
        }
        if let Some(runtime) = entry.runtime {
            match crate::runtime::whereabouts(runtime, waker) {
                Whereabouts::Here => {}
                Whereabouts::Elsewhere => return Verdict::Discard(Event::Retired),
                // Of no use here, but there may be a caller elsewhere.
                Whereabouts::Nowhere => return Verdict::SetAside,
            }
        }
        match self.check(entry, now) {
            Fitness::Fit => Verdict::Give,
            Fitness::Busy => Verdict::SetAside,
            Fitness::Closed => Verdict::Discard(Event::Stale),
            Fitness::Dirty => Verdict::Discard(Event::Dirty),
            Fitness::Broken => Verdict::Discard(Event::Broken),
        }
    }

    pub(super) fn check(&self, entry: &mut Entry<C>, now: Tick) -> Fitness {
        let cx = CheckContext::new(now.nanos_since(entry.record.rested), self.settings.tick_ns);
        entry.conn.as_mut().map_or(Fitness::Broken, |conn| self.dialer.check(conn, &cx))
    }

    /// What to do with a connection that was handed over: give it out, or close it and keep its slot.
    pub(crate) fn judge_handed(&self, mut entry: Box<Entry<C>>) -> Result<Box<Entry<C>>, Option<Slot>> {
        let event = match self.check(&mut entry, clock::now()) {
            Fitness::Fit => return Ok(entry),
            Fitness::Busy => Event::Retired,
            Fitness::Closed => Event::Stale,
            Fitness::Dirty => Event::Dirty,
            Fitness::Broken => Event::Broken,
        };
        self.count(event);
        self.trace_close(&entry, event);
        Err(entry.close_quietly(self).and_then(Lease::into_slot))
    }
}
