//! Dialers by way of a proxy: what they are asked for, and how they fail. The protocols are in the files below;
//! how the proxy is reached is the inner dialer's business.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::address::Address;
use crate::error::DialError;

/// Makes a dialer of one that reaches its `proxy` with its `inner` dialer and then shakes hands in `connect`: the
/// connection is the inner dialer's, and all that is asked of it later is asked of that one.
macro_rules! dial_through_proxy {
    ($dialer:ident, $kind:literal) => {
        impl<D: Dial> Dial for $dialer<D>
        where
            D::Conn: AsyncRead + AsyncWrite + Unpin,
        {
            type Conn = D::Conn;

            async fn dial(&self, address: &Address, cx: &DialContext) -> Result<D::Conn, DialError> {
                self.connect(address, cx).await.map_err(|failed| failed.at($kind, &self.proxy, address))
            }

            fn check(&self, conn: &mut D::Conn, cx: &CheckContext) -> Fitness {
                self.inner.check(conn, cx)
            }

            fn poll_idle(&self, conn: &mut D::Conn, cx: &mut Context<'_>) -> Poll<Fitness> {
                self.inner.poll_idle(conn, cx)
            }

            fn watch(&self, _address: &Address) -> Option<Watch> {
                self.inner.watch(&self.proxy)
            }

            fn is_current(&self, _address: &Address, conn: &D::Conn) -> bool {
                self.inner.is_current(&self.proxy, conn)
            }

            fn close(&self, conn: D::Conn) {
                self.inner.close(conn);
            }
        }
    };
}

#[cfg(feature = "http-proxy")]
mod http;
mod socks;

#[cfg(feature = "http-proxy")]
pub use http::HttpConnect;
pub use socks::Socks5;

/// Where the proxy is to connect to.
#[derive(Debug, PartialEq, Eq)]
struct Destination<'a> {
    host: Host<'a>,
    port: u16,
}

#[derive(Debug, PartialEq, Eq)]
enum Host<'a> {
    Ip(IpAddr),
    Name(&'a str),
}

impl<'a> Destination<'a> {
    /// Nothing that could end a line or a field of the proxy's protocol is let through.
    fn parse(address: &'a str) -> Result<Self, DialError> {
        Self::read(address).map_err(|why| DialError::new(format!("{address:?} {why}")).permanent())
    }

    fn read(address: &'a str) -> Result<Self, &'static str> {
        let (host, port) = address.rsplit_once(':').ok_or("is not host:port")?;
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port =
            port.parse().ok().filter(|_| digits).ok_or("is not host:port: the port is no number to 65535")?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(ip) => {
                Host::Ip(ip.parse::<Ipv6Addr>().map_err(|_| "has no IPv6 address in its brackets")?.into())
            }
            None => match host.parse::<Ipv4Addr>() {
                Ok(ip) => Host::Ip(ip.into()),
                Err(_) => Host::Name(name(host)?),
            },
        };
        Ok(Self { host, port })
    }
}

fn name(host: &str) -> Result<&str, &'static str> {
    match host {
        "" => Err("has no host"),
        _ if host.contains(':') => Err("is not host:port: an IPv6 address needs brackets"),
        _ if !host.is_ascii() => Err("has a name that is not ASCII: write it as xn--"),
        _ if host.len() > 255 => Err("has a name of more than 255 bytes"),
        _ if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) => {
            Err("has a character in its name that no host name has")
        }
        name => Ok(name),
    }
}

/// As the authority of a URI.
impl fmt::Display for Destination<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// What a dial by way of a proxy was doing when it failed.
#[derive(Clone, Copy, Debug)]
enum Step {
    Prepare,
    Reach,
    ChooseMethod,
    Authenticate,
    Request,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Prepare => "before dialing it",
            Step::Reach => "dialing it",
            Step::ChooseMethod => "agreeing on how to authenticate",
            Step::Authenticate => "authenticating",
            Step::Request => "asking it to connect",
        })
    }
}

/// A failed step, and whatever the source says, which must name no password.
#[derive(Debug)]
struct Failed {
    step: Step,
    error: DialError,
}

impl Step {
    fn failed(self, error: impl Into<DialError>) -> Failed {
        Failed { step: self, error: error.into() }
    }

    /// The proxy was asked and did not answer to the end.
    fn broken(self, error: io::Error) -> Failed {
        self.failed(match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "the proxy closed the connection"),
            _ => error,
        })
    }

    /// The proxy answered what is no answer.
    fn garbage(self, what: impl Into<String>) -> Failed {
        self.failed(io::Error::new(io::ErrorKind::InvalidData, what.into()))
    }
}

impl Failed {
    fn permanent(self) -> Self {
        Self { error: self.error.permanent(), ..self }
    }

    fn at(self, proxy_kind: &'static str, proxy: &Address, destination: &Address) -> DialError {
        let (proxy, destination) = (proxy.clone(), destination.clone());
        let permanent = self.error.is_permanent();
        let error = DialError::new(ProxyError { proxy_kind, proxy, destination, failed: self });
        if permanent { error.permanent() } else { error }
    }
}

#[derive(Debug)]
struct ProxyError {
    proxy_kind: &'static str,
    proxy: Address,
    destination: Address,
    failed: Failed,
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { proxy_kind, proxy, destination, failed: Failed { step, error } } = self;
        write!(f, "{proxy_kind} {proxy} for {destination}, {step}: {error}")
    }
}

impl std::error::Error for ProxyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // Not the DialError itself: what it was made of would be passed over.
        Some(self.failed.error.get_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_names() {
        let ip = |ip: &str, port| Destination { host: Host::Ip(ip.parse().unwrap()), port };
        assert_eq!(Destination::parse("127.0.0.1:80").unwrap(), ip("127.0.0.1", 80));
        assert_eq!(Destination::parse("[2001:db8::1]:443").unwrap(), ip("2001:db8::1", 443));
        for name in ["localhost", "a_b.example.org.", "xn--bcher-kva.example", "1.2.3", &"n".repeat(255)] {
            let address = format!("{name}:65535");
            let destination = Destination::parse(&address).unwrap();
            assert_eq!(destination, Destination { host: Host::Name(name), port: 65535 });
            assert_eq!(destination.to_string(), address);
        }
        assert_eq!(ip("::1", 1).to_string(), "[::1]:1");
    }

    #[test]
    fn what_no_proxy_can_be_asked_for_is_refused_for_good() {
        let long = format!("{}:80", "n".repeat(256));
        for bad in [
            "",
            ":80",
            "host",
            "host:",
            "host:65536",
            "host:+80",
            "host:8 0",
            "::1:80",
            "[::1]",
            "[::1:80",
            "[x]:80",
            "[fe80::1%eth0]:80",
            "bücher.example:80",
            "a b:80",
            "a\r\nX: y:80",
            "a\0:80",
            "http://a:80",
            "u@a:80",
            &long,
        ] {
            let error = Destination::parse(bad).unwrap_err();
            assert!(error.is_permanent(), "{error}");
            assert!(!error.to_string().contains(['\r', '\n', '\0']), "{error}");
        }
    }
}
