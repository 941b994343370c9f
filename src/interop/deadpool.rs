//! Pools of the crate `deadpool` under a [`Budget`]: each object has a slot, and objects that rest in the pool are
//! closed when somebody else needs theirs. Takes no lock of deadpool's: what rests is kept here, and deadpool keeps
//! a place for it.
//!
//! # Examples
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use deadpool_redis::{Manager, redis::AsyncCommands};
//! use fdpool::{Budget, interop};
//!
//! let manager = Manager::new("redis://10.0.0.1/")?;
//! let pool = interop::deadpool::builder(manager, Budget::global()).max_size(16).build()?;
//!
//! let mut conn = pool.get().await?;
//! let seen: u64 = conn.incr("seen", 1).await?;
//! # Ok(()) }
//! ```
//!
//! # What a program has to change
//!
//! The manager stays. The pool is a [`Pool`] and gives out [`Object`]s, where deadpool-redis has a `Pool` and a `Connection`
//! of its own: types that are written down change, and helpers that make a pool, such as `Config::create_pool`, are of no
//! use. An [`Object`] dereferences to what the manager made, which is all that method calls need. A function that takes a
//! connection by a trait wants that itself: `&mut *conn` where it was `&mut conn`.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! # use deadpool_redis::{Manager, redis::cmd};
//! # use fdpool::{Budget, interop};
//! # let pool = interop::deadpool::builder(Manager::new("redis://10.0.0.1/")?, Budget::global()).build()?;
//! let mut conn = pool.get().await?;
//! let pong: String = cmd("PING").query_async(&mut *conn).await?;
//! # Ok(()) }
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::deadpool::managed::{self, Hook, Manager, Metrics, ObjectId, PoolBuilder, RecycleError, RecycleResult};
use parking_lot::Mutex;

use crate::{AcquireError, Budget, Held, Reclaim, Registration};

/// A deadpool pool whose objects count in a [`Budget`]; made by [`builder`].
///
/// It is deadpool's own, with all that that can do. Four things to know:
///
/// - [`status`](managed::Pool::status) goes on counting an object that was reclaimed until deadpool comes upon its
///   place, which is when it would have been given out. `budget.stats().held` knows better.
/// - The predicate of [`retain`](managed::Pool::retain) is shown a [`Place`], where there is nothing to be seen of an
///   object that rests. Go by its metrics.
/// - [`close`](managed::Pool::close) ends the waits for a place in the pool, but not that of a caller who has one and
///   waits for a slot: that ends with a slot, by its timeout, or by closing the [`Budget`].
/// - deadpool's timeouts, set by its builder or in `timeout_get`, need `.runtime(Runtime::Tokio1)`, with deadpool's feature
///   `rt_tokio_1`: without, `build` or the get fails. [`Budgeted::slot_timeout`] needs neither, but a time driver.
pub type Pool<M> = managed::Pool<Budgeted<M>, Object<M>>;

/// A pool of what `manager` makes, under `budget`: set it up as any of deadpool's, and build it.
///
/// Making an object waits for a slot first, for as long as it takes. deadpool's `create` timeout covers that wait too, if
/// the builder is given a `runtime`; to limit the wait alone, see [`Budgeted::slot_timeout`].
///
/// Let `max_size` be no more than the budget can spare. A caller that has a place in the pool and waits for a slot is
/// deaf to deadpool: an object that comes back meanwhile is closed for its slot, and another made, each time. Callers
/// beyond `max_size` wait for objects, and reuse them, unless others want the slots. Where others may take the slots, a
/// [`child_with`](Budget::child_with) keeps some for the pool.
///
/// When somebody else needs a slot, the object that has rested for longest is closed. The pool takes part for as long
/// as it, or an object of it, is there.
///
/// A slot is given back once its object has been dropped. Where a background task owns the socket, as in redis's
/// `MultiplexedConnection` and postgres's `Client`, that task closes it a moment later: leave the
/// process as many descriptors beside the budget as `max_size`, with [`reserve`](crate::BudgetBuilder::reserve) say.
///
/// # Examples
///
/// ```
/// # use deadpool::managed::{Manager, Metrics, RecycleResult};
/// # use tokio::net::{TcpListener, TcpStream};
/// # struct Streams(std::net::SocketAddr);
/// # impl Manager for Streams {
/// #     type Type = TcpStream;
/// #     type Error = std::io::Error;
/// #     async fn create(&self) -> std::io::Result<TcpStream> { TcpStream::connect(self.0).await }
/// #     async fn recycle(&self, _: &mut TcpStream, _: &Metrics) -> RecycleResult<std::io::Error> { Ok(()) }
/// # }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = TcpListener::bind("127.0.0.1:0").await?;
/// # let manager = Streams(listener.local_addr()?);
/// use fdpool::{Budget, interop};
///
/// let budget = Budget::new(1);
/// let pool = interop::deadpool::builder(manager, &budget).max_size(4).build()?;
///
/// let stream = pool.get().await?;
/// assert!(stream.peer_addr().is_ok());
/// drop(stream); // rests in the pool, and has the only slot
///
/// let slot = budget.acquire().await?; // it is closed for this
/// # drop(slot); Ok(()) }
/// ```
#[doc(alias = "managed")]
pub fn builder<M: Manager + 'static>(manager: M, budget: &Budget) -> PoolBuilder<Budgeted<M>, Object<M>> {
    Budgeted::new(manager, budget).builder()
}

/// A [`Manager`] around another, which takes a slot for each object.
///
/// For the settings that deadpool's builder has no place for; otherwise [`builder`] does.
///
/// # Examples
///
/// ```
/// # use deadpool::managed::{BuildError, Manager};
/// use fdpool::interop::deadpool::{Budgeted, Pool};
/// use std::time::Duration;
///
/// # fn example<M: Manager + 'static>(manager: M, budget: &fdpool::Budget) -> Result<Pool<M>, BuildError> {
/// Budgeted::new(manager, budget).slot_timeout(Duration::from_secs(3)).builder().max_size(16).build()
/// # }
/// ```
pub struct Budgeted<M: Manager> {
    shelf: Arc<Shelf<M>>,
    slot_timeout: Option<Duration>,
}

impl<M: Manager + 'static> Budgeted<M> {
    /// Takes part in `budget`.
    pub fn new(manager: M, budget: &Budget) -> Self {
        let shelf = Arc::new(Shelf {
            manager,
            budget: budget.clone(),
            registration: OnceLock::new(),
            resting: Mutex::new(Resting { last: 0, values: BTreeMap::new() }),
        });
        let _ = shelf.registration.set(budget.register(&shelf));
        Self { shelf, slot_timeout: None }
    }

    /// How long the making of an object may wait for a slot: then it fails with [`CreateError::NoSlot`]. Default: as
    /// long as deadpool lets it.
    ///
    /// # Panics
    ///
    /// Such a get does, if it has to wait for a slot outside of a tokio runtime with a time driver.
    pub fn slot_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.slot_timeout = timeout.into();
        self
    }

    /// Begins a [`Pool`], as that one's own `builder` does. A deadpool pool of another wrapper
    /// (`managed::Pool<Budgeted<M>>`, whose objects are [`managed::Object`]s) counts its objects as well, but what rests in
    /// it is not reclaimed, and counts as held.
    pub fn builder(self) -> PoolBuilder<Self, Object<M>> {
        // Before all hooks of the user's, which are shown what rested.
        managed::Pool::builder(self).pre_recycle(Hook::sync_fn(|place: &mut Place<M>, _| {
            match place.wake() {
                true => Ok(()),
                false => Err(managed::HookError::message(RECLAIMED)),
            }
        }))
    }
}

impl<M: Manager> Budgeted<M> {
    /// The manager inside.
    pub fn manager(&self) -> &M {
        &self.shelf.manager
    }

    /// The budget that objects count in.
    pub fn budget(&self) -> &Budget {
        &self.shelf.budget
    }
}

const RECLAIMED: &str = "closed, since somebody else needed its slot";

impl<M: Manager> Manager for Budgeted<M> {
    type Type = Place<M>;
    type Error = CreateError<M::Error>;

    async fn create(&self) -> Result<Place<M>, CreateError<M::Error>> {
        let acquire = self.shelf.budget.acquire().for_a_pool();
        let acquire = match self.slot_timeout {
            Some(timeout) => acquire.wait_timeout(timeout),
            None => acquire,
        };
        // CANCEL: a slot that was granted meanwhile goes to the next in line.
        let slot = acquire.await.map_err(|source| CreateError::NoSlot { source })?;
        // CANCEL: the manager's future is dropped with all it has opened, then the slot.
        let value = self.shelf.manager.create().await.map_err(|source| CreateError::Manager { source })?;
        Ok(Place { held: Some(slot.hold(value)), ticket: None, shelf: Arc::clone(&self.shelf) })
    }

    async fn recycle(&self, place: &mut Place<M>, metrics: &Metrics) -> RecycleResult<Self::Error> {
        place.wake();
        let Some(held) = &mut place.held else { return Err(RecycleError::message(RECLAIMED)) };
        self.shelf.manager.recycle(held, metrics).await.map_err(|error| match error {
            RecycleError::Message(message) => RecycleError::Message(message),
            RecycleError::Backend(source) => RecycleError::Backend(CreateError::Manager { source }),
        })
    }

    fn detach(&self, place: &mut Place<M>) {
        place.wake();
        if let Some(held) = &mut place.held {
            self.shelf.manager.detach(held);
        }
    }
}

impl<M: Manager + fmt::Debug> fmt::Debug for Budgeted<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budgeted")
            .field("manager", self.manager())
            .field("budget", self.budget())
            .field("slot_timeout", &self.slot_timeout)
            .finish_non_exhaustive()
    }
}

/// Why an object could not be made.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError<E> {
    /// There was no slot for it.
    #[error("{source}")]
    NoSlot {
        /// What the budget said.
        source: AcquireError,
    },
    /// There was a slot, but the manager failed.
    #[error("{source}")]
    Manager {
        /// What the manager said.
        source: E,
    },
}

/// Values that rest in the pool. Lives as long as the pool or an object of it.
struct Shelf<M: Manager> {
    manager: M,
    budget: Budget,
    registration: OnceLock<Registration>,
    /// Held for a few instructions: nothing of the user's runs under it, and no slot is dropped.
    resting: Mutex<Resting<M::Type>>,
}

struct Resting<T> {
    last: u64,
    /// By ticket: the first has rested for longest.
    values: BTreeMap<u64, Held<T>>,
}

impl<M: Manager> Shelf<M> {
    fn rest(&self, held: Held<M::Type>) -> u64 {
        let mut resting = self.resting.lock();
        resting.last += 1;
        let ticket = resting.last;
        resting.values.insert(ticket, held);
        ticket
    }
}

impl<M: Manager> Reclaim for Shelf<M> {
    fn idle(&self) -> usize {
        self.resting.lock().values.len()
    }

    fn reclaim_one(&self) -> bool {
        // The lock is released at the end of this line: manager, value and slot are dealt with outside of it.
        let oldest = self.resting.lock().values.pop_first();
        let Some((_, mut held)) = oldest else { return false };
        self.manager.detach(&mut held);
        drop(held);
        true
    }
}

/// What deadpool keeps of an object, and shows to hooks: where the value is while it is used, and may be while it
/// rests.
pub struct Place<M: Manager> {
    held: Option<Held<M::Type>>,
    /// Where on the shelf, since it rests.
    ticket: Option<u64>,
    shelf: Arc<Shelf<M>>,
}

impl<M: Manager> Place<M> {
    /// The value. `None` only while it rests: not in hooks, but in the predicate of
    /// [`retain`](managed::Pool::retain).
    pub fn get(&self) -> Option<&M::Type> {
        self.held.as_deref()
    }

    /// [`get`](Self::get), to be changed.
    pub fn get_mut(&mut self) -> Option<&mut M::Type> {
        self.held.as_deref_mut()
    }

    /// Puts the value on the shelf, where it can be reclaimed.
    fn rest(&mut self) {
        if let Some(mut held) = self.held.take() {
            Held::note_idle(&mut held);
            self.ticket = Some(self.shelf.rest(held));
        }
    }

    /// Takes it off the shelf, for who runs this. `false`: it has been reclaimed.
    fn wake(&mut self) -> bool {
        if self.ticket.is_some() {
            self.leave_shelf();
            if let Some(held) = &mut self.held {
                Held::note_in_use(held);
            }
        }
        self.held.is_some()
    }

    fn leave_shelf(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.held = self.shelf.resting.lock().values.remove(&ticket);
        }
    }
}

impl<M: Manager> Drop for Place<M> {
    fn drop(&mut self) {
        self.leave_shelf(); // and let it drop with this
    }
}

impl<M: Manager> fmt::Debug for Place<M>
where
    M::Type: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("held", &self.held)
            .field("rests", &self.ticket.is_some())
            .finish_non_exhaustive()
    }
}

/// What a [`Pool`] gives out: derefs to what the manager made. Dropping it gives it back to the pool, and says so to
/// the budget.
#[must_use = "dropping it gives it back to the pool"]
pub struct Object<M: Manager> {
    /// `None` only in `drop` and `take`.
    object: Option<managed::Object<Budgeted<M>>>,
}

impl<M: Manager> Object<M> {
    fn object(&self) -> &managed::Object<Budgeted<M>> {
        self.object.as_ref().unwrap_or_else(|| unreachable!("BUG: an object without its place"))
    }

    /// Takes it out of the pool for good. It keeps its slot.
    pub fn take(mut this: Self) -> Held<M::Type> {
        let place = this.object.take().map(managed::Object::take);
        place
            .and_then(|mut place| place.held.take())
            .unwrap_or_else(|| unreachable!("BUG: an object without a value"))
    }

    /// Its number in the pool.
    pub fn id(this: &Self) -> ObjectId {
        managed::Object::id(this.object())
    }

    /// When it was made, and how often it was given out.
    pub fn metrics(this: &Self) -> &Metrics {
        managed::Object::metrics(this.object())
    }
}

impl<M: Manager> From<managed::Object<Budgeted<M>>> for Object<M> {
    fn from(object: managed::Object<Budgeted<M>>) -> Self {
        Self { object: Some(object) }
    }
}

impl<M: Manager> Drop for Object<M> {
    fn drop(&mut self) {
        let Some(mut object) = self.object.take() else { return };
        let shelf = Arc::clone(&object.shelf);
        object.rest();
        // deadpool's callers are told before those who wait for a slot. They are given no more than a place: the object
        // stays on the shelf until the first of them is polled, and may be another's slot by then.
        drop(object);
        if let Some(registration) = shelf.registration.get() {
            registration.became_idle();
        }
    }
}

impl<M: Manager> Deref for Object<M> {
    type Target = M::Type;

    fn deref(&self) -> &M::Type {
        self.object().get().unwrap_or_else(|| unreachable!("BUG: an object without a value"))
    }
}

impl<M: Manager> DerefMut for Object<M> {
    fn deref_mut(&mut self) -> &mut M::Type {
        let place = self.object.as_deref_mut();
        place.and_then(Place::get_mut).unwrap_or_else(|| unreachable!("BUG: an object without a value"))
    }
}

impl<M: Manager> AsRef<M::Type> for Object<M> {
    fn as_ref(&self) -> &M::Type {
        self
    }
}

impl<M: Manager> AsMut<M::Type> for Object<M> {
    fn as_mut(&mut self) -> &mut M::Type {
        self
    }
}

impl<M: Manager> fmt::Debug for Object<M>
where
    M::Type: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Object").field(&**self).finish()
    }
}
