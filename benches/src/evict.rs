//! A get that has to close another address's idle connection first. The connections are units, so that what is
//! measured is the pool.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fdpool::{Budget, ConnResource, Fitness, dial};
use tokio::runtime::Builder;

use crate::measure::{self, Contender};

const IDLE: usize = 1000;
const ADDRESSES: usize = 100_000;
const ROUNDS: usize = 100;
const GETS: usize = 5000;

pub fn run() {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let budget = Budget::new(IDLE);
        let resources: Arc<[ConnResource<()>]> = (0..ADDRESSES)
            .map(|n| {
                let dialer = dial::from_fn(|_, _| async { Ok(()) }, |_, _| Fitness::Fit);
                ConnResource::builder(format!("10.0.0.1:{n}"), dialer).budget(&budget).build()
            })
            .collect();
        let random = Arc::new(AtomicU64::new(1));
        let contender =
            Contender::new("fdpool", move |n| gets(Arc::clone(&resources), Arc::clone(&random), n));
        let timed = measure::in_turn(vec![contender], ROUNDS, GETS).await;
        measure::print("get that evicts + put: 1,000 idle of 100,000 addresses", "fdpool", &timed);
        let stats = budget.stats();
        let evicting = stats.evicted as f64 / (stats.dials + stats.reused) as f64;
        println!("{:.1} % of the gets evicted, {} had to wait", evicting * 100.0, stats.waits);
    });
}

async fn gets(resources: Arc<[ConnResource<()>]>, random: Arc<AtomicU64>, n: usize) {
    for _ in 0..n {
        let conn = resources[draw(&random) % ADDRESSES].get().await.expect("a connection");
        black_box(&*conn);
        conn.put();
    }
}

/// xorshift64 (Marsaglia, 2003).
fn draw(state: &AtomicU64) -> usize {
    let mut x = state.load(Ordering::Relaxed);
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    state.store(x, Ordering::Relaxed);
    x as usize
}
