//! fdpool: a resource of an address, in a budget of its own, which bounds it or does not.

use std::net::SocketAddr;

use fdpool::{Budget, Conn, ConnResource};
use tokio::net::TcpStream;

use super::{Bounded, Object, Pool, Remembers};

impl<T: Object> Pool<T> for ConnResource<T> {
    type Conn<'a> = Conn<T>;

    #[inline]
    async fn get(&self) -> Self::Conn<'_> {
        ConnResource::get(self).await.expect("a connection")
    }

    #[inline]
    fn object<'c>(&self, conn: &'c mut Self::Conn<'_>) -> &'c mut T {
        conn
    }

    #[inline]
    fn put(&self, conn: Self::Conn<'_>) {
        conn.put();
    }

    fn discard(&self, conn: Self::Conn<'_>) {
        conn.close();
    }
}

impl<T: Object> Remembers<T> for ConnResource<T> {
    fn is_reused(&self, conn: &Conn<T>) -> bool {
        conn.is_reused()
    }
}

impl<T: Object> Bounded<T> for ConnResource<T> {
    const NAME: &'static str = "fdpool";

    fn open(to: SocketAddr, size: usize) -> Self {
        ConnResource::builder(to, T::dialer()).budget(&Budget::new(size)).build()
    }
}

/// A budget that is never used up: what bounds the connections is the address's `max_conns`.
#[derive(Clone)]
pub struct MaxConns(ConnResource);

impl Pool<TcpStream> for MaxConns {
    type Conn<'a> = Conn;

    #[inline]
    async fn get(&self) -> Conn {
        Pool::get(&self.0).await
    }

    #[inline]
    fn object<'c>(&self, conn: &'c mut Conn) -> &'c mut TcpStream {
        conn
    }

    #[inline]
    fn put(&self, conn: Conn) {
        conn.put();
    }

    fn discard(&self, conn: Conn) {
        conn.close();
    }
}

impl Bounded<TcpStream> for MaxConns {
    const NAME: &'static str = "fdpool, by max_conns";

    fn open(to: SocketAddr, size: usize) -> Self {
        Self(
            ConnResource::builder(to, TcpStream::dialer())
                .budget(&Budget::new(100 * size))
                .max_conns(size)
                .build(),
        )
    }
}
