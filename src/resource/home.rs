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

use super::shared::{Published, State};
use crate::sync::{ShortMutex, ShortMutexGuard};

/// Where the state of one address is, by a reference that holds nothing alive. Has no bounds on `C`, nor so have the types
/// of connections and handles: what the place is has been forgotten, and is remembered by what locks it.
pub(crate) struct Home<C> {
    pub(super) room: AnyRoom,
    lock: Lock<C>,
    pub(super) published: &'static Published,
}

/// A room of which it has been forgotten for what connections it is.
pub(crate) type AnyRoom = &'static (dyn Any + Send + Sync);

type Lock<C> = for<'a> fn(&'a (dyn Any + Send + Sync)) -> ShortMutexGuard<'a, State<C>>;

/// Where the state of an address is: its home, or the room itself, for who knows what it is.
pub(crate) trait Houses<C> {
    fn published(&self) -> &Published;
    fn lock(&self) -> ShortMutexGuard<'_, State<C>>;
}

impl<C> Houses<C> for Home<C> {
    #[inline]
    fn published(&self) -> &Published {
        self.published
    }

    #[inline]
    fn lock(&self) -> ShortMutexGuard<'_, State<C>> {
        self.lock()
    }
}

impl<C> Copy for Home<C> {}

impl<C> Clone for Home<C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Home<C> {
    #[inline]
    pub(crate) fn lock(&self) -> ShortMutexGuard<'_, State<C>> {
        (self.lock)(self.room)
    }

    /// The address is gone, and nobody asks for its state any more: the place is free for another.
    pub(super) fn vacate(self) {
        let left = std::mem::take(&mut *self.lock());
        drop(left);
        self.published.clear();
        if IS_LET_AGAIN {
            VACANT.lock().entry(self.room.type_id()).or_default().push(self.room);
        }
    }
}

/// Two lines of the cache, which processors fetch together.
#[repr(align(128))]
pub(super) struct Room<C> {
    published: Published,
    state: ShortMutex<State<C>>,
}

impl<C: 'static> Room<C> {
    #[inline]
    pub(super) fn of(room: &(dyn Any + Send + Sync)) -> &Self {
        room.downcast_ref().expect("BUG: a home of another kind")
    }
}

impl<C: 'static> Houses<C> for Room<C> {
    #[inline]
    fn published(&self) -> &Published {
        &self.published
    }

    #[inline]
    fn lock(&self) -> ShortMutexGuard<'_, State<C>> {
        self.state.lock()
    }
}

fn lock<C: 'static>(room: &(dyn Any + Send + Sync)) -> ShortMutexGuard<'_, State<C>> {
    Room::of(room).state.lock()
}

/// Rooms that are free, by what they are.
static VACANT: LazyLock<Mutex<HashMap<TypeId, Vec<AnyRoom>>>> = LazyLock::new(Mutex::default);

/// A model begins with nothing of the one before it.
const IS_LET_AGAIN: bool = !cfg!(fdpool_loom);

/// A home for an address. Rooms never go back to the allocator: there are as many as there were addresses at once.
pub(super) fn move_in<C: Send + 'static>(state: State<C>) -> Home<C> {
    let free = VACANT.lock().get_mut(&TypeId::of::<Room<C>>()).and_then(Vec::pop);
    let room: &'static Room<C> = match free {
        Some(room) => {
            let room = Room::of(room);
            *room.state.lock() = state;
            room
        }
        None => Box::leak(Box::new(Room { published: Published::default(), state: ShortMutex::new(state) })),
    };
    Home { room, lock: lock::<C>, published: &room.published }
}
