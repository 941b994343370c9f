//! The books of one budget and its children: how many slots each has out, who waits for one, and who has
//! something idle. Everything that moves a slot goes through here, one step at a time: the step is decided
//! under the ledger's lock and carried out after it. Knows connections only as [`Member`]s and [`Victim`]s.

use std::fmt;
use std::sync::{Arc, Weak};
use std::task::Waker;

use slab::Slab;

use super::audit::Audit;
use super::members::Members;
use super::queue::{Cell, Line, Place};
use super::reclaim::{Asked, Order, Participants};
use super::slot::{Claim, Elsewhere, Kind, Lease, Slot};
use super::victim::{Hint, Sampler};
use crate::address::Address;
use crate::clock::{self, Tick};
use crate::stats::{BudgetCounts, Event, Tally};
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering, thread_local};

pub(crate) type AccountId = usize;
pub(crate) type SeatId = usize;

/// The account of the budget itself; all others are children, and children of children.
const ROOT: AccountId = 0;

/// How many members a search looks at before it lets others have the lock.
const SEARCH_CHUNK: usize = 64;

/// What the ledger needs to know of an address. Called under the ledger's lock, except where it says
/// otherwise; implementations take their own lock inside, and call nothing of the user's.
pub(crate) trait Member: Send + Sync {
    /// Where the address sits in the books, if it has slots or waits for some.
    fn seating(&self) -> &Seating;
    /// What victims are chosen by, read without a lock: a hint.
    fn hint(&self) -> (Hint, u32);
    /// Gives up the idle connection that can be spared best. `None`: it has none, and will call
    /// [`Books::heat`] when it has one again.
    fn evict(self: Arc<Self>) -> Option<Box<dyn Victim>>;
    /// Hands a slot to the oldest of those who queue here, of whom there is one.
    fn serve(&self, slot: Slot) -> Option<Waker>;
    /// It has no slots left: like [`evict`](Self::evict) when it finds nothing.
    fn cooled(&self);
    fn partition(&self) -> &Arc<Partition>;
    fn max_conns(&self) -> usize;
    fn address(&self) -> &Address;
    fn oldest_wait(&self) -> Option<Tick>;
    /// Connections reused that the budget has not been told of.
    fn unreported_reuse(&self) -> u64;
}

/// An idle connection on its way out.
pub(crate) trait Victim: Send {
    fn lease(&mut self) -> &mut Lease;
    /// Closes the connection and gives its slot back. Called without locks; does not panic.
    fn close(self: Box<Self>);
}

/// The key of a member's seat. Written under the ledger's lock only.
#[derive(Debug)]
pub(crate) struct Seating(AtomicUsize);

impl Seating {
    const NONE: usize = usize::MAX;

    pub(crate) fn none() -> Self {
        Self(AtomicUsize::new(Self::NONE))
    }

    pub(crate) fn get(&self) -> Option<SeatId> {
        Some(self.0.load(Ordering::Relaxed)).filter(|seat| *seat != Self::NONE)
    }

    fn set(&self, seat: Option<SeatId>) {
        self.0.store(seat.unwrap_or(Self::NONE), Ordering::Relaxed);
    }
}

/// A caller of `acquire`, in line.
pub(crate) struct Applicant {
    /// Granted `None` if it can never be served: the limit has shrunk below its weight.
    pub(crate) cell: Arc<Cell<Option<Slot>>>,
    pub(crate) weight: usize,
}

/// A budget or a child of one, as its handles, resources and slots hold it.
pub(crate) struct Partition {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) account: AccountId,
    pub(crate) tally: Tally,
    parent: Option<Arc<Partition>>,
}

impl Partition {
    pub(crate) fn root(limit: usize, max_dialing: usize, foreign: usize) -> Arc<Self> {
        let ledger = Arc::new(Ledger {
            pressure: AtomicUsize::new(0),
            foreign,
            books: Mutex::new(Books {
                accounts: Slab::new(),
                seats: Slab::new(),
                last_place: 0,
                sampler: Sampler::new(0x9E37_79B9_7F4A_7C15),
                audit: Audit::default(),
                over: 0,
                releases: 0,
                departed: Vec::new(),
            }),
        });
        let partition = Self::open(ledger, None, limit, max_dialing);
        debug_assert_eq!(partition.account, ROOT);
        partition
    }

    pub(crate) fn child(self: &Arc<Self>, limit: usize) -> Arc<Self> {
        Self::open(Arc::clone(&self.ledger), Some(Arc::clone(self)), limit, usize::MAX)
    }

    fn open(
        ledger: Arc<Ledger>,
        parent: Option<Arc<Partition>>,
        limit: usize,
        max_dialing: usize,
    ) -> Arc<Self> {
        let mut books = ledger.books.lock();
        let account = books.accounts.insert(Account {
            parent: parent.as_ref().map(|parent| parent.account),
            ..Account::new(limit, max_dialing)
        });
        if let Some(parent) = &parent {
            books.accounts[parent.account].children.push(account);
        }
        drop(books);
        let partition = Arc::new(Self { ledger, account, tally: Tally::default(), parent });
        partition.ledger.books.lock().accounts[account].partition = Arc::downgrade(&partition);
        partition
    }

    /// Counts an event here and in every budget above.
    pub(crate) fn count(&self, event: Event, n: u64) {
        let mut partition = Some(self);
        while let Some(at) = partition {
            at.tally.add(event, n);
            partition = at.parent.as_deref();
        }
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        let mut books = self.ledger.books.lock();
        let account = books.accounts.remove(self.account);
        if let Some(parent) = account.parent {
            books.accounts[parent].children.retain(|child| *child != self.account);
        }
    }
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partition").field("account", &self.account).finish_non_exhaustive()
    }
}

/// The shared state of a budget and all its children.
pub(crate) struct Ledger {
    /// Not zero while a slot that comes free may be wanted: somebody waits, or a limit is exceeded. Written
    /// under the lock of the books, before members are looked at; read by every `put` under the lock of its
    /// address. So either the search finds what the put leaves there, or the put sees the pressure.
    pressure: AtomicUsize,
    /// Descriptors open besides the budget's when it was sized.
    pub(crate) foreign: usize,
    /// Slots, waiters, seats. Under it: the locks of addresses, then those of cells, and never the other way
    /// round; nothing of the user's, no waker, no close, no drop of anything but plain data.
    books: Mutex<Books>,
}

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
    /// Members that left their seat, to be dropped after the lock.
    departed: Vec<Arc<dyn Member>>,
}

/// One address in the books: it has slots out, or waits for some.
pub(crate) struct Seat {
    pub(crate) member: Arc<dyn Member>,
    account: AccountId,
    pub(crate) counts: Counts,
    /// Callers that queue at the address for a slot.
    queued: usize,
    /// How many of them `max_conns` lets have one.
    demand: usize,
    /// Its place in the turns, while somebody queues. Kept while `max_conns` bars it from the ring.
    turn: Option<Place>,
    /// Where it is among the account's members, while it has slots.
    pub(super) index: Option<usize>,
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
}

impl Account {
    fn new(limit: usize, max_dialing: usize) -> Self {
        Self {
            parent: None,
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
        }
    }
}

/// What is to be done next, after the lock.
enum Step {
    Wake(Option<Waker>),
    Close(Box<dyn Victim>),
    Ask {
        account: AccountId,
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

impl Ledger {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock()
    }

    /// Whether a put has to ask before it leaves something idle. Read under the lock of the put's address.
    pub(crate) fn is_pressed(&self) -> bool {
        self.pressure.load(Ordering::Relaxed) != 0
    }

    /// Grants what can be granted and evicts what is needed, until nothing is left to do (I5). Ends the
    /// critical section it is given, and so serves whoever waits before any newcomer is seen (I9).
    pub(crate) fn settle<'a>(&'a self, mut books: MutexGuard<'a, Books>) {
        // A slot dropped inside of an eviction comes here again: it serves, and leaves evictions to the outer
        // call. Otherwise the stack would grow with the number of waiters.
        let settling = Settling::enter(self);
        // Where everybody who may have something idle was asked in vain.
        let mut in_vain = None;
        loop {
            // Announce first, look after: see `pressure`.
            self.publish(&books);
            let step = if settling.is_some() { books.step(in_vain) } else { books.serve() };
            self.publish(&books);
            let departed = std::mem::take(&mut books.departed);
            drop(books);
            drop(departed);
            match step {
                Step::Rest => return,
                Step::Search => {}
                Step::Wake(Some(waker)) => waker.wake(),
                Step::Wake(None) => {}
                Step::Close(victim) => victim.close(),
                Step::Ask { account, partition, asked } => {
                    if !self.ask(account, &partition, &asked) {
                        in_vain = Some(account);
                    }
                }
            }
            books = self.lock();
        }
    }

    fn publish(&self, books: &Books) {
        self.pressure.store(books.accounts[ROOT].demand + books.over, Ordering::Relaxed);
    }

    /// Frees a slot of other crates' idle descriptors, or of our own. Returns whether one came back.
    fn ask(&self, account: AccountId, partition: &Partition, asked: &Asked) -> bool {
        // Who says that it let go may not have: only a slot that came back counts.
        let before = self.lock().releases;
        let asked_from = |first| asked.ask(partition, first) && self.lock().releases != before;
        let freed = match asked.draw(partition) {
            Order::OwnFirst => self.evict(account) || asked_from(0),
            Order::ParticipantsFrom(first) => asked_from(first) || self.evict(account),
        };
        self.lock().each_above(account, |above| above.evicting -= 1);
        freed
    }

    /// Closes something idle, wherever it is. `false`: nothing is.
    pub(crate) fn evict_one(&self) -> bool {
        if self.evict(ROOT) {
            return true;
        }
        let asked = self.lock().ask(ROOT);
        match asked {
            Some(Step::Ask { account, partition, asked }) => self.ask(account, &partition, &asked),
            _ => false,
        }
    }

    fn evict(&self, account: AccountId) -> bool {
        loop {
            let step = self.lock().evict(account);
            match step {
                Some(Step::Close(victim)) => {
                    victim.close();
                    return true;
                }
                Some(_) => {}
                None => return false,
            }
        }
    }
}

impl Books {
    // ---- slots

    fn each_above(&mut self, account: AccountId, mut change: impl FnMut(&mut Account)) {
        let mut next = Some(account);
        while let Some(id) = next {
            let account = &mut self.accounts[id];
            change(account);
            next = account.parent;
        }
    }

    pub(crate) fn limit(&self, account: AccountId) -> usize {
        self.accounts[account].limit
    }

    pub(crate) fn effective_limit(&self, account: AccountId) -> usize {
        let limit = self.limit(account);
        if account == ROOT { self.audit.effective(limit) } else { limit }
    }

    /// Slots an account has to give, whatever those above it have.
    fn room(&self, account: AccountId) -> usize {
        self.effective_limit(account).saturating_sub(self.accounts[account].counts.total())
    }

    /// Slots to give in an account and all above it.
    pub(crate) fn free(&self, account: AccountId) -> usize {
        self.least_above(account, |id| self.room(id))
    }

    /// Slots that a request may ever hope for.
    pub(crate) fn attainable(&self, account: AccountId) -> usize {
        self.least_above(account, |id| self.limit(id))
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

    /// A dial of `account`'s found no descriptor.
    pub(crate) fn ran_out(&mut self, now: Tick) {
        let root = &self.accounts[ROOT];
        let others = root.counts.total() - 1;
        self.audit.ran_out(root.limit, others, now);
        self.recheck(ROOT);
    }

    /// Gives back what running out of descriptors took, as far as it is due.
    pub(crate) fn grow(&mut self, now: Tick) {
        if self.audit.grow(self.accounts[ROOT].limit, now) {
            self.recheck(ROOT);
        }
    }

    /// Keeps account of whether an account is over its limit.
    fn recheck(&mut self, account: AccountId) {
        let over = self.accounts[account].counts.total() > self.effective_limit(account);
        let before = std::mem::replace(&mut self.accounts[account].over, over);
        self.over = self.over + usize::from(over) - usize::from(before);
    }

    pub(crate) fn is_over(&self, account: AccountId) -> bool {
        let mut next = Some(account);
        while let Some(id) = next {
            if self.accounts[id].over {
                return true;
            }
            next = self.accounts[id].parent;
        }
        false
    }

    fn take(&mut self, account: AccountId, seat: Option<SeatId>, kind: Kind, n: usize) {
        self.each_above(account, |above| above.counts.0[kind as usize] += n);
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
        if let Some(seat) = seat {
            self.seats[seat].counts.0[kind as usize] -= n;
            self.sync(seat, self.seats[seat].queued);
        }
        self.recheck_above(account);
    }

    fn recheck_above(&mut self, account: AccountId) {
        let mut next = Some(account);
        while let Some(id) = next {
            self.recheck(id);
            next = self.accounts[id].parent;
        }
    }

    /// Takes a dropped slot back.
    pub(super) fn release(&mut self, account: AccountId, claim: &mut Claim) {
        self.untag(account, claim);
        if std::mem::take(&mut claim.evicted) {
            self.each_above(account, |above| above.evicting -= 1);
        }
        self.releases += 1;
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

    // ---- seats

    pub(crate) fn counts_of(&self, seat: SeatId) -> Counts {
        self.seats[seat].counts
    }

    /// Slots that an address has, of whatever use.
    pub(crate) fn slots_of(&self, seat: SeatId) -> usize {
        self.seats[seat].counts.total()
    }

    pub(crate) fn dials_of(&self, seat: SeatId) -> usize {
        self.seats[seat].counts.get(Kind::Dialing)
    }

    /// The seat of a member that is about to queue or to take a slot.
    pub(crate) fn be_seated<M: Member + 'static>(&mut self, member: &Arc<M>) -> SeatId {
        if let Some(seat) = member.seating().get() {
            return seat;
        }
        let member: Arc<dyn Member> = Arc::<M>::clone(member);
        let account = member.partition().account;
        let entry = self.seats.vacant_entry();
        let seat = entry.key();
        member.seating().set(Some(seat));
        entry.insert(Seat {
            member,
            account,
            counts: Counts::default(),
            queued: 0,
            demand: 0,
            turn: None,
            index: None,
        });
        seat
    }

    /// How many of its callers could do with a slot now, if there were any.
    fn demand(&self, seat: &Seat, queued: usize) -> usize {
        queued.min(seat.member.max_conns().saturating_sub(seat.counts.total()))
    }

    /// Brings the books in line with how many queue at an address, and with what `max_conns` lets them have.
    /// Frees the seat when nothing is left of either.
    pub(crate) fn sync(&mut self, id: SeatId, queued: usize) {
        let seat = &self.seats[id];
        let (account, turn, before) = (seat.account, seat.turn, seat.demand);
        let demand = self.demand(seat, queued);
        let new_turn = match (queued, turn) {
            (0, _) => None,
            (_, Some(turn)) => Some(turn),
            (_, None) => Some(self.next_place()),
        };
        if before > 0
            && (demand == 0 || new_turn != turn)
            && let Some(turn) = turn
        {
            self.accounts[account].ring.remove(turn);
        }
        if demand > 0
            && (before == 0 || new_turn != turn)
            && let Some(turn) = new_turn
        {
            self.accounts[account].ring.insert(turn, Turn::Seat(id));
        }
        let seat = &mut self.seats[id];
        (seat.queued, seat.demand, seat.turn) = (queued, demand, new_turn);
        self.demand_changed(account, before, demand);
        let seat = &self.seats[id];
        if seat.counts.total() == 0 {
            if let Some(index) = seat.index {
                let seats = &mut self.seats;
                self.accounts[account].members.leave(index, |moved, index| seats[moved].index = Some(index));
                self.seats[id].index = None;
                self.seats[id].member.cooled();
            }
            if queued == 0 {
                let seat = self.seats.remove(id);
                seat.member.seating().set(None);
                self.departed.push(seat.member);
            }
        }
    }

    /// The address has had its turn: it goes behind the others.
    pub(crate) fn had_turn(&mut self, id: SeatId) {
        let seat = &self.seats[id];
        let (account, turn, demand) = (seat.account, seat.turn, seat.demand);
        if let Some(turn) = turn {
            let next = self.next_place();
            if demand > 0 {
                let ring = &mut self.accounts[account].ring;
                ring.remove(turn);
                ring.insert(next, Turn::Seat(id));
            }
            self.seats[id].turn = Some(next);
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

    /// The address has something idle again, after [`Member::evict`] or [`Member::cooled`].
    pub(crate) fn heat(&mut self, seating: &Seating) {
        let Some(id) = seating.get() else { return };
        if let Seat { index: Some(index), account, .. } = self.seats[id] {
            let seats = &mut self.seats;
            self.accounts[account].members.heat(index, |moved, index| seats[moved].index = Some(index));
        }
    }

    fn cool(&mut self, id: SeatId) {
        if let Seat { index: Some(index), account, .. } = self.seats[id] {
            let seats = &mut self.seats;
            self.accounts[account].members.cool(index, |moved, index| seats[moved].index = Some(index));
        }
    }

    // ---- waiting

    /// Puts a caller of `acquire` in line. Fails if it could never be served.
    pub(crate) fn apply(&mut self, id: AccountId, applicant: Applicant) -> Option<Place> {
        if applicant.weight > self.attainable(id) {
            return None;
        }
        let place = self.next_place();
        let weight = applicant.weight;
        let account = &mut self.accounts[id];
        account.applicants.insert(place, applicant);
        account.applicants_weight += weight;
        if account.applicants_turn.is_none() {
            account.applicants_turn = Some(place);
            account.ring.insert(place, Turn::Applicants);
        }
        self.demand_changed(id, 0, weight);
        Some(place)
    }

    /// Takes a caller of `acquire` out of the line, if it still stands there.
    pub(crate) fn withdraw(&mut self, id: AccountId, place: Place) -> Option<Applicant> {
        let account = &mut self.accounts[id];
        let applicant = account.applicants.remove(place)?;
        account.applicants_weight -= applicant.weight;
        if account.applicants.is_empty()
            && let Some(turn) = account.applicants_turn.take()
        {
            account.ring.remove(turn);
        }
        self.demand_changed(id, applicant.weight, 0);
        Some(applicant)
    }

    fn serve(&mut self) -> Step {
        match self.serve_account(ROOT, usize::MAX, &mut Vec::new()) {
            Served::Granted(waker) => Step::Wake(waker),
            Served::HeldUpAbove(_) | Served::Nobody => Step::Rest,
        }
    }

    /// Grants to the first waiter, in turn, who can be granted what it waits for. `short` collects the accounts
    /// whose own lack of room holds somebody up.
    fn serve_account(&mut self, id: AccountId, above: usize, short: &mut Vec<AccountId>) -> Served {
        let here = self.room(id);
        let mut index = 0;
        while let Some(&(place, turn)) = self.accounts[id].ring.get(index) {
            index += 1;
            let weight = match turn {
                Turn::Applicants => self.accounts[id].applicants.front().map_or(0, |(_, first)| first.weight),
                Turn::Seat(_) if self.dial_room(id) == 0 => continue,
                Turn::Seat(_) => 1,
                Turn::Child(child) => match self.serve_account(child, above.min(here), short) {
                    Served::Granted(waker) => {
                        self.child_had_turn(id, child, place);
                        return Served::Granted(waker);
                    }
                    Served::Nobody => continue,
                    Served::HeldUpAbove(weight) => weight,
                },
            };
            if turn == Turn::Applicants && weight > self.attainable(id) {
                return Served::Granted(self.refuse(id));
            }
            if weight > here {
                short.push(id);
                return Served::Nobody;
            }
            if weight > above {
                return Served::HeldUpAbove(weight);
            }
            return match turn {
                Turn::Applicants => Served::Granted(self.grant_applicant(id)),
                Turn::Seat(seat) => Served::Granted(self.grant_seat(seat)),
                Turn::Child(_) => unreachable!("BUG: a child held up above, with room above"),
            };
        }
        Served::Nobody
    }

    fn child_had_turn(&mut self, parent: AccountId, child: AccountId, place: Place) {
        if self.accounts[child].turn == Some(place) {
            let next = self.next_place();
            self.accounts[child].turn = Some(next);
            let ring = &mut self.accounts[parent].ring;
            ring.remove(place);
            ring.insert(next, Turn::Child(child));
        }
    }

    fn grant_seat(&mut self, id: SeatId) -> Option<Waker> {
        let seat = &self.seats[id];
        let queued = seat.queued;
        let member = Arc::clone(&seat.member);
        let slot = self.take_slot(member.partition(), id);
        self.sync(id, queued - 1);
        self.had_turn(id);
        let waker = member.serve(slot);
        self.departed.push(member);
        waker
    }

    fn grant_applicant(&mut self, id: AccountId) -> Option<Waker> {
        let applicant = self.pop_applicant(id)?;
        self.take(id, None, Kind::Held, applicant.weight);
        let partition =
            self.accounts[id].partition.upgrade().expect("BUG: a caller waits at a budget without handles");
        applicant.cell.grant(Some(Slot::new(partition, None, applicant.weight, Kind::Held)))
    }

    /// Tells a caller that its request cannot be granted any more.
    fn refuse(&mut self, id: AccountId) -> Option<Waker> {
        self.pop_applicant(id)?.cell.grant(None)
    }

    /// Takes the first caller of `acquire` out of the line; those behind it wait for their next turn.
    fn pop_applicant(&mut self, id: AccountId) -> Option<Applicant> {
        let place = self.accounts[id].applicants.front()?.0;
        let applicant = self.withdraw(id, place)?;
        if let Some(turn) = self.accounts[id].applicants_turn {
            let next = self.next_place();
            let account = &mut self.accounts[id];
            account.applicants_turn = Some(next);
            account.ring.remove(turn);
            account.ring.insert(next, Turn::Applicants);
        }
        Some(applicant)
    }

    // ---- evicting

    /// Whether an account is over its limit, or those who wait in it want more slots than it has, by more than
    /// what is coming.
    fn lacks(&self, id: AccountId, coming: usize) -> bool {
        let account = &self.accounts[id];
        let for_dials = account.demand - account.applicants_weight;
        let wanted = account.applicants_weight + for_dials.min(self.dial_room(id));
        account.counts.total() + wanted > self.effective_limit(id) + coming
    }

    fn step(&mut self, in_vain: Option<AccountId>) -> Step {
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
            if in_vain == Some(id) || !self.lacks(id, coming) {
                continue;
            }
            if let Some(step) = self.ask(id).or_else(|| self.evict(id)) {
                return step;
            }
        }
        Step::Rest
    }

    /// Asks other crates, if there are any below this account.
    fn ask(&mut self, account: AccountId) -> Option<Step> {
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
            asked: Asked { participants, own, random: self.sampler.next() },
        })
    }

    /// An account and all below it.
    fn tree(&self, account: AccountId) -> Vec<AccountId> {
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
    fn evict(&mut self, account: AccountId) -> Option<Step> {
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

    // ---- looking

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
            waiting: account.demand,
        }
    }

    /// Everybody who has a slot of an account, or of one below it, or waits for one.
    pub(crate) fn seats_of(&self, account: AccountId) -> impl Iterator<Item = &Seat> {
        let tree = self.tree(account);
        self.seats.iter().map(|(_, seat)| seat).filter(move |seat| tree.contains(&seat.account))
    }

    pub(crate) fn applicants_of(&self, account: AccountId) -> impl Iterator<Item = &Applicant> {
        let tree = self.tree(account);
        tree.into_iter().flat_map(|id| self.accounts[id].applicants.iter().map(|(_, applicant)| applicant))
    }
}

/// Marks the ledger that this thread is settling.
struct Settling {
    outer: usize,
}

thread_local! {
    static SETTLING: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl Settling {
    fn enter(ledger: &Ledger) -> Option<Self> {
        let this = std::ptr::from_ref(ledger).addr();
        let outer = SETTLING.with(|settling| settling.replace(this));
        (outer != this).then_some(Self { outer })
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        SETTLING.with(|settling| settling.set(self.outer));
    }
}
