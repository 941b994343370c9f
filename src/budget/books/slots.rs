//! Slots out: taken, put to another use, given back.

use std::sync::Arc;
use std::time::Duration;

use super::{AccountId, Books, Departing, SeatId, Wakes};
use crate::budget::partition::Partition;
use crate::budget::slot::{Claim, Elsewhere, Kind, Lease, Slot, Tag, Use, Weight};
use crate::clock;
use crate::limit;

/// For how long a slot counts as coming whose connection was evicted and whose descriptor somebody else closes.
const LINGERS: Duration = Duration::from_millis(250);

impl Books {
    /// Counts slots out. What grants them has looked for room in the same critical section (I1).
    pub(super) fn take(&mut self, account: AccountId, kind: Kind, n: usize) {
        self.total_changed(account, |counts| counts.0[kind as usize] += n);
        limit::counted(n);
    }

    fn give_back(&mut self, account: AccountId, kind: Kind, n: usize) {
        self.total_changed(account, |counts| counts.0[kind as usize] -= n);
        limit::uncounted(n);
    }

    /// A slot that stays out is put to another use. Nobody's total changes.
    fn convert(&mut self, account: AccountId, from: Kind, to: Kind) {
        self.each_above(account, |above| {
            above.counts.0[from as usize] -= 1;
            above.counts.0[to as usize] += 1;
        });
    }

    /// Takes a dropped slot back.
    pub(in crate::budget) fn release(&mut self, account: AccountId, used: Use) {
        self.releases += 1;
        if let Use::Seated { seat, kind, evicted } = used {
            if evicted {
                self.each_above(account, |above| above.evicting -= 1);
            }
            if kind == Kind::Dialing {
                // While it still has its seat: a caller may stay behind.
                self.dial_ended(seat, self.dials_of(seat) - 1);
            }
        }
        self.give_back(account, used.kind(), used.weight());
        if let Use::Seated { seat, kind, .. } = used {
            self.vacate(seat, kind);
        }
    }

    /// A dial has ended without an outcome: who counted on it queues again.
    fn dial_ended(&mut self, seat: SeatId, dials: usize) {
        if let Some((queued, wakers)) = self.seats[seat].member.dial_ended(dials) {
            self.departed.extend(wakers.into_iter().map(|waker| Departing::Hasty(Wakes(Some(waker)))));
            self.sync(seat, queued);
        }
    }

    /// Makes a slot independent of a connection elsewhere, for which it is gone.
    pub(in crate::budget) fn untag(&mut self, tag: &Tag) -> Use {
        if tag.is_evicted() {
            self.each_above(tag.partition.account, |above| above.lingering -= 1);
        }
        let used = tag.used().unwrap_or(Use::NOTHING);
        tag.set(None);
        used
    }

    /// A slot to dial with. Only where one is free.
    pub(crate) fn take_slot(&mut self, partition: &Arc<Partition>, seat: SeatId) -> Slot {
        let slot = self.count_slot(Arc::clone(partition), seat);
        self.slots_changed(seat);
        slot
    }

    /// Whether there is a slot to dial with, and nobody waits who could have it.
    pub(crate) fn has_slot_at_once(&self, account: AccountId) -> bool {
        self.free(account) > 0 && self.dial_room(account) > 0 && !self.is_behind(account)
    }

    /// A slot for one who queues: to be followed by [`sync`](Self::sync).
    pub(super) fn count_slot(&mut self, partition: Arc<Partition>, seat: SeatId) -> Slot {
        self.take(partition.account, Kind::Dialing, 1);
        self.occupy(seat, Kind::Dialing);
        Slot::new(partition, Use::seated(seat, Kind::Dialing))
    }

    /// Puts a slot to another use, at the seat or outside of connections.
    pub(crate) fn reassign(&mut self, slot: &mut Slot, seat: Option<SeatId>, kind: Kind) {
        let used = seat.map_or(Use::Held(Weight::ONE), |seat| Use::seated(seat, kind));
        let before = match &mut slot.claim {
            Claim::Plain { used: before, .. } => std::mem::replace(before, used),
            Claim::Tagged(tag) => {
                let (before, partition) = (self.untag(tag), Arc::clone(&tag.partition));
                slot.claim = Claim::Plain { partition, used };
                before
            }
        };
        debug_assert_eq!(before.weight(), 1, "BUG: a connection has one slot");
        self.put_to_use(slot.claim.partition().account, before, used);
    }

    fn put_to_use(&mut self, account: AccountId, before: Use, after: Use) {
        if before != after {
            self.convert(account, before.kind(), after.kind());
            self.reseat(before, after);
        }
    }

    /// Puts the slot of a connection, or of a dial, to another use at its address.
    fn relabel(&mut self, lease: &mut Lease, kind: Kind) {
        match lease {
            Lease::Own(Claim::Plain { partition, used }) => {
                if let Use::Seated { seat, .. } = *used {
                    let before = std::mem::replace(used, Use::seated(seat, kind));
                    self.put_to_use(partition.account, before, *used);
                }
            }
            Lease::Own(Claim::Tagged(_)) => {}
            Lease::Elsewhere(elsewhere) => self.relabel_elsewhere(elsewhere, kind),
        }
    }

    fn relabel_elsewhere(&mut self, Elsewhere(tag): &Elsewhere, kind: Kind) {
        if let Some(before @ Use::Seated { seat, .. }) = tag.used() {
            tag.set(Some(kind));
            self.put_to_use(tag.partition.account, before, Use::seated(seat, kind));
        }
    }

    /// The dial is over: its slot is a connection's.
    pub(crate) fn connected(&mut self, lease: &mut Lease) {
        self.relabel(lease, Kind::Connected);
    }

    /// The dial is over, without a connection: its slot is no dial's any more, until it comes back.
    pub(crate) fn undialled(&mut self, lease: &mut Lease) {
        self.relabel(lease, Kind::Closing);
    }

    /// The slot comes back presently, if it is not elsewhere: nothing has to be closed for who could have it.
    pub(crate) fn returns(&mut self, lease: &mut Lease) {
        if let Lease::Own(Claim::Plain { partition, used: Use::Seated { evicted, .. } }) = lease {
            *evicted = true;
            self.each_above(partition.account, |above| above.evicting += 1);
        }
    }

    /// The same for a dial that was dropped, whose slot somebody else keeps.
    pub(crate) fn dial_dropped(&mut self, lease: &mut Lease) {
        let used = lease.used();
        self.relabel(lease, Kind::Closing);
        self.no_dial_any_more(used);
    }

    /// The connection, or the dial, has gone before its descriptor.
    pub(in crate::budget) fn outlived(&mut self, elsewhere: &Elsewhere) {
        let used = elsewhere.used();
        self.relabel_elsewhere(elsewhere, Kind::Closing);
        self.no_dial_any_more(used);
    }

    fn no_dial_any_more(&mut self, used: Use) {
        if let Use::Seated { seat, kind: Kind::Dialing, .. } = used {
            self.dial_ended(seat, self.dials_of(seat));
        }
    }

    /// The connection is being closed for somebody who waits.
    pub(crate) fn evicted(&mut self, lease: &mut Lease) {
        match lease {
            Lease::Own(_) => self.returns(lease),
            Lease::Elsewhere(Elsewhere(tag)) => {
                if tag.used().is_some() {
                    tag.set_evicted(true);
                    self.each_above(tag.partition.account, |above| above.lingering += 1);
                    self.lingering.push_back((clock::now(), Arc::downgrade(tag)));
                }
            }
        }
    }

    /// Of what was evicted, does not count on what has lingered for long: something else goes for who waits.
    pub(in crate::budget) fn give_up_lingering(&mut self) {
        let now = clock::now();
        while let Some((since, tag)) = self.lingering.front() {
            if let Some(tag) = tag.upgrade() {
                let is_counted_on = tag.is_evicted() && tag.used().is_some();
                let is_late = now.since(*since) >= LINGERS;
                if is_counted_on && is_late {
                    tag.set_evicted(false);
                    self.each_above(tag.partition.account, |above| above.lingering -= 1);
                }
                self.departed.push(Departing::Tag(tag)); // its end may be that of its budget
                if is_counted_on && !is_late {
                    return;
                }
            }
            self.lingering.pop_front();
        }
    }
}
