//! Children of a budget, and who is asked for slots that they lack.

mod support;

use std::sync::Arc;

use fdpool::{Budget, Reclaim};
use support::poll;

/// Has nothing idle, ever.
struct Empty;

impl Reclaim for Empty {
    fn idle(&self) -> usize {
        0
    }

    fn reclaim_one(&self) -> bool {
        false
    }
}

#[test]
fn a_participant_asked_in_vain_for_two_is_not_asked_for_ever() {
    let budget = Budget::new(2);
    let child = budget.child(1);
    let participant = Arc::new(Empty);
    let _registration = child.register(&participant);
    let _held = (child.try_acquire().unwrap(), budget.try_acquire().unwrap());
    let (mut below, mut here) = (child.acquire(), budget.acquire());
    assert!(poll(&mut below).is_pending() && poll(&mut here).is_pending());
}
