//! How long a caller is willing to wait: a token, and a deadline. The timers and their errors are the
//! callers' business; nothing here is made before somebody really has to wait.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// What ended a caller's patience.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Cancelled,
    TimedOut,
}

impl End {
    pub(crate) fn timed_out(self) -> bool {
        self == End::TimedOut
    }
}

#[derive(Default)]
pub(crate) struct Patience<'a> {
    token: Option<&'a CancellationToken>,
    limit: Option<Duration>,
    cancelled: Option<Pin<Box<WaitForCancellationFuture<'a>>>>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl<'a> Patience<'a> {
    pub(crate) fn cancel(&mut self, token: &'a CancellationToken) {
        self.token = Some(token);
    }

    pub(crate) fn limit(&mut self, limit: Duration) {
        self.limit = Some(limit);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.token.is_some_and(CancellationToken::is_cancelled)
    }

    /// Waits until `deadline` and no longer; for ever without one.
    pub(crate) fn until(&mut self, deadline: Option<Instant>) {
        self.limit = None;
        match (&mut self.sleep, deadline) {
            (Some(sleep), Some(deadline)) if sleep.deadline() == deadline => {}
            (Some(sleep), Some(deadline)) => sleep.as_mut().reset(deadline),
            (sleep, deadline) => {
                *sleep = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)))
            }
        }
    }

    /// Ready when patience ends. The limit runs from the first poll.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if let Some(token) = self.token {
            let cancelled = self.cancelled.get_or_insert_with(|| Box::pin(token.cancelled()));
            if cancelled.as_mut().poll(cx).is_ready() {
                return Poll::Ready(End::Cancelled);
            }
        }
        if let Some(limit) = self.limit.take() {
            self.sleep = Some(Box::pin(tokio::time::sleep(limit)));
        }
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().poll(cx).map(|()| End::TimedOut),
            None => Poll::Pending,
        }
    }
}

impl fmt::Debug for Patience<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patience").field("limit", &self.limit).finish_non_exhaustive()
    }
}
