//! Counters, and the snapshots made of them. Knows nothing of what it counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::text::Number;

/// Defines the events that are counted once, and with them the snapshots that carry all their counters.
macro_rules! counters {
    ($($(#[$doc:meta])* $event:ident => $field:ident,)*) => {
        /// Something that happened and is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Event { $($event,)* }

        const EVENTS: usize = [$(Event::$event),*].len();

        /// A budget at one moment: how its slots are used, and what has happened so far.
        ///
        /// `in_use + idle + dialing + closing + held` is what is open through the budget; while other threads
        /// are at work, numbers of one snapshot may be a few events apart from each other.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct BudgetStats {
            /// Slots as configured or computed.
            pub limit: usize,
            /// Slots that may be used now: see [`Budget::effective_limit`](crate::Budget::effective_limit).
            pub effective_limit: usize,
            /// Connections that somebody holds.
            pub in_use: usize,
            /// Connections ready for reuse.
            pub idle: usize,
            /// Slots of dials under way.
            pub dialing: usize,
            /// Connections given up whose descriptor is still open.
            pub closing: usize,
            /// Slots held outside of connections: [`Slot`](crate::Slot) and [`Held`](crate::Held).
            pub held: usize,
            /// Callers waiting for a slot; those whose address has all it may have (`max_conns`) are not among them.
            pub waiting: usize,
            /// Descriptors the process has open besides those that fdpool counts, as of the last look; 0 if the budget was
            /// not sized by the process's limit.
            pub foreign_fds: usize,
            $($(#[$doc])* pub $field: u64,)*
        }

        /// One address at one moment: its connections, and what has happened so far.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct ResourceStats {
            /// Connections that somebody holds.
            pub in_use: usize,
            /// Connections ready for reuse.
            pub idle: usize,
            /// Dials under way.
            pub dialing: usize,
            /// Connections given up whose descriptor is still open.
            pub closing: usize,
            /// Callers waiting at this address, for a slot, a connection or their own dial.
            pub waiting: usize,
            $($(#[$doc])* pub $field: u64,)*
        }

        impl BudgetStats {
            pub(crate) fn count(&mut self, tally: &Tally) {
                $(self.$field += tally.read(Event::$event);)*
            }
        }

        impl ResourceStats {
            pub(crate) fn count(&mut self, tally: &AddressTally) {
                $(self.$field += tally.read(Event::$event);)*
            }
        }
    };
}

counters! {
    /// Dials begun.
    Dial => dials,
    /// Dials that failed, timed out or were given up. Not those that found no descriptor, and whose caller waits for a slot
    /// again: these are counted by `emfile`.
    DialFailure => dial_failures,
    /// Connections given out that had served before, or had rested (one dialled for the stock, say). One that is taken out
    /// and found unfit is counted only until that is found.
    Reused => reused,
    /// Connections closed because somebody else needed the slot: idle ones, and those put while somebody waits elsewhere.
    Evicted => evicted,
    /// Connections closed because of time: idle for too long, or too old.
    Expired => expired,
    /// Connections the peer had closed: found on get or put, or dropped after their end was read.
    Stale => stale,
    /// Idle connections with bytes nobody had asked for.
    Dirty => dirty,
    /// Connections found broken on get, or put or dropped after an error.
    Broken => broken,
    /// Connections dropped without [`put`](crate::Conn::put), although no error or end had gone through them.
    Dropped => dropped,
    /// Healthy connections closed because they are of no use any more: of an older generation, used up, one idle too many,
    /// of another runtime, or of a resource or budget that was closed.
    Retired => retired,
    /// Times that a caller had to wait for a slot or for its address.
    Wait => waits,
    /// Dials that found no descriptor (`EMFILE`, `ENFILE`) although the budget had one to give.
    Emfile => emfile,
    /// Panics of user code that were caught because they would have hit somebody else. Not those of wakers, nor of a dial
    /// that goes on in a task of its own, which is one of the `dial_failures`.
    Panic => panics,
}

impl Event {
    /// An end of an idle connection that its peer made, or its dialer cannot tell from that.
    pub(crate) fn is_of_the_peer(self) -> bool {
        matches!(self, Event::Stale | Event::Dirty | Event::Broken)
    }
}

/// One counter for each [`Event`].
#[derive(Debug, Default)]
pub(crate) struct Tally([AtomicU64; EVENTS]);

impl Tally {
    pub(crate) fn add(&self, event: Event, n: u64) {
        self.0[event as usize].fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, event: Event) -> u64 {
        self.0[event as usize].load(Ordering::Relaxed)
    }
}

/// The same for one address, of which there may be a million: a word until something has happened, and small until that
/// has been often. Behind the address's lock.
#[derive(Debug, Default)]
pub(crate) struct AddressTally(Option<Box<Counters>>);

#[derive(Debug)]
enum Counters {
    /// Can become Many.
    Few([u16; EVENTS]),
    Many(Box<[u64; EVENTS]>),
}

impl AddressTally {
    pub(crate) fn add(&mut self, event: Event, n: u64) {
        let counters = self.0.get_or_insert_with(|| Box::new(Counters::Few([0; EVENTS])));
        let few = match &mut **counters {
            Counters::Few(few) => few,
            Counters::Many(many) => return many[event as usize] += n,
        };
        let counter = &mut few[event as usize];
        match u16::try_from(n).ok().and_then(|n| counter.checked_add(n)) {
            Some(sum) => *counter = sum,
            None => {
                let mut many = Box::new(few.map(u64::from));
                many[event as usize] += n;
                **counters = Counters::Many(many);
            }
        }
    }

    /// One was counted that did not happen.
    pub(crate) fn take_back(&mut self, event: Event) {
        match self.0.as_deref_mut() {
            None => {}
            Some(Counters::Few(few)) => few[event as usize] -= 1,
            Some(Counters::Many(many)) => many[event as usize] -= 1,
        }
    }

    pub(crate) fn read(&self, event: Event) -> u64 {
        match self.0.as_deref() {
            None => 0,
            Some(Counters::Few(few)) => few[event as usize].into(),
            Some(Counters::Many(many)) => many[event as usize],
        }
    }
}

/// How a budget's slots were used at the moment an error was made; where more than 256 addresses are in use, within the 50 ms
/// before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BudgetCounts {
    /// Slots as configured or computed.
    pub limit: usize,
    /// Slots that could be used then.
    pub effective_limit: usize,
    /// Connections that somebody held.
    pub in_use: usize,
    /// Connections ready for reuse.
    pub idle: usize,
    /// Slots of dials under way.
    pub dialing: usize,
    /// Connections given up whose descriptor was still open.
    pub closing: usize,
    /// Slots held outside of connections.
    pub held: usize,
    /// Callers waiting for a slot.
    pub waiting: usize,
    /// Slots that nobody had, and that were kept for children ([`child_with`](crate::Budget::child_with)).
    pub kept: usize,
}

impl std::fmt::Display for BudgetCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { effective_limit, in_use, idle, dialing, closing, held, waiting, kept, .. } = self;
        let slots = Number(*effective_limit, "slot");
        write!(
            f,
            "{slots}: {in_use} in use, {idle} idle, {dialing} dialing, {closing} closing, \
             {held} held; {waiting} waiting"
        )?;
        if *kept > 0 { write!(f, "; {kept} kept for children") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_tally_counts_on_where_it_does_not_fit() {
        let mut tally = AddressTally::default();
        assert_eq!(tally.read(Event::Dial), 0);
        let mut sum = 0;
        for n in [1, 0, 65_533, 1, 1, 70_000, u64::from(u32::MAX)] {
            tally.add(Event::Dial, n);
            tally.add(Event::Panic, 1);
            sum += n;
            tally.add(Event::Dial, 1);
            tally.take_back(Event::Dial);
            assert_eq!(tally.read(Event::Dial), sum);
        }
        assert_eq!((tally.read(Event::Panic), tally.read(Event::Wait)), (7, 0));
    }
}
