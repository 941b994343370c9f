//! Proxies that others wrote.

use std::io::ErrorKind;

use fdpool::{Address, Budget, ConnResource, Dial};
use tokio::net::TcpStream;

use crate::servers::Server;
use crate::support::{echo_server, refusing};
use crate::{assert_echoes, connect, dial, socks};

/// Through the pool, twice, and over one connection.
async fn is_reached<D: Dial<Conn = TcpStream>>(destination: impl Into<Address>, dialer: D) {
    let budget = Budget::new(2);
    let resource = ConnResource::builder(destination, dialer).budget(&budget).build();
    for _ in 0..2 {
        let mut conn = resource.get().await.unwrap();
        assert_echoes(&mut *conn).await;
        conn.put();
    }
    assert_eq!((resource.stats().dials, resource.stats().reused), (1, 1));
}

#[tokio::test]
async fn microsocks_is_spoken_to() {
    let echo = echo_server().await;
    let Some(proxy) = Server::start("microsocks", |_, address| {
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        ["-i", &ip, "-p", &port, "-u", "scraper", "-P", "hunter2"].map(String::from).into()
    }) else {
        return;
    };
    let dialer = || socks(proxy.address).auth("scraper", "hunter2");
    is_reached(echo, dialer()).await;
    is_reached(("localhost", echo.port()), dialer()).await;

    let (_refusing, nobody) = refusing();
    let nobody = nobody.to_string();
    let error = dial(&dialer(), &nobody).await.unwrap_err();
    assert_eq!(
        (error.io_kind(), error.is_permanent()),
        (Some(ErrorKind::ConnectionRefused), false),
        "{error}"
    );
    let error = dial(&socks(proxy.address), &nobody).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("no user given"), "{error}");
    let error = dial(&socks(proxy.address).auth("scraper", "hunter3"), &nobody).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("refuses the user"), "{error}");
}

#[tokio::test]
async fn tinyproxy_is_spoken_to() {
    let echo = echo_server().await;
    let Some(proxy) = Server::start("tinyproxy", |home, address| {
        let (ip, port) = (address.ip(), address.port());
        let text = format!("Port {port}\nListen {ip}\nAllow {ip}\nBasicAuth scraper hunter2\n");
        let configuration = home.join("tinyproxy.conf");
        std::fs::write(&configuration, text).unwrap();
        vec!["-d".into(), "-c".into(), configuration.display().to_string()]
    }) else {
        return;
    };
    let dialer = || connect(proxy.address).basic_auth("scraper", "hunter2");
    is_reached(echo, dialer()).await;
    is_reached(("localhost", echo.port()), dialer()).await;

    let (_refusing, nobody) = refusing();
    let nobody = nobody.to_string();
    let error = dial(&dialer(), &nobody).await.unwrap_err();
    assert!(!error.is_permanent() && error.to_string().contains("status 500"), "{error}");
    for dialer in [connect(proxy.address), connect(proxy.address).basic_auth("scraper", "hunter3")] {
        let error = dial(&dialer, &nobody).await.unwrap_err();
        assert!(error.is_permanent() && error.to_string().contains("status 40"), "{error}");
    }
}
