//! What tokio is asked: which of its runtimes this is, for a stream works on the one it was made on and on no other; and whether
//! other tasks are to have their turn first.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

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

/// Somebody who asks on this thread: a task, and where it is in memory.
#[derive(Clone, Copy, PartialEq)]
struct Asker {
    task: task::Id,
    header: usize,
}

/// What its runtime is.
#[derive(Clone, Copy)]
struct Answer {
    asker: Asker,
    runtime: Id,
}

/// For so many tasks a thread remembers the answer, if they were spawned one after the other.
const REMEMBERED: usize = 256;

std::thread_local! {
    static ANSWERS: [Cell<Option<Answer>>; REMEMBERED] = const { [const { Cell::new(None) }; REMEMBERED] };
}

/// By what a task's own waker is told from others: of what kind it is. Zero until a task of ours has told.
static KIND: AtomicUsize = AtomicUsize::new(0);

fn kind(waker: &Waker) -> usize {
    std::ptr::from_ref(waker.vtable()).addr()
}

/// A task's number, which it tells nobody but hashers.
struct Number(u64);

impl Number {
    #[inline]
    fn of(task: task::Id) -> Self {
        let mut number = Self(0);
        task.hash(&mut number);
        number
    }
}

impl Hasher for Number {
    #[inline]
    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |number, byte| (number << 8) | u64::from(*byte));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Learns what the wakers of tokio's tasks are like. To be awaited in a task, with nothing around it.
pub(crate) async fn learn() {
    let look = |cx: &mut Context<'_>| {
        KIND.store(kind(cx.waker()), Ordering::Relaxed);
        Poll::Ready(())
    };
    std::future::poll_fn(look).await;
}

/// Takes part in tokio's cooperative budget. Pending: other tasks have their turn first, and the task is woken after them.
pub(crate) fn consume_budget(cx: &mut Context<'_>) -> Poll<()> {
    std::pin::pin!(task::coop::consume_budget()).poll(cx)
}

/// Whether `runtime` is the current one.
#[inline]
pub(crate) fn whereabouts(runtime: Id, waker: Option<&Waker>) -> Whereabouts {
    match waker.map_or_else(current, of) {
        None => Whereabouts::Nowhere,
        Some(here) if here == runtime => Whereabouts::Here,
        Some(_) => Whereabouts::Elsewhere,
    }
}

/// The runtime of the current task, which `waker` wakes; `None` outside of any.
///
/// Asking tokio clones a handle, which writes memory that all tasks of a runtime share (I8). So a task that has asked on
/// this thread is told what it was told then, as long as that is remembered: if it is polled with its own waker. Inside of
/// a task another runtime may be entered whose `block_on` polls with another one.
#[inline]
pub(crate) fn of(waker: &Waker) -> Option<Id> {
    let Some(task) = task::try_id().filter(|_| kind(waker) == KIND.load(Ordering::Relaxed)) else {
        return current();
    };
    let asker = Asker { task, header: waker.data().addr() };
    ANSWERS.with(|answers| {
        let answer = &answers[Number::of(task).0 as usize % REMEMBERED];
        match answer.get() {
            Some(known) if known.asker == asker => Some(known.runtime),
            _ => {
                let runtime = current()?;
                answer.set(Some(Answer { asker, runtime }));
                Some(runtime)
            }
        }
    })
}
