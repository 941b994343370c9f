//! Pools of deadpool under a budget: real sockets, one redis. What needs the process to itself is in
//! `deadpool_alone.rs`.

#[path = "support/servers.rs"]
mod servers;
mod support;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{
    Hook, HookError, Manager, Metrics, PoolError, QueueMode, RecycleResult, TimeoutType, Timeouts,
};
use fdpool::dial::Tcp;
use fdpool::interop::deadpool::{Budgeted, CreateError, Object, Pool, builder};
use fdpool::{AcquireError, Budget, ConnResource};
use servers::Server;
use support::{Peer, assert_at_rest, comes_to_rest, echo_server, settle, sockets_to};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// What the manager is to do next, and what it was asked.
#[derive(Debug, Default)]
struct Script {
    mood: AtomicUsize,
    recycled: AtomicUsize,
    detached: AtomicUsize,
}

const WELL: usize = 0;
const FAILS: usize = 1;
const PANICS: usize = 2;
const HANGS: usize = 3;
const RECYCLE_FAILS: usize = 4;
const RECYCLE_PANICS: usize = 5;
const RECYCLE_HANGS: usize = 6;

#[derive(Clone, Debug)]
struct Streams {
    address: SocketAddr,
    script: Arc<Script>,
}

impl Streams {
    fn to(address: SocketAddr) -> Self {
        Self { address, script: Arc::default() }
    }

    fn mood(&self, mood: usize) {
        self.script.mood.store(mood, Ordering::SeqCst);
    }

    fn detached(&self) -> usize {
        self.script.detached.load(Ordering::SeqCst)
    }
}

impl Manager for Streams {
    type Type = TcpStream;
    type Error = io::Error;

    async fn create(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.address).await?;
        match self.script.mood.load(Ordering::SeqCst) {
            FAILS => Err(io::ErrorKind::PermissionDenied.into()),
            PANICS => panic!("a manager's panic"),
            HANGS => std::future::pending().await,
            _ => Ok(stream),
        }
    }

    async fn recycle(&self, _stream: &mut TcpStream, metrics: &Metrics) -> RecycleResult<io::Error> {
        assert_eq!(metrics.recycle_count, self.script.recycled.fetch_add(1, Ordering::SeqCst), "forwarded");
        match self.script.mood.load(Ordering::SeqCst) {
            RECYCLE_FAILS => Err(io::Error::from(io::ErrorKind::BrokenPipe).into()),
            RECYCLE_PANICS => panic!("a manager's panic"),
            RECYCLE_HANGS => std::future::pending().await,
            _ => Ok(()),
        }
    }

    fn detach(&self, stream: &mut TcpStream) {
        assert!(stream.peer_addr().is_ok() || stream.local_addr().is_ok());
        self.script.detached.fetch_add(1, Ordering::SeqCst);
    }
}

fn pool(address: SocketAddr, budget: &Budget, max_size: usize) -> Pool<Streams> {
    builder(Streams::to(address), budget).max_size(max_size).build().unwrap()
}

fn held(budget: &Budget) -> usize {
    budget.stats().held
}

#[test]
fn everything_can_be_sent_and_shared() {
    fn check<T: Send + Sync + std::fmt::Debug + 'static>() {}
    check::<Budgeted<Streams>>();
    check::<Pool<Streams>>();
    check::<Object<Streams>>();
    check::<CreateError<io::Error>>();
}

#[tokio::test]
async fn objects_have_slots_and_keep_them_while_they_rest() {
    let (budget, peer) = (Budget::new(4), Peer::listen());
    let pool = pool(peer.address, &budget, 4);
    let (first, second) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    assert_eq!((held(&budget), sockets_to(peer.address)), (2, 2));
    let port = first.local_addr().unwrap();
    drop(first);
    assert_eq!((held(&budget), pool.status().available), (2, 1));
    let first = pool.get().await.unwrap();
    assert_eq!((first.local_addr().unwrap(), Object::metrics(&first).recycle_count), (port, 1));
    assert_eq!(held(&budget), 2);

    let taken = Object::take(second);
    assert_eq!((held(&budget), pool.status().size, pool.manager().manager().detached()), (2, 1, 1));
    drop(taken);
    assert_eq!((held(&budget), sockets_to(peer.address)), (1, 1));
}

#[tokio::test]
async fn the_descriptor_goes_before_its_slot() {
    let (budget, peer) = (Budget::new(1), Peer::listen());
    let pool = pool(peer.address, &budget, 4);
    drop(pool.get().await.unwrap());
    assert_eq!(sockets_to(peer.address), 1);
    let slot = budget.acquire().await.unwrap();
    assert_eq!((sockets_to(peer.address), pool.manager().manager().detached()), (0, 1));
    drop(slot);
    drop(pool.get().await.unwrap());
    assert_eq!((sockets_to(peer.address), pool.status().size), (1, 1), "the empty place is gone");
}

#[tokio::test]
async fn reclaims_what_has_rested_for_longest_and_reuses_the_rest() {
    for mode in [QueueMode::Fifo, QueueMode::Lifo] {
        let (budget, peer) = (Budget::new(3), Peer::listen());
        let manager = Streams::to(peer.address);
        let pool = builder(manager, &budget).max_size(3).queue_mode(mode).build().unwrap();
        let objects = [pool.get().await.unwrap(), pool.get().await.unwrap(), pool.get().await.unwrap()];
        let ports = objects.each_ref().map(|object| object.local_addr().unwrap());
        objects.into_iter().for_each(drop);
        let slots = budget.acquire_many(2).await.unwrap();
        let object = pool.get().await.unwrap();
        assert_eq!((object.local_addr().unwrap(), held(&budget)), (ports[2], 3), "{mode:?}");
        drop((object, slots));
    }
}

#[tokio::test]
async fn a_connection_is_dialled_with_the_slot_of_an_idle_object() {
    let (budget, here, there) = (Budget::new(1), Peer::listen(), Peer::listen());
    let (pool, resource) = (pool(here.address, &budget, 4), there.resource(&budget));
    drop(pool.get().await.unwrap());
    let conn = resource.get().await.unwrap();
    assert_eq!((sockets_to(here.address), sockets_to(there.address), held(&budget)), (0, 1, 0));
    conn.put();

    // And the other way round.
    let object = pool.get().await.unwrap();
    assert_eq!((sockets_to(here.address), sockets_to(there.address), held(&budget)), (1, 0, 1));
    assert_eq!(budget.stats().evicted, 1);
    drop(object);
}

#[tokio::test]
async fn an_object_that_comes_back_serves_who_waits() {
    let (budget, here, there) = (Budget::new(1), Peer::listen(), Peer::listen());
    let (pool, resource) = (pool(here.address, &budget, 4), there.resource(&budget));
    let object = pool.get().await.unwrap();
    let get = tokio::spawn(resource.get_owned());
    while budget.stats().waiting == 0 {
        tokio::task::yield_now().await;
    }
    drop(object);
    let conn = get.await.unwrap().unwrap();
    assert_eq!((sockets_to(here.address), held(&budget), budget.stats().in_use), (0, 0, 1));

    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.get().await.map(drop) }
    });
    while budget.stats().waiting == 0 {
        tokio::task::yield_now().await;
    }
    conn.put();
    waiting.await.unwrap().unwrap();
    assert_eq!((sockets_to(here.address), sockets_to(there.address)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_create_that_is_cancelled_times_out_or_fails_leaves_nothing() {
    let (budget, peer) = (Budget::new(1), Peer::listen());
    let manager = Streams::to(peer.address);
    let script = manager.clone();
    let pool = builder(manager, &budget).max_size(4).runtime(Runtime::Tokio1).build().unwrap();

    script.mood(FAILS);
    let error = pool.get().await.unwrap_err();
    assert!(
        matches!(&error, PoolError::Backend(CreateError::Manager { source }) if source.kind() == io::ErrorKind::PermissionDenied)
    );
    assert!(std::error::Error::source(&error).and_then(std::error::Error::source).is_some());
    assert_eq!((held(&budget), sockets_to(peer.address)), (0, 0));

    script.mood(HANGS);
    let timeouts = Timeouts { create: Some(Duration::from_secs(5)), ..Timeouts::default() };
    let error = pool.timeout_get(&timeouts).await.unwrap_err();
    assert!(matches!(error, PoolError::Timeout(TimeoutType::Create)), "{error}");
    assert_eq!((held(&budget), sockets_to(peer.address)), (0, 0));

    let mut get = Box::pin(pool.get());
    while sockets_to(peer.address) == 0 {
        assert!(futures::poll!(&mut get).is_pending());
    }
    assert_eq!(held(&budget), 1);
    drop(get);
    assert_eq!((held(&budget), sockets_to(peer.address)), (0, 0));

    // Waiting for the slot.
    script.mood(WELL);
    let slot = budget.acquire().await.unwrap();
    let error = pool.timeout_get(&timeouts).await.unwrap_err();
    assert!(matches!(error, PoolError::Timeout(TimeoutType::Create)), "{error}");
    let mut get = Box::pin(pool.get());
    assert!(futures::poll!(&mut get).is_pending());
    assert_eq!(budget.stats().waiting, 1);
    drop(get);
    assert_eq!(budget.stats().waiting, 0);
    let mut get = Box::pin(pool.get());
    assert!(futures::poll!(&mut get).is_pending());
    drop(slot); // granted to the get, which never sees it
    drop(get);
    assert_at_rest(&budget, 0);
    assert_eq!(pool.status().size, 0);
    drop(pool.get().await.unwrap());
    assert_eq!(held(&budget), 1);
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_slot_ends_in_time() {
    let (budget, peer) = (Budget::new(1), Peer::listen());
    let budgeted = Budgeted::new(Streams::to(peer.address), &budget).slot_timeout(Duration::from_secs(3));
    let pool = budgeted.builder().max_size(2).build().unwrap();
    let object = pool.get().await.unwrap();
    let error = pool.get().await.unwrap_err();
    assert!(matches!(
        error,
        PoolError::Backend(CreateError::NoSlot { source: AcquireError::Exhausted { .. } })
    ));
    assert_eq!((budget.stats().waiting, pool.status().size), (0, 1));
    drop(object);
}

#[tokio::test(start_paused = true)]
async fn a_recycle_that_is_cancelled_times_out_or_fails_leaves_nothing() {
    for mood in [RECYCLE_FAILS, RECYCLE_HANGS] {
        let (budget, peer) = (Budget::new(1), Peer::listen());
        let manager = Streams::to(peer.address);
        let script = manager.clone();
        let recycle = Some(Duration::from_secs(5));
        let pool =
            builder(manager, &budget).runtime(Runtime::Tokio1).recycle_timeout(recycle).build().unwrap();
        let first = pool.get().await.unwrap().local_addr().unwrap();
        script.mood(mood);
        let second = pool.get().await.unwrap();
        assert_ne!(second.local_addr().unwrap(), first);
        assert_eq!((held(&budget), sockets_to(peer.address), script.detached()), (1, 1, 1));
        drop(second);
        if mood == RECYCLE_HANGS {
            script.script.recycled.store(0, Ordering::SeqCst);
            let mut get = Box::pin(pool.get());
            assert!(futures::poll!(&mut get).is_pending());
            drop(get);
            assert_eq!((held(&budget), sockets_to(peer.address), pool.status().size), (0, 0, 0));
        }
    }
}

#[tokio::test]
async fn a_manager_that_panics_costs_its_caller_only() {
    let (budget, peer) = (Budget::new(1), Peer::listen());
    let manager = Streams::to(peer.address);
    let script = manager.clone();
    let pool = builder(manager, &budget).max_size(1).build().unwrap();
    let get = || {
        let pool = pool.clone();
        tokio::spawn(async move { pool.get().await.map(drop) })
    };
    script.mood(PANICS);
    assert!(get().await.unwrap_err().is_panic());
    assert_eq!((held(&budget), sockets_to(peer.address)), (0, 0));
    script.mood(RECYCLE_PANICS);
    get().await.unwrap().unwrap();
    assert!(get().await.unwrap_err().is_panic());
    assert_eq!((held(&budget), sockets_to(peer.address), pool.status().size), (0, 0, 0));
    script.mood(WELL);
    get().await.unwrap().unwrap();
    assert_eq!(held(&budget), 1);
}

#[tokio::test]
async fn hooks_are_shown_what_they_are_about() {
    let (budget, peer) = (Budget::new(1), Peer::listen());
    let seen = Arc::new(AtomicUsize::new(0));
    let hook = || {
        let seen = Arc::clone(&seen);
        Hook::sync_fn(move |place: &mut fdpool::interop::deadpool::Place<Streams>, _| {
            seen.fetch_add(1, Ordering::SeqCst);
            let stream = place.get_mut().ok_or(HookError::message("nothing there"))?;
            stream.peer_addr().map(drop).map_err(|source| HookError::Backend(CreateError::Manager { source }))
        })
    };
    let manager = Streams::to(peer.address);
    let pool = builder(manager, &budget)
        .post_create(hook())
        .pre_recycle(hook())
        .post_recycle(hook())
        .build()
        .unwrap();
    drop(pool.get().await.unwrap());
    drop(pool.get().await.unwrap());
    assert_eq!(seen.load(Ordering::SeqCst), 3);
    drop(budget.acquire().await.unwrap()); // reclaims it: no hook sees an empty place
    drop(pool.get().await.unwrap());
    assert_eq!(seen.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn retain_and_resize_give_slots_back() {
    let (budget, peer) = (Budget::new(4), Peer::listen());
    let pool = pool(peer.address, &budget, 4);
    let objects = [pool.get().await.unwrap(), pool.get().await.unwrap(), pool.get().await.unwrap()];
    objects.into_iter().for_each(drop);
    let mut shown = 0;
    let removed = pool.retain(|place, metrics| {
        assert!(place.get().is_none(), "it rests");
        shown += 1;
        metrics.recycle_count > 0 || shown > 1
    });
    assert_eq!((removed.removed.len(), removed.retained, held(&budget)), (1, 2, 3));
    assert!(removed.removed[0].get().is_some());
    drop(removed);
    assert_eq!((held(&budget), pool.manager().manager().detached()), (2, 1));
    pool.resize(1);
    assert_eq!((held(&budget), sockets_to(peer.address)), (1, 1));
}

/// deadpool drops what rests under its lock; the slots that come free then serve who waits, for which this pool and
/// others are asked for what they have idle.
#[tokio::test]
async fn closing_a_pool_serves_who_waits() {
    let (budget, peer) = (Budget::new(3), Peer::listen());
    let (pool, other) = (pool(peer.address, &budget, 3), pool(peer.address, &budget, 3));
    let objects = [pool.get().await.unwrap(), pool.get().await.unwrap()];
    let busy = other.get().await.unwrap();
    let mut slots = Box::pin(budget.acquire_many(3));
    assert!(futures::poll!(&mut slots).is_pending());
    objects.into_iter().for_each(drop); // gathered
    assert!(futures::poll!(&mut slots).is_pending());
    drop(slots);
    let object = pool.get().await.unwrap();
    let mut slots = Box::pin(budget.acquire_many(3));
    assert!(futures::poll!(&mut slots).is_pending());
    pool.close();
    drop(object);
    assert!(futures::poll!(&mut slots).is_pending());
    other.close();
    drop(busy);
    drop(slots.await.unwrap());
    assert!(matches!(pool.get().await, Err(PoolError::Closed)));
    assert_eq!((held(&budget), sockets_to(peer.address)), (0, 0));
}

#[tokio::test]
async fn a_pool_closed_with_objects_at_rest_and_out_gives_all_back() {
    let (budget, peer) = (Budget::new(4), Peer::listen());
    let pool = pool(peer.address, &budget, 4);
    let (resting, out) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    drop(resting);
    pool.close();
    assert_eq!((held(&budget), sockets_to(peer.address)), (1, 1));
    drop(out);
    assert_eq!((held(&budget), sockets_to(peer.address)), (0, 0));
}

#[tokio::test]
async fn a_pool_dropped_with_objects_out_leaves_nothing() {
    let (budget, peer) = (Budget::new(4), Peer::listen());
    let manager = Streams::to(peer.address);
    let script = Arc::downgrade(&manager.script);
    let pool = builder(manager, &budget).max_size(4).build().unwrap();
    let (resting, out) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    drop(resting);
    drop(pool);
    assert_eq!((held(&budget), sockets_to(peer.address)), (1, 1));
    let mut out = out;
    out.write_all(b"still of use").await.unwrap();
    drop(out);
    assert_eq!((held(&budget), sockets_to(peer.address)), (0, 0));
    assert!(script.upgrade().is_none(), "the manager is gone, and the registration with it");
}

#[tokio::test]
async fn closing_the_budget_closes_what_rests_in_the_pool_and_what_comes_back() {
    let (budget, address) = (Budget::new(4), support::echo_server().await);
    let pool = pool(address, &budget, 4);
    let (resting, out) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    drop(resting);
    let report = budget.close(std::time::Duration::from_millis(20)).await;
    assert_eq!((report.still_open, held(&budget)), (1, 1), "{report}");
    drop(out);
    assert_eq!(held(&budget), 0);
    assert!(budget.close(std::time::Duration::ZERO).await.is_clean());
    assert!(pool.get().await.is_err());
}

#[tokio::test]
async fn a_dropped_pool_is_not_asked_any_more() {
    let (budget, peer) = (Budget::new(1), Peer::listen());
    let manager = Streams::to(peer.address);
    let script = Arc::downgrade(&manager.script);
    let pool = builder(manager, &budget).build().unwrap();
    drop(pool.get().await.unwrap());
    let clone = pool.clone();
    drop(pool);
    assert_eq!(held(&budget), 1);
    drop(clone);
    assert!(script.upgrade().is_none());
    assert_at_rest(&budget, 0);
    drop(budget.acquire().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_object_is_held_while_it_is_out_and_by_nobody_while_it_rests() {
    let peer = Peer::listen();
    let budget = Budget::builder().limit(3).track_holds(true).build().unwrap();
    let pool = pool(peer.address, &budget, 3);
    let object = pool.get().await.unwrap();
    sleep(Duration::from_secs(7)).await;
    let text = budget.explain().to_string();
    assert!(text.contains("1, held for 7.0s, an object of a pool"), "{text}");
    assert_eq!(budget.explain().holders()[0].site, None, "no place is better than a wrong one");
    drop(object);
    assert_eq!((budget.explain().holders().len(), held(&budget)), (0, 1));

    sleep(Duration::from_secs(60)).await;
    let object = pool.get().await.unwrap();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(budget.explain().holders()[0].held_for, Some(Duration::from_secs(2)));
    let taken = Object::take(object);
    assert_eq!(budget.explain().holders()[0].held_for, Some(Duration::from_secs(2)), "out for as long");
    drop(taken);

    drop(pool.get().await.unwrap());
    let removed = pool.retain(|_, _| false).removed;
    assert_eq!(budget.explain().holders().len(), 1, "out of the pool, in our hands");
    drop(removed);
    drop(pool.get().await.unwrap());
    let slots = budget.acquire_many(3).await.unwrap();
    assert_eq!(budget.explain().holders().len(), 1, "reclaimed");
    drop((slots, pool));
    assert_at_rest(&budget, 0);
    assert!(budget.explain().holders().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_object_at_rest_is_not_warned_of() {
    let (said, _guard) = support::warnings();
    let peer = Peer::listen();
    let budget = Budget::builder().limit(3).hold_warning(Duration::from_secs(10)).build().unwrap();
    let pool = pool(peer.address, &budget, 3);
    for _ in 0..3 {
        let object = pool.get().await.unwrap();
        sleep(Duration::from_secs(6)).await;
        drop(object);
        sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(said.load(Ordering::SeqCst), 0);
    let object = pool.get().await.unwrap();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(said.load(Ordering::SeqCst), 1);
    drop(object);
    assert_eq!(said.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn who_made_an_object_that_another_has_does_not_hold_it() {
    let peer = Peer::listen();
    let budget = Budget::builder().limit(1).track_holds(true).build().unwrap();
    let pool = pool(peer.address, &budget, 1);
    let made = Arc::new(tokio::sync::Notify::new());
    let maker = tokio::spawn({
        let (pool, budget, made) = (pool.clone(), budget.clone(), Arc::clone(&made));
        async move {
            drop(pool.get().await.unwrap());
            made.notified().await;
            drop(budget.acquire().await.unwrap());
        }
    });
    settle().await;
    let user = tokio::spawn(async move {
        let _object = pool.get().await.unwrap();
        made.notify_one();
        sleep(Duration::from_secs(30)).await;
    });
    sleep(Duration::from_secs(20)).await;
    assert_eq!(budget.stats().waiting, 1);
    assert!(!budget.explain().is_deadlocked(), "{}", budget.explain());
    user.await.unwrap();
    maker.await.unwrap();
}

#[tokio::test]
async fn what_rests_is_reclaimed_from_any_pool_of_our_objects_and_from_no_other() {
    let (budget, peer) = (Budget::new(1), Peer::listen());
    let budgeted = || Budgeted::new(Streams::to(peer.address), &budget);
    let pool = Pool::<Streams>::builder(budgeted()).max_size(2).build().unwrap();
    drop(pool.get().await.unwrap());
    drop(budget.try_acquire().expect("reclaimed"));
    drop(pool.get().await.unwrap());
    drop(pool);
    let pool: deadpool::managed::Pool<Budgeted<Streams>> =
        deadpool::managed::Pool::builder(budgeted()).max_size(2).build().unwrap();
    drop(pool.get().await.unwrap());
    assert!(budget.try_acquire().is_none());
    assert_eq!((held(&budget), sockets_to(peer.address)), (1, 1));
    drop(pool);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn closing_a_pool_ends_waits_for_a_place_and_not_those_for_a_slot() {
    let (budget, peer) = (Budget::new(1), Peer::listen());
    let pool = pool(peer.address, &budget, 1);
    let slot = budget.acquire().await.unwrap();
    let (mut for_slot, mut for_place) = (Box::pin(pool.get()), Box::pin(pool.get()));
    assert!(futures::poll!(&mut for_slot).is_pending() && futures::poll!(&mut for_place).is_pending());
    pool.close();
    assert!(matches!(for_place.await, Err(PoolError::Closed)));
    assert!(futures::poll!(&mut for_slot).is_pending());
    assert!(!budget.close(Duration::ZERO).await.is_clean());
    let error = for_slot.await.unwrap_err();
    assert!(matches!(error, PoolError::Backend(CreateError::NoSlot { source: AcquireError::Closed { .. } })));
    drop(slot);
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn timeouts_of_deadpool_need_a_runtime_and_the_one_for_slots_does_not() {
    let (budget, peer) = (Budget::new(1), Peer::listen());
    let _slot = budget.acquire().await.unwrap();
    let timeout = Duration::from_secs(3);
    let begun = || Budgeted::new(Streams::to(peer.address), &budget).slot_timeout(timeout).builder();
    assert!(begun().create_timeout(Some(timeout)).build().is_err());
    assert!(begun().create_timeout(Some(timeout)).runtime(Runtime::Tokio1).build().is_ok());
    let pool = begun().build().unwrap();
    let timeouts = Timeouts { create: Some(timeout), ..Timeouts::default() };
    assert!(matches!(pool.timeout_get(&timeouts).await, Err(PoolError::NoRuntimeSpecified)));
    assert!(matches!(pool.get().await, Err(PoolError::Backend(CreateError::NoSlot { .. }))));
}

async fn exchange(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) -> io::Result<()> {
    stream.write_all(b"hello").await?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.map(drop)
}

/// A manager as plain as can be.
struct Plain(SocketAddr);

impl Manager for Plain {
    type Type = TcpStream;
    type Error = io::Error;

    async fn create(&self) -> io::Result<TcpStream> {
        TcpStream::connect(self.0).await
    }

    async fn recycle(&self, _stream: &mut TcpStream, _metrics: &Metrics) -> RecycleResult<io::Error> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_pools_and_a_resource_share_four_slots_among_64_tasks() {
    let (budget, address) = (Budget::new(4), echo_server().await);
    let pools = [8, 3].map(|size| builder(Plain(address), &budget).max_size(size).build().unwrap());
    let resource = ConnResource::builder(address, Tcp::default()).budget(&budget).build();
    let most = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let (pools, resource) = (pools.clone(), resource.clone());
            let (budget, most) = (budget.clone(), Arc::clone(&most));
            tokio::spawn(async move {
                for round in 0..20 {
                    match (task + round) % 3 {
                        2 => {
                            let mut conn = resource.get().await.unwrap();
                            exchange(&mut conn).await.unwrap();
                            conn.put();
                        }
                        pool => {
                            let mut stream = pools[pool].get().await.unwrap();
                            exchange(&mut *stream).await.unwrap();
                        }
                    }
                    let stats = budget.stats();
                    most.fetch_max(stats.held + stats.in_use + stats.idle + stats.dialing, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(60), task).await.expect("nobody waits for ever").unwrap();
    }
    assert!(most.load(Ordering::SeqCst) <= 4);
    drop((pools, resource));
    comes_to_rest(&budget, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pools_are_resized_and_closed_while_others_wait() {
    let (budget, address) = (Budget::new(4), echo_server().await);
    for _ in 0..50 {
        let pools = [4, 4].map(|size| builder(Plain(address), &budget).max_size(size).build().unwrap());
        let tasks: Vec<_> = (0..16)
            .map(|task| {
                let (pools, budget) = (pools.clone(), budget.clone());
                tokio::spawn(async move {
                    match task % 4 {
                        0 => drop(budget.acquire().await.unwrap()),
                        1 => pools[task / 4 % 2].resize(1),
                        _ => {
                            if let Ok(mut stream) = pools[task % 2].get().await {
                                exchange(&mut *stream).await.unwrap();
                            }
                        }
                    }
                    if task == 15 {
                        pools.iter().for_each(|pool| pool.close());
                    }
                })
            })
            .collect();
        for task in tasks {
            tokio::time::timeout(Duration::from_secs(60), task)
                .await
                .expect("nobody waits for ever")
                .unwrap();
        }
        drop(pools);
        assert_eq!(held(&budget), 0);
    }
}

/// deadpool-redis's own manager. Its connections are handles of tasks that own the sockets: those close soon after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_connections_of_deadpool_share_the_budget() {
    use deadpool_redis::redis::{AsyncCommands, AsyncConnectionConfig, cmd};
    let Some(redis) = Server::redis() else { return };
    let budget = Budget::new(3);
    // Half a second for an answer and one for a connection, as by default, may pass while the machine is busy.
    let patient = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
    let url = format!("redis://{}/", redis.address);
    let manager = deadpool_redis::Manager::new_with_config(url, patient).unwrap();
    let pool: Pool<deadpool_redis::Manager> = builder(manager, &budget).max_size(3).build().unwrap();
    let own = ConnResource::builder(redis.address, Tcp::default()).budget(&budget).build();

    let tasks = (0..16).map(|task| {
        let (pool, own) = (pool.clone(), own.clone());
        tokio::spawn(async move {
            for _ in 0..20 {
                if task % 4 == 0 {
                    let mut conn = own.get().await.unwrap();
                    conn.write_all(b"INCR calls\r\n").await.unwrap();
                    let mut answer = Vec::new();
                    while !answer.ends_with(b"\r\n") {
                        assert_ne!(conn.read_buf(&mut answer).await.unwrap(), 0);
                    }
                    conn.put();
                } else {
                    let mut conn = pool.get().await.unwrap();
                    let _: u64 = conn.incr("calls", 1).await.unwrap();
                    let pong: String = cmd("PING").query_async(&mut *conn).await.unwrap();
                    assert_eq!(pong, "PONG");
                }
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(60), task).await.expect("nobody waits for ever").unwrap();
    }
    let calls: u64 = pool.get().await.unwrap().get("calls").await.unwrap();
    assert_eq!(calls, 16 * 20);
    assert!(held(&budget) + budget.stats().idle <= 3);

    // Two objects rest, and go for connections of ours.
    let objects = [pool.get().await.unwrap(), pool.get().await.unwrap()];
    objects.into_iter().for_each(drop);
    let conns = [own.get().await.unwrap(), own.get().await.unwrap(), own.get().await.unwrap()];
    assert_eq!((held(&budget), budget.stats().in_use), (0, 3));
    while sockets_to(redis.address) > 3 {
        tokio::task::yield_now().await;
    }
    conns.into_iter().for_each(|conn| conn.put());
}
