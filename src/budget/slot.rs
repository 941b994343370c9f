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
use super::partition::Partition;
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
    /// All but the last.
    pub(crate) const OF_CONNECTIONS: usize = 3;

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
    pub(super) claim: Claim,
}

/// What the books know a slot by: all of a slot that an idle connection has. Goes back when dropped.
#[derive(Debug)]
pub(crate) enum Claim {
    /// Can become Tagged, if it stands for one descriptor. Its use is written under the ledger's lock.
    Plain { partition: Arc<Partition>, used: Use },
    /// Its connection is elsewhere, and its use is kept between them. Can become Plain, when the connection loses it.
    Tagged(Arc<Tag>),
}

/// Who uses a slot, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// By an address, one descriptor. Can become Held, or the same of another kind or seat.
    Seated {
        seat: SeatId,
        /// Not Held.
        kind: Kind,
        /// It comes back presently: its connection is being evicted, or its dial has failed.
        evicted: bool,
    },
    /// Outside of connections. Can become Seated if it is one descriptor, and fewer by being split.
    Held(Weight),
}

/// How many descriptors: fewer than 2⁴⁸, so that all of a [`Use`] is one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weight([u16; 3]);

impl Weight {
    const NONE: Self = Self([0; 3]);
    pub(super) const ONE: Self = Self([1, 0, 0]);
    /// No process has as many descriptors; sums of what is wanted stay far from overflow.
    pub(super) const MOST: usize = usize::MAX >> 16;

    fn new(descriptors: usize) -> Self {
        debug_assert!(descriptors <= Self::MOST, "BUG: more than anybody may ask for");
        let descriptors = descriptors as u64;
        Self([descriptors as u16, (descriptors >> 16) as u16, (descriptors >> 32) as u16])
    }

    fn get(self) -> usize {
        let Self([low, middle, high]) = self;
        (u64::from(high) << 32 | u64::from(middle) << 16 | u64::from(low)) as usize
    }
}

impl Use {
    pub(super) const NOTHING: Self = Self::Held(Weight::NONE);

    pub(super) fn seated(seat: SeatId, kind: Kind) -> Self {
        Self::Seated { seat, kind, evicted: false }
    }

    pub(super) fn held(weight: usize) -> Self {
        Self::Held(Weight::new(weight))
    }

    pub(super) fn weight(self) -> usize {
        match self {
            Self::Seated { .. } => 1,
            Self::Held(weight) => weight.get(),
        }
    }

    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Seated { kind, .. } => kind,
            Self::Held(_) => Kind::Held,
        }
    }
}

impl Claim {
    pub(super) fn partition(&self) -> &Arc<Partition> {
        match self {
            Self::Plain { partition, .. } => partition,
            Self::Tagged(tag) => &tag.partition,
        }
    }

    pub(super) fn used(&self) -> Use {
        match self {
            Self::Plain { used, .. } => *used,
            Self::Tagged(tag) => tag.used().unwrap_or(Use::NOTHING),
        }
    }
}

impl Drop for Claim {
    /// Not where it is dropped: on the warm path there is none to be dropped, and to see that takes one instruction.
    #[inline(never)]
    fn drop(&mut self) {
        if self.used().weight() == 0 {
            return;
        }
        match self {
            Self::Plain { partition, used } => {
                let mut books = partition.ledger.lock();
                books.release(partition.account, *used);
                partition.ledger.settle(books);
            }
            Self::Tagged(tag) => {
                let mut books = tag.partition.ledger.lock();
                let used = books.untag(tag);
                books.release(tag.partition.account, used);
                tag.partition.ledger.settle(books);
            }
        }
    }
}

impl Slot {
    pub(super) fn new(partition: Arc<Partition>, used: Use) -> Self {
        Self { hold: None, claim: Claim::Plain { partition, used } }
    }

    /// Notes who has it, if that is tracked.
    pub(super) fn noted(mut self, site: Option<Site>) -> Self {
        self.note(site);
        self
    }

    fn note(&mut self, site: Option<Site>) {
        let (partition, weight) = (self.claim.partition(), self.weight());
        if let Some(holds) = partition.ledger.holds.as_ref().filter(|_| weight > 0) {
            let hold = holds.note(None, weight, site);
            hold.is_of(partition.account, None);
            self.hold = Some(Box::new(hold));
        }
    }

    /// It is held by somebody else from now on, or is a dial's.
    pub(crate) fn changes_hands(&mut self, hold: Option<Box<Hold>>) {
        if let Some(hold) = &hold {
            hold.is_of(self.claim.partition().account, None);
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
        let left = self.weight().checked_sub(n)?;
        let mut slot = Slot::empty(self.claim.partition());
        match (&mut self.claim, &mut slot.claim) {
            _ if left == 0 => std::mem::swap(self, &mut slot),
            (Claim::Plain { used, .. }, Claim::Plain { used: parted, .. }) if n > 0 => {
                (*used, *parted) = (Use::held(left), Use::held(n));
                slot.hold = self.hold.as_mut().map(|hold| Box::new(hold.split(n)));
            }
            _ => {}
        }
        Some(slot)
    }

    /// How many descriptors it stands for: 1, unless it came from
    /// [`acquire_many`](crate::Budget::acquire_many) or was split.
    pub fn weight(&self) -> usize {
        self.claim.used().weight()
    }

    pub(crate) fn belongs_to(&self, partition: &Arc<Partition>) -> bool {
        Arc::ptr_eq(self.claim.partition(), partition)
    }

    pub(crate) fn sits_at(&self, seat: SeatId) -> bool {
        matches!(self.claim.used(), Use::Seated { seat: at, .. } if at == seat)
    }

    /// A slot that stands for nothing.
    pub(crate) fn empty(partition: &Arc<Partition>) -> Self {
        Self::new(Arc::clone(partition), Use::NOTHING)
    }

    /// Parts the slot from its connection, which keeps the tag.
    pub(crate) fn tagged(mut self) -> (Self, Elsewhere) {
        let tag = Arc::new(Tag::new(Arc::clone(self.claim.partition()), self.claim.used()));
        if let Claim::Plain { used, .. } = &mut self.claim {
            *used = Use::NOTHING; // goes on in the tag
        }
        self.claim = Claim::Tagged(Arc::clone(&tag));
        (self, Elsewhere(tag))
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("weight", &self.weight())
            .field("kind", &self.claim.used().kind())
            .finish_non_exhaustive()
    }
}

/// What a connection and its slot share when the slot stays with the descriptor, out of the connection's
/// hands. Written under the ledger's lock only.
#[derive(Debug)]
pub(crate) struct Tag {
    pub(super) partition: Arc<Partition>,
    /// `None`: the slot is no address's, as in a [detached](crate::DialContext::detached) dial.
    seat: Option<SeatId>,
    kind: AtomicU8,
    evicted: AtomicBool,
}

impl Tag {
    const GONE: u8 = u8::MAX;

    /// Of one descriptor.
    fn new(partition: Arc<Partition>, used: Use) -> Self {
        let seat = match used {
            Use::Seated { seat, .. } => Some(seat),
            Use::Held(_) => None,
        };
        let kind = AtomicU8::new(used.kind() as u8);
        Self { partition, seat, kind, evicted: AtomicBool::new(false) }
    }

    /// `None` once the slot has gone, and the descriptor with it.
    pub(super) fn used(&self) -> Option<Use> {
        let kind = Kind::from_index(self.kind.load(Ordering::Relaxed))?;
        Some(self.seat.map_or(Use::Held(Weight::ONE), |seat| Use::seated(seat, kind)))
    }

    pub(super) fn set(&self, kind: Option<Kind>) {
        self.kind.store(kind.map_or(Self::GONE, |kind| kind as u8), Ordering::Relaxed);
    }

    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Relaxed)
    }

    pub(super) fn set_evicted(&self, evicted: bool) {
        self.evicted.store(evicted, Ordering::Relaxed);
    }
}

/// A connection's claim to its slot.
#[derive(Debug)]
pub(crate) enum Lease {
    /// The connection owns its descriptor, and so its slot.
    Own(Claim),
    /// Somebody else owns the descriptor, and the slot with it.
    Elsewhere(Elsewhere),
}

impl Lease {
    pub(super) fn used(&self) -> Use {
        match self {
            Lease::Own(claim) => claim.used(),
            Lease::Elsewhere(elsewhere) => elsewhere.used(),
        }
    }

    /// Whether the descriptor has gone before its connection.
    #[inline]
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Lease::Own(_) => false,
            Lease::Elsewhere(Elsewhere(tag)) => tag.used().is_none(),
        }
    }

    pub(crate) fn into_slot(self) -> Option<Slot> {
        match self {
            Lease::Own(claim) => Some(claim.into()),
            Lease::Elsewhere(_) => None,
        }
    }
}

impl From<Claim> for Slot {
    fn from(claim: Claim) -> Self {
        Self { hold: None, claim }
    }
}

impl From<Slot> for Lease {
    fn from(slot: Slot) -> Self {
        Self::Own(slot.claim)
    }
}

/// The claim of a connection whose descriptor, and slot, somebody else owns. When it goes first, the slot
/// counts as closing until it goes too.
#[derive(Debug)]
pub(crate) struct Elsewhere(pub(super) Arc<Tag>);

impl Elsewhere {
    pub(super) fn used(&self) -> Use {
        self.0.used().unwrap_or(Use::NOTHING)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let ledger = &self.0.partition.ledger;
        let mut books = ledger.lock();
        books.outlived(self);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_survives_packing() {
        for descriptors in [0, 1, 0x1_0000, Weight::MOST / 3, Weight::MOST] {
            assert_eq!(Weight::new(descriptors).get(), descriptors);
        }
    }

    #[test]
    fn what_an_idle_connection_has_of_its_slot_is_two_words() {
        assert_eq!(size_of::<Option<Lease>>(), 2 * size_of::<usize>());
    }
}
