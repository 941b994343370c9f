//! The `Get` future: an idle connection at once, or a place behind others who queue; what takes longer is in [`mod@slow`].

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::ConnResource;
use super::shared::{Caller, Found, Grant, Shared};
use crate::budget::Site;
use crate::budget::queue::{Cell, Place};
use crate::budget::slot::Slot;
use crate::clock::{self, Tick};
use crate::conn::Conn;
use crate::error::GetError;
use crate::runtime;
use crate::upkeep;

mod slow;
mod waiting;

use waiting::Slow;

/// Gets a connection; made by [`ConnResource::get`].
///
/// With an idle connection at hand it is ready at its first poll, without allocation or lock contention between
/// addresses, and without a system call but what the dialer's [check](crate::Dial::check) makes. Otherwise it takes a
/// place in line, waits for a slot or for a connection of its address to come back, whichever is first, and dials with
/// the slot.
///
/// A `Get` that is not polled keeps what was granted to it: do not leave one lying about. Poll it on the runtime it was
/// polled on first: its timers, and its dial, are there.
///
/// A connection is given out only on the runtime that it was dialled on; a get that comes upon one of another runtime closes
/// it. A task that goes from one runtime to another (a `LocalSet` that is driven by two, a `Handle::enter`) is taken to be
/// where it first asked.
///
/// A get that finds something idle takes no part in tokio's cooperative budget: a task that does nothing but get and put
/// keeps others of its thread from running, unless it awaits something else too
/// ([`consume_budget`](tokio::task::coop::consume_budget), say). One that fails does take part.
///
/// # Cancel safety
///
/// Dropping it loses its place in line and nothing else: a connection or slot granted to it goes to the next,
/// and its dial goes on if others at the address count on it.
///
/// # Errors
///
/// See [`GetError`]: waiting took too long or was not wanted, the token fired, the dial failed or took too long.
///
/// # Panics
///
/// If it has to wait or to dial and there is no tokio runtime with a time driver. On a runtime without one the tasks that
/// look after idle connections panic as well.
#[must_use = "futures do nothing unless polled"]
pub struct Get<'a, C> {
    resource: Source<'a, C>,
    fresh: bool,
    immediate: bool,
    token: Option<&'a CancellationToken>,
    timeout: Option<Duration>,
    wait_timeout: Option<Duration>,
    dial_timeout: Option<Duration>,
    slot: Option<Box<Slot>>,
    wait_for_ready: bool,
    site: Site,
    stage: Stage<'a, C>,
}

enum Stage<'a, C> {
    /// Not polled yet, or over. Can become Behind or Slow.
    Idle,
    /// In line behind others. Can become Slow, or over.
    Behind(Behind<C>),
    /// It can be over, and no more.
    Slow(Box<Slow<'a, C>>),
    /// In vain, which is told when other tasks have had their turn.
    Failed(GetError),
}

/// What a get keeps that only waits for a connection of its address: it is looked after (see [`upkeep::hasten`]), and
/// has no timer.
struct Behind<C> {
    caller: Arc<Caller<C>>,
    place: Place,
    /// When its wait ends.
    wait_ends: Tick,
}

enum Source<'a, C> {
    Borrowed(&'a ConnResource<C>),
    Owned(ConnResource<C>),
}

impl<C> Source<'_, C> {
    fn handle(&self) -> &ConnResource<C> {
        match self {
            Source::Borrowed(resource) => resource,
            Source::Owned(resource) => resource,
        }
    }

    fn shared(&self) -> &Arc<Shared<C>> {
        self.handle().shared()
    }
}

impl<'a, C> Get<'a, C> {
    pub(super) fn borrowed(resource: &'a ConnResource<C>, site: Site) -> Self {
        Self::new(Source::Borrowed(resource), site)
    }

    fn new(resource: Source<'a, C>, site: Site) -> Self {
        Self {
            resource,
            fresh: false,
            immediate: false,
            token: None,
            timeout: None,
            wait_timeout: None,
            dial_timeout: None,
            slot: None,
            wait_for_ready: false,
            site,
            stage: Stage::Idle,
        }
    }

    /// Gives up when `token` fires, whether waiting or dialing. An idle connection is given out without asking
    /// the token.
    pub fn cancel(mut self, token: &'a CancellationToken) -> Self {
        self.token = Some(token);
        self
    }

    /// How long the whole get may take, from its first poll. Default: no such limit.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long to wait for a slot, or for the address. Default: the resource's, which is 30 s.
    pub fn wait_timeout(mut self, timeout: Duration) -> Self {
        self.wait_timeout = Some(timeout);
        self
    }

    /// How long the dial may take, counted from when a slot is held. Default: the resource's, which is 10 s.
    ///
    /// It limits the dial, not the get: a get that another's dial serves leaves its own dial to others. If a get
    /// [waits until the address is ready](Self::wait_for_ready), and this timeout, being shorter than the resource's, ends
    /// its dial, then that get alone pauses, for as long as [`backoff`](crate::ConnResourceBuilder::backoff) says, and
    /// tries again.
    #[doc(alias = "connect_timeout")]
    pub fn dial_timeout(mut self, timeout: Duration) -> Self {
        self.dial_timeout = Some(timeout);
        self
    }

    /// Does not wait for a slot or for the address: [`GetError::Exhausted`] or [`GetError::AddressBusy`]
    /// instead. May close another address's idle connection; dials. At an address at `max_conns` it does not wait either for
    /// an idle connection that the background task is looking at just then, which takes microseconds.
    pub fn immediate(mut self) -> Self {
        self.immediate = true;
        self
    }

    /// Waits also while the address pauses after failed dials, and tries again when a dial fails, until one succeeds or
    /// the time is over. Not after a failure that is [permanent](crate::DialError::is_permanent).
    ///
    /// Without this option, a get that would have to dial during a pause fails at once with the last dial's error: see
    /// [`backoff`](crate::ConnResourceBuilder::backoff). If pauses are turned off there, a failed dial ends this get as it
    /// does any other.
    pub fn wait_for_ready(mut self) -> Self {
        self.wait_for_ready = true;
        self
    }

    /// Takes none that has served or rested, but one that has just been dialled, by itself or by another: for a second
    /// try, after one that had served before failed. Close that one first, for this may need its slot.
    pub fn fresh(mut self) -> Self {
        self.fresh = true;
        self
    }

    /// Dials with this slot instead of waiting for one; one descriptor of it is used, the rest goes back.
    ///
    /// An idle connection is taken first, unless [`fresh`](Self::fresh), and the slot goes back. If the address
    /// has all it may have (`max_conns`), or as many dials are under way as may be (`max_dialing`), the slot goes
    /// back and the get waits as any other.
    ///
    /// # Errors
    ///
    /// The get fails with [`GetError::ForeignSlot`] unless the slot is of the resource's own budget: one of a parent, a
    /// child or any other budget is refused.
    pub fn with_slot(mut self, slot: Slot) -> Self {
        self.slot = Some(Box::new(slot));
        self
    }
}

impl<C> Get<'static, C> {
    pub(super) fn owned(resource: ConnResource<C>, site: Site) -> Self {
        Self::new(Source::Owned(resource), site)
    }
}

impl<C: Send + 'static> Future for Get<'_, C> {
    type Output = Result<Conn<C>, GetError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        match this.stage {
            Stage::Idle if !this.fresh => {
                if this.resource.shared().others_queue()
                    && let Some(begun) = this.begin_behind(cx)
                {
                    return begun;
                }
                match this.resource.handle().take_idle(Some(cx.waker()), this.site) {
                    Ok((conn, stocks)) => this.give(conn, stocks),
                    Err(missed) => this.begin(missed, cx),
                }
            }
            Stage::Idle => {
                let missed = this.resource.shared().pass_over_idle();
                this.begin(missed, cx)
            }
            Stage::Behind(_) => this.poll_behind(cx),
            Stage::Slow(_) => this.poll_slow(cx),
            Stage::Failed(_) => match std::mem::replace(&mut this.stage, Stage::Idle) {
                Stage::Failed(error) => Poll::Ready(Err(error)),
                _ => unreachable!("BUG: a get that has failed"),
            },
        }
    }
}

impl<'a, C: Send + 'static> Get<'a, C> {
    #[inline]
    fn give(&mut self, conn: Conn<C>, stocks: bool) -> Poll<Result<Conn<C>, GetError>> {
        if self.slot.is_some() {
            self.slot = None;
        }
        if stocks {
            upkeep::restock_after_use(self.resource.shared());
        }
        Poll::Ready(Ok(conn))
    }

    /// Others queue: takes what is idle all the same, or gets in line behind them. `None`: neither, or it would have
    /// something to look after by itself.
    #[cold]
    fn begin_behind(&mut self, cx: &mut Context<'_>) -> Option<Poll<Result<Conn<C>, GetError>>> {
        let is_cancelled = || self.token.is_some_and(CancellationToken::is_cancelled);
        if self.timeout.is_some() || self.slot.is_some() || self.immediate || is_cancelled() {
            return None;
        }
        let shared = self.resource.shared();
        upkeep::see_to_slots(shared.partition());
        let now = clock::now();
        let cell = Cell::new(now, Some(cx.waker().clone()));
        let caller = self.caller(cell, runtime::of(cx.waker()));
        match shared.take_or_queue(now, self.wait_timeout, &caller) {
            Found::Idle(taken) => match shared.give(taken, now, Some(cx.waker()), self.site) {
                Ok((conn, stocks)) => Some(self.give(conn, stocks)),
                Err(missed) => Some(self.begin(missed, cx)),
            },
            Found::Place(place, wait_ends) => {
                self.stage = Stage::Behind(Behind { caller, place, wait_ends });
                // With its waker in the cell, and nothing else to be woken by.
                let Some(token) = self.token else { return Some(Poll::Pending) };
                self.look_after_itself().patience.cancel(token);
                Some(self.poll_slow(cx))
            }
            Found::Nothing => None,
        }
    }

    fn poll_behind(&mut self, cx: &mut Context<'_>) -> Poll<Result<Conn<C>, GetError>> {
        let Stage::Behind(behind) = &self.stage else { unreachable!("BUG: a get behind others") };
        let Some(entry) = behind.caller.cell.take_if(Grant::is_conn).and_then(Grant::into_conn) else {
            self.look_after_itself();
            return self.poll_slow(cx);
        };
        match Shared::judge_handed(entry) {
            Ok(entry) => {
                self.stage = Stage::Idle;
                Poll::Ready(Ok(Conn::new(entry, self.site)))
            }
            Err(slot) => {
                let place = self.look_after_itself().place.take();
                match self.line_up_again(slot, place) {
                    None => self.poll_slow(cx),
                    Some(done) => self.end(done),
                }
            }
        }
    }

    /// It keeps its time itself from now on.
    #[cold]
    fn look_after_itself(&mut self) -> &mut Slow<'a, C> {
        if let Stage::Behind(Behind { caller, place, wait_ends }) =
            std::mem::replace(&mut self.stage, Stage::Idle)
        {
            let mut slow = Slow::new(caller);
            slow.goes_on_waiting(place, wait_ends);
            self.stage = Stage::Slow(Box::new(slow));
        }
        self.slow()
    }
}

impl<C> Drop for Get<'_, C> {
    #[inline]
    fn drop(&mut self) {
        if !matches!(self.stage, Stage::Idle) {
            self.leave();
        }
    }
}

impl<C> fmt::Debug for Get<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Get")
            .field("address", &self.resource.shared().address)
            .field("fresh", &self.fresh)
            .field("immediate", &self.immediate)
            .field("in_line", &!matches!(self.stage, Stage::Idle))
            .finish_non_exhaustive()
    }
}

// Nothing in it is pinned; its dial is in a box.
impl<C> Unpin for Get<'_, C> {}
