//! Connects to the first of several addresses that answers. Each attempt but one runs with a slot of its own;
//! what is left over at the end is closed, and then its slots go.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::happy::{Schedule, Step};
use super::options::Options;
use crate::Slot;
use crate::clock;
use crate::dial::DialContext;
use crate::error::{DialError, is_out_of_descriptors};

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Lost {
    /// The process or the system has not one descriptor left: no address would do better.
    NoDescriptor(io::Error),
    /// Each address failed, in this order.
    All(Vec<(SocketAddr, io::Error)>),
}

/// Tries the addresses in their order. There is at least one. Tells which has won.
pub(super) async fn race(
    addresses: &[SocketAddr],
    options: &Options,
    cx: &DialContext,
) -> Result<(TcpStream, SocketAddr), Lost> {
    if let [address] = addresses {
        return match alone(*address, options).await {
            Ok(stream) => Ok((stream, *address)),
            Err(error) if is_out_of_descriptors(&error) => Err(Lost::NoDescriptor(error)),
            Err(error) => Err(Lost::All(vec![(*address, error)])),
        };
    }
    let start = clock::instant();
    let mut waiting: VecDeque<_> = addresses.iter().copied().collect();
    let mut schedule = Schedule::new(options.attempt_delay, addresses.len());
    let mut race = Race { running: Vec::new(), extra: Vec::new(), start };
    let mut failures = Vec::new();
    loop {
        let mut wake = None;
        if let Some(&address) = waiting.front() {
            let elapsed = race.elapsed();
            let mut step = schedule.next(elapsed, race.oldest());
            if step == Step::BeginBeside {
                match cx.try_extra_slot() {
                    Some(slot) => race.extra.push(slot),
                    None => step = schedule.without_slot(elapsed, race.oldest().unwrap_or(elapsed)),
                }
            }
            match step {
                Step::Wait(until) => wake = Some(start + until),
                Step::Begin | Step::BeginBeside | Step::Replace => {
                    if step == Step::Replace {
                        let attempt = race.running.remove(0);
                        let error = gave_way(elapsed.saturating_sub(attempt.began));
                        failures.push(attempt.failed(elapsed, error));
                    }
                    waiting.pop_front();
                    race.running.push(Attempt::new(address, options, elapsed));
                    schedule.begun(elapsed);
                    continue;
                }
            }
        } else if race.running.is_empty() {
            return Err(Lost::All(failures));
        }
        // CANCEL: dropping the race closes what runs, then gives the extra slots back.
        let Some((n, outcome)) = race.ended(wake).await else { continue };
        let attempt = race.running.remove(n);
        match outcome {
            Ok(stream) => {
                race.call_off();
                return Ok((stream, attempt.address));
            }
            Err(error) if is_out_of_descriptors(&error) => {
                let (address, error) = attempt.failed(race.elapsed(), error);
                if race.running.is_empty() {
                    return Err(Lost::NoDescriptor(error));
                }
                race.give_back();
                waiting.push_front(address);
                schedule.without_descriptor();
            }
            Err(error) => {
                let said = format!("{}: {error}; no other address answers", attempt.address);
                cx.note_failure(DialError::new(io::Error::new(error.kind(), said)));
                failures.push(attempt.failed(race.elapsed(), error));
                race.give_back();
                schedule.failed();
            }
        }
    }
}

/// The one attempt there is to make.
pub(super) async fn alone(address: SocketAddr, options: &Options) -> io::Result<TcpStream> {
    let connected = match options.attempt_timeout {
        None => connect(address, options).await,
        Some(timeout) => Box::pin(within(timeout, connect(address, options))).await,
    };
    connected.inspect_err(|error| tracing::debug!(attempt = %address, reason = %error, "attempt lost"))
}

/// The attempts under way. The dial's own slot stands for one of them, whichever is left.
struct Race<'a> {
    running: Vec<Attempt<'a>>,
    // After the attempts: descriptors close, then slots go (I2). One fewer than attempts.
    extra: Vec<Slot>,
    start: Instant,
}

struct Attempt<'a> {
    address: SocketAddr,
    connecting: Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send + 'a>>,
    began: Duration,
}

impl Race<'_> {
    fn elapsed(&self) -> Duration {
        clock::instant().saturating_duration_since(self.start)
    }

    fn oldest(&self) -> Option<Duration> {
        self.running.first().map(|attempt| attempt.began)
    }

    /// The next attempt to end, or `None` at `wake`.
    async fn ended(&mut self, wake: Option<Instant>) -> Option<(usize, io::Result<TcpStream>)> {
        let ended = poll_fn(|cx| {
            for (n, attempt) in self.running.iter_mut().enumerate() {
                if let Poll::Ready(outcome) = attempt.connecting.as_mut().poll(cx) {
                    return Poll::Ready((n, outcome));
                }
            }
            Poll::Pending
        });
        match wake {
            Some(wake) => tokio::time::timeout_at(wake, ended).await.ok(),
            None => Some(ended.await),
        }
    }

    /// The slot of an attempt that has ended, whichever it had: they are alike. After its descriptor is closed (I2).
    fn give_back(&mut self) {
        self.extra.truncate(self.running.len().saturating_sub(1));
    }

    /// One has won: closes the others.
    fn call_off(self) {
        let elapsed = self.elapsed();
        for attempt in &self.running {
            attempt.tell_lost(elapsed, &"another address was connected first");
        }
    }
}

impl<'a> Attempt<'a> {
    fn new(address: SocketAddr, options: &'a Options, began: Duration) -> Self {
        let connecting: Pin<Box<dyn Future<Output = _> + Send>> = match options.attempt_timeout {
            None => Box::pin(connect(address, options)),
            Some(timeout) => Box::pin(within(timeout, connect(address, options))),
        };
        Self { address, connecting, began }
    }

    /// Closes it.
    fn failed(self, elapsed: Duration, error: io::Error) -> (SocketAddr, io::Error) {
        self.tell_lost(elapsed, &error);
        (self.address, error)
    }

    fn tell_lost(&self, elapsed: Duration, reason: &dyn std::fmt::Display) {
        let took = elapsed.saturating_sub(self.began);
        tracing::debug!(attempt = %self.address, %reason, ?took, "attempt lost");
    }
}

async fn within(
    timeout: Duration,
    connecting: impl Future<Output = io::Result<TcpStream>>,
) -> io::Result<TcpStream> {
    let connected = tokio::time::timeout(timeout, connecting).await;
    connected.unwrap_or_else(|_| Err(no_answer(timeout)))
}

async fn connect(address: SocketAddr, options: &Options) -> io::Result<TcpStream> {
    let socket = options.open(address)?;
    match socket.connect(&address.into()) {
        Err(error) if !is_under_way(&error) => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let stream = TcpStream::from_std(socket.into())?;
    // One that has failed can be written to no more, and that is told with the same event: only then is there an
    // error to ask for.
    if stream.ready(Interest::WRITABLE).await?.is_write_closed()
        && let Some(error) = stream.take_error()?
    {
        return Err(error);
    }
    // To a free port of its own machine that the kernel also chose for its own end: nobody is there. An address that is
    // unspecified has become another, so the peer's is asked for; the port tells without a call almost always.
    let own = stream.local_addr()?;
    if own.port() == address.port() && own == stream.peer_addr()? {
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens: connected to itself"));
    }
    Ok(stream)
}

/// What a socket says that does not wait for its connection. One that would block has not begun, but on Windows.
fn is_under_way(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error())
        || (cfg!(windows) && error.kind() == io::ErrorKind::WouldBlock)
}

fn no_answer(timeout: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {timeout:?}"))
}

fn gave_way(took: Duration) -> io::Error {
    let said =
        format!("no answer for {took:.1?}, and no slot or descriptor to try the next address beside it");
    io::Error::new(io::ErrorKind::TimedOut, said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_socket_that_cannot_connect_now_is_not_connecting() {
        let told = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        assert!(is_under_way(&told(Errno::INPROGRESS)));
        assert!(!is_under_way(&told(Errno::AGAIN)));
    }
}
