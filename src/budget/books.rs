//! The books of a budget and its children: how many slots each has out, and which addresses have them.
//! Decides and keeps count: of slots in [`mod@slots`]; what there is to give is in [`limits`] and [`floors`], who wants it in
//! [`seats`] and [`mod@wants`], who is served in [`turns`], who has to go in [`evict`]. Takes no lock but those of members and
//! cells, wakes nobody, closes nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::task::Waker;

use indexmap::IndexSet;
use smallvec::SmallVec;

use super::audit::Audit;
use super::member::{Member, Notice, Victim};
use super::members::Members;
use super::partition::Partition;
use super::queue::{Cell, Line, Place};
use super::reclaim::{Asked, Participants, Reclaim};
use super::slot::{Kind, Slot, Tag};
use super::victim::Sampler;
use crate::clock::Tick;
use crate::stats::BudgetCounts;
use crate::sync::wake_all;

mod counts;
mod evict;
mod floors;
mod limits;
mod rows;
mod seats;
mod slots;
mod turns;
mod wants;

pub(super) use evict::{InVain, Lack};
pub(crate) use rows::Ordinal;
use rows::Rows;
use seats::Queue;
pub(crate) use seats::{Bounds, Seat};
use wants::{Passed, Wants};

pub(crate) type AccountId = Ordinal;
pub(crate) type SeatId = Ordinal;

/// The account of the budget itself; all others are children, and children of children.
pub(super) const ROOT: AccountId = Ordinal::FIRST;

/// How many members a search looks at before it lets others have the lock.
const SEARCH_CHUNK: usize = 64;

/// A caller of `acquire`, in line.
pub(crate) struct Applicant {
    /// Granted `None` if it can never be served: the limit has shrunk below its weight.
    pub(crate) cell: Arc<Cell<Option<Slot>>>,
    pub(crate) weight: usize,
}

/// Slots, waiters, seats: all that the ledger's lock protects.
#[derive(Default)]
pub(crate) struct Books {
    accounts: Rows<Account>,
    seats: Rows<Seat>,
    queues: Rows<Queue>,
    last_place: Place,
    sampler: Sampler,
    pub(crate) audit: Audit,
    /// How many slots are waited for, by whomever.
    demand: usize,
    /// Accounts that are barred, and those of them that are pinched: see [`mod@wants`].
    barred: IndexSet<AccountId>,
    pinched: IndexSet<AccountId>,
    /// How many accounts have more slots out than they may.
    over: usize,
    /// How many accounts may have none.
    barren: usize,
    /// The budget may have fewer out than its limit.
    lowered: bool,
    /// How many slots have ever come back.
    releases: u64,
    /// How often participants have said that something became idle.
    tidings: u64,
    departed: Departed,
    /// How many participants are registered, with whatever account.
    registered: usize,
    /// How many wait for the end of a close.
    closings: usize,
    /// Since when connections linger that were evicted, of those that are counted on, the oldest first.
    lingering: VecDeque<(Tick, Weak<Tag>)>,
}

/// What is to be dropped after the lock: as a rule nothing, or one.
type Departed = SmallVec<[Departing; 1]>;

#[allow(dead_code, reason = "kept to be dropped")]
pub(super) enum Departing {
    /// It has left its seat.
    Member(Arc<dyn Member>),
    /// Nobody wanted it after all.
    Slot(Slot),
    /// Queues again, and does not wait: it is woken, to give up.
    Hasty(Wakes),
    /// Nobody counts on it.
    Tag(Arc<Tag>),
}

/// Wakes when it is dropped.
pub(super) struct Wakes(Option<Waker>);

impl Drop for Wakes {
    fn drop(&mut self) {
        wake_all(self.0.take());
    }
}

/// Slots out, by use.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts([usize; Kind::COUNT]);

impl Counts {
    pub(crate) fn get(&self, kind: Kind) -> usize {
        self.0[kind as usize]
    }

    pub(crate) fn total(&self) -> usize {
        self.0.iter().sum()
    }
}

/// Whose turn it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The callers of `acquire`, together.
    Applicants,
    Seat(SeatId),
    Child(AccountId),
}

struct Account {
    parent: Option<AccountId>,
    children: Vec<AccountId>,
    /// How many of them have a floor.
    floored: usize,
    partition: Weak<Partition>,
    limit: usize,
    /// Slots that it may have out now: its limit, unless that is lowered, or it is closed.
    allowed: usize,
    max_dialing: usize,
    /// Of this account and all below it, as the next four are.
    counts: Counts,
    /// How many addresses may have something idle, and how many participants.
    warm: usize,
    participating: usize,
    /// Slots that come free as soon as somebody has closed what it is evicting.
    evicting: usize,
    /// Slots evicted from connections whose descriptor somebody else closes.
    lingering: usize,
    /// What those want who wait here, and those in children for whom there is room there.
    wants: Wants,
    /// What of that there is room for here.
    passed: Passed,
    /// Who wants something, in turn; dialers apart, who at times are passed over all together.
    ring: Line<Turn>,
    dialers: Line<SeatId>,
    /// Where this account is in its parent's ring, or will be once it has room.
    turn: Option<Place>,
    applicants: Line<Applicant>,
    applicants_turn: Option<Place>,
    members: Members<&'static Notice>,
    participants: Participants,
    over: bool,
    /// Slots of its parent that are to be kept for it.
    floor: usize,
    closed: bool,
    /// What errors were told last, and when.
    counted: Option<Box<(Tick, BudgetCounts)>>,
}

impl Account {
    fn new(parent: Option<AccountId>, floor: usize, limit: usize, max_dialing: usize) -> Self {
        Self {
            parent,
            children: Vec::new(),
            floored: 0,
            partition: Weak::new(),
            limit,
            allowed: limit,
            max_dialing,
            counts: Counts::default(),
            warm: 0,
            participating: 0,
            evicting: 0,
            lingering: 0,
            wants: Wants::default(),
            passed: Passed::default(),
            ring: Line::new(),
            dialers: Line::new(),
            turn: None,
            applicants: Line::new(),
            applicants_turn: None,
            members: Members::default(),
            participants: Participants::default(),
            over: false,
            floor,
            closed: false,
            counted: None,
        }
    }

    /// Slots that it has to give, by its own limit.
    fn room(&self) -> usize {
        self.allowed.saturating_sub(self.counts.total())
    }
}

/// What is to be done next, after the lock.
pub(super) enum Step {
    Wake(Option<Waker>),
    Close(Box<dyn Victim>),
    Ask {
        lack: Lack,
        partition: Arc<Partition>,
        asked: Asked,
    },
    /// The search for a victim goes on: let others have the lock first.
    Search,
    Rest,
}

/// How far serving an account's waiters came.
enum Served {
    Granted(Option<Waker>),
    /// Its next waiter needs so many slots, and the account could give them, but not those above it.
    HeldUpAbove(usize),
    /// Nobody waits, or only for room in this account, which is noted.
    Nobody,
}

impl Books {
    pub(super) fn open_account(
        &mut self,
        parent: Option<AccountId>,
        floor: usize,
        limit: usize,
        max_dialing: usize,
    ) -> AccountId {
        self.barren += usize::from(limit == 0);
        let account = self.accounts.insert(Account::new(parent, floor, limit, max_dialing));
        if let Some(parent) = parent {
            let parent = &mut self.accounts[parent];
            parent.children.push(account);
            parent.floored += usize::from(floor > 0);
        }
        self.floors_changed(parent.filter(|_| floor > 0));
        account
    }

    /// A child of this account has a floor that it had not, or no longer has one.
    fn floors_changed(&mut self, parent: Option<AccountId>) {
        if let Some(parent) = parent {
            self.pass_on(parent);
            self.note_all_pinched();
        }
    }

    pub(super) fn set_partition(&mut self, account: AccountId, partition: Weak<Partition>) {
        self.accounts[account].partition = partition;
    }

    /// Returns whether slots may have been kept for it, which are for others now.
    pub(super) fn close_account(&mut self, account: AccountId) -> bool {
        let closed = self.accounts.remove(account);
        self.barren -= usize::from(closed.limit == 0);
        let Some(parent) = closed.parent else { return false };
        let above = &mut self.accounts[parent];
        above.children.retain(|child| *child != account);
        above.floored -= usize::from(closed.floor > 0);
        self.floors_changed(Some(parent).filter(|_| closed.floor > 0));
        closed.floor > 0
    }

    /// How many slots that come free would be wanted, by those who wait and by limits exceeded.
    pub(super) fn pressure(&self) -> usize {
        self.demand + self.over
    }

    /// Whether slots are coming free for those who wait, or there are accounts that have none for anybody.
    pub(super) fn is_unsettled(&self) -> bool {
        let root = &self.accounts[ROOT];
        root.evicting + root.lingering + self.barren > 0
    }

    /// Whether something lingers that is counted on, and will not be in time.
    pub(super) fn has_lingering(&self) -> bool {
        !self.lingering.is_empty()
    }

    pub(super) fn releases(&self) -> u64 {
        self.releases
    }

    pub(super) fn note_tidings(&mut self) {
        self.tidings += 1;
    }

    /// The asking that [`Step::Ask`] began is over.
    pub(super) fn asked(&mut self, lack: Lack) {
        self.each_above(lack.account, |above| above.evicting -= 1);
    }

    /// To be dropped after the lock.
    #[inline]
    pub(super) fn take_departed(&mut self) -> Option<Departed> {
        (!self.departed.is_empty()).then(|| std::mem::take(&mut self.departed))
    }

    fn each_above(&mut self, account: AccountId, mut change: impl FnMut(&mut Account)) {
        let mut next = Some(account);
        while let Some(id) = next {
            let account = &mut self.accounts[id];
            change(account);
            next = account.parent;
        }
    }

    /// Closes an account and all below it: nobody gets in line there any more, and who waits for slots is told.
    /// Returns whom to wake, and the addresses to shut.
    pub(super) fn end(&mut self, account: AccountId) -> (Vec<Waker>, Vec<Arc<dyn Member>>) {
        let tree = self.tree(account);
        let mut wakers = Vec::new();
        for id in &tree {
            self.accounts[*id].closed = true;
            while !self.accounts[*id].applicants.is_empty() {
                wakers.extend(self.refuse(*id));
            }
        }
        (wakers, self.seats_of(account).map(|seat| Arc::clone(&seat.member)).collect())
    }

    /// An account that was ended, and its addresses shut, is over its limit whatever is out: what participants have idle is
    /// asked for.
    pub(super) fn ended(&mut self, account: AccountId) {
        for id in self.tree(account) {
            self.limit_changed(id);
        }
    }

    pub(crate) fn is_closed(&self, account: AccountId) -> bool {
        let mut next = Some(account);
        while let Some(id) = next {
            if self.accounts[id].closed {
                return true;
            }
            next = self.accounts[id].parent;
        }
        false
    }

    pub(super) fn slots_out(&self, account: AccountId) -> usize {
        self.accounts[account].counts.total()
    }

    pub(super) fn closings(&mut self, change: isize) {
        self.closings = self.closings.saturating_add_signed(change);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closings > 0
    }

    fn next_place(&mut self) -> Place {
        self.last_place += 1;
        self.last_place
    }

    pub(super) fn register(&mut self, account: AccountId, participant: Weak<dyn Reclaim>) -> u64 {
        self.registered += 1;
        self.idlers_changed(account, |above| above.participating += 1);
        self.accounts[account].participants.add(participant)
    }

    /// Returns what is to be dropped after the lock.
    pub(super) fn unregister(&mut self, account: AccountId, id: u64) -> Option<Weak<dyn Reclaim>> {
        let removed = self.accounts[account].participants.remove(id);
        if removed.is_some() {
            self.registered -= 1;
            self.idlers_changed(account, |above| above.participating -= 1);
        }
        removed
    }
}
