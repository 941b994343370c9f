//! Which tokio runtime this is: a stream works on the one it was made on, and on no other.

use std::cell::Cell;
use std::task::Waker;

use tokio::runtime::Handle;
pub(crate) use tokio::runtime::Id;
use tokio::task;

/// The runtime of the current task; `None` outside of any.
#[cold]
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

#[derive(Clone, Copy, PartialEq)]
struct Asker {
    task: task::Id,
    waker: (usize, usize),
}

/// What the runtime of somebody who asked on this thread is.
#[derive(Clone, Copy)]
struct Answer {
    asker: Asker,
    runtime: Id,
}

/// For so many tasks a thread remembers the answer.
const REMEMBERED: usize = 64;

std::thread_local! {
    static ANSWERS: [Cell<Option<Answer>>; REMEMBERED] = const { [const { Cell::new(None) }; REMEMBERED] };
}

/// Where a task's answer is: tasks are apart from each other in memory by two lines of the cache or more.
#[inline]
fn with_answer<R>(waker: &Waker, ask: impl FnOnce(&Cell<Option<Answer>>) -> R) -> R {
    ANSWERS.with(|answers| ask(&answers[(waker.data().addr() >> 7) % REMEMBERED]))
}

/// Whether `runtime` is the current one.
///
/// Asking tokio clones a handle, which writes memory that all tasks of a runtime share (I8). So a task that has asked on
/// this thread is told what it was told then, as long as that is remembered. The task alone is not enough: inside of it
/// another runtime may be entered, whose `block_on` polls with a waker of its own.
#[inline]
pub(crate) fn whereabouts(runtime: Id, waker: Option<&Waker>) -> Whereabouts {
    match waker.map_or_else(current, of) {
        None => Whereabouts::Nowhere,
        Some(here) if here == runtime => Whereabouts::Here,
        Some(_) => Whereabouts::Elsewhere,
    }
}

/// The runtime of the current task, which `waker` wakes; `None` outside of any.
#[inline]
pub(crate) fn of(waker: &Waker) -> Option<Id> {
    let Some(task) = task::try_id() else { return current() };
    let asker = Asker { task, waker: (waker.data().addr(), std::ptr::from_ref(waker.vtable()).addr()) };
    with_answer(waker, |answer| match answer.get() {
        Some(known) if known.asker == asker => Some(known.runtime),
        _ => {
            let runtime = current()?;
            answer.set(Some(Answer { asker, runtime }));
            Some(runtime)
        }
    })
}
