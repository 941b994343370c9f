//! Runs the example `sweep` as its users do.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

/// The example beside this test's own program, built if need be.
pub fn program() -> PathBuf {
    let own = std::env::current_exe().expect("a test runs from a file");
    let path = own.ancestors().nth(2).expect("target/*/deps").join("examples/sweep");
    if !path.exists() {
        let built = Command::new(env!("CARGO")).args(["build", "--example", "sweep"]).status();
        assert!(built.is_ok_and(|status| status.success()) && path.exists(), "build the example first");
    }
    path
}

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn of(child: std::process::Child) -> Self {
        let output = child.wait_with_output().expect("it ends");
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    pub fn summary(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", self.stdout, self.stderr))
    }
}

pub fn run(args: &[&str]) -> Ended {
    Ended::of(command(args).spawn().expect("it starts"))
}

#[track_caller]
pub fn number(summary: &Value, field: &str) -> u64 {
    summary[field].as_u64().unwrap_or_else(|| panic!("no {field} in {summary}"))
}
