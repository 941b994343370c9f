//! Many addresses, dialled alike: a [`ConnResource`] for each, made when it is first wanted and forgotten when it has
//! not been wanted for long. Knows nothing of what a resource does; the table behind it is in [`table`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::address::Address;
use crate::budget::Budget;
use crate::clock;
use crate::dial::{Dial, Tcp};
use crate::resource::{ConnResource, ConnResourceBuilder, Get};
use crate::stats::ResourceStats;

mod table;

use table::{Shard, Table};

/// A [`ConnResource`] for each address, made when it is first wanted, all with one dialer and the same settings.
///
/// For programs whose addresses are not known beforehand: proxies, crawlers, clients of services that come and go. An
/// address that was not asked for in [`forget_after`](PeersBuilder::forget_after), has nothing open and whose resource
/// nobody holds is forgotten, with the memory of how often it is wanted. Calls for other addresses do the forgetting, a
/// few at a time: no call takes long for it, and there is no task. An address with a stock
/// ([`min_idle`](ConnResourceBuilder::min_idle)) has something open, and is forgotten only by [`retain`](Peers::retain).
///
/// A handle: cheap to clone. When the last clone is dropped, so are its handles of the resources.
///
/// # Examples
///
/// ```
/// # use tokio::io::AsyncWriteExt;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// # let address = listener.local_addr()?.to_string();
/// use fdpool::{Budget, Peers, dial::Tcp};
///
/// let budget = Budget::new(1000);
/// let peers = Peers::builder(Tcp::default())
///     .budget(&budget)
///     .configure(|resource| resource.max_conns(4))
///     .build();
///
/// let mut conn = peers.get(&address).await?;
/// conn.write_all(b"hello").await?;
/// conn.put();
/// assert!(peers.get(&address).await?.is_reused());
/// assert_eq!(peers.len(), 1);
/// # Ok(()) }
/// ```
#[doc(alias = "registry")]
#[doc(alias = "KeyedPool")]
#[doc(alias = "PoolManager")]
#[doc(alias = "MultiPool")]
#[doc(alias = "Client")]
pub struct Peers<C = TcpStream> {
    shared: Arc<Shared<C>>,
}

struct Shared<C> {
    table: Table<C>,
    make: Box<Make<C>>,
    forget_after: Option<Duration>,
}

type Make<C> = dyn Fn(Address) -> ConnResource<C> + Send + Sync;

impl<C: Send + 'static> Peers<C> {
    /// Addresses dialled by `dialer`, with default settings, under the [global](Budget::global) budget.
    pub fn new(dialer: impl Dial<Conn = C>) -> Self {
        Self::builder(dialer).build()
    }

    /// Addresses with a budget and settings of your choice.
    pub fn builder<D: Dial<Conn = C>>(dialer: D) -> PeersBuilder<D> {
        PeersBuilder {
            dialer,
            budget: None,
            configure: None,
            forget_after: Some(Duration::from_secs(10 * 60)),
        }
    }

    /// Gets a connection to an address: [`ConnResource::get_owned`] of its [resource](Self::resource).
    ///
    /// # Cancel safety
    ///
    /// As [`ConnResource::get`].
    ///
    /// # Errors
    ///
    /// As [`ConnResource::get`].
    ///
    /// # Panics
    ///
    /// As [`ConnResource::get`] and [`resource`](Self::resource).
    #[doc(alias = "acquire")]
    #[doc(alias = "checkout")]
    #[track_caller]
    pub fn get(&self, address: impl AsRef<str> + Into<Address>) -> Get<'static, C> {
        self.resource(address).get_owned()
    }

    /// The resource of an address: the same for all who ask, as long as it is known. In place of one that somebody has
    /// [closed](ConnResource::close) there is a new one for whoever asks next; what is still in use of the closed one
    /// does not count for its [`max_conns`](ConnResourceBuilder::max_conns).
    ///
    /// Takes whatever reads as a string: of those, an [`Address`] is cloned where it must be kept, and others are copied
    /// only when the address is new. For a [`SocketAddr`](std::net::SocketAddr) make an [`Address`].
    ///
    /// # Panics
    ///
    /// If the address is new and the function given to [`configure`](PeersBuilder::configure) panics. Nothing is kept
    /// of it then.
    #[doc(alias = "entry")]
    #[doc(alias = "get_or_insert")]
    pub fn resource(&self, address: impl AsRef<str> + Into<Address>) -> ConnResource<C> {
        let now = clock::now();
        let (shard, hash) = self.shared.table.shard(address.as_ref());
        let known = shard.lock().find(address.as_ref(), hash, now);
        match known {
            Some(resource) if !is_closed_alone(&resource) => {
                drop(self.shared.table.tidy(now, self.shared.forget_after));
                resource
            }
            Some(closed) => {
                let removed = shard.lock().remove(&closed);
                drop((removed, closed));
                self.add(shard, address.into(), now)
            }
            None => self.add(shard, address.into(), now),
        }
    }

    #[cold]
    fn add(&self, shard: &Shard<C>, address: Address, now: clock::Tick) -> ConnResource<C> {
        let made = (self.shared.make)(address.clone());
        let (resource, surplus, forgotten) =
            shard.lock().insert(address, made, now, self.shared.forget_after);
        drop((surplus, forgotten));
        resource
    }

    /// The resource of an address, if it is known. Does not count as asking for it.
    pub fn find(&self, address: impl AsRef<str>) -> Option<ConnResource<C>> {
        let address = address.as_ref();
        self.shared.table.shard(address).0.lock().peek(address)
    }

    /// [`ConnResource::schedule_close`], if the address is known. Returns whether it is.
    #[doc(alias = "ScheduleClose")]
    pub fn schedule_close(&self, address: impl AsRef<str>) -> bool {
        let known = self.find(address);
        known.inspect(ConnResource::schedule_close).is_some()
    }

    /// [`ConnResource::schedule_close`] of all.
    pub fn schedule_close_all(&self) {
        self.iter().for_each(|resource| resource.schedule_close());
    }

    /// Forgets the addresses for which `keep` is false. Of those, idle connections close at once, and those in use when
    /// they are put.
    ///
    /// Who holds such a resource may go on using it; who asks for the address again gets another.
    pub fn retain(&self, mut keep: impl FnMut(&Address, &ConnResource<C>) -> bool) {
        for shard in self.shared.table.shards() {
            let mut leaving = shard.lock().all();
            leaving.retain(|resource| !keep(resource.address(), resource));
            for resource in leaving {
                let forgotten = shard.lock().remove(&resource);
                drop(forgotten);
                // Otherwise its end closes what there is. No stock is dialled for who is about to go.
                if !resource.is_sole_handle() {
                    resource.schedule_close();
                }
            }
        }
    }

    /// Forgets all addresses: [`retain`](Self::retain) of none.
    pub fn clear(&self) {
        self.retain(|_, _| false);
    }

    /// The resources of all known addresses, in no particular order. Those that come or go meanwhile may be missed.
    ///
    /// Holds handles of some of them at a time; those are not forgotten meanwhile.
    pub fn iter(&self) -> impl Iterator<Item = ConnResource<C>> + Send + '_ {
        self.shared.table.shards().iter().flat_map(|shard| shard.lock().all())
    }

    /// The numbers of all known addresses; see [`iter`](Self::iter).
    #[doc(alias = "status")]
    #[doc(alias = "state")]
    pub fn stats(&self) -> impl Iterator<Item = (Address, ResourceStats)> + Send + '_ {
        self.iter().map(|resource| (resource.address().clone(), resource.stats()))
    }
}

/// Whether a resource is closed, and its budget is not.
fn is_closed_alone<C: Send + 'static>(resource: &ConnResource<C>) -> bool {
    let shared = resource.shared();
    // Nothing rests where it is closed (I6): the warm path asks no further.
    shared.resting() == 0 && shared.is_closed() && {
        let partition = shared.partition();
        !partition.ledger.lock().is_closed(partition.account)
    }
}

impl<C> Peers<C> {
    /// How many addresses are known.
    pub fn len(&self) -> usize {
        self.shared.table.shards().iter().map(|shard| shard.lock().len()).sum()
    }

    /// Whether no address is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Plain TCP connections to `host:port`, under the [global](Budget::global) budget.
impl Default for Peers<TcpStream> {
    fn default() -> Self {
        Self::new(Tcp::default())
    }
}

impl<C> Clone for Peers<C> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<C> fmt::Debug for Peers<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers")
            .field("len", &self.len())
            .field("forget_after", &self.shared.forget_after)
            .finish_non_exhaustive()
    }
}

/// Builds [`Peers`]; made by [`Peers::builder`].
#[must_use = "build() makes the peers"]
pub struct PeersBuilder<D: Dial> {
    dialer: D,
    budget: Option<Budget>,
    configure: Option<Box<Configure<D::Conn>>>,
    forget_after: Option<Duration>,
}

type Configure<C> = dyn Fn(ConnResourceBuilder<C>) -> ConnResourceBuilder<C> + Send + Sync;

impl<D: Dial> PeersBuilder<D> {
    /// The budget to count in. Default: the [global](Budget::global) one.
    pub fn budget(mut self, budget: &Budget) -> Self {
        self.budget = Some(budget.clone());
        self
    }

    /// What each resource is to be like. Called for each new address, outside of all locks. If two callers ask for a new
    /// address at once, it may be called twice, and one of the two resources is dropped unused. Default: as
    /// [`ConnResourceBuilder`] says.
    pub fn configure(
        mut self,
        configure: impl Fn(ConnResourceBuilder<D::Conn>) -> ConnResourceBuilder<D::Conn> + Send + Sync + 'static,
    ) -> Self {
        self.configure = Some(Box::new(configure));
        self
    }

    /// How long an address is remembered that nobody asks for, if it has nothing open and nobody holds its resource.
    /// `None`: for ever. Default: 10 minutes.
    ///
    /// Let it be longer than the longest interval at which you come back to an address: after it, the address counts as
    /// new.
    pub fn forget_after(mut self, span: impl Into<Option<Duration>>) -> Self {
        self.forget_after = span.into();
        self
    }

    /// Makes the registry.
    pub fn build(self) -> Peers<D::Conn> {
        let Self { dialer, budget, configure, forget_after } = self;
        let dialer = Arc::new(dialer);
        let make = move |address: Address| {
            let mut builder = ConnResource::builder(address, Arc::clone(&dialer));
            if let Some(budget) = &budget {
                builder = builder.budget(budget);
            }
            if let Some(configure) = &configure {
                builder = configure(builder);
            }
            builder.build()
        };
        Peers { shared: Arc::new(Shared { table: Table::new(), make: Box::new(make), forget_after }) }
    }
}

impl<D: Dial> fmt::Debug for PeersBuilder<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeersBuilder")
            .field("budget", &self.budget)
            .field("forget_after", &self.forget_after)
            .finish_non_exhaustive()
    }
}
