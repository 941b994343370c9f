//! Connections whose descriptors are in other hands ([`DialContext::hold`]): their slots stay where those are.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fdpool::dial::{CheckContext, SlotShare, from_fn};
use fdpool::{Address, Budget, Conn, ConnResource, Dial, DialContext, DialError, Fitness, GetError, Held};
use support::{assert_at_rest, poll, ready};
use tokio::sync::Notify;

/// The descriptors of its connections stay here, in the hands of somebody else.
#[derive(Clone, Debug, Default)]
struct Parted(Arc<Mutex<Vec<Held<()>>>>);

impl Dial for Parted {
    type Conn = ();

    async fn dial(&self, _: &Address, cx: &DialContext) -> Result<(), DialError> {
        self.0.lock().unwrap().push(cx.hold(()));
        Ok(())
    }

    fn check(&self, (): &mut (), _: &CheckContext) -> Fitness {
        Fitness::Fit
    }
}

#[tokio::test]
async fn a_get_waits_for_a_slot_that_is_elsewhere() {
    let budget = Budget::new(2);
    let parted = Parted::default();
    let resource = |address: &str| ConnResource::builder(address, parted.clone()).budget(&budget).build();
    let (one, two, other) = (resource("one"), resource("two"), resource("other"));
    ready(&mut one.get()).unwrap().put();
    ready(&mut two.get()).unwrap().put();
    let mut get = other.get();
    assert!(poll(&mut get).is_pending());
    let stats = budget.stats();
    assert_eq!((stats.evicted, stats.closing, stats.waiting, stats.idle), (1, 1, 1, 1), "one goes for one");
    parted.0.lock().unwrap().clear();
    let conn: Conn<()> = ready(&mut get).unwrap();
    drop(conn);
    parted.0.lock().unwrap().clear();
    drop(get);
    assert_at_rest(&budget, 0);
}

/// One that rests, whose descriptor nobody closes, and then two of others that are wanted more often.
async fn one_that_is_stuck(
    budget: &Budget,
) -> (Parted, [ConnResource<()>; 3], impl Fn(&str) -> ConnResource<()>) {
    let (parted, budget) = (Parted::default(), budget.clone());
    let stuck = ConnResource::builder("stuck", parted.clone()).budget(&budget).build();
    let owns = move |address: &str| {
        let dialer = from_fn(|_: &Address, _: &DialContext| async { Ok(()) }, |(), _| Fitness::Fit);
        ConnResource::builder(address, dialer).budget(&budget).build()
    };
    stuck.get().await.unwrap().put();
    let [a, b] = ["a", "b"].map(&owns);
    for _ in 0..3 {
        for other in [&a, &b] {
            other.get().await.unwrap().put();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    (parted, [stuck, a, b], owns)
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_descriptor_that_nobody_closes_gets_another_connections_slot() {
    let budget = Budget::new(3);
    let (parted, _resources, _) = one_that_is_stuck(&budget).await;
    let first = budget.acquire().wait_timeout(Duration::from_secs(1)).await.expect("another goes");
    let second = budget.acquire().wait_timeout(Duration::from_secs(1)).await.expect("and the next at once");
    assert_eq!((budget.stats().evicted, budget.stats().closing), (3, 1));
    drop((first, second));
    parted.0.lock().unwrap().clear();
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn a_get_that_waits_for_a_descriptor_that_nobody_closes_gets_another_connections_slot() {
    let budget = Budget::new(3);
    let (parted, _resources, owns) = one_that_is_stuck(&budget).await;
    let _child = budget.child(1); // it does not look for something idle by itself
    let new = owns("c").get().wait_timeout(Duration::from_secs(1)).await;
    drop(new.expect("another goes"));
    assert_eq!((budget.stats().evicted, budget.stats().closing), (2, 1));
    parted.0.lock().unwrap().clear();
    assert_at_rest(&budget, 1);
}

/// A handshake that fails once, after its socket's slot went with the socket.
#[tokio::test(start_paused = true)]
async fn who_waits_is_served_where_a_dial_failed_that_had_parted_with_its_slot() {
    let failures =
        [DialError::from(std::io::ErrorKind::ConnectionReset), std::io::Error::from_raw_os_error(24).into()];
    for failure in failures {
        let (dials, said) = (Arc::new(AtomicUsize::new(0)), failure.clone());
        let dialer = from_fn(
            move |_: &Address, cx: &DialContext| {
                let held = cx.hold(());
                let first = dials.fetch_add(1, Ordering::Relaxed) == 0;
                let said = said.clone();
                async move {
                    drop(held);
                    if first { Err(said) } else { Ok(()) }
                }
            },
            |(), _| Fitness::Fit,
        );
        let budget = Budget::new(2);
        let resource = ConnResource::builder("a", dialer).budget(&budget).build();
        let conn = tokio::time::timeout(Duration::from_secs(1), resource.get().wait_for_ready()).await;
        assert!(conn.expect("in time").is_ok(), "after {failure}");
        assert_at_rest(&budget, 0);
    }
}

#[tokio::test]
async fn what_rests_where_a_descriptor_went_before_its_dial_was_over_is_found_when_its_slot_is_wanted() {
    let budget = Budget::new(1);
    let dials = AtomicUsize::new(0);
    let dialer = from_fn(
        move |_: &Address, cx: &DialContext| {
            if dials.fetch_add(1, Ordering::Relaxed) == 0 {
                drop(cx.hold(())); // the peer has closed it already
            }
            async { Ok(()) }
        },
        |(), _| Fitness::Fit,
    );
    let dialer = Arc::new(dialer);
    let [here, there] = ["here", "there"]
        .map(|address| ConnResource::builder(address, Arc::clone(&dialer)).budget(&budget).build());
    ready(&mut here.get()).unwrap().put();
    ready(&mut here.get()).unwrap().put();
    assert_at_rest(&budget, 1);
    ready(&mut there.get()).unwrap().put();
    assert_eq!((here.stats().idle, there.stats().idle, budget.stats().evicted), (0, 1, 1));
}

#[tokio::test]
async fn fewer_may_rest_than_do_while_the_descriptors_of_some_are_gone() {
    let budget = Budget::new(4);
    let parted = Parted::default();
    let resource = ConnResource::builder("a", parted.clone()).budget(&budget).max_conns(2).build();
    let conns = [ready(&mut resource.get()).unwrap(), ready(&mut resource.get()).unwrap()];
    conns.into_iter().for_each(Conn::put);
    parted.0.lock().unwrap().clear();
    resource.set_max_idle(0);
    assert_at_rest(&budget, 0);
    assert_eq!(resource.stats().idle, 0);
}

/// Something that goes on after its dial, and has a descriptor open.
#[derive(Clone, Default)]
struct Lookups(Arc<Mutex<Vec<SlotShare>>>);

#[tokio::test]
async fn a_dial_that_is_dropped_is_none_any_more_while_its_lookup_goes_on() {
    let lookups = Lookups::default();
    let begun = lookups.clone();
    let dialer = Arc::new(from_fn(
        move |_: &Address, cx: &DialContext| {
            begun.0.lock().unwrap().push(cx.share_slot());
            std::future::pending()
        },
        |(), _| Fitness::Fit,
    ));
    let budget = Budget::builder().limit(4).max_dialing(1).build().unwrap();
    let resource = |name| ConnResource::builder(name, Arc::clone(&dialer)).budget(&budget).build();
    let (one, other) = (resource("one"), resource("other"));
    let (mut first, mut second) = (one.get(), other.get());
    assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
    assert_eq!((budget.stats().dialing, budget.stats().waiting), (1, 1));
    drop(first);
    assert!(poll(&mut second).is_pending());
    let stats = budget.stats();
    assert_eq!((stats.dialing, stats.closing, stats.waiting), (1, 1, 0), "the next one dials");
    drop(second);
    assert_eq!((budget.stats().dialing, budget.stats().closing), (0, 2));
    lookups.0.lock().unwrap().clear();
    assert_at_rest(&budget, 0);
}

/// Dials numbers. The first parts with its slot, and then does what the test says.
struct Parts {
    begun: AtomicUsize,
    kept: Mutex<Option<Held<()>>>,
    goes_on: Notify,
    then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Succeeds,
    Panics,
    Fails,
    /// Finds no descriptor, and is asked again if it may.
    FindsNone,
}

impl Parts {
    fn new(then: Then) -> Arc<Self> {
        let (begun, kept, goes_on) = (AtomicUsize::new(0), Mutex::default(), Notify::new());
        Arc::new(Self { begun, kept, goes_on, then })
    }

    fn let_go(&self) {
        let kept = self.kept.lock().unwrap().take();
        drop(kept.expect("it has parted with its slot"));
    }
}

impl Dial for Parts {
    type Conn = usize;

    async fn dial(&self, _: &Address, cx: &DialContext) -> Result<usize, DialError> {
        let number = self.begun.fetch_add(1, Ordering::SeqCst);
        if number > 0 {
            return Ok(number);
        }
        *self.kept.lock().unwrap() = Some(cx.hold(()));
        self.goes_on.notified().await;
        match self.then {
            Then::Succeeds => Ok(number),
            Then::Panics => panic!("a dialer's"),
            Then::Fails => Err(std::io::ErrorKind::ConnectionReset.into()),
            Then::FindsNone => {
                self.let_go();
                Err(std::io::Error::from_raw_os_error(24).into())
            }
        }
    }

    fn check(&self, _: &mut usize, _: &CheckContext) -> Fitness {
        Fitness::Fit
    }
}

#[tokio::test(start_paused = true)]
async fn who_counted_on_a_dial_that_parted_with_its_slot_and_panicked_is_served() {
    let (budget, dialer) = (Budget::new(4), Parts::new(Then::Panics));
    let resource = ConnResource::builder("a", Arc::clone(&dialer)).budget(&budget).build();
    let mut first = resource.get();
    assert!(poll(&mut first).is_pending());
    let second = tokio::spawn(resource.get_owned());
    support::settle().await;
    assert!(!second.is_finished());
    assert_eq!(*ready(&mut first).unwrap(), 1, "what the second has dialled");
    dialer.goes_on.notify_one();
    let conn = tokio::time::timeout(Duration::from_secs(1), second).await.expect("in time");
    assert_eq!(*conn.unwrap().unwrap(), 2);
    dialer.let_go();
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn who_queues_again_after_a_dial_whose_descriptor_went_is_served() {
    let (budget, dialer) = (Budget::new(1), Parts::new(Then::Succeeds));
    let resource = ConnResource::builder("a", Arc::clone(&dialer)).budget(&budget).build();
    let slot = budget.acquire().await.unwrap();
    let mut other = budget.acquire();
    assert!(poll(&mut other).is_pending());
    let mut queued = resource.get();
    assert!(poll(&mut queued).is_pending());
    let mut dialing = resource.get().with_slot(slot);
    assert!(poll(&mut dialing).is_pending());
    dialer.let_go();
    let other = ready(&mut other).unwrap();
    dialer.goes_on.notify_one();
    assert!(poll(&mut dialing).is_pending());
    assert_eq!(*ready(&mut queued).unwrap(), 0, "the oldest has it");
    drop(other);
    let conn = tokio::time::timeout(Duration::from_secs(1), dialing).await.expect("in time");
    assert_eq!(*conn.unwrap(), 1);
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn who_dials_in_a_budget_that_closes_is_told_so_when_the_dial_fails() {
    for patient in [false, true] {
        let (budget, dialer) = (Budget::new(4), Parts::new(Then::Fails));
        let resource = ConnResource::builder("a", Arc::clone(&dialer)).budget(&budget).build();
        let get = resource.get_owned();
        let get = tokio::spawn(if patient { get.wait_for_ready() } else { get });
        support::settle().await;
        dialer.let_go();
        assert_eq!(budget.close(Duration::from_secs(1)).await.still_open, 0);
        dialer.goes_on.notify_one();
        let told = tokio::time::timeout(Duration::from_secs(1), get).await.expect("in time");
        let told = told.unwrap().unwrap_err();
        assert!(matches!(told, GetError::Closed { .. }) || !patient, "{told}");
        assert_at_rest(&budget, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_finds_no_descriptor_has_a_slot_when_it_tries_again() {
    let (budget, dialer) = (Budget::new(2), Parts::new(Then::FindsNone));
    let resource = |name| ConnResource::builder(name, Arc::clone(&dialer)).budget(&budget).build();
    let (here, other) = (resource("here"), resource("other"));
    let mut get = here.get();
    assert!(poll(&mut get).is_pending());
    other.get().await.unwrap().put(); // to be evicted for it
    dialer.goes_on.notify_one();
    let conn = tokio::time::timeout(Duration::from_secs(5), get).await.expect("in time").unwrap();
    assert_eq!((*conn, budget.stats().in_use, budget.stats().dial_failures), (2, 1, 0));
    conn.put();
    assert_at_rest(&budget, 1);
}

#[tokio::test(start_paused = true)]
async fn no_more_go_for_a_dial_without_descriptor_than_have_one_each() {
    let (budget, parted) = (Budget::new(8), Parted::default());
    let idle: Vec<_> = (0..4)
        .map(|n| ConnResource::builder(format!("idle {n}"), parted.clone()).budget(&budget).build())
        .collect();
    for resource in &idle {
        ready(&mut resource.get()).unwrap().put();
    }
    let open = Arc::clone(&parted.0);
    let dialer = from_fn(
        move |_: &Address, _: &DialContext| {
            let full = open.lock().unwrap().len() >= 4;
            let found =
                if full { Err(DialError::from(std::io::Error::from_raw_os_error(24))) } else { Ok(()) };
            async { found }
        },
        |(), _| Fitness::Fit,
    );
    let wanted = ConnResource::builder("wanted", dialer).budget(&budget).build();
    let mut get = wanted.get();
    assert!(poll(&mut get).is_pending());
    assert_eq!((budget.stats().evicted, budget.stats().idle), (1, 3));
    parted.0.lock().unwrap().pop(); // any of them: one descriptor is as good as another
    let conn = tokio::time::timeout(Duration::from_secs(10), get).await.expect("in time").unwrap();
    conn.close();
    assert!(budget.stats().evicted <= 2, "{:?}", budget.stats());
}
