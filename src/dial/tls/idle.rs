//! What came over a connection while nobody read from it. Session tickets are for TLS itself: they are taken in,
//! and the connection is as fit as before. Anything else makes it unfit.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConnection;

use crate::dial::{BoxStream, Fitness};

/// Reads of one look, each of some 4 KiB. A peer that sends more than that and no data is not one to keep.
const MOST_READS: usize = 32;

/// What a look found.
pub(super) struct Arrived {
    pub(super) fitness: Fitness,
    /// Whether there was anything to read.
    pub(super) anything: bool,
}

/// Takes in what has come. `exact`: what the operating system has, not only what the runtime knows of, where the
/// connection is a socket.
pub(super) fn look<C>(conn: &mut TlsStream<C>, exact: bool) -> Arrived
where
    C: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (io, session) = conn.get_mut();
    match Socket::of(io) {
        Some(socket) => take_in(session, &mut SocketReader { socket, exact }),
        None => at_once(|cx| take_in(session, &mut Polled { io, cx })),
    }
}

/// Takes in what has come, and wakes when more comes.
pub(super) fn poll_look<C>(conn: &mut TlsStream<C>, cx: &mut Context<'_>) -> Arrived
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let (io, session) = conn.get_mut();
    take_in(session, &mut Polled { io, cx })
}

/// Writes a `close_notify`, as far as that does not block.
pub(super) fn say_goodbye<C: AsyncWrite + Unpin>(io: &mut C, session: &mut ClientConnection) {
    session.send_close_notify();
    at_once(|cx| {
        let mut polled = Polled { io, cx };
        while session.wants_write() {
            match session.write_tls(&mut polled) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return,
            }
        }
        let _ = polled.flush();
    });
}

/// The plaintext is only looked at, and not taken: it may be the records of another layer of TLS.
fn take_in(session: &mut ClientConnection, io: &mut dyn Read) -> Arrived {
    let mut anything = false;
    let arrived = |fitness, anything| Arrived { fitness, anything };
    for _ in 0..MOST_READS {
        if !session.wants_read() {
            break;
        }
        match session.read_tls(io) {
            Ok(0) => break,
            Ok(_) => anything = true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return arrived(Fitness::Fit, anything),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return arrived(Fitness::Broken, anything),
        }
        if session.process_new_packets().is_err() {
            return arrived(Fitness::Broken, anything);
        }
    }
    let fitness = match session.reader().into_first_chunk() {
        Ok([]) => Fitness::Closed,
        Ok(_) => Fitness::Dirty,
        // Many reads, and no data.
        Err(error) if error.kind() == ErrorKind::WouldBlock => Fitness::Dirty,
        // The end of the connection, without a close_notify.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Fitness::Closed,
        Err(_) => Fitness::Broken,
    };
    arrived(fitness, anything)
}

/// Calls with a context that wakes nobody, and outside of tokio's cooperative budget: a task at the end of that
/// would find everything pending.
fn at_once<T>(mut call: impl FnMut(&mut Context<'_>) -> T) -> T {
    let called = pin!(tokio::task::unconstrained(poll_fn(|cx| Poll::Ready(call(cx)))));
    match called.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => unreachable!("BUG: it is ready"),
    }
}

/// A socket that can be read past what tokio knows of it.
#[derive(Clone, Copy)]
pub(super) enum Socket<'a> {
    Tcp(&'a TcpStream),
    #[cfg(unix)]
    Unix(&'a UnixStream),
}

impl<'a> Socket<'a> {
    pub(super) fn of(conn: &'a dyn Any) -> Option<Self> {
        if let Some(tcp) = conn.downcast_ref() {
            return Some(Self::Tcp(tcp));
        }
        #[cfg(unix)]
        if let Some(unix) = conn.downcast_ref() {
            return Some(Self::Unix(unix));
        }
        conn.downcast_ref::<BoxStream>().and_then(|boxed| Self::of((*boxed.0).as_any_ref()))
    }

    pub(super) fn peer(self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.peer_addr().ok(),
            #[cfg(unix)]
            Self::Unix(_) => None,
        }
    }
}

struct SocketReader<'a> {
    socket: Socket<'a>,
    exact: bool,
}

impl Read for SocketReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match (self.socket, self.exact) {
            (Socket::Tcp(tcp), false) => tcp.try_read(buf),
            (Socket::Tcp(tcp), true) => (&*SockRef::from(tcp)).read(buf),
            #[cfg(unix)]
            (Socket::Unix(unix), false) => unix.try_read(buf),
            #[cfg(unix)]
            (Socket::Unix(unix), true) => (&*SockRef::from(unix)).read(buf),
        }
    }
}

/// Reads and writes as the standard library does; what is pending would block.
struct Polled<'a, 'b, C> {
    io: &'a mut C,
    cx: &'a mut Context<'b>,
}

fn or_would_block<T>(polled: Poll<io::Result<T>>) -> io::Result<T> {
    match polled {
        Poll::Ready(result) => result,
        Poll::Pending => Err(ErrorKind::WouldBlock.into()),
    }
}

impl<C: AsyncRead + Unpin> Read for Polled<'_, '_, C> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        or_would_block(Pin::new(&mut *self.io).poll_read(self.cx, &mut buf))?;
        Ok(buf.filled().len())
    }
}

impl<C: AsyncWrite + Unpin> Write for Polled<'_, '_, C> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.io).poll_write(self.cx, buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        or_would_block(Pin::new(&mut *self.io).poll_flush(self.cx))
    }
}
