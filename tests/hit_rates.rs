//! Victims chosen by the pool itself, not by a simulation of it: traces replayed get by get under a paused clock,
//! with connections that are none.

use std::time::Duration;

use fdpool::{Budget, ConnResource, Fitness, dial};
use tokio::time::advance;

#[allow(dead_code, reason = "the simulation uses the rest")]
#[path = "support/traces.rs"]
mod traces;

use traces::{Lru, Trace, hit_rate};

/// How far the pool may be from its simulation, and how far below what the policy promises.
const TOLERANCE: f64 = 0.02;

/// What may be missing to LRU's hit rate.
const SHORT_OF_LRU: f64 = 0.005;

/// The traces' order, and what the simulation in `src/budget/victim/` prints for them, at their full length.
const SIMULATED: [f64; 8] = [0.668, 0.093, 0.893, 0.093, 0.779, 0.404, 0.662, 0.807];

/// The part of the gets that a pool serves with an idle connection.
async fn replay(trace: &Trace) -> f64 {
    let budget = Budget::new(trace.budget);
    let resources: Vec<ConnResource<()>> = (0..trace.addresses)
        .map(|address| {
            let dialer = dial::from_fn(|_, _| async { Ok(()) }, |_, _| Fitness::Fit);
            ConnResource::builder(format!("peer-{address}"), dialer)
                .budget(&budget)
                .idle_timeout(None)
                .max_lifetime(None)
                .build()
        })
        .collect();
    let mut now_ms = 0;
    for get in &trace.gets {
        if get.at_ms > now_ms {
            advance(Duration::from_millis(u64::from(get.at_ms - now_ms))).await;
            now_ms = get.at_ms;
        }
        resources[get.address].get().await.expect("a connection").put();
    }
    let stats = budget.stats();
    let gets = trace.gets.len() as u64;
    assert_eq!(stats.dials + stats.reused, gets, "{}: {stats:?}", trace.name);
    assert_eq!(stats.dials - stats.evicted, stats.idle as u64, "{}: {stats:?}", trace.name);
    assert_eq!(stats.idle, trace.budget, "{}: {stats:?}", trace.name);
    stats.reused as f64 / gets as f64
}

fn replay_all(traces: &[Trace]) -> Vec<f64> {
    let replayed = |trace| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(replay(trace))
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = traces.iter().map(|trace| scope.spawn(move || replayed(trace))).collect();
        running.into_iter().map(|thread| thread.join().expect("a replay panicked")).collect()
    })
}

#[test]
fn the_pool_keeps_what_is_wanted_as_its_simulation_does() {
    let traces = traces::all(traces::GETS);
    let measured = replay_all(&traces);

    println!("| trace (addresses/budget) | LRU | simulated | the pool |");
    println!("|---|---|---|---|");
    for ((trace, measured), simulated) in traces.iter().zip(measured).zip(SIMULATED) {
        let lru = hit_rate(trace, &mut Lru::new(trace));
        let name = format!("{}, {}/{}", trace.name, trace.addresses, trace.budget);
        println!("| {name} | {lru:.3} | {simulated:.3} | {measured:.3} |");
        assert!((measured - simulated).abs() <= TOLERANCE, "{name}: {measured}, simulated {simulated}");
        assert!(measured >= lru - SHORT_OF_LRU - TOLERANCE, "{name}: {measured}, LRU {lru}");
    }
}
