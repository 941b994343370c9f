//! The process really runs out of descriptors although the budget had room. Each test has the process to
//! itself, for it fills the descriptor table; with a scripted error see `exhaustion.rs`.

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
