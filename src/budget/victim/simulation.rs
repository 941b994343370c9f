//! What the choice of victims is worth: hit rates on access patterns, next to those of well-known policies.
//! Knows the pure parts only; the pool itself is judged by the same traces elsewhere.

use super::{Hint, Sampler};
use crate::resource::history::History;

#[path = "../../../tests/support/traces.rs"]
mod traces;

use traces::{Any, Belady, Clock, Lru, Policy, Sieve, Trace, hit_rate};

/// A budget of connections, one an address, that loses the victims chosen here.
struct Predicted<'a> {
    trace: &'a Trace,
    histories: Vec<History>,
    open: Vec<usize>,
    is_open: Vec<bool>,
    sampler: Sampler,
}

impl<'a> Predicted<'a> {
    fn new(trace: &'a Trace) -> Self {
        Predicted {
            trace,
            histories: vec![History::default(); trace.addresses],
            open: vec![],
            is_open: vec![false; trace.addresses],
            sampler: Sampler::new(9),
        }
    }

    fn evict(&mut self, now_ms: u32) {
        let read = |index: usize| {
            let history = self.histories[self.open[index]];
            let last = history.last().expect("what is open was got");
            (Hint::new(last, history.average(), 1).pack(), last)
        };
        let victim = self.sampler.choose(self.open.len(), now_ms, read).expect("all are idle");
        self.is_open[self.open.swap_remove(victim)] = false;
    }
}

impl Policy for Predicted<'_> {
    fn get(&mut self, address: usize, nth: usize) -> bool {
        let now_ms = self.trace.gets[nth].at_ms;
        let hit = self.is_open[address];
        if !hit {
            if self.open.len() == self.trace.budget {
                self.evict(now_ms);
            }
            self.open.push(address);
            self.is_open[address] = true;
        }
        self.histories[address].touch(now_ms);
        hit
    }
}

struct Rates {
    belady: f64,
    lru: f64,
    any: f64,
    clock: f64,
    sieve: f64,
    predicted: f64,
}

impl Rates {
    fn measure(trace: &Trace) -> Rates {
        Rates {
            belady: hit_rate(trace, &mut Belady::new(trace)),
            lru: hit_rate(trace, &mut Lru::new(trace)),
            any: hit_rate(trace, &mut Any::new(trace)),
            clock: hit_rate(trace, &mut Clock::new(trace)),
            sieve: hit_rate(trace, &mut Sieve::new(trace)),
            predicted: hit_rate(trace, &mut Predicted::new(trace)),
        }
    }
}

fn measure_all(traces: &[Trace]) -> Vec<Rates> {
    std::thread::scope(|scope| {
        let running: Vec<_> = traces.iter().map(|trace| scope.spawn(|| Rates::measure(trace))).collect();
        running.into_iter().map(|thread| thread.join().expect("a simulation panicked")).collect()
    })
}

#[test]
fn predicted_victims_keep_what_is_wanted() {
    let traces = traces::all(traces::GETS);
    let measured = measure_all(&traces);

    println!("| trace (addresses/budget) | Belady (limit) | LRU | random | CLOCK | SIEVE | predicted |");
    println!("|---|---|---|---|---|---|---|");
    for (trace, rates) in traces.iter().zip(&measured) {
        let Rates { belady, lru, any, clock, sieve, predicted } = rates;
        println!(
            "| {}, {}/{} | {belady:.3} | {lru:.3} | {any:.3} | {clock:.3} | {sieve:.3} | {predicted:.3} |",
            trace.name, trace.addresses, trace.budget
        );
    }
    for (trace, rates) in traces.iter().zip(&measured) {
        let name = format!("{}, {}/{}", trace.name, trace.addresses, trace.budget);
        assert!(rates.predicted <= rates.belady, "{name}: better than the limit");
        assert!(rates.predicted >= rates.lru - 0.005, "{name}: worse than LRU");
        if trace.name == "sweep in order" {
            assert!(rates.predicted >= 0.85 * rates.belady, "{name}: far from the limit");
        }
        if trace.name == "Zipf 1.0" {
            assert!(rates.predicted >= 0.97 * rates.sieve, "{name}: far from SIEVE");
        }
    }
}

#[test]
fn an_average_means_the_same_to_the_history_and_to_the_score() {
    for interval in (1..5000).chain((13..32).flat_map(|e| [1 << e, (1 << e) + 12_345])) {
        let mut history = History::default();
        history.touch(7);
        history.touch(interval + 7);
        let hint = Hint::new(interval + 7, history.average(), 1);
        let expected = super::score(hint, 0, interval + 7).expect("one is idle").absence_ms;
        assert!((interval - interval / 2048..=interval).contains(&expected), "{interval}: {expected}");
    }
}
