//! One dial, from its slot to its outcome. It belongs to its resource: whoever polls it, the outcome goes to
//! who is first in line there.

use std::cell::Cell;
use std::future::Future;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Id;
use tracing::Instrument;

use super::freelist::{Record, jittered};
use super::home::{AnyRoom, Room};
use super::settings::Span;
use super::shared::{Failure, Locked, Shared};
use crate::address::Address;
use crate::budget::queue::Place;
use crate::budget::slot::Slot;
use crate::budget::victim::Sampler;
use crate::clock::{self, Tick};
use crate::conn::Entry;
use crate::dial::{CheckContext, Dial, DialContext, Fitness, Watch};
use crate::error::DialError;
use crate::stats::Event;
use crate::upkeep::{self, Deadline, Tended};

/// A dial under way.
pub(crate) type Attempt = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// What became of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// A caller has its connection, or that rests.
    OfUse,
    /// Its connection was closed at once.
    Closed,
    Failed,
}

/// A [`Dial`] whose type is forgotten but for its connections'.
pub(crate) trait ErasedDial<C>: Send + Sync {
    fn attempt(self: Arc<Self>, shared: Arc<Shared<C>>, job: Job) -> Attempt;
    fn check(&self, conn: &mut C, cx: &CheckContext) -> Fitness;
    fn poll_idle(&self, conn: &mut C, cx: &mut Context<'_>) -> Poll<Fitness>;
    fn watch(&self, address: &Address) -> Option<Watch>;
    fn is_current(&self, address: &Address, conn: &C) -> bool;
    fn close(&self, conn: C);
    /// The state of an address, by where it is. Only who knows what its connections are can tell, as of the next.
    fn lock<'a>(&self, room: &'a dyn AnyRoom) -> Locked<'a, C>;
    /// For who has no other lock.
    fn lock_alone<'a>(&self, room: &'a dyn AnyRoom) -> Locked<'a, C>;
    /// The address as the keeper knows it.
    fn tended(&self, shared: &Arc<Shared<C>>) -> Weak<dyn Tended>;
}

impl<D: Dial> ErasedDial<D::Conn> for D {
    fn attempt(self: Arc<Self>, shared: Arc<Shared<D::Conn>>, job: Job) -> Attempt {
        Box::pin(run(job, Unfinished { shared, armed: Cell::new(true) }, self))
    }

    fn check(&self, conn: &mut D::Conn, cx: &CheckContext) -> Fitness {
        Dial::check(self, conn, cx)
    }

    fn poll_idle(&self, conn: &mut D::Conn, cx: &mut Context<'_>) -> Poll<Fitness> {
        Dial::poll_idle(self, conn, cx)
    }

    fn watch(&self, address: &Address) -> Option<Watch> {
        Dial::watch(self, address)
    }

    fn is_current(&self, address: &Address, conn: &D::Conn) -> bool {
        Dial::is_current(self, address, conn)
    }

    fn close(&self, conn: D::Conn) {
        Dial::close(self, conn);
    }

    fn lock<'a>(&self, room: &'a dyn AnyRoom) -> Locked<'a, D::Conn> {
        Room::of(room).lock()
    }

    fn lock_alone<'a>(&self, room: &'a dyn AnyRoom) -> Locked<'a, D::Conn> {
        Room::of(room).lock_alone()
    }

    fn tended(&self, shared: &Arc<Shared<D::Conn>>) -> Weak<dyn Tended> {
        Arc::downgrade(shared) as Weak<dyn Tended>
    }
}

/// The dialer of an address. Whoever has the last trace of the address may be anybody, with no part in how the dialer ends.
pub(crate) struct Dialer<C>(Option<Arc<dyn ErasedDial<C>>>);

impl<C> Dialer<C> {
    pub(super) fn new(dialer: Arc<dyn ErasedDial<C>>) -> Self {
        Self(Some(dialer))
    }

    /// Whether its own end does not panic, if this is that.
    pub(super) fn end(&mut self) -> bool {
        let dialer = self.0.take();
        catch_unwind(AssertUnwindSafe(|| drop(dialer))).is_ok()
    }
}

impl<C> Deref for Dialer<C> {
    type Target = Arc<dyn ErasedDial<C>>;

    #[inline]
    fn deref(&self) -> &Arc<dyn ErasedDial<C>> {
        self.0.as_ref().expect("BUG: an address has its dialer until it ends")
    }
}

/// What a dial begins with.
pub(crate) struct Job {
    pub(crate) slot: Slot,
    /// Who asked for it, if anybody.
    pub(crate) initiator: Option<Place>,
    pub(crate) terms: Terms,
    /// The runtime it is polled on first, where its descriptor is registered.
    pub(crate) home: Option<Id>,
}

/// What holds for a dial from its beginning.
pub(crate) struct Terms {
    /// The resource's then.
    pub(crate) generation: u32,
    pub(crate) timeout: Option<Duration>,
    /// That is less than others of the address have: who counts on this dial is not told when it is over.
    pub(crate) hasty: bool,
    /// How old its connection may become.
    pub(crate) max_lifetime: Span,
}

// The dialer goes before its address, which sees to its end.
async fn run<D: Dial>(job: Job, unfinished: Unfinished<D::Conn>, dialer: Arc<D>) -> Ended {
    let Job { slot, initiator, terms, home } = job;
    let shared = &unfinished.shared;
    // Declared before the dial: when both are dropped, its descriptors close, and then the slot goes.
    let cx = DialContext::new(shared.budget.clone(), slot);
    let began = clock::now();
    let mut deadline = Deadline::new(&shared.ledger().deadlines, terms.timeout, began, home);
    let outcome = loop {
        let outcome = {
            let span = tracing::debug_span!("dial", address = %shared.address);
            let dial = pin!(dialer.dial(&shared.address, &cx).instrument(span));
            // CANCEL: whoever drops this drops the dial, and with it `cx`, which gives the slot back.
            deadline.bound(dial).await
        };
        match outcome {
            Some(Err(error)) if error.is_out_of_descriptors() => {
                shared.count(Event::Emfile);
                if !upkeep::make_room(shared) || !cx.has_slot() {
                    break Outcome::NoDescriptor(error);
                }
            }
            Some(Err(error)) => break Outcome::Failed(Failure::Error(error)),
            None => {
                let (hasty, cause) = (terms.hasty, cx.cause_of_timeout());
                break Outcome::Failed(Failure::Timeout { hasty, cause });
            }
            Some(Ok(conn)) => break Outcome::Dialled(conn),
        }
    };
    unfinished.armed.set(false);
    match outcome {
        Outcome::Dialled(conn) => {
            let lease = cx.take_lease().expect("BUG: a dial without a lease");
            tracing::debug!(address = %shared.address, took = ?clock::now().since(began), "dialled");
            let record = birth(&terms);
            let entry = Entry::new(conn, lease, record, home, Arc::clone(shared));
            let of_use = shared.dialled(initiator, entry);
            if let Some(home) = home {
                shared.ledger().keeper.meet(home);
            }
            upkeep::watch(shared);
            if of_use { Ended::OfUse } else { Ended::Closed }
        }
        Outcome::Failed(failure) => {
            tracing::debug!(address = %shared.address, ?failure, took = ?clock::now().since(began), "dial failed");
            shared.dial_failed(initiator, failure, cx.into_lease(), random());
            upkeep::probe_later(shared);
            Ended::Failed
        }
        Outcome::NoDescriptor(error) => {
            tracing::warn!(address = %shared.address, %error, "no descriptor for a dial");
            shared.dial_postponed(initiator, error, cx.into_lease());
            upkeep::look_after_queue(shared);
            Ended::Failed
        }
    }
}

enum Outcome<C> {
    Dialled(C),
    Failed(Failure),
    NoDescriptor(DialError),
}

fn birth(&Terms { generation, max_lifetime, .. }: &Terms) -> Record {
    let now = clock::now();
    let dies = match max_lifetime {
        Span::FOR_EVER => Tick::NEVER,
        lifetime => now.after_nanos(jittered(lifetime.nanos(), random())),
    };
    Record { born: now, dies, rested: now, uses: 0, generation }
}

/// Any number; its quality matters little.
pub(super) fn random() -> u64 {
    use std::cell::RefCell;
    use std::hash::{BuildHasher, RandomState};

    std::thread_local! {
        static SAMPLER: RefCell<Sampler> = RefCell::new(Sampler::new(RandomState::new().hash_one(())));
    }
    SAMPLER.with_borrow_mut(Sampler::next)
}

/// Counts a dial that ends without an outcome, or is never begun: given up, panicked, or its runtime ended. Dropped after
/// its slot: who counted on it may queue by then.
struct Unfinished<C: Send + 'static> {
    shared: Arc<Shared<C>>,
    armed: Cell<bool>,
}

impl<C: Send + 'static> Drop for Unfinished<C> {
    fn drop(&mut self) {
        if self.armed.get() {
            self.shared.count(Event::DialFailure);
            upkeep::look_after_queue(&self.shared);
        }
    }
}
