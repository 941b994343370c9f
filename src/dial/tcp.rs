//! Plain TCP: what can be set, and a dial from the address to the stream. Only connects.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;

use super::resolve::Resolve;
use super::resolve::names::Names;
use super::{CheckContext, Dial, DialContext, Fitness, Watch, socket};
use crate::address::Address;
use crate::error::DialError;

mod failures;
mod happy;
mod options;
mod race;
mod target;
mod zone;

use failures::AttemptsFailed;
use options::Options;
use race::Lost;
use target::Target;

/// Dials `host:port` over TCP. The host is a name or an IP address, IPv6 in brackets. The zone of a link-local address
/// is the number of an interface or, on Linux, its name: `[fe80::1%eth0]:80`. One that is not there may be later.
///
/// Cheap to clone. Clones share what they know of names.
///
/// # Several addresses
///
/// A name's addresses are tried as RFC 8305 ("happy eyeballs") has it: the families in turn, beginning with the one
/// that the resolver puts first, each attempt 250 ms after the one before, or at once when one fails. The first
/// connection wins; the others are closed before the dial returns.
///
/// Each attempt beside another has a slot of its own ([`DialContext::try_extra_slot`]). If there is none, or no
/// descriptor, the attempts follow one another: each but the last makes way after 2 seconds, or less if there are more
/// than three addresses (5 seconds among all but the last, but not less than 250 ms each). The
/// [`attempt_delay`](Self::attempt_delay) and an [`attempt_timeout`](Self::attempt_timeout) can be set.
///
/// Where IPv6 was connected to although an IPv4 address came first, or the other way round, that family leads at the name for
/// ten minutes: if one of them does not work, only a dial every ten minutes waits for it.
///
/// Attempts that are lost are told as `tracing` events of level DEBUG.
///
/// # Names
///
/// Each dial resolves its name: by the system's resolver, or by [a resolver you give](Self::resolver). A name that has
/// connections is also resolved [every 30 seconds](Self::refresh) in the background. When its addresses are others
/// than before, the connections that lead to none of them are closed: idle ones at once, those in use when they are
/// put. The background lookups of a runtime are four at a time, and no slot stands for them: that is what a
/// [reserve](crate::BudgetBuilder::reserve) is for.
///
/// A resolver that fails keeps its last answer: for the connections there are, and for
/// [a day](Self::stale_for) for new ones. So does one that is slow: a dial waits for it for 1.8 seconds (RFC 8767) if it
/// has a last answer to go on with. Its lookup then goes on without it, as one of those in the background, for half a minute
/// at most; the addresses that it has in the end are remembered, and until then other dials of the name go on with the last
/// answer at once. A lookup that cannot be cancelled, as those of the system, gets a slot of its own until it returns, or one
/// of the four places if there is no slot to spare; with neither, its dial waits for it.
///
/// A name that the resolver says does not exist is not dialled any more; its connections stay until they end otherwise. An
/// answer that lacks IPv4 or IPv6 addresses, where there were some, leaves the connections to those alone for one refresh:
/// the question for that family may only have been lost.
///
/// # Options
///
/// | option | default | |
/// |---|---|---|
/// | [`nodelay`](Self::nodelay) | on | `TCP_NODELAY` |
/// | [`keepalive`](Self::keepalive) | 60 s | of silence before the first probe |
/// | [`keepalive_interval`](Self::keepalive_interval) | 10 s | between probes |
/// | [`keepalive_probes`](Self::keepalive_probes) | 3 | unanswered, and the connection is dead |
/// | [`user_timeout`](Self::user_timeout) | 85 s | that sent bytes may be unacknowledged (Linux) |
/// | [`local_address`](Self::local_address), `bind_device` | any | |
/// | [`reuse_address`](Self::reuse_address) | off | `SO_REUSEADDR` |
/// | [`send_buffer_size`](Self::send_buffer_size), [`recv_buffer_size`](Self::recv_buffer_size) | the system's | |
///
/// # Fitness
///
/// A connection that was used a moment ago is checked by what the runtime knows of its socket, at no cost. One
/// that has been idle for more than a tick of the clock is asked with a system call (`MSG_PEEK`, some 0.4 µs),
/// so that a peer that closed while the runtime did not run is noticed.
///
/// # Errors
///
/// An address that is not `host:port` is a permanent error, and so is a name that does not exist, if the resolver can
/// tell. If no address can be connected to, the error names the first few, each with its own; its
/// [`io_kind`](DialError::io_kind) is that of the attempt that came nearest to a connection: refused before timed out
/// before unreachable.
///
/// # Panics
///
/// Where tokio's I/O or time driver is not enabled.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use fdpool::{ConnResource, dial::Tcp};
///
/// let tcp = Tcp::default().keepalive(Duration::from_secs(20)).refresh(Duration::from_secs(5));
/// let peers = ["one.example:80", "two.example:80"].map(|peer| ConnResource::with_dialer(peer, tcp.clone()));
/// ```
#[derive(Clone, Debug)]
pub struct Tcp {
    names: Arc<Names>,
    options: Arc<Options>,
}

impl Default for Tcp {
    fn default() -> Self {
        static OPTIONS: LazyLock<Arc<Options>> = LazyLock::new(Arc::default);
        Self { names: Names::system(), options: Arc::clone(&OPTIONS) }
    }
}

impl Tcp {
    /// Resolves names with this. Default: [`resolve::System`](super::resolve::System).
    pub fn resolver(self, resolver: impl Resolve) -> Self {
        Self { names: self.names.with_resolver(resolver), ..self }
    }

    /// How often the name of an address that has connections is resolved in the background; up to an eighth more
    /// often, so that names do not keep in step. Dials count. Default: 30 seconds; at least 10 ms. `None`: never.
    ///
    /// Turn it off for names of which each answer is another few of many addresses: connections to all that are not in the
    /// newest answer would be closed.
    pub fn refresh(self, period: impl Into<Option<Duration>>) -> Self {
        Self { names: self.names.with_refresh(period.into()), ..self }
    }

    /// How old an answer may be that is dialled because the resolver fails or is slow. Default: a day (RFC 8767).
    /// Zero: then the dial fails.
    ///
    /// The [system's resolver](super::resolve::System) does not tell a name that does not exist from a server that
    /// fails: the last answer of a name that was taken away is dialled for as long.
    pub fn stale_for(self, age: Duration) -> Self {
        Self { names: self.names.with_stale_for(age), ..self }
    }

    /// How long after an attempt the next one begins beside it. Default: 250 ms; from 10 ms (both RFC 8305)
    /// to an hour. `None`: one after the other.
    #[doc(alias = "happy_eyeballs_timeout")]
    pub fn attempt_delay(self, delay: impl Into<Option<Duration>>) -> Self {
        let delay =
            delay.into().map(|delay| delay.clamp(Duration::from_millis(10), Duration::from_secs(3600)));
        self.with(|options| options.attempt_delay = delay)
    }

    /// How long an attempt at one address may take, within the `dial_timeout` of the whole. Default: `None`, as long
    /// as the whole dial, unless it must make way for the next.
    #[doc(alias = "connect_timeout")]
    pub fn attempt_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = timeout.into();
        self.with(|options| options.attempt_timeout = timeout)
    }

    /// `TCP_NODELAY`: small writes are sent at once. Default: true.
    pub fn nodelay(self, nodelay: bool) -> Self {
        self.with(|options| options.nodelay = nodelay)
    }

    /// `TCP_KEEPIDLE`: how long nothing comes before the peer is asked whether it lives. Default: 60 seconds. Rounded
    /// up to seconds. `None`: it is not asked.
    pub fn keepalive(self, idle: impl Into<Option<Duration>>) -> Self {
        let idle = idle.into().map(options::whole_seconds);
        self.with(|options| options.keepalive = idle)
    }

    /// `TCP_KEEPINTVL`: how long before it is asked again. Default: 10 seconds. Rounded up to seconds.
    pub fn keepalive_interval(self, interval: Duration) -> Self {
        let interval = options::whole_seconds(interval);
        self.with(|options| options.keepalive_interval = interval)
    }

    /// `TCP_KEEPCNT`: how often it is asked in vain. Default: 3. From 1 to 127.
    #[doc(alias = "keepalive_retries")]
    pub fn keepalive_probes(self, probes: u32) -> Self {
        self.with(|options| options.keepalive_probes = probes.clamp(1, 127))
    }

    /// `TCP_USER_TIMEOUT`, on Linux: how long bytes that were sent may be unacknowledged, or a peer take none, before
    /// the connection fails. `None`: as long as the system tries, some 15 minutes.
    ///
    /// Default: what the keepalive takes to find a peer dead, less half an interval: 85 seconds. 30 seconds without
    /// keepalive. Linux lets it end the keepalive too: with less, an idle connection fails at the first unanswered probe
    /// that is older than this, however many more were to follow. See Cloudflare's "When TCP sockets refuse to die".
    pub fn user_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = timeout.into();
        self.with(|options| options.user_timeout = Some(timeout))
    }

    /// Where connections come from. Once for each family; if one family has such an address and the other has none,
    /// only addresses of that family are dialled. Default: what the system's routes say.
    ///
    /// From one local address there can be as many connections as there are ephemeral ports: to each peer on Linux
    /// (`IP_BIND_ADDRESS_NO_PORT`), to all together elsewhere.
    pub fn local_address(self, address: IpAddr) -> Self {
        self.with(|options| options.local.set(address))
    }

    /// `SO_BINDTODEVICE`, on Linux: the network interface that connections leave by. Needs a privilege on kernels
    /// before 5.7. Default: any.
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    #[doc(alias = "interface")]
    pub fn bind_device(self, name: impl Into<String>) -> Self {
        let name = name.into().into_boxed_str();
        self.with(|options| options.device = Some(name))
    }

    /// `SO_REUSEADDR`. Default: false. A [local address](Self::local_address) does not need it.
    pub fn reuse_address(self, reuse: bool) -> Self {
        self.with(|options| options.reuse_address = reuse)
    }

    /// `SO_SNDBUF`, in bytes. Linux doubles it. Default: the system's, which grows as needed.
    pub fn send_buffer_size(self, bytes: usize) -> Self {
        self.with(|options| options.send_buffer = Some(bytes))
    }

    /// `SO_RCVBUF`, in bytes. Linux doubles it. Default: the system's, which grows as needed.
    pub fn recv_buffer_size(self, bytes: usize) -> Self {
        self.with(|options| options.recv_buffer = Some(bytes))
    }

    fn with(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(Arc::make_mut(&mut self.options));
        self
    }

    async fn dial_name(&self, host: &str, port: u16, cx: &DialContext) -> Result<TcpStream, DialError> {
        let addresses = self.addresses(host, port, cx).await?;
        match race::race(&addresses, &self.options, cx).await {
            Ok((stream, winner)) => {
                if addresses.iter().any(|other| other.is_ipv6() != winner.is_ipv6()) {
                    self.names.note_winner(host, winner.ip());
                }
                Ok(stream)
            }
            Err(Lost::All(failures)) => Err(AttemptsFailed::new(failures).into()),
            Err(Lost::NoDescriptor(error)) => Err(error.into()),
        }
    }

    /// The addresses of a name that can be dialled, in the order in which they are.
    async fn addresses(&self, host: &str, port: u16, cx: &DialContext) -> Result<Vec<SocketAddr>, DialError> {
        cx.begin_step("resolving its name");
        let ips = self.names.lookup(host, cx).await?;
        cx.begin_step("connecting");
        let order = happy::interleaved(&ips, self.names.ipv6_leads(host));
        let sockets = order.into_iter().map(|ip| SocketAddr::new(ip, port));
        let reached: Vec<_> = sockets.filter(|peer| self.options.local.reaches(*peer)).collect();
        if reached.is_empty() {
            return Err(unreached());
        }
        Ok(reached)
    }
}

fn unreached() -> DialError {
    let said = "no address is of the same family as the local address";
    io::Error::new(io::ErrorKind::AddrNotAvailable, said).into()
}

/// Whether it may be where an unspecified address leads: to loopback, or to where the connection comes from.
fn is_of_this_machine(stream: &TcpStream, peer: IpAddr) -> bool {
    peer.is_loopback() || stream.local_addr().is_ok_and(|own| own.ip() == peer)
}

/// Of the same family.
fn unspecified(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

impl Dial for Tcp {
    type Conn = TcpStream;

    async fn dial(&self, address: &Address, cx: &DialContext) -> Result<TcpStream, DialError> {
        let peer = match Target::parse(address.as_str())? {
            Target::Socket(peer) => peer,
            Target::Zoned { ip, zone, port } => SocketAddrV6::new(ip, port, 0, zone::number(zone)?).into(),
            // In a box, so that the usual dial is small.
            Target::Name { host, port } => return Box::pin(self.dial_name(host, port, cx)).await,
        };
        if !self.options.local.reaches(peer) {
            return Err(unreached().permanent());
        }
        cx.begin_step("connecting");
        race::alone(peer, &self.options).await.map_err(DialError::from)
    }

    fn check(&self, stream: &mut TcpStream, cx: &CheckContext) -> Fitness {
        socket::fitness(stream, cx)
    }

    fn poll_idle(&self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<Fitness> {
        socket::poll_idle(stream, cx)
    }

    /// For names: ready when they lead to other addresses.
    fn watch(&self, address: &Address) -> Option<Watch> {
        match Target::parse(address.as_str()) {
            Ok(Target::Name { host, .. }) => self.names.watch(host),
            _ => None,
        }
    }

    /// Whether its peer's address is among those of the name.
    fn is_current(&self, address: &Address, stream: &TcpStream) -> bool {
        match (Target::parse(address.as_str()), stream.peer_addr()) {
            (Ok(Target::Name { host, .. }), Ok(peer)) => {
                self.names.leads_to(host, peer.ip())
                    || (is_of_this_machine(stream, peer.ip())
                        && self.names.leads_to(host, unspecified(peer.ip())))
            }
            // No name, or a connection that is no longer one: `check` says so.
            _ => true,
        }
    }
}
