//! `hyper_util::client::pool::cache`, driven as the service it is. No limit; its check is the connection's readiness.

use std::future::{Future, poll_fn};
use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::pool::cache;
use tower_service::Service;

use super::{Object, Pool};

/// Makes services of connections.
struct Connects<T> {
    makes: PhantomData<fn() -> T>,
}

impl<T> Clone for Connects<T> {
    fn clone(&self) -> Self {
        Self { makes: PhantomData }
    }
}

impl<T: Object> Service<SocketAddr> for Connects<T> {
    type Response = Connection<T>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Connection<T>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: SocketAddr) -> Self::Future {
        Box::pin(async move { Ok(Connection { object: T::connect(to).await?, broken: false }) })
    }
}

/// A service that is not ready is not cached again.
struct Connection<T> {
    object: T,
    broken: bool,
}

impl<T: Object> Service<()> for Connection<T> {
    type Response = ();
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<()>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let fit = !self.broken && self.object.is_fit();
        Poll::Ready(if fit { Ok(()) } else { Err(io::ErrorKind::ConnectionAborted.into()) })
    }

    fn call(&mut self, (): ()) -> Self::Future {
        std::future::ready(Ok(()))
    }
}

/// A cache whose type has no name.
struct Cache<T, C, A> {
    to: SocketAddr,
    cache: C,
    connection: A,
    pools: PhantomData<fn() -> T>,
}

impl<T, C: Clone, A: Clone> Clone for Cache<T, C, A> {
    fn clone(&self) -> Self {
        let (cache, connection) = (self.cache.clone(), self.connection.clone());
        Self { to: self.to, cache, connection, pools: PhantomData }
    }
}

impl<T, C, A> Pool<T> for Cache<T, C, A>
where
    T: Object,
    C: Service<SocketAddr, Error = io::Error> + Clone + Send + Sync + 'static,
    C::Response: Service<(), Error = io::Error> + Send,
    C::Future: Send,
    A: Fn(&mut C::Response) -> &mut Connection<T> + Clone + Send + Sync + 'static,
{
    type Conn<'a> = C::Response;

    #[inline]
    async fn get(&self) -> C::Response {
        let mut cache = self.cache.clone();
        loop {
            poll_fn(|cx| cache.poll_ready(cx)).await.expect("always ready");
            let mut cached = cache.call(self.to).await.expect("a connection");
            if poll_fn(|cx| cached.poll_ready(cx)).await.is_ok() {
                return cached;
            }
        }
    }

    #[inline]
    fn object<'c>(&self, conn: &'c mut C::Response) -> &'c mut T {
        &mut (self.connection)(conn).object
    }

    #[inline]
    fn put(&self, conn: C::Response) {
        drop(conn);
    }

    fn discard(&self, mut conn: C::Response) {
        (self.connection)(&mut conn).broken = true;
    }
}

pub fn pool<T: Object>(to: SocketAddr) -> impl Pool<T> {
    let cache = cache::builder().build(Connects { makes: PhantomData });
    named(to, cache, |cached| cached.inner_mut())
}

/// Lets the closure's argument be inferred.
fn named<T, C, A>(to: SocketAddr, cache: C, connection: A) -> Cache<T, C, A>
where
    C: Service<SocketAddr>,
    A: Fn(&mut C::Response) -> &mut Connection<T>,
{
    Cache { to, cache, connection, pools: PhantomData }
}
