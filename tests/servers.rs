//! Real servers: redis and nginx, started by the tests on loopback, restarted under load. Where one is not
//! installed, its tests say so and count as passed, unless `FDPOOL_REQUIRE_SERVERS` is set.

#![allow(clippy::disallowed_methods, reason = "how long a real server has been gone is real time")]

#[path = "support/servers.rs"]
mod servers;
#[allow(dead_code, unreachable_pub, reason = "every test binary uses a part of it")]
#[path = "support/sweep.rs"]
mod sweep;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use fdpool::dial::Tcp;
use fdpool::{Budget, Conn, ConnResource};
use servers::{Server, Site, signal};
use sweep::{Ended, command, number};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[derive(Clone, Copy, Debug)]
enum Kind {
    Redis,
    Nginx,
}

impl Kind {
    fn protocol(self) -> &'static str {
        match self {
            Kind::Redis => "redis",
            Kind::Nginx => "http",
        }
    }

    fn start(self) -> Option<Server> {
        match self {
            Kind::Redis => Server::redis(),
            Kind::Nginx => Server::nginx(&Site::default()),
        }
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
    /// How many requests a server has answered, by its own account.
    fn answered(self, server: &Server) -> u64 {
        use std::io::{Read, Write};
        let Ok(mut stream) = TcpStream::connect(server.address) else { return 0 };
        let mut text = String::new();
        match self {
            Kind::Redis => stream.write_all(b"INFO stats\r\nQUIT\r\n").unwrap(),
            Kind::Nginx => {
                stream.write_all(b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap()
            }
        }
        stream.read_to_string(&mut text).unwrap();
        let number = match self {
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

fn sweep_through(kind: Kind, restart: bool) {
    let Some(mut server) = kind.start() else { return };
    let targets = server.home().join("targets");
    std::fs::write(&targets, server.address.to_string()).unwrap();
    let begin = |calls: u64| {
        let calls = calls.to_string();
        let sweep =
            ["--targets", targets.to_str().unwrap(), "--protocol", kind.protocol(), "--rounds", &calls];
        let how = ["--concurrency", "16", "--patience", "20000", "--json"];
        command(&[&sweep[..], &how].concat()).spawn().unwrap()
    };
    let mut calls = 10_000;
    let mut before = kind.answered(&server);
    let mut sweep = begin(calls);
    if restart {
        loop {
            while kind.answered(&server) < before + 2000 {
                std::thread::yield_now();
            }
            // The sweep stands still while its server goes, and meets nobody when it goes on.
            signal("-STOP", sweep.id());
            if kind.answered(&server) < before + calls {
                break; // half-way
            }
            // It may have ended while this thread was away: then a longer one.
            signal("-CONT", sweep.id());
            assert_eq!(Ended::of(sweep).code, Some(0));
            calls *= 4;
            assert!(calls < 1_000_000, "never half-way");
            before = kind.answered(&server);
            sweep = begin(calls);
        }
        server.stop();
        signal("-CONT", sweep.id());
        server.start_again();
    }
    let ended = Ended::of(sweep);
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.stdout, ended.stderr);
    let summary = ended.summary();
    let of = |field| number(&summary, field);
    assert_eq!((of("calls"), of("ok"), of("failed"), of("emfile")), (calls, calls, 0, 0), "{summary}");
    assert!(of("reused") > calls / 10 * 9, "{summary}");
    if restart {
        assert!(of("stale") + of("stale_failures") + of("dial_failures") > 0, "it was felt: {summary}");
    }
}

#[test]
fn redis_serves_ten_thousand_calls() {
    sweep_through(Kind::Redis, false);
}

#[test]
fn nginx_serves_ten_thousand_calls() {
    sweep_through(Kind::Nginx, false);
}

#[test]
fn redis_restarted_half_way_fails_no_call() {
    sweep_through(Kind::Redis, true);
}

#[test]
fn nginx_restarted_half_way_fails_no_call() {
    sweep_through(Kind::Nginx, true);
}

/// Idle connections that the server closed more than two ticks of the clock earlier are never given out.
async fn none_of_before_a_restart_is_given_out(kind: Kind) {
    const IDLE: usize = 50;
    let Some(mut server) = kind.start() else { return };
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
