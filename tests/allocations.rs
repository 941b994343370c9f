//! A get that finds an idle connection, and the put after it, allocate nothing.

use std::future::Future;
use std::time::Duration;

use fdpool::dial::Tcp;
use fdpool::{Budget, CancellationToken, Conn, ConnResource, GetError};
use futures::FutureExt;
use tokio::net::TcpStream;

mod support;

const PAIRS: usize = 1000;

async fn warm_resource() -> ConnResource {
    let address = support::echo_server().await;
    let resource = ConnResource::builder(address, Tcp::default()).budget(&Budget::new(4)).build();
    resource.get().await.expect("a connection").put();
    resource
}

/// What a get that need not wait comes to.
fn at_once(get: impl Future<Output = Result<Conn<TcpStream>, GetError>>) -> Option<Conn<TcpStream>> {
    get.now_or_never().expect("an idle connection is given out at the first poll").ok()
}

#[track_caller]
fn assert_allocates_nothing(resource: &ConnResource, get: impl Fn() -> Option<Conn<TcpStream>>) {
    let before = resource.stats();
    let allocated = allocation_counter::measure(|| {
        for _ in 0..PAIRS {
            get().expect("an idle connection").put();
        }
    });
    let after = resource.stats();
    assert_eq!((after.reused - before.reused, after.dials), (PAIRS as u64, 1), "not warm: {after:?}");
    assert_eq!(allocated.count_total, 0, "{allocated:?}");
}

#[tokio::test]
async fn a_warm_get_and_put_allocate_nothing() {
    let resource = warm_resource().await;
    assert_allocates_nothing(&resource, || at_once(resource.get()));
}

#[tokio::test]
async fn a_warm_get_with_every_option_allocates_nothing() {
    let resource = warm_resource().await;
    let token = CancellationToken::new();
    let second = Duration::from_secs(1);
    assert_allocates_nothing(&resource, || {
        let get = resource.get().timeout(second).wait_timeout(second).dial_timeout(second);
        at_once(get.cancel(&token).immediate())
    });
}

#[tokio::test]
async fn a_warm_get_that_keeps_a_handle_allocates_nothing() {
    let resource = warm_resource().await;
    assert_allocates_nothing(&resource, || at_once(resource.get_owned()));
}

#[tokio::test]
async fn try_get_allocates_nothing() {
    let resource = warm_resource().await;
    assert_allocates_nothing(&resource, || resource.try_get());
}

#[tokio::test]
async fn a_warm_get_allocates_nothing_after_others_have_queued() {
    let address = support::echo_server().await;
    let budget = Budget::new(2);
    let resource = ConnResource::builder(address, Tcp::default()).budget(&budget).build();
    let conn = resource.get().await.expect("a connection");
    let slot = budget.acquire().await.expect("a slot");
    let mut queued = resource.get();
    assert!(support::poll(&mut queued).is_pending());
    drop(slot); // granted to the one who queues, who leaves without having looked
    drop(queued);
    conn.put();
    assert_allocates_nothing(&resource, || at_once(resource.get()));
}

/// Of an address where several have waited for dials, and one of these went on without its get.
#[test]
fn nothing_is_kept_of_a_dial_that_is_over() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let (budget, script) = (Budget::new(2), support::Script::manual());
    let resource = |name| support::fakes(name, &budget, &script);
    let spike = async |resource: ConnResource<support::Fake>| {
        let (mut first, mut second) = (resource.get(), resource.get());
        assert!(support::poll(&mut first).is_pending() && support::poll(&mut second).is_pending());
        script.answer_newest(Ok(()));
        assert!(support::poll(&mut second).is_pending(), "for the first, whose dial goes on");
        let conn = support::ready(&mut first).expect("a connection");
        support::settle().await;
        script.answer(Ok(()));
        support::settle().await;
        support::ready(&mut second).expect("a connection").close();
        conn.close();
    };
    // Whatever the budget and the test keep from their first time on.
    runtime.block_on(spike(resource("another")));
    let resource = resource("a");
    runtime.block_on(async {
        let mut get = resource.get();
        assert!(support::poll(&mut get).is_pending());
        script.answer(Ok(()));
        support::ready(&mut get).expect("a connection").close();
    });
    let kept = allocation_counter::measure(|| runtime.block_on(spike(resource.clone())));
    assert_eq!(kept.bytes_current, 0, "{kept:?}");
}

/// The count counts: what dials does allocate.
#[tokio::test]
async fn a_get_that_dials_allocates() {
    let resource = warm_resource().await;
    let allocated = allocation_counter::measure(|| drop(resource.get().fresh().now_or_never()));
    assert_ne!(allocated.count_total, 0);
}

/// The keeper is told of an address once, however often it would have to be.
#[tokio::test]
async fn nothing_is_kept_of_settings_that_were_changed() {
    let resource = warm_resource().await;
    resource.set_max_idle(5);
    let kept = allocation_counter::measure(|| (0..1000).for_each(|n| resource.set_max_idle(5 + n % 2)));
    assert!(kept.bytes_current < 1000, "{kept:?}");
}
