//! TLS over whatever another dialer connects, with [rustls]. [`Tls`] is the dialer; the rest serves to configure it,
//! and to tell what went wrong.
//!
//! What is trusted, shown and spoken is the matter of a [`ClientConfig`]:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use fdpool::ConnResource;
//! use fdpool::dial::tls::rustls::RootCertStore;
//! use fdpool::dial::tls::rustls::pki_types::pem::PemObject;
//! use fdpool::dial::tls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
//! use fdpool::dial::{Tcp, Tls, tls};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Trusts what the platform trusts.
//! let web = ConnResource::with_dialer("example.org:443", Tls::with_platform_verifier(Tcp::default())?);
//!
//! // Trusts a CA of one's own, shows a certificate, and speaks HTTP/2 if the peer does.
//! let mut roots = RootCertStore::empty();
//! roots.add(CertificateDer::from_pem_file("ca.pem")?)?;
//! let chain = CertificateDer::pem_file_iter("client.pem")?.collect::<Result<Vec<_>, _>>()?;
//! let key = PrivateKeyDer::from_pem_file("client.key")?;
//! let mut config = tls::config_builder()?.with_root_certificates(roots).with_client_auth_cert(chain, key)?;
//! config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
//!
//! // One configuration for the fleet: its sessions are shared.
//! let config = Arc::new(config);
//! let fleet = (1..=250).map(|n| {
//!     let dialer = Tls::new(Tcp::default(), Arc::clone(&config)).server_name(format!("node{n}.fleet.internal"));
//!     ConnResource::with_dialer(format!("10.0.0.{n}:8443"), dialer)
//! });
//! # Ok(()) }
//! ```
//!
//! With no certificate to show, end with `with_no_client_auth()`. To trust what the platform trusts and show a
//! certificate, begin with [`platform_config_builder`]. What was agreed on is told by the connection:
//! `conn.get_ref().1.alpn_protocol()`, `.protocol_version()`, `.peer_certificates()`, `.handshake_kind()`.
//!
//! # Sessions
//!
//! A peer met before is dialled with a shorter handshake. Sessions are kept in the configuration, by server name:
//! dialers that share an `Arc` of one share them. rustls remembers 32 peers; for more, set
//! [`resumption`](ClientConfig::resumption) to [`in_memory_sessions`](rustls::client::Resumption::in_memory_sessions)
//! of eight times as many. [`Tls::with_platform_verifier`] remembers 1,024.
//!
//! # Client certificates
//!
//! In TLS 1.3 the handshake is over before the peer has looked at the client's certificate. A peer that refuses it
//! says so when the connection is first read from: the dial succeeds, and the first exchange fails.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::Instrument;

use super::{CheckContext, Dial, DialContext, Fitness, Watch};
use crate::address::Address;
use crate::error::DialError;

mod config;
mod failure;
mod idle;
mod name;

use idle::Arrived;

pub use config::{config_builder, platform_config_builder};
pub use failure::HandshakeError;
pub use name::PeerName;
pub use rustls_platform_verifier;
pub use tokio_rustls;
pub use tokio_rustls::rustls;

use self::rustls::ClientConfig;
use self::rustls::pki_types::ServerName;

/// How often bytes may come between a look at the TLS layer and one at what is below, before that is too much.
const MOST_LOOKS: usize = 4;

/// Dials with another dialer, and speaks TLS over what that connects. See the [module](self) for how to configure it.
///
/// The peer has to prove the host part of the address, or the name given with [`server_name`](Self::server_name).
/// The handshake is a part of the dial, and of its timeout.
///
/// Connections that are idle are judged by what the peer said in TLS: session tickets leave them fit, data makes them
/// dirty, a `close_notify` closes them. What the inner dialer says of what is below counts as well. Part of a record
/// is not seen before the rest of it has come.
///
/// If the runtime has not run since something came, that is read all the same where the connection below is a
/// [`TcpStream`](tokio::net::TcpStream) or a `UnixStream`, boxed or not, or TLS over one. Over anything else it cannot
/// be read, and so not be told from data: if the inner dialer sees it, the connection is dirty.
///
/// A connection that is closed says so to the peer (`close_notify`), if that does not block. As over plain TCP, the
/// end of a connection does not say that its last message was complete.
///
/// # Errors
///
/// Those of the inner dialer, and [`HandshakeError`]s. Permanent are: a name that cannot be a server name, a certificate
/// that is not good, nothing in common with the peer, and a peer that refuses us. A peer that goes away in the
/// handshake, or does not speak TLS, may be another one next time.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
///
/// use fdpool::ConnResource;
/// use fdpool::dial::{Tcp, Tls, tls};
///
/// let roots = tls::rustls::RootCertStore::empty(); // with your own CA in it
/// let config = tls::config_builder()?.with_root_certificates(roots).with_no_client_auth();
/// let dialer = Tls::new(Tcp::default(), Arc::new(config)).server_name("db.internal");
/// let resource = ConnResource::with_dialer("10.0.0.5:5433", dialer);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Tls<D> {
    inner: D,
    config: Arc<ClientConfig>,
    name: Option<PeerName>,
}

impl<D> Tls<D> {
    /// TLS as configured, over what `inner` connects.
    pub fn new(inner: D, config: Arc<ClientConfig>) -> Self {
        Self { inner, config, name: None }
    }

    /// TLS over what `inner` connects; trusts what the platform trusts, and shows no certificate.
    ///
    /// All that are made by this share one configuration, and so its sessions. It is made once: the first call
    /// [reads](platform_config_builder) the system's certificates.
    ///
    /// # Errors
    ///
    /// Those of [`platform_config_builder`].
    #[doc(alias = "with_native_roots")]
    #[doc(alias = "platform")]
    pub fn with_platform_verifier(inner: D) -> Result<Self, rustls::Error> {
        Ok(Self::new(inner, config::platform()?))
    }

    /// The name that the peer has to prove, and that is sent to it. Default: the host part of the address.
    #[doc(alias = "domain")]
    #[doc(alias = "sni")]
    #[must_use]
    pub fn server_name(mut self, name: impl Into<PeerName>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The configuration.
    pub fn config(&self) -> &Arc<ClientConfig> {
        &self.config
    }

    fn name_for(&self, address: &Address) -> Result<ServerName<'static>, DialError> {
        match &self.name {
            Some(name) => name.resolved(),
            None => name::of_address(address.as_str()),
        }
    }
}

impl<D: fmt::Debug> fmt::Debug for Tls<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("inner", &self.inner).field("name", &self.name).finish_non_exhaustive()
    }
}

impl<D: Dial> Dial for Tls<D>
where
    D::Conn: AsyncRead + AsyncWrite + Unpin,
{
    type Conn = TlsStream<D::Conn>;

    async fn dial(&self, address: &Address, cx: &DialContext) -> Result<Self::Conn, DialError> {
        let name = self.name_for(address)?;
        let conn = self.inner.dial(address, cx).await?;
        let peer = idle::Socket::of(&conn).and_then(idle::Socket::peer);
        let connector = TlsConnector::from(Arc::clone(&self.config));
        cx.begin_step("shaking hands over TLS");
        let handshake = connector.connect(name.clone(), conn).into_fallible();
        // CANCEL: the handshake owns the connection, and closes it when dropped.
        match handshake.instrument(tracing::debug_span!("tls_handshake")).await {
            Ok(conn) => Ok(conn),
            Err((error, conn)) => {
                self.inner.close(conn);
                Err(HandshakeError::new(peer, address, &name, error).into_dial_error())
            }
        }
    }

    fn check(&self, conn: &mut Self::Conn, cx: &CheckContext) -> Fitness {
        let exact = !cx.is_recent();
        judge(conn, |conn| idle::look(conn, exact), |inner| self.inner.check(inner, cx))
    }

    fn poll_idle(&self, conn: &mut Self::Conn, cx: &mut Context<'_>) -> Poll<Fitness> {
        let waker = cx.waker();
        let look = |conn: &mut Self::Conn| idle::poll_look(conn, &mut Context::from_waker(waker));
        let below = |inner: &mut D::Conn| match self.inner.poll_idle(inner, &mut Context::from_waker(waker)) {
            Poll::Pending => Fitness::Fit,
            Poll::Ready(fitness) => fitness,
        };
        match judge(conn, look, below) {
            Fitness::Fit => Poll::Pending,
            unfit => Poll::Ready(unfit),
        }
    }

    fn watch(&self, address: &Address) -> Option<Watch> {
        self.inner.watch(address)
    }

    fn is_current(&self, address: &Address, conn: &Self::Conn) -> bool {
        self.inner.is_current(address, conn.get_ref().0)
    }

    fn close(&self, conn: Self::Conn) {
        let (mut io, mut session) = conn.into_inner();
        idle::say_goodbye(&mut io, &mut session);
        self.inner.close(io);
    }
}

/// What TLS says of a connection, and what is said of it below. Bytes that are only seen below have come since, and
/// are looked at again: they may be tickets. If TLS does not find them, they are out of its reach, or were taken.
fn judge<C>(
    conn: &mut TlsStream<C>,
    mut look: impl FnMut(&mut TlsStream<C>) -> Arrived,
    mut below: impl FnMut(&mut C) -> Fitness,
) -> Fitness {
    let mut fitness = look(conn).fitness;
    for _ in 0..MOST_LOOKS {
        if fitness != Fitness::Fit {
            return fitness;
        }
        match below(conn.get_mut().0) {
            Fitness::Dirty => {}
            other => return other,
        }
        let arrived = look(conn);
        fitness = match arrived.fitness {
            Fitness::Fit if !arrived.anything => Fitness::Dirty,
            fitness => fitness,
        };
    }
    Fitness::Dirty
}
