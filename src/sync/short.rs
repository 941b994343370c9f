//! A lock for sections of some twenty instructions, and how threads wait for it. Knows nothing of what is behind it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use spin::mutex::{SpinMutex, SpinMutexGuard};

/// For sections in which nothing waits and nothing of the user's runs. To let it go is a plain store, where
/// [`Mutex`](super::Mutex) makes a second read-modify-write: of a warm pair's time that was a fifth.
#[derive(Debug)]
pub(crate) struct ShortMutex<T>(SpinMutex<T>);
pub(crate) type ShortMutexGuard<'a, T> = SpinMutexGuard<'a, T>;

/// How often who waits pauses and looks before it reads the clock. A section takes two or three pauses, if who is in it
/// runs, and has its memory at hand.
const LOOKS: usize = 4;

/// A wait that takes so much longer is *long*: for memory that comes from afar, or for several others.
const LONG: Duration = Duration::from_nanos(250);

/// One that takes so long is for a holder that does not run.
const STOPPED: Duration = Duration::from_micros(5);

/// Of the last eight waits of a thread so many were long: they are so as a rule.
const OFTEN: u32 = 4;

/// The shortest there is: with the slack that timers have, of a thread on Linux 50 µs as a rule.
const NAP: Duration = Duration::from_micros(1);

const LONGEST_NAP: Duration = Duration::from_millis(1);

std::thread_local! {
    /// Which of the last waits were long, a bit each.
    static WAITS: Cell<u8> = const { Cell::new(0) };
}

impl<T> ShortMutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(SpinMutex::new(value))
    }

    #[inline]
    pub(crate) fn lock(&self) -> ShortMutexGuard<'_, T> {
        self.0.try_lock().unwrap_or_else(|| self.wait(false))
    }

    /// The same, for who has no other lock, and so may nap to leave this one to others for a while.
    #[inline]
    pub(crate) fn lock_alone(&self) -> ShortMutexGuard<'_, T> {
        self.0.try_lock().unwrap_or_else(|| self.wait(true))
    }

    /// Another thread has it, for a moment if its core is near; then two threads that meet here all the time do more than
    /// one. If it is far, each waits longer for the memory behind the lock than it works on it: there one naps, for the good
    /// of both, and the other has all to itself meanwhile.
    #[cold]
    #[inline(never)]
    fn wait(&self, may_nap: bool) -> ShortMutexGuard<'_, T> {
        for _ in 0..LOOKS {
            if let Some(guard) = self.look() {
                WAITS.set(WAITS.get() << 1);
                return guard;
            }
        }
        self.wait_longer(may_nap)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "waits for who has the lock, and for nothing else, by the real clock"
    )]
    fn wait_longer(&self, may_nap: bool) -> ShortMutexGuard<'_, T> {
        let (mut began, mut is_long, mut nap) = (Instant::now(), false, NAP);
        loop {
            if let Some(guard) = self.look() {
                WAITS.set(WAITS.get() << 1 | u8::from(is_long));
                return guard;
            }
            let waited = began.elapsed();
            let naps_early = waited >= LONG && !is_long && may_nap && WAITS.get().count_ones() >= OFTEN;
            is_long |= waited >= LONG;
            if naps_early || waited >= STOPPED {
                std::thread::sleep(nap);
                // Longer each time, so that the holder runs whatever its priority.
                nap = (2 * nap).min(LONGEST_NAP);
                began = Instant::now();
            }
        }
    }

    #[inline]
    fn look(&self) -> Option<ShortMutexGuard<'_, T>> {
        // To ask first leaves the line with the lock where it is.
        if self.0.is_locked() {
            std::hint::spin_loop();
            None
        } else {
            self.0.try_lock_weak()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "the holder stops for longer than any wait that does not nap"
    )]
    fn who_waits_for_one_who_does_not_run_has_the_lock_in_the_end() {
        let (lock, waits) = (ShortMutex::new(0), std::sync::Barrier::new(3));
        std::thread::scope(|scope| {
            let held = lock.lock();
            scope.spawn(|| {
                waits.wait();
                *lock.lock() += 1;
            });
            scope.spawn(|| {
                WAITS.set(u8::MAX);
                waits.wait();
                *lock.lock_alone() += 1;
            });
            waits.wait();
            std::thread::sleep(Duration::from_millis(5));
            drop(held);
        });
        assert_eq!(*lock.lock(), 2);
    }
}
