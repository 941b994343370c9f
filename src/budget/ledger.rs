//! The lock behind a budget and its children, and what is done when it is let go: grants are woken, victims
//! closed, participants asked. What to do is decided by the [`Books`] under the lock, one step at a time.
//! Knows connections only as [`Member`](super::member::Member)s and [`Victim`]s.

use std::sync::Arc;

use tokio::sync::Notify;

use super::books::{Books, InVain, Lack, ROOT, Step};
use super::holds::Holds;
use super::member::{Seating, Victim};
use super::partition::Partition;
use super::reclaim::{Asked, Order};
use crate::clock;
use crate::limit::Sizing;
use crate::sync::{
    Apart, AtomicBool, AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering, thread_local, wake_all,
};
use crate::upkeep::{Deadlines, Keeper};

/// The shared state of a budget and all its children.
pub(crate) struct Ledger {
    published: Apart<Published>,
    /// When a task last let it grow back, in milliseconds of the clock, or [`NOBODY_GROWS`].
    pub(crate) grown: AtomicU64,
    /// Descriptors open besides those that are counted, as of the last look.
    pub(crate) foreign: AtomicUsize,
    /// How the limit was computed, if it was.
    sizing: Option<Sizing>,
    /// When the process's descriptors were counted last, in milliseconds of the clock.
    measured: AtomicU64,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) deadlines: Arc<Deadlines>,
    /// Who holds what, if that is tracked.
    pub(crate) holds: Option<Arc<Holds>>,
    /// Told when slots come back while somebody waits for the end of a close.
    pub(super) closings: Notify,
    /// Slots, waiters, seats. Under it: the locks of addresses, then those of cells, and never the other way
    /// round; nothing of the user's, no waker, no close, no drop of anything but plain data.
    books: Mutex<Books>,
}

/// What everybody may know of the books: written under their lock if it changes, read without.
#[derive(Default)]
struct Published {
    /// Not zero while a slot that comes free may be wanted: somebody waits, or a limit is exceeded. Written
    /// before members are looked at; read by every `put` under the lock of its address. So either the search finds what
    /// the put leaves there, or the put sees the pressure.
    pressure: AtomicUsize,
    /// Slots are on their way to those who wait, or some would wait in vain.
    unsettled: AtomicBool,
    /// The limit is lower than it should be, since the process ran out of descriptors.
    lowered: AtomicBool,
    /// Something was evicted whose descriptor somebody else has yet to close, and is counted on for now.
    lingers: AtomicBool,
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.keeper.close();
    }
}

/// No task lets the limit grow.
pub(crate) const NOBODY_GROWS: u64 = u64::MAX;

impl Ledger {
    pub(super) fn new(sizing: Option<Sizing>, holds: Option<Arc<Holds>>) -> Self {
        Self {
            published: Apart::default(),
            grown: AtomicU64::new(NOBODY_GROWS),
            foreign: AtomicUsize::new(sizing.map_or(0, |sizing| sizing.foreign)),
            sizing,
            measured: AtomicU64::new(0),
            keeper: Arc::default(),
            deadlines: Arc::default(),
            holds,
            closings: Notify::new(),
            books: Mutex::new(Books::default()),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock()
    }

    /// Whether a put has to ask before it leaves something idle. Read under the lock of the put's address.
    #[inline]
    pub(crate) fn is_pressed(&self) -> bool {
        self.published.pressure.load(Ordering::Relaxed) != 0
    }

    /// Whether a slot that comes free may be wanted by others than those who queue at a member. As of late: what is
    /// decided by it is who is served first, not who is served.
    #[inline]
    pub(crate) fn is_pressed_by_others(&self, seating: &Seating) -> bool {
        self.published.pressure.load(Ordering::Relaxed) != seating.demand() as usize
    }

    /// Whether more may be done for who waits than has been done, or nothing ever.
    #[inline]
    pub(crate) fn is_unsettled(&self) -> bool {
        self.published.unsettled.load(Ordering::Relaxed)
    }

    pub(crate) fn is_lowered(&self) -> bool {
        self.published.lowered.load(Ordering::Relaxed)
    }

    /// Notes when the limit grows, if nobody else has since `last`.
    pub(crate) fn note_growth(&self, last: u64, now: u64) -> bool {
        self.grown.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Whether time alone may change what there is to give.
    pub(crate) fn changes_with_time(&self) -> bool {
        self.is_lowered() || self.published.lingers.load(Ordering::Relaxed)
    }

    /// Whether that is to be seen to soon: somebody waits, or running out of descriptors has lowered the limit.
    pub(crate) fn is_urgent(&self) -> bool {
        self.changes_with_time() && (self.is_pressed() || self.lock().audit.is_taught())
    }

    /// Gives back at once what running out of descriptors took.
    pub(crate) fn restore(&self) {
        let mut books = self.lock();
        books.restore();
        self.settle(books);
    }

    /// Counts what the rest of the process has open, unless that has just been done.
    pub(crate) fn measure(&self) {
        let Some(sizing) = &self.sizing else { return };
        let (now, last) = (u64::from(clock::now().millis()), self.measured.load(Ordering::Relaxed));
        let due = now.wrapping_sub(last) >= sizing.interval_ms || now < last;
        if !due || self.measured.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        match sizing.measure() {
            Ok((foreign, ceiling)) => {
                self.foreign.store(foreign, Ordering::Relaxed);
                let mut books = self.lock();
                books.cap(ceiling);
                self.settle(books);
            }
            Err(error) => tracing::debug!(%error, "counting the open descriptors"),
        }
    }

    /// A dial found no descriptor.
    pub(crate) fn ran_out(&self) {
        let mut books = self.lock();
        books.ran_out(clock::now());
        self.publish(&books);
    }

    /// Something of a participant's became idle.
    pub(super) fn tidings(&self) {
        let mut books = self.lock();
        books.note_tidings();
        self.settle(books);
    }

    /// Grants what can be granted and evicts what is needed, until nothing is left to do (I5). Ends the
    /// critical section it is given, and so serves whoever waits before any newcomer is seen (I9).
    pub(crate) fn settle<'a>(&'a self, mut books: MutexGuard<'a, Books>) {
        if books.is_lowered() {
            books.grow(clock::now());
        }
        if books.has_lingering() {
            books.give_up_lingering();
        }
        debug_assert!(books.adds_up(), "BUG: what accounts pass on is not what they want");
        if books.pressure() == 0 {
            return self.end_section(books); // nobody wants anything: the usual case
        }
        // A slot dropped inside of an eviction comes here again: it serves, and leaves evictions to the outer
        // call. Otherwise the stack would grow with the number of waiters.
        let settling = Settling::enter(self);
        let mut in_vain: Vec<InVain> = Vec::new();
        let mut granted = None;
        loop {
            // Announce first, look after: see `pressure`.
            self.publish(&books);
            let step = if settling.is_some() { books.step(&in_vain) } else { books.serve() };
            let step = match step {
                // What follows a grant is nothing, more often than not: that needs no section of its own.
                Step::Wake(waker) if granted.is_none() => {
                    granted = Some(waker);
                    continue;
                }
                step => step,
            };
            self.end_section(books); // what follows may be anybody's code (I3)
            wake_all(granted.take().flatten());
            match step {
                Step::Rest if settling.is_none() => return Settling::leave_evictions(),
                // A waker that polls, or a dialer that ends, may have come here, and somebody may wait since.
                Step::Rest if Settling::were_left() && self.is_pressed() => {}
                Step::Rest => return,
                Step::Search => {}
                Step::Wake(waker) => wake_all(waker),
                Step::Close(victim) => {
                    victim.close();
                    if !self.is_pressed() {
                        return; // its slot was granted where it came back, and nobody else waits
                    }
                }
                Step::Ask { lack, partition, asked } => {
                    if !self.ask(lack, &partition, &asked) {
                        match in_vain.iter_mut().find(|vain| vain.lack == lack) {
                            Some(vain) => vain.again(asked.tidings),
                            None => in_vain.push(InVain::once(lack, asked.tidings)),
                        }
                    }
                }
            }
            books = self.lock();
        }
    }

    /// Whether this thread is in what an eviction of its own calls.
    pub(crate) fn is_settling(&self) -> bool {
        Settling::is_of(self)
    }

    /// Closes what was taken out for one who came. Whoever lacks slots in what that calls is seen to afterwards: else
    /// there, too, the stack would grow.
    pub(crate) fn close_spared(&self, victim: Box<dyn Victim>) {
        let settling = Settling::enter(self);
        victim.close();
        drop(settling);
        if self.is_pressed() {
            self.settle(self.lock());
        }
    }

    fn end_section(&self, mut books: MutexGuard<'_, Books>) {
        self.publish(&books);
        let departed = books.take_departed();
        let closing = books.is_closing();
        drop(books);
        drop(departed);
        if closing {
            self.closings.notify_waiters();
        }
    }

    /// While the result lives, who waits at `closings` is told of slots that come back.
    pub(super) fn begin_closing(&self) -> Closing<'_> {
        self.lock().closings(1);
        Closing(self)
    }

    /// Writes what has changed: every put reads the line of memory that it is in (I8).
    pub(super) fn publish(&self, books: &Books) {
        let Published { pressure, unsettled, lowered, lingers } = &*self.published;
        if pressure.load(Ordering::Relaxed) != books.pressure() {
            pressure.store(books.pressure(), Ordering::Relaxed);
        }
        let words = [
            (unsettled, books.is_unsettled()),
            (lowered, books.is_lowered()),
            (lingers, books.has_lingering()),
        ];
        for (word, now) in words {
            if word.load(Ordering::Relaxed) != now {
                word.store(now, Ordering::Relaxed);
            }
        }
    }

    /// Frees a slot of other crates' idle descriptors, or of our own. Returns whether one came back.
    fn ask(&self, lack: Lack, partition: &Partition, asked: &Asked) -> bool {
        // Who says that it let go may not have: only a slot that came back counts.
        let before = self.lock().releases();
        let asked_from = |first| asked.ask(partition, first) && self.lock().releases() != before;
        let freed = match asked.draw(partition) {
            Order::OwnFirst => self.evict(lack) || asked_from(0),
            Order::ParticipantsFrom(first) => asked_from(first) || self.evict(lack),
        };
        self.lock().asked(lack);
        freed
    }

    /// Closes something idle, wherever it is. `false`: nothing is, or its descriptor is still open.
    pub(crate) fn evict_one(&self) -> bool {
        let freed = self.evict_any();
        // Who came meanwhile counted on what this was about to free.
        self.settle(self.lock());
        freed
    }

    fn evict_any(&self) -> bool {
        let lack = Lack::of_all(ROOT);
        let before = self.lock().releases();
        if self.evict(lack) {
            return self.lock().releases() != before;
        }
        let asked = self.lock().ask(lack);
        match asked {
            Some(Step::Ask { lack, partition, asked }) => self.ask(lack, &partition, &asked),
            _ => false,
        }
    }

    fn evict(&self, lack: Lack) -> bool {
        loop {
            let step = self.lock().evict(lack);
            match step {
                Some(Step::Close(victim)) => {
                    victim.close();
                    return true;
                }
                Some(_) => {}
                None => return false,
            }
        }
    }
}

/// Somebody waits for the end of a close.
pub(super) struct Closing<'a>(&'a Ledger);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.lock().closings(-1);
    }
}

/// Marks the ledger that this thread is settling.
struct Settling {
    outer: usize,
    /// Whether evictions had been left to the outer one.
    left: bool,
}

thread_local! {
    static SETTLING: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

// Evictions were left to the outer call.
thread_local! {
    static LEFT: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

impl Settling {
    fn is_of(ledger: &Ledger) -> bool {
        SETTLING.with(|settling| settling.get() == std::ptr::from_ref(ledger).addr())
    }

    fn enter(ledger: &Ledger) -> Option<Self> {
        let this = std::ptr::from_ref(ledger).addr();
        let outer = SETTLING.with(|settling| settling.replace(this));
        (outer != this).then(|| Self { outer, left: Self::were_left() })
    }

    fn leave_evictions() {
        LEFT.with(|left| left.set(true));
    }

    fn were_left() -> bool {
        LEFT.with(|left| left.replace(false))
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        SETTLING.with(|settling| settling.set(self.outer));
        LEFT.with(|left| left.set(self.left));
    }
}
