//! Proxies that others wrote. Where one is not installed, its test says so and counts as passed, unless
//! `FDPOOL_REQUIRE_SERVERS` is set.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use fdpool::{Address, Budget, ConnResource, Dial};
use tokio::net::TcpStream;

use crate::support::echo_server;
use crate::{assert_echoes, connect, dial, refusing, socks};

/// A proxy's process, gone with its test.
struct Real {
    child: Child,
    address: SocketAddr,
}

impl Real {
    /// Starts it with the arguments made for a port; says so if it is not installed.
    fn start(program: &str, arguments: impl Fn(u16) -> Vec<String>) -> Option<Self> {
        for _ in 0..5 {
            let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let mut command = Command::new(program);
            command
                .args(arguments(address.port()))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let required = std::env::var_os("FDPOOL_REQUIRE_SERVERS").is_some();
                    assert!(!required, "{program}: {error}, and FDPOOL_REQUIRE_SERVERS is set");
                    eprintln!("SKIPPED: {program}: {error}");
                    return None;
                }
            };
            while child.try_wait().unwrap().is_none() {
                if std::net::TcpStream::connect(address).is_ok() {
                    return Some(Self { child, address });
                }
                std::thread::yield_now();
            }
        }
        panic!("{program} does not start");
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

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
    let Some(proxy) = Real::start("microsocks", |port| {
        let port = port.to_string();
        ["-i", "127.0.0.1", "-p", &port, "-u", "scraper", "-P", "hunter2"].map(String::from).into()
    }) else {
        return;
    };
    let dialer = || socks(proxy.address).auth("scraper", "hunter2");
    is_reached(echo, dialer()).await;
    is_reached(("localhost", echo.port()), dialer()).await;

    let refusing = refusing();
    let nobody = refusing.local_addr().unwrap().as_socket().unwrap().to_string();
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
    let file = std::env::temp_dir().join(format!("fdpool-{}-tinyproxy.conf", std::process::id()));
    let Some(proxy) = Real::start("tinyproxy", |port| {
        let text = format!("Port {port}\nListen 127.0.0.1\nAllow 127.0.0.1\nBasicAuth scraper hunter2\n");
        std::fs::write(&file, text).unwrap();
        vec!["-d".into(), "-c".into(), file.to_string_lossy().into_owned()]
    }) else {
        return;
    };
    std::fs::remove_file(&file).unwrap();
    let dialer = || connect(proxy.address).basic_auth("scraper", "hunter2");
    is_reached(echo, dialer()).await;
    is_reached(("localhost", echo.port()), dialer()).await;

    let refusing = refusing();
    let nobody = refusing.local_addr().unwrap().as_socket().unwrap().to_string();
    let error = dial(&dialer(), &nobody).await.unwrap_err();
    assert!(!error.is_permanent() && error.to_string().contains("status 500"), "{error}");
    for dialer in [connect(proxy.address), connect(proxy.address).basic_auth("scraper", "hunter3")] {
        let error = dial(&dialer, &nobody).await.unwrap_err();
        assert!(error.is_permanent() && error.to_string().contains("status 40"), "{error}");
    }
}
