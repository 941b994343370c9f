//! What the tests share: a dialer that does as it is told, servers on loopback, and descriptors counted by
//! asking the operating system.
#![allow(dead_code, unreachable_pub, reason = "every test binary uses a part of it")]

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fdpool::dial::{CheckContext, Watch};
use fdpool::{
    Address, Budget, BudgetStats, Conn, ConnResource, ConnResourceBuilder, Dial, DialContext, DialError,
    Fitness,
};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// A connection that is none: counts itself, and is as fit as the test says.
#[derive(Debug)]
pub struct Fake {
    pub number: usize,
    script: Arc<Script>,
    fitness: Arc<Mutex<Fitness>>,
}

impl Fake {
    /// Makes the connection unfit, or fit again; also after it was put.
    pub fn handle(&self) -> Arc<Mutex<Fitness>> {
        Arc::clone(&self.fitness)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.script.open.fetch_sub(1, Ordering::SeqCst);
        self.script.closed.fetch_add(1, Ordering::SeqCst);
    }
}

/// How the next dials go, and what came of them.
#[derive(Debug, Default)]
pub struct Script {
    /// Dials wait for the test to answer them with [`answer`](Self::answer); otherwise they succeed at once.
    pub manual: std::sync::atomic::AtomicBool,
    pending: Mutex<VecDeque<oneshot::Sender<Result<(), DialError>>>>,
    pub begun: AtomicUsize,
    pub open: AtomicUsize,
    pub most_open: AtomicUsize,
    pub closed: AtomicUsize,
    /// Dials that were dropped before their end.
    pub abandoned: AtomicUsize,
}

impl Script {
    pub fn manual() -> Arc<Self> {
        let script = Arc::new(Self::default());
        script.manual.store(true, Ordering::SeqCst);
        script
    }

    /// How many dials wait for an answer.
    pub fn pending(&self) -> usize {
        let mut pending = self.pending.lock().unwrap();
        pending.retain(|dial| !dial.is_closed());
        pending.len()
    }

    /// Answers the oldest dial.
    pub fn answer(&self, result: Result<(), DialError>) {
        self.pending();
        let dial = self.pending.lock().unwrap().pop_front().expect("no dial waits");
        dial.send(result).expect("the dial was dropped");
    }

    /// Answers the newest dial.
    pub fn answer_newest(&self, result: Result<(), DialError>) {
        self.pending();
        let dial = self.pending.lock().unwrap().pop_back().expect("no dial waits");
        dial.send(result).expect("the dial was dropped");
    }

    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    pub fn closed(&self) -> usize {
        self.closed.load(Ordering::SeqCst)
    }

    pub fn abandoned(&self) -> usize {
        self.abandoned.load(Ordering::SeqCst)
    }
}

/// Dials [`Fake`]s by a [`Script`].
#[derive(Clone, Debug)]
pub struct FakeDialer(pub Arc<Script>);

struct Abandoned<'a>(&'a Script, bool);

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if self.1 {
            self.0.abandoned.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Dial for FakeDialer {
    type Conn = Fake;

    async fn dial(&self, _address: &Address, _cx: &DialContext) -> Result<Fake, DialError> {
        let number = self.0.begun.fetch_add(1, Ordering::SeqCst);
        let mut abandoned = Abandoned(&self.0, true);
        if self.0.manual.load(Ordering::SeqCst) {
            let (answer, answered) = oneshot::channel();
            self.0.pending.lock().unwrap().push_back(answer);
            let result = answered.await.unwrap_or(Ok(()));
            abandoned.1 = false;
            result?;
        }
        abandoned.1 = false;
        let open = self.0.open.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most_open.fetch_max(open, Ordering::SeqCst);
        Ok(Fake { number, script: Arc::clone(&self.0), fitness: Arc::new(Mutex::new(Fitness::Fit)) })
    }

    fn check(&self, conn: &mut Fake, _cx: &CheckContext) -> Fitness {
        *conn.fitness.lock().unwrap()
    }
}

/// Dials nothing at an address that may move: how it is watched, and whether its connections lead there, is the test's to say.
pub struct Moving<W, I> {
    pub watch: W,
    pub is_current: I,
}

impl<W, I> Dial for Moving<W, I>
where
    W: Fn() -> Option<Watch> + Send + Sync + 'static,
    I: Fn() -> bool + Send + Sync + 'static,
{
    type Conn = ();

    async fn dial(&self, _: &Address, _: &DialContext) -> Result<(), DialError> {
        Ok(())
    }

    fn check(&self, (): &mut (), _: &CheckContext) -> Fitness {
        Fitness::Fit
    }

    fn watch(&self, _: &Address) -> Option<Watch> {
        (self.watch)()
    }

    fn is_current(&self, _: &Address, (): &()) -> bool {
        (self.is_current)()
    }
}

/// A resource of fakes under a budget.
pub fn fakes(address: &str, budget: &Budget, script: &Arc<Script>) -> ConnResource<Fake> {
    fakes_with(address, budget, script).build()
}

pub fn fakes_with(address: &str, budget: &Budget, script: &Arc<Script>) -> ConnResourceBuilder<Fake> {
    ConnResource::builder(address, FakeDialer(Arc::clone(script))).budget(budget)
}

/// One in use, where dials wait for an answer.
pub fn dialled(resource: &ConnResource<Fake>, script: &Script) -> Conn<Fake> {
    let mut get = resource.get();
    assert!(poll(&mut get).is_pending());
    script.answer(Ok(()));
    ready(&mut get).unwrap()
}

/// Polls once, without ever waking.
pub fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Polls once and expects the result.
pub fn ready<F: Future + Unpin>(future: &mut F) -> F::Output {
    match poll(future) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("pending"),
    }
}

/// Lets all spawned tasks of this current-thread runtime run until they wait.
pub async fn settle() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}

/// Asserts that nothing is out any more and nobody waits, and that idle ones are as many as said.
#[track_caller]
pub fn assert_at_rest(budget: &Budget, idle: usize) {
    let stats = budget.stats();
    assert_eq!(counts(&stats), (0, idle, 0, 0, 0, 0), "{stats:?}\n{}", budget.explain());
}

fn counts(stats: &BudgetStats) -> (usize, usize, usize, usize, usize, usize) {
    (stats.in_use, stats.idle, stats.dialing, stats.closing, stats.held, stats.waiting)
}

/// The same where several threads are at work: waits for it. Dials go on without their gets there, and the keeper may have
/// a connection in its hands, which it closes a moment after all others have gone.
pub async fn comes_to_rest(budget: &Budget, idle: usize) {
    let rests = async {
        while counts(&budget.stats()) != (0, idle, 0, 0, 0, 0) {
            tokio::task::yield_now().await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(60), rests).await;
    assert_at_rest(budget, idle);
}

/// Counts warnings of this thread.
pub fn warnings() -> (Arc<AtomicUsize>, tracing::subscriber::DefaultGuard) {
    #[derive(Clone, Default)]
    struct Lines(Arc<AtomicUsize>);
    impl io::Write for Lines {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(line.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(move || writer.clone())
        .finish();
    (Arc::clone(&lines.0), tracing::subscriber::set_default(subscriber))
}

/// An echo server on loopback, as a task of this runtime. Ends with it.
pub async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buf = [0; 1024];
                while let Ok(n @ 1..) = peer.read(&mut buf).await {
                    if peer.write_all(&buf[..n]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// How many sockets this process has connected to a port: its descriptors matched with the kernel's table of
/// sockets, so that tests beside this one, and the server's own ends, do not count.
pub fn sockets_to(address: SocketAddr) -> usize {
    sockets_to_any(&[address])
}

pub fn sockets_to_any(addresses: &[SocketAddr]) -> usize {
    let ports: HashSet<u16> = addresses.iter().map(SocketAddr::port).collect();
    let table = fs::read_to_string("/proc/self/net/tcp").expect("Linux");
    let inodes: HashSet<&str> = table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (_, port) = fields.nth(2)?.split_once(':')?;
            let inode = fields.nth(6)?;
            ports.contains(&u16::from_str_radix(port, 16).ok()?).then_some(inode)
        })
        .filter(|inode| *inode != "0")
        .collect();
    let descriptors = fs::read_dir("/proc/self/fd").expect("Linux");
    descriptors
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|link| {
            let link = link.to_string_lossy();
            let inode = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            inode.is_some_and(|inode| inodes.contains(inode))
        })
        .count()
}

/// Sockets bound to these addresses, all with the same port. They do not listen: connections there are refused, and
/// nobody else is given the port, as long as they are there.
pub fn bound(ips: &[&str]) -> (Vec<Socket>, u16) {
    loop {
        let mut port = 0;
        let sockets: io::Result<Vec<_>> = ips
            .iter()
            .map(|ip| {
                let address = SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port);
                let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
                socket.bind(&address.into())?;
                port = socket.local_addr()?.as_socket().expect("an address of IP").port();
                Ok(socket)
            })
            .collect();
        match sockets {
            Ok(sockets) => return (sockets, port),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => (),
            Err(error) => panic!("{error}"),
        }
    }
}

/// An address that refuses connections, as long as the socket is there.
pub fn refusing() -> (Socket, SocketAddr) {
    let (mut sockets, port) = bound(&["127.0.0.1"]);
    (sockets.remove(0), SocketAddr::from(([127, 0, 0, 1], port)))
}

/// A peer whose end of each connection is in the test's hands, outside of any runtime.
pub struct Peer {
    listener: std::net::TcpListener,
    pub address: SocketAddr,
}

impl Peer {
    pub fn listen() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let address = listener.local_addr().expect("bound");
        Self { listener, address }
    }

    pub fn listener(&self) -> &std::net::TcpListener {
        &self.listener
    }

    /// The peer's end of the oldest connection not accepted yet.
    pub fn accept(&self) -> std::net::TcpStream {
        self.listener.accept().expect("a connection").0
    }

    /// TCP connections to this peer.
    pub fn resource(&self, budget: &Budget) -> ConnResource {
        ConnResource::builder(self.address, fdpool::dial::Tcp::default()).budget(budget).build()
    }
}

/// Waits, without the runtime, until the kernel has something for this socket to read.
pub fn until_readable(stream: &tokio::net::TcpStream) {
    let socket = socket2::SockRef::from(stream);
    while socket.peek(&mut [std::mem::MaybeUninit::uninit()]).is_err() {
        std::thread::yield_now();
    }
}
