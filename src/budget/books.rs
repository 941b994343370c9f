//! The books of a budget and its children: how many slots each has out, and which addresses have them.
//! Decides and keeps count; what there is to give is in [`limits`] and [`floors`], who wants it in [`seats`], who is
//! served in [`turns`], who has to go in [`evict`]. Takes no lock but those of members and cells, wakes nobody, closes nothing.

use std::sync::{Arc, Weak};
use std::task::Waker;

use slab::Slab;

use super::audit::Audit;
use super::ledger::{Member, Partition, Victim};
use super::members::Members;
use super::queue::{Cell, Line, Place};
use super::reclaim::{Asked, Participants};
use super::slot::{Claim, Elsewhere, Kind, Lease, Slot};
use super::victim::Sampler;
use crate::limit;
use crate::stats::BudgetCounts;

mod evict;
mod floors;
mod limits;
mod seats;
mod turns;

pub(super) use evict::Lack;
pub(crate) use seats::Seat;

pub(crate) type AccountId = usize;
pub(crate) type SeatId = usize;

/// The account of the budget itself; all others are children, and children of children.
pub(super) const ROOT: AccountId = 0;

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
    accounts: Slab<Account>,
    seats: Slab<Seat>,
    last_place: Place,
    sampler: Sampler,
    pub(crate) audit: Audit,
    /// How many accounts have more slots out than they may.
    over: usize,
    /// How many slots have ever come back.
    releases: u64,
    /// How often participants have said that something became idle.
    tidings: u64,
    /// Members that left their seat, to be dropped after the lock.
    departed: Vec<Arc<dyn Member>>,
    /// Slots that nobody wanted after all, likewise.
    unclaimed: Vec<Slot>,
    /// How many wait for the end of a close.
    closings: usize,
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
    partition: Weak<Partition>,
    limit: usize,
    max_dialing: usize,
    /// Of this account and all below it, as the next three are.
    counts: Counts,
    demand: usize,
    /// Slots that come free as soon as somebody has closed what it is evicting.
    evicting: usize,
    /// Slots evicted from connections whose descriptor somebody else closes.
    lingering: usize,
    ring: Line<Turn>,
    /// Where this account is in its parent's ring.
    turn: Option<Place>,
    applicants: Line<Applicant>,
    applicants_weight: usize,
    applicants_turn: Option<Place>,
    members: Members,
    participants: Participants,
    over: bool,
    /// Slots of its parent that are to be kept for it.
    floor: usize,
    closed: bool,
}

impl Account {
    fn new(parent: Option<AccountId>, floor: usize, limit: usize, max_dialing: usize) -> Self {
        Self {
            parent,
            children: Vec::new(),
            partition: Weak::new(),
            limit,
            max_dialing,
            counts: Counts::default(),
            demand: 0,
            evicting: 0,
            lingering: 0,
            ring: Line::new(),
            turn: None,
            applicants: Line::new(),
            applicants_weight: 0,
            applicants_turn: None,
            members: Members::default(),
            participants: Participants::default(),
            over: false,
            floor,
            closed: false,
        }
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
        let account = self.accounts.insert(Account::new(parent, floor, limit, max_dialing));
        if let Some(parent) = parent {
            self.accounts[parent].children.push(account);
        }
        account
    }

    pub(super) fn set_partition(&mut self, account: AccountId, partition: Weak<Partition>) {
        self.accounts[account].partition = partition;
    }

    /// Returns whether slots may have been kept for it, which are for others now.
    pub(super) fn close_account(&mut self, account: AccountId) -> bool {
        let closed = self.accounts.remove(account);
        let Some(parent) = closed.parent else { return false };
        self.accounts[parent].children.retain(|child| *child != account);
        closed.floor > 0
    }

    /// How many slots that come free would be wanted, by those who wait and by limits exceeded.
    pub(super) fn pressure(&self) -> usize {
        self.accounts[ROOT].demand + self.over
    }

    /// Whether slots are coming free for those who wait.
    pub(super) fn is_coming(&self) -> bool {
        let root = &self.accounts[ROOT];
        root.evicting + root.lingering > 0
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
    pub(super) fn take_departed(&mut self) -> (Vec<Arc<dyn Member>>, Vec<Slot>) {
        (std::mem::take(&mut self.departed), std::mem::take(&mut self.unclaimed))
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
            self.recheck(*id); // over, whatever is out: what participants have idle is asked for
        }
        let members = self.seats.iter().map(|(_, seat)| seat).filter(|seat| tree.contains(&seat.account));
        (wakers, members.map(|seat| Arc::clone(&seat.member)).collect())
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

    /// Counts slots out. What grants them has looked for room in the same critical section (I1).
    fn take(&mut self, account: AccountId, seat: Option<SeatId>, kind: Kind, n: usize) {
        self.each_above(account, |above| above.counts.0[kind as usize] += n);
        limit::counted(n);
        if let Some(seat) = seat {
            self.seats[seat].counts.0[kind as usize] += n;
            if self.seats[seat].index.is_none() {
                let (account, seats) = (self.seats[seat].account, &mut self.seats);
                self.accounts[account].members.join(seat, |moved, index| seats[moved].index = Some(index));
            }
            self.sync(seat, self.seats[seat].queued);
        }
        self.recheck_above(account);
    }

    fn give_back(&mut self, account: AccountId, seat: Option<SeatId>, kind: Kind, n: usize) {
        self.each_above(account, |above| above.counts.0[kind as usize] -= n);
        limit::uncounted(n);
        if let Some(seat) = seat {
            self.seats[seat].counts.0[kind as usize] -= n;
            self.sync(seat, self.seats[seat].queued);
        }
        self.recheck_above(account);
    }

    /// Takes a dropped slot back.
    pub(super) fn release(&mut self, account: AccountId, claim: &mut Claim) {
        self.untag(account, claim);
        if std::mem::take(&mut claim.evicted) {
            self.each_above(account, |above| above.evicting -= 1);
        }
        self.releases += 1;
        if let (Kind::Dialing, Some(seat)) = (claim.kind, claim.seat) {
            // While it still has its seat: a caller may stay behind.
            let seated = &self.seats[seat];
            if let Some(queued) = seated.member.dial_ended(seated.counts.get(Kind::Dialing) - 1) {
                self.sync(seat, queued);
            }
        }
        self.give_back(account, claim.seat, claim.kind, claim.weight);
    }

    /// Makes a slot independent of a connection elsewhere, for which it is gone.
    fn untag(&mut self, account: AccountId, claim: &mut Claim) {
        if let Some(tag) = claim.tag.take() {
            if tag.is_evicted() {
                self.each_above(account, |above| above.lingering -= 1);
            }
            claim.kind = tag.kind().unwrap_or(claim.kind);
            tag.set(None);
        }
    }

    /// A slot to dial with. Only where one is free.
    pub(crate) fn take_slot(&mut self, partition: &Arc<Partition>, seat: SeatId) -> Slot {
        self.take(partition.account, Some(seat), Kind::Dialing, 1);
        Slot::new(Arc::clone(partition), Some(seat), 1, Kind::Dialing)
    }

    /// Puts a slot to another use, at the seat or outside of connections.
    pub(crate) fn reassign(&mut self, slot: &mut Slot, seat: Option<SeatId>, kind: Kind) {
        let (account, claim) = (slot.partition.account, &mut slot.claim);
        self.untag(account, claim);
        // In this order, so that nobody leaves a seat in between.
        self.take(account, seat, kind, claim.weight);
        self.give_back(account, claim.seat, claim.kind, claim.weight);
        (claim.seat, claim.kind) = (seat, kind);
    }

    pub(super) fn reassign_elsewhere(&mut self, elsewhere: &Elsewhere, kind: Kind) {
        if let Some(from) = elsewhere.tag.kind() {
            let account = elsewhere.partition.account;
            elsewhere.tag.set(Some(kind));
            self.take(account, elsewhere.seat, kind, 1);
            self.give_back(account, elsewhere.seat, from, 1);
        }
    }

    /// The dial is over: its slot is a connection's.
    pub(crate) fn connected(&mut self, lease: &mut Lease) {
        match lease {
            Lease::Own(slot) => self.reassign(slot, slot.claim.seat, Kind::Connected),
            Lease::Elsewhere(elsewhere) => self.reassign_elsewhere(elsewhere, Kind::Connected),
        }
    }

    /// The dial is over, without a connection: its slot is no dial's any more, until it comes back.
    pub(crate) fn undialled(&mut self, lease: Option<&mut Lease>) {
        match lease {
            Some(Lease::Own(slot)) => self.reassign(slot, slot.claim.seat, Kind::Closing),
            Some(Lease::Elsewhere(elsewhere)) => self.reassign_elsewhere(elsewhere, Kind::Closing),
            None => {}
        }
    }

    /// The connection is being closed for somebody who waits.
    pub(crate) fn evicted(&mut self, lease: &mut Lease) {
        match lease {
            Lease::Own(slot) => {
                slot.claim.evicted = true;
                self.each_above(slot.partition.account, |above| above.evicting += 1);
            }
            Lease::Elsewhere(elsewhere) => {
                if elsewhere.tag.kind().is_some() {
                    elsewhere.tag.set_evicted();
                    self.each_above(elsewhere.partition.account, |above| above.lingering += 1);
                }
            }
        }
    }

    fn next_place(&mut self) -> Place {
        self.last_place += 1;
        self.last_place
    }

    /// Keeps the demand of an account and those above it, and the children's places in their parents' rings.
    fn demand_changed(&mut self, account: AccountId, before: usize, after: usize) {
        let mut next = Some(account);
        while let Some(id) = next {
            let account = &mut self.accounts[id];
            account.demand = account.demand - before + after;
            let (parent, turn, wanting) = (account.parent, account.turn, account.demand > 0);
            if let Some(parent) = parent {
                match turn {
                    None if wanting => {
                        let place = self.next_place();
                        self.accounts[id].turn = Some(place);
                        self.accounts[parent].ring.insert(place, Turn::Child(id));
                    }
                    Some(place) if !wanting => {
                        self.accounts[id].turn = None;
                        self.accounts[parent].ring.remove(place);
                    }
                    _ => {}
                }
            }
            next = parent;
        }
    }

    pub(super) fn participants(&mut self, account: AccountId) -> &mut Participants {
        &mut self.accounts[account].participants
    }

    pub(crate) fn counts(&self, id: AccountId) -> BudgetCounts {
        let account = &self.accounts[id];
        let idle: usize = self
            .tree(id)
            .iter()
            .flat_map(|id| self.accounts[*id].members.warm())
            .map(|seat| usize::from(self.seats[*seat].member.hint().0.idle))
            .sum();
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
        }
    }

    /// Callers that wait for a slot: not those whom `max_conns` bars from one.
    fn waiting(&self, account: AccountId) -> usize {
        let of_seat = |seat: &Seat| match seat.queued {
            0 => 0,
            _ => seat.may_have(seat.member.queued()),
        };
        self.applicants_of(account).count() + self.seats_of(account).map(of_seat).sum::<usize>()
    }

    pub(crate) fn applicants_of(&self, account: AccountId) -> impl Iterator<Item = &Applicant> {
        let tree = self.tree(account);
        tree.into_iter().flat_map(|id| self.accounts[id].applicants.iter().map(|(_, applicant)| applicant))
    }
}
