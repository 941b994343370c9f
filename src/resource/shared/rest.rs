//! Connections that are given back: to rest, to who waits, or to be closed.

use std::sync::Arc;
use std::task::Waker;

use super::callers::{Grant, Waiter};
use super::rare::{Next, Rare};
use super::{Locked, Shared, State};
use crate::budget::books::Books;
use crate::conn::Entry;
use crate::stats::Event;
use crate::sync::wake_all;

/// What becomes of a connection that is given back.
enum Fate<C> {
    /// And the oldest goes in its stead, if there would be one too many.
    Rests {
        displaces: bool,
    },
    Serves(Waiter<C>),
    Closes(Event),
}

impl<C> Shared<C> {
    /// Makes a connection idle, or gives it to who waits, or closes it: then it returns `false`. `news`: whoever looked a
    /// moment ago missed it.
    ///
    /// In the usual case it writes nothing outside of its address (I8).
    #[inline]
    pub(crate) fn rest(entry: Box<Entry<C>>, news: bool) -> bool {
        let room = entry.shared.room;
        let mut state = entry.shared.dialer.lock_alone(room);
        let rests = state.calm
            && state.generation == entry.record.generation
            && state.idle.len() < state.settings.max_idle
            && entry.record.put_end(state.settings.max_uses).is_none()
            && !entry.shared.ledger().is_pressed();
        if !rests {
            return Self::rest_otherwise(state, entry, news);
        }
        let untended = (!state.tended).then(|| Arc::clone(&entry.shared));
        state.put(entry, news);
        drop(state);
        if let Some(shared) = untended {
            Self::take_in(&shared);
        }
        true
    }

    /// Something rests here that the keeper does not know of, or that it had no runtime for.
    pub(crate) fn take_in(this: &Arc<Self>) {
        let is_noted = std::mem::replace(&mut this.lock().noted, true);
        let address = (!is_noted).then(|| this.dialer.tended(this));
        if !this.ledger().keeper.take_in(address) {
            this.lock().tended = false; // the next put may have a runtime
        }
    }

    /// Out of the way of the usual case.
    #[cold]
    #[inline(never)]
    fn rest_otherwise(mut state: Locked<'_, C>, entry: Box<Entry<C>>, news: bool) -> bool {
        if let Some(ended) = entry.record.put_end(state.settings.max_uses) {
            drop(state);
            entry.discard(ended.event());
            return false;
        }
        match Self::hand_over_here(&mut state, entry) {
            Ok(waker) => {
                drop(state);
                wake_all(waker);
                true
            }
            Err(entry) => {
                drop(state);
                Self::rest_or_serve(entry, news)
            }
        }
    }

    /// Gives a connection to the oldest caller here who can use it, if that is for this address alone to decide and
    /// makes no difference to the books: nobody else wants its slot, and others stay in the queue.
    fn hand_over_here(
        state: &mut Locked<'_, C>,
        entry: Box<Entry<C>>,
    ) -> Result<Option<Waker>, Box<Entry<C>>> {
        let this = &*entry.shared;
        if state.closed || state.crowded || state.generation != entry.record.generation {
            return Err(entry);
        }
        let Some((rare, limits)) = state.rare_if_any() else { return Err(entry) };
        let ours = rare.pace.is_at_first(limits)
            && !entry.is_gone()
            && !rare.bars(&entry)
            && !this.ledger().is_pressed_by_others(&this.seating);
        let waiter = match rare.first_for(&entry).filter(|_| ours) {
            Some(Next::Dialing(place)) => rare.dialing.remove(place),
            Some(Next::Queued(place)) if rare.queued.len() > 1 => rare.serve_queued(place),
            Some(Next::Queued(_)) | None => None,
        };
        let Some(waiter) = waiter else { return Err(entry) };
        state.published.count_reuse(u64::from(!entry.is_new()));
        Ok(waiter.caller.cell.grant(Grant::Conn(entry)))
    }

    #[cold]
    fn rest_or_serve(mut entry: Box<Entry<C>>, news: bool) -> bool {
        let this = Arc::clone(&entry.shared);
        if !this.bring_up_to_date(&mut entry) {
            entry.discard(Event::Retired);
            return false;
        }
        // Before the locks, so that a panic gives them back before any slot comes back.
        let (mut closing, mut waker, mut untended, mut spent) = (None, None, false, None);
        let (mut books, mut state) = this.both();
        let fate = this.fate(&mut books, &mut state, &entry);
        let is_of_use = !matches!(fate, Fate::Closes(_));
        match fate {
            Fate::Rests { displaces } => {
                untended = !state.tended;
                state.put(entry, news);
                if displaces {
                    closing = state.idle.take_oldest().map(|oldest| (oldest, Event::Retired));
                }
                spent = this.calm_down(&mut books, &mut state);
            }
            Fate::Serves(waiter) => waker = waiter.caller.cell.grant(Grant::Conn(entry)),
            Fate::Closes(event) => {
                if event == Event::Evicted {
                    books.evicted(entry.lease_mut());
                }
                closing = Some((entry, event));
            }
        }
        state.publish();
        drop(state);
        this.ledger().settle(books);
        drop(spent);
        if untended {
            Self::take_in(&this);
        }
        wake_all(waker);
        if let Some((entry, event)) = closing {
            entry.discard(event);
        }
        is_of_use
    }

    /// Decides on a connection that is given back, and takes out of the line who gets it, if that is the decision.
    fn fate(&self, books: &mut Books, state: &mut Locked<'_, C>, back: &Entry<C>) -> Fate<C> {
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
        let bars = state.several().is_some_and(|rare| rare.bars(back)) && self.needs_its_slot(books, state);
        if !bars && let Some(waiter) = self.next_for(books, state, back) {
            if !back.is_new() {
                state.published.count_reuse(1);
                let (rare, limits) = state.ensure_rare_and_limits();
                rare.pace.came_back(limits);
                self.sync(books, state);
            }
            return Fate::Serves(waiter);
        }
        let suits = |rare: &Rare<C>| rare.queued.iter().any(|(_, waiter)| waiter.suits(back));
        let is_unwanted = bars || state.queued() > 0 && !state.several().is_some_and(suits);
        if is_unwanted && self.needs_its_slot(books, state) {
            // Its callers, or one whose turn it is, want none of it (fresh, or of another runtime), but can do with its slot.
            return Fate::Closes(Event::Retired);
        }
        match state.settings.max_idle {
            0 => Fate::Closes(Event::Retired),
            max => Fate::Rests { displaces: state.idle.len() >= max },
        }
    }

    /// Whether those who queue here lack but a slot, or the room for one, to dial.
    fn needs_its_slot(&self, books: &Books, state: &State<C>) -> bool {
        let (account, may_dial) = (self.partition().account, state.may_dial());
        let (slots, dials) = self.taken(books);
        if state.lacks_room(slots, state.queued()) {
            return may_dial > 0; // it will, if not just now
        }
        dials < may_dial && books.dial_room(account) > 0 && books.free(account) == 0
    }

    /// Takes out what rests here for those who queue, if the first of them wants none of it, and all that they lack is the room
    /// that it has. To be closed after the locks.
    pub(super) fn make_way(&self, books: &Books, state: &mut Locked<'_, C>) -> Option<Box<Entry<C>>> {
        let (_, first) = state.several()?.queued.front()?;
        let is_wanted = state.idle.iter().any(|entry| first.suits(entry));
        let (slots, _) = self.taken(books);
        if is_wanted || state.may_dial() == 0 || !state.lacks_room(slots, state.queued()) {
            return None;
        }
        let spared = state.idle.take_oldest();
        state.publish();
        spared
    }

    /// Whether it has more slots than it should, which is noted.
    pub(super) fn is_crowded(&self, books: &Books, state: &mut State<C>) -> bool {
        state.crowded =
            self.seating.get().is_some_and(|seat| books.slots_of(seat) > state.settings.max_conns);
        state.crowded
    }

    /// Takes the oldest caller out of the line who can use a connection.
    pub(super) fn next_for(
        &self,
        books: &mut Books,
        state: &mut State<C>,
        entry: &Entry<C>,
    ) -> Option<Waiter<C>> {
        let (rare, _) = state.rare_if_any()?;
        match rare.first_for(entry)? {
            Next::Dialing(place) => rare.dialing.remove(place),
            Next::Queued(place) => {
                let waiter = rare.serve_queued(place);
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
    pub(super) fn calm_down(&self, books: &mut Books, state: &mut State<C>) -> Option<Box<Rare<C>>> {
        state.warm = state.warm || books.heat(&self.seating);
        state.calm = state.warm && state.queued() + state.dialing() == 0;
        let spent = state.take_spent()?;
        if let Some(seat) = self.seating.get() {
            books.bound(seat, state.bounds());
        }
        Some(spent)
    }
}
