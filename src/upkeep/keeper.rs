//! The one background task of a budget that looks after idle connections: closes them when their time is over, and
//! when their peer closes them, which their streams tell.
//!
//! An address is *fresh* while something rests there that has not rested for long: the task looks at it every now
//! and then. What has rested for a while is *watched*: its stream wakes the task, and nobody looks at it until then.
//! So what is constantly reused costs a look now and then, and what rests costs nothing.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::{Handle, Id};
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;
use tokio::time::timeout;

use super::Bell;
use crate::budget::partition::Partition;
use crate::clock::{self, Tick};
use crate::runtime;
use crate::stats::Event;

/// How often fresh addresses are looked at.
const ROUND: Duration = Duration::from_millis(50);

/// How long the task stays when there is nothing to do, and how often it shows that it is alive.
const LINGER: Duration = Duration::from_secs(1);

/// When the task has not been seen for so long, its runtime is not being driven: another takes its place.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(3);

/// Ends of idle connections' time are kept by this grain.
const GRAIN: Duration = Duration::from_millis(64);

/// How many addresses are looked at before other tasks have their turn.
const BATCH: usize = 64;

/// An address, as the keeper knows it. Called without locks.
pub(crate) trait Tended: Send + Sync {
    /// Closes what has rested for too long or is too old; watches what has rested for a while.
    fn tend(self: Arc<Self>, cause: Cause, now: Tick) -> Findings;
    /// Looks at those whose stream has rung.
    fn answer(self: Arc<Self>);
    fn bell(&self) -> &Bell;
    fn partition(&self) -> Arc<Partition>;
}

/// Why an address has its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It is one of the fresh, and is not any more unless it is found to be so.
    Fresh,
    /// Somebody's time is over there. It may be one of the fresh all the same.
    Due,
}

/// What is to be done about an address next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// Something rests there that is not watched, and it is not one of the fresh already.
    pub(crate) fresh: bool,
    /// When somebody's time is over, unless the keeper knows of an earlier one.
    pub(crate) due: Option<Tick>,
}

/// What the task of a budget and the addresses have in common. Holds no address, and keeps no runtime.
#[derive(Default)]
pub(crate) struct Keeper {
    /// Held for a few instructions; no other lock is taken under it, and nothing of the user's runs.
    desk: Mutex<Desk>,
    news: Notify,
    /// How many connections rest and are watched.
    watched: AtomicUsize,
}

#[derive(Default)]
struct Desk {
    /// Addresses where something rests that is not watched, each once.
    fresh: Vec<Weak<dyn Tended>>,
    /// Addresses whose streams have rung.
    rung: Vec<Weak<dyn Tended>>,
    due: Due,
    /// Addresses whose turn it is to be looked at.
    turn: Vec<(Cause, Weak<dyn Tended>)>,
    /// When the fresh ones have their turn.
    next_round: Option<Tick>,
    idle_since: Option<Tick>,
    task: Option<Running>,
    /// Counts tasks, so that one that was given up knows.
    epoch: u64,
    standby: Option<Standby>,
    closed: bool,
}

/// Addresses by when somebody's time is over there.
#[derive(Default)]
struct Due {
    ends: BTreeMap<Tick, Vec<Weak<dyn Tended>>>,
    len: usize,
    /// How many there were when those that have gone were looked for last.
    known: usize,
}

struct Running {
    runtime: Id,
    seen: Tick,
}

/// A task of another runtime from which addresses come, which waits for the end of the one at work. Its runtime keeps it,
/// and not it its runtime. Dropped without the lock: that wakes it.
struct Standby {
    runtime: Id,
    /// Since when. After a while another may: this one's runtime may not be driven.
    since: Tick,
    call: oneshot::Sender<Shift>,
}

/// What is to be done after the lock.
enum Hiring {
    /// A task goes to work.
    Begin(Handle),
    /// The one that stood by does.
    Call(Standby),
    /// One stands by, in the stead of another, perhaps.
    StandBy(Handle, oneshot::Receiver<Shift>, Option<Standby>),
}

impl Keeper {
    /// Something rests at an address that the task does not know to be fresh, unless there was only no runtime for it. `false`:
    /// there is none.
    pub(crate) fn take_in(self: &Arc<Self>, address: Option<Weak<dyn Tended>>) -> bool {
        let here = Handle::try_current().ok();
        let mut desk = self.desk.lock();
        let first = address.is_some() && desk.fresh.is_empty();
        if let Some(address) = address {
            desk.note_fresh(address);
        }
        let at_work = self.hire(desk, here);
        if first {
            self.news.notify_one();
        }
        at_work
    }

    /// Connections are dialled on this runtime: the task may need it when its own ends.
    pub(crate) fn meet(self: &Arc<Self>, here: Id) {
        let is_news = {
            let desk = self.desk.lock();
            let busy = !desk.fresh.is_empty() || self.watched.load(Ordering::Relaxed) > 0;
            busy && desk.task.as_ref().is_none_or(|task| task.runtime != here)
        };
        if is_news && let Ok(here) = Handle::try_current() {
            self.hire(self.desk.lock(), Some(here));
        }
    }

    /// Sees to it that a task is at work, if there is a runtime for one, and that another stands by if there is another. Returns
    /// whether one is at work.
    fn hire(self: &Arc<Self>, mut desk: MutexGuard<'_, Desk>, here: Option<Handle>) -> bool {
        let hiring = desk.hire(here, clock::now());
        let (epoch, at_work) = (desk.epoch, desk.task.is_some());
        let Some(hiring) = hiring else { return at_work };
        drop(desk);
        let shift = || Shift { keeper: Arc::clone(self), epoch };
        match hiring {
            Hiring::Begin(runtime) => drop(runtime.spawn(shift().work())),
            // In vain if its runtime has ended: then the shift ends here.
            Hiring::Call(standby) => drop(standby.call.send(shift())),
            Hiring::StandBy(runtime, called, _relieved) => {
                runtime.spawn(async move {
                    if let Ok(shift) = called.await {
                        // CANCEL: with its runtime goes the shift, which calls whoever stands by.
                        shift.work().await;
                    }
                });
            }
        }
        at_work
    }

    /// A connection is watched from now on.
    pub(crate) fn one_more(&self) {
        self.watched.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn one_less(&self) {
        self.watched.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn ring(&self, address: Weak<dyn Tended>) {
        let mut desk = self.desk.lock();
        let first = desk.rung.is_empty();
        desk.rung.push(address);
        drop(desk);
        if first {
            self.news.notify_one();
        }
    }

    /// The budget is gone, and with it its addresses.
    pub(crate) fn close(&self) {
        let standby = {
            let mut desk = self.desk.lock();
            desk.closed = true;
            desk.standby.take()
        };
        drop(standby);
        self.news.notify_one();
    }
}

impl Desk {
    /// While the task is kept from its work, addresses that have gone are not kept for it.
    fn note_fresh(&mut self, address: Weak<dyn Tended>) {
        if self.fresh.len() == self.fresh.capacity() && self.fresh.len() >= BATCH {
            self.fresh.retain(|address| address.strong_count() > 0);
            self.fresh.reserve(self.fresh.len());
        }
        self.fresh.push(address);
    }

    /// Finds a runtime for a task, if there is none at work, or for one to stand by.
    fn hire(&mut self, here: Option<Handle>, now: Tick) -> Option<Hiring> {
        if self.closed {
            return None;
        }
        if let Some(task) = &self.task {
            let elsewhere = here.as_ref().filter(|here| here.id() != task.runtime)?;
            if now.since(task.seen) < GIVEN_UP_AFTER {
                let is_of_use = |standby: &Standby| {
                    let here = standby.runtime == elsewhere.id();
                    // Closed: its task has gone, with its runtime as a rule. And one where the task at work is would go with that.
                    !standby.call.is_closed()
                        && standby.runtime != task.runtime
                        && (here || now.since(standby.since) < GIVEN_UP_AFTER)
                };
                let stands_by = self.standby.as_ref().is_some_and(is_of_use);
                return (!stands_by).then(|| self.have_stand_by(elsewhere.clone(), now));
            }
        }
        let (runtime, hiring) = match here {
            Some(here) => (here.id(), Hiring::Begin(here)),
            None => self.standby.take().map(|standby| (standby.runtime, Hiring::Call(standby)))?,
        };
        self.epoch += 1;
        self.task = Some(Running { runtime, seen: now });
        Some(hiring)
    }

    fn have_stand_by(&mut self, runtime: Handle, since: Tick) -> Hiring {
        let (call, called) = oneshot::channel();
        let relieved = self.standby.replace(Standby { runtime: runtime.id(), since, call });
        Hiring::StandBy(runtime, called, relieved)
    }

    /// What is to be done now, and how long there is nothing to do after that. `None`: nothing will be.
    fn assign(&mut self, watched: usize, now: Tick) -> Option<Assignment> {
        if !self.fresh.is_empty() {
            let next_round = *self.next_round.get_or_insert_with(|| now.after(ROUND));
            if now >= next_round {
                let fresh = std::mem::take(&mut self.fresh);
                self.turn.extend(fresh.into_iter().map(|address| (Cause::Fresh, address)));
                self.next_round = None;
            }
        }
        self.due.take_until(now, &mut self.turn);
        let (answer, tend) = (batch(&mut self.rung), batch(&mut self.turn));
        if self.turn.is_empty() {
            self.turn = Vec::new(); // while all rest, the room for all is not kept
        }
        let busy = watched > 0 || !(self.fresh.is_empty() && tend.is_empty() && answer.is_empty());
        let idle_since = *self.idle_since.get_or_insert(now);
        if busy {
            self.idle_since = None;
        } else if now.since(idle_since) >= LINGER {
            (self.task, self.idle_since) = (None, None);
            return None;
        }
        let more = !self.turn.is_empty() || !self.rung.is_empty();
        Some(Assignment { answer, tend, more })
    }

    fn nap(&self, now: Tick) -> Duration {
        let next = [self.next_round, self.due.first()];
        let next = next.into_iter().flatten().map(|next| next.since(now)).min();
        next.map_or(LINGER, |next| next.min(LINGER))
    }
}

impl Due {
    /// Addresses that have gone are not kept until their time comes.
    fn note(&mut self, end: Tick, address: Weak<dyn Tended>) {
        if self.len >= (2 * self.known).max(BATCH) {
            self.ends.retain(|_, addresses| {
                addresses.retain(|address| address.strong_count() > 0);
                !addresses.is_empty()
            });
            self.len = self.ends.values().map(Vec::len).sum();
            self.known = self.len;
        }
        self.ends.entry(end).or_default().push(address);
        self.len += 1;
    }

    fn take_until(&mut self, now: Tick, into: &mut Vec<(Cause, Weak<dyn Tended>)>) {
        while let Some(entry) = self.ends.first_entry().filter(|entry| *entry.key() <= now) {
            let addresses = entry.remove();
            self.len -= addresses.len();
            into.extend(addresses.into_iter().map(|address| (Cause::Due, address)));
        }
    }

    fn first(&self) -> Option<Tick> {
        self.ends.first_key_value().map(|(end, _)| *end)
    }
}

struct Assignment {
    answer: Vec<Weak<dyn Tended>>,
    tend: Vec<(Cause, Weak<dyn Tended>)>,
    more: bool,
}

/// As many of the last as are looked at before other tasks have their turn.
fn batch<T>(from: &mut Vec<T>) -> Vec<T> {
    from.split_off(from.len().saturating_sub(BATCH))
}

/// One task's time at work, until it has nothing to do, or its runtime ends, or another has taken its place.
struct Shift {
    keeper: Arc<Keeper>,
    epoch: u64,
}

impl Shift {
    async fn work(self) {
        runtime::learn().await;
        while let Some(Assignment { answer, tend, more }) = self.report() {
            // No await before all of them are seen to.
            for address in answer {
                see_to(&address, Tended::answer);
            }
            let now = clock::now();
            let findings: Vec<_> = tend
                .into_iter()
                .filter_map(|(cause, address)| Some((tend_to(cause, &address, now)?, address)))
                .collect();
            if self.note(findings) || more {
                yield_now().await;
                continue;
            }
            // A timer that is a moment early would find the clock a tick behind.
            let nap = self.keeper.desk.lock().nap(clock::now()) + clock::resolution();
            let _news_or_not = timeout(nap, self.keeper.news.notified()).await;
        }
    }

    /// Says that it is at work, and asks for more.
    fn report(&self) -> Option<Assignment> {
        let now = clock::now();
        let mut desk = self.keeper.desk.lock();
        if desk.epoch != self.epoch || desk.closed {
            return None;
        }
        if let Some(task) = &mut desk.task {
            task.seen = now;
        }
        let assignment = desk.assign(self.keeper.watched.load(Ordering::Relaxed), now);
        let relieved = if assignment.is_none() { desk.standby.take() } else { None };
        drop(desk);
        drop(relieved);
        assignment
    }

    /// Notes what was found. Returns whether there is more to do at once.
    fn note(&self, findings: Vec<(Findings, Weak<dyn Tended>)>) -> bool {
        let mut desk = self.keeper.desk.lock();
        for (Findings { fresh, due }, address) in findings {
            if let Some(end) = due {
                desk.due.note(end.round_up(GRAIN), Weak::clone(&address));
            }
            if fresh {
                desk.fresh.push(address);
            }
        }
        if !desk.fresh.is_empty() {
            desk.next_round.get_or_insert_with(|| clock::now().after(ROUND));
        }
        !desk.rung.is_empty()
    }
}

impl Drop for Shift {
    fn drop(&mut self) {
        let mut desk = self.keeper.desk.lock();
        if desk.epoch == self.epoch && desk.task.take().is_some() {
            // Its runtime has ended.
            self.keeper.hire(desk, None);
        }
    }
}

/// Has one address tended to. `None`: there is nothing to be done next.
fn tend_to(cause: Cause, address: &Weak<dyn Tended>, now: Tick) -> Option<Findings> {
    see_to(address, |address| address.tend(cause, now)).or_else(|| {
        // After a panic it stays where it was.
        let stays = cause == Cause::Fresh && address.strong_count() > 0;
        stays.then_some(Findings { fresh: true, due: None })
    })
}

/// Has one address seen to. A panic of its dialer's, whose end this may be, is no business of the others'.
fn see_to<R>(address: &Weak<dyn Tended>, how: impl FnOnce(Arc<dyn Tended>) -> R) -> Option<R> {
    let address = address.upgrade()?;
    let partition = address.partition();
    catch_unwind(AssertUnwindSafe(|| how(address))).inspect_err(|_| partition.count(Event::Panic, 1)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Nobody {
        bell: Bell,
    }

    impl Tended for Nobody {
        fn tend(self: Arc<Self>, _: Cause, _: Tick) -> Findings {
            Findings::default()
        }

        fn answer(self: Arc<Self>) {}

        fn bell(&self) -> &Bell {
            &self.bell
        }

        fn partition(&self) -> Arc<Partition> {
            unreachable!("nobody asks")
        }
    }

    fn note(desk: &mut Desk) -> Arc<Nobody> {
        let address = Arc::new(Nobody::default());
        desk.note_fresh(Arc::<Nobody>::downgrade(&address));
        address
    }

    #[test]
    fn addresses_that_have_gone_are_not_kept_for_a_task_that_does_not_come() {
        let mut desk = Desk::default();
        let living: Vec<_> = (0..100).map(|_| note(&mut desk)).collect();
        (0..100_000).for_each(|_| drop(note(&mut desk)));
        assert!(desk.fresh.len() <= 4 * living.len(), "{}", desk.fresh.len());
        assert_eq!(desk.fresh.iter().filter_map(Weak::upgrade).count(), living.len());
    }

    #[test]
    fn ends_of_addresses_that_have_gone_are_not_kept_until_they_come() {
        let mut due = Due::default();
        let end = |n: u64| Tick::from_millis(1000 + n % 50);
        let note = |due: &mut Due, n| {
            let address = Arc::new(Nobody::default());
            due.note(end(n), Arc::<Nobody>::downgrade(&address) as Weak<dyn Tended>);
            address
        };
        let living: Vec<_> = (0..100).map(|n| note(&mut due, n)).collect();
        (0..100_000).for_each(|n| drop(note(&mut due, n)));
        assert!(due.len <= 4 * living.len(), "{}", due.len);
        let mut turn = Vec::new();
        due.take_until(end(24), &mut turn);
        due.take_until(end(49), &mut turn);
        assert_eq!(turn.iter().filter_map(|(_, address)| address.upgrade()).count(), living.len());
        assert_eq!((due.len, due.first()), (0, None));
    }

    #[test]
    fn who_stands_by_is_on_another_runtime_than_the_one_at_work() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (one, other) = (runtime(), runtime());
        let mut desk = Desk::default();
        let now = clock::now();
        let mut hire = |at: &tokio::runtime::Runtime, now| desk.hire(Some(at.handle().clone()), now);
        assert!(matches!(hire(&one, now), Some(Hiring::Begin(_))));
        let stands_by = hire(&other, now);
        assert!(matches!(stands_by, Some(Hiring::StandBy(_, _, None))));
        assert!(hire(&other, now).is_none(), "it does already");
        let later = now.after(2 * GIVEN_UP_AFTER);
        assert!(matches!(hire(&other, later), Some(Hiring::Begin(_))), "the one at work is not driven");
        let relieves = hire(&one, later);
        assert!(matches!(relieves, Some(Hiring::StandBy(_, _, Some(_)))), "and is again");
        assert!(hire(&one, later).is_none());
        drop((stands_by, relieves));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_among_the_fresh_once_whatever_ends_there() {
        let dialer = crate::dial::from_fn(
            |_: &crate::Address, _: &crate::DialContext| async { Ok(()) },
            |(), _| crate::Fitness::Fit,
        );
        let resource = crate::ConnResource::builder("a", dialer)
            .budget(&crate::Budget::new(2))
            .idle_timeout(Duration::from_millis(200))
            .build();
        let mut held = resource.get().await.unwrap();
        resource.get().await.unwrap().put();
        let keeper = Arc::clone(&resource.shared().ledger().keeper);
        let listed = || {
            let desk = keeper.desk.lock();
            desk.fresh.len() + desk.turn.len()
        };
        for _ in 0..1000 {
            let next = resource.get().await.unwrap();
            std::mem::replace(&mut held, next).put();
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(listed() <= 2, "{}: as one of the fresh, and as one where something ends", listed());
        }
        held.put();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!((listed(), resource.stats().idle), (0, 0));
    }

    #[test]
    fn while_nothing_has_its_turn_no_room_is_kept_for_it() {
        let mut desk = Desk::default();
        let living: Vec<_> = (0..1000).map(|_| note(&mut desk)).collect();
        let mut now = clock::now();
        let mut looked_at = 0;
        for _ in 0..100 {
            now = now.after(ROUND);
            looked_at += desk.assign(0, now).map_or(0, |assignment| assignment.tend.len());
        }
        assert_eq!(looked_at, living.len());
        assert_eq!((desk.fresh.capacity(), desk.turn.capacity()), (0, 0));
    }
}
