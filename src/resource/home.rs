//! Where the state of an address is: at a place that stays when the address goes, and is then another's. Knows neither
//! what the state is nor who asks for it.
//!
//! Each connection has a share in its address, and a put moves the connection, and that share with it, under the
//! address's lock. No guard could borrow from what moves under it: so the lock is at a place that needs no share. Else
//! each get would have to make one and each put drop one, which was a fourth of a warm pair's time.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::LazyLock;

use parking_lot::Mutex;

use super::shared::{Locked, Published, State};
use crate::sync::{AtomicU64, Ordering, ShortMutex};

/// A [`Room`] of which it has been forgotten for what connections it is: handles and connections, whose types have no
/// bounds on `C`, know it by a reference to this, which holds nothing alive. Their dialer remembers.
pub(crate) trait AnyRoom: Any + Send + Sync {
    fn published(&self) -> &Published;
    /// Callers that got in line behind others. Counted under the address's lock.
    fn waits(&self) -> &AtomicU64;
}

/// Two lines of the cache, of which the first is all that a get and a put use while all is well.
#[repr(C, align(128))]
pub(super) struct Room<C> {
    published: Published,
    state: ShortMutex<State<C>>,
    waits: AtomicU64,
}

impl<C: 'static> Room<C> {
    #[inline]
    pub(super) fn of(room: &dyn AnyRoom) -> &Self {
        let room: &dyn Any = room;
        room.downcast_ref().expect("BUG: a room of another kind")
    }

    #[inline]
    pub(super) fn lock(&self) -> Locked<'_, C> {
        Locked::new(self.state.lock(), &self.published)
    }

    /// For who has no other lock.
    #[inline]
    pub(super) fn lock_alone(&self) -> Locked<'_, C> {
        Locked::new(self.state.lock_alone(), &self.published)
    }
}

impl<C: Send + 'static> AnyRoom for Room<C> {
    fn published(&self) -> &Published {
        &self.published
    }

    fn waits(&self) -> &AtomicU64 {
        &self.waits
    }
}

/// Rooms that are free, by what they are.
static VACANT: LazyLock<Mutex<HashMap<TypeId, Vec<&'static dyn AnyRoom>>>> = LazyLock::new(Mutex::default);

/// A model begins with nothing of the one before it.
const IS_LET_AGAIN: bool = !cfg!(fdpool_loom);

/// A room for an address. Rooms never go back to the allocator: there are as many as there were addresses at once.
pub(super) fn move_in<C: Send + 'static>(state: State<C>) -> &'static dyn AnyRoom {
    let free = VACANT.lock().get_mut(&TypeId::of::<Room<C>>()).and_then(Vec::pop);
    match free {
        Some(room) => {
            *Room::of(room).state.lock() = state;
            room
        }
        None => Box::leak(Box::new(Room {
            published: Published::default(),
            state: ShortMutex::new(state),
            waits: AtomicU64::new(0),
        })),
    }
}

/// The address is gone, its state too, and nobody asks for it any more: the room is free for another.
pub(super) fn move_out(room: &'static dyn AnyRoom) {
    room.published().clear();
    room.waits().store(0, Ordering::Relaxed);
    if IS_LET_AGAIN {
        let kind = <dyn Any>::type_id(room);
        VACANT.lock().entry(kind).or_default().push(room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_two_lines_of_the_cache() {
        assert_eq!(size_of::<Room<()>>(), 128);
    }
}
