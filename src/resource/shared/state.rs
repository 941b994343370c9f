//! What an address keeps behind its lock, and what it lets others read without; of who is in line,
//! [`callers`](super::callers) knows. Decides nothing that concerns others.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::callers::Callers;
use crate::budget::member::Notice;
use crate::budget::queue::Place;
use crate::budget::victim::Hint;
use crate::clock::Tick;
use crate::conn::Entry;
use crate::resource::attempt::Terms;
use crate::resource::freelist::Freelist;
use crate::resource::history::History;
use crate::resource::settings::Settings;
use crate::stats::{AddressTally, Event};
use crate::sync::{AtomicU64, Ordering, ShortMutexGuard};

/// What an address lets others know of itself: written under its lock, read without. In the order of its room's first line.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Published {
    pub(in crate::resource) notice: Notice,
    /// Connections given out that had served or rested before.
    pub(super) reused: AtomicU64,
}

impl Published {
    pub(in crate::resource) fn clear(&self) {
        let Self { notice: Notice { hint, surplus_since, lent }, reused } = self;
        hint.store(Hint::UNSEEN.pack(), Ordering::Relaxed);
        reused.store(0, Ordering::Relaxed);
        [surplus_since, lent].into_iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    #[inline]
    pub(super) fn count_reuse(&self, by: u64) {
        add_locked(&self.reused, by);
    }
}

/// Without a read-modify-write, for the warm path: under the address's lock.
#[inline]
pub(super) fn add_locked(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// What a get and a put read is first: see [`Room`](crate::resource::home).
#[repr(C)]
pub(crate) struct State<C> {
    pub(in crate::resource) settings: Arc<Settings>,
    pub(super) generation: u32,
    /// Nothing here bars what is put from coming to rest: nobody is in line, the books know of it, it is not closed.
    /// Whoever changes that takes it back; a put that finds it taken back looks for itself.
    pub(super) calm: bool,
    /// The books know that something may be idle here: their searches find it.
    pub(super) warm: bool,
    /// It may have more slots than it should.
    pub(super) crowded: bool,
    /// The keeper knows that something that it does not watch may be idle here, and has a runtime.
    pub(super) tended: bool,
    pub(super) idle: Freelist<Box<Entry<C>>>,
    /// The last handle is gone, or it was closed: nobody gets in, and nothing comes to rest.
    pub(super) closed: bool,
    /// The keeper knows, whether it has a runtime or not.
    pub(super) noted: bool,
    /// Connections of generations before this one are closed. Those between it and the present one may lead
    /// elsewhere than the address does now: the dialer is asked.
    pub(super) closed_before: u32,
    /// When the keeper comes to see whose time is over, if that is to come.
    pub(super) due: Tick,
    pub(super) tally: AddressTally,
    /// Of the last caller who got in line. Goes on for as long as the address lives: one who was served, and does not know
    /// yet, must not be taken for another.
    pub(super) last_place: Place,
    pub(super) callers: Callers<C>,
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
            noted: false,
            closed_before: 0,
            due: Tick::NEVER,
            tally: AddressTally::default(),
            last_place: 0,
            callers: Callers::Nobody,
        }
    }

    /// Whether so many who want a connection each find no room for all, beside so many slots.
    pub(super) fn lacks_room(&self, slots: usize, callers: usize) -> bool {
        self.settings.max_conns.saturating_sub(slots) < callers
    }

    /// A dial begins, and is counted here: on what terms, if nobody says otherwise.
    pub(super) fn begin_dial(&mut self) -> Terms {
        self.tally.add(Event::Dial, 1);
        let Settings { dial_timeout: timeout, max_lifetime, .. } = *self.settings;
        Terms { generation: self.generation, timeout, hasty: false, max_lifetime }
    }
}

/// The state of an address, as who has its lock has it, and what it publishes.
pub(crate) struct Locked<'a, C> {
    state: ShortMutexGuard<'a, State<C>>,
    pub(super) published: &'a Published,
}

impl<C> Deref for Locked<'_, C> {
    type Target = State<C>;

    #[inline]
    fn deref(&self) -> &State<C> {
        &self.state
    }
}

impl<C> DerefMut for Locked<'_, C> {
    #[inline]
    fn deref_mut(&mut self) -> &mut State<C> {
        &mut self.state
    }
}

impl<'a, C> Locked<'a, C> {
    #[inline]
    pub(in crate::resource) fn new(state: ShortMutexGuard<'a, State<C>>, published: &'a Published) -> Self {
        Self { state, published }
    }

    /// How many connections rest, or are in the keeper's hands.
    #[inline]
    pub(super) fn resting(&self) -> usize {
        self.idle.len() + self.published.notice.lent()
    }

    /// Whether fewer rest than are to be kept in stock.
    #[inline]
    pub(super) fn is_short(&self) -> bool {
        self.resting() < self.settings.min_idle.min(self.settings.max_idle)
    }

    /// Tells the books' searches what is here. Every change of the idle ones ends with it.
    #[inline]
    pub(super) fn publish(&self) {
        let notice = &self.published.notice;
        let idle = self.resting();
        let hint = Hint::with_idle(notice.hint.load(Ordering::Relaxed), idle);
        notice.hint.store(hint, Ordering::Relaxed);
        if idle > 1 {
            let since = self.idle.oldest_since().map_or(0, Tick::millis);
            notice.surplus_since.store(since, Ordering::Relaxed);
        }
    }

    /// It is wanted. The caller [publishes](Self::publish) what that changes.
    #[inline]
    pub(in crate::resource) fn touch(&self, now: Tick) {
        // What the search is told of an address is all that is kept of its history.
        let word = &self.published.notice.hint;
        let Hint { last, average, .. } = Hint::unpack(word.load(Ordering::Relaxed));
        let mut history = History::of(last, average);
        if history.touch(now.millis()) {
            let hint = Hint::new(history.last().unwrap_or_default(), history.average(), 0);
            word.store(hint.pack(), Ordering::Relaxed);
        }
    }

    /// It rests. The caller tells the keeper, if that does not know it yet.
    #[inline]
    pub(super) fn put(&mut self, mut entry: Box<Entry<C>>, news: bool) {
        if entry.has_rung() {
            entry.unwatch(); // while it was not here: that was answered in vain
        }
        entry.rested = true;
        self.tended = true;
        self.idle.rests = self.idle.rests.wrapping_add(u32::from(news));
        self.idle.put(entry);
        self.publish();
    }
}
