//! The table of known addresses, in parts with a lock each, and which of its entries are forgotten. Makes and drops
//! no resource: what has left is returned to be dropped outside of the lock.

use std::cell::Cell;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use indexmap::map::raw_entry_v1::{RawEntryApiV1, RawEntryMut};
use parking_lot::{Mutex, MutexGuard};

use crate::address::Address;
use crate::clock::Tick;
use crate::resource::ConnResource;

/// Enough that some dozens of threads seldom meet.
const SHARDS: usize = 64;

/// How many entries are looked at that stay. With each insertion, so that a table that is fed holds few entries
/// whose time is over: about one for four whose time is not.
const LOOKS: usize = 4;

/// How many entries are forgotten at a time.
const MOST_FORGOTTEN: usize = 8;

/// Of so many lookups one looks for what to forget: a table that is only read empties too. What it looks at is seldom in
/// the cache.
const LOOKUPS_A_LOOK: usize = 16;

pub(super) struct Table<C> {
    hasher: RandomState,
    shards: Box<[Shard<C>]>,
}

/// No dialer, hook or drop of a resource runs under the lock. The ledger and an address may be locked inside of it,
/// never the other way round.
pub(super) struct Shard<C>(Mutex<Entries<C>>);

pub(super) struct Entries<C> {
    known: IndexMap<Address, Entry<C>, RandomState>,
    /// Where looking for what to forget goes on.
    next: usize,
}

struct Entry<C> {
    resource: ConnResource<C>,
    used: Tick,
}

impl<C> Table<C> {
    pub(super) fn new() -> Self {
        // The same for all, so that an address is hashed once.
        let hasher = RandomState::new();
        let known = || IndexMap::with_hasher(hasher.clone());
        let shards = (0..SHARDS).map(|_| Shard(Mutex::new(Entries { known: known(), next: 0 }))).collect();
        Self { hasher, shards }
    }

    /// Where an address is, and its hash.
    pub(super) fn shard(&self, address: &str) -> (&Shard<C>, u64) {
        let hash = self.hasher.hash_one(address);
        // By bits that the map makes no use of.
        (&self.shards[(hash >> 32) as usize % SHARDS], hash)
    }

    pub(super) fn shards(&self) -> &[Shard<C>] {
        &self.shards
    }
}

impl<C: Send + 'static> Table<C> {
    /// Called with each lookup. Returns what is forgotten.
    pub(super) fn tidy(&self, now: Tick, forget_after: Option<Duration>) -> Vec<ConnResource<C>> {
        // Any part, not the one that was asked: there may be parts that nobody asks any more. By lot, since a turn
        // could fall in step with the calls.
        let lot = draw();
        if !lot.is_multiple_of(LOOKUPS_A_LOOK) {
            return Vec::new();
        }
        match self.shards[lot / LOOKUPS_A_LOOK % SHARDS].0.try_lock() {
            Some(mut entries) => entries.forget(now, forget_after),
            None => Vec::new(),
        }
    }
}

/// A number drawn without touching memory of other threads: Knuth's linear congruential generator (MMIX), of which
/// the high bits are good.
fn draw() -> usize {
    std::thread_local! {
        static STATE: Cell<u64> = const { Cell::new(0) };
    }
    let state = STATE.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    STATE.set(state);
    (state >> 33) as usize
}

impl<C> Shard<C> {
    pub(super) fn lock(&self) -> MutexGuard<'_, Entries<C>> {
        self.0.lock()
    }
}

impl<C> Entries<C> {
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn peek(&self, address: &str) -> Option<ConnResource<C>> {
        self.known.get(address).map(|entry| entry.resource.clone())
    }

    /// By an address and its hash.
    pub(super) fn find(&mut self, address: &str, hash: u64, now: Tick) -> Option<ConnResource<C>> {
        let known = self.known.raw_entry_mut_v1().from_key_hashed_nocheck(hash, address);
        let RawEntryMut::Occupied(known) = known else { return None };
        let entry = known.into_mut();
        entry.used = now;
        Some(entry.resource.clone())
    }

    pub(super) fn all(&self) -> Vec<ConnResource<C>> {
        self.known.values().map(|entry| entry.resource.clone()).collect()
    }
}

impl<C: Send + 'static> Entries<C> {
    /// The resource that is known from now on: the given one, unless somebody else was faster. And the one that is
    /// not needed, and what was forgotten by the way.
    pub(super) fn insert(
        &mut self,
        address: Address,
        made: ConnResource<C>,
        now: Tick,
        forget_after: Option<Duration>,
    ) -> (ConnResource<C>, Option<ConnResource<C>>, Vec<ConnResource<C>>) {
        let forgotten = self.forget(now, forget_after);
        let entry = self.known.entry(address);
        let surplus = matches!(entry, indexmap::map::Entry::Occupied(_)).then(|| made.clone());
        let entry = entry.or_insert(Entry { resource: made, used: now });
        entry.used = now;
        (entry.resource.clone(), surplus, forgotten)
    }

    /// Removes this very resource: not another that has taken its place.
    pub(super) fn remove(&mut self, resource: &ConnResource<C>) -> Option<ConnResource<C>> {
        let (index, _, entry) = self.known.get_full(resource.address())?;
        Arc::ptr_eq(entry.resource.shared(), resource.shared()).then(|| self.remove_at(index)).flatten()
    }

    fn remove_at(&mut self, index: usize) -> Option<ConnResource<C>> {
        let (_, entry) = self.known.swap_remove_index(index)?;
        if self.known.len() < self.known.capacity() / 8 {
            self.known.shrink_to(self.known.len() * 2);
        }
        Some(entry.resource)
    }

    fn forget(&mut self, now: Tick, forget_after: Option<Duration>) -> Vec<ConnResource<C>> {
        let mut forgotten = Vec::new();
        let Some(span) = forget_after else { return forgotten };
        let mut looks = LOOKS.min(self.known.len());
        while looks > 0 && forgotten.len() < MOST_FORGOTTEN {
            if self.next >= self.known.len() {
                self.next = 0;
            }
            let Some((_, entry)) = self.known.get_index(self.next) else { break };
            if entry.may_be_forgotten(now, span) {
                forgotten.extend(self.remove_at(self.next));
            } else {
                self.next += 1;
                looks -= 1;
            }
        }
        forgotten
    }
}

impl<C: Send + 'static> Entry<C> {
    /// Under the shard's lock nobody can come by another handle: what has but one, has but one until it is removed.
    fn may_be_forgotten(&self, now: Tick, span: Duration) -> bool {
        now.since(self.used) >= span && self.resource.is_sole_handle() && {
            let stats = self.resource.stats();
            stats.in_use + stats.idle + stats.dialing + stats.closing + stats.waiting == 0
        }
    }
}
