//! Many addresses: made on first use, shared by all who ask, forgotten when they have not been wanted for long.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fdpool::dial::Tcp;
use fdpool::{Address, Budget, GetError, Peers, PeersBuilder};
use support::{Fake, FakeDialer, Peer, Script, assert_at_rest, poll, ready, settle, sockets_to};

const MINUTE: Duration = Duration::from_secs(60);

fn fakes(budget: &Budget, script: &Arc<Script>) -> Peers<Fake> {
    Peers::builder(FakeDialer(Arc::clone(script))).budget(budget).build()
}

/// Asks for known addresses until what can be forgotten is.
fn tidy(peers: &Peers<Fake>, address: &str) {
    for _ in 0..100_000 {
        peers.resource(address);
    }
}

#[test]
fn everything_can_be_sent_and_shared() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug + 'static>() {}
    fn debug<T: Send + std::fmt::Debug + 'static>() {}
    check::<Peers>();
    check::<Peers<Fake>>();
    debug::<PeersBuilder<Tcp>>();
    let global = Peers::default();
    assert!(global.resource("10.0.0.1:1").budget() == Budget::global());
    assert!(format!("{global:?}").contains("len: 1"));
}

#[tokio::test]
async fn connections_are_reused_and_descriptors_counted() {
    let (budget, peer) = (Budget::new(4), Peer::listen());
    let peers = Peers::builder(Tcp::default()).budget(&budget).build();
    let address = Address::from(peer.address);
    peers.get(&address).await.unwrap().put();
    assert!(peers.get(address.as_str()).await.unwrap().is_reused());
    assert_eq!((sockets_to(peer.address), peers.len()), (0, 1), "dropped");
    peers.get(address).await.unwrap().put();
    assert_eq!(sockets_to(peer.address), 1);
    drop(peers);
    assert_eq!(sockets_to(peer.address), 0);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn resources_share_budget_dialer_and_settings() {
    let (budget, script) = (Budget::new(10), Arc::<Script>::default());
    let peers = Peers::builder(FakeDialer(Arc::clone(&script)))
        .budget(&budget)
        .configure(|resource| resource.max_conns(1).wait_timeout(MINUTE))
        .build();
    let conn = peers.get("a").await.unwrap();
    assert!(matches!(peers.get("a").immediate().await, Err(fdpool::GetError::AddressBusy { .. })));
    let other = peers.get(String::from("b")).await.unwrap();
    assert_eq!((script.begun(), budget.stats().in_use, peers.len()), (2, 2, 2));
    assert_eq!(conn.address().as_str(), "a");
    drop((conn, other));
}

#[tokio::test]
async fn an_address_has_one_resource_for_all_who_ask() {
    let (budget, script) = (Budget::new(10), Script::manual());
    let peers = fakes(&budget, &script);
    let (mut first, mut second) = (peers.get("a"), peers.clone().get("a"));
    assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
    assert_eq!(peers.resource("a").stats().waiting, 2);
    script.answer(Ok(()));
    ready(&mut first).unwrap().put();
    assert!(ready(&mut second).unwrap().is_reused());
    assert_eq!(peers.len(), 1);
}

#[test]
fn find_makes_nothing() {
    let peers = fakes(&Budget::new(1), &Arc::default());
    assert!(peers.find("a").is_none() && peers.is_empty());
    peers.resource("a");
    assert_eq!(peers.find("a").unwrap().address().as_str(), "a");
    assert!(!peers.schedule_close("b"));
}

#[tokio::test]
async fn schedule_close_closes_idle_ones_now_and_used_ones_at_put() {
    let (budget, script) = (Budget::new(10), Arc::<Script>::default());
    let peers = fakes(&budget, &script);
    let mut conns = Vec::new();
    for address in ["a", "b"] {
        let (used, idle) = (peers.get(address).await.unwrap(), peers.get(address).await.unwrap());
        idle.put();
        conns.push(used);
    }
    assert!(peers.schedule_close("a"));
    assert_eq!((script.open(), peers.len()), (3, 2));
    peers.schedule_close_all();
    assert_eq!((script.open(), budget.stats().idle), (2, 0));
    conns.into_iter().for_each(|conn| conn.put());
    assert_eq!(script.open(), 0);
    peers.get("a").await.unwrap().put();
    assert_eq!(script.open(), 1);
}

#[tokio::test]
async fn retain_forgets_and_closes() {
    let (budget, script) = (Budget::new(10), Arc::<Script>::default());
    let peers = fakes(&budget, &script);
    let (idle, used, kept) =
        (peers.get("a").await.unwrap(), peers.get("a").await.unwrap(), peers.get("b").await.unwrap());
    idle.put();
    kept.put();
    let handle = peers.resource("a");
    peers.retain(|address, resource| {
        assert_eq!(address, resource.address());
        peers.find(address).is_some_and(|found| found.stats().in_use == 0) // no lock is held
    });
    assert_eq!((peers.len(), script.open()), (1, 2));
    used.put();
    assert_eq!(script.open(), 1);
    handle.get().await.unwrap().put(); // whoever holds it may go on
    drop(handle);
    assert_eq!(script.open(), 1);
    peers.clear();
    assert!(peers.is_empty());
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn no_stock_is_dialled_of_addresses_that_are_forgotten() {
    let (budget, script) = (Budget::new(10), Arc::<Script>::default());
    let dialer = FakeDialer(Arc::clone(&script));
    let peers =
        Peers::builder(dialer).budget(&budget).configure(|resource| resource.min_idle(1).max_idle(1)).build();
    peers.get("a").await.unwrap().put();
    let (used, handle) = (peers.get("b").await.unwrap(), peers.resource("b"));
    settle().await;
    assert_eq!((script.open(), budget.stats().idle), (3, 2));
    let dials = budget.stats().dials;
    peers.clear();
    assert_eq!((budget.stats().dials, budget.stats().dialing), (dials + 1, 1), "for who holds b still");
    settle().await;
    drop(handle);
    used.put();
    assert_eq!(script.open(), 0);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn a_closed_resource_is_replaced_when_its_address_is_asked_for() {
    let (budget, script) = (Budget::new(10), Arc::<Script>::default());
    let peers = fakes(&budget, &script);
    let used = peers.get("a").await.unwrap();
    let handle = peers.resource("a");
    assert_eq!(handle.close(Duration::ZERO).await.still_open, 1);
    assert!(matches!(handle.get().await, Err(GetError::Closed { .. })), "it is closed for good");
    peers.get("a").await.unwrap().put();
    assert!(peers.get("a").await.unwrap().is_reused());
    assert_eq!((peers.len(), script.begun()), (1, 2));
    used.put();
    assert_eq!(handle.stats().idle, 0);

    // Not so if all is closed.
    let known = peers.resource("a");
    budget.close(Duration::ZERO).await;
    assert!(matches!(peers.get("a").await, Err(GetError::Closed { .. })));
    drop((handle, known));
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn stats_are_of_each_address() {
    let (budget, script) = (Budget::new(10), Arc::<Script>::default());
    let peers = fakes(&budget, &script);
    let conns = [peers.get("a").await.unwrap(), peers.get("a").await.unwrap()];
    peers.get("b").await.unwrap().put();
    let mut stats: Vec<_> =
        peers.stats().map(|(address, stats)| (address.to_string(), stats.in_use, stats.idle)).collect();
    stats.sort();
    assert_eq!(stats, [("a".to_owned(), 2, 0), ("b".to_owned(), 0, 1)]);
    assert_eq!(peers.iter().count(), 2);
    drop(conns);
}

#[tokio::test(start_paused = true)]
async fn forgets_what_was_not_wanted_for_long_and_nothing_else() {
    let (budget, script) = (Budget::new(10), Arc::<Script>::default());
    let peers = Peers::builder(FakeDialer(Arc::clone(&script)))
        .budget(&budget)
        .configure(|resource| resource.idle_timeout(None).max_lifetime(None))
        .build();
    peers.get("idle").await.unwrap().put();
    let used = peers.get("used").await.unwrap();
    let held = peers.resource("held");
    let get = peers.get("asked, but not yet polled");
    peers.get("closed").await.unwrap().close();
    peers.resource("recent");
    tokio::time::advance(10 * MINUTE - Duration::from_secs(1)).await;
    tidy(&peers, "hot");
    assert_eq!(peers.len(), 7);
    peers.resource("recent");
    tokio::time::advance(Duration::from_secs(1)).await;
    tidy(&peers, "hot");
    assert_eq!((peers.len(), peers.find("closed").is_none()), (6, true));

    // Once nothing holds them any more, they go as well.
    assert_eq!(script.open(), 2);
    used.close();
    drop((held, get));
    peers.schedule_close("idle");
    tokio::time::advance(10 * MINUTE).await;
    tidy(&peers, "hot");
    assert_eq!((peers.len(), script.open()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_dial_or_a_waiter_keeps_an_address() {
    let (budget, script) = (Budget::new(10), Script::manual());
    let peers = Peers::builder(FakeDialer(Arc::clone(&script)))
        .budget(&budget)
        .configure(|resource| resource.dial_timeout(None).wait_timeout(None))
        .build();
    let mut get = peers.get("slow");
    assert!(poll(&mut get).is_pending());
    tokio::time::advance(60 * MINUTE).await;
    tidy(&peers, "hot");
    assert!(peers.find("slow").is_some());
    script.answer(Ok(()));
    settle().await;
    ready(&mut get).unwrap().put();
    assert_eq!(peers.find("slow").unwrap().stats().idle, 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_forgotten_if_so_asked() {
    let peers = Peers::builder(FakeDialer(Arc::default())).budget(&Budget::new(1)).forget_after(None).build();
    for n in 0..100 {
        peers.resource(n.to_string());
    }
    tokio::time::advance(100_000 * MINUTE).await;
    tidy(&peers, "0");
    assert_eq!(peers.len(), 100);
}

/// A thousand new addresses a minute for some 17 hours: never more known than those of 10 minutes and a few.
#[tokio::test(start_paused = true)]
async fn a_million_addresses_do_not_stay() {
    let (budget, script) = (Budget::new(64), Arc::<Script>::default());
    let peers = fakes(&budget, &script);
    let mut most = 0;
    for minute in 0..1000 {
        for n in 0..1000 {
            let address = format!("10.{}.{}.{}:80", minute / 250, minute % 250, n);
            if n % 100 == 0 {
                peers.get(address).await.unwrap().put();
            } else {
                peers.resource(address);
            }
        }
        most = most.max(peers.len());
        tokio::time::advance(MINUTE).await;
    }
    assert!((10_000..14_000).contains(&most), "{most}");

    // And then a few are asked for again and again: the rest goes all the same.
    tokio::time::advance(10 * MINUTE).await;
    settle().await; // what rests expires
    assert_at_rest(&budget, 0);
    for _ in 0..20_000 {
        for address in ["a", "b", "c"] {
            peers.resource(address);
        }
    }
    assert!(peers.len() <= 3, "{}", peers.len());
}

#[test]
fn a_panic_of_the_hook_costs_its_caller_only() {
    let panics = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&panics);
    let peers = Peers::builder(FakeDialer(Arc::default()))
        .budget(&Budget::new(1))
        .configure(move |resource| {
            assert!(!flag.load(Ordering::SeqCst), "a hook's panic");
            resource
        })
        .build();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| peers.resource("a"))).unwrap_err();
    assert!(peers.is_empty());
    panics.store(false, Ordering::SeqCst);
    peers.resource("a");
    assert_eq!(peers.len(), 1);
}

#[test]
fn the_hook_may_ask_for_other_addresses() {
    let slot = Arc::new(std::sync::OnceLock::<Peers<Fake>>::new());
    let (inner, asked) = (Arc::clone(&slot), AtomicBool::new(false));
    let peers = Peers::builder(FakeDialer(Arc::default()))
        .budget(&Budget::new(1))
        .configure(move |resource| {
            let peers = inner.get().expect("set");
            if peers.find("another").is_none() && !asked.swap(true, Ordering::SeqCst) {
                peers.resource("another");
            }
            peers.retain(|_, _| peers.iter().count() == peers.len());
            resource
        })
        .build();
    slot.set(peers.clone()).unwrap();
    (0..200).for_each(|n| drop(peers.resource(n.to_string())));
    assert_eq!(peers.len(), 201);
    peers.clear();
}

/// Threads that ask for new and old addresses at once, while others are forgotten: with `max_conns(1)`, two
/// resources of one address would be seen as two connections in use at once.
#[test]
fn forgetting_never_splits_an_address_in_two() {
    static IN_USE: [AtomicUsize; 12] = [const { AtomicUsize::new(0) }; 12];
    let (budget, script) = (Budget::new(16), Arc::<Script>::default());
    let peers = Peers::builder(FakeDialer(Arc::clone(&script)))
        .budget(&budget)
        .configure(|resource| resource.max_conns(1).wait_timeout(None).max_idle(0))
        .forget_after(Duration::ZERO)
        .build();
    let gets = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let (peers, gets) = (&peers, &gets);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let mut state = thread as u64 + 1;
                    for _ in 0..5_000 {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let n = (state >> 33) as usize % IN_USE.len();
                        let resource = peers.resource(n.to_string());
                        (0..4).for_each(|_| std::thread::yield_now());
                        let conn = resource.get().await.unwrap();
                        drop(resource);
                        assert_eq!(IN_USE[n].fetch_add(1, Ordering::SeqCst), 0, "two of one address in use");
                        gets.fetch_add(1, Ordering::SeqCst);
                        (0..8).for_each(|_| std::thread::yield_now());
                        IN_USE[n].fetch_sub(1, Ordering::SeqCst);
                        conn.put();
                    }
                });
            });
        }
    });
    assert_eq!(gets.load(Ordering::SeqCst), 20_000);
    assert!(peers.len() <= IN_USE.len());
    drop(peers);
    assert_at_rest(&budget, 0);
}
