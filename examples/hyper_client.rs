//! HTTP over pooled connections: what is pooled is hyper's `SendRequest`, a handle; the socket belongs to a
//! task of hyper's connection, and its slot with it, so that the descriptor is counted for as long as it is
//! open. Run it with `cargo run --example hyper_client`.

use std::error::Error;
use std::io;

use fdpool::dial::CheckContext;
use fdpool::{Address, Budget, ConnResource, Dial, DialContext, DialError, Fitness};
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

type Client = SendRequest<Empty<Bytes>>;

#[derive(Debug)]
struct Http;

impl Dial for Http {
    type Conn = Client;

    async fn dial(&self, address: &Address, cx: &DialContext) -> Result<Client, DialError> {
        let stream = TcpStream::connect(address.as_str()).await?;
        let socket = TokioIo::new(cx.hold(stream));
        let (client, connection) = http1::handshake(socket).await.map_err(DialError::new)?;
        tokio::spawn(connection); // ends when the client is dropped, or the server closes
        Ok(client)
    }

    fn check(&self, client: &mut Client, _cx: &CheckContext) -> Fitness {
        if client.is_closed() {
            Fitness::Closed
        } else if client.is_ready() {
            Fitness::Fit
        } else {
            Fitness::Busy
        }
    }
}

async fn fetch(site: &ConnResource<Client>, path: &str) -> Result<String, Box<dyn Error>> {
    let mut client = site.get().await?;
    let request = Request::get(path).header(HOST, site.address().as_str()).body(Empty::new())?;
    let response = client.send_request(request).await?;
    let body = response.into_body().collect().await?.to_bytes();
    client.ready().await?; // the connection's task has to see the end too, else it is `Busy` for the next
    client.put();
    Ok(String::from_utf8(body.into())?)
}

/// Answers each request with its first line.
async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let (read, mut write) = stream.split();
            let (mut lines, mut first) = (BufReader::new(read).lines(), None::<String>);
            while let Some(line) = lines.next_line().await? {
                if line.is_empty() {
                    let body = first.take().unwrap_or_default();
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                    write.write_all((head + &body).as_bytes()).await?;
                } else {
                    first.get_or_insert(line);
                }
            }
            io::Result::Ok(())
        });
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let budget = Budget::new(4);
    let site = ConnResource::builder(listener.local_addr()?, Http).budget(&budget).build();
    tokio::spawn(serve(listener));

    for path in ["/a", "/b", "/c", "/d", "/e"] {
        let body = fetch(&site, path).await?;
        assert_eq!(body, format!("GET {path} HTTP/1.1"));
        println!("{body}");
    }
    let stats = budget.stats();
    println!("five requests: {} dial, {} reused, {} idle", stats.dials, stats.reused, stats.idle);
    assert_eq!((stats.dials, stats.reused, stats.idle), (1, 4, 1));

    site.get().await?.close();
    println!("closed by us: {} closing", budget.stats().closing);
    assert_eq!(budget.stats().closing, 1, "the task has the socket still");
    while budget.stats().closing > 0 {
        tokio::task::yield_now().await;
    }
    println!("closed by the task: {} closing", budget.stats().closing);
    assert_eq!(budget.try_acquire().map(|slot| slot.weight()), Some(1));
    Ok(())
}
