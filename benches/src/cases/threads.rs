//! Warm pairs on several threads of a runtime at once: each on an address of its own, and all on one. A loop that shares nothing says
//! what the machine has to give.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use fdpool::dial::Tcp;
use fdpool::{Budget, ConnResource};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

use crate::loopback;
use crate::measure::{Entrant, compete, median, ratios};
use crate::peers::bare::Bare;
use crate::peers::deadpool::Deadpool;
use crate::peers::handrolled::HandRolled;
use crate::peers::{Bounded, Object, Pool, Unit, pair};
use crate::plot::{Axis, Line, Plot};
use crate::report::{Asked, Report, number, table};

const MOST: usize = 8;
const CONNECTIONS: usize = 16;
const ROUNDS: usize = 15;
const ROUND: Duration = Duration::from_millis(60);
/// Pairs between two looks at whether it is over.
const BATCH: usize = 64;
const CONTROL: &str = "control: a Mutex<Vec> each";
const OURS: &str = "fdpool, an address each";

/// What a round came to: pairs a second, for each number of threads.
type Rates = Vec<f64>;

pub fn run(report: &mut Report) {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads: Vec<usize> = [1, 2, 4, MOST].into_iter().filter(|&threads| threads <= cores).collect();
    let workers = threads.last().copied().unwrap_or(1);
    let runtime =
        Builder::new_multi_thread().worker_threads(workers).enable_all().build().expect("a runtime");
    let runtime = Arc::new(runtime);
    let to = runtime.block_on(loopback::silent());
    let _entered = runtime.enter();
    let budget = Budget::new(CONNECTIONS);
    let resource = || ConnResource::builder(to, Tcp::default()).budget(&budget).build();
    let mut entrants = [
        entrant(CONTROL, &runtime, &threads, each(|| Bare::of(Unit))),
        entrant(OURS, &runtime, &threads, each(resource)),
        entrant("hand-rolled, a pool each", &runtime, &threads, each(|| open::<HandRolled<_>>(to))),
        entrant("deadpool, a pool each", &runtime, &threads, each(|| open::<Deadpool<_>>(to))),
        entrant("fdpool, all on one address", &runtime, &threads, one_for_all(open::<ConnResource>(to))),
        entrant("hand-rolled, all on one pool", &runtime, &threads, one_for_all(open::<HandRolled<_>>(to))),
        entrant("deadpool, all on one pool", &runtime, &threads, one_for_all(open::<Deadpool<_>>(to))),
    ];
    compete(&mut entrants, ROUNDS);
    tell(report, &threads, &entrants);
}

fn open<P: Bounded<TcpStream>>(to: SocketAddr) -> P {
    P::open(to, CONNECTIONS)
}

fn each<P>(make: impl Fn() -> P) -> Vec<P> {
    (0..MOST).map(|_| make()).collect()
}

fn one_for_all<P: Clone>(pool: P) -> Vec<P> {
    vec![pool; MOST]
}

fn entrant<T: Object, P: Pool<T>>(
    name: &'static str,
    runtime: &Arc<Runtime>,
    threads: &[usize],
    pools: Vec<P>,
) -> Entrant<Rates> {
    let (runtime, threads) = (Arc::clone(runtime), threads.to_vec());
    Entrant::new(name, "", move || {
        threads.iter().map(|threads| round(&runtime, &pools[..*threads])).collect()
    })
}

/// A task for each pool, each on a thread of its own: none begins before all are there, and none waits for anything.
fn round<T: Object, P: Pool<T>>(runtime: &Runtime, pools: &[P]) -> f64 {
    let (stop, start) = (Arc::new(AtomicBool::new(false)), Arc::new(Barrier::new(pools.len() + 1)));
    let run = |pool: &P| {
        let (pool, stop, start) = (pool.clone(), Arc::clone(&stop), Arc::clone(&start));
        runtime.spawn(async move {
            start.wait();
            let (began, mut pairs) = (Instant::now(), 0);
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..BATCH {
                    pair(&pool).await;
                }
                pairs += BATCH;
            }
            pairs as f64 / began.elapsed().as_secs_f64()
        })
    };
    let tasks: Vec<_> = pools.iter().map(run).collect();
    start.wait();
    thread::sleep(ROUND);
    stop.store(true, Ordering::Relaxed);
    tasks.into_iter().map(|task| runtime.block_on(task).expect("does not panic")).sum()
}

/// Pairs a second on the number of threads that is at this place.
fn rates(entrant: &Entrant<Rates>, place: usize) -> Vec<f64> {
    entrant.rounds.iter().map(|rates| rates[place]).collect()
}

/// How many times as many as on one thread, round by round.
fn scaling(entrant: &Entrant<Rates>, place: usize) -> Vec<f64> {
    ratios(&rates(entrant, place), &rates(entrant, 0))
}

fn tell(report: &mut Report, threads: &[usize], entrants: &[Entrant<Rates>]) {
    let mut table = table(["", "threads", "million pairs/s", "of one thread's", "of the control's scaling"]);
    let control = &entrants[0];
    for this in entrants {
        for (place, threads) in threads.iter().enumerate() {
            let rate = median(rates(this, place).into_iter()) / 1e6;
            let scaled = scaling(this, place);
            let of_control = median(ratios(&scaled, &scaling(control, place)).into_iter());
            let scaled = median(scaled.into_iter());
            let cells = [number(rate), number(scaled), number(of_control)];
            let [rate, scaled, relative] = cells;
            table.add_row([this.name, &threads.to_string(), &rate, &scaled, &relative]);
            if this.name == OURS && *threads > 1 {
                let what = format!("{threads} threads, an address each, of the control's scaling");
                report.bar(what, of_control, Asked::AtLeast(0.95));
            }
        }
    }
    let notes = format!(
        "Warm pairs of live TcpStreams; {ROUNDS} rounds of {ROUND:?}. The control shares nothing \
         between threads: it says what another thread is worth on this machine, now."
    );
    report.section("threads", &notes, &table);
    let line = |this: &Entrant<Rates>| Line {
        name: this.name.into(),
        points: threads
            .iter()
            .enumerate()
            .map(|(place, threads)| (*threads as f64, median(scaling(this, place).into_iter())))
            .collect(),
    };
    let lines: Vec<_> = entrants.iter().map(line).collect();
    let most = lines.iter().flat_map(|line| &line.points).map(|(_, scaled)| *scaled).fold(0.0, f64::max);
    report.plot(
        "threads",
        Plot::Lines {
            title: "warm pairs a second, of what one thread makes".into(),
            x: Axis {
                title: "threads".into(),
                logarithmic: true,
                ticks: threads.iter().map(|threads| *threads as f64).collect(),
            },
            y: Axis { title: "times as many".into(), logarithmic: false, ticks: Axis::up_to(most) },
            lines,
        },
    );
}
