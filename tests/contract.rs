//! The public interface as programs outside see it: every name and signature that is promised, the traits its
//! types keep, and what its conversions preserve. What a call does when is in the other tests.

use std::borrow::{Borrow, Cow};
use std::cell::Cell;
use std::collections::{BTreeSet, HashSet};
use std::error::Error;
use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::io::{self, ErrorKind, IoSlice};
use std::marker::PhantomPinned;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fdpool::dial::{BoxStream, Boxed, CheckContext, FromFn, Tcp};
use fdpool::{
    Acquire, AcquireError, Address, Budget, BudgetBuilder, BudgetStats, CancellationToken, Conn,
    ConnResource, ConnResourceBuilder, Dial, DialContext, DialError, Explain, Fitness, Get, GetError,
    GlobalAlreadySet, Held, LimitError, Phase, Reclaim, Registration, ResourceStats, Slot, dial,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::net::{TcpListener, TcpStream};

const SECOND: Duration = Duration::from_secs(1);

/// A type that keeps next to no trait: it can be sent, and no more.
#[allow(dead_code, reason = "its fields are there for what they are not")]
struct Plain(Cell<u8>, PhantomPinned);

/// A dialer written out in full, as the trait is.
#[derive(Debug)]
struct Handmade;

impl Dial for Handmade {
    type Conn = DuplexStream;

    async fn dial(&self, _address: &Address, _cx: &DialContext) -> Result<DuplexStream, DialError> {
        Ok(duplex(64).0)
    }

    fn check(&self, conn: &mut DuplexStream, cx: &CheckContext) -> Fitness {
        let _idle: Duration = cx.idle_for();
        Fitness::probe(conn)
    }

    fn poll_idle(&self, _conn: &mut DuplexStream, _cx: &mut Context<'_>) -> Poll<Fitness> {
        Poll::Pending
    }

    fn close(&self, conn: DuplexStream) {
        drop(conn);
    }
}

/// A dialer with the required methods only, its future written out.
#[derive(Debug)]
struct Least;

impl Dial for Least {
    type Conn = Plain;

    fn dial(
        &self,
        address: &Address,
        _cx: &DialContext,
    ) -> impl Future<Output = Result<Plain, DialError>> + Send {
        let refused = address.as_str() == "refused";
        async move {
            match refused {
                true => Err(ErrorKind::ConnectionRefused.into()),
                false => Ok(Plain(Cell::new(0), PhantomPinned)),
            }
        }
    }

    fn check(&self, _conn: &mut Plain, _cx: &CheckContext) -> Fitness {
        Fitness::Fit
    }
}

struct Participant;

impl Reclaim for Participant {
    fn idle(&self) -> usize {
        0
    }

    fn reclaim_one(&self) -> bool {
        false
    }
}

fn debug<T: Debug + ?Sized>() {}
fn send<T: Send>() {}
fn shared<T: Send + Sync>() {}
fn unpin<T: Unpin>() {}
fn handle<T: Clone + Debug + Send + Sync + 'static>() {}
fn error<T: Error + Send + Sync + 'static>() {}
fn read_write<T: AsyncRead + AsyncWrite>() {}
fn dialer<D: Dial>() {}
fn ready_with<T>(_: &(impl Future<Output = T> + Send)) {}

#[allow(dead_code, reason = "compiled, never run")]
mod signatures {
    use super::*;

    fn budget() {
        let _: fn() -> &'static Budget = Budget::global;
        let _: fn(Budget) -> Result<(), GlobalAlreadySet> = Budget::set_global;
        let _: fn(usize) -> Budget = Budget::new;
        let _: fn() -> BudgetBuilder = Budget::builder;
        let _: fn(&Budget) -> usize = Budget::limit;
        let _: fn(&Budget) -> usize = Budget::effective_limit;
        let _: fn(&Budget, usize) = Budget::set_limit;
        let _: for<'a> fn(&'a Budget) -> Acquire<'a> = Budget::acquire;
        let _: for<'a> fn(&'a Budget, usize) -> Acquire<'a> = Budget::acquire_many;
        let _: fn(&Budget) -> Option<Slot> = Budget::try_acquire;
        let _: fn(&Budget) -> Result<Slot, AcquireError> = Budget::blocking_acquire;
        let _: fn(&Budget, usize) -> Budget = Budget::child;
        let _: fn(&Budget, &Arc<Participant>) -> Registration = Budget::register;
        let _: fn(&Registration) = Registration::became_idle;
        let _: fn(&Budget) -> BudgetStats = Budget::stats;
        let _: fn(&Budget) -> Explain = Budget::explain;

        let _: fn(BudgetBuilder, usize) -> BudgetBuilder = BudgetBuilder::reserve;
        let _: fn(BudgetBuilder, bool) -> BudgetBuilder = BudgetBuilder::raise_soft_limit;
        let _: fn(BudgetBuilder, usize) -> BudgetBuilder = BudgetBuilder::limit;
        let _: fn(BudgetBuilder, usize) -> BudgetBuilder = BudgetBuilder::max_dialing;
        let _: fn(BudgetBuilder) -> Result<Budget, LimitError> = BudgetBuilder::build;
    }

    fn acquire<'a>(acquire: Acquire<'a>, token: &'a CancellationToken) {
        let _: fn(Acquire<'a>, &'a CancellationToken) -> Acquire<'a> = Acquire::cancel;
        let _: fn(Acquire<'a>, Duration) -> Acquire<'a> = Acquire::wait_timeout;
        let _: fn(Acquire<'a>) -> Acquire<'a> = Acquire::immediate;
        ready_with::<Result<Slot, AcquireError>>(&acquire);
        drop(acquire.cancel(token).wait_timeout(SECOND).immediate());
    }

    fn slot<T, U>() {
        let _: fn(Slot, T) -> Held<T> = Slot::hold;
        let _: fn(&mut Slot, usize) -> Option<Slot> = Slot::split;
        let _: fn(&Slot) -> usize = Slot::weight;
        type Map<T, U> = fn(Held<T>, fn(T) -> U) -> Held<U>;
        let _: Map<T, U> = Held::map;
        let _: fn(Held<T>) -> (T, Slot) = Held::into_parts;
        let _: for<'a> fn(&'a Held<T>) -> &'a T = <Held<T> as std::ops::Deref>::deref;
        let _: for<'a> fn(&'a mut Held<T>) -> &'a mut T = <Held<T> as std::ops::DerefMut>::deref_mut;
    }

    fn address() {
        let _: fn(&Address) -> &str = Address::as_str;
        let _: fn(&Address) -> &str = <Address as Borrow<str>>::borrow;
    }

    /// Of plain TCP, which is what the types are without a parameter.
    fn tcp(conn: Conn, resource: ConnResource) -> (Conn<TcpStream>, ConnResource<TcpStream>) {
        let _: fn(&'static str) -> ConnResource = ConnResource::new;
        let _: fn(SocketAddr) -> ConnResource = ConnResource::new;
        (conn, resource)
    }

    /// For whatever can be sent.
    fn resource<C: Send + 'static, D: Dial<Conn = C>>(get: Get<'_, C>) {
        let _: fn(&'static str, D) -> ConnResource<C> = ConnResource::with_dialer;
        let _: fn(&'static str, D) -> ConnResourceBuilder<C> = ConnResource::builder;
        let _: for<'a> fn(&'a ConnResource<C>) -> Get<'a, C> = ConnResource::get;
        let _: fn(&ConnResource<C>) -> Get<'static, C> = ConnResource::get_owned;
        let _: fn(&ConnResource<C>) -> Option<Conn<C>> = ConnResource::try_get;
        let _: fn(&ConnResource<C>) = ConnResource::schedule_close;
        let _: fn(&ConnResource<C>) -> &Address = ConnResource::address;
        let _: fn(&ConnResource<C>) -> &Budget = ConnResource::budget;
        let _: fn(&ConnResource<C>) -> ResourceStats = ConnResource::stats;
        ready_with::<Result<Conn<C>, GetError>>(&get);

        type Builder<C> = ConnResourceBuilder<C>;
        let _: fn(Builder<C>, &Budget) -> Builder<C> = Builder::budget;
        let _: fn(Builder<C>, Duration) -> Builder<C> = Builder::idle_timeout;
        let _: fn(Builder<C>, Option<Duration>) -> Builder<C> = Builder::idle_timeout;
        let _: fn(Builder<C>, Duration) -> Builder<C> = Builder::max_lifetime;
        let _: fn(Builder<C>, Option<Duration>) -> Builder<C> = Builder::max_lifetime;
        let _: fn(Builder<C>, Duration) -> Builder<C> = Builder::dial_timeout;
        let _: fn(Builder<C>, Option<Duration>) -> Builder<C> = Builder::dial_timeout;
        let _: fn(Builder<C>, Duration) -> Builder<C> = Builder::wait_timeout;
        let _: fn(Builder<C>, Option<Duration>) -> Builder<C> = Builder::wait_timeout;
        let _: fn(Builder<C>) -> ConnResource<C> = Builder::build;
        send::<Get<'static, C>>();
        unpin::<Get<'static, C>>();
        unpin::<Conn<C>>();
        shared::<ConnResource<C>>();
        send::<Conn<C>>();
    }

    /// Without a bound on what is pooled.
    fn unbounded<'a, C: 'a>() {
        let _: fn(Get<'a, C>, &'a CancellationToken) -> Get<'a, C> = Get::cancel;
        let _: fn(Get<'a, C>, Duration) -> Get<'a, C> = Get::timeout;
        let _: fn(Get<'a, C>, Duration) -> Get<'a, C> = Get::wait_timeout;
        let _: fn(Get<'a, C>, Duration) -> Get<'a, C> = Get::dial_timeout;
        let _: fn(Get<'a, C>) -> Get<'a, C> = Get::immediate;
        let _: fn(Get<'a, C>) -> Get<'a, C> = Get::fresh;
        let _: fn(Get<'a, C>, Slot) -> Get<'a, C> = Get::with_slot;

        let _: fn(Conn<C>) = Conn::put;
        let _: fn(Conn<C>) = Conn::close;
        let _: fn(&Conn<C>) -> bool = Conn::is_reused;
        let _: fn(&Conn<C>) -> Duration = Conn::age;
        let _: fn(&Conn<C>) -> &Address = Conn::address;
        let _: fn(Conn<C>) -> Held<C> = Conn::into_held;
        let _: for<'b> fn(&'b Conn<C>) -> &'b C = <Conn<C> as std::ops::Deref>::deref;
        let _: for<'b> fn(&'b mut Conn<C>) -> &'b mut C = <Conn<C> as std::ops::DerefMut>::deref_mut;
    }

    fn stream<C: AsyncRead + AsyncWrite + Unpin + Send + 'static>(mut conn: Conn<C>) {
        ready_with::<io::Result<usize>>(&conn.discard_pending(SECOND, 1024));
        ready_with::<io::Result<()>>(&conn.shutdown());
        read_write::<Conn<C>>();
        read_write::<Held<C>>();
    }

    fn dialing<Io, C: AsyncRead + Unpin>() {
        let _: fn() -> DialContext = DialContext::detached;
        let _: fn(&DialContext) -> Option<Slot> = DialContext::try_extra_slot;
        let _: fn(&DialContext, Io) -> Held<Io> = DialContext::hold;
        let _: fn(&CheckContext) -> Duration = CheckContext::idle_for;
        let _: fn(&mut C) -> Fitness = Fitness::probe;

        let _: fn(io::Error) -> DialError = DialError::from;
        let _: fn(ErrorKind) -> DialError = DialError::from;
        let _: fn(&'static str) -> DialError = DialError::new;
        let _: fn(String) -> DialError = DialError::new;
        let _: fn(io::Error) -> DialError = DialError::new;
        let _: fn(&DialError) -> Option<ErrorKind> = DialError::io_kind;
        let _: fn(&DialError) -> bool = DialError::is_permanent;
    }

    fn errors() {
        let _: fn(AcquireError) -> GetError = GetError::from;
        let _: fn(GetError) -> io::Error = io::Error::from;
        let _: fn(&GetError) -> bool = GetError::is_timeout;
        let _: fn(&GetError) -> &Address = GetError::address;
        let _: fn(&GetError) -> Phase = GetError::phase;
    }

    /// All variants by name, and room for more.
    #[deny(unreachable_patterns)]
    fn variants(get: &GetError, acquire: &AcquireError, fitness: Fitness) {
        match get {
            GetError::Cancelled { .. } | GetError::Exhausted { .. } | GetError::AddressBusy { .. } => {}
            GetError::DialTimeout { .. } | GetError::Closed { .. } => {}
            GetError::Dial { source, .. } => drop::<DialError>(source.clone()),
            _ => {}
        }
        match acquire {
            AcquireError::Cancelled { .. } | AcquireError::Exhausted { .. } => {}
            AcquireError::Closed { .. } => {}
            _ => {}
        }
        let all = [Fitness::Fit, Fitness::Busy, Fitness::Closed, Fitness::Dirty, Fitness::Broken];
        assert!(all.contains(&fitness));
    }

    fn stats(budget: BudgetStats, resource: ResourceStats) {
        let BudgetStats { limit, effective_limit, in_use, idle, dialing, closing, held, .. } = budget;
        let BudgetStats { waiting, foreign_fds, .. } = budget;
        let _: [usize; 7] = [limit, effective_limit, in_use, idle, dialing, closing, held];
        let _: [usize; 2] = [waiting, foreign_fds];
        let BudgetStats { dials, dial_failures, reused, evicted, expired, stale, .. } = budget;
        let BudgetStats { dirty, broken, dropped, waits, emfile, .. } = budget;
        let _: [u64; 6] = [dials, dial_failures, reused, evicted, expired, stale];
        let _: [u64; 5] = [dirty, broken, dropped, waits, emfile];

        let ResourceStats { in_use, idle, dialing, closing, waiting, .. } = resource;
        let _: [usize; 5] = [in_use, idle, dialing, closing, waiting];
        let ResourceStats { dials, dial_failures, reused, evicted, expired, stale, .. } = resource;
        let ResourceStats { dirty, broken, dropped, waits, emfile, .. } = resource;
        let _: [u64; 6] = [dials, dial_failures, reused, evicted, expired, stale];
        let _: [u64; 5] = [dirty, broken, dropped, waits, emfile];
    }

    /// A token that lives for a task only, with a get that lives for ever.
    async fn owned_get_with_local_token(resource: &ConnResource) -> Result<Conn, GetError> {
        let get = resource.get_owned();
        let token = tokio_util::sync::CancellationToken::new();
        get.cancel(&token).await
    }

    async fn errors_become_io_errors(resource: &ConnResource) -> io::Result<Slot> {
        resource.get().await?.put();
        let slot = async { Ok::<_, GetError>(resource.budget().acquire().await?) };
        Ok(slot.await?)
    }
}

#[test]
fn everything_public_is_debug() {
    debug::<Address>();
    debug::<Budget>();
    debug::<BudgetBuilder>();
    debug::<Acquire<'_>>();
    debug::<Slot>();
    debug::<Held<TcpStream>>();
    debug::<dyn Error>();
    debug::<Registration>();
    debug::<BudgetStats>();
    debug::<ResourceStats>();
    debug::<fdpool::BudgetCounts>();
    debug::<Explain>();
    debug::<ConnResource<Plain>>();
    debug::<ConnResourceBuilder<Plain>>();
    debug::<Get<'_, Plain>>();
    debug::<Conn>();
    debug::<DialContext>();
    debug::<CheckContext>();
    debug::<Fitness>();
    debug::<Tcp>();
    debug::<Boxed<Tcp>>();
    debug::<BoxStream>();
    debug::<FromFn<fn(), fn()>>();
    debug::<DialError>();
    debug::<GetError>();
    debug::<fdpool::GetDetails>();
    debug::<AcquireError>();
    debug::<fdpool::AcquireDetails>();
    debug::<Phase>();
    debug::<LimitError>();
    debug::<GlobalAlreadySet>();
}

#[test]
fn handles_can_be_cloned_and_shared() {
    handle::<Budget>();
    handle::<ConnResource>();
    handle::<ConnResource<Plain>>();
    handle::<ConnResource<BoxStream>>();
    handle::<Address>();
    shared::<Slot>();
    shared::<Registration>();
    shared::<DialContext>();
    shared::<Conn>();
    shared::<Held<TcpStream>>();
    send::<Conn<Plain>>();
    send::<ConnResourceBuilder<Plain>>();
    send::<BoxStream>();
}

#[test]
fn futures_can_be_sent_and_moved() {
    send::<Get<'_, Plain>>();
    send::<Acquire<'_>>();
    unpin::<Get<'_, Plain>>();
    unpin::<Acquire<'_>>();
    unpin::<Conn<Plain>>();
}

#[test]
fn errors_are_errors_and_small() {
    error::<GetError>();
    error::<AcquireError>();
    error::<DialError>();
    error::<LimitError>();
    error::<GlobalAlreadySet>();
    assert!(size_of::<GetError>() <= 32, "{}", size_of::<GetError>());
    assert!(size_of::<AcquireError>() <= 32, "{}", size_of::<AcquireError>());
    assert!(size_of::<DialError>() <= 32, "{}", size_of::<DialError>());
}

#[test]
fn an_address_is_made_of_many_things() {
    fn address(address: impl Into<Address>) -> String {
        address.into().as_str().to_owned()
    }
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    let owned = String::from("host:80");
    let made = Address::from("host:80");
    for made in [
        address("host:80"),
        address(&owned),
        address(&made),
        address(made),
        address(Cow::Borrowed("host:80")),
        address(Cow::<'_, str>::Owned(owned.clone())),
        address(Box::<str>::from("host:80")),
        address(("host", 80)),
        address((String::from("host"), 80)),
        address(owned),
    ] {
        assert_eq!(made, "host:80");
    }
    assert_eq!(address(SocketAddr::new(v4, 80)), "127.0.0.1:80");
    assert_eq!(address((v4, 80)), "127.0.0.1:80");
    for made in [
        address(SocketAddr::new(v6, 80)),
        address((v6, 80)),
        address(("::1", 80)),
        address((String::from("::1"), 80)),
        address(("[::1]", 80)),
        address(("0:0::1", 80)),
    ] {
        assert_eq!(made, "[::1]:80");
    }
    assert_eq!(address(("fe80::1%eth0", 80)), "[fe80::1%eth0]:80");
    assert_eq!(address(("fe80%eth0", 80)), "fe80%eth0:80");
    assert_eq!(address(Path::new("/run/peer.sock")), "/run/peer.sock");
}

#[test]
fn an_address_is_a_key() {
    fn key<T: Clone + Eq + Hash + Ord + Borrow<str> + Display + Debug>() {}
    key::<Address>();
    let address = Address::from("host:80");
    assert!(HashSet::from([address.clone()]).contains("host:80"));
    assert!(BTreeSet::from([address.clone()]).contains("host:80"));
    assert_eq!((address.to_string(), format!("{address:>8}")), ("host:80".into(), " host:80".into()));
}

#[test]
fn the_token_is_that_of_tokio_util() {
    let _: fn(tokio_util::sync::CancellationToken) -> CancellationToken = std::convert::identity;
}

#[test]
fn settings_chain() {
    let builder = Budget::builder().reserve(1).raise_soft_limit(false).limit(5).max_dialing(2);
    let budget = builder.build().unwrap();
    assert_eq!((budget.limit(), budget.effective_limit()), (5, 5));
    let resource = ConnResource::builder("nowhere", Handmade)
        .budget(&budget)
        .max_conns(3)
        .max_idle(2)
        .min_idle(0)
        .max_uses(100)
        .idle_timeout(SECOND)
        .max_lifetime(None)
        .dial_timeout(Some(SECOND))
        .wait_timeout(SECOND)
        .build();
    assert_eq!(resource.budget().limit(), 5);
    assert_eq!(resource.address().as_str(), "nowhere");
}

#[tokio::test]
async fn options_chain() {
    let budget = Budget::new(2);
    let resource = ConnResource::builder("nowhere", Least).budget(&budget).build();
    let token = CancellationToken::new();
    let get = resource.get().cancel(&token).timeout(SECOND).wait_timeout(SECOND).dial_timeout(SECOND);
    let first = get.immediate().fresh().await.unwrap();
    let slot = budget.acquire().cancel(&token).wait_timeout(SECOND).immediate().await.unwrap();
    let second = resource.get_owned().with_slot(slot).await.unwrap();
    assert_eq!(budget.stats().in_use, 2);
    first.put();
    second.put();
    assert!(resource.try_get().is_some_and(|conn| conn.is_reused()));
}

#[test]
fn dialers_compose() {
    fn of<C>(_: &impl Dial<Conn = C>) {}
    dialer::<Handmade>();
    dialer::<Least>();
    dialer::<Arc<Handmade>>();
    dialer::<Tcp>();
    dialer::<Boxed<Tcp>>();
    dialer::<Arc<Boxed<Arc<Handmade>>>>();
    of::<TcpStream>(&Tcp::default());
    of::<BoxStream>(&Boxed::new(Tcp::default()));
    of::<u8>(&dial::from_fn(|_: &Address, _: &DialContext| async { Ok(1) }, |_, _| Fitness::Fit));
    fn with_function<C, F, K, Fut>(dial: F, check: K) -> FromFn<F, K>
    where
        C: Send + 'static,
        F: Fn(&Address, &DialContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<C, DialError>> + Send + 'static,
        K: Fn(&mut C, &CheckContext) -> Fitness + Send + Sync + 'static,
    {
        dial::from_fn(dial, check)
    }
    let _ = with_function(|_: &Address, _: &DialContext| async { Ok(1) }, |_: &mut u8, _| Fitness::Fit);
}

#[tokio::test]
async fn a_dialer_is_tested_without_a_resource() {
    fn sent(future: impl Future + Send) -> impl Future {
        future
    }
    let cx = DialContext::detached();
    sent(Handmade.dial(&"nowhere".into(), &cx)).await;
    let held = cx.hold(1);
    let extra = cx.try_extra_slot().unwrap();
    assert_eq!((*held, extra.weight()), (1, 1));
}

#[test]
#[should_panic = "hold"]
fn a_dial_has_one_slot_to_hold_with() {
    let cx = DialContext::detached();
    let _first = cx.hold(1);
    let _second = cx.hold(2);
}

#[test]
fn a_probe_tells_what_a_stream_says() {
    let (mut near, mut far) = duplex(8);
    assert_eq!(Fitness::probe(&mut near), Fitness::Fit);
    futures::executor::block_on(far.write_all(b"x")).unwrap();
    assert_eq!(Fitness::probe(&mut near), Fitness::Dirty);
    drop(far);
    assert_eq!(Fitness::probe(&mut near), Fitness::Closed);
    struct Failing;
    impl AsyncRead for Failing {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(ErrorKind::ConnectionReset.into()))
        }
    }
    assert_eq!(Fitness::probe(&mut Failing), Fitness::Broken);
}

#[tokio::test]
async fn connections_read_and_write_also_vectored() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let budget = Budget::new(2);
    let boxed = ConnResource::builder(address, Boxed::new(Arc::new(Tcp::default()))).budget(&budget).build();
    let (mut conn, mut peer) = (boxed.get().await.unwrap(), listener.accept().await.unwrap().0);

    assert!(conn.is_write_vectored());
    assert_eq!(conn.write_vectored(&[IoSlice::new(b"ab"), IoSlice::new(b"cd")]).await.unwrap(), 4);
    let mut four = [0; 4];
    peer.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"abcd");
    peer.write_all(b"efgh").await.unwrap();
    conn.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"efgh");

    let mut held = conn.into_held();
    assert!(held.is_write_vectored());
    assert_eq!(held.write_vectored(&[IoSlice::new(b"ij"), IoSlice::new(b"kl")]).await.unwrap(), 4);
    peer.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"ijkl");
    held.shutdown().await.unwrap();
    assert_eq!(peer.read(&mut four).await.unwrap(), 0);
    assert_eq!(budget.stats().held, 1);
    drop(held);
    assert_eq!(budget.stats().held, 0);
}

#[tokio::test]
async fn a_slot_is_held_split_and_given_back() {
    let budget = Budget::new(3);
    let mut slot = budget.acquire_many(3).await.unwrap();
    assert!(slot.split(4).is_none());
    let two = slot.split(2).unwrap();
    assert_eq!((slot.weight(), two.weight()), (1, 2));
    let held = Held::map(slot.hold(20_u8), |value| u16::from(value) + 1);
    assert_eq!(*held, 21);
    let (value, slot) = Held::into_parts(held);
    assert_eq!((value, slot.weight(), budget.stats().held), (21, 1, 3));
    drop((slot, two));
    assert_eq!(budget.stats().held, 0);
    assert!(matches!(budget.acquire_many(4).await, Err(AcquireError::Exhausted { .. })));
}

#[tokio::test]
async fn errors_keep_kind_and_source() {
    let budget = Budget::new(1);
    let resource = ConnResource::builder("refused", Least).budget(&budget).build();
    let error = resource.get().await.err().unwrap();
    assert!(matches!(&error, GetError::Dial { source, .. } if !source.is_permanent()));
    assert_eq!((error.address().as_str(), error.phase()), ("refused", Phase::Dialing));
    let error = io::Error::from(error);
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert!(error.get_ref().is_some_and(|inner| inner.is::<GetError>()));
    let source = error.source().and_then(|source| source.downcast_ref::<DialError>());
    assert_eq!(source.and_then(DialError::io_kind), Some(ErrorKind::ConnectionRefused));

    let slot = budget.acquire().await.unwrap();
    let timeout = resource.get().wait_timeout(Duration::from_millis(1)).await.err().unwrap();
    assert!(timeout.is_timeout() && matches!(timeout, GetError::Exhausted { .. }));
    assert_eq!(io::Error::from(timeout).kind(), ErrorKind::TimedOut);
    let refused = GetError::from(budget.acquire().immediate().await.err().unwrap());
    assert!(!refused.is_timeout() && matches!(refused, GetError::Exhausted { .. }));
    drop(slot);
}

#[tokio::test]
async fn an_explanation_is_displayed() {
    let budget = Budget::new(1);
    fn displays(explain: &(impl Display + Debug)) -> bool {
        !explain.to_string().is_empty()
    }
    assert!(displays(&budget.explain()));
    let participant = Arc::new(Participant);
    let registration: Registration = budget.register(&participant);
    registration.became_idle();
}
