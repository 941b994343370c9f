//! Half a proxy: what a client sends goes to a pooled upstream connection, and back. Each relay takes two
//! descriptors, the client's and the upstream's: both or none, so that relays cannot wait for each other.
//! Run it with `cargo run --example proxy`.

use std::error::Error;
use std::io;

use fdpool::dial::Tcp;
use fdpool::{Budget, ConnResource, Held, Slot};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

type Failure = Box<dyn Error + Send + Sync>;

const CLIENTS: u64 = 12;

/// Sends back what it gets.
async fn echo(listener: TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await
        });
    }
}

async fn relay(mut client: Held<TcpStream>, upstream: ConnResource, slot: Slot) -> Result<u64, Failure> {
    let mut conn = upstream.get().with_slot(slot).await?;
    let (sent, received) = copy_bidirectional(&mut client, &mut conn).await?;
    // Not put: it ended, and even a connection that had not would be in a state that only the client knows.
    // A put would see the end and close all the same; this says it.
    conn.close();
    Ok(sent + received)
}

/// Relays so many clients.
async fn proxy(listener: TcpListener, upstream: ConnResource, clients: u64) -> Result<u64, Failure> {
    let mut relays = JoinSet::new();
    for _ in 0..clients {
        // Before the accept: a client that there is no room for stays in the listener's backlog.
        let mut slot = upstream.budget().acquire_many(2).await?;
        let (client, _) = listener.accept().await?;
        let upstream_slot = slot.split(1).ok_or("a slot of weight 2")?;
        relays.spawn(relay(slot.hold(client), upstream.clone(), upstream_slot));
    }
    let mut bytes = 0;
    while let Some(relayed) = relays.join_next().await {
        bytes += relayed??;
    }
    Ok(bytes)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let server = TcpListener::bind("127.0.0.1:0").await?;
    let budget = Budget::new(6); // three relays at a time
    let upstream = ConnResource::builder(server.local_addr()?, Tcp::default()).budget(&budget).build();
    tokio::spawn(echo(server));

    let entrance = TcpListener::bind("127.0.0.1:0").await?;
    let address = entrance.local_addr()?;
    let proxy = tokio::spawn(proxy(entrance, upstream.clone(), CLIENTS));

    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        clients.spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(format!("hello from {n}").as_bytes()).await?;
            stream.shutdown().await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            io::Result::Ok((n, answer))
        });
    }
    while let Some(answered) = clients.join_next().await {
        let (n, answer) = answered??;
        assert_eq!(answer, format!("hello from {n}"));
    }

    let bytes = proxy.await??;
    let (upstream, budget) = (upstream.stats(), budget.stats());
    println!("{CLIENTS} clients, {bytes} bytes, {} upstream dials, {} waits", upstream.dials, budget.waits);
    assert_eq!((upstream.dials, upstream.reused, upstream.dropped), (CLIENTS, 0, 0));
    assert_eq!((budget.in_use, budget.idle, budget.held), (0, 0, 0), "all given back");
    Ok(())
}
