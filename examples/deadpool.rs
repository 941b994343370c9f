//! A pool of the crate deadpool under the same budget as fdpool's own connections: one line more than without.
//! Run it with `cargo run --example deadpool`.

use std::error::Error;
use std::io;
use std::net::SocketAddr;

use deadpool::managed::{Manager, Metrics, RecycleResult};
use fdpool::dial::Tcp;
use fdpool::{Budget, ConnResource, interop};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Stands for the manager of deadpool-redis, deadpool-postgres, or one of your own.
struct Streams(SocketAddr);

impl Manager for Streams {
    type Type = TcpStream;
    type Error = io::Error;

    async fn create(&self) -> io::Result<TcpStream> {
        TcpStream::connect(self.0).await
    }

    async fn recycle(&self, _stream: &mut TcpStream, _metrics: &Metrics) -> RecycleResult<io::Error> {
        Ok(())
    }
}

/// Sends back what it is sent.
async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let (mut peer, _) = listener.accept().await?;
        tokio::spawn(async move {
            let (mut from, mut to) = peer.split();
            tokio::io::copy(&mut from, &mut to).await
        });
    }
}

async fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"hello").await?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.map(drop)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(serve(listener));

    let budget = Budget::new(2);
    let pool = interop::deadpool::builder(Streams(address), &budget).max_size(2).build()?;
    let peer = ConnResource::builder(address, Tcp::default()).budget(&budget).build();

    let (mut one, mut two) = (pool.get().await?, pool.get().await?);
    exchange(&mut one).await?;
    exchange(&mut two).await?;
    println!("two objects of deadpool in use: {}", budget.explain());
    drop((one, two));

    let mut conn = peer.get().await?;
    exchange(&mut conn).await?;
    assert_eq!((budget.stats().held, budget.stats().in_use), (1, 1));
    println!("one closed for a connection of ours: {}", budget.explain());
    conn.put();

    let (one, two) = (pool.get().await?, pool.get().await?);
    assert_eq!((budget.stats().held, budget.stats().idle), (2, 0));
    println!("and ours closed for one of deadpool's: {}", budget.explain());
    drop((one, two));
    Ok(())
}
