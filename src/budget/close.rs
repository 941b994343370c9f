//! The end of a budget, or of one address: nobody gets in any more, and what is in use is waited for.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::explain::{Holder, holders};
use super::holds::ResourceId;
use super::ledger::Ledger;
use super::partition::Partition;
use crate::sync::wake_all;
use crate::text::Number;

/// What was still open when the grace of a close was over. Made by [`Budget::close`](crate::Budget::close) and
/// [`ConnResource::close`](crate::ConnResource::close).
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), fdpool::AcquireError> {
/// use fdpool::Budget;
/// use std::time::Duration;
///
/// let budget = Budget::new(2);
/// let slot = budget.acquire().await?;
/// let report = budget.close(Duration::from_millis(1)).await;
/// assert_eq!((report.is_clean(), report.still_open), (false, 1));
/// drop(slot);
/// assert!(budget.close(Duration::ZERO).await.is_clean());
/// assert!(budget.acquire().await.is_err());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CloseReport {
    /// Slots that were still out: connections in use, dials under way, slots held.
    pub still_open: usize,
    /// Who has them. If the budget [tracks](crate::BudgetBuilder::track_holds) holds, those first, the longest at the
    /// front, with the place in the code; then the addresses with most of the rest.
    pub holders: Vec<Holder>,
}

impl CloseReport {
    /// Whether everything was closed in time.
    pub fn is_clean(&self) -> bool {
        self.still_open == 0
    }
}

impl fmt::Display for CloseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() {
            return f.write_str("closed");
        }
        write!(f, "{} still out", Number(self.still_open, "slot"))?;
        for holder in &self.holders {
            write!(f, "\n  {holder}")?;
        }
        Ok(())
    }
}

/// Closes a budget and all below it.
pub(super) async fn close(partition: &Arc<Partition>, grace: Duration) -> CloseReport {
    let ledger = &partition.ledger;
    let (wakers, members) = ledger.lock().end(partition.account);
    wake_all(wakers);
    // Addresses first: what rests there is not evicted for anybody.
    for member in members {
        member.shut();
    }
    {
        let mut books = ledger.lock();
        books.ended(partition.account);
        ledger.settle(books);
    }
    let open = || ledger.lock().slots_out(partition.account);
    until_empty(ledger, grace, || open() == 0).await;
    CloseReport { still_open: open(), holders: holders(partition, None) }
}

/// Waits until what was closed is empty, for at most as long as the grace is.
pub(crate) async fn until_empty(ledger: &Ledger, grace: Duration, is_empty: impl Fn() -> bool) {
    let _closing = ledger.begin_closing();
    let emptied = async {
        loop {
            // Enlisted before the look, so that no news is missed in between.
            let mut news = std::pin::pin!(ledger.closings.notified());
            news.as_mut().enable();
            if is_empty() {
                return;
            }
            news.await;
        }
    };
    if is_empty() || grace.is_zero() {
        return;
    }
    if Handle::try_current().is_ok() {
        let _in_time = tokio::time::timeout(grace, emptied).await;
    } else {
        either(emptied, alarm(grace)).await;
    }
}

/// What is still open of one resource.
pub(crate) fn report(partition: &Partition, resource: ResourceId, still_open: usize) -> CloseReport {
    CloseReport { still_open, holders: holders(partition, Some(resource)) }
}

async fn either(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    let (mut one, mut other) = (std::pin::pin!(one), std::pin::pin!(other));
    std::future::poll_fn(|cx| match one.as_mut().poll(cx) {
        std::task::Poll::Ready(()) => std::task::Poll::Ready(()),
        std::task::Poll::Pending => other.as_mut().poll(cx),
    })
    .await;
}

/// A timer for where there is no runtime: a thread of its own.
async fn alarm(after: Duration) {
    let (ring, rung) = tokio::sync::oneshot::channel::<()>();
    // Ends when this future is dropped, and the thread with it.
    let (_waits, wanted) = std::sync::mpsc::channel::<()>();
    let spawned = std::thread::Builder::new().name("fdpool-close".into()).spawn(move || {
        let _timed_out = wanted.recv_timeout(after);
        drop(ring);
    });
    if spawned.is_ok() {
        let _rung = rung.await;
    }
}
