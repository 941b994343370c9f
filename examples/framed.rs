//! Buffered readers and codecs around a pooled connection. They may have read more than the answer: what is in
//! their buffer goes when they do, so a connection is put only if that is empty, and closed otherwise.
//! Run it with `cargo run --example framed`.

use std::error::Error;
use std::io;

use fdpool::dial::Tcp;
use fdpool::{Budget, Conn, ConnResource};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_util::codec::{Framed, LinesCodec};

/// Answers each line; `tell` with a second line that nobody expects.
async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let (read, mut write) = stream.split();
            let mut lines = BufReader::new(read).lines();
            while let Some(line) = lines.next_line().await? {
                let news = if line == "tell" { "and by the way...\n" } else { "" };
                write.write_all(format!("you said {line}\n{news}").as_bytes()).await?;
            }
            io::Result::Ok(())
        });
    }
}

/// With a `BufReader` that borrows the connection.
async fn ask(resource: &ConnResource, question: &str) -> Result<String, Box<dyn Error>> {
    let mut conn = resource.get().await?;
    conn.write_all(format!("{question}\n").as_bytes()).await?;
    let mut reader = BufReader::new(&mut conn);
    let mut answer = String::new();
    reader.read_line(&mut answer).await?;
    // These bytes have left the socket: whoever came next would wait for them in vain.
    let read_ahead = !reader.buffer().is_empty();
    if read_ahead {
        conn.close();
    } else {
        conn.put();
    }
    Ok(answer.trim_end().to_owned())
}

/// With a codec that owns the connection, as one does that is kept in a struct.
async fn ask_framed(resource: &ConnResource, question: &str) -> Result<String, Box<dyn Error>> {
    let mut framed = Framed::new(resource.get().await?, LinesCodec::new());
    framed.send(question).await?;
    let answer = framed.next().await.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))??;
    finish(framed);
    Ok(answer)
}

/// Puts the connection if nothing is left in the codec's buffers.
fn finish(framed: Framed<Conn, LinesCodec>) {
    let parts = framed.into_parts();
    if parts.read_buf.is_empty() && parts.write_buf.is_empty() {
        parts.io.put();
    } else {
        parts.io.close();
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let budget = Budget::new(4);
    let resource = ConnResource::builder(listener.local_addr()?, Tcp::default()).budget(&budget).build();
    tokio::spawn(serve(listener));

    for question in ["one", "two", "three"] {
        println!("{}", ask(&resource, question).await?);
        println!("{}", ask_framed(&resource, question).await?);
    }
    let clean = resource.stats();
    println!("six exchanges: {} dial, {} reused", clean.dials, clean.reused);
    assert_eq!((clean.dials, clean.reused), (1, 5));

    // An answer with something after it: that connection is not given to the next.
    assert_eq!(ask(&resource, "tell").await?, "you said tell");
    assert_eq!(resource.stats().idle, 0, "closed");
    assert_eq!(ask_framed(&resource, "tell").await?, "you said tell");
    assert_eq!(ask_framed(&resource, "four").await?, "you said four");
    println!("after two that said too much: {} dials", resource.stats().dials);
    assert_eq!(resource.stats().dials, 3);
    Ok(())
}
