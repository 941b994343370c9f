//! One resource, several runtimes: a connection is used on the runtime it was made on, and on no other.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fdpool::dial::{Watch, from_fn};
use fdpool::{Address, Budget, ConnResource, DialContext, Fitness};
use support::{Moving, Peer, Script, assert_at_rest, fakes, fakes_with, poll, ready, settle};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// An echo server that outlives the runtimes of the test.
fn echo() -> Peer {
    let peer = Peer::listen();
    let listener = std::net::TcpListener::from(socket2::SockRef::from(peer.listener()).try_clone().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut read, mut write) = (&stream, &stream);
                std::io::copy(&mut read, &mut write)
            });
        }
    });
    peer
}

async fn exchange(resource: &ConnResource) -> bool {
    let mut conn = resource.get().await.unwrap();
    conn.write_all(b"ping").await.unwrap();
    let mut pong = [0; 4];
    conn.read_exact(&mut pong).await.unwrap();
    let reused = conn.is_reused();
    conn.put();
    reused
}

#[test]
fn one_after_the_other() {
    let (budget, peer) = (Budget::new(4), echo());
    let resource = peer.resource(&budget);
    for _ in 0..3 {
        let runtime = runtime();
        assert!(!runtime.block_on(exchange(&resource)), "not one of a dead runtime");
        assert!(runtime.block_on(exchange(&resource)));
    }
    assert_at_rest(&budget, 1);
}

#[test]
fn at_once() {
    let (budget, peer) = (Budget::new(4), echo());
    let resource = peer.resource(&budget);
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let resource = resource.clone();
            std::thread::spawn(move || {
                for _ in 0..20 {
                    runtime().block_on(async {
                        for _ in 0..5 {
                            exchange(&resource).await;
                        }
                    });
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    drop(resource);
    assert_at_rest(&budget, 0);
}

#[test]
fn a_hand_over_goes_to_a_caller_of_the_same_runtime() {
    let (budget, script) = (Budget::new(1), Arc::default());
    let resource = fakes("a", &budget, &script);
    let (one, two) = (runtime(), runtime());
    let conn = one.block_on(resource.get()).unwrap();
    let (mut foreign, mut own) = (resource.get(), resource.get());
    two.block_on(async { assert!(poll(&mut foreign).is_pending()) });
    one.block_on(async { assert!(poll(&mut own).is_pending()) });
    conn.put();
    let conn = one.block_on(async { ready(&mut own).unwrap() });
    assert!(conn.is_reused());
    drop(conn);
    two.block_on(async { drop(ready(&mut foreign).unwrap()) });
    assert_at_rest(&budget, 0);
}

#[test]
fn a_caller_of_another_runtime_gets_the_slot() {
    let (budget, script) = (Budget::new(1), Arc::<Script>::default());
    let resource = fakes("a", &budget, &script);
    let (one, two) = (runtime(), runtime());
    let conn = one.block_on(resource.get()).unwrap();
    let mut foreign = resource.get();
    two.block_on(async { assert!(poll(&mut foreign).is_pending()) });
    conn.put();
    let conn = two.block_on(async { ready(&mut foreign).unwrap() });
    assert_eq!((conn.is_reused(), script.open()), (false, 1));
}

#[test]
fn a_dial_whose_runtime_ends_leaves_its_caller_to_dial_again() {
    let (budget, script) = (Budget::new(1), Script::manual());
    let resource = fakes("a", &budget, &script);
    let (one, two) = (runtime(), runtime());
    let (mut initiator, mut other) = (resource.get(), resource.get());
    one.block_on(async { assert!(poll(&mut initiator).is_pending()) });
    two.block_on(async { assert!(poll(&mut other).is_pending()) });
    drop(initiator); // its dial goes on, for the other
    drop(one);
    two.block_on(async {
        assert!(poll(&mut other).is_pending());
        assert_eq!(script.pending(), 1);
        script.answer(Ok(()));
        ready(&mut other).unwrap().put();
    });
    assert_at_rest(&budget, 1);
}

#[test]
fn put_drop_and_try_get_outside_of_a_runtime() {
    let (budget, peer) = (Budget::new(4), Peer::listen());
    let resource = peer.resource(&budget);
    let runtime = runtime();
    let (put, dropped) =
        runtime.block_on(async { (resource.get().await.unwrap(), resource.get().await.unwrap()) });
    put.put();
    drop(dropped);
    assert!(resource.try_get().is_none(), "of no use here");
    assert_at_rest(&budget, 1);
    assert!(runtime.block_on(resource.get()).unwrap().is_reused());
    drop(runtime);
    drop(resource);
    assert_at_rest(&budget, 0);
}

/// A task that enters another runtime: what it is told of the one is not taken for the other.
#[test]
fn one_inside_of_the_other() {
    let (budget, peer) = (Budget::new(8), echo());
    let resource = peer.resource(&budget);
    let outer = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let task = async move {
        for _ in 0..3 {
            exchange(&resource).await;
            assert!(exchange(&resource).await);
            tokio::task::block_in_place(|| {
                let inner = runtime();
                assert!(!inner.block_on(exchange(&resource)), "not one of the outer runtime");
                assert!(inner.block_on(exchange(&resource)));
                inner.block_on(async { drop(resource.get().fresh().await.unwrap()) });
            });
            assert!(!exchange(&resource).await, "not one of the inner runtime, which is dead");
        }
    };
    outer.block_on(async { tokio::spawn(task).await }).unwrap();
    drop(outer);
    assert_at_rest(&budget, 0);
}

#[test]
fn a_get_that_moves_between_runtimes_is_served() {
    let (budget, script) = (Budget::new(5), Script::manual());
    let resource = fakes("a", &budget, &script);
    let (one, two) = (runtime(), runtime());
    let mut get = resource.get_owned();
    one.block_on(async { assert!(poll(&mut get).is_pending()) });
    script.answer(Ok(()));
    two.block_on(async { ready(&mut get).unwrap().put() });
    assert_eq!(script.begun(), 1);
    assert!(one.block_on(async { ready(&mut resource.get()) }).unwrap().is_reused(), "of where it was begun");
}

#[test]
fn a_dial_is_not_kept_for_callers_of_another_runtime() {
    let (budget, script) = (Budget::new(1), Script::manual());
    let resource = fakes("a", &budget, &script);
    let (one, two) = (runtime(), runtime());
    let (mut initiator, mut other) = (resource.get(), resource.get());
    one.block_on(async { assert!(poll(&mut initiator).is_pending()) });
    two.block_on(async { assert!(poll(&mut other).is_pending()) });
    drop(initiator); // and nobody drives its runtime any more
    two.block_on(async {
        assert!(poll(&mut other).is_pending());
        assert_eq!((script.pending(), script.begun()), (1, 2));
        script.answer(Ok(()));
        ready(&mut other).unwrap().put();
    });
    assert_at_rest(&budget, 1);
}

/// Two runtimes, one after the other, inside of one task: each is a runtime of its own, whatever the task's number says.
#[test]
fn a_runtime_that_a_task_blocks_on_is_another() {
    let outer = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let inner =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (budget, peer) = (Budget::new(4), Peer::listen());
    let resource = peer.resource(&budget);
    outer.block_on(async move {
        // So that the kind of tasks' wakers is known.
        resource.get().await.unwrap().put();
        tokio::time::sleep(Duration::from_millis(100)).await;
        resource.schedule_close();
        let task = tokio::spawn(async move {
            tokio::task::block_in_place(|| {
                let first = inner();
                first.block_on(async { resource.get().await.unwrap().put() });
                drop(first);
                let second = inner();
                let reused = second.block_on(async { resource.get().await.unwrap().is_reused() });
                assert!(!reused, "its runtime has ended");
            });
        });
        task.await.unwrap();
    });
}

/// Two whose clocks stand still, the first one's never ahead of the other's: what takes real time ends no pause.
fn paused() -> (Runtime, Runtime) {
    let paused =
        || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    (paused(), paused())
}

/// What was left to do on a runtime that nobody drives any more is done on the next.
#[test]
fn who_waits_does_not_count_on_a_runtime_that_is_not_driven() {
    let (undriven, driven) = paused();
    let budget = Budget::new(100);
    let script = Script::manual();
    let resource = fakes_with("peer", &budget, &script).dial_timeout(None).build();
    let mut left: Vec<_> = (0..5).map(|_| resource.get()).collect();
    undriven.block_on(async {
        for get in &mut left {
            assert!(futures::poll!(get).is_pending());
        }
    });
    drop(left);
    driven.block_on(async {
        for _ in 0..40 {
            tokio::spawn(resource.get_owned());
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(script.begun(), 8, "dials double four times a second, up to eight");
    });
}

/// The same while an address pauses: who comes later sees to it that it is probed.
#[test]
fn an_address_is_not_left_to_be_probed_on_a_runtime_that_is_not_driven() {
    let (undriven, driven) = paused();
    let budget = Budget::new(100);
    let script = Script::manual();
    let pause = Duration::from_millis(100);
    let resource = fakes_with("peer", &budget, &script).backoff(pause, pause).build();
    driven.block_on(async {
        for _ in 0..3 {
            let mut get = resource.get();
            assert!(poll(&mut get).is_pending());
            script.answer(Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into()));
            assert!(ready(&mut get).is_err());
        }
    });
    let mut left = resource.get().wait_for_ready();
    undriven.block_on(async { assert!(poll(&mut left).is_pending()) });
    drop(left);
    driven.block_on(async {
        let waiting = tokio::spawn(resource.get_owned().wait_for_ready());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((script.begun(), script.pending()), (4, 1), "a dial probes the address");
        script.answer(Ok(()));
        waiting.await.unwrap().unwrap().put();
    });
    assert_at_rest(&budget, 1);
}

/// And so does who came before, if that is where the last dial failed.
#[test]
fn an_address_is_probed_for_who_queued_before_it_paused() {
    let (undriven, driven) = paused();
    let (budget, script) = (Budget::new(100), Script::manual());
    let pause = Duration::from_millis(100);
    let resource = fakes_with("peer", &budget, &script).backoff(pause, pause).max_dialing(1).build();
    let fail = || script.answer(Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into()));
    let fails = |runtime: &Runtime, waiting: &mut dyn FnMut()| {
        let mut get = resource.get();
        runtime.block_on(async { assert!(poll(&mut get).is_pending()) });
        waiting();
        fail();
        runtime.block_on(async { assert!(ready(&mut get).is_err()) });
    };
    let mut waiting = None;
    fails(&driven, &mut || ());
    fails(&driven, &mut || ());
    fails(&undriven, &mut || {
        waiting = Some(driven.spawn(resource.get_owned().wait_for_ready()));
        driven.block_on(support::settle());
    });
    driven.block_on(async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((script.begun(), script.pending()), (4, 1), "a dial probes the address");
        script.answer(Ok(()));
        waiting.unwrap().await.unwrap().unwrap().put();
    });
    assert_at_rest(&budget, 1);
}

#[test]
fn a_get_that_is_polled_where_another_runtime_is_entered_is_served_by_its_own_dial() {
    let (here, there) = (runtime(), runtime());
    let (budget, script) = (Budget::new(2), Arc::new(Script::default()));
    let resource = fakes("a", &budget, &script);
    let handle = there.handle().clone();
    here.block_on(async move {
        let task = tokio::spawn(async move {
            resource.get().await.unwrap().put();
            tokio::task::yield_now().await; // the keeper begins, from which wakers of tasks are known
            resource.get().await.unwrap().close();
            let mut get = resource.get();
            let conn = std::future::poll_fn(|cx| {
                let _entered = handle.enter();
                std::pin::Pin::new(&mut get).poll(cx)
            });
            conn.await.unwrap().close();
        });
        task.await.unwrap();
    });
    assert_eq!((script.begun(), script.closed()), (2, 2));
    assert_at_rest(&budget, 0);
}

#[test]
fn so_is_one_that_was_polled_there_where_others_queued() {
    let (here, there) = (runtime(), runtime());
    let (budget, script) = (Budget::new(1), Script::manual());
    let resource = fakes("a", &budget, &script);
    let entered = there.handle().clone();
    let seen = Arc::clone(&script);
    here.block_on(async move {
        let task = tokio::spawn(async move {
            let mut first = resource.get();
            assert!(poll(&mut first).is_pending());
            seen.answer(Ok(()));
            first.await.unwrap().put();
            tokio::task::yield_now().await; // the keeper begins, from which wakers of tasks are known
            let used = resource.get().await.unwrap();
            let queues = tokio::spawn(resource.get_owned());
            support::settle().await;
            let mut get = resource.get();
            let mut poll_there = async || {
                std::future::poll_fn(|cx| {
                    let _entered = entered.enter();
                    std::task::Poll::Ready(std::pin::Pin::new(&mut get).poll(cx))
                })
                .await
            };
            assert!(poll_there().await.is_pending());
            queues.abort();
            support::settle().await;
            used.close();
            assert!(poll_there().await.is_pending());
            assert_eq!((seen.begun(), seen.pending()), (2, 1));
            seen.answer(Ok(()));
            let served = poll_there().await;
            assert_eq!((seen.begun(), seen.pending()), (2, 0), "by that dial");
            let std::task::Poll::Ready(conn) = served else { panic!("it goes on waiting") };
            conn.unwrap().close();
        });
        task.await.unwrap();
    });
    assert_at_rest(&budget, 0);
}

/// Its watch is never ready: whether it has moved is asked only when somebody begins to watch.
fn watched_in_vain(budget: &Budget, moved: &Arc<AtomicBool>) -> ConnResource<()> {
    let moved = Arc::clone(moved);
    let dialer = Moving {
        watch: || -> Option<Watch> { Some(Box::pin(std::future::pending())) },
        is_current: move || !moved.load(Ordering::Relaxed),
    };
    ConnResource::builder("a", dialer).budget(budget).build()
}

#[test]
fn when_the_runtime_ends_that_watches_whether_an_address_moves_another_does() {
    for rests_long in [false, true] {
        let (budget, moved) = (Budget::new(4), Arc::new(AtomicBool::new(false)));
        let resource = watched_in_vain(&budget, &moved);
        let (first, second) = (runtime(), runtime());
        let theirs = first.block_on(async {
            let conn = resource.get().await.unwrap();
            support::settle().await;
            conn
        });
        let conn = second.block_on(async { resource.get().await.unwrap() });
        if rests_long {
            second.block_on(async {
                conn.put();
                tokio::time::sleep(Duration::from_millis(500)).await; // it is looked at no more
            });
            drop(first);
        } else {
            drop(first);
            second.block_on(async { conn.put() });
        }
        moved.store(true, Ordering::Relaxed);
        assert_eq!(resource.stats().idle, 1);
        second.block_on(async {
            let closed = async {
                while resource.stats().idle > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), closed).await.expect("asked, and closed");
        });
        theirs.close();
        assert_at_rest(&budget, 0);
    }
}

#[test]
fn when_the_runtime_is_not_driven_that_watches_whether_an_address_moves_another_does() {
    let (budget, moved) = (Budget::new(4), Arc::new(AtomicBool::new(false)));
    let resource = watched_in_vain(&budget, &moved);
    let first = runtime();
    let theirs = first.block_on(async {
        let conn = resource.get().await.unwrap();
        support::settle().await;
        conn
    });
    let second = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    second.block_on(async {
        let conn = resource.get().await.unwrap();
        moved.store(true, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(60)).await;
        conn.put();
        tokio::time::sleep(Duration::from_secs(1)).await;
    });
    assert_eq!((resource.stats().idle, resource.stats().retired), (0, 1), "asked, and closed");
    first.block_on(support::settle()); // it is relieved
    theirs.close();
    assert_at_rest(&budget, 0);
}

#[test]
fn idle_ones_are_looked_after_when_the_runtime_that_did_ends_after_another_has_come_and_gone() {
    let (budget, script) = (Budget::new(8), Arc::new(Script::default()));
    let resource = |name| fakes_with(name, &budget, &script).idle_timeout(Duration::from_millis(300)).build();
    let names = ["at work", "gone", "here"].map(resource);
    let [at_work, gone, here] = [(); 3].map(|()| runtime());
    for (runtime, resource) in [&at_work, &gone, &here].into_iter().zip(&names) {
        runtime.block_on(async {
            resource.get().await.unwrap().put();
            support::settle().await;
        });
    }
    drop(gone);
    here.block_on(async { names[2].get().fresh().await.unwrap().put() });
    drop(at_work);
    here.block_on(async {
        let expired = async {
            while names[2].stats().idle > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), expired).await.expect("looked after");
    });
}

/// The runtime ends that was to wait for the end of the stock's pause.
#[test]
fn a_stock_is_filled_on_a_runtime_that_lives() {
    let (ended, living) = (runtime(), runtime());
    let (budget, down) = (Budget::new(5), Arc::new(AtomicBool::new(true)));
    let fails = Arc::clone(&down);
    let dial = move |_: &Address, _: &DialContext| {
        std::future::ready(match fails.load(Ordering::SeqCst) {
            true => Err(std::io::ErrorKind::ConnectionRefused.into()),
            false => Ok(()),
        })
    };
    let pause = Duration::from_secs(60);
    let builder = ConnResource::builder("a", from_fn(dial, |(), _| Fitness::Fit)).budget(&budget);
    let resource = ended.block_on(async {
        let resource = builder.min_idle(2).backoff(pause, pause).build();
        settle().await;
        resource
    });
    assert_eq!(budget.stats().dial_failures, 1);
    drop(ended);
    down.store(false, Ordering::SeqCst);
    living.block_on(async {
        tokio::time::pause();
        resource.get().await.unwrap().put();
        tokio::time::sleep(2 * pause).await;
        assert!(resource.stats().idle >= 2, "{:?}", resource.stats());
    });
}
