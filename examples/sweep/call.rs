//! One call: get, exchange, put; what is tried again, and what kind of failure it was in the end.
//! The only file that takes connections from the pool.

use std::io;
use std::time::{Duration, Instant};

use fdpool::{CancellationToken, ConnResource, GetError};
use thiserror::Error;

use crate::protocol::{Connection, ExchangeError};
use crate::sweep::Plan;
use crate::tally::Tally;

/// Between two dials of a call that is patient with its peer.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Get(#[from] GetError),
    #[error("{source}")]
    Exchange { reused: bool, source: ExchangeError },
}

/// What a failed call is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Cancelled,
    Wait,
    Dial,
    Exchange,
}

/// One call, as often tried as `plan` says: once more, on a fresh connection, if a reused one failed, and for as
/// long as it is patient with a peer that is away.
pub(crate) async fn call(
    plan: &Plan,
    resource: &ConnResource,
    number: u64,
    token: &CancellationToken,
    tally: &mut Tally,
) -> Result<(), CallError> {
    let began = Instant::now();
    let mut fresh = false;
    loop {
        let Err(error) = attempt(plan, resource, number, token, fresh).await else { return Ok(()) };
        if error.is_stale() {
            tally.stale_failures += 1;
        }
        if error.was_reused() && !fresh {
            tally.retried += 1;
        } else if error.peer_is_away() && began.elapsed() < plan.patience && !token.is_cancelled() {
            tokio::time::sleep(PAUSE).await;
        } else {
            return Err(error);
        }
        fresh = true;
    }
}

async fn attempt(
    plan: &Plan,
    resource: &ConnResource,
    number: u64,
    token: &CancellationToken,
    fresh: bool,
) -> Result<(), CallError> {
    let get = resource.get().cancel(token).dial_timeout(plan.timeout);
    let mut conn = if fresh { get.fresh().await? } else { get.await? };

    let exchange = plan.protocol.exchange(&mut conn, resource.address().as_str(), number);
    let exchanged = tokio::time::timeout(plan.timeout, exchange).await;
    match exchanged.unwrap_or(Err(ExchangeError::Late(plan.timeout))) {
        Ok(Connection::Reusable) => conn.put(),
        Ok(Connection::Spent) => conn.close(),
        Err(source) => {
            let reused = conn.is_reused();
            conn.close();
            return Err(CallError::Exchange { reused, source });
        }
    }
    Ok(())
}

impl CallError {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            CallError::Get(GetError::Cancelled { .. }) => Kind::Cancelled,
            CallError::Get(GetError::Dial { .. } | GetError::DialTimeout { .. }) => Kind::Dial,
            CallError::Get(_) => Kind::Wait,
            CallError::Exchange { .. } => Kind::Exchange,
        }
    }

    /// What happened, in words that are the same for all calls that it happened to.
    pub(crate) fn cause(&self) -> String {
        match self {
            CallError::Get(GetError::Dial { source, .. }) => format!("dial: {source}"),
            CallError::Get(GetError::DialTimeout { .. }) => "dial: timed out".into(),
            CallError::Get(GetError::Exhausted { .. }) => "no slot in time".into(),
            CallError::Get(GetError::AddressBusy { .. }) => "max_conns in use for too long".into(),
            CallError::Get(error) => error.to_string(),
            CallError::Exchange { source, .. } => source.to_string(),
        }
    }

    fn was_reused(&self) -> bool {
        matches!(self, CallError::Exchange { reused: true, .. })
    }

    /// A reused connection failed before a byte of the answer came: the peer had closed it, or closed it then.
    fn is_stale(&self) -> bool {
        matches!(self, CallError::Exchange { reused: true, source: ExchangeError::Unanswered(_) })
    }

    /// It refuses, or drops what it has accepted, as a server does that restarts.
    fn peer_is_away(&self) -> bool {
        let kind = match self {
            CallError::Get(GetError::Dial { source, .. }) => source.io_kind(),
            CallError::Get(_) => None,
            CallError::Exchange { source, .. } => source.io_kind(),
        };
        kind.is_some_and(|kind| {
            use io::ErrorKind::*;
            matches!(
                kind,
                ConnectionRefused | ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof
            )
        })
    }
}
