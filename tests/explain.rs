//! What a budget tells of itself: why slots are out of use, who has them, and how messages read.

mod support;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use fdpool::dial::CheckContext;
use fdpool::{Address, Budget, ConnResource, Dial, DialContext, DialError, Fitness};
use support::{Script, fakes, fakes_with, poll, ready, settle};
use tokio::time::sleep;

#[tokio::test]
async fn a_child_larger_than_its_parent_does_not_blame_the_process() {
    let budget = Budget::new(4);
    let text = budget.child(9).explain().to_string();
    assert!(text.contains("5 slots are out of reach: the budget it is part of has fewer"), "{text}");
    assert!(!text.contains("process"), "{text}");
    let text = budget.child(4).explain().to_string();
    assert!(!text.contains("out of"), "{text}");
}

#[tokio::test]
async fn a_closed_budget_says_that_it_is_closed_and_blames_nobody() {
    let budget = Budget::new(4);
    let child = budget.child(2);
    let slot = budget.acquire().await.unwrap();
    budget.close(Duration::ZERO).await;
    for text in [budget.explain().to_string(), child.explain().to_string()] {
        assert!(text.contains("  closed\n") && !text.contains("out of"), "{text}");
    }
    drop(slot);
}

#[tokio::test(start_paused = true)]
async fn slots_that_the_process_lacks_descriptors_for_are_told_by_their_cause() {
    let (budget, script) = (Budget::new(64), Script::manual());
    let (narrow, wide) = (budget.child(1), budget.child(100));
    let resource = fakes("a", &budget, &script);
    let mut first = resource.get();
    assert!(poll(&mut first).is_pending());
    script.answer(Ok(()));
    let conn = ready(&mut first).unwrap();
    let mut get = resource.get();
    assert!(poll(&mut get).is_pending());
    script.answer(Err(io::Error::from_raw_os_error(24).into()));
    assert!(poll(&mut get).is_pending());
    assert_eq!(budget.effective_limit(), 1);
    let lacks = "63 slots are out of use: the rest of the process has the descriptors";
    assert!(budget.explain().to_string().contains(lacks), "{}", budget.explain());
    let text = wide.explain().to_string();
    assert!(text.contains("99 slots are out of reach"), "{text}");
    assert!(text.contains("63 slots of all are out of use: the rest of the process"), "{text}");
    assert!(!narrow.explain().to_string().contains("out of"), "it has all it may have: {}", narrow.explain());
    drop((get, conn));
}

#[tokio::test(start_paused = true)]
async fn one_is_not_several() {
    let budget = Budget::builder().limit(2).track_holds(true).build().unwrap();
    let (child, kept) = (budget.child(3), budget.child_with(1, 1));
    let resource = fakes("peer:1", &budget, &Arc::default());
    let slot = budget.acquire().await.unwrap();
    drop(budget.try_acquire());
    let mut waiting = (budget.acquire(), resource.get());
    assert!(poll(&mut waiting.0).is_pending() && poll(&mut waiting.1).is_pending());
    let text = [budget.explain().to_string(), child.explain().to_string()].concat();
    for part in [
        "; 1 kept for children",
        "1 caller of acquire() waits, for 0ms",
        "peer:1: 0 in use, 0 idle, 0 dialing, 0 closing; 1 waits, for 0ms",
        "1 slot is out of reach",
    ] {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    drop((waiting, kept, child));
    drop(resource.get().await.unwrap());
    assert!(budget.explain().to_string().contains("1 connection was dropped"), "{}", budget.explain());

    assert!(budget.close(Duration::ZERO).await.to_string().starts_with("1 slot still out"));
    drop(slot);

    let one = Budget::new(1);
    assert!(one.explain().to_string().starts_with("1 slot: 0 in use"), "{}", one.explain());
    let error = one.acquire_many(2).await.unwrap_err().to_string();
    assert_eq!(error, "2 slots asked for, of a budget that has 1");
    let _slot = one.acquire().await.unwrap();
    let error = one.acquire().immediate().await.unwrap_err().to_string();
    assert!(error.starts_with("1 slot not to be had (1 slot: 0 in use"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_tells_no_time_and_a_wait_tells_it_as_people_do() {
    let (budget, script) = (Budget::new(2), Arc::default());
    let (full, single) =
        (fakes("full", &budget, &script), fakes_with("one", &budget, &script).max_conns(1).build());
    let _conn = single.get().await.unwrap();
    let busy = single.get().immediate().await.unwrap_err().to_string();
    assert_eq!(busy, "one: no connection: it has all it may have (max_conns)");
    let busy = single.get().wait_timeout(Duration::from_millis(1500)).await.unwrap_err().to_string();
    assert_eq!(busy, "one: no connection after 1.5s: it has all it may have (max_conns)");
    let _slot = budget.acquire().await.unwrap();
    let refused = full.get().immediate().await.unwrap_err().to_string();
    assert!(refused.starts_with("full: no free slot (2 slots: 1 in use"), "{refused}");
    let late = full.get().wait_timeout(Duration::from_millis(40)).await.unwrap_err().to_string();
    assert!(late.starts_with("full: no free slot after 40ms (2 slots"), "{late}");
    let late = budget.acquire().wait_timeout(Duration::from_secs(300)).await.unwrap_err().to_string();
    assert!(late.starts_with("1 slot not to be had after 5min (2 slots"), "{late}");

    let token = fdpool::CancellationToken::new();
    let mut waiting = (full.get().cancel(&token), budget.acquire().cancel(&token));
    assert!(poll(&mut waiting.0).is_pending() && poll(&mut waiting.1).is_pending());
    sleep(Duration::from_secs(9000)).await;
    token.cancel();
    let error = ready(&mut waiting.1).unwrap_err().to_string();
    assert_eq!(error, "waiting for 1 slot: cancelled after 2.5h");
    let error = full.get().cancel(&token).await.unwrap_err().to_string();
    assert_eq!(error, "full: cancelled while waiting for a slot");
}

fn tracked(limit: usize) -> Budget {
    Budget::builder().limit(limit).track_holds(true).build().unwrap()
}

/// The lines of the code that its holders called from.
fn lines(holders: &[fdpool::Holder]) -> Vec<u32> {
    let mut lines: Vec<_> = holders.iter().map(|holder| holder.site.unwrap().line()).collect();
    lines.sort_unstable();
    lines
}

#[tokio::test]
async fn a_budget_names_its_own_holders_and_those_below_it() {
    let budget = tracked(9);
    let (child, sibling) = (budget.child(3), budget.child_with(1, 3));
    let grandchild = child.child(2);
    let resource = fakes("a", &grandchild, &Arc::default());
    let first = line!() + 1;
    let in_budget = budget.acquire().await.unwrap();
    let in_child = child.acquire().await.unwrap();
    let in_sibling = sibling.acquire().await.unwrap();
    let in_grandchild = resource.get().await.unwrap();
    let [budgets, childs, siblings, grandchilds] = [first, first + 1, first + 2, first + 3];
    assert_eq!(lines(grandchild.explain().holders()), [grandchilds]);
    assert_eq!(lines(sibling.explain().holders()), [siblings]);
    assert_eq!(lines(child.explain().holders()), [childs, grandchilds]);
    assert_eq!(lines(budget.explain().holders()), [budgets, childs, siblings, grandchilds]);
    // Out of the pool, it is still the grandchild's.
    let held = in_grandchild.into_held();
    assert_eq!(lines(grandchild.explain().holders()), [grandchilds]);

    let report = sibling.close(Duration::ZERO).await;
    assert_eq!((report.still_open, lines(&report.holders)), (1, vec![siblings]));
    let report = child.close(Duration::ZERO).await;
    assert_eq!((report.still_open, lines(&report.holders)), (2, vec![childs, grandchilds]));
    drop((in_child, in_sibling, held, child, sibling, grandchild, resource));

    // Its place in the books may be another's now.
    let later = budget.child(5);
    assert_eq!(lines(later.explain().holders()), []);
    let line = line!() + 1;
    let slot = later.child(1).acquire().await.unwrap();
    assert_eq!(lines(later.explain().holders()), [line]);
    assert_eq!(lines(budget.explain().holders()), [budgets, line]);
    drop((in_budget, slot));
}

#[tokio::test(start_paused = true)]
async fn slots_that_were_split_are_held_each_by_itself() {
    let budget = tracked(4);
    let held = || -> Vec<_> {
        let holders = budget.explain().holders().to_vec();
        holders.iter().map(|holder| (holder.slots, holder.held_for.unwrap().as_secs())).collect()
    };
    let mut slots = budget.acquire_many(3).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    let one = slots.split(1).unwrap();
    assert_eq!(held(), [(2, 5), (1, 5)]);
    assert!(slots.split(0).is_some() && slots.split(3).is_none());
    assert_eq!(held(), [(2, 5), (1, 5)]);
    let rest = slots.split(2).unwrap();
    drop(slots);
    assert_eq!(held().iter().map(|(slots, _)| slots).sum::<usize>(), 3);
    drop(rest);
    assert_eq!(held(), [(1, 5)]);
    let resource = fakes("a", &budget, &Arc::default());
    let conn = resource.get().with_slot(one).await.unwrap();
    assert_eq!(held(), [(1, 0)], "a connection's now");
    drop(conn);
    assert_eq!(held(), []);
}

#[tokio::test]
async fn a_resource_names_its_own_holders_whatever_else_has_its_address() {
    for budget in [tracked(9), Budget::new(9)] {
        let script = Arc::default();
        let [one, other] = [fakes("a", &budget, &script), fakes("a", &budget, &script)];
        let of_one = [one.get().await.unwrap(), one.get().await.unwrap()];
        let of_other = other.get().await.unwrap();
        let taken_out = other.get().await.unwrap().into_held();
        let slots = |holders: &[fdpool::Holder]| holders.iter().map(|holder| holder.slots).sum::<usize>();
        let report = other.close(Duration::ZERO).await;
        assert_eq!((report.still_open, slots(&report.holders)), (1, 1), "{report}");
        let report = one.close(Duration::ZERO).await;
        assert_eq!((report.still_open, slots(&report.holders)), (2, 2), "{report}");
        assert_eq!(budget.close(Duration::ZERO).await.still_open, 4);
        drop((of_one, of_other, taken_out));
    }
}

/// A dialer that takes a slot more, and has no answer.
struct Takes;

impl Dial for Takes {
    type Conn = ();

    async fn dial(&self, _: &Address, cx: &DialContext) -> Result<(), DialError> {
        let _extra = cx.try_extra_slot();
        std::future::pending().await
    }

    fn check(&self, (): &mut (), _: &CheckContext) -> Fitness {
        Fitness::Fit
    }
}

#[tokio::test]
async fn an_extra_slot_is_held_by_the_dialer_that_took_it() {
    let budget = tracked(2);
    let resource = ConnResource::builder("a", Takes).budget(&budget).build();
    let mut get = resource.get();
    assert!(poll(&mut get).is_pending());
    let explained = budget.explain();
    let site = explained.holders()[0].site.unwrap();
    assert_eq!((explained.holders().len(), site.file()), (1, file!()), "{explained}");
}

/// Takes a slot, and then another without giving the first back.
async fn nested(budget: Budget) {
    let _outer = budget.acquire().await.unwrap();
    settle().await;
    let _inner = budget.acquire().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_deadlock_in_a_child_is_seen_whatever_else_is_held() {
    let budget = tracked(5);
    let (child, sibling) = (budget.child(2), budget.child(2));
    let resource = fakes("a", &sibling, &Arc::default());
    let unrelated = (budget.acquire().await.unwrap(), resource.get().await.unwrap());
    let tasks = [(); 2].map(|()| tokio::spawn(nested(child.clone())));
    sleep(Duration::from_secs(2)).await;
    assert!(child.explain().is_deadlocked(), "{}", child.explain());
    assert!(!sibling.explain().is_deadlocked() && !budget.explain().is_deadlocked(), "they have slots left");
    tasks[0].abort();
    settle().await;
    assert!(!child.explain().is_deadlocked());
    drop(unrelated);
}

#[tokio::test(start_paused = true)]
async fn tasks_that_want_a_slot_of_each_others_child_are_a_deadlock_of_the_parent() {
    let budget = tracked(2);
    let (one, other) = (budget.child(2), budget.child(2));
    for (has, wants) in [(one.clone(), other.clone()), (other.clone(), one.clone())] {
        tokio::spawn(async move {
            let _outer = has.acquire().await.unwrap();
            settle().await;
            let _inner = wants.acquire().await.unwrap();
        });
    }
    sleep(Duration::from_secs(2)).await;
    assert!(budget.explain().is_deadlocked(), "{}", budget.explain());
}

#[tokio::test(start_paused = true)]
async fn an_accept_loop_that_passes_its_slots_on_is_no_deadlock() {
    let budget = tracked(3);
    let accepts = tokio::spawn({
        let budget = budget.clone();
        async move {
            for _ in 0..30 {
                let slot = budget.acquire().await.unwrap();
                tokio::spawn(async move {
                    let _slot = slot;
                    sleep(Duration::from_millis(300)).await;
                });
            }
        }
    });
    let mut waited = 0;
    while !accepts.is_finished() {
        waited += budget.stats().waiting;
        assert!(!budget.explain().is_deadlocked(), "{}", budget.explain());
        sleep(Duration::from_millis(50)).await;
    }
    assert!(waited > 10, "it had to wait most of the time");
}

#[tokio::test(start_paused = true)]
async fn slots_passed_on_for_long_are_no_more_than_suspicious() {
    let budget = tracked(1);
    tokio::spawn({
        let budget = budget.clone();
        async move {
            let slot = budget.acquire().await.unwrap();
            tokio::spawn(async move {
                sleep(Duration::from_secs(60)).await;
                drop(slot)
            });
            drop(budget.acquire().await.unwrap());
        }
    });
    sleep(Duration::from_secs(3)).await;
    // Who has it now cannot be known, and the text does not pretend to.
    assert!(budget.explain().to_string().contains("unless they passed them on"), "{}", budget.explain());
    sleep(Duration::from_secs(60)).await;
    assert!(!budget.explain().is_deadlocked());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_gives_up_in_time_and_futures_that_take_turns_are_no_deadlock() {
    let budget = tracked(2);
    let retries = tokio::spawn({
        let budget = budget.clone();
        async move {
            let _slots = budget.acquire_many(2).await.unwrap();
            for _ in 0..10 {
                let wait = Duration::from_millis(400);
                assert!(budget.acquire().wait_timeout(wait).await.unwrap_err().is_timeout());
            }
        }
    });
    while !retries.is_finished() {
        assert!(!budget.explain().is_deadlocked(), "{}", budget.explain());
        sleep(Duration::from_millis(90)).await;
    }
    let resource = fakes("a", &budget, &Arc::default());
    let many = tokio::spawn(async move {
        let calls = (0..20).map(|_| async {
            let conn = resource.get().await.unwrap();
            sleep(Duration::from_millis(700)).await; // the exchange
            conn.put();
        });
        futures::future::join_all(calls).await;
    });
    while !many.is_finished() {
        assert!(!budget.explain().is_deadlocked(), "{}", budget.explain());
        sleep(Duration::from_millis(90)).await;
    }
}

#[test]
fn threads_have_no_name_and_are_not_called_a_deadlock() {
    let budget = tracked(1);
    let outer = budget.blocking_acquire().unwrap();
    let waiter = std::thread::spawn({
        let budget = budget.clone();
        move || budget.blocking_acquire().map(drop)
    });
    while budget.stats().waiting == 0 {
        std::thread::yield_now();
    }
    assert!(!budget.explain().to_string().contains("passed them on"));
    assert_eq!(budget.explain().holders().len(), 1);
    drop(outer);
    waiter.join().unwrap().unwrap();
}
