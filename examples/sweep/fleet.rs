//! The sweep's own fleet: listeners on loopback ports that echo, in a child process of this program.
//! The child lives as long as the pipe to its stdin: however the sweep ends, no child is left behind.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use fdpool::Address;
use rlimit::Resource;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

/// What std's 128 would cost: in a burst of dials the queue overflows, and the dial waits a second for its
/// second SYN.
const BACKLOG: u32 = 4096;
/// Descriptors of the child that are neither listeners nor connections, and then some.
const SPARE: u64 = 64;

#[derive(Debug, Error)]
pub(crate) enum FleetError {
    #[error(
        "{peers} peers and the connections to them need {needed} descriptors in the fleet's process, and the \
         hard RLIMIT_NOFILE is {hard}: ask for less with --peers or --nofile, or raise it (ulimit -Hn)"
    )]
    TooLarge { peers: u64, needed: u64, hard: u64 },
    #[error("cannot start the fleet: {0}")]
    Start(#[from] io::Error),
    #[error("the fleet ended before all its peers listened ({0})")]
    Ended(ExitStatus),
}

/// The running child. Dropping it ends the child and waits for its end.
#[derive(Debug)]
pub(crate) struct Fleet {
    child: Child,
}

impl Fleet {
    /// Returns when all `peers` listen. `nofile` bounds how many connections they will have to hold.
    pub(crate) fn start(peers: NonZeroUsize, nofile: u64) -> Result<(Fleet, Vec<Address>), FleetError> {
        let (_, hard) = Resource::NOFILE.get()?;
        // Twice: the child may not yet have closed what the sweep has closed and dialed anew.
        let (listeners, connections) = (peers.get() as u64, nofile.saturating_mul(2));
        let needed = listeners.saturating_add(connections).saturating_add(SPARE);
        if needed > hard {
            return Err(FleetError::TooLarge { peers: listeners, needed, hard });
        }
        let child = Command::new(std::env::current_exe()?)
            .args(["--serve-fleet", &peers.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0) // Ctrl-C is for the sweep, which still has running calls to end.
            .spawn()?;
        let mut fleet = Fleet { child };
        let addresses = fleet.read_addresses(peers.get())?;
        if addresses.len() < peers.get() {
            Err(FleetError::Ended(fleet.child.wait()?))
        } else {
            Ok((fleet, addresses))
        }
    }

    fn read_addresses(&mut self, peers: usize) -> io::Result<Vec<Address>> {
        let stdout = self.child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let lines = BufReader::new(stdout).lines().take(peers);
        lines.map(|line| line.map(Address::from)).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // An error means that there is no child to wait for any more.
        let _ = self.child.wait();
    }
}

/// The child's side: listens, prints the addresses, echoes until stdin ends.
pub(crate) fn serve(listeners: NonZeroUsize) -> ExitCode {
    let served = end_with_stdin().and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(listen(listeners))
    });
    match served {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("sweep: the fleet of {listeners} peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn end_with_stdin() -> io::Result<()> {
    let wait = || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        std::process::exit(0);
    };
    thread::Builder::new().name("stdin".into()).spawn(wait).map(drop)
}

async fn listen(listeners: NonZeroUsize) -> io::Result<std::convert::Infallible> {
    rlimit::increase_nofile_limit(rlimit::INFINITY)?;
    // Caught and never looked at: only the end of stdin ends the fleet.
    let _interrupts = signal(SignalKind::interrupt())?;
    let mut addresses = io::BufWriter::new(io::stdout());
    for _ in 0..listeners.get() {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let listener = socket.listen(BACKLOG)?;
        writeln!(addresses, "{}", listener.local_addr()?)?;
        tokio::spawn(accept(listener));
    }
    addresses.flush()?;
    std::future::pending().await
}

async fn accept(listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(echo(stream))),
            // Out of descriptors for a moment, or a peer that has gone already: neither ends the fleet.
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// Ends when the sweep closes its side or resets the connection.
async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut requests, mut answers) = stream.split();
    tokio::io::copy(&mut requests, &mut answers).await.map(drop)
}
