//! Waiting for slots outside of connections: the `Acquire` future.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::books::Applicant;
use super::holds::Site;
use super::partition::Partition;
use super::queue::{Cell, Place};
use super::slot::Slot;
use crate::clock::{self, Tick};
use crate::error::{AcquireDetails, AcquireError};
use crate::patience::Patience;
use crate::stats::Event;
use crate::{runtime, upkeep};

/// Waits for slots; made by [`Budget::acquire`](crate::Budget::acquire) and
/// [`acquire_many`](crate::Budget::acquire_many).
///
/// The place in the line is taken at the first poll; at the next one, if the task has used up its share of tokio's
/// cooperative budget.
///
/// # Cancel safety
///
/// Dropping it loses the place in the line; a slot granted but not yet received goes to the next in line.
///
/// # Errors
///
/// [`AcquireError::Exhausted`] if there are not as many slots in time, at once with
/// [`immediate`](Self::immediate), or ever; [`AcquireError::Cancelled`] if the token fired; [`AcquireError::Closed`] if
/// the budget is closed, or closes meanwhile.
///
/// # Panics
///
/// If a timeout is set, it has to wait, and it is polled outside of a tokio runtime with a time driver.
#[must_use = "futures do nothing unless polled"]
pub struct Acquire<'a> {
    partition: &'a Arc<Partition>,
    weight: usize,
    immediate: bool,
    patience: Patience<'a>,
    waiting: Option<Waiting>,
    /// Takes part in tokio's cooperative budget.
    cooperates: bool,
    /// Who called, if that is known.
    site: Option<Site>,
}

/// From the first poll on.
struct Waiting {
    cell: Arc<Cell<Option<Slot>>>,
    place: Place,
}

impl<'a> Acquire<'a> {
    pub(super) fn new(partition: &'a Arc<Partition>, weight: usize, site: Site) -> Self {
        Self {
            partition,
            weight,
            immediate: false,
            patience: Patience::default(),
            waiting: None,
            cooperates: true,
            site: Some(site),
        }
    }

    /// For an object of a pool, on behalf of that pool's caller: the place of this call says nothing of who holds the slot,
    /// and [`track_holds`](crate::BudgetBuilder::track_holds) does not name it.
    pub fn for_a_pool(mut self) -> Self {
        self.site = None;
        self
    }

    /// Ends the wait when `token` fires.
    pub fn cancel(mut self, token: &'a CancellationToken) -> Self {
        self.patience.cancel(token);
        self
    }

    /// How long to wait, from the first poll. Default: for ever.
    pub fn wait_timeout(mut self, timeout: Duration) -> Self {
        self.patience.limit(timeout);
        self
    }

    /// Does not wait: [`AcquireError::Exhausted`] if the slots are not to be had at once.
    pub fn immediate(mut self) -> Self {
        self.immediate = true;
        self
    }

    /// Waits on this thread.
    #[track_caller]
    pub(super) fn blocking(mut self) -> Result<Slot, AcquireError> {
        self.cooperates = false;
        match Pin::new(&mut self).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(acquired) => acquired,
            Poll::Pending => {
                forbid_in_async_code();
                pollster::block_on(self)
            }
        }
    }

    fn details(&self, timed_out: bool, began: Tick) -> Box<AcquireDetails> {
        let counts = self.partition.ledger.lock().counts_of_late(self.partition.account);
        let elapsed = clock::now().since(began);
        tracing::debug!(wanted = self.weight, ?elapsed, %counts, timed_out, "slot refused");
        Box::new(AcquireDetails { wanted: self.weight, elapsed, counts, timed_out })
    }

    /// Not to be had: now, or ever.
    fn refused(&self, began: Tick) -> AcquireError {
        let details = self.details(false, began);
        match self.partition.ledger.lock().is_closed(self.partition.account) {
            true => AcquireError::Closed { details },
            false => AcquireError::Exhausted { details },
        }
    }
}

impl Future for Acquire<'_> {
    type Output = Result<Slot, AcquireError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if this.waiting.is_none() {
            let now = clock::now();
            if this.weight == 0 {
                return Poll::Ready(Ok(Slot::empty(this.partition)));
            }
            if this.patience.is_cancelled() {
                return Poll::Ready(Err(AcquireError::Cancelled { details: this.details(false, now) }));
            }
            if this.cooperates {
                std::task::ready!(runtime::consume_budget(cx));
            }
            upkeep::see_to_slots(this.partition);
            let hopeless = this.immediate && !may_have(this.partition, this.weight);
            let waiting = if hopeless { None } else { enqueue(this.partition, this.weight, now) };
            match waiting {
                Some(waiting) => this.waiting = Some(waiting),
                None => return Poll::Ready(Err(this.refused(now))),
            }
            if !this.waiting.as_ref().is_some_and(|waiting| waiting.cell.is_waiting()) {
                // Granted at once.
            } else if this.immediate {
                let granted = this.waiting.take().and_then(|waiting| waiting.leave(this.partition));
                let granted = granted.map(|slot| slot.noted(this.site));
                return Poll::Ready(granted.ok_or_else(|| this.refused(now)));
            } else {
                this.partition.count(Event::Wait, 1);
                upkeep::see_to_slots(this.partition); // what is evicted for it may not go
            }
        }
        let Some(waiting) = &this.waiting else { unreachable!("BUG: in line since the first poll") };
        let began = waiting.cell.since;
        match waiting.cell.poll(cx) {
            Poll::Ready(granted) => {
                this.waiting = None;
                let granted = granted.map(|slot| slot.noted(this.site));
                return Poll::Ready(granted.ok_or_else(|| this.refused(began)));
            }
            Poll::Pending => {}
        }
        let timed_out = std::task::ready!(this.patience.poll(cx)).timed_out();
        if let Some(slot) = this.waiting.take().and_then(|waiting| waiting.leave(this.partition)) {
            return Poll::Ready(Ok(slot.noted(this.site))); // granted meanwhile
        }
        let details = this.details(timed_out, began);
        Poll::Ready(Err(match timed_out {
            true => AcquireError::Exhausted { details },
            false => AcquireError::Cancelled { details },
        }))
    }
}

/// Panics where blocking would stop the thread from driving the tasks it waits for. Tokio tells nobody whether it is so,
/// but its own blocking calls look first.
#[track_caller]
fn forbid_in_async_code() {
    let (news, receiver) = tokio::sync::oneshot::channel();
    let _sent = news.send(());
    let _told = receiver.blocking_recv();
}

fn enqueue(partition: &Partition, weight: usize, now: Tick) -> Option<Waiting> {
    let cell = Arc::new(Cell::new(now, None));
    let ledger = &partition.ledger;
    let mut books = ledger.lock();
    let place = books.apply(partition.account, Applicant { cell: Arc::clone(&cell), weight })?;
    ledger.settle(books);
    Some(Waiting { cell, place })
}

/// Whether so many slots may be free, or idle: else nothing is to be closed for who does not wait.
fn may_have(partition: &Partition, weight: usize) -> bool {
    weight == 1 || partition.ledger.lock().may_have(partition.account, weight)
}

/// What can be had without waiting, and without overtaking who waits.
pub(super) fn at_once(partition: &Arc<Partition>, weight: usize, site: Site) -> Option<Slot> {
    upkeep::see_to_slots(partition);
    enqueue(partition, weight, clock::now())?.leave(partition).map(|slot| slot.noted(Some(site)))
}

impl Waiting {
    /// Out of the line, with what was granted.
    fn leave(self, partition: &Partition) -> Option<Slot> {
        let ledger = &partition.ledger;
        let mut books = ledger.lock();
        let withdrawn = books.withdraw(partition.account, self.place);
        ledger.settle(books); // a large request may have held up the others
        drop(withdrawn);
        self.cell.leave().flatten()
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            drop(waiting.leave(self.partition));
        }
    }
}

impl fmt::Debug for Acquire<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acquire")
            .field("weight", &self.weight)
            .field("immediate", &self.immediate)
            .field("waiting", &self.waiting.is_some())
            .finish_non_exhaustive()
    }
}
