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

#[test]
fn a_limit_that_was_lowered_on_a_runtime_that_ended_is_no_less_restored() {
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    for driven in [true, false] {
        let (budget, script) = (Budget::new(4), Script::manual());
        let resource = fakes("a", &budget, &script);
        let (one, two) = (runtime(), runtime());
        let held = one.block_on(budget.acquire_many(2)).unwrap();
        one.block_on(async {
            let mut get = resource.get();
            assert!(poll(&mut get).is_pending());
            script.answer(Err(no_descriptor()));
            assert!(poll(&mut get).is_pending());
        });
        assert_eq!(budget.effective_limit(), 2);
        let kept = (!driven).then_some(one); // alive, but nobody drives it
        two.block_on(async {
            let slot = tokio::time::timeout(Duration::from_secs(5), async {
                // The first is in line from before the other runtime's task is missed.
                let mut first = budget.acquire();
                if poll(&mut first).is_pending() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    drop(budget.acquire().await.unwrap());
                }
                first.await.unwrap()
            });
            drop(slot.await.expect("restored"));
        });
        drop((held, kept));
    }
}
