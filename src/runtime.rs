//! Which tokio runtime this is: a stream works on the one it was made on, and on no other.

use std::cell::Cell;
use std::task::Waker;

use tokio::runtime::{Handle, Id};
use tokio::task;

/// The runtime of the current task; `None` outside of any.
pub(crate) fn current() -> Option<Id> {
    Handle::try_current().ok().map(|handle| handle.id())
}

/// Where a runtime is, seen from the current task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    Here,
    Elsewhere,
    /// There is none here.
    Nowhere,
}

/// Who asked last on this thread, and what its runtime is.
#[derive(Clone, Copy, PartialEq)]
struct Answer {
    task: task::Id,
    waker: (usize, usize),
    runtime: Id,
}

std::thread_local! {
    static LAST: Cell<Option<Answer>> = const { Cell::new(None) };
}

/// Whether `runtime` is the current one.
///
/// Asking tokio clones a handle, which writes memory that all tasks of a runtime share (I8). So a task that was the
/// last to ask on this thread is told what it was told then. The task alone is not enough: inside of it another
/// runtime may be entered, whose `block_on` polls with a waker of its own.
#[inline]
pub(crate) fn whereabouts(runtime: Id, waker: Option<&Waker>) -> Whereabouts {
    let asker = asker(waker, runtime);
    if asker.is_some() && LAST.get() == asker {
        return Whereabouts::Here;
    }
    ask(asker, runtime)
}

/// The runtime of the current task, which `waker` wakes; `None` outside of any.
pub(crate) fn of(waker: &Waker) -> Option<Id> {
    let last = LAST.get();
    match last.filter(|last| asker(Some(waker), last.runtime) == Some(*last)) {
        Some(last) => Some(last.runtime),
        None => {
            let here = current()?;
            LAST.set(asker(Some(waker), here));
            Some(here)
        }
    }
}

#[inline]
fn asker(waker: Option<&Waker>, runtime: Id) -> Option<Answer> {
    let (task, waker) = task::try_id().zip(waker)?;
    let waker = (waker.data().addr(), std::ptr::from_ref(waker.vtable()).addr());
    Some(Answer { task, waker, runtime })
}

#[cold]
fn ask(asker: Option<Answer>, runtime: Id) -> Whereabouts {
    match current() {
        None => Whereabouts::Nowhere,
        Some(here) => {
            LAST.set(asker.map(|asker| Answer { runtime: here, ..asker }));
            if here == runtime { Whereabouts::Here } else { Whereabouts::Elsewhere }
        }
    }
}
