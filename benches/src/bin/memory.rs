//! Counts the bytes that addresses and idle connections cost, asked of the allocator, and prints a line for each pool. Run
//! by the case `memory`, with the port of an echo server. Pools are kept to the end, so that none lives in what another
//! left.

#![allow(clippy::disallowed_methods, reason = "to measure is to wait until all is at rest")]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use allocation_counter::measure;
use fdpool::{Address, Budget, ConnResource};
use fdpool_benches::cases::memory::{ADDRESSES, Bytes};
use fdpool_benches::loopback::address_at;
use fdpool_benches::peers::keyed::{Keyed, Named};
use fdpool_benches::peers::{Object, bb8, deadpool};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

/// After this, fdpool watches what is idle, which it begins within a fifth of a second.
const AT_REST: Duration = Duration::from_millis(500);

fn main() {
    let port =
        std::env::args().nth(1).and_then(|port| port.parse().ok()).expect("the port of an echo server");
    rlimit::increase_nofile_limit(rlimit::INFINITY).expect("up to the hard limit");
    let to: Vec<_> = (0..ADDRESSES).map(|n| address_at(port, n)).collect();
    let names: Arc<[Address]> = to.iter().map(|to| Address::from(*to)).collect();
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let budget = Budget::new(2 * ADDRESSES);
    let stream = stream(&runtime, &to);
    Budget::set_global(budget.clone()).expect("nobody has asked for it yet");
    let found = [
        bytes(
            &runtime,
            stream,
            "fdpool, ConnResource on its own",
            || to.iter().map(|to| ConnResource::new(*to)).collect::<Vec<_>>(),
            Some(|resources: &Arc<[ConnResource]>| resources.iter().for_each(ConnResource::schedule_close)),
        ),
        bytes(
            &runtime,
            stream,
            "fdpool, known to Peers",
            || {
                let named = Named::<TcpStream>::new(Arc::clone(&names), &budget);
                named.know_all();
                named
            },
            Some(Named::close_all),
        ),
        bytes(
            &runtime,
            stream,
            "deadpool, one for each",
            || to.iter().map(|to| deadpool::pool(*to, 1, true)).collect::<Vec<_>>(),
            Some(|pools: &Arc<[deadpool::Deadpool<TcpStream>]>| {
                pools.iter().for_each(|pool| drop(pool.retain(|_, _| false)));
            }),
        ),
        bytes(
            &runtime,
            stream,
            "bb8, one for each",
            || to.iter().map(|to| bb8::pool(*to, 1, true)).collect::<Vec<_>>(),
            None::<fn(&Arc<[bb8::Bb8<TcpStream>]>)>,
        ),
    ];
    println!("{stream}");
    found.iter().for_each(|bytes| println!("{}", bytes.line()));
}

/// What a stream costs by itself, wherever it is kept.
fn stream(runtime: &Runtime, to: &[SocketAddr]) -> f64 {
    let mut streams = Vec::with_capacity(to.len());
    let connected = growth(runtime, async {
        for to in to {
            streams.push(<TcpStream as Object>::connect(*to).await.expect("a connection"));
        }
    });
    drop(streams);
    // What tokio kept for them is freed when it has driven its reactor once more, which is to be now.
    growth(runtime, async {});
    connected + size_of::<TcpStream>() as f64
}

fn bytes<M: Into<K>, K: Keyed<TcpStream>>(
    runtime: &Runtime,
    stream: f64,
    name: &'static str,
    make: impl FnOnce() -> M,
    close: Option<fn(&K)>,
) -> Bytes {
    let _entered = runtime.enter();
    let mut pool = None;
    let unopened = measure(|| pool = Some(make())).bytes_current as f64 / ADDRESSES as f64;
    let pool = pool.expect("just made").into();
    let opened = growth(runtime, async {
        for key in 0..ADDRESSES {
            pool.pair(key).await;
        }
    });
    let closed_again = close.map(|close| unopened + opened + growth(runtime, async { close(&pool) }));
    std::mem::forget(pool);
    Bytes { name: name.into(), unopened, idle: opened - stream, closed_again }
}

/// For each address, once all is at rest.
fn growth(runtime: &Runtime, what: impl Future<Output = ()>) -> f64 {
    let grown = measure(|| {
        runtime.block_on(async {
            what.await;
            tokio::time::sleep(AT_REST).await;
        });
    });
    grown.bytes_current as f64 / ADDRESSES as f64
}
