//! What an idle socket of the runtime says of itself: for the dialers whose connections are sockets. Reads nothing
//! of what the peer sent.

use std::io;
use std::mem::MaybeUninit;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;

use super::{CheckContext, Fitness};

/// The runtime's stream sockets.
pub(super) trait Socket {
    fn as_socket(&self) -> SockRef<'_>;
    fn try_if_readable<R>(&self, f: impl FnOnce() -> io::Result<R>) -> io::Result<R>;
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

macro_rules! sockets {
    ($($(#[$cfg:meta])? $stream:ty,)*) => {$(
        $(#[$cfg])?
        impl Socket for $stream {
            #[inline]
            fn as_socket(&self) -> SockRef<'_> {
                SockRef::from(self)
            }

            #[inline]
            fn try_if_readable<R>(&self, f: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
                self.try_io(Interest::READABLE, f)
            }

            fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_read_ready(cx)
            }
        }
    )*};
}
sockets! {
    TcpStream,
    #[cfg(unix)]
    UnixStream,
}

/// For [`Dial::check`](super::Dial::check): what the runtime knows of a socket that was used a moment ago, else
/// what the operating system does.
#[inline]
pub(super) fn fitness(socket: &impl Socket, cx: &CheckContext) -> Fitness {
    told(if cx.is_recent() { peek_if_readable(socket) } else { peek(socket) })
}

/// For [`Dial::poll_idle`](super::Dial::poll_idle): ready when the peer closes the connection, breaks it, or sends.
pub(super) fn poll_idle(socket: &impl Socket, cx: &mut Context<'_>) -> Poll<Fitness> {
    loop {
        if ready!(socket.poll_readable(cx)).is_err() {
            return Poll::Ready(Fitness::Broken);
        }
        match told(peek_if_readable(socket)) {
            Fitness::Fit => {} // woken for nothing: that is forgotten now, and the next poll waits
            unfit => return Poll::Ready(unfit),
        }
    }
}

/// Asks the operating system only if the runtime believes that there is something to read; if there is not, the
/// runtime unlearns it.
#[inline]
fn peek_if_readable(socket: &impl Socket) -> io::Result<usize> {
    socket.try_if_readable(|| peek(socket))
}

fn peek(socket: &impl Socket) -> io::Result<usize> {
    socket.as_socket().peek(&mut [MaybeUninit::uninit()])
}

#[inline]
fn told(seen: io::Result<usize>) -> Fitness {
    match seen {
        Ok(0) => Fitness::Closed,
        Ok(_) => Fitness::Dirty,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Fitness::Fit,
        Err(_) => Fitness::Broken,
    }
}
