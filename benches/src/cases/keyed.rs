//! Ten thousand addresses with one idle connection each, and each pair at a random one of them.

use std::net::SocketAddr;
use std::sync::Arc;

use fdpool::{Address, Budget};
use parking_lot::Mutex;
use rlimit::Resource;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::yield_now;

use crate::loopback::{Manner, Server};
use crate::measure::{self, Contender, Draw, Timed, named};
use crate::peers::keyed::{HandRolled, Keyed, Named, deadpools, resources};
use crate::peers::{Object, Unit};
use crate::plot::{Group, Plot};
use crate::report::{Asked, Report, number, timings};

const ADDRESSES: usize = 10_000;

/// How rounds are made. Each first fetches back what the pools before it have displaced from the cache: of long ones that is
/// little, of short ones half.
#[derive(Clone, Copy)]
struct Rounds {
    name: &'static str,
    number: usize,
    pairs: usize,
    notes: &'static str,
}

const ROUNDS: [Rounds; 2] = [
    Rounds { name: "", number: 9, pairs: 2_000_000, notes: "" },
    Rounds {
        name: ", not in the cache",
        number: 50,
        pairs: 20_000,
        notes: " In rounds so short many pairs, of 10,000 addresses two in five, are the first at their address since the other \
                pools had the cache to themselves.",
    },
];

/// As a program does that awaits something else too: else the runtime would not run for as long as it takes to measure.
const PAIRS_A_YIELD: usize = 1_000;
const HANDLES: &str = "fdpool, a handle kept for each";
const NAMES: &str = "fdpool, Peers by the address's text";
const BASE: &str = "hand-rolled: Semaphore + Mutex<HashMap>";
const CONTENDERS: usize = 4;
/// Descriptors that are no connections.
const SPARE: u64 = 200;

pub fn run(report: &mut Report) {
    let (_, hard) = Resource::NOFILE.get().expect("a limit of descriptors");
    let enough = rlimit::increase_nofile_limit(hard).expect("up to the hard limit").saturating_sub(SPARE);
    let open = ADDRESSES.min(enough as usize / CONTENDERS);
    let server = Server::start(Manner::Echo);
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let addresses: Vec<_> = (0..ADDRESSES).map(|n| server.address(n)).collect();
        let units = measured::<Unit>(&addresses).await;
        let streams = measured::<TcpStream>(&addresses[..open]).await;

        let what = format!("{ADDRESSES} addresses with one idle unit each");
        tell(report, "units", &what, &units);
        let what =
            format!("{open} addresses, as many as there are descriptors for, with a live TcpStream each");
        tell(report, "streams", &what, &streams);
        let open = format!("{} addresses, a live TcpStream each", number(open as f64));
        report.plot(
            "keyed",
            Plot::Bars {
                title: "get + put at a random address, nanoseconds".into(),
                groups: vec![
                    group(format!("{} addresses, a unit each", number(ADDRESSES as f64)), &units[0]),
                    group(open, &streams[0]),
                ],
            },
        );
    });
}

/// Of each kind of rounds.
type Found = [Vec<Timed>; ROUNDS.len()];

fn tell(report: &mut Report, objects: &str, what: &str, found: &Found) {
    for (Rounds { name: how, number, pairs, notes }, timed) in ROUNDS.iter().zip(found) {
        let base = named(timed, BASE);
        let notes = format!(
            "{what}; each pair at a random one; {number} rounds of {pairs} pairs. All let the runtime run once in \
             {PAIRS_A_YIELD} pairs.{notes}"
        );
        report.section(&format!("keyed: {objects}{how}"), &notes, &timings(timed, base));
        for name in [HANDLES, NAMES] {
            let what = format!("keyed {objects}{how}, {name}, of the hand-rolled's");
            report.bar(what, named(timed, name).ratio_to(base), Asked::AtMost(0.8));
        }
    }
}

async fn measured<T: Object>(addresses: &[SocketAddr]) -> Found {
    let n = addresses.len();
    let names = addresses.iter().map(|address| Address::from(*address)).collect();
    let contenders: Arc<[_]> = [
        contender(HANDLES, "", n, resources::<T>(addresses, &Budget::new(n))),
        contender(NAMES, "", n, Named::<T>::new(names, &Budget::new(n))),
        contender(BASE, "", n, HandRolled::<T>::new(addresses, n)),
        contender("deadpool, one for each", "no limit over all", n, deadpools::<T>(addresses, 1)),
    ]
    .into();
    assert_eq!(contenders.len(), CONTENDERS);
    let mut found = Found::default();
    for (rounds, found) in ROUNDS.iter().zip(&mut found) {
        *found = measure::in_turn(Arc::clone(&contenders), rounds.number, rounds.pairs).await;
    }
    found
}

/// The first time it is run, it opens a connection to each address.
fn contender<T: Object>(name: &str, note: &'static str, addresses: usize, pool: impl Keyed<T>) -> Contender {
    let draw = Arc::new(Mutex::new(None::<Draw>));
    Contender::new(name, note, move |n| {
        let (pool, draw) = (pool.clone(), Arc::clone(&draw));
        async move {
            let begun = draw.lock().take();
            if begun.is_none() {
                for key in 0..addresses {
                    pool.pair(key).await;
                }
            }
            let mut keys = begun.unwrap_or_default();
            for pair in 0..n {
                if pair.is_multiple_of(PAIRS_A_YIELD) {
                    yield_now().await;
                }
                pool.pair(keys.below(addresses)).await;
            }
            *draw.lock() = Some(keys);
        }
    })
}

fn group(title: String, timed: &[Timed]) -> Group {
    let bar = |timed: &Timed| (timed.name.clone(), timed.median(), number(timed.median()));
    Group { title, bars: timed.iter().map(bar).collect() }
}
