//! Many callers at once, peers that fail, and addresses that move: how many dials that makes, who is told what,
//! and that everybody is served in the end. Time is paused.

#![allow(clippy::disallowed_methods, reason = "the paused clock is asked how long it took")]

mod support;

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use fdpool::dial::{CheckContext, Watch, from_fn};
use fdpool::{
    Address, Budget, ConnResource, ConnResourceBuilder, Dial, DialContext, DialError, Fitness, GetError,
    Phase,
};
use support::{Fake, FakeDialer, Script, assert_at_rest, fakes_with, poll, ready, settle};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const ROUND_TRIP: Duration = Duration::from_millis(150);

/// Dials that take [`ROUND_TRIP`]; how many were under way at once, and whether they fail.
#[derive(Default)]
struct Remote {
    down: AtomicBool,
    dials: AtomicUsize,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

impl Remote {
    fn resource(self: &Arc<Self>, budget: &Budget) -> ConnResourceBuilder<()> {
        let remote = Arc::clone(self);
        let dialer = from_fn(
            move |_: &Address, _: &DialContext| {
                let remote = Arc::clone(&remote);
                async move {
                    remote.dials.fetch_add(1, Ordering::Relaxed);
                    let under_way = remote.under_way.fetch_add(1, Ordering::Relaxed) + 1;
                    remote.most_under_way.fetch_max(under_way, Ordering::Relaxed);
                    sleep(ROUND_TRIP).await;
                    remote.under_way.fetch_sub(1, Ordering::Relaxed);
                    match remote.down.load(Ordering::Relaxed) {
                        true => Err(ErrorKind::ConnectionRefused.into()),
                        false => Ok(()),
                    }
                }
            },
            |(), _| Fitness::Fit,
        );
        ConnResource::builder("remote", dialer).budget(budget)
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }
}

async fn use_for(resource: ConnResource<()>, span: Duration) {
    let conn = resource.get().await.expect("a connection");
    sleep(span).await;
    conn.put();
}

/// HikariCP's "spike demand" test: 50 callers at once, of 2 ms each, where 5 connections rest and a dial takes 150 ms.
#[tokio::test(start_paused = true)]
async fn a_spike_of_short_uses_is_served_by_few_connections() {
    for stocked in [true, false] {
        let (budget, remote) = (Budget::new(100), Arc::new(Remote::default()));
        let resource = remote.resource(&budget).min_idle(5).build();
        if stocked {
            sleep(10 * ROUND_TRIP).await;
            assert_eq!(resource.stats().idle, 5);
            assert_eq!(remote.most_under_way.load(Ordering::Relaxed), 1, "the stock is filled one by one");
        }
        let mut tasks = JoinSet::new();
        for _ in 0..50 {
            tasks.spawn(use_for(resource.clone(), Duration::from_millis(2)));
        }
        assert_eq!(tasks.join_all().await.len(), 50);
        sleep(10 * ROUND_TRIP).await;
        let connections = resource.stats().idle;
        println!("spike, stocked before: {stocked}: ends with {connections} connections");
        assert!(connections <= 8, "stocked: {stocked}: {connections} connections");
        assert_at_rest(&budget, connections);
    }
}

#[tokio::test(start_paused = true)]
async fn where_connections_do_not_come_back_the_dials_double() {
    let (budget, remote) = (Budget::new(100), Arc::new(Remote::default()));
    let resource = remote.resource(&budget).build();
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..62 {
        tasks.spawn(use_for(resource.clone(), Duration::from_secs(5)));
    }
    tasks.join_all().await;
    // 2 + 4 + 8 + 16 + 32
    let whole = 5 * ROUND_TRIP + Duration::from_secs(5);
    assert!(began.elapsed() < whole + ROUND_TRIP / 2, "{:?}", began.elapsed());
    assert_eq!((remote.dials(), remote.most_under_way.load(Ordering::Relaxed)), (62, 32));
}

#[tokio::test]
async fn dials_under_way_at_an_address_are_bounded_as_its_builder_says() {
    let (budget, script) = (Budget::new(100), Script::manual());
    let resource = fakes_with("a", &budget, &script).initial_dialing(5).max_dialing(6).build();
    let mut gets: Vec<_> = (0..20).map(|_| resource.get()).collect();
    for get in &mut gets {
        assert!(poll(get).is_pending());
    }
    let mut conns = Vec::new();
    while conns.len() < 20 {
        let mut waiting = Vec::new();
        for mut get in gets.drain(..) {
            match poll(&mut get) {
                std::task::Poll::Ready(conn) => conns.push(conn.unwrap()),
                std::task::Poll::Pending => waiting.push(get),
            }
        }
        gets = waiting;
        if conns.is_empty() {
            assert_eq!((script.pending(), resource.stats().waiting, budget.stats().waiting), (5, 20, 15));
        }
        assert!(script.pending() <= 6, "{}", script.pending());
        if script.pending() > 0 {
            script.answer(Ok(()));
        }
    }
    assert_eq!(script.begun(), 20);
}

#[tokio::test]
async fn who_does_not_wait_dials_beyond_the_first_few() {
    let (budget, script) = (Budget::new(100), Script::manual());
    let resource = fakes_with("a", &budget, &script).build();
    let mut gets: Vec<_> = (0..10).map(|_| resource.get().immediate()).collect();
    for get in &mut gets {
        assert!(poll(get).is_pending(), "dials");
    }
    assert_eq!(script.pending(), 10);
}

/// How the dial ends that a caller counted on: all slots are somebody else's then.
#[derive(Clone, Copy, Debug)]
enum Ends {
    WithoutDescriptor,
    InPanic,
}

#[tokio::test(start_paused = true)]
async fn who_does_not_wait_is_told_when_the_dial_it_counted_on_comes_to_nothing() {
    for ends in [Ends::WithoutDescriptor, Ends::InPanic] {
        let (dials, end) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (dials, ended) = (Arc::clone(&dials), Arc::clone(&end));
        let dialer = from_fn(
            move |_: &Address, _: &DialContext| {
                let (first, ended) = (dials.fetch_add(1, Ordering::Relaxed) == 0, Arc::clone(&ended));
                async move {
                    if first {
                        ended.notified().await;
                        match ends {
                            Ends::WithoutDescriptor => {
                                return Err(std::io::Error::from_raw_os_error(24).into());
                            }
                            Ends::InPanic => panic!("a dialer's"),
                        }
                    }
                    Ok(())
                }
            },
            |(), _| Fitness::Fit,
        );
        let budget = Budget::new(2);
        let resource = ConnResource::builder("a", dialer).budget(&budget).build();
        let mut oldest = resource.get();
        assert!(poll(&mut oldest).is_pending());
        let hasty = tokio::spawn(resource.get_owned().immediate());
        settle().await;
        let mut slots = [budget.acquire(), budget.acquire()];
        assert!(slots.iter_mut().all(|slot| poll(slot).is_pending()));
        let conn = ready(&mut oldest).unwrap();
        settle().await;
        assert!(!hasty.is_finished(), "{ends:?}: counts on the dial of the one before it");
        let began = Instant::now();
        end.notify_one();
        let told = hasty.await.unwrap().unwrap_err();
        assert!(matches!(told, GetError::Exhausted { .. }), "{ends:?}: {told}");
        assert!(began.elapsed() < Duration::from_secs(1), "{ends:?}: after {:?}", began.elapsed());
        conn.close();
        slots.iter_mut().for_each(|slot| drop(ready(slot).unwrap()));
        assert_at_rest(&budget, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_under_a_thousand_patient_callers() {
    let (budget, remote) = (Budget::new(64), Arc::new(Remote::default()));
    let resource = remote.resource(&budget).wait_timeout(None).build();
    remote.down.store(true, Ordering::Relaxed);
    let mut tasks = JoinSet::new();
    for _ in 0..1000 {
        let resource = resource.clone();
        tasks.spawn(async move {
            let conn = resource.get().wait_for_ready().await.expect("a connection, in the end");
            sleep(Duration::from_millis(2)).await;
            conn.put();
        });
    }
    sleep(Duration::from_secs(10)).await;
    let during = remote.dials();
    println!("dials during an outage of 10 s: {during}");
    // Three failures before the first pause, which another dial may have been begun beside; then one for each pause,
    // of which there are no more than if all of them were as short as they may be: 50 ms, 100, ... 2.5 s.
    assert!((4..=4 + 9).contains(&during), "{during} dials in 10 s");
    assert_eq!(resource.stats().waiting, 1000);
    remote.down.store(false, Ordering::Relaxed);
    let back = Instant::now();
    tasks.join_all().await;
    println!("all served {:?} after it", back.elapsed());
    // The longest pause, the probe, and the thousand uses.
    assert!(back.elapsed() < Duration::from_secs(5 + 2), "{:?}", back.elapsed());
    sleep(10 * ROUND_TRIP).await;
    assert_at_rest(&budget, resource.stats().idle);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_to_who_does_not_wait_for_its_end() {
    let (budget, remote) = (Budget::new(64), Arc::new(Remote::default()));
    let resource = remote.resource(&budget).build();
    remote.down.store(true, Ordering::Relaxed);
    let mut tasks = JoinSet::new();
    for _ in 0..1000 {
        let resource = resource.clone();
        tasks.spawn(async move { resource.get().await });
    }
    let began = Instant::now();
    let errors = tasks.join_all().await;
    assert!(began.elapsed() < 3 * ROUND_TRIP, "{:?}", began.elapsed());
    assert!(errors.iter().all(|result| matches!(result, Err(GetError::Dial { source, .. })
        if source.io_kind() == Some(ErrorKind::ConnectionRefused))));
    assert!(remote.dials() <= 4, "{}", remote.dials());
    // And to who comes later.
    let error = resource.get().await.unwrap_err();
    assert_eq!((error.phase(), error.is_timeout()), (Phase::BackingOff, false));
    let retry_in = error.details().retry_in.expect("it pauses");
    assert!(retry_in > Duration::ZERO && retry_in <= Duration::from_millis(100), "{retry_in:?}");
    assert!(error.to_string().contains("not dialled"), "{error}");
    assert_eq!(std::io::Error::from(error).kind(), ErrorKind::ConnectionRefused);
    assert_at_rest(&budget, 0);
    // Until the pause is over: the first to come probes, the others are told so.
    sleep(retry_in).await;
    remote.down.store(false, Ordering::Relaxed);
    let mut probe = Box::pin(resource.get());
    assert!(poll(&mut probe).is_pending());
    let error = resource.get().await.unwrap_err();
    assert_eq!((error.phase(), error.details().retry_in), (Phase::BackingOff, Some(Duration::ZERO)));
    assert!(error.to_string().contains("while one probes it"), "{error}");
    probe.await.unwrap().put();
    assert!(resource.get().await.is_ok());
    assert!(resource.get().fresh().await.is_ok(), "well again");
}

/// Has the address's dials fail until it pauses.
async fn make_pause(resource: &ConnResource<support::Fake>, script: &Script) {
    for _ in 0..3 {
        let mut get = resource.get();
        assert!(poll(&mut get).is_pending());
        script.answer(Err(ErrorKind::ConnectionRefused.into()));
        assert!(ready(&mut get).is_err());
    }
    assert_eq!(resource.get().await.unwrap_err().phase(), Phase::BackingOff);
}

#[tokio::test(start_paused = true)]
async fn while_an_address_pauses_its_connections_are_used() {
    let (budget, script) = (Budget::new(10), Script::manual());
    let resource = fakes_with("a", &budget, &script).build();
    let mut first = resource.get();
    assert!(poll(&mut first).is_pending());
    script.answer(Ok(()));
    let conn = ready(&mut first).unwrap();
    for _ in 0..3 {
        let mut get = resource.get();
        assert!(poll(&mut get).is_pending());
        script.answer(Err(ErrorKind::ConnectionRefused.into()));
        assert!(ready(&mut get).is_err());
    }
    // In use: it may come back, so there is something to wait for.
    let mut waiting = resource.get();
    assert!(poll(&mut waiting).is_pending());
    assert_eq!(script.pending(), 0, "but no dial");
    conn.put();
    ready(&mut waiting).unwrap().put();
    assert!(ready(&mut resource.get()).is_ok(), "idle");
}

#[tokio::test(start_paused = true)]
async fn the_timeout_of_a_patient_caller_names_the_failure() {
    let (budget, script) = (Budget::new(10), Script::manual());
    let resource =
        fakes_with("a", &budget, &script).backoff(Duration::from_secs(60), Duration::from_secs(60)).build();
    make_pause(&resource, &script).await;
    let error = resource.get().wait_for_ready().wait_timeout(Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(&error, GetError::Dial { .. }), "{error}");
    assert_eq!((error.phase(), error.is_timeout()), (Phase::BackingOff, true));
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_goes_on_for_who_waits() {
    let (budget, script) = (Budget::new(10), Script::manual());
    let resource = fakes_with("a", &budget, &script).build();
    make_pause(&resource, &script).await;
    sleep(Duration::from_secs(1)).await;
    let mut probe = resource.get();
    assert!(poll(&mut probe).is_pending());
    let mut patient = resource.get().wait_for_ready();
    assert!(poll(&mut patient).is_pending());
    assert_eq!(script.pending(), 1, "one probe");
    drop(probe);
    assert!(poll(&mut patient).is_pending());
    assert_eq!(script.pending(), 1, "it goes on for the other");
    script.answer(Ok(()));
    patient.await.unwrap().put();
    assert_at_rest(&budget, 1);
}

#[tokio::test(start_paused = true)]
async fn a_patient_caller_whose_dial_fails_tries_again() {
    let (budget, script) = (Budget::new(10), Script::manual());
    let resource = fakes_with("a", &budget, &script).build();
    let mut get = resource.get().wait_for_ready();
    for _ in 0..2 {
        assert!(poll(&mut get).is_pending());
        script.answer(Err(ErrorKind::ConnectionReset.into()));
    }
    assert!(poll(&mut get).is_pending());
    script.answer(Err(DialError::new("no such tenant").permanent()));
    let error = ready(&mut get).unwrap_err();
    assert!(matches!(&error, GetError::Dial { source, .. } if source.is_permanent()), "{error}");
    // Such a failure makes the address pause at once, and tells those who come.
    assert_eq!(resource.get().await.unwrap_err().phase(), Phase::BackingOff);
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn without_pauses_nobody_waits_for_an_address_to_be_well() {
    let (budget, script) = (Budget::new(10), Script::manual());
    let resource = fakes_with("a", &budget, &script).backoff(Duration::ZERO, Duration::ZERO).build();
    let mut get = resource.get().wait_for_ready();
    assert!(poll(&mut get).is_pending());
    script.answer(Err(ErrorKind::ConnectionRefused.into()));
    assert!(matches!(ready(&mut get), Err(GetError::Dial { .. })));
    assert_eq!(script.begun(), 1);
}

/// Something that ends only if it lets other tasks run.
async fn is_aborted(endless: impl Future<Output = ()> + Send + 'static) {
    let looping = tokio::spawn(endless);
    settle().await;
    looping.abort();
    assert!(looping.await.unwrap_err().is_cancelled());
}

async fn fails_for_ever<C: Send + std::fmt::Debug + 'static>(resource: ConnResource<C>) {
    loop {
        resource.get().await.unwrap_err();
    }
}

#[tokio::test(start_paused = true)]
async fn a_loop_of_gets_that_fail_at_once_lets_other_tasks_run() {
    let (budget, remote) = (Budget::new(10), Arc::new(Remote::default()));
    remote.down.store(true, Ordering::Relaxed);
    is_aborted(fails_for_ever(remote.resource(&budget).build())).await;
    let refused =
        |_: &Address, _: &DialContext| async { Err::<(), _>(DialError::from(ErrorKind::ConnectionRefused)) };
    let dialer = from_fn(refused, |(), _| Fitness::Fit);
    let without_pauses = ConnResource::builder("b", dialer).backoff(Duration::ZERO, Duration::ZERO);
    is_aborted(fails_for_ever(without_pauses.budget(&budget).build())).await;
    is_aborted(async move {
        loop {
            drop(budget.acquire().await.unwrap());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn dials_that_take_long_do_not_hold_a_burst_up() {
    let (budget, script) = (Budget::new(100), Script::manual());
    let resource = fakes_with("a", &budget, &script).build();
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        let resource = resource.clone();
        tasks.spawn(async move { resource.get().await.map(drop) });
    }
    settle().await;
    let mut dials = Vec::new();
    for _ in 0..5 {
        dials.push(script.pending());
        sleep(Duration::from_millis(251)).await;
        settle().await;
    }
    assert_eq!(dials, [2, 4, 8, 8, 8], "a peer that may be silent gets no more");
    let mut rounds = Vec::new();
    while script.pending() > 0 {
        rounds.push(script.pending());
        (0..script.pending()).for_each(|_| script.answer(Ok(())));
        settle().await;
    }
    assert_eq!(rounds, [8, 12], "one that answers does");
    assert!(tasks.join_all().await.iter().all(Result::is_ok));
    settle().await;
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn who_may_not_dial_is_told_so() {
    for of_budget in [true, false] {
        let (script, most) = (Script::manual(), if of_budget { 1 } else { 100 });
        let budget = Budget::builder().limit(10).max_dialing(most).build().unwrap();
        let resource = fakes_with("a", &budget, &script).max_dialing(1).build();
        let mut dialing = resource.get();
        assert!(poll(&mut dialing).is_pending());
        let error = resource.get().immediate().await.unwrap_err();
        assert!(matches!(&error, GetError::Exhausted { .. }), "{error}");
        assert_eq!(error.phase(), Phase::WaitingToDial);
        assert!(error.to_string().contains("max_dialing"), "{error}");
    }
}

#[test]
fn a_runtime_that_ends_while_an_address_pauses_takes_nobody_with_it() {
    let (budget, script) = (Budget::new(10), Script::manual());
    let hour = Duration::from_secs(3600);
    let resource = fakes_with("a", &budget, &script).backoff(hour, hour).wait_timeout(None).build();
    let [first, second] =
        [(); 2].map(|()| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
    let (mut waiting, mut other) = [(); 2].map(|()| resource.get_owned().wait_for_ready()).into();
    first.block_on(async {
        make_pause(&resource, &script).await;
        assert!(poll(&mut waiting).is_pending());
        settle().await;
    });
    second.block_on(async { assert!(poll(&mut other).is_pending()) });
    assert_eq!(script.pending(), 0);
    first.block_on(async { drop(waiting) });
    drop(first);
    second.block_on(async {
        assert!(poll(&mut other).is_pending());
        assert_eq!(script.pending(), 1, "the address is probed");
        script.answer(Ok(()));
        other.await.unwrap().put();
    });
    assert_at_rest(&budget, 1);
}

/// Dials numbers; those below `least` lead where the address no longer does.
struct Moving {
    next: AtomicUsize,
    least: AtomicUsize,
    moved: Notify,
    watches: AtomicUsize,
}

#[derive(Clone)]
struct MovingDialer(Arc<Moving>);

impl Dial for MovingDialer {
    type Conn = usize;

    async fn dial(&self, _: &Address, _: &DialContext) -> Result<usize, DialError> {
        Ok(self.0.next.fetch_add(1, Ordering::Relaxed))
    }

    fn check(&self, _: &mut usize, _: &CheckContext) -> Fitness {
        Fitness::Fit
    }

    fn watch(&self, _: &Address) -> Option<Watch> {
        let moving = Arc::clone(&self.0);
        let watching = Watching::begin(&moving);
        Some(Box::pin(async move {
            watching.0.moved.notified().await;
        }))
    }

    fn is_current(&self, _: &Address, conn: &usize) -> bool {
        *conn >= self.0.least.load(Ordering::Relaxed)
    }
}

/// Counted for as long as it lives.
struct Watching(Arc<Moving>);

impl Watching {
    fn begin(moving: &Arc<Moving>) -> Self {
        moving.watches.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(moving))
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.watches.fetch_sub(1, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn when_an_address_moves_only_connections_that_lead_elsewhere_retire() {
    let moving = Arc::new(Moving {
        next: AtomicUsize::new(0),
        least: AtomicUsize::new(0),
        moved: Notify::new(),
        watches: AtomicUsize::new(0),
    });
    let budget = Budget::new(10);
    let resource = ConnResource::builder("a", MovingDialer(Arc::clone(&moving))).budget(&budget).build();
    let mut conns = Vec::new();
    for _ in 0..6 {
        conns.push(resource.get().await.unwrap());
    }
    settle().await;
    assert_eq!(moving.watches.load(Ordering::Relaxed), 1, "one for all");
    let (newest, oldest) = (conns.pop().unwrap(), conns.remove(0));
    conns.into_iter().for_each(fdpool::Conn::put);
    assert_eq!((*newest, *oldest, resource.stats().idle), (5, 0, 4));
    moving.least.store(3, Ordering::Relaxed);
    moving.moved.notify_one();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(
        (resource.stats().idle, resource.stats().in_use, budget.stats().retired),
        (2, 2, 2),
        "3 and 4 stay"
    );
    assert_eq!(*oldest, 0, "untouched");
    oldest.put();
    newest.put();
    assert_eq!((resource.stats().idle, budget.stats().retired), (3, 3));
    let mut left: Vec<_> = (0..3).map(|_| resource.try_get().unwrap()).collect();
    assert_eq!(left.iter().map(|conn| **conn).collect::<Vec<_>>(), [5, 4, 3]);
    // Once the answer is known, nothing is asked again.
    moving.least.store(9, Ordering::Relaxed);
    left.drain(..).for_each(fdpool::Conn::put);
    assert_eq!(resource.stats().idle, 3);
    assert_eq!(moving.watches.load(Ordering::Relaxed), 1, "watched anew");
    // All of them, where schedule_close comes on top.
    moving.moved.notify_one();
    resource.schedule_close();
    assert_eq!(resource.stats().idle, 0);
    sleep(Duration::from_secs(1)).await;
    // Nothing left to watch for.
    sleep(Duration::from_secs(30)).await;
    assert_eq!(moving.watches.load(Ordering::Relaxed), 0);
    resource.get().await.unwrap().put();
    settle().await;
    assert_eq!(moving.watches.load(Ordering::Relaxed), 1);
    drop(resource);
    sleep(Duration::from_secs(30)).await;
    assert_eq!((moving.watches.load(Ordering::Relaxed), Arc::strong_count(&moving)), (0, 1));
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn a_dialer_that_cannot_tell_any_more_whether_its_address_moves_is_not_asked_again() {
    let asked = Arc::new(AtomicUsize::new(0));
    let asks = Arc::clone(&asked);
    let dialer = support::Moving {
        // At once, and every second time not at all.
        watch: move || -> Option<Watch> {
            let even = asks.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
            even.then(|| Box::pin(std::future::ready(())) as Watch)
        },
        is_current: || true,
    };
    let budget = Budget::new(2);
    let resource = ConnResource::builder("a", dialer).budget(&budget).build();
    resource.get().await.unwrap().put();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    assert_at_rest(&budget, 1);
}

/// An address that pauses, and one who got in line there by its dial's finding no descriptor.
async fn queued_while_it_pauses(
    budget: &Budget,
    script: &Arc<Script>,
) -> (ConnResource<support::Fake>, Caller) {
    let resource = fakes_with("a", budget, script).build();
    let call = |resource: &ConnResource<support::Fake>| tokio::spawn(resource.get_owned());
    let first = call(&resource);
    settle().await;
    let second = call(&resource);
    settle().await;
    script.answer_newest(Err(DialError::from(ErrorKind::ConnectionRefused).permanent()));
    second.await.unwrap().unwrap_err();
    script.answer(Err(std::io::Error::from_raw_os_error(24).into()));
    settle().await;
    assert!(!first.is_finished() && script.pending() == 0);
    (resource, first)
}

type Caller = tokio::task::JoinHandle<Result<fdpool::Conn<support::Fake>, GetError>>;

#[tokio::test(start_paused = true)]
async fn who_gets_in_line_while_the_address_pauses_has_it_probed() {
    let (budget, script) = (Budget::new(4), Script::manual());
    let (_resource, caller) = queued_while_it_pauses(&budget, &script).await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(script.pending(), 1, "a probe");
    script.answer(Ok(()));
    caller.await.unwrap().unwrap().put();
    assert_at_rest(&budget, 1);
}

#[tokio::test(start_paused = true)]
async fn who_comes_after_a_pause_is_not_refused_for_those_who_queue() {
    let (budget, script) = (Budget::new(4), Script::manual());
    // Longer than this thread may be away: the clock of the other runtime is real.
    let pause = Duration::from_secs(60);
    let resource = fakes_with("a", &budget, &script).backoff(pause, pause).build();
    script.manual.store(false, Ordering::Relaxed);
    let down = ready(&mut resource.get()).unwrap();
    script.manual.store(true, Ordering::Relaxed);
    let mut failing = resource.get();
    assert!(poll(&mut failing).is_pending());
    script.answer(Err(DialError::from(ErrorKind::ConnectionRefused).permanent()));
    ready(&mut failing).unwrap_err();
    // Queues by another runtime's hand, which is not driven: nobody probes for it.
    let elsewhere = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let queued = elsewhere.enter();
    let mut patient = resource.get().wait_for_ready();
    assert!(poll(&mut patient).is_pending());
    drop(queued);
    down.close();
    sleep(2 * pause).await;
    let mut next = resource.get();
    assert!(poll(&mut next).is_pending(), "in line behind it");
    drop(patient);
    settle().await;
    assert!(poll(&mut next).is_pending());
    script.answer(Ok(()));
    ready(&mut next).unwrap().put();
    assert_at_rest(&budget, 1);
    drop(next);
    elsewhere.shutdown_background();
}

#[tokio::test]
async fn a_dial_for_the_stock_that_is_never_begun_is_given_up() {
    let (budget, script) = (Budget::new(4), Script::manual());
    drop(fakes_with("a", &budget, &script).min_idle(1).build());
    settle().await;
    let stats = budget.stats();
    assert_eq!((stats.dials, stats.dial_failures, script.begun()), (1, 1, 0));
}

/// Its peer ends every connection as soon as it rests.
struct Fleeting(Arc<Script>);

impl Dial for Fleeting {
    type Conn = Fake;

    async fn dial(&self, address: &Address, cx: &DialContext) -> Result<Fake, DialError> {
        FakeDialer(Arc::clone(&self.0)).dial(address, cx).await
    }

    fn check(&self, _: &mut Fake, _: &CheckContext) -> Fitness {
        Fitness::Fit
    }

    fn poll_idle(&self, _: &mut Fake, _: &mut Context<'_>) -> Poll<Fitness> {
        Poll::Ready(Fitness::Closed)
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_ends_every_connection_of_the_stock_is_dialled_with_pauses() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let resource =
        ConnResource::builder("a", Fleeting(Arc::clone(&script))).budget(&budget).min_idle(1).build();
    sleep(Duration::from_secs(60)).await;
    // Seven pauses of 50 ms or more that double, then some of 2.5 s or more.
    let dials = script.begun();
    assert!((10..=3 + 7 + 24).contains(&dials), "{dials}");
    assert_eq!(budget.stats().stale as usize, dials - resource.stats().idle);
    resource.get().await.unwrap().put();
    assert!(script.begun() <= dials + 1, "a caller dials at once, if nothing rests");
}

#[tokio::test(start_paused = true)]
async fn a_stock_is_filled_once_its_peer_is_back_and_does_not_bar_callers_before() {
    let (budget, remote) = (Budget::new(10), Arc::new(Remote::default()));
    remote.down.store(true, Ordering::Relaxed);
    let resource = remote.resource(&budget).min_idle(2).build();
    sleep(Duration::from_secs(60)).await;
    let dials = remote.dials();
    assert!((10..=7 + 24).contains(&dials), "{dials}");
    remote.down.store(false, Ordering::Relaxed);
    let conn = resource.get().await.expect("the caller's own dial");
    sleep(Duration::from_secs(6)).await;
    assert_eq!((resource.stats().idle, resource.stats().in_use), (2, 1));
    conn.put();
    assert_at_rest(&budget, 3);
}

#[tokio::test(start_paused = true)]
async fn a_stock_is_filled_after_callers_had_the_address_pause() {
    let (budget, remote) = (Budget::new(10), Arc::new(Remote::default()));
    remote.down.store(true, Ordering::Relaxed);
    let resource = remote.resource(&budget).min_idle(1).build();
    for _ in 0..5 {
        resource.get().await.expect_err("it is down");
    }
    remote.down.store(false, Ordering::Relaxed);
    sleep(Duration::from_secs(6)).await;
    assert_eq!(resource.stats().idle, 1);
    resource.get().await.expect("it is well").close();
    sleep(Duration::from_secs(1)).await;
    assert_at_rest(&budget, 1);
}

#[tokio::test(start_paused = true)]
async fn a_dial_for_the_stock_that_panics_has_failed_and_no_more() {
    let (budget, dials) = (Budget::new(10), Arc::new(AtomicUsize::new(0)));
    let begun = Arc::clone(&dials);
    let dialer = from_fn(
        move |_: &Address, _: &DialContext| {
            let first = begun.fetch_add(1, Ordering::Relaxed) == 0;
            async move { if first { panic!("a dialer's panic") } else { Ok(()) } }
        },
        |(), _| Fitness::Fit,
    );
    let resource = ConnResource::builder("a", dialer).budget(&budget).min_idle(2).build();
    sleep(Duration::from_secs(6)).await;
    assert_eq!((resource.stats().idle, dials.load(Ordering::Relaxed)), (2, 3));
    assert_at_rest(&budget, 2);
}

#[tokio::test(start_paused = true)]
async fn without_pauses_a_dial_for_the_stock_that_fails_is_not_repeated() {
    let (budget, remote) = (Budget::new(10), Arc::new(Remote::default()));
    remote.down.store(true, Ordering::Relaxed);
    let resource = remote.resource(&budget).backoff(Duration::ZERO, Duration::ZERO).min_idle(1).build();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(remote.dials(), 1);
    drop(resource);
}

/// A dial for the stock that is faster than a caller's own serves that one, and the next adds to the stock.
#[tokio::test(start_paused = true)]
async fn a_stock_is_filled_whoever_is_served_meanwhile() {
    let (budget, dials) = (Budget::new(50), Arc::new(AtomicUsize::new(0)));
    let dialer = from_fn(
        move |_: &Address, _: &DialContext| {
            let nth = dials.fetch_add(1, Ordering::Relaxed);
            async move {
                sleep(ROUND_TRIP / (1 + nth as u32 % 3)).await;
                Ok(())
            }
        },
        |(), _| Fitness::Fit,
    );
    let resource = ConnResource::builder("a", dialer).budget(&budget).min_idle(5).build();
    sleep(10 * ROUND_TRIP).await;
    for round in 0..10 {
        resource.schedule_close();
        resource.get().await.unwrap().put();
        sleep(10 * ROUND_TRIP).await;
        assert!(resource.stats().idle >= 5, "{round}: {:?}", resource.stats());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stock_is_dialled_anew_when_all_is_closed() {
    let (budget, script) = (Budget::new(50), Arc::default());
    let resource = fakes_with("a", &budget, &script).min_idle(3).build();
    settle().await;
    resource.schedule_close();
    settle().await;
    assert_eq!((resource.stats().idle, script.begun()), (3, 6));
}

/// Whose own haste fails its dials tries again after pauses, which are no pauses of the address.
#[tokio::test(start_paused = true)]
async fn who_waits_until_its_address_is_ready_and_is_hasty_pauses_by_itself() {
    for haste in [Duration::ZERO, Duration::from_millis(20)] {
        let (budget, remote) = (Budget::new(10), Arc::new(Remote::default()));
        let resource = remote.resource(&budget).build();
        let began = Instant::now();
        let hasty =
            resource.get().wait_for_ready().dial_timeout(haste).timeout(Duration::from_secs(20)).await;
        let error = hasty.unwrap_err();
        assert!(matches!(error, GetError::DialTimeout { .. }), "{error}");
        assert!((20..21).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        let dials = resource.stats().dials;
        assert!((7..=7 + 8).contains(&dials), "{dials}");
        let hasty = tokio::spawn(resource.get_owned().wait_for_ready().dial_timeout(haste));
        sleep(Duration::from_secs(1)).await;
        assert!(!hasty.is_finished());
        resource.get().await.expect("another does not pause").put();
        let began = Instant::now();
        hasty.await.unwrap().expect("the dial of that one serves it").put();
        assert!(began.elapsed() <= Duration::from_secs(5));
        assert_at_rest(&budget, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stock_is_filled_when_others_have_left_slots_for_it() {
    let (budget, script) = (Budget::new(4), Arc::default());
    let held = budget.acquire_many(3).await.unwrap();
    let resource = fakes_with("a", &budget, &script).min_idle(3).build();
    settle().await;
    assert_eq!(resource.stats().idle, 1);
    let last = budget.acquire().await.unwrap();
    assert_eq!((resource.stats().idle, resource.stats().evicted), (0, 1));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(script.begun(), 1, "nothing is free");
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert!(tasks <= 1, "{tasks} look for a slot");
    drop((held, last));
    sleep(Duration::from_secs(6)).await;
    assert_eq!(resource.stats().idle, 3);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(script.begun(), 4);
    assert_at_rest(&budget, 3);
}

/// Dials of 10 ms.
fn quick(budget: &Budget) -> ConnResourceBuilder<()> {
    let dial = |_: &Address, _: &DialContext| async {
        sleep(Duration::from_millis(10)).await;
        Ok(())
    };
    ConnResource::builder("quick", from_fn(dial, |(), _| Fitness::Fit)).budget(budget)
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_adds_to_the_stock_is_no_failure_whoever_takes_from_it_meanwhile() {
    let budget = Budget::new(50);
    let resource = quick(&budget).min_idle(2).build();
    sleep(Duration::from_secs(1)).await;
    for round in 0..10 {
        let first = resource.get().await.unwrap();
        sleep(Duration::from_millis(5)).await;
        let second = resource.get().await.unwrap();
        sleep(Duration::from_millis(30)).await;
        assert_eq!(resource.stats().idle, 2, "{round}");
        first.close();
        second.close();
    }
}

#[tokio::test(start_paused = true)]
async fn failures_of_the_stock_are_forgotten_with_a_success() {
    let (budget, remote) = (Budget::new(10), Arc::new(Remote::default()));
    let resource = remote.resource(&budget).min_idle(1).build();
    sleep(ROUND_TRIP * 2).await;
    for round in 0..10 {
        remote.down.store(true, Ordering::Relaxed);
        resource.schedule_close();
        sleep(ROUND_TRIP + Duration::from_millis(1)).await;
        remote.down.store(false, Ordering::Relaxed);
        sleep(ROUND_TRIP + Duration::from_millis(120)).await;
        assert_eq!(resource.stats().idle, 1, "{round}: after one pause, which is a first one");
    }
}

#[tokio::test(start_paused = true)]
async fn who_pauses_for_its_own_haste_is_told_of_a_close() {
    let budget = Budget::new(10);
    let remote = Arc::new(Remote::default());
    let resource = remote.resource(&budget).build();
    let hasty = resource.get_owned().wait_for_ready().dial_timeout(Duration::from_millis(1));
    let hasty = tokio::spawn(hasty);
    sleep(Duration::from_secs(20)).await;
    assert_eq!(resource.stats().waiting, 1);
    let began = Instant::now();
    assert!(budget.close(Duration::from_secs(30)).await.is_clean());
    assert!(matches!(hasty.await.unwrap(), Err(GetError::Closed { .. })));
    assert!(began.elapsed() < Duration::from_millis(300), "{:?}", began.elapsed());
}

/// A pause that no timer can tell is one all the same.
#[tokio::test(start_paused = true)]
async fn who_is_hasty_where_pauses_are_for_ever_does_not_dial_again() {
    let (budget, remote) = (Budget::new(10), Arc::new(Remote::default()));
    let resource = remote.resource(&budget).backoff(Duration::MAX, Duration::MAX).build();
    let hasty =
        resource.get().wait_for_ready().dial_timeout(Duration::ZERO).timeout(Duration::from_secs(20)).await;
    assert!(matches!(hasty, Err(GetError::DialTimeout { .. })));
    assert_eq!(resource.stats().dials, 1);
}
