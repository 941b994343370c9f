//! Runs the example `sweep` as its users do.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;

/// The example beside this test's own program, built of what the sources are now.
pub fn program() -> &'static Path {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
        let own = std::env::current_exe().expect("a test runs from a file");
        let profile = own.ancestors().nth(2).expect("target/profile/deps");
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["build", "--quiet", "--example", "sweep", "--target-dir"])
            .arg(profile.with_file_name(""));
        // What cargo tells this test of its package, build scripts take for news: half of the crates would be built
        // again, here and at the next `cargo test`.
        for (name, _) in std::env::vars_os() {
            let told = name.to_str().unwrap_or_default();
            if told.starts_with("CARGO_PKG_") || told.starts_with("CARGO_MANIFEST_") {
                build.env_remove(name);
            }
        }
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().is_ok_and(|status| status.success()), "the example does not build");
        profile.join("examples/sweep")
    });
    &PROGRAM
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
