//! What goes on in the background: the limit grows back after the process ran out of descriptors, who waits for a slot that
//! does not come gets another, slow dials are hastened, addresses probed after failures and watched for whether they move. Idle
//! connections are the keeper's, those to be kept in stock are dialled for in `stock`, and the time that dials have is kept in
//! `deadlines`. Tasks live only while there is something to do, and hold no budget alive.

mod bell;
mod deadlines;
mod keeper;
mod stock;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU16;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::{Handle, Id};

use crate::budget::GROWTH_INTERVAL;
use crate::budget::ledger::{Ledger, NOBODY_GROWS};
use crate::budget::partition::Partition;
use crate::clock::{self, Tick};
use crate::dial;
use crate::resource::shared::Shared;
use crate::stats::Event;
use crate::sync::Ordering;

pub(crate) use bell::{Alarm, Bell};
pub(crate) use deadlines::{Deadline, Deadlines};
pub(crate) use keeper::{Cause, Findings, Keeper, Tended};
pub(crate) use stock::{restock, restock_after_use};

/// When a task that lets a limit grow has not been seen for so long, another takes its place.
const STALE_AFTER_MS: u32 = 500;

/// How long dials may take before as many more are begun, for callers that wait. That of RFC 8305 for attempts at one
/// name's addresses.
const HASTE: Duration = Duration::from_millis(250);

/// From how long on a wait needs no timer of its own. Twice as long as two of the above.
pub(crate) const LONG_WAIT: Duration = Duration::from_secs(1);

/// How often a watched address is asked whether it still has connections; and how soon it is watched again after its
/// dialer has panicked.
const WATCH_INTERVAL: Duration = Duration::from_secs(10);

/// How long connections are asked at most once in.
const LEAST_WATCH: Duration = Duration::from_millis(10);

/// A dial found no descriptor: lowers the limit, and closes something idle. `false`: that gave no descriptor back.
pub(crate) fn make_room<C>(shared: &Shared<C>) -> bool {
    let ledger = &shared.partition().ledger;
    ledger.ran_out();
    see_to_slots(shared.partition());
    ledger.evict_one()
}

/// Sees to it that the limit is what the process has; and while it is lowered, or what was evicted lingers, that who waits is
/// served when time has changed that, if nobody sees to it already: a task of this runtime, or where there is none, a thread.
pub(crate) fn see_to_slots(partition: &Arc<Partition>) {
    partition.ledger.measure();
    if !partition.ledger.changes_with_time() {
        return;
    }
    let Some(mut growing) = Growing::begin(&partition.ledger) else { return };
    match Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(async move {
            while let Some(nap) = growing.step() {
                tokio::time::sleep(nap).await;
            }
        })),
        Err(_) => growing.go_on_in_a_thread(),
    }
}

/// The one task, or thread, that looks at a ledger while time changes what there is to give: its limit grows, as a rule.
struct Growing {
    ledger: Weak<Ledger>,
    /// When it did last, by which it knows whether another has taken its place. `None`: it is over.
    last: Option<u64>,
    /// A thread has it, or was to: no other takes over.
    is_thread: bool,
}

impl Growing {
    /// How often it looks while nobody waits. Less than [`STALE_AFTER_MS`]: it is at work.
    const NAP: Duration = Duration::from_millis(300);

    /// `None`: another one does, and has done so of late. One whose runtime is not driven is replaced.
    fn begin(ledger: &Arc<Ledger>) -> Option<Self> {
        let now = clock::now().millis();
        let last = ledger.grown.load(Ordering::Relaxed);
        let idle = last == NOBODY_GROWS || now.wrapping_sub(last as u32) > STALE_AFTER_MS;
        let first = idle && ledger.note_growth(last, u64::from(now));
        let this = || Self { ledger: Arc::downgrade(ledger), last: Some(u64::from(now)), is_thread: false };
        first.then(this)
    }

    fn go_on_in_a_thread(mut self) {
        self.is_thread = true;
        let named = std::thread::Builder::new().name("fdpool-growth".into());
        // In vain if there can be no more threads: then what running out took is given back at once.
        let _spawned = named.spawn(move || {
            while let Some(nap) = self.step() {
                std::thread::park_timeout(nap);
            }
        });
    }

    /// Serves whom the limit of now allows for. Returns when to do so again. `None`: it is whole again, or another sees to it.
    fn step(&mut self) -> Option<Duration> {
        let ledger = self.ledger.upgrade()?;
        let now = u64::from(clock::now().millis());
        self.last = self.last.filter(|last| ledger.note_growth(*last, now)).map(|_| now);
        self.last?;
        ledger.measure();
        ledger.settle(ledger.lock());
        let nap = if ledger.is_urgent() { GROWTH_INTERVAL } else { Self::NAP };
        ledger.changes_with_time().then_some(nap)
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        let Some((ledger, last)) = self.ledger.upgrade().zip(self.last) else { return };
        if !ledger.note_growth(last, NOBODY_GROWS) || !ledger.changes_with_time() {
            return;
        }
        // Its runtime has ended, and who waits may have nobody else to wake it. The next dial that finds no
        // descriptor lowers the limit again, on a runtime that lives.
        ledger.restore();
        if ledger.is_urgent()
            && !self.is_thread
            && let Some(growing) = Self::begin(&ledger)
        {
            growing.go_on_in_a_thread();
        }
    }
}

/// Callers may queue at an address who did not when they came.
pub(crate) fn look_after_queue<C: Send + 'static>(shared: &Arc<Shared<C>>) {
    see_to_slots(shared.partition()); // what is evicted for them may not go
    probe_later(shared);
    hasten(shared);
}

/// Sees to it that more dials begin for those who queue at an address, if those under way take long; and that who
/// queues there for longer needs no timer of its own until its patience is about to end.
pub(crate) fn hasten<C: Send + 'static>(shared: &Arc<Shared<C>>) {
    let Ok(runtime) = Handle::try_current() else { return };
    if !shared.await_haste(runtime.id()) {
        return;
    }
    let mut haste = Haste { shared: Arc::downgrade(shared), runtime: runtime.id(), counted_on: true };
    runtime.spawn(async move {
        crate::runtime::learn().await; // nothing may have rested yet, and those who queue ask
        while haste.step().await {}
    });
}

/// The one task of a runtime that hastens an address.
struct Haste<C> {
    shared: Weak<Shared<C>>,
    runtime: Id,
    counted_on: bool,
}

impl<C: Send + 'static> Haste<C> {
    /// `false`: nobody queues any more, and for those who do later there is another.
    async fn step(&mut self) -> bool {
        tokio::time::sleep(HASTE).await;
        let Some(shared) = self.shared.upgrade() else { return false };
        self.counted_on = shared.hasten(HASTE, LONG_WAIT / 2, self.runtime);
        if self.counted_on {
            shared.ask_busy(self.runtime);
        }
        self.counted_on
    }
}

impl<C> Drop for Haste<C> {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade().filter(|_| self.counted_on) {
            shared.haste_ended(self.runtime);
        }
    }
}

/// Sees to it that an address that pauses is probed for those who queue there.
pub(crate) fn probe_later<C: Send + 'static>(shared: &Arc<Shared<C>>) {
    let Ok(runtime) = Handle::try_current() else { return };
    let Some(end) = shared.await_probe(runtime.id()) else { return };
    let probe = Probe { shared: Arc::downgrade(shared), end, runtime: runtime.id() };
    let due = clock::deadline(end.since(clock::now()));
    runtime.spawn(async move {
        if let Some(due) = due {
            tokio::time::sleep_until(due).await;
        }
        drop(probe);
    });
}

/// Probes an address when dropped: in time, or when the runtime ends that was to wait for the time.
struct Probe<C: Send + 'static> {
    shared: Weak<Shared<C>>,
    end: Tick,
    runtime: Id,
}

impl<C: Send + 'static> Drop for Probe<C> {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.probe(self.end, self.runtime);
            probe_later(&shared); // if it pauses anew
        }
    }
}

/// An address has connections: watches whether it leads elsewhere, if its dialer can tell, for as long as it has some.
/// One that cannot tell is not asked again.
pub(crate) fn watch<C: Send + 'static>(shared: &Arc<Shared<C>>) {
    let Some(seen) = shared.watched.begin() else { return };
    let mut watcher = Watcher { shared: Arc::downgrade(shared), seen: Some(seen) };
    let Some(first) = begin_watch(shared) else { return watcher.settle() };
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(watcher.work(first));
    }
}

/// Whether an address is watched: when its watcher was seen last.
#[derive(Debug)]
pub(crate) struct Watched(AtomicU16);

impl Watched {
    const BY_NOBODY: u16 = 0;
    /// It cannot move, as far as its dialer can tell.
    const NEEDS_NONE: u16 = u16::MAX;
    /// One that has not been seen for so long is on a runtime that is not driven: another takes its place.
    const GIVEN_UP_AFTER: u16 = 3;

    pub(crate) fn by_nobody() -> Self {
        Self(AtomicU16::new(Self::BY_NOBODY))
    }

    /// The time in spans of some eight seconds, within which a watcher is seen once, or nearly.
    fn now() -> u16 {
        ((clock::now().millis() >> 13) % u32::from(Self::NEEDS_NONE - 1)) as u16 + 1
    }

    /// Of one who has to watch from now on; `None`, if nobody has to.
    #[inline]
    fn begin(&self) -> Option<u16> {
        let last = self.0.load(Ordering::Relaxed);
        if last == Self::NEEDS_NONE { None } else { self.relieve(last) }
    }

    #[cold]
    fn relieve(&self, last: u16) -> Option<u16> {
        let now = Self::now();
        let is_watched = last != Self::BY_NOBODY && now.wrapping_sub(last) <= Self::GIVEN_UP_AFTER;
        if is_watched { None } else { self.change(last, now) }
    }

    /// Notes something instead of what one noted before: `None`, if another has taken its place.
    fn change(&self, before: u16, after: u16) -> Option<u16> {
        self.0.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed).ok().map(|_| after)
    }
}

/// The dialer has panicked, and that is counted.
struct Panicked;

/// `None`: the dialer cannot tell whether the address leads elsewhere.
fn begin_watch<C>(shared: &Shared<C>) -> Option<Result<dial::Watch, Panicked>> {
    let watch = catch_unwind(AssertUnwindSafe(|| shared.dialer.watch(&shared.address)));
    let watch = watch.map_err(|_| {
        shared.count(Event::Panic);
        Panicked
    });
    watch.transpose()
}

/// Why a watch ended.
enum Looked {
    /// Or the watcher has been relieved.
    NoConnections,
    /// The dialer, whether the address leads elsewhere.
    CannotTell,
}

/// The one task that watches an address.
struct Watcher<C> {
    shared: Weak<Shared<C>>,
    /// When, as the address knows it. `None`: it is at work no more.
    seen: Option<u16>,
}

impl<C> Watcher<C> {
    /// The address, unless it is gone, or watched by another.
    fn report(&mut self) -> Option<Arc<Shared<C>>> {
        let shared = self.shared.upgrade()?;
        self.seen = shared.watched.change(self.seen?, Watched::now());
        self.seen.map(|_| shared)
    }

    /// Nobody has to watch it again.
    fn settle(&mut self) {
        if let (Some(seen), Some(shared)) = (self.seen.take(), self.shared.upgrade()) {
            shared.watched.change(seen, Watched::NEEDS_NONE);
        }
    }
}

impl<C: Send + 'static> Watcher<C> {
    async fn work(mut self, mut watch: Result<dial::Watch, Panicked>) {
        loop {
            let looked = match watch {
                Ok(watch) => self.caught_looking(watch).await,
                Err(Panicked) => Err(Panicked),
            };
            match looked {
                Ok(Looked::NoConnections) => {}
                Ok(Looked::CannotTell) => break,
                // A dialer that always panics costs little.
                Err(Panicked) => tokio::time::sleep(WATCH_INTERVAL).await,
            }
            let Some(shared) = self.needed() else { return };
            let Some(anew) = begin_watch(&shared) else { break };
            watch = anew;
        }
        self.settle();
    }

    /// The address, if it has connections; else it is watched no more.
    fn needed(&mut self) -> Option<Arc<Shared<C>>> {
        let shared = self.report()?;
        if !shared.has_slots() {
            shared.watched.change(self.seen.take()?, Watched::BY_NOBODY)?;
            // A dial that began meanwhile may have seen that somebody watches. Under the ledger's lock it is seen here, or
            // it sees that nobody does.
            self.seen = if shared.slots_out() > 0 { shared.watched.begin() } else { None };
        }
        self.seen.map(|_| shared)
    }

    /// Asks about the connections whenever the watch is ready, until there are none, or the dialer cannot tell.
    async fn look(&mut self, mut watch: dial::Watch) -> Looked {
        // A change between the first dial's lookup and the watch is seen by asking once more.
        let mut asks = true;
        loop {
            {
                let Some(shared) = self.connected() else { return Looked::NoConnections };
                if asks {
                    shared.ask_whether_current();
                    restock(&shared);
                }
            }
            asks = tokio::time::timeout(WATCH_INTERVAL, &mut watch).await.is_ok();
            if asks {
                // The next watch first, and then the question: nothing is missed between them.
                let Some(shared) = self.shared.upgrade() else { return Looked::NoConnections };
                let Some(next) = shared.dialer.watch(&shared.address) else {
                    shared.ask_whether_current();
                    restock(&shared);
                    return Looked::CannotTell;
                };
                watch = next;
                drop(shared);
                // A dialer that is always ready keeps nobody else from running.
                tokio::time::sleep(LEAST_WATCH).await;
            }
        }
    }

    /// The address, if it still has connections.
    fn connected(&mut self) -> Option<Arc<Shared<C>>> {
        self.report().filter(|shared| shared.has_slots())
    }

    async fn caught_looking(&mut self, watch: dial::Watch) -> Result<Looked, Panicked> {
        let watched = self.shared.clone();
        let mut looking = std::pin::pin!(self.look(watch));
        let polled = std::future::poll_fn(|cx| {
            let poll = catch_unwind(AssertUnwindSafe(|| looking.as_mut().poll(cx)));
            poll.map_or(Poll::Ready(Err(Panicked)), |poll| poll.map(Ok))
        });
        polled.await.inspect_err(|Panicked| {
            if let Some(shared) = watched.upgrade() {
                shared.count(Event::Panic);
            }
        })
    }
}

impl<C> Drop for Watcher<C> {
    fn drop(&mut self) {
        let (Some(seen), Some(shared)) = (self.seen, self.shared.upgrade()) else { return };
        if shared.watched.change(seen, Watched::BY_NOBODY).is_some() && shared.resting() > 0 {
            Shared::take_in(&shared); // its runtime has ended: the keeper, on another, has it watched anew
        }
    }
}
