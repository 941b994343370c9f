//! HTTP's CONNECT (RFC 9110, 9.3.6), as a client over HTTP/1.1. The answer's header is read to its last byte and no
//! further: what follows is the destination's.

use std::fmt;
use std::io;
use std::task::{Context, Poll};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Destination, Failed, Step};
use crate::address::Address;
use crate::dial::{CheckContext, Dial, DialContext, Fitness, Watch};
use crate::error::DialError;

/// How long the header of an answer may be, with all interim answers before it.
const LONGEST_HEADER: usize = 16 * 1024;

/// Dials by way of an HTTP proxy, which `D` dials, with the method `CONNECT`. A proxy spoken to over TLS is one that
/// `D` dials so.
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
/// They name the proxy, the destination, the step that failed, and the status the proxy answered, never a password or
/// a header's value. Permanent are: a destination that is no `host:port`, a header or user that cannot be sent,
/// the statuses 400, 401, 403, 405, 407, 501 and 505; and what is permanent for `D`. Everything else may pass, as may an
/// answer that is not HTTP, or whose header has more than 16 KiB.
///
/// # Examples
///
/// ```
/// use fdpool::ConnResource;
/// use fdpool::dial::{HttpConnect, Tcp};
///
/// let dialer = HttpConnect::new(Tcp::default(), "proxy.example:3128")
///     .basic_auth("scraper", "hunter2")
///     .header("User-Agent", "scraper/1.0");
/// let resource = ConnResource::with_dialer("example.org:443", dialer);
/// ```
#[derive(Clone)]
pub struct HttpConnect<D> {
    inner: D,
    proxy: Address,
    auth: Option<Auth>,
    headers: Vec<(String, String)>,
}

#[derive(Clone)]
struct Auth {
    user: String,
    password: String,
}

impl<D> HttpConnect<D> {
    /// Reaches the proxy at the address `proxy` with `inner`.
    pub fn new(inner: D, proxy: impl Into<Address>) -> Self {
        Self { inner, proxy: proxy.into(), auth: None, headers: Vec::new() }
    }

    /// Sends a user's name and password with each request (RFC 7617). By default there is no authentication. They
    /// are sent as they are: encrypted only if `D`'s connections are.
    pub fn basic_auth(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.auth = Some(Auth { user: user.into(), password: password.into() });
        self
    }

    /// Sends a header field with each request, after `Host` and those given before. By default there are none. With one
    /// that is malformed, or `Host`, `Content-Length` or `Transfer-Encoding`, dials fail for good.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// Without the password, and without the headers' values, which may be secrets too.
impl<D: fmt::Debug> fmt::Debug for HttpConnect<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("HttpConnect")
            .field("inner", &self.inner)
            .field("proxy", &self.proxy)
            .field("user", &self.auth.as_ref().map(|auth| &auth.user))
            .field("headers", &headers)
            .finish_non_exhaustive()
    }
}

dial_through_proxy!(HttpConnect, "HTTP proxy");

impl<D: Dial> HttpConnect<D>
where
    D::Conn: AsyncRead + AsyncWrite + Unpin,
{
    async fn connect(&self, address: &Address, cx: &DialContext) -> Result<D::Conn, Failed> {
        let destination =
            Destination::parse(address.as_str()).map_err(|error| Step::Prepare.failed(error))?;
        let request = self
            .request(&destination)
            .map_err(|why| Step::Prepare.failed(DialError::new(why)).permanent())?;
        // CANCEL: here and below, the connection to the proxy is closed with this future.
        let mut conn = self.inner.dial(&self.proxy, cx).await.map_err(|error| Step::Reach.failed(error))?;
        cx.begin_step("waiting for the proxy, which was reached");
        let step = Step::Request;
        conn.write_all(request.as_bytes()).await.map_err(|error| step.broken(error))?;
        conn.flush().await.map_err(|error| step.broken(error))?;
        match final_status(&mut conn).await? {
            200..300 => Ok(conn),
            status => Err(refusal(status, self.auth.is_some())),
        }
    }

    fn request(&self, destination: &Destination<'_>) -> Result<String, String> {
        let mut request = format!("CONNECT {destination} HTTP/1.1\r\nHost: {destination}\r\n");
        for (name, value) in &self.headers {
            push_field(&mut request, name, value)?;
        }
        if let Some(Auth { user, password }) = &self.auth {
            if user.contains(':') {
                return Err("the user's name has a colon, which ends it in Basic authentication".into());
            }
            let encoded = BASE64_STANDARD.encode(format!("{user}:{password}"));
            push_field(&mut request, "Proxy-Authorization", &format!("Basic {encoded}"))?;
        }
        request.push_str("\r\n");
        Ok(request)
    }
}

fn push_field(request: &mut String, name: &str, value: &str) -> Result<(), String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("{name:?} is no name of a header field"));
    }
    if ["Host", "Content-Length", "Transfer-Encoding"].iter().any(|taken| taken.eq_ignore_ascii_case(name)) {
        return Err(format!("{name} is not to be given: a CONNECT request has its own Host, and no content"));
    }
    if value.bytes().any(|byte| byte != b'\t' && byte.is_ascii_control()) {
        return Err(format!("the value of the header field {name} has a control character"));
    }
    for part in [name, ": ", value, "\r\n"] {
        request.push_str(part);
    }
    Ok(())
}

/// The status that is no interim one.
async fn final_status(io: &mut (impl AsyncRead + Unpin)) -> Result<u16, Failed> {
    let mut room = LONGEST_HEADER;
    loop {
        let header = read_header(io, room).await?;
        room -= header.len();
        match status(&header)? {
            100 | 102..200 => {} // the next one, then
            status => return Ok(status),
        }
    }
}

async fn read_header(io: &mut (impl AsyncRead + Unpin), room: usize) -> Result<Vec<u8>, Failed> {
    let step = Step::Request;
    let mut header = Vec::with_capacity(256);
    loop {
        let (length, missing) = (header.len(), missing(&header));
        if missing == 0 {
            return Ok(header);
        }
        if length + missing > room {
            return Err(step.garbage(format!("its answer has a header of more than {LONGEST_HEADER} bytes")));
        }
        header.resize(length + missing, 0);
        io.read_exact(&mut header[length..]).await.map_err(|error| step.broken(error))?;
        if !header.starts_with(PROTOCOL) {
            return Err(step.garbage("this is no HTTP proxy: its answer does not begin as HTTP/1's do"));
        }
    }
}

const PROTOCOL: &[u8] = b"HTTP/1.";

/// How many bytes there are at least before the header ends: as many can be read without taking one of those that
/// follow it. A line may end with a bare newline.
fn missing(header: &[u8]) -> usize {
    match header {
        [] => PROTOCOL.len() + b"1 200\n\n".len(),
        [.., b'\n', b'\n'] | [.., b'\n', b'\r', b'\n'] => 0,
        [.., b'\n'] | [.., b'\n', b'\r'] => 1,
        _ => 2,
    }
}

fn status(header: &[u8]) -> Result<u16, Failed> {
    let lines = header.iter().filter(|byte| **byte == b'\n').count();
    let mut fields = vec![httparse::EMPTY_HEADER; lines];
    let mut response = httparse::Response::new(&mut fields);
    let mut tolerant = httparse::ParserConfig::default();
    tolerant.allow_obsolete_multiline_headers_in_responses(true);
    tolerant.allow_spaces_after_header_name_in_responses(true);
    let garbage = |why: &dyn fmt::Display| Step::Request.garbage(format!("its answer is no HTTP: {why}"));
    match tolerant.parse_response(&mut response, header) {
        Ok(httparse::Status::Complete(_)) => response.code.ok_or_else(|| garbage(&"no status")),
        Ok(httparse::Status::Partial) => Err(garbage(&"the header ends too soon")),
        Err(error) => Err(garbage(&error)),
    }
}

/// In our words: the proxy's own might repeat what it was sent.
fn refusal(status: u16, with_user: bool) -> Failed {
    use io::ErrorKind::{Other, PermissionDenied, TimedOut, Unsupported};
    let (kind, words, permanent) = match status {
        400 => (Other, "bad request", true),
        401 => (PermissionDenied, "unauthorized", true),
        403 => (PermissionDenied, "forbidden", true),
        404 => (Other, "not found", false),
        405 => (Unsupported, "method not allowed", true),
        407 if with_user => {
            (PermissionDenied, "proxy authentication required: it refuses the user or password", true)
        }
        407 => (PermissionDenied, "proxy authentication required, and there is no user given", true),
        408 => (TimedOut, "request timeout", false),
        429 => (Other, "too many requests", false),
        500 => (Other, "internal server error", false),
        501 => (Unsupported, "not implemented", true),
        502 => (Other, "bad gateway: it did not reach the destination", false),
        503 => (Other, "service unavailable", false),
        504 => (TimedOut, "gateway timeout: the destination did not answer it", false),
        505 => (Unsupported, "HTTP version not supported", true),
        _ => (Other, "which opens no tunnel", false),
    };
    let failed = Step::Request.failed(io::Error::new(kind, format!("status {status}, {words}")));
    if permanent { failed.permanent() } else { failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes as they may come, in the worst case for whoever reads too many.
    async fn read_of(bytes: &[u8]) -> (Result<Vec<u8>, Failed>, Vec<u8>) {
        let mut io = bytes;
        let header = read_header(&mut io, LONGEST_HEADER).await;
        (header, io.to_vec())
    }

    #[tokio::test]
    async fn a_header_is_read_to_its_end_and_no_further() {
        for header in [
            &b"HTTP/1.1 200\n\n"[..],
            b"HTTP/1.1 200 \r\n\r\n",
            b"HTTP/1.0 200 Connection established\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nVia: 1.1 proxy\r\nX: \r\n\r\n",
            b"HTTP/1.1 200 OK\nVia: 1.1 proxy\n\r\n",
            b"HTTP/1.1 200 OK\r\nVia: 1.1 proxy\n\n",
        ] {
            for after in [&b""[..], b"\n", b"\r\n\r\n", b"220 ready"] {
                let (read, rest) = read_of(&[header, after].concat()).await;
                assert_eq!((read.unwrap(), rest), (header.to_vec(), after.to_vec()));
                assert_eq!(status(header).unwrap(), 200);
            }
        }
    }

    #[tokio::test]
    async fn a_header_without_end_is_read_no_further_than_its_bound() {
        let (read, rest) =
            read_of(&[b"HTTP/1.1 200 OK\r\nX: ", &[b'x'; 2 * LONGEST_HEADER][..]].concat()).await;
        assert!(read.unwrap_err().error.to_string().contains("16384 bytes"));
        assert!(rest.len() >= LONGEST_HEADER);
    }
}
