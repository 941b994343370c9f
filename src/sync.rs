//! Locks, atomics and thread-locals: the standard ones, or loom's under `--cfg fdpool_loom`; and how others are woken.
//! What budgets, addresses and callers share goes through here, so that what the models check is what runs. Counters, and what
//! no model drives (the keeper's desk, notes of holds, tables of names), are the standard library's and parking_lot's.

#[cfg(not(fdpool_loom))]
mod short;

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

    pub(crate) use super::short::{ShortMutex, ShortMutexGuard};
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

        pub(crate) fn lock_alone(&self) -> MutexGuard<'_, T> {
            self.lock()
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
