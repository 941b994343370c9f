//! A fleet is polled, one address after the other, by a program that may open half as many connections as the fleet has
//! addresses; see `examples/sweep`.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use fdpool::Budget;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::loopback::{Manner, Server};
use crate::measure::{Entrant, compete, median};
use crate::peers::deadpool::{self, Deadpool};
use crate::peers::keyed::resources;
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

impl<P: Pool<TcpStream>> Calls for Arc<[P]> {
    async fn call(&self, target: usize) {
        let pool = &self[target];
        let mut conn = pool.get().await;
        exchange(pool.object(&mut conn)).await;
        pool.put(conn);
    }
}

/// A semaphore, and a connection for each call.
#[derive(Clone)]
struct HandRolled {
    to: Arc<[SocketAddr]>,
    permits: Arc<Semaphore>,
}

impl Calls for HandRolled {
    async fn call(&self, target: usize) {
        let _permit = self.permits.acquire().await.expect("never closed");
        let mut stream = <TcpStream as Object>::connect(self.to[target]).await.expect("a connection");
        exchange(&mut stream).await;
    }
}

async fn exchange(stream: &mut TcpStream) {
    let mut answer = [0; 16];
    stream.write_all(b"how are you all?").await.expect("a server that listens");
    stream.read_exact(&mut answer).await.expect("a server that answers");
}

pub fn run(report: &mut Report) {
    rlimit::increase_nofile_limit(rlimit::INFINITY).expect("up to the hard limit");
    let server = Server::start(Manner::Echo);
    let to: Arc<[SocketAddr]> = (0..FLEET).map(|n| server.address(n)).collect();
    let budget = Budget::new(BUDGET);
    let roomy = Budget::new(2 * FLEET);
    let permits = Arc::new(Semaphore::new(BUDGET));
    let deadpools: Arc<[Deadpool<TcpStream>]> = to.iter().map(|to| deadpool::pool(*to, 1, true)).collect();
    let mut entrants = [
        entrant(
            "hand-rolled: Semaphore, connects each time",
            "",
            HandRolled { to: Arc::clone(&to), permits },
        ),
        entrant("fdpool", "", resources::<TcpStream>(&to, &budget)),
        entrant("fdpool with room for all", "twice the connections", resources::<TcpStream>(&to, &roomy)),
        entrant("deadpool, one for each", "twice the connections, no limit over all", deadpools),
    ];
    compete(&mut entrants, ROUNDS);

    let mut table = table(["", "calls/s", "ratio", ""]);
    for this in &entrants {
        let ratio = median(this.ratios_to(&entrants[0]).into_iter());
        table.add_row([&versioned(this.name), &number(this.median()), &number(ratio), this.note]);
        if this.name == "fdpool" {
            report.bar("sweep, of the hand-rolled's calls/s", ratio, Asked::AtLeast(3.0));
        }
    }
    let stats = budget.stats();
    let reused = stats.reused as f64 / (stats.reused + stats.dials) as f64;
    let notes = format!(
        "{FLEET} addresses polled in order by {CALLERS} tasks, at most {BUDGET} connections; {ROUNDS} rounds of {CALLS} \
         calls. fdpool reused a connection in {:.0} % of its gets; with every address polled in turn, nobody can in more \
         than half of them.",
        reused * 100.0
    );
    report.section("sweep", &notes, &table);
}

/// Each has a runtime of its own, and its connections with it.
fn entrant(name: &'static str, note: &'static str, calls: impl Calls) -> Entrant<f64> {
    let runtime =
        Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().expect("a runtime");
    Entrant::new(name, note, move || runtime.block_on(round(&calls)))
}

/// Calls a second.
async fn round(calls: &impl Calls) -> f64 {
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    let began = Instant::now();
    for _ in 0..CALLERS {
        let (calls, next) = (calls.clone(), Arc::clone(&next));
        callers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= CALLS {
                    break;
                }
                calls.call(number % FLEET).await;
            }
        });
    }
    callers.join_all().await;
    CALLS as f64 / began.elapsed().as_secs_f64()
}
