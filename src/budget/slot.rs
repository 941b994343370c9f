//! The right to hold one descriptor, and a value that holds it. A slot goes back to the ledger when it is
//! dropped, wherever that happens; a value goes before its slot.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::books::SeatId;
use super::holds::{Hold, Site};
use super::ledger::Partition;
use crate::sync::{AtomicBool, AtomicU8, Ordering};

/// What a slot is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Can become Connected, or go.
    Dialing,
    /// In use or idle. Can become Dialing (handed over, but no longer fit), Held (out of the pool), Closing,
    /// or go.
    Connected,
    /// Its connection is given up, its descriptor still open in somebody else's hands. Goes.
    Closing,
    /// Held outside of connections. Can become Dialing, or go.
    Held,
}

impl Kind {
    pub(crate) const COUNT: usize = 4;

    fn from_index(index: u8) -> Option<Self> {
        [Kind::Dialing, Kind::Connected, Kind::Closing, Kind::Held].get(usize::from(index)).copied()
    }
}

/// The right to hold descriptors: one, or as many as its [`weight`](Self::weight).
///
/// Comes from [`Budget::acquire`](crate::Budget::acquire) and its kin; goes back when dropped. Drop the
/// descriptor first, or let [`hold`](Self::hold) see to it.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use fdpool::Budget;
///
/// let budget = Budget::new(10);
/// let slot = budget.acquire().await?;
/// let file = slot.hold(std::fs::File::open("/dev/null")?);
/// assert_eq!(budget.stats().held, 1);
/// drop(file); // closes the file, then gives the slot back
/// assert_eq!(budget.stats().held, 0);
/// # Ok(()) }
/// ```
#[must_use = "a slot that is dropped is given back at once"]
#[doc(alias = "permit")]
#[doc(alias = "Semaphore")]
pub struct Slot {
    /// Who holds it, if that is tracked and it is held outside of connections. Goes before the partition it names.
    hold: Option<Box<Hold>>,
    pub(super) partition: Arc<Partition>,
    pub(super) claim: Claim,
}

/// What the books know a slot by. Written under the ledger's lock.
#[derive(Debug)]
pub(super) struct Claim {
    /// The address it is used for, if it is used for one.
    pub(super) seat: Option<SeatId>,
    pub(super) weight: usize,
    pub(super) kind: Kind,
    /// Its connection is being evicted: somebody waits for it.
    pub(super) evicted: bool,
    /// Kind and eviction are kept there instead, when the connection is elsewhere.
    pub(super) tag: Option<Arc<Tag>>,
}

impl Slot {
    pub(super) fn new(partition: Arc<Partition>, seat: Option<SeatId>, weight: usize, kind: Kind) -> Self {
        Self { partition, claim: Claim { seat, weight, kind, evicted: false, tag: None }, hold: None }
    }

    /// Notes who has it, if that is tracked.
    pub(super) fn noted(mut self, site: Option<Site>) -> Self {
        self.note(site);
        self
    }

    fn note(&mut self, site: Option<Site>) {
        if let Some(holds) = self.partition.ledger.holds.as_ref().filter(|_| self.claim.weight > 0) {
            let hold = holds.note(None, self.claim.weight, site);
            hold.is_of(self.partition.account, None);
            self.hold = Some(Box::new(hold));
        }
    }

    /// It is held by somebody else from now on, or is a dial's.
    pub(crate) fn changes_hands(&mut self, hold: Option<Box<Hold>>) {
        if let Some(hold) = &hold {
            hold.is_of(self.partition.account, None);
        }
        self.hold = hold;
    }

    /// Ties a value that owns a descriptor to this slot: the value is dropped first, then the slot.
    pub fn hold<T>(self, value: T) -> Held<T> {
        Held { value, slot: self }
    }

    /// Takes `n` of this slot's descriptors into a slot of their own. `None` if it has fewer.
    ///
    /// Splitting all off leaves a slot of weight 0, which stands for nothing.
    pub fn split(&mut self, n: usize) -> Option<Slot> {
        let claim = &mut self.claim;
        claim.weight = claim.weight.checked_sub(n)?;
        let mut slot = Slot::new(Arc::clone(&self.partition), claim.seat, n, claim.kind);
        if claim.weight == 0 {
            slot.claim.tag = claim.tag.take();
            slot.hold = self.hold.take();
        } else if n > 0 {
            slot.hold = self.hold.as_mut().map(|hold| Box::new(hold.split(n)));
        }
        Some(slot)
    }

    /// How many descriptors it stands for: 1, unless it came from
    /// [`acquire_many`](crate::Budget::acquire_many) or was split.
    pub fn weight(&self) -> usize {
        self.claim.weight
    }

    pub(crate) fn belongs_to(&self, partition: &Arc<Partition>) -> bool {
        Arc::ptr_eq(&self.partition, partition)
    }

    pub(crate) fn sits_at(&self, seat: SeatId) -> bool {
        self.claim.seat == Some(seat)
    }

    /// A slot that stands for nothing.
    pub(crate) fn empty(partition: &Arc<Partition>) -> Self {
        Self::new(Arc::clone(partition), None, 0, Kind::Held)
    }

    /// Parts the slot from its connection, which keeps the tag.
    pub(crate) fn tagged(mut self) -> (Self, Elsewhere) {
        let claim = &mut self.claim;
        let tag = Arc::new(Tag { kind: AtomicU8::new(claim.kind as u8), evicted: AtomicBool::new(false) });
        claim.tag = Some(Arc::clone(&tag));
        let elsewhere = Elsewhere { partition: Arc::clone(&self.partition), seat: claim.seat, tag };
        (self, elsewhere)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.claim.weight > 0 {
            let ledger = &self.partition.ledger;
            let mut books = ledger.lock();
            books.release(self.partition.account, &mut self.claim);
            ledger.settle(books);
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("weight", &self.claim.weight)
            .field("kind", &self.claim.kind)
            .finish_non_exhaustive()
    }
}

/// What a connection and its slot share when the slot stays with the descriptor, out of the connection's
/// hands. Written under the ledger's lock only.
#[derive(Debug)]
pub(crate) struct Tag {
    kind: AtomicU8,
    evicted: AtomicBool,
}

impl Tag {
    const GONE: u8 = u8::MAX;

    /// `None` once the slot has gone, and the descriptor with it.
    pub(super) fn kind(&self) -> Option<Kind> {
        Kind::from_index(self.kind.load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, kind: Option<Kind>) {
        self.kind.store(kind.map_or(Self::GONE, |kind| kind as u8), Ordering::Relaxed);
    }

    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Relaxed)
    }

    pub(super) fn set_evicted(&self) {
        self.evicted.store(true, Ordering::Relaxed);
    }
}

/// A connection's claim to its slot.
#[derive(Debug)]
pub(crate) enum Lease {
    /// The connection owns its descriptor, and so its slot.
    Own(Slot),
    /// Somebody else owns the descriptor, and the slot with it.
    Elsewhere(Elsewhere),
}

impl Lease {
    /// Whether the descriptor has gone before its connection.
    #[inline]
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Lease::Own(_) => false,
            Lease::Elsewhere(elsewhere) => elsewhere.tag.kind().is_none(),
        }
    }

    pub(crate) fn into_slot(self) -> Option<Slot> {
        match self {
            Lease::Own(slot) => Some(slot),
            Lease::Elsewhere(_) => None,
        }
    }
}

/// The claim of a connection whose descriptor, and slot, somebody else owns. When it goes first, the slot
/// counts as closing until it goes too.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    pub(super) partition: Arc<Partition>,
    pub(super) seat: Option<SeatId>,
    pub(super) tag: Arc<Tag>,
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let ledger = &self.partition.ledger;
        let mut books = ledger.lock();
        books.reassign_elsewhere(self, Kind::Closing);
        ledger.settle(books);
    }
}

/// A value that owns a descriptor, and the slot that stands for it. Dropped in that order.
///
/// Comes from [`Slot::hold`], [`Conn::into_held`](crate::Conn::into_held) and
/// [`DialContext::hold`](crate::DialContext::hold). Reads and writes as the value does.
#[derive(Debug)]
pub struct Held<T> {
    value: T,
    // After the value: the descriptor is closed before its slot goes (I2).
    slot: Slot,
}

impl<T> Held<T> {
    /// Replaces the value by one that owns the same descriptor: a stream by a TLS stream around it, say.
    ///
    /// If `f` panics, the value is dropped and the slot given back.
    pub fn map<U>(held: Held<T>, f: impl FnOnce(T) -> U) -> Held<U> {
        let Held { value, slot } = held;
        Held { value: f(value), slot }
    }

    /// For pools that are [`Reclaim`](crate::Reclaim)ed from: it rests, and while it does nobody holds it, as far as
    /// [`track_holds`](crate::BudgetBuilder::track_holds) and [`hold_warning`](crate::BudgetBuilder::hold_warning) go.
    pub fn note_idle(held: &mut Held<T>) {
        held.slot.changes_hands(None);
    }

    /// The same: it is taken out, and held from now on, by the task that runs this. The place is not known.
    pub fn note_in_use(held: &mut Held<T>) {
        held.slot.note(None);
    }

    /// The value and its slot, for the caller to drop in that order.
    pub fn into_parts(held: Held<T>) -> (T, Slot) {
        (held.value, held.slot)
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Held<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Held<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.value).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Held<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.value).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.value).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.value.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.value).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.value).poll_shutdown(cx)
    }
}
