//! Contenders measured in turn, round by round, so that whatever else the machine does hits all alike; and what the
//! rounds say. Knows nothing of pools.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

type Repetition = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Something that can be done `n` times.
pub struct Contender {
    name: String,
    note: &'static str,
    repeat: Box<dyn Fn(usize) -> Repetition + Send + Sync>,
}

impl Contender {
    /// `note`: in what it is another thing than the rest.
    pub fn new<F: Future<Output = ()> + Send + 'static>(
        name: impl Into<String>,
        note: &'static str,
        repeat: impl Fn(usize) -> F + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), note, repeat: Box::new(move |n| Box::pin(repeat(n))) }
    }
}

/// What one contender took, in nanoseconds for each time, round by round.
pub struct Timed {
    pub name: String,
    pub note: &'static str,
    pub rounds: Vec<f64>,
}

impl Timed {
    pub fn median(&self) -> f64 {
        median(self.rounds.iter().copied())
    }

    pub fn least(&self) -> f64 {
        self.rounds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The median of the rounds' ratios, rather than the ratio of medians: neighbours in time share what disturbs
    /// them.
    pub fn ratio_to(&self, base: &Timed) -> f64 {
        median(ratios(&self.rounds, &base.rounds).into_iter())
    }
}

/// Has each contender do it `n` times a round, in one task; each round begins with another one.
pub async fn in_turn(contenders: impl Into<Arc<[Contender]>>, rounds: usize, n: usize) -> Vec<Timed> {
    tokio::spawn(take_turns(contenders.into(), rounds, n)).await.expect("none panics")
}

async fn take_turns(contenders: Arc<[Contender]>, rounds: usize, n: usize) -> Vec<Timed> {
    let mut timed: Vec<_> = contenders
        .iter()
        .map(|contender| Timed { name: contender.name.clone(), note: contender.note, rounds: Vec::new() })
        .collect();
    for contender in &*contenders {
        (contender.repeat)(n).await;
    }
    for round in 0..rounds {
        for index in turns(round, contenders.len()) {
            let began = Instant::now();
            (contenders[index].repeat)(n).await;
            timed[index].rounds.push(began.elapsed().as_nanos() as f64 / n as f64);
        }
    }
    timed
}

/// Something with rounds of its own kind, and what they came to.
pub struct Entrant<R> {
    pub name: &'static str,
    pub note: &'static str,
    round: Box<dyn FnMut() -> R>,
    pub rounds: Vec<R>,
}

impl<R> Entrant<R> {
    pub fn new(name: &'static str, note: &'static str, round: impl FnMut() -> R + 'static) -> Self {
        Self { name, note, round: Box::new(round), rounds: Vec::new() }
    }
}

impl Entrant<f64> {
    pub fn median(&self) -> f64 {
        median(self.rounds.iter().copied())
    }

    pub fn ratios_to(&self, base: &Self) -> Vec<f64> {
        ratios(&self.rounds, &base.rounds)
    }
}

/// Has each entrant do its rounds in turn, after one that does not count.
pub fn compete<R>(entrants: &mut [Entrant<R>], rounds: usize) {
    for entrant in &mut *entrants {
        (entrant.round)();
    }
    for round in 0..rounds {
        for index in turns(round, entrants.len()) {
            let entrant = &mut entrants[index];
            entrant.rounds.push((entrant.round)());
        }
    }
}

/// Whose turn it is in a round: each is first once in a while.
fn turns(round: usize, contenders: usize) -> impl Iterator<Item = usize> {
    (0..contenders).map(move |step| (round + step) % contenders)
}

/// The one of that name.
pub fn named<'a>(timed: &'a [Timed], name: &str) -> &'a Timed {
    timed.iter().find(|timed| timed.name == name).expect("one of that name")
}

pub fn ratios(these: &[f64], those: &[f64]) -> Vec<f64> {
    these.iter().zip(those).map(|(this, that)| this / that).collect()
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let values = sorted(values);
    values[values.len() / 2]
}

/// Between which values the median lies with 95 % confidence, whatever the distribution: the order statistics that
/// leave no more than 2.5 % of a binomial distribution on either side.
pub fn median_interval(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let values = sorted(values);
    let n = values.len();
    let mut chance = 0.5_f64.powi(n as i32);
    let (mut below, mut rank) = (chance, 0);
    while below <= 0.025 && rank < n / 2 {
        chance *= (n - rank) as f64 / (rank + 1) as f64;
        below += chance;
        rank += 1;
    }
    let outer = rank.saturating_sub(1);
    (values[outer], values[n - 1 - outer])
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The same numbers in the same order for all: splitmix64 (Steele, Lea, Flood 2014) of a counter.
#[derive(Clone, Default)]
pub struct Draw(u64);

impl Draw {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((z ^ (z >> 31)) as u128 * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_the_median_has_the_ranks_of_the_tables() {
        let of = |n: usize| median_interval((1..=n).map(|rank| rank as f64));
        assert_eq!(of(10), (2.0, 9.0));
        assert_eq!(of(25), (8.0, 18.0));
        assert_eq!(of(40), (14.0, 27.0));
    }

    #[test]
    fn draws_are_spread_evenly() {
        let mut draw = Draw::default();
        let mut counts = [0; 10];
        for _ in 0..100_000 {
            counts[draw.below(10)] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
    }
}
