//! Dials for the idle connections that an address is to have in stock.

use std::sync::Arc;

use tokio::runtime::Handle;

use super::grow_back;
use crate::budget::slot::Slot;
use crate::clock::{self, Tick};
use crate::resource::attempt::Ended;
use crate::resource::shared::{Lack, Shared};

/// Dials until as many connections rest as are to be kept in stock: one after the other, with free slots only. Where dials
/// fail, or their connections end before they have served, or there is no slot, with pauses.
#[inline]
pub(crate) fn restock<C: Send + 'static>(shared: &Arc<Shared<C>>) {
    if shared.setting(|settings| settings.min_idle) > 0 {
        see_to_stock(shared);
    }
}

#[cold]
fn see_to_stock<C: Send + 'static>(shared: &Arc<Shared<C>>) {
    let Ok(runtime) = Handle::try_current() else { return };
    match shared.lack() {
        Lack::Nothing => {}
        Lack::Dial(slot) => dial_for_stock(shared, slot, &runtime),
        Lack::Pause(end) => restock_at(shared, end, &runtime),
    }
}

fn dial_for_stock<C: Send + 'static>(shared: &Arc<Shared<C>>, slot: Slot, runtime: &Handle) {
    grow_back(shared.partition());
    let attempt = shared.attempt(shared.begin_dial(slot), None, Some(runtime.id()));
    let (stocked, before) = (Arc::downgrade(shared), shared.resting());
    let dial = async move {
        let ended = attempt.await;
        let Some(shared) = stocked.upgrade() else { return };
        // Who was served would have dialled for itself.
        let helped = ended == Ended::Served || ended == Ended::Unwanted && shared.resting() > before;
        if helped || shared.stock_failed() {
            restock(&shared);
        }
    };
    shared.detach(Box::pin(dial), runtime);
}

fn restock_at<C: Send + 'static>(shared: &Arc<Shared<C>>, end: Tick, runtime: &Handle) {
    // A timer that is a moment early would find the clock a tick behind.
    let pause = end.since(clock::now()) + clock::resolution();
    let Some(due) = clock::deadline(pause) else { return };
    let stocked = Arc::downgrade(shared);
    runtime.spawn(async move {
        tokio::time::sleep_until(due).await;
        if let Some(shared) = stocked.upgrade() {
            restock(&shared);
        }
    });
}
