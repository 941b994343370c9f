//! Budgets by themselves: slots, waiting, weights, children, participants.

mod support;

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use fdpool::{AcquireError, Budget, CancellationToken, GetError, Reclaim, Registration, Slot};
use support::{Script, assert_at_rest, comes_to_rest, fakes, fakes_with, poll, ready, settle};

#[tokio::test]
async fn acquire_waits_first_come_first_served() {
    let budget = Budget::new(1);
    let held = budget.acquire().await.unwrap();
    let (mut first, mut second) = (budget.acquire(), budget.acquire());
    assert!(poll(&mut first).is_pending());
    assert!(poll(&mut second).is_pending());
    assert_eq!(budget.stats().waiting, 2);
    drop(held);
    assert!(poll(&mut second).is_pending());
    drop(ready(&mut first).unwrap());
    drop(ready(&mut second).unwrap());
    assert_at_rest(&budget, 0);
}

/// Polls a future when it is woken, there and then.
struct PollsInWake(Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>);

impl Wake for PollsInWake {
    fn wake(self: Arc<Self>) {
        let mut waking = self.0.lock().unwrap();
        if let Some(future) = &mut *waking {
            _ = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}

#[tokio::test]
async fn who_comes_to_wait_in_a_waker_has_something_idle_closed_for_it() {
    let (budget, script) = (Budget::new(3), Arc::default());
    let child = budget.child(1);
    let (first, _held) = (child.acquire().await.unwrap(), budget.acquire().await.unwrap());
    let resource = fakes("a", &budget, &script);
    resource.get().await.unwrap().put();
    let (comes, got) = (budget.clone(), Arc::new(OnceLock::new()));
    let told = Arc::clone(&got);
    let future = async move {
        told.set(comes.acquire().await.unwrap()).unwrap();
    };
    let waker = Waker::from(Arc::new(PollsInWake(Mutex::new(Some(Box::pin(future))))));
    let mut next = child.acquire();
    assert!(Pin::new(&mut next).poll(&mut Context::from_waker(&waker)).is_pending());
    drop(first);
    assert_eq!((budget.stats().idle, budget.stats().waiting), (0, 0), "{}", budget.explain());
    drop(waker);
}

#[tokio::test]
async fn try_acquire_never_overtakes_who_waits() {
    let budget = Budget::new(2);
    let held = budget.acquire().await.unwrap();
    let mut both = budget.acquire_many(2);
    assert!(poll(&mut both).is_pending());
    assert!(budget.try_acquire().is_none(), "one is free, but kept for the large request");
    let immediate = budget.acquire().immediate().await;
    assert!(matches!(immediate, Err(AcquireError::Exhausted { .. })));
    drop(both);
    assert!(budget.try_acquire().is_some());
    drop(held);
}

#[tokio::test]
async fn a_large_request_that_is_dropped_lets_the_others_through() {
    let budget = Budget::new(2);
    let held = budget.acquire().await.unwrap();
    let (mut large, mut small) = (budget.acquire_many(2), budget.acquire());
    assert!(poll(&mut large).is_pending());
    assert!(poll(&mut small).is_pending());
    drop(large);
    drop(ready(&mut small).unwrap());
    drop(held);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn acquire_many_is_all_or_none_and_one_slot() {
    let budget = Budget::new(3);
    let mut slot = budget.acquire_many(3).await.unwrap();
    assert_eq!((slot.weight(), budget.stats().held), (3, 3));
    let part = slot.split(2).unwrap();
    assert_eq!((slot.weight(), part.weight()), (1, 2));
    assert!(slot.split(2).is_none());
    assert_eq!(slot.weight(), 1, "a split that fails takes nothing");
    drop(part);
    assert_eq!(budget.stats().held, 1);
    let none = slot.split(0).unwrap();
    assert_eq!(none.weight(), 0);
    drop((slot, none));
    assert_at_rest(&budget, 0);
    let error = budget.acquire_many(4).await.unwrap_err();
    assert!(matches!(error, AcquireError::Exhausted { .. }) && !error.is_timeout(), "{error}");
    assert_eq!(error.details().wanted, 4);
}

#[tokio::test]
async fn acquire_many_closes_as_many_idle_ones_as_it_needs() {
    let (budget, script) = (Budget::new(4), Arc::default());
    let resources: Vec<_> = (0..4).map(|n| fakes(&n.to_string(), &budget, &script)).collect();
    for resource in &resources {
        resource.get().await.unwrap().put();
    }
    let slot = budget.acquire_many(3).await.unwrap();
    assert_eq!((budget.stats().evicted, budget.stats().idle, script.open()), (3, 1, 1));
    drop(slot);
}

#[tokio::test(start_paused = true)]
async fn acquire_ends_by_timeout_or_token_and_says_which() {
    let budget = Budget::new(1);
    let held = budget.acquire().await.unwrap();
    let error = budget.acquire().wait_timeout(Duration::from_secs(2)).await.unwrap_err();
    assert!(matches!(error, AcquireError::Exhausted { .. }) && error.is_timeout());
    assert_eq!((error.details().elapsed, error.details().counts.held), (Duration::from_secs(2), 1));
    let token = CancellationToken::new();
    let mut waiting = budget.acquire().cancel(&token);
    assert!(poll(&mut waiting).is_pending());
    token.cancel();
    assert!(matches!(ready(&mut waiting), Err(AcquireError::Cancelled { .. })));
    assert!(matches!(budget.acquire().cancel(&token).await, Err(AcquireError::Cancelled { .. })));
    drop(held);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn applicants_and_addresses_take_turns() {
    let (budget, script) = (Budget::new(1), Arc::default());
    let resource = fakes("a", &budget, &script);
    let held = budget.acquire().await.unwrap();
    let (mut slot1, mut slot2, mut conn) = (budget.acquire(), budget.acquire(), resource.get());
    assert!(poll(&mut slot1).is_pending());
    assert!(poll(&mut slot2).is_pending());
    assert!(poll(&mut conn).is_pending());
    drop(held);
    let slot = ready(&mut slot1).unwrap();
    drop(slot);
    assert!(poll(&mut slot2).is_pending(), "the address is next");
    drop(ready(&mut conn).unwrap());
    drop(ready(&mut slot2).unwrap());
}

#[test]
fn blocking_acquire_blocks_a_thread_outside_of_a_runtime() {
    let budget = Budget::new(1);
    let held = budget.blocking_acquire().unwrap();
    let other = std::thread::spawn({
        let budget = budget.clone();
        move || budget.blocking_acquire().map(drop)
    });
    while budget.stats().waiting == 0 {
        std::thread::yield_now();
    }
    drop(held);
    other.join().unwrap().unwrap();
    assert_at_rest(&budget, 0);
}

#[test]
fn blocking_acquire_panics_rather_than_stop_the_tasks_it_waits_for() {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use tokio::runtime::Builder;
    for runtime in
        [Builder::new_current_thread().build(), Builder::new_multi_thread().worker_threads(1).build()]
    {
        let runtime = runtime.unwrap();
        let budget = Budget::new(1);
        let blocks = || catch_unwind(AssertUnwindSafe(|| budget.blocking_acquire().map(drop)));
        runtime.block_on(async {
            blocks().expect("it need not wait").unwrap();
            let held = budget.acquire().await.unwrap();
            let said = blocks().expect_err("in block_on");
            let said = said.downcast_ref::<String>().unwrap();
            assert!(said.contains("Cannot block the current thread from within a runtime"), "{said}");
            assert_eq!(budget.stats().waiting, 0, "it has left the line");
            let task = tokio::spawn({
                let budget = budget.clone();
                async move { budget.blocking_acquire().map(drop) }
            });
            assert!(task.await.unwrap_err().is_panic(), "in a task");

            let blocking = tokio::task::spawn_blocking({
                let budget = budget.clone();
                move || budget.blocking_acquire().map(drop)
            });
            while budget.stats().waiting == 0 {
                tokio::task::yield_now().await;
            }
            drop(held);
            blocking.await.unwrap().unwrap();
        });
        // A thread that has entered a runtime drives none of its tasks.
        let held = budget.blocking_acquire().unwrap();
        let entered = std::thread::spawn({
            let (budget, handle) = (budget.clone(), runtime.handle().clone());
            move || {
                let _entered = handle.enter();
                budget.blocking_acquire().map(drop)
            }
        });
        while budget.stats().waiting == 0 {
            std::thread::yield_now();
        }
        drop(held);
        entered.join().unwrap().unwrap();
        assert_at_rest(&budget, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn blocking_acquire_blocks_in_place() {
    let budget = Budget::new(1);
    let held = budget.acquire().await.unwrap();
    let blocking = tokio::spawn({
        let budget = budget.clone();
        async move { tokio::task::block_in_place(|| budget.blocking_acquire().map(drop)) }
    });
    while budget.stats().waiting == 0 {
        tokio::task::yield_now().await;
    }
    drop(held);
    blocking.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_raised_limit_serves_those_who_wait() {
    let budget = Budget::new(1);
    let held = budget.acquire().await.unwrap();
    let (mut one, mut two) = (budget.acquire(), budget.acquire());
    assert!(poll(&mut one).is_pending());
    assert!(poll(&mut two).is_pending());
    budget.set_limit(3);
    let slots = [ready(&mut one).unwrap(), ready(&mut two).unwrap(), held];
    assert_eq!((budget.limit(), budget.effective_limit(), budget.stats().held), (3, 3, 3));
    drop(slots);
}

#[tokio::test]
async fn a_shrunk_limit_refuses_what_can_never_be_granted() {
    let budget = Budget::new(3);
    let held = budget.acquire().await.unwrap();
    let (mut large, mut small) = (budget.acquire_many(3), budget.acquire());
    assert!(poll(&mut large).is_pending());
    assert!(poll(&mut small).is_pending());
    budget.set_limit(2);
    assert!(matches!(ready(&mut large), Err(AcquireError::Exhausted { .. })));
    drop(ready(&mut small).unwrap());
    drop(held);
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_zero_refuses_who_waits_for_slots_and_not_who_waits_for_connections() {
    let (budget, script) = (Budget::new(1), Arc::<Script>::default());
    let resource = fakes("a", &budget, &script);
    let held = budget.acquire().await.unwrap();
    let mut acquire = budget.acquire();
    assert!(poll(&mut acquire).is_pending());
    let blocked = std::thread::spawn({
        let budget = budget.clone();
        move || budget.blocking_acquire().map(drop)
    });
    while budget.stats().waiting < 2 {
        std::thread::yield_now();
    }
    budget.set_limit(0);
    let error = ready(&mut acquire).unwrap_err();
    assert!(matches!(error, AcquireError::Exhausted { .. }) && !error.is_timeout(), "{error}");
    assert!(matches!(blocked.join().unwrap(), Err(AcquireError::Exhausted { .. })));
    assert!(matches!(budget.acquire().await, Err(AcquireError::Exhausted { .. })));
    let error = fakes("b", &budget, &script).get().await.unwrap_err();
    assert!(matches!(error, GetError::Exhausted { .. }) && !error.is_timeout(), "{error}");
    drop(held);
    budget.set_limit(1);
    let conn = resource.get().await.unwrap();
    // Behind a get it has no turn, until that has had its own.
    let (mut get, mut acquire) = (resource.get(), budget.acquire());
    assert!(poll(&mut get).is_pending() && poll(&mut acquire).is_pending());
    budget.set_limit(0);
    assert!(poll(&mut get).is_pending() && poll(&mut acquire).is_pending());
    let error = get.await.unwrap_err();
    assert!(matches!(error, GetError::Exhausted { .. }) && error.is_timeout(), "in its own time: {error}");
    assert!(matches!(ready(&mut acquire), Err(AcquireError::Exhausted { .. })));
    drop(conn);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn a_child_has_no_more_than_its_part_and_counts_in_the_whole() {
    let (budget, script) = (Budget::new(3), Arc::default());
    let child = budget.child(2);
    let (inside, outside) = (fakes("in", &child, &script), fakes("out", &budget, &script));
    let conns = [inside.get().await.unwrap(), inside.get().await.unwrap()];
    let error = inside.get().immediate().await.unwrap_err();
    assert!(matches!(error, GetError::Exhausted { .. }), "{error}");
    assert_eq!((child.stats().in_use, budget.stats().in_use, child.limit()), (2, 2, 2));
    let other = outside.get().await.unwrap();
    assert_eq!((child.stats().in_use, budget.stats().in_use), (2, 3));
    drop((conns, other));
    assert_at_rest(&budget, 0);
    assert_at_rest(&child, 0);
    assert_eq!((child.stats().dials, budget.stats().dials), (2, 3));
}

#[tokio::test]
async fn a_child_at_its_limit_closes_only_its_own() {
    let (budget, script) = (Budget::new(3), Arc::default());
    let child = budget.child(1);
    let (in1, in2) = (fakes("in1", &child, &script), fakes("in2", &child, &script));
    let outside = fakes("out", &budget, &script);
    outside.get().await.unwrap().put();
    in1.get().await.unwrap().put();
    in2.get().await.unwrap().put();
    assert_eq!((in1.stats().evicted, outside.stats().evicted), (1, 0));
    // The whole is full: whoever is there is closed, the child's too.
    let conns = [outside.get().await.unwrap(), outside.get().await.unwrap(), outside.get().await.unwrap()];
    assert_eq!((in2.stats().evicted, budget.stats().in_use), (1, 3));
    drop(conns);
}

#[tokio::test]
async fn who_waits_in_a_full_child_holds_up_nobody_outside() {
    let (budget, script) = (Budget::new(2), Arc::default());
    let child = budget.child(1);
    let (inside, outside) = (fakes("in", &child, &script), fakes("out", &budget, &script));
    let held = inside.get().await.unwrap();
    let mut waiting = inside.get();
    assert!(poll(&mut waiting).is_pending());
    let other = outside.get().await.unwrap();
    other.put();
    assert_eq!(budget.stats().idle, 1, "of no use to who waits in the child");
    held.put();
    ready(&mut waiting).unwrap().put();
    assert_at_rest(&budget, 2);
}

#[tokio::test]
async fn grandchildren_and_their_parents_take_turns() {
    let budget = Budget::new(1);
    let child = budget.child(1);
    let grandchild = child.child(1);
    let held = budget.acquire().await.unwrap();
    let (mut low, mut high, mut middle) = (grandchild.acquire(), budget.acquire(), child.acquire());
    for waiting in [&mut low, &mut high, &mut middle] {
        assert!(poll(waiting).is_pending());
    }
    drop(held);
    drop(ready(&mut low).unwrap());
    assert!(poll(&mut middle).is_pending(), "the child had its turn");
    drop(ready(&mut high).unwrap());
    drop(ready(&mut middle).unwrap());
    assert_at_rest(&budget, 0);
    drop((low, middle, high));
    drop((child, grandchild));
    assert!(budget.try_acquire().is_some());
}

#[tokio::test]
async fn max_dialing_bounds_dials_of_all_addresses_together() {
    let budget = Budget::builder().limit(10).max_dialing(2).build().unwrap();
    let script = Script::manual();
    let resources: Vec<_> = (0..4).map(|n| fakes(&n.to_string(), &budget, &script)).collect();
    let mut gets: Vec<_> = resources.iter().map(|resource| resource.get()).collect();
    for get in &mut gets {
        assert!(poll(get).is_pending());
    }
    assert_eq!((script.pending(), budget.stats().dialing), (2, 2));
    // Slots are free all the same.
    drop(budget.acquire().await.unwrap());
    script.answer(Ok(()));
    let first = ready(&mut gets[0]).unwrap();
    assert!(poll(&mut gets[2]).is_pending());
    assert_eq!(script.pending(), 2, "the next dials");
    first.put();
    assert_eq!(budget.stats().idle, 1, "who waits for a dial has no use for the slot");
    let mut waiting: Vec<_> = gets.drain(1..).collect();
    while !waiting.is_empty() {
        assert!(script.pending() <= 2);
        script.answer(Ok(()));
        waiting.retain_mut(|get| match poll(get) {
            std::task::Poll::Ready(conn) => {
                conn.unwrap().put();
                false
            }
            std::task::Poll::Pending => true,
        });
    }
    assert_eq!(script.begun(), 4);
    assert_at_rest(&budget, 4);
}

/// A pool of another kind: numbers instead of descriptors.
struct Foreign {
    idle: Mutex<Vec<Slot>>,
    asked: AtomicUsize,
    registration: Mutex<Option<Registration>>,
}

impl Foreign {
    fn register(budget: &Budget) -> Arc<Self> {
        let idle = Mutex::default();
        let foreign = Arc::new(Self { idle, asked: AtomicUsize::new(0), registration: Mutex::new(None) });
        *foreign.registration.lock().unwrap() = Some(budget.register(&foreign));
        foreign
    }

    fn put(&self, slot: Slot) {
        self.idle.lock().unwrap().push(slot);
        self.registration.lock().unwrap().as_ref().unwrap().became_idle();
    }
}

impl Reclaim for Foreign {
    fn idle(&self) -> usize {
        self.idle.lock().unwrap().len()
    }

    fn reclaim_one(&self) -> bool {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let slot = self.idle.lock().unwrap().pop();
        slot.is_some()
    }
}

#[tokio::test]
async fn a_participant_lets_go_when_a_slot_is_needed() {
    let (budget, script) = (Budget::new(1), Arc::default());
    let resource = fakes("a", &budget, &script);
    let foreign = Foreign::register(&budget);
    foreign.put(budget.acquire().await.unwrap());
    drop(resource.get().await.unwrap());
    assert_eq!((foreign.idle(), foreign.asked.load(Ordering::SeqCst)), (0, 1));
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn a_participant_whose_descriptor_becomes_idle_serves_who_waits() {
    let (budget, script) = (Budget::new(1), Arc::default());
    let resource = fakes("a", &budget, &script);
    let foreign = Foreign::register(&budget);
    let slot = budget.acquire().await.unwrap();
    let mut waiting = resource.get();
    assert!(poll(&mut waiting).is_pending());
    foreign.put(slot);
    drop(ready(&mut waiting).unwrap());
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn participants_and_connections_lose_as_often_as_they_have_many() {
    let (budget, script) = (Budget::new(40), Arc::default());
    let resources: Vec<_> = (0..20).map(|n| fakes(&n.to_string(), &budget, &script)).collect();
    let foreign = Foreign::register(&budget);
    for resource in &resources {
        resource.get().await.unwrap().put();
        foreign.put(budget.acquire().await.unwrap());
    }
    let taken = budget.acquire_many(20).await.unwrap();
    assert_eq!(budget.stats().idle + foreign.idle(), 20);
    assert!(budget.stats().evicted >= 3 && foreign.idle() <= 17, "{:?}", budget.stats());
    drop(taken);
}

#[tokio::test]
async fn a_participant_that_lies_or_panics_costs_nobody() {
    struct Liar;
    impl Reclaim for Liar {
        fn idle(&self) -> usize {
            1000
        }
        fn reclaim_one(&self) -> bool {
            true
        }
    }
    struct Panicker;
    impl Reclaim for Panicker {
        fn idle(&self) -> usize {
            panic!("idle")
        }
        fn reclaim_one(&self) -> bool {
            panic!("reclaim_one")
        }
    }
    let (budget, script) = (Budget::new(1), Arc::default());
    let (a, b) = (fakes("a", &budget, &script), fakes("b", &budget, &script));
    let (liar, panicker) = (Arc::new(Liar), Arc::new(Panicker));
    let _registrations = (budget.register(&liar), budget.register(&panicker));
    a.get().await.unwrap().put();
    drop(b.get().await.unwrap());
    let held = budget.acquire().await.unwrap();
    assert!(matches!(b.get().immediate().await, Err(GetError::Exhausted { .. })));
    drop(held);
    assert!(budget.stats().panics > 0);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn a_registration_ends_when_it_is_dropped_and_keeps_nothing_alive() {
    let budget = Budget::new(1);
    let foreign = Foreign::register(&budget);
    foreign.put(budget.acquire().await.unwrap());
    let weak = Arc::downgrade(&foreign);
    drop(foreign.registration.lock().unwrap().take());
    assert!(budget.try_acquire().is_none(), "not asked any more");
    drop(foreign);
    assert!(weak.upgrade().is_none());
    assert!(budget.try_acquire().is_some());
}

#[tokio::test]
async fn with_slot_dials_with_slots_taken_together() {
    let (budget, script) = (Budget::new(2), Arc::default());
    let (a, b) = (fakes("a", &budget, &script), fakes("b", &budget, &script));
    let mut both = budget.acquire_many(2).await.unwrap();
    let one = both.split(1).unwrap();
    let (from, to) = (a.get().with_slot(one).await.unwrap(), b.get().with_slot(both).await.unwrap());
    assert_eq!((budget.stats().in_use, budget.stats().held), (2, 0));
    from.put();
    to.put();
    // With an idle one at hand, the slot goes back.
    budget.set_limit(3);
    let slot = budget.acquire().await.unwrap();
    a.get().with_slot(slot).await.unwrap().put();
    assert_eq!(script.begun(), 2);
    assert_at_rest(&budget, 2);
    let foreign = Budget::new(1).acquire().await.unwrap();
    assert!(matches!(b.get().fresh().with_slot(foreign).await, Err(GetError::ForeignSlot { .. })));
}

#[tokio::test]
async fn with_slot_at_max_conns_waits_as_any_other() {
    let (budget, script) = (Budget::new(3), Arc::default());
    let resource = fakes_with("a", &budget, &script).max_conns(1).build();
    let held = resource.get().await.unwrap();
    let slot = budget.acquire_many(2).await.unwrap();
    let mut get = resource.get().with_slot(slot);
    assert!(poll(&mut get).is_pending());
    assert_eq!(budget.stats().held, 0, "given back meanwhile");
    held.put();
    ready(&mut get).unwrap().put();
    assert_at_rest(&budget, 1);
}

#[tokio::test]
async fn held_values_go_before_their_slots() {
    struct Descriptor(Budget);
    impl Drop for Descriptor {
        fn drop(&mut self) {
            assert_eq!(self.0.stats().held, 1, "still counted while it is closed");
        }
    }
    let budget = Budget::new(1);
    let held = budget.acquire().await.unwrap().hold(Descriptor(budget.clone()));
    let held = fdpool::Held::map(held, |descriptor| (descriptor, "and more"));
    assert_eq!(held.1, "and more");
    drop(held);
    let held = budget.acquire().await.unwrap().hold(1);
    let (value, slot) = fdpool::Held::into_parts(held);
    assert_eq!((value, slot.weight()), (1, 1));
    drop(slot);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn min_idle_is_kept_in_stock_from_free_slots() {
    let (budget, script) = (Budget::new(4), Arc::default());
    let resource = fakes_with("a", &budget, &script).min_idle(3).build();
    settle().await;
    assert_at_rest(&budget, 3);
    let conn = resource.get().await.unwrap();
    settle().await;
    assert_eq!((budget.stats().idle, budget.stats().in_use), (3, 1));
    // Not protected: whoever needs the slots gets them, and the stock is not refilled at anybody's cost.
    let slots = budget.acquire_many(3).await.unwrap();
    conn.put();
    let conn = resource.get().await.unwrap();
    settle().await;
    assert_eq!((budget.stats().idle, script.open()), (0, 1));
    drop((slots, conn));
}

#[tokio::test]
async fn explain_names_who_holds_and_who_waits() {
    let (budget, script) = (Budget::new(2), Arc::default());
    let (a, b) = (fakes("peer-a:1", &budget, &script), fakes("peer-b:2", &budget, &script));
    drop(a.get().await.unwrap());
    let _conn = a.get().await.unwrap();
    let _slot = budget.acquire().await.unwrap();
    let mut waiting = b.get();
    assert!(poll(&mut waiting).is_pending());
    let text = budget.explain().to_string();
    for part in [
        "2 slots: 1 in use",
        "peer-a:1: 1 in use",
        "peer-b:2",
        "1 waits, for",
        "1 held",
        "1 connection was dropped",
    ] {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

#[test]
fn limits_and_requests_beyond_all_measure_overflow_nothing() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
    runtime.block_on(async {
        let (budget, script) = (Budget::new(8), Arc::default());
        let child = budget.child(usize::MAX);
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..16 {
            let resource = fakes(&(n % 12).to_string(), &child, &script);
            tasks.spawn(async move {
                for _ in 0..200 {
                    resource.get().await.unwrap().put();
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        comes_to_rest(&budget, 0).await;
        let endless = Budget::new(usize::MAX);
        let most = endless.acquire_many(usize::MAX >> 16).await.unwrap();
        assert!(matches!(endless.acquire_many(usize::MAX).await, Err(AcquireError::Exhausted { .. })));
        drop((endless.acquire().await.unwrap(), most));
    });
}

#[tokio::test]
async fn a_get_that_was_handed_an_unfit_connection_is_not_forgotten_at_limit_zero() {
    let (budget, script) = (Budget::new(1), Arc::<Script>::default());
    let resource = fakes_with("a", &budget, &script).wait_timeout(None).build();
    let conn = resource.get().await.unwrap();
    let mut get = resource.get();
    assert!(poll(&mut get).is_pending());
    *conn.handle().lock().unwrap() = fdpool::Fitness::Broken;
    conn.put();
    budget.set_limit(0);
    ready(&mut get).unwrap().put();
    assert_at_rest(&budget, 0);
    // And who waited before the limit was zero waits for better times.
    budget.set_limit(1);
    let held = resource.get().await.unwrap();
    let mut get = resource.get();
    assert!(poll(&mut get).is_pending());
    budget.set_limit(0);
    held.put();
    assert!(poll(&mut get).is_pending());
    budget.set_limit(1);
    ready(&mut get).unwrap().put();
    assert_at_rest(&budget, 1);
}

#[tokio::test]
async fn a_stock_larger_than_what_may_rest_is_no_endless_dialing() {
    for max_idle in [0, 2] {
        let (budget, script) = (Budget::new(10), Arc::<Script>::default());
        let resource = fakes_with("a", &budget, &script).min_idle(3).max_idle(max_idle).build();
        for _ in 0..5 {
            settle().await;
        }
        assert_eq!((script.begun(), budget.stats().idle), (max_idle, max_idle));
        drop(resource);
    }
}

#[tokio::test]
async fn a_fresh_get_with_a_slot_displaces_an_idle_one_at_max_conns() {
    let (budget, script) = (Budget::new(3), Arc::<Script>::default());
    let resource = fakes_with("a", &budget, &script).max_conns(1).build();
    resource.get().await.unwrap().put();
    let slot = budget.acquire().await.unwrap();
    let conn = ready(&mut resource.get().fresh().with_slot(slot)).unwrap();
    assert_eq!((conn.is_reused(), script.open()), (false, 1));
    conn.put();
    assert_at_rest(&budget, 1);
}

#[tokio::test]
async fn what_a_search_found_busy_is_found_when_it_rests_again() {
    let (budget, script) = (Budget::new(1), Arc::<Script>::default());
    let (one, other) = (fakes("one", &budget, &script), fakes("other", &budget, &script));
    one.get().await.unwrap().put();
    let used = one.get().await.unwrap();
    let mut in_vain = other.get();
    assert!(poll(&mut in_vain).is_pending());
    drop(in_vain);
    used.put(); // to rest, for nobody waits any more
    assert_eq!(one.stats().idle, 1);
    ready(&mut other.get()).unwrap().put();
    assert_eq!((one.stats().evicted, other.stats().idle), (1, 1));
}

#[tokio::test]
async fn a_participant_that_has_something_idle_when_it_registers_serves_who_waits() {
    let budget = Budget::new(1);
    let slot = budget.try_acquire().unwrap();
    let mut waiting = budget.acquire();
    assert!(poll(&mut waiting).is_pending());
    let idle = Mutex::new(vec![slot]);
    let foreign = Arc::new(Foreign { idle, asked: AtomicUsize::new(0), registration: Mutex::default() });
    let registration = budget.register(&foreign);
    drop(ready(&mut waiting).unwrap());
    drop(registration);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn a_participant_that_tells_of_itself_while_it_is_asked_is_not_asked_for_ever() {
    #[derive(Default)]
    struct Eager(OnceLock<Registration>, AtomicUsize);
    impl Reclaim for Eager {
        fn idle(&self) -> usize {
            0
        }
        fn reclaim_one(&self) -> bool {
            if self.1.fetch_add(1, Ordering::SeqCst) < 10_000 {
                self.0.get().unwrap().became_idle();
            }
            false
        }
    }
    let (budget, eager) = (Budget::new(1), Arc::new(Eager::default()));
    let _held = budget.try_acquire().unwrap();
    assert!(eager.0.set(budget.register(&eager)).is_ok());
    assert!(budget.try_acquire().is_none());
    let asked = eager.1.load(Ordering::SeqCst);
    assert!((1..100).contains(&asked), "{asked}");
}

#[tokio::test]
async fn nothing_is_closed_for_a_large_request_that_does_not_wait_and_is_too_large() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let resource = fakes("a", &budget, &script);
    let _held = budget.acquire_many(5).await.unwrap();
    let conns = [(); 5].map(|()| ready(&mut resource.get()).unwrap());
    conns.into_iter().for_each(fdpool::Conn::put);
    let refused = budget.acquire_many(6).immediate().await;
    assert!(matches!(refused, Err(AcquireError::Exhausted { .. })));
    assert_eq!((budget.stats().idle, budget.stats().evicted), (5, 0));
    drop(budget.acquire_many(5).immediate().await.unwrap());
    assert_eq!(budget.stats().evicted, 5);
}

#[test]
fn a_waker_that_panics_keeps_nobody_else_from_being_woken() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker's");
        }
    }
    #[derive(Default)]
    struct Counts(AtomicUsize);
    impl Wake for Counts {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (budget, counts) = (Budget::new(1), Arc::new(Counts::default()));
    let _held = budget.try_acquire().unwrap();
    let mut waiting = [(); 4].map(|()| budget.acquire());
    let wakers = [Arc::new(Panics).into(), Waker::from(Arc::clone(&counts))];
    for (waiting, waker) in waiting.iter_mut().zip(wakers.iter().chain([&wakers[1]; 2])) {
        assert!(Pin::new(waiting).poll(&mut Context::from_waker(waker)).is_pending());
    }
    budget.set_limit(5);
    assert_eq!(counts.0.load(Ordering::SeqCst), 3);
    waiting.iter_mut().for_each(|waiting| drop(ready(waiting).unwrap()));
}

/// To count what many addresses have takes long, and errors may come often.
#[tokio::test(start_paused = true)]
async fn errors_of_large_budgets_tell_counts_of_late() {
    let (budget, script) = (Budget::new(1000), Arc::default());
    let resources: Vec<_> = (0..300).map(|n| fakes(&n.to_string(), &budget, &script)).collect();
    let held = async |of: &fdpool::ConnResource<support::Fake>| {
        let error = of.get().fresh().with_slot(Budget::new(1).try_acquire().unwrap()).await.unwrap_err();
        let GetError::ForeignSlot { details } = error else { panic!("{error}") };
        details.counts.in_use
    };
    for (in_use, told) in [(256, 256), (299, 299), (300, 299)] {
        let conns: Vec<_> = resources[..in_use].iter().map(|of| ready(&mut of.get()).unwrap()).collect();
        assert_eq!(held(&resources[0]).await, told);
        conns.into_iter().for_each(fdpool::Conn::close);
    }
    tokio::time::advance(Duration::from_millis(60)).await;
    assert_eq!(held(&resources[0]).await, 0);
}
