//! The idle connections that an address is to have in stock: whether any lack, and when those are dialled for.

use std::sync::Arc;
use std::time::Duration;

use super::{Locked, Shared, State};
use crate::budget::books::{Books, Bounds};
use crate::budget::slot::Slot;
use crate::clock::{self, Tick};
use crate::resource::attempt::random;
use crate::resource::pace::Health;

/// What is kept of an address's stock while that goes badly.
pub(super) struct Stock {
    /// Whether dials for it are of use.
    dials: Health,
    /// Whether its connections live until they serve.
    lives: Health,
    /// Until when somebody sleeps who then sees to it.
    awaited: Option<Tick>,
}

/// What is to be done for the stock of an address.
pub(crate) enum Restock {
    /// Nothing; or nothing by this caller: another is about to, or it has to end first.
    Nothing,
    /// A dial, with this slot.
    Dial(Slot),
    /// To look again then: after the pause that failures are followed by, or when there may be a slot. Who asks until then is
    /// told Nothing, unless it is [said](Shared::stock_slept) that nobody sleeps.
    Later(Tick),
}

impl Stock {
    pub(super) fn new() -> Self {
        Self { dials: Health::BEST, lives: Health::BEST, awaited: None }
    }

    /// Whether a new one would be as good.
    pub(super) fn is_untroubled(&self) -> bool {
        self.dials == Health::BEST && self.lives == Health::BEST && self.awaited.is_none()
    }

    /// When its pause ends, if it pauses.
    fn pause_end(&mut self, now: Tick) -> Option<Tick> {
        let ends = [&mut self.dials, &mut self.lives].map(|health| {
            health.probe(now);
            health.pause_end()
        });
        ends.into_iter().flatten().max()
    }

    /// Whether who asks is to sleep until then.
    fn sleeps(&mut self, now: Tick, until: Tick) -> bool {
        let nobody_does = self.awaited.is_none_or(|awaited| awaited <= now || until < awaited);
        if nobody_does {
            self.awaited = Some(until);
        }
        nobody_does
    }
}

impl<C> Shared<C> {
    fn lacks_idle(&self, books: &Books, state: &Locked<'_, C>) -> bool {
        let stock = state.settings.min_idle.min(state.settings.max_idle);
        let dials = self.dials(books).saturating_sub(state.dialing());
        !state.closed && state.resting() + dials < stock
    }

    /// One that had served nobody was ended by its peer. If it was young, so will the next be, as far as anybody can tell.
    pub(crate) fn stock_ended(&self, age: Duration) {
        let mut state = self.lock();
        if state.settings.min_idle == 0 || state.closed {
            return;
        }
        let (rare, limits) = state.ensure_rare_and_limits();
        if age >= limits.longest {
            rare.stock.lives = Health::BEST;
        }
        rare.stock.lives.failed(limits, false, clock::now(), random());
    }

    /// One of those that rest here was given out: they do live. Returns whether the stock is to be seen to, which it is not
    /// while somebody sleeps until there may be a slot for it: a pool that is to be full whenever nobody uses it is short
    /// whenever somebody does, and none of its gets has to ask the books (I8).
    pub(crate) fn stock_serves(&self) -> bool {
        let mut state = self.lock();
        let Some(rare) = state.several_mut() else { return true };
        let paused = std::mem::replace(&mut rare.stock.lives, Health::BEST) != Health::BEST;
        paused || rare.stock.awaited.is_none_or(|awaited| awaited <= clock::now())
    }

    /// A dial for the stock has ended. Returns whether it is to be gone on with: after a pause, if it was of no use.
    pub(crate) fn stock_dialled(&self, of_use: bool) -> bool {
        let mut state = self.lock();
        if of_use {
            if let Some(rare) = state.several_mut() {
                rare.stock.dials = Health::BEST;
            }
            return true;
        }
        if state.closed {
            return false;
        }
        let (rare, limits) = state.ensure_rare_and_limits();
        rare.stock.dials.failed(limits, true, clock::now(), random());
        rare.stock.dials.pause_end().is_some()
    }

    /// Who was to sleep until then does so no more.
    pub(crate) fn stock_slept(&self, until: Tick) {
        if let Some(rare) = self.lock().several_mut() {
            rare.stock.awaited.take_if(|awaited| *awaited == until);
        }
    }
}

impl<C> State<C> {
    /// What is to be done before the stock can be dialled for: `None`, it can.
    fn stock_waits(&mut self, now: Tick) -> Option<Restock> {
        let rare = self.several_mut()?;
        rare.pace.probe(now);
        let end = rare.stock.pause_end(now).max(rare.pace.pause_end())?;
        Some(if rare.stock.sleeps(now, end) { Restock::Later(end) } else { Restock::Nothing })
    }

    /// There is no slot for it: there may be one later.
    fn stock_lacks_a_slot(&mut self, now: Tick) -> Restock {
        let (rare, limits) = self.ensure_rare_and_limits();
        let end = now.after(limits.longest);
        let sleeps = !limits.longest.is_zero() && rare.stock.sleeps(now, end);
        if sleeps { Restock::Later(end) } else { Restock::Nothing }
    }
}

impl<C: Send + 'static> Shared<C> {
    /// What is to be done for the stock next. It is dialled for with slots that are free, and that nobody else wants.
    pub(crate) fn next_for_stock(self: &Arc<Self>) -> Restock {
        let (mut books, mut state) = self.both();
        if !self.lacks_idle(&books, &state) || books.is_closed(self.partition().account) {
            return Restock::Nothing;
        }
        let now = clock::now();
        let next = match state.stock_waits(now) {
            Some(waits) => waits,
            None => {
                let slot = self.spare_slot(&mut books, state.bounds());
                slot.map_or_else(|| state.stock_lacks_a_slot(now), Restock::Dial)
            }
        };
        self.sync(&mut books, &state); // a pause of the address may be over
        drop(state);
        self.ledger().settle(books);
        next
    }

    fn spare_slot(self: &Arc<Self>, books: &mut Books, bounds: Bounds) -> Option<Slot> {
        if !books.has_slot_at_once(self.partition().account) {
            return None;
        }
        let (slots, dials) = self.taken(books);
        if !bounds.allow_another(slots, dials) {
            return None;
        }
        let seat = books.be_seated(self, bounds);
        Some(books.take_slot(self.partition(), seat))
    }
}
