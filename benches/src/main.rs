//! What a connection costs with fdpool, beside what one would use in its place, in the same process and run.
//!
//! ```text
//! cargo run --release -p fdpool-benches              # all cases
//! cargo run --release -p fdpool-benches -- warm      # one of: warm, evict, contended, upkeep, stale (a minute or two each)
//! cargo run --release -p fdpool-benches -- warm-loop 1000000
//! benches/syscalls                                   # system calls of a warm pair, counted by strace
//! ```
//!
//! `warm-loop N` makes N warm pairs of get and put and nothing else, for tools that look on from outside:
//! strace, callgrind, perf.
//!
//! The package depends on fdpool without `test-util`, so that it runs with the clock that users run with. Run it
//! with `-p`, as above: built together with fdpool's tests it would get theirs.

#![allow(clippy::disallowed_methods, reason = "to measure is to read the clock")]

mod contended;
mod evict;
mod loopback;
mod measure;
mod peers;
mod stale;
mod upkeep;
mod warm;

use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            warm::run();
            evict::run();
            contended::run();
        }
        ["warm"] => warm::run(),
        ["evict"] => evict::run(),
        ["contended"] => contended::run(),
        ["stale"] => stale::run(),
        ["upkeep"] => upkeep::run(Duration::from_secs(60)),
        ["warm-loop", pairs] => match pairs.parse() {
            Ok(pairs) => warm::run_loop(pairs),
            Err(error) => return usage(&format!("{pairs}: {error}")),
        },
        _ => return usage("no such case"),
    }
    ExitCode::SUCCESS
}

fn usage(mistake: &str) -> ExitCode {
    eprintln!(
        "{mistake}\nusage: fdpool-benches [warm | evict | contended | upkeep | stale | warm-loop PAIRS]"
    );
    ExitCode::from(2)
}
