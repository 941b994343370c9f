//! The `Get` future: an idle connection at once, or a place in line, a slot, a dial.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ConnResource;
use super::attempt::{Attempt, Job};
use super::shared::{Begun, Caller, Failure, Found, Grant, Left, Missed, Queued, Shared, Wants};
use crate::budget::Site;
use crate::budget::queue::{Cell, Place};
use crate::budget::slot::Slot;
use crate::clock::{self, Tick};
use crate::conn::Conn;
use crate::error::{DialError, GetError, Phase};
use crate::patience::{End, Patience};
use crate::runtime;
use crate::stats::Event;
use crate::upkeep;

/// Gets a connection; made by [`ConnResource::get`].
///
/// With an idle connection at hand it is ready at its first poll, without allocation, lock contention between
/// addresses or system call. Otherwise it takes a place in line, waits for a slot or for a connection of its
/// address to come back, whichever is first, and dials with the slot.
///
/// A `Get` that is not polled keeps what was granted to it: do not leave one lying about. Poll it on the runtime it was
/// polled on first: its timers, and its dial, are there.
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
/// If it has to wait or to dial and there is no tokio runtime with a time driver.
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
}

/// What a get keeps that only waits for a connection of its address: it is looked after (see [`upkeep::hasten`]), and
/// has no timer.
struct Behind<C> {
    caller: Arc<Caller<C>>,
    place: Place,
    /// When its wait ends.
    woken_before: Tick,
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

/// What a get that cannot be served at once keeps.
struct Slow<'a, C> {
    caller: Arc<Caller<C>>,
    /// In line; `None` once it was served or has left.
    place: Option<Place>,
    /// Its dial, with the runtime it is polled on.
    attempt: Option<(Attempt, Option<Handle>)>,
    deadline: Option<Instant>,
    wait_deadline: Option<Instant>,
    /// When its wait ends, while it has no timer. `NEVER`: it does not, or has one.
    wait_ends: Tick,
    patience: Patience<'a>,
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
    #[doc(alias = "connect_timeout")]
    pub fn dial_timeout(mut self, timeout: Duration) -> Self {
        self.dial_timeout = Some(timeout);
        self
    }

    /// Does not wait for a slot or for the address: [`GetError::Exhausted`] or [`GetError::AddressBusy`]
    /// instead. May close another address's idle connection; dials.
    pub fn immediate(mut self) -> Self {
        self.immediate = true;
        self
    }

    /// Waits also while the address pauses after failed dials, and tries again when a dial fails, until one succeeds or
    /// the time is over. Not after a failure that is [permanent](crate::DialError::is_permanent). Without it, a get
    /// that would have to dial meanwhile fails at once with the last dial's error; see
    /// [`backoff`](crate::ConnResourceBuilder::backoff); without pauses it fails as any other.
    pub fn wait_for_ready(mut self) -> Self {
        self.wait_for_ready = true;
        self
    }

    /// Takes no idle connection but dials: for a second try, after one that had served before failed. Close that one
    /// first, for this may need its slot.
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
    /// The get fails with [`GetError::ForeignSlot`] if the slot is not of the resource's own budget: not of another
    /// one, nor of its parent or child.
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
        }
    }
}

/// Where a caller ended up that wanted to get in line.
enum Lined<C> {
    /// In line, or to dial at once.
    At(Place, Option<Begun>),
    /// Something had come to rest meanwhile.
    Served(Conn<C>),
    Never,
    Paused(DialError),
    Closed,
}

impl<'a, C: Send + 'static> Get<'a, C> {
    #[inline]
    fn give(&mut self, conn: Conn<C>, stocks: bool) -> Poll<Result<Conn<C>, GetError>> {
        if self.slot.is_some() {
            self.slot = None;
        }
        if stocks {
            upkeep::restock(self.resource.shared());
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
        upkeep::grow_back(shared.partition());
        let now = clock::now();
        let cell = Cell::new(now, Some(cx.waker().clone()));
        let caller = self.caller(cell, runtime::of(cx.waker()));
        match shared.take_or_queue(now, self.wait_timeout, &caller) {
            Found::Idle(taken) => match shared.give(taken, now, Some(cx.waker()), self.site) {
                Ok((conn, stocks)) => Some(self.give(conn, stocks)),
                Err(missed) => Some(self.begin(missed, cx)),
            },
            Found::Place(place, woken_before) => {
                self.stage = Stage::Behind(Behind { caller, place, woken_before });
                // With its waker in the cell, and nothing else to be woken by.
                let Some(token) = self.token else { return Some(Poll::Pending) };
                self.look_after_itself().patience.cancel(token);
                Some(self.poll_slow(cx))
            }
            Found::Nothing => None,
        }
    }

    /// Nothing is idle, or nothing idle is wanted.
    #[cold]
    fn begin(&mut self, missed: Missed, cx: &mut Context<'_>) -> Poll<Result<Conn<C>, GetError>> {
        match self.get_in_line(missed, runtime::of(cx.waker())) {
            Some(done) => Poll::Ready(done),
            None => self.poll_slow(cx),
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
                self.look_after_itself().place = None;
                match self.line_up_again(slot) {
                    Ok(None) => self.poll_slow(cx),
                    Ok(Some(conn)) => self.end(Ok(conn)),
                    Err(error) => self.end(Err(error)),
                }
            }
        }
    }

    /// It keeps its time itself from now on.
    #[cold]
    fn look_after_itself(&mut self) -> &mut Slow<'a, C> {
        if let Stage::Behind(Behind { caller, place, woken_before }) =
            std::mem::replace(&mut self.stage, Stage::Idle)
        {
            let mut slow = Slow::new(caller);
            slow.place = Some(place);
            slow.wait_ends = woken_before;
            self.stage = Stage::Slow(Box::new(slow));
        }
        self.slow()
    }

    /// Gets in line. `Some`: it is over.
    fn get_in_line(
        &mut self,
        Missed { rests, stocks, wait_timeout }: Missed,
        here: Option<runtime::Id>,
    ) -> Option<Result<Conn<C>, GetError>> {
        let shared = self.resource.shared();
        if stocks {
            upkeep::restock(shared);
        }
        upkeep::grow_back(shared.partition());
        let now = clock::now();
        let refused = || shared.details(Phase::WaitingForSlot, now, false);
        let mut slot = self.slot.take().map(|slot| *slot);
        if slot.as_ref().is_some_and(|slot| !slot.belongs_to(shared.partition())) {
            return Some(Err(GetError::ForeignSlot { details: refused() }));
        }
        if self.token.is_some_and(CancellationToken::is_cancelled) {
            return Some(Err(GetError::Cancelled { details: refused(), source: shared.last_error() }));
        }
        if let Some(slot) = &mut slot {
            slot.changes_hands(None);
        }
        let unneeded = slot.as_mut().and_then(|slot| slot.split(slot.weight().saturating_sub(1)));
        drop(unneeded);
        let slot = slot.filter(|slot| slot.weight() > 0);
        let mut slow = Slow::new(self.caller(Cell::new(now, None), here));
        let wait = self.wait_timeout.or(wait_timeout);
        let is_long = self.timeout.is_none() && wait.is_none_or(|wait| wait >= upkeep::LONG_WAIT);
        let (place, begun) = match self.line_up(&slow.caller, slot, rests) {
            Lined::At(place, begun) => (place, begun),
            Lined::Served(conn) => return Some(Ok(conn)),
            Lined::Never => {
                return Some(Err(GetError::Exhausted { details: refused(), source: shared.last_error() }));
            }
            Lined::Paused(source) => {
                let details = shared.details(Phase::BackingOff, now, false);
                return Some(Err(GetError::Dial { details, source }));
            }
            Lined::Closed => return Some(Err(GetError::Closed { details: refused() })),
        };
        slow.place = Some(place);
        slow.deadline = self.timeout.and_then(clock::deadline);
        if is_long {
            slow.wait_ends = wait.map_or(Tick::NEVER, |wait| now.after(wait));
        } else {
            slow.wait_deadline = wait.and_then(clock::deadline);
        }
        if let Some(token) = self.token {
            slow.patience.cancel(token);
        }
        let waits = begun.is_none() && slow.caller.cell.is_waiting();
        self.stage = Stage::Slow(Box::new(slow));
        if let Some(begun) = begun {
            self.dial(begun);
        } else if waits {
            if self.immediate {
                return self.give_up(None).map(Err);
            }
            shared.count(Event::Wait);
            upkeep::probe_later(shared);
            upkeep::hasten(shared);
        }
        None
    }

    fn caller(&self, cell: Cell<Grant<C>>, runtime: Option<runtime::Id>) -> Arc<Caller<C>> {
        let Self { fresh, immediate, wait_for_ready: patient, .. } = *self;
        Arc::new(Caller { cell, wants: Wants { runtime, fresh, patient }, immediate })
    }

    fn line_up(&self, caller: &Arc<Caller<C>>, mut slot: Option<Slot>, mut rests: u32) -> Lined<C> {
        let shared = self.resource.shared();
        loop {
            match shared.enqueue(caller, slot, rests) {
                Queued::At(place, begun) => return Lined::At(place, begun),
                Queued::Never => return Lined::Never,
                Queued::Paused(error, brought) => {
                    drop(brought);
                    return Lined::Paused(error);
                }
                Queued::Closed(brought) => {
                    drop(brought);
                    return Lined::Closed;
                }
                Queued::LookAgain(brought) => slot = brought,
            }
            match shared.take_idle_again(self.site) {
                Ok((conn, _)) => return Lined::Served(conn),
                Err(missed) => rests = missed.rests,
            }
        }
    }

    /// Begins the dial that is this get's own.
    fn dial(&mut self, Begun { slot, mut terms }: Begun) {
        let shared = self.resource.shared();
        let Stage::Slow(slow) = &mut self.stage else { return };
        let runtime = Handle::try_current().ok();
        terms.timeout = self.dial_timeout.or(terms.timeout);
        let home = runtime.as_ref().map(Handle::id);
        let job = Job { slot, initiator: slow.place, terms, home };
        let attempt = Arc::clone(&shared.dialer).attempt(Arc::clone(shared), job);
        slow.attempt = Some((attempt, runtime));
    }

    fn poll_slow(&mut self, cx: &mut Context<'_>) -> Poll<Result<Conn<C>, GetError>> {
        loop {
            let slow = self.slow();
            let granted = match slow.caller.cell.begin_poll() {
                Ok(grant) => Poll::Ready(grant),
                Err(waker) => {
                    // Out of its place while it is polled: if it panics, it is dropped, and its slot given back (I7).
                    if let Some((mut attempt, runtime)) = slow.attempt.take()
                        && attempt.as_mut().poll(cx).is_pending()
                    {
                        slow.attempt = Some((attempt, runtime));
                    }
                    slow.caller.cell.end_poll(waker, cx)
                }
            };
            match granted {
                Poll::Ready(Grant::Slot(slot)) => {
                    if self.resource.shared().is_closed() {
                        drop(slot);
                        let error = self.failed(Failure::Closed);
                        drop(self.give_up(None));
                        return Poll::Ready(Err(error));
                    }
                    let shared = self.resource.shared();
                    upkeep::grow_back(shared.partition());
                    let begun = shared.begin_dial(slot);
                    self.dial(begun);
                    continue;
                }
                Poll::Ready(Grant::Conn(entry)) => {
                    slow.place = None;
                    match Shared::judge_handed(entry).map(|entry| Conn::new(entry, self.site)) {
                        Ok(conn) => return self.end(Ok(conn)),
                        Err(slot) => match self.line_up_again(slot) {
                            Ok(None) => continue,
                            Ok(Some(conn)) => return self.end(Ok(conn)),
                            Err(error) => return self.end(Err(error)),
                        },
                    }
                }
                Poll::Ready(Grant::Failed(failure)) => {
                    slow.place = None;
                    if let Failure::Closed = failure {
                        slow.attempt = None; // nobody is to have what it makes
                    }
                    let error = self.failed(failure);
                    return self.end(Err(error));
                }
                Poll::Pending => {}
            }
            let (place, dials) = (slow.place, slow.attempt.is_some());
            if self.immediate && !dials && self.resource.shared().is_queued(place) {
                // Its dial found no descriptor.
                return Poll::Ready(Err(self.give_up(None).expect("BUG: a get in line")));
            }
            let slow = self.slow();
            // Polled without a grant, and no dial of its own, it keeps its time itself.
            if slow.attempt.is_none() && slow.wait_ends != Tick::NEVER {
                let wait_ends = std::mem::replace(&mut slow.wait_ends, Tick::NEVER);
                slow.wait_deadline = clock::deadline(wait_ends.since(clock::now()));
            }
            slow.patience.until(match (&slow.attempt, slow.wait_deadline, slow.deadline) {
                (None, Some(wait), Some(whole)) => Some(wait.min(whole)),
                (None, Some(wait), None) => Some(wait),
                (_, _, whole) => whole,
            });
            let end = std::task::ready!(slow.patience.poll(cx));
            if let Some(error) = self.give_up(Some(end)) {
                return Poll::Ready(Err(error));
            }
        }
    }

    /// What was handed over was no longer fit: in line again, with its slot. `Some`: served by something that rests.
    #[cold]
    fn line_up_again(&mut self, slot: Option<Slot>) -> Result<Option<Conn<C>>, GetError> {
        let shared = Arc::clone(self.resource.shared());
        let slow = self.slow();
        // The dial of its former place is of no use to the next one.
        if let Some(former) = slow.attempt.take() {
            go_on(&shared, former);
        }
        let (caller, began) = (Arc::clone(&slow.caller), slow.caller.cell.since);
        let (place, begun) = match self.line_up(&caller, slot, 0) {
            Lined::Served(conn) => return Ok(Some(conn)),
            Lined::At(place, begun) => (place, begun),
            Lined::Never => {
                let details = shared.details(Phase::WaitingForSlot, began, false);
                return Err(GetError::Exhausted { details, source: shared.last_error() });
            }
            Lined::Paused(source) => {
                let details = shared.details(Phase::BackingOff, began, false);
                return Err(GetError::Dial { details, source });
            }
            Lined::Closed => {
                return Err(GetError::Closed {
                    details: shared.details(Phase::WaitingForSlot, began, false),
                });
            }
        };
        self.slow().place = Some(place);
        if let Some(begun) = begun {
            self.dial(begun);
        }
        Ok(None)
    }

    fn failed(&mut self, failure: Failure) -> GetError {
        let began = self.slow().caller.cell.since;
        let shared = self.resource.shared();
        match failure {
            Failure::Error(source) => {
                GetError::Dial { details: shared.details(Phase::Dialing, began, false), source }
            }
            Failure::Paused(source) => {
                GetError::Dial { details: shared.details(Phase::BackingOff, began, false), source }
            }
            Failure::Closed => {
                GetError::Closed { details: shared.details(Phase::WaitingForSlot, began, false) }
            }
            Failure::Timeout => {
                let details = shared.details(Phase::Dialing, began, true);
                GetError::DialTimeout { details, source: shared.last_error() }
            }
        }
    }
}

impl<'a, C> Get<'a, C> {
    fn slow(&mut self) -> &mut Slow<'a, C> {
        match &mut self.stage {
            Stage::Slow(slow) => slow,
            Stage::Idle | Stage::Behind(_) => unreachable!("BUG: a get in line, that looks after itself"),
        }
    }

    fn end(&mut self, result: Result<Conn<C>, GetError>) -> Poll<Result<Conn<C>, GetError>> {
        self.detach();
        Poll::Ready(result)
    }

    /// Dropped before it was over.
    #[cold]
    fn leave(&mut self) {
        match &self.stage {
            Stage::Slow(slow) if slow.place.is_none() => self.detach(),
            Stage::Slow(_) | Stage::Behind(_) | Stage::Idle => drop(self.give_up(None)),
        }
    }

    /// Leaves the line; whatever was granted goes to the next. `None` if it was in none.
    fn give_up(&mut self, end: Option<End>) -> Option<GetError> {
        let shared = self.resource.shared();
        let (caller, place, attempt) = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Idle => return None,
            Stage::Behind(Behind { caller, place, .. }) => (caller, Some(place), None),
            Stage::Slow(slow) => (slow.caller, slow.place, slow.attempt),
        };
        let began = caller.cell.since;
        let runtime = attempt.as_ref().and_then(|(_, runtime)| runtime.as_ref()).map(Handle::id);
        let Left { granted, phase, keep_dial } = shared.leave(place, &caller, runtime);
        let phase = match granted {
            _ if attempt.is_some() => Phase::Dialing,
            // At the last moment, and of no use any more.
            Some(Grant::Slot(_) | Grant::Conn(_)) => Phase::WaitingForSlot,
            _ => phase,
        };
        if let Some(granted) = granted {
            shared.pass_on(granted);
        }
        match attempt {
            Some(attempt) if keep_dial => go_on(shared, attempt),
            attempt => drop(attempt),
        }
        let timed_out = end.is_some_and(End::timed_out);
        let (details, source) = (shared.details(phase, began, timed_out), shared.last_error());
        Some(match (end, phase) {
            (Some(End::Cancelled), _) => GetError::Cancelled { details, source },
            (_, Phase::WaitingForSlot | Phase::WaitingToDial) => GetError::Exhausted { details, source },
            (_, Phase::WaitingForAddress) => GetError::AddressBusy { details, source },
            (_, Phase::BackingOff) => GetError::Dial { details, source: shared.failure() },
            (_, Phase::Dialing) => GetError::DialTimeout { details, source },
        })
    }

    /// It was served otherwise: its dial goes on without it.
    fn detach(&mut self) {
        if let Stage::Slow(slow) = std::mem::replace(&mut self.stage, Stage::Idle)
            && let Some(attempt) = slow.attempt
        {
            go_on(self.resource.shared(), attempt);
        }
    }
}

/// Lets a dial go on without the get that began it; ends it if its runtime has ended.
fn go_on<C>(shared: &Shared<C>, (attempt, runtime): (Attempt, Option<Handle>)) {
    if let Some(runtime) = runtime {
        shared.detach(attempt, &runtime);
    }
}

impl<C> Slow<'_, C> {
    fn new(caller: Arc<Caller<C>>) -> Self {
        Self {
            caller,
            place: None,
            attempt: None,
            deadline: None,
            wait_deadline: None,
            wait_ends: Tick::NEVER,
            patience: Patience::default(),
        }
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
