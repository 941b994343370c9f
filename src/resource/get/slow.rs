//! A get that cannot be served at once: in line, dialing, served, leaving.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::waiting::Slow;
use super::{Behind, Get, Stage};
use crate::budget::queue::{Cell, Place};
use crate::budget::slot::Slot;
use crate::clock::{self, Tick};
use crate::conn::Conn;
use crate::error::{GetError, Phase};
use crate::patience::End;
use crate::resource::attempt::{Attempt, random};
use crate::resource::shared::{Begun, Caller, Failure, Grant, Left, Missed, Queued, Shared, Wants};
use crate::runtime;
use crate::stats::Event;
use crate::upkeep;

/// Where a caller ended up that wanted to get in line.
enum Lined<C> {
    /// In line, or to dial at once.
    At(Place, Option<Begun>),
    /// Something had come to rest meanwhile.
    Served(Conn<C>),
    Refused(Failure),
}

/// How a caller left the line.
struct Outcome {
    began: Tick,
    phase: Phase,
    /// What it had been told at the last moment.
    told: Option<Failure>,
}

impl<'a, C: Send + 'static> Get<'a, C> {
    /// Nothing is idle, or nothing idle is wanted.
    #[cold]
    pub(super) fn begin(&mut self, missed: Missed, cx: &mut Context<'_>) -> Poll<Result<Conn<C>, GetError>> {
        // Not what this task was told before: a connection is of use where its dial is made.
        let done = self.get_in_line(missed, Handle::try_current().ok());
        if missed.stocks {
            upkeep::restock(self.resource.shared()); // the caller first
        }
        let begun = match done {
            Some(done) => Poll::Ready(done),
            None => self.poll_slow(cx),
        };
        match begun {
            // Else a loop of gets that fail at once would keep all else of its thread from running.
            Poll::Ready(Err(error)) if runtime::consume_budget(cx).is_pending() => {
                self.stage = Stage::Failed(error);
                Poll::Pending
            }
            begun => begun,
        }
    }

    /// Gets in line. `Some`: it is over.
    fn get_in_line(
        &mut self,
        Missed { rests, wait_timeout, .. }: Missed,
        here: Option<Handle>,
    ) -> Option<Result<Conn<C>, GetError>> {
        let shared = self.resource.shared();
        upkeep::see_to_slots(shared.partition());
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
        let mut slow = Slow::new(self.caller(Cell::new(now, None), here.as_ref().map(Handle::id)));
        let wait = self.wait_timeout.or(wait_timeout);
        let stand = |rests, slot| shared.enqueue(&slow.caller, slot, rests, None);
        let (place, begun) = match self.line_up(rests, slot, stand) {
            Lined::At(place, begun) => (place, begun),
            Lined::Served(conn) => return Some(Ok(conn)),
            Lined::Refused(failure) => return Some(Err(self.failed(failure, now))),
        };
        slow.begin_wait(place, self.timeout, wait, now);
        if let Some(token) = self.token {
            slow.patience.cancel(token);
        }
        let waits = begun.is_none() && slow.caller.cell.is_waiting();
        self.stage = Stage::Slow(Box::new(slow));
        if let Some(begun) = begun {
            self.dial(begun, here, now);
        } else if waits {
            if self.immediate {
                return self.give_up(None).map(Err);
            }
            shared.count(Event::Wait);
            upkeep::look_after_queue(shared);
        }
        None
    }

    pub(super) fn caller(&self, cell: Cell<Grant<C>>, runtime: Option<runtime::Id>) -> Arc<Caller<C>> {
        let Self { fresh, immediate, wait_for_ready: patient, .. } = *self;
        Arc::new(Caller { cell, wants: Wants { runtime, fresh, patient }, immediate })
    }

    /// `stand` is told of how many rests the caller knows, and what it brings.
    fn line_up(
        &self,
        mut rests: u32,
        mut slot: Option<Slot>,
        stand: impl Fn(u32, Option<Slot>) -> Queued,
    ) -> Lined<C> {
        let shared = self.resource.shared();
        loop {
            match stand(rests, slot) {
                Queued::At(place, begun) => return Lined::At(place, begun),
                Queued::Refused(failure, brought) => {
                    drop(brought);
                    return Lined::Refused(failure);
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
    fn dial(&mut self, mut begun: Begun, runtime: Option<Handle>, now: Tick) {
        let shared = self.resource.shared();
        let Stage::Slow(slow) = &mut self.stage else { return };
        if let Some(timeout) = self.dial_timeout {
            begun.terms.hasty = begun.terms.timeout.is_none_or(|usual| timeout < usual);
            begun.terms.timeout = Some(timeout);
        }
        let timeout = begun.terms.timeout;
        let attempt = shared.attempt(begun, slow.place, runtime.as_ref().map(Handle::id));
        slow.dial((attempt, runtime), now, timeout);
    }

    pub(super) fn poll_slow(&mut self, cx: &mut Context<'_>) -> Poll<Result<Conn<C>, GetError>> {
        loop {
            let slow = self.slow();
            let mut in_this_poll = false;
            let granted = match slow.caller.cell.begin_poll() {
                Ok(grant) => Poll::Ready(grant),
                Err(waker) => {
                    in_this_poll = true;
                    // Out of its place while it is polled: if it panics, it is dropped, and its slot given back (I7).
                    if let Some((mut attempt, runtime)) = slow.attempt.take()
                        && attempt.as_mut().poll(cx).is_pending()
                    {
                        slow.attempt = Some((attempt, runtime));
                    }
                    slow.caller.cell.end_poll(waker, cx)
                }
            };
            if let Poll::Ready(grant) = granted {
                match self.take(grant, in_this_poll) {
                    None => continue,
                    Some(done) => return self.end(done),
                }
            }
            let slow = self.slow();
            let (place, dials, has_dialled) = (slow.place, slow.attempt.is_some(), slow.has_dialled());
            let may_queue = !dials && (has_dialled || self.immediate);
            let queues_again = may_queue && self.resource.shared().is_queued(place);
            if queues_again && has_dialled {
                upkeep::look_after_queue(self.resource.shared()); // whose dial it counted on may not have
            }
            if self.immediate && queues_again {
                // Its dial found no descriptor.
                return Poll::Ready(Err(self.give_up(None).expect("BUG: a get in line")));
            }
            let slow = self.slow();
            let patient_until = slow.patient_until(queues_again);
            let look = slow.next_look().filter(|look| patient_until.is_none_or(|end| *look < end));
            slow.patience.until(look.or(patient_until));
            let end = std::task::ready!(slow.patience.poll(cx));
            if end.timed_out() && look.is_some() {
                slow.look();
                let place = self.step_out_to_want(Handle::try_current().ok().as_ref().map(Handle::id));
                match self.line_up_again(None, place) {
                    None => continue,
                    Some(done) => return self.end(done),
                }
            }
            if let Some(error) = self.give_up(Some(end)) {
                return Poll::Ready(Err(error));
            }
        }
    }

    /// What it was granted, in this very poll or before. `Some`: it is over.
    #[inline]
    fn take(&mut self, grant: Grant<C>, in_this_poll: bool) -> Option<Result<Conn<C>, GetError>> {
        let slow = self.slow();
        let began = slow.caller.cell.since;
        match grant {
            Grant::Slot(slot) => self.dial_as_granted(slot),
            Grant::Conn(entry) => {
                let place = slow.place.take();
                // What its own dial has just made is as good as that told.
                let judged =
                    if in_this_poll && entry.is_new() { Ok(entry) } else { Shared::judge_handed(entry) };
                match judged {
                    Ok(entry) => Some(Ok(Conn::new(entry, self.site))),
                    Err(slot) => self.line_up_again(slot, place),
                }
            }
            Grant::Failed(failure) => {
                let place = slow.place.take();
                let tries_again = slow.caller.wants.patient && !slow.caller.immediate;
                let of_haste = matches!(failure, Failure::Timeout { hasty: true, .. });
                if let Some(place) = place.filter(|_| of_haste && tries_again) {
                    return self.rest_from_haste(place);
                }
                if let Failure::Closed = failure {
                    slow.attempt = None; // nobody is to have what it makes
                }
                Some(Err(self.failed(failure, began)))
            }
        }
    }

    /// Dials with the slot that it waited for, unless all was closed meanwhile. `Some`: it is over.
    #[inline]
    fn dial_as_granted(&mut self, slot: Slot) -> Option<Result<Conn<C>, GetError>> {
        let began = self.slow().caller.cell.since;
        let shared = self.resource.shared();
        if shared.is_closed() {
            drop(slot);
            let error = self.failed(Failure::Closed, began);
            drop(self.leave_line());
            return Some(Err(error));
        }
        let here = Handle::try_current().ok();
        let runtime = here.as_ref().map(Handle::id);
        if runtime != self.slow().caller.wants.runtime {
            // It would not be given what it dials here.
            let place = self.step_out_to_want(runtime);
            drop(slot); // it is no dial's
            return self.line_up_again(None, place);
        }
        let shared = self.resource.shared();
        upkeep::see_to_slots(shared.partition());
        let begun = shared.begin_dial(slot);
        self.dial(begun, here, clock::now());
        None
    }

    /// After a dial that its own haste failed, it waits for a while for nothing but what comes back, or is dialled by others:
    /// it stands in line as if it had a dial. `Some`: it is over.
    #[cold]
    fn rest_from_haste(&mut self, place: Place) -> Option<Result<Conn<C>, GetError>> {
        let before = self.slow().failures_of_haste();
        let shared = self.resource.shared();
        let pause = shared.setting(|settings| settings.dialing.pause_after_haste(before, random()));
        self.slow().rest_from_haste(pause);
        self.line_up_again(None, Some(place))
    }

    /// Out of the line, to get in again where it stood, which is returned: as one of another runtime, which the task that
    /// polls it has entered, or after a rest.
    #[cold]
    fn step_out_to_want(&mut self, runtime: Option<runtime::Id>) -> Option<Place> {
        let (place, former) = (self.slow().place.take(), Arc::clone(&self.slow().caller));
        let shared = self.resource.shared();
        if let Some(late) = shared.leave(place, &former, None).granted {
            shared.pass_on(late);
        }
        let caller = self.caller(Cell::new(former.cell.since, None), runtime);
        self.slow().caller = caller;
        place
    }

    /// What was handed over was no longer fit, or it wants another than before: in line again where it stood, with the slot,
    /// unless it has a dial that goes on. `Some`: it is over.
    #[cold]
    pub(super) fn line_up_again(
        &mut self,
        slot: Option<Slot>,
        former: Option<Place>,
    ) -> Option<Result<Conn<C>, GetError>> {
        let shared = Arc::clone(self.resource.shared());
        let slow = self.slow();
        let caller = Arc::clone(&slow.caller);
        let stands_for_dial = slow.attempt.is_some() || slow.rests();
        let lined = match former.filter(|_| stands_for_dial) {
            Some(place) => {
                drop(slot);
                self.line_up(0, None, |rests, _| shared.rejoin(&caller, place, rests))
            }
            None => self.line_up(0, slot, |rests, slot| shared.enqueue(&caller, slot, rests, former)),
        };
        let (place, begun) = match lined {
            Lined::At(place, begun) => (place, begun),
            Lined::Served(conn) => return Some(Ok(conn)),
            Lined::Refused(failure) => return Some(Err(self.failed(failure, caller.cell.since))),
        };
        self.slow().place = Some(place);
        match begun {
            Some(begun) => self.dial(begun, Handle::try_current().ok(), clock::now()),
            None => upkeep::look_after_queue(&shared),
        }
        None
    }
}

impl<'a, C> Get<'a, C> {
    pub(super) fn slow(&mut self) -> &mut Slow<'a, C> {
        match &mut self.stage {
            Stage::Slow(slow) => slow,
            Stage::Idle | Stage::Behind(_) | Stage::Failed(_) => {
                unreachable!("BUG: a get in line, that looks after itself")
            }
        }
    }

    fn failed(&self, failure: Failure, began: Tick) -> GetError {
        let shared = self.resource.shared();
        let details = |phase| shared.details(phase, began, false);
        match failure {
            Failure::Error(source) => GetError::Dial { details: details(Phase::Dialing), source },
            Failure::Paused(source) => GetError::Dial { details: details(Phase::BackingOff), source },
            Failure::Closed => GetError::Closed { details: details(Phase::WaitingForSlot) },
            Failure::Never => {
                GetError::Exhausted { details: details(Phase::WaitingForSlot), source: shared.last_error() }
            }
            Failure::Timeout { cause, .. } => GetError::DialTimeout {
                details: shared.details(Phase::Dialing, began, true),
                source: cause.or_else(|| shared.last_error()),
            },
        }
    }

    pub(super) fn end(&mut self, result: Result<Conn<C>, GetError>) -> Poll<Result<Conn<C>, GetError>> {
        self.detach();
        Poll::Ready(result)
    }

    /// Dropped before it was over.
    #[cold]
    pub(super) fn leave(&mut self) {
        match &self.stage {
            Stage::Slow(slow) if slow.place.is_none() => self.detach(),
            Stage::Slow(_) | Stage::Behind(_) | Stage::Idle | Stage::Failed(_) => drop(self.leave_line()),
        }
    }

    /// Leaves the line, and says why. `None` if it was in none.
    fn give_up(&mut self, end: Option<End>) -> Option<GetError> {
        let Outcome { began, phase, told } = self.leave_line()?;
        let shared = self.resource.shared();
        if let Some(failure) = told.filter(|_| end != Some(End::Cancelled)) {
            return Some(self.failed(failure, began)); // that is why, and not that its time is over
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

    /// Whatever was granted goes to the next.
    fn leave_line(&mut self) -> Option<Outcome> {
        let shared = self.resource.shared();
        let (caller, place, attempt, rests) = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Idle | Stage::Failed(_) => return None,
            Stage::Behind(Behind { caller, place, .. }) => (caller, Some(place), None, false),
            Stage::Slow(slow) => {
                let rests = slow.rests();
                (slow.caller, slow.place, slow.attempt, rests)
            }
        };
        let dials = attempt.is_some() || rests;
        let runtime = attempt.as_ref().and_then(|(_, runtime)| runtime.as_ref()).map(Handle::id);
        let Left { granted, phase, keep_dial } = shared.leave(place, &caller, runtime);
        let phase = match granted {
            _ if dials => Phase::Dialing,
            // At the last moment, and of no use any more.
            Some(Grant::Slot(_) | Grant::Conn(_)) => Phase::WaitingForSlot,
            _ => phase,
        };
        let told = granted.and_then(|granted| shared.pass_on(granted));
        match attempt {
            Some(attempt) if keep_dial => go_on(shared, attempt),
            attempt => drop(attempt),
        }
        Some(Outcome { began: caller.cell.since, phase, told })
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
