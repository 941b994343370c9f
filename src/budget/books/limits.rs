//! How many slots an account may have out, and how many it has to give: its own limit, those above it, and what is
//! kept for children.

use super::floors::{Share, Stock};
use super::{Account, AccountId, Books, Counts, ROOT};
use crate::budget::slot::Kind;
use crate::clock::Tick;

impl Account {
    /// Keeps account of whether it is over its limit, in the number of those that are.
    fn recheck(&mut self, over: usize) -> usize {
        let before = std::mem::replace(&mut self.over, self.counts.total() > self.allowed);
        over + usize::from(self.over) - usize::from(before)
    }
}

impl Books {
    pub(crate) fn limit(&self, account: AccountId) -> usize {
        self.accounts[account].limit
    }

    /// Slots that an account, by itself, may have out now.
    pub(in crate::budget) fn own_limit(&self, account: AccountId) -> usize {
        self.accounts[account].allowed
    }

    /// The same, and no more than those above it.
    pub(crate) fn effective_limit(&self, account: AccountId) -> usize {
        self.least_above(account, |id| self.own_limit(id))
    }

    /// A child, when the slots of its parent are shared out. What is closed, or may not have as many, needs no floor.
    pub(super) fn share(&self, child: AccountId) -> Share {
        let account = &self.accounts[child];
        Share { floor: account.floor.min(self.own_limit(child)), used: account.counts.total() }
    }

    /// Slots an account has to give, whatever those above it have.
    pub(super) fn stock(&self, account: AccountId) -> Stock {
        let of = &self.accounts[account];
        let free = of.allowed.saturating_sub(of.counts.total());
        if of.floored == 0 {
            return Stock::without_floors(free);
        }
        Stock::new(free, of.children.iter().map(|child| self.share(*child)))
    }

    /// Slots to give in an account and all above it.
    pub(crate) fn free(&self, account: AccountId) -> usize {
        let (mut free, mut below) = (self.stock(account).common(), account);
        while let Some(id) = self.accounts[below].parent {
            free = free.min(self.stock(id).for_child(self.share(below)));
            below = id;
        }
        free
    }

    /// Free slots that are kept for children.
    pub(in crate::budget) fn kept(&self, account: AccountId) -> usize {
        self.stock(account).for_floors()
    }

    /// Slots that a request may ever hope for: not those that are kept for others.
    pub(crate) fn attainable(&self, account: AccountId) -> usize {
        let unused = |child: AccountId| Share { used: 0, ..self.share(child) };
        let (mut least, mut below, mut next) = (usize::MAX, None, Some(account));
        while let Some(id) = next {
            let Account { limit, floored, ref children, .. } = self.accounts[id];
            let stock = match floored {
                0 => Stock::without_floors(limit),
                _ => Stock::new(limit, children.iter().map(|child| unused(*child))),
            };
            least = least.min(below.map_or(stock.common(), |child| stock.for_child(unused(child))));
            (below, next) = (Some(id), self.accounts[id].parent);
        }
        least
    }

    /// Whether a request for so many slots may be told that it is in vain: it would hold up everybody, for good, or for as long
    /// as the rest of the process has what it has. One for a single slot waits for that.
    pub(super) fn is_in_vain(&self, account: AccountId, weight: usize) -> bool {
        weight > self.attainable(account)
            || weight > 1 && self.audit.lasting_ceiling().is_some_and(|ceiling| weight > ceiling)
    }

    /// How many dials may begin besides those under way.
    pub(crate) fn dial_room(&self, account: AccountId) -> usize {
        let of = |account: &Account| account.max_dialing.saturating_sub(account.counts.get(Kind::Dialing));
        self.least_above(account, |id| of(&self.accounts[id]))
    }

    fn least_above(&self, account: AccountId, of: impl Fn(AccountId) -> usize) -> usize {
        let mut least = of(account);
        let mut next = self.accounts[account].parent;
        while let Some(id) = next {
            least = least.min(of(id));
            next = self.accounts[id].parent;
        }
        least
    }

    pub(crate) fn set_limit(&mut self, account: AccountId, limit: usize) {
        let before = std::mem::replace(&mut self.accounts[account].limit, limit);
        self.barren = self.barren + usize::from(limit == 0) - usize::from(before == 0);
        self.limit_changed(account);
    }

    /// A dial found no descriptor, which means that those of the others are all there are.
    pub(in crate::budget) fn ran_out(&mut self, now: Tick) {
        let root = &self.accounts[ROOT];
        self.audit.ran_out(root.limit, root.counts.total().saturating_sub(1), now);
        self.limit_changed(ROOT);
    }

    /// Gives back what running out of descriptors took, as far as it is due.
    pub(crate) fn grow(&mut self, now: Tick) {
        if self.audit.grow(self.accounts[ROOT].limit, now) {
            self.limit_changed(ROOT);
        }
    }

    /// So many slots are what the rest of the process leaves.
    pub(in crate::budget) fn cap(&mut self, ceiling: usize) {
        if self.audit.leave(ceiling) {
            self.limit_changed(ROOT);
        }
    }

    pub(in crate::budget) fn is_lowered(&self) -> bool {
        self.lowered
    }

    /// Gives all of it back.
    pub(in crate::budget) fn restore(&mut self) {
        self.audit.forget();
        self.limit_changed(ROOT);
    }

    /// An account may have more or fewer slots out than before: it passes more or less on, or somebody waits in vain.
    pub(super) fn limit_changed(&mut self, id: AccountId) {
        let account = &mut self.accounts[id];
        account.allowed = match id {
            _ if account.closed => 0,
            ROOT => self.audit.effective(account.limit),
            _ => account.limit,
        };
        if id == ROOT {
            self.lowered = self.audit.is_lowered(account.limit);
        }
        self.over = account.recheck(self.over);
        self.pass_on(id);
        self.note_all_pinched();
    }

    /// An account, and so all above it, have more or fewer slots out than before.
    pub(super) fn total_changed(&mut self, account: AccountId, change: impl Fn(&mut Counts)) {
        let mut next = Some(account);
        while let Some(id) = next {
            let account = &mut self.accounts[id];
            change(&mut account.counts);
            self.over = account.recheck(self.over);
            next = account.parent;
            if let Some(parent) = next {
                self.pass_to(parent, id);
            }
        }
    }

    pub(crate) fn is_over(&self, account: AccountId) -> bool {
        if self.over == 0 {
            return false;
        }
        let mut next = Some(account);
        while let Some(id) = next {
            if self.accounts[id].over {
                return true;
            }
            next = self.accounts[id].parent;
        }
        false
    }
}
