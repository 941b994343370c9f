//! The TCP dialer where each test has the process to itself: no descriptor left, no port but one's own, and
//! nobody beside it who asks whether an event is listened to.

#[path = "support/descriptors.rs"]
mod descriptors;
#[path = "support/names.rs"]
mod names;
mod support;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use descriptors::{Filled, alone};
use fdpool::dial::Tcp;
use fdpool::{Address, Budget, ConnResource, Dial, DialContext};
use names::{BlackHole, Script, listening, sockets_to_port};
use support::{assert_at_rest, bound};

/// A black hole, then an address that answers; dialled with one descriptor fewer than a race takes.
fn raced() -> (BlackHole, std::net::TcpListener, u16, Tcp) {
    let (mut sockets, port) = bound(&["127.0.0.1", "127.0.0.2"]);
    let (listener, hole) = (listening(sockets.remove(0)), BlackHole::new(sockets.remove(0)));
    (hole, listener, port, Tcp::default().resolver(Script::ips(&["127.0.0.2", "127.0.0.1"])))
}

#[test]
fn a_racing_attempt_without_descriptor_leaves_the_one_under_way() {
    alone(async {
        let (hole, _listener, port, tcp) = raced();
        let (idle, budget) = (support::Peer::listen(), Budget::new(1000));
        let here = idle.resource(&budget);
        here.get().await.unwrap().put();
        let there = ConnResource::builder(("peers.test", port), tcp).budget(&budget).build();
        tokio::time::pause();
        let filled = Filled::leaving(1);
        let mut get = there.get();
        assert!(tokio::time::timeout(Duration::from_millis(300), &mut get).await.is_err());
        let stats = budget.stats();
        assert_eq!((stats.dialing, stats.held, stats.emfile), (1, 0, 0), "{stats:?}");
        hole.open();
        // The kernel sends again after a second of its own. None of the clock's may go by meanwhile, after which the
        // other address would be tried in place of this one: while a task runs, none does.
        let conn = loop {
            match futures::poll!(&mut get) {
                Poll::Ready(conn) => break conn.unwrap(),
                Poll::Pending => tokio::task::yield_now().await,
            }
        };
        drop(filled);
        assert_eq!(conn.peer_addr().unwrap().ip(), IpAddr::from([127, 0, 0, 2]));
        let stats = budget.stats();
        assert_eq!(
            (stats.emfile, stats.evicted, stats.dial_failures, stats.in_use, stats.idle),
            (0, 0, 0, 1, 1),
            "{stats:?}"
        );
    });
}

#[test]
fn an_address_that_found_no_descriptor_is_tried_in_place_of_the_one_under_way() {
    alone(async {
        let (_hole, _listener, port, tcp) = raced();
        let before = sockets_to_port(port);
        let (address, cx) = (Address::from(("peers.test", port)), DialContext::detached());
        tokio::time::pause();
        let filled = Filled::leaving(1);
        let dial = tokio::time::timeout(Duration::from_millis(2020), tcp.dial(&address, &cx));
        let stream = dial.await.expect("after 2 seconds").unwrap();
        drop(filled); // counting takes descriptors
        assert_eq!(stream.peer_addr().unwrap().ip(), IpAddr::from([127, 0, 0, 1]));
        assert_eq!(sockets_to_port(port), before + 1);
    });
}

#[test]
fn a_race_whose_only_attempt_has_no_descriptor_evicts_and_begins_again() {
    alone(async {
        let (_hole, _listener, port, tcp) = raced();
        let (idle, budget) = (support::Peer::listen(), Budget::new(1000));
        let here = idle.resource(&budget);
        here.get().await.unwrap().put();
        let there = ConnResource::builder(("peers.test", port), tcp).budget(&budget).build();
        tokio::time::pause();
        let filled = Filled::leaving(0);
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

/// The addresses of attempts that were lost, as the events name them.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Events {
    fn on_event(&self, event: &tracing::Event<'_>, _cx: tracing_subscriber::layer::Context<'_, S>) {
        struct Visit<'a>(&'a Events, Vec<&'static str>);
        impl tracing::field::Visit for Visit<'_> {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.1.push(field.name());
                if field.name() == "attempt" {
                    self.0.0.lock().unwrap().push(format!("{value:?}"));
                }
            }
        }
        let mut visit = Visit(self, Vec::new());
        event.record(&mut visit);
        if visit.1.contains(&"attempt") {
            assert!(visit.1.contains(&"reason") && visit.1.contains(&"took"));
        }
    }
}

/// Whether anybody listens to an event is remembered from the first time; another thread, where nobody does, could be
/// the first to ask.
#[test]
fn every_lost_attempt_is_told() {
    use tracing_subscriber::layer::SubscriberExt;
    alone(async {
        let events = Events::default();
        let _default = tracing::subscriber::set_default(tracing_subscriber::registry().with(events.clone()));
        let (_hole, _listener, port, tcp) = raced();
        tokio::time::pause();
        let tcp = tcp.resolver(Script::ips(&["127.0.0.9", "127.0.0.2", "127.0.0.1"]));
        tcp.dial(&Address::from(("peers.test", port)), &DialContext::detached()).await.unwrap();
        let lost = events.0.lock().unwrap().clone();
        assert_eq!(lost, [format!("127.0.0.9:{port}"), format!("127.0.0.2:{port}")]);
    });
}

/// The kernel may choose the peer's own port for this end, if nobody listens there: then a socket connects to
/// itself. Linux takes even ports for that as long as there are any, and odd ones for those who listen.
#[test]
fn nobody_connects_to_itself() {
    alone(async {
        for ip in [[127, 0, 0, 1], [0, 0, 0, 0]] {
            connect_to_a_free_port(ip).await;
        }
    });
}

async fn connect_to_a_free_port(ip: [u8; 4]) {
    let even = (40_000..50_000).step_by(2).map(|port| SocketAddr::from((ip, port)));
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
}
