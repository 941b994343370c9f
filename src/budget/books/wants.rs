//! What is waited for in an account, and what of that concerns the accounts above it: nothing that a lack of room in the account
//! itself bars, whatever they have.
//!
//! An account is *barred* if something is wanted in it of which it passes nothing on. It is *pinched* if it is barred and
//! something can be done about that in itself: closing what is idle there, or telling the first in turn that it waits in vain.

use super::turns::Turns;
use super::{Account, AccountId, Books, Turn};

/// Slots that are waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wants {
    /// By callers of `acquire`.
    pub(super) applied: usize,
    /// To dial with.
    pub(super) dials: usize,
}

impl Wants {
    pub(super) fn applied(applied: usize) -> Self {
        Self { applied, dials: 0 }
    }

    pub(super) fn dials(dials: usize) -> Self {
        Self { applied: 0, dials }
    }

    pub(super) fn total(self) -> usize {
        self.applied.saturating_add(self.dials)
    }

    /// Slots that would be taken if there were enough, with so many dials to begin.
    pub(super) fn with(self, dial_room: usize) -> usize {
        self.applied.saturating_add(self.dials.min(dial_room))
    }

    /// So many of them.
    fn at_most(self, slots: usize) -> Self {
        let applied = self.applied.min(slots);
        Self { applied, dials: self.dials.min(slots - applied) }
    }

    fn change(&mut self, before: Self, after: Self) {
        self.applied = self.applied - before.applied + after.applied;
        self.dials = self.dials - before.dials + after.dials;
    }
}

/// What an account wants of those above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) wants: Wants,
    /// Slots that the first of them in turn waits for: no more than there is room for, where others are served before it.
    first_weight: usize,
}

impl Passed {
    fn is_anything(self) -> bool {
        self.wants.total() > 0
    }
}

impl Books {
    /// Callers of an account want more or less than before.
    pub(super) fn wants_changed(&mut self, id: AccountId, before: Wants, after: Wants) {
        if before != after {
            self.demand = self.demand - before.total() + after.total();
            self.accounts[id].wants.change(before, after);
            self.pass_on(id);
        }
    }

    /// Tells the accounts above what of it concerns them, after a change of what is wanted or to be had, or of whose turn
    /// it is.
    pub(super) fn pass_on(&mut self, id: AccountId) {
        let mut below = id;
        while let Some(parent) = self.accounts[below].parent
            && self.pass_to(parent, below)
        {
            below = parent;
        }
    }

    /// Returns whether that is something else than before.
    #[cold]
    pub(super) fn pass_to(&mut self, parent: AccountId, id: AccountId) -> bool {
        let passed = self.passable(id);
        let before = std::mem::replace(&mut self.accounts[id].passed, passed);
        self.note_barred(id);
        self.keep_turn(parent, id, before.is_anything());
        self.accounts[parent].wants.change(before.wants, passed.wants);
        before != passed
    }

    fn passable(&self, id: AccountId) -> Passed {
        let account = &self.accounts[id];
        let (first_weight, room) = (self.first_weight(account), account.room());
        // Where the first in turn is held up, so are those behind it, but for children with floors.
        let held_up = first_weight > room;
        match account.floored {
            0 if held_up => Passed { wants: Wants::default(), first_weight },
            _ => Passed { wants: account.wants.at_most(room), first_weight: first_weight.min(room) },
        }
    }

    /// Slots that the first in turn waits for.
    fn first_weight(&self, account: &Account) -> usize {
        match Turns::new(true).next(account) {
            None => 0,
            Some((_, Turn::Seat(_))) => 1,
            Some((_, Turn::Applicants)) => account.applicants.front().map_or(0, |(_, first)| first.weight),
            Some((_, Turn::Child(child))) => self.accounts[child].passed.first_weight,
        }
    }

    /// A child is in its parent's ring while it passes something on, and keeps its place there while it wants something.
    fn keep_turn(&mut self, parent: AccountId, child: AccountId, was_in: bool) {
        let account = &self.accounts[child];
        let (turn, is_in, waits) = (account.turn, account.passed.is_anything(), account.wants.total() > 0);
        let place = match turn {
            Some(place) => place,
            None if waits => self.next_place(),
            None => return,
        };
        self.accounts[child].turn = waits.then_some(place);
        let ring = &mut self.accounts[parent].ring;
        match (was_in, is_in) {
            (false, true) => ring.insert(place, Turn::Child(child)),
            (true, false) => drop(ring.remove(place)),
            _ => {}
        }
    }

    /// Whether one who comes now to an account would overtake somebody who waits for what it would be given.
    pub(super) fn is_behind(&self, account: AccountId) -> bool {
        let (mut below, mut next) = (None, Some(account));
        while let Some(id) = next {
            let has_kept = |child| self.stock(id).kept_for(self.share(child)) > 0;
            if self.accounts[id].wants.total() > 0 && !below.is_some_and(has_kept) {
                return true;
            }
            (below, next) = (Some(id), self.accounts[id].parent);
        }
        false
    }

    fn is_barred(&self, id: AccountId) -> bool {
        let account = &self.accounts[id];
        account.parent.is_some() && account.wants.total() > 0 && !account.passed.is_anything()
    }

    fn is_pinched(&self, id: AccountId) -> bool {
        let account = &self.accounts[id];
        let in_vain = || self.is_in_vain(id, self.first_weight(account));
        self.barred.contains(&id) && (account.warm + account.participating > 0 || in_vain())
    }

    fn note_barred(&mut self, id: AccountId) {
        if self.is_barred(id) {
            self.barred.insert(id);
        } else if !self.barred.swap_remove(&id) {
            return;
        }
        self.note_pinched(id);
    }

    fn note_pinched(&mut self, id: AccountId) {
        if self.is_pinched(id) {
            self.pinched.insert(id);
        } else {
            self.pinched.swap_remove(&id);
        }
    }

    /// Limits or floors are others than before: so may be whom an account cannot serve any more.
    pub(super) fn note_all_pinched(&mut self) {
        for index in 0..self.barred.len() {
            self.note_pinched(self.barred[index]);
        }
    }

    /// More or fewer may have something idle: addresses of an account, or participants registered there.
    #[inline]
    pub(super) fn idlers_changed(&mut self, account: AccountId, change: impl Fn(&mut Account)) {
        let mut next = Some(account);
        while let Some(id) = next {
            let account = &mut self.accounts[id];
            change(account);
            next = account.parent;
            if next.is_some() && self.barred.contains(&id) {
                self.note_pinched(id);
            }
        }
    }

    #[inline]
    pub(super) fn warm_changed(&mut self, account: AccountId, before: usize, after: usize) {
        if before != after {
            self.idlers_changed(account, |above| above.warm = above.warm - before + after);
        }
    }

    /// Whether what is kept up to date is what it would be if it were computed anew. Of few accounts, where tests are.
    pub(in crate::budget) fn adds_up(&self) -> bool {
        const FEW: usize = 16;
        if !(2..=FEW).contains(&self.accounts.len()) || self.seats.len() > 4 * FEW {
            return true;
        }
        let own = |id: AccountId| {
            let applied = self.accounts[id].applicants.iter().map(|(_, applicant)| applicant.weight).sum();
            let dials = self.accounts[id].dialers.iter().filter_map(|(_, seat)| self.demand_of(*seat)).sum();
            Wants { applied, dials }
        };
        let account_adds_up = |(id, account): (AccountId, &Account)| {
            let mut wants = own(id);
            let mut warm = account.members.warm().len();
            for child in &account.children {
                let child = &self.accounts[*child];
                wants.change(Wants::default(), child.passed.wants);
                warm += child.warm;
            }
            let passed = account.parent.map_or(Passed::default(), |_| self.passable(id));
            let in_ring = account.turn.filter(|_| passed.is_anything());
            let turn = account.parent.and_then(|parent| {
                let mut ring = self.accounts[parent].ring.iter();
                ring.find(|(_, turn)| *turn == Turn::Child(id)).map(|(place, _)| *place)
            });
            (account.wants, account.warm, account.passed) == (wants, warm, passed)
                && turn == in_ring
                && account.turn.is_some() == (account.parent.is_some() && wants.total() > 0)
                && self.barred.contains(&id) == self.is_barred(id)
                && self.pinched.contains(&id) == self.is_pinched(id)
        };
        let demand = self.accounts.iter().map(|(id, _)| own(id).total()).sum();
        self.demand == demand && self.accounts.iter().all(account_adds_up)
    }
}
