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
