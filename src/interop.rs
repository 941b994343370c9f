//! Other crates' pools under a [`Budget`](crate::Budget). Each adapter is written against the public interface alone.

#[cfg(feature = "deadpool")]
pub mod deadpool;
