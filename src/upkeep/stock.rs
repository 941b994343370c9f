//! Dials for the idle connections that an address is to have in stock.

use std::sync::{Arc, Weak};

use tokio::runtime::Handle;

use super::see_to_slots;
use crate::budget::slot::Slot;
use crate::clock::{self, Tick};
use crate::resource::attempt::Ended;
use crate::resource::shared::{Restock, Shared};

/// Dials until as many connections rest as are to be kept in stock: one after the other, with free slots only. Where dials
/// fail, or their connections end before they have served, or there is no slot, with pauses.
#[inline]
pub(crate) fn restock<C: Send + 'static>(shared: &Arc<Shared<C>>) {
    if shared.setting(|settings| settings.min_idle) > 0 {
        see_to_stock(shared);
    }
}

/// The same for a get that took one of those that rest.
#[cold]
pub(crate) fn restock_after_use<C: Send + 'static>(shared: &Arc<Shared<C>>) {
    if shared.stock_serves() {
        restock(shared);
    }
}

#[cold]
fn see_to_stock<C: Send + 'static>(shared: &Arc<Shared<C>>) {
    let Ok(runtime) = Handle::try_current() else { return };
    match shared.next_for_stock() {
        Restock::Nothing => {}
        Restock::Dial(slot) => dial_for_stock(shared, slot, &runtime),
        Restock::Later(end) => restock_at(shared, end, &runtime),
    }
}

fn dial_for_stock<C: Send + 'static>(shared: &Arc<Shared<C>>, slot: Slot, runtime: &Handle) {
    see_to_slots(shared.partition());
    let attempt = shared.attempt(shared.begin_dial(slot), None, Some(runtime.id()));
    let stocking = Stocking { shared: Arc::downgrade(shared), of_use: false };
    let dial = async move {
        let mut stocking = stocking; // all of it: a field alone would be a copy
        // CANCEL: who drops this drops the dial, which gives its slot back, and then says so to the stock.
        stocking.of_use = attempt.await == Ended::OfUse;
    };
    shared.detach(Box::pin(dial), runtime);
}

/// A dial for the stock. When it ends, be it by a panic, the next one begins; or is slept for, if it was of no use.
struct Stocking<C: Send + 'static> {
    shared: Weak<Shared<C>>,
    of_use: bool,
}

impl<C: Send + 'static> Drop for Stocking<C> {
    fn drop(&mut self) {
        let shared = self.shared.upgrade();
        if let Some(shared) = shared.filter(|shared| shared.stock_dialled(self.of_use)) {
            restock(&shared);
        }
    }
}

fn restock_at<C: Send + 'static>(shared: &Arc<Shared<C>>, end: Tick, runtime: &Handle) {
    // A timer that is a moment early would find the clock a tick behind.
    let due = clock::deadline(end.since(clock::now()) + clock::resolution());
    let sleeper = Sleeper { shared: Arc::downgrade(shared), end };
    runtime.spawn(async move {
        if let Some(due) = due {
            tokio::time::sleep_until(due).await;
        }
        let shared = sleeper.shared.clone();
        drop(sleeper);
        if let Some(shared) = shared.upgrade() {
            restock(&shared);
        }
    });
}

/// Somebody who sleeps until then; or does so no more, when dropped: its time has come, or its runtime ended.
struct Sleeper<C> {
    shared: Weak<Shared<C>>,
    end: Tick,
}

impl<C> Drop for Sleeper<C> {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.stock_slept(self.end);
        }
    }
}
