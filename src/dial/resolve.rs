//! Names: what turns one into addresses, and what it is given. Looks nothing up by itself: the dialers ask.
//!
//! [`Tcp`](super::Tcp) resolves names with [`System`], or with what it was given by
//! [`resolver`](super::Tcp::resolver).

use std::future::Future;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;

use socket2::{Domain, Socket, Type};
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::{DialContext, SlotShare};
use crate::Slot;
use crate::error::{DialError, is_out_of_descriptors};
use crate::sync::{AtomicUsize, Mutex, Ordering};

#[cfg(feature = "hickory")]
mod hickory;
pub(super) mod names;
mod table;

#[cfg(feature = "hickory")]
pub use hickory::Hickory;

/// Turns names into addresses.
///
/// The addresses come in the order in which they are to be tried; the families are made to take turns afterwards. They have
/// no zone: a link-local IPv6 address is of no use here, only as part of an address that names its interface.
/// Several lookups may run at once, of one name too.
///
/// # Cancel safety
///
/// The future may be dropped at any await. Work that goes on nonetheless, on a blocking thread say, takes a
/// [`share`](ResolveContext::share) along.
///
/// # Errors
///
/// An error that is [permanent](DialError::permanent) says that there is no such name; it fails the dial. Any other
/// says that the resolver has no answer now: the last one it gave goes on being dialled. No addresses at all count
/// as such a failure.
///
/// # Examples
///
/// ```
/// use std::collections::HashMap;
/// use std::net::IpAddr;
///
/// use fdpool::dial::Tcp;
/// use fdpool::dial::resolve::{Resolve, ResolveContext};
/// use fdpool::{ConnResource, DialError};
///
/// /// Names from a file, say.
/// struct Listed(HashMap<String, Vec<IpAddr>>);
///
/// impl Resolve for Listed {
///     async fn resolve(&self, host: &str, _cx: &ResolveContext) -> Result<Vec<IpAddr>, DialError> {
///         self.0.get(host).cloned().ok_or_else(|| DialError::new("not listed").permanent())
///     }
/// }
///
/// let listed = Listed(HashMap::from([("db".to_owned(), vec![IpAddr::from([10, 0, 0, 7])])]));
/// let db = ConnResource::with_dialer("db:5432", Tcp::default().resolver(listed));
/// ```
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of a host. `host` is neither empty nor an IP address.
    fn resolve(
        &self,
        host: &str,
        cx: &ResolveContext,
    ) -> impl Future<Output = Result<Vec<IpAddr>, DialError>> + Send;
}

impl<R: Resolve> Resolve for Arc<R> {
    fn resolve(
        &self,
        host: &str,
        cx: &ResolveContext,
    ) -> impl Future<Output = Result<Vec<IpAddr>, DialError>> + Send {
        R::resolve(self, host, cx)
    }
}

/// A [`Resolve`] whose type is forgotten.
trait AnyResolve: Send + Sync {
    fn type_name(&self) -> &'static str;
    fn resolve(self: Arc<Self>, host: Arc<str>, cx: ResolveContext) -> Lookup;
}

/// It may go on without the dial that began it.
type Lookup = Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, DialError>> + Send>>;

impl<R: Resolve> AnyResolve for R {
    fn type_name(&self) -> &'static str {
        std::any::type_name::<R>()
    }

    fn resolve(self: Arc<Self>, host: Arc<str>, cx: ResolveContext) -> Lookup {
        Box::pin(async move { Resolve::resolve(&*self, &host, &cx).await })
    }
}

/// What a lookup is given.
#[derive(Debug)]
pub struct ResolveContext(Arc<Ticket>);

/// What counts a lookup's descriptors.
#[derive(Debug)]
struct Ticket {
    place: Mutex<Place>,
    shares: AtomicUsize,
    /// Tells of shares that were dropped.
    returned: Notify,
}

/// Where a lookup belongs.
#[derive(Debug)]
enum Place {
    /// To a dial: its slot, which no connection needs yet. Can become Parted or Background.
    Dial(#[expect(dead_code, reason = "held")] SlotShare),
    /// To a dial that went on without it: a slot of its own.
    Parted(#[expect(dead_code, reason = "held")] Slot),
    /// To nobody's, or to one that went on without it: one of few, which no slot stands for.
    Background(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit),
    Detached,
}

impl ResolveContext {
    /// A context of no dial, to test a resolver with.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), fdpool::DialError> {
    /// use fdpool::dial::resolve::{Resolve, ResolveContext, System};
    ///
    /// let addresses = System.resolve("localhost", &ResolveContext::detached()).await?;
    /// assert!(addresses[0].is_loopback());
    /// # Ok(()) }
    /// ```
    pub fn detached() -> Self {
        Self::new(Place::Detached)
    }

    fn of_dial(cx: &DialContext) -> Self {
        Self::new(Place::Dial(cx.share_slot()))
    }

    fn in_background(permit: OwnedSemaphorePermit) -> Self {
        Self::new(Place::Background(permit))
    }

    fn new(place: Place) -> Self {
        let (place, shares, returned) = (Mutex::new(place), AtomicUsize::new(0), Notify::new());
        Self(Arc::new(Ticket { place, shares, returned }))
    }

    /// The same, for what does the lookup.
    fn same(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// Runs a lookup that blocks, on tokio's threads for such work, with a [`share`](Self::share) for as long as it runs.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, a lookup that has begun goes on and keeps its share; one that has not begun never does.
    ///
    /// # Errors
    ///
    /// If the lookup panics, or the runtime ends.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io;
    /// use std::net::IpAddr;
    ///
    /// use fdpool::DialError;
    /// use fdpool::dial::resolve::{Resolve, ResolveContext};
    ///
    /// # fn ask_a_library(host: &str) -> io::Result<Vec<IpAddr>> { Ok(vec![]) }
    /// struct Blocking;
    ///
    /// impl Resolve for Blocking {
    ///     async fn resolve(&self, host: &str, cx: &ResolveContext) -> Result<Vec<IpAddr>, DialError> {
    ///         let host = host.to_owned();
    ///         Ok(cx.run_blocking(move || ask_a_library(&host)).await??)
    ///     }
    /// }
    /// ```
    pub async fn run_blocking<T: Send + 'static>(
        &self,
        lookup: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        // A thread that is busy with something else would not drop what it was to have before it comes to it.
        let share = Arc::new(Mutex::new(Some(self.share())));
        let begins = TakenOnDrop(Arc::clone(&share));
        let run = tokio::task::spawn_blocking(move || {
            let share = begins.take();
            let answer = share.is_some().then(lookup);
            drop(share); // its sockets are closed
            answer
        });
        // CANCEL: a lookup that has not begun loses its share, and never does; one that has keeps it.
        let _given_up = TakenOnDrop(share);
        Ok(run.await?.expect("BUG: a lookup that is waited for has its share"))
    }

    /// Part in what counts the descriptors of this lookup: the slot of the dial it is for, or its place among those
    /// in the background. For work that cannot be cancelled, if [`run_blocking`](Self::run_blocking) does not do: it keeps
    /// its share until it has ended, or is sure never to begin.
    pub fn share(&self) -> LookupShare {
        self.0.shares.fetch_add(1, Ordering::Relaxed);
        LookupShare(Arc::clone(&self.0))
    }

    /// Whether something of it cannot be cancelled, and goes on.
    fn is_shared(&self) -> bool {
        // Acquire: pairs with the share's drop. What it had open is closed before the dial opens its own.
        self.0.shares.load(Ordering::Acquire) > 0
    }

    /// The dial goes on without the lookup, which gets a slot of its own if there is one: the dial needs its own now.
    fn part_with(&self, cx: &DialContext) -> bool {
        if matches!(*self.0.place.lock(), Place::Parted(_) | Place::Background(_)) {
            return true;
        }
        let Some(slot) = cx.try_extra_slot() else { return false };
        let former = std::mem::replace(&mut *self.0.place.lock(), Place::Parted(slot));
        drop(former);
        true
    }

    /// The dial goes on without the lookup, which can be cancelled and takes a place in the background, if there is one.
    fn retire(&self) -> bool {
        let Ok(place) = names::places().try_acquire_owned() else { return false };
        let former = std::mem::replace(&mut *self.0.place.lock(), Place::Background(place));
        drop(former);
        true
    }

    /// The lookup has its answer, and the dial needs its slot: what goes on nonetheless gets one of its own, or is waited for.
    async fn end(&self, cx: &DialContext) {
        while self.is_shared() && !self.part_with(cx) {
            self.0.returned.notified().await;
        }
    }
}

/// A share that whoever comes first takes.
struct TakenOnDrop(Arc<Mutex<Option<LookupShare>>>);

impl TakenOnDrop {
    fn take(&self) -> Option<LookupShare> {
        self.0.lock().take()
    }
}

impl Drop for TakenOnDrop {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// Keeps what counts a lookup until it is dropped. Made by [`ResolveContext::share`].
#[derive(Debug)]
#[must_use = "a share that is dropped keeps nothing"]
pub struct LookupShare(Arc<Ticket>);

impl Drop for LookupShare {
    fn drop(&mut self) {
        self.0.shares.fetch_sub(1, Ordering::Release);
        self.0.returned.notify_one();
    }
}

/// The system's resolver: `getaddrinfo`, on tokio's threads for blocking work.
///
/// It reads `/etc/hosts`, `/etc/resolv.conf` and `/etc/nsswitch.conf`, and puts the addresses in the order of
/// RFC 6724. A lookup that has begun cannot be cancelled: it keeps the slot of its dial until it returns, some ten
/// seconds if no server answers.
///
/// # Errors
///
/// None is permanent: a name that does not exist is not told from a server that does not answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Resolve for System {
    async fn resolve(&self, host: &str, cx: &ResolveContext) -> Result<Vec<IpAddr>, DialError> {
        let host = host.to_owned();
        Ok(cx.run_blocking(move || getaddrinfo(&host)).await??)
    }
}

fn getaddrinfo(host: &str) -> io::Result<Vec<IpAddr>> {
    match (host, 0).to_socket_addrs() {
        Ok(addresses) => Ok(addresses.map(|address| address.ip()).collect()),
        // Some system resolvers hide that they had no descriptor behind "no such name". The pool must know.
        Err(error) => match Socket::new(Domain::IPV4, Type::DGRAM, None) {
            Err(none) if error.raw_os_error().is_none() && is_out_of_descriptors(&none) => Err(none),
            _ => Err(error),
        },
    }
}
