//! Names resolved by hickory-resolver, from a name server of the test's own.
#![cfg(feature = "hickory")]

#[path = "support/names.rs"]
mod names;
mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use fdpool::dial::Tcp;
use fdpool::dial::resolve::{Hickory, Resolve, ResolveContext};
use fdpool::{Budget, ConnResource, DialError};
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{Resolver, TokioResolver};
use names::listen;
use tokio::net::UdpSocket;

const NO_ERROR: u8 = 0;
const SERVER_FAILURE: u8 = 2;
const NO_SUCH_NAME: u8 = 3;

/// A name server that knows one address, 127.0.0.1, for all names; or answers with a code.
async fn server(code: u8) -> SocketAddr {
    server_of(move |_| code).await
}

/// The same, with a code of each name's own.
async fn server_of(code: impl Fn(&str) -> u8 + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut query = [0; 512];
        while let Ok((_, client)) = socket.recv_from(&mut query).await {
            let code = code(&asked(&query).to_lowercase());
            socket.send_to(&answer(&query, code), client).await.unwrap();
        }
    });
    address
}

/// The name in a query, written with its dot at the end.
fn asked(query: &[u8]) -> String {
    let (mut name, mut rest) = (String::new(), &query[12..]);
    while let [length @ 1..=63, after @ ..] = rest {
        let (label, others) = after.split_at(usize::from(*length));
        name += &format!("{}.", String::from_utf8_lossy(label));
        rest = others;
    }
    name
}

/// RFC 1035, section 4: the question again, and an A record for one of type A.
fn answer(query: &[u8], code: u8) -> Vec<u8> {
    let name = query[12..].iter().position(|byte| *byte == 0).unwrap() + 1;
    let question = &query[12..12 + name + 4];
    let is_a = code == NO_ERROR && question[name..name + 2] == [0, 1];
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    answer.extend(question);
    if is_a {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(Ipv4Addr::LOCALHOST.octets());
    }
    answer
}

fn hickory(server: SocketAddr) -> Hickory {
    searching(&[], server)
}

/// With a search list.
fn searching(domains: &[&str], server: SocketAddr) -> Hickory {
    let mut udp = ConnectionConfig::udp();
    udp.port = server.port();
    let server = NameServerConfig::new(server.ip(), true, vec![udp]);
    let search = domains.iter().map(|domain| domain.parse().unwrap()).collect();
    let config = ResolverConfig::from_parts(None, search, vec![server]);
    let resolver: TokioResolver =
        Resolver::builder_with_config(config, TokioRuntimeProvider::default()).build().unwrap();
    Hickory::new(resolver)
}

async fn resolve(code: u8) -> Result<Vec<IpAddr>, DialError> {
    let server = server(code).await;
    hickory(server).resolve("peers.test.", &ResolveContext::detached()).await
}

#[tokio::test]
async fn names_are_resolved_and_dialled() {
    let server = server(NO_ERROR).await;
    let (_listeners, port) = listen(&["127.0.0.1"]);
    let tcp = Tcp::default().resolver(hickory(server));
    let budget = Budget::new(1);
    let peers = ConnResource::builder(("peers.test", port), tcp).budget(&budget).build();
    let conn = peers.get().await.unwrap();
    assert_eq!(conn.peer_addr().unwrap(), SocketAddr::from(([127, 0, 0, 1], port)));
    conn.close();
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_a_permanent_error_and_a_server_that_fails_is_not() {
    assert_eq!(resolve(NO_ERROR).await.unwrap(), [IpAddr::from(Ipv4Addr::LOCALHOST)]);
    let error = resolve(NO_SUCH_NAME).await.unwrap_err();
    assert_eq!((error.is_permanent(), error.io_kind()), (true, Some(ErrorKind::NotFound)), "{error}");
    let error = resolve(SERVER_FAILURE).await.unwrap_err();
    assert!(!error.is_permanent(), "{error}");
}

#[tokio::test]
async fn a_name_does_not_exist_for_good_only_if_no_other_was_asked_for_it() {
    let knows_none = server(NO_SUCH_NAME).await;
    let failing_search = server_of(|name| match name {
        "x.search.test." => SERVER_FAILURE,
        _ => NO_SUCH_NAME,
    });
    let failing_search = failing_search.await;
    let failing = server_of(|name| match name {
        "x.y." => SERVER_FAILURE,
        _ => NO_SUCH_NAME,
    });
    let failing = failing.await;
    for (server, search, host, permanent) in [
        (knows_none, &[][..], "x.y", true),
        (knows_none, &[], "X.Y", true),
        (knows_none, &["search.test."], "x.y.", true),
        (knows_none, &["search.test."], "x.", true),
        (failing_search, &["search.test."], "x", false),
        (failing, &["search.test."], "x.y", false),
    ] {
        let answer = searching(search, server).resolve(host, &ResolveContext::detached()).await;
        let error = answer.unwrap_err();
        assert_eq!((error.is_permanent(), error.io_kind()), (permanent, Some(ErrorKind::NotFound)), "{host}");
    }
}

#[tokio::test]
async fn a_name_may_be_no_host_name_and_what_can_be_no_name_is_a_permanent_error() {
    let hickory = hickory(server(NO_ERROR).await);
    for host in ["my_service.test.", "my_service", "_http._tcp.test.", "münchen.test."] {
        let addresses = hickory.resolve(host, &ResolveContext::detached()).await.unwrap();
        assert_eq!(addresses, [IpAddr::from(Ipv4Addr::LOCALHOST)], "{host}");
    }
    for host in [format!("{}.test.", "a".repeat(64)), "ü".repeat(63), "a.".repeat(128)] {
        let error = hickory.resolve(&host, &ResolveContext::detached()).await.unwrap_err();
        assert_eq!((error.is_permanent(), error.io_kind()), (true, Some(ErrorKind::InvalidInput)), "{host}");
    }
}

#[tokio::test]
async fn the_systems_configuration_is_read() {
    let hickory = Hickory::from_system().unwrap();
    let addresses = hickory.resolve("localhost", &ResolveContext::detached()).await.unwrap();
    assert!(addresses.iter().all(IpAddr::is_loopback) && !addresses.is_empty(), "{addresses:?}");
}
