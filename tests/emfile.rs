//! The process runs out of descriptors although the budget had room. Each test has the process to itself: it
//! fills the descriptor table, or scripts the error.

mod support;

use std::fs::File;
use std::io;
use std::sync::Mutex;
use std::time::Duration;

use fdpool::{Budget, GetError};
use support::{Peer, Script, assert_at_rest, fakes, poll, ready, settle, sockets_to};

static PROCESS: Mutex<()> = Mutex::new(());

/// All descriptors the process may have but a few are open, until this is dropped.
struct Filled {
    soft: u64,
    files: Vec<File>,
}

impl Filled {
    fn leaving(free: usize) -> Self {
        let (soft, hard) = rlimit::Resource::NOFILE.get().unwrap();
        rlimit::Resource::NOFILE.set(256, hard).unwrap();
        let mut files = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            files.push(file);
        }
        files.truncate(files.len() - free);
        Self { soft, files }
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        self.files.clear();
        let (_, hard) = rlimit::Resource::NOFILE.get().unwrap();
        rlimit::Resource::NOFILE.set(self.soft, hard).unwrap();
    }
}

fn no_descriptor() -> fdpool::DialError {
    io::Error::from_raw_os_error(24).into()
}

#[tokio::test]
#[allow(clippy::await_holding_lock, reason = "one test at a time, each on its own thread")]
async fn a_dial_without_descriptor_evicts_and_tries_again() {
    let _alone = PROCESS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (budget, idle, wanted) = (Budget::new(1000), Peer::listen(), Peer::listen());
    let (here, there) = (idle.resource(&budget), wanted.resource(&budget));
    let conns = [here.get().await.unwrap(), here.get().await.unwrap()];
    conns.map(fdpool::Conn::put);
    let filled = Filled::leaving(0);
    let conn = there.get().await.unwrap();
    drop(filled); // counting takes descriptors
    assert_eq!((sockets_to(idle.address), sockets_to(wanted.address)), (1, 1));
    let stats = budget.stats();
    assert_eq!((stats.emfile, stats.evicted, stats.dial_failures), (1, 1, 0));
    assert_eq!((budget.limit(), budget.effective_limit()), (1000, 2));
    drop(conn);
}

#[tokio::test]
#[allow(clippy::await_holding_lock, reason = "one test at a time, each on its own thread")]
async fn a_dial_without_descriptor_and_nothing_idle_waits_for_a_slot() {
    let _alone = PROCESS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (budget, peer) = (Budget::new(1000), Peer::listen());
    let resource = peer.resource(&budget);
    let used = resource.get().await.unwrap();
    let filled = Filled::leaving(0);
    let mut get = resource.get();
    assert!(poll(&mut get).is_pending());
    let error = resource.get().immediate().await.unwrap_err();
    assert!(matches!(error, GetError::Exhausted { .. }), "{error}");
    used.close();
    let conn = get.await.unwrap();
    assert!(budget.stats().emfile >= 1);
    drop(filled);
    drop(conn);
    assert_at_rest(&budget, 0);
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
