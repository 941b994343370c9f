//! Who holds what, since when, and from where: kept only for budgets that were asked to, for every hold costs an
//! entry here. Knows holds as a place in the code, a task and a time, and whose they are as numbers.

use std::collections::HashMap;
use std::panic::Location;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use slab::Slab;
use tokio::runtime::Handle;
use tokio::task;
use tracing::field::{DisplayValue, display};

use super::books::{AccountId, ROOT};
use crate::address::Address;
use crate::clock::{self, Tick};

/// The place in the code that asked.
pub(crate) type Site = &'static Location<'static>;

/// What is held where the place is not known: its pool does not tell who called it.
pub(super) const POOLED: &str = "an object of a pool";

/// Holds are looked over this many times in the span after which they are warned of, and no more often than that.
const LOOKS: u32 = 4;
const LEAST_LOOK: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(crate) struct Holds {
    warning: Option<Duration>,
    /// Held for a few instructions; nothing of the user's runs under it, and nothing is logged.
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    held: Slab<Noted>,
    /// The account above each child's. A child that is gone stays until its number is another's: it holds nothing.
    above: HashMap<AccountId, AccountId>,
    /// A task looks for holds to warn of.
    watched: bool,
}

impl Notes {
    fn is_within(&self, account: AccountId, of: AccountId) -> bool {
        let mut lineage = std::iter::successors(Some(account), |below| self.above.get(below).copied());
        lineage.any(|account| account == of)
    }
}

/// A resource, told from others of its address by where it is in memory: while it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ResourceId(usize);

impl ResourceId {
    pub(crate) fn of<R: ?Sized>(resource: &R) -> Self {
        Self(std::ptr::from_ref(resource).cast::<()>().addr())
    }
}

/// One hold.
#[derive(Clone, Debug)]
pub(crate) struct Noted {
    account: AccountId,
    /// Whose connection it is, while it is one.
    pub(crate) resource: Option<ResourceId>,
    /// `None`: a slot held outside of connections.
    pub(crate) address: Option<Address>,
    pub(crate) slots: usize,
    pub(crate) since: Tick,
    /// `None`: it is [`POOLED`].
    pub(crate) site: Option<Site>,
    pub(crate) task: Option<task::Id>,
    warned: bool,
}

impl Noted {
    fn address(&self) -> Option<&str> {
        self.address.as_ref().map(Address::as_str)
    }

    /// The place, or what it is.
    fn from(&self) -> (Option<DisplayValue<Site>>, Option<&'static str>) {
        (self.site.map(display), self.site.is_none().then_some(POOLED))
    }
}

impl Holds {
    pub(crate) fn new(warning: Option<Duration>) -> Arc<Self> {
        Arc::new(Self { warning, notes: Mutex::default() })
    }

    /// A child's slots are its parent's too.
    pub(super) fn note_child(&self, child: AccountId, parent: AccountId) {
        self.notes.lock().above.insert(child, parent);
    }

    /// Its account is the budget's until it is said [whose](Hold::is_of) it is.
    pub(crate) fn note(
        self: &Arc<Self>,
        address: Option<Address>,
        slots: usize,
        site: impl Into<Option<Site>>,
    ) -> Hold {
        let noted = Noted {
            account: ROOT,
            resource: None,
            address,
            slots,
            since: clock::now(),
            site: site.into(),
            task: task::try_id(),
            warned: false,
        };
        let here = self.warning.and_then(|warning| Some((warning, Handle::try_current().ok()?)));
        let (key, unwatched) = {
            let mut notes = self.notes.lock();
            let unwatched = here.filter(|_| !notes.watched);
            notes.watched |= unwatched.is_some();
            (notes.held.insert(noted), unwatched)
        };
        if let Some((warning, runtime)) = unwatched {
            let watching = Watching { holds: Arc::downgrade(self), at_work: true };
            runtime.spawn(watching.work(warning));
        }
        Hold { holds: Arc::clone(self), key }
    }

    /// Those of an account and all below it, the longest first.
    pub(super) fn of(&self, account: AccountId) -> Vec<Noted> {
        let notes = self.notes.lock();
        let held = notes.held.iter().map(|(_, noted)| noted);
        let mut held: Vec<_> =
            held.filter(|noted| notes.is_within(noted.account, account)).cloned().collect();
        drop(notes);
        held.sort_by_key(|noted| noted.since);
        held
    }

    /// Warns of those that have become too long. `false`: there are none at all, and nobody looks any more.
    fn look_over(&self, warning: Duration) -> bool {
        let now = clock::now();
        let (any, long) = {
            let notes = &mut *self.notes.lock();
            let long = notes.held.iter_mut().map(|(_, noted)| noted);
            let long = long.filter(|noted| !noted.warned && now.since(noted.since) >= warning);
            let long: Vec<Noted> = long
                .map(|noted| {
                    noted.warned = true;
                    noted.clone()
                })
                .collect();
            // With the look itself: who notes a hold after it begins anew.
            notes.watched = !notes.held.is_empty();
            (notes.watched, long)
        };
        for noted in long {
            let (address, slots, held_for) = (noted.address(), noted.slots, now.since(noted.since));
            let (site, what) = noted.from();
            tracing::warn!(address, slots, site, what, ?held_for, "held for long");
        }
        any
    }
}

/// The one task that looks for long holds.
struct Watching {
    holds: Weak<Holds>,
    at_work: bool,
}

impl Watching {
    async fn work(mut self, warning: Duration) {
        while self.at_work {
            tokio::time::sleep((warning / LOOKS).max(LEAST_LOOK)).await;
            let Some(holds) = self.holds.upgrade() else { return };
            self.at_work = holds.look_over(warning);
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // Its runtime has ended, if it is still at work.
        if let Some(holds) = self.holds.upgrade().filter(|_| self.at_work) {
            holds.notes.lock().watched = false;
        }
    }
}

/// Keeps a hold noted for as long as it lasts. Goes before the partition and the resource that it names.
#[derive(Debug)]
pub(crate) struct Hold {
    holds: Arc<Holds>,
    key: usize,
}

impl Hold {
    /// It is of this account, and of a connection of this resource if it names one.
    pub(crate) fn is_of(&self, account: AccountId, resource: Option<ResourceId>) {
        let noted = &mut self.holds.notes.lock().held[self.key];
        (noted.account, noted.resource) = (account, resource);
    }

    /// So many of its slots, which go their own way, from the same place and time.
    pub(super) fn split(&mut self, slots: usize) -> Hold {
        let held = &mut self.holds.notes.lock().held;
        let noted = &mut held[self.key];
        noted.slots -= slots;
        let split = Noted { slots, ..noted.clone() };
        Hold { holds: Arc::clone(&self.holds), key: held.insert(split) }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let noted = self.holds.notes.lock().held.remove(self.key);
        let Some(warning) = self.holds.warning else { return };
        let held_for = clock::now().since(noted.since);
        if held_for >= warning {
            let (address, slots) = (noted.address(), noted.slots);
            let (site, what) = noted.from();
            tracing::warn!(address, slots, site, what, ?held_for, "given back after being held for long");
        }
    }
}
