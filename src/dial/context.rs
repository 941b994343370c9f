//! What a dial is given: its slot, and the way to more. All that a dialer ever sees of the budget.

use std::sync::Arc;
use std::{fmt, io};

use crate::budget::Budget;
use crate::budget::slot::{Held, Lease, Slot};
use crate::error::DialError;
use crate::sync::Mutex;

/// What a dial is given: one slot, held already, and the way to more.
///
/// A dialer that opens one descriptor and returns what owns it needs nothing of this.
pub struct DialContext {
    budget: Budget,
    lease: Mutex<Parts>,
    /// What is to be told if its time is over before its end.
    progress: Mutex<Option<Progress>>,
}

/// How far a dial has come.
#[derive(Debug)]
enum Progress {
    Doing(&'static str),
    Failed(DialError),
}

/// Who has the lease of a dial.
enum Parts {
    /// The dial alone; `None` once a connection has it. Can become Shared.
    Alone(Option<Lease>),
    Shared(SharedLease),
}

/// `None` once a connection has it.
pub(crate) type SharedLease = Arc<Mutex<Option<Lease>>>;

impl Parts {
    fn with<R>(&mut self, f: impl FnOnce(&mut Option<Lease>) -> R) -> R {
        match self {
            Parts::Alone(lease) => f(lease),
            Parts::Shared(lease) => f(&mut lease.lock()),
        }
    }

    fn share(&mut self) -> SharedLease {
        match self {
            Parts::Alone(lease) => {
                let lease = Arc::new(Mutex::new(lease.take()));
                *self = Parts::Shared(Arc::clone(&lease));
                lease
            }
            Parts::Shared(lease) => Arc::clone(lease),
        }
    }
}

/// Part in the slot of a dial, for work that cannot be cancelled and has descriptors open: a name being looked
/// up on another thread. Made by [`DialContext::share_slot`].
///
/// A dial that fails, or is dropped, before all its shares keeps its slot until the last of them is dropped. It is no dial
/// any more: the slot counts as [`closing`](crate::BudgetStats::closing).
#[must_use = "a share that is dropped keeps nothing"]
pub struct SlotShare {
    _lease: SharedLease,
}

impl fmt::Debug for SlotShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotShare").finish_non_exhaustive()
    }
}

impl DialContext {
    pub(crate) fn new(budget: Budget, slot: Slot) -> Self {
        let lease = Mutex::new(Parts::Alone(Some(Lease::from(slot))));
        Self { budget, lease, progress: Mutex::new(None) }
    }

    /// A context of no resource, to test a dialer with. It has a slot, and 63 more.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use fdpool::{Address, Dial, DialContext, dial::Tcp};
    ///
    /// let refused = Tcp::default().dial(&Address::from("127.0.0.1:1"), &DialContext::detached()).await;
    /// assert!(refused.is_err());
    /// # }
    /// ```
    pub fn detached() -> Self {
        let budget = Budget::new(64);
        let slot = budget.try_acquire().expect("BUG: a budget of 64 has a slot");
        Self::new(budget, slot)
    }

    /// A slot for a further descriptor, of a racing attempt say. May close an idle connection for it, never
    /// waits, and is not counted in the address's `max_conns`. Give it back when the attempt is closed.
    #[track_caller]
    pub fn try_extra_slot(&self) -> Option<Slot> {
        self.budget.try_acquire()
    }

    /// Moves the dial's slot into the value that owns the descriptor, where that is not the connection itself:
    /// the socket of a hyper connection, which a task of its own drives.
    ///
    /// Such a handle is often not ready for its next use at the moment its last answer has been read; wait for that
    /// (hyper's `SendRequest::ready`) before it is put, or it rests as [`Busy`](crate::Fitness::Busy), and is closed if
    /// a caller waits for it at that moment.
    ///
    /// The slot then stays where the descriptor is. A connection that is closed, or evicted, while its
    /// descriptor is still open counts as closing until the value is dropped. Whoever it was evicted for waits for that for
    /// 250 ms; then another goes.
    ///
    /// # Panics
    ///
    /// If called twice: a dial has one slot. Ask for [more](Self::try_extra_slot).
    pub fn hold<Io>(&self, io: Io) -> Held<Io> {
        let slot = self.lease.lock().with(|lease| match lease.take() {
            Some(Lease::Own(claim)) => {
                let (slot, elsewhere) = Slot::from(claim).tagged();
                *lease = Some(Lease::Elsewhere(elsewhere));
                Some(slot)
            }
            other => {
                *lease = other;
                None
            }
        });
        slot.expect("DialContext::hold was called twice: the dial's slot is held already").hold(io)
    }

    /// Keeps the slot of a dial that fails or is dropped taken until the share is dropped too. For work that goes on
    /// whether it is wanted or not, as a lookup on a blocking thread does. Once the dial has succeeded the slot is the
    /// connection's, and the share keeps nothing: let what has descriptors open end before.
    pub fn share_slot(&self) -> SlotShare {
        SlotShare { _lease: self.lease.lock().share() }
    }

    /// Says what the dial does from now on, in words that go after "while": if it times out, that is the
    /// [source](std::error::Error::source) of its [`DialTimeout`](crate::GetError::DialTimeout), until something
    /// [fails](Self::note_failure).
    ///
    /// # Examples
    ///
    /// ```
    /// # use fdpool::{DialContext, DialError};
    /// # async fn connect() -> Result<(), DialError> { Ok(()) }
    /// # async fn log_in() -> Result<(), DialError> { Ok(()) }
    /// async fn dial(cx: &DialContext) -> Result<(), DialError> {
    ///     connect().await?;
    ///     cx.begin_step("logging in");
    ///     log_in().await
    /// }
    /// ```
    pub fn begin_step(&self, doing: &'static str) {
        let former = self.progress.lock().replace(Progress::Doing(doing));
        drop(former); // an error is the dialer's: not under a lock (I3)
    }

    /// Something failed that the dial goes on after, one of several attempts say: if it times out, that is told as the
    /// [source](std::error::Error::source).
    pub fn note_failure(&self, error: impl Into<DialError>) {
        let former = self.progress.lock().replace(Progress::Failed(error.into()));
        drop(former);
    }

    /// What is known of a dial whose time is over.
    pub(crate) fn cause_of_timeout(&self) -> Option<DialError> {
        let progress = self.progress.lock().take();
        progress.map(|progress| match progress {
            Progress::Doing(doing) => {
                io::Error::new(io::ErrorKind::TimedOut, format!("timed out while {doing}")).into()
            }
            Progress::Failed(error) => error,
        })
    }

    /// Whether the dial has its slot still, to begin again with.
    pub(crate) fn has_slot(&self) -> bool {
        self.lease.lock().with(|lease| matches!(lease, Some(Lease::Own(_))))
    }

    /// The dial succeeded: what its connection has to count as its slot.
    pub(crate) fn take_lease(&self) -> Option<Lease> {
        self.lease.lock().with(Option::take)
    }

    /// The dial failed: its slot goes with the last who has a share in it.
    pub(crate) fn into_lease(mut self) -> SharedLease {
        let parts = self.lease.get_mut();
        let lease = parts.share();
        *parts = Parts::Alone(None);
        lease
    }
}

impl Drop for DialContext {
    /// Who keeps its slot keeps it from being another's; it is no dial's any more.
    fn drop(&mut self) {
        let Parts::Shared(lease) = self.lease.get_mut() else { return };
        if lease.lock().is_none() {
            return; // a connection has it
        }
        let ledger = &self.budget.partition.ledger;
        let mut books = ledger.lock();
        if let Some(lease) = &mut *lease.lock() {
            books.dial_dropped(lease);
        }
        ledger.settle(books);
    }
}

impl fmt::Debug for DialContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DialContext").field("budget", &self.budget).finish_non_exhaustive()
    }
}
