//! A log-linear histogram of latencies: fixed in size, less than 1 % off, exact at its maximum.
//! Microseconds up to 2^32 (71 minutes); each power of two is divided into 128 buckets, as HdrHistogram does it.

use std::time::Duration;

/// Values below `2 * HALF` have a bucket of their own; above, the leading 8 bits choose it.
const HALF: usize = 128;
const BUCKETS: usize = HALF * (32 - 8 + 2);

#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: Box<[u64]>,
    count: u64,
    max: u32,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: vec![0; BUCKETS].into(), count: 0, max: 0 }
    }
}

impl Histogram {
    pub(crate) fn record(&mut self, latency: Duration) {
        let micros = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        self.buckets[bucket_of(micros)] += 1;
        self.count += 1;
        self.max = self.max.max(micros);
    }

    pub(crate) fn merge(&mut self, other: &Histogram) {
        for (bucket, others) in self.buckets.iter_mut().zip(&other.buckets) {
            *bucket += others;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// The latency in microseconds that `per_mille` of a thousand calls did not exceed; 0 without any call.
    pub(crate) fn quantile_us(&self, per_mille: u64) -> u32 {
        let rank = (self.count * per_mille).div_ceil(1000);
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket;
            if seen >= rank {
                return greatest_in(index).min(self.max);
            }
        }
        self.max
    }

    pub(crate) fn max_us(&self) -> u32 {
        self.max
    }
}

fn bucket_of(micros: u32) -> usize {
    let shift = (32 - micros.leading_zeros()).saturating_sub(8);
    HALF * shift as usize + (micros >> shift) as usize
}

fn greatest_in(bucket: usize) -> u32 {
    let shift = (bucket / HALF).saturating_sub(1);
    let leading = (bucket - HALF * shift) as u64;
    (((leading + 1) << shift) - 1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_a_bucket_less_than_a_hundredth_wide() {
        let powers =
            (0..32).flat_map(|power| [(1_u32 << power) - 1, 1 << power, (1 << power) + (1 << power) / 3]);
        for micros in powers.chain([u32::MAX]) {
            let greatest = greatest_in(bucket_of(micros));
            assert!(
                greatest >= micros && (greatest - micros) as u64 * 100 < micros.max(1) as u64,
                "{micros}: {greatest}"
            );
        }
        assert_eq!(bucket_of(u32::MAX), BUCKETS - 1);
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for bucket in 1..BUCKETS {
            assert_eq!(bucket_of(greatest_in(bucket - 1) + 1), bucket);
            assert_eq!(bucket_of(greatest_in(bucket)), bucket);
        }
    }

    #[test]
    fn quantiles_of_a_known_distribution() {
        let (mut odd, mut even) = (Histogram::default(), Histogram::default());
        for millis in 1..=1000 {
            let half = if millis % 2 == 0 { &mut even } else { &mut odd };
            half.record(Duration::from_millis(millis));
        }
        odd.merge(&even);
        for (per_mille, exact) in [(500, 500_000), (990, 990_000), (999, 999_000), (1000, 1_000_000)] {
            let found = odd.quantile_us(per_mille);
            assert!((exact..exact + exact / 100).contains(&found) || found == exact, "{per_mille}: {found}");
        }
        assert_eq!(odd.max_us(), 1_000_000);
        assert_eq!(Histogram::default().quantile_us(500), 0);
    }
}
