//! The addresses in the books: what each has, wants, and when it has its turn.

use std::sync::Arc;

use super::{AccountId, Books, Counts, SeatId, Turn};
use crate::budget::ledger::{Member, Seating};
use crate::budget::queue::Place;
use crate::budget::slot::Kind;

/// One address in the books: it has slots out, or waits for some.
pub(crate) struct Seat {
    pub(crate) member: Arc<dyn Member>,
    pub(super) account: AccountId,
    pub(crate) counts: Counts,
    /// Callers that queue at the address for a slot, as far as is known: those who get in line behind others, or are
    /// served by what comes back while others stay, are not told of.
    pub(super) queued: usize,
    /// How many of them may dial now.
    pub(super) demand: usize,
    /// Its place in the turns, while somebody queues. Kept while `max_conns` bars it from the ring.
    pub(super) turn: Option<Place>,
    /// Where it is among the account's members, while it has slots.
    pub(super) index: Option<usize>,
}

impl Seat {
    /// How many of those who queue here `max_conns` lets have a slot.
    pub(super) fn may_have(&self, queued: usize) -> usize {
        queued.min(self.member.max_conns().saturating_sub(self.counts.total()))
    }
}

impl Books {
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

    /// Brings the books in line with how many queue at an address, and with what `max_conns` and its dials under way
    /// let them have. Frees the seat when nothing is left of either.
    pub(crate) fn sync(&mut self, id: SeatId, queued: usize) {
        let seat = &self.seats[id];
        let (account, turn, before) = (seat.account, seat.turn, seat.demand);
        let wanting = seat.may_have(queued).saturating_sub(seat.member.coming());
        let demand = wanting.min(seat.member.may_dial().saturating_sub(seat.counts.get(Kind::Dialing)));
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
        seat.member.seating().set_demand(demand);
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

    /// The address has something idle again, after [`Member::evict`] or [`Member::cooled`].
    pub(crate) fn heat(&mut self, seating: &Seating) {
        let Some(id) = seating.get() else { return };
        if let Seat { index: Some(index), account, .. } = self.seats[id] {
            let seats = &mut self.seats;
            self.accounts[account].members.heat(index, |moved, index| seats[moved].index = Some(index));
        }
    }

    pub(super) fn cool(&mut self, id: SeatId) {
        if let Seat { index: Some(index), account, .. } = self.seats[id] {
            let seats = &mut self.seats;
            self.accounts[account].members.cool(index, |moved, index| seats[moved].index = Some(index));
        }
    }

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

    /// Everybody who has a slot of an account, or of one below it, or waits for one.
    pub(crate) fn seats_of(&self, account: AccountId) -> impl Iterator<Item = &Seat> {
        let tree = self.tree(account);
        self.seats.iter().map(|(_, seat)| seat).filter(move |seat| tree.contains(&seat.account))
    }
}
