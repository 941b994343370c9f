//! A fleet is polled, one address after the other, by a program that may open half as many connections as the fleet has
//! addresses; see `examples/sweep`.

use std::future::Future;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use fdpool::Budget;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::loopback::{Manner, Server};
use crate::measure::{Draw, Entrant, compete, median};
use crate::peers::deadpool::{self, Deadpool};
use crate::peers::keyed::resources;
use crate::peers::secure::Secure;
use crate::peers::{Object, Pool};
use crate::report::{Asked, Report, number, table, versioned};

const FLEET: usize = 1000;
const BUDGET: usize = FLEET / 2;
const CALLERS: usize = 64;
const CALLS: usize = 4 * FLEET;
const ROUNDS: usize = 11;
const WORKERS: usize = 2;

/// A way to make calls.
trait Calls: Clone + Send + Sync + 'static {
    fn call(&self, target: usize) -> impl Future<Output = ()> + Send;
}

/// A pool for each address.
struct Pooled<T, P>(Arc<[P]>, PhantomData<fn() -> T>);

impl<T, P> Pooled<T, P> {
    fn new(pools: Arc<[P]>) -> Self {
        Self(pools, PhantomData)
    }
}

impl<T, P> Clone for Pooled<T, P> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.0))
    }
}

/// What can be exchanged over.
trait Stream: Object + AsyncRead + AsyncWrite {}

impl<T: Object + AsyncRead + AsyncWrite> Stream for T {}

impl<T: Stream, P: Pool<T>> Calls for Pooled<T, P> {
    async fn call(&self, target: usize) {
        let pool = &self.0[target];
        let mut conn = pool.get().await;
        exchange(pool.object(&mut conn)).await;
        pool.put(conn);
    }
}

/// A semaphore, and a connection for each call.
struct HandRolled<T> {
    to: Arc<[SocketAddr]>,
    permits: Arc<Semaphore>,
    makes: PhantomData<fn() -> T>,
}

impl<T> Clone for HandRolled<T> {
    fn clone(&self) -> Self {
        Self { to: Arc::clone(&self.to), permits: Arc::clone(&self.permits), makes: PhantomData }
    }
}

impl<T: Stream> Calls for HandRolled<T> {
    async fn call(&self, target: usize) {
        let _permit = self.permits.acquire().await.expect("never closed");
        let mut stream = T::connect(self.to[target]).await.expect("a connection");
        exchange(&mut stream).await;
    }
}

async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let mut answer = [0; 16];
    stream.write_all(b"how are you all?").await.expect("a server that listens");
    stream.read_exact(&mut answer).await.expect("a server that answers");
}

/// Whom the calls are to, one after the other.
type Targets = Arc<[usize]>;

pub fn run(report: &mut Report) {
    rlimit::increase_nofile_limit(rlimit::INFINITY).expect("up to the hard limit");
    let server = Server::start(Manner::Echo);
    let to: Arc<[SocketAddr]> = (0..FLEET).map(|n| server.address(n)).collect();
    let reused = measured::<TcpStream>(
        report,
        "sweep: in order",
        &to,
        (0..CALLS).map(|call| call % FLEET).collect(),
        |reused| {
            format!(
                "{FLEET} addresses polled in order by {CALLERS} tasks, at most {BUDGET} connections; {ROUNDS} rounds of {CALLS} \
             calls. fdpool reused a connection in {:.0} % of its gets; with every address polled in turn, nobody can in more \
             than half of them, so that nobody can be more than twice as fast as who never does. A round over the fleet is a \
             few ticks of the clock by which fdpool knows when an address comes back.",
                reused * 100.0
            )
        },
    );
    let drawn = measured::<TcpStream>(report, "sweep: some more often than others", &to, zipf(), |reused| {
        format!(
            "The same, but the nth address is called as often as 1/n of the first's calls (Zipf's law), in random order. \
             fdpool reused a connection in {:.0} % of its gets.",
            reused * 100.0
        )
    });
    drop(server);
    let server = Server::start(Manner::Secure);
    let to: Arc<[SocketAddr]> = (0..FLEET).map(|n| server.address(n)).collect();
    let secure = measured::<Secure>(report, "sweep: the same over TLS", &to, zipf(), |reused| {
        format!(
            "Where a connection takes a handshake, of TLS 1.3 by rustls, sessions resumed by all alike. fdpool reused a \
             connection in {:.0} % of its gets.",
            reused * 100.0
        )
    });
    report.bar("sweep in order, of the hand-rolled's calls/s", reused, Asked::AtLeast(3.0));
    report.bar("sweep by Zipf's law, of the hand-rolled's calls/s", drawn, Asked::AtLeast(3.0));
    report.bar("sweep by Zipf's law over TLS, of the hand-rolled's calls/s", secure, Asked::AtLeast(3.0));
}

/// By Zipf's law, of exponent 1.
fn zipf() -> Targets {
    let sums: Vec<f64> = (1..=FLEET)
        .scan(0.0, |sum, rank| {
            *sum += 1.0 / rank as f64;
            Some(*sum)
        })
        .collect();
    let whole = sums[FLEET - 1];
    let mut draw = Draw::default();
    let mut one = || whole * draw.below(1 << 32) as f64 / (1_u64 << 32) as f64;
    (0..CALLS)
        .map(|_| {
            let drawn = one();
            sums.partition_point(|sum| *sum <= drawn)
        })
        .collect()
}

/// Returns how many times as fast as the hand-rolled fdpool is. `notes` is told how often that reused a connection.
fn measured<T: Stream>(
    report: &mut Report,
    title: &str,
    to: &Arc<[SocketAddr]>,
    targets: Targets,
    notes: impl FnOnce(f64) -> String,
) -> f64 {
    let budget = Budget::new(BUDGET);
    let roomy = Budget::new(2 * FLEET);
    let permits = Arc::new(Semaphore::new(BUDGET));
    let deadpools: Arc<[Deadpool<T>]> = to.iter().map(|to| deadpool::pool(*to, 1, true)).collect();
    let mut entrants = [
        entrant(
            "hand-rolled: Semaphore, connects each time",
            "",
            HandRolled::<T> { to: Arc::clone(to), permits, makes: PhantomData },
            &targets,
        ),
        entrant("fdpool", "", Pooled::<T, _>::new(resources::<T>(to, &budget)), &targets),
        entrant(
            "fdpool with room for all",
            "twice the connections",
            Pooled::<T, _>::new(resources::<T>(to, &roomy)),
            &targets,
        ),
        entrant(
            "deadpool, one for each",
            "twice the connections, no limit over all",
            Pooled::<T, _>::new(deadpools),
            &targets,
        ),
    ];
    compete(&mut entrants, ROUNDS);

    let mut table = table(["", "calls/s", "ratio", ""]);
    let mut ours = f64::NAN;
    for this in &entrants {
        let ratio = median(this.ratios_to(&entrants[0]).into_iter());
        table.add_row([&versioned(this.name), &number(this.median()), &number(ratio), this.note]);
        if this.name == "fdpool" {
            ours = ratio;
        }
    }
    let stats = budget.stats();
    report.section(title, &notes(stats.reused as f64 / (stats.reused + stats.dials) as f64), &table);
    ours
}

/// Each has a runtime of its own, and its connections with it.
fn entrant(name: &'static str, note: &'static str, calls: impl Calls, targets: &Targets) -> Entrant<f64> {
    let runtime =
        Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().expect("a runtime");
    let targets = Arc::clone(targets);
    Entrant::new(name, note, move || runtime.block_on(round(&calls, &targets)))
}

/// Calls a second.
async fn round(calls: &impl Calls, targets: &Targets) -> f64 {
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    let began = Instant::now();
    for _ in 0..CALLERS {
        let (calls, targets, next) = (calls.clone(), Arc::clone(targets), Arc::clone(&next));
        callers.spawn(async move {
            while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                calls.call(*target).await;
            }
        });
    }
    callers.join_all().await;
    CALLS as f64 / began.elapsed().as_secs_f64()
}
