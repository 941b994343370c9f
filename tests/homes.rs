//! What an address keeps its state in is another's when it goes: nothing of the one is seen by the next, and there are no
//! more of them than there were addresses at once.

mod support;

use std::sync::{Arc, Weak};
use std::time::Duration;

use fdpool::{
    Address, Budget, CheckContext, ConnResource, Dial, DialContext, DialError, Fitness, ResourceStats,
};
use support::{Script, assert_at_rest, comes_to_rest, fakes, fakes_with, poll, ready};

/// Makes connections that know where they lead; what it has is alive as long as it is.
struct Tagging(#[expect(dead_code, reason = "it is there to be dropped")] Arc<()>);

#[derive(Debug)]
struct Tagged(String);

impl Dial for Tagging {
    type Conn = Tagged;

    async fn dial(&self, address: &Address, _: &DialContext) -> Result<Tagged, DialError> {
        Ok(Tagged(address.as_str().into()))
    }

    fn check(&self, _: &mut Tagged, _: &CheckContext) -> Fitness {
        Fitness::Fit
    }
}

fn tagging(address: &str, budget: &Budget) -> (ConnResource<Tagged>, Weak<()>) {
    let alive = Arc::new(());
    let weak = Arc::downgrade(&alive);
    (ConnResource::builder(address, Tagging(alive)).budget(budget).build(), weak)
}

#[tokio::test]
async fn an_address_begins_anew_where_another_was() {
    let (budget, script) = (Budget::new(4), Arc::<Script>::default());
    for round in 0..50 {
        // One that has seen everything: two idle, a step of the generation, failures of its own, an end.
        let worn = fakes_with("worn", &budget, &script).max_conns(2).max_idle(1).max_uses(3).build();
        let (first, second) = (worn.get().await.unwrap(), worn.get().await.unwrap());
        worn.schedule_close();
        first.put();
        second.put();
        worn.get().await.unwrap().put();
        worn.set_max_idle(0);
        worn.set_max_conns(1);
        if round % 2 == 0 {
            worn.close(Duration::ZERO).await;
        }
        drop(worn);

        let anew = fakes("anew", &budget, &script);
        assert_eq!(anew.stats(), ResourceStats::default());
        let conns = [anew.get().await.unwrap(), anew.get().await.unwrap(), anew.get().await.unwrap()];
        conns.into_iter().for_each(fdpool::Conn::put);
        let stats = anew.stats();
        assert_eq!((stats.idle, stats.dials, stats.reused, stats.retired), (3, 3, 0, 0));
        assert!(anew.get().await.unwrap().is_reused());
        drop(anew);
        assert_at_rest(&budget, 0);
        assert_eq!(script.open(), 0);
    }
}

#[tokio::test]
async fn what_is_in_use_outlives_its_handles_and_is_nobody_elses() {
    let budget = Budget::new(8);
    let mut used = Vec::new();
    for round in 0..100 {
        let name = format!("peer {round}");
        let (resource, alive) = tagging(&name, &budget);
        let conn = resource.get().await.unwrap();
        resource.get().await.unwrap().put();
        drop(resource);
        assert_eq!((conn.0.as_str(), conn.address().as_str()), (name.as_str(), name.as_str()));
        used.push((conn, alive));
        if used.len() == 4 {
            // In another order than they came.
            let (conn, alive) = used.swap_remove(round % 4);
            conn.put();
            assert!(alive.upgrade().is_none(), "with the last connection goes the dialer");
        }
        let (other, _) = tagging("other", &budget);
        assert!(!other.get().await.unwrap().is_reused());
    }
    drop(used);
    assert_at_rest(&budget, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_that_come_and_go_on_several_threads_are_not_mixed_up() {
    let budget = Budget::new(16);
    let tasks = (0..4).map(|task| {
        let budget = budget.clone();
        tokio::spawn(async move {
            for round in 0..2_000 {
                let name = format!("{task}/{round}");
                let (resource, _) = tagging(&name, &budget);
                for _ in 0..3 {
                    let conn = resource.get().await.unwrap();
                    assert_eq!(conn.0, name);
                    if round % 3 == 0 { conn.close() } else { conn.put() }
                }
                if round % 5 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    comes_to_rest(&budget, 0).await;
}

#[tokio::test(start_paused = true)]
async fn addresses_made_and_dropped_leave_nothing_behind() {
    let budget = Budget::new(4);
    let script = Arc::<Script>::default();
    let come_and_go = || {
        for _ in 0..1_000 {
            let resource = fakes("here today", &budget, &script);
            ready(&mut resource.get()).unwrap().put();
            ready(&mut resource.get()).unwrap().put();
        }
    };
    come_and_go();
    // What the keeper was told of addresses that are gone by now is its own, and bounded by its next round.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let kept = || {
        let kept = allocation_counter::measure(|| {
            for _ in 0..1_000 {
                drop(fakes("here today", &budget, &script));
            }
        });
        kept.bytes_current
    };
    // Not one byte each, which each time would show; the list of free places, or of locks, may grow for other tests.
    let kept: Vec<_> = std::iter::repeat_with(kept).take(10).collect();
    assert!(kept.iter().any(|kept| *kept < 1_000), "{kept:?}");
}

/// An address that never had a slot hands in what it counted, while its own lock is held.
#[tokio::test]
async fn who_waits_in_vain_is_counted() {
    let (budget, script) = (Budget::new(1), Arc::<Script>::default());
    let slot = budget.try_acquire().unwrap();
    let waiting = fakes("waiting", &budget, &script);
    let mut gets: Vec<_> = (0..3).map(|_| waiting.get()).collect();
    for get in &mut gets {
        assert!(poll(get).is_pending());
    }
    assert_eq!((budget.stats().waits, waiting.stats().waits), (3, 3));
    drop(gets);
    assert_eq!((budget.stats().waits, waiting.stats().waits), (3, 3));
    drop(waiting);
    drop(slot);
    assert_eq!(budget.stats().waits, 3);
    assert_at_rest(&budget, 0);
}

/// A reuse is counted when it is taken, and taken back when what was taken turns out unfit.
#[tokio::test]
async fn what_is_found_unfit_was_not_reused() {
    let (budget, script) = (Budget::new(4), Arc::<Script>::default());
    let resource = fakes_with("peer", &budget, &script).max_conns(1).build();
    let used = resource.get().await.unwrap();
    let fitness = used.handle();
    used.put();
    let used = resource.get().await.unwrap();
    assert_eq!((resource.stats().reused, budget.stats().reused), (1, 1));

    // Handed over, and unfit.
    let mut waits = resource.get();
    assert!(poll(&mut waits).is_pending());
    *fitness.lock().unwrap() = Fitness::Closed;
    used.put();
    let anew = ready(&mut waits).unwrap();
    assert!(!anew.is_reused());
    assert_eq!((resource.stats().reused, budget.stats().reused), (1, 1));

    // Idle, and unfit.
    let fitness = anew.handle();
    anew.put();
    *fitness.lock().unwrap() = Fitness::Broken;
    assert!(!resource.get().await.unwrap().is_reused());
    assert_eq!((resource.stats().reused, budget.stats().reused), (1, 1));
}
