//! Live sockets to measure with.

use std::net::SocketAddr;

use tokio::net::TcpListener;

/// A listener of this runtime that accepts, keeps what it accepted, and never says a word.
pub async fn silent() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut accepted = Vec::new();
        while let Ok((peer, _)) = listener.accept().await {
            accepted.push(peer);
        }
    });
    address
}
