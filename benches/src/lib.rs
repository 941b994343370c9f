//! What the benches are made of: pools, servers, ways to measure and to tell. The cases are run by `fdpool-benches`; what
//! memory costs is measured by a program of its own, since to count allocations makes them dearer.

#![allow(clippy::disallowed_methods, reason = "to measure is to read the clock")]

pub mod cases;
pub mod loopback;
pub mod measure;
pub mod peers;
pub mod plot;
pub mod report;
