//! `bb8`'s pool.

use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;

use bb8::{ManageConnection, PooledConnection};

use super::{Bounded, Object, Pool, Remembers};

pub type Bb8<T> = bb8::Pool<Connects<T>>;

pub struct Connects<T> {
    to: SocketAddr,
    makes: PhantomData<fn() -> T>,
}

/// Its way to discard a connection is to ask the manager whether it is broken.
pub struct Connection<T> {
    pub object: T,
    pub broken: bool,
    used: bool,
}

impl<T: Object> ManageConnection for Connects<T> {
    type Connection = Connection<T>;
    type Error = io::Error;

    async fn connect(&self) -> io::Result<Connection<T>> {
        Ok(Connection { object: T::connect(self.to).await?, broken: false, used: false })
    }

    async fn is_valid(&self, conn: &mut Connection<T>) -> io::Result<()> {
        if conn.object.is_fit() { Ok(()) } else { Err(io::ErrorKind::ConnectionAborted.into()) }
    }

    fn has_broken(&self, conn: &mut Connection<T>) -> bool {
        conn.broken
    }
}

impl<T: Object> Pool<T> for Bb8<T> {
    type Conn<'a> = PooledConnection<'a, Connects<T>>;

    #[inline]
    async fn get(&self) -> Self::Conn<'_> {
        bb8::Pool::get(self).await.expect("a connection")
    }

    #[inline]
    fn object<'c>(&self, conn: &'c mut Self::Conn<'_>) -> &'c mut T {
        &mut conn.object
    }

    #[inline]
    fn put(&self, mut conn: Self::Conn<'_>) {
        conn.used = true;
    }

    fn discard(&self, mut conn: Self::Conn<'_>) {
        conn.broken = true;
    }
}

impl<T: Object> Remembers<T> for Bb8<T> {
    fn is_reused(&self, conn: &Self::Conn<'_>) -> bool {
        conn.used
    }
}

impl<T: Object> Bounded<T> for Bb8<T> {
    const NAME: &'static str = "bb8";

    fn open(to: SocketAddr, size: usize) -> Self {
        pool(to, size, true)
    }
}

pub fn pool<T: Object>(to: SocketAddr, size: usize, checks: bool) -> Bb8<T> {
    let size = size.try_into().expect("a size that bb8 can count");
    let connects = Connects { to, makes: PhantomData };
    bb8::Pool::builder().max_size(size).test_on_check_out(checks).build_unchecked(connects)
}
