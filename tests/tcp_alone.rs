//! The TCP dialer where each test has the process to itself: no descriptor left, and no port but one's own.

#[path = "support/descriptors.rs"]
mod descriptors;
#[path = "support/names.rs"]
mod names;
mod support;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use descriptors::{Filled, alone};
use fdpool::dial::Tcp;
use fdpool::{Address, Budget, ConnResource, Dial, DialContext};
use names::{BlackHole, Script, listen, sockets_to_port};
use rustix::io::Errno;
use support::assert_at_rest;

#[test]
fn a_racing_attempt_without_descriptor_ends_the_race_at_once() {
    alone(async {
        let (_listeners, port) = listen(&["127.0.0.1"]);
        let _hole = BlackHole::at(SocketAddr::from(([127, 0, 0, 2], port)));
        let before = sockets_to_port(port);
        tokio::time::pause();
        let tcp = Tcp::default().resolver(Script::ips(&["127.0.0.2", "127.0.0.1"]));
        let (address, cx) = (Address::from(("peers.test", port)), DialContext::detached());
        let filled = Filled::leaving(1);
        let dial = tokio::time::timeout(Duration::from_millis(300), tcp.dial(&address, &cx));
        let error = dial.await.expect("at once").unwrap_err();
        drop(filled); // counting takes descriptors
        let code = error.get_ref().downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        assert_eq!(code, Some(Errno::MFILE.raw_os_error()), "{error}");
        assert_eq!(sockets_to_port(port), before);
    });
}

#[test]
fn a_racing_attempt_without_descriptor_evicts_and_the_race_begins_again() {
    alone(async {
        let (_listeners, port) = listen(&["127.0.0.1"]);
        let _hole = BlackHole::at(SocketAddr::from(([127, 0, 0, 2], port)));
        let (idle, budget) = (support::Peer::listen(), Budget::new(1000));
        let here = idle.resource(&budget);
        here.get().await.unwrap().put();
        tokio::time::pause();
        let tcp = Tcp::default().resolver(Script::ips(&["127.0.0.2", "127.0.0.1"]));
        let there = ConnResource::builder(("peers.test", port), tcp).budget(&budget).build();
        let filled = Filled::leaving(1);
        let conn = there.get().await.unwrap();
        drop(filled);
        let stats = budget.stats();
        assert_eq!(
            (stats.emfile, stats.evicted, stats.dial_failures, stats.in_use),
            (1, 1, 0, 1),
            "{stats:?}"
        );
        assert_eq!(support::sockets_to(idle.address), 0);
        conn.close();
        assert_at_rest(&budget, 0);
    });
}

/// The kernel may choose the peer's own port for this end, if nobody listens there: then a socket connects to
/// itself. Linux takes even ports for that as long as there are any, and odd ones for those who listen.
#[test]
fn nobody_connects_to_itself() {
    alone(async {
        let even = (40_000..50_000).step_by(2).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let free = even.into_iter().find(|address| std::net::TcpListener::bind(address).is_ok());
        let address = Address::from(free.expect("a free port"));
        let cx = DialContext::detached();
        for _ in 0..100_000 {
            let error = Tcp::default().dial(&address, &cx).await.unwrap_err();
            assert_eq!(error.io_kind(), Some(io::ErrorKind::ConnectionRefused));
            let by_the_kernel = error.get_ref().downcast_ref::<io::Error>().unwrap().raw_os_error();
            if by_the_kernel.is_none() {
                return;
            }
        }
        eprintln!("the kernel never chose the peer's port");
    });
}
