//! Connections made a second, beside those of a bare `connect`: one at a time and many at once. They go to addresses all
//! over 127.0.0.0/8 and are closed by their server first, so that neither ports nor TIME_WAIT decide.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fdpool::dial::Tcp;
use fdpool::{Budget, Conn, ConnResource};
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::loopback::{Manner, Server};
use crate::measure::{Entrant, compete, median, median_interval};
use crate::peers::bb8::{self, Bb8};
use crate::peers::deadpool::{self, Deadpool};
use crate::peers::handrolled::HandRolled;
use crate::peers::{Bounded, Object, Unit};
use crate::report::{Asked, Report, number, table, versioned};

const AT_ONCE: usize = 64;
const CONNECTIONS: usize = 512;
const ROUNDS: usize = 41;
const RAW: &str = "TcpStream::connect";
const FDPOOL: &str = "fdpool";

/// Something that makes connections to addresses by their numbers.
trait Opens: Clone + Send + Sync + 'static {
    type Open: Send + 'static;

    fn open(&self, n: usize) -> impl Future<Output = Self::Open> + Send;

    fn stream(open: &mut Self::Open) -> &mut TcpStream;

    /// Closes it.
    fn discard(open: Self::Open);
}

/// No pool at all.
#[derive(Clone)]
struct Raw {
    to: Arc<[SocketAddr]>,
    /// The socket options that fdpool sets when it is not told otherwise.
    careful: bool,
}

impl Opens for Raw {
    type Open = TcpStream;

    async fn open(&self, n: usize) -> TcpStream {
        if !self.careful {
            let stream = TcpStream::connect(self.to[n]).await.expect("a connection");
            stream.set_nodelay(true).expect("a socket");
            return stream;
        }
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_nodelay(true).expect("a socket");
        let probes = TcpKeepalive::new()
            .with_time(Duration::from_secs(60))
            .with_interval(Duration::from_secs(10))
            .with_retries(3);
        SockRef::from(&socket).set_tcp_keepalive(&probes).expect("a socket");
        #[cfg(target_os = "linux")]
        SockRef::from(&socket).set_tcp_user_timeout(Some(Duration::from_secs(85))).expect("a socket");
        socket.connect(self.to[n]).await.expect("a connection")
    }

    fn stream(open: &mut TcpStream) -> &mut TcpStream {
        open
    }

    fn discard(open: TcpStream) {
        drop(open);
    }
}

/// A pool for each address, the leanest one would write oneself: what a dial takes where nothing but a permit is counted.
struct Lean {
    to: SocketAddr,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<TcpStream>>,
}

impl Opens for Arc<[Lean]> {
    /// The connection goes before its permit.
    type Open = (TcpStream, OwnedSemaphorePermit);

    async fn open(&self, n: usize) -> Self::Open {
        let Lean { to, permits, idle } = &self[n];
        let permit = Arc::clone(permits).acquire_owned().await.expect("never closed");
        let found = idle.lock().pop();
        let stream = match found {
            Some(stream) => stream,
            None => TcpStream::connect(to).await.expect("a connection"),
        };
        stream.set_nodelay(true).expect("a socket");
        (stream, permit)
    }

    fn stream((stream, _): &mut Self::Open) -> &mut TcpStream {
        stream
    }

    fn discard(open: Self::Open) {
        drop(open);
    }
}

impl Opens for Arc<[ConnResource]> {
    type Open = Conn;

    async fn open(&self, n: usize) -> Conn {
        self[n].get().await.expect("a connection")
    }

    fn stream(open: &mut Conn) -> &mut TcpStream {
        open
    }

    fn discard(open: Conn) {
        open.close();
    }
}

impl Opens for Arc<[Deadpool<TcpStream>]> {
    type Open = ::deadpool::managed::Object<deadpool::Connects<TcpStream>>;

    async fn open(&self, n: usize) -> Self::Open {
        self[n].get().await.expect("a connection")
    }

    fn stream(open: &mut Self::Open) -> &mut TcpStream {
        open
    }

    fn discard(open: Self::Open) {
        drop(::deadpool::managed::Object::take(open));
    }
}

impl Opens for Arc<[Bb8<TcpStream>]> {
    type Open = ::bb8::PooledConnection<'static, bb8::Connects<TcpStream>>;

    async fn open(&self, n: usize) -> Self::Open {
        self[n].get_owned().await.expect("a connection")
    }

    fn stream(open: &mut Self::Open) -> &mut TcpStream {
        &mut open.object
    }

    fn discard(mut open: Self::Open) {
        open.broken = true;
    }
}

pub fn run(report: &mut Report) {
    rlimit::increase_nofile_limit(rlimit::INFINITY).expect("up to the hard limit");
    let server = Server::start(Manner::Close);
    let to: Arc<[SocketAddr]> = (0..CONNECTIONS).map(|n| server.address(n)).collect();
    let mut table = table(["", "at once", "connections/s", "ratio", "95 % interval"]);
    for at_once in [1, AT_ONCE] {
        let entrants = measured(&to, at_once);
        for this in &entrants {
            let ratios = this.ratios_to(&entrants[0]);
            let (low, high) = median_interval(ratios.iter().copied());
            let ratio = median(ratios.into_iter());
            table.add_row([
                versioned(this.name),
                at_once.to_string(),
                number(this.median()),
                format!("{ratio:.3}"),
                format!("{low:.3} to {high:.3}"),
            ]);
            if this.name == FDPOOL {
                report.bar(
                    format!("dials, {at_once} at once, of a bare connect's"),
                    ratio,
                    Asked::AtLeast(0.97),
                );
            }
        }
    }
    let notes = format!(
        "{CONNECTIONS} connections, one to each of as many addresses, are opened and kept, which is timed; then all are \
         closed, their server first. {ROUNDS} rounds; the interval is that of the median of the rounds' ratios. All set \
         TCP_NODELAY and nothing else, but for the two rows that say so: those also set keepalive (SO_KEEPALIVE, \
         TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT) and TCP_USER_TIMEOUT, fdpool's defaults. Pools are one for each address."
    );
    report.section("dials", &notes, &table);
}

fn measured(to: &Arc<[SocketAddr]>, at_once: usize) -> Vec<Entrant<f64>> {
    let runtime = Arc::new(Builder::new_current_thread().enable_all().build().expect("a runtime"));
    let entered = runtime.enter();
    let plain = Tcp::default().keepalive(None).user_timeout(None);
    let deadpools: Arc<[Deadpool<TcpStream>]> = to.iter().map(|to| deadpool::pool(*to, 1, true)).collect();
    let lean =
        |to: &SocketAddr| Lean { to: *to, permits: Arc::new(Semaphore::new(1)), idle: Mutex::default() };
    let leans: Arc<[Lean]> = to.iter().map(lean).collect();
    let bb8s: Arc<[Bb8<TcpStream>]> = to.iter().map(|to| bb8::pool(*to, 1, true)).collect();
    let mut entrants = vec![
        entrant(&runtime, RAW, Raw { to: Arc::clone(to), careful: false }, at_once),
        entrant(&runtime, FDPOOL, resources(to, plain), at_once),
        entrant(&runtime, HandRolled::<TcpStream>::NAME, leans, at_once),
        entrant(&runtime, "deadpool", deadpools, at_once),
        entrant(&runtime, "bb8", bb8s, at_once),
        entrant(
            &runtime,
            "connect with fdpool's options",
            Raw { to: Arc::clone(to), careful: true },
            at_once,
        ),
        entrant(&runtime, "fdpool with its options", resources(to, Tcp::default()), at_once),
    ];
    drop(entered);
    compete(&mut entrants, ROUNDS);
    entrants
}

fn resources(to: &[SocketAddr], dialer: Tcp) -> Arc<[ConnResource]> {
    let (budget, dialer) = (Budget::new(CONNECTIONS), Arc::new(dialer));
    let resource = |to: &SocketAddr| ConnResource::builder(*to, Arc::clone(&dialer)).budget(&budget).build();
    to.iter().map(resource).collect()
}

fn entrant(runtime: &Arc<Runtime>, name: &'static str, opens: impl Opens, at_once: usize) -> Entrant<f64> {
    let runtime = Arc::clone(runtime);
    Entrant::new(name, "", move || runtime.block_on(round(&opens, at_once)))
}

/// Connections a second.
async fn round<O: Opens>(opens: &O, at_once: usize) -> f64 {
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for task in 0..at_once {
        let opens = opens.clone();
        tasks.spawn(async move {
            let mut open = Vec::with_capacity(CONNECTIONS / at_once);
            for n in (task..CONNECTIONS).step_by(at_once) {
                open.push(opens.open(n).await);
            }
            open
        });
    }
    let opened = tasks.join_all().await;
    let rate = CONNECTIONS as f64 / began.elapsed().as_secs_f64();
    for open in opened.into_iter().flatten() {
        discard::<O>(open).await;
    }
    rate
}

/// Once its server has closed it.
async fn discard<O: Opens>(mut open: O::Open) {
    let end = O::stream(&mut open).read(&mut [0]).await;
    assert_eq!(end.expect("the end"), 0);
    O::discard(open);
}

/// Nothing but `dials` connections, one after the other, each closed before the next.
pub fn run_loop(object: &str, dials: usize) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    if object == "unit" {
        let to = SocketAddr::from(([127, 0, 0, 1], 1));
        let units = ConnResource::builder(to, Unit::dialer()).budget(&Budget::new(1)).build();
        let dialing = runtime.spawn(async move {
            for _ in 0..dials {
                units.get().await.expect("a unit").close();
            }
        });
        runtime.block_on(dialing).expect("does not panic");
        return;
    }
    let server = Server::start(Manner::Close);
    let to: Arc<[SocketAddr]> = (0..CONNECTIONS).map(|n| server.address(n)).collect();
    let plain = Tcp::default().keepalive(None).user_timeout(None);
    match object {
        "raw" => runtime.block_on(one_by_one(Raw { to, careful: false }, dials)),
        _ => runtime.block_on(one_by_one(resources(&to, plain), dials)),
    }
}

async fn one_by_one<O: Opens>(opens: O, dials: usize) {
    let dialing = async move {
        for n in 0..dials {
            discard::<O>(opens.open(n % CONNECTIONS).await).await;
        }
    };
    tokio::spawn(dialing).await.expect("does not panic");
}
