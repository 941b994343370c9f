//! The guide: what to know beyond the single items. Documentation only.
//!
//! - [`sizing`]: how many connections a process can afford, and what happens at the edge
//! - [`patterns`]: pollers, proxies, retries, failovers, pools of other kinds under one budget
//! - [`dialers`]: what stands between an address and a connection, and how to write one
//! - [`cancellation`]: what is lost when a future is dropped, and what is not
//! - [`internals`]: the locks, the invariants, and why
//! - [`speed`]: what a get and a put cost, where the time goes, how it grows

#[doc = include_str!("guide/sizing.md")]
pub mod sizing {}

#[doc = include_str!("guide/patterns.md")]
pub mod patterns {}

#[doc = include_str!("guide/dialers.md")]
pub mod dialers {}

#[doc = include_str!("guide/cancellation.md")]
pub mod cancellation {}

#[doc = include_str!("guide/internals.md")]
pub mod internals {}

#[doc = include_str!("guide/speed.md")]
pub mod speed {}
