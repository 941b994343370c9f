//! Many tasks on few connections of one address: throughput, how long gets take, who is passed over, who is left
//! waiting for ever.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fdpool::ConnResource;
use hdrhistogram::Histogram;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::task::{JoinSet, yield_now};
use tokio::time::timeout;

use crate::loopback;
use crate::measure::{Entrant, compete, median, ratios};
use crate::peers::Bounded;
use crate::peers::bb8::Bb8;
use crate::peers::deadpool::Deadpool;
use crate::peers::fast_pool::FastPool;
use crate::peers::handrolled::HandRolled;
use crate::peers::mobc::Mobc;
use crate::peers::ours::MaxConns;
use crate::peers::qp::Qp;
use crate::plot::{Group, Plot};
use crate::report::{Asked, Report, number, table, versioned};

const TASKS: usize = 64;
const CONNECTIONS: usize = 16;
const WORKERS: usize = 2;
const ROUNDS: usize = 11;
const ROUND: Duration = Duration::from_millis(150);
/// After which a task counts as stuck that was told to stop.
const PATIENCE: Duration = Duration::from_millis(500);
/// Every so many gets one is timed: to read the clock takes as long as to get.
const TIMED: u64 = 8;

/// When a task lets others run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Yields {
    WhileHolding,
    BetweenPairs,
}

/// What a round came to.
struct Round {
    pairs_per_second: f64,
    busiest_to_least: f64,
    stuck: usize,
    gets: Histogram<u64>,
}

impl Entrant<Round> {
    fn of<P: Bounded<TcpStream>>(runtime: &Handle, to: SocketAddr, yields: Yields) -> Self {
        let (runtime, mut pool) = (runtime.clone(), P::open(to, CONNECTIONS));
        Self::new(P::NAME, "", move || {
            let round = runtime.block_on(round(&pool, yields));
            if round.stuck > 0 {
                let _entered = runtime.enter();
                pool = P::open(to, CONNECTIONS);
            }
            round
        })
    }

    fn rate(&self) -> f64 {
        median(self.rates().into_iter())
    }

    fn rates(&self) -> Vec<f64> {
        self.rounds.iter().map(|round| round.pairs_per_second).collect()
    }

    fn unfairness(&self) -> f64 {
        median(self.rounds.iter().map(|round| round.busiest_to_least))
    }

    /// A number that says little says so: those who are stuck are in none.
    fn words(&self, value: f64) -> String {
        match self.stuck() / ROUNDS {
            0 => number(value),
            stuck => format!("{} ({stuck} tasks stuck)", number(value)),
        }
    }

    fn stuck(&self) -> usize {
        self.rounds.iter().map(|round| round.stuck).sum()
    }

    /// Of the rounds, the median of how long so many of the gets take at most, in microseconds.
    fn get(&self, quantile: f64) -> f64 {
        median(self.rounds.iter().map(|round| round.gets.value_at_quantile(quantile) as f64 / 1000.0))
    }
}

pub fn run(report: &mut Report) {
    let runtime =
        Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().expect("a runtime");
    let to = runtime.block_on(loopback::silent());
    let holding = measured(runtime.handle(), to, Yields::WhileHolding);
    let between = measured(runtime.handle(), to, Yields::BetweenPairs);
    runtime.shutdown_background();

    let notes = format!(
        "{TASKS} tasks on {CONNECTIONS} connections, {WORKERS} workers, {ROUNDS} rounds of {ROUND:?}. While it holds \
         its connection, a task lets the others run once: most gets wait. This is what is asked about. Times are of a \
         get, medians of the rounds. fdpool once has a budget of that many, and once `max_conns` in \
         a large budget. bb8 and fast_pool let newcomers pass those who wait. Stuck are tasks that do not end within \
         {PATIENCE:?} when they are told to; what they waited is in none of the times."
    );
    report.section("contended: tasks wait for each other", &notes, &rows(&holding));
    let notes =
        "The same, but tasks let others run only between put and get: a connection is nearly always idle.";
    report.section("contended: no waiting", notes, &rows(&between));

    let (ours, handrolled) = (&holding[..2], &holding[2]);
    for this in ours {
        let name = this.name;
        let rate = median(ratios(&this.rates(), &handrolled.rates()).into_iter());
        report.bar(format!("contended, {name}, of the hand-rolled's pairs/s"), rate, Asked::AtLeast(1.2));
        let slow = this.get(0.999) / handrolled.get(0.999);
        report.bar(format!("contended, {name}, of the hand-rolled's p99.9"), slow, Asked::AtMost(1.0));
        report.bar(
            format!("contended, {name}, busiest task to least"),
            this.unfairness(),
            Asked::AtMost(1.1),
        );
        report.bar(format!("contended, {name}, tasks left stuck"), this.stuck() as f64, Asked::AtMost(0.0));
    }
    let bars = |title: &str, value: fn(&Entrant<Round>) -> f64| Group {
        title: title.into(),
        bars: holding
            .iter()
            .map(|this| (versioned(this.name), value(this), this.words(value(this))))
            .collect(),
    };
    report.plot(
        "contended",
        Plot::Bars {
            title: format!("{TASKS} tasks on {CONNECTIONS} connections"),
            groups: vec![
                bars("pairs of get and put, thousands a second", |this| this.rate() / 1000.0),
                bars("p99.9 of a get, microseconds", |this| this.get(0.999)),
            ],
        },
    );
}

fn measured(runtime: &Handle, to: SocketAddr, yields: Yields) -> Vec<Entrant<Round>> {
    let entered = runtime.enter();
    let mut entrants = vec![
        Entrant::of::<ConnResource>(runtime, to, yields),
        Entrant::of::<MaxConns>(runtime, to, yields),
        Entrant::of::<HandRolled<TcpStream>>(runtime, to, yields),
        Entrant::of::<Deadpool<TcpStream>>(runtime, to, yields),
        Entrant::of::<Bb8<TcpStream>>(runtime, to, yields),
        Entrant::of::<Mobc<TcpStream>>(runtime, to, yields),
        Entrant::of::<Qp<TcpStream>>(runtime, to, yields),
        Entrant::of::<FastPool<TcpStream>>(runtime, to, yields),
    ];
    drop(entered);
    compete(&mut entrants, ROUNDS);
    entrants
}

fn rows(entrants: &[Entrant<Round>]) -> comfy_table::Table {
    let header = ["pool", "pairs/s", "ratio", "p50 µs", "p99", "p99.9", "max", "busiest/least task", "stuck"];
    let mut table = table(header);
    let base = entrants[2].rates();
    for this in entrants {
        let ratio = median(ratios(&this.rates(), &base).into_iter());
        let mut cells = vec![versioned(this.name), number(this.rate()), number(ratio)];
        cells.extend([0.5, 0.99, 0.999, 1.0].map(|quantile| number(this.get(quantile))));
        cells.extend([number(this.unfairness()), this.stuck().to_string()]);
        table.add_row(cells);
    }
    table
}

/// Of one task: on a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Count(AtomicU64);

async fn round(pool: &impl Bounded<TcpStream>, yields: Yields) -> Round {
    let stop = Arc::new(AtomicBool::new(false));
    let counts: Arc<[Count]> = (0..TASKS).map(|_| Count::default()).collect();
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for task in 0..TASKS {
        let (pool, stop, counts) = (pool.clone(), Arc::clone(&stop), Arc::clone(&counts));
        tasks.spawn(async move {
            let (mut gets, mut pairs) = (histogram(), 0);
            while !stop.load(Ordering::Relaxed) {
                let asked = (pairs % TIMED == 0).then(Instant::now);
                let conn = pool.get().await;
                if let Some(asked) = asked {
                    gets.saturating_record(asked.elapsed().as_nanos() as u64);
                }
                if yields == Yields::WhileHolding {
                    yield_now().await;
                }
                pool.put(conn);
                if yields == Yields::BetweenPairs {
                    yield_now().await;
                }
                pairs += 1;
                counts[task].0.store(pairs, Ordering::Relaxed);
            }
            gets
        });
    }
    tokio::time::sleep(ROUND).await;
    stop.store(true, Ordering::Relaxed);
    let elapsed = began.elapsed().as_secs_f64();
    let counts: Vec<u64> = counts.iter().map(|count| count.0.load(Ordering::Relaxed)).collect();

    let mut gets = histogram();
    let joined = timeout(PATIENCE, async {
        while let Some(joined) = tasks.join_next().await {
            gets.add(joined.expect("does not panic")).expect("of the same bounds");
        }
    });
    // Those that are left are stuck, and aborted.
    let stuck = if joined.await.is_ok() { 0 } else { tasks.len() };
    let least = counts.iter().min().map_or(1, |&least| least.max(1));
    Round {
        pairs_per_second: counts.iter().sum::<u64>() as f64 / elapsed,
        busiest_to_least: counts.iter().max().map_or(1.0, |&most| most as f64 / least as f64),
        stuck,
        gets,
    }
}

/// Nothing but `pairs` pairs of as many tasks, on one thread: the same instructions each time.
pub fn run_loop<P: Bounded<TcpStream>>(pairs: usize) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let pool = P::open(loopback::silent().await, CONNECTIONS);
        let mut tasks = JoinSet::new();
        for _ in 0..TASKS {
            let pool = pool.clone();
            tasks.spawn(async move {
                for _ in 0..pairs / TASKS {
                    let conn = pool.get().await;
                    yield_now().await;
                    pool.put(conn);
                }
            });
        }
        tasks.join_all().await;
    });
}

/// Nanoseconds, up to ten seconds.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("good bounds")
}
