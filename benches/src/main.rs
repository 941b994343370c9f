//! What a connection costs with fdpool, beside what one would use in its place, in the same process and run.
//!
//! ```text
//! cargo run --release -p fdpool-benches              # all cases of the table, results.md and plots/*.svg: three minutes
//! cargo run --release -p fdpool-benches -- warm      # some cases, printed
//! cargo run --release -p fdpool-benches -- stale     # and stale, upkeep: a minute or two each, not in the table
//! benches/syscalls                                   # system calls of a warm pair, counted by strace
//! .ci/instructions                                   # its instructions, counted by callgrind
//! ```
//!
//! `warm-loop stream N` and `warm-loop unit N` make N warm pairs of get and put and nothing else, for tools that look on
//! from outside: strace, callgrind, perf. `evict-loop ADDRESSES N` makes N evicting gets likewise, and `dial-loop N` N dials
//! with slots to spare, each with its close.
//!
//! The package depends on fdpool without `test-util`, so that it runs with the clock that users run with. Run it
//! with `-p`, as above: built together with fdpool's tests it would get theirs.

#![allow(clippy::disallowed_methods, reason = "to measure is to read the clock")]

mod cases;
mod loopback;
mod measure;
mod peers;
mod plot;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use tokio::net::TcpStream;

use cases::{contended, dials, evict, keyed, memory, stale, sweep, threads, upkeep, warm};
use loopback::Manner;
use peers::Unit;
use report::Report;

type Case = (&'static str, fn(&mut Report));

/// Those of the table.
const CASES: [Case; 8] = [
    ("warm", warm::run),
    ("contended", contended::run),
    ("keyed", keyed::run),
    ("memory", memory::run),
    ("evict", evict::run),
    ("dials", dials::run),
    ("threads", threads::run),
    ("sweep", sweep::run),
];

/// Others, which take their time.
const LONG: [Case; 2] =
    [("stale", stale::run), ("upkeep", |report| upkeep::run(report, Duration::from_secs(60)))];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => all(),
        ["serve", manner] => match Manner::of(manner) {
            Some(manner) => loopback::serve(manner),
            None => usage(manner),
        },
        ["warm-loop", object @ ("stream" | "unit"), pairs] => match pairs.parse() {
            Ok(pairs) if object == "unit" => {
                warm::run_loop::<Unit>(pairs);
                ExitCode::SUCCESS
            }
            Ok(pairs) => {
                warm::run_loop::<TcpStream>(pairs);
                ExitCode::SUCCESS
            }
            Err(error) => usage(&format!("{pairs}: {error}")),
        },
        ["evict-loop", addresses, gets] => match (addresses.parse(), gets.parse()) {
            (Ok(addresses), Ok(gets)) => {
                evict::run_loop(addresses, gets);
                ExitCode::SUCCESS
            }
            _ => usage(&format!("{addresses} {gets}")),
        },
        ["dial-loop", dials] => match dials.parse() {
            Ok(dials) => {
                evict::run_dial_loop(dials);
                ExitCode::SUCCESS
            }
            Err(error) => usage(&format!("{dials}: {error}")),
        },
        ref names => some(names),
    }
}

fn all() -> ExitCode {
    let mut report = Report::begin();
    for (_, run) in CASES {
        run(&mut report);
    }
    report.print_bars();
    match report.write() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write what was found: {error}");
            ExitCode::FAILURE
        }
    }
}

fn some(names: &[&str]) -> ExitCode {
    let mut report = Report::begin();
    for name in names {
        match CASES.iter().chain(&LONG).find(|(case, _)| case == name) {
            Some((_, run)) => run(&mut report),
            None => return usage(name),
        }
    }
    report.print_bars();
    ExitCode::SUCCESS
}

fn usage(mistake: &str) -> ExitCode {
    let names: Vec<_> = CASES.iter().chain(&LONG).map(|(name, _)| *name).collect();
    eprintln!(
        "{mistake}: no such case\nusage: fdpool-benches [{} ...]\n       fdpool-benches warm-loop stream|unit PAIRS",
        names.join(" | ")
    );
    ExitCode::from(2)
}
