//! Contenders measured in turn, round by round, so that whatever else the machine does hits all alike.

use std::future::Future;
use std::pin::Pin;
use std::time::Instant;

type Repetition = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Something that can be done `n` times.
pub struct Contender {
    name: &'static str,
    repeat: Box<dyn Fn(usize) -> Repetition + Send + Sync>,
}

impl Contender {
    pub fn new<F: Future<Output = ()> + Send + 'static>(
        name: &'static str,
        repeat: impl Fn(usize) -> F + Send + Sync + 'static,
    ) -> Self {
        Self { name, repeat: Box::new(move |n| Box::pin(repeat(n))) }
    }
}

/// What one contender took, in nanoseconds for each time, round by round.
pub struct Timed {
    name: &'static str,
    rounds: Vec<f64>,
}

/// Has each contender do it `n` times a round, in one task; each round begins with another one.
pub async fn in_turn(contenders: Vec<Contender>, rounds: usize, n: usize) -> Vec<Timed> {
    tokio::spawn(take_turns(contenders, rounds, n)).await.expect("none panics")
}

async fn take_turns(contenders: Vec<Contender>, rounds: usize, n: usize) -> Vec<Timed> {
    let mut timed: Vec<_> =
        contenders.iter().map(|contender| Timed { name: contender.name, rounds: Vec::new() }).collect();
    for contender in &contenders {
        (contender.repeat)(n).await;
    }
    for round in 0..rounds {
        for step in 0..contenders.len() {
            let index = (round + step) % contenders.len();
            let began = Instant::now();
            (contenders[index].repeat)(n).await;
            timed[index].rounds.push(began.elapsed().as_nanos() as f64 / n as f64);
        }
    }
    timed
}

/// Prints medians and minima, and how they compare with those of the one called `base`. The ratio of medians is
/// the median of the rounds' ratios, since neighbours in time share what disturbs them.
pub fn print(title: &str, base: &str, timed: &[Timed]) {
    let base = timed.iter().find(|timed| timed.name == base).expect("the base is one of them");
    println!("\n{title}, {} rounds", base.rounds.len());
    println!("{:<44} {:>10} {:>8} {:>10} {:>8}", "", "median ns", "ratio", "min ns", "ratio");
    for Timed { name, rounds } in timed {
        let ratio = median(rounds.iter().zip(&base.rounds).map(|(this, base)| this / base));
        let least = least(rounds);
        let least_ratio = least / self::least(&base.rounds);
        let median = median(rounds.iter().copied());
        println!("{name:<44} {median:>10.1} {ratio:>8.2} {least:>10.1} {least_ratio:>8.2}");
    }
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
