//! Who may open a descriptor: budgets, and the ways to get a slot from one. The public face; the books
//! behind it are in [`ledger`]. Knows nothing of connections.

use std::fmt;
use std::panic::Location;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use crate::error::{AcquireError, GlobalAlreadySet, LimitError};
use crate::limit::{self, Descriptors, Sizing};
use crate::stats::BudgetStats;

mod acquire;
mod audit;
pub(crate) mod books;
mod close;
mod explain;
mod holds;
pub(crate) mod ledger;
pub(crate) mod member;
mod members;
pub(crate) mod partition;
pub(crate) mod queue;
mod reclaim;
pub(crate) mod slot;
pub(crate) mod victim;

pub use acquire::Acquire;
pub(crate) use audit::GROWTH_INTERVAL;
pub use close::CloseReport;
pub(crate) use close::{report, until_empty};
pub use explain::{Explain, Holder};
pub(crate) use holds::{Hold, ResourceId, Site};
use partition::Partition;
pub use reclaim::{Reclaim, Registration};
pub use slot::{Held, Slot};

static GLOBAL: OnceLock<Budget> = OnceLock::new();

/// How many descriptors may be open through fdpool: one for the whole process unless you make more.
///
/// Connections take their slots by themselves, and whatever else opens descriptors can take some with
/// [`acquire`](Self::acquire). When all slots are taken, the idle connection that is least likely to be wanted
/// next is closed for whoever needs one; when nothing is idle, callers wait in turn.
///
/// A handle: cheap to clone, and all clones are the same budget.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use fdpool::Budget;
///
/// let budget = Budget::new(2);
/// let one = budget.acquire().await?;
/// let two = budget.acquire().await?;
/// assert!(budget.try_acquire().is_none());
/// drop(one);
/// assert!(budget.try_acquire().is_some());
/// # drop(two); Ok(()) }
/// ```
#[derive(Clone)]
#[doc(alias = "Pool")]
#[doc(alias = "Semaphore")]
#[doc(alias = "resourcepool")]
pub struct Budget {
    pub(crate) partition: Arc<Partition>,
}

impl Budget {
    /// The budget that everything shares which is given no other.
    ///
    /// Sized at first use: the soft `RLIMIT_NOFILE`, less what the process has open then, less a reserve (an
    /// eighth of the limit, 4 to 64). To size it otherwise, call [`set_global`](Self::set_global) before.
    ///
    /// If the limit cannot be read, or the open descriptors not be counted, a limit of 64 is assumed and said
    /// so in a `tracing` warning.
    #[doc(alias = "GetResourcePool")]
    pub fn global() -> &'static Budget {
        GLOBAL.get_or_init(|| {
            Budget::builder().build().unwrap_or_else(|error| {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "sizing the global budget; taking 64 slots"
                );
                Budget::new(64)
            })
        })
    }

    /// Makes `budget` the one that [`global`](Self::global) returns.
    ///
    /// # Errors
    ///
    /// If that was set or used before: nobody's connections can be moved.
    pub fn set_global(budget: Budget) -> Result<(), GlobalAlreadySet> {
        GLOBAL.set(budget).map_err(|_| GlobalAlreadySet)
    }

    /// A budget of `limit` slots.
    pub fn new(limit: usize) -> Budget {
        Self { partition: Partition::root(limit, usize::MAX, None, None) }
    }

    /// A budget sized by the process's limit, or by you.
    pub fn builder() -> BudgetBuilder {
        BudgetBuilder::default()
    }

    /// Slots as configured, or as computed when the budget was made.
    pub fn limit(&self) -> usize {
        self.partition.ledger.lock().limit(self.partition.account)
    }

    /// Slots that may be used now: [`limit`](Self::limit), less what the rest of the process has open by now beyond what
    /// it had, if the limit was computed from the process's; and less what a recent lack of descriptors has taken off. Slots
    /// of the process's other budgets are not counted in that rest: choose limits that fit beside each other.
    ///
    /// The rest of the process is counted when somebody has to wait or to dial, and while the limit is lowered: at most every
    /// 10 ms where the kernel tells the number (Linux 6.2 and newer), else every second. A dial that finds no descriptor
    /// (`EMFILE`, `ENFILE`) lowers the limit to what is open; it has grown back 1.6 s after the last such dial. A task of the
    /// dial's runtime sees to that (if that runtime ends, the limit is back at once); outside of a runtime, a thread.
    pub fn effective_limit(&self) -> usize {
        self.partition.ledger.lock().effective_limit(self.partition.account)
    }

    /// Changes the limit. Takes effect at once: growing serves those who wait, shrinking closes idle
    /// connections, and those in use when they are put. Nothing in use is cut off.
    ///
    /// A waiting [`acquire`](Self::acquire) or [`blocking_acquire`](Self::blocking_acquire) for more slots than the new
    /// limit gets [`AcquireError::Exhausted`] when its turn comes. With a limit of 0 all of them get it at once, except
    /// those behind a waiting [`get`](crate::ConnResource::get): waiting gets go on waiting, in case the limit is raised
    /// again, until their own timeouts. Later callers are refused at once.
    pub fn set_limit(&self, limit: usize) {
        let ledger = &self.partition.ledger;
        let mut books = ledger.lock();
        books.set_limit(self.partition.account, limit);
        ledger.settle(books);
    }

    /// Waits for a slot. First come, first served, in turn with the addresses that wait for connections.
    ///
    /// Without a timeout unless one is set: see [`Acquire`].
    #[track_caller]
    pub fn acquire(&self) -> Acquire<'_> {
        self.acquire_many(1)
    }

    /// Waits for `n` slots: all or none, as one [`Slot`] of that weight.
    ///
    /// Nobody who came later is served before, so that small requests cannot starve a large one. A task that
    /// needs several descriptors at once takes them this way: taken one by one, such tasks can wait for each
    /// other for ever.
    ///
    /// # Errors
    ///
    /// [`AcquireError::Exhausted`] at once if `n` is over the limit, or over what the rest of the process leaves of it at two
    /// looks in a row (see [`effective_limit`](Self::effective_limit)), or 2⁴⁸ and more (2¹⁶ where a word is 32 bits). The same when
    /// its turn comes, if that has become so. [`AcquireError::Closed`] if the budget is closed.
    #[track_caller]
    pub fn acquire_many(&self, n: usize) -> Acquire<'_> {
        Acquire::new(&self.partition, n, Location::caller())
    }

    /// A slot, if there is one at once: never waits, and never overtakes who waits. May close an idle connection for it; where
    /// that one's descriptor is in [other hands](crate::DialContext::hold), there is none all the same.
    #[track_caller]
    pub fn try_acquire(&self) -> Option<Slot> {
        acquire::at_once(&self.partition, 1, Location::caller())
    }

    /// Blocks the thread until there is a slot. For threads outside of a runtime, and for those of
    /// [`spawn_blocking`](tokio::task::spawn_blocking). In async code, await [`acquire`](Self::acquire) instead, or take
    /// what [`try_acquire`](Self::try_acquire) gives.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Panics
    ///
    /// If it has to wait, and the thread is one that drives tasks: in an async function, or in what such a function
    /// calls. Whom it waits for could then not run. Tokio's own blocking calls do the same.
    #[track_caller]
    pub fn blocking_acquire(&self) -> Result<Slot, AcquireError> {
        self.acquire().blocking()
    }

    /// A part of this budget: never more than `at_most` of its slots.
    ///
    /// Its slots are slots of this budget too. Its callers take turns among themselves; towards this budget's own callers
    /// the child counts as one. When the child is at its limit, only connections of its own are closed for it.
    pub fn child(&self, at_most: usize) -> Budget {
        self.part(0, at_most)
    }

    /// A [`child`](Self::child) for which `at_least` of this budget's slots are kept, whoever else waits: nobody else
    /// is granted them, and no idle connection of the child is closed for others of this budget that would leave it with
    /// fewer; a limit that shrinks takes those last. Slots that others had when the child was made come to it as they come
    /// back. At most `at_most` are kept, and no more than this budget's limit when the child is made.
    ///
    /// What is kept for a child is lost to the others while it does not use it. A request of theirs for more than is left by
    /// the floors is refused: a new one at once, an [`acquire`](Self::acquire) that waits when its turn comes. A get that
    /// waits already goes on waiting.
    ///
    /// When the floors of several children are together more than this budget has, because its limit has fallen, say,
    /// they are kept evenly: for each, up to its floor, as many as can be kept for all. What is left over then is for
    /// whoever of them asks first.
    ///
    /// The floor is never higher than the child's own [limit](Self::set_limit). It ends when the child is
    /// [closed](Self::close), and when the last of its handles, resources, registrations and slots is gone: a
    /// [`ConnResource`](crate::ConnResource) keeps its budget, and so the floor.
    pub fn child_with(&self, at_least: usize, at_most: usize) -> Budget {
        self.part(at_least.min(at_most).min(self.limit()), at_most)
    }

    fn part(&self, floor: usize, at_most: usize) -> Budget {
        let partition = self.partition.child(floor, at_most);
        if let Some(holds) = &partition.ledger.holds {
            holds.note_child(partition.account, self.partition.account);
        }
        Self { partition }
    }

    /// Closes the budget and its children, for good: no new connections and slots ([`GetError::Closed`](crate::GetError::Closed),
    /// [`AcquireError::Closed`]), who waits is told so, idle connections close, and those in use when they are put. Waits
    /// until nothing is out any more, for at most `grace`, and reports what still is.
    ///
    /// May be called at any time, from any thread, more than once, also outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// The budget is closed at the first poll; dropping the future ends the wait.
    ///
    /// # Panics
    ///
    /// In a tokio runtime without a time driver.
    pub async fn close(&self, grace: Duration) -> CloseReport {
        close::close(&self.partition, grace).await
    }

    /// Lets another pool take part: its idle descriptors are asked for when somebody needs a slot.
    ///
    /// The budget keeps only a weak reference; the registration ends when it is dropped.
    pub fn register(&self, participant: &Arc<impl Reclaim + 'static>) -> Registration {
        let participant: Weak<dyn Reclaim> = Arc::<_>::downgrade(participant) as Weak<dyn Reclaim>;
        Registration::new(&self.partition, participant)
    }

    /// The numbers of this moment. Takes time in proportion to the addresses that have connections.
    pub fn stats(&self) -> BudgetStats {
        explain::stats(&self.partition)
    }

    /// Who holds slots, who waits, and for how long: to be displayed or logged.
    pub fn explain(&self) -> Explain {
        Explain::of(&self.partition)
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.partition.ledger.lock().counts(self.partition.account);
        f.debug_struct("Budget").field("counts", &counts).finish_non_exhaustive()
    }
}

/// Two handles are equal if they are of the same budget.
impl PartialEq for Budget {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.partition, &other.partition)
    }
}

impl Eq for Budget {}

/// Sizes a [`Budget`].
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), fdpool::LimitError> {
/// use fdpool::Budget;
///
/// // All that the hard limit allows, less 100 descriptors for the rest of the program.
/// let budget = Budget::builder().raise_soft_limit(true).reserve(100).max_dialing(64).build()?;
/// assert!(budget.limit() > 0);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "build() makes the budget"]
pub struct BudgetBuilder {
    reserve: Option<usize>,
    raise_soft_limit: bool,
    limit: Option<usize>,
    max_dialing: Option<usize>,
    track_holds: bool,
    hold_warning: Option<Duration>,
}

impl BudgetBuilder {
    /// Descriptors to leave to the rest of the process, besides those open now. Default: an eighth of the soft
    /// limit, at least 4 and at most 64. Without effect if a [`limit`](Self::limit) is given.
    pub fn reserve(mut self, descriptors: usize) -> Self {
        self.reserve = Some(descriptors);
        self
    }

    /// Raises the process's soft `RLIMIT_NOFILE` to the hard one first. Default: no, since programs that use
    /// `select(2)` break above 1024.
    pub fn raise_soft_limit(mut self, raise: bool) -> Self {
        self.raise_soft_limit = raise;
        self
    }

    /// So many slots, whatever the process's limit is. Default: computed from it.
    pub fn limit(mut self, slots: usize) -> Self {
        self.limit = Some(slots);
        self
    }

    /// How many dials may be under way at once, of all addresses together. At least 1. Default: as many as there are slots.
    pub fn max_dialing(mut self, dials: usize) -> Self {
        self.max_dialing = Some(dials);
        self
    }

    /// Keeps note of who holds each connection and slot: the place in the code that called
    /// [`get`](crate::ConnResource::get) or [`acquire`](Budget::acquire), since when, and in which task.
    /// [`explain`](Budget::explain) and [`close`](Budget::close) name them. Costs some 100 ns for each hold. Default: no.
    ///
    /// Objects of deadpool's pools are held while they are out of the pool. Where they were asked for is not known.
    pub fn track_holds(mut self, track: bool) -> Self {
        self.track_holds = track;
        self
    }

    /// Warns, by a `tracing` event, of what is held for longer than this: once, and once more when it comes back.
    /// [Tracks](Self::track_holds) holds for it. Default: no warning.
    ///
    /// What is still held is looked for by a task, four times in this span, at most every 10 ms. It runs on the tokio
    /// runtime in which something was taken first, which needs its time driver, until nothing is held. Where no runtime
    /// was about, or while it is not driven, long holds are told only when they come back; if it has ended, the next
    /// runtime in which something is taken looks after all of them.
    pub fn hold_warning(mut self, after: Duration) -> Self {
        self.hold_warning = Some(after);
        self
    }

    /// Makes the budget. A computed limit is never less than one slot.
    ///
    /// # Errors
    ///
    /// If the soft limit cannot be raised. For a computed limit also if it cannot be read, or the open descriptors not
    /// be counted.
    pub fn build(self) -> Result<Budget, LimitError> {
        let max_dialing = self.max_dialing.unwrap_or(usize::MAX).max(1);
        if self.raise_soft_limit {
            limit::raise_soft_limit()?;
        }
        let (limit, sizing) = match self.limit {
            Some(limit) => (limit, None),
            None => {
                let Descriptors { soft, hard, open } = Descriptors::measure()?;
                let reserve = self.reserve.unwrap_or_else(|| limit::default_reserve(soft));
                (limit::slots(soft, hard, open, reserve), Some(Sizing::new(reserve, open)))
            }
        };
        let tracks = self.track_holds || self.hold_warning.is_some();
        let holds = tracks.then(|| holds::Holds::new(self.hold_warning));
        Ok(Budget { partition: Partition::root(limit, max_dialing, sizing, holds) })
    }
}
