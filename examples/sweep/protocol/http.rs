//! An HTTP/1.1 response to a GET, read whole and thrown away (RFC 9112, sections 6, 7 and 9).
//! It finds out where the response ends and whether another request may follow it.

use std::io;

use tokio::io::{AsyncBufRead, AsyncReadExt};

use super::{Connection, closed_by_peer, invalid, read_line, unexpected};

/// More header lines, or interim responses, than any server has a right to.
const MAX_LINES: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Empty,
    Sized(u64),
    Chunked,
    UntilClosed,
}

#[derive(Debug)]
struct Head {
    status: u16,
    persistent: bool,
    length: Option<u64>,
    /// `Some(true)`: ends with the chunked coding. `Some(false)`: with another, so that only a close ends it.
    transfer_coding: Option<bool>,
}

/// A response of 5xx is an error: the server answered that it could not.
pub(super) async fn read_response<R: AsyncBufRead + Unpin>(reader: &mut R) -> io::Result<Connection> {
    let head = read_final_head(reader).await?;
    let body = head.body();
    match body {
        Body::Empty => {}
        Body::Sized(length) => skip(reader, length).await?,
        Body::Chunked => skip_chunks(reader).await?,
        Body::UntilClosed => drop(tokio::io::copy_buf(reader, &mut tokio::io::sink()).await?),
    }
    match head.status {
        500.. => Err(invalid(format!("status {}", head.status))),
        _ if head.persistent && body != Body::UntilClosed => Ok(Connection::Reusable),
        _ => Ok(Connection::Spent),
    }
}

/// Skips the interim ones (1xx).
async fn read_final_head<R: AsyncBufRead + Unpin>(reader: &mut R) -> io::Result<Head> {
    for _ in 0..MAX_LINES {
        let head = read_head(reader).await?;
        if !(100..200).contains(&head.status) {
            return Ok(head);
        }
    }
    Err(invalid("interim responses without end"))
}

async fn read_head<R: AsyncBufRead + Unpin>(reader: &mut R) -> io::Result<Head> {
    let mut head = Head::from_status_line(&read_line(reader).await?)?;
    for _ in 0..MAX_LINES {
        let line = read_line(reader).await?;
        if line.is_empty() {
            return Ok(head);
        }
        head.add_field(&line)?;
    }
    Err(invalid("header lines without end"))
}

impl Head {
    fn from_status_line(line: &[u8]) -> io::Result<Head> {
        let parsed = || {
            let line = std::str::from_utf8(line.get(..12)?).ok()?;
            let (version, status) = line.split_once(' ')?;
            let persistent = match version {
                "HTTP/1.1" => true,
                "HTTP/1.0" => false,
                _ => return None,
            };
            let status = status.parse().ok().filter(|status| (100..600).contains(status))?;
            Some(Head { status, persistent, length: None, transfer_coding: None })
        };
        parsed().ok_or_else(|| unexpected(line))
    }

    fn add_field(&mut self, line: &[u8]) -> io::Result<()> {
        let line_text = String::from_utf8_lossy(line);
        let (name, value) = line_text.split_once(':').ok_or_else(|| unexpected(line))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let length = value.parse().map_err(|_| unexpected(line))?;
            if self.length.is_some_and(|before| before != length) {
                return Err(invalid("two lengths that differ"));
            }
            self.length = Some(length);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            self.transfer_coding =
                Some(items(value).last().is_some_and(|last| last.eq_ignore_ascii_case("chunked")));
        } else if name.eq_ignore_ascii_case("connection") {
            for option in items(value) {
                if option.eq_ignore_ascii_case("close") {
                    self.persistent = false;
                } else if option.eq_ignore_ascii_case("keep-alive") {
                    self.persistent = true;
                }
            }
        }
        Ok(())
    }

    fn body(&self) -> Body {
        match (self.status, self.transfer_coding, self.length) {
            (204 | 304, ..) => Body::Empty,
            (_, Some(true), _) => Body::Chunked,
            (_, Some(false), _) | (_, None, None) => Body::UntilClosed,
            (_, None, Some(length)) => Body::Sized(length),
        }
    }
}

fn items(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim)
}

async fn skip<R: AsyncBufRead + Unpin>(reader: &mut R, length: u64) -> io::Result<()> {
    let skipped = tokio::io::copy_buf(&mut reader.take(length), &mut tokio::io::sink()).await?;
    if skipped == length { Ok(()) } else { Err(closed_by_peer()) }
}

async fn skip_chunks<R: AsyncBufRead + Unpin>(reader: &mut R) -> io::Result<()> {
    loop {
        match chunk_size(&read_line(reader).await?)? {
            0 => break,
            size => skip(reader, size).await?,
        }
        let after = read_line(reader).await?;
        if !after.is_empty() {
            return Err(unexpected(&after));
        }
    }
    for _ in 0..MAX_LINES {
        if read_line(reader).await?.is_empty() {
            return Ok(());
        }
    }
    Err(invalid("trailer lines without end"))
}

fn chunk_size(line: &[u8]) -> io::Result<u64> {
    let text = String::from_utf8_lossy(line);
    let size = text.split_once(';').map_or(&*text, |(size, _extension)| size).trim_end();
    let hexadecimal = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(size, 16).ok().filter(|_| hexadecimal).ok_or_else(|| unexpected(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The outcome, and what of `response` was left unread.
    async fn read(response: &str) -> (io::Result<Connection>, &str) {
        let mut rest = response.as_bytes();
        let outcome = read_response(&mut rest).await;
        let unread = response.len() - rest.len();
        (outcome, &response[unread..])
    }

    #[tokio::test]
    async fn a_response_is_read_to_its_end_and_no_further() {
        for (response, connection) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Connection::Reusable),
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", Connection::Reusable),
            ("HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 5\r\n\r\nhello", Connection::Spent),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", Connection::Spent),
            (
                "HTTP/1.0 200 OK\r\nConnection: x, keep-alive\r\nContent-Length: 5\r\n\r\nhello",
                Connection::Reusable,
            ),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", Connection::Reusable),
            (
                "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
                Connection::Reusable,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5;x=y\r\nhello\r\nA\r\n0123456789\r\n\
                 0\r\nTrailer: x\r\n\r\n",
                Connection::Reusable,
            ),
        ] {
            let with_more = format!("{response}HTTP/1.1 200 OK\r\n");
            let (outcome, unread) = read(&with_more).await;
            assert_eq!(outcome.unwrap(), connection, "{response}");
            assert_eq!(unread, "HTTP/1.1 200 OK\r\n", "{response}");
        }
    }

    #[tokio::test]
    async fn a_response_without_a_length_ends_with_the_connection() {
        let (outcome, unread) = read("HTTP/1.1 200 OK\r\n\r\nall of this\r\n").await;
        assert_eq!((outcome.unwrap(), unread), (Connection::Spent, ""));
    }

    #[tokio::test]
    async fn a_response_that_breaks_off_is_an_error() {
        for response in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            "HTTP/1.1 200 OK\r\nContent-Le",
        ] {
            assert_eq!(
                read(response).await.0.unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof,
                "{response}"
            );
        }
    }

    #[tokio::test]
    async fn what_is_no_response_is_an_error() {
        for response in [
            "+PONG\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 20x OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello, world\r\n0\r\n\r\n",
        ] {
            assert_eq!(read(response).await.0.unwrap_err().kind(), io::ErrorKind::InvalidData, "{response}");
        }
    }

    #[tokio::test]
    async fn a_server_error_is_a_failed_call() {
        let (outcome, _) = read("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(outcome.unwrap_err().to_string(), "status 503");
    }
}
