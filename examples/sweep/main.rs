//! The main job of fdpool, for real: poll a fleet of peers through a budget of descriptors that is smaller
//! than the fleet, round after round, and tell what became of it. `--help` says what can be asked for.
#![allow(clippy::disallowed_methods, reason = "an example reads clocks as programs do")]

mod call;
mod cli;
mod descriptors;
mod fleet;
mod latency;
mod protocol;
mod report;
mod sweep;
mod tally;
mod targets;

use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::time::Instant;

use fdpool::{Address, Budget, CancellationToken};
use indicatif::ProgressBar;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Args;
use crate::descriptors::Sampler;
use crate::fleet::Fleet;
use crate::report::Summary;

/// The exit codes that `--help` promises.
mod exit {
    pub(crate) const OK: u8 = 0;
    pub(crate) const CALLS_FAILED: u8 = 1;
    pub(crate) const NOT_STARTED: u8 = 2;
    pub(crate) const INTERRUPTED: u8 = 130;
}

fn main() -> ExitCode {
    let args = Args::parse_or_exit();
    if let Some(listeners) = args.serve_fleet {
        return fleet::serve(listeners);
    }
    match prepare_and_sweep(&args) {
        Ok(summary) => conclude(&summary, args.json),
        Err(error) => {
            eprintln!("sweep: {error}");
            ExitCode::from(exit::NOT_STARTED)
        }
    }
}

fn prepare_and_sweep(args: &Args) -> Result<Summary, Box<dyn Error>> {
    let nofile = descriptors::limit_to_set(args.nofile, args.targets.is_none())?;
    // The fleet outlives the runtime: it is the last to be dropped.
    let (_fleet, targets) = match &args.targets {
        Some(file) => (None, targets::read(file)?),
        None => {
            let (fleet, addresses) = Fleet::start(args.peers, nofile)?;
            (Some(fleet), addresses)
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let swept = runtime.block_on(lower_and_sweep(args, nofile, &targets));
    runtime.shutdown_background();
    swept
}

/// Everything that opens descriptors of its own is there now: what is open from here on is the baseline.
async fn lower_and_sweep(args: &Args, nofile: u64, targets: &[Address]) -> Result<Summary, Box<dyn Error>> {
    let plan = args.plan();
    let bar = args.progress_bar(plan.calls(targets.len()));
    let token = CancellationToken::new();
    cancel_on_interrupt(token.clone(), bar.clone())?;
    descriptors::set_limit(nofile)?;

    let budget = Budget::global();
    let limit = budget.effective_limit();
    let baseline_fds = descriptors::open()?;
    let sampler = Sampler::start(baseline_fds)?;
    let began = Instant::now();

    let resources = sweep::resources(targets, args.max_conns);
    let tally = sweep::run(plan, resources.clone(), token.clone(), bar.clone()).await;

    let elapsed = began.elapsed();
    let peak_fds = sampler.finish();
    bar.finish_and_clear();
    Ok(Summary {
        peers: targets.len(),
        rounds: args.rounds.get(),
        interrupted: token.is_cancelled(),
        limit,
        baseline_fds,
        peak_fds,
        nofile,
        elapsed,
        pool: budget.stats(),
        tally,
    })
}

/// The first Ctrl-C ends the sweep after the calls that are under way, the second one ends the process.
fn cancel_on_interrupt(token: CancellationToken, bar: ProgressBar) -> io::Result<()> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        interrupts.recv().await;
        token.cancel();
        bar.suspend(|| eprintln!("sweep: interrupted, running calls may end; again to exit at once"));
        interrupts.recv().await;
        std::process::exit(exit::INTERRUPTED.into());
    });
    Ok(())
}

/// Prints what was done, also when it was not all that was asked for.
fn conclude(summary: &Summary, json: bool) -> ExitCode {
    for failure in summary.tally.failures.lines() {
        eprintln!("sweep: {failure}");
    }
    let printed = if json { summary.print_json(io::stdout()) } else { summary.print_table(io::stdout()) };
    if let Err(error) = printed {
        eprintln!("sweep: cannot print the summary: {error}");
    }
    ExitCode::from(match summary.tally.failed() {
        _ if summary.interrupted => exit::INTERRUPTED,
        0 => exit::OK,
        _ => exit::CALLS_FAILED,
    })
}
