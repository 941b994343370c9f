//! Runtimes that end: they leave no descriptor open, and nobody to wait for what they were to do. Descriptors are counted in a
//! process that does nothing else meanwhile.

#[path = "support/descriptors.rs"]
mod descriptors;
mod support;

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use descriptors::{SoftLimit, open};
use fdpool::{Budget, DialError};
use support::{Script, assert_at_rest, fakes, fakes_with, poll, settle};
use tokio::runtime::{Builder, Runtime};

fn alone() -> MutexGuard<'static, ()> {
    static PROCESS: Mutex<()> = Mutex::new(());
    PROCESS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn one_that_stood_by_to_look_after_idle_ones_is_not_kept() {
    let _alone = alone();
    let (budget, script) = (Budget::new(8), Arc::new(Script::default()));
    let (here, there) = (fakes("here", &budget, &script), fakes("there", &budget, &script));
    let at_work = runtime();
    at_work.block_on(async {
        here.get().await.unwrap().put();
        settle().await;
    });
    let before = open();
    let other = runtime();
    other.block_on(async {
        there.get().await.unwrap().put();
        settle().await;
    });
    drop(there);
    drop(other);
    assert_eq!(open(), before);
}

#[test]
fn one_on_which_a_dial_went_on_by_itself_is_not_kept_for_the_sake_of_a_failure() {
    let _alone = alone();
    drop(runtime()); // the first one opens what tokio keeps for all
    let before = open();
    let (budget, script) = (Budget::new(1), Script::manual());
    let resource = fakes_with("a", &budget, &script).build();
    let runtime = runtime();
    runtime.block_on(async {
        let (mut begins, mut waits) = (resource.get(), resource.get());
        assert!(poll(&mut begins).is_pending() && poll(&mut waits).is_pending());
        drop(begins);
        script.answer(Ok(()));
        waits.await.unwrap().close();
        let mut fails = resource.get();
        assert!(poll(&mut fails).is_pending());
        script.answer(Err(DialError::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))));
        fails.await.unwrap_err();
    });
    drop(runtime);
    assert_eq!(open(), before);
    assert_at_rest(&budget, 0);
}

#[test]
fn one_that_was_to_see_when_the_process_has_descriptors_again_leaves_nobody_waiting_for_them() {
    let _alone = alone();
    let _soft = SoftLimit::leaving(240);
    let budget = Budget::builder().reserve(8).build().unwrap();
    let files: Vec<_> = (0..100).map(|_| File::open("/dev/null").unwrap()).collect();
    let (first, second) = (runtime(), runtime());
    first.block_on(async { drop(budget.acquire().await.unwrap()) });
    assert!(budget.effective_limit() < budget.limit());
    let null = || File::open("/dev/null").unwrap();
    let held: Vec<_> = std::iter::from_fn(|| Some(budget.try_acquire()?.hold(null()))).collect();
    let mut acquire = budget.acquire();
    second.block_on(async { assert!(poll(&mut acquire).is_pending()) });
    drop(first);
    assert!(poll(&mut acquire).is_pending(), "what was measured is not forgotten with a runtime");
    drop(files);
    let acquired = second.block_on(async { tokio::time::timeout(Duration::from_secs(5), acquire).await });
    drop((acquired.expect("in time").unwrap(), held));
}
