//! One connection, in somebody's hands: put, close, drop.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::address::Address;
use crate::budget::Site;
use crate::budget::slot::Held;
use crate::clock;
use crate::resource::shared::Shared;
use crate::stats::Event;

mod entry;

pub(crate) use entry::Entry;

/// How long [`Conn::shutdown`] may take.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection, taken from a [`ConnResource`](crate::ConnResource) with [`get`](crate::ConnResource::get).
///
/// Dereferences to the connection itself, and reads and writes as it does. When the exchange is over and the
/// connection is in a state to begin the next, [`put`](Self::put) it. Otherwise drop it, which closes it:
/// a future that is dropped half-way through an exchange can so never hand its half-read answer to the next
/// user. Connections dropped in good health are counted ([`BudgetStats::dropped`](crate::BudgetStats::dropped)), so
/// that a forgotten `put` is seen.
///
/// After an error, an end of file or a `poll_shutdown` that went through it, `put` closes. What goes past it,
/// through the connection it dereferences to (`TcpStream::split`, `try_read`), is only noticed by the check when
/// the connection is taken out again.
///
/// # Examples
///
/// ```
/// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// # let address = listener.local_addr()?;
/// # tokio::spawn(async move {
/// #     let (mut peer, _) = listener.accept().await?;
/// #     let (mut read, mut write) = peer.split();
/// #     tokio::io::copy(&mut read, &mut write).await
/// # });
/// let resource = fdpool::ConnResource::new(address);
/// let mut conn = resource.get().await?;
/// conn.write_all(b"ping").await?;
/// let mut pong = [0; 4];
/// conn.read_exact(&mut pong).await?; // an error returns here, and closes the connection
/// conn.put();
/// # Ok(()) }
/// ```
///
/// A connection that was put or closed cannot be used any more:
///
/// ```compile_fail
/// # async fn example(resource: fdpool::ConnResource) -> Result<(), fdpool::GetError> {
/// let conn = resource.get().await?;
/// conn.put();
/// conn.peer_addr();
/// # Ok(()) }
/// ```
///
/// ```compile_fail
/// # async fn example(resource: fdpool::ConnResource) -> Result<(), fdpool::GetError> {
/// let conn = resource.get().await?;
/// conn.close();
/// conn.put();
/// # Ok(()) }
/// ```
#[must_use = "a connection that is dropped is closed; put() it for reuse"]
#[doc(alias = "Object")]
#[doc(alias = "PooledConnection")]
pub struct Conn<C = TcpStream> {
    /// `None` only once it was given up.
    entry: Option<Box<Entry<C>>>,
}

impl<C> Conn<C> {
    #[inline]
    pub(crate) fn new(mut entry: Box<Entry<C>>, site: Site) -> Self {
        entry.begin_use(site);
        Self { entry: Some(entry) }
    }

    fn entry(&self) -> &Entry<C> {
        self.entry.as_ref().expect("BUG: a connection in use")
    }

    fn entry_mut(&mut self) -> &mut Entry<C> {
        self.entry.as_mut().expect("BUG: a connection in use")
    }

    /// Gives the connection back for reuse: to whoever waits for it, or to rest.
    ///
    /// Only in a clean state: all that was asked for has been read. Closes it instead if it may not be reused:
    /// its resource was told to [close](crate::ConnResource::schedule_close) since it was dialled, it is past
    /// its lifetime or uses, an error or the end went through it, its slot is wanted elsewhere, or there are
    /// enough idle ones. Does not wait.
    ///
    /// Outside of a runtime, if nothing else of the budget is idle, it does not start the task that looks after idle
    /// connections. This one is then closed, for its age or because its peer closed it, only when a get next comes upon it,
    /// or once a connection of the budget is dialled or put in a runtime.
    #[doc(alias = "release")]
    #[doc(alias = "recycle")]
    #[inline]
    pub fn put(mut self) {
        let Some(mut entry) = self.entry.take() else { return };
        match entry.end_use() {
            None => _ = Shared::rest(entry, true),
            Some(event) => entry.discard(event),
        }
    }

    /// Closes the connection and gives its slot back. Where the connection owns its descriptor, that is closed
    /// before this returns.
    ///
    /// # Panics
    ///
    /// If the dialer's [`close`](crate::Dial::close) or the connection's drop does; the slot is given back all
    /// the same.
    pub fn close(mut self) {
        if let Some(mut entry) = self.entry.take() {
            drop(entry.close());
        }
    }

    /// Whether it has served before. An exchange that fails on such a connection may have met a peer that was
    /// closing it: if the exchange is idempotent, close this connection, and try once more with a
    /// [`fresh`](crate::Get::fresh) one. In this order: a get that is made while this one is still held may wait
    /// for its slot.
    ///
    /// One of a stock ([`min_idle`](crate::ConnResourceBuilder::min_idle)) has not served before its first caller,
    /// however long it has rested: that caller may meet such a peer too. [`fresh`](crate::Get::fresh) passes over those
    /// as well.
    pub fn is_reused(&self) -> bool {
        self.entry().is_reused()
    }

    /// Time since it was dialled, as coarse as the clock: to 4 ms on most kernels.
    pub fn age(&self) -> Duration {
        clock::now().since(self.entry().record.born)
    }

    /// The address it was dialled to.
    pub fn address(&self) -> &Address {
        &self.entry().shared.address
    }

    /// Takes the connection out of the pool. It is still counted, as [`held`](crate::BudgetStats::held), until
    /// the value is dropped.
    ///
    /// If the dial moved its slot elsewhere ([`DialContext::hold`](crate::DialContext::hold)), the slot stays there, and
    /// the value returned counts for none.
    #[doc(alias = "hijack")]
    #[doc(alias = "take")]
    #[doc(alias = "detach")]
    pub fn into_held(mut self) -> Held<C> {
        self.entry.take().expect("BUG: a connection in use").into_held()
    }

    fn note(&mut self, event: Event) {
        self.entry_mut().spoil(event);
    }
}

impl<C: AsyncWrite + Unpin> Conn<C> {
    /// Closes gracefully: flushes, sends the end (a TLS `close_notify`, a TCP FIN), then closes. For at most a
    /// second; dropping a connection does none of this.
    ///
    /// To send the end and go on reading, say `AsyncWriteExt::shutdown(&mut conn)`, which this method hides.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    ///
    /// Those of flushing and shutting down; [`TimedOut`](io::ErrorKind::TimedOut) after a second. The
    /// connection is closed all the same.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with a time driver.
    pub async fn shutdown(mut self) -> io::Result<()> {
        let ended =
            tokio::time::timeout(SHUTDOWN_TIMEOUT, poll_fn(|cx| Pin::new(&mut self).poll_shutdown(cx))).await;
        self.close();
        ended.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<C: AsyncRead + Unpin> Conn<C> {
    /// Reads and throws away what still comes, until nothing has come for `quiet`: to make a connection fit for
    /// [`put`](Self::put) after an exchange that was given up. Returns how many bytes it was.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses what was read; the connection stays with the caller.
    ///
    /// # Errors
    ///
    /// If the connection fails or ends, or sends more than `at_most` bytes
    /// ([`InvalidData`](io::ErrorKind::InvalidData)). Close it then; `put` does.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with a time driver.
    pub async fn discard_pending(&mut self, quiet: Duration, at_most: usize) -> io::Result<usize> {
        let mut scratch = [0; 4096];
        let mut discarded = 0;
        loop {
            let read = match tokio::time::timeout(quiet, self.read(&mut scratch)).await {
                Err(_quiet) => return Ok(discarded),
                Ok(read) => read?,
            };
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            discarded += read;
            if discarded > at_most {
                self.note(Event::Dirty);
                return Err(io::Error::new(io::ErrorKind::InvalidData, "more pending bytes than allowed"));
            }
        }
    }
}

impl<C> Drop for Conn<C> {
    #[inline]
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.dropped();
        }
    }
}

impl<C> Deref for Conn<C> {
    type Target = C;

    #[inline]
    fn deref(&self) -> &C {
        self.entry().conn.as_ref().expect("BUG: a connection in use")
    }
}

impl<C> DerefMut for Conn<C> {
    #[inline]
    fn deref_mut(&mut self) -> &mut C {
        self.entry_mut().conn.as_mut().expect("BUG: a connection in use")
    }
}

impl<C: fmt::Debug> fmt::Debug for Conn<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("address", self.address()).field("conn", &**self).finish_non_exhaustive()
    }
}

// A connection is in a box of its own, and never pinned in it.
impl<C> Unpin for Conn<C> {}

impl<C> Conn<C> {
    fn noting<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            self.note(Event::Broken);
        }
        result
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Conn<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buf.filled().len(), buf.remaining());
        let read = ready!(Pin::new(&mut **self).poll_read(cx, buf));
        if read.is_ok() && room > 0 && buf.filled().len() == before {
            self.note(Event::Stale);
        }
        Poll::Ready(self.noting(read))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Conn<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut **self).poll_write(cx, buf));
        Poll::Ready(self.noting(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut **self).poll_write_vectored(cx, bufs));
        Poll::Ready(self.noting(written))
    }

    fn is_write_vectored(&self) -> bool {
        (**self).is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut **self).poll_flush(cx));
        Poll::Ready(self.noting(flushed))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.note(Event::Retired);
        Pin::new(&mut **self).poll_shutdown(cx)
    }
}
