//! Who holds what, since when, and from where: kept only for budgets that were asked to, for every hold costs an
//! entry here. Knows holds as a place in the code, a task and a time.

use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use slab::Slab;
use tokio::runtime::Handle;
use tokio::task;

use crate::address::Address;
use crate::clock::{self, Tick};

/// The place in the code that asked.
pub(crate) type Site = &'static Location<'static>;

/// Holds are looked over this many times in the span after which they are warned of, and no more often than that.
const LOOKS: u32 = 4;
const LEAST_LOOK: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(crate) struct Holds {
    warning: Option<Duration>,
    /// Held for a few instructions; nothing of the user's runs under it, and nothing is logged.
    held: Mutex<Slab<Noted>>,
    /// A task looks for holds to warn of.
    watched: AtomicBool,
}

/// One hold.
#[derive(Clone, Debug)]
pub(crate) struct Noted {
    /// `None`: a slot held outside of connections.
    pub(crate) address: Option<Address>,
    pub(crate) slots: usize,
    pub(crate) since: Tick,
    pub(crate) site: Site,
    pub(crate) task: Option<task::Id>,
    warned: bool,
}

impl Holds {
    pub(crate) fn new(warning: Option<Duration>) -> Arc<Self> {
        Arc::new(Self { warning, held: Mutex::default(), watched: AtomicBool::new(false) })
    }

    pub(crate) fn note(self: &Arc<Self>, address: Option<Address>, slots: usize, site: Site) -> Hold {
        let noted = Noted { address, slots, since: clock::now(), site, task: task::try_id(), warned: false };
        let key = self.held.lock().insert(noted);
        self.watch();
        Hold { holds: Arc::clone(self), key }
    }

    /// All of them, the longest first.
    pub(crate) fn all(&self) -> Vec<Noted> {
        let mut all: Vec<Noted> = self.held.lock().iter().map(|(_, noted)| noted.clone()).collect();
        all.sort_by_key(|noted| noted.since);
        all
    }

    fn watch(self: &Arc<Self>) {
        let Some(warning) = self.warning else { return };
        let Ok(runtime) = Handle::try_current() else { return };
        if self.watched.swap(true, Ordering::Relaxed) {
            return;
        }
        let watching = Watching(Arc::downgrade(self));
        runtime.spawn(async move {
            loop {
                tokio::time::sleep((warning / LOOKS).max(LEAST_LOOK)).await;
                let Some(holds) = watching.0.upgrade() else { return };
                if !holds.look_over(warning) {
                    return;
                }
            }
        });
    }

    /// Warns of those that have become too long. `false`: there are none at all.
    fn look_over(&self, warning: Duration) -> bool {
        let now = clock::now();
        let (any, long) = {
            let mut held = self.held.lock();
            let long = held.iter_mut().map(|(_, noted)| noted);
            let long = long.filter(|noted| !noted.warned && now.since(noted.since) >= warning);
            let long: Vec<Noted> = long
                .map(|noted| {
                    noted.warned = true;
                    noted.clone()
                })
                .collect();
            (!held.is_empty(), long)
        };
        for Noted { address, slots, since, site, .. } in long {
            let address = address.as_ref().map(Address::as_str);
            tracing::warn!(address, slots, %site, held_for = ?now.since(since), "held for long");
        }
        any
    }
}

/// The one task that looks for long holds.
struct Watching(Weak<Holds>);

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(holds) = self.0.upgrade() {
            holds.watched.store(false, Ordering::Relaxed);
        }
    }
}

/// Keeps a hold noted for as long as it lasts.
#[derive(Debug)]
pub(crate) struct Hold {
    holds: Arc<Holds>,
    key: usize,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Noted { address, slots, since, site, warned, .. } = self.holds.held.lock().remove(self.key);
        if warned {
            let address = address.as_ref().map(Address::as_str);
            let held_for = clock::now().since(since);
            tracing::warn!(address, slots, %site, ?held_for, "given back after being held for long");
        }
    }
}
