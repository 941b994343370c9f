//! Children of a budget: slots kept for them, how far; and who is asked for those that they lack.

#[path = "support/descriptors.rs"]
mod descriptors;
mod support;

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use fdpool::{Acquire, AcquireError, Budget, Reclaim, Slot};
use support::{assert_at_rest, fakes, poll, ready};

/// All that can be had at once.
fn drain(budget: &Budget) -> Vec<Slot> {
    std::iter::from_fn(|| budget.try_acquire()).collect()
}

#[tokio::test]
async fn a_limit_below_the_floors_starves_nobody() {
    let budget = Budget::new(40);
    let children: Vec<_> = (0..10).map(|_| budget.child_with(4, 40)).collect();
    budget.set_limit(36);
    let firsts: Vec<_> = children.iter().map(|child| ready(&mut child.acquire()).unwrap()).collect();
    let rests: Vec<_> = children.iter().map(drain).collect();
    assert!(rests.iter().all(|rest| (2..=3).contains(&rest.len())), "three or four for each");
    assert_eq!(budget.stats().held, 36, "none is left over");
    drop((firsts, rests));
    assert_eq!(drain(&children[9]).len(), 4, "and each may have its whole floor while there is room");
    assert!(budget.try_acquire().is_none(), "but nobody else");
    budget.set_limit(41);
    assert!(budget.try_acquire().is_some());
}

#[tokio::test]
async fn fewer_slots_than_children_go_round() {
    let budget = Budget::new(8);
    let children: Vec<_> = (0..4).map(|_| budget.child_with(2, 8)).collect();
    budget.set_limit(1);
    let mut gets: Vec<_> = children.iter().map(Budget::acquire).collect();
    gets.iter_mut().for_each(|get| drop(poll(get)));
    let mut slot = None;
    for _ in 0..4 {
        drop(slot.take());
        let at = gets.iter_mut().position(|get| match poll(get) {
            Poll::Ready(granted) => {
                slot = Some(granted.unwrap());
                true
            }
            Poll::Pending => false,
        });
        drop(gets.remove(at.expect("one is served")));
    }
    drop(slot);
    assert_at_rest(&budget, 0);
}

/// Nobody calls `set_limit` here: other code opens descriptors.
#[test]
fn descriptors_of_others_starve_no_child() {
    descriptors::alone(async {
        let _limit = descriptors::SoftLimit::leaving(400);
        let budget = Budget::builder().build().unwrap();
        let floor = budget.limit() / 10;
        let children: Vec<_> = (0..10).map(|_| budget.child_with(floor, budget.limit())).collect();
        let _files: Vec<_> = (0..2 * floor).map(|_| File::open("/dev/null").unwrap()).collect();
        while budget.effective_limit() >= 9 * floor {
            drop(children[0].acquire().wait_timeout(Duration::from_secs(30)).await.unwrap()); // whoever asks has them counted, now and then
        }
        for child in &children {
            drop(child.acquire().wait_timeout(Duration::from_secs(30)).await.unwrap());
        }
    });
}

#[tokio::test]
async fn floors_beyond_the_budget_are_kept_evenly() {
    let budget = Budget::new(4);
    let (one, other) = (budget.child_with(4, 4), budget.child_with(4, 4));
    let slot = one.acquire().immediate().await.unwrap();
    assert!(matches!(one.acquire_many(4).await, Err(AcquireError::Exhausted { .. })), "it never has as many");
    let more = drain(&one);
    assert_eq!((more.len(), drain(&other).len()), (1, 2));
    assert!(budget.try_acquire().is_none());
    assert!(budget.explain().to_string().contains("2 slots are kept for children"), "{}", budget.explain());
    drop((slot, more));
    drop(ready(&mut other.acquire_many(2)).unwrap());
}

#[tokio::test]
async fn a_small_floor_is_kept_whole_beside_a_large_one() {
    let budget = Budget::new(10);
    let (large, small) = (budget.child_with(8, 10), budget.child_with(2, 10));
    budget.set_limit(5);
    assert_eq!((drain(&large).len(), drain(&small).len()), (3, 2));
}

#[tokio::test]
async fn what_was_out_before_holds_up_nobody_for_whom_there_is_a_slot() {
    let budget = Budget::new(4);
    let mut before: Vec<_> = (0..3).map(|_| budget.try_acquire().unwrap()).collect();
    let (one, other) = (budget.child_with(2, 4), budget.child_with(2, 4));
    let slot = ready(&mut other.acquire()).unwrap();
    let (mut mine, mut more) = (one.acquire(), other.acquire());
    assert!(poll(&mut more).is_pending() && poll(&mut mine).is_pending());
    before.pop();
    assert!(poll(&mut more).is_pending(), "who has none comes first");
    let mine = ready(&mut mine).unwrap();
    before.pop();
    let more = ready(&mut more).unwrap();
    assert!(budget.try_acquire().is_none());
    drop((before, slot, mine, more));
}

#[tokio::test]
async fn a_large_request_below_a_floor_is_not_starved_by_small_ones() {
    let budget = Budget::new(8);
    let (one, other) = (budget.child_with(4, 8), budget.child_with(4, 8));
    budget.set_limit(7);
    let mut held = VecDeque::from(drain(&other));
    held.extend(drain(&one));
    assert_eq!(held.len(), 7);
    let mut large = one.acquire_many(4);
    assert!(poll(&mut large).is_pending());
    // Slots come back one by one, and the other child asks for each.
    let mut smalls: Vec<Acquire<'_>> = Vec::new();
    let mut rounds = 0;
    while poll(&mut large).is_pending() {
        drop(held.pop_front());
        smalls.push(other.acquire());
        smalls.retain_mut(|small| match poll(small) {
            Poll::Ready(slot) => {
                held.push_back(slot.unwrap());
                false
            }
            Poll::Pending => true,
        });
        rounds += 1;
        assert!(rounds <= 14, "each came back twice");
    }
    assert!(rounds > 4, "what was below its floor, the other had meanwhile");
}

#[tokio::test]
async fn nothing_within_a_floor_is_closed_for_others() {
    let (budget, script) = (Budget::new(6), Arc::default());
    let child = budget.child_with(3, 6);
    let (inside, beside) = (fakes("inside", &child, &script), fakes("beside", &child, &script));
    let conns = [(); 4].map(|()| ready(&mut inside.get()).unwrap());
    conns.into_iter().for_each(|conn| conn.put());
    let held = [(); 3].map(|()| budget.try_acquire().expect("one closes, that is beyond the floor"));
    assert_eq!(script.open(), 3);
    let mut waiting = budget.acquire();
    assert!(poll(&mut waiting).is_pending());
    assert_eq!(script.open(), 3, "it would be kept for the child");
    ready(&mut inside.get()).unwrap().put();
    assert_eq!((script.open(), script.begun()), (3, 4), "nor when it is put");
    ready(&mut beside.get()).unwrap().put();
    assert_eq!((script.open(), script.begun()), (3, 5), "the child's own callers have them");
    drop(held);
    drop(ready(&mut waiting).unwrap());
}

/// Has nothing idle, ever.
struct Empty;

impl Reclaim for Empty {
    fn idle(&self) -> usize {
        0
    }

    fn reclaim_one(&self) -> bool {
        false
    }
}

#[test]
fn a_participant_asked_in_vain_for_two_is_not_asked_for_ever() {
    let budget = Budget::new(2);
    let child = budget.child(1);
    let participant = Arc::new(Empty);
    let _registration = child.register(&participant);
    let _held = (child.try_acquire().unwrap(), budget.try_acquire().unwrap());
    let (mut below, mut here) = (child.acquire(), budget.acquire());
    assert!(poll(&mut below).is_pending() && poll(&mut here).is_pending());
}
