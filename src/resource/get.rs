//! The `Get` future: an idle connection at once, or a place in line, a slot, a dial.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ConnResource;
use super::attempt::{Attempt, Job};
use super::shared::{Failure, Grant, Left, Queued, Shared, Waiter};
use crate::budget::Site;
use crate::budget::queue::{Cell, Place};
use crate::budget::slot::Slot;
use crate::clock::{self, Tick};
use crate::conn::{Conn, Entry};
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
/// A `Get` that is not polled keeps what was granted to it: do not leave one lying about.
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
    slot: Option<Slot>,
    wait_for_ready: bool,
    site: Site,
    /// Once there was no idle connection.
    slow: Option<Box<Slow<'a, C>>>,
}

enum Source<'a, C> {
    Borrowed(&'a ConnResource<C>),
    Owned(ConnResource<C>),
}

impl<C> Source<'_, C> {
    fn shared(&self) -> &Arc<Shared<C>> {
        match self {
            Source::Borrowed(resource) => resource.shared(),
            Source::Owned(resource) => resource.shared(),
        }
    }
}

/// What a get that cannot be served at once keeps.
struct Slow<'a, C> {
    cell: Arc<Cell<Grant<C>>>,
    /// In line; `None` once it was served or has left.
    place: Option<Place>,
    /// Its dial, with the runtime it is polled on.
    attempt: Option<(Attempt, Option<Handle>)>,
    began: Tick,
    deadline: Option<Instant>,
    wait_deadline: Option<Instant>,
    /// When its wait ends, while it has no timer.
    woken_before: Option<Tick>,
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
            slow: None,
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
        self.slot = Some(slot);
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
        if this.slow.is_none() {
            let mut rests = 0;
            if !this.fresh {
                match this.resource.shared().take_idle(None, Some(cx.waker()), this.site) {
                    Ok(conn) => {
                        if this.slot.is_some() {
                            this.slot = None;
                        }
                        upkeep::restock(this.resource.shared());
                        return Poll::Ready(Ok(conn));
                    }
                    Err(seen) => rests = seen,
                }
            }
            match this.begin(rests, cx.waker()) {
                Begun::Done(result) => return Poll::Ready(result),
                // With its waker in the cell, and nothing else to be woken by.
                Begun::Queues if this.token.is_none() => return Poll::Pending,
                Begun::Queues | Begun::Waits => {}
            }
        }
        this.poll_slow(cx)
    }
}

/// How a get begins that finds nothing idle.
enum Begun<C> {
    Done(Result<Conn<C>, GetError>),
    /// Behind others, and looked after: see [`upkeep::hasten`].
    Queues,
    Waits,
}

/// Where a caller ended up that wanted to get in line.
enum Lined<C> {
    /// In line; the slot it brought is its dial's now.
    At(Place, Option<Slot>),
    /// Something had come to rest meanwhile.
    Served(Conn<C>),
    Never,
    Paused(DialError),
    Closed,
}

impl<C: Send + 'static> Get<'_, C> {
    /// Gets in line.
    #[cold]
    fn begin(&mut self, rests: u64, waker: &Waker) -> Begun<C> {
        let shared = self.resource.shared();
        upkeep::restock(shared);
        upkeep::grow_back(shared.partition());
        let now = clock::now();
        let refused = || shared.details(Phase::WaitingForSlot, now, false);
        let mut slot = self.slot.take();
        if slot.as_ref().is_some_and(|slot| !slot.belongs_to(shared.partition())) {
            return Begun::Done(Err(GetError::ForeignSlot { details: refused() }));
        }
        if self.token.is_some_and(CancellationToken::is_cancelled) {
            return Begun::Done(Err(GetError::Cancelled { details: refused(), source: shared.last_error() }));
        }
        if let Some(slot) = &mut slot {
            slot.changes_hands(None);
        }
        let unneeded = slot.as_mut().and_then(|slot| slot.split(slot.weight().saturating_sub(1)));
        drop(unneeded);
        let slot = slot.filter(|slot| slot.weight() > 0);
        let cell = Arc::new(Cell::new(now, Some(waker.clone())));
        let wait = self.wait_timeout.or(shared.settings.wait_timeout.get());
        let is_long = self.timeout.is_none() && wait.is_none_or(|wait| wait >= upkeep::LONG_WAIT);
        let woken_before = wait.map(|wait| now.after(wait));
        let behind = match slot {
            None if is_long => shared
                .enqueue_behind(Waiter { woken_before, ..self.waiter(&cell, runtime::of(waker)) }, rests),
            None | Some(_) => None,
        };
        let mut patience = Patience::default();
        if let Some(token) = self.token {
            patience.cancel(token);
        }
        let mut slow = Slow {
            cell,
            place: behind,
            attempt: None,
            began: now,
            deadline: None,
            wait_deadline: None,
            woken_before,
            patience,
        };
        if behind.is_some() {
            shared.count(Event::Wait);
            self.slow = Some(Box::new(slow));
            return Begun::Queues;
        }
        let (place, slot) = match self.line_up(&slow.cell, slot, rests) {
            Lined::At(place, slot) => (place, slot),
            Lined::Served(conn) => return Begun::Done(Ok(conn)),
            Lined::Never => {
                return Begun::Done(Err(GetError::Exhausted {
                    details: refused(),
                    source: shared.last_error(),
                }));
            }
            Lined::Paused(source) => {
                let details = shared.details(Phase::BackingOff, now, false);
                return Begun::Done(Err(GetError::Dial { details, source }));
            }
            Lined::Closed => return Begun::Done(Err(GetError::Closed { details: refused() })),
        };
        slow.place = Some(place);
        slow.deadline = self.timeout.and_then(clock::deadline);
        (slow.wait_deadline, slow.woken_before) = (wait.and_then(clock::deadline), None);
        let waits = slot.is_none() && slow.cell.is_waiting();
        self.slow = Some(Box::new(slow));
        if let Some(slot) = slot {
            self.dial(slot);
        } else if waits {
            if self.immediate {
                return match self.give_up(None) {
                    Some(error) => Begun::Done(Err(error)),
                    None => Begun::Waits,
                };
            }
            shared.count(Event::Wait);
            upkeep::probe_later(shared);
            upkeep::hasten(shared);
        }
        Begun::Waits
    }

    fn waiter(&self, cell: &Arc<Cell<Grant<C>>>, runtime: Option<tokio::runtime::Id>) -> Waiter<C> {
        Waiter {
            cell: Arc::clone(cell),
            fresh: self.fresh,
            runtime,
            orphaned: false,
            immediate: self.immediate,
            patient: self.wait_for_ready,
            woken_before: None,
        }
    }

    fn line_up(&self, cell: &Arc<Cell<Grant<C>>>, mut slot: Option<Slot>, mut rests: u64) -> Lined<C> {
        let shared = self.resource.shared();
        let waiter = self.waiter(cell, runtime::current());
        loop {
            match shared.enqueue(waiter.clone(), slot, rests) {
                Queued::At(place, slot) => return Lined::At(place, slot),
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
            match shared.take_idle(Some(rests), None, self.site) {
                Ok(conn) => return Lined::Served(conn),
                Err(seen) => rests = seen,
            }
        }
    }

    /// Begins the dial that is this get's own.
    fn dial(&mut self, slot: Slot) {
        let shared = self.resource.shared();
        let Some(slow) = &mut self.slow else { return };
        let job = Job {
            slot,
            initiator: slow.place,
            generation: shared.generation(),
            timeout: self.dial_timeout.or(shared.settings.dial_timeout.get()),
        };
        let attempt = Arc::clone(&shared.dialer).attempt(Arc::clone(shared), job);
        slow.attempt = Some((attempt, Handle::try_current().ok()));
    }

    fn poll_slow(&mut self, cx: &mut Context<'_>) -> Poll<Result<Conn<C>, GetError>> {
        loop {
            let slow = self.slow.as_mut().expect("BUG: a get in line");
            match slow.cell.poll(cx) {
                Poll::Ready(Grant::Slot(slot)) => {
                    if self.resource.shared().is_closed() {
                        drop(slot);
                        let error = self.failed(Failure::Closed);
                        drop(self.give_up(None));
                        return Poll::Ready(Err(error));
                    }
                    self.dial(slot);
                    continue;
                }
                Poll::Ready(Grant::Conn(entry)) => {
                    slow.place = None;
                    match self.receive(entry) {
                        Ok(None) => continue,
                        Ok(Some(conn)) => {
                            self.detach();
                            return Poll::Ready(Ok(conn));
                        }
                        Err(error) => {
                            self.detach();
                            return Poll::Ready(Err(error));
                        }
                    }
                }
                Poll::Ready(Grant::Failed(failure)) => {
                    slow.place = None;
                    if let Failure::Closed = failure {
                        slow.attempt = None; // nobody is to have what it makes
                    }
                    let error = self.failed(failure);
                    self.detach();
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => {}
            }
            // Out of its place while it is polled: if it panics, it is dropped, and its slot given back (I7).
            if let Some((mut attempt, runtime)) = slow.attempt.take() {
                match attempt.as_mut().poll(cx) {
                    Poll::Ready(()) => continue, // its outcome is in somebody's cell
                    Poll::Pending => slow.attempt = Some((attempt, runtime)),
                }
            }
            if self.immediate && slow.attempt.is_none() && self.resource.shared().is_queued(slow.place) {
                // Its dial found no descriptor.
                return Poll::Ready(Err(self.give_up(None).expect("BUG: a get in line")));
            }
            // Polled again without a grant, it keeps its time itself.
            if let Some(end) = slow.woken_before.take() {
                slow.wait_deadline = clock::deadline(end.since(clock::now()));
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

    /// A connection was handed over. `None`: it is no longer fit, and this get is in line again, with its slot.
    fn receive(&mut self, entry: Box<Entry<C>>) -> Result<Option<Conn<C>>, GetError> {
        let shared = Arc::clone(self.resource.shared());
        if !entry.is_reused() {
            return Ok(Some(Conn::new(shared, entry, self.site)));
        }
        let slot = match shared.judge_handed(entry) {
            Ok(entry) => return Ok(Some(Conn::new(shared, entry, self.site))),
            Err(slot) => slot,
        };
        let slow = self.slow.as_mut().expect("BUG: a get in line");
        // The dial of its former place is of no use to the next one.
        if let Some(former) = slow.attempt.take() {
            go_on(&shared, former);
        }
        let (cell, began) = (Arc::clone(&slow.cell), slow.began);
        let (place, slot) = match self.line_up(&cell, slot, 0) {
            Lined::Served(conn) => return Ok(Some(conn)),
            Lined::At(place, slot) => (place, slot),
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
        if let Some(slow) = &mut self.slow {
            slow.place = Some(place);
        }
        if let Some(slot) = slot {
            self.dial(slot);
        }
        Ok(None)
    }

    fn failed(&self, failure: Failure) -> GetError {
        let shared = self.resource.shared();
        let began = self.slow.as_ref().map_or_else(clock::now, |slow| slow.began);
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

impl<C> Get<'_, C> {
    /// Leaves the line; whatever was granted goes to the next. `None` if it was in none.
    fn give_up(&mut self, end: Option<End>) -> Option<GetError> {
        let shared = self.resource.shared();
        let Slow { cell, place, attempt, began, .. } = *self.slow.take()?;
        let runtime = attempt.as_ref().and_then(|(_, runtime)| runtime.as_ref()).map(Handle::id);
        let Left { granted, phase, keep_dial } = shared.leave(place, &cell, runtime);
        if let Some(granted) = granted {
            shared.pass_on(granted);
        }
        let phase = if attempt.is_some() { Phase::Dialing } else { phase };
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
        if let Some(attempt) = self.slow.take().and_then(|slow| slow.attempt) {
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

impl<C> Drop for Get<'_, C> {
    fn drop(&mut self) {
        if let Some(slow) = &self.slow {
            match slow.place {
                Some(_) => drop(self.give_up(None)),
                None => self.detach(),
            }
        }
    }
}

impl<C> fmt::Debug for Get<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Get")
            .field("address", &self.resource.shared().address)
            .field("fresh", &self.fresh)
            .field("immediate", &self.immediate)
            .field("in_line", &self.slow.is_some())
            .finish_non_exhaustive()
    }
}

// Nothing in it is pinned; its dial is in a box.
impl<C> Unpin for Get<'_, C> {}
