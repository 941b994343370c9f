//! SOCKS5 (RFC 1928), as a client that connects, with user and password (RFC 1929) or nothing. What is read and
//! written has a length known beforehand, so that no byte of the destination's is taken for the proxy's.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Destination, Failed, Host, Step};
use crate::address::Address;
use crate::dial::{CheckContext, Dial, DialContext, Fitness, Watch};
use crate::error::DialError;

const VERSION: u8 = 5;
const WITHOUT_AUTHENTICATION: u8 = 0;
const USER_AND_PASSWORD: u8 = 2;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Dials by way of a SOCKS5 proxy, which `D` dials.
///
/// The resource's address is the destination, `host:port`; an IPv6 address in brackets. A name is not looked up
/// here: the proxy does that. The connection is `D`'s own, and all that is asked of it after the dial
/// ([`check`](Dial::check), [`poll_idle`](Dial::poll_idle), [`watch`](Dial::watch), [`close`](Dial::close)) is
/// asked of `D`, with the proxy's address where there is one.
///
/// The dial's timeout is for all of it. A proxy that never answers is given up when the dial times out.
///
/// # Errors
///
/// They name the proxy, the destination, the step that failed, and what the proxy said, never the password.
/// Permanent are: a destination that is no `host:port`, a user or password of more than 255 bytes, a proxy that
/// refuses them or wants some, a destination its rules forbid, a kind of address it does not support; and what is
/// permanent for `D`. Everything else may pass, also a destination that refuses or that the proxy cannot reach:
/// [`io_kind`](DialError::io_kind) is what it would have been without the proxy.
///
/// # Examples
///
/// ```
/// use fdpool::ConnResource;
/// use fdpool::dial::{Socks5, Tcp};
///
/// let dialer = Socks5::new(Tcp::default(), "127.0.0.1:1080").auth("scraper", "hunter2");
/// let resource = ConnResource::with_dialer("example.org:80", dialer);
/// ```
#[derive(Clone)]
pub struct Socks5<D> {
    inner: D,
    proxy: Address,
    auth: Option<Auth>,
}

#[derive(Clone)]
struct Auth {
    user: String,
    password: String,
}

impl<D> Socks5<D> {
    /// Reaches the proxy at the address `proxy` with `inner`.
    pub fn new(inner: D, proxy: impl Into<Address>) -> Self {
        Self { inner, proxy: proxy.into(), auth: None }
    }

    /// Authenticates with a user's name and password, if the proxy asks for it. By default, and if it does not,
    /// there is no authentication. They are sent as they are: encrypted only if `D`'s connections are.
    pub fn auth(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.auth = Some(Auth { user: user.into(), password: password.into() });
        self
    }
}

/// Without the password.
impl<D: fmt::Debug> fmt::Debug for Socks5<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socks5")
            .field("inner", &self.inner)
            .field("proxy", &self.proxy)
            .field("user", &self.auth.as_ref().map(|auth| &auth.user))
            .finish_non_exhaustive()
    }
}

dial_through_proxy!(Socks5, "SOCKS5 proxy");

impl<D: Dial> Socks5<D>
where
    D::Conn: AsyncRead + AsyncWrite + Unpin,
{
    async fn connect(&self, address: &Address, cx: &DialContext) -> Result<D::Conn, Failed> {
        let destination =
            Destination::parse(address.as_str()).map_err(|error| Step::Prepare.failed(error))?;
        let credentials = self.auth.as_ref().map(Auth::message).transpose()?;
        let request = request(&destination);
        // CANCEL: here and below, the connection to the proxy is closed with this future.
        let mut conn = self.inner.dial(&self.proxy, cx).await.map_err(|error| Step::Reach.failed(error))?;
        cx.begin_step("waiting for the proxy, which was reached");
        authenticate(&mut conn, credentials.as_deref()).await?;
        ask_to_connect(&mut conn, &request).await?;
        Ok(conn)
    }
}

impl Auth {
    fn message(&self) -> Result<Vec<u8>, Failed> {
        let mut message = vec![1];
        for (what, text) in [("user's name", &self.user), ("password", &self.password)] {
            let length = u8::try_from(text.len()).map_err(|_| {
                let why = format!("the {what} has {} bytes: SOCKS5 has room for 255", text.len());
                Step::Prepare.failed(DialError::new(why)).permanent()
            })?;
            message.push(length);
            message.extend_from_slice(text.as_bytes());
        }
        Ok(message)
    }
}

fn request(destination: &Destination<'_>) -> Vec<u8> {
    let mut request = vec![VERSION, CONNECT, 0];
    match destination.host {
        Host::Ip(IpAddr::V4(ip)) => {
            request.push(IPV4);
            request.extend(ip.octets());
        }
        Host::Ip(IpAddr::V6(ip)) => {
            request.push(IPV6);
            request.extend(ip.octets());
        }
        Host::Name(name) => {
            request.extend([NAME, u8::try_from(name.len()).expect("BUG: a name of more than 255 bytes")]);
            request.extend_from_slice(name.as_bytes());
        }
    }
    request.extend(destination.port.to_be_bytes());
    request
}

async fn authenticate<S>(io: &mut S, credentials: Option<&[u8]>) -> Result<(), Failed>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let step = Step::ChooseMethod;
    let offer: &[u8] = match credentials {
        Some(_) => &[VERSION, 2, WITHOUT_AUTHENTICATION, USER_AND_PASSWORD],
        None => &[VERSION, 1, WITHOUT_AUTHENTICATION],
    };
    let [version, method] = exchange(io, offer).await.map_err(|error| step.broken(error))?;
    if version != VERSION {
        return Err(step.garbage(format!("this is no SOCKS5 proxy: it answers {version:#04x}")));
    }
    match (method, credentials) {
        (WITHOUT_AUTHENTICATION, _) => Ok(()),
        (USER_AND_PASSWORD, Some(credentials)) => log_in(io, credentials).await,
        (NO_METHOD, Some(_)) => Err(step.failed(denied("it takes no user and password")).permanent()),
        (NO_METHOD | USER_AND_PASSWORD, None) => {
            Err(step.failed(denied("it asks for authentication, and there is no user given")).permanent())
        }
        (method, _) => Err(step.garbage(format!("it chose method {method:#04x}, which was not offered"))),
    }
}

async fn log_in<S>(io: &mut S, credentials: &[u8]) -> Result<(), Failed>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let step = Step::Authenticate;
    // The version is not looked at: some proxies answer SOCKS's own.
    let [_version, status] = exchange(io, credentials).await.map_err(|error| step.broken(error))?;
    match status {
        0 => Ok(()),
        _ => {
            let why = format!("it refuses the user or the password (status {status})");
            Err(step.failed(denied(&why)).permanent())
        }
    }
}

async fn ask_to_connect<S>(io: &mut S, request: &[u8]) -> Result<(), Failed>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let step = Step::Request;
    let [version, reply] = exchange(io, request).await.map_err(|error| step.broken(error))?;
    if version != VERSION {
        return Err(step.garbage(format!("its reply is not of SOCKS5, but of version {version:#04x}")));
    }
    if reply != 0 {
        return Err(refusal(reply));
    }
    // Where it connects from, which nobody needs, but which comes before the destination's first byte.
    let [_reserved, kind] = read(io).await.map_err(|error| step.broken(error))?;
    let address = match kind {
        IPV4 => 4,
        IPV6 => 16,
        NAME => {
            let [length] = read(io).await.map_err(|error| step.broken(error))?;
            usize::from(length)
        }
        kind => return Err(step.garbage(format!("its reply has an address of kind {kind:#04x}"))),
    };
    let mut rest = [0; 255 + 2];
    io.read_exact(&mut rest[..address + 2]).await.map_err(|error| step.broken(error))?;
    Ok(())
}

fn refusal(reply: u8) -> Failed {
    use io::ErrorKind::{
        ConnectionRefused, HostUnreachable, NetworkUnreachable, Other, PermissionDenied, TimedOut,
        Unsupported,
    };
    let (kind, words, permanent) = match reply {
        1 => (Other, "general failure of the proxy", false),
        2 => (PermissionDenied, "its rules do not allow the destination", true),
        3 => (NetworkUnreachable, "network unreachable", false),
        4 => (HostUnreachable, "host unreachable", false),
        5 => (ConnectionRefused, "connection refused", false),
        6 => (TimedOut, "the destination is too far away, or does not answer (TTL expired)", false),
        7 => (Unsupported, "it does not know the command CONNECT", true),
        8 => (Unsupported, "it does not support this kind of address", true),
        _ => (Other, "for a reason of its own", false),
    };
    let failed = Step::Request.failed(io::Error::new(kind, format!("{words} (reply {reply})")));
    if permanent { failed.permanent() } else { failed }
}

fn denied(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

async fn exchange<S, const N: usize>(io: &mut S, question: &[u8]) -> io::Result<[u8; N]>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    io.write_all(question).await?;
    io.flush().await?;
    read(io).await
}

async fn read<const N: usize>(io: &mut (impl AsyncRead + Unpin)) -> io::Result<[u8; N]> {
    let mut answer = [0; N];
    io.read_exact(&mut answer).await?;
    Ok(answer)
}
