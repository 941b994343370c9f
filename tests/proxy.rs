//! Dials by way of proxies: of this test's own, which say what the test says, and real ones. Here is what they share,
//! and what holds for both protocols.

#[path = "proxy/http.rs"]
mod http;
#[path = "proxy/real.rs"]
mod real;
#[path = "proxy/socks.rs"]
mod socks;
#[path = "proxy/whatever.rs"]
mod whatever;

#[path = "support/servers.rs"]
mod servers;
mod support;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use fdpool::dial::{Boxed, CheckContext, HttpConnect, Socks5, Tcp, Watch};
use fdpool::{Address, Budget, ConnResource, Dial, DialContext, DialError, Fitness, GetError};
use support::{assert_at_rest, poll, refusing, sockets_to};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What a proxy of a test does with a connection.
#[derive(Clone, Debug)]
enum Act {
    Hears(Vec<u8>),
    Says(Vec<u8>),
}

fn hears(bytes: impl AsRef<[u8]>) -> Act {
    Act::Hears(bytes.as_ref().to_vec())
}

fn says(bytes: impl AsRef<[u8]>) -> Act {
    Act::Says(bytes.as_ref().to_vec())
}

/// Acts, then answers what it hears with the same.
async fn play(mut io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, acts: &[Act]) {
    for act in acts {
        match act {
            Act::Hears(expected) => {
                let mut heard = vec![0; expected.len()];
                io.read_exact(&mut heard).await.unwrap();
                assert_eq!(heard.escape_ascii().to_string(), expected.escape_ascii().to_string());
            }
            Act::Says(bytes) => io.write_all(bytes).await.unwrap(),
        }
    }
    let (mut read, mut write) = tokio::io::split(io);
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

/// A proxy for one connection. What it did not expect to hear fails whoever awaits it.
async fn proxy(acts: Vec<Act>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let played = tokio::spawn(async move { play(listener.accept().await.unwrap().0, &acts).await });
    (address, played)
}

/// A proxy that says this at once to whoever comes, listens to the end, and says nothing more.
async fn saying(bytes: impl Into<Vec<u8>>) -> SocketAddr {
    let (bytes, listener) = (bytes.into(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut io, _) = listener.accept().await.unwrap();
            let bytes = bytes.clone();
            tokio::spawn(async move {
                // Both at once: neither side may wait for the other to read.
                let (mut read, mut write) = io.split();
                let said = async {
                    write.write_all(&bytes).await?;
                    write.shutdown().await
                };
                let mut sink = tokio::io::sink();
                let _ = tokio::join!(said, tokio::io::copy(&mut read, &mut sink));
            });
        }
    });
    address
}

fn socks(proxy: impl Into<Address>) -> Socks5<Tcp> {
    Socks5::new(Tcp::default(), proxy)
}

fn connect(proxy: impl Into<Address>) -> HttpConnect<Tcp> {
    HttpConnect::new(Tcp::default(), proxy)
}

async fn dial<D: Dial>(dialer: &D, destination: &str) -> Result<D::Conn, DialError> {
    dialer.dial(&destination.into(), &DialContext::detached()).await
}

/// The error of a dial by way of a proxy that says this, after which nothing is open.
async fn refusal<D: Dial>(dialer: impl Fn(SocketAddr) -> D, answer: impl Into<Vec<u8>>) -> DialError {
    let proxy = saying(answer).await;
    let error = match dial(&dialer(proxy), "example.org:443").await {
        Ok(_) => panic!("dialled"),
        Err(error) => error,
    };
    assert_eq!(sockets_to(proxy), 0);
    let text = error.to_string();
    assert!(text.contains(&proxy.to_string()) && text.contains("example.org:443"), "{text}");
    assert!(!text.contains("hunter2") && !format!("{error:?}").contains("hunter2"), "{error:?}");
    error
}

const GREETING: &[u8] = &[5, 1, 0];
const DONE: &[u8] = &[5, 0, 0, 1, 127, 0, 0, 1, 0, 80];

const ESTABLISHED: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

async fn assert_echoes(conn: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin)) {
    conn.write_all(b"ping").await.unwrap();
    let mut pong = [0; 4];
    conn.read_exact(&mut pong).await.unwrap();
    assert_eq!(&pong, b"ping");
}

#[tokio::test]
async fn a_destination_that_no_proxy_can_be_asked_for_is_refused_without_dialing() {
    // Nobody could dial this proxy.
    let nowhere = || dial_from(|_: &Address| -> DuplexStream { panic!("dialled") });
    for destination in ["", "host", "host:99999", "a b:80", "a\r\nb:80", "::1:80", "é:80"] {
        let socks = dial(&Socks5::new(nowhere(), "p"), destination).await.unwrap_err();
        let http = dial(&HttpConnect::new(nowhere(), "p"), destination).await.unwrap_err();
        assert!(socks.is_permanent() && http.is_permanent(), "{socks}");
        assert!(socks.to_string().contains("before dialing it"), "{socks}");
    }
}

#[tokio::test]
async fn passwords_and_header_values_are_not_in_debug_texts() {
    let socks = format!("{:?}", socks("p:1").auth("scraper", "hunter2"));
    let http = format!("{:?}", connect("p:1").basic_auth("scraper", "hunter2").header("X-Key", "hunter2"));
    for text in [&socks, &http] {
        assert!(text.contains("scraper") && text.contains("p:1") && !text.contains("hunter2"), "{text}");
    }
    assert!(http.contains("X-Key"), "{http}");
}

#[tokio::test]
async fn a_proxy_that_cannot_be_reached_is_told_with_its_cause() {
    let (_refusing, free) = refusing();
    let error = dial(&socks(free), "example.org:80").await.unwrap_err();
    assert!(
        error.to_string().starts_with(&format!("SOCKS5 proxy {free} for example.org:80, dialing it")),
        "{error}"
    );
    assert_eq!((error.io_kind(), error.is_permanent()), (Some(ErrorKind::ConnectionRefused), false));
    let error = dial(&connect("no port"), "example.org:80").await.unwrap_err();
    assert!(error.to_string().starts_with("HTTP proxy no port for example.org:80, dialing it"), "{error}");
    assert!(error.is_permanent(), "as the inner dialer says");
}

#[tokio::test]
async fn running_out_of_descriptors_on_the_way_to_a_proxy_is_seen_as_such() {
    let budget = Budget::new(4);
    let tried = Mutex::new(0);
    let inner = fdpool::dial::from_fn(
        move |_: &Address, _: &DialContext| {
            let mut tried = tried.lock().unwrap();
            *tried += 1;
            let first = *tried == 1;
            async move {
                const EMFILE: i32 = 24;
                if first {
                    return Err(io::Error::from_raw_os_error(EMFILE).into());
                }
                let (near, far) = tokio::io::duplex(64);
                tokio::spawn(async move { play(far, &[hears(GREETING), says([5, 0]), says(DONE)]).await });
                Ok::<_, DialError>(near)
            }
        },
        |conn: &mut DuplexStream, _: &CheckContext| Fitness::probe(conn),
    );
    let resource = ConnResource::builder("h:80", Socks5::new(inner, "p")).budget(&budget).build();
    resource.get().await.unwrap().put();
    assert_eq!((budget.stats().emfile, budget.stats().dial_failures), (1, 0));
}

/// Accepts, and never answers.
async fn silent() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut accepted = Vec::new();
        loop {
            accepted.push(listener.accept().await.unwrap());
        }
    });
    address
}

#[tokio::test]
async fn a_proxy_that_never_answers_ends_with_the_dials_timeout_and_leaves_nothing() {
    let (budget, proxy) = (Budget::new(2), silent().await);
    let resources = [
        ConnResource::builder("h:80", socks(proxy)).budget(&budget).build(),
        ConnResource::builder("h:80", connect(proxy)).budget(&budget).build(),
    ];
    for resource in resources {
        let mut get = resource.get();
        assert!(poll(&mut get).is_pending());
        while sockets_to(proxy) == 0 {
            tokio::task::yield_now().await;
        }
        drop(get);
        assert_eq!(sockets_to(proxy), 0);
        assert_at_rest(&budget, 0);
        let error = resource.get().dial_timeout(Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(error, GetError::DialTimeout { .. }), "{error}");
        let source = std::error::Error::source(&error).unwrap();
        assert_eq!(source.to_string(), "timed out while waiting for the proxy, which was reached");
        assert_eq!(sockets_to(proxy), 0);
        assert_at_rest(&budget, 0);
    }
}

/// Dials with what a function makes of the address.
fn dial_from<C: tokio::io::AsyncRead + Unpin + Send + 'static>(
    make: impl Fn(&Address) -> C + Send + Sync + 'static,
) -> impl Dial<Conn = C> {
    fdpool::dial::from_fn(
        move |address: &Address, _: &DialContext| {
            let conn = make(address);
            async move { Ok(conn) }
        },
        |conn: &mut C, _: &CheckContext| Fitness::probe(conn),
    )
}

/// A connection to a proxy that plays, through a pipe with room for one byte.
fn narrow(acts: Vec<Act>) -> impl Dial<Conn = DuplexStream> {
    dial_from(move |_: &Address| {
        let (near, far) = tokio::io::duplex(1);
        let acts = acts.clone();
        tokio::spawn(async move { play(far, &acts).await });
        near
    })
}

#[tokio::test]
async fn a_dial_dropped_at_any_of_its_polls_ends_its_connection_and_one_of_single_bytes_succeeds() {
    let log_in = hears(b"\x01\x01u\x01p");
    let request = hears(b"\x05\x01\x00\x03\x01h\x00\x50");
    let acts = vec![hears([5, 2, 0, 2]), says([5, 2]), log_in, says([1, 0]), request, says(DONE)];
    drop_at_each_poll(Socks5::new(narrow(acts), "p").auth("u", "p")).await;
    let acts = vec![hears("CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n"), says(ESTABLISHED)];
    drop_at_each_poll(HttpConnect::new(narrow(acts), "p")).await;
}

#[tokio::test(start_paused = true)]
async fn an_inner_connection_that_buffers_what_is_written_is_flushed() {
    let buffered = |acts: Vec<Act>| {
        dial_from(move |_: &Address| {
            let (near, far) = tokio::io::duplex(1024);
            let acts = acts.clone();
            tokio::spawn(async move { play(far, &acts).await });
            tokio::io::BufStream::new(near)
        })
    };
    let acts = vec![hears([5, 2, 0, 2]), says([5, 2]), hears(b"\x01\x01u\x01p"), says([1, 0])];
    let request = [hears(b"\x05\x01\x00\x03\x01h\x00\x50"), says(DONE)];
    let socks = Socks5::new(buffered([acts, request.into()].concat()), "p").auth("u", "p");
    let acts = vec![hears("CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n"), says(ESTABLISHED)];
    let http = HttpConnect::new(buffered(acts), "p");
    let hour = Duration::from_secs(3600);
    tokio::time::timeout(hour, dial(&socks, "h:80")).await.expect("no answer to what was not sent").unwrap();
    tokio::time::timeout(hour, dial(&http, "h:80")).await.expect("no answer to what was not sent").unwrap();
}

async fn drop_at_each_poll(dialer: impl Dial<Conn = DuplexStream>) {
    let budget = Budget::new(1);
    let resource = ConnResource::builder("h:80", dialer).budget(&budget).build();
    for polls in 0.. {
        let mut get = resource.get();
        for _ in 0..polls {
            if let Poll::Ready(conn) = poll(&mut get) {
                let mut conn = conn.unwrap();
                assert_echoes(&mut *conn).await;
                assert!(polls > 10, "byte by byte");
                return;
            }
            tokio::task::yield_now().await;
        }
        drop(get);
        assert_at_rest(&budget, 0);
    }
}

/// Remembers what it was asked.
#[derive(Clone, Debug, Default)]
struct Asked(Arc<Mutex<VecDeque<String>>>);

impl Asked {
    fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push_back(what.into());
    }

    fn take(&self) -> Vec<String> {
        self.0.lock().unwrap().drain(..).collect()
    }
}

impl Dial for Asked {
    type Conn = TcpStream;

    async fn dial(&self, address: &Address, cx: &DialContext) -> Result<TcpStream, DialError> {
        self.note(format!("dial {address}"));
        Tcp::default().dial(address, cx).await
    }

    fn check(&self, _conn: &mut TcpStream, _cx: &CheckContext) -> Fitness {
        self.note("check");
        Fitness::Fit
    }

    fn poll_idle(&self, _conn: &mut TcpStream, _cx: &mut Context<'_>) -> Poll<Fitness> {
        self.note("poll_idle");
        Poll::Ready(Fitness::Broken)
    }

    fn watch(&self, address: &Address) -> Option<Watch> {
        self.note(format!("watch {address}"));
        Some(Box::pin(async {}))
    }

    fn is_current(&self, address: &Address, _conn: &TcpStream) -> bool {
        self.note(format!("is_current {address}"));
        false
    }

    fn close(&self, _conn: TcpStream) {
        self.note("close");
    }
}

#[tokio::test]
async fn everything_after_the_dial_is_asked_of_the_inner_dialer_with_the_proxys_address() {
    let asked = Asked::default();
    let answers = saying([&[5, 0][..], DONE].concat()).await;
    forwards(&asked, answers, Socks5::new(asked.clone(), answers)).await;
    let answers = saying(ESTABLISHED).await;
    forwards(&asked, answers, HttpConnect::new(asked.clone(), answers)).await;
}

async fn forwards(asked: &Asked, proxy: SocketAddr, dialer: impl Dial<Conn = TcpStream>) {
    let destination = Address::from("h:80");
    let mut conn = dialer.dial(&destination, &DialContext::detached()).await.unwrap();
    assert!(dialer.watch(&destination).is_some());
    assert!(!dialer.is_current(&destination, &conn));
    assert_eq!(poll_fn(|cx| dialer.poll_idle(&mut conn, cx)).await, Fitness::Broken);
    dialer.close(conn);
    let (dial, watch, current) =
        (format!("dial {proxy}"), format!("watch {proxy}"), format!("is_current {proxy}"));
    assert_eq!(asked.take(), [dial.as_str(), &watch, &current, "poll_idle", "close"]);

    let resource = ConnResource::with_dialer("h:80", dialer);
    resource.get().await.unwrap().put();
    assert!(resource.try_get().is_some());
    let asked = asked.take();
    assert_eq!(asked[0], dial);
    assert!(asked.contains(&"check".to_owned()), "{asked:?}");
}

#[tokio::test]
#[cfg(unix)]
async fn a_proxy_may_be_reached_over_a_unix_socket_or_another_proxy() {
    let path = std::env::temp_dir().join(format!("fdpool-{}-proxy.sock", std::process::id()));
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let acts = [hears(GREETING), says([5, 0]), hears(b"\x05\x01\x00\x03\x01h\x00\x50"), says(DONE)];
        play(listener.accept().await.unwrap().0, &acts).await
    });
    let dialer = Boxed::new(Socks5::new(fdpool::dial::Unix, path.as_path()));
    assert_echoes(&mut dial(&dialer, "h:80").await.unwrap()).await;
    std::fs::remove_file(path).unwrap();

    let (outer, _played) = proxy(vec![
        hears("CONNECT inner:1080 HTTP/1.1\r\nHost: inner:1080\r\n\r\n"),
        says(ESTABLISHED),
        hears(GREETING),
        says([5, 0]),
        hears(b"\x05\x01\x00\x03\x01h\x00\x50"),
        says(DONE),
    ])
    .await;
    let dialer = Socks5::new(connect(outer), "inner:1080");
    assert_echoes(&mut dial(&dialer, "h:80").await.unwrap()).await;
}
