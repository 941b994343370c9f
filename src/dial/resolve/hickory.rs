//! Names resolved in this process, by hickory-resolver.

use std::fmt;
use std::io;
use std::net::IpAddr;

use hickory_resolver::TokioResolver;
use hickory_resolver::net::NetError;

use super::{Resolve, ResolveContext};
use crate::error::DialError;

/// Resolves names in this process, with [hickory-resolver](hickory_resolver). With the feature `hickory`.
///
/// A lookup ends when its dial does, and takes no thread. Answers are kept as long as they say (their TTL): a change
/// is seen [`refresh`](crate::dial::Tcp::refresh) after that. IPv6 addresses come first.
///
/// The slot of its dial stands for a lookup's socket. Those that hickory keeps open between lookups, to a name server
/// that is asked over TCP, are of its own: leave room for them in the [reserve](crate::BudgetBuilder::reserve).
///
/// # Errors
///
/// Permanent: a name that does not exist (NXDOMAIN), with the kind [`NotFound`](io::ErrorKind::NotFound), and one that
/// cannot. Every other may pass.
///
/// # Examples
///
/// ```no_run
/// use fdpool::ConnResource;
/// use fdpool::dial::{Tcp, resolve::Hickory};
///
/// # fn main() -> std::io::Result<()> {
/// let tcp = Tcp::default().resolver(Hickory::from_system()?);
/// let peers = ["db.internal:5432", "cache.internal:6379"].map(|name| ConnResource::with_dialer(name, tcp.clone()));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Hickory(TokioResolver);

impl Hickory {
    /// As the system is configured: `/etc/resolv.conf`, read now, and `/etc/hosts`.
    ///
    /// # Errors
    ///
    /// The configuration cannot be read, or makes no sense.
    pub fn from_system() -> io::Result<Self> {
        let resolver = TokioResolver::builder_tokio().and_then(|builder| builder.build());
        Ok(Self(resolver.map_err(io_error)?))
    }

    /// As you configure it.
    pub fn new(resolver: TokioResolver) -> Self {
        Self(resolver)
    }
}

impl Resolve for Hickory {
    async fn resolve(&self, host: &str, _cx: &ResolveContext) -> Result<Vec<IpAddr>, DialError> {
        match self.0.lookup_ip(host).await {
            Ok(answer) => {
                let (v6, v4): (Vec<_>, Vec<_>) = answer.iter().partition(IpAddr::is_ipv6);
                Ok([v6, v4].concat())
            }
            Err(error) if error.is_nx_domain() => {
                let none = io::Error::new(io::ErrorKind::NotFound, format!("no such name: {error}"));
                Err(DialError::from(none).permanent())
            }
            Err(error @ NetError::Proto(_)) => Err(DialError::new(error)),
            Err(error) => Err(io_error(error).into()),
        }
    }
}

/// Its kind, and its code where it has one.
fn io_error(error: NetError) -> io::Error {
    match &error {
        NetError::Io(io) => match io.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(io.kind(), error),
        },
        NetError::Timeout => io::Error::new(io::ErrorKind::TimedOut, error),
        _ => io::Error::other(error),
    }
}

impl fmt::Debug for Hickory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hickory").finish()
    }
}
