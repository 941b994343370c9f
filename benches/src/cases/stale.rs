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

use crate::measure::Draw;
use crate::peers::Remembers;
use crate::peers::bb8::{self, Bb8};
use crate::peers::deadpool::{self, Deadpool};
use crate::report::{Report, table, versioned};

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

pub fn run(report: &mut Report) {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
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
        let mut found = table(["", "reused", "closed > 8 ms before", "failed exchanges"]);
        let mut tell = |name: &str, tally: Tally| {
            let Tally { reused, stale, failed } = tally;
            found.add_row([versioned(name), reused.to_string(), stale.to_string(), failed.to_string()]);
        };
        tell("fdpool", Tally::of(&resources, &closed).await);
        for (checks, how) in [(true, "try_read when taken"), (false, "no check")] {
            let pools: Vec<Deadpool<TcpStream>> =
                addresses.iter().map(|address| deadpool::pool(*address, 16, checks)).collect();
            tell(&format!("deadpool, {how}"), Tally::of(&pools, &closed).await);
            let pools: Vec<Bb8<TcpStream>> =
                addresses.iter().map(|address| bb8::pool(*address, 16, checks)).collect();
            tell(&format!("bb8, {how}"), Tally::of(&pools, &closed).await);
        }
        let notes = format!(
            "{GETS} gets at 1 kHz over {PEERS} addresses whose server closes what is idle for {IDLE:?}: how many return \
             a connection that was closed more than two ticks of the coarse clock before."
        );
        report.section("stale", &notes, &found);
    });
}

fn every() -> tokio::time::Interval {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    ticks
}

impl Tally {
    /// The same addresses in the same order for all.
    async fn of<P: Remembers<TcpStream>>(pools: &[P], closed: &Closed) -> Self {
        let (mut tally, mut draw, mut ticks) = (Self::default(), Draw::default(), every());
        for _ in 0..GETS {
            ticks.tick().await;
            let pool = &pools[draw.below(PEERS)];
            let asked = Instant::now();
            let mut conn = pool.get().await;
            let reused = pool.is_reused(&conn);
            if tally.exchange(closed, asked, reused, pool.object(&mut conn)).await {
                pool.put(conn);
            } else {
                pool.discard(conn);
            }
        }
        tally
    }

    /// Asks and hears the answer. `false`: the connection failed.
    async fn exchange(
        &mut self,
        closed: &Closed,
        asked: Instant,
        reused: bool,
        conn: &mut TcpStream,
    ) -> bool {
        let ends = conn.local_addr().ok().zip(conn.peer_addr().ok());
        self.reused += usize::from(reused);
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
