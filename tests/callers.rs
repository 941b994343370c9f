//! Callers of one address that want different things, or come when others do: what each is given, and what nobody loses
//! for their sake.

#![allow(clippy::disallowed_methods, reason = "the paused clock is asked how long it took")]

mod support;

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fdpool::dial::CheckContext;
use fdpool::{Address, Budget, Conn, ConnResource, Dial, DialContext, DialError, Fitness, GetError};
use support::{Moving, Script, assert_at_rest, dialled, fakes, fakes_with, poll, ready, settle};

#[tokio::test]
async fn a_caller_that_does_not_wait_comes_before_the_stock() {
    for (limit, max_conns) in [(10, 1), (1, 10)] {
        let (budget, script) = (Budget::new(limit), Script::default().into());
        let resource = fakes_with("a", &budget, &script).max_conns(max_conns).min_idle(1).build();
        settle().await;
        resource.get().await.unwrap().close();
        resource.get().immediate().await.unwrap().close();
        resource.get().fresh().immediate().await.unwrap().close();
    }
}

#[tokio::test]
async fn a_caller_takes_the_free_slot_and_the_stock_goes_without() {
    let (budget, script) = (Budget::new(3), Script::default().into());
    let (resource, other) =
        (fakes_with("a", &budget, &script).min_idle(1).build(), fakes("b", &budget, &script));
    settle().await;
    other.get().await.unwrap().put();
    let held = budget.acquire().await.unwrap();
    let first = resource.get().await.unwrap();
    settle().await;
    drop(held);
    let second = resource.get().await.unwrap();
    assert_eq!((budget.stats().evicted, other.stats().idle), (0, 1));
    drop((first, second));
}

#[tokio::test]
async fn a_dial_that_fails_while_others_queue_closes_nothing_elsewhere() {
    let (budget, script) = (Budget::new(3), Script::manual());
    let other = fakes("b", &budget, &Arc::default());
    other.get().await.unwrap().put();
    let resource = fakes("a", &budget, &script);
    let mut gets = [resource.get(), resource.get(), resource.get()];
    assert!(gets.iter_mut().all(|get| poll(get).is_pending()));
    assert_eq!(script.pending(), 2, "and one queues");
    script.answer(Err(ErrorKind::ConnectionRefused.into()));
    assert!(ready(&mut gets[0]).is_err());
    assert_eq!((budget.stats().evicted, other.stats().idle), (0, 1));
    assert!(poll(&mut gets[2]).is_pending());
    assert_eq!(script.pending(), 2, "with the slot that came back");
}

#[tokio::test]
async fn what_is_put_rests_although_one_queues_who_wants_none_of_it() {
    let (budget, script) = (Budget::new(10), Script::manual());
    let resource = fakes("a", &budget, &script);
    let conn = dialled(&resource, &script);
    let mut gets = [(); 3].map(|()| resource.get().fresh());
    assert!(gets.iter_mut().all(|get| poll(get).is_pending()));
    assert_eq!((script.pending(), resource.stats().waiting), (2, 3));
    conn.put();
    assert_eq!((resource.stats().idle, resource.stats().retired), (1, 0));
}

#[tokio::test]
async fn what_is_put_closes_for_one_who_lacks_its_slot_and_wants_none_of_it() {
    let (budget, script) = (Budget::new(10), Script::manual());
    let resource = fakes_with("a", &budget, &script).max_conns(1).build();
    let conn = dialled(&resource, &script);
    let mut get = resource.get().fresh();
    assert!(poll(&mut get).is_pending());
    conn.put();
    assert!(poll(&mut get).is_pending());
    assert_eq!((resource.stats().idle, script.pending()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn who_counts_on_anothers_dial_is_not_failed_by_how_long_it_may_wait() {
    let (budget, script) = (Budget::new(10), Script::manual());
    let resource = fakes_with("a", &budget, &script).wait_timeout(Duration::from_millis(50)).build();
    let (mut older, mut newer) = (resource.get(), resource.get());
    assert!(poll(&mut older).is_pending() && poll(&mut newer).is_pending());
    tokio::time::advance(Duration::from_millis(100)).await;
    script.answer_newest(Ok(()));
    assert!(poll(&mut newer).is_pending(), "its dial serves the older one");
    ready(&mut older).unwrap().close();
    settle().await;
    assert!(poll(&mut newer).is_pending(), "it counts on the other dial");
    script.answer(Ok(()));
    settle().await;
    ready(&mut newer).unwrap().close();
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn who_counts_on_anothers_dial_gives_up_when_a_dial_of_its_own_would() {
    let (budget, script) = (Budget::new(10), Script::manual());
    let resource = fakes_with("a", &budget, &script).wait_timeout(Duration::from_millis(50)).build();
    let (mut older, mut newer) = (resource.get().dial_timeout(Duration::from_secs(60)), resource.get());
    assert!(poll(&mut older).is_pending() && poll(&mut newer).is_pending());
    script.answer_newest(Ok(()));
    assert!(poll(&mut newer).is_pending());
    let conn = ready(&mut older).unwrap();
    let began = tokio::time::Instant::now();
    assert!(matches!(newer.await, Err(GetError::DialTimeout { .. })));
    assert_eq!(began.elapsed().as_secs(), 10);
    conn.close();
}

#[tokio::test(start_paused = true)]
async fn who_tries_again_whatever_happens_counts_on_anothers_dial_for_as_long_as_it_may_wait() {
    let (budget, script) = (Budget::new(10), Script::manual());
    let resource = fakes_with("a", &budget, &script).wait_timeout(Duration::from_secs(1)).build();
    let (mut older, mut newer) = (resource.get(), resource.get().wait_for_ready());
    assert!(poll(&mut older).is_pending() && poll(&mut newer).is_pending());
    tokio::time::advance(Duration::from_secs(2)).await;
    script.answer_newest(Ok(()));
    assert!(poll(&mut newer).is_pending(), "its dial serves the older one");
    ready(&mut older).unwrap().close();
    tokio::time::advance(Duration::from_millis(900)).await;
    assert!(poll(&mut newer).is_pending(), "its own dial was no wait");
    script.answer(Ok(()));
    settle().await;
    ready(&mut newer).unwrap().close();
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn dials_that_ones_own_haste_fails_are_no_wait_for_a_slot() {
    let (budget, script) = (Budget::new(10), Script::manual());
    let resource = fakes_with("a", &budget, &script).wait_timeout(Duration::from_secs(1)).build();
    let get = resource.get_owned().wait_for_ready().dial_timeout(Duration::from_secs(2));
    let get = tokio::spawn(get);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((script.begun(), script.pending()), (2, 1));
    script.answer(Ok(()));
    get.await.unwrap().unwrap().close();
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn who_only_takes_what_rests_leaves_the_stock_to_be_filled() {
    let (budget, script) = (Budget::new(10), Arc::<Script>::default());
    let resource = fakes_with("a", &budget, &script).min_idle(2).build();
    settle().await;
    let conn = resource.try_get().unwrap();
    settle().await;
    assert_eq!((resource.stats().idle, resource.stats().in_use), (2, 1));
    conn.close();
}

/// Connections that have all ended while this says so.
#[derive(Clone, Default)]
struct Mortal(Arc<AtomicBool>);

impl Dial for Mortal {
    type Conn = ();

    async fn dial(&self, _: &Address, _: &DialContext) -> Result<(), DialError> {
        Ok(())
    }

    fn check(&self, (): &mut (), _: &CheckContext) -> Fitness {
        if self.0.load(Ordering::SeqCst) { Fitness::Closed } else { Fitness::Fit }
    }
}

#[tokio::test]
async fn who_finds_the_stock_ended_and_does_not_dial_leaves_it_to_be_filled() {
    let (budget, dialer) = (Budget::new(10), Mortal::default());
    let resource = ConnResource::builder("a", dialer.clone()).budget(&budget).min_idle(2).build();
    settle().await;
    assert_eq!(resource.stats().idle, 2);
    dialer.0.store(true, Ordering::SeqCst);
    assert!(resource.try_get().is_none());
    dialer.0.store(false, Ordering::SeqCst);
    settle().await;
    assert_eq!((resource.stats().idle, resource.stats().stale), (2, 2));
}

#[tokio::test]
async fn an_account_over_its_limit_keeps_no_other_from_its_stock() {
    let (budget, script) = (Budget::new(100), Script::default().into());
    let child = budget.child(5);
    let held = child.acquire().await.unwrap();
    child.set_limit(0);
    let resource = fakes_with("a", &budget, &script).min_idle(3).build();
    resource.get().await.unwrap().put();
    settle().await;
    assert_eq!(resource.stats().idle, 3);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn who_wants_none_of_what_comes_back_has_its_turn_all_the_same() {
    let (budget, script) = (Budget::new(1), Script::default().into());
    let resource = fakes("a", &budget, &script);
    let mut conn = resource.get().await.unwrap();
    let mut fresh = resource.get().fresh();
    assert!(poll(&mut fresh).is_pending());
    for _ in 0..1000 {
        let mut next = resource.get();
        assert!(poll(&mut next).is_pending());
        conn.put();
        if poll(&mut fresh).is_ready() {
            return;
        }
        conn = ready(&mut next).unwrap();
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    panic!("passed over for 10 seconds");
}

#[tokio::test(start_paused = true)]
async fn who_wants_a_fresh_one_of_an_address_that_pauses_is_told_at_once_and_costs_it_nothing() {
    for max_conns in [1, 10] {
        let (budget, script) = (Budget::new(10), Script::manual());
        let resource = fakes_with("a", &budget, &script).max_conns(max_conns.max(2)).build();
        let conn = dialled(&resource, &script);
        for _ in 0..3 {
            let mut get = resource.get().fresh();
            assert!(poll(&mut get).is_pending());
            script.answer(Err(ErrorKind::ConnectionRefused.into()));
            assert!(ready(&mut get).is_err());
        }
        resource.set_max_conns(max_conns);
        assert!(matches!(ready(&mut resource.get().fresh()), Err(GetError::Dial { .. })));
        conn.put();
        assert!(matches!(ready(&mut resource.get().fresh()), Err(GetError::Dial { .. })));
        let mut patient = resource.get().fresh().wait_for_ready();
        assert!(poll(&mut patient).is_pending());
        assert_eq!((resource.stats().idle, resource.stats().retired), (1, 0));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(poll(&mut patient).is_pending());
        assert_eq!(script.pending(), 1, "it probes");
        script.answer(Ok(()));
        ready(&mut patient).unwrap().close();
    }
}

#[tokio::test]
async fn one_who_wants_a_fresh_one_is_not_left_beside_an_idle_one_that_has_its_room() {
    let (budget, script) = (Budget::new(10), Script::manual());
    let resource = fakes_with("a", &budget, &script).max_conns(4).build();
    let conn = dialled(&resource, &script);
    let mut gets = [(); 4].map(|()| resource.get().fresh());
    assert!(gets.iter_mut().all(|get| poll(get).is_pending()));
    conn.put();
    let mut conns = Vec::new();
    for get in &mut gets {
        assert!(poll(get).is_pending());
        assert!(script.pending() > 0, "{}", budget.explain());
        script.answer(Ok(()));
        conns.push(ready(get).unwrap());
        _ = poll(&mut resource.get().immediate().fresh());
    }
    assert_eq!(conns.len(), 4);
}

#[test]
fn who_counts_on_anothers_dial_gives_up_on_a_clock_that_runs() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (budget, script) = (Budget::new(10), Script::manual());
        let resource = fakes("a", &budget, &script);
        let (mut older, mut newer) = (resource.get(), resource.get().dial_timeout(Duration::from_millis(20)));
        assert!(poll(&mut older).is_pending() && poll(&mut newer).is_pending());
        script.answer_newest(Ok(()));
        assert!(poll(&mut newer).is_pending());
        let gives_up = tokio::time::timeout(Duration::from_secs(5), newer);
        assert!(matches!(gives_up.await, Ok(Err(GetError::DialTimeout { .. }))));
        drop(older);
    });
}

#[tokio::test(start_paused = true)]
async fn who_queues_again_waits_no_longer_than_it_may() {
    let (budget, script) = (Budget::new(2), Script::manual());
    let resource = fakes_with("a", &budget, &script).wait_timeout(Duration::from_millis(50)).build();
    let (mut older, mut newer) = (resource.get(), resource.get());
    assert!(poll(&mut older).is_pending() && poll(&mut newer).is_pending());
    script.answer_newest(Ok(()));
    assert!(poll(&mut newer).is_pending());
    let conn = ready(&mut older).unwrap(); // its dial goes on, for the newer one
    let began = tokio::time::Instant::now();
    let answers = async {
        settle().await;
        script.answer(Err(std::io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error()).into()));
    };
    let (error, ()) = tokio::join!(newer, answers);
    assert!(matches!(error, Err(GetError::Exhausted { .. })), "{error:?}");
    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
    conn.close();
}

#[tokio::test]
async fn who_comes_behind_others_is_refused_as_they_would_be() {
    let (budget, script) = (Budget::new(1), Script::default().into());
    let resource = fakes("a", &budget, &script);
    let conn = resource.get().await.unwrap();
    let mut first = resource.get();
    assert!(poll(&mut first).is_pending());
    settle().await; // somebody looks after those who queue
    budget.set_limit(0);
    assert!(matches!(ready(&mut resource.get()), Err(GetError::Exhausted { .. })));
    drop(conn);
}

#[tokio::test(start_paused = true)]
async fn who_waits_beside_a_busy_connection_gets_it_when_it_is_busy_no_more() {
    let (budget, script) = (Budget::new(4), Arc::default());
    let resource = fakes_with("a", &budget, &script).max_conns(1).build();
    let conn = resource.get().await.unwrap();
    let handle = conn.handle();
    *handle.lock().unwrap() = Fitness::Busy;
    conn.put();
    let mut get = resource.get();
    assert!(tokio::time::timeout(Duration::from_secs(2), &mut get).await.is_err());
    *handle.lock().unwrap() = Fitness::Fit;
    let conn = tokio::time::timeout(Duration::from_millis(300), get).await.expect("in time").unwrap();
    assert!(conn.is_reused());
    *handle.lock().unwrap() = Fitness::Busy;
    conn.put();
    let mut get = resource.get();
    assert!(poll(&mut get).is_pending());
    *handle.lock().unwrap() = Fitness::Closed;
    let conn = tokio::time::timeout(Duration::from_millis(300), get).await.expect("in time").unwrap();
    assert!(!conn.is_reused(), "it dials with its room");
    drop(conn);
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn the_last_move_that_a_dialer_tells_of_is_heeded() {
    let watches = AtomicUsize::new(0);
    let watch = move || -> Option<fdpool::dial::Watch> {
        let first = watches.fetch_add(1, Ordering::SeqCst) == 0;
        first.then(|| Box::pin(tokio::time::sleep(Duration::from_secs(1))) as fdpool::dial::Watch)
    };
    let asked = AtomicUsize::new(0);
    let is_current = move || asked.fetch_add(1, Ordering::SeqCst) == 0; // once at the beginning
    let budget = Budget::new(10);
    let resource = ConnResource::builder("a", Moving { watch, is_current }).budget(&budget).build();
    resource.get().await.unwrap().put();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(resource.stats().idle, 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(resource.stats().idle, 0, "it led elsewhere, and the dialer tells no more");
}

#[tokio::test(start_paused = true)]
async fn of_too_many_that_rest_the_oldest_goes_whichever_came_last() {
    let newer = Arc::new(Mutex::new(None::<Conn<()>>));
    let put_while_asked = Arc::clone(&newer);
    let is_current = move || {
        let conn = put_while_asked.lock().unwrap().take();
        conn.into_iter().for_each(Conn::put);
        true
    };
    let moves = Arc::new(AtomicUsize::new(0));
    let watch = {
        let moves = Arc::clone(&moves);
        move || -> Option<fdpool::dial::Watch> {
            match moves.fetch_add(1, Ordering::SeqCst) {
                0 => Some(Box::pin(tokio::time::sleep(Duration::from_secs(1)))),
                _ => Some(Box::pin(std::future::pending())),
            }
        }
    };
    let budget = Budget::new(10);
    let resource =
        ConnResource::builder("a", Moving { watch, is_current }).budget(&budget).max_idle(1).build();
    let older = resource.get().await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let young = resource.get().await.unwrap();
    older.put();
    *newer.lock().unwrap() = Some(young);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(newer.lock().unwrap().is_none(), "it was put while the address was asked about the other");
    assert_eq!(resource.stats().idle, 1);
    assert!(
        ready(&mut resource.get()).unwrap().age() < Duration::from_millis(1200),
        "the younger one is left"
    );
}

/// Dials at once, connections that are fit or not.
#[derive(Clone, Debug, Default)]
struct Ageing {
    is_unfit: Arc<AtomicBool>,
    dials: Arc<Mutex<Vec<tokio::sync::oneshot::Sender<()>>>>,
}

impl Dial for Ageing {
    type Conn = ();

    async fn dial(&self, _: &Address, _: &DialContext) -> Result<(), DialError> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.dials.lock().unwrap().push(answer);
        _ = answered.await;
        Ok(())
    }

    fn check(&self, (): &mut (), _: &CheckContext) -> Fitness {
        if self.is_unfit.load(Ordering::SeqCst) { Fitness::Closed } else { Fitness::Fit }
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_connection_that_lay_for_long_before_it_was_taken_is_looked_at() {
    let (dialer, budget) = (Ageing::default(), Budget::new(10));
    let resource = ConnResource::builder("a", dialer.clone()).budget(&budget).build();
    let (mut older, mut newer) = (resource.get(), resource.get());
    assert!(poll(&mut older).is_pending() && poll(&mut newer).is_pending());
    _ = dialer.dials.lock().unwrap().pop().unwrap().send(());
    assert!(poll(&mut newer).is_pending(), "its dial serves the older one");
    tokio::time::advance(Duration::from_secs(5)).await;
    dialer.is_unfit.store(true, Ordering::SeqCst);
    assert!(poll(&mut older).is_pending(), "it is none any more");
    assert_eq!(resource.stats().stale, 1);
}
