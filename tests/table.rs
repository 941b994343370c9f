//! The rows of the design's behaviour table, in its order. Each on a scripted dialer, so that every state is
//! reached exactly; what has to do with sockets is in `descriptors.rs` and `fitness.rs`.

mod support;

use std::io;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use fdpool::dial::from_fn;
use fdpool::{Address, Budget, ConnResource, DialContext, DialError, Fitness, GetError};
use support::{Script, assert_at_rest, dialled, fakes, fakes_with, poll, ready, settle};

#[tokio::test]
async fn get_with_an_idle_fit_one_takes_that_one() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let resource = fakes("a", &budget, &script);
    let conn = resource.get().await.unwrap();
    let number = conn.number;
    assert!(!conn.is_reused());
    conn.put();
    let conn = ready(&mut resource.get()).unwrap();
    assert_eq!((conn.number, conn.is_reused(), script.begun()), (number, true, 1));
    assert_eq!((budget.stats().in_use, budget.stats().reused), (1, 1));
}

#[tokio::test]
async fn get_takes_the_newest_idle_one() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let resource = fakes("a", &budget, &script);
    let (first, second) = (resource.get().await.unwrap(), resource.get().await.unwrap());
    let newest = first.number;
    second.put();
    first.put();
    assert_eq!(resource.get().await.unwrap().number, newest);
}

#[tokio::test]
async fn get_closes_unfit_idle_ones_and_takes_the_next() {
    for (fitness, count) in
        [(Fitness::Closed, (1, 0, 0)), (Fitness::Dirty, (0, 1, 0)), (Fitness::Broken, (0, 0, 1))]
    {
        let (budget, script) = (Budget::new(10), Arc::default());
        let resource = fakes("a", &budget, &script);
        let (fit, unfit) = (resource.get().await.unwrap(), resource.get().await.unwrap());
        let expected = fit.number;
        *unfit.handle().lock().unwrap() = fitness;
        fit.put();
        unfit.put();
        assert_eq!(resource.get().await.unwrap().number, expected, "{fitness:?}");
        let stats = budget.stats();
        assert_eq!((stats.stale, stats.dirty, stats.broken), count, "{fitness:?}");
        assert_eq!(stats.reused, 1);
        assert_eq!(resource.stats().stale, stats.stale);
    }
}

#[tokio::test]
async fn get_skips_busy_ones_and_keeps_them() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let resource = fakes("a", &budget, &script);
    let (fit, busy) = (resource.get().await.unwrap(), resource.get().await.unwrap());
    let handle = busy.handle();
    *handle.lock().unwrap() = Fitness::Busy;
    let (fit_number, busy_number) = (fit.number, busy.number);
    fit.put();
    busy.put();
    let conn = resource.get().await.unwrap();
    assert_eq!(conn.number, fit_number);
    // Only the busy one is left: dials, and keeps it.
    let other = resource.get().await.unwrap();
    assert_eq!(script.begun(), 3);
    assert_eq!(budget.stats().idle, 1);
    *handle.lock().unwrap() = Fitness::Fit;
    assert_eq!(resource.get().await.unwrap().number, busy_number);
    drop((conn, other));
}

#[tokio::test(start_paused = true)]
async fn get_and_put_one_that_is_busy_is_kept_beside_who_waits() {
    let (budget, script) = (Budget::new(4), Script::default().into());
    let resource = fakes_with("a", &budget, &script).max_conns(1).build();
    let conn = resource.get().await.unwrap();
    let handle = conn.handle();
    conn.put();
    *handle.lock().unwrap() = Fitness::Busy;
    let (mut waiting, mut next) = (resource.get(), resource.get());
    assert!(poll(&mut waiting).is_pending() && poll(&mut next).is_pending());
    tokio::time::sleep(Duration::from_secs(1)).await; // the keeper looks at it
    assert!(poll(&mut waiting).is_pending() && poll(&mut next).is_pending());
    assert_eq!((resource.stats().idle, script.begun(), script.closed()), (1, 1, 0));
    *handle.lock().unwrap() = Fitness::Fit;
    let conn = resource.get().await.unwrap();
    conn.put();
    let conn = ready(&mut waiting).unwrap();
    conn.put();
    ready(&mut next).unwrap().put();
    assert_eq!(script.begun(), 1);
    assert_at_rest(&budget, 1);
}

#[tokio::test]
async fn get_of_who_wants_none_that_has_served_is_not_barred_by_a_busy_one() {
    type Meanwhile = Mutex<Option<Box<dyn FnOnce() + Send>>>;
    let meanwhile: Arc<Meanwhile> = Arc::default();
    let checked = Arc::clone(&meanwhile);
    let dialer = from_fn(
        |_: &Address, _: &DialContext| async { Ok(()) },
        move |(), _| {
            let meanwhile = checked.lock().unwrap().take();
            meanwhile.into_iter().for_each(|meanwhile| meanwhile());
            Fitness::Busy
        },
    );
    let budget = Budget::new(4);
    let resource = ConnResource::builder("a", dialer).budget(&budget).max_conns(1).build();
    resource.get().await.unwrap().put();
    let mut fresh = Box::pin(resource.get_owned().fresh());
    let (begun, begins) = std::sync::mpsc::channel();
    *meanwhile.lock().unwrap() = Some(Box::new(move || {
        assert!(poll(&mut fresh).is_pending());
        begun.send(fresh).unwrap();
    }));
    assert!(resource.try_get().is_none(), "it is busy");
    let mut fresh = begins.recv().unwrap();
    let conn = ready(&mut fresh).unwrap();
    assert!(!conn.is_reused());
    drop((fresh, conn));
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn get_with_none_idle_and_a_free_slot_dials() {
    let (budget, script) = (Budget::new(10), Script::manual());
    let resource = fakes("a", &budget, &script);
    let mut get = resource.get();
    assert!(poll(&mut get).is_pending());
    assert_eq!((script.pending(), budget.stats().dialing), (1, 1));
    script.answer(Ok(()));
    let conn = ready(&mut get).unwrap();
    assert_eq!((budget.stats().dialing, budget.stats().in_use, budget.stats().dials), (0, 1, 1));
    drop(conn);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn get_with_others_idle_closes_one_of_them() {
    let (budget, script) = (Budget::new(2), Arc::default());
    let (a, b, c) =
        (fakes("a", &budget, &script), fakes("b", &budget, &script), fakes("c", &budget, &script));
    a.get().await.unwrap().put();
    b.get().await.unwrap().put();
    let conn = c.get().await.unwrap();
    assert_eq!((budget.stats().evicted, budget.stats().idle, script.open()), (1, 1, 2));
    assert_eq!(a.stats().evicted + b.stats().evicted, 1);
    drop(conn);
    assert_at_rest(&budget, 1);
}

#[tokio::test]
async fn get_with_none_idle_anywhere_waits_first_come_first_served() {
    let (budget, script) = (Budget::new(1), Arc::default());
    let resource = fakes("a", &budget, &script);
    let held = resource.get().await.unwrap();
    let (mut first, mut second) = (resource.get(), resource.get());
    assert!(poll(&mut first).is_pending());
    assert!(poll(&mut second).is_pending());
    assert_eq!((budget.stats().waiting, resource.stats().waiting), (2, 2));
    held.put();
    assert!(poll(&mut second).is_pending());
    ready(&mut first).unwrap().put();
    ready(&mut second).unwrap().put();
    assert_eq!((script.begun(), budget.stats().waits), (1, 2));
    assert_at_rest(&budget, 1);
}

#[tokio::test]
async fn get_waits_in_turn_between_addresses() {
    let (budget, script) = (Budget::new(1), Arc::default());
    let (a, b) = (fakes("a", &budget, &script), fakes("b", &budget, &script));
    let held = a.get().await.unwrap();
    let mut gets: Vec<_> = (0..3).map(|_| a.get()).collect();
    gets.extend((0..2).map(|_| b.get()));
    for get in &mut gets {
        assert!(poll(get).is_pending());
    }
    held.put();
    let mut order = Vec::new();
    while order.len() < gets.len() {
        let served = (0..gets.len()).find_map(|at| match poll(&mut gets[at]) {
            Poll::Ready(conn) if !order.contains(&at) => Some((at, conn.unwrap())),
            _ => None,
        });
        let (at, conn) = served.expect("somebody is served");
        order.push(at);
        gets[at] = a.get(); // polled only if it is found again, which ends the test
        conn.put();
        if order.len() == 5 {
            break;
        }
    }
    assert_eq!(order, [0, 3, 1, 4, 2]);
}

#[tokio::test]
async fn get_takes_a_connection_that_comes_back_while_its_dial_runs_and_the_dial_goes_on() {
    let (budget, script) = (Budget::new(2), Script::manual());
    let resource = fakes("a", &budget, &script);
    let conn = dialled(&resource, &script);
    let mut second = resource.get();
    assert!(poll(&mut second).is_pending());
    assert_eq!(script.pending(), 1);
    conn.put();
    let conn = ready(&mut second).unwrap();
    assert!(conn.is_reused());
    settle().await;
    assert_eq!((script.pending(), budget.stats().dialing), (1, 1), "the dial goes on");
    script.answer(Ok(()));
    settle().await;
    assert_eq!((budget.stats().idle, budget.stats().in_use), (1, 1), "and its connection is kept");
    conn.put();
    assert_at_rest(&budget, 2);
}

#[tokio::test]
async fn one_who_dials_alone_takes_what_another_dial_makes_first() {
    let (budget, script) = (Budget::new(3), Script::manual());
    let resource = fakes_with("a", &budget, &script).min_idle(1).build();
    settle().await; // the dial for the stock begins
    let mut get = resource.get();
    assert!(poll(&mut get).is_pending());
    assert_eq!(script.pending(), 2);
    script.answer(Ok(()));
    settle().await;
    let conn = ready(&mut get).unwrap();
    settle().await;
    assert_eq!((script.pending(), budget.stats().dialing), (1, 1), "its own dial goes on");
    script.answer(Ok(()));
    settle().await;
    assert_eq!(budget.stats().idle, 1);
    conn.put();
    assert_at_rest(&budget, 2);
}

#[tokio::test]
async fn get_at_max_conns_waits_for_the_address() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let resource = fakes_with("a", &budget, &script).max_conns(1).build();
    let held = resource.get().await.unwrap();
    let mut waiting = resource.get();
    assert!(poll(&mut waiting).is_pending());
    let error = resource.get().immediate().await.unwrap_err();
    assert!(matches!(error, GetError::AddressBusy { .. }), "{error}");
    held.put();
    let conn = ready(&mut waiting).unwrap();
    assert!(conn.is_reused());
    assert_eq!(script.begun(), 1);
    // Closed instead of put: its place is dialled again.
    let mut waiting = resource.get();
    assert!(poll(&mut waiting).is_pending());
    conn.close();
    assert!(!ready(&mut waiting).unwrap().is_reused());
    assert_eq!((script.begun(), script.open()), (2, 0));
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn get_at_max_conns_ends_as_address_busy_in_time() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let resource = fakes_with("a", &budget, &script).max_conns(1).build();
    let _held = resource.get().await.unwrap();
    let error = resource.get().wait_timeout(Duration::from_secs(3)).await.unwrap_err();
    assert!(matches!(error, GetError::AddressBusy { .. }) && error.is_timeout(), "{error}");
    assert_eq!(error.details().elapsed.as_secs(), 3);
}

#[tokio::test]
async fn get_dropped_while_waiting_passes_its_place_on() {
    let (budget, script) = (Budget::new(1), Arc::default());
    let resource = fakes("a", &budget, &script);
    let held = resource.get().await.unwrap();
    let (mut first, mut second) = (resource.get(), resource.get());
    assert!(poll(&mut first).is_pending());
    assert!(poll(&mut second).is_pending());
    held.put(); // granted to the first, which never takes it
    drop(first);
    ready(&mut second).unwrap().put();
    assert_at_rest(&budget, 1);
}

#[tokio::test]
async fn a_dial_is_dropped_with_its_get_unless_somebody_else_waits() {
    let (budget, script) = (Budget::new(1), Script::manual());
    let resource = fakes("a", &budget, &script);
    let mut alone = resource.get();
    assert!(poll(&mut alone).is_pending());
    drop(alone);
    assert_eq!((script.pending(), script.abandoned()), (0, 1));
    assert_at_rest(&budget, 0);

    let (mut initiator, mut other) = (resource.get(), resource.get());
    assert!(poll(&mut initiator).is_pending());
    assert!(poll(&mut other).is_pending());
    drop(initiator);
    settle().await;
    assert_eq!((script.pending(), script.abandoned()), (1, 1), "kept for the other");
    script.answer(Ok(()));
    settle().await;
    ready(&mut other).unwrap().put();
    assert_eq!(script.begun(), 2);
    assert_at_rest(&budget, 1);
}

#[tokio::test]
async fn a_failed_dial_fails_its_initiator_and_serves_the_next() {
    let (budget, script) = (Budget::new(1), Script::manual());
    let (a, b) = (fakes("a", &budget, &script), fakes("b", &budget, &script));
    let (mut first, mut second) = (a.get(), b.get());
    assert!(poll(&mut first).is_pending());
    assert!(poll(&mut second).is_pending());
    script.answer(Err(io::ErrorKind::ConnectionRefused.into()));
    let error = ready(&mut first).unwrap_err();
    assert!(
        matches!(&error, GetError::Dial { source, .. } if source.io_kind() == Some(io::ErrorKind::ConnectionRefused))
    );
    assert_eq!(error.address().as_str(), "a");
    assert!(poll(&mut second).is_pending());
    assert_eq!(script.pending(), 1, "the slot went to the second, which dials");
    script.answer(Ok(()));
    drop(ready(&mut second).unwrap());
    assert_eq!(budget.stats().dial_failures, 1);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn a_failed_dial_without_initiator_fails_the_oldest_waiter() {
    let (budget, script) = (Budget::new(1), Script::manual());
    let resource = fakes("a", &budget, &script);
    let (mut initiator, mut oldest, mut next) = (resource.get(), resource.get(), resource.get());
    for get in [&mut initiator, &mut oldest, &mut next] {
        assert!(poll(get).is_pending());
    }
    drop(initiator);
    script.answer(Err(io::ErrorKind::ConnectionRefused.into()));
    settle().await;
    assert!(matches!(ready(&mut oldest), Err(GetError::Dial { .. })));
    assert!(poll(&mut next).is_pending());
    assert_eq!(script.pending(), 1, "the next one dials");
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_had_less_time_than_others_have_fails_nobody_but_its_initiator() {
    let (budget, script) = (Budget::new(2), Script::manual());
    let resource = fakes("a", &budget, &script);
    let mut hasty = resource.get_owned().dial_timeout(Duration::from_millis(200));
    let mut other = resource.get_owned();
    assert!(poll(&mut hasty).is_pending() && poll(&mut other).is_pending());
    script.answer_newest(Ok(()));
    assert!(poll(&mut other).is_pending(), "its dial serves who came before");
    let hasty = tokio::spawn(async move { hasty.await.unwrap().close() });
    hasty.await.unwrap();
    let other = tokio::spawn(async move { other.await.map(fdpool::Conn::close) });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((script.begun(), script.abandoned(), budget.stats().dial_failures), (3, 1, 1));
    script.answer(Ok(()));
    other.await.unwrap().expect("it dials again");
    assert_at_rest(&budget, 0);
    for _ in 0..4 {
        let hasty = resource.get().dial_timeout(Duration::from_millis(20)).await;
        assert!(matches!(hasty, Err(GetError::DialTimeout { .. })));
    }
    let mut other = resource.get();
    assert!(poll(&mut other).is_pending(), "the address does not pause for that");
}

#[tokio::test]
async fn put_with_nobody_waiting_rests() {
    let (budget, script) = (Budget::new(1), Arc::default());
    let resource = fakes("a", &budget, &script);
    resource.get().await.unwrap().put();
    assert_at_rest(&budget, 1);
    assert_eq!(script.open(), 1);
}

#[tokio::test]
async fn put_of_one_no_longer_fit_leaves_its_slot_to_the_waiter() {
    let (budget, script) = (Budget::new(1), Arc::default());
    let (a, b) = (fakes("a", &budget, &script), fakes("b", &budget, &script));
    let conn = a.get().await.unwrap();
    let (mut waiting, mut elsewhere) = (a.get(), b.get());
    assert!(poll(&mut waiting).is_pending());
    assert!(poll(&mut elsewhere).is_pending());
    *conn.handle().lock().unwrap() = Fitness::Closed;
    conn.put();
    let conn = ready(&mut waiting).unwrap();
    assert!(!conn.is_reused());
    assert_eq!((script.begun(), script.open(), budget.stats().stale), (2, 1, 1));
    assert!(poll(&mut elsewhere).is_pending(), "the slot stayed with the first");
    drop(conn);
    drop(ready(&mut elsewhere).unwrap());
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn put_of_one_no_longer_fit_costs_the_waiter_no_place() {
    let (budget, script) = (Budget::new(1), Script::manual());
    let resource = fakes("a", &budget, &script);
    let conn = dialled(&resource, &script);
    let (mut oldest, mut others) = (resource.get(), [resource.get(), resource.get()]);
    assert!(poll(&mut oldest).is_pending());
    assert!(others.iter_mut().all(|get| poll(get).is_pending()));
    *conn.handle().lock().unwrap() = Fitness::Closed;
    conn.put();
    assert!(poll(&mut oldest).is_pending());
    assert_eq!((script.begun(), script.closed()), (2, 1), "it dials with its slot");
    script.answer(Ok(()));
    assert!(ready(&mut oldest).unwrap().number > 0);
    assert!(others.iter_mut().all(|get| poll(get).is_pending()));
}

/// It was handed over while the waiter's own dial was under way.
#[tokio::test]
async fn put_of_one_no_longer_fit_leaves_the_waiter_to_its_own_dial() {
    let (budget, script) = (Budget::new(3), Script::manual());
    let resource = fakes("a", &budget, &script);
    let conn = dialled(&resource, &script);
    let mut dials = resource.get();
    assert!(poll(&mut dials).is_pending());
    *conn.handle().lock().unwrap() = Fitness::Broken;
    conn.put();
    assert!(poll(&mut dials).is_pending());
    assert_eq!((script.begun(), script.pending(), script.closed()), (2, 1, 1), "and no other is begun");
    assert_eq!((budget.stats().dialing, budget.stats().in_use), (1, 0));
    script.answer(Ok(()));
    ready(&mut dials).unwrap().put();
    assert_at_rest(&budget, 1);
}

/// And another one came to rest meanwhile.
#[tokio::test]
async fn put_of_one_no_longer_fit_leaves_the_waiter_to_take_what_rests_beside_its_own_dial() {
    let (budget, script) = (Budget::new(4), Script::manual());
    let resource = fakes("a", &budget, &script);
    let mut used = [resource.get(), resource.get()];
    assert!(used.iter_mut().all(|get| poll(get).is_pending()));
    script.answer(Ok(()));
    script.answer(Ok(()));
    let [broken, fit] = used.each_mut().map(|get| ready(get).unwrap());
    let mut dials = resource.get();
    assert!(poll(&mut dials).is_pending());
    *broken.handle().lock().unwrap() = Fitness::Broken;
    let number = fit.number;
    broken.put();
    fit.put();
    assert_eq!(ready(&mut dials).unwrap().number, number);
    assert_eq!((script.pending(), script.abandoned()), (1, 0), "its dial goes on");
}

/// And a caller counted on its dial for as long as it seemed to be served.
#[tokio::test(start_paused = true)]
async fn put_of_one_no_longer_fit_leaves_no_other_without_a_dial() {
    let (budget, script) = (Budget::new(8), Script::manual());
    let resource = fakes("a", &budget, &script);
    let refused = || DialError::from(io::Error::from(io::ErrorKind::ConnectionRefused));
    let used = dialled(&resource, &script);
    let (mut handed, mut served) = (resource.get(), resource.get());
    let mut orphan = resource.get().immediate();
    assert!(poll(&mut handed).is_pending() && poll(&mut served).is_pending());
    assert!(poll(&mut orphan).is_pending());
    assert_eq!(script.pending(), 3);
    *used.handle().lock().unwrap() = Fitness::Broken;
    used.put(); // to the oldest, which does not look yet
    script.answer_newest(Ok(())); // the orphan's
    assert!(poll(&mut orphan).is_pending());
    ready(&mut served).unwrap().close();
    script.answer_newest(Err(refused())); // of who was served
    settle().await;
    assert!(poll(&mut handed).is_pending(), "back to its own dial");
    script.answer(Err(refused()));
    assert!(ready(&mut handed).is_err());
    assert!(poll(&mut orphan).is_pending());
    assert_eq!(script.pending(), 1, "it dials again");
    script.answer(Ok(()));
    ready(&mut orphan).unwrap().put();
    assert_at_rest(&budget, 1);
}

#[tokio::test]
async fn put_when_it_is_anothers_turn_closes_and_hands_the_slot_over() {
    let (budget, script) = (Budget::new(1), Arc::default());
    let (a, b) = (fakes("a", &budget, &script), fakes("b", &budget, &script));
    let conn = a.get().await.unwrap();
    let (mut elsewhere, mut here) = (b.get(), a.get());
    assert!(poll(&mut elsewhere).is_pending());
    assert!(poll(&mut here).is_pending());
    conn.put();
    assert_eq!(script.open(), 0, "closed");
    assert!(poll(&mut here).is_pending());
    ready(&mut elsewhere).unwrap().put();
    drop(ready(&mut here).unwrap());
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn put_of_an_older_generation_closes() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let resource = fakes("a", &budget, &script);
    let (idle, used) = (resource.get().await.unwrap(), resource.get().await.unwrap());
    idle.put();
    resource.schedule_close();
    assert_eq!(script.open(), 1, "the idle one is closed now");
    used.put();
    assert_eq!(script.open(), 0, "the one in use when it is put");
    resource.get().await.unwrap().put();
    resource.get().await.unwrap().put();
    assert_eq!((script.begun(), script.open()), (3, 1), "later ones are not affected");
}

#[tokio::test]
async fn schedule_close_affects_dials_begun_before() {
    let (budget, script) = (Budget::new(10), Script::manual());
    let resource = fakes("a", &budget, &script);
    let mut get = resource.get();
    assert!(poll(&mut get).is_pending());
    resource.schedule_close();
    script.answer(Ok(()));
    ready(&mut get).unwrap().put();
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn put_past_lifetime_or_uses_closes() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let resource =
        fakes_with("a", &budget, &script).max_lifetime(Duration::from_secs(100)).max_uses(3).build();
    let conn = resource.get().await.unwrap();
    tokio::time::advance(Duration::from_secs(100)).await;
    conn.put();
    assert_eq!((script.open(), budget.stats().expired), (0, 1));
    for uses in 1..=3 {
        assert_eq!(script.open(), usize::from(uses > 1));
        resource.get().await.unwrap().put();
    }
    assert_eq!((script.open(), script.begun(), budget.stats().retired), (0, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn get_closes_expired_ones() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let resource = fakes_with("a", &budget, &script).idle_timeout(Duration::from_secs(10)).build();
    let (old, older) = (resource.get().await.unwrap(), resource.get().await.unwrap());
    older.put();
    tokio::time::advance(Duration::from_secs(5)).await;
    old.put();
    tokio::time::advance(Duration::from_secs(6)).await;
    assert!(resource.get().await.unwrap().is_reused());
    tokio::time::advance(Duration::from_secs(5)).await;
    assert!(!resource.get().await.unwrap().is_reused());
    assert!(budget.stats().expired >= 1);
}

#[tokio::test]
async fn put_over_the_limit_closes() {
    let (budget, script) = (Budget::new(3), Arc::default());
    let resource = fakes("a", &budget, &script);
    let conns = [resource.get().await.unwrap(), resource.get().await.unwrap(), resource.get().await.unwrap()];
    budget.set_limit(1);
    assert_eq!(script.open(), 3, "nothing in use is cut off");
    for conn in conns {
        conn.put();
    }
    assert_at_rest(&budget, 1);
    budget.set_limit(0);
    assert_at_rest(&budget, 0);
    let error = resource.get().await.unwrap_err();
    assert!(matches!(error, GetError::Exhausted { .. }), "{error}");
}

#[tokio::test]
async fn put_beyond_max_idle_closes_the_oldest() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let resource = fakes_with("a", &budget, &script).max_idle(1).build();
    let (first, second) = (resource.get().await.unwrap(), resource.get().await.unwrap());
    let newest = second.number;
    first.put();
    second.put();
    assert_at_rest(&budget, 1);
    assert_eq!(resource.get().await.unwrap().number, newest);
}

#[tokio::test]
async fn close_and_drop_close_before_they_return_and_serve_the_next() {
    let (budget, script) = (Budget::new(1), Arc::default());
    let (a, b) = (fakes("a", &budget, &script), fakes("b", &budget, &script));
    for close in [true, false] {
        let conn = a.get().await.unwrap();
        let mut waiting = b.get();
        assert!(poll(&mut waiting).is_pending());
        if close {
            conn.close()
        } else {
            drop(conn)
        }
        assert_eq!(script.open(), 0);
        drop(ready(&mut waiting).unwrap());
    }
    assert_eq!((a.stats().dropped, b.stats().dropped), (1, 2));
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn dropping_the_last_handle_closes_idle_ones_now_and_used_ones_at_put() {
    let (budget, script) = (Budget::new(10), Arc::default());
    let resource = fakes("a", &budget, &script);
    let clone = resource.clone();
    let (idle, used) = (resource.get().await.unwrap(), resource.get().await.unwrap());
    idle.put();
    drop(resource);
    assert_eq!(script.open(), 2);
    drop(clone);
    assert_eq!(script.open(), 1);
    used.put();
    assert_at_rest(&budget, 0);
    assert_eq!(script.open(), 0);
}
