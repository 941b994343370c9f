//! Everything at once on several threads: dials that fail and succeed, connections put, closed and unfit,
//! fresh gets, gets dropped. Nobody waits for ever, and nothing is lost.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fdpool::dial::CheckContext;
use fdpool::{Address, Budget, ConnResource, Dial, DialContext, DialError, Fitness, GetError};
use support::comes_to_rest;

/// Takes a few turns of the scheduler, and fails while it is told to.
#[derive(Clone, Default)]
struct Moody {
    down: Arc<AtomicBool>,
    dials: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Dial for Moody {
    type Conn = Open;

    async fn dial(&self, _: &Address, _: &DialContext) -> Result<Open, DialError> {
        let number = self.dials.fetch_add(1, Ordering::SeqCst);
        for _ in 0..number % 4 {
            tokio::task::yield_now().await;
        }
        if self.down.load(Ordering::SeqCst) {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        self.open.fetch_add(1, Ordering::SeqCst);
        Ok(Open(Arc::clone(&self.open)))
    }

    fn check(&self, _: &mut Open, _: &CheckContext) -> Fitness {
        match self.dials.fetch_add(1, Ordering::SeqCst) % 11 {
            0 => Fitness::Closed,
            _ => Fitness::Fit,
        }
    }
}

fn stress(limit: usize, addresses: usize, max_conns: usize, max_dialing: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async {
        let budget = Budget::builder().limit(limit).max_dialing(max_dialing).build().unwrap();
        let dialer = Moody::default();
        let resources: Vec<_> = (0..addresses)
            .map(|n| {
                let builder = ConnResource::builder(n.to_string(), dialer.clone()).budget(&budget);
                builder.max_conns(max_conns).wait_timeout(Duration::from_secs(5)).build()
            })
            .collect();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..24_usize {
            let (resource, dialer) = (resources[n % addresses].clone(), dialer.clone());
            tasks.spawn(async move {
                for round in 0..3000_usize {
                    let choice = n * 7 + round * 13;
                    if choice % 7 == 0 {
                        dialer.down.fetch_xor(true, Ordering::SeqCst);
                    }
                    let get = if choice % 5 == 0 { resource.get().fresh() } else { resource.get() };
                    if choice % 17 == 0 {
                        let _ = futures::future::select(get, Box::pin(tokio::task::yield_now())).await;
                        continue;
                    }
                    match get.await {
                        Ok(conn) if choice % 3 == 0 => conn.close(),
                        Ok(conn) => conn.put(),
                        Err(GetError::Dial { .. }) => tokio::task::yield_now().await,
                        Err(error) => panic!("{error}\n{}", resource.budget().explain()),
                    }
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        drop(resources);
        comes_to_rest(&budget, 0).await;
        assert_eq!(dialer.open.load(Ordering::SeqCst), 0);
        assert!(budget.acquire_many(limit).immediate().await.is_ok());
    });
}

#[test]
fn one_address_with_room() {
    stress(100, 1, usize::MAX, usize::MAX);
}

#[test]
fn one_address_under_pressure() {
    stress(5, 1, usize::MAX, usize::MAX);
}

#[test]
fn one_busy_address() {
    stress(100, 1, 4, usize::MAX);
}

#[test]
fn many_addresses_under_pressure() {
    stress(5, 8, usize::MAX, usize::MAX);
}

#[test]
fn many_busy_addresses_under_pressure_with_few_dials() {
    stress(6, 4, 2, 2);
}

/// Callers who take nothing that has served before cannot be rescued by a put: whoever is forgotten among them
/// is forgotten for good.
#[test]
fn fresh_gets_while_dials_fail() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async {
        let budget = Budget::new(100);
        let dialer = Moody::default();
        let builder = ConnResource::builder("a", dialer.clone()).budget(&budget);
        let resource = builder.wait_timeout(Duration::from_secs(5)).build();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..16_usize {
            let (resource, dialer) = (resource.clone(), dialer.clone());
            tasks.spawn(async move {
                for round in 0..2000_usize {
                    if (n + round) % 50 == 0 {
                        dialer.down.fetch_xor(true, Ordering::SeqCst);
                    }
                    match resource.get().fresh().await {
                        Ok(conn) if round % 2 == 0 => conn.put(),
                        Ok(conn) => conn.close(),
                        Err(GetError::Dial { .. }) => {}
                        Err(error) => panic!("{error}\n{}", resource.budget().explain()),
                    }
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
    });
}
