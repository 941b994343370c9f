//! A connection pool for programs with many peers: one budget of file descriptors behind every connection.
//!
//! A program that polls a fleet, scrapes, proxies or calls many services dies of "too many open files", redials
//! what it just closed, or hangs on a socket whose peer went away. fdpool gives it one [`Budget`], sized from
//! `RLIMIT_NOFILE`, behind every connection it opens; a [`ConnResource`] for each address, which reuses idle
//! connections; and when the budget is full, it closes the idle connection that is least likely to be wanted next.
//!
//! ```
//! use fdpool::ConnResource;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! async fn ping(peer: &ConnResource) -> Result<(), Box<dyn std::error::Error>> {
//!     let mut conn = peer.get().await?; // an idle one, or a new one, or a wait for a slot
//!     conn.write_all(b"PING\r\n").await?;
//!     let mut pong = [0; 7];
//!     conn.read_exact(&mut pong).await?; // an error here drops the connection, which closes it
//!     conn.put(); // clean: the next may have it
//!     Ok(())
//! }
//!
//! # async fn main_() {
//! let peers: Vec<_> = (1..=250).map(|n| ConnResource::new(format!("10.0.0.{n}:6379"))).collect();
//! for peer in &peers {
//!     if let Err(error) = ping(peer).await {
//!         eprintln!("{error}");
//!     }
//! }
//! # }
//! ```
//!
//! Start with [`ConnResource`] and [`Conn`]; [`Get`] has the options of a get; [`Dial`] is for connections other than
//! TCP. The [`guide`] has the rest.
//!
//! # Features
//!
//! - `tls` (on): [`dial::Tls`], TLS by rustls with ring.
//! - `hickory` (off): `dial::resolve::Hickory`, names resolved in this process by hickory-resolver.
//! - `http-proxy` (off): `dial::HttpConnect`, connections by way of an HTTP proxy.
//! - `deadpool` (on): [`interop::deadpool`], pools of that crate under a budget.
//! - `test-util` (off): all times, waits and dials among them, follow tokio's clock, and so its
//!   [`pause`](https://docs.rs/tokio/latest/tokio/time/fn.pause.html) and
//!   [`advance`](https://docs.rs/tokio/latest/tokio/time/fn.advance.html). For tests: the exact clock is slower.
#![forbid(unsafe_code)]

mod address;
mod budget;
mod clock;
mod conn;
pub mod dial;
mod error;
pub mod guide;
pub mod interop;
mod limit;
mod patience;
mod peers;
mod resource;
mod runtime;
mod stats;
mod sync;
mod text;
mod upkeep;

pub use address::Address;
pub use budget::{
    Acquire, Budget, BudgetBuilder, CloseReport, Explain, Held, Holder, Reclaim, Registration, Slot,
};
pub use conn::Conn;
pub use dial::{CheckContext, Dial, DialContext, Fitness};
pub use error::{
    AcquireDetails, AcquireError, DialError, GetDetails, GetError, GlobalAlreadySet, LimitError, Phase,
};
pub use peers::{Peers, PeersBuilder};
pub use resource::{ConnResource, ConnResourceBuilder, Get};
pub use stats::{BudgetCounts, BudgetStats, ResourceStats};
pub use tokio_util::sync::CancellationToken;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
