//! Tests without a network and without waiting: a dialer of in-memory streams, and tokio's clock, paused. Hours
//! pass in no time. Durations follow that clock with the feature `test-util`, which a program enables for its
//! tests: `fdpool = { version = "0.1", features = ["test-util"] }` among the `dev-dependencies`.
//! Run it with `cargo run --example fake_dialer`.

use std::error::Error;
use std::time::Duration;

use fdpool::{Address, Budget, ConnResource, Dial, DialContext, DialError, Fitness, GetError, dial};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Streams that echo. The address "silent" does not answer.
fn fake() -> impl Dial<Conn = DuplexStream> {
    let dial = |address: &Address, _cx: &DialContext| {
        let silent = address.as_str() == "silent";
        async move {
            if silent {
                std::future::pending::<()>().await;
            }
            let (near, far) = tokio::io::duplex(64);
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(far);
                tokio::io::copy(&mut read, &mut write).await
            });
            Ok::<_, DialError>(near)
        }
    };
    dial::from_fn(dial, |stream, _cx| Fitness::probe(stream))
}

async fn exchange(resource: &ConnResource<DuplexStream>) -> Result<bool, Box<dyn Error>> {
    let mut conn = resource.get().await?;
    let reused = conn.is_reused();
    conn.write_all(b"ping").await?;
    let mut pong = [0; 4];
    conn.read_exact(&mut pong).await?;
    assert_eq!(&pong, b"ping");
    conn.put();
    Ok(reused)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    tokio::time::pause();
    let budget = Budget::new(4);
    let hour = Duration::from_secs(3600);

    let echo =
        ConnResource::builder("echo", fake()).budget(&budget).idle_timeout(hour).max_lifetime(None).build();
    assert!(!exchange(&echo).await?);
    tokio::time::sleep(hour / 2).await;
    assert!(exchange(&echo).await?, "idle for half an hour");
    tokio::time::sleep(hour + Duration::from_secs(1)).await;
    assert!(!exchange(&echo).await?, "idle for more than an hour: a new one");
    let stats = echo.stats();
    println!("echo: {} dials, {} reused, {} expired", stats.dials, stats.reused, stats.expired);
    assert_eq!((stats.dials, stats.reused, stats.expired), (2, 1, 1));

    let silent = ConnResource::builder("silent", fake()).budget(&budget).dial_timeout(hour).build();
    let error = silent.get().await.err().ok_or("a dial that never ends")?;
    println!("{error}");
    assert!(matches!(error, GetError::DialTimeout { .. }) && error.is_timeout());
    assert!(error.details().elapsed >= hour);
    Ok(())
}
