//! A get that lacks nothing but a slot closes what is idle and dials with that slot itself. What happens meanwhile, while
//! it closes, must neither take the slot from it nor be lost.

mod support;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fdpool::dial::CheckContext;
use fdpool::{Address, Budget, Conn, ConnResource, Dial, DialContext, DialError, Fitness, GetError};
use support::{Script, assert_at_rest, fakes, fakes_with, poll, ready};

type Hook = Box<dyn FnOnce() + Send>;

/// Does what it was told when a connection is closed.
#[derive(Clone, Default)]
struct Hooked {
    on_close: Arc<Mutex<Option<Hook>>>,
    dials: Arc<AtomicUsize>,
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooked").finish_non_exhaustive()
    }
}

impl Hooked {
    fn resource(&self, address: &str, budget: &Budget) -> ConnResource<()> {
        ConnResource::builder(address, self.clone()).budget(budget).build()
    }

    fn when_closed(&self, hook: impl FnOnce() + Send + 'static) {
        *self.on_close.lock().unwrap() = Some(Box::new(hook));
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }
}

impl Dial for Hooked {
    type Conn = ();

    async fn dial(&self, _: &Address, _: &DialContext) -> Result<(), DialError> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn check(&self, (): &mut (), _: &CheckContext) -> Fitness {
        Fitness::Fit
    }

    fn close(&self, (): ()) {
        let hook = self.on_close.lock().unwrap().take();
        hook.into_iter().for_each(|hook| hook());
    }
}

/// Two addresses, one of which has all there is, idle.
fn idle_and_other(budget: &Budget) -> (Hooked, ConnResource<()>, ConnResource<()>) {
    let hooked = Hooked::default();
    let (idle, other) = (hooked.resource("idle", budget), hooked.resource("other", budget));
    for conn in (0..budget.limit()).map(|_| ready(&mut idle.get())).collect::<Vec<_>>() {
        conn.unwrap().put();
    }
    (hooked, idle, other)
}

#[tokio::test]
async fn one_goes_for_one_and_its_descriptor_first() {
    let (budget, script) = (Budget::new(2), Arc::new(Script::default()));
    let resources: Vec<_> = (0..50).map(|n| fakes(&n.to_string(), &budget, &script)).collect();
    for resource in &resources {
        ready(&mut resource.get()).unwrap().put();
    }
    let stats = budget.stats();
    assert_eq!((stats.dials, stats.evicted, stats.waits, stats.idle), (50, 48, 0, 2));
    assert_eq!((script.most_open.load(Ordering::SeqCst), script.closed()), (2, 48));
    let told: u64 = resources.iter().map(|resource| resource.stats().evicted).sum();
    assert_eq!(told, 48, "each address knows what it lost");
    assert_at_rest(&budget, 2);
}

#[tokio::test]
async fn nobody_takes_its_slot_while_it_closes() {
    let budget = Budget::new(1);
    let (hooked, idle, other) = idle_and_other(&budget);
    let found = Arc::new(Mutex::new(None));
    hooked.when_closed({
        let (budget, idle, found) = (budget.clone(), idle.clone(), Arc::clone(&found));
        move || *found.lock().unwrap() = Some((budget.try_acquire().is_some(), idle.try_get().is_some()))
    });
    let conn = ready(&mut other.get()).unwrap();
    assert_eq!(*found.lock().unwrap(), Some((false, false)));
    conn.put();
    assert_at_rest(&budget, 1);
}

#[tokio::test]
async fn who_gets_in_line_while_it_closes_comes_after_it() {
    let budget = Budget::new(1);
    let (hooked, idle, other) = idle_and_other(&budget);
    let waiting = Arc::new(Mutex::new(Box::pin(idle.get_owned())));
    hooked.when_closed({
        let waiting = Arc::clone(&waiting);
        move || assert!(poll(&mut *waiting.lock().unwrap()).is_pending())
    });
    let conn = ready(&mut other.get()).unwrap();
    assert!(poll(&mut *waiting.lock().unwrap()).is_pending());
    conn.put();
    drop(ready(&mut *waiting.lock().unwrap()).unwrap());
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn what_comes_back_while_it_closes_is_taken_and_the_slot_is_not_lost() {
    let budget = Budget::new(2);
    let hooked = Hooked::default();
    let (idle, other) = (hooked.resource("idle", &budget), hooked.resource("other", &budget));
    ready(&mut idle.get()).unwrap().put();
    let held = ready(&mut other.get()).unwrap();
    hooked.when_closed(move || held.put());
    let conn = ready(&mut other.get()).unwrap();
    assert!(conn.is_reused());
    assert_eq!((hooked.dials(), budget.stats().evicted), (2, 1));
    assert_eq!((budget.stats().dials, other.stats().dials), (2, 1), "the one given up was never begun");
    assert!(budget.try_acquire().is_some(), "the slot is free again");
    conn.put();
    assert_at_rest(&budget, 1);
}

#[tokio::test]
async fn what_is_closed_counts_at_its_address_until_it_is() {
    let budget = Budget::new(2);
    let hooked = Hooked::default();
    let idle = ConnResource::builder("idle", hooked.clone()).budget(&budget).max_conns(1).build();
    let other = hooked.resource("other", &budget);
    ready(&mut idle.get()).unwrap().put();
    let slot = budget.try_acquire().unwrap();
    let (seen, told) = (Arc::new(Mutex::new(None)), idle.clone());
    let sees = Arc::clone(&seen);
    hooked.when_closed(move || {
        *sees.lock().unwrap() = Some(ready(&mut told.get().with_slot(slot).immediate()).map(Conn::close));
    });
    let conn = ready(&mut other.get()).unwrap();
    let told = seen.lock().unwrap().take();
    assert!(matches!(told, Some(Err(GetError::AddressBusy { .. }))), "{told:?}");
    conn.put();
    assert_at_rest(&budget, 1);
}

#[tokio::test]
async fn a_get_whose_budget_is_closed_while_it_closes_is_told() {
    let budget = Budget::new(1);
    let (hooked, _idle, other) = idle_and_other(&budget);
    hooked.when_closed({
        let budget = budget.clone();
        move || drop(poll(&mut Box::pin(async move { budget.close(Duration::ZERO).await })))
    });
    assert!(matches!(ready(&mut other.get()), Err(GetError::Closed { .. })));
    assert_eq!(hooked.dials(), 1);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn a_limit_lowered_while_it_closes_holds_from_then_on() {
    let budget = Budget::new(2);
    let (hooked, idle, other) = idle_and_other(&budget);
    hooked.when_closed({
        let budget = budget.clone();
        move || budget.set_limit(1)
    });
    let conn = ready(&mut other.get()).unwrap();
    assert_eq!((idle.stats().idle, budget.stats().evicted), (0, 2), "the other one goes for the limit");
    conn.put();
    assert_at_rest(&budget, 1);
}

#[tokio::test]
async fn a_fresh_get_takes_the_slot_of_an_idle_one_of_its_own_address() {
    let budget = Budget::new(1);
    let (hooked, idle, _other) = idle_and_other(&budget);
    let conn = ready(&mut idle.get().fresh()).unwrap();
    assert!(!conn.is_reused());
    assert_eq!((hooked.dials(), budget.stats().evicted), (2, 1));
    conn.put();
    assert_at_rest(&budget, 1);
}

#[tokio::test]
async fn an_address_at_its_own_limit_takes_no_slot_from_another() {
    let (budget, script) = (Budget::new(2), Arc::new(Script::default()));
    let idle = fakes("idle", &budget, &script);
    let full = fakes_with("full", &budget, &script).max_conns(1).build();
    ready(&mut idle.get()).unwrap().put();
    let conn = ready(&mut full.get()).unwrap();
    assert!(poll(&mut full.get()).is_pending());
    assert_eq!((idle.stats().idle, budget.stats().evicted), (1, 0));
    conn.put();
    assert_at_rest(&budget, 2);
}

#[tokio::test]
async fn who_comes_to_its_address_while_it_closes_has_nothing_closed_in_vain() {
    let budget = Budget::new(8);
    let (hooked, _idle, _) = idle_and_other(&budget);
    let other = ConnResource::builder("single", hooked.clone()).budget(&budget).max_conns(1).build();
    let waiting: Vec<_> = (0..7).map(|_| Box::pin(other.get_owned())).collect();
    let waiting = Arc::new(Mutex::new(waiting));
    hooked.when_closed({
        let waiting = Arc::clone(&waiting);
        move || waiting.lock().unwrap().iter_mut().for_each(|get| assert!(poll(get).is_pending()))
    });
    let conn = ready(&mut other.get()).unwrap();
    assert_eq!(budget.stats().evicted, 1);
    conn.put();
    for mut get in std::mem::take(&mut *waiting.lock().unwrap()) {
        ready(&mut get).unwrap().put();
    }
    assert_eq!((hooked.dials(), budget.stats().evicted), (9, 1));
    assert_at_rest(&budget, 8);
}

/// Gets a connection elsewhere whenever it closes one.
#[derive(Clone, Default)]
struct Greedy {
    budget: Option<Budget>,
    depth: Arc<AtomicUsize>,
    deepest: Arc<AtomicUsize>,
}

impl Dial for Greedy {
    type Conn = ();

    async fn dial(&self, _: &Address, _: &DialContext) -> Result<(), DialError> {
        Ok(())
    }

    fn check(&self, (): &mut (), _: &CheckContext) -> Fitness {
        Fitness::Fit
    }

    fn close(&self, (): ()) {
        let Some(budget) = &self.budget else { return };
        self.deepest.fetch_max(self.depth.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
        let elsewhere = ConnResource::builder("elsewhere", Greedy::default()).budget(budget).build();
        drop(poll(&mut elsewhere.get().immediate()));
        drop(poll(&mut elsewhere.get()));
        self.depth.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn closes_that_get_do_not_nest() {
    let budget = Budget::new(100);
    let greedy = Greedy { budget: Some(budget.clone()), ..Greedy::default() };
    let resource = |n: usize| ConnResource::builder(n.to_string(), greedy.clone()).budget(&budget).build();
    let resources: Vec<_> = (0..101).map(resource).collect();
    for resource in &resources {
        ready(&mut resource.get()).unwrap().put();
    }
    assert!(greedy.deepest.load(Ordering::SeqCst) <= 1, "{}", greedy.deepest.load(Ordering::SeqCst));
    assert!(budget.stats().evicted <= 4, "{:?}", budget.stats());
}

#[tokio::test]
async fn a_get_after_schedule_close_is_given_none_whose_dial_began_before() {
    let (budget, script) = (Budget::new(2), Script::manual());
    let resource = fakes_with("a", &budget, &script).max_dialing(1).build();
    let (mut before, mut after) = (resource.get(), resource.get());
    assert!(poll(&mut before).is_pending());
    resource.schedule_close();
    assert!(poll(&mut after).is_pending());
    drop(before); // its dial goes on, since another counts on it
    support::settle().await;
    script.answer(Ok(()));
    support::settle().await;
    assert!(poll(&mut after).is_pending());
    assert_eq!((script.pending(), script.closed()), (1, 1), "it dials anew");
    script.answer(Ok(()));
    let conn = ready(&mut after).unwrap();
    assert_eq!(conn.number, 1);
    conn.put();
    assert_at_rest(&budget, 1);
}
