//! A poller of a fleet: 40 agents, 10 of them asked in every round, and 16 descriptors for all of them. Once the
//! pool has seen them come back, their connections stay open and the others' make room. Ctrl-C ends it early.
//! Run it with `cargo run --example poller`.

use std::error::Error;
use std::io;
use std::time::Duration;

use fdpool::dial::Tcp;
use fdpool::{Budget, CancellationToken, ConnResource};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const AGENTS: usize = 40;
const SLOTS: usize = 16;
const ROUNDS: usize = 10;
/// More would leave nothing idle to choose from.
const AT_ONCE: usize = 4;

/// Answers each byte with its load.
async fn agent(listener: TcpListener, load: u32) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            while stream.read_u8().await.is_ok() {
                stream.write_u32(load).await?;
            }
            io::Result::Ok(())
        });
    }
}

/// One question, one answer. If this ends early, by an error or because it is dropped, the connection closes.
async fn poll(agent: ConnResource, stop: CancellationToken) -> Result<u32, Box<dyn Error + Send + Sync>> {
    let mut conn = agent.get().cancel(&stop).timeout(Duration::from_secs(5)).await?;
    conn.write_u8(b'?').await?;
    let load = conn.read_u32().await?;
    conn.put();
    Ok(load)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let budget = Budget::new(SLOTS);
    let mut fleet = Vec::new();
    for load in 0..AGENTS as u32 {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        fleet.push(ConnResource::builder(listener.local_addr()?, Tcp::default()).budget(&budget).build());
        tokio::spawn(agent(listener, load));
    }

    let stop = CancellationToken::new();
    let on_signal = stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            on_signal.cancel();
        }
    });

    let (mut asked, mut answers) = (0, 0);
    for round in 0..ROUNDS {
        let reused_before = budget.stats().reused;
        let mut polls = JoinSet::new();
        let mut due = fleet.iter().enumerate().filter(|(n, _)| n % 4 == 0 || round % 4 == 0).peekable();
        while due.peek().is_some() || !polls.is_empty() {
            for (_, agent) in due.by_ref().take(AT_ONCE - polls.len()) {
                polls.spawn(poll(agent.clone(), stop.clone()));
                asked += 1;
            }
            match polls.join_next().await.transpose()? {
                Some(Ok(_load)) => answers += 1,
                Some(Err(error)) => println!("  {error}"),
                None => {}
            }
        }
        let stats = budget.stats();
        let (reused, open) = (stats.reused - reused_before, stats.idle + stats.closing);
        println!("round {round}: {asked} polls so far, {reused} over open connections; {open} open now");
        assert!(open <= SLOTS);
        if stop.run_until_cancelled(tokio::time::sleep(Duration::from_millis(50))).await.is_none() {
            println!("interrupted");
            return Ok(());
        }
    }

    let stats = budget.stats();
    println!("{answers} answers, {} dials, {} evicted", stats.dials, stats.evicted);
    assert_eq!(answers, asked);
    assert_eq!(stats.dials + stats.reused, asked, "each poll dials or reuses");
    assert!(stats.reused > 0);
    Ok(())
}
