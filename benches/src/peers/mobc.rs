//! `mobc`'s pool. A connection that is dropped is put by a task of its own.

use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;

use mobc::{Manager, async_trait};

use super::{Bounded, Object, Pool};

pub type Mobc<T> = mobc::Pool<Connects<T>>;

pub struct Connects<T> {
    to: SocketAddr,
    makes: PhantomData<fn() -> T>,
}

#[async_trait]
impl<T: Object> Manager for Connects<T> {
    type Connection = T;
    type Error = io::Error;

    async fn connect(&self) -> io::Result<T> {
        T::connect(self.to).await
    }

    async fn check(&self, object: T) -> io::Result<T> {
        if object.is_fit() { Ok(object) } else { Err(io::ErrorKind::ConnectionAborted.into()) }
    }
}

impl<T: Object> Pool<T> for Mobc<T> {
    type Conn<'a> = mobc::Connection<Connects<T>>;

    #[inline]
    async fn get(&self) -> Self::Conn<'_> {
        mobc::Pool::get(self).await.expect("a connection")
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
        drop(conn.into_inner());
    }
}

impl<T: Object> Bounded<T> for Mobc<T> {
    const NAME: &'static str = "mobc";

    fn open(to: SocketAddr, size: usize) -> Self {
        let size = size as u64;
        mobc::Pool::builder().max_open(size).max_idle(size).build(Connects { to, makes: PhantomData })
    }
}
