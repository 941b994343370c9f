//! A warm pair: get of an idle connection, with its check, and put. One task, one address.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use fdpool::ConnResource;
use rustix::time::{ClockId, clock_gettime};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::unconstrained;

use crate::loopback;
use crate::measure::{self, Contender, Timed, named};
use crate::peers::bare::Bare;
use crate::peers::bb8::Bb8;
use crate::peers::deadpool::Deadpool;
use crate::peers::fast_pool::FastPool;
use crate::peers::handrolled::HandRolled;
use crate::peers::mobc::Mobc;
use crate::peers::qp::Qp;
use crate::peers::{Bounded, Object, Pool, Unit, hyper, pairs, pingora};
use crate::plot::{Group, Plot};
use crate::report::{Asked, Report, number, timings, versioned};

const POOL_SIZE: usize = 16;
const ROUNDS: usize = 300;
const PAIRS: usize = 4_000;
const FDPOOL: &str = "fdpool";
const BASE: &str = <HandRolled<Unit> as Bounded<Unit>>::NAME;
const LOCKS: &str = "two locks that nobody else wants";
const NO_LIMIT: &str = "no limit, no waiting";
const WATCHED: &str = "pingora-pool, a task watches";

pub fn run(report: &mut Report) {
    runtime().block_on(async {
        let to = loopback::silent().await;
        let mut contenders = contenders::<TcpStream>(to);
        let watching = pingora::Watching::new(to, POOL_SIZE);
        contenders.push(contender(WATCHED, "no limit; what pingora's proxy does", watching));
        let stream = TcpStream::connect(to).await.expect("a connection");
        contenders.push(contender("bare Mutex<Vec>", "no limit, no waiting, no check", Bare::of(stream)));
        let streams = measure::in_turn(contenders, ROUNDS, PAIRS).await;

        let mut contenders = self::contenders::<Unit>(to);
        contenders.push(contender("bare Mutex<Vec>", NO_LIMIT, Bare::of(Unit)));
        let units = measure::in_turn(contenders, ROUNDS, PAIRS).await;

        let notes = format!(
            "get + put of an idle connection, one task, one address; {ROUNDS} rounds of {PAIRS} pairs. All but \
             the last look for bytes or the end of the stream before they give it out."
        );
        let table = timings(&streams, named(&streams, BASE));
        report.section("warm: a live TcpStream", &notes, &table);
        report.headline(&table);
        let notes = "The same with an object that is nothing: what is left is the pool.";
        report.section("warm: a unit", notes, &timings(&units, named(&units, BASE)));
        let parts = measure::in_turn(parts(to).await, ROUNDS, PAIRS).await;
        let notes = "What the system, the processor and tokio take for what a warm pair asks of them, each by itself; the last \
                     two are what it does without.";
        report.section("warm: its parts", notes, &timings(&parts, named(&parts, LOCKS)));
        bars(report, &streams);
        report.plot("warm", Plot::Bars {
            title: "get + put of an idle connection, nanoseconds".into(),
            groups: vec![group("a live TcpStream", &streams), group("a unit", &units)],
        });
    });
}

fn contenders<T: Object>(to: SocketAddr) -> Vec<Contender> {
    let handrolled = HandRolled::<T>::open(to, POOL_SIZE);
    let unconstrained_too = handrolled.clone();
    vec![
        bounded::<T, ConnResource<T>>(to),
        contender(BASE, "", handrolled),
        Contender::new("the same, not yielding every 128th time", "", move |n| {
            unconstrained(pairs(unconstrained_too.clone(), n))
        }),
        bounded::<T, Deadpool<T>>(to),
        bounded::<T, Bb8<T>>(to),
        bounded::<T, Mobc<T>>(to),
        bounded::<T, Qp<T>>(to),
        bounded::<T, FastPool<T>>(to),
        contender("hyper-util, client::pool::cache", NO_LIMIT, hyper::pool::<T>(to)),
        contender(
            "pingora-pool",
            "a limit on idle ones, no waiting",
            pingora::Looking::<T>::new(to, POOL_SIZE),
        ),
    ]
}

/// What every warm pair needs, and what it could need.
async fn parts(to: SocketAddr) -> Vec<Contender> {
    let stream = Arc::new(TcpStream::connect(to).await.expect("a connection"));
    let lock = Arc::new(spin::mutex::SpinMutex::<u64>::new(0));
    let shared = Arc::new(0_u64);
    vec![
        part(LOCKS, move || {
            *lock.lock() += 1;
            *lock.lock() += 1;
        }),
        part("two readings of the coarse clock", || {
            black_box((clock_gettime(ClockId::MonotonicCoarse), clock_gettime(ClockId::MonotonicCoarse)));
        }),
        part("the check: has anything arrived?", move || {
            black_box(stream.is_fit());
        }),
        part("which task this is", || {
            black_box(tokio::task::try_id());
        }),
        part("an Arc cloned and dropped", move || drop(black_box(Arc::clone(&shared)))),
        part("which runtime this is, as tokio tells it", || {
            black_box(Handle::try_current().map(|handle| handle.id()).is_ok());
        }),
    ]
}

fn part(name: &str, what: impl Fn() + Send + Sync + 'static) -> Contender {
    let what = Arc::new(what);
    Contender::new(name, "", move |n| {
        let what = Arc::clone(&what);
        async move { (0..n).for_each(|_| what()) }
    })
}

fn bounded<T: Object, P: Bounded<T>>(to: SocketAddr) -> Contender {
    contender(P::NAME, "", P::open(to, POOL_SIZE))
}

fn contender<T: Object>(name: &str, note: &'static str, pool: impl Pool<T>) -> Contender {
    Contender::new(name, note, move |n| pairs(pool.clone(), n))
}

fn bars(report: &mut Report, streams: &[Timed]) {
    let ours = named(streams, FDPOOL);
    let handrolled = ours.ratio_to(named(streams, BASE));
    report.bar("warm stream, of the hand-rolled's time", handrolled, Asked::AtMost(0.8));
    for (name, times) in [("deadpool", 5.0), ("bb8", 5.0), ("pingora-pool", 10.0), (WATCHED, 10.0)] {
        let faster = named(streams, name).ratio_to(ours);
        report.bar(format!("warm stream, {name}'s time in fdpool's"), faster, Asked::AtLeast(times));
    }
}

fn group(title: &str, timed: &[Timed]) -> Group {
    let bar = |timed: &Timed| (versioned(&timed.name), timed.median(), number(timed.median()));
    Group { title: title.into(), bars: timed.iter().map(bar).collect() }
}

/// Nothing but `pairs` pairs, after one that dials.
pub fn run_loop<T: Object>(pairs: usize) {
    runtime().block_on(async {
        let resource = ConnResource::<T>::open(loopback::silent().await, POOL_SIZE);
        self::pairs(resource.clone(), 1).await;
        tokio::spawn(self::pairs(resource, pairs)).await.expect("does not panic");
    });
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}
