//! What the cases found: tables as they come, and in the end `results.md` and the plots. Knows neither pools nor cases.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use comfy_table::{CellAlignment, Table, presets};

use crate::measure::Timed;
use crate::plot::Plot;

/// Collects, and prints what it collects.
pub struct Report {
    /// What else the machine did when it began.
    load: String,
    text: String,
    bars: Vec<Bar>,
    plots: Vec<(&'static str, Plot)>,
    headline: String,
}

/// What the README shows stands between these.
const HEADLINE: [&str; 2] = ["<!-- benches: written by them -->\n", "<!-- benches: end -->\n"];

/// What is asked for, and what was found.
struct Bar {
    asked: String,
    found: String,
    met: bool,
}

impl Report {
    pub fn begin() -> Self {
        let averages = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = averages.split(' ').next().unwrap_or_default().into();
        Self { load, text: String::new(), bars: Vec::new(), plots: Vec::new(), headline: String::new() }
    }

    pub fn section(&mut self, title: &str, notes: &str, table: &Table) {
        let mut text = format!("\n## {title}\n");
        if !notes.is_empty() {
            let _ = write!(text, "\n{notes}\n");
        }
        let _ = write!(text, "\n{table}\n");
        print!("{text}");
        self.text += &text;
    }

    /// What the README shows.
    pub fn headline(&mut self, table: &Table) {
        self.headline = format!("\n{table}\n\n{}\n\n", processor());
    }

    pub fn bar(&mut self, what: impl Into<String>, found: f64, asked: Asked) {
        let (met, sign, bound) = match asked {
            Asked::AtMost(bound) => (found <= bound, '≤', bound),
            Asked::AtLeast(bound) => (found >= bound, '≥', bound),
        };
        let asked = format!("{}: {sign} {bound}", what.into());
        self.bars.push(Bar { asked, found: number(found), met });
    }

    pub fn plot(&mut self, name: &'static str, plot: Plot) {
        self.plots.push((name, plot));
    }

    pub fn print_bars(&self) {
        if !self.bars.is_empty() {
            print!("{}", self.bars());
        }
    }

    fn bars(&self) -> String {
        let mut table = table(["what is asked", "found", "met"]);
        for Bar { asked, found, met } in &self.bars {
            table.add_row([asked.as_str(), found, if *met { "yes" } else { "no" }]);
        }
        format!("\n## What is asked\n\n{table}\n")
    }

    /// Writes everything next to the package's manifest.
    pub fn write(&self) -> Result<(), Box<dyn std::error::Error>> {
        let home = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let text = format!("# Results\n\n{}\n{}{}", machine(&self.load), self.bars(), self.text);
        fs::write(home.join("results.md"), text)?;
        fs::create_dir_all(home.join("plots"))?;
        for (name, plot) in &self.plots {
            plot.draw(&home.join("plots").join(name).with_extension("svg"))?;
        }
        let readme = home.join("../README.md");
        let text = replaced(&fs::read_to_string(&readme)?, &self.headline);
        Ok(fs::write(readme, text.ok_or("README.md has no place for the benches")?)?)
    }
}

fn replaced(readme: &str, headline: &str) -> Option<String> {
    let [begin, end] = HEADLINE;
    let (before, rest) = readme.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some([before, begin, headline, end, after].concat())
}

/// Which side of the bound is the good one.
#[derive(Clone, Copy)]
pub enum Asked {
    AtMost(f64),
    AtLeast(f64),
}

/// Text on the left of each row, numbers on the right.
pub fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Medians and minima, and how they compare with those of `base`.
pub fn timings(timed: &[Timed], base: &Timed) -> Table {
    let mut table = table(["pool", "median ns", "ratio", "minimum ns", "ratio of minima", ""]);
    for row in timed {
        let name = versioned(&row.name);
        let cells = [row.median(), row.ratio_to(base), row.least(), row.least() / base.least()];
        let [median, ratio, least, least_ratio] = cells.map(number);
        table.add_row([&name, &median, &ratio, &least, &least_ratio, row.note]);
    }
    if let Some(notes) = table.column_mut(5) {
        notes.set_cell_alignment(CellAlignment::Left);
    }
    table
}

/// Three digits that mean something, and thousands set apart.
pub fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => {
            let digits = format!("{value:.0}");
            let apart = |(place, digit)| {
                let comma = place > 0 && (digits.len() - place) % 3 == 0;
                comma.then_some(',').into_iter().chain([digit])
            };
            digits.chars().enumerate().flat_map(apart).collect()
        }
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A number on an axis: as it is, without more digits than it has.
pub fn tick(value: f64) -> String {
    if value >= 100.0 { number(value) } else { format!("{value}") }
}

/// A pool's name with the version it was built with, if it is a crate's.
pub fn versioned(name: &str) -> String {
    let (krate, rest) = name.split_at(name.find([' ', ',', ':']).unwrap_or(name.len()));
    match version(krate) {
        Some(version) => format!("{krate} {version}{rest}"),
        None => name.into(),
    }
}

fn version(krate: &str) -> Option<&'static str> {
    let mut lines = include_str!("../../Cargo.lock").lines();
    lines.find(|line| line.strip_prefix("name = ").is_some_and(|name| name.trim_matches('"') == krate))?;
    Some(lines.next()?.strip_prefix("version = ")?.trim_matches('"'))
}

fn processor() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("Processor: {}, {cores} cores.", model.unwrap_or("unknown"))
}

fn machine(load: &str) -> String {
    let rustc = Command::new("rustc").arg("--version").output();
    let rustc =
        rustc.map_or_else(|_| "unknown".into(), |said| String::from_utf8_lossy(&said.stdout).into_owned());
    format!(
        "Of `cargo run --release -p fdpool-benches`, which measures all pools in one process, in turn, round by round.\n\
         Ratios are medians of the rounds' ratios.\n\n\
         {} Load before: {}. Compiler: {}. tokio {}.",
        processor(),
        load.trim(),
        rustc.trim(),
        version("tokio").unwrap_or("unknown"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let texts = [0.517, 9.994, 31.26, 99.96, 146.4, 1335.0, 1_234_567.0].map(number);
        assert_eq!(texts, ["0.52", "9.99", "31.3", "100.0", "146", "1,335", "1,234,567"]);
    }

    #[test]
    fn the_readme_keeps_what_is_around() {
        let [begin, end] = HEADLINE;
        let readme = |inside: &str| format!("before\n{begin}{inside}{end}after\n");
        assert_eq!(replaced(&readme("old\n"), "new\n"), Some(readme("new\n")));
        assert_eq!(replaced("no place", "new"), None);
    }

    #[test]
    fn names_of_crates_get_their_versions() {
        let fdpool = format!("fdpool {}, kept", env!("CARGO_PKG_VERSION").replace("0.0.0", "0.1.0"));
        assert_eq!(versioned("fdpool, kept"), fdpool);
        assert_eq!(versioned("hand-rolled: a queue"), "hand-rolled: a queue");
    }
}
