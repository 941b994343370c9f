//! Idle connections that nobody asks for: closed when their peer closes them, when they have rested for too long, when
//! they are too old; and what that costs those who do ask.

#![allow(clippy::disallowed_methods, reason = "what the background does is waited for")]

mod support;

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fdpool::dial::{CheckContext, Tcp, Watch};
use fdpool::{Address, Budget, ConnResource, Dial, DialContext, DialError, Fitness, Get, GetError};
use futures::future::join_all;
use support::{
    Fake, Moving, Peer, Script, assert_at_rest, comes_to_rest, fakes, fakes_with, poll, settle, sockets_to,
    until_readable,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

/// Waits for something that the background does; a minute is for ever.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waits = async {
        while !holds() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(60), waits).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[tokio::test]
async fn what_the_peer_closes_is_closed_here_without_a_get() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    let (first, second) = (resource.get().await.unwrap(), resource.get().await.unwrap());
    let (theirs, others) = (peer.accept(), peer.accept());
    first.put();
    second.put();
    drop(theirs);
    until("closed", || resource.stats().idle == 1).await;
    assert_eq!((budget.stats().stale, sockets_to(peer.address)), (1, 1));
    drop(others);
    until("closed", || resource.stats().idle == 0).await;
    assert_eq!((budget.stats().stale, sockets_to(peer.address)), (2, 0));
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn what_rested_long_before_its_peer_closed_it_is_closed_too() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    resource.get().await.unwrap().put();
    let theirs = peer.accept();
    sleep(Duration::from_millis(300)).await; // watched by now, or that is what is shown to fail
    assert_eq!(resource.stats().idle, 1);
    drop(theirs);
    until("closed", || resource.stats().idle == 0).await;
    assert_eq!((budget.stats().stale, sockets_to(peer.address)), (1, 0));
}

#[tokio::test]
async fn what_nobody_asked_for_makes_an_idle_connection_dirty() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    resource.get().await.unwrap().put();
    peer.accept().write_all(b"late").unwrap();
    until("closed", || resource.stats().idle == 0).await;
    assert_eq!((budget.stats().dirty, sockets_to(peer.address)), (1, 0));
}

#[tokio::test]
async fn a_connection_that_was_watched_is_used_and_watched_again() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    resource.get().await.unwrap().put();
    let mut theirs = peer.accept();
    for _ in 0..3 {
        sleep(Duration::from_millis(120)).await;
        let mut conn = resource.try_get().expect("the same one");
        theirs.write_all(b"x").unwrap();
        tokio::io::AsyncReadExt::read_exact(&mut conn, &mut [0]).await.unwrap();
        conn.put();
    }
    assert_eq!((budget.stats().dials, budget.stats().reused, budget.stats().dirty), (1, 3, 0));
    drop(theirs);
    until("closed", || resource.stats().idle == 0).await;
}

#[tokio::test(start_paused = true)]
async fn what_rests_for_too_long_expires_without_a_get() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let resource = fakes_with("a", &budget, &script).idle_timeout(Duration::from_secs(5)).build();
    let conns = [resource.get().await.unwrap(), resource.get().await.unwrap()];
    let [first, second] = conns;
    first.put();
    sleep(Duration::from_secs(3)).await;
    second.put();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(resource.stats().idle, 2);
    sleep(Duration::from_millis(1500)).await;
    assert_eq!((resource.stats().idle, budget.stats().expired), (1, 1));
    sleep(Duration::from_secs(3)).await;
    assert_eq!((resource.stats().idle, budget.stats().expired, script.open()), (0, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_too_old_expires_and_a_stock_is_kept() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let resource = fakes_with("a", &budget, &script)
        .idle_timeout(Duration::from_secs(5))
        .max_lifetime(Duration::from_secs(100))
        .min_idle(3)
        .build();
    settle().await;
    assert_eq!(resource.stats().idle, 3);
    let conns = [resource.get().await.unwrap(), resource.get().await.unwrap()];
    let more = [resource.get().await.unwrap(), resource.get().await.unwrap()];
    conns.into_iter().chain(more).for_each(fdpool::Conn::put);
    let idle = resource.stats().idle;
    assert!(idle >= 4, "{idle}");
    sleep(Duration::from_secs(10)).await;
    assert_eq!(resource.stats().idle, 3, "those above the stock have expired, those of the stock not");
    assert!(resource.try_get().is_some_and(|conn| conn.age() > Duration::from_secs(9)), "and are given out");
    let begun = script.begun();
    sleep(Duration::from_secs(120)).await;
    assert_eq!(resource.stats().idle, 3);
    assert!(script.begun() >= begun + 3, "the old ones were replaced");
    assert_eq!(script.open(), 3);
}

#[tokio::test(start_paused = true)]
async fn settings_change_while_in_use() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let resource = fakes_with("a", &budget, &script).build();
    let mut conns = Vec::new();
    for _ in 0..6 {
        conns.push(resource.get().await.unwrap());
    }
    for conn in conns.drain(..4) {
        conn.put();
    }
    resource.set_max_idle(3);
    assert_eq!((resource.stats().idle, resource.stats().in_use), (3, 2));
    resource.set_max_conns(4);
    assert_eq!((resource.stats().idle, resource.stats().in_use), (2, 2), "idle ones beyond it go");
    resource.set_max_conns(1);
    assert_eq!((resource.stats().idle, resource.stats().in_use), (0, 2));
    conns.pop().unwrap().put();
    assert_eq!(resource.stats().idle, 0, "in use beyond it: closed when it is put");
    conns.pop().unwrap().put();
    assert_eq!(resource.stats().idle, 1);
    let held = resource.get().await.unwrap();
    let mut waiting = Box::pin(resource.get());
    assert!(support::poll(&mut waiting).is_pending());
    resource.set_max_conns(2);
    waiting.await.unwrap().put();
    held.put();
    assert_eq!(resource.stats().idle, 2);
    resource.set_idle_timeout(Duration::from_secs(1));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(resource.stats().idle, 0, "also for what rested before");
    resource.set_min_idle(2);
    settle().await;
    assert_eq!(resource.stats().idle, 2);
    resource.set_max_uses(1);
    resource.get().await.unwrap().put();
    assert_eq!(resource.stats().idle, 1);
    resource.set_wait_timeout(Duration::from_secs(1));
    resource.set_dial_timeout(None);
    resource.set_max_lifetime(Duration::from_secs(10));
    assert_at_rest(&budget, resource.stats().idle);
}

#[test]
fn the_task_outlives_its_runtime_and_keeps_nothing_alive() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    let (first, second) = (current_thread(), current_thread());
    first.block_on(async { resource.get().await.unwrap().put() });
    let _dead = peer.accept();
    let theirs = second.block_on(async {
        resource.get().await.unwrap().put();
        peer.accept()
    });
    let tasks = [&first, &second].map(|runtime| runtime.metrics().num_alive_tasks());
    assert_eq!(tasks, [1, 1], "one is at work, and one stands by");
    drop(first);
    drop(theirs);
    second.block_on(until("closed", || resource.stats().idle == 0));
    assert_eq!(sockets_to(peer.address), 0);
    // Nothing rests: the task goes.
    second.block_on(async {
        let metrics = tokio::runtime::Handle::current().metrics();
        until("the task has gone", || metrics.num_alive_tasks() == 0).await;
        resource.get().await.unwrap().put();
        assert_eq!(metrics.num_alive_tasks(), 1);
        drop(resource);
        drop(budget);
        until("the task has gone with its budget", || metrics.num_alive_tasks() == 0).await;
    });
}

/// Resources whose dials never end.
fn hanging(number: usize, budget: &Budget) -> Vec<ConnResource<Fake>> {
    let script = Script::manual();
    (0..number).map(|n| fakes(&n.to_string(), budget, &script)).collect()
}

/// How long after `began` they fail.
async fn time_out<'a>(gets: impl IntoIterator<Item = Get<'a, Fake>>, began: Instant) -> Duration {
    for result in join_all(gets).await {
        assert!(matches!(result, Err(GetError::DialTimeout { .. })), "{result:?}");
    }
    began.elapsed()
}

fn is_ten_seconds(time: Duration) -> bool {
    time.abs_diff(Duration::from_secs(10)) < Duration::from_millis(10)
}

#[tokio::test(start_paused = true)]
async fn many_dials_share_a_task_that_keeps_their_time_and_goes_when_they_have_ended() {
    let budget = Budget::new(100);
    let resources = hanging(60, &budget);
    let metrics = tokio::runtime::Handle::current().metrics();
    let (few, many) = resources.split_at(10);
    let owned = |resources: &[ConnResource<Fake>]| -> Vec<_> {
        resources.iter().map(ConnResource::get_owned).collect()
    };
    let few = tokio::spawn(time_out(owned(few), Instant::now()));
    settle().await;
    assert_eq!(metrics.num_alive_tasks(), 1, "the one that waits for them");
    let first = tokio::spawn(time_out(owned(&many[..25]), Instant::now()));
    settle().await;
    assert_eq!(metrics.num_alive_tasks(), 3);
    sleep(Duration::from_millis(1234)).await;
    let second = tokio::spawn(time_out(owned(&many[25..]), Instant::now()));
    for times in [few, first, second] {
        let time = times.await.unwrap();
        assert!(is_ten_seconds(time), "{time:?}");
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(metrics.num_alive_tasks(), 0);
    assert_at_rest(&budget, 0);
}

#[test]
fn dials_end_in_their_time_although_the_runtime_that_kept_it_has_ended() {
    let budget = Budget::new(100);
    let resources = hanging(30, &budget);
    let mut gets: Vec<_> = resources.iter().map(ConnResource::get).collect();
    let paused = || Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let first = paused();
    let began = first.block_on(async {
        assert!(gets.iter_mut().all(|get| poll(get).is_pending()));
        Instant::now()
    });
    assert_eq!(first.metrics().num_alive_tasks(), 1);
    drop(gets.drain(..20)); // some of those have timers of their own, which end with their runtime
    drop(first);
    let time = paused().block_on(time_out(gets, began));
    assert!(is_ten_seconds(time), "{time:?}");
    assert_at_rest(&budget, 0);
}

/// Dials units whose idleness is what the test makes of it.
#[derive(Clone, Default)]
struct Looked {
    looks: Arc<AtomicUsize>,
    dials: Arc<AtomicUsize>,
    /// A look waits here twice: when it has begun, and before it ends.
    gate: Arc<Mutex<Option<Arc<Barrier>>>>,
    panics: Arc<AtomicBool>,
    wakers: Arc<Mutex<Vec<Waker>>>,
}

impl Dial for Looked {
    type Conn = ();

    async fn dial(&self, _: &Address, _: &DialContext) -> Result<(), DialError> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn check(&self, (): &mut (), _: &CheckContext) -> Fitness {
        Fitness::Fit
    }

    fn poll_idle(&self, (): &mut (), cx: &mut Context<'_>) -> Poll<Fitness> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        self.wakers.lock().unwrap().push(cx.waker().clone());
        let gate = self.gate.lock().unwrap().take();
        if let Some(gate) = gate {
            gate.wait();
            gate.wait();
        }
        if self.panics.swap(false, Ordering::SeqCst) {
            panic!("on purpose");
        }
        Poll::Pending
    }
}

/// An address with one connection, which is being looked at until the gate is passed.
fn being_looked_at(budget: &Budget) -> (Runtime, ConnResource<()>, Looked, Arc<Barrier>) {
    let (dialer, gate) = (Looked::default(), Arc::new(Barrier::new(2)));
    let resource = ConnResource::builder("a", dialer.clone()).budget(budget).build();
    *dialer.gate.lock().unwrap() = Some(Arc::clone(&gate));
    let keeper = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    keeper.block_on(async {
        let resource = resource.clone();
        tokio::spawn(async move { resource.get().await.unwrap().put() }).await.unwrap();
    });
    gate.wait();
    (keeper, resource, dialer, gate)
}

#[test]
fn a_caller_waits_for_the_connection_that_is_being_looked_at() {
    let budget = Budget::new(10);
    let (_keeper, resource, dialer, gate) = being_looked_at(&budget);
    assert_eq!((resource.stats().idle, resource.stats().in_use), (1, 0));
    let user = current_thread();
    user.block_on(async {
        let mut get = Box::pin(resource.get());
        assert!(support::poll(&mut get).is_pending());
        assert_eq!(budget.stats().dialing, 0);
        gate.wait();
        // Of the other runtime, and of no use here, but that has no descriptor: it comes back first, and then a dial.
        get.await.unwrap().put();
    });
    assert!(dialer.dials.load(Ordering::SeqCst) <= 2);
    // The same within one runtime.
    let dialer = Looked::default();
    let resource = ConnResource::builder("b", dialer.clone()).budget(&budget).build();
    let gate = Arc::new(Barrier::new(2));
    *dialer.gate.lock().unwrap() = Some(Arc::clone(&gate));
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let task = |resource: ConnResource<()>| async move { resource.get().await.unwrap().put() };
        tokio::spawn(task(resource.clone())).await.unwrap();
        let begun = Arc::clone(&gate);
        tokio::task::spawn_blocking(move || begun.wait()).await.unwrap();
        let waiting = tokio::spawn(task(resource.clone()));
        until("in line", || resource.stats().waiting == 1).await;
        tokio::task::spawn_blocking(move || gate.wait()).await.unwrap();
        waiting.await.unwrap();
    });
    assert_eq!((dialer.dials.load(Ordering::SeqCst), resource.stats().reused), (1, 1));
}

#[test]
fn nothing_is_closed_elsewhere_for_a_caller_whose_connection_is_being_looked_at() {
    let budget = Budget::new(2);
    let (_keeper, resource, _, gate) = being_looked_at(&budget);
    let user = current_thread();
    user.block_on(async {
        let other = ConnResource::builder("b", Looked::default()).budget(&budget).build();
        other.get().await.unwrap().put();
        let mut get = Box::pin(resource.get());
        let (waits, stats) = (support::poll(&mut get).is_pending(), budget.stats());
        gate.wait();
        assert_eq!((waits, stats.evicted, stats.dialing), (true, 0, 0));
    });
}

#[test]
fn who_does_not_wait_does_not_wait_for_a_look_either() {
    let budget = Budget::new(10);
    let (_keeper, resource, _, gate) = being_looked_at(&budget);
    let user = current_thread();
    let got = user.block_on(resource.get().immediate());
    gate.wait();
    user.block_on(async { got.unwrap().close() });
}

/// What its address is asked about, once it is looked at, wakes its watcher meanwhile, and has ended.
#[derive(Clone, Default)]
struct Waking {
    waker: Arc<Mutex<Option<Waker>>>,
    looked: Arc<Notify>,
    watches: Arc<AtomicUsize>,
}

impl Dial for Waking {
    type Conn = ();

    async fn dial(&self, _: &Address, _: &DialContext) -> Result<(), DialError> {
        Ok(())
    }

    fn check(&self, (): &mut (), _: &CheckContext) -> Fitness {
        Fitness::Fit
    }

    fn poll_idle(&self, (): &mut (), cx: &mut Context<'_>) -> Poll<Fitness> {
        let looked = self.waker.lock().unwrap().replace(cx.waker().clone()).is_some();
        self.looked.notify_one();
        if looked { Poll::Ready(Fitness::Closed) } else { Poll::Pending }
    }

    fn watch(&self, _: &Address) -> Option<fdpool::dial::Watch> {
        match self.watches.fetch_add(1, Ordering::SeqCst) {
            0 => {
                let looked = Arc::clone(&self.looked);
                // The watcher leaves 10 ms before it asks: the look is over then.
                Some(Box::pin(async move { looked.notified().await }))
            }
            _ => Some(Box::pin(std::future::pending())),
        }
    }

    fn is_current(&self, _: &Address, (): &()) -> bool {
        let waker = self.waker.lock().unwrap().clone();
        if let Some(waker) = waker {
            // From elsewhere, so that it does not wait for this thread: the keeper looks, and finds nothing.
            std::thread::spawn(move || waker.wake()).join().unwrap();
            std::thread::sleep(Duration::from_millis(100));
        }
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_while_its_address_is_asked_about_it_is_closed_all_the_same() {
    let (budget, dialer) = (Budget::new(10), Waking::default());
    let resource = ConnResource::builder("a", dialer.clone()).budget(&budget).build();
    let user = resource.clone();
    tokio::spawn(async move { user.get().await.unwrap().put() }).await.unwrap();
    until("closed", || resource.stats().stale == 1).await;
}

/// Wakes whoever looks, at once.
struct Restless(Arc<AtomicUsize>);

impl Dial for Restless {
    type Conn = ();

    async fn dial(&self, _: &Address, _: &DialContext) -> Result<(), DialError> {
        Ok(())
    }

    fn check(&self, (): &mut (), _: &CheckContext) -> Fitness {
        Fitness::Fit
    }

    fn poll_idle(&self, (): &mut (), cx: &mut Context<'_>) -> Poll<Fitness> {
        self.0.fetch_add(1, Ordering::SeqCst);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[tokio::test]
async fn a_stream_that_always_wakes_keeps_nobody_from_running() {
    let looks = Arc::new(AtomicUsize::new(0));
    let budget = Budget::new(10);
    let resource = ConnResource::builder("a", Restless(Arc::clone(&looks))).budget(&budget).build();
    resource.get().await.unwrap().put();
    until("looked at", || looks.load(Ordering::SeqCst) > 0).await;
    let before = looks.load(Ordering::SeqCst);
    until("looked at again, in the next round", || looks.load(Ordering::SeqCst) > before).await;
    sleep(Duration::from_secs(1)).await;
    let looks = looks.load(Ordering::SeqCst) - before;
    assert!(looks < 1000, "{looks} looks in a second: it burns");
    assert!(resource.try_get().is_some());
}

#[tokio::test]
async fn a_look_that_panics_costs_its_connection_only() {
    let dialer = Looked::default();
    let budget = Budget::new(10);
    let resource = ConnResource::builder("a", dialer.clone()).budget(&budget).build();
    let [one, other] = [resource.get().await.unwrap(), resource.get().await.unwrap()];
    dialer.panics.store(true, Ordering::SeqCst);
    one.put();
    other.put();
    until("looked at", || dialer.looks.load(Ordering::SeqCst) >= 2).await;
    until("closed", || resource.stats().idle == 1).await;
    assert_eq!((budget.stats().broken, budget.stats().panics), (1, 1));
    // The other is still watched.
    let looks = dialer.looks.load(Ordering::SeqCst);
    dialer.wakers.lock().unwrap().drain(..).for_each(Waker::wake);
    until("looked at again", || dialer.looks.load(Ordering::SeqCst) > looks).await;
    assert_at_rest(&budget, 1);
}

#[tokio::test]
async fn what_is_constantly_reused_is_never_watched() {
    let dialer = Looked::default();
    let budget = Budget::new(10);
    let resource = ConnResource::builder("a", dialer.clone()).budget(&budget).build();
    resource.get().await.unwrap().put();
    let until = tokio::time::Instant::now() + Duration::from_millis(300);
    while tokio::time::Instant::now() < until {
        for _ in 0..100 {
            resource.get().await.unwrap().put();
        }
        tokio::task::yield_now().await;
    }
    // A stall of the machine for more than a tick may have been taken for rest.
    assert!(dialer.looks.load(Ordering::SeqCst) <= 3, "{}", dialer.looks.load(Ordering::SeqCst));
}

/// Time goes by, and the runtime does not run.
fn stall(time: Duration) {
    let advance = std::pin::pin!(tokio::time::advance(time));
    let _advanced = advance.poll(&mut Context::from_waker(Waker::noop()));
}

#[tokio::test(start_paused = true)]
async fn what_the_peer_closed_while_the_runtime_did_not_look_is_not_given_out() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    resource.get().await.unwrap().put();
    let theirs = peer.accept();
    // It looks all the time, until then.
    for _ in 0..20 {
        sleep(Duration::from_millis(20)).await;
        resource.try_get().expect("the one that rests").put();
    }
    let ours = resource.try_get().expect("the one that rests");
    drop(theirs);
    until_readable(&ours);
    ours.put();
    stall(Duration::from_millis(10));
    assert!(resource.try_get().is_none());
    assert_eq!((budget.stats().stale, sockets_to(peer.address)), (1, 0));
}

/// Gets and closes race with everything the keeper does.
#[test]
fn under_load_from_all_sides_nothing_is_lost() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let budget = Budget::new(8);
    runtime.block_on(async {
        let address = support::echo_server().await;
        let resources: Vec<_> = (0..4)
            .map(|_| {
                ConnResource::builder(address, Tcp::default())
                    .budget(&budget)
                    .idle_timeout(Duration::from_millis(70))
                    .min_idle(1)
                    .build()
            })
            .collect();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..16 {
            let resources = resources.clone();
            tasks.spawn(async move {
                for i in 0..60 {
                    let conn = resources[(n + i) % 4].get().await.unwrap();
                    if i % 5 == 0 {
                        sleep(Duration::from_millis((n as u64 * 7 + i as u64) % 23)).await;
                    }
                    conn.put();
                    if i % 11 == 0 {
                        resources[i % 4].schedule_close();
                    }
                    if i % 7 == 0 {
                        sleep(Duration::from_millis(60)).await;
                    }
                }
            });
        }
        tasks.join_all().await;
        for resource in &resources {
            resource.set_min_idle(0);
        }
        comes_to_rest(&budget, 0).await;
        assert_eq!(sockets_to(address), 0);
    });
}

/// One of the stock has served nobody, but what is known of it is as old as its rest.
#[tokio::test]
async fn who_wants_a_fresh_one_is_not_given_one_of_the_stock_that_was_looked_at_meanwhile() {
    let (budget, moved) = (Budget::new(2), Arc::new(Notify::new()));
    let wants = Arc::new(Mutex::new(None::<Get<'static, ()>>));
    let (asked, moves) = (Arc::clone(&wants), Arc::clone(&moved));
    let dialer = Moving {
        watch: move || -> Option<Watch> {
            let moves = Arc::clone(&moves);
            Some(Box::pin(async move { moves.notified().await }))
        },
        is_current: move || {
            if let Some(get) = &mut *asked.lock().unwrap() {
                assert!(support::poll(get).is_pending());
            }
            true
        },
    };
    let resource = ConnResource::builder("a", dialer).budget(&budget).max_conns(1).min_idle(1).build();
    until("in stock", || resource.stats().idle == 1).await;
    *wants.lock().unwrap() = Some(resource.get_owned().fresh());
    moved.notify_one();
    until("asked", || resource.stats().waiting == 1 || resource.stats().retired == 1).await;
    let get = wants.lock().unwrap().take().unwrap();
    get.await.unwrap().close();
    assert_eq!((resource.stats().dials, resource.stats().retired, resource.stats().reused), (2, 1, 0));
}

#[tokio::test]
async fn the_stock_of_an_address_that_moved_is_dialled_anew() {
    let (budget, moved, left) = (Budget::new(4), Arc::new(tokio::sync::Notify::new()), Arc::default());
    let (moves, leaves) = (Arc::clone(&moved), Arc::<AtomicUsize>::clone(&left));
    let dialer = Moving {
        watch: move || -> Option<Watch> {
            let moves = Arc::clone(&moves);
            Some(Box::pin(async move { moves.notified().await }))
        },
        is_current: move || {
            leaves.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err()
        },
    };
    let resource = ConnResource::builder("a", dialer).budget(&budget).min_idle(2).build();
    until("in stock", || resource.stats().idle == 2).await;
    left.store(2, Ordering::SeqCst);
    moved.notify_one();
    until("in stock again", || resource.stats().retired == 2 && resource.stats().idle == 2).await;
}

#[tokio::test]
async fn more_that_may_rest_are_dialled_for_the_stock() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let resource = fakes_with("a", &budget, &script).min_idle(3).max_idle(1).max_conns(2).build();
    settle().await;
    assert_eq!(resource.stats().idle, 1);
    resource.set_max_idle(3);
    settle().await;
    assert_eq!(resource.stats().idle, 2);
    resource.set_max_conns(3);
    settle().await;
    assert_eq!(resource.stats().idle, 3);
}

#[test]
fn what_was_put_without_a_runtime_is_looked_after_once_it_is_put_in_one() {
    current_thread().block_on(async {
        let (budget, script) = (Budget::new(4), Arc::default());
        let resource = fakes_with("a", &budget, &script).idle_timeout(Duration::from_millis(200)).build();
        let conn = resource.get().await.unwrap();
        std::thread::spawn(move || conn.put()).join().unwrap();
        let conn = resource.get().await.unwrap();
        assert!(conn.is_reused());
        conn.put();
        until("expired", || resource.stats().idle == 0).await;
    });
}

/// Panics when it is dropped, which the last look of the keeper at its address may be the cause of.
struct Bomb(Arc<Mutex<Option<ConnResource<()>>>>);

impl Dial for Bomb {
    type Conn = ();

    async fn dial(&self, _: &Address, _: &DialContext) -> Result<(), DialError> {
        Ok(())
    }

    fn check(&self, (): &mut (), _: &CheckContext) -> Fitness {
        Fitness::Fit
    }

    fn poll_idle(&self, (): &mut (), _: &mut Context<'_>) -> Poll<Fitness> {
        let last = self.0.lock().unwrap().take();
        drop(last);
        Poll::Pending
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("on purpose");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dialer_that_panics_in_its_end_costs_no_other_address_its_upkeep() {
    let (budget, script, last) = (Budget::new(10), Arc::default(), Arc::<Mutex<_>>::default());
    let bomb = ConnResource::builder("bomb", Bomb(Arc::clone(&last))).budget(&budget).build();
    bomb.get().await.unwrap().put();
    *last.lock().unwrap() = Some(bomb);
    let others = ["a", "b", "c"]
        .map(|name| fakes_with(name, &budget, &script).idle_timeout(Duration::from_millis(400)).build());
    for other in &others {
        other.get().await.unwrap().put();
    }
    sleep(Duration::from_secs(2)).await;
    assert!(last.lock().unwrap().is_none(), "it was looked at");
    assert_eq!((budget.stats().idle, budget.stats().expired, budget.stats().panics), (0, 3, 1));
}
