//! What fdpool is compared with, each driven as its documentation says: what is pooled, and what a pool does with it.
//! One file a pool. Knows nothing of what is measured.

use std::future::Future;
use std::hint::black_box;
use std::io;
use std::net::SocketAddr;

use fdpool::dial::Tcp;
use fdpool::{Address, CheckContext, Dial, DialContext, DialError, Fitness};
use tokio::net::TcpStream;

pub mod bare;
pub mod bb8;
pub mod deadpool;
pub mod fast_pool;
pub mod handrolled;
pub mod hyper;
pub mod keyed;
pub mod mobc;
pub mod ours;
pub mod pingora;
pub mod qp;
pub mod secure;

/// What is pooled.
pub trait Object: Send + Sync + Unpin + Sized + 'static {
    type Dialer: Dial<Conn = Self>;

    /// fdpool's way to have one.
    fn dialer() -> Self::Dialer;

    /// Everybody else's.
    fn connect(to: SocketAddr) -> impl Future<Output = io::Result<Self>> + Send;

    /// The check that all of them make before they reuse one.
    fn is_fit(&self) -> bool;
}

impl Object for TcpStream {
    type Dialer = Tcp;

    fn dialer() -> Tcp {
        Tcp::default()
    }

    async fn connect(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Nothing has arrived, not even the end.
    #[inline]
    fn is_fit(&self) -> bool {
        matches!(self.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Nothing: what is measured is the pool.
#[derive(Clone, Copy, Debug)]
pub struct Unit;

/// Makes units.
#[derive(Clone, Copy, Debug)]
pub struct Units;

impl Object for Unit {
    type Dialer = Units;

    fn dialer() -> Units {
        Units
    }

    async fn connect(_: SocketAddr) -> io::Result<Self> {
        Ok(Unit)
    }

    fn is_fit(&self) -> bool {
        true
    }
}

impl Dial for Units {
    type Conn = Unit;

    async fn dial(&self, _: &Address, _: &DialContext) -> Result<Unit, DialError> {
        Ok(Unit)
    }

    fn check(&self, _: &mut Unit, _: &CheckContext) -> Fitness {
        Fitness::Fit
    }
}

/// A pool of connections to one address; a handle.
pub trait Pool<T: 'static>: Clone + Send + Sync + 'static {
    /// A connection in use.
    type Conn<'a>: Send;

    fn get(&self) -> impl Future<Output = Self::Conn<'_>> + Send;

    fn object<'c>(&self, conn: &'c mut Self::Conn<'_>) -> &'c mut T;

    fn put(&self, conn: Self::Conn<'_>);

    /// Instead of a put: it is not to be used again.
    fn discard(&self, conn: Self::Conn<'_>);
}

/// A pool that has no more than so many connections, and lets callers wait.
pub trait Bounded<T: 'static>: Pool<T> {
    const NAME: &'static str;

    fn open(to: SocketAddr, size: usize) -> Self;
}

/// A pool that knows which connections have served before.
pub trait Remembers<T: 'static>: Pool<T> {
    fn is_reused(&self, conn: &Self::Conn<'_>) -> bool;
}

/// Nothing but pairs of get and put.
pub async fn pairs<T: Object>(pool: impl Pool<T>, n: usize) {
    for _ in 0..n {
        pair(&pool).await;
    }
}

/// A get, a glance at the connection, and a put.
#[inline]
pub async fn pair<T: Object>(pool: &impl Pool<T>) {
    let mut conn = pool.get().await;
    black_box(pool.object(&mut conn));
    pool.put(conn);
}
