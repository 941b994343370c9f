//! The leanest pool one would write oneself: a semaphore, and a stack of idle connections.

use std::io;
use std::net::SocketAddr;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{connect, is_fit};

pub struct Pool {
    address: SocketAddr,
    idle: Mutex<Vec<TcpStream>>,
    permits: Semaphore,
}

pub struct Pooled<'a> {
    pool: &'a Pool,
    pub stream: TcpStream,
    _permit: SemaphorePermit<'a>,
}

impl Pool {
    pub fn new(address: SocketAddr, size: usize) -> Self {
        Self { address, idle: Mutex::new(Vec::with_capacity(size)), permits: Semaphore::new(size) }
    }

    pub async fn get(&self) -> io::Result<Pooled<'_>> {
        let permit = self.permits.acquire().await.map_err(io::Error::other)?;
        loop {
            let idle = self.idle.lock().pop();
            let stream = match idle {
                Some(stream) if is_fit(&stream) => stream,
                Some(_unfit) => continue,
                None => connect(self.address).await?,
            };
            return Ok(Pooled { pool: self, stream, _permit: permit });
        }
    }
}

impl Pooled<'_> {
    pub fn put(self) {
        let Pooled { pool, stream, _permit } = self;
        pool.idle.lock().push(stream);
    }
}
