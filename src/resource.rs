//! One address: the handle users hold, and how it is built. What it does is in [`shared`] and [`get`].

use std::fmt;
use std::panic::Location;
use std::sync::{Arc, LazyLock};
use std::task::Waker;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::address::Address;
use crate::budget::{Budget, CloseReport, ResourceId, Site, report, until_empty};
use crate::clock;
use crate::conn::Conn;
use crate::dial::{Dial, Tcp};
use crate::stats::ResourceStats;
use crate::upkeep;

pub(crate) mod attempt;
pub(crate) mod freelist;
mod get;
pub(crate) mod history;
mod home;
pub(crate) mod pace;
mod settings;
pub(crate) mod shared;

use attempt::ErasedDial;
pub use get::Get;
use home::{AnyRoom, Room};
use settings::{Settings, Span};
use shared::{Missed, Shared, State};

/// Connections to one address, under a [`Budget`].
///
/// [`get`](Self::get) takes an idle connection or dials a new one; [`Conn::put`] gives it back. The resource
/// remembers how often its address is wanted, and when the budget is full, the idle connection whose address
/// is expected back last is closed: keep a resource for each address you will come back to.
///
/// A handle: cheap to clone. When the last clone is dropped, idle connections close; those in use close when
/// they are put. Two resources of one address share nothing but the budget.
///
/// # Examples
///
/// ```
/// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// # let address = listener.local_addr()?;
/// # tokio::spawn(async move { let _peer = listener.accept().await; std::future::pending::<()>().await });
/// use fdpool::ConnResource;
///
/// let resource = ConnResource::new(address);
/// let mut conn = resource.get().await?;
/// conn.write_all(b"hello").await?;
/// conn.put();
/// assert!(resource.try_get().is_some_and(|conn| conn.is_reused()));
/// # Ok(()) }
/// ```
#[doc(alias = "Pool")]
#[doc(alias = "connpool")]
pub struct ConnResource<C = TcpStream> {
    shared: Arc<Shared<C>>,
    /// Where its state is: so a get need not wait for `shared` to come from memory to know that.
    room: &'static dyn AnyRoom,
}

impl<C> Drop for ConnResource<C> {
    fn drop(&mut self) {
        if self.shared.one_handle_less() {
            self.shared.retire();
        }
    }
}

impl ConnResource<TcpStream> {
    /// Plain TCP connections to `host:port`, under the [global](Budget::global) budget.
    pub fn new(address: impl Into<Address>) -> Self {
        // One for all of a fleet.
        static DIALER: LazyLock<Arc<Tcp>> = LazyLock::new(Arc::default);
        ConnResourceBuilder::new(address.into(), Arc::<Tcp>::clone(&DIALER)).build()
    }
}

impl<C> ConnResource<C> {
    pub(crate) fn shared(&self) -> &Arc<Shared<C>> {
        &self.shared
    }

    /// Whether this is the only handle. It stays so as long as nobody can clone this one.
    pub(crate) fn is_sole_handle(&self) -> bool {
        self.shared.has_one_handle()
    }
}

impl<C: Send + 'static> ConnResource<C> {
    /// Connections made by a dialer of your choice, under the [global](Budget::global) budget.
    pub fn with_dialer(address: impl Into<Address>, dialer: impl Dial<Conn = C>) -> Self {
        Self::builder(address, dialer).build()
    }

    /// Connections with a budget and limits of your choice.
    pub fn builder(address: impl Into<Address>, dialer: impl Dial<Conn = C>) -> ConnResourceBuilder<C> {
        ConnResourceBuilder::new(address.into(), Arc::new(dialer))
    }

    /// Gets a connection: an idle one, or one that comes back meanwhile, or a new one. See [`Get`] for its
    /// options.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses its place in line and nothing else. What was granted to it goes to the next.
    ///
    /// # Errors
    ///
    /// [`GetError`](crate::GetError): no slot or no connection in time, cancelled, or the dial failed.
    ///
    /// # Panics
    ///
    /// As [`Get`]: if it has to wait or to dial and there is no tokio runtime with a time driver.
    #[doc(alias = "acquire")]
    #[doc(alias = "checkout")]
    #[inline]
    #[track_caller]
    pub fn get(&self) -> Get<'_, C> {
        Get::borrowed(self, Location::caller())
    }

    /// [`get`](Self::get) that keeps a handle of its own, for tasks.
    #[track_caller]
    pub fn get_owned(&self) -> Get<'static, C> {
        Get::owned(self.clone(), Location::caller())
    }

    /// An idle connection or nothing: never waits, never dials, but in the background for a stock
    /// ([`min_idle`](ConnResourceBuilder::min_idle)). Nothing, too, while the only one is being looked after, which takes
    /// microseconds.
    ///
    /// Outside of a tokio runtime it returns only connections that were dialled outside of one.
    #[inline]
    #[track_caller]
    pub fn try_get(&self) -> Option<Conn<C>> {
        let (conn, stocks) = match self.take_idle(None, Location::caller()) {
            Ok((conn, stocks)) => (Some(conn), stocks),
            Err(missed) => (None, missed.stocks),
        };
        if stocks {
            self.restock_behind(conn.is_some());
        }
        conn
    }

    #[cold]
    fn restock_behind(&self, serves: bool) {
        match serves {
            true => upkeep::restock_after_use(self.shared()),
            false => upkeep::restock(self.shared()),
        }
    }

    #[inline]
    fn take_idle(&self, waker: Option<&Waker>, site: Site) -> Result<(Conn<C>, bool), Missed> {
        let now = clock::now();
        let state = Room::of(self.room).lock_alone();
        state.touch(now);
        let taken = state.take_idle()?;
        self.shared.give(taken, now, waker, site)
    }

    /// Closes all connections of now, when nobody uses them: the idle ones at once, those in use when they are
    /// put. Connections dialled from now on are not affected.
    ///
    /// For peers that moved or restarted: after a failover, say. A stock ([`min_idle`](ConnResourceBuilder::min_idle)) is
    /// dialled anew.
    #[doc(alias = "ScheduleClose")]
    pub fn schedule_close(&self) {
        self.shared().schedule_close();
        upkeep::restock(self.shared());
    }

    /// Closes the resource, for good: gets fail with [`GetError::Closed`](crate::GetError::Closed), those that wait
    /// too, idle connections close, and those in use when they are put. Waits until nothing is open any more, for at
    /// most `grace`, and reports what still is.
    ///
    /// # Cancel safety
    ///
    /// The resource is closed at the first poll; dropping the future ends the wait.
    ///
    /// # Panics
    ///
    /// In a tokio runtime without a time driver.
    pub async fn close(&self, grace: Duration) -> CloseReport {
        let shared = self.shared();
        shared.end();
        until_empty(&shared.partition().ledger, grace, || shared.slots_out() == 0).await;
        report(shared.partition(), ResourceId::of(&**shared), shared.slots_out())
    }

    /// Changes [`max_conns`](ConnResourceBuilder::max_conns). What is in use beyond it is closed when it is put; for a stock
    /// that there is room for now it dials, if a tokio runtime is there.
    pub fn set_max_conns(&self, conns: usize) {
        self.shared.change_settings(|settings| settings.max_conns = conns.max(1));
        upkeep::restock(self.shared());
    }

    /// Changes [`max_idle`](ConnResourceBuilder::max_idle). The oldest of those that rest beyond it are closed; for a stock
    /// that may rest now it dials, if a tokio runtime is there.
    pub fn set_max_idle(&self, conns: usize) {
        self.shared.change_settings(|settings| settings.max_idle = conns);
        upkeep::restock(self.shared());
    }

    /// Changes [`min_idle`](ConnResourceBuilder::min_idle), and dials for it if a tokio runtime is there.
    pub fn set_min_idle(&self, conns: usize) {
        self.shared.change_settings(|settings| settings.min_idle = conns);
        upkeep::restock(self.shared());
    }

    /// Changes [`max_uses`](ConnResourceBuilder::max_uses).
    pub fn set_max_uses(&self, uses: usize) {
        self.shared.change_settings(|settings| settings.max_uses = max_uses(uses));
    }

    /// Changes [`idle_timeout`](ConnResourceBuilder::idle_timeout), also for what rests already.
    pub fn set_idle_timeout(&self, timeout: impl Into<Option<Duration>>) {
        let timeout = Span::new(timeout);
        self.shared.change_settings(|settings| settings.idle_timeout = timeout);
    }

    /// Changes [`max_lifetime`](ConnResourceBuilder::max_lifetime), for connections dialled from now on.
    pub fn set_max_lifetime(&self, lifetime: impl Into<Option<Duration>>) {
        let lifetime = Span::new(lifetime);
        self.shared.change_settings(|settings| settings.max_lifetime = lifetime);
    }

    /// Changes [`dial_timeout`](ConnResourceBuilder::dial_timeout), for dials begun from now on.
    pub fn set_dial_timeout(&self, timeout: impl Into<Option<Duration>>) {
        let timeout = timeout.into();
        self.shared.change_settings(|settings| settings.dial_timeout = timeout);
    }

    /// Changes [`wait_timeout`](ConnResourceBuilder::wait_timeout), for gets begun from now on.
    pub fn set_wait_timeout(&self, timeout: impl Into<Option<Duration>>) {
        let timeout = timeout.into();
        self.shared.change_settings(|settings| settings.wait_timeout = timeout);
    }

    /// The address it was made for.
    pub fn address(&self) -> &Address {
        &self.shared().address
    }

    /// The budget its connections count in.
    pub fn budget(&self) -> &Budget {
        &self.shared().budget
    }

    /// The numbers of this moment.
    #[doc(alias = "status")]
    #[doc(alias = "state")]
    pub fn stats(&self) -> ResourceStats {
        self.shared().stats()
    }
}

impl<C> Clone for ConnResource<C> {
    fn clone(&self) -> Self {
        self.shared.one_handle_more();
        Self { shared: Arc::clone(&self.shared), room: self.room }
    }
}

#[cfg(fdpool_loom)]
impl<C: Send + 'static> ConnResource<C> {
    /// One look of the keeper's, whose task no model drives.
    pub fn look_after_idle(&self) {
        let shared = &self.shared;
        crate::upkeep::Tended::tend(Arc::clone(shared), crate::upkeep::Cause::Fresh, crate::clock::now());
    }
}

impl<C> fmt::Debug for ConnResource<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnResource")
            .field("address", &self.shared().address)
            .field("stats", &self.shared().stats())
            .finish_non_exhaustive()
    }
}

/// Builds a [`ConnResource`].
///
/// # Examples
///
/// ```
/// use fdpool::{Budget, ConnResource, dial::Tcp};
/// use std::time::Duration;
///
/// let budget = Budget::new(100);
/// let resource = ConnResource::builder("db.example.org:5432", Tcp::default())
///     .budget(&budget)
///     .max_conns(10)
///     .idle_timeout(Duration::from_secs(30))
///     .max_lifetime(None)
///     .build();
/// assert_eq!(resource.address().as_str(), "db.example.org:5432");
/// ```
#[must_use = "build() makes the resource"]
pub struct ConnResourceBuilder<C> {
    address: Address,
    dialer: Arc<dyn ErasedDial<C>>,
    budget: Option<Budget>,
    settings: Settings,
}

impl<C: Send + 'static> ConnResourceBuilder<C> {
    fn new(address: Address, dialer: Arc<dyn ErasedDial<C>>) -> Self {
        Self { address, dialer, budget: None, settings: Settings::default() }
    }

    /// The budget to count in. Default: the [global](Budget::global) one.
    pub fn budget(mut self, budget: &Budget) -> Self {
        self.budget = Some(budget.clone());
        self
    }

    /// How many connections the address may have, idle ones and dials included. At least 1. Default: as many as
    /// the budget has slots.
    pub fn max_conns(mut self, conns: usize) -> Self {
        self.settings.max_conns = conns.max(1);
        self
    }

    /// How many connections may rest; when one more is put, the oldest goes. 0: a connection that is put goes to a waiting
    /// caller or is closed. Default: no limit but the budget.
    pub fn max_idle(mut self, conns: usize) -> Self {
        self.settings.max_idle = conns;
        self
    }

    /// How many idle connections to keep in stock. Filled in the background, one dial after the other: when the resource is
    /// made, when a get finds too few, and when idle ones are closed by their peer, because of their age, because the address
    /// moved, or by [`schedule_close`](ConnResource::schedule_close). It takes free slots only. The stock does not end by
    /// [`idle_timeout`](Self::idle_timeout), but is not protected from eviction. Default: 0.
    ///
    /// If no slot was free, and after evictions, it tries again at intervals of the longest pause of
    /// [`backoff`](Self::backoff). A failed dial for the stock is followed by a pause as `backoff` has it, short at first; so
    /// is the third stock connection in a row that its peer ends before it has served. Callers are not held up by these
    /// pauses: they dial for themselves.
    pub fn min_idle(mut self, conns: usize) -> Self {
        self.settings.min_idle = conns;
        self
    }

    /// How often a connection may be used before it is closed. At least 1. Default: no limit.
    pub fn max_uses(mut self, uses: usize) -> Self {
        self.settings.max_uses = max_uses(uses);
        self
    }

    /// How long a connection may rest, those of the stock ([`min_idle`](Self::min_idle)) excepted. Seen to when the
    /// connection is asked for, and in the background to a tenth of a second. Default: 90 s.
    pub fn idle_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.settings.idle_timeout = Span::new(timeout);
        self
    }

    /// How old a connection may become: this, or up to a tenth less, drawn once for each. Seen to on get and put, and in
    /// the background while it rests. Default: 30 minutes.
    pub fn max_lifetime(mut self, lifetime: impl Into<Option<Duration>>) -> Self {
        self.settings.max_lifetime = Span::new(lifetime);
        self
    }

    /// How long a dial may take, counted from when a slot is held. Default: 10 s.
    #[doc(alias = "connect_timeout")]
    #[doc(alias = "create_timeout")]
    pub fn dial_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.settings.dial_timeout = timeout.into();
        self
    }

    /// How many dials may be under way at once. At least 1. Default: no limit but the budget's.
    ///
    /// Callers that wait can be served by a dial or by a connection that somebody puts, so that a burst of them does
    /// not dial a connection for each: see [`initial_dialing`](Self::initial_dialing).
    pub fn max_dialing(mut self, dials: usize) -> Self {
        self.settings.dialing.most = dials.max(1);
        self
    }

    /// How many dials a burst of callers begins with. Each one that serves a caller allows for one more at a time, so
    /// that their number doubles for as long as no connection comes back. While callers wait and no dial ends, it doubles
    /// after each 250 ms as well, up to 8: a peer that does not answer gets no more slots than that, each for the
    /// [`dial_timeout`](Self::dial_timeout). At least 1. Default: 2.
    pub fn initial_dialing(mut self, dials: usize) -> Self {
        self.settings.dialing.first = dials.max(1);
        self
    }

    /// How long not to dial after failures: the third failure in a row, or one that is
    /// [permanent](crate::DialError::is_permanent), is followed by a pause of `first`, and each further one by a pause
    /// twice as long, up to `longest`; of each pause up to half is taken off at random. One dial then probes the
    /// address. A `first` of [`Duration::ZERO`]: no pauses, and a [stock](Self::min_idle) whose dial failed waits for the next
    /// get. A `longest` below `first` counts as `first`. Default: 100 ms, 5 s.
    ///
    /// Meanwhile a get that would have to dial fails at once, unless it is to [wait](crate::Get::wait_for_ready), or a
    /// connection of the address is in use: then it waits for that, or for the end of the pause. A loop that gets and
    /// fails has to sleep in between, for [`retry_in`](crate::GetDetails::retry_in) say.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        (self.settings.dialing.pause, self.settings.dialing.longest) = (first, longest);
        self
    }

    /// How long a get may wait for a slot, or for its address. Default: 30 s.
    #[doc(alias = "connection_timeout")]
    pub fn wait_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.settings.wait_timeout = timeout.into();
        self
    }

    /// Makes the resource. Dials nothing yet, but for [`min_idle`](Self::min_idle) if a tokio runtime is there.
    pub fn build(self) -> ConnResource<C> {
        let budget = self.budget.unwrap_or_else(|| Budget::global().clone());
        let room = home::move_in(State::<C>::new(self.settings.share()));
        let shared = Arc::new(Shared::new(room, self.address, budget, self.dialer));
        upkeep::restock(&shared);
        ConnResource { shared, room }
    }
}

/// At least one. More than fit are no limit.
fn max_uses(uses: usize) -> u32 {
    u32::try_from(uses.max(1)).unwrap_or(u32::MAX)
}

impl<C> fmt::Debug for ConnResourceBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnResourceBuilder")
            .field("address", &self.address)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
