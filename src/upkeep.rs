//! What goes on in the background: the limit growing back after the process ran out of descriptors, and idle
//! connections kept in stock. Tasks live only while there is something to do, and hold no budget alive.

use std::sync::{Arc, Weak};

use tokio::runtime::Handle;

use crate::budget::GROWTH_INTERVAL;
use crate::budget::ledger::{Ledger, NOBODY_GROWS, Partition};
use crate::clock;
use crate::resource::attempt::Job;
use crate::resource::shared::Shared;
use crate::sync::Ordering;

/// When a task that lets a limit grow has not been seen for so long, another takes its place.
const STALE_AFTER_MS: u32 = 500;

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

/// The one task that lets a ledger's limit grow.
struct Growing(Weak<Ledger>);

impl Growing {
    /// `None`: another one does, and has done so of late. One whose runtime is not driven is replaced.
    fn begin(ledger: &Arc<Ledger>) -> Option<Self> {
        let now = clock::now().millis();
        let last = ledger.grown.load(Ordering::Relaxed);
        let idle = last == NOBODY_GROWS || now.wrapping_sub(last as u32) > STALE_AFTER_MS;
        let first = idle && ledger.note_growth(last, u64::from(now));
        first.then(|| Self(Arc::downgrade(ledger)))
    }

    /// Serves whom the limit of now allows for. `false`: it is whole again.
    fn step(&self) -> bool {
        let Some(ledger) = self.0.upgrade() else { return false };
        ledger.grown.store(u64::from(clock::now().millis()), Ordering::Relaxed);
        ledger.settle(ledger.lock());
        ledger.is_lowered()
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        if let Some(ledger) = self.0.upgrade() {
            ledger.grown.store(NOBODY_GROWS, Ordering::Relaxed);
            if ledger.is_lowered() {
                // Its runtime has ended, and who waits may have nobody else to wake it. The next dial that finds no
                // descriptor lowers the limit again, on a runtime that lives.
                ledger.restore();
            }
        }
    }
}

/// Dials until as many connections rest as are to be kept in stock: one after the other, with free slots only,
/// and none after one that did not add to the stock, until the next call.
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
    let (shared, before) = (Arc::downgrade(shared), shared.resting());
    runtime.spawn(async move {
        attempt.await;
        // Only as long as it helps.
        if let Some(shared) = shared.upgrade().filter(|shared| shared.resting() > before) {
            restock(&shared);
        }
    });
}
