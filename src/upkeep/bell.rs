//! How the streams of idle connections wake the keeper: each rings for its address, which is told of once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};

use super::Tended;

/// What the streams of one address ring. The keeper is told once, until it answers.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: AtomicBool,
}

impl Bell {
    /// Rings are told again from now on: look at the connections afterwards.
    pub(crate) fn answer(&self) {
        self.rung.store(false, Ordering::SeqCst);
    }
}

/// What one stream wakes, while it rests and is watched. Stays with its connection, which rests often.
///
/// Its word and the [`Bell`]'s are written and read in one order (SeqCst). A stream that wakes sets its own word, then the
/// bell's; who answers clears the bell's, then reads those of all. So either the one who answers sees the stream's, or the
/// stream finds the bell's cleared, and rings again.
pub(crate) struct Alarm<A> {
    rung: AtomicBool,
    address: Weak<A>,
}

impl<A: Tended + 'static> Alarm<A> {
    pub(crate) fn of(address: &Arc<A>) -> Arc<Self> {
        Arc::new(Self { rung: AtomicBool::new(false), address: Arc::downgrade(address) })
    }

    /// The connection is about to be looked at: what it is to wake when something changes after that.
    pub(crate) fn begin_look(self: &Arc<Self>) -> Waker {
        self.rung.store(false, Ordering::SeqCst);
        Waker::from(Arc::clone(self))
    }
}

impl<A> Alarm<A> {
    /// Whether it has rung since its connection was looked at last.
    pub(crate) fn has_rung(&self) -> bool {
        self.rung.load(Ordering::SeqCst)
    }
}

impl<A: Tended + 'static> Wake for Alarm<A> {
    fn wake(self: Arc<Self>) {
        self.rung.store(true, Ordering::SeqCst);
        let Some(address) = self.address.upgrade() else { return };
        if !address.bell().rung.swap(true, Ordering::SeqCst) {
            address.partition().ledger.keeper.ring(Weak::<A>::clone(&self.address));
        }
    }
}
