//! What stands between an address and a connection: the [`Dial`] trait, what a dialer is given, and what it
//! says of a connection's fitness. The dialers in here only connect; they know nothing of budgets.

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::address::Address;
use crate::error::DialError;
use crate::stats::Event;

mod context;
mod proxy;
pub mod resolve;
mod socket;
mod tcp;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(unix)]
mod unix;

pub(crate) use context::SharedLease;
pub use context::{DialContext, SlotShare};
#[cfg(feature = "http-proxy")]
pub use proxy::HttpConnect;
pub use proxy::Socks5;
pub use tcp::Tcp;
#[cfg(feature = "tls")]
pub use tls::Tls;
#[cfg(unix)]
pub use unix::Unix;

/// Opens connections, says whether an idle one is still fit, and closes them.
///
/// A dialer belongs to its resource for good, so that a connection's identity (address, name, certificates)
/// can never be mixed up. Connections may be streams, or handles of a protocol.
///
/// A panic in one of these costs at most the caller or the connection it was for; see the
/// [guide](crate::guide::dialers#what-each-method-promises).
///
/// # Examples
///
/// ```
/// use fdpool::{Address, CheckContext, Dial, DialContext, DialError, Fitness};
/// use tokio::net::TcpStream;
///
/// /// Connects, and greets.
/// struct Greeter;
///
/// impl Dial for Greeter {
///     type Conn = TcpStream;
///
///     async fn dial(&self, address: &Address, _cx: &DialContext) -> Result<TcpStream, DialError> {
///         let mut stream = TcpStream::connect(address.as_str()).await?;
///         tokio::io::AsyncWriteExt::write_all(&mut stream, b"HELLO\n").await?;
///         Ok(stream)
///     }
///
///     fn check(&self, stream: &mut TcpStream, _cx: &CheckContext) -> Fitness {
///         Fitness::probe(stream)
///     }
/// }
/// ```
#[doc(alias = "Manager")]
#[doc(alias = "ManageConnection")]
#[doc(alias = "Dialer")]
pub trait Dial: Send + Sync + 'static {
    /// What is pooled.
    type Conn: Send + 'static;

    /// Opens a connection. The slot for one descriptor is held already; see [`DialContext`] for more.
    ///
    /// The future may be dropped at any await, and then must leave nothing open.
    fn dial(
        &self,
        address: &Address,
        cx: &DialContext,
    ) -> impl Future<Output = Result<Self::Conn, DialError>> + Send;

    /// Whether an idle connection can be given out. Called for each reuse; must not wait.
    fn check(&self, conn: &mut Self::Conn, cx: &CheckContext) -> Fitness;

    /// Ready when an idle connection is no longer fit; wakes the task then.
    fn poll_idle(&self, conn: &mut Self::Conn, cx: &mut Context<'_>) -> Poll<Fitness> {
        let _ = (conn, cx);
        Poll::Pending
    }

    /// A future that is ready when the address may lead elsewhere than before: its name has another answer, say.
    /// Driven in the background while the address has connections; made anew after each time. Dropped within 10 s of the
    /// end of the last connection.
    ///
    /// `None`, the default: the address always leads to the same place. It is not asked again.
    fn watch(&self, address: &Address) -> Option<Watch> {
        let _ = address;
        None
    }

    /// Whether a connection leads where the address now does. Asked after [`watch`](Self::watch) was ready: of idle
    /// connections at once, of those in use when they are put. If it does not, the connection is closed. Must not wait. A
    /// connection for which it panics is closed, and the panic counted.
    fn is_current(&self, address: &Address, conn: &Self::Conn) -> bool {
        let _ = (address, conn);
        true
    }

    /// Closes a connection, with a last word that does not wait.
    fn close(&self, conn: Self::Conn) {
        drop(conn);
    }
}

/// Made by [`Dial::watch`].
pub type Watch = Pin<Box<dyn Future<Output = ()> + Send>>;

impl<D: Dial> Dial for Arc<D> {
    type Conn = D::Conn;

    fn dial(
        &self,
        address: &Address,
        cx: &DialContext,
    ) -> impl Future<Output = Result<Self::Conn, DialError>> + Send {
        D::dial(self, address, cx)
    }

    fn check(&self, conn: &mut Self::Conn, cx: &CheckContext) -> Fitness {
        D::check(self, conn, cx)
    }

    fn poll_idle(&self, conn: &mut Self::Conn, cx: &mut Context<'_>) -> Poll<Fitness> {
        D::poll_idle(self, conn, cx)
    }

    fn watch(&self, address: &Address) -> Option<Watch> {
        D::watch(self, address)
    }

    fn is_current(&self, address: &Address, conn: &Self::Conn) -> bool {
        D::is_current(self, address, conn)
    }

    fn close(&self, conn: Self::Conn) {
        D::close(self, conn);
    }
}

/// What may be done with an idle connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fitness {
    /// It can be given out.
    Fit,
    /// Not now, but it is to be kept: all its streams are taken, say. The pool is not told when that changes: while callers
    /// wait at the address, it asks again four times a second. One that is busy at the moment it is put and handed to a
    /// waiting caller is closed, and that caller dials with its slot.
    Busy,
    /// The peer closed it.
    Closed,
    /// The peer sent bytes nobody asked for: the end of an exchange that was given up, say.
    Dirty,
    /// It failed.
    Broken,
}

impl Fitness {
    /// As what a connection ends that is to be closed. `None`: it is not.
    #[inline]
    pub(crate) fn end(self) -> Option<Event> {
        match self {
            Fitness::Fit | Fitness::Busy => None,
            Fitness::Closed => Some(Event::Stale),
            Fitness::Dirty => Some(Event::Dirty),
            Fitness::Broken => Some(Event::Broken),
        }
    }

    /// What a byte stream says when it is asked for a byte: nothing to read is `Fit`, the end is `Closed`, a
    /// byte (which is lost) is `Dirty`, an error is `Broken`.
    ///
    /// For tokio's sockets that asks what the runtime knows, which is as old as its last look at the sockets.
    pub fn probe(conn: &mut (impl AsyncRead + Unpin)) -> Fitness {
        let mut byte = [0];
        let mut buf = ReadBuf::new(&mut byte);
        let mut cx = Context::from_waker(Waker::noop());
        // Unconstrained: a task at the end of its cooperative budget would find everything pending.
        let read = std::future::poll_fn(|cx| Pin::new(&mut *conn).poll_read(cx, &mut buf));
        match std::pin::pin!(tokio::task::unconstrained(read)).poll(&mut cx) {
            Poll::Pending => Fitness::Fit,
            Poll::Ready(Ok(())) if buf.filled().is_empty() => Fitness::Closed,
            Poll::Ready(Ok(())) => Fitness::Dirty,
            Poll::Ready(Err(_)) => Fitness::Broken,
        }
    }
}

/// What a dialer may want to know when it [checks](Dial::check) a connection.
#[derive(Clone, Debug)]
pub struct CheckContext {
    idle_ns: u64,
    tick_ns: u64,
}

impl CheckContext {
    #[inline]
    pub(crate) fn new(idle_ns: u64, tick_ns: u64) -> Self {
        Self { idle_ns, tick_ns }
    }

    /// How long the connection has been idle, as coarse as the clock: to 4 ms on most kernels.
    pub fn idle_for(&self) -> Duration {
        Duration::from_nanos(self.idle_ns)
    }

    /// Whether it has been idle for so short a time, a tick of the clock, that what the runtime knows of its
    /// socket will do. Otherwise ask the operating system: a peer may have closed while the runtime did not look.
    #[inline]
    pub fn is_recent(&self) -> bool {
        self.idle_ns <= self.tick_ns
    }
}

/// A dialer made of two functions: one that dials, one that checks.
///
/// The future that dials cannot borrow its arguments: clone the address into it. What needs the context after
/// an await ([`DialContext::hold`]) takes a [`Dial`] of its own.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), fdpool::GetError> {
/// use fdpool::{Address, ConnResource, DialContext, Fitness, dial};
///
/// let dialer = dial::from_fn(
///     |_address: &Address, _cx: &DialContext| async { Ok(tokio::io::duplex(64).0) },
///     |_conn, _cx| Fitness::Fit,
/// );
/// let resource = ConnResource::with_dialer("nowhere", dialer);
/// resource.get().await?.put();
/// assert!(resource.get().await?.is_reused());
/// # Ok(()) }
/// ```
pub fn from_fn<C, F, Fut, K>(dial: F, check: K) -> FromFn<F, K>
where
    C: Send + 'static,
    F: Fn(&Address, &DialContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<C, DialError>> + Send + 'static,
    K: Fn(&mut C, &CheckContext) -> Fitness + Send + Sync + 'static,
{
    FromFn { dial, check }
}

/// Made by [`from_fn`].
#[derive(Clone)]
pub struct FromFn<F, K> {
    dial: F,
    check: K,
}

impl<F, K> fmt::Debug for FromFn<F, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FromFn").field(&type_name::<F>()).finish()
    }
}

impl<C, F, Fut, K> Dial for FromFn<F, K>
where
    C: Send + 'static,
    F: Fn(&Address, &DialContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<C, DialError>> + Send + 'static,
    K: Fn(&mut C, &CheckContext) -> Fitness + Send + Sync + 'static,
{
    type Conn = C;

    fn dial(&self, address: &Address, cx: &DialContext) -> impl Future<Output = Result<C, DialError>> + Send {
        (self.dial)(address, cx)
    }

    fn check(&self, conn: &mut C, cx: &CheckContext) -> Fitness {
        (self.check)(conn, cx)
    }
}

/// A dialer whose connections are all of one type, [`BoxStream`], whatever those of `D` are: for collections
/// of resources that are dialled in different ways.
#[derive(Clone, Debug, Default)]
pub struct Boxed<D>(D);

impl<D> Boxed<D> {
    /// Boxes the connections of `dialer`.
    pub fn new(dialer: D) -> Self {
        Self(dialer)
    }
}

impl<D: Dial> Dial for Boxed<D>
where
    D::Conn: AsyncRead + AsyncWrite + Unpin,
{
    type Conn = BoxStream;

    async fn dial(&self, address: &Address, cx: &DialContext) -> Result<BoxStream, DialError> {
        let conn = self.0.dial(address, cx).await?;
        Ok(BoxStream(Box::new(conn)))
    }

    fn check(&self, conn: &mut BoxStream, cx: &CheckContext) -> Fitness {
        conn.with::<D, _>(|conn| self.0.check(conn, cx)).unwrap_or(Fitness::Broken)
    }

    fn poll_idle(&self, conn: &mut BoxStream, cx: &mut Context<'_>) -> Poll<Fitness> {
        conn.with::<D, _>(|conn| self.0.poll_idle(conn, cx)).unwrap_or(Poll::Ready(Fitness::Broken))
    }

    fn watch(&self, address: &Address) -> Option<Watch> {
        self.0.watch(address)
    }

    fn is_current(&self, address: &Address, conn: &BoxStream) -> bool {
        (*conn.0).as_any_ref().downcast_ref::<D::Conn>().is_some_and(|conn| self.0.is_current(address, conn))
    }

    fn close(&self, conn: BoxStream) {
        if let Ok(conn) = conn.0.into_any().downcast::<D::Conn>() {
            self.0.close(*conn);
        }
    }
}

/// A byte stream of whatever kind.
pub struct BoxStream(Box<dyn AnyStream>);

impl BoxStream {
    fn with<D: Dial, R>(&mut self, f: impl FnOnce(&mut D::Conn) -> R) -> Option<R> {
        (*self.0).as_any().downcast_mut::<D::Conn>().map(f)
    }
}

impl fmt::Debug for BoxStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BoxStream").finish()
    }
}

trait AnyStream: AsyncRead + AsyncWrite + Unpin + Send {
    fn as_any(&mut self) -> &mut dyn std::any::Any;
    fn as_any_ref(&self) -> &dyn std::any::Any;
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any>;
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> AnyStream for S {
    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }

    fn as_any_ref(&self) -> &dyn std::any::Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any> {
        self
    }
}

impl AsyncRead for BoxStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for BoxStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }
}
