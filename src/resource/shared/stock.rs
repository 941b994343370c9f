//! The idle connections that an address is to have in stock: whether any lack, and when those are dialled for.

use std::sync::Arc;
use std::time::Duration;

use super::{Locked, Shared, State};
use crate::budget::books::{Books, Bounds};
use crate::budget::slot::Slot;
use crate::clock::{self, Tick};
use crate::resource::attempt::random;
use crate::resource::pace::Health;

/// What is to be done for the stock of an address.
pub(crate) enum Lack {
    /// Nothing, or nothing that can be done.
    Nothing,
    /// A dial, with this slot.
    Dial(Slot),
    /// To look again then: after the pause that failures are followed by, or when there may be a slot. Nobody else does.
    Pause(Tick),
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
            rare.stock = Health::BEST;
        }
        rare.stock.failed(limits, false, clock::now(), random());
    }

    /// A dial for the stock neither added to it nor served anybody. Returns whether it is to be tried again: after a pause,
    /// if there are any.
    pub(crate) fn stock_failed(&self) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        let (rare, limits) = state.ensure_rare_and_limits();
        rare.stock.failed(limits, true, clock::now(), random());
        rare.stock.pause_end().is_some()
    }
}

impl<C> State<C> {
    /// When somebody is to look whether there is a slot for the stock, if nobody is about to.
    fn look_for_slot_later(&mut self, now: Tick) -> Option<Tick> {
        let (rare, limits) = self.ensure_rare_and_limits();
        if limits.longest.is_zero() || rare.stocked_at.is_some_and(|at| now < at) {
            return None;
        }
        let at = now.after(limits.longest);
        rare.stocked_at = Some(at);
        Some(at)
    }
}

impl<C: Send + 'static> Shared<C> {
    /// Whether a connection lacks that nobody waits for. It is dialled with a slot that is free, and that nobody else wants.
    pub(crate) fn lack(self: &Arc<Self>) -> Lack {
        let (mut books, mut state) = self.both();
        if !self.lacks_idle(&books, &state) {
            return Lack::Nothing;
        }
        let now = clock::now();
        if let Some(rare) = state.several_mut() {
            rare.stock.probe(now);
            rare.pace.probe(now);
            let ends = [rare.stock.pause_end(), rare.pace.pause_end()];
            if let Some(end) = ends.into_iter().flatten().max() {
                let first = rare.stocked_at.replace(end) != Some(end);
                return if first { Lack::Pause(end) } else { Lack::Nothing };
            }
        }
        let bounds = state.bounds();
        let slot = self.spare_slot(&mut books, bounds);
        self.sync(&mut books, &state); // its pause may be over
        let lack = match slot {
            Some(slot) => Lack::Dial(slot),
            None if books.is_closed(self.partition().account) => Lack::Nothing,
            None => state.look_for_slot_later(now).map_or(Lack::Nothing, Lack::Pause),
        };
        drop(state);
        self.ledger().settle(books);
        lack
    }

    fn spare_slot(self: &Arc<Self>, books: &mut Books, bounds: Bounds) -> Option<Slot> {
        let account = self.partition().account;
        if books.is_closed(account) || !books.has_slot_at_once(account) {
            return None;
        }
        let (slots, dials) =
            self.seating.get().map_or((0, 0), |seat| (books.slots_of(seat), books.dials_of(seat)));
        if !bounds.allow_another(slots, dials) {
            return None;
        }
        let seat = books.be_seated(self, bounds);
        Some(books.take_slot(self.partition(), seat))
    }
}
