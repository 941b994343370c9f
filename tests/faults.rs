//! What the ancestor gets wrong, each fault on real sockets where sockets are the point; those about
//! descriptors are in `descriptors.rs`, those about losing things in `drops.rs`, sizing in the library.

mod support;

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use fdpool::{Budget, GetError};
use support::{Peer, Script, assert_at_rest, comes_to_rest, fakes, fakes_with, poll, ready, until_readable};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn every_put_after_schedule_close_in_use_does_not_close() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    let used = resource.get().await.unwrap();
    resource.schedule_close();
    used.put();
    resource.get().await.unwrap().put();
    for _ in 0..3 {
        let conn = resource.get().await.unwrap();
        assert!(conn.is_reused());
        conn.put();
    }
    assert_eq!(budget.stats().dials, 2);
}

#[tokio::test(start_paused = true)]
async fn a_dead_connection_is_not_handed_out() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    let conn = resource.get().await.unwrap();
    let far = peer.accept();
    conn.put();
    drop(far);
    tokio::time::sleep(Duration::from_secs(1)).await; // virtual; the runtime looks at its sockets
    let conn = resource.get().await.unwrap();
    assert_eq!((conn.is_reused(), budget.stats().stale), (false, 1));
}

/// The runtime never looks at its sockets in this test: it does not wait for anything between put and get.
#[tokio::test(start_paused = true)]
async fn a_peer_that_closed_while_the_driver_did_not_run_is_noticed() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    let conn = resource.get().await.unwrap();
    let far = peer.accept();
    let raw = socket2::SockRef::from(&*conn).try_clone().unwrap();
    conn.put();
    drop(far);
    while raw.peek(&mut [std::mem::MaybeUninit::uninit()]).is_err() {
        std::thread::yield_now();
    }
    tokio::time::advance(Duration::from_millis(9)).await; // two ticks of the clock
    let mut get = resource.get();
    assert!(poll(&mut get).is_pending(), "dials");
    assert_eq!((budget.stats().stale, budget.stats().dialing), (1, 1));
}

#[tokio::test]
async fn bytes_of_the_last_exchange_do_not_reach_the_next_user() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    // Dropped half-way: closed.
    let conn = resource.get().await.unwrap();
    peer.accept().write_all(b"half an ans").unwrap();
    drop(conn);
    let conn = resource.get().await.unwrap();
    assert!(!conn.is_reused());
    // Put with bytes unread: dirty.
    let mut far = peer.accept();
    far.write_all(b"wer").unwrap();
    until_readable(&conn);
    conn.readable().await.unwrap();
    conn.put();
    let conn = resource.get().await.unwrap();
    assert_eq!((conn.is_reused(), budget.stats().dirty, budget.stats().dropped), (false, 1, 1));
}

#[tokio::test]
async fn a_connection_that_saw_its_end_is_not_reused() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    let mut conn = resource.get().await.unwrap();
    drop(peer.accept());
    assert_eq!(conn.read(&mut [0; 8]).await.unwrap(), 0);
    conn.put();
    assert_at_rest(&budget, 0);
    let mut conn = resource.get().await.unwrap();
    conn.shutdown_write().await;
    conn.put();
    assert_at_rest(&budget, 0);
}

trait ShutdownWrite {
    async fn shutdown_write(&mut self);
}

impl ShutdownWrite for fdpool::Conn {
    async fn shutdown_write(&mut self) {
        std::future::poll_fn(|cx| tokio::io::AsyncWrite::poll_shutdown(std::pin::Pin::new(&mut *self), cx))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn an_error_through_the_connection_bars_reuse() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    let mut conn = resource.get().await.unwrap();
    let far = peer.accept();
    socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
    drop(far); // a reset
    assert!(conn.read(&mut [0; 8]).await.is_err());
    conn.put();
    assert_eq!(budget.stats().broken, 1);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn shutdown_sends_the_end_and_closes() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let mut conn = peer.resource(&budget).get().await.unwrap();
    let mut far = peer.accept();
    conn.write_all(b"bye").await.unwrap();
    conn.shutdown().await.unwrap();
    let mut said = String::new();
    far.read_to_string(&mut said).unwrap();
    assert_eq!(said, "bye");
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn discard_pending_makes_a_connection_fit_again() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    let mut conn = resource.get().await.unwrap();
    let mut far = peer.accept();
    far.write_all(&[7; 5000]).unwrap();
    until_readable(&conn);
    let discarded = conn.discard_pending(Duration::from_millis(20), 10_000).await.unwrap();
    assert_eq!(discarded, 5000);
    conn.put();
    let mut conn = resource.get().await.unwrap();
    assert!(conn.is_reused());
    far.write_all(&[7; 5000]).unwrap();
    let error = conn.discard_pending(Duration::from_millis(20), 100).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    conn.put();
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn a_second_get_on_a_busy_resource_gets_another_connection() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let resource = fakes("a", &budget, &script);
    let (first, second) = (resource.get().await.unwrap(), resource.get().immediate().await.unwrap());
    assert_ne!(first.number, second.number);
    // The old way, under its proper name.
    let resource = fakes_with("b", &budget, &script).max_conns(1).build();
    let _held = resource.get().await.unwrap();
    assert!(matches!(resource.get().immediate().await, Err(GetError::AddressBusy { .. })));
}

#[tokio::test]
async fn a_failing_dial_destroys_nothing_it_does_not_need() {
    let (budget, script) = (Budget::new(3), Script::manual());
    let good = fakes("good", &budget, &script);
    let bad = fakes_with("bad", &budget, &script).backoff(Duration::ZERO, Duration::ZERO).build();
    let mut gets = [good.get(), good.get()];
    for get in &mut gets {
        assert!(poll(get).is_pending());
        script.answer(Ok(()));
    }
    let conns = gets.map(|mut get| ready(&mut get).unwrap());
    for conn in conns {
        conn.put();
    }
    for _ in 0..5 {
        let mut get = bad.get();
        assert!(poll(&mut get).is_pending());
        script.answer(Err(std::io::ErrorKind::ConnectionRefused.into()));
        assert!(ready(&mut get).is_err());
    }
    assert_eq!((budget.stats().evicted, budget.stats().idle), (0, 2), "a slot was free");
    budget.set_limit(2);
    for _ in 0..5 {
        let mut get = bad.get();
        assert!(poll(&mut get).is_pending());
        script.answer(Err(std::io::ErrorKind::ConnectionRefused.into()));
        assert!(ready(&mut get).is_err());
    }
    assert_eq!((budget.stats().evicted, budget.stats().idle), (1, 1), "one was needed, and served all five");
}

#[test]
fn many_resources_under_pressure_on_many_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async {
        let (budget, script) = (Budget::new(8), Arc::<Script>::default());
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..64 {
            let resource = fakes_with(&n.to_string(), &budget, &script).wait_timeout(None).build();
            tasks.spawn(async move {
                for round in 0..300 {
                    let conn = resource.get().await.unwrap();
                    if round % 7 == 0 {
                        resource.schedule_close();
                    }
                    if round % 3 == 0 {
                        tokio::task::yield_now().await;
                    }
                    if round % 5 == 0 { conn.close() } else { conn.put() }
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        comes_to_rest(&budget, 0).await;
        assert_eq!(script.open(), 0);
        assert!(script.most_open.load(std::sync::atomic::Ordering::SeqCst) <= 8);
    });
}
