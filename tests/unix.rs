//! Unix sockets, and what idle sockets of either kind say of themselves.
#![cfg(unix)]

mod support;

use std::future::poll_fn;
use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use fdpool::dial::{Tcp, Unix};
use fdpool::{Address, Budget, ConnResource, Dial, DialContext, DialError, Fitness, GetError};
use support::{assert_at_rest, poll, settle};

/// A path in a directory that goes with it.
struct Home(PathBuf);

impl Home {
    fn new(test: &str) -> Self {
        let home = std::env::temp_dir().join(format!("fdpool-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&home).unwrap();
        Self(home)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn resource(address: impl Into<Address>, budget: &Budget) -> ConnResource<tokio::net::UnixStream> {
    // Dials however often dials have failed before.
    ConnResource::builder(address, Unix).budget(budget).backoff(Duration::ZERO, Duration::ZERO).build()
}

async fn dial_error(address: impl Into<Address>) -> DialError {
    Unix.dial(&address.into(), &DialContext::detached()).await.expect_err("there is nothing")
}

/// One exchange, over a connection that is then put.
async fn exchange(resource: &ConnResource<tokio::net::UnixStream>, listener: &UnixListener) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut conn = resource.get().await.unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    conn.write_all(b"ping").await.unwrap();
    let mut ping = [0; 4];
    peer.read_exact(&mut ping).unwrap();
    peer.write_all(&ping).unwrap();
    conn.read_exact(&mut ping).await.unwrap();
    assert_eq!(&ping, b"ping");
    conn.put();
    assert!(resource.get().await.unwrap().is_reused());
}

#[tokio::test]
async fn a_path_is_dialled_and_its_connection_reused() {
    let (home, budget) = (Home::new("path"), Budget::new(2));
    let listener = UnixListener::bind(home.socket()).unwrap();
    exchange(&resource(home.socket().as_path(), &budget), &listener).await;
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn an_abstract_name_is_dialled() {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("fdpool-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    exchange(&resource(format!("@{name}"), &Budget::new(2)), &listener).await;
    assert!(!Path::new(&format!("@{name}")).exists());
}

#[tokio::test]
async fn a_socket_that_nobody_listens_to_may_come_back_and_the_error_names_it() {
    let home = Home::new("nobody");
    let path = home.socket();
    let missing = dial_error(path.as_path()).await;
    assert_eq!(missing.io_kind(), Some(ErrorKind::NotFound));
    // Bound, and not listening.
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    let refused = dial_error(path.as_path()).await;
    assert_eq!(refused.io_kind(), Some(ErrorKind::ConnectionRefused));
    for error in [missing, refused] {
        assert!(!error.is_permanent() && error.to_string().contains(path.to_str().unwrap()), "{error}");
    }

    std::fs::remove_file(&path).unwrap();
    let (budget, _listener) = (Budget::new(1), UnixListener::bind(&path).unwrap());
    resource(path.as_path(), &budget).get().await.unwrap().put();
}

#[tokio::test]
async fn a_path_that_no_socket_can_have_is_refused_for_good() {
    let long = format!("/{}", "x".repeat(300));
    let cases =
        [("", "empty"), ("@", "empty"), ("/tmp/a\0b", "NUL"), ("\0name", "NUL"), (&long, "301 bytes")];
    for (path, why) in cases {
        let error = dial_error(path).await;
        assert!(error.is_permanent() && error.to_string().contains(why), "{error}");
    }
}

/// What the process's descriptors of sockets are called.
fn sockets() -> Vec<PathBuf> {
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("Linux");
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).collect()
}

fn is_open(socket: &Path) -> bool {
    sockets().iter().any(|open| open == socket)
}

/// A listener whose backlog is full, and those who fill it.
#[cfg(target_os = "linux")]
fn full(path: &Path) -> (UnixListener, Vec<socket2::Socket>) {
    let socket = |_| socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    let (listener, address) = (socket(()), socket2::SockAddr::unix(path).unwrap());
    listener.bind(&address).unwrap();
    listener.listen(1).unwrap();
    let mut filling = Vec::new();
    loop {
        let one = socket(());
        one.set_nonblocking(true).unwrap();
        match one.connect(&address) {
            Ok(()) => filling.push(one),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    (listener.into(), filling)
}

#[tokio::test(start_paused = true)]
#[cfg(target_os = "linux")]
async fn a_dial_waits_for_room_in_the_backlog() {
    let (home, budget) = (Home::new("room"), Budget::new(2));
    let (listener, filling) = full(&home.socket());
    let resource = resource(home.socket().as_path(), &budget);
    let mut get = resource.get().dial_timeout(Duration::from_secs(3600));
    for _ in 0..20 {
        assert!(poll(&mut get).is_pending());
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!(budget.stats().dialing, 1);
    drop(listener.accept().unwrap());
    get.await.unwrap().put();
    assert!(resource.get().await.unwrap().is_reused());
    drop(filling);
}

#[tokio::test(start_paused = true)]
#[cfg(target_os = "linux")]
async fn a_dial_that_waits_for_room_can_be_given_up_and_leaves_nothing() {
    let (home, budget) = (Home::new("given-up"), Budget::new(2));
    let (_listener, _filling) = full(&home.socket());
    let resource = resource(home.socket().as_path(), &budget);
    let before = sockets().len();
    for _ in 0..200 {
        let error = resource.get().dial_timeout(Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, GetError::DialTimeout { .. }), "{error}");
        let mut get = resource.get();
        assert!(poll(&mut get).is_pending());
        drop(get);
        assert_at_rest(&budget, 0);
    }
    // The tests beside this one have some too, but not so many.
    assert!(sockets().len() < before + 200);
}

#[tokio::test]
async fn close_and_drop_close_the_descriptor_before_they_return() {
    let (home, budget) = (Home::new("close"), Budget::new(2));
    let _listener = UnixListener::bind(home.socket()).unwrap();
    let resource = resource(home.socket().as_path(), &budget);
    let (closed, dropped) = (resource.get().await.unwrap(), resource.get().await.unwrap());
    let name = |conn: &tokio::net::UnixStream| {
        std::fs::read_link(format!("/proc/self/fd/{}", conn.as_raw_fd())).expect("Linux")
    };
    let names = (name(&closed), name(&dropped));
    assert_eq!((is_open(&names.0), is_open(&names.1)), (true, true));
    closed.close();
    assert_eq!((is_open(&names.0), is_open(&names.1)), (false, true));
    drop(dropped);
    assert_eq!((is_open(&names.0), is_open(&names.1)), (false, false));
    assert_at_rest(&budget, 0);
}

#[tokio::test(start_paused = true)]
async fn one_that_its_peer_closed_or_wrote_to_is_not_given_out() {
    let (home, budget) = (Home::new("stale"), Budget::new(2));
    let listener = UnixListener::bind(home.socket()).unwrap();
    let resource = resource(home.socket().as_path(), &budget);

    // Idle for long, when the runtime does not look: the operating system is asked.
    let conn = resource.get().await.unwrap();
    let (peer, _) = listener.accept().unwrap();
    conn.put();
    tokio::time::advance(Duration::from_secs(1)).await;
    drop(peer);
    assert!(resource.try_get().is_none());

    let conn = resource.get().await.unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    conn.put();
    tokio::time::advance(Duration::from_secs(1)).await;
    peer.write_all(b"unasked").unwrap();
    assert!(resource.try_get().is_none());

    // Put just now: what the runtime knows will do.
    let conn = resource.get().await.unwrap();
    drop(listener.accept().unwrap());
    conn.readable().await.unwrap();
    conn.put();
    assert!(resource.try_get().is_none());
    let stats = budget.stats();
    assert_eq!((stats.stale, stats.dirty, stats.broken), (2, 1, 0));
}

// ---- poll_idle, of both kinds

/// The peer's end, and what a test does to the near one behind its runtime's back.
trait Near: Send + 'static {
    type Peer: Read + Write + Send;
    fn readable(&self) -> impl Future<Output = std::io::Result<()>> + Send;
    fn swallow(&self) -> usize;
    fn try_take(&self) -> std::io::Result<u8>;
}

macro_rules! near {
    ($near:ty, $peer:ty) => {
        impl Near for $near {
            type Peer = $peer;

            fn readable(&self) -> impl Future<Output = std::io::Result<()>> + Send {
                <$near>::readable(self)
            }

            fn swallow(&self) -> usize {
                socket2::SockRef::from(self)
                    .recv(&mut [MaybeUninit::uninit(); 16])
                    .expect("something is there")
            }

            fn try_take(&self) -> std::io::Result<u8> {
                let mut byte = [0];
                self.try_read(&mut byte).map(|_| byte[0])
            }
        }
    };
}
near!(tokio::net::UnixStream, UnixStream);
near!(tokio::net::TcpStream, std::net::TcpStream);

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

async fn poll_idle_tells<D>(dialer: D, address: Address, accept: impl Fn() -> <D::Conn as Near>::Peer)
where
    D: Dial + Clone,
    D::Conn: Near,
{
    let dial = || async { (dialer.dial(&address, &DialContext::detached()).await.unwrap(), accept()) };
    let poll_now = |conn: &mut D::Conn| dialer.poll_idle(conn, &mut Context::from_waker(Waker::noop()));
    let watch = |mut conn: D::Conn| {
        let dialer = dialer.clone();
        tokio::spawn(async move { (poll_fn(|cx| dialer.poll_idle(&mut conn, cx)).await, conn) })
    };

    let (conn, peer) = dial().await;
    let watched = watch(conn);
    settle().await;
    assert!(!watched.is_finished(), "an idle one is fit");
    drop(peer);
    assert_eq!(watched.await.unwrap().0, Fitness::Closed);

    let (conn, mut peer) = dial().await;
    let watched = watch(conn);
    settle().await;
    peer.write_all(b"x").unwrap();
    let (fitness, mut conn) = watched.await.unwrap();
    assert_eq!(fitness, Fitness::Dirty);
    assert_eq!(poll_now(&mut conn), Poll::Ready(Fitness::Dirty), "as often as it is asked");
    assert_eq!(conn.try_take().unwrap(), b'x', "and nothing is read");

    // The runtime believes that there is something to read, and there is not.
    let (mut conn, mut peer) = dial().await;
    peer.write_all(b"x").unwrap();
    conn.readable().await.unwrap();
    assert_eq!(conn.swallow(), 1);
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    assert!(dialer.poll_idle(&mut conn, &mut Context::from_waker(&waker)).is_pending());
    settle().await;
    assert_eq!(wakes.0.load(Ordering::SeqCst), 0, "waits, and does not spin");
    peer.write_all(b"y").unwrap();
    let woken = async {
        while wakes.0.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), woken).await.expect("woken for something");
    assert_eq!(poll_now(&mut conn), Poll::Ready(Fitness::Dirty));
}

#[tokio::test]
async fn poll_idle_tells_when_a_unix_socket_is_no_longer_fit() {
    let home = Home::new("poll-idle");
    let listener = UnixListener::bind(home.socket()).unwrap();
    poll_idle_tells(Unix, home.socket().as_path().into(), || listener.accept().unwrap().0).await;
}

#[tokio::test]
async fn poll_idle_tells_when_a_tcp_socket_is_no_longer_fit() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().into();
    poll_idle_tells(Tcp::default(), address, || listener.accept().unwrap().0).await;
}

#[tokio::test]
async fn poll_idle_tells_of_a_reset() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().into();
    let mut conn = Tcp::default().dial(&address, &DialContext::detached()).await.unwrap();
    let (peer, _) = listener.accept().unwrap();
    socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    let dialer = Tcp::default();
    assert_eq!(poll_fn(|cx| dialer.poll_idle(&mut conn, cx)).await, Fitness::Broken);
}
