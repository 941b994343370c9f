//! What is measured, one file a case.

pub mod contended;
pub mod dials;
pub mod evict;
pub mod keyed;
pub mod memory;
pub mod stale;
pub mod sweep;
pub mod threads;
pub mod upkeep;
pub mod warm;
