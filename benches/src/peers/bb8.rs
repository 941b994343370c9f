//! `bb8`'s pool.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::{connect, is_fit};

pub type Pool = bb8::Pool<Tcp>;

pub struct Tcp(SocketAddr);

pub struct Connection {
    pub stream: TcpStream,
    /// It has served before.
    pub used: bool,
    pub broken: bool,
}

impl bb8::ManageConnection for Tcp {
    type Connection = Connection;
    type Error = io::Error;

    async fn connect(&self) -> io::Result<Connection> {
        Ok(Connection { stream: connect(self.0).await?, used: false, broken: false })
    }

    async fn is_valid(&self, conn: &mut Connection) -> io::Result<()> {
        if is_fit(&conn.stream) { Ok(()) } else { Err(io::ErrorKind::ConnectionAborted.into()) }
    }

    fn has_broken(&self, conn: &mut Connection) -> bool {
        conn.broken
    }
}

pub async fn pool(address: SocketAddr, size: u32, checks: bool) -> Pool {
    let pool = bb8::Pool::builder().max_size(size).test_on_check_out(checks);
    pool.build(Tcp(address)).await.expect("a pool")
}
