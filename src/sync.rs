//! Locks, atomics and thread-locals: the standard ones, or loom's under `--cfg fdpool_loom`; and how others are woken.
//! What budgets, addresses and callers share goes through here, so that what the models check is what runs. Counters, and what
//! no model drives (the keeper's desk, notes of holds, tables of names), are the standard library's and parking_lot's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

/// Wakes them all, whoever's they are: one that panics keeps none of the others from it. Not under a lock.
#[inline]
pub(crate) fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    wakers.into_iter().for_each(wake);
}

fn wake(waker: Waker) {
    let _panicked = catch_unwind(AssertUnwindSafe(|| waker.wake()));
}

#[cfg(not(fdpool_loom))]
mod real {
    pub(crate) use parking_lot::{Mutex, MutexGuard};
    pub(crate) use std::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    pub(crate) use std::thread_local;

    /// A lock for sections of some twenty instructions, in which nothing waits and nothing of the user's runs. To let
    /// it go is a plain store, where [`Mutex`] makes a second read-modify-write: of a warm pair's time that was a
    /// fifth.
    pub(crate) type ShortMutex<T> = spin::mutex::SpinMutex<T, Patient>;
    pub(crate) type ShortMutexGuard<'a, T> = spin::mutex::SpinMutexGuard<'a, T, Patient>;

    /// How a thread waits for a [`ShortMutex`]: it looks for as long as a holder that runs may need, then lets others run,
    /// the holder perhaps, and after so many looks naps, so that a holder of lower priority gets its turn.
    ///
    /// The looks of one wait are few, and are counted on to the next: so where threads meet at a lock all the time, one of
    /// them naps now and then. That is for the good of all. Who takes a lock from another core waits for the memory
    /// behind it too, and so does who takes it back; meanwhile the other has both to itself.
    pub(crate) struct Patient;

    /// A pause takes as long as a section.
    const LOOKS_A_PAUSE: u32 = 8;
    const LOOKS_A_YIELD: u32 = 32;
    const LOOKS_A_NAP: u32 = 256;
    const NAP: std::time::Duration = std::time::Duration::from_micros(50);

    impl spin::RelaxStrategy for Patient {
        #[cold]
        #[allow(
            clippy::disallowed_methods,
            reason = "waits for nothing: it leaves the processor to whoever holds the lock"
        )]
        fn relax() {
            std::thread_local! {
                static LOOKS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
            }
            let looks = LOOKS.get().wrapping_add(1);
            LOOKS.set(looks);
            if looks.is_multiple_of(LOOKS_A_NAP) {
                std::thread::sleep(NAP);
            } else if looks.is_multiple_of(LOOKS_A_YIELD) {
                std::thread::yield_now();
            } else if looks.is_multiple_of(LOOKS_A_PAUSE) {
                std::hint::spin_loop();
            }
        }
    }
}

#[cfg(fdpool_loom)]
mod real {
    pub(crate) use loom::sync::MutexGuard;
    pub(crate) use loom::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };

    /// loom's, told of constant initial values.
    macro_rules! local {
        (static $name:ident: $type:ty = const $value:block;) => {
            loom::thread_local! { static $name: $type = $value; }
        };
    }
    pub(crate) use local as thread_local;

    pub(crate) type ShortMutex<T> = Mutex<T>;
    pub(crate) type ShortMutexGuard<'a, T> = MutexGuard<'a, T>;

    /// loom's mutex with parking_lot's face: no poisoning.
    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        }

        pub(crate) fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner)
        }
    }
}

pub(crate) use real::*;

/// On lines of the cache of its own, two of which processors fetch together: who reads it does not wait for what others
/// write beside it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Apart<T>(pub(crate) T);

impl<T> std::ops::Deref for Apart<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}
