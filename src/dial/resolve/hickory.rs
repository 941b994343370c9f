//! Names resolved in this process, by hickory-resolver.

use std::fmt;
use std::io;
use std::net::IpAddr;

use hickory_resolver::TokioResolver;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::Name;

use super::{Resolve, ResolveContext};
use crate::error::DialError;

/// Resolves names in this process, with [hickory-resolver](hickory_resolver). With the feature `hickory`.
///
/// A lookup ends when its dial does, and takes no thread. Answers are kept as long as they say (their TTL): a change
/// is seen [`refresh`](crate::dial::Tcp::refresh) after that. IPv6 addresses come first.
///
/// IPv4 and IPv6 addresses are asked for at the same time. Where one of the two has no answer in time, what the other
/// says is the answer.
///
/// The slot of its dial stands for one of a lookup's sockets. There are two, one for each kind of address, and as many
/// again where an answer is long in coming; those to a name server that is asked over TCP are kept open between
/// lookups. Leave room for the others in the [reserve](crate::BudgetBuilder::reserve).
///
/// # Errors
///
/// Permanent: what cannot be a name ([`InvalidInput`](io::ErrorKind::InvalidInput)), and a name that does not exist
/// (NXDOMAIN, [`NotFound`](io::ErrorKind::NotFound)) if it was asked for as it stands, and nothing after it: one that
/// ends with a dot, or has more parts than `ndots` and no search list to go on with. With a search list the answer is
/// that of the last name made by it, whatever became of those before: `NotFound` too, but it may pass. So may every
/// other error.
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
    /// As the system is configured: `/etc/resolv.conf`, read now, and `/etc/hosts`. Of several name servers one is
    /// asked at a time.
    ///
    /// # Errors
    ///
    /// The configuration cannot be read, or makes no sense.
    pub fn from_system() -> io::Result<Self> {
        let resolver = TokioResolver::builder_tokio().and_then(|mut builder| {
            // Each server more would be sockets more.
            builder.options_mut().num_concurrent_reqs = 1;
            builder.build()
        });
        Ok(Self(resolver.map_err(io_error)?))
    }

    /// As you configure it.
    pub fn new(resolver: TokioResolver) -> Self {
        Self(resolver)
    }
}

impl Resolve for Hickory {
    async fn resolve(&self, host: &str, _cx: &ResolveContext) -> Result<Vec<IpAddr>, DialError> {
        // As a string it would have to be the name of a host: underscores are not in those.
        let name = Name::from_str_relaxed(host).map_err(|error| {
            let what = format!("{host:?} cannot be a name: {error}");
            DialError::from(io::Error::new(io::ErrorKind::InvalidInput, what)).permanent()
        })?;
        match self.0.lookup_ip(name.clone()).await {
            Ok(answer) => {
                let (v6, v4): (Vec<_>, Vec<_>) = answer.iter().partition(IpAddr::is_ipv6);
                Ok([v6, v4].concat())
            }
            Err(error) if error.is_nx_domain() => {
                let what = format!("no such name: {error}");
                let none = DialError::from(io::Error::new(io::ErrorKind::NotFound, what));
                Err(if is_final(&error, name, self.0.options().ndots) { none.permanent() } else { none })
            }
            // Whatever its kind is: nothing of a lookup is for good.
            Err(error) => Err(DialError::new(io_error(error))),
        }
    }
}

/// Whether the error is of the name as it stands, and of no other. One with dots enough is asked for first, and then
/// what the search list makes of it; the last answer is what is told.
fn is_final(error: &NetError, mut name: Name, ndots: usize) -> bool {
    if name.is_fqdn() {
        return true;
    }
    let is_first = usize::from(name.num_labels()) > ndots;
    name.set_fqdn(true);
    matches!(error, NetError::Dns(DnsError::NoRecordsFound(none)) if is_first && *none.query.name() == name)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_server_of_the_systems_is_asked_at_a_time() {
        assert_eq!(Hickory::from_system().unwrap().0.options().num_concurrent_reqs, 1);
    }
}
