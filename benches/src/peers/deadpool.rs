//! `deadpool`'s managed pool.

use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;

use deadpool::managed::{Manager, Metrics, Object as Pooled, Pool as Managed, RecycleError, RecycleResult};

use super::{Bounded, Object, Pool, Remembers};

pub type Deadpool<T> = Managed<Connects<T>>;

pub struct Connects<T> {
    to: SocketAddr,
    checks: bool,
    makes: PhantomData<fn() -> T>,
}

impl<T: Object> Manager for Connects<T> {
    type Type = T;
    type Error = io::Error;

    async fn create(&self) -> io::Result<T> {
        T::connect(self.to).await
    }

    async fn recycle(&self, object: &mut T, _: &Metrics) -> RecycleResult<io::Error> {
        if !self.checks || object.is_fit() { Ok(()) } else { Err(RecycleError::message("not fit")) }
    }
}

impl<T: Object> Pool<T> for Deadpool<T> {
    type Conn<'a> = Pooled<Connects<T>>;

    #[inline]
    async fn get(&self) -> Self::Conn<'_> {
        Managed::get(self).await.expect("a connection")
    }

    #[inline]
    fn object<'c>(&self, conn: &'c mut Self::Conn<'_>) -> &'c mut T {
        conn
    }

    #[inline]
    fn put(&self, conn: Self::Conn<'_>) {
        drop(conn);
    }

    fn discard(&self, conn: Self::Conn<'_>) {
        drop(Pooled::take(conn));
    }
}

impl<T: Object> Remembers<T> for Deadpool<T> {
    fn is_reused(&self, conn: &Self::Conn<'_>) -> bool {
        Pooled::metrics(conn).recycle_count > 0
    }
}

impl<T: Object> Bounded<T> for Deadpool<T> {
    const NAME: &'static str = "deadpool";

    fn open(to: SocketAddr, size: usize) -> Self {
        pool(to, size, true)
    }
}

pub fn pool<T: Object>(to: SocketAddr, size: usize, checks: bool) -> Deadpool<T> {
    let connects = Connects { to, checks, makes: PhantomData };
    Managed::builder(connects).max_size(size).build().expect("a pool without timeouts")
}
