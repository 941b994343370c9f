//! `pingora-pool`'s pool: of idle connections only, so there is no limit on those in use, and no waiting. Its owner
//! makes the connections, and either looks at them when they are taken out, or has them watched while they are idle.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use pingora_pool::{ConnectionMeta, ConnectionPool};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::{Object, Pool};

const KEY: u64 = 1;

/// Looks at a connection that it takes out.
pub struct Looking<T> {
    to: SocketAddr,
    pool: Arc<ConnectionPool<(i32, T)>>,
    ids: Arc<AtomicI32>,
}

impl<T> Looking<T> {
    pub fn new(to: SocketAddr, size: usize) -> Self {
        Self { to, pool: Arc::new(ConnectionPool::new(size)), ids: Arc::default() }
    }
}

impl<T> Clone for Looking<T> {
    fn clone(&self) -> Self {
        Self { to: self.to, pool: Arc::clone(&self.pool), ids: Arc::clone(&self.ids) }
    }
}

impl<T: Object> Pool<T> for Looking<T> {
    type Conn<'a> = (i32, T);

    #[inline]
    async fn get(&self) -> Self::Conn<'_> {
        loop {
            match self.pool.get(&KEY) {
                Some((id, object)) if object.is_fit() => return (id, object),
                Some(_unfit) => {}
                None => {
                    let object = T::connect(self.to).await.expect("a connection");
                    return (self.ids.fetch_add(1, Ordering::Relaxed), object);
                }
            }
        }
    }

    #[inline]
    fn object<'c>(&self, conn: &'c mut Self::Conn<'_>) -> &'c mut T {
        &mut conn.1
    }

    #[inline]
    fn put(&self, conn: Self::Conn<'_>) {
        self.pool.put(&ConnectionMeta::new(KEY, conn.0), conn);
    }

    fn discard(&self, conn: Self::Conn<'_>) {
        drop(conn);
    }
}

/// Has a task watch each idle connection, which ends when it is taken out: as pingora's proxy does.
#[derive(Clone)]
pub struct Watching {
    to: SocketAddr,
    pool: Arc<ConnectionPool<Arc<Mutex<TcpStream>>>>,
}

impl Watching {
    pub fn new(to: SocketAddr, size: usize) -> Self {
        Self { to, pool: Arc::new(ConnectionPool::new(size)) }
    }
}

impl Pool<TcpStream> for Watching {
    type Conn<'a> = TcpStream;

    #[inline]
    async fn get(&self) -> TcpStream {
        while let Some(idle) = self.pool.get(&KEY) {
            // Until the watching task lets go of it.
            drop(idle.lock().await);
            if let Some(stream) = Arc::into_inner(idle).map(Mutex::into_inner)
                && stream.is_fit()
            {
                return stream;
            }
        }
        <TcpStream as Object>::connect(self.to).await.expect("a connection")
    }

    #[inline]
    fn object<'c>(&self, conn: &'c mut TcpStream) -> &'c mut TcpStream {
        conn
    }

    #[inline]
    fn put(&self, conn: TcpStream) {
        let meta = ConnectionMeta::new(KEY, conn.as_raw_fd());
        let idle = Arc::new(Mutex::new(conn));
        let watched = Arc::clone(&idle).try_lock_owned().expect("nobody else has it");
        let (evicted, taken) = self.pool.put(&meta, idle);
        let pool = Arc::clone(&self.pool);
        tokio::spawn(async move {
            pool.idle_poll(watched, &meta, None, evicted, taken).await;
        });
    }

    fn discard(&self, conn: TcpStream) {
        drop(conn);
    }
}
