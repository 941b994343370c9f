//! What an address keeps behind its lock, and what it lets others read without. Decides nothing that concerns others.

use std::io;
use std::sync::Arc;

use tokio::runtime;
use tokio::task::AbortHandle;

use crate::budget::ledger::Notice;
use crate::budget::queue::{Cell, Line, Place};
use crate::budget::slot::Slot;
use crate::budget::victim::Hint;
use crate::clock::{self, Tick};
use crate::conn::Entry;
use crate::error::DialError;
use crate::resource::attempt::Terms;
use crate::resource::freelist::Freelist;
use crate::resource::history::History;
use crate::resource::pace::{Limits, Pace};
use crate::resource::settings::Settings;
use crate::stats::{AddressTally, Event};
use crate::sync::{AtomicU64, Ordering};

/// What an address lets others know of itself: written under its lock, read without.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(in crate::resource) notice: Notice,
    /// Connections given out that had served before.
    pub(super) reused: AtomicU64,
    /// Callers that got in line behind others.
    pub(super) waits: AtomicU64,
}

impl Published {
    pub(in crate::resource) fn clear(&self) {
        let Self { notice: Notice { hint, surplus_since, lent }, reused, waits } = self;
        hint.store(Hint::UNSEEN.pack(), Ordering::Relaxed);
        [reused, waits].into_iter().for_each(|word| word.store(0, Ordering::Relaxed));
        [surplus_since, lent].into_iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    #[inline]
    pub(super) fn count_reuse(&self, by: u64) {
        add_locked(&self.reused, by);
    }

    pub(super) fn count_wait(&self) {
        add_locked(&self.waits, 1);
    }
}

/// Without a read-modify-write, for the warm path: under the address's lock.
#[inline]
fn add_locked(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

pub(crate) struct State<C> {
    pub(super) idle: Freelist<Box<Entry<C>>>,
    pub(in crate::resource) settings: Arc<Settings>,
    pub(super) generation: u32,
    /// Nothing here bars what is put from coming to rest: nobody is in line, the books know of it, it is not closed.
    /// Whoever changes that takes it back; a put that finds it taken back looks for itself.
    pub(super) calm: bool,
    /// The books know that something may be idle here.
    pub(super) warm: bool,
    /// It may have more slots than it should.
    pub(super) crowded: bool,
    /// The keeper knows that something that it does not watch may be idle here.
    pub(super) tended: bool,
    /// The last handle is gone.
    pub(super) closed: bool,
    /// Connections of generations before this one are closed. Those between it and the present one may lead
    /// elsewhere than the address does now: the dialer is asked.
    pub(super) closed_before: u32,
    /// When the keeper comes to see whose time is over, if that is to come.
    pub(super) due: Tick,
    pub(super) tally: AddressTally,
    /// Of the last caller who got in line. Goes on for as long as the address lives: one who was served, and does not know
    /// yet, must not be taken for another.
    last_place: Place,
    callers: Callers<C>,
}

/// Who is in line at an address.
#[derive(Default)]
enum Callers<C> {
    /// As a rule. Can become Alone or Several.
    #[default]
    Nobody,
    /// The one who got in line last waits for its own dial, and all is well. Can become Nobody or Several.
    Alone { caller: Arc<Caller<C>>, generation: u32 },
    /// Nobody, too, while there is something to be kept. Can become Nobody.
    Several(Box<Rare<C>>),
}

impl<C> Default for State<C> {
    fn default() -> Self {
        Self::new(Settings::default().share())
    }
}

/// What an address has to keep while somebody dials or waits here, or if that goes badly.
pub(crate) struct Rare<C> {
    /// Callers that wait for a dial.
    pub(super) dialing: Line<Waiter<C>>,
    /// Callers that wait for a slot, or for their address.
    pub(super) queued: Line<Waiter<C>>,
    pub(super) pace: Pace,
    /// Runtimes on which somebody sees to it that the address is probed. Each its own: one may not be driven.
    pub(super) probed_on: Vec<runtime::Id>,
    /// Runtimes on which a task looks after those who queue: see [`hasten`](super::Shared::hasten).
    pub(super) hastened_on: Vec<runtime::Id>,
    /// When a dial ended last, or more were allowed for want of that.
    pub(super) moved: Tick,
    /// Dials that nobody polls but a task of their own.
    pub(super) detached: Vec<AbortHandle>,
    pub(super) last_error: Option<DialError>,
}

/// A caller of `get`, as it and those who serve it know it.
pub(crate) struct Caller<C> {
    pub(crate) cell: Cell<Grant<C>>,
    pub(crate) wants: Wants,
    /// Does not wait to be served.
    pub(crate) immediate: bool,
}

/// What is of use to a caller.
#[derive(Clone, Copy)]
pub(crate) struct Wants {
    pub(crate) runtime: Option<runtime::Id>,
    /// None that has served before.
    pub(crate) fresh: bool,
    /// Nothing less than that the address is well.
    pub(crate) patient: bool,
}

/// A caller of `get` in line.
pub(crate) struct Waiter<C> {
    pub(crate) caller: Arc<Caller<C>>,
    /// The caller's: so whoever looks for one to serve need not wait for the memory of others.
    pub(crate) wants: Wants,
    /// The resource's when it got in line: it wants none that is older.
    pub(crate) generation: u32,
    /// Its own dial has ended, for the good of another caller; it counts on that one's.
    pub(crate) orphaned: bool,
    /// Has no timer while it queues here: it is woken some time before. `NEVER`: it has one, or needs none.
    pub(crate) woken_before: Tick,
}

impl<C> Waiter<C> {
    /// One that gets in line.
    pub(super) fn new(caller: &Arc<Caller<C>>, generation: u32) -> Self {
        let (caller, wants) = (Arc::clone(caller), caller.wants);
        Self { caller, wants, generation, orphaned: false, woken_before: Tick::NEVER }
    }

    /// Whether a connection is of use to this caller.
    pub(super) fn can_use(&self, entry: &Entry<C>) -> bool {
        self.wants.includes(entry, self.generation)
    }
}

impl Wants {
    fn includes<C>(self, entry: &Entry<C>, generation: u32) -> bool {
        let known = entry.runtime.is_none() || entry.runtime == self.runtime;
        // Generations wrap.
        let young = entry.record.generation.wrapping_sub(generation) as i32 >= 0;
        known && young && !(self.fresh && entry.is_reused())
    }
}

impl<C> Clone for Waiter<C> {
    fn clone(&self) -> Self {
        Self { caller: Arc::clone(&self.caller), ..*self }
    }
}

/// Where the caller stands who gets a connection.
pub(super) enum Next {
    Dialing(Place),
    Queued(Place),
}

impl<C> State<C> {
    pub(in crate::resource) fn new(settings: Arc<Settings>) -> Self {
        Self {
            idle: Freelist::default(),
            settings,
            generation: 0,
            calm: false,
            warm: false,
            crowded: false,
            tended: false,
            closed: false,
            closed_before: 0,
            due: Tick::NEVER,
            tally: AddressTally::default(),
            last_place: 0,
            callers: Callers::Nobody,
        }
    }

    pub(super) fn rare(&mut self) -> &mut Rare<C> {
        self.rare_and_limits().0
    }

    pub(super) fn rare_and_limits(&mut self) -> (&mut Rare<C>, &Limits) {
        let limits = &self.settings.dialing;
        let rare = match &mut self.callers {
            Callers::Several(rare) => rare,
            callers => {
                let mut rare = Box::new(Rare::new(limits));
                if let Callers::Alone { caller, generation } = callers {
                    rare.dialing.insert(self.last_place, Waiter::new(caller, *generation));
                }
                *callers = Callers::Several(rare);
                let Callers::Several(rare) = callers else { unreachable!("BUG: it has just become that") };
                rare
            }
        };
        (rare, limits)
    }

    /// The same, if anybody is in line, or something is kept of those who were.
    pub(super) fn rare_if_any(&mut self) -> Option<(&mut Rare<C>, &Limits)> {
        (!self.is_deserted()).then(|| self.rare_and_limits())
    }

    /// What is kept where more than one has been in line, or it went badly.
    pub(super) fn several(&self) -> Option<&Rare<C>> {
        match &self.callers {
            Callers::Several(rare) => Some(rare),
            Callers::Nobody | Callers::Alone { .. } => None,
        }
    }

    pub(super) fn several_mut(&mut self) -> Option<&mut Rare<C>> {
        match &mut self.callers {
            Callers::Several(rare) => Some(rare),
            Callers::Nobody | Callers::Alone { .. } => None,
        }
    }

    /// Nobody is in line, and nothing is kept of those who were.
    pub(super) fn is_deserted(&self) -> bool {
        matches!(self.callers, Callers::Nobody)
    }

    pub(super) fn next_place(&mut self) -> Place {
        self.last_place += 1;
        self.last_place
    }

    /// Gets in line for a dial of its own, which is about to begin.
    pub(super) fn awaits_dial(&mut self, caller: &Arc<Caller<C>>) -> Place {
        if self.is_deserted() {
            self.callers = Callers::Alone { caller: Arc::clone(caller), generation: self.generation };
            return self.next_place();
        }
        let waiter = Waiter::new(caller, self.generation);
        self.rare(); // whoever is alone there keeps its place
        let place = self.next_place();
        self.rare().dialing.insert(place, waiter);
        place
    }

    /// Gets in line for a slot, or for the address.
    pub(super) fn awaits_slot(&mut self, caller: &Arc<Caller<C>>) -> Place {
        let waiter = Waiter::new(caller, self.generation);
        self.rare();
        let place = self.next_place();
        self.rare().queued.insert(place, waiter);
        place
    }

    /// A dial begins, and is counted here: on what terms, if nobody says otherwise.
    pub(super) fn begin_dial(&mut self) -> Terms {
        self.tally.add(Event::Dial, 1);
        let Settings { dial_timeout: timeout, max_lifetime, .. } = *self.settings;
        Terms { generation: self.generation, timeout, max_lifetime }
    }

    /// Takes the one out of the line who is alone there, for what its own dial has made.
    pub(super) fn take_alone(
        &mut self,
        initiator: Option<Place>,
        entry: &Entry<C>,
    ) -> Option<Arc<Caller<C>>> {
        match std::mem::take(&mut self.callers) {
            Callers::Alone { caller, generation }
                if initiator == Some(self.last_place) && caller.wants.includes(entry, generation) =>
            {
                Some(caller)
            }
            others => {
                self.callers = others;
                None
            }
        }
    }

    /// Nobody queues, if nobody is here.
    pub(super) fn queued(&self) -> usize {
        self.several().map_or(0, |rare| rare.queued.len())
    }

    pub(super) fn dialing(&self) -> usize {
        match &self.callers {
            Callers::Nobody => 0,
            Callers::Alone { .. } => 1,
            Callers::Several(rare) => rare.dialing.len(),
        }
    }

    /// Everybody in line.
    pub(super) fn callers(&self) -> impl Iterator<Item = &Caller<C>> {
        let alone = match &self.callers {
            Callers::Alone { caller, .. } => Some(&**caller),
            Callers::Nobody | Callers::Several(_) => None,
        };
        let lines = self.several().into_iter().flat_map(|rare| rare.queued.iter().chain(rare.dialing.iter()));
        alone.into_iter().chain(lines.map(|(_, waiter)| &*waiter.caller))
    }

    /// Tells the books' searches what is here. Every change of the idle ones ends with it.
    #[inline]
    pub(super) fn publish(&self, published: &Published) {
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
    pub(super) fn touch(&self, published: &Published, now: Tick) {
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
    pub(super) fn put(&mut self, entry: Box<Entry<C>>, published: &Published, news: bool) {
        self.tended = true;
        self.idle.rests = self.idle.rests.wrapping_add(u32::from(news));
        self.idle.put(entry);
        self.publish(published);
    }

    /// How many dials may be under way.
    pub(super) fn may_dial(&self) -> usize {
        let limits = &self.settings.dialing;
        self.several().map_or_else(|| Pace::new(limits).allowed(limits), |rare| rare.pace.allowed(limits))
    }

    pub(super) fn last_error(&self) -> Option<DialError> {
        self.several()?.last_error.clone()
    }

    /// Takes out what is not needed until somebody dials or waits again, to be dropped after the lock.
    pub(super) fn take_spent(&mut self) -> Option<Box<Rare<C>>> {
        match std::mem::take(&mut self.callers) {
            Callers::Several(rare) if rare.is_spent() => Some(rare),
            others => {
                self.callers = others;
                None
            }
        }
    }
}

impl<C> Rare<C> {
    fn new(limits: &Limits) -> Self {
        Self {
            dialing: Line::new(),
            queued: Line::new(),
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
    pub(super) fn first_for(&self, entry: &Entry<C>) -> Option<Next> {
        let queued = self.queued.iter().find(|(_, waiter)| waiter.can_use(entry)).map(|(at, _)| *at);
        let may_take = |waiter: &Waiter<C>| waiter.can_use(entry) && waiter.caller.cell.is_waiting();
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

impl<C> Rare<C> {
    /// A dial has ended. Nobody asks when unless somebody hastens.
    pub(super) fn note_move(&mut self) {
        if !self.hastened_on.is_empty() {
            self.moved = clock::now();
        }
    }

    /// Why the address pauses.
    pub(super) fn failure(&self) -> DialError {
        let timed_out = || DialError::from(io::Error::new(io::ErrorKind::TimedOut, "dials timed out"));
        self.last_error.clone().unwrap_or_else(timed_out)
    }

    /// The oldest of those who wait for a dial and have none of their own, if all are more than the dials.
    pub(super) fn take_stranded(&mut self, dials: usize) -> Option<(Place, Waiter<C>)> {
        if self.dialing.len() <= dials {
            return None;
        }
        let place = self.dialing.iter().find(|(_, waiter)| waiter.orphaned).map(|(place, _)| *place)?;
        self.dialing.remove(place).map(|waiter| (place, waiter))
    }

    /// Puts them back in the queue. Returns whether there were any.
    pub(super) fn requeue_stranded(&mut self, dials: usize) -> bool {
        let mut any = false;
        while let Some((place, waiter)) = self.take_stranded(dials) {
            self.queued.insert(place, Waiter { orphaned: false, ..waiter });
            any = true;
        }
        any
    }
}
