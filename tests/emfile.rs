//! The process really runs out of descriptors although the budget had room. Each test has the process to
//! itself, for it fills the descriptor table; with a scripted error see `exhaustion.rs`.

#![allow(clippy::disallowed_methods, reason = "how long the limit takes to grow is what is asked")]

mod support;

use std::fs::File;
use std::sync::Mutex;

use fdpool::{Budget, GetError};
use support::{Peer, assert_at_rest, poll, sockets_to};

/// Runs a test while no other of this file does, its runtime's making included.
fn alone(test: impl Future<Output = ()>) {
    static PROCESS: Mutex<()> = Mutex::new(());
    let _alone = PROCESS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

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

#[test]
fn a_dial_without_descriptor_evicts_and_tries_again() {
    alone(async {
        let (budget, idle, wanted) = (Budget::new(1000), Peer::listen(), Peer::listen());
        let (here, there) = (idle.resource(&budget), wanted.resource(&budget));
        let conns = [here.get().await.unwrap(), here.get().await.unwrap()];
        conns.into_iter().for_each(fdpool::Conn::put);
        let filled = Filled::leaving(0);
        let conn = there.get().await.unwrap();
        drop(filled); // counting takes descriptors
        assert_eq!((sockets_to(idle.address), sockets_to(wanted.address)), (1, 1));
        let stats = budget.stats();
        assert_eq!((stats.emfile, stats.evicted, stats.dial_failures), (1, 1, 0));
        assert_eq!((budget.limit(), budget.effective_limit()), (1000, 2));
        drop(conn);
    });
}

#[test]
fn a_dial_without_descriptor_and_nothing_idle_waits_for_a_slot() {
    alone(async {
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
    });
}

/// A budget sized by a process that may have 256 descriptors, and its end of the limit.
fn sized() -> (Budget, Soft) {
    let soft = Soft::set(256);
    (Budget::builder().reserve(8).build().unwrap(), soft)
}

/// The process's limit, until this is dropped.
struct Soft(u64);

impl Soft {
    fn set(to: u64) -> Self {
        let (soft, hard) = rlimit::Resource::NOFILE.get().unwrap();
        rlimit::Resource::NOFILE.set(to, hard).unwrap();
        Self(soft)
    }
}

impl Drop for Soft {
    fn drop(&mut self) {
        let (_, hard) = rlimit::Resource::NOFILE.get().unwrap();
        rlimit::Resource::NOFILE.set(self.0, hard).unwrap();
    }
}

#[test]
fn what_other_code_opens_shrinks_the_limit_and_what_it_closes_grows_it() {
    alone(async {
        let (budget, soft) = sized();
        let peers: Vec<_> = (0..20).map(|_| Peer::listen()).collect();
        let resources: Vec<_> = peers.iter().map(|peer| peer.resource(&budget)).collect();
        let limit = budget.limit();
        // Twenty listeners were opened after the sizing, and no more than a few things of the runtime's.
        let conns = futures::future::join_all((0..100).map(|n| resources[n % 20].get())).await;
        conns.into_iter().for_each(|conn| conn.unwrap().put());
        let at_first = budget.effective_limit();
        assert!((limit - 24..=limit - 20).contains(&at_first), "{at_first} of {limit}");
        for wave in 0..3 {
            let mut files = Vec::new();
            while let Ok(file) = File::open("/dev/null") {
                files.push(file);
                if files.len() % 16 == 0 {
                    // No dial fails while anything is idle.
                    tokio::time::sleep(std::time::Duration::from_millis(15)).await;
                    let resource = &resources[files.len() / 16 % 20];
                    resource.get().fresh().await.unwrap().put();
                }
            }
            let stats = budget.stats();
            assert!(stats.effective_limit < at_first / 2, "wave {wave}: {stats:?}");
            assert!(stats.evicted > 0 && stats.dial_failures == 0, "wave {wave}: {stats:?}");
            assert!(stats.idle <= stats.effective_limit, "wave {wave}: {stats:?}");
            drop(files);
            let back = tokio::time::Instant::now() + std::time::Duration::from_secs(2);
            while budget.effective_limit() != at_first {
                assert!(tokio::time::Instant::now() < back, "wave {wave}: {:?}", budget.stats());
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
        drop(resources);
        drop(soft);
    });
}

#[test]
fn two_budgets_do_not_take_each_other_for_foreign() {
    alone(async {
        let ((one, _soft), peer) = (sized(), Peer::listen());
        let other = Budget::builder().reserve(8).build().unwrap();
        let (here, there) = (peer.resource(&one), peer.resource(&other));
        here.get().await.unwrap().put();
        let before = one.effective_limit();
        let conns = futures::future::join_all((0..60).map(|_| there.get())).await;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        here.get().fresh().await.unwrap().put();
        assert_eq!(one.effective_limit(), before);
        assert!(one.stats().foreign_fds < 60, "{:?}", one.stats());
        drop(conns);
    });
}
