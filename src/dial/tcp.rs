//! Plain TCP. Only connects.

use std::io;
use std::mem::MaybeUninit;

use socket2::SockRef;
use tokio::net::TcpStream;

use super::{CheckContext, Dial, DialContext, Fitness};
use crate::address::Address;
use crate::error::DialError;

/// Dials `host:port` over TCP: names are resolved by the system's resolver, the addresses tried in its order,
/// and `TCP_NODELAY` is set.
///
/// A connection that was used a moment ago is checked by what the runtime knows of its socket, at no cost. One
/// that has been idle for more than a tick of the clock is asked with a system call (`MSG_PEEK`, some 0.4 µs),
/// so that a peer that closed while the runtime did not run is noticed.
///
/// # Errors
///
/// What [`TcpStream::connect`] says. An address that is no `host:port` is a permanent error.
#[derive(Clone, Debug, Default)]
pub struct Tcp {
    _room_for_options: (),
}

impl Dial for Tcp {
    type Conn = TcpStream;

    async fn dial(&self, address: &Address, _cx: &DialContext) -> Result<TcpStream, DialError> {
        if !is_host_and_port(address.as_str()) {
            return Err(DialError::new(format!("{:?} is not host:port", address.as_str())).permanent());
        }
        let stream = TcpStream::connect(address.as_str()).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn check(&self, stream: &mut TcpStream, cx: &CheckContext) -> Fitness {
        let seen = if cx.is_recent() {
            stream.try_read(&mut [0])
        } else {
            SockRef::from(&*stream).peek(&mut [MaybeUninit::uninit()])
        };
        match seen {
            Ok(0) => Fitness::Closed,
            Ok(_) => Fitness::Dirty,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Fitness::Fit,
            Err(_) => Fitness::Broken,
        }
    }
}

fn is_host_and_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = host.starts_with('[') && host.ends_with(']');
        !host.is_empty() && (bracketed || !host.contains([':', '/'])) && port.parse::<u16>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_no_host_and_port_are_refused_for_good() {
        for good in ["localhost:80", "127.0.0.1:0", "[::1]:443", "example.org:65535"] {
            assert!(is_host_and_port(good), "{good}");
        }
        for bad in ["", ":80", "nohost", "127.0.0.1", "[::1]", "::1:80", "a:65536", "a:", "http://a:80"] {
            assert!(!is_host_and_port(bad), "{bad}");
        }
    }
}
