//! The sweep: which call comes next, and how many run at once.
//! What a call is and what its outcome means is said elsewhere.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fdpool::dial::Tcp;
use fdpool::{Address, CancellationToken, ConnResource};
use indicatif::ProgressBar;
use tokio::task::JoinSet;

use crate::call::call;
use crate::protocol::Protocol;
use crate::tally::Tally;

/// What is asked of a sweep, whatever its targets are.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: u64,
    pub(crate) concurrency: usize,
    pub(crate) protocol: Protocol,
    /// Of a dial, and of the exchange after it.
    pub(crate) timeout: Duration,
    /// How long a call goes on dialing a peer that is away.
    pub(crate) patience: Duration,
}

impl Plan {
    pub(crate) fn calls(&self, targets: usize) -> u64 {
        self.rounds.saturating_mul(targets as u64)
    }
}

#[derive(Debug)]
struct Sweep {
    plan: Plan,
    resources: Vec<ConnResource>,
    calls: u64,
    /// The number of the next call: the target is its remainder, the round its quotient.
    next: AtomicU64,
    token: CancellationToken,
    bar: ProgressBar,
}

/// One handle a target. A target that is listed twice has one resource, and so one `max_conns`.
pub(crate) fn resources(targets: &[Address], max_conns: Option<NonZeroUsize>) -> Vec<ConnResource> {
    let mut known = HashMap::new();
    let handle = |target: &Address| {
        let resource = known.entry(target.clone()).or_insert_with(|| match max_conns {
            Some(n) => ConnResource::builder(target, Tcp::default()).max_conns(n.get()).build(),
            None => ConnResource::new(target),
        });
        resource.clone()
    };
    targets.iter().map(handle).collect()
}

/// Runs until every call has ended, or, once `token` is cancelled, those that were under way have.
pub(crate) async fn run(
    plan: Plan,
    resources: Vec<ConnResource>,
    token: CancellationToken,
    bar: ProgressBar,
) -> Tally {
    let calls = plan.calls(resources.len());
    let callers = calls.min(plan.concurrency as u64);
    let sweep = Arc::new(Sweep { plan, resources, calls, next: AtomicU64::new(0), token, bar });

    let mut running = JoinSet::new();
    for _ in 0..callers {
        running.spawn(call_one_after_the_other(Arc::clone(&sweep)));
    }
    let mut total = Tally::default();
    while let Some(caller) = running.join_next().await {
        match caller {
            Ok(tally) => total.merge(tally),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    total
}

async fn call_one_after_the_other(sweep: Arc<Sweep>) -> Tally {
    let mut tally = Tally::default();
    while !sweep.token.is_cancelled() {
        let number = sweep.next.fetch_add(1, Ordering::Relaxed);
        if number >= sweep.calls {
            break;
        }
        let resource = &sweep.resources[(number % sweep.resources.len() as u64) as usize];
        let began = Instant::now();
        match call(&sweep.plan, resource, number, &sweep.token, &mut tally).await {
            Ok(()) => tally.succeeded(began.elapsed()),
            Err(error) => tally.failed_with(&error, resource.address()),
        }
        sweep.bar.inc(1);
    }
    tally
}
