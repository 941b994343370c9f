//! How many slots an account may have out, and how many it has to give: its own limit, those above it, and what is
//! kept for children.

use super::floors::{Share, Stock};
use super::{Account, AccountId, Books, ROOT};
use crate::budget::slot::Kind;
use crate::clock::Tick;

impl Books {
    pub(crate) fn limit(&self, account: AccountId) -> usize {
        self.accounts[account].limit
    }

    /// Slots that an account, by itself, may have out now.
    pub(in crate::budget) fn own_limit(&self, account: AccountId) -> usize {
        let limit = self.limit(account);
        if self.accounts[account].closed {
            0
        } else if account == ROOT {
            self.audit.effective(limit)
        } else {
            limit
        }
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
        let free = self.own_limit(account).saturating_sub(of.counts.total());
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
        self.accounts[account].limit = limit;
        self.recheck(account);
    }

    /// A dial found no descriptor, which means that those of the others are all there are.
    pub(in crate::budget) fn ran_out(&mut self, now: Tick) {
        let root = &self.accounts[ROOT];
        self.audit.ran_out(root.limit, root.counts.total().saturating_sub(1), now);
        self.recheck(ROOT);
    }

    /// Gives back what running out of descriptors took, as far as it is due.
    pub(crate) fn grow(&mut self, now: Tick) {
        if self.audit.grow(self.accounts[ROOT].limit, now) {
            self.recheck(ROOT);
        }
    }

    /// So many slots are what the rest of the process leaves.
    pub(in crate::budget) fn cap(&mut self, ceiling: usize) {
        if self.audit.leave(ceiling) {
            self.recheck(ROOT);
        }
    }

    pub(in crate::budget) fn is_lowered(&self) -> bool {
        self.audit.is_lowered(self.accounts[ROOT].limit)
    }

    /// Gives all of it back.
    pub(in crate::budget) fn restore(&mut self) {
        self.audit.forget();
        self.recheck(ROOT);
    }

    /// Keeps account of whether an account is over its limit, after its limit or its total has changed.
    pub(super) fn recheck(&mut self, account: AccountId) {
        let over = self.accounts[account].counts.total() > self.own_limit(account);
        let before = std::mem::replace(&mut self.accounts[account].over, over);
        self.over = self.over + usize::from(over) - usize::from(before);
    }

    pub(super) fn recheck_above(&mut self, account: AccountId) {
        let mut next = Some(account);
        while let Some(id) = next {
            self.recheck(id);
            next = self.accounts[id].parent;
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
