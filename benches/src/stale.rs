//! A server that closes what has been idle for 50 ms, and gets at 1 kHz: how many of them return a connection that was
//! closed more than two ticks of the coarse clock before.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fdpool::dial::Tcp;
use fdpool::{Budget, ConnResource};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::peers::{bb8, deadpool};

const GETS: usize = 20_000;
const EVERY: Duration = Duration::from_millis(1);
const PEERS: usize = 48;
const IDLE: Duration = Duration::from_millis(50);
/// Two ticks of 4 ms.
const LATE: Duration = Duration::from_millis(8);

/// When a server closed which connection, by both its ends: one port of the client's may serve several at once.
type Closed = Arc<Mutex<HashMap<(SocketAddr, SocketAddr), Instant>>>;

/// What came of the gets.
#[derive(Default)]
struct Tally {
    reused: usize,
    stale: usize,
    failed: usize,
}

pub fn run() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    println!("\n{GETS} gets at 1 kHz over {PEERS} addresses whose server closes what is idle for {IDLE:?}");
    println!("{:<44} {:>8} {:>22} {:>16}", "", "reused", "closed > 8 ms before", "failed exchanges");
    runtime.block_on(async {
        let closed = Closed::default();
        let mut addresses = Vec::new();
        for _ in 0..PEERS {
            addresses.push(server(Arc::clone(&closed)).await);
        }
        let budget = Budget::new(1000);
        let resources: Vec<_> = addresses
            .iter()
            .map(|address| ConnResource::builder(*address, Tcp::default()).budget(&budget).build())
            .collect();
        let mut tally = Tally::default();
        let mut ticks = every();
        for n in 0..GETS {
            ticks.tick().await;
            let asked = Instant::now();
            let mut conn = resources[draw(n) % PEERS].get().await.expect("a connection");
            let reused = conn.is_reused();
            if tally.exchange(&closed, asked, &mut conn, reused).await {
                conn.put();
            }
        }
        tally.print("fdpool");

        for checks in [true, false] {
            let pools: Vec<_> =
                addresses.iter().map(|address| deadpool::pool_checking(*address, 16, checks)).collect();
            let mut tally = Tally::default();
            let mut ticks = every();
            for n in 0..GETS {
                ticks.tick().await;
                let asked = Instant::now();
                let mut conn = pools[draw(n) % PEERS].get().await.expect("a connection");
                let reused = deadpool::is_reused(&conn);
                if !tally.exchange(&closed, asked, &mut conn, reused).await {
                    drop(deadpool::take(conn));
                }
            }
            tally.print(if checks { "deadpool, try_read when taken" } else { "deadpool, no check" });
        }

        for checks in [true, false] {
            let mut pools = Vec::new();
            for address in &addresses {
                pools.push(bb8::pool(*address, 16, checks).await);
            }
            let mut tally = Tally::default();
            let mut ticks = every();
            for n in 0..GETS {
                ticks.tick().await;
                let asked = Instant::now();
                let mut conn = pools[draw(n) % PEERS].get().await.expect("a connection");
                let reused = std::mem::replace(&mut conn.used, true);
                let good = tally.exchange(&closed, asked, &mut conn.stream, reused).await;
                conn.broken = !good;
            }
            tally.print(if checks { "bb8, try_read when taken" } else { "bb8, no check" });
        }
    });
}

fn every() -> tokio::time::Interval {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    ticks
}

/// The same addresses in the same order for all (splitmix64; Steele, Lea, Flood 2014).
fn draw(n: usize) -> usize {
    let mut z = (n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ (z >> 31)) as usize
}

impl Tally {
    /// Asks and hears the answer. `false`: the connection failed.
    async fn exchange(
        &mut self,
        closed: &Closed,
        asked: Instant,
        conn: &mut TcpStream,
        reused: bool,
    ) -> bool {
        self.reused += usize::from(reused);
        let ends = conn.local_addr().ok().zip(conn.peer_addr().ok());
        let when = ends.and_then(|ends| closed.lock().expect("not poisoned").get(&ends).copied());
        // A fresh one may have the address of one that was closed, until its server has accepted it.
        self.stale +=
            usize::from(reused && when.is_some_and(|when| asked.saturating_duration_since(when) > LATE));
        let mut answer = [0; 4];
        let exchanged = async {
            conn.write_all(b"ping").await?;
            conn.read_exact(&mut answer).await
        };
        let good = exchanged.await.is_ok();
        self.failed += usize::from(!good);
        good
    }

    fn print(&self, name: &str) {
        println!("{name:<44} {:>8} {:>22} {:>16}", self.reused, self.stale, self.failed);
    }
}

async fn server(closed: Closed) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut peer, from)) = listener.accept().await {
            let closed = Arc::clone(&closed);
            closed.lock().expect("not poisoned").remove(&(from, address));
            tokio::spawn(async move {
                let mut ping = [0; 4];
                while let Ok(Ok(_)) = timeout(IDLE, peer.read_exact(&mut ping)).await {
                    if peer.write_all(&ping).await.is_err() {
                        break;
                    }
                }
                drop(peer);
                closed.lock().expect("not poisoned").insert((from, address), Instant::now());
            });
        }
    });
    address
}
