//! How often one address is wanted: a geometric moving average of the interval between its gets.
//! Pure, and on the warm path: it is told the time, allocates nothing and knows neither connections nor budgets.

use crate::budget::victim::{DISORDER_MS, FRACTION_BITS};

/// Of each new interval, 1/8 enters the average.
const WEIGHT_SHIFT: u32 = 3;

/// What one address's gets so far say about the next. Times are milliseconds that wrap after 49 days.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum History {
    /// No get yet. Can become `Once`.
    #[default]
    Unseen,
    /// Got at one moment only, so that there is no interval to average. Can become `Often`.
    Once { last: u32 },
    /// Got at two moments at least. Stays `Often`.
    Often { last: u32, average: u16 },
}

impl History {
    /// What [`last`](Self::last), or 0, and [`average`](Self::average) were told of. A single get at the very moment 0 is
    /// taken for none.
    #[inline]
    pub(crate) fn of(last: u32, average: Option<u16>) -> Self {
        match (last, average) {
            (last, Some(average)) => History::Often { last, average },
            (0, None) => History::Unseen,
            (last, None) => History::Once { last },
        }
    }

    /// Notes a get.
    ///
    /// Gets of one clock reading are one use: how many there were says nothing about when the next use comes, and
    /// intervals of zero would drown those that do.
    ///
    /// `true`: it says something else now.
    #[inline]
    pub(crate) fn touch(&mut self, now_ms: u32) -> bool {
        let first = *self == History::Unseen;
        let interval = self.last().and_then(|last| interval(last, now_ms));
        if let Some(interval) = interval {
            let sample = log2(interval);
            let average = self.average().map_or(sample, |average| blend(average, sample));
            *self = History::Often { last: now_ms, average };
        } else if first {
            *self = History::Once { last: now_ms };
        }
        first || interval.is_some()
    }

    /// When the last use was; `None` before the first.
    #[inline]
    pub(crate) fn last(self) -> Option<u32> {
        match self {
            History::Unseen => None,
            History::Once { last } | History::Often { last, .. } => Some(last),
        }
    }

    /// The average interval as log2 of milliseconds with 11 fraction bits; `None` until seen twice.
    #[inline]
    pub(crate) fn average(self) -> Option<u16> {
        match self {
            History::Unseen | History::Once { .. } => None,
            History::Often { average, .. } => Some(average),
        }
    }
}

/// The time between two uses; `None` where they are one.
#[inline]
fn interval(last: u32, now_ms: u32) -> Option<u32> {
    let interval = now_ms.wrapping_sub(last);
    (1..=u32::MAX - DISORDER_MS).contains(&interval).then_some(interval)
}

#[inline]
fn blend(average: u16, sample: u16) -> u16 {
    let (average, sample) = (u32::from(average), u32::from(sample));
    let rounding = 1 << (WEIGHT_SHIFT - 1);
    let sum = (average << WEIGHT_SHIFT) - average + sample + rounding;
    // At most the greater of the two, so it fits.
    (sum >> WEIGHT_SHIFT) as u16
}

/// The binary logarithm of `ms`, at least 1, linear between powers of two (Mitchell, "Computer Multiplication and
/// Division Using Binary Logarithms", 1962): off by 0.09 at most, and exactly undone by the like antilogarithm.
#[inline]
fn log2(ms: u32) -> u16 {
    let whole = ms.ilog2();
    let mantissa = (u64::from(ms) << FRACTION_BITS) >> whole;
    let fraction = mantissa as u32 - (1 << FRACTION_BITS);
    ((whole << FRACTION_BITS) | fraction) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: u16 = 1 << FRACTION_BITS;

    fn after(gets: &[u32]) -> History {
        let mut history = History::default();
        for now in gets {
            history.touch(*now);
        }
        history
    }

    #[test]
    fn is_told_by_its_parts() {
        for history in [History::Unseen, after(&[7]), after(&[0, 9]), after(&[5, 9, 1000])] {
            assert_eq!(History::of(history.last().unwrap_or_default(), history.average()), history);
        }
    }

    #[test]
    fn before_the_first_get_nothing_is_known() {
        assert_eq!((after(&[]).last(), after(&[]).average()), (None, None));
    }

    #[test]
    fn one_get_gives_a_time_and_no_average() {
        assert_eq!((after(&[0]).last(), after(&[0]).average()), (Some(0), None));
        assert_eq!((after(&[7]).last(), after(&[7]).average()), (Some(7), None));
    }

    #[test]
    fn the_first_interval_is_the_average() {
        assert_eq!(after(&[100, 116]), History::Often { last: 116, average: 4 * ONE });
    }

    #[test]
    fn a_later_interval_enters_by_an_eighth() {
        assert_eq!(after(&[0, 16, 16 + 4096]).average(), Some(5 * ONE));
        assert_eq!(after(&[0, 4096, 4096 + 16]).average(), Some(11 * ONE));
    }

    #[test]
    fn a_steady_interval_is_learnt_from_above_and_below() {
        for first in [1, 1_000_000] {
            let mut history = after(&[0, first]);
            for n in 1..=100 {
                history.touch(first + n * 1000);
            }
            let off = i32::from(history.average().unwrap_or(0)) - i32::from(log2(1000));
            assert!(off.abs() <= 4, "off by {off}/2048 after starting from {first}");
        }
    }

    #[test]
    fn gets_of_one_moment_are_one_use() {
        assert_eq!(after(&[5, 5, 5]), after(&[5]));
        assert_eq!(after(&[5, 13, 13, 13]), after(&[5, 13]));
    }

    #[test]
    fn time_wraps_after_49_days() {
        assert_eq!(after(&[u32::MAX - 3, 4]), History::Often { last: 4, average: 3 * ONE });
    }

    #[test]
    fn a_clock_a_little_behind_changes_nothing() {
        for behind in [1, 4, DISORDER_MS] {
            assert_eq!(after(&[5, 5u32.wrapping_sub(behind)]), after(&[5]));
            assert_eq!(after(&[1, 5, 5u32.wrapping_sub(behind)]), after(&[1, 5]));
        }
        let long_later = 5u32.wrapping_sub(DISORDER_MS + 1);
        assert_eq!(after(&[5, long_later]).last(), Some(long_later));
    }

    #[test]
    fn the_logarithm_is_exact_at_powers_of_two_and_close_between() {
        for whole in 0..32 {
            assert_eq!(log2(1 << whole), whole as u16 * ONE);
        }
        for ms in (1..100_000).chain((0..1000).map(|n| u32::MAX - n * 4_000_037)) {
            let off = f64::from(log2(ms)) / f64::from(ONE) - f64::from(ms).log2();
            assert!((-0.0866..=0.0).contains(&off), "log2({ms}) is off by {off}");
        }
    }

    #[test]
    fn the_logarithm_never_falls() {
        let mut previous = 0;
        for ms in
            (1..1 << 17).chain((17..32).flat_map(|e| (0..4096).map(move |n| (1 << e) + (n << (e - 12)))))
        {
            assert!(log2(ms) >= previous, "at {ms}");
            previous = log2(ms);
        }
        assert_eq!(log2(u32::MAX), u16::MAX);
    }

    #[test]
    fn a_blend_lies_between_its_parts() {
        let values = (0..=u16::MAX).step_by(251).chain([1, 2, 3, u16::MAX - 1, u16::MAX]);
        for average in values.clone() {
            for sample in values.clone() {
                let blended = blend(average, sample);
                assert!(
                    (average.min(sample)..=average.max(sample)).contains(&blended),
                    "{average}, {sample}"
                );
            }
        }
    }
}
