//! A connection pool for programs with many peers: one budget of file descriptors behind every connection.
#![forbid(unsafe_code)]

mod address;
mod budget;
mod clock;
mod conn;
pub mod dial;
mod error;
mod limit;
mod patience;
mod resource;
mod runtime;
mod stats;
mod sync;
mod upkeep;

pub use address::Address;
pub use budget::{Acquire, Budget, BudgetBuilder, Explain, Held, Reclaim, Registration, Slot};
pub use conn::Conn;
pub use dial::{Dial, DialContext, Fitness};
pub use error::{
    AcquireDetails, AcquireError, DialError, GetDetails, GetError, GlobalAlreadySet, LimitError, Phase,
};
pub use resource::{ConnResource, ConnResourceBuilder, Get};
pub use stats::{BudgetCounts, BudgetStats, ResourceStats};
pub use tokio_util::sync::CancellationToken;
