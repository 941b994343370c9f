//! What is set on a socket before it connects.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

#[cfg(any(target_os = "android", target_os = "linux"))]
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::happy;

/// The settings of a [`Tcp`](super::Tcp).
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) attempt_delay: Option<Duration>,
    pub(super) attempt_timeout: Option<Duration>,
    pub(super) nodelay: bool,
    pub(super) keepalive: Option<Duration>,
    pub(super) keepalive_interval: Duration,
    pub(super) keepalive_probes: u32,
    /// `None`: what goes with the keepalive.
    pub(super) user_timeout: Option<Option<Duration>>,
    pub(super) send_buffer: Option<usize>,
    pub(super) recv_buffer: Option<usize>,
    pub(super) reuse_address: bool,
    pub(super) local: Local,
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    pub(super) device: Option<Box<str>>,
}

/// Where connections come from, by family.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Local {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

impl Local {
    pub(super) fn set(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.v4 = Some(address),
            IpAddr::V6(address) => self.v6 = Some(address),
        }
    }

    fn towards(&self, peer: SocketAddr) -> Option<IpAddr> {
        match peer {
            SocketAddr::V4(_) => self.v4.map(IpAddr::V4),
            SocketAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    /// Whether a peer can be dialled: an address of one family alone leads to no peer of the other.
    pub(super) fn reaches(&self, peer: SocketAddr) -> bool {
        self.towards(peer).is_some() || (self.v4.is_none() && self.v6.is_none())
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            attempt_delay: Some(happy::ATTEMPT_DELAY),
            attempt_timeout: None,
            nodelay: true,
            keepalive: Some(Duration::from_secs(60)),
            keepalive_interval: Duration::from_secs(10),
            keepalive_probes: 3,
            user_timeout: None,
            send_buffer: None,
            recv_buffer: None,
            reuse_address: false,
            local: Local::default(),
            #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
            device: None,
        }
    }
}

/// What the kernel takes for seconds between keepalive probes.
pub(super) fn whole_seconds(time: Duration) -> Duration {
    let up = time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0));
    Duration::from_secs(up.clamp(1, 32_767))
}

impl Options {
    /// `TCP_USER_TIMEOUT`. Once it has passed, Linux gives up at the next unanswered probe, however many more it
    /// was to send: so it ends between the last two.
    pub(super) fn user_timeout(&self) -> Option<Duration> {
        self.user_timeout.unwrap_or_else(|| {
            let Some(idle) = self.keepalive else { return Some(Duration::from_secs(30)) };
            Some(idle + self.keepalive_interval * self.keepalive_probes - self.keepalive_interval / 2)
        })
    }

    /// A socket that has all of this, and is not connected.
    pub(super) fn open(&self, peer: SocketAddr) -> io::Result<Socket> {
        // Where the system can do so at once, without a call more.
        #[cfg(any(target_os = "android", target_os = "freebsd", target_os = "linux"))]
        let kind = Type::STREAM.nonblocking();
        #[cfg(not(any(target_os = "android", target_os = "freebsd", target_os = "linux")))]
        let kind = Type::STREAM;
        let socket = Socket::new(Domain::for_address(peer), kind, Some(Protocol::TCP))?;
        #[cfg(not(any(target_os = "android", target_os = "freebsd", target_os = "linux")))]
        socket.set_nonblocking(true)?;
        self.make_ready(&socket)?;
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        if let Some(device) = &self.device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        if self.reuse_address {
            socket.set_reuse_address(true)?;
        }
        if let Some(local) = self.local.towards(peer) {
            // Else the port that it is bound to would be taken for all peers, and there are some 28,000.
            #[cfg(any(target_os = "android", target_os = "linux"))]
            lenient(
                "IP_BIND_ADDRESS_NO_PORT",
                setsockopt(&socket, IpBindAddressNoPort, &true).map_err(io::Error::from),
            );
            socket.bind(&SocketAddr::new(local, 0).into())?;
        }
        Ok(socket)
    }

    fn make_ready(&self, socket: &Socket) -> io::Result<()> {
        if self.nodelay {
            socket.set_tcp_nodelay(true)?;
        }
        // Before the connection is made: the window it announces depends on it.
        if let Some(size) = self.recv_buffer {
            socket.set_recv_buffer_size(size)?;
        }
        if let Some(size) = self.send_buffer {
            socket.set_send_buffer_size(size)?;
        }
        if let Some(idle) = self.keepalive {
            let probes = TcpKeepalive::new()
                .with_time(idle)
                .with_interval(self.keepalive_interval)
                .with_retries(self.keepalive_probes);
            lenient("keepalive", socket.set_tcp_keepalive(&probes));
        }
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        if let Some(timeout) = self.user_timeout() {
            // The kernel counts milliseconds in a signed 32-bit number.
            let timeout = timeout.min(Duration::from_millis(i32::MAX as u64));
            lenient("TCP_USER_TIMEOUT", socket.set_tcp_user_timeout(Some(timeout)));
        }
        Ok(())
    }
}

/// What is set without anybody asking for it must not keep a machine that does not know it from connecting.
fn lenient(option: &str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(option, %error, "socket option not set");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_timeout_ends_between_the_last_two_probes() {
        let options = Options::default();
        assert_eq!(options.user_timeout(), Some(Duration::from_secs(85)));
        let options = Options { keepalive: None, ..Options::default() };
        assert_eq!(options.user_timeout(), Some(Duration::from_secs(30)));
        let given = Some(Duration::from_secs(5));
        assert_eq!(Options { user_timeout: Some(given), ..Options::default() }.user_timeout(), given);
        assert_eq!(Options { user_timeout: Some(None), ..Options::default() }.user_timeout(), None);
    }

    #[test]
    fn seconds_are_rounded_up_to_what_the_kernel_takes() {
        for (given, kept) in [(0, 1), (1, 1), (999, 1), (1000, 1), (1001, 2), (u64::MAX, 32_767)] {
            assert_eq!(whole_seconds(Duration::from_millis(given)), Duration::from_secs(kept));
        }
        assert_eq!(whole_seconds(Duration::MAX), Duration::from_secs(32_767));
    }

    #[test]
    fn a_local_address_of_one_family_reaches_no_peer_of_the_other() {
        let (v4, v6) = (SocketAddr::from(([10, 0, 0, 1], 80)), SocketAddr::from(([1; 16], 80)));
        let mut local = Local::default();
        assert!(local.reaches(v4) && local.reaches(v6));
        local.set(IpAddr::from([10, 0, 0, 2]));
        assert!(local.reaches(v4) && !local.reaches(v6));
        local.set(IpAddr::from([2; 16]));
        assert!(local.reaches(v4) && local.reaches(v6));
    }
}
