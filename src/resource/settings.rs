//! What a resource was built with, and what of it can be changed while it is in use. Resources that are built alike
//! share one copy.

use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::pace::Limits;
use crate::clock;

/// Behind the lock of an address. The books have `max_conns` for themselves, and are [told](crate::budget::books::Books::bound)
/// when it changes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) max_conns: usize,
    pub(crate) max_idle: usize,
    pub(crate) min_idle: usize,
    pub(crate) max_uses: u32,
    pub(crate) idle_timeout: Span,
    pub(crate) max_lifetime: Span,
    pub(crate) dial_timeout: Option<Duration>,
    pub(crate) wait_timeout: Option<Duration>,
    pub(crate) dialing: Limits,
    /// The clock's resolution.
    pub(crate) tick: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_conns: usize::MAX,
            max_idle: usize::MAX,
            min_idle: 0,
            max_uses: u32::MAX,
            idle_timeout: Span::new(Duration::from_secs(90)),
            max_lifetime: Span::new(Duration::from_secs(30 * 60)),
            dial_timeout: Some(Duration::from_secs(10)),
            wait_timeout: Some(Duration::from_secs(30)),
            dialing: Limits {
                first: 2,
                most: usize::MAX,
                pause: Duration::from_millis(100),
                longest: Duration::from_secs(5),
            },
            tick: Span::new(clock::resolution()),
        }
    }
}

impl Settings {
    /// Shared with the resource that was built before, if that was built alike: a fleet of them has one copy.
    pub(crate) fn share(self) -> Arc<Settings> {
        static LAST: LazyLock<Mutex<Weak<Settings>>> = LazyLock::new(Mutex::default);
        let mut last = LAST.lock();
        match last.upgrade().filter(|last| **last == self) {
            Some(alike) => alike,
            None => {
                let settings = Arc::new(self);
                *last = Arc::downgrade(&settings);
                settings
            }
        }
    }
}

/// A time in nanoseconds, as the warm path compares it; for ever if it is more than 584 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(u64);

impl Span {
    pub(crate) const FOR_EVER: Span = Span(u64::MAX);

    /// `None`: for ever.
    pub(crate) fn new(span: impl Into<Option<Duration>>) -> Self {
        let nanos = span.into().and_then(|span| u64::try_from(span.as_nanos()).ok());
        nanos.map_or(Self::FOR_EVER, Span)
    }

    /// For ever is longer than anything else.
    #[inline]
    pub(crate) fn nanos(self) -> u64 {
        self.0
    }

    pub(crate) fn duration(self) -> Duration {
        match self {
            Self::FOR_EVER => Duration::MAX,
            Span(nanos) => Duration::from_nanos(nanos),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_kept_and_for_ever_is_longest() {
        let span = Duration::from_secs(90);
        assert_eq!(Span::new(span).duration(), span);
        for for_ever in [None, Some(Duration::MAX)] {
            assert_eq!(Span::new(for_ever).duration(), Duration::MAX);
            assert_eq!(Span::new(for_ever).nanos(), u64::MAX);
        }
    }

    #[test]
    fn what_is_built_alike_shares_one_copy() {
        // Other tests build resources meanwhile: nobody else asks for so many uses.
        let made = |uses| Settings { max_uses: uses, ..Settings::default() }.share();
        let shared = (0..100).any(|_| Arc::ptr_eq(&made(1_234_567), &made(1_234_567)));
        assert!(shared);
        assert_ne!(made(1_234_567), made(1_234_568));
    }
}
