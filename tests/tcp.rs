//! The TCP dialer: which of several addresses it connects to, when, and with how many descriptors; socket options
//! as the kernel has them.

#[path = "support/names.rs"]
mod names;
mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use fdpool::dial::Tcp;
use fdpool::{Address, Budget, Conn, ConnResource, Dial, DialContext, DialError, GetError};
use names::{Answer, BlackHole, Script, has_ipv6, listen, listening, sockets_to_port};
use socket2::SockRef;
use support::{assert_at_rest, bound, poll, settle};
use tokio::time::Instant;

const BLACK: [&str; 3] = ["127.0.0.2", "127.0.0.3", "127.0.0.4"];

fn resource(budget: &Budget, port: u16, tcp: Tcp) -> ConnResource {
    ConnResource::builder(("peers.test", port), tcp).budget(budget).build()
}

/// Loopback addresses of one port that answer nobody, after one that does.
fn black_holes(count: usize) -> (std::net::TcpListener, Vec<BlackHole>, u16) {
    let (mut sockets, port) = bound(&[&["127.0.0.1"], &BLACK[..count]].concat());
    let listener = listening(sockets.remove(0));
    (listener, sockets.into_iter().map(BlackHole::new).collect(), port)
}

#[expect(clippy::disallowed_methods, reason = "the paused clock is what is tested")]
fn now() -> Instant {
    Instant::now()
}

#[tokio::test]
async fn an_ipv6_address_that_does_not_answer_costs_the_attempt_delay() {
    if !has_ipv6() {
        return;
    }
    let (mut sockets, port) = bound(&["127.0.0.1", "::1"]);
    let (_listener, _hole) = (listening(sockets.remove(0)), BlackHole::new(sockets.remove(0)));
    let before = sockets_to_port(port);
    tokio::time::pause();
    let budget = Budget::new(10);
    let peers = resource(&budget, port, Tcp::default().resolver(Script::ips(&["::1", "127.0.0.1"])));
    let began = now();
    let conn = peers.get().await.unwrap();
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(250) && took < Duration::from_millis(300), "{took:?}");
    assert!(conn.peer_addr().unwrap().is_ipv4());
    assert_eq!(sockets_to_port(port), before + 1, "the loser is closed");
    let stats = budget.stats();
    assert_eq!((stats.in_use, stats.held, stats.dialing), (1, 0, 0), "and its slot is back");
    conn.close();
    assert_eq!(sockets_to_port(port), before);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn an_answer_within_the_delay_begins_no_other_attempt() {
    let (_listeners, port) = listen(&["127.0.0.1", "127.0.0.2"]);
    let budget = Budget::new(10);
    let peers = resource(&budget, port, Tcp::default().resolver(Script::ips(&["127.0.0.2", "127.0.0.1"])));
    let conn = peers.get().await.unwrap();
    assert_eq!(conn.peer_addr().unwrap().ip(), IpAddr::from([127, 0, 0, 2]));
    assert_eq!(sockets_to_port(port), 1);
}

#[tokio::test]
async fn without_a_second_slot_addresses_follow_one_another_within_the_dial_timeout() {
    for (black, expected) in [(1, 2000), (2, 4000), (3, 5000)] {
        let (_listener, _holes, port) = black_holes(black);
        let before = sockets_to_port(port);
        tokio::time::pause();
        let budget = Budget::new(1);
        let script = Script::ips(&[&BLACK[..black], &["127.0.0.1"]].concat());
        let peers = resource(&budget, port, Tcp::default().resolver(script));
        let began = now();
        let mut get = peers.get();
        assert!(poll(&mut get).is_pending());
        settle().await;
        assert!(poll(&mut get).is_pending());
        assert_eq!(sockets_to_port(port), before + 1, "one descriptor for one slot");
        let conn = get.await.unwrap();
        let took = began.elapsed().as_millis();
        assert!((expected..expected + 20).contains(&took), "{took} ms");
        assert_eq!(sockets_to_port(port), before + 1);
        conn.close();
        assert_at_rest(&budget, 0);
        tokio::time::resume();
    }
}

#[tokio::test]
async fn a_slot_that_comes_free_meanwhile_is_raced_with() {
    let (_listener, _holes, port) = black_holes(1);
    tokio::time::pause();
    let budget = Budget::new(2);
    let other = budget.try_acquire().unwrap();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(600)).await;
        drop(other);
    });
    let peers = resource(&budget, port, Tcp::default().resolver(Script::ips(&[BLACK[0], "127.0.0.1"])));
    let began = now();
    let conn = peers.get().await.unwrap();
    let took = began.elapsed().as_millis();
    assert!((750..770).contains(&took), "{took} ms");
    assert_eq!((budget.stats().in_use, budget.stats().held), (1, 0));
    drop(conn);
}

#[tokio::test]
async fn each_attempt_has_a_slot_and_a_dial_that_is_dropped_leaves_none() {
    let (_listener, _holes, port) = black_holes(3);
    let before = sockets_to_port(port);
    tokio::time::pause();
    let budget = Budget::new(10);
    let peers = resource(&budget, port, Tcp::default().resolver(Script::ips(&BLACK)));
    for (after, attempts) in [(0, 1), (249, 1), (251, 2), (501, 3), (5000, 3)] {
        let mut get = peers.get();
        assert!(poll(&mut get).is_pending());
        let waited = tokio::time::timeout(Duration::from_millis(after), &mut get).await;
        assert!(waited.is_err());
        assert_eq!(sockets_to_port(port), before + attempts, "after {after} ms");
        assert_eq!((budget.stats().dialing, budget.stats().held), (1, attempts - 1));
        drop(get);
        assert_eq!(sockets_to_port(port), before);
        assert_at_rest(&budget, 0);
    }
    let error = peers.get().await.unwrap_err();
    assert!(matches!(error, GetError::DialTimeout { .. }), "{error}");
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "timed out while connecting");
    assert_eq!(sockets_to_port(port), before);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn without_attempt_delay_there_is_no_race() {
    let (_listener, _holes, port) = black_holes(1);
    let before = sockets_to_port(port);
    tokio::time::pause();
    let budget = Budget::new(10);
    let tcp = Tcp::default().resolver(Script::ips(&[BLACK[0], "127.0.0.1"])).attempt_delay(None);
    let peers = resource(&budget, port, tcp);
    let mut get = peers.get();
    assert!(tokio::time::timeout(Duration::from_millis(1900), &mut get).await.is_err());
    assert_eq!((sockets_to_port(port), budget.stats().held), (before + 1, 0));
    get.await.unwrap().close();
}

#[tokio::test]
async fn an_attempt_timeout_ends_an_attempt_of_a_single_address_too() {
    let (_listener, _holes, port) = black_holes(1);
    let address = Address::from((BLACK[0], port));
    tokio::time::pause();
    let began = now();
    let tcp = Tcp::default().attempt_timeout(Duration::from_secs(1));
    let error = tcp.dial(&address, &DialContext::detached()).await.unwrap_err();
    assert_eq!(error.io_kind(), Some(ErrorKind::TimedOut));
    assert!(began.elapsed() < Duration::from_millis(1100));
}

#[tokio::test(start_paused = true)]
async fn a_refused_address_is_followed_by_the_next_at_once() {
    let (_listeners, port) = listen(&["127.0.0.1"]);
    let budget = Budget::new(1);
    let peers = resource(&budget, port, Tcp::default().resolver(Script::ips(&["127.0.0.9", "127.0.0.1"])));
    let began = now();
    let conn = peers.get().await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(conn.peer_addr().unwrap().ip(), IpAddr::from([127, 0, 0, 1]));
    assert_eq!(sockets_to_port(port), 1);
}

#[tokio::test]
async fn a_refusal_begins_the_next_while_another_still_runs() {
    let (_listener, _holes, port) = black_holes(1);
    tokio::time::pause();
    let budget = Budget::new(10);
    let script = Script::ips(&[BLACK[0], "127.0.0.9", "127.0.0.1"]);
    let peers = resource(&budget, port, Tcp::default().resolver(script));
    let began = now();
    let conn = peers.get().await.unwrap();
    let took = began.elapsed().as_millis();
    assert!((250..270).contains(&took), "{took} ms");
    assert_eq!((budget.stats().in_use, budget.stats().held), (1, 0));
    drop(conn);
}

#[tokio::test]
async fn a_failed_attempts_slot_is_back_while_others_still_run() {
    let (_listener, _holes, port) = black_holes(2);
    let before = sockets_to_port(port);
    tokio::time::pause();
    let budget = Budget::new(10);
    let script = Script::ips(&[BLACK[0], "127.0.0.9", BLACK[1], "127.0.0.8"]);
    let peers = resource(&budget, port, Tcp::default().resolver(script));
    let mut get = peers.get();
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut get).await.is_err());
    assert_eq!((sockets_to_port(port), budget.stats().dialing, budget.stats().held), (before + 2, 1, 1));
}

#[tokio::test]
async fn the_error_names_every_address_and_is_of_the_most_telling_kind() {
    let addresses: &[&str] =
        if has_ipv6() { &["::1", "127.0.0.1", "127.0.0.2"] } else { &["127.0.0.1", "127.0.0.2"] };
    let (_refusing, port) = bound(addresses);
    let budget = Budget::new(3);
    let peers = resource(&budget, port, Tcp::default().resolver(Script::ips(addresses)));
    let error = peers.get().await.unwrap_err();
    let said = error.to_string();
    for ip in addresses {
        let socket = SocketAddr::new(ip.parse().unwrap(), port);
        assert!(said.contains(&socket.to_string()), "{said}");
    }
    assert_eq!(std::io::Error::from(error).kind(), ErrorKind::ConnectionRefused);
    assert_eq!(sockets_to_port(port), 0);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn a_refusal_says_more_than_an_address_that_gave_way() {
    let (mut sockets, port) = bound(&["127.0.0.1", BLACK[0]]);
    let (_refusing, _hole) = (sockets.remove(0), BlackHole::new(sockets.remove(0)));
    tokio::time::pause();
    let budget = Budget::new(1);
    let peers = resource(&budget, port, Tcp::default().resolver(Script::ips(&[BLACK[0], "127.0.0.1"])));
    let error = peers.get().await.unwrap_err();
    let GetError::Dial { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.io_kind(), Some(ErrorKind::ConnectionRefused), "{error}");
    assert!(!source.is_permanent());
}

#[tokio::test]
async fn names_of_one_family_work() {
    let budget = Budget::new(10);
    for ip in ["127.0.0.1", "::1"] {
        if ip == "::1" && !has_ipv6() {
            continue;
        }
        let (_listeners, port) = listen(&[ip]);
        let peers = resource(&budget, port, Tcp::default().resolver(Script::ips(&[ip])));
        let conn = peers.get().await.unwrap();
        assert_eq!(conn.peer_addr().unwrap(), SocketAddr::new(ip.parse().unwrap(), port));
    }
}

#[tokio::test]
async fn a_name_that_leads_to_an_unspecified_address_leads_to_this_machine() {
    for (ip, from) in [("0.0.0.0", None), ("0.0.0.0", Some("127.0.0.2")), ("::", None)] {
        if ip == "::" && !has_ipv6() {
            continue;
        }
        let (_listeners, port) = listen(&[ip]);
        let (address, script) = (Address::from(("peers.test", port)), Script::ips(&[ip]));
        let mut tcp = Tcp::default().resolver(Arc::clone(&script));
        if let Some(from) = from {
            tcp = tcp.local_address(from.parse().unwrap());
        }
        let stream = tcp.dial(&address, &DialContext::detached()).await.unwrap();
        assert!(tcp.is_current(&address, &stream), "{stream:?}");
        script.say_ips(&["127.0.0.9", "::9"]);
        let later = poll(&mut Box::pin(tcp.dial(&address, &DialContext::detached())));
        assert!(later.is_pending() && !tcp.is_current(&address, &stream), "{stream:?}");
    }
}

/// A connection, dialled in this way, and the peer that listens.
async fn connected(tcp: Tcp) -> Result<(Conn, std::net::TcpListener), DialError> {
    let (mut listeners, port) = listen(&["127.0.0.1"]);
    let resource = ConnResource::builder(("127.0.0.1", port), tcp).budget(&Budget::new(1)).build();
    match resource.get().await {
        Ok(conn) => Ok((conn, listeners.remove(0))),
        Err(GetError::Dial { source, .. }) => Err(source),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn the_options_are_on_by_default() {
    let (conn, _listener) = connected(Tcp::default()).await.unwrap();
    let socket = SockRef::from(&*conn);
    assert!(socket.tcp_nodelay().unwrap());
    assert!(socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
    assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
    assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(85)));
    assert!(!socket.reuse_address().unwrap());
}

#[tokio::test]
async fn the_options_can_be_set() {
    let tcp = Tcp::default()
        .keepalive(Duration::from_millis(19_500))
        .keepalive_interval(Duration::from_secs(5))
        .keepalive_probes(4)
        .user_timeout(Duration::from_millis(1234))
        .reuse_address(true)
        .send_buffer_size(20_000)
        .recv_buffer_size(30_000)
        .bind_device("lo");
    let (conn, _listener) = connected(tcp).await.unwrap();
    let socket = SockRef::from(&*conn);
    assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(20));
    assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(5));
    assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4);
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_millis(1234)));
    assert!(socket.reuse_address().unwrap());
    assert_eq!((socket.send_buffer_size().unwrap(), socket.recv_buffer_size().unwrap()), (40_000, 60_000));
    assert_eq!(socket.device().unwrap().as_deref(), Some(&b"lo"[..]));
}

#[tokio::test]
async fn the_options_can_be_turned_off() {
    let (conn, _listener) =
        connected(Tcp::default().nodelay(false).keepalive(None).user_timeout(None)).await.unwrap();
    let socket = SockRef::from(&*conn);
    assert!(!socket.tcp_nodelay().unwrap());
    assert!(!socket.keepalive().unwrap());
    assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    let (conn, _listener) = connected(Tcp::default().keepalive(None)).await.unwrap();
    assert_eq!(SockRef::from(&*conn).tcp_user_timeout().unwrap(), Some(Duration::from_secs(30)));
}

#[tokio::test]
async fn settings_beyond_measure_are_taken_for_the_most_there_is() {
    let tcp = Tcp::default()
        .keepalive(Duration::MAX)
        .keepalive_interval(Duration::MAX)
        .keepalive_probes(u32::MAX)
        .attempt_timeout(Duration::MAX)
        .attempt_delay(Duration::MAX)
        .refresh(Duration::MAX)
        .stale_for(Duration::MAX);
    let (conn, _listener) = connected(tcp.clone()).await.unwrap();
    let socket = SockRef::from(&*conn);
    assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(32_767));
    assert_eq!(socket.tcp_keepalive_retries().unwrap(), 127);
    assert!(socket.tcp_user_timeout().unwrap().is_some());

    let (_listeners, port) = listen(&["127.0.0.1"]);
    let tcp = tcp.resolver(Script::ips(&["127.0.0.9", "127.0.0.1"]));
    tcp.dial(&Address::from(("peers.test", port)), &DialContext::detached()).await.unwrap();
}

#[tokio::test]
async fn connections_come_from_the_local_address() {
    let (conn, listener) = connected(Tcp::default().local_address([127, 0, 0, 2].into())).await.unwrap();
    assert_eq!(listener.accept().unwrap().1.ip(), IpAddr::from([127, 0, 0, 2]));
    drop(conn);
}

#[tokio::test]
async fn a_family_that_does_not_work_is_waited_for_once_in_ten_minutes() {
    if !has_ipv6() {
        return;
    }
    let (sockets, port) = bound(&["::1", "127.0.0.1"]);
    let [six, four] = <[_; 2]>::try_from(sockets).unwrap();
    let (_hole, _listener) = (BlackHole::new(six), listening(four));
    tokio::time::pause();
    let script = Script::ips(&["::1", "127.0.0.1"]);
    let peers = resource(&Budget::new(10), port, Tcp::default().resolver(script));
    let waits = async || {
        let began = now();
        peers.get().fresh().await.unwrap().close();
        began.elapsed().as_millis() >= 250
    };
    assert!(waits().await);
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(200)).await;
        // The clock may jump before the kernel has told of a connection.
        assert!(!(waits().await && waits().await && waits().await));
    }
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(waits().await, "the other is tried again");
}

#[tokio::test]
async fn a_dial_that_times_out_tells_which_of_its_attempts_was_refused() {
    let (_listener, _holes, port) = black_holes(1);
    tokio::time::pause();
    let script = Script::ips(&["127.0.0.9", BLACK[0]]);
    let peers = resource(&Budget::new(10), port, Tcp::default().resolver(script));
    let error = peers.get().await.unwrap_err();
    assert!(matches!(error, GetError::DialTimeout { .. }), "{error}");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("127.0.0.9") && source.contains("refused"), "{source}");
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn a_local_address_takes_no_port_from_other_peers() {
    use nix::sys::socket::{getsockopt, sockopt::IpBindAddressNoPort};

    let (conn, _) = connected(Tcp::default().local_address([127, 0, 0, 2].into())).await.unwrap();
    assert!(getsockopt(&*conn, IpBindAddressNoPort).unwrap(), "the port is chosen when the peer is known");
    assert_ne!(conn.local_addr().unwrap().port(), 0);
}

#[tokio::test]
async fn a_local_address_of_one_family_dials_that_family_only() {
    let (_listeners, port) = listen(&["127.0.0.1"]);
    let address = Address::from(("peers.test", port));
    let script = Script::ips(&["::1", "127.0.0.1"]);
    let tcp = Tcp::default().resolver(Arc::clone(&script)).local_address([127, 0, 0, 2].into());
    let stream = tcp.dial(&address, &DialContext::detached()).await.unwrap();
    assert!(stream.peer_addr().unwrap().is_ipv4());
    script.say(Answer::Ips(vec!["::1".parse().unwrap()]));
    let error = tcp.dial(&address, &DialContext::detached()).await.unwrap_err();
    assert_eq!((error.io_kind(), error.is_permanent()), (Some(ErrorKind::AddrNotAvailable), false));
    let error = tcp.dial(&Address::from("[::1]:1"), &DialContext::detached()).await.unwrap_err();
    assert_eq!((error.io_kind(), error.is_permanent()), (Some(ErrorKind::AddrNotAvailable), true));
}

#[tokio::test]
async fn an_interface_names_the_zone_of_an_ipv6_address() {
    if !has_ipv6() {
        return;
    }
    let (_listeners, port) = listen(&["::1"]);
    let dial = async |host: &str| {
        let address = Address::from((host, port));
        Tcp::default().dial(&address, &DialContext::detached()).await
    };
    let stream = dial("::1%lo").await.unwrap();
    assert_eq!(stream.peer_addr().unwrap().port(), port);
    let error = dial("fe80::1%lo").await.unwrap_err();
    assert!(!error.is_permanent() && error.io_kind().is_some(), "nobody is there: {error}");
    let error = dial("fe80::1%nosuch0").await.unwrap_err();
    assert_eq!((error.io_kind(), error.is_permanent()), (Some(ErrorKind::NotFound), false));
    assert!(error.to_string().contains("nosuch0"), "{error}");
}

#[tokio::test]
async fn a_device_that_is_not_there_fails_the_dial() {
    let error = connected(Tcp::default().bind_device("nosuchdevice0")).await.unwrap_err();
    assert!(error.io_kind().is_some(), "{error}");
}
