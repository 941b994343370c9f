//! The state of one address: its idle connections, who waits here, and how a connection moves between them;
//! the callers in line and their dials are in [`mod@line`], what the keeper does in [`mod@tending`]. Decides under
//! the locks, in the order ledger, address, cell; closes, wakes and logs after them.

use std::sync::{Arc, Weak};
use std::task::Waker;

use tokio::runtime;
use tokio::task::AbortHandle;

use super::attempt::ErasedDial;
use super::freelist::Freelist;
use super::history::History;
use super::pace::Pace;
use super::settings::Settings;
use crate::address::Address;
use crate::budget::books::Books;
use crate::budget::ledger::{Ledger, Partition, Seating};
use crate::budget::queue::{Cell, Line, Place};
use crate::budget::slot::{Kind, Slot};
use crate::budget::victim::Hint;
use crate::budget::{Budget, Hold, Site};
use crate::clock::{self, Tick};
use crate::conn::Entry;
use crate::error::{DialError, GetDetails, Phase};
use crate::stats::{Event, ResourceStats, Tally};
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, MutexGuard, Ordering, ShortMutex, ShortMutexGuard};
use crate::upkeep::{Bell, Tended};

mod closing;
mod line;
mod member;
mod reuse;
mod tending;

pub(crate) use line::{Left, Queued};
use reuse::Aside;

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
    /// Somebody watches whether the address moves, or it cannot.
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
    /// On which runtime a task looks after those who queue, if one does: see [`Shared::hasten`].
    hastened_on: Option<runtime::Id>,
    /// A dial has ended since that was asked last.
    dial_ended: bool,
    /// Dials that nobody polls but a task of their own.
    detached: Vec<AbortHandle>,
    /// The books know that something may be idle here.
    warm: bool,
    /// It may have more slots than it should.
    crowded: bool,
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
    /// Has no timer while it queues here: it is woken some time before.
    pub(crate) woken_before: Option<Tick>,
}

impl<C> Waiter<C> {
    /// Whether a connection is of use to this caller.
    fn can_use(&self, entry: &Entry<C>) -> bool {
        let known = entry.runtime.is_none() || entry.runtime == self.runtime;
        known && !(self.fresh && entry.is_reused())
    }
}

impl<C> Clone for Waiter<C> {
    fn clone(&self) -> Self {
        Self { cell: Arc::clone(&self.cell), ..*self }
    }
}

/// Where the caller stands who gets a connection.
enum Next {
    Dialing(Place),
    Queued(Place),
}

impl<C> State<C> {
    /// The oldest caller who can use a connection, and is free to take it: one in line for a dial may have a slot that
    /// it does not know of yet.
    fn first_for(&self, entry: &Entry<C>) -> Option<Next> {
        let queued = self.queued.iter().find(|(_, waiter)| waiter.can_use(entry)).map(|(at, _)| *at);
        let may_take = |waiter: &Waiter<C>| waiter.can_use(entry) && waiter.cell.is_waiting();
        let dialing = self.dialing.iter().find(|(_, waiter)| may_take(waiter)).map(|(at, _)| *at);
        match (dialing, queued) {
            (Some(dialing), Some(queued)) if queued < dialing => Some(Next::Queued(queued)),
            (Some(dialing), _) => Some(Next::Dialing(dialing)),
            (None, queued) => queued.map(Next::Queued),
        }
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
                hastened_on: None,
                dial_ended: false,
                detached: Vec::new(),
                warm: false,
                crowded: false,
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

    /// Makes a connection idle, or gives it to who waits, or closes it. `news`: whoever looked a moment ago missed it.
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
            return;
        }
        self.rest_otherwise(state, entry, news);
    }

    /// Out of the way of the usual case.
    #[cold]
    #[inline(never)]
    fn rest_otherwise(&self, mut state: ShortMutexGuard<'_, State<C>>, entry: Box<Entry<C>>, news: bool) {
        match self.hand_over_here(&mut state, entry) {
            Ok(waker) => {
                drop(state);
                waker.into_iter().for_each(Waker::wake);
            }
            Err(entry) => {
                drop(state);
                self.rest_or_serve(entry, news);
            }
        }
    }

    /// Gives a connection to the oldest caller here who can use it, if that is for this address alone to decide and
    /// makes no difference to the books: nobody else wants its slot, and others stay in the queue.
    fn hand_over_here(
        &self,
        state: &mut State<C>,
        entry: Box<Entry<C>>,
    ) -> Result<Option<Waker>, Box<Entry<C>>> {
        let ours = !state.closed
            && !state.crowded
            && state.generation == entry.record.generation
            && state.pace.is_at_first(&self.settings.dialing)
            && !entry.is_gone()
            && !self.ledger().is_pressed_by_others(&self.seating);
        let waiter = match state.first_for(&entry).filter(|_| ours) {
            Some(Next::Dialing(place)) => state.dialing.remove(place),
            Some(Next::Queued(place)) if state.queued.len() > 1 => state.queued.remove(place),
            Some(Next::Queued(_)) | None => None,
        };
        let Some(waiter) = waiter else { return Err(entry) };
        if entry.is_reused() {
            self.tally.bump_locked(Event::Reused);
        }
        Ok(waiter.cell.grant(Grant::Conn(entry)))
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
        state.crowded = seat.is_some_and(|seat| books.slots_of(seat) > self.settings.max_conns.get());
        if state.crowded {
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
        match state.first_for(entry)? {
            Next::Dialing(place) => state.dialing.remove(place),
            Next::Queued(place) => {
                let waiter = state.queued.remove(place);
                if let Some(seat) = self.seating.get() {
                    books.had_turn(seat);
                }
                self.sync(books, state);
                waiter
            }
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

    /// Slots that the address has, of whatever use.
    pub(crate) fn slots_out(&self) -> usize {
        let books = self.ledger().lock();
        self.seating.get().map_or(0, |seat| books.slots_of(seat))
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
