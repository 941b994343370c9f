//! The addresses in the books: what each has, wants, and when it has its turn.

use std::sync::Arc;

use super::rows::Ordinal;
use super::{AccountId, Books, Departing, SeatId, Wants};
use crate::budget::member::{COUNTED, Member, Seating};
use crate::budget::queue::Place;
use crate::budget::slot::{Kind, Use};
use crate::stats::Event;

/// One address in the books: it has slots out, or waits for some. There is one for each address with something idle, so
/// it is small.
pub(crate) struct Seat {
    pub(crate) member: Arc<dyn Member>,
    pub(super) account: AccountId,
    pub(crate) slots: Slots,
    /// Changes when the address's settings or its pace do, and then it tells [`Books::bound`].
    bounds: Bounds,
    /// Of those who queue there, while somebody does.
    pub(super) queue: Option<QueueId>,
    /// Where it is among the account's members, while it has slots.
    pub(super) index: Option<Ordinal>,
    /// What the member had counted when it was seated: the budget knows of that.
    reported: [u64; COUNTED.len()],
}

/// How many connections an address may have, and how many dials under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    conns: u32,
    dials: u32,
}

impl Bounds {
    pub(crate) fn new(conns: usize, dials: usize) -> Self {
        Self { conns: saturated(conns), dials: saturated(dials) }
    }

    /// Whether one more may be dialled beside so many slots, of which so many are dials'.
    pub(crate) fn allow_another(self, slots: usize, dials: usize) -> bool {
        slots < self.conns as usize && dials < self.dials as usize
    }
}

/// Slots of one address, by use: none of them is held outside of connections.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slots([u32; Kind::OF_CONNECTIONS]);

impl Slots {
    pub(crate) fn get(self, kind: Kind) -> usize {
        self.0[kind as usize] as usize
    }

    pub(crate) fn total(self) -> usize {
        self.0.iter().map(|slots| *slots as usize).sum()
    }
}

pub(super) type QueueId = Ordinal;

/// What the books know of those who queue at an address.
pub(super) struct Queue {
    /// How many, as far as is known: those who get in line behind others, or are served by what comes back while others
    /// stay, are not told of.
    queued: u32,
    /// How many of them may dial now.
    demand: u32,
    /// Its place in the turns. Kept while `max_conns` bars it from the ring.
    turn: Place,
}

impl Seat {
    /// What the member has counted since it was seated.
    pub(in crate::budget) fn unreported(&self) -> impl Iterator<Item = (Event, u64)> {
        let counted = COUNTED.into_iter().zip(self.member.counted()).zip(self.reported);
        // A reuse is taken back when what was taken turns out unfit.
        counted.map(|((event, now), before)| (event, now.saturating_sub(before)))
    }

    /// How many connections it seems to have idle.
    pub(in crate::budget) fn idle(&self) -> usize {
        self.member.notice().idle()
    }

    pub(super) fn max_conns(&self) -> usize {
        self.bounds.conns as usize
    }

    /// How many of those who queue here `max_conns` lets have a slot.
    fn may_have(&self, queued: usize) -> usize {
        queued.min(self.max_conns().saturating_sub(self.slots.total()))
    }

    /// How many of those who queue here may dial.
    fn demand(&self, queued: usize) -> usize {
        self.may_have(queued).saturating_sub(self.member.coming()).min(self.may_dial())
    }

    fn may_dial(&self) -> usize {
        (self.bounds.dials as usize).saturating_sub(self.slots.get(Kind::Dialing))
    }

    /// Whether one who came now would have its turn, with nobody before it; who does not wait, not for what comes back either.
    fn may_dial_another(&self, at_once: bool) -> bool {
        let wanting = if at_once { self.may_have(1).min(self.may_dial()) } else { self.demand(1) };
        self.queue.is_none() && wanting > 0
    }

    /// Callers that wait for a slot: not those whom `max_conns` bars from one.
    pub(super) fn waiting(&self) -> usize {
        self.queue.map_or(0, |_| self.may_have(self.member.queued()))
    }
}

/// More than fit are more than there are descriptors.
fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Books {
    /// The seat of a member that is about to queue or to take a slot.
    pub(crate) fn be_seated<M: Member + 'static>(&mut self, member: &Arc<M>, bounds: Bounds) -> SeatId {
        if let Some(seat) = member.seating().get() {
            return seat;
        }
        let account = member.partition().account;
        let seat = self.seats.insert(Seat {
            member: Arc::<M>::clone(member),
            account,
            slots: Slots::default(),
            bounds,
            queue: None,
            index: None,
            reported: member.counted(),
        });
        member.seating().set(Some(seat));
        seat
    }

    /// What an address may have is another than before; who queues there is [told](Self::sync) of afterwards.
    pub(crate) fn bound(&mut self, id: SeatId, bounds: Bounds) {
        self.seats[id].bounds = bounds;
    }

    /// Brings the books in line with how many queue at an address, and with what `max_conns` and its dials under way
    /// let them have. Frees the seat when nothing is left of either.
    #[inline]
    pub(crate) fn sync(&mut self, id: SeatId, queued: usize) {
        let seat = &self.seats[id];
        if queued > 0 || seat.queue.is_some() {
            self.sync_queue(id, queued);
        }
        if self.seats[id].slots.total() == 0 {
            self.leave(id);
        }
    }

    fn sync_queue(&mut self, id: SeatId, queued: usize) {
        let queue = match self.seats[id].queue {
            Some(queue) => queue,
            None => {
                let turn = self.next_place();
                let queue = self.queues.insert(Queue { queued: 0, demand: 0, turn });
                self.seats[id].queue = Some(queue);
                queue
            }
        };
        let seat = &self.seats[id];
        let (account, demand) = (seat.account, saturated(seat.demand(queued)));
        let Queue { demand: before, turn, .. } = self.queues[queue];
        match (before, demand) {
            (0, 1..) => self.accounts[account].dialers.insert(turn, id),
            (1.., 0) => drop(self.accounts[account].dialers.remove(turn)),
            _ => {}
        }
        if queued == 0 {
            self.queues.remove(queue);
            self.seats[id].queue = None;
        } else {
            self.queues[queue] = Queue { queued: saturated(queued), demand, turn };
        }
        if demand != before {
            self.seats[id].member.seating().set_demand(demand);
            self.wants_changed(account, Wants::dials(before as usize), Wants::dials(demand as usize));
        }
    }

    /// What an address has is another number than before: so may be what those who queue there can have.
    #[inline]
    pub(super) fn slots_changed(&mut self, id: SeatId) {
        let seat = &self.seats[id];
        match seat.queue {
            Some(queue) => self.sync(id, self.queues[queue].queued as usize),
            None if seat.slots.total() == 0 => self.leave(id),
            None => {}
        }
    }

    /// It has no slots left. Without anybody who queues it has no seat either.
    fn leave(&mut self, id: SeatId) {
        let (account, seats) = (self.seats[id].account, &mut self.seats);
        if let Some(index) = seats[id].index {
            let members = &mut self.accounts[account].members;
            let warm = members.warm().len();
            members.leave(index.index(), |moved, index| seats[moved].index = Some(Ordinal::of(index)));
            seats[id].index = None;
            seats[id].member.cooled();
            let left = members.warm().len();
            self.warm_changed(account, warm, left);
        }
        let seats = &mut self.seats;
        if seats[id].queue.is_none() {
            let seat = seats.remove(id);
            for (event, n) in seat.unreported() {
                if n > 0 {
                    seat.member.partition().count(event, n);
                }
            }
            seat.member.seating().set(None);
            self.departed.push(Departing::Member(seat.member));
        }
    }

    /// An address has one slot more. To be followed by [`sync`](Self::sync), once who gets them is out of the queue.
    pub(super) fn occupy(&mut self, id: SeatId, kind: Kind) {
        let seat = &mut self.seats[id];
        seat.slots.0[kind as usize] += 1;
        if seat.index.is_none() {
            let (account, seats) = (seat.account, &mut self.seats);
            let members = &mut self.accounts[account].members;
            members.join(id, seats[id].member.notice(), |moved, index| {
                seats[moved].index = Some(Ordinal::of(index))
            });
        }
    }

    /// An address has one slot less.
    pub(super) fn vacate(&mut self, id: SeatId, kind: Kind) {
        self.seats[id].slots.0[kind as usize] -= 1;
        self.slots_changed(id);
    }

    /// A slot moves to another seat or another use, or both.
    pub(super) fn reseat(&mut self, from: Use, to: Use) {
        if let (Use::Seated { seat, kind: before, .. }, Use::Seated { seat: same, kind, .. }) = (from, to)
            && seat == same
        {
            let Slots(slots) = &mut self.seats[seat].slots;
            slots[before as usize] -= 1;
            slots[kind as usize] += 1;
            return self.slots_changed(seat);
        }
        if let Use::Seated { seat, kind, .. } = to {
            self.occupy(seat, kind);
            self.slots_changed(seat);
        }
        if let Use::Seated { seat, kind, .. } = from {
            self.vacate(seat, kind);
        }
    }

    /// The address has had its turn: it goes behind the others.
    pub(crate) fn had_turn(&mut self, id: SeatId) {
        let Seat { account, queue: Some(queue), .. } = self.seats[id] else { return };
        let next = self.next_place();
        let Queue { demand, turn, .. } = &mut self.queues[queue];
        let before = std::mem::replace(turn, next);
        if *demand > 0 {
            let dialers = &mut self.accounts[account].dialers;
            dialers.remove(before);
            dialers.insert(next, id);
            self.pass_on(account);
        }
    }

    /// How many dials are waited for there.
    pub(super) fn demand_of(&self, id: SeatId) -> Option<usize> {
        self.seats[id].queue.map(|queue| self.queues[queue].demand as usize)
    }

    /// When it has its turn, if somebody queues there.
    pub(super) fn turn_of(&self, id: SeatId) -> Option<Place> {
        self.seats[id].queue.map(|queue| self.queues[queue].turn)
    }

    /// The address has something idle again, after [`Member::evict`] or [`Member::cooled`]. `false`: it has no slot, and
    /// will be none of those that may have something idle when it has one.
    pub(crate) fn heat(&mut self, seating: &Seating) -> bool {
        let Some(id) = seating.get() else { return false };
        let Seat { index: Some(index), account, .. } = self.seats[id] else { return false };
        let (seats, members) = (&mut self.seats, &mut self.accounts[account].members);
        let before = members.warm().len();
        members.heat(index.index(), |moved, index| seats[moved].index = Some(Ordinal::of(index)));
        let after = members.warm().len();
        self.warm_changed(account, before, after);
        true
    }

    pub(super) fn cool(&mut self, id: SeatId) {
        if let Seat { index: Some(index), account, .. } = self.seats[id] {
            let (seats, members) = (&mut self.seats, &mut self.accounts[account].members);
            members.cool(index.index(), |moved, index| seats[moved].index = Some(Ordinal::of(index)));
            let left = members.warm().len();
            self.warm_changed(account, left + 1, left);
        }
    }

    /// Slots that an address has, by use.
    pub(crate) fn counts_of(&self, seat: SeatId) -> Slots {
        self.seats[seat].slots
    }

    /// Slots that an address has, of whatever use.
    pub(crate) fn slots_of(&self, seat: SeatId) -> usize {
        self.seats[seat].slots.total()
    }

    pub(crate) fn dials_of(&self, seat: SeatId) -> usize {
        self.seats[seat].slots.get(Kind::Dialing)
    }

    /// Whether one who came now would have its turn here, with nobody before it.
    pub(crate) fn may_dial_another(&self, seat: SeatId, at_once: bool) -> bool {
        self.seats[seat].may_dial_another(at_once)
    }

    /// Everybody who has a slot of an account, or of one below it, or waits for one.
    pub(crate) fn seats_of(&self, account: AccountId) -> impl Iterator<Item = &Seat> {
        self.seats.iter().map(|(_, seat)| seat).filter(move |seat| self.is_within(seat.account, account))
    }

    fn is_within(&self, id: AccountId, account: AccountId) -> bool {
        let mut at = Some(id);
        while let Some(id) = at.filter(|id| *id != account) {
            at = self.accounts[id].parent;
        }
        at.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the bytes of an idle connection, with twelve for its number among the members and what it shows there.
    #[test]
    fn a_seat_is_eight_words() {
        assert_eq!(size_of::<Seat>(), size_of::<[usize; 8]>());
        assert_eq!(size_of::<Option<Seat>>(), size_of::<Seat>(), "a row has no tag beside it");
    }
}
