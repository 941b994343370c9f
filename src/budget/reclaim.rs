//! Other crates with idle descriptors of their own under the same budget: who they are, and whose turn it is
//! to let go of one. They are asked outside of all locks.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use super::partition::Partition;
use crate::stats::Event;
use crate::sync::{Ordering, fence};

/// A pool of another kind that keeps idle descriptors under a shared [`Budget`](crate::Budget).
///
/// Register it with [`Budget::register`](crate::Budget::register): when somebody needs a slot and none is free, the pools
/// of the budget and fdpool's own addresses are drawn from at random, each in proportion to how much it has idle, and the one
/// that is drawn is asked to close one of its idle descriptors.
///
/// Both methods run outside of fdpool's locks, in whatever call finds that a slot is wanted: anybody's `get` or
/// `acquire`, but also a `put`, a `close`, the drop of a [`Conn`](crate::Conn), a [`Slot`](crate::Slot) or a
/// [`Held`](crate::Held), [`set_limit`](crate::Budget::set_limit) and [`became_idle`](Registration::became_idle). So a
/// participant calls nothing of fdpool, and puts or drops nothing of it, while it holds a lock that `idle` or
/// `reclaim_one` takes; neither method waits; and when something of its own becomes idle, it says so with
/// [`Registration::became_idle`]. A panic in either is caught and counted, and taken as "had none".
pub trait Reclaim: Send + Sync {
    /// How many descriptors it could close now.
    fn idle(&self) -> usize;

    /// Closes one idle descriptor and drops its slot. `false`: it had none.
    fn reclaim_one(&self) -> bool;
}

/// Keeps a participant registered; see [`Budget::register`](crate::Budget::register). Ends when dropped.
#[must_use = "the registration ends when this is dropped"]
pub struct Registration {
    partition: Arc<Partition>,
    id: u64,
}

impl Registration {
    pub(super) fn new(partition: &Arc<Partition>, participant: Weak<dyn Reclaim>) -> Self {
        let id = partition.ledger.lock().register(partition.account, participant);
        let registration = Self { partition: Arc::clone(partition), id };
        registration.became_idle(); // it may have something already
        registration
    }

    /// Something of the participant's became idle: if somebody waits for a slot, it is asked for it.
    ///
    /// Costs next to nothing when nobody waits. Call it after the idle one can be seen by
    /// [`Reclaim::reclaim_one`], and without locks.
    pub fn became_idle(&self) {
        // Pairs with the fence of whoever is about to ask the participants: either they see what became idle,
        // or we see that they wait.
        fence(Ordering::SeqCst);
        let ledger = &self.partition.ledger;
        if ledger.is_pressed() {
            ledger.tidings();
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let removed = self.partition.ledger.lock().unregister(self.partition.account, self.id);
        drop(removed); // outside of the lock: it may be the last trace of the participant
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Those registered with one account.
#[derive(Default)]
pub(crate) struct Participants {
    list: Vec<(u64, Weak<dyn Reclaim>)>,
    last_id: u64,
}

impl Participants {
    pub(super) fn add(&mut self, participant: Weak<dyn Reclaim>) -> u64 {
        self.last_id += 1;
        self.list.push((self.last_id, participant));
        self.last_id
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Weak<dyn Reclaim>> {
        let index = self.list.iter().position(|(other, _)| *other == id)?;
        Some(self.list.swap_remove(index).1)
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn alive(&self) -> impl Iterator<Item = Arc<dyn Reclaim>> {
        self.list.iter().filter_map(|(_, participant)| participant.upgrade())
    }
}

/// Everybody who may have something idle, when a slot is needed.
pub(super) struct Asked {
    pub(super) participants: Vec<Arc<dyn Reclaim>>,
    /// Addresses of ours that may have something idle.
    pub(super) own: usize,
    pub(super) random: u64,
    /// As of when they are asked.
    pub(super) tidings: u64,
}

/// Whose idle descriptor goes.
pub(super) enum Order {
    OwnFirst,
    /// The participants from this one on, in turn; then our own.
    ParticipantsFrom(usize),
}

impl Asked {
    /// Draws by how much each has idle.
    pub(super) fn draw(&self, partition: &Partition) -> Order {
        fence(Ordering::SeqCst); // see `Registration::became_idle`
        let idle: Vec<usize> =
            self.participants.iter().map(|participant| guarded(partition, || participant.idle())).collect();
        let total = idle.iter().fold(self.own, |sum, idle| sum.saturating_add(*idle));
        let mut draw = (self.random % total.max(1) as u64) as usize;
        if draw < self.own {
            return Order::OwnFirst;
        }
        draw -= self.own;
        for (index, idle) in idle.iter().enumerate() {
            if draw < *idle {
                return Order::ParticipantsFrom(index);
            }
            draw -= idle;
        }
        Order::ParticipantsFrom(0)
    }

    /// Asks each participant once, from the given one on, until one lets go.
    pub(super) fn ask(&self, partition: &Partition, from: usize) -> bool {
        let count = self.participants.len();
        (0..count)
            .map(|step| &self.participants[(from + step) % count])
            .any(|participant| guarded(partition, || participant.reclaim_one()))
    }
}

/// What user code returns, or the default if it panics.
fn guarded<R: Default>(partition: &Partition, user: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(user)).unwrap_or_else(|_| {
        partition.count(Event::Panic, 1);
        R::default()
    })
}
