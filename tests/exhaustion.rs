//! Dials that find no descriptor, by script: how the limit shrinks and grows, and what callers are told. That
//! it works on a real descriptor table is shown in `emfile.rs`.

mod support;

use std::io;
use std::time::Duration;

use fdpool::{Budget, GetError};
use support::{Script, assert_at_rest, fakes, poll, ready, settle};

fn no_descriptor() -> fdpool::DialError {
    io::Error::from_raw_os_error(24).into()
}

#[tokio::test(start_paused = true)]
async fn the_limit_shrinks_and_is_whole_again_within_two_seconds() {
    let (budget, script) = (Budget::new(64), Script::manual());
    let resource = fakes("a", &budget, &script);
    let mut first = resource.get();
    assert!(poll(&mut first).is_pending());
    script.answer(Ok(()));
    let conn = ready(&mut first).unwrap();
    let mut get = resource.get();
    assert!(poll(&mut get).is_pending());
    script.answer(Err(no_descriptor()));
    assert!(poll(&mut get).is_pending());
    assert_eq!((budget.effective_limit(), script.pending()), (1, 0));
    settle().await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(poll(&mut get).is_pending());
    assert_eq!(script.pending(), 1, "tries again when the limit has grown");
    script.answer(Ok(()));
    drop((ready(&mut get).unwrap(), conn));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(budget.effective_limit(), 64);
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn without_any_other_slot_out_the_next_try_waits_for_growth() {
    let (budget, script) = (Budget::new(64), Script::manual());
    let resource = fakes("a", &budget, &script);
    let mut get = resource.get();
    assert!(poll(&mut get).is_pending());
    for tries in 1..=3 {
        assert_eq!(script.begun(), tries);
        script.answer(Err(no_descriptor()));
        assert!(poll(&mut get).is_pending());
        assert_eq!((budget.effective_limit(), script.pending()), (0, 0), "no busy loop");
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert!(poll(&mut get).is_pending());
    }
    script.answer(Ok(()));
    drop(ready(&mut get).unwrap());
    assert_eq!((budget.stats().emfile, budget.stats().dial_failures), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn who_waits_in_vain_is_told_the_cause() {
    let (budget, script) = (Budget::new(64), Script::manual());
    let resource = fakes("a", &budget, &script);
    let mut get = resource.get().wait_timeout(Duration::from_millis(50));
    assert!(poll(&mut get).is_pending());
    script.answer(Err(no_descriptor()));
    let error = get.await.unwrap_err();
    assert!(matches!(error, GetError::Exhausted { .. }) && error.is_timeout(), "{error}");
    let source = std::error::Error::source(&error).expect("the dial's error").to_string();
    assert!(source.contains("Too many open files"), "{source}");
}
