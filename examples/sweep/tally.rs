//! What became of the calls: counts, latencies, and the causes of failure, alike ones counted together.
//! Every caller keeps one of its own; they are merged at the end.

use std::time::Duration;

use fdpool::Address;
use serde::Serialize;

use crate::call::{CallError, Kind};
use crate::latency::Histogram;

/// How many different causes are told apart; a fleet can fail in more ways than anybody wants to read.
const MAX_CAUSES: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) ok: u64,
    pub(crate) failed_waits: u64,
    pub(crate) failed_dials: u64,
    pub(crate) failed_exchanges: u64,
    /// Begun and given up at Ctrl-C; neither ok nor failed.
    pub(crate) cancelled: u64,
    /// Calls that were tried again because a reused connection failed.
    pub(crate) retried: u64,
    /// Tries that failed on a reused connection before a byte of the answer came, whatever the retry brought.
    pub(crate) stale_failures: u64,
    /// Of the calls that were ok, from get to put.
    pub(crate) latency: Histogram,
    pub(crate) failures: Failures,
}

impl Tally {
    pub(crate) fn succeeded(&mut self, latency: Duration) {
        self.ok += 1;
        self.latency.record(latency);
    }

    pub(crate) fn failed_with(&mut self, error: &CallError, address: &Address) {
        match error.kind() {
            Kind::Cancelled => {
                self.cancelled += 1;
                return;
            }
            Kind::Wait => self.failed_waits += 1,
            Kind::Dial => self.failed_dials += 1,
            Kind::Exchange => self.failed_exchanges += 1,
        }
        self.failures.add(Failure { calls: 1, cause: error.cause(), first_address: address.to_string() });
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failed_waits + self.failed_dials + self.failed_exchanges
    }

    /// Calls that ended one way or the other.
    pub(crate) fn calls(&self) -> u64 {
        self.ok + self.failed()
    }

    pub(crate) fn merge(&mut self, other: Tally) {
        self.ok += other.ok;
        self.failed_waits += other.failed_waits;
        self.failed_dials += other.failed_dials;
        self.failed_exchanges += other.failed_exchanges;
        self.cancelled += other.cancelled;
        self.retried += other.retried;
        self.stale_failures += other.stale_failures;
        self.latency.merge(&other.latency);
        self.failures.merge(other.failures);
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    calls: u64,
    cause: String,
    first_address: String,
}

#[derive(Debug, Default)]
pub(crate) struct Failures {
    told_apart: Vec<Failure>,
    /// Calls with further causes.
    others: u64,
}

impl Failures {
    fn add(&mut self, failure: Failure) {
        match self.told_apart.iter().position(|known| known.cause == failure.cause) {
            Some(index) => self.told_apart[index].calls += failure.calls,
            None if self.told_apart.len() < MAX_CAUSES => self.told_apart.push(failure),
            None => self.others += failure.calls,
        }
    }

    fn merge(&mut self, other: Failures) {
        other.told_apart.into_iter().for_each(|failure| self.add(failure));
        self.others += other.others;
    }

    pub(crate) fn told_apart(&self) -> &[Failure] {
        &self.told_apart
    }

    /// One line for each cause, for people.
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        let causes = self.told_apart.iter().map(|failure| {
            let Failure { calls, cause, first_address } = failure;
            format!("{calls} failed: {cause} (first at {first_address})")
        });
        causes.chain((self.others > 0).then(|| format!("{} failed for further reasons", self.others)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(cause: impl ToString, first_address: &str) -> Failure {
        Failure { calls: 1, cause: cause.to_string(), first_address: first_address.into() }
    }

    #[test]
    fn alike_failures_are_counted_together() {
        let (mut one, mut other) = (Failures::default(), Failures::default());
        one.add(failure("refused", "a:1"));
        other.add(failure("refused", "b:1"));
        other.add(failure("reset", "c:1"));
        one.merge(other);
        let lines: Vec<_> = one.lines().collect();
        assert_eq!(lines, ["2 failed: refused (first at a:1)", "1 failed: reset (first at c:1)"]);
    }

    #[test]
    fn causes_are_bounded_and_calls_are_not_lost() {
        let mut failures = Failures::default();
        for cause in 0..100 {
            failures.add(failure(cause, "a:1"));
        }
        assert_eq!(failures.told_apart().len(), MAX_CAUSES);
        assert_eq!(failures.lines().last().unwrap(), "92 failed for further reasons");
    }
}
