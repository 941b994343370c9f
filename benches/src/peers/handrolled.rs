//! The leanest pool one would write oneself: a semaphore, and a stack of idle connections.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Bounded, Object, Pool};

pub struct HandRolled<T>(Arc<Shared<T>>);

struct Shared<T> {
    to: SocketAddr,
    idle: Mutex<Vec<T>>,
    permits: Semaphore,
}

/// The connection goes before its permit.
pub struct Pooled<'a, T> {
    object: T,
    permit: SemaphorePermit<'a>,
}

impl<T> Clone for HandRolled<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Object> Pool<T> for HandRolled<T> {
    type Conn<'a> = Pooled<'a, T>;

    #[inline]
    async fn get(&self) -> Self::Conn<'_> {
        let Shared { to, idle, permits } = &*self.0;
        let permit = permits.acquire().await.expect("never closed");
        let object = loop {
            let found = idle.lock().pop();
            match found {
                Some(object) if object.is_fit() => break object,
                Some(_unfit) => {}
                None => break T::connect(*to).await.expect("a connection"),
            }
        };
        Pooled { object, permit }
    }

    #[inline]
    fn object<'c>(&self, conn: &'c mut Self::Conn<'_>) -> &'c mut T {
        &mut conn.object
    }

    #[inline]
    fn put(&self, conn: Self::Conn<'_>) {
        let Pooled { object, permit } = conn;
        self.0.idle.lock().push(object);
        drop(permit);
    }

    fn discard(&self, conn: Self::Conn<'_>) {
        drop(conn);
    }
}

impl<T: Object> Bounded<T> for HandRolled<T> {
    const NAME: &'static str = "hand-rolled: Semaphore + Mutex<Vec>";

    fn open(to: SocketAddr, size: usize) -> Self {
        let idle = Mutex::new(Vec::with_capacity(size));
        Self(Arc::new(Shared { to, idle, permits: Semaphore::new(size) }))
    }
}
