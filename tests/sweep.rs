//! The main job, as its users run it: a fleet polled through a budget that is smaller than the fleet.

mod support;
#[allow(dead_code, unreachable_pub, reason = "every test binary uses a part of it")]
#[path = "support/sweep.rs"]
mod sweep;

use std::process::Command;

use support::refusing;
use sweep::{Ended, command, number, run};

const FIELDS: [&str; 18] = [
    "peers",
    "rounds",
    "calls",
    "ok",
    "failed",
    "dials",
    "reused",
    "evicted",
    "stale",
    "limit",
    "baseline_fds",
    "peak_fds",
    "nofile",
    "emfile",
    "p50_us",
    "p99_us",
    "max_us",
    "elapsed_ms",
];

fn sweeps(args: &[&str]) {
    let ended = run(&[&["--peers", "300", "--rounds", "3", "--json"], args].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let summary = ended.summary();
    for field in FIELDS {
        number(&summary, field);
    }
    let of = |field| number(&summary, field);
    assert_eq!((of("calls"), of("ok"), of("failed"), of("emfile")), (900, 900, 0, 0), "{summary}");
    assert!(of("peak_fds") <= of("baseline_fds") + of("limit"), "{summary}");
    assert!(of("limit") < 300 && of("dials") >= 300, "{summary}");
}

#[test]
fn a_fleet_larger_than_the_budget() {
    sweeps(&["--nofile", "128"]);
}

#[test]
fn with_very_few_descriptors() {
    sweeps(&["--nofile", "64"]);
}

#[test]
fn with_one_connection_an_address() {
    sweeps(&["--nofile", "128", "--max-conns", "1"]);
}

#[test]
fn with_more_calls_at_once_than_slots() {
    sweeps(&["--nofile", "64", "--concurrency", "200"]);
}

/// A file that is gone with the test.
struct Targets(std::path::PathBuf);

impl Targets {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fdpool-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_bad_file_is_told_with_its_line() {
    let ended = run(&["--targets", "/nonexistent/targets"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("/nonexistent/targets"), "{}", ended.stderr);
    let targets = Targets::new("bad", "127.0.0.1:80\n\n# fine\nno port here\n");
    let ended = run(&["--targets", targets.path()]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("line 4"), "the line's number: {}", ended.stderr);
}

#[test]
fn an_unreachable_peer_is_told_and_the_summary_printed() {
    let (_refusing, address) = refusing();
    let targets = Targets::new("unreachable", &format!("{address}\n"));
    let ended = run(&["--targets", targets.path(), "--rounds", "3", "--json"]);
    assert_eq!(ended.code, Some(1));
    assert_eq!(number(&ended.summary(), "failed"), 3);
    assert!(ended.stderr.contains("refused"), "{}", ended.stderr);
}

#[test]
fn an_interrupt_ends_it_with_the_summary() {
    let mut child = command(&["--peers", "50", "--rounds", "100000000", "--json"]).spawn().unwrap();
    // Interrupt it once it calls: its connections are then in the kernel's table, as descriptors of its own.
    let descriptors = format!("/proc/{}/fd", child.id());
    while std::fs::read_dir(&descriptors).map_or(0, Iterator::count) < 40 {
        assert!(child.try_wait().unwrap().is_none(), "ended by itself");
        std::thread::yield_now();
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let ended = Ended::of(child);
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
    let summary = ended.summary();
    assert_eq!(number(&summary, "calls"), number(&summary, "ok") + number(&summary, "failed"));
}

#[test]
fn its_fleet_ends_with_it() {
    let mut child = command(&["--peers", "20", "--rounds", "100000000", "--json"]).spawn().unwrap();
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let fleet = loop {
        let listed = std::fs::read_to_string(&children).unwrap_or_default();
        if let Some(fleet) = listed.split_whitespace().next() {
            break fleet.to_owned();
        }
        assert!(child.try_wait().unwrap().is_none(), "ended by itself");
        std::thread::yield_now();
    };
    child.kill().unwrap(); // without a chance to clean up
    child.wait().unwrap();
    let alive = |stat: String| !stat.contains(") Z ");
    while std::fs::read_to_string(format!("/proc/{fleet}/stat")).is_ok_and(alive) {
        std::thread::yield_now();
    }
}

#[test]
fn without_json_it_prints_a_table() {
    let ended = run(&["--peers", "20", "--rounds", "2"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for word in
        ["calls", "ok", "failed", "dials", "reused", "evicted", "stale", "waits", "descriptors", "p99.9"]
    {
        assert!(ended.stdout.contains(word), "no {word}: {}", ended.stdout);
    }
}
