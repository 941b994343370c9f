//! Handlers that run at the same time and share one map of peers: the lock is held to find a peer's resource,
//! a handle that is cheap to clone, and never while a connection is waited for.
//! Run it with `cargo run --example handlers`.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use fdpool::dial::Tcp;
use fdpool::{Address, Budget, Conn, ConnResource};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const PEERS: usize = 3;
const REQUESTS: usize = 120;

#[derive(Debug)]
struct Peers {
    budget: Budget,
    /// Held for a look at the map only: a plain lock will do.
    resources: Mutex<HashMap<Address, ConnResource>>,
}

impl Peers {
    fn new(budget: Budget) -> Self {
        Self { budget, resources: Mutex::default() }
    }

    /// The resource of an address; made when it is asked for first, and kept: it learns how often it is wanted.
    fn resource(&self, address: &str) -> ConnResource {
        let mut resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = resources.get(address) {
            return known.clone();
        }
        let builder = ConnResource::builder(address, Tcp::default());
        let new = builder.budget(&self.budget).max_conns(4).build();
        resources.insert(new.address().clone(), new.clone());
        new
    }
}

/// Has its connection brought to it.
async fn double(mut conn: Conn, n: u32) -> io::Result<u32> {
    conn.write_u32(n).await?;
    let doubled = conn.read_u32().await?;
    conn.put();
    Ok(doubled)
}

/// Doubles numbers.
async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            while let Ok(n) = stream.read_u32().await {
                stream.write_u32(2 * n).await?;
            }
            io::Result::Ok(())
        });
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut addresses = Vec::new();
    for _ in 0..PEERS {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        addresses.push(listener.local_addr()?.to_string());
        tokio::spawn(serve(listener));
    }

    let peers = Arc::new(Peers::new(Budget::new(64)));
    let mut handlers = JoinSet::new();
    for n in 0..REQUESTS {
        let (peers, address) = (Arc::clone(&peers), addresses[n % PEERS].clone());
        handlers.spawn(async move {
            // `get` would borrow the resource; this keeps a handle of its own, and can go anywhere.
            let get = peers.resource(&address).get_owned();
            let doubled = double(get.await?, n as u32).await?;
            Result::<_, Box<dyn Error + Send + Sync>>::Ok((n, doubled))
        });
    }
    while let Some(handled) = handlers.join_next().await {
        let (n, doubled) = handled?.map_err(|error| error.to_string())?;
        assert_eq!(doubled as usize, 2 * n);
    }

    for (address, resource) in peers.resources.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let stats = resource.stats();
        println!("{address}: {} dials, {} reused, {} waits", stats.dials, stats.reused, stats.waits);
        assert!(stats.idle <= 4, "max_conns");
    }
    let stats = peers.budget.stats();
    println!("{REQUESTS} requests over {} connections", stats.dials);
    assert!(stats.dials <= 4 * PEERS as u64);
    assert_eq!(stats.in_use, 0);
    Ok(())
}
