//! Who waits, and in which order: the cell a grant is put into, a line of cells, and the ring in which
//! lines take turns. Knows neither budgets nor connections; the grant is whatever its users make it.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use tokio::task;

use crate::clock::Tick;
use crate::sync::ShortMutex;

/// Where one waiter and its granter meet.
///
/// The lock protects the state alone and is held for a few instructions: wakers are cloned before it is
/// taken, and woken or dropped after.
#[derive(Debug)]
pub(crate) struct Cell<G> {
    state: ShortMutex<CellState<G>>,
    pub(crate) since: Tick,
    /// Whose wait it is.
    pub(crate) task: Option<task::Id>,
}

#[derive(Debug)]
enum CellState<G> {
    /// Can become Granted (by a granter) or Gone (by its waiter).
    Waiting(Option<Waker>),
    /// Can become Waiting (taken, and more to wait for) or Gone (its waiter left without taking it).
    Granted(G),
    /// Final.
    Gone,
}

impl<G> CellState<G> {
    /// Granted → Waiting.
    fn take(&mut self) -> Option<G> {
        if !matches!(self, CellState::Granted(_)) {
            return None;
        }
        match std::mem::replace(self, CellState::Waiting(None)) {
            CellState::Granted(grant) => Some(grant),
            CellState::Waiting(_) | CellState::Gone => unreachable!("BUG: it was granted"),
        }
    }
}

impl<G> Cell<G> {
    pub(crate) fn new(since: Tick, waker: Option<Waker>) -> Self {
        Self { state: ShortMutex::new(CellState::Waiting(waker)), since, task: task::try_id() }
    }

    pub(crate) fn is_waiting(&self) -> bool {
        matches!(*self.state.lock(), CellState::Waiting(_))
    }

    /// Waiting → Granted. The waker is the caller's to wake, once it holds no lock.
    ///
    /// # Panics
    ///
    /// If nobody waits at the cell: granters pick cells that stand in a line, under the line's lock, and a
    /// waiter leaves its line before it leaves its cell.
    pub(crate) fn grant(&self, grant: G) -> Option<Waker> {
        let mut state = self.state.lock();
        match &mut *state {
            CellState::Waiting(waker) => {
                let waker = waker.take();
                *state = CellState::Granted(grant);
                waker
            }
            CellState::Granted(_) | CellState::Gone => {
                // Dropping it would take the locks that the caller holds.
                std::mem::forget(grant);
                panic!("BUG: granted to a cell where nobody waits")
            }
        }
    }

    /// Granted → Waiting, with what was granted, if it is of a certain kind.
    #[inline]
    pub(crate) fn take_if(&self, of: impl FnOnce(&G) -> bool) -> Option<G> {
        let mut state = self.state.lock();
        match &*state {
            CellState::Granted(grant) if of(grant) => state.take(),
            CellState::Waiting(_) | CellState::Granted(_) | CellState::Gone => None,
        }
    }

    /// Whom to wake for another reason than a grant.
    pub(crate) fn take_waker(&self) -> Option<Waker> {
        match &mut *self.state.lock() {
            CellState::Waiting(waker) => waker.take(),
            CellState::Granted(_) | CellState::Gone => None,
        }
    }

    /// Granted → Waiting, with what was granted, or a note whom to wake.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<G> {
        match self.begin_poll() {
            Ok(grant) => Poll::Ready(grant),
            Err(waker) => self.end_poll(waker, cx),
        }
    }

    /// The first half of [`poll`](Self::poll), which takes out whom to wake: what is granted before the other half wakes
    /// nobody, and is found there.
    pub(crate) fn begin_poll(&self) -> Result<G, Option<Waker>> {
        let mut state = self.state.lock();
        match &mut *state {
            CellState::Waiting(waker) => Err(waker.take()),
            CellState::Granted(_) => state.take().ok_or(None),
            CellState::Gone => Err(None),
        }
    }

    pub(crate) fn end_poll(&self, waker: Option<Waker>, cx: &mut Context<'_>) -> Poll<G> {
        let mut waker =
            waker.filter(|waker| waker.will_wake(cx.waker())).or_else(|| Some(cx.waker().clone()));
        let granted = {
            let mut state = self.state.lock();
            if let CellState::Waiting(noted) = &mut *state {
                std::mem::swap(noted, &mut waker); // another's, if there is one, is dropped after the lock
            }
            state.take()
        };
        granted.map_or(Poll::Pending, Poll::Ready)
    }

    /// → Gone, with what was granted and never taken: the caller passes it on.
    pub(crate) fn leave(&self) -> Option<G> {
        let last = std::mem::replace(&mut *self.state.lock(), CellState::Gone);
        match last {
            CellState::Granted(grant) => Some(grant),
            CellState::Waiting(_) | CellState::Gone => None,
        }
    }
}

/// A place in a line; smaller is earlier.
pub(crate) type Place = u64;

/// First come, first served. Sorted by place, so that who leaves is found at once.
///
/// There are two for each address, where nobody stands as a rule, or one caller: for those nothing is allocated, and what
/// was allocated for more is freed when the last has left.
#[derive(Debug)]
pub(crate) struct Line<W>(Standing<W>);

#[derive(Debug)]
enum Standing<W> {
    /// Can become One.
    Nobody,
    /// Can become Nobody or Many.
    One((Place, W)),
    /// At least one. Can become Nobody.
    Many(VecDeque<(Place, W)>),
}

impl<W> Line<W> {
    pub(crate) const fn new() -> Self {
        Self(Standing::Nobody)
    }

    pub(crate) fn len(&self) -> usize {
        match &self.0 {
            Standing::Nobody => 0,
            Standing::One(_) => 1,
            Standing::Many(many) => many.len(),
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self.0, Standing::Nobody)
    }

    fn take(&mut self) -> Standing<W> {
        std::mem::replace(&mut self.0, Standing::Nobody)
    }

    pub(crate) fn insert(&mut self, place: Place, who: W) {
        match &mut self.0 {
            Standing::Nobody => self.0 = Standing::One((place, who)),
            Standing::Many(many) => {
                if many.back().is_none_or(|(last, _)| *last < place) {
                    return many.push_back((place, who));
                }
                let index = many.partition_point(|(other, _)| *other < place);
                many.insert(index, (place, who));
            }
            Standing::One(_) => {
                if let Standing::One(one) = self.take() {
                    self.0 = Standing::Many(VecDeque::from([one]));
                }
                self.insert(place, who);
            }
        }
    }

    fn index_of(&self, place: Place) -> Option<usize> {
        match &self.0 {
            Standing::Nobody => None,
            Standing::One((other, _)) => (*other == place).then_some(0),
            Standing::Many(many) if many.front().is_some_and(|(first, _)| *first == place) => Some(0),
            Standing::Many(many) => many.binary_search_by_key(&place, |(other, _)| *other).ok(),
        }
    }

    fn remove_at(&mut self, index: usize) -> Option<(Place, W)> {
        match &mut self.0 {
            Standing::Many(many) if many.len() > 1 => match index {
                0 => many.pop_front(), // as a rule, and for much less
                _ => many.remove(index),
            },
            _ if index > 0 => None,
            _ => match self.take() {
                Standing::Nobody => None,
                Standing::One(one) => Some(one),
                Standing::Many(mut last) => last.pop_front(),
            },
        }
    }

    pub(crate) fn contains(&self, place: Place) -> bool {
        self.index_of(place).is_some()
    }

    pub(crate) fn get_mut(&mut self, place: Place) -> Option<&mut W> {
        let index = self.index_of(place)?;
        let standing = match &mut self.0 {
            Standing::Nobody => None,
            Standing::One(one) => Some(one),
            Standing::Many(many) => many.get_mut(index),
        };
        standing.map(|(_, who)| who)
    }

    pub(crate) fn remove(&mut self, place: Place) -> Option<W> {
        let index = self.index_of(place)?;
        self.remove_at(index).map(|(_, who)| who)
    }

    pub(crate) fn front(&self) -> Option<&(Place, W)> {
        self.get(0)
    }

    /// The first to whom that applies: as a rule whoever is in front.
    #[inline]
    pub(crate) fn find(&self, of: impl Fn(&W) -> bool) -> Option<Place> {
        let (first, who) = self.front()?;
        if of(who) {
            return Some(*first);
        }
        self.iter().skip(1).find(|(_, who)| of(who)).map(|(place, _)| *place)
    }

    pub(crate) fn remove_first(&mut self, of: impl Fn(&W) -> bool) -> Option<(Place, W)> {
        let index = self.iter().position(|(_, who)| of(who))?;
        self.remove_at(index)
    }

    pub(crate) fn remove_all(&mut self, of: impl Fn(&W) -> bool) -> Vec<W> {
        let all = match self.take() {
            Standing::Nobody => return Vec::new(),
            Standing::One(one) => VecDeque::from([one]),
            Standing::Many(many) => many,
        };
        let mut out = Vec::new();
        for (place, who) in all {
            match of(&who) {
                true => out.push(who),
                false => self.insert(place, who),
            }
        }
        out
    }

    pub(crate) fn pop_front(&mut self) -> Option<(Place, W)> {
        self.remove_at(0)
    }

    pub(crate) fn get(&self, index: usize) -> Option<&(Place, W)> {
        match &self.0 {
            Standing::Nobody => None,
            Standing::One(one) => (index == 0).then_some(one),
            Standing::Many(many) => many.get(index),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Place, W)> {
        let (one, many) = match &self.0 {
            Standing::Nobody => (None, None),
            Standing::One(one) => (Some(one), None),
            Standing::Many(many) => (None, Some(many)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_served_by_place_whatever_the_order_of_arrival() {
        let mut line = Line::new();
        for place in [5, 1, 9, 3, 7] {
            line.insert(place, place * 10);
        }
        assert_eq!(line.remove(9), Some(90));
        assert_eq!(line.remove(9), None);
        assert_eq!(line.front(), Some(&(1, 10)));
        let served: Vec<_> = std::iter::from_fn(|| line.pop_front()).map(|(place, _)| place).collect();
        assert_eq!(served, [1, 3, 5, 7]);
    }

    #[test]
    fn a_line_is_the_same_with_one_and_with_many() {
        let mut line = Line::new();
        for places in [vec![4], vec![4, 2], vec![6, 2, 4]] {
            places.iter().for_each(|place| line.insert(*place, *place));
            assert_eq!((line.len(), line.contains(4), line.contains(5)), (places.len(), true, false));
            assert_eq!(line.iter().map(|(place, _)| *place).min(), line.front().map(|(place, _)| *place));
            *line.get_mut(4).expect("stands there") = 7;
            assert_eq!(line.remove_first(|who| *who == 7), Some((4, 7)));
            assert_eq!((line.len(), line.get(line.len())), (places.len() - 1, None));
            let mut left = places;
            left.retain(|place| *place != 4);
            left.sort_unstable();
            assert_eq!(line.remove_all(|_| true), left);
            assert!(line.is_empty() && line.pop_front().is_none());
        }
    }

    #[test]
    fn a_cell_keeps_a_grant_until_it_is_taken_or_left() {
        let cell = Cell::new(Tick::from_millis(0), None);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(cell.poll(&mut cx).is_pending());
        assert!(cell.is_waiting());
        assert!(cell.grant("slot").is_some());
        assert!(!cell.is_waiting());
        assert_eq!(cell.poll(&mut cx), Poll::Ready("slot"));
        assert!(cell.is_waiting(), "and may wait for more");
        assert!(cell.grant("connection").is_none(), "nobody registered a waker since");
        assert_eq!(cell.leave(), Some("connection"));
        assert_eq!(cell.leave(), None);
    }
}
