//! Trying again: a server may close an idle connection at the moment a request is sent over it. That request
//! fails for no fault of its own, and may be sent once more, over a new connection, if it is idempotent.
//! Run it with `cargo run --example retry`.

use std::error::Error;
use std::io;
use std::time::Duration;

use fdpool::dial::Tcp;
use fdpool::{Budget, Conn, ConnResource};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Squares numbers, one a connection: has just found a connection idle for too long when the second one comes,
/// and closes it without an answer.
async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let n = stream.read_u64().await?;
            stream.write_u64(n * n).await?;
            stream.read_u64().await
        });
    }
}

/// One exchange. An error closes the connection.
async fn exchange(mut conn: Conn, n: u64) -> io::Result<u64> {
    let squared = async {
        conn.write_u64(n).await?;
        conn.read_u64().await
    };
    match squared.await {
        Ok(square) => {
            conn.put();
            Ok(square)
        }
        Err(error) => {
            conn.close();
            Err(error)
        }
    }
}

async fn square(resource: &ConnResource, n: u64) -> io::Result<u64> {
    let conn = resource.get().await?;
    let reused = conn.is_reused();
    match exchange(conn, n).await {
        // Once, and not over another idle one: that may be as old.
        Err(error) if reused => {
            println!("  {n}: {error}; once more");
            exchange(resource.get().fresh().await?, n).await
        }
        result => result,
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let budget = Budget::new(4);
    let resource = ConnResource::builder(listener.local_addr()?, Tcp::default())
        .budget(&budget)
        .dial_timeout(Duration::from_secs(2))
        .build();
    tokio::spawn(serve(listener));

    for n in 1..=5 {
        let squared = square(&resource, n).await?;
        println!("{n} squared is {squared}");
        assert_eq!(squared, n * n);
    }
    let stats = resource.stats();
    println!("{} dials, {} reused, {} dropped", stats.dials, stats.reused, stats.dropped);
    assert_eq!((stats.dials, stats.reused), (5, 4), "each reused one failed, and was replaced");
    assert_eq!(stats.dropped, 0);
    Ok(())
}
