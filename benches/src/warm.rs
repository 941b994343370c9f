//! A warm pair: get of an idle connection, with its check, and put. One task, one address.

use std::hint::black_box;
use std::sync::Arc;

use fdpool::dial::Tcp;
use fdpool::{Budget, ConnResource};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::task::unconstrained;

use crate::loopback;
use crate::measure::{self, Contender};
use crate::peers::{deadpool, handrolled};

const POOL_SIZE: usize = 16;
const ROUNDS: usize = 300;
const PAIRS: usize = 20_000;
const BASE: &str = "hand-rolled: Semaphore + Mutex<Vec>";

pub fn run() {
    runtime().block_on(async {
        let address = loopback::silent().await;
        let resource = resource(address);
        let handrolled = Arc::new(handrolled::Pool::new(address, POOL_SIZE));
        let unconstrained_handrolled = Arc::clone(&handrolled);
        let deadpool = deadpool::pool(address, POOL_SIZE);
        let bare = Arc::new(Mutex::new(vec![Pointer(Box::new(0))]));
        let contenders = vec![
            Contender::new("fdpool", move |n| fdpool_pairs(resource.clone(), n)),
            Contender::new(BASE, move |n| handrolled_pairs(Arc::clone(&handrolled), n)),
            Contender::new("the same, not yielding every 128th time", move |n| {
                unconstrained(handrolled_pairs(Arc::clone(&unconstrained_handrolled), n))
            }),
            Contender::new("deadpool", move |n| deadpool_pairs(deadpool.clone(), n)),
            Contender::new("bare Mutex<Vec>, no limit, no check", move |n| bare_pairs(Arc::clone(&bare), n)),
        ];
        let timed = measure::in_turn(contenders, ROUNDS, PAIRS).await;
        measure::print("warm get + put of a live TcpStream, one task", BASE, &timed);
    });
}

/// Nothing but `pairs` pairs, after one that dials.
pub fn run_loop(pairs: usize) {
    runtime().block_on(async {
        let resource = resource(loopback::silent().await);
        fdpool_pairs(resource.clone(), 1).await;
        tokio::spawn(fdpool_pairs(resource, pairs)).await.expect("does not panic");
    });
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn resource(address: std::net::SocketAddr) -> ConnResource {
    ConnResource::builder(address, Tcp::default()).budget(&Budget::new(POOL_SIZE)).build()
}

async fn fdpool_pairs(resource: ConnResource, pairs: usize) {
    for _ in 0..pairs {
        let conn = resource.get().await.expect("a connection");
        black_box(&*conn);
        conn.put();
    }
}

async fn handrolled_pairs(pool: Arc<handrolled::Pool>, pairs: usize) {
    for _ in 0..pairs {
        let conn = pool.get().await.expect("a connection");
        black_box(&conn.stream);
        conn.put();
    }
}

async fn deadpool_pairs(pool: deadpool::Pool, pairs: usize) {
    for _ in 0..pairs {
        let conn = pool.get().await.expect("a connection");
        black_box(&*conn);
    }
}

/// What a pool moves at least.
struct Pointer(Box<u64>);

async fn bare_pairs(idle: Arc<Mutex<Vec<Pointer>>>, pairs: usize) {
    for _ in 0..pairs {
        let conn = idle.lock().pop().expect("one that was pushed");
        black_box(&conn.0);
        idle.lock().push(conn);
    }
}
