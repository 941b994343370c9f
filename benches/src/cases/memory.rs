//! What an address costs that has nothing open, and what an idle connection costs besides what its stream does: in
//! bytes that were asked of the allocator.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use allocation_counter::measure;
use fdpool::dial::Tcp;
use fdpool::{Address, Budget, ConnResource};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

use crate::loopback::{Manner, Server};
use crate::peers::keyed::{Keyed, Named};
use crate::peers::{Object, bb8, deadpool};
use crate::report::{Asked, Report, number, table};

const ADDRESSES: usize = 4_000;
/// After this, fdpool watches what is idle.
const AT_REST: Duration = Duration::from_millis(100);

/// Bytes for each address.
struct Bytes {
    name: &'static str,
    unopened: f64,
    idle: f64,
    /// Of pools that can close what is idle.
    closed_again: Option<f64>,
}

pub fn run(report: &mut Report) {
    rlimit::increase_nofile_limit(rlimit::INFINITY).expect("up to the hard limit");
    let server = Server::start(Manner::Echo);
    let to: Vec<_> = (0..ADDRESSES).map(|n| server.address(n)).collect();
    let names: Arc<[Address]> = to.iter().map(|to| Address::from(*to)).collect();
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let budget = Budget::new(2 * ADDRESSES);
    let stream = stream(&runtime, &to);
    let resource = |to| ConnResource::builder(to, Tcp::default()).budget(&budget).build();
    let found = [
        bytes(
            &runtime,
            stream,
            "fdpool, ConnResource on its own",
            || to.iter().map(|to| resource(*to)).collect::<Arc<[_]>>(),
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
            || to.iter().map(|to| deadpool::pool(*to, 1, true)).collect::<Arc<[_]>>(),
            Some(|pools: &Arc<[deadpool::Deadpool<TcpStream>]>| {
                pools.iter().for_each(|pool| drop(pool.retain(|_, _| false)));
            }),
        ),
        bytes(
            &runtime,
            stream,
            "bb8, one for each",
            || to.iter().map(|to| bb8::pool(*to, 1, true)).collect::<Arc<[bb8::Bb8<TcpStream>]>>(),
            None,
        ),
    ];

    let mut table = table(["pool", "nothing opened yet", "nothing open any more", "an idle connection"]);
    for Bytes { name, unopened, idle, closed_again } in &found {
        let closed_again = closed_again.map_or("–".into(), number);
        table.add_row([name, number(*unopened).as_str(), &closed_again, &number(*idle)]);
    }
    let notes = format!(
        "Bytes for each of {ADDRESSES} addresses, with the address's text and a handle; an idle connection's besides the \
         {} of its TcpStream. deadpool reserves the room for one beforehand.",
        number(stream)
    );
    report.section("memory", &notes, &table);
    for Bytes { name, unopened, idle, closed_again } in &found[..2] {
        report.bar(
            format!("{name}, bytes an address with nothing opened yet"),
            *unopened,
            Asked::AtMost(256.0),
        );
        let closed_again = closed_again.expect("fdpool closes");
        report.bar(
            format!("{name}, bytes an address with nothing open any more"),
            closed_again,
            Asked::AtMost(256.0),
        );
        report.bar(format!("{name}, bytes an idle connection"), *idle, Asked::AtMost(96.0));
    }
}

/// What a stream costs by itself, wherever it is kept.
fn stream(runtime: &Runtime, to: &[SocketAddr]) -> f64 {
    let mut streams = Vec::with_capacity(to.len());
    let connected = growth(runtime, async {
        for to in to {
            streams.push(<TcpStream as Object>::connect(*to).await.expect("a connection"));
        }
    });
    connected + size_of::<TcpStream>() as f64
}

fn bytes<K: Keyed<TcpStream>>(
    runtime: &Runtime,
    stream: f64,
    name: &'static str,
    make: impl FnOnce() -> K,
    close: Option<fn(&K)>,
) -> Bytes {
    let _entered = runtime.enter();
    let mut pool = None;
    let unopened = measure(|| pool = Some(make())).bytes_current as f64 / ADDRESSES as f64;
    let pool = pool.expect("just made");
    let opened = growth(runtime, async {
        for key in 0..ADDRESSES {
            pool.pair(key).await;
        }
    });
    let closed_again = close.map(|close| unopened + opened + growth(runtime, async { close(&pool) }));
    Bytes { name, unopened, idle: opened - stream, closed_again }
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
