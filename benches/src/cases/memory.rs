//! What an address costs that has nothing open, and what an idle connection costs besides what its stream does: in
//! bytes that were asked of the allocator, as `src/bin/memory.rs` counts them.

use std::env;
use std::process::{Command, Stdio};

use crate::loopback::{Manner, Server};
use crate::report::{Asked, Report, number, table};

pub const ADDRESSES: usize = 4_000;

/// Bytes for each address.
pub struct Bytes {
    pub name: String,
    pub unopened: f64,
    pub idle: f64,
    /// Of pools that can close what is idle.
    pub closed_again: Option<f64>,
}

impl Bytes {
    /// A line, for [`parsed`](Self::parsed).
    pub fn line(&self) -> String {
        let closed_again = self.closed_again.unwrap_or(f64::NAN);
        format!("{}\t{}\t{}\t{closed_again}", self.name, self.unopened, self.idle)
    }

    fn parsed(line: &str) -> Option<Self> {
        let mut cells = line.split('\t');
        let name = cells.next()?.into();
        let mut number = || cells.next()?.parse::<f64>().ok();
        let (unopened, idle) = (number()?, number()?);
        Some(Self { name, unopened, idle, closed_again: number().filter(|bytes| !bytes.is_nan()) })
    }
}

/// What the program that counts says: what a stream costs, and what the pools cost.
fn counted() -> (f64, Vec<Bytes>) {
    let server = Server::start(Manner::Echo);
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let counting =
        ["run", "--quiet", "--profile", profile, "--package", "fdpool-benches", "--bin", "memory", "--"];
    let output = Command::new(cargo)
        .args(counting)
        .arg(server.port().to_string())
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo runs, which built this program");
    let text = String::from_utf8(output.stdout).expect("text");
    let (stream, pools) = text.split_once('\n').expect("what a stream costs, and lines of pools");
    (stream.parse().expect("a number"), pools.lines().filter_map(Bytes::parsed).collect())
}

pub fn run(report: &mut Report) {
    let (stream, found) = counted();
    let mut table = table(["pool", "nothing opened yet", "nothing open any more", "an idle connection"]);
    for Bytes { name, unopened, idle, closed_again } in &found {
        let closed_again = closed_again.map_or("–".into(), number);
        table.add_row([name.as_str(), &number(*unopened), &closed_again, &number(*idle)]);
    }
    let notes = format!(
        "Bytes for each of {ADDRESSES} addresses, with the address's text and a handle; an idle connection's besides the \
         {} of its TcpStream. deadpool reserves the room for one beforehand.",
        number(stream)
    );
    report.section("memory", &notes, &table);
    for Bytes { name, unopened, idle, closed_again } in &found[..2] {
        report.bar(
            format!("{name}, bytes an address with nothing opened yet"),
            *unopened,
            Asked::AtMost(256.0),
        );
        let closed_again = closed_again.expect("fdpool closes");
        report.bar(
            format!("{name}, bytes an address with nothing open any more"),
            closed_again,
            Asked::AtMost(256.0),
        );
        report.bar(format!("{name}, bytes an idle connection"), *idle, Asked::AtMost(96.0));
    }
}
