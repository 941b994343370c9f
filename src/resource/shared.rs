//! The state of one address: its idle connections, who waits here, and how a connection moves between them;
//! the callers in line and their dials are in [`mod@line`], what the keeper does in [`mod@tending`]. Decides under
//! the locks, in the order ledger, address, cell; closes, wakes and logs after them.

use std::sync::{Arc, Weak};
use std::task::Waker;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::{runtime, task};

use super::attempt::{Attempt, ErasedDial};
use super::freelist::{Ended, Freelist};
use super::history::History;
use super::pace::Pace;
use super::settings::Settings;
use crate::address::Address;
use crate::budget::books::Books;
use crate::budget::ledger::{Ledger, Member, Partition, Seating, Victim};
use crate::budget::queue::{Cell, Line, Place};
use crate::budget::slot::{Kind, Lease, Slot};
use crate::budget::victim::Hint;
use crate::budget::{Budget, Hold, Site};
use crate::clock::{self, Tick};
use crate::conn::{Closing, Conn, Entry};
use crate::dial::{CheckContext, Fitness};
use crate::error::{DialError, GetDetails, Phase};
use crate::runtime::Whereabouts;
use crate::stats::{Event, ResourceStats, Tally};
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, MutexGuard, Ordering, ShortMutex, ShortMutexGuard};
use crate::upkeep::{Bell, Tended};

mod line;
mod tending;

pub(crate) use line::{Left, Queued};

/// One address. Handles, connections and dials hold it; the books hold it while it has slots or waiters.
pub(crate) struct Shared<C> {
    pub(crate) address: Address,
    pub(crate) budget: Budget,
    pub(crate) settings: Settings,
    pub(crate) dialer: Arc<dyn ErasedDial<C>>,
    seating: Seating,
    /// The budget's, at hand for the warm path; and whether it tracks holds.
    ledger: Arc<Ledger>,
    pub(crate) tracks: bool,
    /// For the keeper.
    me: Weak<dyn Tended>,
    /// What victims are chosen by: written under the lock, read without. See [`Hint::pack`].
    hint: AtomicU64,
    /// Since when the oldest of several idle ones rests.
    surplus_since: AtomicU64,
    tally: Tally,
    /// Reuses that the budget has been told of.
    reported: AtomicU64,
    /// Dials that may be under way: what the pace says, for the books. Written under the ledger's lock.
    may_dial: AtomicUsize,
    /// Idle connections that the keeper looks at just now. Written under the lock.
    lent: AtomicUsize,
    /// Somebody watches whether the address moves.
    pub(crate) watched: AtomicBool,
    /// Idle connections, lines, generation, history. Held for a few instructions; nothing of the user's runs
    /// under it, and no other lock is taken but those of cells. Who queues or is served from the queue
    /// holds the ledger's lock too.
    state: ShortMutex<State<C>>,
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
    /// Connections of generations before this one are closed. Those between it and the present one may lead
    /// elsewhere than the address does now: the dialer is asked.
    closed_before: u64,
    history: History,
    pace: Pace,
    /// Somebody sees to it that the address is probed.
    probe_awaited: bool,
    /// Somebody sees to it that more dials begin, if those under way take long.
    haste_awaited: bool,
    /// A dial has ended since that was asked last.
    dial_ended: bool,
    /// Dials that nobody polls but a task of their own.
    detached: Vec<AbortHandle>,
    /// The books know that something may be idle here.
    warm: bool,
    /// The keeper knows that something that it does not watch may be idle here.
    tended: bool,
    /// When the keeper comes to see whose time is over.
    due: Option<Tick>,
    /// What idle connections' streams ring, once there was one to be watched.
    bell: Option<Arc<Bell>>,
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
    /// Does not wait to be served.
    pub(crate) immediate: bool,
    /// Waits until the address is well.
    pub(crate) patient: bool,
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
    /// There was none: the address pauses.
    Paused(DialError),
    /// The budget, or the resource, is closed.
    Closed,
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
        me: Weak<dyn Tended>,
    ) -> Self {
        let pace = Pace::new(&settings.dialing);
        let may_dial = AtomicUsize::new(pace.allowed(&settings.dialing));
        let ledger = Arc::clone(&budget.partition.ledger);
        Self {
            tracks: ledger.holds.is_some(),
            ledger,
            address,
            budget,
            settings,
            dialer,
            seating: Seating::none(),
            me,
            hint: AtomicU64::new(Hint::new(0, None, 0).pack()),
            surplus_since: AtomicU64::new(0),
            tally: Tally::default(),
            reported: AtomicU64::new(0),
            may_dial,
            lent: AtomicUsize::new(0),
            watched: AtomicBool::new(false),
            state: ShortMutex::new(State {
                idle: Freelist::new(),
                rests: 0,
                dialing: Line::new(),
                queued: Line::new(),
                last_place: 0,
                generation: 0,
                closed_before: 0,
                history: History::default(),
                pace,
                probe_awaited: false,
                haste_awaited: false,
                dial_ended: false,
                detached: Vec::new(),
                warm: false,
                tended: false,
                due: None,
                bell: None,
                closed: false,
                last_error: None,
            }),
        }
    }

    pub(crate) fn partition(&self) -> &Arc<Partition> {
        &self.budget.partition
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Notes who has a connection, if that is tracked.
    pub(crate) fn note_hold(&self, site: Site) -> Option<Hold> {
        let holds = self.ledger.holds.as_ref()?;
        Some(holds.note(Some(self.address.clone()), 1, site))
    }

    fn both(&self) -> (MutexGuard<'_, Books>, ShortMutexGuard<'_, State<C>>) {
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
        let idle = state.idle.len() + self.lent();
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

    fn check(&self, entry: &mut Entry<C>, now: Tick) -> Fitness {
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
            && state.idle.len() < self.settings.max_idle.get()
            && !self.ledger().is_pressed();
        if quiet {
            state.idle.put(entry);
            state.rests += u64::from(news);
            self.publish(&state);
            if !std::mem::replace(&mut state.tended, true) {
                drop(state);
                self.ledger().keeper.take_in(self.me.clone());
            }
        } else {
            drop(state);
            self.rest_or_serve(entry, news);
        }
    }

    #[cold]
    fn rest_or_serve(&self, mut entry: Box<Entry<C>>, news: bool) {
        if !self.bring_up_to_date(&mut entry) {
            return self.discard(entry, Event::Retired);
        }
        // Before the locks, so that a panic gives them back before the slot comes back.
        let mut entry = Some(entry);
        let mut displaced = None;
        let mut fresh = false;
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
            fresh = !std::mem::replace(&mut state.tended, true);
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
        if fresh {
            self.ledger().keeper.take_in(self.me.clone());
        }
        if let Fate::Served(Some(waker)) = fate {
            waker.wake();
        }
        if let Some((entry, event)) = displaced {
            self.discard(entry, event);
        }
    }

    /// Asks the dialer about a connection that was dialled before the address moved. `false`: it leads elsewhere.
    fn bring_up_to_date(&self, entry: &mut Entry<C>) -> bool {
        let (generation, closed_before) = {
            let state = self.state.lock();
            (state.generation, state.closed_before)
        };
        let dialled = entry.record.generation;
        // Those to be closed, and those whose address moves meanwhile, are seen to by who has the lock.
        if dialled < generation && dialled >= closed_before {
            if !entry.conn.as_ref().is_some_and(|conn| self.dialer.is_current(&self.address, conn)) {
                return false;
            }
            entry.record.generation = generation;
        }
        true
    }

    /// The address may lead elsewhere than before: closes the idle connections that do not lead there, and those in
    /// use when they are put.
    pub(crate) fn ask_whether_current(&self) {
        let idle = {
            let mut state = self.state.lock();
            state.generation += 1;
            let idle = state.idle.take_all();
            self.publish(&state);
            idle
        };
        tracing::debug!(address = %self.address, idle = idle.len(), "does the address lead elsewhere?");
        let mut aside = Aside { shared: self, entries: Vec::new() };
        for entry in idle {
            // Each goes back as it was put: what leads elsewhere is closed there.
            aside.entries.push(entry);
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
        let seat = self.seating.get();
        if seat.is_some_and(|seat| books.slots_of(seat) > self.settings.max_conns.get()) {
            return Fate::Closes(Event::Retired);
        }
        if books.is_over(account) || books.is_claimed(account, self.seating.get()) {
            return Fate::Closes(Event::Evicted);
        }
        if let Some(waiter) = self.next_for(books, state, back) {
            if back.is_reused() {
                self.tally.bump_locked(Event::Reused);
                state.pace.came_back(&self.settings.dialing);
                self.sync(books, state);
            }
            return Fate::Served(entry.take().and_then(|entry| waiter.cell.grant(Grant::Conn(entry))));
        }
        if !state.queued.is_empty() {
            // Its callers want none of it (fresh, or of another runtime), but can do with its slot.
            return Fate::Closes(Event::Retired);
        }
        match self.settings.max_idle.get() {
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
                }
                self.sync(books, state);
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
        state.closed_before = state.generation;
        self.close_all(state);
    }

    /// The last handle is gone.
    pub(crate) fn retire(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let dials = std::mem::take(&mut state.detached);
        self.close_all(state);
        dials.iter().for_each(AbortHandle::abort);
    }

    /// Closed for good: who waits is told, nothing rests any more.
    pub(crate) fn end(&self) {
        let (mut books, mut state) = self.both();
        state.closed = true;
        // Not those who have been granted a slot and do not know yet: they ask before they dial with it.
        let tells = |waiter: &Waiter<C>| waiter.cell.is_waiting();
        let waiters = [state.queued.remove_all(tells), state.dialing.remove_all(tells)].concat();
        let wakers: Vec<_> =
            waiters.iter().filter_map(|waiter| waiter.cell.grant(Grant::Failed(Failure::Closed))).collect();
        let idle = state.idle.take_all();
        let dials = std::mem::take(&mut state.detached);
        self.publish(&state);
        self.sync(&mut books, &state);
        drop(state);
        self.ledger().settle(books);
        dials.iter().for_each(AbortHandle::abort);
        wakers.into_iter().for_each(Waker::wake);
        for entry in idle {
            self.discard(entry, Event::Retired);
        }
    }

    /// Acts by settings that have changed.
    pub(crate) fn settings_changed(&self) {
        let (mut books, mut state) = self.both();
        let mut surplus = Vec::new();
        while state.idle.len() > self.settings.max_idle.get() {
            surplus.extend(state.idle.take_oldest());
        }
        let slots = self.seating.get().map_or(0, |seat| books.slots_of(seat)) - surplus.len();
        for _ in self.settings.max_conns.get()..slots {
            surplus.extend(state.idle.take_oldest());
        }
        self.publish(&state);
        self.sync(&mut books, &state);
        let rests = state.idle.len() > 0;
        state.tended |= rests;
        state.warm = false; // the next put looks at all of them
        drop(state);
        self.ledger().settle(books);
        if rests {
            self.ledger().keeper.take_in(self.me.clone());
        }
        for entry in surplus {
            self.discard(entry, Event::Retired);
        }
    }

    /// Whether nobody gets in any more.
    pub(crate) fn is_closed(&self) -> bool {
        let (books, state) = self.both();
        state.closed || books.is_closed(self.partition().account)
    }

    /// Has a dial go on by itself, until it ends or nobody can want it any more.
    pub(crate) fn detach(&self, dial: Attempt, runtime: &Handle) {
        let dial = runtime.spawn(dial).abort_handle();
        let mut state = self.state.lock();
        state.detached.retain(|dial| !dial.is_finished());
        if !state.closed {
            return state.detached.push(dial);
        }
        drop(state);
        dial.abort();
    }

    /// Slots that the address has, of whatever use.
    pub(crate) fn slots_out(&self) -> usize {
        let books = self.ledger().lock();
        self.seating.get().map_or(0, |seat| books.slots_of(seat))
    }

    fn close_all(&self, mut state: ShortMutexGuard<'_, State<C>>) {
        let idle = state.idle.take_all();
        self.publish(&state);
        drop(state);
        for entry in idle {
            self.discard(entry, Event::Retired);
        }
    }

    /// Whether anything is open here, or being dialled.
    pub(crate) fn has_slots(&self) -> bool {
        self.seating.get().is_some()
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
            stats.idle = state.idle.len() + self.lent();
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
        let retry_in = self.state.lock().pace.pause(clock::now());
        Box::new(GetDetails { address, phase, elapsed, counts, timed_out, retry_in })
    }

    /// Whether fewer connections rest here, or are being dialled, than are to be kept.
    pub(crate) fn lacks_idle(&self) -> bool {
        let stock = self.settings.min_idle.get().min(self.settings.max_idle.get());
        if self.resting() >= stock {
            return false; // the usual case, without a lock
        }
        let (books, state) = self.both();
        let dials = self.seating.get().map_or(0, |seat| books.dials_of(seat));
        !state.closed && state.idle.len() + self.lent() + dials.saturating_sub(state.dialing.len()) < stock
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
