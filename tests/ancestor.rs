//! What the ancestor's own tests ask for holds here, on both kinds of runtime. Theirs are: get-use-put,
//! get-close-put, no use after put or close (which cannot compile here: see `Conn`'s documentation), and
//! loops of get-put and get-close with 1 to 113 resources on a budget of 10.

mod support;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fdpool::{Budget, ConnResource, dial::Tcp};
use support::{Fake, Script, assert_at_rest, comes_to_rest, echo_server, fakes, sockets_to};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

/// Runs a test on a current-thread runtime and on a multi-thread one.
fn on_both<F: Future<Output = ()>>(test: impl Fn() -> F) {
    let current = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    current.block_on(test());
    let multi = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    multi.block_on(test());
}

#[test]
fn get_use_put() {
    on_both(|| async {
        let (budget, address) = (Budget::new(10), echo_server().await);
        let resource = ConnResource::builder(address, Tcp::default()).budget(&budget).build();
        for reused in [false, true] {
            let mut conn = resource.get().await.unwrap();
            assert_eq!((conn.is_reused(), conn.peer_addr().unwrap()), (reused, address));
            conn.write_all(b"ping").await.unwrap();
            let mut pong = [0; 4];
            conn.read_exact(&mut pong).await.unwrap();
            assert_eq!(&pong, b"ping");
            conn.put();
            assert_eq!(sockets_to(address), 1);
        }
        assert_at_rest(&budget, 1);
    });
}

#[test]
fn get_close_put() {
    on_both(|| async {
        let (budget, address) = (Budget::new(10), echo_server().await);
        let resource = ConnResource::builder(address, Tcp::default()).budget(&budget).build();
        for _ in 0..2 {
            let conn = resource.get().immediate().await.unwrap();
            assert!(!conn.is_reused());
            conn.close();
            assert_eq!(sockets_to(address), 0);
        }
        assert_at_rest(&budget, 0);
    });
}

#[derive(Clone, Copy)]
enum End {
    Put,
    Close,
}

async fn cycles(resource: ConnResource<Fake>, count: usize, end: End) {
    for _ in 0..count {
        let conn = resource.get().await.unwrap();
        assert!(resource.budget().stats().in_use <= 10);
        match end {
            End::Put => conn.put(),
            End::Close => conn.close(),
        }
    }
}

async fn concurrently(resources: &[ConnResource<Fake>], count: usize, end: End) {
    let mut tasks = JoinSet::new();
    for resource in resources {
        tasks.spawn(cycles(resource.clone(), count, end));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

/// In use ends at 0 and never exceeds the budget; nothing is dialled or closed twice.
fn loops(resources: usize, phases: &[(usize, End)]) {
    on_both(|| async {
        let (budget, script) = (Budget::new(10), Arc::<Script>::default());
        let all: Vec<_> = (0..resources).map(|n| fakes(&n.to_string(), &budget, &script)).collect();
        for (count, end) in phases {
            concurrently(&all, *count, *end).await;
            assert_at_rest(&budget, script.open());
        }
        let most = script.most_open.load(Ordering::SeqCst);
        assert!(most <= 10, "{most} open at once");
        assert_eq!(script.begun() - script.closed(), script.open(), "dialled and closed once each");
        drop(all);
        comes_to_rest(&budget, 0).await;
        assert_eq!(script.open(), 0);
    });
}

#[test]
fn get_put_with_one_slot() {
    on_both(|| async {
        let (budget, script) = (Budget::new(1), Arc::default());
        let resource = fakes("a", &budget, &script);
        let conn = resource.get().immediate().await.unwrap();
        assert_eq!((budget.stats().in_use, script.open()), (1, 1));
        conn.put();
        assert_eq!((budget.stats().in_use, script.open(), script.begun()), (0, 1, 1));
    });
}

#[test]
fn get_close_put_with_one_slot() {
    on_both(|| async {
        let (budget, script) = (Budget::new(1), Arc::default());
        let resource = fakes("a", &budget, &script);
        let conn = resource.get().await.unwrap();
        conn.close();
        assert_eq!((budget.stats().in_use, script.open(), script.begun()), (0, 0, 1));
    });
}

#[test]
fn loop_one() {
    loops(1, &[(11, End::Put), (11, End::Close)]);
}

#[test]
fn only_get_close_put_loop_one() {
    loops(1, &[(11, End::Close)]);
}

#[test]
fn loop_one_under_capacity() {
    loops(9, &[(1001, End::Put), (1001, End::Close)]);
}

#[test]
fn only_get_close_put_loop_one_under_capacity() {
    loops(9, &[(1001, End::Close)]);
}

#[test]
fn loop_at_capacity() {
    loops(10, &[(1001, End::Put), (1001, End::Close)]);
}

#[test]
fn only_get_close_put_loop_at_capacity() {
    loops(10, &[(1001, End::Close)]);
}

#[test]
fn loop_one_over_capacity() {
    loops(11, &[(1001, End::Put), (1001, End::Close)]);
}

#[test]
fn only_get_close_put_loop_one_over_capacity() {
    loops(11, &[(1001, End::Close)]);
}

#[test]
fn loop_far_over_capacity() {
    loops(113, &[(1, End::Put), (1001, End::Close)]);
}

#[test]
fn only_get_close_put_loop_far_over_capacity() {
    loops(113, &[(1001, End::Close)]);
}

#[test]
fn loops_of_get_put_far_over_capacity() {
    loops(113, &[(101, End::Put)]);
}
