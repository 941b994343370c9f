//! What the process may open, and really runs out of although the budget had room. Each test has the process to
//! itself, for it counts its descriptors or fills their table; with a scripted error see `exhaustion.rs`.

#![allow(clippy::disallowed_methods, reason = "how long the limit takes to grow is what is asked")]

#[path = "support/descriptors.rs"]
mod descriptors;
mod support;

use std::fs::File;
use std::time::Duration;

use descriptors::{Filled, SoftLimit, alone};
use fdpool::{AcquireError, Budget, GetError};
use support::{Peer, assert_at_rest, poll, sockets_to};

#[test]
fn a_dial_without_descriptor_evicts_and_tries_again() {
    alone(async {
        let (budget, idle, wanted) = (Budget::new(1000), Peer::listen(), Peer::listen());
        let (here, there) = (idle.resource(&budget), wanted.resource(&budget));
        let conns = [here.get().await.unwrap(), here.get().await.unwrap()];
        conns.into_iter().for_each(fdpool::Conn::put);
        tokio::time::pause(); // else the limit may have grown before it is read
        let filled = Filled::leaving(0);
        let conn = there.get().await.unwrap();
        drop(filled); // counting takes descriptors
        assert_eq!((sockets_to(idle.address), sockets_to(wanted.address)), (1, 1));
        let stats = budget.stats();
        assert_eq!((stats.emfile, stats.evicted, stats.dial_failures), (1, 1, 0));
        assert_eq!((budget.limit(), budget.effective_limit()), (1000, 2));
        drop(conn);
    });
}

#[test]
fn a_dial_without_descriptor_and_nothing_idle_waits_for_a_slot() {
    alone(async {
        let (budget, peer) = (Budget::new(1000), Peer::listen());
        let resource = peer.resource(&budget);
        let used = resource.get().await.unwrap();
        let filled = Filled::leaving(0);
        let mut get = resource.get();
        assert!(poll(&mut get).is_pending());
        let error = resource.get().immediate().await.unwrap_err();
        assert!(matches!(error, GetError::Exhausted { .. }), "{error}");
        used.close();
        let conn = get.await.unwrap();
        assert!(budget.stats().emfile >= 1);
        drop(filled);
        drop(conn);
        assert_at_rest(&budget, 0);
    });
}

/// A budget sized by a process that may open 240 descriptors, and the end of that limit.
fn sized() -> (Budget, SoftLimit) {
    let soft = SoftLimit::leaving(240);
    (Budget::builder().reserve(8).build().unwrap(), soft)
}

#[test]
fn what_other_code_opens_shrinks_the_limit_and_what_it_closes_grows_it() {
    alone(async {
        let (budget, soft) = sized();
        let peers: Vec<_> = (0..20).map(|_| Peer::listen()).collect();
        let resources: Vec<_> = peers.iter().map(|peer| peer.resource(&budget)).collect();
        let limit = budget.limit();
        // Twenty listeners were opened after the sizing, and no more than a few things of the runtime's.
        let conns = futures::future::join_all((0..100).map(|n| resources[n % 20].get())).await;
        conns.into_iter().for_each(|conn| conn.unwrap().put());
        // In the midst of such a burst, or of a dial, some that are counted are not open yet: another look is the one that tells.
        let at_first = loop {
            tokio::time::sleep(Duration::from_millis(15)).await;
            resources[0].get().fresh().await.unwrap().put();
            let now = budget.effective_limit();
            if now <= limit - 20 {
                break now;
            }
        };
        assert!(at_first >= limit - 24, "{at_first} of {limit}");
        for wave in 0..3 {
            let mut files = Vec::new();
            // Far more than are left beside a hundred connections: idle ones have to go for them.
            while files.len() < 176 {
                let opened = File::open("/dev/null").map(|file| files.push(file));
                if opened.is_err() || files.len() % 16 == 0 {
                    // No dial fails while anything is idle.
                    tokio::time::sleep(Duration::from_millis(15)).await;
                    let resource = &resources[files.len() / 16 % 20];
                    resource.get().fresh().await.unwrap().put();
                }
            }
            let stats = budget.stats();
            assert!(stats.effective_limit < at_first / 2, "wave {wave}: {stats:?}");
            assert!(stats.evicted > 0 && stats.dial_failures == 0, "wave {wave}: {stats:?}");
            assert!(stats.idle <= stats.effective_limit, "wave {wave}: {stats:?}");
            tokio::time::pause(); // the 2 seconds are the limit's: none of them is lost while the machine is busy
            drop(files);
            let back = tokio::time::Instant::now() + Duration::from_secs(2);
            while budget.effective_limit() != at_first {
                assert!(tokio::time::Instant::now() < back, "wave {wave}: {:?}", budget.stats());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tokio::time::resume();
        }
        drop(resources);
        drop(soft);
    });
}

#[test]
fn a_request_for_more_than_other_code_leaves_holds_nobody_up() {
    alone(async {
        let (budget, _soft) = sized();
        let open = |number: usize| (0..number).map(|_| File::open("/dev/null").unwrap()).collect::<Vec<_>>();
        let first = budget.acquire_many(budget.limit() - 100).await.unwrap();
        let before = first.hold(open(budget.limit() - 100));
        let mut second = budget.acquire_many(budget.limit() - 20);
        assert!(poll(&mut second).is_pending());
        let files = open(80);
        tokio::time::sleep(Duration::from_millis(15)).await;
        drop(budget.acquire().wait_timeout(Duration::from_secs(5)).await.unwrap());
        let second = second.await;
        assert!(matches!(second, Err(AcquireError::Exhausted { .. })), "{second:?} {}", budget.explain());
        let error = budget.acquire_many(budget.limit() - 20).await.unwrap_err();
        assert!(matches!(error, AcquireError::Exhausted { .. }) && !error.is_timeout(), "{error}");
        drop((files, before));
        tokio::time::sleep(Duration::from_millis(15)).await;
        drop(budget.acquire_many(budget.limit() - 20).await.unwrap());
    });
}

#[test]
fn who_only_tries_is_kept_to_what_other_code_leaves() {
    alone(async {
        let (budget, _soft) = sized();
        let _files: Vec<_> = (0..100).map(|_| File::open("/dev/null").unwrap()).collect();
        let null = || File::open("/dev/null").unwrap();
        let held: Vec<_> = std::iter::from_fn(|| Some(budget.try_acquire()?.hold(null()))).collect();
        assert!(held.len() <= budget.limit() - 100, "{} of {}", held.len(), budget.limit());
        drop(null());
    });
}

#[test]
fn a_limit_of_the_process_that_is_lowered_is_kept_to() {
    alone(async {
        let (budget, _soft) = sized();
        let peer = Peer::listen();
        let resource = peer.resource(&budget);
        resource.get().await.unwrap().put();
        let before = budget.effective_limit();
        let _lower = SoftLimit::leaving(120);
        tokio::time::sleep(Duration::from_millis(20)).await;
        resource.get().fresh().await.unwrap().put();
        let after = budget.effective_limit();
        assert!(after + 100 < before, "{before}, and {after} of half as many descriptors");
    });
}

#[test]
fn two_budgets_do_not_take_each_other_for_foreign() {
    alone(async {
        let ((one, _soft), peer) = (sized(), Peer::listen());
        let other = Budget::builder().reserve(8).build().unwrap();
        let (here, there) = (peer.resource(&one), peer.resource(&other));
        here.get().await.unwrap().put();
        let (before, foreign) = (one.effective_limit(), one.stats().foreign_fds);
        let conns = futures::future::join_all((0..60).map(|_| there.get())).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        here.get().fresh().await.unwrap().put();
        assert_eq!((one.effective_limit(), one.stats().foreign_fds), (before, foreign));
        drop(conns);
    });
}

#[test]
fn the_global_budget_is_sized_from_the_limit_and_set_once() {
    alone(async {
        let soft = SoftLimit::leaving(240);
        let before = descriptors::open();
        let budget = Budget::global();
        let stats = budget.stats();
        assert!((1..=240).contains(&stats.limit) && stats.effective_limit == stats.limit, "{stats:?}");
        assert_eq!(stats.foreign_fds, before);
        assert!(Budget::set_global(Budget::new(1)).is_err());
        drop(soft);
    });
}

/// Nobody's runtime lets the limit grow: a thread does.
#[test]
fn who_waits_without_a_runtime_is_served_when_other_code_closes_its_own() {
    alone(async {
        let (budget, _soft) = sized();
        let first = budget.try_acquire().unwrap();
        let files: Vec<_> = (0..budget.limit() + 3).map(|_| File::open("/dev/null").unwrap()).collect();
        tokio::time::sleep(Duration::from_millis(15)).await;
        let waits = budget.clone();
        let waiting = std::thread::spawn(move || drop(waits.blocking_acquire().unwrap()));
        while budget.stats().waiting == 0 {
            std::thread::yield_now();
        }
        drop(files);
        waiting.join().unwrap();
        drop(first);
        assert_at_rest(&budget, 0);
    });
}

#[test]
fn who_waits_in_a_runtime_is_served_when_a_thread_has_found_the_limit_lower() {
    alone(async {
        let (budget, _soft) = sized();
        let limit = budget.limit();
        let null = || File::open("/dev/null").unwrap();
        let mut held: Vec<_> = (0..limit).map(|_| budget.try_acquire().unwrap().hold(null())).collect();
        let mut waiting = budget.acquire();
        assert!(poll(&mut waiting).is_pending());
        let files = [(); 5].map(|()| null());
        tokio::time::sleep(Duration::from_millis(15)).await;
        let looks = budget.clone();
        std::thread::spawn(move || drop(futures::executor::block_on(looks.acquire().immediate())))
            .join()
            .unwrap();
        assert_eq!(budget.effective_limit(), limit - 5);
        held.truncate(limit - 5);
        assert!(poll(&mut waiting).is_pending());
        drop(files);
        drop(waiting.await.unwrap());
        drop(held);
        assert_at_rest(&budget, 0);
    });
}
