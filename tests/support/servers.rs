//! Real servers, each a process of its own on loopback with a directory of its own, gone with its test. Where one is
//! not installed, that is said and its tests count as passed, unless `FDPOOL_REQUIRE_SERVERS` is set.
#![allow(dead_code, unreachable_pub, reason = "every test binary uses a part of it")]

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// How long a server may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Server {
    pub address: SocketAddr,
    program: &'static str,
    arguments: Vec<String>,
    /// `None`: stopped.
    child: Option<Child>,
    home: Home,
    _port: Socket,
}

impl Server {
    /// Starts a program with the arguments made for its directory and address. Returns once it accepts connections;
    /// `None` if it is not installed.
    pub fn start(
        program: &'static str,
        arguments: impl FnOnce(&Path, SocketAddr) -> Vec<String>,
    ) -> Option<Self> {
        let (home, (address, port)) = (Home::new(program), reserve_port());
        let arguments = arguments(&home.0, address);
        let mut server = Self { address, program, arguments, child: None, home, _port: port };
        match server.spawn() {
            Ok(()) => Some(server),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let required = std::env::var_os("FDPOOL_REQUIRE_SERVERS").is_some();
                assert!(!required, "{program} is not installed, and FDPOOL_REQUIRE_SERVERS is set");
                eprintln!("SKIPPED: {program} is not installed");
                None
            }
            Err(error) => panic!("{program}: {error}"),
        }
    }

    /// A redis that stores nothing.
    pub fn redis() -> Option<Self> {
        Self::start("redis-server", |_, address| {
            let (ip, port) = (address.ip().to_string(), address.port().to_string());
            ["--bind", &ip, "--port", &port, "--save", "", "--appendonly", "no"].map(String::from).into()
        })
    }

    /// An nginx that answers any request with `hello`, and counts at `/status`.
    pub fn nginx(site: &Site<'_>) -> Option<Self> {
        Self::start("nginx", |home, address| {
            for (name, text) in site.files {
                fs::write(home.join(name), text).unwrap();
            }
            let configuration = home.join("nginx.conf");
            fs::write(&configuration, site.configuration(home, address)).unwrap();
            [Path::new("-c"), &configuration, Path::new("-p"), home]
                .map(|arg| arg.display().to_string())
                .into()
        })
    }

    /// A directory that is gone with the server.
    pub fn home(&self) -> &Path {
        &self.home.0
    }

    fn spawn(&mut self) -> std::io::Result<()> {
        let log = self.home().join("log");
        let said = File::create(&log).unwrap();
        let child = Command::new(self.program)
            .args(&self.arguments)
            .current_dir(self.home())
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .spawn()?;
        let child = self.child.insert(child);
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = child.try_wait()? {
                self.child = None; // its number may be another's by now
                panic!("{} ended: {status}\n{}", self.program, fs::read_to_string(log).unwrap());
            }
            thread::yield_now();
        }
        Ok(())
    }

    /// As an operator would, and waits until it is gone.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let number = child.id();
        signal("-TERM", number);
        let (gone, told) = mpsc::channel();
        let waiting = thread::spawn(move || {
            let _ = child.wait();
            let _ = gone.send(());
        });
        if told.recv_timeout(PATIENCE).is_err() {
            eprintln!("{} does not end when it is told to: killed", self.program);
            signal("-KILL", number);
        }
        let _ = waiting.join();
    }

    /// After [`stop`](Self::stop), at the same address.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs");
        self.spawn().unwrap();
    }

    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What one nginx has and another has not.
#[derive(Default)]
pub struct Site<'a> {
    /// After the address in `listen`.
    pub listen: &'a str,
    /// Directives of the server.
    pub settings: &'a str,
    /// By name and text, in its directory.
    pub files: &'a [(&'a str, String)],
}

impl Site<'_> {
    fn configuration(&self, home: &Path, address: SocketAddr) -> String {
        let Self { listen, settings, .. } = self;
        let home = home.display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {home}/{kind};"))
            .join("\n");
        format!(
            "daemon off; worker_processes 1; pid {home}/pid; error_log stderr error;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; {temporary}\n\
               server {{ listen {address} {listen}; {settings}\n\
                 location = /status {{ stub_status; }}\n\
                 location / {{ default_type text/plain; return 200 hello; }} }} }}\n"
        )
    }
}

/// A signal by its name, to a process that has not been waited for.
pub fn signal(name: &str, number: u32) {
    let sent = Command::new("kill").args([name, &number.to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()), "kill {name}");
}

/// An address, and what keeps it from everybody but a server: a socket that is bound but does not listen. A server
/// that sets `SO_REUSEADDR`, as they do, can still listen there, now and after a restart; nobody is given its port,
/// not for a connection either, while it does not.
fn reserve_port() -> (SocketAddr, Socket) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    (socket.local_addr().unwrap().as_socket().unwrap(), socket)
}

struct Home(PathBuf);

impl Home {
    fn new(program: &str) -> Self {
        static HOMES: AtomicUsize = AtomicUsize::new(0);
        let number = HOMES.fetch_add(1, Ordering::Relaxed);
        let name = format!("fdpool-{}-{program}-{number}", std::process::id());
        let home = std::env::temp_dir().join(name);
        fs::create_dir_all(&home).unwrap();
        Self(home)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
