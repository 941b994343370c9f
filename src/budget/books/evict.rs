//! Who has to go: whether slots are lacking, and whose idle connection is closed for them.

use super::{AccountId, Books, ROOT, SEARCH_CHUNK, SeatId, Served, Step, Turn};
use std::sync::Arc;

use crate::budget::reclaim::Asked;
use crate::clock;

impl Books {
    /// Whether an account is over its limit, or those who wait in it want more slots than it has, by more than
    /// what is coming.
    fn lacks(&self, id: AccountId, coming: usize) -> bool {
        let account = &self.accounts[id];
        let for_dials = account.demand - account.applicants_weight;
        let wanted = account.applicants_weight.saturating_add(for_dials.min(self.dial_room(id)));
        // What is kept for a child, and not what that waits for by itself.
        let kept = |child: &AccountId| {
            let child = &self.accounts[*child];
            child.unused_floor().saturating_sub(child.demand)
        };
        let kept: usize = account.children.iter().map(kept).sum();
        let needed = account.counts.total().saturating_add(wanted).saturating_add(kept);
        needed > self.own_limit(id).saturating_add(coming)
    }

    /// `in_vain`: where participants were asked before, as of which tidings.
    pub(in crate::budget) fn step(&mut self, in_vain: &[(AccountId, u64)]) -> Step {
        let mut short = Vec::new();
        if let Served::Granted(waker) = self.serve_account(ROOT, usize::MAX, &mut short) {
            return Step::Wake(waker);
        }
        if self.over > 0 {
            short.extend(self.accounts.iter().filter(|(_, account)| account.over).map(|(id, _)| id));
        }
        for id in short {
            let account = &self.accounts[id];
            let coming = account.evicting + account.lingering;
            if !self.lacks(id, coming) {
                continue;
            }
            let asked = if in_vain.contains(&(id, self.tidings)) { None } else { self.ask(id) };
            if let Some(step) = asked.or_else(|| self.evict(id)) {
                return step;
            }
        }
        Step::Rest
    }

    /// Asks other crates, if there are any below this account.
    pub(in crate::budget) fn ask(&mut self, account: AccountId) -> Option<Step> {
        let tree = self.tree(account);
        if tree.iter().all(|id| self.accounts[*id].participants.is_empty()) {
            return None;
        }
        let participants = tree.iter().flat_map(|id| self.accounts[*id].participants.alive()).collect();
        let own = tree.iter().map(|id| self.accounts[*id].members.warm().len()).sum();
        let partition = self.accounts[account].partition.upgrade()?;
        self.each_above(account, |above| above.evicting += 1);
        Some(Step::Ask {
            account,
            partition,
            asked: Asked { participants, own, random: self.sampler.next(), tidings: self.tidings },
        })
    }

    /// An account and all below it.
    pub(super) fn tree(&self, account: AccountId) -> Vec<AccountId> {
        let mut tree = vec![account];
        let mut next = 0;
        while let Some(&id) = tree.get(next) {
            tree.extend(&self.accounts[id].children);
            next += 1;
        }
        tree
    }

    /// Takes the idle connection out that is least likely to be wanted next, of this account and those below.
    /// `None`: nothing is idle there.
    pub(in crate::budget) fn evict(&mut self, account: AccountId) -> Option<Step> {
        let now = clock::now().millis();
        let tree = self.tree(account);
        for _ in 0..2 {
            let warm: Vec<&[SeatId]> = tree.iter().map(|id| self.accounts[*id].members.warm()).collect();
            let count = warm.iter().map(|seats| seats.len()).sum();
            let seats = &self.seats;
            let at = |mut index: usize| {
                for part in &warm {
                    match part.get(index) {
                        Some(seat) => return *seat,
                        None => index -= part.len(),
                    }
                }
                unreachable!("BUG: a candidate out of range")
            };
            let chosen = self.sampler.choose(count, now, |index| seats[at(index)].member.hint()).map(at);
            match chosen {
                Some(seat) => {
                    if let Some(step) = self.evict_from(seat) {
                        return Some(step);
                    }
                }
                None => break,
            }
        }
        // Hints only narrow the search. That nothing is idle, only the locks can tell: a put that comes after
        // we had its lock sees the pressure. Each one found without is not looked at again until it has.
        for _ in 0..SEARCH_CHUNK {
            let seat = tree.iter().find_map(|id| self.accounts[*id].members.warm().last().copied())?;
            if let Some(step) = self.evict_from(seat) {
                return Some(step);
            }
        }
        Some(Step::Search)
    }

    fn evict_from(&mut self, seat: SeatId) -> Option<Step> {
        match Arc::clone(&self.seats[seat].member).evict() {
            Some(mut victim) => {
                self.evicted(victim.lease());
                Some(Step::Close(victim))
            }
            None => {
                self.cool(seat);
                None
            }
        }
    }

    /// Whether a slot that comes free in an account is somebody else's: somebody lacks it who is before `mine`,
    /// the turn of `seat`, if anybody queues there.
    pub(crate) fn is_claimed(&self, account: AccountId, seat: Option<SeatId>) -> bool {
        let mut me = seat.map(Turn::Seat);
        let mut mine = seat.and_then(|seat| self.seats[seat].turn);
        let mut next = Some(account);
        while let Some(id) = next {
            let account = &self.accounts[id];
            // What lingers is not counted as coming: somebody else decides when it comes.
            if self.lacks(id, account.evicting) {
                let claims = |turn: Turn| match turn {
                    _ if me == Some(turn) => false,
                    Turn::Applicants => true,
                    Turn::Seat(_) => self.dial_room(id) > 0,
                    Turn::Child(child) => self.room(child) > 0,
                };
                let first = account.ring.iter().find(|(_, turn)| claims(*turn));
                if first.is_some_and(|(place, _)| mine.is_none_or(|mine| *place < mine)) {
                    return true;
                }
            }
            (me, mine) = (Some(Turn::Child(id)), account.turn);
            next = account.parent;
        }
        false
    }
}
