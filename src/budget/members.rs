//! The addresses that hold slots of one account, those that may have something idle first. A search for a
//! victim that finds an address without an idle connection moves it behind; a dial or a put there brings it
//! back. So a search never looks twice in vain, and going idle and busy again touches nothing. Pure.

use super::books::SeatId;

/// `seats[..warm]` may have something idle, the others do not. `shown` is what each shows of itself, which a search reads
/// of many and so has at hand.
#[derive(Debug)]
pub(crate) struct Members<S> {
    seats: Vec<SeatId>,
    shown: Vec<S>,
    warm: usize,
}

impl<S> Default for Members<S> {
    fn default() -> Self {
        Self { seats: Vec::new(), shown: Vec::new(), warm: 0 }
    }
}

impl<S> Members<S> {
    /// Those that may have something idle.
    pub(crate) fn warm(&self) -> &[SeatId] {
        &self.seats[..self.warm]
    }

    /// What they show, in the same order.
    pub(crate) fn warm_shown(&self) -> &[S] {
        &self.shown[..self.warm]
    }

    #[cfg(test)]
    pub(crate) fn all(&self) -> &[SeatId] {
        &self.seats
    }

    /// Joins, as one that has nothing idle. `moved` is told of a seat's index when it is another than before, here and
    /// below.
    #[inline]
    pub(crate) fn join(&mut self, seat: SeatId, shows: S, mut moved: impl FnMut(SeatId, usize)) {
        moved(seat, self.seats.len());
        self.seats.push(seat);
        self.shown.push(shows);
    }

    #[inline]
    pub(crate) fn leave(&mut self, index: usize, mut moved: impl FnMut(SeatId, usize)) {
        let index = if index < self.warm { self.cool(index, &mut moved) } else { index };
        self.seats.swap_remove(index);
        self.shown.swap_remove(index);
        if let Some(last) = self.seats.get(index) {
            moved(*last, index);
        }
    }

    /// It may have something idle again.
    #[inline]
    pub(crate) fn heat(&mut self, index: usize, mut moved: impl FnMut(SeatId, usize)) {
        if index >= self.warm {
            self.swap(index, self.warm, &mut moved);
            self.warm += 1;
        }
    }

    /// It has nothing idle. Returns where it went.
    #[inline]
    pub(crate) fn cool(&mut self, index: usize, mut moved: impl FnMut(SeatId, usize)) -> usize {
        debug_assert!(index < self.warm, "BUG: cooled twice");
        self.warm -= 1;
        self.swap(index, self.warm, &mut moved);
        self.warm
    }

    #[inline]
    fn swap(&mut self, a: usize, b: usize, moved: &mut impl FnMut(SeatId, usize)) {
        if a != b {
            self.seats.swap(a, b);
            self.shown.swap(a, b);
            moved(self.seats[a], a);
            moved(self.seats[b], b);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever happens in whatever order: everybody is where it was told it is, on the right side.
        #[test]
        fn indexes_and_sides_are_kept(operations in prop::collection::vec((0usize..4, 0usize..12), 0..200)) {
            let mut members = Members::<usize>::default();
            let mut index = HashMap::new();
            let mut warm = HashMap::new();
            for (operation, number) in operations {
                let seat = SeatId::of(number);
                let at = index.get(&seat).copied();
                let mut moved = |seat, to| { index.insert(seat, to); };
                match (operation, at) {
                    (0, None) => {
                        members.join(seat, number, &mut moved);
                        warm.insert(seat, false);
                    }
                    (1, Some(at)) => {
                        members.leave(at, &mut moved);
                        index.remove(&seat);
                        warm.remove(&seat);
                    }
                    (2, Some(at)) => {
                        members.heat(at, &mut moved);
                        warm.insert(seat, true);
                    }
                    (3, Some(at)) if warm[&seat] => {
                        members.cool(at, &mut moved);
                        warm.insert(seat, false);
                    }
                    _ => {}
                }
                prop_assert_eq!(members.all().len(), warm.len());
                let shown: Vec<_> = members.warm_shown().iter().map(|number| SeatId::of(*number)).collect();
                prop_assert_eq!(members.warm(), shown);
                for (seat, warm) in &warm {
                    prop_assert_eq!(members.all()[index[seat]], *seat);
                    prop_assert_eq!(members.warm().contains(seat), *warm);
                }
            }
        }
    }
}
