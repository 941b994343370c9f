//! What the tests of the TCP dialer share: a resolver that does as it is told, peers on several loopback addresses
//! of one port, and peers that answer nobody.
#![allow(dead_code, unreachable_pub, reason = "every test binary uses a part of it")]

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fdpool::DialError;
use fdpool::dial::resolve::{LookupShare, Resolve, ResolveContext};
use socket2::{SockRef, Socket};
use tokio::sync::oneshot;

use crate::support::bound;

/// What a [`Script`] says.
#[derive(Clone, Debug)]
pub enum Answer {
    Ips(Vec<IpAddr>),
    Fails,
    NoSuchName,
    Error(i32),
    /// Nothing, ever.
    Hangs,
    /// Nothing, until the test lets it [end](Script::end_lookups), and then it fails; goes on when it is dropped.
    Blocks,
    /// Says the other at once, and goes on nonetheless, until the test lets it [end](Script::end_lookups).
    Leaves(Box<Answer>),
    /// The other, after a time.
    After(Duration, Box<Answer>),
    Panics,
}

/// A resolver that says what it is told, and counts.
#[derive(Debug)]
pub struct Script(Mutex<State>);

#[derive(Debug)]
struct State {
    answer: Answer,
    asked: Vec<String>,
    blocked: Vec<(LookupShare, oneshot::Sender<()>)>,
}

impl Script {
    pub fn new(answer: Answer) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { answer, asked: Vec::new(), blocked: Vec::new() })))
    }

    pub fn ips(ips: &[&str]) -> Arc<Self> {
        Self::new(Answer::Ips(parsed(ips)))
    }

    pub fn say(&self, answer: Answer) {
        self.0.lock().unwrap().answer = answer;
    }

    pub fn say_ips(&self, ips: &[&str]) {
        self.say(Answer::Ips(parsed(ips)));
    }

    pub fn asked(&self) -> usize {
        self.0.lock().unwrap().asked.len()
    }

    /// Lookups that block return.
    pub fn end_lookups(&self) -> usize {
        let blocked = std::mem::take(&mut self.0.lock().unwrap().blocked);
        blocked.len()
    }
}

fn parsed(ips: &[&str]) -> Vec<IpAddr> {
    ips.iter().map(|ip| ip.parse().unwrap()).collect()
}

impl Resolve for Script {
    async fn resolve(&self, host: &str, cx: &ResolveContext) -> Result<Vec<IpAddr>, DialError> {
        let (blocks, ended) = oneshot::channel();
        let mut answer = {
            let mut state = self.0.lock().unwrap();
            state.asked.push(host.to_owned());
            if matches!(state.answer, Answer::Blocks | Answer::Leaves(_)) {
                state.blocked.push((cx.share(), blocks));
            }
            state.answer.clone()
        };
        if let Answer::After(time, then) = answer {
            tokio::time::sleep(time).await;
            answer = *then;
        }
        if let Answer::Leaves(said) = answer {
            answer = *said;
        }
        match answer {
            Answer::Ips(ips) => Ok(ips),
            Answer::Fails => Err(io::Error::other("no server answers").into()),
            Answer::NoSuchName => Err(DialError::from(io::ErrorKind::NotFound).permanent()),
            Answer::Error(code) => Err(io::Error::from_raw_os_error(code).into()),
            Answer::Hangs => std::future::pending().await,
            Answer::Blocks => {
                _ = ended.await;
                Err(io::Error::other("it has ended").into())
            }
            Answer::Leaves(_) | Answer::After(..) => unreachable!("one within the other"),
            Answer::Panics => panic!("a resolver's panic"),
        }
    }
}

/// Listens on these addresses, all with the same port, and on nothing else with that port.
pub fn listen(ips: &[&str]) -> (Vec<TcpListener>, u16) {
    let (sockets, port) = bound(ips);
    (sockets.into_iter().map(listening).collect(), port)
}

pub fn listening(socket: Socket) -> TcpListener {
    socket.listen(128).unwrap();
    socket.into()
}

/// Whether this machine has IPv6 on loopback; says so if not.
pub fn has_ipv6() -> bool {
    let bound = TcpListener::bind("[::1]:0");
    bound.inspect_err(|error| eprintln!("skipped, no IPv6: {error}")).is_ok()
}

/// An address that drops whatever is sent to it: a listener whose backlog is full.
pub struct BlackHole {
    listener: TcpListener,
    _filling: Vec<TcpStream>,
}

impl BlackHole {
    /// Where a socket is [bound].
    pub fn new(socket: Socket) -> Self {
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let mut filling = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            filling.push(stream);
        }
        Self { listener: socket.into(), _filling: filling }
    }

    /// It answers from now on: the kernel sends again what it has dropped, a second after the first time.
    pub fn open(&self) {
        SockRef::from(&self.listener).listen(16).unwrap();
    }
}

/// How many sockets this process has that are connected, or connecting, to a port of whichever address.
pub fn sockets_to_port(port: u16) -> usize {
    let mut inodes = HashSet::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let Ok(table) = fs::read_to_string(table) else { continue };
        inodes.extend(table.lines().skip(1).filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (_, remote) = fields.nth(2)?.split_once(':')?;
            let inode = fields.nth(6)?;
            (u16::from_str_radix(remote, 16).ok()? == port).then(|| format!("socket:[{inode}]"))
        }));
    }
    let descriptors = fs::read_dir("/proc/self/fd").expect("Linux");
    let links = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| inodes.contains(&*link.to_string_lossy())).count()
}
