//! Who has to go: whether slots are lacking, and whose idle connection is closed for them.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::turns::Turns;
use super::{Account, AccountId, Books, ROOT, SEARCH_CHUNK, SeatId, Served, Step, Turn};
use crate::budget::member::Victim;
use crate::budget::reclaim::Asked;
use crate::budget::slot::Slot;
use crate::clock;

/// A want of slots, and in which account they are wanting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::budget) struct Lack {
    pub(super) account: AccountId,
    pub(super) whose: Whose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The account's: it has too many out.
    All,
    /// Of one who waits for what is kept for nobody: in the account, or in a child of its.
    Common(Option<AccountId>),
    /// Of one who waits for what a child has not, of its floor.
    Floor(AccountId),
}

impl Lack {
    /// Any slot will do.
    pub(in crate::budget) fn of_all(account: AccountId) -> Self {
        Self { account, whose: Whose::All }
    }
}

/// Participants were asked for slots, and had none.
pub(in crate::budget) struct InVain {
    pub(in crate::budget) lack: Lack,
    /// As of which tidings.
    tidings: u64,
    times: u32,
}

impl InVain {
    /// So often they are asked anew because of tidings: those may be their own, who look for what they have and find
    /// nothing.
    const MOST: u32 = 8;

    pub(in crate::budget) fn once(lack: Lack, tidings: u64) -> Self {
        Self { lack, tidings, times: 1 }
    }

    pub(in crate::budget) fn again(&mut self, tidings: u64) {
        self.tidings = tidings;
        self.times += 1;
    }

    fn covers(&self, lack: Lack, tidings: u64) -> bool {
        self.lack == lack && (self.tidings == tidings || self.times >= Self::MOST)
    }
}

/// Accounts, which are one as a rule.
pub(super) type Tree = SmallVec<[AccountId; 4]>;

/// What those lack who were passed over: one, as a rule.
pub(super) type Lacks = SmallVec<[Lack; 1]>;

impl Books {
    /// Whether so many slots are wanting, by more than what is coming.
    fn lacks(&self, Lack { account: id, whose }: Lack, coming: usize) -> bool {
        let account = &self.accounts[id];
        let used = account.counts.total();
        let allowed = account.allowed.saturating_add(coming);
        if whose == Whose::All {
            return used > allowed;
        }
        let dial_room = self.dial_room(id);
        let wanted = account.wants.with(dial_room);
        let kept = self.kept_from(id, whose, dial_room);
        used.saturating_add(wanted).saturating_add(kept) > allowed
    }

    /// What is kept for children, and not what they wait for by themselves, as far as that has been counted: of dials, no
    /// more than may begin.
    fn kept_from(&self, id: AccountId, whose: Whose, mut dial_room: usize) -> usize {
        let account = &self.accounts[id];
        if account.floored == 0 {
            return 0;
        }
        let stock = self.stock(id);
        let kept = |child: &AccountId| {
            let share = self.share(*child);
            let kept = match whose {
                Whose::Floor(_) => stock.kept_for(share),
                Whose::All | Whose::Common(_) => share.unmet(),
            };
            let passed = self.accounts[*child].passed.wants;
            let wanted = passed.with(dial_room);
            dial_room -= wanted - passed.applied;
            kept.saturating_sub(wanted)
        };
        account.children.iter().map(kept).fold(0, usize::saturating_add)
    }

    /// `in_vain`: where participants were asked before.
    pub(in crate::budget) fn step(&mut self, in_vain: &[InVain]) -> Step {
        if self.pressure() == 0 {
            return Step::Rest;
        }
        let mut short = Lacks::new();
        if let Served::Granted(waker) = self.serve_account(ROOT, usize::MAX, &mut short) {
            return Step::Wake(waker);
        }
        for index in 0..self.pinched.len() {
            // With nothing above it, it is granted nothing, and what it lacks is found.
            if let Served::Granted(waker) = self.serve_account(self.pinched[index], 0, &mut short) {
                return Step::Wake(waker);
            }
        }
        if self.over > 0 {
            let over = self.accounts.iter().filter(|(_, account)| account.over);
            short.extend(over.map(|(id, _)| Lack::of_all(id)));
        }
        for lack in short {
            let account = &self.accounts[lack.account];
            let coming = account.evicting + account.lingering;
            if !self.lacks(lack, coming) {
                continue;
            }
            let hopeless = in_vain.iter().any(|vain| vain.covers(lack, self.tidings));
            let asked = if hopeless { None } else { self.ask(lack) };
            if let Some(step) = asked.or_else(|| self.evict(lack)) {
                return step;
            }
        }
        Step::Rest
    }

    /// Asks other crates, if there are any that could help.
    pub(in crate::budget) fn ask(&mut self, lack: Lack) -> Option<Step> {
        if self.registered == 0 {
            return None;
        }
        let tree = self.within_reach(lack);
        if tree.iter().all(|id| self.accounts[*id].participants.len() == 0) {
            return None;
        }
        let participants = tree.iter().flat_map(|id| self.accounts[*id].participants.alive()).collect();
        let own = tree.iter().map(|id| self.accounts[*id].members.warm().len()).sum();
        let partition = self.accounts[lack.account].partition.upgrade()?;
        self.each_above(lack.account, |above| above.evicting += 1);
        Some(Step::Ask {
            lack,
            partition,
            asked: Asked { participants, own, random: self.sampler.next(), tidings: self.tidings },
        })
    }

    /// The accounts where a slot that comes free is of use. A child that has no more than is kept for it would have to
    /// be given back what is taken from it.
    fn within_reach(&self, Lack { account, whose }: Lack) -> Tree {
        if self.accounts[account].children.is_empty() {
            return smallvec![account];
        }
        let stock = self.stock(account);
        let helps = |child: &&AccountId| {
            let share = self.share(**child);
            match whose {
                Whose::All => true,
                Whose::Common(of) => of == Some(**child) || share.used > share.floor,
                Whose::Floor(of) => of == **child || stock.is_spared_by(share),
            }
        };
        let mut tree: Tree = smallvec![account];
        let children = self.accounts[account].children.iter().filter(|child| self.has_idlers(**child));
        tree.extend(children.filter(helps).flat_map(|child| self.idlers(*child)));
        tree
    }

    /// Whether something may be idle in an account, or below it.
    fn has_idlers(&self, id: AccountId) -> bool {
        let account = &self.accounts[id];
        account.warm + account.participating > 0
    }

    /// An account, and those below it where something may be idle.
    pub(super) fn idlers(&self, account: AccountId) -> Tree {
        self.tree_of(account, |below| self.has_idlers(below))
    }

    /// An account and all below it.
    pub(super) fn tree(&self, account: AccountId) -> Tree {
        self.tree_of(account, |_| true)
    }

    /// An account, and those below it that are `of` interest, where those above them are.
    fn tree_of(&self, account: AccountId, of: impl Fn(AccountId) -> bool) -> Tree {
        let mut tree: Tree = smallvec![account];
        let mut next = 0;
        while let Some(&id) = tree.get(next) {
            tree.extend(self.accounts[id].children.iter().copied().filter(|child| of(*child)));
            next += 1;
        }
        tree
    }

    /// Takes the idle connection out that is least likely to be wanted next, of those that help. `None`: none is idle.
    pub(in crate::budget) fn evict(&mut self, lack: Lack) -> Option<Step> {
        if lack.whose == Whose::All && self.accounts[lack.account].floored > 0 {
            // What is within floors goes last.
            let beside = self.within_reach(Lack { whose: Whose::Common(None), ..lack });
            if let Some(step) = self.evict_among(&beside) {
                return Some(step);
            }
        }
        self.evict_among(&self.within_reach(lack))
    }

    fn evict_among(&mut self, tree: &Tree) -> Option<Step> {
        for _ in 0..2 {
            match self.choose(tree) {
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

    /// The best victim of a sample, by the hints.
    fn choose(&mut self, tree: &Tree) -> Option<SeatId> {
        let (accounts, now) = (&self.accounts, clock::now().millis());
        let members = |id: &AccountId| &accounts[*id].members;
        if let [only] = tree.as_slice() {
            let (seats, notices) = (members(only).warm(), members(only).warm_shown());
            let chosen = self.sampler.choose(seats.len(), now, |index| notices[index].read());
            return chosen.map(|index| seats[index]);
        }
        // Where each one's begin, counted through.
        let mut count = 0;
        let begin = |id: &AccountId| {
            count += members(id).warm().len();
            count - members(id).warm().len()
        };
        let begins: SmallVec<[usize; 4]> = tree.iter().map(begin).collect();
        let at = |index: usize| {
            let part = begins.partition_point(|begin| *begin <= index) - 1;
            let (members, index) = (members(&tree[part]), index - begins[part]);
            (members.warm()[index], members.warm_shown()[index])
        };
        self.sampler.choose(count, now, |index| at(index).1.read()).map(|index| at(index).0)
    }

    fn evict_from(&mut self, seat: SeatId) -> Option<Step> {
        let mut victim = self.take_from(seat)?;
        self.evicted(victim.lease());
        Some(Step::Close(victim))
    }

    fn take_from(&mut self, seat: SeatId) -> Option<Box<dyn Victim>> {
        let victim = Arc::clone(&self.seats[seat].member).evict();
        if victim.is_none() {
            self.cool(seat);
        }
        victim
    }

    /// Whether one who comes now lacks a slot and nothing else, and nobody has to be asked for it but the members of an
    /// account that has no parts and is no part: nobody waits, and no other crates take part.
    pub(crate) fn lacks_a_slot(&self, id: AccountId) -> bool {
        let account = &self.accounts[id];
        self.pressure() == 0
            && self.registered == 0
            && account.parent.is_none()
            && account.children.is_empty()
            && (1..=account.counts.total()).contains(&account.allowed)
            && self.dial_room(id) > 0
    }

    /// Whether so many slots are free, or would be if all that is idle were closed, as far as is known.
    pub(in crate::budget) fn may_have(&self, account: AccountId, weight: usize) -> bool {
        let mut next = Some(account).filter(|_| self.registered == 0);
        while let Some(id) = next {
            let Account { allowed, ref counts, parent, .. } = self.accounts[id];
            let free = allowed.saturating_sub(counts.total());
            if free.saturating_add(self.idle(id)) < weight {
                return false;
            }
            next = parent;
        }
        true
    }

    /// Takes an idle connection out, and its slot for one who [lacks one](Self::lacks_a_slot). Without a slot: that
    /// comes back by itself, since it is elsewhere, or its address is not to have another before it is closed.
    pub(crate) fn spare(&mut self, account: AccountId) -> Option<(Box<dyn Victim>, Option<Slot>)> {
        let seat = self.choose(&smallvec![account])?;
        // Its address might have one more than it may while it closes, if that counted for another.
        let is_bounded = self.seats[seat].max_conns() < self.own_limit(account);
        let mut victim = self.take_from(seat)?;
        let slot = if is_bounded { None } else { victim.take_slot() };
        if slot.is_none() {
            self.evicted(victim.lease());
        }
        Some((victim, slot))
    }

    /// Whether a slot that comes free in an account is somebody else's: somebody lacks it who is before `mine`,
    /// the turn of `seat`, if anybody queues there.
    pub(crate) fn is_claimed(&self, account: AccountId, seat: Option<SeatId>) -> bool {
        if self.demand == 0 {
            return false;
        }
        let mut me = seat.map(Turn::Seat);
        let mut mine = seat.and_then(|seat| self.turn_of(seat));
        let (mut below, mut next) = (None, Some(account));
        while let Some(id) = next {
            let account = &self.accounts[id];
            // What it gives back would be kept for it.
            let is_within_floor = |child| {
                let share = self.share(child);
                share.used <= share.floor
            };
            let lack = Lack { account: id, whose: Whose::Common(None) };
            // What lingers is not counted as coming: somebody else decides when it comes.
            if !below.is_some_and(is_within_floor) && self.lacks(lack, account.evicting) {
                let claims = |turn: Turn| match turn {
                    _ if me == Some(turn) => false,
                    Turn::Applicants | Turn::Seat(_) => true,
                    // It has room, which may all be kept for children of its own.
                    Turn::Child(child) => self.stock(child).common() > 0,
                };
                let mut turns = Turns::new(self.dial_room(id) > 0);
                let first = std::iter::from_fn(|| turns.next(account)).find(|(_, turn)| claims(*turn));
                if first.is_some_and(|(place, _)| mine.is_none_or(|mine| place < mine)) {
                    return true;
                }
            }
            (me, mine) = (Some(Turn::Child(id)), account.turn);
            (below, next) = (Some(id), account.parent);
        }
        false
    }
}
