//! What an address means to TCP: an IP address and a port, or a name and a port. Pure.

use std::net::{Ipv6Addr, SocketAddr};

use crate::error::DialError;

/// Where to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    Socket(SocketAddr),
    /// An address in the zone of an interface that is named. One in a numbered zone is a socket's.
    Zoned {
        ip: Ipv6Addr,
        zone: &'a str,
        port: u16,
    },
    Name {
        host: &'a str,
        port: u16,
    },
}

impl<'a> Target<'a> {
    /// Reads `host:port`. IPv6 addresses stand in brackets.
    pub(super) fn parse(address: &'a str) -> Result<Self, BadAddress> {
        if let Ok(socket) = address.parse() {
            return Ok(Self::Socket(socket));
        }
        let fault = match address.rsplit_once(':') {
            None => Fault::NoPort,
            Some((host, port)) => match (zoned(host), fault_of(host), port_of(port)) {
                (Some((ip, zone)), _, Some(port)) => return Ok(Self::Zoned { ip, zone, port }),
                (None, None, Some(port)) => return Ok(Self::Name { host, port }),
                (None, Some(fault), _) => fault,
                (_, _, None) => Fault::Port,
            },
        };
        Err(BadAddress { address: address.chars().take(QUOTED).collect(), fault })
    }
}

/// The most of an address that is quoted in an error.
const QUOTED: usize = 300;

fn port_of(port: &str) -> Option<u16> {
    // Not as lenient as `parse`, which takes "+80".
    port.bytes().all(|digit| digit.is_ascii_digit()).then(|| port.parse().ok()).flatten()
}

/// An IPv6 address in brackets and the name of an interface: `[fe80::1%eth0]`.
fn zoned(host: &str) -> Option<(Ipv6Addr, &str)> {
    let (ip, zone) = host.strip_prefix('[')?.strip_suffix(']')?.split_once('%')?;
    let stray = |c: char| c.is_whitespace() || c.is_control() || "/[]%".contains(c);
    // A number that is none of a zone's is no name.
    let is_number = zone.bytes().all(|byte| byte.is_ascii_digit());
    let ip = ip.parse().ok()?;
    (!is_number && !zone.chars().any(stray)).then_some((ip, zone))
}

/// What no resolver could make sense of. What is none of an internet host's business but may be another
/// namespace's, underscores and letters beyond ASCII, is left to the resolver.
fn fault_of(host: &str) -> Option<Fault> {
    let bare = host.strip_suffix('.').unwrap_or(host);
    let stray = |c: char| c.is_whitespace() || c.is_control() || "/\\@:[]?#%<>^|\"'`,;(){}".contains(c);
    let too_long = |label: &str| label.chars().count() > 63;
    if bare.is_empty() {
        Some(Fault::NoHost)
    } else if host.contains(['[', ']']) || host.contains(':') {
        Some(Fault::Ip)
    } else if bare.chars().any(stray) {
        Some(Fault::Character)
    } else if bare.chars().count() > 253 || bare.split('.').any(too_long) {
        Some(Fault::TooLong)
    } else if bare.split('.').any(str::is_empty) {
        Some(Fault::EmptyLabel)
    } else {
        None
    }
}

/// An address that no retry will mend.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address:?} is not host:port: {fault}")]
pub(super) struct BadAddress {
    address: String,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("it has no port")]
    NoPort,
    #[error("its port is no number up to 65535")]
    Port,
    #[error("it has no host")]
    NoHost,
    #[error("its host is no IPv6 address in brackets, and no name")]
    Ip,
    #[error("a character in its host is in no name")]
    Character,
    #[error("its host is longer than 253 characters, or a part of it longer than 63")]
    TooLong,
    #[error("a part of its host is empty")]
    EmptyLabel,
}

impl From<BadAddress> for DialError {
    fn from(error: BadAddress) -> Self {
        DialError::new(error).permanent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_sockets_and_of_names_are_told_apart() {
        for socket in
            ["127.0.0.1:0", "[::1]:443", "[fe80::1%3]:22", "255.255.255.255:65535", "[::ffff:1.2.3.4]:1"]
        {
            assert_eq!(Target::parse(socket), Ok(Target::Socket(socket.parse().unwrap())), "{socket}");
        }
        let long = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "a".repeat(61));
        for host in ["localhost", "example.org", "example.org.", "a_b-c.d", "münchen.de", "127.1", "1", &long]
        {
            let address = format!("{host}:80");
            assert_eq!(Target::parse(&address), Ok(Target::Name { host, port: 80 }), "{host}");
        }
    }

    #[test]
    fn a_zone_may_be_the_name_of_an_interface() {
        let ip = "fe80::1".parse().unwrap();
        for zone in ["eth0", "enp3s0.7", "br-1f", "0x"] {
            let address = format!("[fe80::1%{zone}]:80");
            assert_eq!(Target::parse(&address), Ok(Target::Zoned { ip, zone, port: 80 }), "{zone}");
        }
    }

    #[test]
    fn addresses_that_are_no_host_and_port_are_told_what_is_wrong() {
        let long = format!("{}:80", "a".repeat(64));
        let longer = format!("{}a:80", "a.".repeat(127));
        for (bad, fault) in [
            ("", Fault::NoPort),
            ("nohost", Fault::NoPort),
            ("127.0.0.1", Fault::NoPort),
            ("[::1]", Fault::Ip),
            ("::1:80", Fault::Ip),
            ("::1", Fault::Ip),
            ("[::1]80", Fault::Ip),
            ("[abc]:80", Fault::Ip),
            ("[1.2.3.4]:80", Fault::Ip),
            ("[fe80::1%]:80", Fault::Ip),
            ("[fe80::1%99999999999]:80", Fault::Ip),
            ("[fe80::1%a b]:80", Fault::Ip),
            ("[fe80::1%a%b]:80", Fault::Ip),
            ("[fe80::1%a/b]:80", Fault::Ip),
            ("[1.2.3.4%eth0]:80", Fault::Ip),
            ("[example%eth0]:80", Fault::Ip),
            ("fe80::1%eth0:80", Fault::Ip),
            ("[fe80::1%eth0]", Fault::Ip),
            ("[fe80::1%eth0]:65536", Fault::Port),
            ("http://a:80", Fault::Ip),
            (":80", Fault::NoHost),
            (".:80", Fault::NoHost),
            ("a:65536", Fault::Port),
            ("a:", Fault::Port),
            ("a:+80", Fault::Port),
            ("a:-1", Fault::Port),
            ("a:80 ", Fault::Port),
            ("a:http", Fault::Port),
            (" a:80", Fault::Character),
            ("a b:80", Fault::Character),
            ("a\0b:80", Fault::Character),
            ("a\n:80", Fault::Character),
            ("user@host:80", Fault::Character),
            ("host/path:80", Fault::Character),
            ("a..b:80", Fault::EmptyLabel),
            (".a:80", Fault::EmptyLabel),
            ("a..:80", Fault::EmptyLabel),
            (&long, Fault::TooLong),
            (&longer, Fault::TooLong),
        ] {
            let error = Target::parse(bad).unwrap_err();
            assert_eq!(error.fault, fault, "{bad:?}");
            assert!(DialError::from(error).is_permanent());
        }
    }

    #[test]
    fn an_error_quotes_a_part_of_an_endless_address() {
        let error = Target::parse(&"a".repeat(1_000_000)).unwrap_err();
        assert!(error.to_string().len() < 400);
    }
}
