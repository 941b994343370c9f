//! Many tasks on few connections of one address: each holds its connection while the others have their turn.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fdpool::dial::Tcp;
use fdpool::{Budget, ConnResource};
use tokio::runtime::Builder;
use tokio::task::{JoinSet, yield_now};

use crate::loopback;
use crate::measure::median;
use crate::peers::handrolled;

const TASKS: usize = 64;
const CONNECTIONS: usize = 16;
const WORKERS: usize = 2;
const ROUNDS: usize = 15;
const ROUND: Duration = Duration::from_millis(200);

/// One task's part: pairs until told to stop; how many they were.
trait Pairs: Clone + Send + 'static {
    fn pair(&self) -> impl Future<Output = ()> + Send;
}

impl Pairs for ConnResource {
    async fn pair(&self) {
        let conn = self.get().await.expect("a connection");
        yield_now().await;
        conn.put();
    }
}

impl Pairs for Arc<handrolled::Pool> {
    async fn pair(&self) {
        let conn = self.get().await.expect("a connection");
        yield_now().await;
        conn.put();
    }
}

/// What a round came to.
struct Round {
    pairs_per_second: f64,
    busiest_to_least: f64,
}

pub fn run() {
    let runtime =
        Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let address: SocketAddr = loopback::silent().await;
        let fdpool = ConnResource::builder(address, Tcp::default()).budget(&Budget::new(CONNECTIONS)).build();
        let handrolled = Arc::new(handrolled::Pool::new(address, CONNECTIONS));
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(round(&fdpool).await);
            theirs.push(round(&handrolled).await);
        }
        println!("\n{TASKS} tasks, {CONNECTIONS} connections, {WORKERS} workers, {ROUNDS} rounds");
        println!("{:<44} {:>10} {:>8} {:>14}", "", "pairs/s", "ratio", "busiest/least");
        let base = median(theirs.iter().map(|round| round.pairs_per_second));
        for (name, rounds) in [("fdpool", ours), ("hand-rolled: Semaphore + Mutex<Vec>", theirs)] {
            let pairs_per_second = median(rounds.iter().map(|round| round.pairs_per_second));
            let unfairness = median(rounds.iter().map(|round| round.busiest_to_least));
            println!(
                "{name:<44} {pairs_per_second:>10.0} {:>8.2} {unfairness:>14.2}",
                pairs_per_second / base
            );
        }
    });
}

async fn round(pool: &impl Pairs) -> Round {
    let stop = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (pool, stop) = (pool.clone(), Arc::clone(&stop));
        tasks.spawn(async move {
            let mut pairs = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                pool.pair().await;
                pairs += 1;
            }
            pairs
        });
    }
    tokio::time::sleep(ROUND).await;
    stop.store(true, Ordering::Relaxed);
    let pairs = tasks.join_all().await;
    let elapsed = began.elapsed().as_secs_f64();
    let least = pairs.iter().min().map_or(1, |&least| least.max(1));
    Round {
        pairs_per_second: pairs.iter().sum::<u64>() as f64 / elapsed,
        busiest_to_least: pairs.iter().max().map_or(1.0, |&most| most as f64 / least as f64),
    }
}
