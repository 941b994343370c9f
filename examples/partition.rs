//! Parts of a budget: a crawler that would take every descriptor there is gets 8 of 32, and the API client
//! beside it finds its slots free at any time. Both count in the one budget of the process.
//! Run it with `cargo run --example partition`.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fdpool::dial::Tcp;
use fdpool::{Budget, Conn, ConnResource};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

type Failure = Box<dyn Error + Send + Sync>;

const SLOTS: usize = 32;
const CRAWLER: usize = 8;
const SITES: usize = 60;

/// Answers each byte, after a while.
async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            while let Ok(byte) = stream.read_u8().await {
                tokio::time::sleep(Duration::from_millis(10)).await;
                stream.write_u8(byte).await?;
            }
            io::Result::Ok(())
        });
    }
}

async fn peer(budget: &Budget) -> io::Result<ConnResource> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let resource = ConnResource::builder(listener.local_addr()?, Tcp::default()).budget(budget).build();
    tokio::spawn(serve(listener));
    Ok(resource)
}

async fn exchange(mut conn: Conn) -> io::Result<()> {
    conn.write_u8(1).await?;
    conn.read_u8().await?;
    conn.put();
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let budget = Budget::new(SLOTS);
    let crawler = budget.child(CRAWLER);
    let api = peer(&budget).await?;

    // All sites at once: they take turns in the crawler's part.
    let (mut crawl, most) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for _ in 0..SITES {
        let (site, crawler, most) = (peer(&crawler).await?, crawler.clone(), Arc::clone(&most));
        crawl.spawn(async move {
            let conn = site.get().await?;
            let stats = crawler.stats();
            most.fetch_max(stats.in_use + stats.idle + stats.dialing, Ordering::Relaxed);
            exchange(conn).await?;
            Result::<_, Failure>::Ok(())
        });
    }

    // Meanwhile, bursts of all that is left: none has to wait for a slot.
    for burst in 0..4 {
        let mut calls = JoinSet::new();
        for _ in 0..SLOTS - CRAWLER {
            let get = api.get_owned().immediate();
            calls.spawn(async move { Result::<_, Failure>::Ok(exchange(get.await?).await?) });
        }
        while let Some(called) = calls.join_next().await {
            called??;
        }
        let (all, part) = (budget.stats(), crawler.stats());
        println!("burst {burst}: {} API calls; {} crawls wait for a slot", SLOTS - CRAWLER, part.waiting);
        assert!(all.in_use + all.idle + all.dialing + all.closing <= SLOTS);
    }
    while let Some(crawled) = crawl.join_next().await {
        crawled??;
    }
    println!("{SITES} sites crawled with at most {} connections", most.load(Ordering::Relaxed));
    assert!((1..=CRAWLER).contains(&most.load(Ordering::Relaxed)));
    assert_eq!(crawler.stats().dials, SITES as u64);
    Ok(())
}
