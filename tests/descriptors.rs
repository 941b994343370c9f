//! Descriptors, counted by asking the operating system: after every way in which a connection ends.

mod support;

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use fdpool::dial::Tcp;
use fdpool::{Budget, CancellationToken, ConnResource, GetError};
use support::{Peer, assert_at_rest, poll, ready, refusing, settle, sockets_to, sockets_to_any};

#[tokio::test]
async fn close_and_drop_close_the_descriptor_before_they_return() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    let (closed, dropped) = (resource.get().await.unwrap(), resource.get().await.unwrap());
    assert_eq!(sockets_to(peer.address), 2);
    closed.close();
    assert_eq!(sockets_to(peer.address), 1);
    drop(dropped);
    assert_eq!(sockets_to(peer.address), 0);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn close_in_a_loop_leaves_nothing_open() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    for _ in 0..500 {
        resource.get().await.unwrap().close();
        drop(peer.accept());
    }
    assert_eq!(sockets_to(peer.address), 0);
}

#[tokio::test]
async fn put_keeps_it_open_and_eviction_closes_it() {
    let (budget, kept, other) = (Budget::new(1), Peer::listen(), Peer::listen());
    let (here, there) = (kept.resource(&budget), other.resource(&budget));
    here.get().await.unwrap().put();
    assert_eq!(sockets_to(kept.address), 1);
    there.get().await.unwrap().put();
    assert_eq!((sockets_to(kept.address), sockets_to(other.address)), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn expiry_closes_it() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    let conns = [resource.get().await.unwrap(), resource.get().await.unwrap(), resource.get().await.unwrap()];
    for conn in conns {
        conn.put();
    }
    tokio::time::advance(Duration::from_secs(91)).await;
    assert!(resource.try_get().is_none());
    assert_eq!((sockets_to(peer.address), budget.stats().expired), (0, 3));
}

#[tokio::test]
async fn schedule_close_closes_idle_ones_now_and_used_ones_at_put() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    let (idle, used) = (resource.get().await.unwrap(), resource.get().await.unwrap());
    idle.put();
    resource.schedule_close();
    assert_eq!(sockets_to(peer.address), 1);
    used.put();
    assert_eq!(sockets_to(peer.address), 0);
}

#[tokio::test]
async fn dropping_the_last_handle_closes_it() {
    let (budget, peer) = (Budget::new(10), Peer::listen());
    let resource = peer.resource(&budget);
    resource.get().await.unwrap().put();
    drop(resource);
    assert_eq!(sockets_to(peer.address), 0);
}

#[tokio::test]
async fn a_failed_dial_leaves_nothing_open() {
    let (budget, (_refusing, address)) = (Budget::new(2), refusing());
    let resource = ConnResource::builder(address, Tcp::default())
        .budget(&budget)
        .backoff(Duration::ZERO, Duration::ZERO)
        .build();
    for _ in 0..10 {
        let error = resource.get().await.unwrap_err();
        assert!(matches!(error, GetError::Dial { .. }), "{error}");
    }
    assert_eq!((sockets_to(address), budget.stats().dial_failures), (0, 10));
    assert_at_rest(&budget, 0);
}

/// A listener whose backlog is full: connecting to it takes for ever.
fn unanswering() -> (TcpListener, Vec<std::net::TcpStream>, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let mut filling = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        filling.push(stream);
    }
    (listener, filling, address)
}

#[tokio::test]
async fn cancel_ends_a_dial_and_its_descriptor() {
    let (_listener, filling, address) = unanswering();
    let before = sockets_to(address);
    assert!(before >= filling.len());
    let budget = Budget::new(2);
    let resource = ConnResource::builder(address, Tcp::default()).budget(&budget).build();
    let token = CancellationToken::new();
    let mut get = resource.get().cancel(&token);
    assert!(poll(&mut get).is_pending());
    settle().await;
    assert!(poll(&mut get).is_pending());
    assert_eq!((sockets_to(address), budget.stats().dialing), (before + 1, 1));
    token.cancel();
    let error = ready(&mut get).unwrap_err();
    assert!(matches!(error, GetError::Cancelled { .. }), "{error}");
    assert_eq!(sockets_to(address), before);
    assert_at_rest(&budget, 0);

    let mut get = resource.get();
    assert!(poll(&mut get).is_pending());
    drop(get);
    assert_eq!(sockets_to(address), before, "and so does dropping it");

    tokio::time::pause();
    let error = resource.get().dial_timeout(Duration::from_millis(20)).await.unwrap_err();
    assert!(matches!(error, GetError::DialTimeout { .. }) && error.is_timeout(), "{error}");
    assert_eq!(sockets_to(address), before);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn into_held_keeps_it_counted_until_it_is_closed() {
    let (budget, peer) = (Budget::new(1), Peer::listen());
    let resource = peer.resource(&budget);
    let held = resource.get().await.unwrap().into_held();
    assert_eq!((budget.stats().held, budget.stats().in_use, sockets_to(peer.address)), (1, 0, 1));
    assert!(matches!(resource.get().immediate().await, Err(GetError::Exhausted { .. })));
    drop(held);
    assert_eq!(sockets_to(peer.address), 0);
    assert_at_rest(&budget, 0);
}

#[tokio::test]
async fn never_more_open_than_the_limit_under_pressure() {
    let budget = Budget::new(5);
    let peers: Vec<_> = (0..20).map(|_| Peer::listen()).collect();
    let addresses: Vec<_> = peers.iter().map(|peer| peer.address).collect();
    let resources: Vec<_> = peers.iter().map(|peer| peer.resource(&budget)).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for (n, resource) in resources.iter().cloned().enumerate() {
        tasks.spawn(async move {
            for round in 0..20 {
                let conn = resource.get().await.unwrap();
                tokio::task::yield_now().await;
                if (n + round) % 3 == 0 { conn.close() } else { conn.put() }
            }
        });
    }
    while !tasks.is_empty() {
        let open = sockets_to_any(&addresses);
        assert!(open <= 5, "{open} open");
        if let Ok(Some(ended)) = tokio::time::timeout(Duration::ZERO, tasks.join_next()).await {
            ended.unwrap();
        }
        tokio::task::yield_now().await;
    }
    assert_at_rest(&budget, sockets_to_any(&addresses));
}
