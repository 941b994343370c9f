//! Servers to measure with. The silent one shares the runtime of those who dial it; the others are a process of their
//! own, so that their ends of the connections count neither as the pool's descriptors nor as its work.

use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Builder;

use crate::peers::secure;

/// What std's 128 would cost: in a burst of dials the queue overflows, and the dial waits a second for its second SYN.
const BACKLOG: u32 = 4096;

/// A listener of this runtime that accepts, keeps what it accepted, and never says a word.
pub async fn silent() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut accepted = Vec::new();
        while let Ok((peer, _)) = listener.accept().await {
            accepted.push(peer);
        }
    });
    address
}

/// What a server does with a connection.
#[derive(Clone, Copy)]
pub enum Manner {
    /// Sends back what it is sent.
    Echo,
    /// Closes it.
    Close,
    /// Sends back what it is sent, over TLS.
    Secure,
}

impl Manner {
    fn name(self) -> &'static str {
        match self {
            Manner::Echo => "echo",
            Manner::Close => "close",
            Manner::Secure => "secure",
        }
    }

    pub fn of(name: &str) -> Option<Self> {
        [Manner::Echo, Manner::Close, Manner::Secure].into_iter().find(|manner| manner.name() == name)
    }
}

/// A server that listens on one port of all of 127.0.0.0/8. Lives as long as the pipe to its stdin: dropping this ends
/// it, and so does the end of this process.
pub struct Server {
    child: Child,
    port: u16,
}

impl Server {
    pub fn start(manner: Manner) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["serve", manner.name()])
            .env(secure::VARIABLE, secure::told())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts");
        let mut port = String::new();
        let stdout = child.stdout.take().expect("it was asked for");
        BufReader::new(stdout).read_line(&mut port).expect("a line");
        Self { child, port: port.trim().parse().expect("a port") }
    }

    /// One of its addresses; the same for the same number.
    pub fn address(&self, n: usize) -> SocketAddr {
        address_at(self.port, n)
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

pub fn address_at(port: u16, n: usize) -> SocketAddr {
    let [_, a, b, c] = (n as u32 + 1).to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, a, b, c), port))
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // An error means that there is no child to wait for any more.
        let _ = self.child.wait();
    }
}

/// The child's side.
pub fn serve(manner: Manner) -> ExitCode {
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        std::process::exit(0);
    });
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    match runtime.block_on(accept(manner)) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("the server: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn accept(manner: Manner) -> io::Result<std::convert::Infallible> {
    rlimit::increase_nofile_limit(rlimit::INFINITY)?;
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
    let listener = socket.listen(BACKLOG)?;
    let told = std::env::var(secure::VARIABLE).unwrap_or_default();
    let acceptor = matches!(manner, Manner::Secure).then(|| secure::acceptor(&told)).transpose()?;
    println!("{}", listener.local_addr()?.port());
    loop {
        match (listener.accept().await, manner) {
            (Ok((stream, _)), Manner::Echo) => {
                tokio::spawn(async move {
                    stream.set_nodelay(true)?;
                    echo(stream).await
                });
            }
            (Ok((stream, _)), Manner::Close) => drop(stream),
            (Ok((stream, _)), Manner::Secure) => {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    stream.set_nodelay(true)?;
                    let Some(acceptor) = acceptor else { return Ok(()) };
                    echo(acceptor.accept(stream).await?).await
                });
            }
            // Out of descriptors for a moment, or a peer that has gone already: neither ends the server.
            (Err(_), _) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = [0; 64];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n]).await?,
        }
    }
}
