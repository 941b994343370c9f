//! Unix sockets. Only connects.

use std::borrow::Cow;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::UnixStream;

use super::socket;
use super::{CheckContext, Dial, DialContext, Fitness};
use crate::address::Address;
use crate::error::DialError;

/// Dials Unix stream sockets. The address is a path; one that begins with `@` is a name in Linux's abstract
/// namespace (a file whose name begins so is `./@name`).
///
/// A listener whose backlog is full makes the dial wait until it accepts, as a blocking `connect` would: the dial
/// asks again and again, at first after 1 ms, then at most 32 ms apart, until it is dropped or times out. That is so on
/// Linux; where the system refuses such connections, the dial fails.
///
/// Idle connections are checked as those of [`Tcp`](super::Tcp) are.
///
/// # Errors
///
/// A path that no socket can have (empty, too long, with a NUL byte) is a permanent error, and so is an abstract
/// name on other systems than Linux. Everything else may pass, above all a socket that is not there or that
/// nobody listens to. The error names the path, and [`io_kind`](DialError::io_kind) is the operating system's.
///
/// # Panics
///
/// When the backlog is full and the runtime has no time driver.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use fdpool::{ConnResource, dial::Unix};
/// use tokio::io::AsyncWriteExt;
///
/// # let path = std::env::temp_dir().join(format!("fdpool-doc-{}.sock", std::process::id()));
/// # let listener = tokio::net::UnixListener::bind(&path)?;
/// let resource = ConnResource::with_dialer(path.as_path(), Unix);
/// let mut conn = resource.get().await?;
/// conn.write_all(b"hello").await?;
/// conn.put();
/// # drop(listener);
/// # std::fs::remove_file(&path)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Unix;

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(32);

impl Dial for Unix {
    type Conn = UnixStream;

    async fn dial(&self, address: &Address, _cx: &DialContext) -> Result<UnixStream, DialError> {
        let path = path(address.as_str()).map_err(|why| DialError::new(why).permanent())?;
        let mut pause = FIRST_PAUSE;
        loop {
            match UnixStream::connect(&*path).await {
                Ok(stream) => return Ok(stream),
                // The backlog is full, and nothing tells when it no longer is.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tracing::trace!(%address, "the backlog is full");
                    tokio::time::sleep(pause).await;
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
                Err(source) => return Err(DialError::new(Failure { address: address.clone(), source })),
            }
        }
    }

    fn check(&self, stream: &mut UnixStream, cx: &CheckContext) -> Fitness {
        socket::fitness(stream, cx)
    }

    fn poll_idle(&self, stream: &mut UnixStream, cx: &mut Context<'_>) -> Poll<Fitness> {
        socket::poll_idle(stream, cx)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("Unix socket {address}: {source}")]
struct Failure {
    address: Address,
    source: io::Error,
}

/// The address as tokio takes it: an abstract name begins with a NUL byte there.
fn path(address: &str) -> Result<Cow<'_, str>, String> {
    use std::os::unix::net::SocketAddr;

    let (path, checked) = match address.strip_prefix('@') {
        Some("") => return Err("the name of an abstract Unix socket is empty".into()),
        #[cfg(target_os = "linux")]
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            (format!("\0{name}").into(), SocketAddr::from_abstract_name(name))
        }
        #[cfg(not(target_os = "linux"))]
        Some(_) => {
            return Err(format!(
                "Unix socket {address:?}: only Linux has abstract names (write ./@ for a file)"
            ));
        }
        None if address.is_empty() => return Err("the path of a Unix socket is empty".into()),
        None if address.contains('\0') => {
            return Err(format!("Unix socket {address:?}: a NUL byte in the path"));
        }
        None => (address.into(), SocketAddr::from_pathname(address)),
    };
    match checked {
        Ok(_) => Ok(path),
        Err(error) => Err(format!("Unix socket {address:?}, {} bytes: {error}", address.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_as_long_as_a_socket_address_has_room_for() {
        let of = |length: usize| "/".repeat(length);
        let longest = (0..200).rev().find(|&length| path(&of(length)).is_ok()).expect("some path fits");
        assert!(path(&of(longest + 1)).is_err_and(|why| why.contains(&format!("{} bytes", longest + 1))));
        #[cfg(target_os = "linux")]
        assert_eq!(longest, 107);
        assert!(path("").is_err());
        assert!(path("/tmp/a\0b").is_err_and(|why| why.contains("NUL")));
        assert!(path("\0abstract").is_err_and(|why| why.contains("NUL")), "not by the back door");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn an_at_sign_leads_to_the_abstract_namespace() {
        assert_eq!(path("@name"), Ok("\0name".into()));
        assert_eq!(path("./@name"), Ok("./@name".into()));
        assert!(path(&format!("@{}", "n".repeat(107))).is_ok());
        assert!(path(&format!("@{}", "n".repeat(108))).is_err());
    }
}
