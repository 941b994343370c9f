//! The state of one address: its idle connections, who waits here, and how a connection moves between them;
//! the callers in line and their dials are in [`mod@line`]. Decides under the locks, in the order ledger, address, cell; closes, wakes and logs after them.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use tokio::runtime;

use super::attempt::ErasedDial;
use super::freelist::{Ended, Freelist};
use super::history::History;
use crate::address::Address;
use crate::budget::Budget;
use crate::budget::books::Books;
use crate::budget::ledger::{Ledger, Member, Partition, Seating, Victim};
use crate::budget::queue::{Cell, Line, Place};
use crate::budget::slot::{Kind, Lease, Slot};
use crate::budget::victim::Hint;
use crate::clock::{self, Tick};
use crate::conn::{Closing, Conn, Entry};
use crate::dial::{CheckContext, Fitness};
use crate::error::{DialError, GetDetails, Phase};
use crate::runtime::Whereabouts;
use crate::stats::{Event, ResourceStats, Tally};
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering};

mod line;

pub(crate) use line::{Left, Queued};

/// What a resource was built with.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) max_conns: usize,
    pub(crate) max_idle: usize,
    pub(crate) min_idle: usize,
    pub(crate) max_uses: usize,
    pub(crate) idle_timeout: Duration,
    pub(crate) max_lifetime: Duration,
    pub(crate) dial_timeout: Option<Duration>,
    pub(crate) wait_timeout: Option<Duration>,
    /// The clock's resolution.
    pub(crate) tick: Duration,
}

/// One address. Handles, connections and dials hold it; the books hold it while it has slots or waiters.
pub(crate) struct Shared<C> {
    pub(crate) address: Address,
    pub(crate) budget: Budget,
    pub(crate) settings: Settings,
    pub(crate) dialer: Arc<dyn ErasedDial<C>>,
    seating: Seating,
    /// What victims are chosen by: written under the lock, read without. See [`Hint::pack`].
    hint: AtomicU64,
    /// Since when the oldest of several idle ones rests.
    surplus_since: AtomicU64,
    tally: Tally,
    /// Reuses that the budget has been told of.
    reported: AtomicU64,
    /// Idle connections, lines, generation, history. Held for a few instructions; nothing of the user's runs
    /// under it, and no other lock is taken but those of cells. Who queues or is served from the queue
    /// holds the ledger's lock too.
    state: Mutex<State<C>>,
}

pub(crate) struct State<C> {
    idle: Freelist<Box<Entry<C>>>,
    /// How often something has come to rest, so that a search of the idle ones knows whether it missed any.
    rests: u64,
    /// Callers that wait for a dial.
    dialing: Line<Waiter<C>>,
    /// Callers that wait for a slot, or for their address.
    queued: Line<Waiter<C>>,
    last_place: Place,
    generation: u64,
    history: History,
    /// The books know that something may be idle here.
    warm: bool,
    /// The last handle is gone.
    closed: bool,
    last_error: Option<DialError>,
}

/// A caller of `get` in line.
pub(crate) struct Waiter<C> {
    pub(crate) cell: Arc<Cell<Grant<C>>>,
    /// Takes none that has served before.
    pub(crate) fresh: bool,
    pub(crate) runtime: Option<runtime::Id>,
    /// Its own dial has ended, for the good of another caller; it counts on that one's.
    pub(crate) orphaned: bool,
}

impl<C> Waiter<C> {
    /// Whether a connection is of use to this caller, and the caller free to take it.
    fn takes(&self, entry: &Entry<C>) -> bool {
        let known = entry.runtime.is_none() || entry.runtime == self.runtime;
        known && !(self.fresh && entry.is_reused()) && self.cell.is_waiting()
    }
}

impl<C> Clone for Waiter<C> {
    fn clone(&self) -> Self {
        Self { cell: Arc::clone(&self.cell), ..*self }
    }
}

/// What a caller is given.
pub(crate) enum Grant<C> {
    Conn(Box<Entry<C>>),
    /// A slot to dial with.
    Slot(Slot),
    Failed(Failure),
}

/// How a dial failed.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    Error(DialError),
    Timeout,
}

/// What becomes of a connection that is given back.
enum Fate {
    Rests,
    Served(Option<Waker>),
    /// It rests, and the oldest goes in its stead.
    Displaces,
    Closes(Event),
}

impl<C> Shared<C> {
    pub(crate) fn new(
        address: Address,
        budget: Budget,
        settings: Settings,
        dialer: Arc<dyn ErasedDial<C>>,
    ) -> Self {
        Self {
            address,
            budget,
            settings,
            dialer,
            seating: Seating::none(),
            hint: AtomicU64::new(Hint::new(0, None, 0).pack()),
            surplus_since: AtomicU64::new(0),
            tally: Tally::default(),
            reported: AtomicU64::new(0),
            state: Mutex::new(State {
                idle: Freelist::new(),
                rests: 0,
                dialing: Line::new(),
                queued: Line::new(),
                last_place: 0,
                generation: 0,
                history: History::default(),
                warm: false,
                closed: false,
                last_error: None,
            }),
        }
    }

    pub(crate) fn partition(&self) -> &Arc<Partition> {
        &self.budget.partition
    }

    fn ledger(&self) -> &Ledger {
        &self.budget.partition.ledger
    }

    fn both(&self) -> (MutexGuard<'_, Books>, MutexGuard<'_, State<C>>) {
        let books = self.ledger().lock();
        let state = self.state.lock();
        (books, state)
    }

    pub(crate) fn count(&self, event: Event) {
        self.tally.add(event, 1);
        self.partition().count(event, 1);
    }

    /// Tells the books' searches what is here. Every change of the idle ones ends with it.
    #[inline]
    fn publish(&self, state: &State<C>) {
        let idle = state.idle.len();
        let hint = Hint::new(state.history.last().unwrap_or_default(), state.history.average(), idle);
        self.hint.store(hint.pack(), Ordering::Relaxed);
        if idle > 1 {
            let since = state.idle.oldest_since().map_or(0, Tick::millis);
            self.surplus_since.store(u64::from(since), Ordering::Relaxed);
        }
    }

    /// The newest idle connection that is fit, and closes those it finds unfit. `Err`: none, as of this many
    /// rests.
    #[inline]
    pub(crate) fn take_idle(
        self: &Arc<Self>,
        seen: Option<u64>,
        waker: Option<&Waker>,
    ) -> Result<Conn<C>, u64> {
        let now = clock::now();
        let mut entry = self.take_newest(now, seen.is_none())?;
        match self.judge(&mut entry, now, waker) {
            Verdict::Give => Ok(Conn::new(Arc::clone(self), entry)),
            unfit => self.take_another(entry, unfit, now),
        }
    }

    #[inline]
    fn take_newest(&self, now: Tick, touch: bool) -> Result<Box<Entry<C>>, u64> {
        let mut state = self.state.lock();
        if touch {
            state.history.touch(now.millis());
        }
        let entry = state.idle.take_newest();
        self.publish(&state);
        let entry = entry.ok_or(state.rests)?;
        self.tally.bump_locked(Event::Reused);
        Ok(entry)
    }

    /// Goes on where the newest one was unfit.
    #[cold]
    fn take_another(
        self: &Arc<Self>,
        mut entry: Box<Entry<C>>,
        mut verdict: Verdict,
        now: Tick,
    ) -> Result<Conn<C>, u64> {
        let mut aside = Aside { shared: self, entries: Vec::new() };
        loop {
            if let Verdict::Give = verdict {
                return Ok(Conn::new(Arc::clone(self), entry));
            }
            {
                let _state = self.state.lock();
                self.tally.unbump_locked(Event::Reused);
            }
            match verdict {
                Verdict::Discard(event) => self.discard(entry, event),
                Verdict::Give | Verdict::SetAside => aside.entries.push(entry),
            }
            entry = self.take_newest(now, false)?;
            verdict = self.judge(&mut entry, now, None);
        }
    }

    /// Whether an idle connection can be given out here and now.
    #[inline]
    fn judge(&self, entry: &mut Entry<C>, now: Tick, waker: Option<&Waker>) -> Verdict {
        if entry.is_gone() {
            return Verdict::Discard(Event::Stale);
        }
        match entry.record.idle_end(now, self.settings.idle_timeout) {
            None => {}
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

    fn check(&self, entry: &mut Entry<C>, now: Tick) -> Fitness {
        let cx = CheckContext::new(entry.record.idle_for(now), self.settings.tick);
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

    /// Makes a connection idle, or gives it to who waits, or closes it. `news`: it was not idle a moment ago.
    ///
    /// In the usual case it writes nothing outside of its address (I8).
    #[inline]
    pub(crate) fn rest(&self, entry: Box<Entry<C>>, news: bool) {
        let mut state = self.state.lock();
        let quiet = state.warm
            && !state.closed
            && state.dialing.is_empty()
            && state.queued.is_empty()
            && state.generation == entry.record.generation
            && state.idle.len() < self.settings.max_idle
            && !self.ledger().is_pressed();
        if quiet {
            state.idle.put(entry);
            state.rests += u64::from(news);
            self.publish(&state);
        } else {
            drop(state);
            self.rest_or_serve(entry, news);
        }
    }

    #[cold]
    fn rest_or_serve(&self, entry: Box<Entry<C>>, news: bool) {
        // Before the locks, so that a panic gives them back before the slot comes back.
        let mut entry = Some(entry);
        let mut displaced = None;
        let (mut books, mut state) = self.both();
        let fate = self.fate(&mut books, &mut state, &mut entry);
        if let Fate::Rests | Fate::Displaces = fate {
            if let Fate::Displaces = fate {
                displaced = state.idle.take_oldest().map(|oldest| (oldest, Event::Retired));
            }
            if let Some(entry) = entry.take() {
                state.idle.put(entry);
                state.rests += u64::from(news);
            }
            if !std::mem::replace(&mut state.warm, true) {
                books.heat(&self.seating);
            }
        }
        if let (Fate::Closes(event), Some(mut closing)) = (&fate, entry.take()) {
            if *event == Event::Evicted {
                books.evicted(closing.lease_mut());
            }
            displaced = Some((closing, *event));
        }
        self.publish(&state);
        drop(state);
        self.ledger().settle(books);
        if let Fate::Served(Some(waker)) = fate {
            waker.wake();
        }
        if let Some((entry, event)) = displaced {
            self.discard(entry, event);
        }
    }

    /// Decides on a connection that is given back, and hands it over if that is the decision.
    fn fate(&self, books: &mut Books, state: &mut State<C>, entry: &mut Option<Box<Entry<C>>>) -> Fate {
        let Some(back) = entry.as_ref() else { return Fate::Rests };
        if back.is_gone() {
            return Fate::Closes(Event::Stale);
        }
        // I6: asked in the section that would make it idle.
        if state.closed || back.record.generation != state.generation {
            return Fate::Closes(Event::Retired);
        }
        let account = self.partition().account;
        if books.is_over(account) || books.is_claimed(account, self.seating.get()) {
            return Fate::Closes(Event::Evicted);
        }
        if let Some(waiter) = self.next_for(books, state, back) {
            if back.is_reused() {
                self.tally.bump_locked(Event::Reused);
            }
            return Fate::Served(entry.take().and_then(|entry| waiter.cell.grant(Grant::Conn(entry))));
        }
        if !state.queued.is_empty() {
            // Its callers want none of it (fresh, or of another runtime), but can do with its slot.
            return Fate::Closes(Event::Retired);
        }
        match self.settings.max_idle {
            0 => Fate::Closes(Event::Retired),
            max if state.idle.len() >= max => Fate::Displaces,
            _ => Fate::Rests,
        }
    }

    /// Takes the oldest caller out of the line who can use a connection.
    fn next_for(&self, books: &mut Books, state: &mut State<C>, entry: &Entry<C>) -> Option<Waiter<C>> {
        let first =
            |line: &Line<Waiter<C>>| line.iter().find(|(_, waiter)| waiter.takes(entry)).map(|(at, _)| *at);
        match (first(&state.dialing), first(&state.queued)) {
            (Some(dialing), queued) if queued.is_none_or(|queued| dialing < queued) => {
                state.dialing.remove(dialing)
            }
            (_, Some(queued)) => {
                let waiter = state.queued.remove(queued);
                if let Some(seat) = self.seating.get() {
                    books.had_turn(seat);
                    books.sync(seat, state.queued.len());
                }
                waiter
            }
            (_, None) => None,
        }
    }

    /// Closes a connection that nobody gets. What its close panics with is nobody's here: caught and counted.
    #[cold]
    pub(crate) fn discard(&self, mut entry: Box<Entry<C>>, event: Event) {
        self.count(event);
        self.trace_close(&entry, event);
        drop(entry.close_quietly(self));
    }

    fn trace_close(&self, entry: &Entry<C>, event: Event) {
        tracing::debug!(
            address = %self.address,
            reason = ?event,
            age = ?clock::now().since(entry.record.born),
            idle = ?entry.record.idle_for(clock::now()),
            uses = entry.record.uses,
            "connection closed"
        );
    }

    /// Closes what is idle now, and what is in use when it is put.
    pub(crate) fn schedule_close(&self) {
        let mut state = self.state.lock();
        state.generation += 1;
        self.close_all(state);
    }

    /// The last handle is gone.
    pub(crate) fn retire(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        self.close_all(state);
    }

    fn close_all(&self, mut state: MutexGuard<'_, State<C>>) {
        let idle = state.idle.take_all();
        self.publish(&state);
        drop(state);
        for entry in idle {
            self.discard(entry, Event::Retired);
        }
    }

    /// Connections that rest here, at a glance.
    pub(crate) fn resting(&self) -> usize {
        usize::from(Hint::unpack(self.hint.load(Ordering::Relaxed)).idle)
    }

    pub(crate) fn stats(&self) -> ResourceStats {
        let (books, state) = self.both();
        let mut stats = ResourceStats::default();
        if let Some(seat) = self.seating.get() {
            let counts = books.counts_of(seat);
            stats.idle = state.idle.len();
            stats.in_use = counts.get(Kind::Connected).saturating_sub(stats.idle);
            stats.dialing = counts.get(Kind::Dialing);
            stats.closing = counts.get(Kind::Closing);
        }
        stats.waiting = state.dialing.len() + state.queued.len();
        stats.count(&self.tally);
        stats
    }

    pub(crate) fn details(&self, phase: Phase, since: Tick, timed_out: bool) -> Box<GetDetails> {
        let counts = self.ledger().lock().counts(self.partition().account);
        let (address, elapsed) = (self.address.clone(), clock::now().since(since));
        tracing::debug!(%address, %phase, ?elapsed, %counts, timed_out, "get failed");
        Box::new(GetDetails { address, phase, elapsed, counts, timed_out })
    }

    /// Whether fewer connections rest here, or are being dialled, than are to be kept.
    pub(crate) fn lacks_idle(&self) -> bool {
        let stock = self.settings.min_idle.min(self.settings.max_idle);
        if self.resting() >= stock {
            return false; // the usual case, without a lock
        }
        let (books, state) = self.both();
        let dials = self.seating.get().map_or(0, |seat| books.dials_of(seat));
        !state.closed && state.idle.len() + dials.saturating_sub(state.dialing.len()) < stock
    }
}

/// What to do with an idle connection that was taken to be given out.
enum Verdict {
    Give,
    /// Not now, or not here.
    SetAside,
    Discard(Event),
}

/// Idle connections that were passed over; they go back whatever happens.
struct Aside<'a, C> {
    shared: &'a Shared<C>,
    entries: Vec<Box<Entry<C>>>,
}

impl<C> Drop for Aside<'_, C> {
    fn drop(&mut self) {
        for entry in self.entries.drain(..) {
            self.shared.rest(entry, false);
        }
    }
}

impl<C: Send + 'static> Member for Shared<C> {
    fn seating(&self) -> &Seating {
        &self.seating
    }

    fn hint(&self) -> (Hint, u32) {
        let hint = Hint::unpack(self.hint.load(Ordering::Relaxed));
        (hint, self.surplus_since.load(Ordering::Relaxed) as u32)
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

    fn serve(&self, slot: Slot) -> Option<Waker> {
        let mut state = self.state.lock();
        let (place, waiter) =
            state.queued.pop_front().expect("BUG: a slot for an address where nobody queues");
        state.dialing.insert(place, waiter.clone());
        waiter.cell.grant(Grant::Slot(slot))
    }

    fn dial_ended(&self, dials: usize) -> Option<usize> {
        let mut state = self.state.lock();
        state.requeue_stranded(dials).then(|| state.queued.len())
    }

    fn cooled(&self) {
        self.state.lock().warm = false;
        let unreported = self.unreported_reuse();
        self.reported.store(self.tally.read(Event::Reused), Ordering::Relaxed);
        self.partition().count(Event::Reused, unreported);
    }

    fn partition(&self) -> &Arc<Partition> {
        self.partition()
    }

    fn max_conns(&self) -> usize {
        self.settings.max_conns
    }

    fn address(&self) -> &Address {
        &self.address
    }

    fn oldest_wait(&self) -> Option<Tick> {
        let state = self.state.lock();
        state.queued.front().map(|(_, waiter)| waiter.cell.since)
    }

    fn unreported_reuse(&self) -> u64 {
        self.tally.read(Event::Reused).saturating_sub(self.reported.load(Ordering::Relaxed))
    }
}
