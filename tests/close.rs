//! The end of a budget or a resource: nobody gets in, who waits is told, and what is in use is waited for. And who
//! holds what, where that is tracked.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fdpool::{AcquireError, Budget, GetError};
use support::{Peer, Script, assert_at_rest, fakes, fakes_with, poll, ready, settle, sockets_to};
use tokio::time::sleep;

const GRACE: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn closing_a_budget_ends_every_kind_of_wait_and_closes_what_is_idle() {
    let (budget, script) = (Budget::new(3), Script::manual());
    let [idle, used, dialing, queued] =
        ["idle", "used", "dialing", "queued"].map(|a| fakes(a, &budget, &script));
    let mut get = idle.get();
    assert!(poll(&mut get).is_pending());
    script.answer(Ok(()));
    ready(&mut get).unwrap().put();
    let mut get = used.get();
    assert!(poll(&mut get).is_pending());
    script.answer(Ok(()));
    let conn = ready(&mut get).unwrap();
    let mut in_dial = dialing.get();
    assert!(poll(&mut in_dial).is_pending());
    let slot = budget.acquire().immediate().await;
    let slot = slot.expect("the idle one's");
    let mut in_queue = queued.get();
    assert!(poll(&mut in_queue).is_pending());
    let mut application = budget.acquire();
    assert!(poll(&mut application).is_pending());

    let mut close = Box::pin(budget.close(GRACE));
    assert!(poll(&mut close).is_pending());
    assert!(matches!(ready(&mut in_dial), Err(GetError::Closed { .. })));
    assert!(matches!(ready(&mut in_queue), Err(GetError::Closed { .. })));
    assert!(matches!(ready(&mut application), Err(AcquireError::Closed { .. })));
    for resource in [&idle, &used, &dialing, &queued] {
        assert!(matches!(resource.get().await, Err(GetError::Closed { .. })));
        assert!(matches!(resource.get().wait_for_ready().await, Err(GetError::Closed { .. })));
        assert!(resource.try_get().is_none());
    }
    assert!(matches!(budget.acquire().await, Err(AcquireError::Closed { .. })));
    assert!(budget.try_acquire().is_none());
    assert!(budget.child(1).try_acquire().is_none());
    assert_eq!((script.open(), script.abandoned()), (1, 1), "the one in use; the dial was given up");
    drop(slot);
    assert!(poll(&mut close).is_pending());
    conn.put(); // I6
    let report = ready(&mut close);
    assert!(report.is_clean() && report.to_string() == "closed", "{report}");
    assert_eq!(script.open(), 0);
    assert_at_rest(&budget, 0);
    assert!(budget.close(Duration::ZERO).await.is_clean(), "twice");
}

#[tokio::test(start_paused = true)]
async fn who_was_granted_a_slot_and_does_not_know_yet_is_told_too() {
    for of_resource in [false, true] {
        let (budget, script) = (Budget::new(1), Script::default());
        let script = Arc::new(script);
        let resource = fakes("a", &budget, &script);
        let conn = resource.get().await.unwrap();
        let (mut first, mut second) = (resource.get(), resource.get());
        assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
        drop(conn); // its slot is the first's now
        let report = match of_resource {
            true => resource.close(Duration::ZERO).await,
            false => budget.close(Duration::ZERO).await,
        };
        assert_eq!(report.still_open, 1);
        assert!(matches!(ready(&mut second), Err(GetError::Closed { .. })));
        assert!(matches!(ready(&mut first), Err(GetError::Closed { .. })));
        assert_eq!(script.begun(), 1);
        assert_at_rest(&budget, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dial_for_the_stock_ends_with_its_resource() {
    for closes in [true, false] {
        let (budget, script) = (Budget::new(1), Script::manual());
        let resource = fakes_with("a", &budget, &script).min_idle(1).dial_timeout(None).build();
        settle().await;
        assert_eq!((script.pending(), budget.stats().dialing), (1, 1));
        if closes {
            assert!(resource.close(GRACE).await.is_clean());
        } else {
            drop(resource);
            settle().await;
        }
        assert_eq!((script.pending(), script.abandoned()), (0, 1));
        assert_at_rest(&budget, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn put_to_a_closed_budget_closes() {
    let (budget, script) = (Budget::new(3), Arc::default());
    let resource = fakes("a", &budget, &script);
    let conn = resource.get().await.unwrap();
    assert_eq!(budget.close(Duration::ZERO).await.still_open, 1);
    conn.put();
    assert_eq!((script.open(), resource.stats().idle), (0, 0));
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_still_open_when_the_grace_is_over_is_reported() {
    let (budget, script) = (Budget::new(3), Arc::default());
    let resource = fakes("leaky", &budget, &script);
    let conns = [resource.get().await.unwrap(), resource.get().await.unwrap()];
    let slot = budget.acquire().await.unwrap();
    let began = clock();
    let report = budget.close(GRACE).await;
    assert!(clock() - began >= GRACE);
    assert_eq!(report.still_open, 3);
    let said = report.to_string();
    assert!(
        said.contains("3 slots still out") && said.contains("leaky: 2") && said.contains("outside of"),
        "{said}"
    );
    drop((conns, slot));
    assert_at_rest(&budget, 0);
}

#[allow(clippy::disallowed_methods, reason = "the paused clock is asked how long it took")]
fn clock() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_tracks_names_the_place_a_leaked_connection_was_got() {
    let budget = Budget::builder().limit(3).track_holds(true).build().unwrap();
    let script = Arc::default();
    let resource = fakes("leaky", &budget, &script);
    let line = line!() + 1;
    std::mem::forget(resource.get().await.unwrap());
    let slot = budget.acquire_many(2).await.unwrap();
    sleep(Duration::from_secs(7)).await;
    let here = format!("{}:{line}", file!());
    let explained = budget.explain();
    assert_eq!(explained.holders().len(), 2);
    assert!(explained.to_string().contains(&here), "{explained}");
    assert!(explained.to_string().contains("held for 7.0s"), "{explained}");
    let report = budget.close(Duration::from_secs(1)).await;
    assert_eq!((report.still_open, report.holders.len()), (3, 2));
    assert_eq!(report.holders[0].site.unwrap().line(), line);
    drop(slot);
    let report = budget.close(Duration::ZERO).await;
    assert_eq!((report.still_open, report.holders.len()), (1, 1));
    assert_eq!(report.holders[0].address.as_ref().unwrap(), resource.address());
}

#[tokio::test(start_paused = true)]
async fn tasks_that_hold_every_slot_and_wait_for_another_are_called_a_deadlock() {
    let budget = Budget::builder().limit(2).track_holds(true).build().unwrap();
    let script = Arc::default();
    let resource = fakes("a", &budget, &script);
    let nested = |resource: fdpool::ConnResource<support::Fake>| async move {
        let _outer = resource.get().await.unwrap();
        tokio::task::yield_now().await;
        resource.get().await.map(drop)
    };
    let tasks = [(); 2].map(|()| tokio::spawn(nested(resource.clone())));
    settle().await;
    assert!(!budget.explain().is_deadlocked(), "they have hardly begun to wait");
    sleep(Duration::from_secs(7)).await;
    assert!(budget.explain().is_deadlocked());
    let text = budget.explain().to_string();
    assert!(text.contains("has waited for another for 7.0s or longer: unless they passed them on"), "{text}");
    tasks[0].abort();
    settle().await;
    assert!(!budget.explain().is_deadlocked());
}

#[tokio::test(start_paused = true)]
async fn long_holds_are_warned_of_once_and_once_more_when_they_come_back() {
    let (said, _guard) = support::warnings();
    let budget = Budget::builder().limit(2).hold_warning(Duration::from_secs(10)).build().unwrap();
    let resource = fakes("slow", &budget, &Arc::default());
    let conn = resource.get().await.unwrap();
    sleep(Duration::from_secs(9)).await;
    assert_eq!(said.load(Ordering::SeqCst), 0);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(said.load(Ordering::SeqCst), 1);
    conn.put();
    assert_eq!(said.load(Ordering::SeqCst), 2);
    resource.get().await.unwrap().put();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(said.load(Ordering::SeqCst), 2, "short ones are not warned of");
}

#[test]
fn long_holds_are_warned_of_by_a_task_and_without_a_runtime_when_they_come_back() {
    let (said, _guard) = support::warnings();
    let count = || said.load(Ordering::SeqCst);
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let budget = Budget::builder().limit(3).hold_warning(Duration::ZERO).build().unwrap();
    let slot = budget.blocking_acquire().unwrap();
    assert_eq!(count(), 0, "there is nobody to look");
    drop(slot);
    assert_eq!(count(), 1);

    let budget = Budget::builder().limit(3).hold_warning(Duration::from_secs(10)).build().unwrap();
    let first = runtime();
    let outlives = first.block_on(budget.acquire()).unwrap();
    drop(first);
    assert_eq!(count(), 1);
    runtime().block_on(async {
        let slot = budget.acquire().await.unwrap();
        sleep(Duration::from_secs(30)).await;
        assert_eq!(count(), 3, "this runtime's task looks after the other's too");
        drop((slot, outlives));
        assert_eq!(count(), 5);
    });
}

#[tokio::test(start_paused = true)]
async fn a_resource_closes_alone() {
    let (budget, script) = (Budget::new(3), Script::manual());
    let (one, other) =
        (fakes("one", &budget, &script), fakes_with("other", &budget, &script).max_conns(1).build());
    let mut get = other.get();
    assert!(poll(&mut get).is_pending());
    script.answer(Ok(()));
    let conn = ready(&mut get).unwrap();
    let mut waiting = other.get();
    assert!(poll(&mut waiting).is_pending());
    let mut close = Box::pin(other.close(GRACE));
    assert!(poll(&mut close).is_pending());
    assert!(matches!(ready(&mut waiting), Err(GetError::Closed { .. })));
    assert!(matches!(other.get().await, Err(GetError::Closed { .. })));
    let mut get = one.get();
    assert!(poll(&mut get).is_pending());
    script.answer(Ok(()));
    ready(&mut get).unwrap().put();
    conn.put();
    assert!(ready(&mut close).is_clean());
    assert_at_rest(&budget, 1);
    assert!(one.close(GRACE).await.is_clean(), "nothing but idle ones");
    assert_at_rest(&budget, 0);
}

#[test]
fn closing_works_outside_of_a_runtime_and_after_it_has_gone() {
    let (budget, peer) = (Budget::new(4), Peer::listen());
    let resource = peer.resource(&budget);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let held = runtime.block_on(async {
        let [one, other] = [resource.get().await.unwrap(), resource.get().await.unwrap()];
        one.put();
        other
    });
    drop(runtime);
    let report = pollster::block_on(budget.close(Duration::from_millis(20)));
    assert_eq!((report.still_open, sockets_to(peer.address)), (1, 1));
    let waiter = {
        let budget = budget.clone();
        std::thread::spawn(move || pollster::block_on(budget.close(Duration::from_secs(60))))
    };
    held.put();
    assert!(waiter.join().unwrap().is_clean());
    assert_eq!(sockets_to(peer.address), 0);
}

#[test]
fn closing_under_load_tells_everybody() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let budget = Budget::new(6);
    runtime.block_on(async {
        let address = support::echo_server().await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..32 {
            let resource =
                fdpool::ConnResource::builder(address, fdpool::dial::Tcp::default()).budget(&budget).build();
            tasks.spawn(async move {
                loop {
                    match resource.get().await {
                        Ok(conn) => {
                            tokio::task::yield_now().await;
                            conn.put();
                        }
                        Err(GetError::Closed { .. }) => return,
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
        sleep(Duration::from_millis(50)).await;
        assert!(budget.close(Duration::from_secs(60)).await.is_clean());
        tasks.join_all().await;
        assert_eq!(sockets_to(address), 0);
    });
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn a_child_has_its_floor_whoever_waits() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let child = budget.child_with(3, 5);
    let greedy = fakes("greedy", &budget, &script);
    let mut conns = Vec::new();
    while let Ok(conn) = greedy.get().immediate().await {
        conns.push(conn);
    }
    assert_eq!(conns.len(), 7, "three are kept");
    assert!(budget.try_acquire().is_none());
    let mut waiting = greedy.get();
    assert!(poll(&mut waiting).is_pending());
    let mut slots = Vec::new();
    while let Some(slot) = child.try_acquire() {
        slots.push(slot);
    }
    assert_eq!(slots.len(), 3);
    // Beyond its floor it takes its turn, after who came before.
    let mut more = child.acquire();
    assert!(poll(&mut more).is_pending());
    drop(conns.pop());
    assert!(poll(&mut more).is_pending(), "the other was first");
    let conn = waiting.await.unwrap();
    drop(conn);
    slots.push(ready(&mut more).unwrap());
    drop(more);
    // What it gives back is kept again, down to its floor.
    drop(slots);
    let mut back = 0;
    while let Ok(conn) = greedy.get().immediate().await {
        conns.push(conn);
        back += 1;
    }
    assert_eq!((back, conns.len()), (1, 7));
    drop(conns);
    drop(child);
    assert!(budget.acquire_many(10).immediate().await.is_ok(), "a child that is gone keeps nothing");
}

#[tokio::test]
async fn what_is_kept_for_others_cannot_be_had_and_that_is_said() {
    let budget = Budget::new(10);
    let child = budget.child_with(5, 8);
    assert!(matches!(budget.acquire_many(8).await, Err(AcquireError::Exhausted { .. })));
    drop(budget.acquire_many(5).await.unwrap());
    drop(child.acquire_many(8).await.unwrap());
    assert!(budget.explain().to_string().contains("5 kept for children"), "{}", budget.explain());
    drop(child);
    drop(budget.acquire_many(10).await.unwrap());
    let _all = budget.child_with(10, 10);
    let error = fakes("a", &budget, &Arc::default()).get().await.unwrap_err();
    assert!(error.to_string().contains("10 kept for children"), "{error}");
}

#[tokio::test]
async fn one_address_with_ten_thousand_waiters_does_not_starve_one_with_one() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let (crowd, single) = (fakes("crowd", &budget, &script), fakes("single", &budget, &script));
    let mut conns = Vec::new();
    for _ in 0..10 {
        conns.push(crowd.get().await.unwrap());
    }
    let mut crowded: Vec<_> = (0..10_000).map(|_| crowd.get()).collect();
    for get in &mut crowded {
        assert!(poll(get).is_pending());
    }
    let mut alone = single.get();
    assert!(poll(&mut alone).is_pending());
    let mut grants = 0;
    let mut next = crowded.into_iter();
    let mut served = false;
    while !served {
        conns.pop().expect("some are in use").put();
        grants += 1;
        served = poll(&mut alone).is_ready();
        if !served {
            conns.push(ready(&mut next.next().unwrap()).unwrap());
        }
        assert!(grants <= 20, "not within 20 grants");
    }
    println!("served by grant {grants}");
}

/// Nobody else needs their slots.
#[tokio::test]
async fn what_rests_when_a_budget_closes_is_retired_and_not_evicted() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let child = budget.child(5);
    let resources = [fakes("a", &budget, &script), fakes("b", &child, &script), fakes("c", &child, &script)];
    for resource in &resources {
        resource.get().await.unwrap().put();
    }
    assert!(child.close(Duration::ZERO).await.is_clean());
    assert!(budget.close(Duration::ZERO).await.is_clean());
    assert_eq!((budget.stats().evicted, budget.stats().retired), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_tracks_holds_names_by_address_what_is_none() {
    let budget = Budget::builder().limit(4).track_holds(true).build().unwrap();
    let (answering, silent) = (Arc::<Script>::default(), Script::manual());
    let (used, dialled) = (fakes("used", &budget, &answering), fakes("dialled", &budget, &silent));
    let conn = used.get().await.unwrap();
    let mut get = dialled.get();
    assert!(poll(&mut get).is_pending());
    let told = |holders: &[fdpool::Holder]| -> Vec<_> {
        let told = holders.iter();
        told.map(|holder| (holder.address.clone().unwrap(), holder.slots, holder.site.is_some())).collect()
    };
    let report = dialled.close(Duration::from_millis(10)).await;
    assert_eq!(told(&report.holders), [("dialled".into(), 1, false)], "{report}");
    let report = budget.close(Duration::from_millis(10)).await;
    let expected = [("used".into(), 1, true), ("dialled".into(), 1, false)];
    assert_eq!((report.still_open, told(&report.holders)), (2, expected.to_vec()), "{report}");
    drop((get, conn));
}
