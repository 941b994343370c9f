//! What goes on in the background: the limit growing back after the process ran out of descriptors, and idle
//! connections kept in stock. Tasks live only while there is something to do, and hold no budget alive.

use std::sync::{Arc, Weak};

use tokio::runtime::Handle;

use crate::budget::GROWTH_INTERVAL;
use crate::budget::ledger::{Ledger, Partition};
use crate::clock;
use crate::resource::attempt::Job;
use crate::resource::shared::Shared;

/// A dial found no descriptor: lowers the limit, and closes something idle. `false`: nothing is.
pub(crate) fn make_room<C>(shared: &Shared<C>) -> bool {
    let ledger = &shared.partition().ledger;
    let mut books = ledger.lock();
    let first = !books.audit.is_lowered();
    books.ran_out(clock::now());
    drop(books);
    if first {
        grow_back(shared.partition());
    }
    ledger.evict_one()
}

/// Gives back, step by step, what running out of descriptors took.
fn grow_back(partition: &Arc<Partition>) {
    let Ok(runtime) = Handle::try_current() else { return };
    let ledger: Weak<Ledger> = Arc::downgrade(&partition.ledger);
    runtime.spawn(async move {
        loop {
            tokio::time::sleep(GROWTH_INTERVAL).await;
            let Some(ledger) = ledger.upgrade() else { return };
            let mut books = ledger.lock();
            books.grow(clock::now());
            let whole = !books.audit.is_lowered();
            ledger.settle(books);
            if whole {
                return;
            }
        }
    });
}

/// Dials until as many connections rest as are to be kept in stock: one after the other, with free slots only,
/// and none after a failure until the next call.
pub(crate) fn restock<C: Send + 'static>(shared: &Arc<Shared<C>>) {
    if !shared.lacks_idle() {
        return;
    }
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
