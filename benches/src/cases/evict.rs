//! A get that has to close another address's idle connection first, with a thousand idle among more and more addresses.
//! The connections are units, so that what is measured is the pool.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use fdpool::{Budget, ConnResource};
use parking_lot::Mutex;
use pingora_pool::{ConnectionMeta, ConnectionPool};
use tokio::runtime::Builder;

use crate::measure::{self, Contender, Draw, named};
use crate::peers::Unit;
use crate::peers::keyed::resources;
use crate::plot::{Axis, Line, Plot};
use crate::report::{Asked, Report, number, table};

const IDLE: usize = 1000;
const ADDRESSES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
const ROUNDS: usize = 100;
const GETS: usize = 2_000;

pub fn run(report: &mut Report) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let budgets = ADDRESSES.map(|_| Budget::new(IDLE));
        let mut contenders = Vec::new();
        for (addresses, budget) in ADDRESSES.into_iter().zip(&budgets) {
            let to: Vec<_> = (0..addresses).map(address).collect();
            contenders.push(fdpool(resources::<Unit>(&to, budget)));
            contenders.push(pingora(addresses));
        }
        let timed = measure::in_turn(contenders, ROUNDS, GETS).await;

        let header = ["addresses", "fdpool, median ns", "minimum", "pingora-pool, median ns", "minimum"];
        let mut table = table(header);
        for addresses in ADDRESSES {
            let (ours, theirs) = (named(&timed, &our_name(addresses)), named(&timed, &their_name(addresses)));
            let mut cells = vec![number(addresses as f64)];
            cells.extend([ours, theirs].into_iter().flat_map(|pool| [number(pool.median()), number(pool.least())]));
            table.add_row(cells);
        }
        for budget in &budgets {
            let stats = budget.stats();
            assert_eq!(stats.evicted as usize, (ROUNDS + 1) * GETS - IDLE, "every get but the first evicts");
        }
        let notes = format!(
            "{IDLE} idle units, all the budget has; each get is at a random address and of a fresh one, so it evicts; \
             then put; {ROUNDS} rounds of {GETS}. pingora-pool evicts the least recently used when one is put, and \
             knows only addresses that have something idle."
        );
        report.section("evict", &notes, &table);
        for (addresses, most) in [(1_000, 1_500.0), (1_000_000, 3_000.0)] {
            let median = named(&timed, &our_name(addresses)).median();
            let what = format!("evicting get among {} addresses, ns", number(addresses as f64));
            report.bar(what, median, Asked::AtMost(most));
        }
        let line = |name: &str, of: fn(usize) -> String| Line {
            name: name.into(),
            points: ADDRESSES.map(|n| (n as f64, named(&timed, &of(n)).median() / 1000.0)).into(),
        };
        let most = timed.iter().map(measure::Timed::median).fold(0.0, f64::max) / 1000.0;
        report.plot("evict", Plot::Lines {
            title: format!("a get that evicts one of {} idle connections", number(IDLE as f64)),
            x: Axis {
                title: "addresses known".into(),
                logarithmic: true,
                ticks: ADDRESSES.map(|addresses| addresses as f64).into(),
            },
            y: Axis { title: "microseconds".into(), logarithmic: false, ticks: Axis::up_to(most) },
            lines: vec![line("fdpool", our_name), line("pingora-pool", their_name)],
        });
    });
}

/// Nothing but evicting gets, each with its put, once all slots have something idle in them.
pub fn run_loop(addresses: usize, gets: usize) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let budget = Budget::new(IDLE);
    let to: Vec<_> = (0..addresses).map(address).collect();
    let resources = resources::<Unit>(&to, &budget);
    runtime.block_on(evicting_gets(&resources, &mut Draw::default(), IDLE + gets));
}

async fn evicting_gets(resources: &[ConnResource<Unit>], keys: &mut Draw, gets: usize) {
    for _ in 0..gets {
        let conn = resources[keys.below(resources.len())].get().fresh().await.expect("a connection");
        black_box(&*conn);
        conn.put();
    }
}

fn our_name(addresses: usize) -> String {
    format!("fdpool, {addresses}")
}

fn their_name(addresses: usize) -> String {
    format!("pingora-pool, {addresses}")
}

fn address(n: usize) -> SocketAddr {
    let [_, a, b, c] = (n as u32).to_be_bytes();
    SocketAddr::from(([10, a, b, c], 80))
}

fn fdpool(resources: Arc<[ConnResource<Unit>]>) -> Contender {
    let draw = Arc::new(Mutex::new(Draw::default()));
    Contender::new(our_name(resources.len()), "", move |n| {
        let (resources, draw) = (Arc::clone(&resources), Arc::clone(&draw));
        async move {
            let mut keys = draw.lock().clone();
            evicting_gets(&resources, &mut keys, n).await;
            *draw.lock() = keys;
        }
    })
}

fn pingora(addresses: usize) -> Contender {
    let pool = Arc::new(ConnectionPool::new(IDLE));
    let drawn = Arc::new(Mutex::new((Draw::default(), 0)));
    Contender::new(their_name(addresses), "", move |n| {
        let (pool, drawn) = (Arc::clone(&pool), Arc::clone(&drawn));
        async move {
            let (mut keys, mut id) = drawn.lock().clone();
            for _ in 0..n {
                let unit = black_box(Unit);
                pool.put(&ConnectionMeta::new(keys.below(addresses) as u64, id), unit);
                id += 1;
            }
            *drawn.lock() = (keys, id);
        }
    })
}
