//! `qp`'s pool.

use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;

use qp::resource::Manage;
use qp::{Pooled, async_trait};

use super::{Bounded, Object, Pool};

pub type Qp<T> = qp::Pool<Connects<T>>;

pub struct Connects<T> {
    to: SocketAddr,
    makes: PhantomData<fn() -> T>,
}

#[async_trait]
impl<T: Object> Manage for Connects<T> {
    type Output = T;
    type Error = io::Error;

    async fn try_create(&self) -> io::Result<T> {
        T::connect(self.to).await
    }

    async fn validate(&self, object: &T) -> bool {
        object.is_fit()
    }
}

impl<T: Object> Pool<T> for Qp<T> {
    type Conn<'a> = Pooled<'a, Connects<T>>;

    #[inline]
    async fn get(&self) -> Self::Conn<'_> {
        self.acquire().await.expect("a connection")
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

impl<T: Object> Bounded<T> for Qp<T> {
    const NAME: &'static str = "qp";

    fn open(to: SocketAddr, size: usize) -> Self {
        qp::Pool::new(Connects { to, makes: PhantomData }, size)
    }
}
