//! Access patterns to judge an eviction policy by, and the hit rates of the policies it is compared with.
//! Plain code, seeded: the simulation and the tests that replay through a pool see the same gets.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

/// One get of one address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Get {
    /// Never falls from one get to the next.
    pub(crate) at_ms: u32,
    pub(crate) address: usize,
}

/// A list of gets, and how many connections there may be while it is replayed: one an address.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    pub(crate) name: &'static str,
    /// Every address is below this.
    pub(crate) addresses: usize,
    pub(crate) budget: usize,
    pub(crate) gets: Vec<Get>,
}

/// How long the traces are that the documented hit rates were measured with.
pub(crate) const GETS: usize = 400_000;

/// All traces, of `gets` gets each.
pub(crate) fn all(gets: usize) -> [Trace; 8] {
    [
        trace("Zipf 1.0", 1000, 100, zipf(gets)),
        trace("sweep in order", 1000, 100, sweep(gets)),
        trace("sweep in order", 1000, 900, sweep(gets)),
        trace("poll each ±20 %", 1000, 100, poll(gets)),
        trace("80 fast + 920 slow", 1000, 100, fast_and_slow(gets)),
        trace("Zipf + sweep", 5000, 300, zipf_and_sweep(gets)),
        trace("Zipf, shifting", 1000, 100, zipf_shifting(gets)),
        trace("bursts of 5", 2000, 100, bursts(gets)),
    ]
}

fn trace(name: &'static str, addresses: usize, budget: usize, gets: Vec<Get>) -> Trace {
    Trace { name, addresses, budget, gets }
}

/// Independent draws, the n-th most popular address with a probability proportional to 1/n; one a millisecond.
fn zipf(gets: usize) -> Vec<Get> {
    let (mut random, ranks) = (Random(1), Zipf::new(1000));
    one_a_millisecond(gets, |_| ranks.draw(&mut random))
}

/// The same order over and over.
fn sweep(gets: usize) -> Vec<Get> {
    one_a_millisecond(gets, |n| n % 1000)
}

/// Each address at its own pace of a second, give or take a fifth.
fn poll(gets: usize) -> Vec<Get> {
    let mut random = Random(2);
    each_at_its_pace(gets, 1000, |_, _| random.about(1000, 0.2))
}

/// A few addresses that fit the budget and come back soon, and many that do not.
fn fast_and_slow(gets: usize) -> Vec<Get> {
    let mut random = Random(3);
    each_at_its_pace(gets, 1000, |address, _| random.about(if address < 80 { 50 } else { 2000 }, 0.1))
}

/// Zipf draws, and every other get one of a sweep over 4000 more addresses.
fn zipf_and_sweep(gets: usize) -> Vec<Get> {
    let (mut random, ranks) = (Random(4), Zipf::new(1000));
    one_a_millisecond(gets, |n| if n % 2 == 0 { ranks.draw(&mut random) } else { 1000 + n / 2 % 4000 })
}

/// Zipf draws whose ranks move on by 137 addresses every 50,000 gets.
fn zipf_shifting(gets: usize) -> Vec<Get> {
    let (mut random, ranks) = (Random(5), Zipf::new(1000));
    one_a_millisecond(gets, |n| (ranks.draw(&mut random) + n / 50_000 * 137) % 1000)
}

/// Five gets 2 ms apart, then an exponential pause of mean 4000 ms.
fn bursts(gets: usize) -> Vec<Get> {
    let mut random = Random(6);
    each_at_its_pace(gets, 2000, |_, nth| match nth % 5 {
        0 => (-4000.0 * (1.0 - random.unit()).ln()) as u32,
        _ => 2,
    })
}

fn one_a_millisecond(gets: usize, mut address: impl FnMut(usize) -> usize) -> Vec<Get> {
    (0..gets).map(|n| Get { at_ms: n as u32, address: address(n) }).collect()
}

/// Each address waits for `pause(address, gets of it so far)` before each of its gets; the first time for a part of
/// it, so that they do not begin together.
fn each_at_its_pace(gets: usize, addresses: usize, mut pause: impl FnMut(usize, usize) -> u32) -> Vec<Get> {
    let mut phase = Random(7);
    let mut next: BinaryHeap<_> = (0..addresses)
        .map(|address| Reverse(((f64::from(pause(address, 0)) * phase.unit()) as u32, address, 0)))
        .collect();
    let mut list = Vec::with_capacity(gets);
    while let Some(Reverse((at_ms, address, nth))) = next.pop() {
        if list.len() == gets {
            break;
        }
        list.push(Get { at_ms, address });
        next.push(Reverse((at_ms + pause(address, nth + 1), address, nth + 1)));
    }
    list
}

/// Ranks with a probability proportional to 1/(rank + 1).
struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    fn new(ranks: usize) -> Zipf {
        let mut sum = 0.0;
        let add = |rank: usize| {
            sum += 1.0 / (rank + 1) as f64;
            sum
        };
        Zipf { cumulative: (0..ranks).map(add).collect() }
    }

    fn draw(&self, random: &mut Random) -> usize {
        let last = self.cumulative.len() - 1;
        let at = random.unit() * self.cumulative[last];
        self.cumulative.partition_point(|&sum| sum <= at).min(last)
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    /// `mean`, give or take `part` of it.
    fn about(&mut self, mean: u32, part: f64) -> u32 {
        (f64::from(mean) * (1.0 + part * (2.0 * self.unit() - 1.0))).round() as u32
    }
}

/// A policy to compare with: told of every get, it keeps a budget's worth of addresses.
pub(crate) trait Policy {
    /// A get of `address`, the `nth` of the trace; whether it was kept.
    fn get(&mut self, address: usize, nth: usize) -> bool;
}

/// The part of the gets that find their address kept.
pub(crate) fn hit_rate(trace: &Trace, policy: &mut dyn Policy) -> f64 {
    let hits = trace.gets.iter().enumerate().filter(|(nth, get)| policy.get(get.address, *nth)).count();
    hits as f64 / trace.gets.len() as f64
}

/// The least recently used goes.
pub(crate) struct Lru {
    budget: usize,
    last: Vec<Option<usize>>,
    by_age: BTreeSet<(usize, usize)>,
}

impl Lru {
    pub(crate) fn new(trace: &Trace) -> Lru {
        Lru { budget: trace.budget, last: vec![None; trace.addresses], by_age: BTreeSet::new() }
    }
}

impl Policy for Lru {
    fn get(&mut self, address: usize, nth: usize) -> bool {
        let hit = match self.last[address] {
            Some(last) => self.by_age.remove(&(last, address)),
            None => false,
        };
        if !hit && self.by_age.len() == self.budget {
            self.by_age.pop_first();
        }
        self.last[address] = Some(nth);
        self.by_age.insert((nth, address));
        hit
    }
}

/// Any goes.
pub(crate) struct Any {
    budget: usize,
    kept: Vec<usize>,
    is_kept: Vec<bool>,
    random: Random,
}

impl Any {
    pub(crate) fn new(trace: &Trace) -> Any {
        Any { budget: trace.budget, kept: vec![], is_kept: vec![false; trace.addresses], random: Random(8) }
    }
}

impl Policy for Any {
    fn get(&mut self, address: usize, _nth: usize) -> bool {
        if self.is_kept[address] {
            return true;
        }
        if self.kept.len() == self.budget {
            let victim = self.kept.swap_remove(self.random.below(self.budget));
            self.is_kept[victim] = false;
        }
        self.kept.push(address);
        self.is_kept[address] = true;
        false
    }
}

/// The next one of a ring that was not used since the hand last passed goes (Corbató, 1968).
pub(crate) struct Clock {
    budget: usize,
    ring: Vec<usize>,
    hand: usize,
    is_kept: Vec<bool>,
    used: Vec<bool>,
}

impl Clock {
    pub(crate) fn new(trace: &Trace) -> Clock {
        let no = vec![false; trace.addresses];
        Clock { budget: trace.budget, ring: vec![], hand: 0, is_kept: no.clone(), used: no }
    }
}

impl Policy for Clock {
    fn get(&mut self, address: usize, _nth: usize) -> bool {
        if self.is_kept[address] {
            self.used[address] = true;
            return true;
        }
        if self.ring.len() < self.budget {
            self.ring.push(address);
        } else {
            while std::mem::take(&mut self.used[self.ring[self.hand]]) {
                self.hand = (self.hand + 1) % self.budget;
            }
            self.is_kept[self.ring[self.hand]] = false;
            self.ring[self.hand] = address;
            self.hand = (self.hand + 1) % self.budget;
        }
        self.is_kept[address] = true;
        false
    }
}

/// Like CLOCK, but the new come in at the head of a queue and the hand stays where it is (Zhang et al., "SIEVE is
/// Simpler than LRU", 2024).
pub(crate) struct Sieve {
    budget: usize,
    /// Oldest first.
    queue: Vec<usize>,
    hand: usize,
    is_kept: Vec<bool>,
    used: Vec<bool>,
}

impl Sieve {
    pub(crate) fn new(trace: &Trace) -> Sieve {
        let no = vec![false; trace.addresses];
        Sieve { budget: trace.budget, queue: vec![], hand: 0, is_kept: no.clone(), used: no }
    }
}

impl Policy for Sieve {
    fn get(&mut self, address: usize, _nth: usize) -> bool {
        if self.is_kept[address] {
            self.used[address] = true;
            return true;
        }
        if self.queue.len() == self.budget {
            while std::mem::take(&mut self.used[self.queue[self.hand]]) {
                self.hand = (self.hand + 1) % self.budget;
            }
            let victim = self.queue.remove(self.hand);
            self.is_kept[victim] = false;
            self.hand %= self.queue.len().max(1);
        }
        self.queue.push(address);
        self.is_kept[address] = true;
        false
    }
}

/// The one wanted last goes (Belady, 1966): what no policy can be better than.
pub(crate) struct Belady {
    budget: usize,
    /// For each get, the next of the same address.
    next: Vec<usize>,
    /// When each kept address is wanted next.
    wanted: Vec<Option<usize>>,
    by_wanted: BTreeSet<(usize, usize)>,
}

impl Belady {
    pub(crate) fn new(trace: &Trace) -> Belady {
        let mut upcoming = vec![usize::MAX; trace.addresses];
        let mut next: Vec<usize> = (trace.gets.iter().enumerate().rev())
            .map(|(nth, get)| std::mem::replace(&mut upcoming[get.address], nth))
            .collect();
        next.reverse();
        Belady { budget: trace.budget, next, wanted: vec![None; trace.addresses], by_wanted: BTreeSet::new() }
    }
}

impl Policy for Belady {
    fn get(&mut self, address: usize, nth: usize) -> bool {
        let hit = match self.wanted[address].take() {
            Some(wanted) => self.by_wanted.remove(&(wanted, address)),
            None => false,
        };
        if !hit
            && self.by_wanted.len() == self.budget
            && let Some((_, victim)) = self.by_wanted.pop_last()
        {
            self.wanted[victim] = None;
        }
        self.wanted[address] = Some(self.next[nth]);
        self.by_wanted.insert((self.next[nth], address));
        hit
    }
}
