//! What the books tell of an account to those who ask.

use std::time::Duration;

use super::{AccountId, Applicant, Books, Seat};
use crate::budget::slot::Kind;
use crate::clock;
use crate::stats::BudgetCounts;

/// Errors count anew what so many addresses have; what more have, at most once in so long.
const COUNTED_EACH_TIME: usize = 256;
const COUNTED_EVERY: Duration = Duration::from_millis(50);

impl Books {
    /// [`counts`](Self::counts) for an error, of which there may be many: to count many addresses takes long.
    pub(crate) fn counts_of_late(&mut self, id: AccountId) -> BudgetCounts {
        let now = clock::now();
        if self.seats.len() > COUNTED_EACH_TIME
            && let Some((counted_at, counts)) = self.accounts[id].counted.as_deref()
            && now.since(*counted_at) < COUNTED_EVERY
        {
            return *counts;
        }
        let counts = self.counts(id);
        if self.seats.len() > COUNTED_EACH_TIME {
            self.accounts[id].counted = Some(Box::new((now, counts)));
        }
        counts
    }

    /// How many connections rest in an account and all below it, as far as they show.
    pub(super) fn idle(&self, id: AccountId) -> usize {
        let tree = self.idlers(id);
        let warm = tree.iter().flat_map(|id| self.accounts[*id].members.warm());
        warm.map(|seat| self.seats[*seat].idle()).sum()
    }

    pub(crate) fn counts(&self, id: AccountId) -> BudgetCounts {
        let account = &self.accounts[id];
        let idle = self.idle(id);
        let connected = account.counts.get(Kind::Connected);
        BudgetCounts {
            limit: account.limit,
            effective_limit: self.effective_limit(id),
            in_use: connected.saturating_sub(idle),
            idle: idle.min(connected),
            dialing: account.counts.get(Kind::Dialing),
            closing: account.counts.get(Kind::Closing),
            held: account.counts.get(Kind::Held),
            waiting: self.waiting(id),
            kept: self.kept(id),
        }
    }

    /// Callers that wait for a slot: not those whom `max_conns` bars from one.
    fn waiting(&self, account: AccountId) -> usize {
        self.applicants_of(account).count() + self.seats_of(account).map(Seat::waiting).sum::<usize>()
    }

    pub(crate) fn applicants_of(&self, account: AccountId) -> impl Iterator<Item = &Applicant> {
        let tree = self.tree(account);
        tree.into_iter().flat_map(|id| self.accounts[id].applicants.iter().map(|(_, applicant)| applicant))
    }
}
