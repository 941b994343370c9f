//! Real servers: redis and nginx, started by the tests on loopback, restarted under load. Where one is not
//! installed, its tests say so and count as passed, unless `FDPOOL_REQUIRE_SERVERS` is set.

#![allow(clippy::disallowed_methods, reason = "how long a real server has been gone is real time")]

mod support;
#[allow(dead_code, unreachable_pub, reason = "every test binary uses a part of it")]
#[path = "support/sweep.rs"]
mod sweep;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fdpool::dial::Tcp;
use fdpool::{Budget, Conn, ConnResource};
use sweep::{Ended, command, number};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[derive(Clone, Copy, Debug)]
enum Kind {
    Redis,
    Nginx,
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Kind::Redis => "redis-server",
            Kind::Nginx => "nginx",
        }
    }

    fn protocol(self) -> &'static str {
        match self {
            Kind::Redis => "redis",
            Kind::Nginx => "http",
        }
    }

    fn is_installed(self) -> bool {
        let installed =
            Command::new(self.program()).arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if installed.is_ok() {
            return true;
        }
        let required = std::env::var_os("FDPOOL_REQUIRE_SERVERS").is_some();
        assert!(!required, "{} is not installed, and FDPOOL_REQUIRE_SERVERS is set", self.program());
        eprintln!("SKIPPED: {} is not installed", self.program());
        false
    }

    /// One request and its whole answer, asked of the server itself.
    async fn exchange(self, conn: &mut Conn) -> std::io::Result<()> {
        let (request, end): (&[u8], &[u8]) = match self {
            Kind::Redis => (b"PING\r\n", b"+PONG\r\n"),
            Kind::Nginx => (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n\r\nhello"),
        };
        conn.write_all(request).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(end) {
            if conn.read_buf(&mut answer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

/// A server of this test's own, gone with it.
struct Server {
    kind: Kind,
    address: SocketAddr,
    home: PathBuf,
    child: Child,
}

impl Server {
    fn start(kind: Kind, name: &str) -> Self {
        let home = std::env::temp_dir().join(format!("fdpool-{}-{kind:?}-{name}", std::process::id()));
        std::fs::create_dir_all(&home).unwrap();
        for _ in 0..5 {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let mut child = Self::spawn(kind, &home, address);
            if Self::is_up(&mut child, address) {
                return Self { kind, address, home, child };
            }
        }
        panic!("{} does not start", kind.program());
    }

    fn spawn(kind: Kind, home: &std::path::Path, address: SocketAddr) -> Child {
        let mut command = Command::new(kind.program());
        match kind {
            Kind::Redis => {
                let port = address.port().to_string();
                command.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"]);
            }
            Kind::Nginx => {
                let configuration = home.join("nginx.conf");
                let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|kind| format!("{kind}_temp_path {}/{kind};", home.display()))
                    .join("\n");
                let text = format!(
                    "daemon off; worker_processes 1; pid {home}/pid; error_log stderr error;\n\
                     events {{ worker_connections 1024; }}\n\
                     http {{ access_log off; {temporary}\n\
                       server {{ listen {address};\n\
                         location = /status {{ stub_status; }}\n\
                         location / {{ default_type text/plain; return 200 hello; }} }} }}\n",
                    home = home.display(),
                );
                std::fs::write(&configuration, text).unwrap();
                command.arg("-c").arg(configuration).arg("-p").arg(home);
            }
        }
        command.current_dir(home).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    fn is_up(child: &mut Child, address: SocketAddr) -> bool {
        while child.try_wait().unwrap().is_none() {
            if TcpStream::connect(address).is_ok() {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    fn start_again(&mut self) {
        loop {
            self.child = Self::spawn(self.kind, &self.home, self.address);
            if Self::is_up(&mut self.child, self.address) {
                return;
            }
        }
    }

    /// As an operator would, and waits until it is gone.
    fn stop(&mut self) {
        signal("-TERM", &self.child);
        self.child.wait().unwrap();
    }

    /// How many requests it has answered, by its own account.
    fn answered(&self) -> u64 {
        use std::io::{Read, Write};
        let Ok(mut stream) = TcpStream::connect(self.address) else { return 0 };
        let mut text = String::new();
        match self.kind {
            Kind::Redis => stream.write_all(b"INFO stats\r\nQUIT\r\n").unwrap(),
            Kind::Nginx => {
                stream.write_all(b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap()
            }
        }
        stream.read_to_string(&mut text).unwrap();
        let number = match self.kind {
            Kind::Redis => text.split_once("total_commands_processed:").map(|(_, rest)| rest),
            // The third of the numbers in the line after the titles.
            Kind::Nginx => {
                text.split_once("requests\n").and_then(|(_, rest)| rest.trim().splitn(3, ' ').nth(2))
            }
        };
        let digits = number.map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
        digits.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no count in {text}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

fn signal(name: &str, child: &Child) {
    let _ = Command::new("kill").args([name, &child.id().to_string()]).status();
}

fn sweep_through(kind: Kind, name: &str, restart: bool) {
    if !kind.is_installed() {
        return;
    }
    let mut server = Server::start(kind, name);
    let targets = server.home.join("targets");
    std::fs::write(&targets, server.address.to_string()).unwrap();
    let sweep = command(&[
        "--targets",
        targets.to_str().unwrap(),
        "--protocol",
        kind.protocol(),
        "--rounds",
        "10000",
        "--concurrency",
        "16",
        "--patience",
        "20000",
        "--json",
    ])
    .spawn()
    .unwrap();
    if restart {
        while server.answered() < 2000 {
            std::thread::yield_now();
        }
        // The sweep stands still while its server goes, and meets nobody when it goes on.
        signal("-STOP", &sweep);
        assert!(server.answered() < 10_000, "half-way");
        server.stop();
        signal("-CONT", &sweep);
        server.start_again();
    }
    let ended = Ended::of(sweep);
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.stdout, ended.stderr);
    let summary = ended.summary();
    let of = |field| number(&summary, field);
    assert_eq!((of("calls"), of("ok"), of("failed"), of("emfile")), (10_000, 10_000, 0, 0), "{summary}");
    assert!(of("reused") > 9_000, "{summary}");
    if restart {
        assert!(of("stale") + of("stale_failures") + of("dial_failures") > 0, "it was felt: {summary}");
    }
}

#[test]
fn redis_serves_ten_thousand_calls() {
    sweep_through(Kind::Redis, "calls", false);
}

#[test]
fn nginx_serves_ten_thousand_calls() {
    sweep_through(Kind::Nginx, "calls", false);
}

#[test]
fn redis_restarted_half_way_fails_no_call() {
    sweep_through(Kind::Redis, "restart", true);
}

#[test]
fn nginx_restarted_half_way_fails_no_call() {
    sweep_through(Kind::Nginx, "restart", true);
}

/// Idle connections that the server closed more than two ticks of the clock earlier are never given out.
async fn none_of_before_a_restart_is_given_out(kind: Kind) {
    if !kind.is_installed() {
        return;
    }
    const IDLE: usize = 50;
    let mut server = Server::start(kind, "idle");
    let budget = Budget::new(100);
    let resource = ConnResource::builder(server.address, Tcp::default()).budget(&budget).build();
    for round in 1..=3 {
        let mut conns = Vec::new();
        for _ in 0..IDLE {
            conns.push(resource.get().await.unwrap());
        }
        for mut conn in conns {
            kind.exchange(&mut conn).await.unwrap();
            conn.put();
        }
        assert_eq!(budget.stats().idle, IDLE);
        server.restart();
        // Two ticks of the slowest usual clock. The runtime does not run meanwhile.
        let restarted = Instant::now();
        while restarted.elapsed() < Duration::from_millis(21) {
            std::thread::yield_now();
        }
        for _ in 0..IDLE {
            let mut conn = resource.get().await.unwrap();
            kind.exchange(&mut conn).await.expect("no call on a connection of before the restart");
            conn.put();
        }
        assert_eq!(budget.stats().stale, (IDLE * round) as u64);
        resource.schedule_close();
    }
}

#[tokio::test]
async fn none_of_before_a_redis_restart_is_given_out() {
    none_of_before_a_restart_is_given_out(Kind::Redis).await;
}

#[tokio::test]
async fn none_of_before_an_nginx_restart_is_given_out() {
    none_of_before_a_restart_is_given_out(Kind::Nginx).await;
}
