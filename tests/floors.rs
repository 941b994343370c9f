//! Children of a budget: slots kept for them, how far and until when; and who is asked for those that they lack.

#[path = "support/descriptors.rs"]
mod descriptors;
mod support;

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use fdpool::dial::from_fn;
use fdpool::{
    Acquire, AcquireError, Address, Budget, Conn, ConnResource, DialContext, Fitness, Get, Reclaim, Slot,
};
use proptest::prelude::*;
use support::{Fake, assert_at_rest, fakes, fakes_with, poll, ready, settle};

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
    assert!(budget.explain().to_string().contains("2 kept for children"), "{}", budget.explain());
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
async fn a_floor_ends_when_its_child_closes() {
    let budget = Budget::new(3);
    let child = budget.child_with(2, 2);
    let held = budget.try_acquire().unwrap();
    let mut waiting = budget.acquire_many(2);
    assert!(matches!(ready(&mut waiting), Err(AcquireError::Exhausted { .. })), "it is kept");
    let mut waiting = budget.acquire();
    assert!(poll(&mut waiting).is_pending());
    assert!(child.close(Duration::ZERO).await.is_clean());
    let served = ready(&mut waiting).unwrap();
    drop((held, served));
    drop(ready(&mut budget.acquire_many(3)).unwrap());
}

#[tokio::test]
async fn a_floor_is_no_higher_than_its_childs_limit() {
    let budget = Budget::new(3);
    let child = budget.child_with(2, 2);
    let _held = budget.try_acquire().unwrap();
    let (mut first, mut second) = (budget.acquire(), budget.acquire());
    assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
    child.set_limit(1);
    let first = ready(&mut first).unwrap();
    assert!(poll(&mut second).is_pending());
    child.set_limit(0);
    drop(ready(&mut second).unwrap());
    child.set_limit(2);
    assert!(budget.try_acquire().is_none(), "and is as before when the limit is");
    drop(first);
    assert_eq!(drain(&child).len(), 2);
}

#[tokio::test]
async fn a_floor_ends_when_nothing_is_left_of_its_child() {
    let (budget, script) = (Budget::new(3), Arc::default());
    let child = budget.child_with(2, 2);
    let resource = fakes("a", &child, &script);
    drop(child);
    let _held = budget.try_acquire().unwrap();
    let mut waiting = budget.acquire();
    assert!(poll(&mut waiting).is_pending(), "the resource is of the child");
    drop(resource);
    drop(ready(&mut waiting).unwrap());
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

/// What a test has asked for, and what came of it.
struct Asked<'a> {
    from: usize,
    weight: usize,
    acquire: Acquire<'a>,
}

#[derive(Clone, Debug)]
enum Step {
    Ask { from: usize, weight: usize },
    GiveBack(usize),
    GiveUp(usize),
    SetLimit { of: usize, limit: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0usize..5, prop_oneof![4 => Just(1usize), 1 => 2usize..4])
            .prop_map(|(from, weight)| Step::Ask { from, weight }),
        4 => any::<usize>().prop_map(Step::GiveBack),
        1 => any::<usize>().prop_map(Step::GiveUp),
        2 => (0usize..5, 0usize..12).prop_map(|(of, limit)| Step::SetLimit { of, limit }),
    ]
}

/// What else may happen to a budget and its children.
#[derive(Clone, Debug)]
enum Change {
    Open { below: usize, floor: usize, most: usize },
    Shut,
    Register(usize),
    Unregister,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (0usize..7, 0usize..3, 1usize..4).prop_map(|(below, floor, most)| Change::Open {
            below,
            floor,
            most
        }),
        Just(Change::Shut),
        (0usize..7).prop_map(Change::Register),
        Just(Change::Unregister),
    ]
}

/// Takes what was granted out of those asked for.
fn receive(asked: &mut Vec<Asked<'_>>, held: &mut Vec<(usize, Slot)>) -> usize {
    let before = held.len();
    asked.retain_mut(|asked| match poll(&mut asked.acquire) {
        Poll::Ready(Ok(slot)) => {
            assert_eq!(slot.weight(), asked.weight);
            held.push((asked.from, slot));
            false
        }
        Poll::Ready(Err(_)) => false,
        Poll::Pending => true,
    });
    held.len() - before
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The same with connections: nobody waits for a slot while something is idle that could be closed for it.
    #[test]
    fn whatever_rests_nobody_waits_who_could_have_its_slot(
        floors in prop::collection::vec(0usize..5, 3),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let _time = runtime.enter();
        let (root, script) = (Budget::new(8), Arc::default());
        let mut budgets = vec![root.clone()];
        budgets.extend(floors.iter().map(|floor| root.child_with(*floor, 8)));
        let peers = |budget: &Budget| {
            ["a", "b"].map(|peer| fakes_with(peer, budget, &script).wait_timeout(None).build())
        };
        let peers: Vec<_> = budgets.iter().map(peers).collect();
        let (mut asked, mut used) = (Vec::new(), Vec::<Conn<Fake>>::new());
        for step in steps {
            match step {
                Step::Ask { from, weight } => {
                    let from = from % budgets.len();
                    asked.push((from, peers[from][weight % 2].get()));
                }
                Step::GiveBack(at) if !used.is_empty() => {
                    let conn = used.swap_remove(at % used.len());
                    if at % 4 == 0 { conn.close() } else { conn.put() }
                }
                Step::GiveUp(at) if !asked.is_empty() => drop(asked.remove(at % asked.len())),
                Step::GiveBack(_) | Step::GiveUp(_) => {}
                Step::SetLimit { of, limit } => budgets[of % budgets.len()].set_limit(limit),
            }
            let mut left = asked.len() + 1;
            while asked.len() < left {
                left = asked.len();
                asked.retain_mut(|(_, get)| match poll(get) {
                    Poll::Ready(conn) => {
                        used.extend(conn.ok());
                        false
                    }
                    Poll::Pending => true,
                });
            }
            let stats: Vec<_> = budgets.iter().map(Budget::stats).collect();
            let out = |of: usize| stats[of].in_use + stats[of].idle + stats[of].dialing + stats[of].closing;
            let idle_at_root = stats[0].idle - stats[1..].iter().map(|child| child.idle).sum::<usize>();
            for (from, _) in &asked {
                if *from > 0 && out(*from) >= stats[*from].limit {
                    prop_assert_eq!(stats[*from].idle, 0, "its own");
                    continue;
                }
                prop_assert_eq!(idle_at_root, 0, "{} waits, the root has idle ones", from);
                for of in 1..budgets.len() {
                    let floor = |of: usize| floors[of - 1].min(stats[of].limit);
                    let is_below = *from > 0 && out(*from) < floor(*from);
                    let helps = of == *from || out(of) > floor(of) || is_below && out(of) > out(*from);
                    prop_assert!(!helps || stats[of].idle == 0, "{from} waits, {of} has idle ones");
                }
            }
        }
        drop((asked, used));
        for budget in &budgets {
            prop_assert_eq!(budget.stats().waiting + budget.stats().in_use + budget.stats().dialing, 0);
        }
    }

    /// Children of children, and requests of any size: nobody waits who could be served, nothing is closed for nobody.
    #[test]
    fn whatever_the_tree_nothing_is_closed_in_vain(
        steps in prop::collection::vec((any::<bool>(), step()), 1..80),
    ) {
        const PARENTS: [Option<usize>; 6] = [None, Some(0), Some(1), Some(1), Some(0), Some(4)];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let _time = runtime.enter();
        let script = Arc::default();
        let mut budgets = vec![Budget::new(6)];
        for (parent, at_most) in PARENTS.iter().flatten().zip([4, 2, 3, 3, 2]) {
            budgets.push(budgets[*parent].child(at_most));
        }
        let peers: Vec<_> =
            budgets.iter().map(|budget| fakes_with("a", budget, &script).wait_timeout(None).build()).collect();
        let path = |of: usize| std::iter::successors(Some(of), |of| PARENTS[*of]);
        let (mut gets, mut asked) = (Vec::<(usize, Get<'_, Fake>)>::new(), Vec::<Asked<'_>>::new());
        let (mut used, mut held) = (Vec::<Conn<Fake>>::new(), Vec::<(usize, Slot)>::new());
        for (dials, step) in steps {
            let before: Vec<_> = budgets.iter().map(Budget::stats).collect();
            let mut shrinks = before.iter().any(|of| of.in_use + of.idle + of.held > of.limit);
            match step {
                Step::Ask { from, weight } if dials && weight == 1 => gets.push((from, peers[from].get())),
                Step::Ask { from, weight } => {
                    asked.push(Asked { from, weight, acquire: budgets[from].acquire_many(weight) });
                }
                Step::GiveBack(at) if dials && !used.is_empty() => used.swap_remove(at % used.len()).put(),
                Step::GiveBack(at) if !held.is_empty() => drop(held.swap_remove(at % held.len())),
                Step::GiveUp(at) if dials && !gets.is_empty() => drop(gets.remove(at % gets.len())),
                Step::GiveUp(at) if !asked.is_empty() => drop(asked.remove(at % asked.len())),
                Step::GiveBack(_) | Step::GiveUp(_) => {}
                Step::SetLimit { of, limit } => {
                    budgets[of].set_limit(limit);
                    shrinks = true;
                }
            }
            let large = asked.iter().any(|asked| asked.weight > 1);
            let (mut granted, mut left) = (0, usize::MAX);
            while gets.len() + asked.len() < left {
                left = gets.len() + asked.len();
                let before = held.len();
                receive(&mut asked, &mut held);
                granted += held[before..].iter().map(|(_, slot)| slot.weight()).sum::<usize>();
                gets.retain_mut(|(_, get)| match poll(get) {
                    Poll::Ready(conn) => {
                        granted += usize::from(conn.is_ok());
                        used.extend(conn.ok());
                        false
                    }
                    Poll::Pending => true,
                });
            }
            let stats: Vec<_> = budgets.iter().map(Budget::stats).collect();
            let closed = (stats[0].evicted - before[0].evicted) as usize;
            prop_assert!(large || shrinks || closed <= granted, "{closed} closed for {granted}");
            let out = |of: usize| {
                let of = &stats[of];
                of.in_use + of.idle + of.dialing + of.closing + of.held
            };
            prop_assert!((0..6).all(|of| shrinks || granted == 0 || out(of) <= stats[of].limit), "I1");
            if asked.iter().any(|asked| asked.weight > 1) {
                continue; // slots may gather
            }
            for from in gets.iter().map(|(from, _)| *from).chain(asked.iter().map(|asked| asked.from)) {
                let full = path(from).find(|of| out(*of) >= stats[*of].limit);
                prop_assert!(full.is_some_and(|of| stats[of].idle == 0), "{from} waits: {stats:?}");
            }
        }
        // Whoever can be served is, once what is held comes back; the others are refused, but for those who may hope for more.
        gets.retain(|(from, _)| path(*from).all(|of| budgets[of].limit() > 0));
        while !(gets.is_empty() && asked.is_empty()) {
            let waiting = gets.len() + asked.len();
            (used, held) = Default::default();
            receive(&mut asked, &mut held);
            gets.retain_mut(|(_, get)| poll(get).map(|conn| used.extend(conn.ok())).is_pending());
            prop_assert!(gets.len() + asked.len() < waiting, "they wait for nothing:\n{}", budgets[0].explain());
        }
    }

    /// Children with floors that come and go, at any depth: whoever can be served is in the end, or is refused.
    #[test]
    fn whatever_comes_and_goes_nobody_waits_for_ever(
        floors in prop::collection::vec(0usize..3, 6),
        steps in prop::collection::vec(prop_oneof![3 => step().prop_map(Ok), 1 => change().prop_map(Err)], 1..80),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let _time = runtime.enter();
        let (script, participant) = (Arc::default(), Arc::new(Empty));
        let mut budgets = vec![Budget::new(6)];
        let below = [(0, 4), (1, 2), (1, 3), (0, 3), (4, 2), (2, 2)];
        for ((parent, at_most), floor) in below.into_iter().zip(&floors) {
            budgets.push(budgets[parent].child_with(*floor, at_most));
        }
        let peers: Vec<_> =
            budgets.iter().map(|budget| fakes_with("a", budget, &script).wait_timeout(None).build()).collect();
        let (mut gets, mut asked) = (Vec::<Get<'_, Fake>>::new(), Vec::<Asked<'_>>::new());
        let (mut used, mut held) = (Vec::<Conn<Fake>>::new(), Vec::<(usize, Slot)>::new());
        let (mut children, mut registrations) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Ok(Step::Ask { from, weight: 1 }) => gets.push(peers[from].get()),
                Ok(Step::Ask { from, weight }) => {
                    asked.push(Asked { from, weight, acquire: budgets[from].acquire_many(weight) });
                }
                Ok(Step::GiveBack(at)) if at % 2 == 0 && !used.is_empty() => used.swap_remove(at % used.len()).put(),
                Ok(Step::GiveBack(at)) if !held.is_empty() => drop(held.swap_remove(at % held.len())),
                Ok(Step::GiveUp(at)) if !asked.is_empty() => drop(asked.remove(at % asked.len())),
                Ok(Step::GiveBack(_) | Step::GiveUp(_)) => {}
                Ok(Step::SetLimit { of, limit }) => budgets[of].set_limit(limit),
                Err(Change::Open { below, floor, most }) => children.push(budgets[below].child_with(floor, most)),
                Err(Change::Shut) => drop(children.pop()),
                Err(Change::Register(of)) => registrations.push(budgets[of].register(&participant)),
                Err(Change::Unregister) => drop(registrations.pop()),
            }
            receive(&mut asked, &mut held);
            gets.retain_mut(|get| poll(get).map(|conn| used.extend(conn.ok())).is_pending());
        }
        // What is kept for children is kept from the others.
        children.clear();
        budgets.iter().for_each(|budget| budget.set_limit(6));
        while !(gets.is_empty() && asked.is_empty()) {
            let waiting = gets.len() + asked.len();
            (used, held) = Default::default();
            receive(&mut asked, &mut held);
            gets.retain_mut(|get| poll(get).map(|conn| used.extend(conn.ok())).is_pending());
            prop_assert!(gets.len() + asked.len() < waiting, "they wait for nothing:\n{}", budgets[0].explain());
        }
    }

    /// Limits that change under children with floors: no slot lies idle that somebody waits for, unless it is kept
    /// for one who has less; and when all comes back, everybody is served.
    #[test]
    fn whatever_the_limits_no_slot_lies_idle(
        floors in prop::collection::vec(0usize..5, 4),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let root = Budget::new(10);
        let mut budgets = vec![root.clone()];
        budgets.extend(floors.iter().map(|floor| root.child_with(*floor, 10)));
        let (mut asked, mut held) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Ask { from, weight } => {
                    asked.push(Asked { from, weight, acquire: budgets[from].acquire_many(weight) });
                }
                Step::GiveBack(at) if !held.is_empty() => drop(held.swap_remove(at % held.len())),
                Step::GiveUp(at) if !asked.is_empty() => drop(asked.remove(at % asked.len())),
                Step::GiveBack(_) | Step::GiveUp(_) => {}
                Step::SetLimit { of, limit } => budgets[of].set_limit(limit),
            }
            let granted = receive(&mut asked, &mut held);
            let used = |of: usize| {
                let of_it = held.iter().filter(|(from, _)| of == 0 || *from == of);
                of_it.map(|(_, slot)| slot.weight()).sum::<usize>()
            };
            prop_assert!(granted == 0 || used(0) <= root.limit(), "I1");
            let free = root.limit().saturating_sub(used(0));
            if free == 0 || asked.iter().any(|asked| asked.weight > 1) {
                continue; // slots may gather
            }
            let floor = |of: usize| floors[of - 1].min(budgets[of].limit());
            let up_to = |level: usize| {
                (1..budgets.len()).map(|of| floor(of).min(level).saturating_sub(used(of))).sum::<usize>()
            };
            for Asked { from, .. } in &asked {
                let has_room = *from == 0 || used(*from) < budgets[*from].limit();
                let is_below = *from > 0 && used(*from) < floor(*from);
                let kept = if is_below { up_to(used(*from)) } else { up_to(usize::MAX) };
                prop_assert!(!has_room || kept >= free, "{from} waits, {free} free, {kept} kept for others");
            }
        }
        // Whoever can ever be served is, once what is held comes back.
        for budget in &budgets {
            budget.set_limit(10);
        }
        loop {
            receive(&mut asked, &mut held);
            if asked.is_empty() {
                break;
            }
            prop_assert!(!held.is_empty(), "{} wait for nothing:\n{}", asked.len(), root.explain());
            held.clear();
        }
    }
}

/// How many dials may begin says nothing about who wants slots for something else.
#[tokio::test]
async fn max_dialing_bars_no_caller_of_acquire_in_a_child() {
    for max_dialing in [1, 2, 8] {
        let budget = Budget::builder().limit(10).max_dialing(max_dialing).build().unwrap();
        let script = Arc::default();
        let resources: Vec<_> = (0..9).map(|n| fakes(&n.to_string(), &budget, &script)).collect();
        for resource in &resources {
            ready(&mut resource.get()).unwrap().put();
        }
        let child = budget.child(10);
        let slots = ready(&mut child.acquire_many(5)).unwrap();
        assert_eq!((slots.weight(), budget.stats().idle), (5, 5), "of {max_dialing}");
        let more = ready(&mut child.acquire_many(5)).unwrap();
        drop((slots, more));
        assert_at_rest(&budget, 0);
    }
}

/// What is kept for a child is not what its callers are about to take, if they may not dial.
#[tokio::test]
async fn callers_that_may_not_dial_use_none_of_what_is_kept() {
    for max_dialing in [1, 2, 3, 9] {
        let budget = Budget::builder().limit(3).max_dialing(max_dialing).build().unwrap();
        let (script, hanging) = (Arc::default(), support::Script::manual());
        ready(&mut fakes("idle", &budget, &script).get()).unwrap().put();
        let idle = fakes("idle too", &budget, &script);
        ready(&mut idle.get()).unwrap().put();
        let child = budget.child_with(2, 2);
        let theirs: Vec<_> = (0..3).map(|n| fakes(&n.to_string(), &child, &hanging)).collect();
        let mut gets: Vec<_> = theirs.iter().map(|resource| resource.get()).collect();
        for get in &mut gets {
            assert!(poll(get).is_pending());
        }
        let slot = ready(&mut budget.acquire()).unwrap();
        assert_eq!(idle.stats().idle, 0, "of {max_dialing}");
        drop((slot, gets));
    }
}

/// Who waits for room in a child that is full, or for more than it has left, is no reason to close anything elsewhere.
#[tokio::test]
async fn who_is_barred_by_a_child_costs_the_others_nothing() {
    type Bars = fn(&Budget) -> (Budget, usize);
    let full: Bars = |budget| (budget.child(1), 1);
    let full_below: Bars = |budget| (budget.child(3).child(1), 1);
    let too_full: Bars = |budget| (budget.child(3).child(2), 2);
    let too_full_above: Bars = |budget| (budget.child(1).child(3), 1);
    for bars in [full, full_below, too_full, too_full_above] {
        let (budget, script) = (Budget::new(4), Arc::default());
        let (child, weight) = bars(&budget);
        let held = child.try_acquire().unwrap();
        let mut waiting = child.acquire_many(weight);
        assert!(poll(&mut waiting).is_pending());
        let dialling = fakes("c", &child, &script);
        let mut beside = dialling.get();
        assert!(poll(&mut beside).is_pending());
        let (a, b) = (fakes("a", &budget, &script), fakes("b", &budget, &script));
        a.get().await.unwrap().put();
        let more = [b.get().await.unwrap(), b.get().await.unwrap()];
        more.into_iter().for_each(Conn::put);
        for _ in 0..10 {
            b.get().await.unwrap().put();
        }
        assert_eq!((budget.stats().evicted, budget.stats().idle, b.stats().dials), (0, 3, 2));
        drop(held);
        drop(ready(&mut waiting).unwrap());
        ready(&mut beside).unwrap().close();
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_barred_by_a_child_leaves_others_their_stock() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let child = budget.child(1);
    let held = child.try_acquire().unwrap();
    let mut waiting = child.acquire();
    assert!(poll(&mut waiting).is_pending());
    let resource = fakes_with("a", &budget, &script).min_idle(3).build();
    settle().await;
    assert_eq!(resource.stats().idle, 3);
    drop(held);
    drop(ready(&mut waiting).unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_stock_is_kept_within_a_floor_whoever_else_waits() {
    let (budget, script) = (Budget::new(4), Arc::default());
    let child = budget.child_with(3, 4);
    let held = budget.try_acquire().unwrap();
    let mut waiting = budget.acquire();
    assert!(poll(&mut waiting).is_pending());
    let resource = fakes_with("a", &child, &script).min_idle(2).build();
    settle().await;
    assert_eq!(resource.stats().idle, 2);
    drop(held);
    drop(ready(&mut waiting).unwrap());
}

/// The first that is closed waits for another thread, twice.
struct Slow(Arc<(AtomicBool, Barrier)>);

impl Drop for Slow {
    fn drop(&mut self) {
        let (closed, barrier) = &*self.0;
        if !closed.swap(true, Ordering::SeqCst) {
            barrier.wait();
            barrier.wait();
        }
    }
}

/// While somebody closes what it evicts, nobody evicts for those who could not have it.
#[test]
fn no_more_is_closed_than_is_wanted_by_those_who_can_have_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let budget = Budget::new(6);
    let full = budget.child(1);
    let held = full.try_acquire().unwrap();
    let mut barred: Vec<_> = (0..3).map(|_| full.acquire()).collect();
    assert!(barred.iter_mut().all(|waiting| poll(waiting).is_pending()));
    let closing = Arc::new((AtomicBool::new(false), Barrier::new(2)));
    let slow = Arc::clone(&closing);
    let dial = move |_: &Address, _: &DialContext| std::future::ready(Ok(Slow(Arc::clone(&slow))));
    let resource =
        ConnResource::builder("a", from_fn(dial, |_: &mut Slow, _| Fitness::Fit)).budget(&budget).build();
    let conns: Vec<_> = (0..5).map(|_| ready(&mut resource.get()).unwrap()).collect();
    conns.into_iter().for_each(Conn::put);
    std::thread::scope(|scope| {
        let evicting = scope.spawn(|| budget.blocking_acquire().unwrap());
        closing.1.wait();
        let mut second = budget.acquire();
        let pending = poll(&mut second).is_pending();
        let idle = budget.stats().idle;
        closing.1.wait();
        assert_eq!(
            (pending, idle),
            (true, 3),
            "one is closed for each, and the first that is serves who was first"
        );
        drop((evicting.join().unwrap(), ready(&mut second).unwrap()));
    });
    assert_eq!(budget.stats().evicted, 2);
    drop((barred, held, resource));
}

#[tokio::test]
async fn a_floor_that_leaves_a_request_too_large_lets_those_behind_it_through() {
    let budget = Budget::new(10);
    let _held = budget.try_acquire().unwrap();
    let (mut large, mut small) = (budget.acquire_many(10), budget.acquire());
    assert!(poll(&mut large).is_pending() && poll(&mut small).is_pending());
    let _child = budget.child_with(1, 10);
    assert!(matches!(ready(&mut large), Err(AcquireError::Exhausted { .. })));
    drop(ready(&mut small).unwrap());
}

/// One that is held up in its child is told all the same that it waits in vain.
#[tokio::test]
async fn a_request_too_large_for_what_is_above_its_child_is_refused() {
    let budget = Budget::new(10);
    let child = budget.child(5);
    let _held = ready(&mut child.acquire_many(2)).unwrap();
    let mut large = child.acquire_many(4);
    assert!(poll(&mut large).is_pending());
    budget.set_limit(3);
    assert!(matches!(ready(&mut large), Err(AcquireError::Exhausted { .. })));
}

#[tokio::test]
async fn a_limit_that_shrinks_takes_what_is_within_a_floor_last() {
    for _ in 0..50 {
        let (budget, script) = (Budget::new(4), Arc::default());
        let child = budget.child_with(2, 4);
        let resources = [("a", &child), ("b", &child), ("c", &budget), ("d", &budget)];
        let resources = resources.map(|(name, of)| fakes(name, of, &script));
        for resource in &resources {
            resource.get().await.unwrap().put();
        }
        budget.set_limit(3);
        assert_eq!(child.stats().idle, 2);
        budget.set_limit(1);
        assert_eq!(budget.stats().idle, 1);
    }
}

/// Floors below a child whose first in turn is held up there are kept all the same.
#[tokio::test]
async fn a_floor_is_had_whoever_is_held_up_before_it() {
    let budget = Budget::new(10);
    let middle = budget.child(4);
    let child = middle.child(4);
    let floored = child.child_with(1, 1);
    let held = ready(&mut child.acquire_many(2)).unwrap();
    let mut large = child.acquire_many(3);
    assert!(poll(&mut large).is_pending());
    drop((ready(&mut floored.acquire()).unwrap(), ready(&mut middle.acquire()).unwrap()));
    drop((floored, held));
    drop(ready(&mut large).unwrap());
}

#[tokio::test]
async fn a_request_that_a_limit_between_makes_hopeless_holds_up_nobody() {
    let budget = Budget::new(10);
    let middle = budget.child(4);
    let child = middle.child(4);
    let held = ready(&mut middle.acquire_many(2)).unwrap();
    let mut large = child.acquire_many(3);
    assert!(poll(&mut large).is_pending());
    middle.set_limit(2);
    assert!(matches!(ready(&mut large), Err(AcquireError::Exhausted { .. })));
    drop(held);
    drop(ready(&mut middle.acquire()).unwrap());
}

/// A floor that comes or goes below who is held up.
#[tokio::test]
async fn what_is_held_up_is_so_whatever_floors_come_and_go() {
    let budget = Budget::new(10);
    let middle = budget.child(4);
    let before = middle.child_with(1, 2);
    let held = ready(&mut middle.acquire_many(2)).unwrap();
    let mut large = middle.acquire_many(3);
    assert!(poll(&mut large).is_pending());
    drop(before);
    drop(middle.child_with(1, 2));
    drop(budget.acquire_many(8).await.unwrap());
    drop(held);
    drop(ready(&mut large).unwrap());
}

#[tokio::test]
async fn nothing_is_closed_for_who_lacks_only_what_its_child_keeps() {
    let (budget, script) = (Budget::new(2), Arc::default());
    let child = budget.child(2);
    let floored = child.child_with(1, 1);
    let held = child.try_acquire().unwrap();
    let resource = fakes("a", &budget, &script);
    let conn = ready(&mut resource.get()).unwrap();
    let mut barred = child.acquire();
    assert!(poll(&mut barred).is_pending());
    conn.put();
    for _ in 0..9 {
        ready(&mut resource.get()).unwrap().put();
    }
    assert_eq!(script.begun(), 1);
    drop((floored, held));
    drop(ready(&mut barred).unwrap());
}

#[tokio::test]
async fn a_get_overtakes_nobody_who_gathers_for_a_floor() {
    let (budget, script) = (Budget::new(8), Arc::default());
    let held = ready(&mut budget.acquire_many(2)).unwrap();
    let (one, other) = (budget.child_with(4, 8), budget.child_with(4, 8));
    budget.set_limit(7);
    let others = ready(&mut other.acquire_many(2)).unwrap();
    let mut large = one.acquire_many(4);
    assert!(poll(&mut large).is_pending());
    let resource = fakes("a", &other, &script);
    let mut get = resource.get();
    assert!(poll(&mut get).is_pending(), "what is free is no more than is gathered");
    drop(held);
    drop(ready(&mut large).unwrap());
    ready(&mut get).unwrap().close();
    drop(others);
}
