//! What a connection costs with fdpool, beside what one would use in its place, in the same process and run.
//!
//! ```text
//! cargo run --release -p fdpool-benches              # all cases of the table, results.md and plots/*.svg: four minutes
//! cargo run --release -p fdpool-benches -- warm      # some cases, printed
//! cargo run --release -p fdpool-benches -- stale     # and stale, upkeep: a minute or two each, not in the table
//! benches/syscalls                                   # system calls of a warm pair, counted by strace
//! .ci/instructions                                   # its instructions, counted by callgrind
//! ```
//!
//! For tools that look on from outside (strace, callgrind, perf), loops that do one thing and nothing else: `warm-loop
//! stream N` and `warm-loop unit N` make N warm pairs of get and put; `wait-loop fdpool N` and `wait-loop handrolled N`
//! make N pairs of which most have to wait; `dial-loop raw N`, `dial-loop fdpool N` and `dial-loop unit N` make N
//! connections, one after the other; `evict-loop ADDRESSES N` makes N gets that evict.
//!
//! The package depends on fdpool without `test-util`, so that it runs with the clock that users run with. Run it
//! with `-p`, as above: built together with fdpool's tests it would get theirs.

#![allow(clippy::disallowed_methods, reason = "to measure is to read the clock")]

use std::process::ExitCode;
use std::time::Duration;

use fdpool::ConnResource;
use tokio::net::TcpStream;

use fdpool_benches::cases::{contended, dials, evict, keyed, memory, stale, sweep, threads, upkeep, warm};
use fdpool_benches::loopback::{self, Manner};
use fdpool_benches::peers::Unit;
use fdpool_benches::peers::handrolled::HandRolled;
use fdpool_benches::report::Report;

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
        ["wait-loop", pool @ ("fdpool" | "handrolled"), pairs] => match pairs.parse() {
            Ok(pairs) if pool == "fdpool" => {
                contended::run_loop::<ConnResource>(pairs);
                ExitCode::SUCCESS
            }
            Ok(pairs) => {
                contended::run_loop::<HandRolled<TcpStream>>(pairs);
                ExitCode::SUCCESS
            }
            Err(error) => usage(&format!("{pairs}: {error}")),
        },
        ["dial-loop", object @ ("raw" | "fdpool" | "unit"), dials] => match dials.parse() {
            Ok(dials) => {
                dials::run_loop(object, dials);
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
        "{mistake}: no such case\nusage: fdpool-benches [{} ...]\n       fdpool-benches warm-loop stream|unit PAIRS\n       \
         fdpool-benches wait-loop fdpool|handrolled PAIRS\n       fdpool-benches dial-loop raw|fdpool|unit DIALS\n       \
         fdpool-benches evict-loop ADDRESSES GETS",
        names.join(" | ")
    );
    ExitCode::from(2)
}
