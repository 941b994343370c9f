//! Which tokio runtime this is: a stream works on the one it was made on, and on no other.

use tokio::runtime::{Handle, Id};

/// The runtime of the current task; `None` outside of any.
pub(crate) fn current() -> Option<Id> {
    Handle::try_current().ok().map(|handle| handle.id())
}
