//! Who is in line at an address, what they want and are given. All of it behind the address's lock but the callers' cells;
//! what is kept where several are in line is in [`rare`](super::rare).

use std::sync::Arc;
use std::task::Waker;

use tokio::runtime;

use super::State;
use super::rare::{Detached, Rare};
use crate::budget::books::Bounds;
use crate::budget::queue::{Cell, Place};
use crate::budget::slot::Slot;
use crate::clock::Tick;
use crate::conn::Entry;
use crate::error::DialError;
use crate::resource::pace::{Limits, Pace};

/// Who is in line at an address.
#[derive(Default)]
pub(super) enum Callers<C> {
    /// As a rule. Can become Alone or Several.
    #[default]
    Nobody,
    /// The one who got in line last waits for its own dial, and all is well. Can become Nobody or Several.
    Alone { caller: Arc<Caller<C>>, generation: u32 },
    /// Nobody, too, while there is something to be kept. Can become Nobody.
    Several(Box<Rare<C>>),
}

/// A caller of `get`, as it and those who serve it know it.
pub(crate) struct Caller<C> {
    pub(crate) cell: Cell<Grant<C>>,
    pub(crate) wants: Wants,
    /// Does not wait to be served.
    pub(crate) immediate: bool,
}

/// What is of use to a caller.
#[derive(Clone, Copy)]
pub(crate) struct Wants {
    pub(crate) runtime: Option<runtime::Id>,
    /// None that has served or rested before.
    pub(crate) fresh: bool,
    /// Nothing less than that the address is well.
    pub(crate) patient: bool,
}

/// A caller of `get` in line.
pub(crate) struct Waiter<C> {
    pub(crate) caller: Arc<Caller<C>>,
    /// The caller's: so whoever looks for one to serve need not wait for the memory of others.
    pub(crate) wants: Wants,
    /// The resource's when it got in line: it wants none that is older.
    pub(crate) generation: u32,
    /// Its own dial has ended, for the good of another caller; it counts on that one's.
    pub(crate) orphaned: bool,
    /// When its wait ends, if it has no timer while it queues here: it is woken some time before. `NEVER`: it has one, or needs
    /// none.
    pub(crate) wait_ends: Tick,
}

impl<C> Waiter<C> {
    /// One that gets in line.
    pub(super) fn new(caller: &Arc<Caller<C>>, generation: u32) -> Self {
        let (caller, wants) = (Arc::clone(caller), caller.wants);
        Self { caller, wants, generation, orphaned: false, wait_ends: Tick::NEVER }
    }

    /// Whether a connection is of use to this caller.
    pub(super) fn can_use(&self, entry: &Entry<C>) -> bool {
        !entry.busy && self.suits(entry)
    }

    /// Whether it would be if it were not busy.
    pub(super) fn suits(&self, entry: &Entry<C>) -> bool {
        self.wants.includes(entry, self.generation)
    }
}

impl Wants {
    fn includes<C>(self, entry: &Entry<C>, generation: u32) -> bool {
        let known = entry.runtime.is_none() || entry.runtime == self.runtime;
        // Generations wrap.
        let young = entry.record.generation.wrapping_sub(generation) as i32 >= 0;
        known && young && (!self.fresh || entry.is_new())
    }
}

impl<C> Clone for Waiter<C> {
    fn clone(&self) -> Self {
        Self { caller: Arc::clone(&self.caller), ..*self }
    }
}

/// For what a caller stood in line.
pub(super) enum Stood {
    Dialing,
    Queued,
}

/// What a caller is given.
pub(crate) enum Grant<C> {
    Conn(Box<Entry<C>>),
    /// A slot to dial with.
    Slot(Slot),
    Failed(Failure),
}

impl<C> Grant<C> {
    pub(crate) fn is_conn(&self) -> bool {
        matches!(self, Grant::Conn(_))
    }

    pub(crate) fn into_conn(self) -> Option<Box<Entry<C>>> {
        match self {
            Grant::Conn(entry) => Some(entry),
            Grant::Slot(_) | Grant::Failed(_) => None,
        }
    }
}

/// Why a caller gets nothing.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// A dial's.
    Error(DialError),
    /// A dial's that took too long; or so its initiator says, and nobody else. With what is known of why.
    Timeout { hasty: bool, cause: Option<DialError> },
    /// There was no dial: the address pauses.
    Paused(DialError),
    /// The budget, or the resource, is closed.
    Closed,
    /// The budget has not as many slots, whatever comes back.
    Never,
}

impl<C> State<C> {
    /// What is kept where several are in line: made, if it is not there.
    #[inline]
    pub(super) fn ensure_rare(&mut self) -> &mut Rare<C> {
        self.ensure_rare_and_limits().0
    }

    #[inline]
    pub(super) fn ensure_rare_and_limits(&mut self) -> (&mut Rare<C>, &Limits) {
        if self.several().is_none() {
            self.have_room_for_several();
        }
        match &mut self.callers {
            Callers::Several(rare) => (rare, &self.settings.dialing),
            Callers::Nobody | Callers::Alone { .. } => unreachable!("BUG: there is room for several"),
        }
    }

    #[cold]
    fn have_room_for_several(&mut self) {
        let mut rare = Box::new(Rare::new(&self.settings.dialing));
        if let Callers::Alone { caller, generation } = &self.callers {
            rare.dialing.insert(self.last_place, Waiter::new(caller, *generation));
        }
        self.callers = Callers::Several(rare);
    }

    /// The same, if anybody is in line, or something is kept of those who were.
    pub(super) fn rare_if_any(&mut self) -> Option<(&mut Rare<C>, &Limits)> {
        (!self.is_deserted()).then(|| self.ensure_rare_and_limits())
    }

    /// What is kept where more than one has been in line, or it went badly.
    pub(super) fn several(&self) -> Option<&Rare<C>> {
        match &self.callers {
            Callers::Several(rare) => Some(rare),
            Callers::Nobody | Callers::Alone { .. } => None,
        }
    }

    pub(super) fn several_mut(&mut self) -> Option<&mut Rare<C>> {
        match &mut self.callers {
            Callers::Several(rare) => Some(rare),
            Callers::Nobody | Callers::Alone { .. } => None,
        }
    }

    /// Nobody is in line, and nothing is kept of those who were.
    pub(super) fn is_deserted(&self) -> bool {
        matches!(self.callers, Callers::Nobody)
    }

    /// A place behind everybody in line, or the one that a caller had before.
    fn place(&mut self, former: Option<Place>) -> (Place, &mut Rare<C>) {
        self.ensure_rare(); // whoever is alone here has the last one
        let place = former.unwrap_or_else(|| {
            self.last_place += 1;
            self.last_place
        });
        (place, self.ensure_rare())
    }

    /// Whether something has come to rest that this caller may want, since it looked as of so many rests.
    pub(super) fn has_for(&self, caller: &Caller<C>, rests: u32) -> bool {
        self.idle.rests != rests && !caller.wants.fresh
    }

    /// Gets in line for a dial of its own, which is about to begin, or goes on.
    pub(super) fn awaits_dial(&mut self, caller: &Arc<Caller<C>>, former: Option<Place>) -> Place {
        let generation = self.generation;
        if self.is_deserted() && former.is_none() {
            self.callers = Callers::Alone { caller: Arc::clone(caller), generation };
            self.last_place += 1;
            return self.last_place;
        }
        let (place, rare) = self.place(former);
        rare.dialing.insert(place, Waiter::new(caller, generation));
        place
    }

    /// Gets in line for a slot, or for the address.
    pub(super) fn awaits_slot(
        &mut self,
        caller: &Arc<Caller<C>>,
        wait_ends: Tick,
        former: Option<Place>,
    ) -> Place {
        let waiter = Waiter { wait_ends, ..Waiter::new(caller, self.generation) };
        let (place, rare) = self.place(former);
        rare.queued.insert(place, waiter);
        place
    }

    /// Takes the one out of the line who is alone there, for what its own dial has made.
    pub(super) fn take_alone(
        &mut self,
        initiator: Option<Place>,
        entry: &Entry<C>,
    ) -> Option<Arc<Caller<C>>> {
        match std::mem::take(&mut self.callers) {
            Callers::Alone { caller, generation }
                if initiator == Some(self.last_place) && caller.wants.includes(entry, generation) =>
            {
                Some(caller)
            }
            others => {
                self.callers = others;
                None
            }
        }
    }

    /// Nobody queues, if nobody is here.
    pub(super) fn queued(&self) -> usize {
        self.several().map_or(0, |rare| rare.queued.len())
    }

    pub(super) fn dialing(&self) -> usize {
        match &self.callers {
            Callers::Nobody => 0,
            Callers::Alone { .. } => 1,
            Callers::Several(rare) => rare.dialing.len(),
        }
    }

    /// Everybody in line.
    pub(super) fn callers(&self) -> impl Iterator<Item = &Caller<C>> {
        let alone = match &self.callers {
            Callers::Alone { caller, .. } => Some(&**caller),
            Callers::Nobody | Callers::Several(_) => None,
        };
        let lines = self.several().into_iter().flat_map(|rare| rare.queued.iter().chain(rare.dialing.iter()));
        alone.into_iter().chain(lines.map(|(_, waiter)| &*waiter.caller))
    }

    /// Takes a caller out of the line that it stands in.
    pub(super) fn step_out(&mut self, place: Place) -> Option<Stood> {
        match &mut self.callers {
            Callers::Alone { .. } if place == self.last_place => {
                self.callers = Callers::Nobody;
                Some(Stood::Dialing)
            }
            Callers::Nobody | Callers::Alone { .. } => None,
            Callers::Several(rare) => match rare.queued.remove(place) {
                Some(_) => Some(Stood::Queued),
                None => rare.dialing.remove(place).map(|_| Stood::Dialing),
            },
        }
    }

    /// Tells everybody in line that it is in vain. Returns whom to wake after the locks.
    ///
    /// Not those who have been granted a slot and do not know yet: they ask before they dial with it.
    pub(super) fn fail_all(&mut self, failure: &Failure) -> Vec<Waker> {
        let callers = self.take_callers(|caller| caller.cell.is_waiting());
        callers.iter().filter_map(|caller| caller.cell.grant(Grant::Failed(failure.clone()))).collect()
    }

    fn take_callers(&mut self, of: impl Fn(&Caller<C>) -> bool) -> Vec<Arc<Caller<C>>> {
        match &mut self.callers {
            Callers::Nobody => Vec::new(),
            Callers::Alone { caller, .. } => {
                let alone = of(caller).then(|| Arc::clone(caller));
                if alone.is_some() {
                    self.callers = Callers::Nobody;
                }
                alone.into_iter().collect()
            }
            Callers::Several(rare) => {
                let of = |waiter: &Waiter<C>| of(&waiter.caller);
                let waiters = rare.queued.remove_all(of).into_iter().chain(rare.dialing.remove_all(of));
                waiters.map(|waiter| waiter.caller).collect()
            }
        }
    }

    /// How many dials may be under way.
    pub(super) fn may_dial(&self) -> usize {
        let limits = &self.settings.dialing;
        self.several().map_or_else(|| Pace::new(limits).allowed(limits), |rare| rare.pace.allowed(limits))
    }

    /// What the books are told of that, and of how many connections there may be.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds::new(self.settings.max_conns, self.may_dial())
    }

    /// Dials that go on by themselves.
    pub(super) fn take_detached(&mut self) -> Vec<Detached> {
        self.several_mut().map_or_else(Vec::new, |rare| std::mem::take(&mut rare.detached))
    }

    pub(super) fn last_error(&self) -> Option<DialError> {
        self.several()?.last_error.clone()
    }

    /// Takes out what is not needed until somebody dials or waits again, to be dropped after the lock.
    #[inline]
    pub(super) fn take_spent(&mut self) -> Option<Box<Rare<C>>> {
        if !self.several().is_some_and(Rare::is_spent) {
            return None;
        }
        match std::mem::take(&mut self.callers) {
            Callers::Several(rare) => Some(rare),
            Callers::Nobody | Callers::Alone { .. } => None,
        }
    }
}
