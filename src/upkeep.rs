//! What goes on in the background: the limit growing back after the process ran out of descriptors, and idle
//! connections kept in stock. Tasks live only while there is something to do, and hold no budget alive.

use std::sync::{Arc, Weak};

use tokio::runtime::Handle;

use crate::budget::GROWTH_INTERVAL;
use crate::budget::ledger::{Ledger, Partition};
use crate::resource::attempt::Job;
use crate::resource::shared::Shared;
use crate::sync::Ordering;

/// A dial found no descriptor: lowers the limit, and closes something idle. `false`: nothing is.
pub(crate) fn make_room<C>(shared: &Shared<C>) -> bool {
    let ledger = &shared.partition().ledger;
    ledger.ran_out();
    grow_back(shared.partition());
    ledger.evict_one()
}

/// Sees to it that the limit grows back, if it was lowered, and no task of a living runtime does already.
pub(crate) fn grow_back(partition: &Arc<Partition>) {
    if !partition.ledger.is_lowered() {
        return;
    }
    let Ok(runtime) = Handle::try_current() else { return };
    let Some(growing) = Growing::begin(&partition.ledger) else { return };
    runtime.spawn(async move {
        while growing.step() {
            tokio::time::sleep(GROWTH_INTERVAL).await;
        }
    });
}

/// The one task that lets a ledger's limit grow; makes room for another when it ends, however it ends.
struct Growing(Weak<Ledger>);

impl Growing {
    fn begin(ledger: &Arc<Ledger>) -> Option<Self> {
        let first = !ledger.growing.swap(true, Ordering::AcqRel);
        first.then(|| Self(Arc::downgrade(ledger)))
    }

    /// Serves whom the limit of now allows for. `false`: it is whole again.
    fn step(&self) -> bool {
        let Some(ledger) = self.0.upgrade() else { return false };
        ledger.settle(ledger.lock());
        ledger.is_lowered()
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        if let Some(ledger) = self.0.upgrade() {
            ledger.growing.store(false, Ordering::Release);
        }
    }
}

/// Dials until as many connections rest as are to be kept in stock: one after the other, with free slots only,
/// and none after a failure until the next call.
#[inline]
pub(crate) fn restock<C: Send + 'static>(shared: &Arc<Shared<C>>) {
    if shared.settings.min_idle > 0 && shared.lacks_idle() {
        dial_for_stock(shared);
    }
}

#[cold]
fn dial_for_stock<C: Send + 'static>(shared: &Arc<Shared<C>>) {
    let Ok(runtime) = Handle::try_current() else { return };
    let Some(slot) = shared.spare_slot() else { return };
    let job =
        Job { slot, initiator: None, generation: shared.generation(), timeout: shared.settings.dial_timeout };
    let attempt = Arc::clone(&shared.dialer).attempt(Arc::clone(shared), job);
    let (shared, before) = (Arc::downgrade(shared), shared.dial_failures());
    runtime.spawn(async move {
        attempt.await;
        if let Some(shared) = shared.upgrade().filter(|shared| shared.dial_failures() == before) {
            restock(&shared);
        }
    });
}
