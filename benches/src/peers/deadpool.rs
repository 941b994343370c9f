//! `deadpool`'s managed pool.

use std::io;
use std::net::SocketAddr;

use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use tokio::net::TcpStream;

use super::{connect, is_fit};

pub type Pool = managed::Pool<Tcp>;

pub struct Tcp {
    address: SocketAddr,
    checks: bool,
}

impl managed::Manager for Tcp {
    type Type = TcpStream;
    type Error = io::Error;

    async fn create(&self) -> io::Result<TcpStream> {
        connect(self.address).await
    }

    async fn recycle(&self, stream: &mut TcpStream, _: &Metrics) -> RecycleResult<io::Error> {
        if !self.checks || is_fit(stream) { Ok(()) } else { Err(RecycleError::message("not fit")) }
    }
}

pub fn pool(address: SocketAddr, size: usize) -> Pool {
    pool_checking(address, size, true)
}

pub fn pool_checking(address: SocketAddr, size: usize, checks: bool) -> Pool {
    Pool::builder(Tcp { address, checks }).max_size(size).build().expect("a pool without timeouts")
}

pub fn is_reused(object: &managed::Object<Tcp>) -> bool {
    managed::Object::metrics(object).recycle_count > 0
}

/// Out of the pool.
pub fn take(object: managed::Object<Tcp>) -> TcpStream {
    managed::Object::take(object)
}
