//! What a resource was built with, and what of it can be changed while it is in use.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::pace::Limits;

/// A number that may change at any time: whoever reads it acts by the old or the new one.
#[derive(Debug)]
pub(crate) struct Count(AtomicUsize);

impl Count {
    pub(crate) fn new(count: usize) -> Self {
        Self(AtomicUsize::new(count))
    }

    #[inline]
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, count: usize) {
        self.0.store(count, Ordering::Relaxed);
    }
}

/// The same of a time; kept to the nanosecond, and for ever if it is more than 584 years.
#[derive(Debug)]
pub(crate) struct Span(AtomicU64);

impl Span {
    const FOR_EVER: u64 = u64::MAX;

    pub(crate) fn new(span: Option<Duration>) -> Self {
        let this = Self(AtomicU64::new(Self::FOR_EVER));
        this.set(span);
        this
    }

    pub(crate) fn set(&self, span: Option<Duration>) {
        let nanos = span.and_then(|span| u64::try_from(span.as_nanos()).ok());
        self.0.store(nanos.unwrap_or(Self::FOR_EVER), Ordering::Relaxed);
    }

    /// `None`: for ever.
    pub(crate) fn get(&self) -> Option<Duration> {
        Some(self.0.load(Ordering::Relaxed))
            .filter(|nanos| *nanos != Self::FOR_EVER)
            .map(Duration::from_nanos)
    }

    /// In nanoseconds; for ever is longer than anything else.
    #[inline]
    pub(crate) fn nanos(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// The same as a duration.
    pub(crate) fn or_for_ever(&self) -> Duration {
        match self.0.load(Ordering::Relaxed) {
            Self::FOR_EVER => Duration::MAX,
            nanos => Duration::from_nanos(nanos),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) max_conns: Count,
    pub(crate) max_idle: Count,
    pub(crate) min_idle: Count,
    pub(crate) max_uses: Count,
    pub(crate) idle_timeout: Span,
    pub(crate) max_lifetime: Span,
    pub(crate) dial_timeout: Span,
    pub(crate) wait_timeout: Span,
    pub(crate) dialing: Limits,
    /// The clock's resolution.
    pub(crate) tick: Duration,
    pub(crate) tick_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_kept_and_for_ever_is_longest() {
        let span = Span::new(Some(Duration::from_secs(90)));
        assert_eq!(
            (span.get(), span.or_for_ever()),
            (Some(Duration::from_secs(90)), Duration::from_secs(90))
        );
        for for_ever in [None, Some(Duration::MAX)] {
            span.set(for_ever);
            assert_eq!((span.get(), span.or_for_ever()), (None, Duration::MAX));
        }
    }
}
