//! The `--targets` file: one `host:port` a line, blank lines and `#` comments between them.
//! It reads and judges lines; whether anybody listens there is found out by dialing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fdpool::Address;
use thiserror::Error;

#[derive(Debug, Error)]
pub(crate) enum TargetsError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}, line {line}: {text:?} is not a host:port ({why})", path.display())]
    Line { path: PathBuf, line: usize, text: String, why: &'static str },
    #[error("{}: no target in it", path.display())]
    Empty { path: PathBuf },
}

pub(crate) fn read(path: &Path) -> Result<Vec<Address>, TargetsError> {
    let bytes = fs::read(path).map_err(|source| TargetsError::Read { path: path.into(), source })?;
    parse(path, &String::from_utf8_lossy(&bytes))
}

fn parse(path: &Path, text: &str) -> Result<Vec<Address>, TargetsError> {
    let mut targets = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let target = line.split_once('#').map_or(line, |(target, _comment)| target).trim();
        if target.is_empty() {
            continue;
        }
        judge(target).map_err(|why| TargetsError::Line {
            path: path.into(),
            line: index + 1,
            text: target.into(),
            why,
        })?;
        targets.push(Address::from(target));
    }
    if targets.is_empty() { Err(TargetsError::Empty { path: path.into() }) } else { Ok(targets) }
}

fn judge(target: &str) -> Result<(), &'static str> {
    let (host, port) = target.rsplit_once(':').ok_or("the port is missing")?;
    match port.parse::<u16>() {
        Ok(0) | Err(_) => return Err("the port is no number from 1 to 65535"),
        Ok(_) => {}
    }
    match host.strip_prefix('[') {
        Some(rest) if rest.strip_suffix(']').is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()) => {
            Ok(())
        }
        Some(_) => Err("no IPv6 address in the brackets"),
        None if host.is_empty() => Err("the host is missing"),
        None if host.contains(':') => Err("an IPv6 address needs brackets"),
        None if host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) => Ok(()),
        None => Err("no such host can be"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Address>, TargetsError> {
        parse(Path::new("fleet.txt"), text)
    }

    #[test]
    fn blank_lines_and_comments_are_skipped() {
        let targets =
            parsed("# the fleet\n\na.example:80 # the first\r\n  10.0.0.1:6379\n[::1]:7\n").unwrap();
        assert_eq!(targets, ["a.example:80", "10.0.0.1:6379", "[::1]:7"].map(Address::from));
    }

    #[test]
    fn a_bad_line_is_told_with_its_number() {
        for bad in
            ["host", "host:", "host:0", "host:65536", ":80", "::1:80", "[x]:80", "a b:80", "h\u{fffd}:80"]
        {
            let error = parsed(&format!("# one\ngood:1\n{bad}\n")).unwrap_err();
            assert!(matches!(error, TargetsError::Line { line: 3, .. }), "{bad}: {error}");
            assert!(error.to_string().starts_with("fleet.txt, line 3: "), "{error}");
        }
    }

    #[test]
    fn a_file_without_a_target_is_refused() {
        assert!(matches!(parsed("# nothing\n\n"), Err(TargetsError::Empty { .. })));
    }
}
