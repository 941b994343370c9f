//! `deadpool`'s managed pool.

use std::io;
use std::net::SocketAddr;

use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use tokio::net::TcpStream;

use super::{connect, is_fit};

pub type Pool = managed::Pool<Tcp>;

pub struct Tcp(SocketAddr);

impl managed::Manager for Tcp {
    type Type = TcpStream;
    type Error = io::Error;

    async fn create(&self) -> io::Result<TcpStream> {
        connect(self.0).await
    }

    async fn recycle(&self, stream: &mut TcpStream, _: &Metrics) -> RecycleResult<io::Error> {
        if is_fit(stream) { Ok(()) } else { Err(RecycleError::message("not fit")) }
    }
}

pub fn pool(address: SocketAddr, size: usize) -> Pool {
    Pool::builder(Tcp(address)).max_size(size).build().expect("a pool without timeouts")
}
