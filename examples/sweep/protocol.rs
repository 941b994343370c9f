//! The exchanges: one request, one answer read whole, and whether the connection is clean after it.
//! They work on any stream and know nothing of pools.

mod http;

use std::io;
use std::time::Duration;

use clap::ValueEnum;
use thiserror::Error;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader,
};

/// More than any line of an answer has a right to.
const MAX_LINE: u64 = 16 * 1024;

/// All requests are idempotent: one that got no answer may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    Echo,
    Redis,
    Http,
}

/// What the answer leaves of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    Reusable,
    Spent,
}

#[derive(Debug, Error)]
pub(crate) enum ExchangeError {
    /// Not one byte of an answer came.
    #[error("no answer: {0}")]
    Unanswered(#[source] io::Error),
    /// The answer broke off or is not what the protocol says.
    #[error("bad answer: {0}")]
    Answer(#[source] io::Error),
    /// The whole answer did not come in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
}

impl ExchangeError {
    pub(crate) fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            ExchangeError::Unanswered(error) | ExchangeError::Answer(error) => Some(error.kind()),
            ExchangeError::Late(_) => None,
        }
    }
}

impl Protocol {
    /// One request and its answer. `host` goes into what names it, `number` tells one call from all others.
    pub(crate) async fn exchange<S>(
        self,
        stream: S,
        host: &str,
        number: u64,
    ) -> Result<Connection, ExchangeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let request = self.request(host, number);
        let mut stream = BufReader::new(stream);
        stream.write_all(request.as_bytes()).await.map_err(ExchangeError::Unanswered)?;
        if stream.fill_buf().await.map_err(ExchangeError::Unanswered)?.is_empty() {
            return Err(ExchangeError::Unanswered(closed_by_peer()));
        }
        let connection = match self {
            Protocol::Echo => read_exactly(&mut stream, request.as_bytes()).await,
            Protocol::Redis => read_pong(&mut stream).await,
            Protocol::Http => http::read_response(&mut stream).await,
        };
        match connection.map_err(ExchangeError::Answer)? {
            // What nobody asked for would be the answer to the next call.
            Connection::Reusable if !stream.buffer().is_empty() => Ok(Connection::Spent),
            connection => Ok(connection),
        }
    }

    fn request(self, host: &str, number: u64) -> String {
        match self {
            Protocol::Echo => format!("call {number}\n"),
            Protocol::Redis => "*1\r\n$4\r\nPING\r\n".into(),
            Protocol::Http => {
                format!("GET / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: fdpool-sweep\r\nAccept: */*\r\n\r\n")
            }
        }
    }
}

async fn read_exactly<R: AsyncBufRead + Unpin>(reader: &mut R, expected: &[u8]) -> io::Result<Connection> {
    let mut answer = vec![0; expected.len()];
    reader.read_exact(&mut answer).await?;
    if answer == expected { Ok(Connection::Reusable) } else { Err(unexpected(&answer)) }
}

async fn read_pong<R: AsyncBufRead + Unpin>(reader: &mut R) -> io::Result<Connection> {
    let line = read_line(reader).await?;
    if line == b"+PONG" { Ok(Connection::Reusable) } else { Err(unexpected(&line)) }
}

/// One line without its line feed and the carriage return before it.
async fn read_line<R: AsyncBufRead + Unpin>(reader: &mut R) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    reader.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    match line.pop() {
        Some(b'\n') => {}
        _ if line.len() as u64 + 1 >= MAX_LINE => return Err(invalid("a line that does not end")),
        _ => return Err(closed_by_peer()),
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(line)
}

fn closed_by_peer() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the peer")
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn unexpected(answer: &[u8]) -> io::Error {
    let shown = &answer[..answer.len().min(60)];
    invalid(format!("{:?}", String::from_utf8_lossy(shown)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The peer answers so and closes, whatever it is asked.
    async fn answered(protocol: Protocol, answer: &[u8]) -> Result<Connection, ExchangeError> {
        protocol.exchange(tokio::io::join(answer, tokio::io::sink()), "host:1", 7).await
    }

    #[tokio::test]
    async fn echo_takes_its_own_line_only() {
        assert_eq!(answered(Protocol::Echo, b"call 7\n").await.unwrap(), Connection::Reusable);
        let of_another = answered(Protocol::Echo, b"call 6\n").await.unwrap_err();
        assert_eq!(of_another.to_string(), r#"bad answer: "call 6\n""#);
        assert!(matches!(answered(Protocol::Echo, b"ca").await, Err(ExchangeError::Answer(_))));
    }

    #[tokio::test]
    async fn redis_takes_a_pong_only() {
        assert_eq!(answered(Protocol::Redis, b"+PONG\r\n").await.unwrap(), Connection::Reusable);
        let refused = answered(Protocol::Redis, b"-LOADING wait\r\n").await.unwrap_err();
        assert_eq!(refused.to_string(), r#"bad answer: "-LOADING wait""#);
    }

    #[tokio::test]
    async fn a_connection_with_more_than_the_answer_is_spent() {
        assert_eq!(answered(Protocol::Redis, b"+PONG\r\n+PONG\r\n").await.unwrap(), Connection::Spent);
    }

    #[tokio::test]
    async fn a_peer_that_closes_without_a_byte_gave_no_answer() {
        for protocol in Protocol::value_variants() {
            assert!(matches!(answered(*protocol, b"").await, Err(ExchangeError::Unanswered(_))));
        }
    }
}
