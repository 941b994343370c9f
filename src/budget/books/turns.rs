//! Who is served next: first come, first served within an address, in turn between addresses.

use std::sync::Arc;
use std::task::Waker;

use super::evict::{Lack, Lacks, Whose};
use super::{Account, AccountId, Applicant, Books, Departing, ROOT, SeatId, Served, Step, Turn, Wants};
use crate::budget::queue::Place;
use crate::budget::slot::{Kind, Slot, Use, Weight};

/// What those may have who come after somebody who lacks room. Less from one to the next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Open {
    /// Nobody lacks room yet.
    All,
    /// A child, slots below its floor: what is lacked are others.
    Floors,
    /// A child, what is kept for it alone: somebody gathers slots for a floor.
    Kept,
}

/// How far a walk along those who wait in an account has come.
pub(super) struct Turns {
    ring: usize,
    dialers: usize,
    /// A dial may begin: else who wants to dial is passed over.
    dials: bool,
}

impl Turns {
    pub(super) fn new(dials: bool) -> Self {
        Self { ring: 0, dialers: 0, dials }
    }

    pub(super) fn next(&mut self, account: &Account) -> Option<(Place, Turn)> {
        let ring = account.ring.get(self.ring).copied();
        let dialer = account.dialers.get(self.dialers).filter(|_| self.dials);
        let dialer = dialer.map(|(place, seat)| (*place, Turn::Seat(*seat)));
        let first = [ring, dialer].into_iter().flatten().min_by_key(|(place, _)| *place)?;
        match first.1 {
            Turn::Seat(_) => self.dialers += 1,
            Turn::Applicants | Turn::Child(_) => self.ring += 1,
        }
        Some(first)
    }
}

impl Books {
    /// Puts a caller of `acquire` in line. Fails if it could never be served.
    pub(crate) fn apply(&mut self, id: AccountId, applicant: Applicant) -> Option<Place> {
        if self.is_closed(id) || applicant.weight > Weight::MOST || self.is_in_vain(id, applicant.weight) {
            return None;
        }
        let place = self.next_place();
        let weight = applicant.weight;
        let account = &mut self.accounts[id];
        account.applicants.insert(place, applicant);
        if account.applicants_turn.is_none() {
            account.applicants_turn = Some(place);
            account.ring.insert(place, Turn::Applicants);
        }
        self.wants_changed(id, Wants::default(), Wants::applied(weight));
        Some(place)
    }

    /// Takes a caller of `acquire` out of the line, if it still stands there.
    pub(crate) fn withdraw(&mut self, id: AccountId, place: Place) -> Option<Applicant> {
        let account = &mut self.accounts[id];
        let applicant = account.applicants.remove(place)?;
        if account.applicants.is_empty()
            && let Some(turn) = account.applicants_turn.take()
        {
            account.ring.remove(turn);
        }
        self.wants_changed(id, Wants::applied(applicant.weight), Wants::default());
        Some(applicant)
    }

    pub(in crate::budget) fn serve(&mut self) -> Step {
        match self.serve_account(ROOT, usize::MAX, &mut Lacks::new()) {
            Served::Granted(waker) => Step::Wake(waker),
            Served::HeldUpAbove(_) | Served::Nobody => Step::Rest,
        }
    }

    /// Grants to the first waiter, in turn, who can be granted what it waits for. `short` collects whom a lack of
    /// room holds up, and where.
    pub(super) fn serve_account(&mut self, id: AccountId, above: usize, short: &mut Lacks) -> Served {
        let stock = self.stock(id);
        let account = &self.accounts[id];
        let has_floors =
            account.floored > 0 && account.children.iter().any(|child| self.share(*child).floor > 0);
        let mut open = Open::All;
        let mut turns = Turns::new(self.dial_room(id) > 0);
        while let Some((place, turn)) = turns.next(&self.accounts[id]) {
            let here = match (turn, open) {
                (Turn::Applicants | Turn::Seat(_), Open::All) => stock.common(),
                (Turn::Applicants | Turn::Seat(_), Open::Floors | Open::Kept) => continue,
                (Turn::Child(child), open) => {
                    let share = self.share(child);
                    match open {
                        Open::All => stock.for_child(share),
                        Open::Floors => stock.for_child(share).min(share.unmet()),
                        Open::Kept => stock.kept_for(share),
                    }
                }
            };
            let weight = match turn {
                Turn::Applicants => self.accounts[id].applicants.front().map_or(0, |(_, first)| first.weight),
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
            if turn == Turn::Applicants && self.is_in_vain(id, weight) {
                return Served::Granted(self.refuse(id));
            }
            if weight > here {
                let child = match turn {
                    Turn::Child(child) => Some(child),
                    Turn::Applicants | Turn::Seat(_) => None,
                };
                let share = child.map(|child| self.share(child));
                let whose = match (child, share) {
                    (Some(child), Some(share)) if weight <= share.unmet() => Whose::Floor(child),
                    _ => Whose::Common(child),
                };
                if open == Open::All || share.is_some_and(|share| share.floor > 0) {
                    short.push(Lack { account: id, whose });
                }
                if !has_floors {
                    return Served::Nobody;
                }
                open = match whose {
                    Whose::Floor(_) => Open::Kept,
                    _ => open.max(Open::Floors),
                };
                continue;
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
            if ring.remove(place).is_some() {
                ring.insert(next, Turn::Child(child));
                self.pass_on(parent);
            }
        }
    }

    fn grant_seat(&mut self, id: SeatId) -> Option<Waker> {
        let partition = Arc::clone(self.seats[id].member.partition());
        let slot = self.count_slot(partition, id);
        let (waker, queued) = self.seats[id].member.serve(slot).unwrap_or_else(|slot| {
            // Never seen; a panic here would have the slot come back under the lock.
            self.departed.push(Departing::Slot(slot));
            (None, 0)
        });
        self.sync(id, queued);
        self.had_turn(id);
        waker
    }

    fn grant_applicant(&mut self, id: AccountId) -> Option<Waker> {
        let applicant = self.pop_applicant(id)?;
        self.take(id, Kind::Held, applicant.weight);
        let partition =
            self.accounts[id].partition.upgrade().expect("BUG: a caller waits at a budget without handles");
        applicant.cell.grant(Some(Slot::new(partition, Use::held(applicant.weight))))
    }

    /// Tells a caller that its request cannot be granted any more.
    pub(super) fn refuse(&mut self, id: AccountId) -> Option<Waker> {
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
            self.pass_on(id);
        }
        Some(applicant)
    }
}
