//! Which idle connection goes when somebody else needs its slot: the one whose address is expected back last.
//! Pure: it reads what each candidate published about itself, and knows no lock, no clock and no resource. What it
//! chooses is a guess from words that may be old; whoever closes the victim looks again under the victim's lock.

#[cfg(test)]
mod simulation;

/// How many candidates are looked at in one round, spread over all of them.
pub(crate) const SAMPLE: usize = 32;

/// Enough idle ones to choose among; with fewer, another round is drawn.
const ENOUGH: usize = SAMPLE / 2;

/// How many rounds are drawn where most candidates turn out to be in use.
const ROUNDS: usize = 4;

/// The fraction bits of an average: it is log2 of milliseconds in units of 1/2048.
pub(crate) const FRACTION_BITS: u32 = 11;

/// What stands for "no average" in a packed hint.
const NO_AVERAGE: u16 = u16::MAX;

/// A time this little in the future is now: words published by others may be newer than the reader's clock, and a reading of
/// that may be older than the one before it.
pub(crate) const DISORDER_MS: u32 = 60_000;

/// What one address publishes about itself, small enough for one atomic word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hint {
    /// When it was last got, in milliseconds that wrap after 49 days.
    pub(crate) last: u32,
    /// log2 of the average milliseconds between its gets, with 11 fraction bits; `None` if never seen twice.
    pub(crate) average: Option<u16>,
    /// How many connections it has idle.
    pub(crate) idle: u16,
}

impl Hint {
    /// Of an address that was never got.
    pub(crate) const UNSEEN: Hint = Hint { last: 0, average: None, idle: 0 };

    /// `idle` saturates: beyond one, how many there are makes no difference here.
    #[inline]
    pub(crate) fn new(last: u32, average: Option<u16>, idle: usize) -> Hint {
        Hint { last, average, idle: u16::try_from(idle).unwrap_or(u16::MAX) }
    }

    /// An average of `u16::MAX` (49 days) comes back as the one below.
    #[inline]
    pub(crate) fn pack(self) -> u64 {
        let average = self.average.map_or(NO_AVERAGE, |average| average.min(NO_AVERAGE - 1));
        u64::from(self.last) << 32 | u64::from(average) << 16 | u64::from(self.idle)
    }

    /// A packed one, with another number of idle ones.
    #[inline]
    pub(crate) fn with_idle(word: u64, idle: usize) -> u64 {
        word & !u64::from(u16::MAX) | u64::from(u16::try_from(idle).unwrap_or(u16::MAX))
    }

    #[inline]
    pub(crate) fn unpack(word: u64) -> Hint {
        let average = (word >> 16) as u16;
        Hint {
            last: (word >> 32) as u32,
            average: (average != NO_AVERAGE).then_some(average),
            idle: word as u16,
        }
    }
}

/// What is read of a candidate: its packed hint, and since when its oldest idle connection is unused. Both fit in
/// registers.
pub(crate) type Glance = (u64, u32);

/// How good a victim is: the greater, the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Score {
    /// How long until the connection is expected to be wanted; `u32::MAX` if nothing speaks for it.
    absence_ms: u32,
    /// Decides between equals: least recently used goes first.
    unused_ms: u32,
}

/// Judges the connection an address would lose, its oldest idle one; `None` if it has none.
///
/// The prediction speaks for the address's last idle connection. While there are more, the oldest is surplus: it
/// is expected to stay unused for as long as it has been, since `surplus_since_ms`, which only then is looked at.
/// For an address never seen twice nothing speaks at all, however many it has.
#[inline]
pub(crate) fn score(hint: Hint, surplus_since_ms: u32, now_ms: u32) -> Option<Score> {
    let unused_since = match hint.idle {
        0 => return None,
        1 => hint.last,
        _ => surplus_since_ms,
    };
    let unused_ms = elapsed(unused_since, now_ms);
    let absence_ms = match hint.average {
        None => u32::MAX,
        Some(_) if hint.idle > 1 => unused_ms,
        Some(average) => exp2(average).abs_diff(unused_ms),
    };
    Some(Score { absence_ms, unused_ms })
}

impl Score {
    /// For comparison by one instruction. Not zero: nothing has been unused for all of 49 days, so one more fits.
    #[inline]
    fn key(self) -> u64 {
        (u64::from(self.absence_ms) << 32 | u64::from(self.unused_ms)) + 1
    }
}

#[inline]
fn elapsed(since: u32, now_ms: u32) -> u32 {
    let elapsed = now_ms.wrapping_sub(since);
    if elapsed > u32::MAX - DISORDER_MS { 0 } else { elapsed }
}

/// Undoes the logarithm that averages are kept in: linear between powers of two.
#[inline]
fn exp2(log: u16) -> u32 {
    let (whole, fraction) = (u32::from(log) >> FRACTION_BITS, u32::from(log) & ((1 << FRACTION_BITS) - 1));
    ((u64::from((1 << FRACTION_BITS) | fraction) << whole) >> FRACTION_BITS) as u32
}

/// Draws the candidates to look at. No order is kept between choices, so that gets and puts pay nothing for it.
///
/// Its random numbers are SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014).
#[derive(Debug)]
pub(crate) struct Sampler {
    state: u64,
}

impl Default for Sampler {
    fn default() -> Self {
        Self::new(0x9e37_79b9_7f4a_7c15)
    }
}

impl Sampler {
    pub(crate) fn new(seed: u64) -> Sampler {
        Sampler { state: seed }
    }

    /// The best victim among a sample of the candidates `0..n`. `None`: none of the sample had any idle connection, and
    /// others still may.
    pub(crate) fn choose(
        &mut self,
        n: usize,
        now_ms: u32,
        mut read: impl FnMut(usize) -> Glance,
    ) -> Option<usize> {
        let mut best = Best::default();
        // Beginning anywhere, since the first of equals wins.
        let first = scaled((self.next() >> 32) as u32, n.min(SAMPLE));
        if n < SAMPLE {
            for index in (first..n).chain(0..first) {
                best.judge(index, read(index), now_ms);
            }
            return best.index();
        }
        for _ in 0..ROUNDS {
            let sample = self.spread(n);
            // All are read before any is judged: where they are cold in memory, that fetches them side by side.
            let (mut hints, mut since) = ([0; SAMPLE], [0; SAMPLE]);
            for at in 0..SAMPLE {
                (hints[at], since[at]) = read(sample[at]);
            }
            for at in 0..SAMPLE {
                let at = (first + at) % SAMPLE;
                best.judge(sample[at], (hints[at], since[at]), now_ms);
            }
            if best.offered >= ENOUGH || n == SAMPLE {
                break;
            }
        }
        best.index()
    }

    /// One random index out of each of `SAMPLE` equal parts of `0..n`, which is no smaller.
    fn spread(&mut self, n: usize) -> [usize; SAMPLE] {
        let mut sample = [0; SAMPLE];
        let start = |part: usize| part * n / SAMPLE; // by a constant, which is a shift
        let within = |part, random| start(part) + scaled(random, start(part + 1) - start(part));
        for pair in 0..SAMPLE / 2 {
            let (random, part) = (self.next(), 2 * pair); // does for two
            sample[part] = within(part, (random >> 32) as u32);
            sample[part + 1] = within(part + 1, random as u32);
        }
        sample
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A random number scaled to one below `n`, which is a number of addresses and so fits into 32 bits; 0 if `n` is.
#[inline]
fn scaled(random: u32, n: usize) -> usize {
    ((u64::from(random) * n as u64) >> 32) as usize
}

/// The best candidate so far, and out of how many.
#[derive(Debug, Default)]
struct Best {
    index: usize,
    /// Zero: there is none.
    key: u64,
    offered: usize,
}

impl Best {
    #[inline]
    fn judge(&mut self, index: usize, (hint, surplus_since_ms): Glance, now_ms: u32) {
        let Some(score) = score(Hint::unpack(hint), surplus_since_ms, now_ms) else { return };
        self.offered += 1;
        let key = score.key();
        if key > self.key {
            (self.index, self.key) = (index, key);
        }
    }

    fn index(&self) -> Option<usize> {
        (self.key > 0).then_some(self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// log2 of a power of two.
    fn log(exponent: u16) -> Option<u16> {
        Some(exponent << FRACTION_BITS)
    }

    fn judged(average: Option<u16>, last: u32, idle: usize, surplus_since: u32, now: u32) -> Score {
        score(Hint::new(last, average, idle), surplus_since, now).expect("something is idle")
    }

    #[test]
    fn a_hint_survives_packing() {
        for last in [0, 1, 0x1234_5678, u32::MAX] {
            for average in [None, Some(0), Some(1), Some(0xabcd), Some(u16::MAX - 1)] {
                for idle in [0, 1, 2, 0xef01, usize::from(u16::MAX)] {
                    let hint = Hint::new(last, average, idle);
                    assert_eq!(Hint::unpack(hint.pack()), hint);
                }
            }
        }
        let hint = Hint::new(7, Some(3), 5);
        assert_eq!(Hint::unpack(Hint::with_idle(hint.pack(), 9)), Hint { idle: 9, ..hint });
        assert_eq!(Hint::unpack(Hint::with_idle(hint.pack(), usize::MAX)), Hint { idle: u16::MAX, ..hint });
        for word in (0..1 << 20).map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            assert_eq!(Hint::unpack(word).pack(), word);
        }
    }

    #[test]
    fn the_longest_average_is_not_taken_for_none() {
        let hint = Hint::unpack(Hint::new(5, Some(u16::MAX), 1).pack());
        assert_eq!(hint.average, Some(u16::MAX - 1));
    }

    #[test]
    fn an_idle_count_saturates() {
        assert_eq!(Hint::new(0, None, 65_536).idle, u16::MAX);
        assert_eq!(Hint::new(0, None, usize::MAX).idle, u16::MAX);
    }

    #[test]
    fn the_antilogarithm_is_exact_at_powers_of_two_and_never_falls() {
        for exponent in 0..32 {
            assert_eq!(exp2(exponent << FRACTION_BITS), 1 << exponent);
        }
        assert!((0..u16::MAX).all(|log| exp2(log) <= exp2(log + 1)));
        assert_eq!(exp2(u16::MAX), 0xfff0_0000);
    }

    #[test]
    fn without_idle_ones_there_is_no_candidate() {
        assert_eq!(score(Hint::new(0, log(3), 0), 0, 100), None);
        assert_eq!(score(Hint::new(0, None, 0), 0, 100), None);
    }

    #[test]
    fn expected_later_goes_before_expected_sooner() {
        let soon = judged(log(10), 0, 1, 0, 1000);
        let late = judged(log(10), 900, 1, 0, 1000);
        assert!(late > soon);
        assert_eq!((soon.absence_ms, late.absence_ms), (24, 924));
    }

    #[test]
    fn long_overdue_goes_before_just_due() {
        let overdue = judged(log(4), 0, 1, 0, 1000);
        let due = judged(log(10), 0, 1, 0, 1000);
        assert!(overdue > due);
        assert_eq!(overdue.absence_ms, 984);
    }

    #[test]
    fn never_seen_twice_goes_before_any_prediction() {
        let unknown = judged(None, 1000, 1, 0, 1000);
        assert!(unknown > judged(Some(u16::MAX - 1), 1000, 1, 0, 1000));
        assert!(unknown > judged(log(0), 0, 1, 0, u32::MAX - DISORDER_MS));
        assert!(unknown > judged(log(3), 1000, 7, 0, 1000));
    }

    #[test]
    fn of_those_never_seen_twice_the_least_recently_used_goes() {
        assert!(judged(None, 10, 1, 0, 1000) > judged(None, 11, 1, 0, 1000));
        assert!(judged(None, 999, 2, 10, 1000) > judged(None, 11, 1, 0, 1000));
    }

    #[test]
    fn of_equal_predictions_the_least_recently_used_goes() {
        // 24 ms early and 24 ms late.
        let (early, late) = (judged(log(10), 0, 1, 0, 1000), judged(log(10), 0, 1, 0, 1048));
        assert_eq!(early.absence_ms, late.absence_ms);
        assert!(late > early);
    }

    #[test]
    fn surplus_is_judged_by_its_own_time_since_use() {
        for idle in [2, 3, usize::MAX] {
            assert_eq!(
                judged(log(10), 990, idle, 300, 1000),
                Score { absence_ms: 700, unused_ms: 700 },
                "{idle} idle"
            );
        }
        assert_eq!(judged(log(10), 990, 1, 300, 1000), Score { absence_ms: 1014, unused_ms: 10 });
    }

    #[test]
    fn elapsed_time_wraps_and_a_little_future_is_now() {
        assert_eq!(elapsed(u32::MAX - 9, 10), 20);
        assert_eq!(elapsed(10, 10), 0);
        assert_eq!(elapsed(11, 10), 0);
        assert_eq!(elapsed(DISORDER_MS, 0), 0);
        assert_eq!(elapsed(DISORDER_MS + 1, 0), u32::MAX - DISORDER_MS);
        assert_eq!(elapsed(0, u32::MAX - DISORDER_MS), u32::MAX - DISORDER_MS);
    }

    #[test]
    fn the_random_numbers_are_splitmix64() {
        let mut sampler = Sampler::new(1_234_567);
        let drawn: Vec<u64> = (0..3).map(|_| sampler.next()).collect();
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn a_small_set_is_looked_at_completely_and_once() {
        for n in 0..=SAMPLE {
            let mut looked_at = Vec::new();
            Sampler::new(n as u64).choose(n, 10, |index| {
                looked_at.push(index);
                (Hint::new(0, None, 0).pack(), 0)
            });
            looked_at.sort_unstable();
            assert!(looked_at.iter().copied().eq(0..n), "{n}: {looked_at:?}");
        }
    }

    #[test]
    fn a_sample_is_distinct_and_in_range() {
        let mut sampler = Sampler::new(1);
        for n in (SAMPLE..2000).chain([100_000, 1 << 31]) {
            let mut drawn = sampler.spread(n).to_vec();
            drawn.sort_unstable();
            drawn.dedup();
            assert_eq!(drawn.len(), SAMPLE);
            assert!(drawn.iter().all(|&index| index < n));
        }
    }

    #[test]
    fn sampling_reaches_every_index_about_equally() {
        for n in [33, 63, 100, 321] {
            let mut sampler = Sampler::new(2);
            let mut drawn = vec![0_u32; n];
            let rounds = 40_000;
            for _ in 0..rounds {
                sampler.spread(n).into_iter().for_each(|index| drawn[index] += 1);
            }
            let fair = f64::from(rounds) * SAMPLE as f64 / n as f64;
            // Parts differ by one index in size, which is a factor of two where they have one or two.
            for (index, &times) in drawn.iter().enumerate() {
                let share = f64::from(times) / fair;
                assert!((0.4..2.1).contains(&share), "{index} of {n}: {share}");
            }
        }
    }

    #[test]
    fn the_same_seed_chooses_the_same() {
        let choices = |seed| {
            let mut sampler = Sampler::new(seed);
            let read = |index: usize| (Hint::new(index as u32 % 7, None, 1).pack(), 0);
            (0..50).map(|_| sampler.choose(1000, 10, read)).collect::<Vec<_>>()
        };
        assert_eq!(choices(1), choices(1));
        assert_ne!(choices(1), choices(2));
    }

    #[test]
    fn of_a_small_set_the_best_is_chosen() {
        let mut sampler = Sampler::new(3);
        for n in 1..=SAMPLE {
            for best in 0..n {
                let read = |index| (Hint::new(if index == best { 5 } else { 6 }, log(2), 1).pack(), 0);
                assert_eq!(sampler.choose(n, 100, read), Some(best));
            }
        }
    }

    #[test]
    fn nothing_to_choose_from_is_none() {
        let mut sampler = Sampler::new(4);
        for n in [0, 1, SAMPLE, SAMPLE + 1, 1000] {
            assert_eq!(sampler.choose(n, 10, |_| (Hint::new(0, None, 0).pack(), 0)), None);
        }
    }

    #[test]
    fn in_a_small_set_the_only_idle_one_is_found() {
        let mut sampler = Sampler::new(5);
        for n in 1..=SAMPLE {
            for only in 0..n {
                let read = |index| (Hint::new(0, None, usize::from(index == only)).pack(), 0);
                assert_eq!(sampler.choose(n, 10, read), Some(only));
            }
        }
    }

    #[test]
    fn equals_are_taken_from_everywhere() {
        for n in [SAMPLE / 2, SAMPLE * 4] {
            let mut sampler = Sampler::new(6);
            let mut chosen = vec![false; n];
            for _ in 0..n * 50 {
                let index = sampler.choose(n, 10, |_| (Hint::new(0, None, 1).pack(), 0));
                chosen[index.expect("all are idle")] = true;
            }
            assert!(chosen.iter().all(|&chosen| chosen));
        }
    }

    #[test]
    fn a_choice_looks_at_few() {
        let looks = |idle_of: fn(usize) -> bool| {
            let mut looks = 0;
            let chosen = Sampler::new(7).choose(100_000, 10, |index| {
                looks += 1;
                (Hint::new(0, None, usize::from(idle_of(index))).pack(), 0)
            });
            assert!(chosen.is_none_or(idle_of));
            looks
        };
        assert_eq!(looks(|_| true), SAMPLE);
        assert!(looks(|index| index % 10 == 0) <= SAMPLE * ROUNDS);
        assert_eq!(looks(|index| index == 99_999), SAMPLE * ROUNDS);
    }
}
