//! The interface that an IPv6 zone names. Asks the system for its number.

use std::io;

/// The number of an interface. It may be another by the next dial, and the interface may come and go.
#[cfg(any(target_os = "android", target_os = "linux"))]
pub(super) fn number(interface: &str) -> io::Result<u32> {
    use rustix::io::Errno;
    use rustix::net::netdevice::name_to_index;
    use socket2::{Domain, Socket, Type};

    // Closed before the dial opens its own: its slot stands for both.
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
    name_to_index(&socket, interface).map_err(|errno| match errno {
        Errno::NODEV => {
            io::Error::new(io::ErrorKind::NotFound, format!("there is no interface {interface:?}"))
        }
        _ => errno.into(),
    })
}

#[cfg(not(any(target_os = "android", target_os = "linux")))]
pub(super) fn number(interface: &str) -> io::Result<u32> {
    let said =
        format!("the zone {interface:?} must be written as the number of its interface on this system");
    Err(io::Error::new(io::ErrorKind::InvalidInput, said))
}
