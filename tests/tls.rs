//! The TLS dialer, against rustls on the other side and against nginx: reuse, identities, handshakes that fail, and
//! what is said over a connection while it is idle.

#![allow(clippy::disallowed_methods, reason = "ticks of the clock are real time")]

#[path = "support/servers.rs"]
mod servers;
mod support;
#[allow(dead_code, unreachable_pub, reason = "every test binary uses a part of it")]
#[path = "support/tls.rs"]
mod tls;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use fdpool::dial::tls::rustls::client::WebPkiServerVerifier;
use fdpool::dial::tls::rustls::crypto::ring;
use fdpool::dial::tls::rustls::version::{TLS12, TLS13};
use fdpool::dial::tls::rustls::{
    Error, HandshakeKind, ServerConfig, ServerConnection, SupportedProtocolVersion,
};
use fdpool::dial::tls::tokio_rustls::client::TlsStream;
use fdpool::dial::tls::{HandshakeError, config_builder, tokio_rustls};
use fdpool::dial::{Boxed, Tcp, Tls};
use fdpool::{
    Address, Budget, CheckContext, Conn, ConnResource, Dial, DialContext, DialError, Fitness, GetError,
};
use rcgen::{SerialNumber, date_time_ymd};
use support::{assert_at_rest, settle, sockets_to, until_readable};
use tls::{Authority, BOTH, Echo, Hand, VERSIONS, nginx, reset, server};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

type Resource = ConnResource<TlsStream<TcpStream>>;

/// Dials however often dials have failed before.
fn resource(address: impl Into<Address>, dialer: Tls<Tcp>, budget: &Budget) -> Resource {
    ConnResource::builder(address, dialer).budget(budget).backoff(Duration::ZERO, Duration::ZERO).build()
}

async fn exchange(conn: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<()> {
    conn.write_all(b"ping").await?;
    conn.flush().await?;
    let mut pong = [0; 4];
    conn.read_exact(&mut pong).await?;
    assert_eq!(&pong, b"ping");
    Ok(())
}

async fn refused<C: Send + 'static>(resource: &ConnResource<C>) -> DialError {
    match resource.get().await {
        Err(GetError::Dial { source, .. }) => source,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a connection"),
    }
}

#[track_caller]
fn tls_error(error: &DialError) -> &Error {
    let failure = error.get_ref().downcast_ref::<HandshakeError>().expect("a handshake failed");
    failure.tls_error().expect("in TLS")
}

/// More than two ticks of the slowest usual clock, in which the runtime does not run.
fn let_ticks_pass() {
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(21) {
        std::thread::yield_now();
    }
}

// ---- reuse

async fn a_thousand_round_trips_take_one_dial(version: &'static SupportedProtocolVersion) {
    let authority = Authority::new();
    let echo = Echo::start(server(&authority.issue(&["localhost"]), &[version])).await;
    let budget = Budget::new(4);
    let resource = resource(("localhost", echo.address.port()), authority.dialer(), &budget);
    for _ in 0..1000 {
        let mut conn = resource.get().await.unwrap();
        exchange(&mut conn).await.unwrap();
        assert_eq!(conn.get_ref().1.protocol_version(), Some(version.version));
        conn.put();
    }
    let stats = resource.stats();
    assert_eq!((stats.dials, stats.reused, stats.dirty, stats.stale), (1, 999, 0, 0), "{stats:?}");
    assert_eq!(sockets_to(echo.address), 1);
    assert_eq!(echo.seen()[0].name.as_deref(), Some("localhost"));
}

#[tokio::test]
async fn a_thousand_round_trips_over_tls_1_3_take_one_dial() {
    a_thousand_round_trips_take_one_dial(&TLS13).await;
}

#[tokio::test]
async fn a_thousand_round_trips_over_tls_1_2_take_one_dial() {
    a_thousand_round_trips_take_one_dial(&TLS12).await;
}

async fn a_thousand_requests_to_nginx_take_one_dial(
    protocols: &str,
    version: &'static SupportedProtocolVersion,
) {
    let authority = Authority::new();
    let identity = authority.issue(&["127.0.0.1"]);
    let Some(nginx) = nginx(&identity, protocols) else { return };
    let resource = resource(nginx.address, authority.dialer(), &Budget::new(4));
    for _ in 0..1000 {
        let mut conn = resource.get().await.unwrap();
        conn.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nhello") {
            assert_ne!(conn.read_buf(&mut answer).await.unwrap(), 0);
        }
        assert_eq!(conn.get_ref().1.protocol_version(), Some(version.version));
        conn.put();
    }
    let stats = resource.stats();
    assert_eq!((stats.dials, stats.reused, stats.dirty), (1, 999, 0), "{stats:?}");
}

#[tokio::test]
async fn a_thousand_requests_to_nginx_over_tls_1_3_take_one_dial() {
    a_thousand_requests_to_nginx_take_one_dial("TLSv1.3", &TLS13).await;
}

#[tokio::test]
async fn a_thousand_requests_to_nginx_over_tls_1_2_take_one_dial() {
    a_thousand_requests_to_nginx_take_one_dial("TLSv1.2", &TLS12).await;
}

#[tokio::test]
async fn boxed_ones_are_reused() {
    let authority = Authority::new();
    let echo = Echo::start(server(&authority.issue(&["localhost"]), BOTH)).await;
    let address = Address::from(("localhost", echo.address.port()));
    let over = Boxed::new(authority.dialer());
    reuse(&ConnResource::builder(&address, over).budget(&Budget::new(1)).build()).await;
    let under = Tls::new(Boxed::new(Tcp::default()), Arc::new(authority.client()));
    reuse(&ConnResource::builder(&address, under).budget(&Budget::new(1)).build()).await;
}

#[tokio::test]
async fn shared_and_nested_ones_are_reused() {
    let authority = Authority::new();
    let config = Arc::new(authority.client());
    let identity = authority.issue(&["localhost"]);
    let budget = Budget::new(8);

    let simple = Echo::start(server(&identity, BOTH)).await;
    let address = Address::from(("localhost", simple.address.port()));
    let shared = Arc::new(Tls::new(Tcp::default(), Arc::clone(&config)));
    reuse(&ConnResource::builder(&address, shared).budget(&budget).build()).await;

    // TLS over TLS: the tickets of the one above are the data of the one below.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::from(("localhost", listener.local_addr().unwrap().port()));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server(&identity, &[&TLS13])));
    tokio::spawn(async move {
        while let Ok((peer, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let peer = acceptor.accept(acceptor.accept(peer).await?).await?;
                tls::echo(peer).await;
                std::io::Result::Ok(())
            });
        }
    });
    let nested = Tls::new(Tls::new(Tcp::default(), Arc::clone(&config)), config);
    reuse(&ConnResource::builder(&address, nested).budget(&budget).build()).await;
}

/// At once, and after the clock has ticked; before anything was read, and after.
async fn reuse<C: AsyncRead + AsyncWrite + Unpin + Send + 'static>(resource: &ConnResource<C>) {
    resource.get().await.unwrap().put();
    settle().await;
    for round in 0..20 {
        if round % 4 == 0 {
            let_ticks_pass();
        }
        let mut conn = resource.get().await.unwrap();
        assert!(conn.is_reused(), "{} {round} {:?}", std::any::type_name::<C>(), resource.stats());
        exchange(&mut conn).await.unwrap();
        conn.put();
    }
    let stats = resource.stats();
    assert_eq!((stats.dials, stats.reused), (1, 20), "{stats:?}");
}

// ---- who the peer is

#[tokio::test]
async fn bad_certificates_are_refused_for_good_and_the_error_says_why() {
    let authority = Authority::new();
    let budget = Budget::new(4);
    let good = authority.issue(&["example.org"]);
    let expired = authority.issue_with(&["example.org"], |params| {
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2001, 1, 1);
    });
    let future =
        authority.issue_with(&["example.org"], |params| params.not_before = date_time_ymd(4000, 1, 1));
    let stranger = Authority::new().issue(&["example.org"]);
    let revoked =
        authority.issue_with(&["example.org"], |params| params.serial_number = Some(SerialNumber::from(7)));
    let watchful = {
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(authority.roots(), provider);
        let verifier = verifier.with_crls([authority.revoke(7)]).build().unwrap();
        config_builder().unwrap().with_webpki_verifier(verifier).with_no_client_auth()
    };

    let cases = [
        (&good, authority.client(), "another.example", "not valid for name"),
        (&good, authority.client(), "127.0.0.1", "not valid for name"),
        (&expired, authority.client(), "example.org", "expired"),
        (&future, authority.client(), "example.org", "not valid yet"),
        (&stranger, authority.client(), "example.org", "UnknownIssuer"),
        (&revoked, watchful, "example.org", "Revoked"),
    ];
    for (identity, config, name, reason) in cases {
        for version in VERSIONS {
            let echo = Echo::start(server(identity, &[version])).await;
            let dialer = Tls::new(Tcp::default(), Arc::new(config.clone())).server_name(name);
            let resource = resource(echo.address, dialer, &budget);
            let error = refused(&resource).await;
            assert!(error.is_permanent(), "{error}");
            assert!(matches!(tls_error(&error), Error::InvalidCertificate(_)), "{error}");
            let text = error.to_string();
            let parts = [reason, name, &echo.address.to_string(), "TLS handshake"];
            assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} in: {text}");
            assert_eq!(sockets_to(echo.address), 0);
            assert_at_rest(&budget, 0);
            settle().await;
            assert_eq!(echo.seen(), [], "{name}: the server heard of it");
        }
    }
}

#[tokio::test]
async fn the_name_to_prove_is_the_host_of_the_address_or_the_one_that_was_set() {
    let authority = Authority::new();
    let identity = authority.issue(&["127.0.0.1", "localhost", "example.org"]);
    let echo = Echo::start(server(&identity, BOTH)).await;
    let budget = Budget::new(8);
    let port = echo.address.port();
    for (address, name, sent) in [
        (Address::from(("localhost", port)), None, Some("localhost")),
        (echo.address.into(), None, None),
        (echo.address.into(), Some("example.org"), Some("example.org")),
        (Address::from(("localhost", port)), Some("127.0.0.1"), None),
    ] {
        let mut dialer = authority.dialer();
        if let Some(name) = name {
            dialer = dialer.server_name(name);
        }
        let before = echo.seen().len();
        exchange(&mut resource(address, dialer, &budget).get().await.unwrap()).await.unwrap();
        assert_eq!(echo.seen()[before].name.as_deref(), sent);
    }

    let v6 = Echo::start_at("[::1]:0", server(&authority.issue(&["::1"]), BOTH)).await;
    if let Some(v6) = v6 {
        exchange(&mut resource(v6.address, authority.dialer(), &budget).get().await.unwrap()).await.unwrap();
    } else {
        eprintln!("SKIPPED: no IPv6 on loopback");
    }

    let nameless = resource(echo.address, authority.dialer().server_name("no name"), &budget);
    let error = refused(&nameless).await;
    assert!(error.is_permanent() && error.to_string().contains("\"no name\""), "{error}");
}

#[tokio::test]
async fn a_client_certificate_is_given_when_asked_for() {
    let authority = Authority::new();
    let (identity, client) = (authority.issue(&["localhost"]), authority.issue(&["client"]));
    let budget = Budget::new(8);
    for version in VERSIONS {
        let echo = Echo::start(authority.server_asking(&identity, &[version])).await;
        let dialer = Tls::new(Tcp::default(), Arc::new(authority.client_showing(&client)));
        let shown = resource(("localhost", echo.address.port()), dialer, &budget);
        exchange(&mut shown.get().await.unwrap()).await.unwrap();
        assert_eq!(echo.seen()[0].certificates, 1);
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_learns_that_it_is_refused() {
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"]);
    let budget = Budget::new(8);

    let echo = Echo::start(authority.server_asking(&identity, &[&TLS12])).await;
    let bare = resource(("localhost", echo.address.port()), authority.dialer(), &budget);
    let error = refused(&bare).await;
    assert!(error.is_permanent() && matches!(tls_error(&error), Error::AlertReceived(_)), "{error}");
    assert_at_rest(&budget, 0);

    // In TLS 1.3 the dial is over by then.
    let echo = Echo::start(authority.server_asking(&identity, &[&TLS13])).await;
    let bare = resource(("localhost", echo.address.port()), authority.dialer(), &budget);
    let error = exchange(&mut bare.get().await.unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
    // A connection that nothing was read from is not given out after the peer has said no.
    bare.get().await.unwrap().put();
    settle().await;
    let_ticks_pass();
    assert!(bare.try_get().is_none());
    assert_eq!(bare.stats().broken, 2, "{:?}", bare.stats());
    assert_at_rest(&budget, 0);
}

// ---- what is agreed on

#[tokio::test]
async fn protocols_are_agreed_on() {
    let authority = Authority::new();
    let mut config = server(&authority.issue(&["localhost"]), BOTH);
    config.alpn_protocols = vec![b"two".to_vec(), b"three".to_vec()];
    let echo = Echo::start(config).await;
    let budget = Budget::new(8);
    let with = |protocols: &[&str]| {
        let mut config = authority.client();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let dialer = Tls::new(Tcp::default(), Arc::new(config));
        resource(("localhost", echo.address.port()), dialer, &budget)
    };
    let mut conn = with(&["one", "two"]).get().await.unwrap();
    exchange(&mut conn).await.unwrap();
    assert_eq!(conn.get_ref().1.alpn_protocol(), Some(&b"two"[..]));
    assert_eq!(echo.seen()[0].alpn.as_deref(), Some(&b"two"[..]));

    let error = refused(&with(&["one"])).await;
    assert!(error.is_permanent() && error.to_string().contains("NoApplicationProtocol"), "{error}");
}

#[tokio::test]
async fn sessions_are_shared_by_those_who_share_a_configuration() {
    let authority = Authority::new();
    let budget = Budget::new(8);
    for version in VERSIONS {
        let echo = Echo::start(server(&authority.issue(&["localhost"]), &[version])).await;
        let address = Address::from(("localhost", echo.address.port()));
        let dialer = authority.dialer();
        let first = resource(&address, dialer.clone(), &budget);
        let second = resource(&address, dialer, &budget);
        let stranger = resource(&address, authority.dialer(), &budget);
        for (resource, kind) in [
            (&first, HandshakeKind::Full),
            (&first, HandshakeKind::Resumed),
            (&second, HandshakeKind::Resumed),
            (&stranger, HandshakeKind::Full),
        ] {
            let before = echo.seen().len();
            let mut conn = resource.get().fresh().await.unwrap();
            exchange(&mut conn).await.unwrap();
            assert_eq!(conn.get_ref().1.handshake_kind(), Some(kind), "{version:?}");
            assert_eq!(echo.seen()[before].kind, Some(kind), "{version:?}");
            conn.put();
        }
    }
}

/// Run by the next one, in a process whose platform trusts the CA of the test.
#[tokio::test]
#[ignore = "a part of the_platform_says_whom_to_trust"]
async fn trusted_by_the_platform() {
    let Ok(address) = std::env::var("FDPOOL_TEST_TLS_PEER") else { return };
    let dialer = Tls::with_platform_verifier(Tcp::default()).unwrap();
    exchange(&mut resource(address, dialer, &Budget::new(1)).get().await.unwrap()).await.unwrap();
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn the_platform_says_whom_to_trust() {
    let authority = Authority::new();
    let echo = Echo::start(server(&authority.issue(&["127.0.0.1"]), BOTH)).await;
    let store = std::env::temp_dir().join(format!("fdpool-{}-platform.pem", std::process::id()));
    let stranger = Authority::new();
    for (trusted, succeeds) in [(&authority, true), (&stranger, false)] {
        std::fs::write(&store, trusted.pem()).unwrap();
        let ended = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "trusted_by_the_platform"])
            .env("FDPOOL_TEST_TLS_PEER", echo.address.to_string())
            .env("SSL_CERT_FILE", &store)
            .env_remove("SSL_CERT_DIR")
            .output()
            .await
            .unwrap();
        let text =
            String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.success(), succeeds, "{text}");
        assert!(text.contains("1 passed") || text.contains("UnknownIssuer"), "{text}");
    }
    std::fs::remove_file(&store).unwrap();
    assert_eq!(echo.seen().len(), 1);
}

#[test]
fn dialers_that_trust_the_platform_share_one_configuration() {
    let made = || Tls::with_platform_verifier(Tcp::default());
    match (made(), made()) {
        (Ok(one), Ok(other)) => assert!(Arc::ptr_eq(one.config(), other.config())),
        (one, other) => {
            eprintln!("SKIPPED: this system trusts nobody: {one:?}");
            assert!(one.is_err() && other.is_err());
        }
    }
}

// ---- handshakes that fail

/// What a peer does instead of a handshake, after having read as much as is said.
enum Misdeed {
    /// After having sent as many parts in a hundred of the server's first flight.
    GoesAway {
        at: usize,
        with_a_reset: bool,
    },
    Answers(&'static [u8]),
}

/// Meets one client.
fn misbehave(listener: &TcpListener, config: &Arc<ServerConfig>, misdeed: &Misdeed, after_hello: bool) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut session = ServerConnection::new(Arc::clone(config)).unwrap();
    let mut flight = Vec::new();
    if after_hello {
        while flight.is_empty() {
            session.read_tls(&mut stream).unwrap();
            session.process_new_packets().unwrap();
            while session.wants_write() {
                session.write_tls(&mut flight).unwrap();
            }
        }
    }
    match misdeed {
        Misdeed::GoesAway { at, with_a_reset } => {
            let _ = stream.write_all(&flight[..flight.len() * at / 100]);
            if *with_a_reset {
                if !after_hello {
                    // Else the reset may meet the TCP dial, before the handshake has begun.
                    stream.peek(&mut [0]).unwrap();
                }
                reset(stream);
            }
        }
        Misdeed::Answers(bytes) => {
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
}

#[tokio::test]
async fn a_handshake_that_breaks_off_says_so_and_leaves_nothing() {
    let authority = Authority::new();
    let config = Arc::new(server(&authority.issue(&["127.0.0.1"]), &[&TLS12]));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let budget = Budget::new(4);
    let resource = resource(address, authority.dialer(), &budget);
    // TLS 1.2, where the client waits for the server once more.
    let mut misdeeds = Vec::new();
    for with_a_reset in [true, false] {
        misdeeds.push((Misdeed::GoesAway { at: 0, with_a_reset }, false));
        for at in [0, 1, 25, 50, 99, 100] {
            misdeeds.push((Misdeed::GoesAway { at, with_a_reset }, true));
        }
    }
    for bytes in
        [b"HTTP/1.1 400 Bad Request\r\n\r\n".as_slice(), &[0; 64], b"\x16\x03\x03\xff\xff\x02", b"220 "]
    {
        misdeeds.push((Misdeed::Answers(bytes), false));
        misdeeds.push((Misdeed::Answers(bytes), true));
    }
    for (misdeed, after_hello) in misdeeds {
        let peer = std::thread::spawn({
            let (listener, config) = (listener.try_clone().unwrap(), Arc::clone(&config));
            move || misbehave(&listener, &config, &misdeed, after_hello)
        });
        let error = refused(&resource).await;
        let text = error.to_string();
        assert!(!error.is_permanent(), "{text}");
        assert!(text.contains("TLS handshake") && text.contains(&address.to_string()), "{text}");
        assert!(error.io_kind().is_some(), "{text}");
        assert_eq!(sockets_to(address), 0, "{text}");
        assert_at_rest(&budget, 0);
        peer.join().unwrap();
    }
}

/// A peer that accepts, waits for a ClientHello, and never answers.
struct Mute {
    address: std::net::SocketAddr,
    spoken_to: mpsc::Receiver<std::net::TcpStream>,
}

impl Mute {
    fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (told, spoken_to) = mpsc::channel();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                stream.read_exact(&mut [0; 5]).unwrap();
                if told.send(stream).is_err() {
                    return;
                }
            }
        });
        Self { address, spoken_to }
    }

    /// Polls a get that is in its handshake with this one then.
    async fn once_spoken_to(&self, get: &mut (impl Future + Unpin)) -> std::net::TcpStream {
        loop {
            assert!(support::poll(get).is_pending());
            settle().await;
            if let Ok(stream) = self.spoken_to.try_recv() {
                return stream;
            }
        }
    }
}

#[tokio::test]
async fn a_peer_that_never_answers_the_handshake_is_given_up_in_time() {
    let budget = Budget::new(1);
    let mute = Mute::listen();
    let resource = resource(mute.address, Authority::new().dialer(), &budget);
    let mut get = resource.get();
    let mut stream = mute.once_spoken_to(&mut get).await;
    tokio::time::pause();
    let error = get.await.unwrap_err();
    assert!(matches!(error, GetError::DialTimeout { .. }), "{error}");
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "timed out while shaking hands over TLS");
    stream.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(sockets_to(mute.address), 0);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn a_get_dropped_in_the_handshake_leaves_nothing() {
    let budget = Budget::new(1);
    let mute = Mute::listen();
    let resource = resource(mute.address, Authority::new().dialer(), &budget);
    let mut get = resource.get();
    let mut stream = mute.once_spoken_to(&mut get).await;
    assert_eq!(sockets_to(mute.address), 1);
    drop(get);
    assert_eq!(sockets_to(mute.address), 0);
    stream.read_to_end(&mut Vec::new()).unwrap();
    assert_at_rest(&budget, 0);
}

// ---- what comes while nobody reads

/// A connection that the test has both ends of. TLS 1.3's tickets are not sent yet.
async fn in_hand<D: Dial>(
    dialer: D,
    budget: &Budget,
    authority: &Authority,
    version: &'static SupportedProtocolVersion,
) -> (ConnResource<D::Conn>, Conn<D::Conn>, Hand) {
    let config = Arc::new(server(&authority.issue(&["127.0.0.1"]), &[version]));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let hand = Hand::accept(&listener, &config);
    let resource = ConnResource::builder(listener.local_addr().unwrap(), dialer).budget(budget).build();
    let conn = resource.get().await.unwrap();
    (resource, conn, hand.join().unwrap())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    Nothing,
    Tickets,
    Data,
    TicketsAndData,
    Farewell,
    TicketsAndFarewell,
    End,
    Reset,
}

const ALL: [Came; 8] = [
    Came::Nothing,
    Came::Tickets,
    Came::Data,
    Came::TicketsAndData,
    Came::Farewell,
    Came::TicketsAndFarewell,
    Came::End,
    Came::Reset,
];

impl Came {
    fn is_of(self, version: &SupportedProtocolVersion) -> bool {
        version.version == TLS13.version
            || !matches!(self, Came::Tickets | Came::TicketsAndData | Came::TicketsAndFarewell)
    }

    /// Returns the peer, if it is still there.
    fn happens(self, mut hand: Hand, tcp: &TcpStream) -> Option<Hand> {
        if matches!(self, Came::Tickets | Came::TicketsAndData | Came::TicketsAndFarewell) {
            hand.send();
        }
        match self {
            Came::Nothing | Came::Tickets => {}
            Came::Data | Came::TicketsAndData => hand.send_data(b"late"),
            Came::Farewell | Came::TicketsAndFarewell => hand.send_close_notify(),
            Came::End => {
                hand.stream.shutdown(std::net::Shutdown::Write).unwrap();
                until_readable(tcp);
            }
            Came::Reset => {
                hand.reset();
                return None;
            }
        }
        Some(hand)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The runtime has seen it, and no time has passed, or little.
    AtOnce,
    /// The runtime has seen it, and ticks have passed.
    Later,
    /// The runtime has not run.
    Blind,
}

/// What a check of an idle connection makes of what came.
async fn after<D: Dial>(
    dialer: D,
    tcp: impl Fn(&D::Conn) -> &TcpStream,
    authority: &Authority,
    version: &'static SupportedProtocolVersion,
    came: Came,
    then: Then,
) -> Fitness
where
    D::Conn: AsyncRead + AsyncWrite + Unpin,
{
    let budget = Budget::new(1);
    let (resource, conn, hand) = in_hand(dialer, &budget, authority, version).await;
    let hand = came.happens(hand, tcp(&conn));
    if let Some(hand) = &hand {
        hand.until_arrived(tcp(&conn));
    }
    conn.put();
    if then != Then::Blind {
        settle().await;
    }
    if then != Then::AtOnce {
        let_ticks_pass();
    }
    let conn = resource.try_get();
    let stats = resource.stats();
    let fitness = match (stats.stale, stats.dirty, stats.broken) {
        (0, 0, 0) => Fitness::Fit,
        (1, 0, 0) => Fitness::Closed,
        (0, 1, 0) => Fitness::Dirty,
        (0, 0, 1) => Fitness::Broken,
        _ => panic!("{stats:?}"),
    };
    assert_eq!(conn.is_some(), fitness == Fitness::Fit);
    match conn {
        Some(mut conn) => {
            // The session is whole.
            let mut hand = hand.expect("the peer of a fit connection");
            conn.write_all(b"ping").await.unwrap();
            conn.flush().await.unwrap();
            assert_eq!(hand.receive().unwrap(), b"ping");
            if hand.session.wants_write() {
                hand.send();
            }
            hand.send_data(b"pong");
            let mut pong = [0; 4];
            conn.read_exact(&mut pong).await.unwrap();
            assert_eq!(&pong, b"pong");
            conn.put();
            assert_at_rest(&budget, 1);
        }
        None => assert_at_rest(&budget, 0),
    }
    fitness
}

#[tokio::test]
async fn tickets_leave_an_idle_connection_fit_and_nothing_else_does() {
    let authority = Authority::new();
    for version in VERSIONS {
        for came in ALL.into_iter().filter(|came| came.is_of(version)) {
            for then in [Then::AtOnce, Then::Later, Then::Blind] {
                let fitness =
                    after(authority.dialer(), |conn| conn.get_ref().0, &authority, version, came, then).await;
                let right = match came {
                    Came::Nothing | Came::Tickets => fitness == Fitness::Fit,
                    Came::Data | Came::TicketsAndData => fitness == Fitness::Dirty,
                    Came::Farewell | Came::TicketsAndFarewell | Came::End => fitness == Fitness::Closed,
                    Came::Reset => fitness == Fitness::Broken,
                };
                assert!(right, "{version:?} {came:?} {then:?}: {fitness:?}");
            }
        }
    }
}

/// A stream that is more than a socket, and whose dialer asks the operating system, as [`Tcp`] does.
struct Opaque(TcpStream);

impl AsyncRead for Opaque {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Opaque {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[derive(Default)]
struct OpaqueDialer {
    tcp: Tcp,
    closed: Arc<AtomicUsize>,
}

impl Dial for OpaqueDialer {
    type Conn = Opaque;

    async fn dial(&self, address: &Address, cx: &DialContext) -> Result<Opaque, DialError> {
        Ok(Opaque(self.tcp.dial(address, cx).await?))
    }

    fn check(&self, conn: &mut Opaque, cx: &CheckContext) -> Fitness {
        self.tcp.check(&mut conn.0, cx)
    }

    fn is_current(&self, address: &Address, _conn: &Opaque) -> bool {
        address.as_str() != "elsewhere"
    }

    fn watch(&self, _address: &Address) -> Option<fdpool::dial::Watch> {
        Some(Box::pin(std::future::ready(())))
    }

    fn close(&self, _conn: Opaque) {
        self.closed.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn over_what_is_no_socket_nothing_unfit_is_given_out_either() {
    let authority = Authority::new();
    let config = Arc::new(authority.client());
    for came in ALL {
        for then in [Then::AtOnce, Then::Later, Then::Blind] {
            let dialer = Tls::new(OpaqueDialer::default(), Arc::clone(&config));
            let fitness = after(dialer, |conn| &conn.get_ref().0.0, &authority, &TLS13, came, then).await;
            let fit = fitness == Fitness::Fit;
            match came {
                Came::Nothing => assert!(fit, "{then:?}"),
                // Which they are is not to be known before the runtime runs.
                Came::Tickets => assert_eq!(fit, then != Then::Blind, "{then:?}"),
                _ => assert!(!fit, "{came:?} {then:?}"),
            }
        }
    }
}

struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn an_idle_connection_wakes_when_its_peer_closes_it_and_takes_tickets_in_until_then() {
    let authority = Authority::new();
    let config = Arc::new(server(&authority.issue(&["127.0.0.1"]), &[&TLS13]));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::from(listener.local_addr().unwrap());
    let dialer = authority.dialer();
    for came in [Came::Farewell, Came::Data, Came::End, Came::Reset] {
        let hand = Hand::accept(&listener, &config);
        let mut conn = dialer.dial(&address, &DialContext::detached()).await.unwrap();
        let mut hand = hand.join().unwrap();
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        let cx = &mut Context::from_waker(&waker);
        assert!(dialer.poll_idle(&mut conn, cx).is_pending());

        hand.send();
        until_readable(conn.get_ref().0);
        settle().await;
        assert_eq!(woken.0.load(Ordering::SeqCst), 1, "by the tickets");
        assert!(dialer.poll_idle(&mut conn, cx).is_pending());
        assert!(conn.get_ref().0.try_read(&mut [0]).is_err(), "the tickets were taken in");

        let expected = match came {
            Came::Data => Fitness::Dirty,
            Came::Reset => Fitness::Broken,
            _ => Fitness::Closed,
        };
        let _hand = came.happens(hand, conn.get_ref().0);
        settle().await;
        assert_eq!(woken.0.load(Ordering::SeqCst), 2, "{came:?}");
        assert_eq!(dialer.poll_idle(&mut conn, cx), Poll::Ready(expected), "{came:?}");
    }
}

// ---- how it ends

#[tokio::test]
async fn who_closes_says_so() {
    let authority = Authority::new();
    let budget = Budget::new(1);
    for version in VERSIONS {
        // Idle, in use, dropped.
        let (resource, conn, mut hand) = in_hand(authority.dialer(), &budget, &authority, version).await;
        conn.put();
        resource.schedule_close();
        assert_eq!(hand.receive().unwrap(), b"");
        let (_resource, conn, mut hand) = in_hand(authority.dialer(), &budget, &authority, version).await;
        conn.close();
        assert_eq!(hand.receive().unwrap(), b"");
        let (_resource, conn, mut hand) = in_hand(authority.dialer(), &budget, &authority, version).await;
        drop(conn);
        assert_eq!(hand.receive().unwrap(), b"");
        let (_resource, conn, mut hand) = in_hand(authority.dialer(), &budget, &authority, version).await;
        conn.shutdown().await.unwrap();
        assert_eq!(hand.receive().unwrap(), b"");
        assert_at_rest(&budget, 0);
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_holds_nobody_up() {
    let authority = Authority::new();
    let budget = Budget::new(1);
    let (_resource, mut conn, hand) = in_hand(authority.dialer(), &budget, &authority, &TLS13).await;
    let mut cx = Context::from_waker(Waker::noop());
    while Pin::new(&mut conn).poll_write(&mut cx, &[0; 65536]).is_ready() {}
    let address = hand.stream.local_addr().unwrap();
    conn.close();
    assert_eq!(sockets_to(address), 0);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn the_dialer_below_is_asked_and_closes() {
    let authority = Authority::new();
    let budget = Budget::new(1);
    let below = OpaqueDialer::default();
    let closed = Arc::clone(&below.closed);
    let dialer = Arc::new(Tls::new(below, Arc::new(authority.client())));
    let (_resource, conn, mut hand) = in_hand(Arc::clone(&dialer), &budget, &authority, &TLS13).await;
    assert!(dialer.watch(conn.address()).is_some());
    assert!(dialer.is_current(conn.address(), &conn));
    assert!(!dialer.is_current(&Address::from("elsewhere"), &conn));
    conn.close();
    assert_eq!(hand.receive().unwrap(), b"", "a close_notify before it");
    assert_eq!(closed.load(Ordering::SeqCst), 1);

    // After a handshake that failed, too.
    let mute = Mute::listen();
    let resource = ConnResource::builder(mute.address, dialer).budget(&budget).build();
    let get = tokio::spawn(async move { resource.get().await.map(drop) });
    let peer = tokio::task::spawn_blocking(move || mute.spoken_to.recv().unwrap()).await.unwrap();
    reset(peer);
    assert!(matches!(get.await.unwrap(), Err(GetError::Dial { .. })));
    assert_eq!(closed.load(Ordering::SeqCst), 2);
}
