//! The summary: a table for people, one JSON object for programs. The names of the JSON are relied upon.
//! It formats what others have counted.

use std::io::{self, Write};
use std::time::Duration;

use fdpool::BudgetStats;
use indicatif::HumanCount;
use serde::Serialize;

use crate::tally::{Failure, Tally};

#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) peers: usize,
    pub(crate) rounds: u64,
    pub(crate) interrupted: bool,
    /// Slots of the budget when the sweep began.
    pub(crate) limit: usize,
    /// Descriptors open before the first dial.
    pub(crate) baseline_fds: u64,
    /// The most descriptors that were seen open during the sweep.
    pub(crate) peak_fds: u64,
    /// The soft `RLIMIT_NOFILE` of the sweep.
    pub(crate) nofile: u64,
    pub(crate) elapsed: Duration,
    pub(crate) pool: BudgetStats,
    pub(crate) tally: Tally,
}

#[derive(Serialize)]
struct Json<'a> {
    peers: usize,
    rounds: u64,
    calls: u64,
    ok: u64,
    failed: u64,
    failed_waits: u64,
    failed_dials: u64,
    failed_exchanges: u64,
    cancelled: u64,
    interrupted: bool,
    retried: u64,
    stale_failures: u64,
    dials: u64,
    dial_failures: u64,
    reused: u64,
    evicted: u64,
    expired: u64,
    stale: u64,
    waits: u64,
    limit: usize,
    baseline_fds: u64,
    peak_fds: u64,
    nofile: u64,
    emfile: u64,
    p50_us: u32,
    p99_us: u32,
    p999_us: u32,
    max_us: u32,
    elapsed_ms: u64,
    failures: &'a [Failure],
}

impl Summary {
    pub(crate) fn print_json(&self, mut to: impl Write) -> io::Result<()> {
        let Summary { tally, pool, .. } = self;
        let json = Json {
            peers: self.peers,
            rounds: self.rounds,
            calls: tally.calls(),
            ok: tally.ok,
            failed: tally.failed(),
            failed_waits: tally.failed_waits,
            failed_dials: tally.failed_dials,
            failed_exchanges: tally.failed_exchanges,
            cancelled: tally.cancelled,
            interrupted: self.interrupted,
            retried: tally.retried,
            stale_failures: tally.stale_failures,
            dials: pool.dials,
            dial_failures: pool.dial_failures,
            reused: pool.reused,
            evicted: pool.evicted,
            expired: pool.expired,
            stale: pool.stale,
            waits: pool.waits,
            limit: self.limit,
            baseline_fds: self.baseline_fds,
            peak_fds: self.peak_fds,
            nofile: self.nofile,
            emfile: pool.emfile,
            p50_us: tally.latency.quantile_us(500),
            p99_us: tally.latency.quantile_us(990),
            p999_us: tally.latency.quantile_us(999),
            max_us: tally.latency.max_us(),
            elapsed_ms: self.elapsed.as_millis() as u64,
            failures: tally.failures.told_apart(),
        };
        serde_json::to_writer(&mut to, &json)?;
        writeln!(to)
    }

    pub(crate) fn print_table(&self, mut to: impl Write) -> io::Result<()> {
        let Summary { tally, pool, .. } = self;
        let peers = HumanCount(self.peers as u64);
        writeln!(to, "{peers} peers, {} rounds, {:.3?}", HumanCount(self.rounds), self.elapsed)?;
        writeln!(to)?;
        for (name, count) in [
            ("calls", tally.calls()),
            ("ok", tally.ok),
            ("failed", tally.failed()),
            ("cancelled", tally.cancelled),
            ("retried", tally.retried),
            ("dials", pool.dials),
            ("reused", pool.reused),
            ("evicted", pool.evicted),
            ("stale", pool.stale),
            ("waits", pool.waits),
            ("EMFILE", pool.emfile),
        ] {
            writeln!(to, "{name:<14}{:>12}", HumanCount(count).to_string())?;
        }
        writeln!(to)?;
        let Summary { limit, baseline_fds, peak_fds, nofile, .. } = self;
        writeln!(to, "{:<14}{peak_fds:>12}  at most, of RLIMIT_NOFILE {nofile}", "descriptors")?;
        writeln!(to, "{:<14}{baseline_fds:>12}  before the first dial, and a budget of {limit}", "")?;
        writeln!(to)?;
        for (name, micros) in [
            ("latency p50", tally.latency.quantile_us(500)),
            ("p99", tally.latency.quantile_us(990)),
            ("p99.9", tally.latency.quantile_us(999)),
            ("max", tally.latency.max_us()),
        ] {
            writeln!(to, "{name:<14}{:>12.3} ms", f64::from(micros) / 1000.0)?;
        }
        Ok(())
    }
}
