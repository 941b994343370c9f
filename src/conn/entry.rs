//! A connection and what is known of it, whoever has it; how it ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokio::runtime;

use crate::budget::member::Victim;
use crate::budget::slot::{Held, Kind, Lease, Slot};
use crate::budget::{Hold, ResourceId, Site};
use crate::clock;
use crate::resource::freelist::{Record, Resting};
use crate::resource::shared::Shared;
use crate::stats::Event;
use crate::upkeep::{self, Alarm};

/// A connection and what is known of it, whoever owns it: a [`Conn`](super::Conn), a freelist, a grant, an eviction.
///
/// The connection goes before its lease: the descriptor is closed, then its slot given back (I2).
pub(crate) struct Entry<C> {
    /// `None` only while it is being closed, or taken out of the pool.
    pub(crate) conn: Option<C>,
    lease: Option<Lease>,
    pub(crate) record: Record,
    /// Where its descriptor is registered.
    pub(crate) runtime: Option<runtime::Id>,
    /// What happened to it that bars reuse.
    spent: Option<Event>,
    /// Its budget tracks who holds it.
    tracked: bool,
    /// It has rested, whether it has served or not.
    pub(crate) rested: bool,
    /// It was found busy since it was put: those in line are not given it.
    pub(crate) busy: bool,
    /// It rests, or is in the keeper's hands, and its stream wakes the keeper.
    watched: bool,
    /// By what its stream does that, once it was watched.
    alarm: Option<Arc<Alarm<Shared<C>>>>,
    /// Who has it, while it is in use, if that is noted.
    hold: Option<Box<Hold>>,
    /// Its address, which so lasts as long as it. An address that nobody can ask any more gives up what rests there.
    pub(crate) shared: Arc<Shared<C>>,
}

impl<C> Entry<C> {
    pub(crate) fn new(
        conn: C,
        lease: Lease,
        record: Record,
        runtime: Option<runtime::Id>,
        shared: Arc<Shared<C>>,
    ) -> Box<Self> {
        let (conn, lease, tracked) = (Some(conn), Some(lease), shared.tracks());
        let (spent, alarm, hold, rested, busy, watched) = (None, None, None, false, false, false);
        Box::new(Self {
            conn,
            lease,
            record,
            runtime,
            spent,
            tracked,
            rested,
            busy,
            watched,
            alarm,
            hold,
            shared,
        })
    }

    /// Whether it comes from its dial, and is as good as that told.
    pub(crate) fn is_new(&self) -> bool {
        !self.rested && !self.is_reused()
    }

    pub(crate) fn is_reused(&self) -> bool {
        self.record.uses > 0
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.watched
    }

    /// Whether its stream has rung since it was looked at last.
    pub(crate) fn has_rung(&self) -> bool {
        self.watched && self.alarm.as_ref().is_some_and(|alarm| alarm.has_rung())
    }

    /// Its stream wakes nobody any more, as far as anybody cares.
    #[cold]
    pub(crate) fn unwatch(&mut self) {
        if std::mem::take(&mut self.watched) {
            self.shared.ledger().keeper.one_less();
        }
    }

    /// Somebody has it from now on.
    #[inline]
    pub(super) fn begin_use(&mut self, site: Site) {
        if self.watched {
            self.unwatch();
        }
        if self.tracked {
            self.note_hold(site);
        }
        self.busy = false;
    }

    /// Who had it gives it back. Returns what bars its reuse, if anything that has happened does.
    #[inline]
    pub(super) fn end_use(&mut self) -> Option<Event> {
        if self.hold.is_some() {
            self.hold = None;
        }
        self.record.rested = clock::now();
        self.record.uses = self.record.uses.saturating_add(1);
        self.spent
    }

    /// It is not to be used again.
    pub(super) fn spoil(&mut self, event: Event) {
        self.spent = Some(event);
    }

    /// Leaves the pool: a value of its own from now on, and its slot is held.
    pub(super) fn into_held(mut self) -> Held<C> {
        let conn = self.conn.take().expect("BUG: a connection in use");
        let slot = match self.lease.take().and_then(Lease::into_slot) {
            Some(mut slot) => {
                let ledger = &self.shared.partition().ledger;
                let mut books = ledger.lock();
                books.reassign(&mut slot, None, Kind::Held);
                ledger.settle(books); // its address may have another now
                slot.changes_hands(self.hold.take());
                slot
            }
            None => Slot::empty(self.shared.partition()),
        };
        slot.hold(conn)
    }

    /// Who has it is noted, if that is asked for.
    #[cold]
    fn note_hold(&mut self, site: Site) {
        let hold = self.shared.note_hold(site);
        if let Some(hold) = &hold {
            hold.is_of(self.shared.partition().account, Some(ResourceId::of(&*self.shared)));
        }
        self.hold = hold.map(Box::new);
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.lease.as_ref().is_none_or(Lease::is_gone)
    }

    pub(crate) fn lease_mut(&mut self) -> &mut Lease {
        self.lease.as_mut().expect("BUG: a connection has a lease until it is closed")
    }

    /// Closes the connection by its dialer, and leaves an empty entry. If what it calls panics, the lease stays
    /// in the entry, and goes with it.
    pub(super) fn close(&mut self) -> Option<Lease> {
        if let Some(conn) = self.conn.take() {
            self.shared.dialer.close(conn);
        }
        self.lease.take()
    }

    /// Closes a connection whose end is no business of the caller's: its panics are caught and counted.
    fn close_quietly(&mut self) -> Option<Lease> {
        catch_unwind(AssertUnwindSafe(|| self.close())).unwrap_or_else(|_| {
            self.shared.count(Event::Panic);
            self.lease.take()
        })
    }

    /// Closes a connection that nobody gets.
    #[cold]
    pub(crate) fn discard(mut self, event: Event) {
        drop(self.end(event));
    }

    /// The same, but for its lease.
    pub(crate) fn end(&mut self, event: Event) -> Option<Lease> {
        self.shared.count(event);
        if self.rested && !self.is_reused() && event.is_of_the_peer() {
            self.shared.stock_ended(clock::now().since(self.record.born));
        }
        self.end_counted(event)
    }

    /// The same, where the address has counted it.
    fn end_counted(&mut self, event: Event) -> Option<Lease> {
        self.trace_close(event);
        self.close_quietly()
    }

    /// Closes a connection that was not put.
    #[cold]
    pub(super) fn dropped(mut self) {
        // One that saw its end is not one whose put was forgotten.
        self.shared.count(self.spent.unwrap_or(Event::Dropped));
        if std::thread::panicking() {
            // A second panic would end the process.
            drop(self.close_quietly());
        } else {
            drop(self.close());
        }
    }

    fn trace_close(&self, event: Event) {
        tracing::debug!(
            address = %self.shared.address,
            reason = ?event,
            age = ?clock::now().since(self.record.born),
            idle = ?self.record.idle_for(clock::now()),
            uses = self.record.uses,
            "connection closed"
        );
    }
}

impl<C: Send + 'static> Entry<C> {
    /// By what its stream is to wake the keeper from now on, until it is given out.
    pub(crate) fn watch(&mut self) -> &Arc<Alarm<Shared<C>>> {
        if !std::mem::replace(&mut self.watched, true) {
            self.shared.ledger().keeper.one_more();
        }
        let shared = &self.shared;
        self.alarm.get_or_insert_with(|| Alarm::of(shared))
    }
}

impl<C> Drop for Entry<C> {
    fn drop(&mut self) {
        if self.watched {
            self.unwatch();
        }
    }
}

impl<C> Resting for Box<Entry<C>> {
    #[inline]
    fn record(&self) -> &Record {
        &self.record
    }
}

impl<C: Send + 'static> Victim for Entry<C> {
    fn lease(&mut self) -> &mut Lease {
        self.lease_mut()
    }

    fn take_slot(&mut self) -> Option<Slot> {
        self.lease.take_if(|lease| matches!(lease, Lease::Own(_))).and_then(Lease::into_slot)
    }

    fn close(mut self: Box<Self>) {
        self.shared.partition().count(Event::Evicted, 1);
        drop(self.end_counted(Event::Evicted));
        upkeep::restock(&self.shared);
    }
}
