//! A budget or a child of one, as everybody who is of it has it.

use std::fmt;
use std::sync::Arc;

use super::books::{AccountId, ROOT};
use super::holds::Holds;
use super::ledger::Ledger;
use crate::limit::Sizing;
use crate::stats::{Event, Tally};
use crate::sync::Apart;

/// A budget or a child of one, as its handles, resources and slots hold it: on lines of its own, for every put reads it,
/// and every slot that comes or goes counts in the [`Arc`].
#[repr(align(128))]
pub(crate) struct Partition {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) account: AccountId,
    parent: Option<Arc<Partition>>,
    pub(crate) tally: Apart<Tally>,
}

impl Partition {
    pub(crate) fn root(
        limit: usize,
        max_dialing: usize,
        sizing: Option<Sizing>,
        holds: Option<Arc<Holds>>,
    ) -> Arc<Self> {
        let ledger = Arc::new(Ledger::new(sizing, holds));
        let partition = Self::open(ledger, None, 0, limit, max_dialing);
        debug_assert_eq!(partition.account, ROOT);
        partition
    }

    pub(crate) fn child(self: &Arc<Self>, floor: usize, limit: usize) -> Arc<Self> {
        Self::open(Arc::clone(&self.ledger), Some(Arc::clone(self)), floor, limit, usize::MAX)
    }

    fn open(
        ledger: Arc<Ledger>,
        parent: Option<Arc<Partition>>,
        floor: usize,
        limit: usize,
        max_dialing: usize,
    ) -> Arc<Self> {
        let above = parent.as_ref().map(|parent| parent.account);
        let account = ledger.lock().open_account(above, floor, limit, max_dialing);
        let partition = Arc::new(Self { ledger, account, parent, tally: Apart::default() });
        let mut books = partition.ledger.lock();
        books.set_partition(account, Arc::downgrade(&partition));
        if floor > 0 {
            // What somebody waits for may not be attainable any more: those behind it have their turn.
            partition.ledger.settle(books);
        } else {
            partition.ledger.publish(&books);
            drop(books);
        }
        partition
    }

    /// Counts an event here and in every budget above.
    pub(crate) fn count(&self, event: Event, n: u64) {
        let mut partition = Some(self);
        while let Some(at) = partition {
            at.tally.add(event, n);
            partition = at.parent.as_deref();
        }
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        let mut books = self.ledger.lock();
        if books.close_account(self.account) {
            self.ledger.settle(books);
        } else if self.parent.is_some() {
            self.ledger.publish(&books);
        }
    }
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partition").field("account", &self.account).finish_non_exhaustive()
    }
}
