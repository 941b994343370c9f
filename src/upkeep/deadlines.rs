//! The time that dials have. Where many begin, one task of their runtime looks at all of them now and then, and a dial
//! sets a timer only when little of its time is left: so one that ends soon sets none.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use slab::Slab;
use tokio::runtime::{Handle, Id};
use tokio::task::{Unconstrained, unconstrained};
use tokio::time::Sleep;

use crate::clock::{self, Tick};
use crate::sync::wake_all;

/// How often the task looks.
const ROUND: Duration = Duration::from_millis(500);

/// With how little time left a dial has a timer of its own. Twice as long as the above.
const LITTLE: Duration = Duration::from_secs(1);

/// After how many dials within a round those that follow are worth a task.
const FEW: usize = 16;

/// The dials of a budget that set no timer, and the tasks that look after them.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    /// Held for a few instructions; no other lock is taken under it, and nothing of the user's runs.
    desk: Mutex<Desk>,
}

#[derive(Debug, Default)]
struct Desk {
    dials: Slab<Entrusted>,
    /// Runtimes with a task.
    tasks: Vec<Id>,
    /// How many dials have begun in this round, and when that ends.
    begun: usize,
    round_ends: Option<Tick>,
}

/// A dial that keeps no time.
#[derive(Debug)]
struct Entrusted {
    runtime: Id,
    due: Tick,
    /// `None`: it is told to keep its time itself, because little is left, or because the task is gone.
    waker: Option<Waker>,
}

/// The time that one dial has.
pub(crate) struct Deadline<'a> {
    deadlines: &'a Arc<Deadlines>,
    kept: Kept,
}

/// Who keeps a dial's time.
enum Kept {
    /// There is no end, or it is over.
    Never,
    /// Not polled yet; there is more than a little left. Can become any other.
    Unasked(Id, Tick),
    /// A task does. Can become ByTimer, or Never.
    ByTask(usize, Tick),
    /// Can become Never.
    ByTimer(Pin<Box<Unconstrained<Sleep>>>),
}

impl<'a> Deadline<'a> {
    /// From now on; of a dial that is polled first on `home`.
    pub(crate) fn new(
        deadlines: &'a Arc<Deadlines>,
        timeout: Option<Duration>,
        now: Tick,
        home: Option<Id>,
    ) -> Self {
        let kept = match (timeout, home) {
            (None, _) => Kept::Never,
            (Some(timeout), Some(home)) if timeout > LITTLE => Kept::Unasked(home, now.after(timeout)),
            (Some(timeout), _) => timer(timeout),
        };
        Self { deadlines, kept }
    }

    /// What becomes of a future within the time. `None`: its time is over.
    pub(crate) async fn bound<F: Future>(&mut self, mut future: Pin<&mut F>) -> Option<F::Output> {
        let bounded = poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.poll(cx).map(|()| None),
        });
        bounded.await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let due = match &mut self.kept {
            Kept::Never => return Poll::Pending,
            Kept::ByTimer(sleep) => return sleep.as_mut().poll(cx),
            Kept::Unasked(home, due) => match self.deadlines.entrust(*home, *due, cx.waker()) {
                Some(key) => {
                    self.kept = Kept::ByTask(key, *due);
                    return Poll::Pending;
                }
                None => *due,
            },
            Kept::ByTask(key, due) => match self.deadlines.is_kept(*key, cx.waker()) {
                true => return Poll::Pending,
                false => *due,
            },
        };
        self.forgo_task();
        self.kept = timer(due.since(clock::now()));
        self.poll(cx)
    }

    fn forgo_task(&mut self) {
        // Taken out first: a timer panics where there is no driver for it.
        if let Kept::ByTask(key, _) = std::mem::replace(&mut self.kept, Kept::Never) {
            let entrusted = self.deadlines.desk.lock().dials.remove(key);
            drop(entrusted); // and a waker of the user's, not under the lock (I3)
        }
    }
}

impl Drop for Deadline<'_> {
    fn drop(&mut self) {
        self.forgo_task();
    }
}

/// Unconstrained: a dial that spends its task's cooperative budget ends in time, too.
fn timer(left: Duration) -> Kept {
    match clock::deadline(left) {
        Some(end) => Kept::ByTimer(Box::pin(unconstrained(tokio::time::sleep_until(end)))),
        None => Kept::Never,
    }
}

impl Deadlines {
    /// Has a task wake a dial when little of its time is left. `None`: it has to keep it itself.
    fn entrust(self: &Arc<Self>, runtime: Id, due: Tick, waker: &Waker) -> Option<usize> {
        let entrusted = Entrusted { runtime, due, waker: Some(waker.clone()) };
        let mut desk = self.desk.lock();
        let hires = !desk.tasks.contains(&runtime);
        if hires && desk.has_few(clock::now()) {
            return None;
        }
        desk.begun += 1;
        let key = desk.dials.insert(entrusted);
        if hires {
            desk.tasks.push(runtime);
            drop(desk);
            self.hire(runtime);
        }
        Some(key)
    }

    #[cold]
    fn hire(self: &Arc<Self>, runtime: Id) {
        let look = Look { deadlines: Arc::clone(self), runtime };
        if let Ok(here) = Handle::try_current() {
            here.spawn(look.work());
        }
    }

    /// Whether a task keeps the time of a dial, which `waker` is to wake.
    fn is_kept(&self, key: usize, waker: &Waker) -> bool {
        let noted = self.with_waker(key, |noted| noted.as_ref().map(|noted| noted.will_wake(waker)));
        match noted {
            None => false,
            Some(true) => true,
            Some(false) => {
                let mut waker = Some(waker.clone());
                self.with_waker(key, |noted| match noted {
                    Some(_) => {
                        std::mem::swap(noted, &mut waker);
                        true
                    }
                    None => false, // in between
                })
            }
        }
    }

    fn with_waker<R>(&self, key: usize, look: impl FnOnce(&mut Option<Waker>) -> R) -> R {
        look(&mut self.desk.lock().dials[key].waker)
    }
}

impl Desk {
    /// Whether so few dials have begun of late that a task would cost more than their timers.
    fn has_few(&mut self, now: Tick) -> bool {
        if self.round_ends.is_none_or(|end| now >= end) {
            (self.begun, self.round_ends) = (0, Some(now.after(ROUND)));
        }
        self.begun += 1;
        self.begun <= FEW
    }

    /// Those of a runtime that have no more than so much time left.
    fn take_wakers(&mut self, of: Id, now: Tick, left: Duration) -> Vec<Waker> {
        let ends = |dial: &Entrusted| dial.runtime == of && dial.due.since(now) <= left;
        let ending = self.dials.iter_mut().filter(|(_, dial)| ends(dial));
        ending.filter_map(|(_, dial)| dial.waker.take()).collect()
    }
}

/// The one task of a runtime that looks.
struct Look {
    deadlines: Arc<Deadlines>,
    runtime: Id,
}

impl Look {
    async fn work(self) {
        while self.is_wanted() {
            tokio::time::sleep(ROUND).await;
            let wakers = self.deadlines.desk.lock().take_wakers(self.runtime, clock::now(), LITTLE);
            wake_all(wakers);
        }
    }

    /// Whether it looks after a dial, or has since it was asked last.
    fn is_wanted(&self) -> bool {
        let mut desk = self.deadlines.desk.lock();
        let begun = std::mem::take(&mut desk.begun) > 0;
        begun || desk.dials.iter().any(|(_, dial)| dial.runtime == self.runtime)
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        let wakers = {
            let mut desk = self.deadlines.desk.lock();
            desk.tasks.retain(|runtime| *runtime != self.runtime);
            desk.take_wakers(self.runtime, Tick::NEVER, Duration::ZERO)
        };
        wake_all(wakers);
    }
}
