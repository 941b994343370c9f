//! Pools of many addresses, which are numbers here: what one would write oneself, a pool for each, and fdpool by handles
//! and by names.

use std::collections::HashMap;
use std::future::Future;
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use fdpool::{Address, Budget, ConnResource, Peers};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::deadpool::{self, Deadpool};
use super::{Object, Pool, pair};

/// A pool of connections to many addresses; a handle.
pub trait Keyed<T: 'static>: Clone + Send + Sync + 'static {
    /// A get at an address, a glance at the connection, and a put.
    fn pair(&self, key: usize) -> impl Future<Output = ()> + Send;
}

/// A pool for each, in order: what a program has that knows its addresses.
impl<T: Object, P: Pool<T>> Keyed<T> for Arc<[P]> {
    #[inline]
    async fn pair(&self, key: usize) {
        pair(&self[key]).await;
    }
}

pub fn resources<T: Object>(to: &[SocketAddr], budget: &Budget) -> Arc<[ConnResource<T>]> {
    let dialer = Arc::new(T::dialer());
    let resource = |to: &SocketAddr| ConnResource::builder(*to, Arc::clone(&dialer)).budget(budget).build();
    to.iter().map(resource).collect()
}

/// By the text of the address: what a program has whose addresses come from elsewhere.
pub struct Named<T> {
    peers: Peers<T>,
    names: Arc<[Address]>,
}

impl<T: Object> Named<T> {
    pub fn new(names: Arc<[Address]>, budget: &Budget) -> Self {
        Self { peers: Peers::builder(T::dialer()).budget(budget).build(), names }
    }

    /// As if each had been asked for.
    pub fn know_all(&self) {
        self.names.iter().for_each(|name| drop(self.peers.resource(name.as_str())));
    }

    pub fn close_all(&self) {
        self.peers.schedule_close_all();
    }
}

impl<T> Clone for Named<T> {
    fn clone(&self) -> Self {
        Self { peers: self.peers.clone(), names: Arc::clone(&self.names) }
    }
}

impl<T: Object> Keyed<T> for Named<T> {
    #[inline]
    async fn pair(&self, key: usize) {
        let conn = self.peers.get(self.names[key].as_str()).await.expect("a connection");
        black_box(&*conn);
        conn.put();
    }
}

/// A semaphore over all addresses, and a map of stacks of idle connections.
pub struct HandRolled<T>(Arc<Shared<T>>);

struct Shared<T> {
    to: Box<[SocketAddr]>,
    idle: Mutex<HashMap<u64, Vec<T>>>,
    permits: Semaphore,
}

impl<T> HandRolled<T> {
    pub fn new(to: &[SocketAddr], size: usize) -> Self {
        Self(Arc::new(Shared { to: to.into(), idle: Mutex::default(), permits: Semaphore::new(size) }))
    }
}

impl<T> Clone for HandRolled<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Object> Keyed<T> for HandRolled<T> {
    #[inline]
    async fn pair(&self, key: usize) {
        let Shared { to, idle, permits } = &*self.0;
        let _permit = permits.acquire().await.expect("never closed");
        let mut object = loop {
            let found = idle.lock().get_mut(&(key as u64)).and_then(Vec::pop);
            match found {
                Some(object) if object.is_fit() => break object,
                Some(_unfit) => {}
                None => break T::connect(to[key]).await.expect("a connection"),
            }
        };
        black_box(&mut object);
        idle.lock().entry(key as u64).or_default().push(object);
    }
}

/// A deadpool for each, without a limit over all.
impl<T: Object> Keyed<T> for Arc<HashMap<u64, Deadpool<T>>> {
    #[inline]
    async fn pair(&self, key: usize) {
        pair(&self[&(key as u64)]).await;
    }
}

pub fn deadpools<T: Object>(to: &[SocketAddr], size: usize) -> Arc<HashMap<u64, Deadpool<T>>> {
    let pools = to.iter().enumerate().map(|(key, to)| (key as u64, deadpool::pool(*to, size, true)));
    Arc::new(pools.collect())
}
