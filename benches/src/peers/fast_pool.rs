//! `fast_pool`'s pool.

use std::marker::PhantomData;
use std::net::SocketAddr;

use fast_pool::{ConnectionGuard, Manager};

use super::{Bounded, Object, Pool};

pub type FastPool<T> = fast_pool::Pool<Connects<T>>;

pub struct Connects<T> {
    to: SocketAddr,
    makes: PhantomData<fn() -> T>,
}

impl<T: Object> Manager for Connects<T> {
    type Connection = T;
    type Error = String;

    async fn connect(&self) -> Result<T, String> {
        T::connect(self.to).await.map_err(|error| error.to_string())
    }

    async fn check(&self, object: &mut T) -> Result<(), String> {
        if object.is_fit() { Ok(()) } else { Err("not fit".into()) }
    }
}

impl<T: Object> Pool<T> for FastPool<T> {
    type Conn<'a> = ConnectionGuard<Connects<T>>;

    #[inline]
    async fn get(&self) -> Self::Conn<'_> {
        fast_pool::Pool::get(self).await.expect("a connection")
    }

    #[inline]
    fn object<'c>(&self, conn: &'c mut Self::Conn<'_>) -> &'c mut T {
        conn
    }

    #[inline]
    fn put(&self, conn: Self::Conn<'_>) {
        drop(conn);
    }

    fn discard(&self, mut conn: Self::Conn<'_>) {
        conn.set_checked(false);
    }
}

impl<T: Object> Bounded<T> for FastPool<T> {
    const NAME: &'static str = "fast_pool";

    fn open(to: SocketAddr, size: usize) -> Self {
        let pool = fast_pool::Pool::new(Connects { to, makes: PhantomData });
        pool.set_max_open(size as u64);
        pool
    }
}
