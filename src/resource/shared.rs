//! The state of one address: its idle connections, who waits here, and how a connection moves between them;
//! the callers in line and their dials are in [`mod@line`], what the keeper does in [`mod@tending`]. Decides under
//! the locks, in the order ledger, address, cell; closes, wakes and logs after them.

use std::sync::Arc;
use std::task::Waker;

use tokio::runtime;
use tokio::task::AbortHandle;

use super::attempt::ErasedDial;
use super::freelist::Freelist;
use super::history::History;
use super::home::Home;
use super::pace::{Limits, Pace};
use super::settings::Settings;
use crate::address::Address;
use crate::budget::books::Books;
use crate::budget::ledger::{Ledger, Notice, Partition, Seating};
use crate::budget::queue::{Cell, Line, Place};
use crate::budget::slot::{Kind, Slot};
use crate::budget::victim::Hint;
use crate::budget::{Budget, Hold, Site};
use crate::clock::{self, Tick};
use crate::conn::Entry;
use crate::error::{DialError, GetDetails, Phase};
use crate::stats::{AddressTally, Event, ResourceStats};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, MutexGuard, Ordering, ShortMutexGuard};
use crate::upkeep::Bell;

mod closing;
mod line;
mod member;
mod reuse;
mod tending;

pub(crate) use line::{Left, Queued};
use reuse::Aside;
pub(crate) use reuse::{Found, Missed};

/// One address. Handles, connections and dials hold it; the books hold it while it has slots or waiters.
///
/// What the warm path reads is together, so that it is a line of the cache or two.
#[repr(C)]
pub(crate) struct Shared<C> {
    /// Idle connections, lines, generation. Held for a few instructions; nothing of the user's runs
    /// under it, and no other lock is taken but those of cells. Who queues or is served from the queue
    /// holds the ledger's lock too.
    state: Home<C>,
    pub(crate) dialer: Arc<dyn ErasedDial<C>>,
    /// Somebody queues. A hint.
    others_queue: AtomicBool,
    /// Somebody watches whether the address moves, or it cannot.
    pub(crate) watched: AtomicBool,
    bell: Bell,
    handles: AtomicU32,
    pub(crate) budget: Budget,
    pub(crate) address: Address,
    seating: Seating,
    /// Reuses and waits that the budget has been told of. Written under the ledger's lock.
    reported: [AtomicU64; 2],
    /// How many connections there may be. Changes with the state's settings.
    max_conns: AtomicU32,
    /// Dials that may be under way: what the pace says, for the books. Written under the ledger's lock.
    may_dial: AtomicU32,
}

/// More than fit are more than there are descriptors.
fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// What an address lets others know of itself: written under its lock, read without.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(super) notice: Notice,
    /// Connections given out that had served before.
    reused: AtomicU64,
    /// Callers that got in line behind others.
    waits: AtomicU64,
}

impl Published {
    pub(super) fn clear(&self) {
        let Self { notice: Notice { hint, surplus_since, lent }, reused, waits } = self;
        hint.store(Hint::UNSEEN.pack(), Ordering::Relaxed);
        [reused, waits].into_iter().for_each(|word| word.store(0, Ordering::Relaxed));
        [surplus_since, lent].into_iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    #[inline]
    fn count_reuse(&self, by: u64) {
        add_locked(&self.reused, by);
    }

    fn count_wait(&self) {
        add_locked(&self.waits, 1);
    }
}

/// Without a read-modify-write, for the warm path: under the address's lock.
#[inline]
fn add_locked(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

pub(crate) struct State<C> {
    idle: Freelist<Box<Entry<C>>>,
    pub(super) settings: Arc<Settings>,
    generation: u32,
    /// How often something has come to rest, so that a search of the idle ones knows whether it missed any.
    rests: u32,
    /// Nothing here bars what is put from coming to rest: nobody is in line, the books know of it, it is not closed.
    /// Whoever changes that takes it back; a put that finds it taken back looks for itself.
    calm: bool,
    /// The books know that something may be idle here.
    warm: bool,
    /// It may have more slots than it should.
    crowded: bool,
    /// The keeper knows that something that it does not watch may be idle here.
    tended: bool,
    /// The last handle is gone.
    closed: bool,
    /// Connections of generations before this one are closed. Those between it and the present one may lead
    /// elsewhere than the address does now: the dialer is asked.
    closed_before: u32,
    /// When the keeper comes to see whose time is over, if that is to come.
    due: Tick,
    tally: AddressTally,
    rare: Option<Box<Rare<C>>>,
}

impl<C> Default for State<C> {
    fn default() -> Self {
        Self::new(Settings::default().share())
    }
}

/// What an address has to keep while somebody dials or waits here, or if that goes badly.
pub(crate) struct Rare<C> {
    /// Callers that wait for a dial.
    dialing: Line<Waiter<C>>,
    /// Callers that wait for a slot, or for their address.
    queued: Line<Waiter<C>>,
    last_place: Place,
    pace: Pace,
    /// Runtimes on which somebody sees to it that the address is probed. Each its own: one may not be driven.
    probed_on: Vec<runtime::Id>,
    /// Runtimes on which a task looks after those who queue: see [`Shared::hasten`].
    hastened_on: Vec<runtime::Id>,
    /// When a dial ended last, or more were allowed for want of that.
    moved: Tick,
    /// Dials that nobody polls but a task of their own.
    detached: Vec<AbortHandle>,
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
    /// Has no timer while it queues here: it is woken some time before. `NEVER`: it has one, or needs none.
    pub(crate) woken_before: Tick,
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
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        Self {
            idle: Freelist::default(),
            settings,
            generation: 0,
            rests: 0,
            calm: false,
            warm: false,
            crowded: false,
            tended: false,
            closed: false,
            closed_before: 0,
            due: Tick::NEVER,
            tally: AddressTally::default(),
            rare: None,
        }
    }

    fn rare(&mut self) -> &mut Rare<C> {
        self.rare_and_limits().0
    }

    fn rare_and_limits(&mut self) -> (&mut Rare<C>, &Limits) {
        let limits = &self.settings.dialing;
        (self.rare.get_or_insert_with(|| Box::new(Rare::new(limits))), limits)
    }

    /// Nobody queues, if nobody is here.
    fn queued(&self) -> usize {
        self.rare.as_ref().map_or(0, |rare| rare.queued.len())
    }

    fn dialing(&self) -> usize {
        self.rare.as_ref().map_or(0, |rare| rare.dialing.len())
    }

    /// Tells the books' searches what is here. Every change of the idle ones ends with it.
    #[inline]
    fn publish(&self, published: &Published) {
        let notice = &published.notice;
        let idle = self.idle.len() + notice.lent();
        let hint = Hint::with_idle(notice.hint.load(Ordering::Relaxed), idle);
        notice.hint.store(hint, Ordering::Relaxed);
        if idle > 1 {
            let since = self.idle.oldest_since().map_or(0, Tick::millis);
            notice.surplus_since.store(since, Ordering::Relaxed);
        }
    }

    /// It is wanted. The caller [publishes](Self::publish) what that changes.
    #[inline]
    fn touch(&self, published: &Published, now: Tick) {
        // What the search is told of an address is all that is kept of its history.
        let word = &published.notice.hint;
        let Hint { last, average, .. } = Hint::unpack(word.load(Ordering::Relaxed));
        let mut history = History::of(last, average);
        if history.touch(now.millis()) {
            let hint = Hint::new(history.last().unwrap_or_default(), history.average(), 0);
            word.store(hint.pack(), Ordering::Relaxed);
        }
    }

    /// It rests. The caller tells the keeper, if that does not know it yet.
    #[inline]
    fn put(&mut self, entry: Box<Entry<C>>, published: &Published, news: bool) {
        self.tended = true;
        self.rests = self.rests.wrapping_add(u32::from(news));
        self.idle.put(entry);
        self.publish(published);
    }

    /// How many dials may be under way.
    fn may_dial(&self) -> usize {
        let limits = &self.settings.dialing;
        self.rare.as_ref().map_or_else(|| Pace::new(limits).allowed(limits), |rare| rare.pace.allowed(limits))
    }

    fn last_error(&self) -> Option<DialError> {
        self.rare.as_ref()?.last_error.clone()
    }

    /// Takes out what is not needed until somebody dials or waits again, to be dropped after the lock.
    fn take_spent(&mut self) -> Option<Box<Rare<C>>> {
        self.rare.take_if(|rare| rare.is_spent())
    }
}

impl<C> Rare<C> {
    fn new(limits: &Limits) -> Self {
        Self {
            dialing: Line::new(),
            queued: Line::new(),
            last_place: 0,
            pace: Pace::new(limits),
            probed_on: Vec::new(),
            hastened_on: Vec::new(),
            moved: Tick::NEVER,
            detached: Vec::new(),
            last_error: None,
        }
    }

    /// Whether a new one would be as good.
    fn is_spent(&self) -> bool {
        self.queued.is_empty()
            && self.dialing.is_empty()
            && self.detached.is_empty()
            && self.probed_on.is_empty()
            && self.hastened_on.is_empty()
            && self.last_error.is_none()
            && self.pace.is_untroubled()
    }

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

impl<C> Grant<C> {
    pub(crate) fn is_conn(&self) -> bool {
        matches!(self, Grant::Conn(_))
    }

    pub(crate) fn into_conn(self) -> Option<Box<Entry<C>>> {
        match self {
            Grant::Conn(entry) => Some(entry),
            Grant::Slot(_) | Grant::Failed(_) => None,
        }
    }
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
        state: Home<C>,
        settings: &Settings,
        address: Address,
        budget: Budget,
        dialer: Arc<dyn ErasedDial<C>>,
    ) -> Self {
        let limits = &settings.dialing;
        Self {
            state,
            dialer,
            budget,
            address,
            seating: Seating::none(),
            reported: Default::default(),
            handles: AtomicU32::new(1),
            max_conns: AtomicU32::new(saturated(settings.max_conns)),
            may_dial: AtomicU32::new(saturated(Pace::new(limits).allowed(limits))),
            watched: AtomicBool::new(false),
            bell: Bell::default(),
            others_queue: AtomicBool::new(false),
        }
    }

    pub(crate) fn partition(&self) -> &Arc<Partition> {
        &self.budget.partition
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.budget.partition.ledger
    }

    /// Whether who holds its connections is noted.
    pub(crate) fn tracks(&self) -> bool {
        self.ledger().holds.is_some()
    }

    /// What the settings say now.
    pub(crate) fn setting<T>(&self, of: impl FnOnce(&Settings) -> T) -> T {
        of(&self.state.lock().settings)
    }

    /// Counts a handle more. Whoever is told `true` by [`one_handle_less`](Self::one_handle_less) had the last.
    pub(crate) fn one_handle_more(&self) {
        self.handles.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn one_handle_less(&self) -> bool {
        // AcqRel: what was done by the other handles comes before what the last one's end does.
        self.handles.fetch_sub(1, Ordering::AcqRel) == 1
    }

    pub(crate) fn has_one_handle(&self) -> bool {
        self.handles.load(Ordering::Acquire) == 1
    }

    /// Notes who has a connection, if that is tracked.
    pub(crate) fn note_hold(&self, site: Site) -> Option<Hold> {
        let holds = self.ledger().holds.as_ref()?;
        Some(holds.note(Some(self.address.clone()), 1, site))
    }

    fn both(&self) -> (MutexGuard<'_, Books>, ShortMutexGuard<'_, State<C>>) {
        let books = self.ledger().lock();
        let state = self.state.lock();
        (books, state)
    }

    fn max_conns(&self) -> usize {
        self.max_conns.load(Ordering::Relaxed) as usize
    }

    fn set_max_conns(&self, conns: usize) {
        self.max_conns.store(saturated(conns), Ordering::Relaxed);
    }

    fn may_dial(&self) -> usize {
        self.may_dial.load(Ordering::Relaxed) as usize
    }

    fn set_may_dial(&self, dials: usize) {
        self.may_dial.store(saturated(dials), Ordering::Relaxed);
    }

    /// Not under the address's lock.
    pub(crate) fn count(&self, event: Event) {
        self.state.lock().tally.add(event, 1);
        self.partition().count(event, 1);
    }

    fn publish(&self, state: &State<C>) {
        state.publish(self.state.published);
    }

    /// Makes a connection idle, or gives it to who waits, or closes it. `news`: whoever looked a moment ago missed it.
    ///
    /// In the usual case it writes nothing outside of its address (I8).
    #[inline]
    pub(crate) fn rest(entry: Box<Entry<C>>, news: bool) {
        let home = entry.shared.state;
        let mut state = home.lock();
        let rests = state.calm
            && state.generation == entry.record.generation
            && state.idle.len() < state.settings.max_idle
            && entry.record.put_end(state.settings.max_uses).is_none()
            && !entry.shared.ledger().is_pressed();
        if !rests {
            return Self::rest_otherwise(state, entry, news);
        }
        let untended = (!state.tended).then(|| Arc::clone(&entry.shared));
        state.put(entry, home.published, news);
        drop(state);
        if let Some(shared) = untended {
            Self::take_in(&shared);
        }
    }

    /// Something rests here that the keeper does not know of.
    pub(super) fn take_in(this: &Arc<Self>) {
        this.ledger().keeper.take_in(this.dialer.tended(this));
    }

    /// Out of the way of the usual case.
    #[cold]
    #[inline(never)]
    fn rest_otherwise(mut state: ShortMutexGuard<'_, State<C>>, entry: Box<Entry<C>>, news: bool) {
        if let Some(ended) = entry.record.put_end(state.settings.max_uses) {
            drop(state);
            return entry.discard(ended.event());
        }
        match Self::hand_over_here(&mut state, entry) {
            Ok(waker) => {
                drop(state);
                waker.into_iter().for_each(Waker::wake);
            }
            Err(entry) => {
                drop(state);
                Self::rest_or_serve(entry, news);
            }
        }
    }

    /// Gives a connection to the oldest caller here who can use it, if that is for this address alone to decide and
    /// makes no difference to the books: nobody else wants its slot, and others stay in the queue.
    fn hand_over_here(state: &mut State<C>, entry: Box<Entry<C>>) -> Result<Option<Waker>, Box<Entry<C>>> {
        let this = &*entry.shared;
        let State { rare: Some(rare), settings, closed: false, crowded: false, generation, .. } = state
        else {
            return Err(entry);
        };
        let ours = *generation == entry.record.generation
            && rare.pace.is_at_first(&settings.dialing)
            && !entry.is_gone()
            && !this.ledger().is_pressed_by_others(&this.seating);
        let waiter = match rare.first_for(&entry).filter(|_| ours) {
            Some(Next::Dialing(place)) => rare.dialing.remove(place),
            Some(Next::Queued(place)) if rare.queued.len() > 1 => rare.queued.remove(place),
            Some(Next::Queued(_)) | None => None,
        };
        let Some(waiter) = waiter else { return Err(entry) };
        this.state.published.count_reuse(u64::from(entry.is_reused()));
        Ok(waiter.cell.grant(Grant::Conn(entry)))
    }

    #[cold]
    fn rest_or_serve(mut entry: Box<Entry<C>>, news: bool) {
        let this = Arc::clone(&entry.shared);
        if !this.bring_up_to_date(&mut entry) {
            return entry.discard(Event::Retired);
        }
        // Before the locks, so that a panic gives them back before the slot comes back.
        let mut entry = Some(entry);
        let mut displaced = None;
        let mut untended = false;
        let mut spent = None;
        let (mut books, mut state) = this.both();
        let fate = this.fate(&mut books, &mut state, &mut entry);
        if let Fate::Rests | Fate::Displaces = fate {
            if let Fate::Displaces = fate {
                displaced = state.idle.take_oldest().map(|oldest| (oldest, Event::Retired));
            }
            untended = !state.tended;
            if let Some(entry) = entry.take() {
                state.put(entry, this.state.published, news);
            }
            spent = this.calm_down(&mut books, &mut state);
        }
        if let (Fate::Closes(event), Some(mut closing)) = (&fate, entry.take()) {
            if *event == Event::Evicted {
                books.evicted(closing.lease_mut());
            }
            displaced = Some((closing, *event));
        }
        this.publish(&state);
        drop(state);
        this.ledger().settle(books);
        drop(spent);
        if untended {
            Self::take_in(&this);
        }
        if let Fate::Served(Some(waker)) = fate {
            waker.wake();
        }
        if let Some((entry, event)) = displaced {
            entry.discard(event);
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
        if self.is_crowded(books, state) {
            return Fate::Closes(Event::Retired);
        }
        if books.is_over(account) || books.is_claimed(account, self.seating.get()) {
            return Fate::Closes(Event::Evicted);
        }
        if let Some(waiter) = self.next_for(books, state, back) {
            if back.is_reused() {
                self.state.published.count_reuse(1);
                let (rare, limits) = state.rare_and_limits();
                rare.pace.came_back(limits);
                self.sync(books, state);
            }
            return Fate::Served(entry.take().and_then(|entry| waiter.cell.grant(Grant::Conn(entry))));
        }
        if state.queued() > 0 {
            // Its callers want none of it (fresh, or of another runtime), but can do with its slot.
            return Fate::Closes(Event::Retired);
        }
        match state.settings.max_idle {
            0 => Fate::Closes(Event::Retired),
            max if state.idle.len() >= max => Fate::Displaces,
            _ => Fate::Rests,
        }
    }

    /// Whether it has more slots than it should, which is noted.
    fn is_crowded(&self, books: &Books, state: &mut State<C>) -> bool {
        state.crowded = self.seating.get().is_some_and(|seat| books.slots_of(seat) > self.max_conns());
        state.crowded
    }

    /// Takes the oldest caller out of the line who can use a connection.
    fn next_for(&self, books: &mut Books, state: &mut State<C>, entry: &Entry<C>) -> Option<Waiter<C>> {
        let rare = state.rare.as_mut()?;
        match rare.first_for(entry)? {
            Next::Dialing(place) => rare.dialing.remove(place),
            Next::Queued(place) => {
                let waiter = rare.queued.remove(place);
                if let Some(seat) = self.seating.get() {
                    books.had_turn(seat);
                }
                self.sync(books, state);
                waiter
            }
        }
    }

    /// From now on what is put here comes to rest without a look at the books, if nobody is in line. Returns what is to be
    /// dropped after the locks.
    fn calm_down(&self, books: &mut Books, state: &mut State<C>) -> Option<Box<Rare<C>>> {
        if !std::mem::replace(&mut state.warm, true) {
            books.heat(&self.seating);
        }
        state.calm = state.queued() + state.dialing() == 0;
        state.take_spent()
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
        self.state.published.notice.idle()
    }

    pub(crate) fn stats(&self) -> ResourceStats {
        let (books, state) = self.both();
        let mut stats = ResourceStats::default();
        if let Some(seat) = self.seating.get() {
            let counts = books.counts_of(seat);
            stats.idle = state.idle.len() + self.state.published.notice.lent();
            stats.in_use = counts.get(Kind::Connected).saturating_sub(stats.idle);
            stats.dialing = counts.get(Kind::Dialing);
            stats.closing = counts.get(Kind::Closing);
        }
        stats.waiting = state.dialing() + state.queued();
        stats.count(&state.tally);
        stats.reused += self.state.published.reused.load(Ordering::Relaxed);
        stats.waits += self.state.published.waits.load(Ordering::Relaxed);
        stats
    }

    pub(crate) fn details(&self, phase: Phase, since: Tick, timed_out: bool) -> Box<GetDetails> {
        let counts = self.ledger().lock().counts(self.partition().account);
        let (address, elapsed) = (self.address.clone(), clock::now().since(since));
        tracing::debug!(%address, %phase, ?elapsed, %counts, timed_out, "get failed");
        let retry_in = self.state.lock().rare.as_ref().and_then(|rare| rare.pace.pause(clock::now()));
        Box::new(GetDetails { address, phase, elapsed, counts, timed_out, retry_in })
    }

    /// Whether fewer connections rest here, or are being dialled, than are to be kept.
    pub(crate) fn lacks_idle(&self) -> bool {
        let (books, state) = self.both();
        let stock = state.settings.min_idle.min(state.settings.max_idle);
        let idle = state.idle.len() + self.state.published.notice.lent();
        let dials = self.seating.get().map_or(0, |seat| books.dials_of(seat));
        !state.closed && idle + dials.saturating_sub(state.dialing()) < stock
    }
}

impl<C> Drop for Shared<C> {
    fn drop(&mut self) {
        self.state.vacate();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it costs to know an address, of which there may be a million, and to have something idle there.
    #[test]
    fn an_address_is_small() {
        assert!(size_of::<Shared<()>>() <= 152);
        assert!(
            size_of::<Published>() + size_of::<State<()>>() <= 120,
            "with the lock, two lines of the cache"
        );
        assert!(size_of::<Entry<()>>() <= 80);
    }
}
