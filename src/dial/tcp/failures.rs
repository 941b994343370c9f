//! What all attempts of one dial failed of, as one error. Pure.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use crate::error::{DialError, is_wrong_input};

/// How many addresses an error names.
const NAMED: usize = 4;

/// No address could be connected to. There is at least one.
#[derive(Debug)]
pub(super) struct AttemptsFailed(Vec<(SocketAddr, io::Error)>);

impl AttemptsFailed {
    /// Of the attempts in the order in which they failed.
    pub(super) fn new(attempts: Vec<(SocketAddr, io::Error)>) -> Self {
        assert!(!attempts.is_empty(), "BUG: no attempt failed");
        Self(attempts)
    }

    /// The attempt that came nearest to a connection, the first of those.
    fn most_telling(&self) -> &io::Error {
        let weight = |(_, error): &&(SocketAddr, io::Error)| std::cmp::Reverse(telling(error.kind()));
        // `min_by_key` keeps the first of several.
        &self.0.iter().min_by_key(weight).expect("BUG: no attempt failed").1
    }
}

/// How much an error says of the peer, rather than of the way to it.
fn telling(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => 4,
        ErrorKind::TimedOut => 2,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => 1,
        // No such family on this machine.
        ErrorKind::AddrNotAvailable | ErrorKind::Unsupported => 0,
        // Something local that needs looking at: no permission, no memory, no port.
        _ => 3,
    }
}

impl fmt::Display for AttemptsFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (address, error)) in self.0.iter().take(NAMED).enumerate() {
            let separator = if n == 0 { "" } else { "; " };
            write!(f, "{separator}{address}: {error}")?;
        }
        match self.0.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl Error for AttemptsFailed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.most_telling())
    }
}

impl From<AttemptsFailed> for DialError {
    fn from(failed: AttemptsFailed) -> Self {
        let permanent = failed.0.iter().all(|(_, error)| is_wrong_input(error));
        let error = DialError::new(failed);
        if permanent { error.permanent() } else { error }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    fn failed(kinds: &[ErrorKind]) -> AttemptsFailed {
        let attempt = |(n, kind): (usize, &ErrorKind)| (([10, 0, 0, n as u8], 80).into(), (*kind).into());
        AttemptsFailed::new(kinds.iter().enumerate().map(attempt).collect())
    }

    #[test]
    fn the_most_telling_error_is_the_kind_of_all_wherever_it_stands() {
        use ErrorKind::*;
        let by_weight = [Unsupported, NetworkUnreachable, TimedOut, PermissionDenied, ConnectionRefused];
        for (n, telling) in by_weight.iter().enumerate() {
            for less in &by_weight[..n] {
                for kinds in [[*less, *telling], [*telling, *less]] {
                    assert_eq!(DialError::from(failed(&kinds)).io_kind(), Some(*telling), "{kinds:?}");
                }
            }
        }
        let alike = AttemptsFailed::new(vec![
            (([10, 0, 0, 1], 80).into(), io::Error::new(ConnectionRefused, "first")),
            (([10, 0, 0, 2], 80).into(), io::Error::new(ConnectionRefused, "second")),
        ]);
        assert_eq!(alike.most_telling().to_string(), "first");
    }

    #[test]
    fn each_address_is_named_with_its_error_up_to_a_few() {
        let two = failed(&[ErrorKind::TimedOut, ErrorKind::ConnectionRefused]).to_string();
        assert_eq!(two, "10.0.0.0:80: timed out; 10.0.0.1:80: connection refused");
        let six = failed(&[ErrorKind::TimedOut; 6]).to_string();
        assert!(six.ends_with("10.0.0.3:80: timed out; and 2 more"), "{six}");
    }

    #[test]
    fn it_is_permanent_if_all_are() {
        use ErrorKind::{InvalidInput, TimedOut};
        assert!(DialError::from(failed(&[InvalidInput, InvalidInput])).is_permanent());
        assert!(!DialError::from(failed(&[InvalidInput, TimedOut])).is_permanent());
        let systems = io::Error::from_raw_os_error(Errno::INVAL.raw_os_error());
        let failed = AttemptsFailed::new(vec![(([10, 0, 0, 1], 80).into(), systems)]);
        assert!(!DialError::from(failed).is_permanent());
    }
}
