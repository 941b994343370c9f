//! What fdpool is compared with.

use std::io;

use tokio::net::TcpStream;

pub mod bb8;
pub mod deadpool;
pub mod handrolled;

/// The check that all of them make before they reuse a connection: nothing has arrived, not even the end.
#[inline]
pub fn is_fit(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

pub async fn connect(address: std::net::SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
