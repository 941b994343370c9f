//! The command line: what can be asked for, what goes together, and what is taken when nothing is said.
//! It knows nothing of how a sweep is run.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::protocol::Protocol;
use crate::sweep::Plan;

/// Poll a fleet of peers through a budget of descriptors that is smaller than the fleet.
///
/// Without --targets the fleet is the program's own: a child process that listens on as many loopback
/// ports as --peers says, and ends with the sweep.
///
/// A round is one call to every peer; a call is get, request, answer, put. Calls are begun in order, round
/// after round, and --concurrency of them run at once, so that at its seam a round overlaps with the next:
/// with a single target the calls of many rounds run side by side on connections of their own. A call whose
/// reused connection fails is tried once more on a fresh one.
#[derive(Debug, Parser)]
#[command(name = "sweep", after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// How many peers the sweep's own fleet has
    #[arg(long, value_name = "N", default_value = "1000", conflicts_with = "targets")]
    pub(crate) peers: NonZeroUsize,

    /// How often every peer is called
    #[arg(long, value_name = "N", default_value = "5")]
    pub(crate) rounds: NonZeroU64,

    /// How many calls run at once; more than the budget holds is fine, they wait
    #[arg(long, value_name = "N", default_value = "64")]
    pub(crate) concurrency: NonZeroUsize,

    /// The soft RLIMIT_NOFILE to run under [default: with the own fleet 256 or what is set if that is
    /// less, with --targets what is set]
    #[arg(long, value_name = "N")]
    pub(crate) nofile: Option<u64>,

    /// How many connections a peer may have at once [default: no limit but the budget]
    #[arg(long, value_name = "N")]
    pub(crate) max_conns: Option<NonZeroUsize>,

    /// Call these servers instead of a fleet of one's own: one host:port a line, # begins a comment
    #[arg(long, value_name = "FILE")]
    pub(crate) targets: Option<PathBuf>,

    /// What the targets speak
    #[arg(long, value_enum, default_value = "echo")]
    pub(crate) protocol: Protocol,

    /// How long a dial, and how long the exchange after it, may take
    #[arg(long, value_name = "MS", default_value = "5000")]
    timeout: NonZeroU64,

    /// How long a call goes on dialing while its peer refuses or drops it, as when it restarts
    #[arg(long, value_name = "MS", default_value = "0")]
    patience: u64,

    /// Print the summary as one JSON object, and nothing else, on stdout
    #[arg(long)]
    pub(crate) json: bool,

    /// Be the fleet (what the sweep starts its child process with)
    #[arg(long, value_name = "LISTENERS", hide = true)]
    pub(crate) serve_fleet: Option<NonZeroUsize>,
}

const AFTER_HELP: &str = "\
Protocols:
  echo   a line, and the same line back
  redis  PING, +PONG
  http   GET / HTTP/1.1, the body read whole; a status of 5xx is a failed call

Exit status:
  0    every call was answered
  1    some calls failed; the summary and the reasons are printed
  2    nothing was begun: a wrong argument, a bad file, a limit that is too low
  130  Ctrl-C; the summary tells what was done";

impl Args {
    /// Ends the process on a wrong argument, with a message and exit code 2.
    pub(crate) fn parse_or_exit() -> Args {
        let args = Args::parse();
        if args.targets.is_none() && args.protocol != Protocol::Echo {
            let message = "the sweep's own fleet speaks echo: another --protocol needs --targets";
            Args::command().error(ErrorKind::ArgumentConflict, message).exit();
        }
        args
    }

    pub(crate) fn plan(&self) -> Plan {
        Plan {
            rounds: self.rounds.get(),
            concurrency: self.concurrency.get(),
            protocol: self.protocol,
            timeout: Duration::from_millis(self.timeout.get()),
            patience: Duration::from_millis(self.patience),
        }
    }

    /// On stderr; hidden with `--json`, and where stderr is not a terminal.
    pub(crate) fn progress_bar(&self, calls: u64) -> ProgressBar {
        let target = if self.json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(calls), target);
        let template = "{wide_bar} {human_pos}/{human_len} calls, {per_sec}, {eta} left";
        bar.with_style(ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn peers_and_targets_exclude_each_other() {
        let both = Args::try_parse_from(["sweep", "--peers", "3", "--targets", "file"]);
        assert_eq!(both.unwrap_err().kind(), ErrorKind::ArgumentConflict);
        assert!(Args::try_parse_from(["sweep", "--targets", "file"]).is_ok());
    }

    #[test]
    fn nothing_may_be_zero() {
        for option in ["--peers", "--rounds", "--concurrency", "--max-conns", "--timeout"] {
            assert!(Args::try_parse_from(["sweep", option, "0"]).is_err(), "{option} 0");
        }
    }
}
