//! What an account has to give, and what of it is kept for which of its children. Pure.
//!
//! Floors that do not all fit into what is free are filled evenly: each up to one level, the highest that can be kept
//! for all (max-min fairness). What is left over then goes to whoever of those below their floors comes first. So no
//! slot lies idle while a child with a floor waits that has none.

/// A child, when its parent's slots are shared out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// Slots to be kept for it, those it has included.
    pub(super) floor: usize,
    pub(super) used: usize,
}

impl Share {
    /// Slots that it has not, of those to be kept for it.
    pub(super) fn unmet(self) -> usize {
        self.up_to(usize::MAX)
    }

    fn up_to(self, level: usize) -> usize {
        self.floor.min(level).saturating_sub(self.used)
    }
}

/// Free slots, at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stock {
    free: usize,
    /// How many of them are kept for one child each.
    kept: usize,
    /// How far each floor is kept. `MAX`: all fit.
    level: usize,
}

impl Stock {
    /// All that is free, where no child has a floor.
    pub(super) fn without_floors(free: usize) -> Self {
        Self { free, kept: 0, level: usize::MAX }
    }

    pub(super) fn new(free: usize, children: impl Iterator<Item = Share> + Clone) -> Self {
        let up_to =
            |level| children.clone().fold(0, |sum: usize, child| sum.saturating_add(child.up_to(level)));
        let unmet = up_to(usize::MAX);
        if unmet <= free {
            return Self { free, kept: unmet, level: usize::MAX };
        }
        // What fits, and what does not.
        let mut level = 0;
        let mut above = children.clone().map(|child| child.floor).max().unwrap_or_default();
        while above - level > 1 {
            let middle = level.midpoint(above);
            match up_to(middle) <= free {
                true => level = middle,
                false => above = middle,
            }
        }
        Self { free, kept: up_to(level), level }
    }

    fn all_fit(&self) -> bool {
        self.level == usize::MAX
    }

    /// For whoever has no floor, or is at it.
    pub(super) fn common(&self) -> usize {
        if self.all_fit() { self.free - self.kept } else { 0 }
    }

    /// For one child: what is kept for it, and what is kept for nobody else.
    pub(super) fn for_child(&self, child: Share) -> usize {
        let most = if self.all_fit() { usize::MAX } else { child.unmet() };
        (self.free - (self.kept - self.kept_for(child))).min(most)
    }

    pub(super) fn kept_for(&self, child: Share) -> usize {
        child.up_to(self.level)
    }

    /// For those below their floors, together.
    pub(super) fn for_floors(&self) -> usize {
        if self.all_fit() { self.kept } else { self.free }
    }

    /// Whether a slot that the child gives back is of use to others below their floors.
    pub(super) fn is_spared_by(&self, child: Share) -> bool {
        child.used > child.floor.min(self.level)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shares(of: &[(usize, usize)]) -> Vec<Share> {
        of.iter().map(|&(floor, used)| Share { floor, used }).collect()
    }

    fn stock(free: usize, children: &[Share]) -> Stock {
        Stock::new(free, children.iter().copied())
    }

    #[test]
    fn floors_that_fit_are_kept_whole_and_the_rest_is_for_all() {
        let children = shares(&[(4, 1), (2, 2), (3, 5), (0, 1)]);
        let stock = stock(10, &children);
        assert_eq!((stock.common(), stock.for_floors()), (7, 3));
        let rooms: Vec<_> = children.iter().map(|child| stock.for_child(*child)).collect();
        assert_eq!(rooms, [10, 7, 7, 7]);
    }

    #[test]
    fn floors_that_do_not_fit_are_filled_evenly() {
        let ten = shares(&[(4, 0); 10]);
        let lowered = stock(36, &ten);
        assert_eq!((lowered.kept_for(ten[0]), lowered.for_child(ten[9]), lowered.common()), (3, 4, 0));
        let two = shares(&[(1, 0), (100, 0)]);
        let lowered = stock(50, &two);
        assert_eq!(
            [lowered.kept_for(two[0]), lowered.kept_for(two[1])],
            [1, 49],
            "a small one is kept whole"
        );
        let few = stock(5, &ten);
        assert_eq!((few.kept_for(ten[0]), few.for_child(ten[0])), (0, 4), "too few for all: who comes first");
    }

    proptest! {
        #[test]
        fn what_is_kept_is_there_and_nothing_lies_idle(
            free in 0usize..40,
            children in prop::collection::vec((0usize..12, 0usize..12), 0..8),
        ) {
            let children = shares(&children);
            let stock = stock(free, &children);
            let kept: usize = children.iter().map(|child| stock.kept_for(*child)).sum();
            let unmet: usize = children.iter().map(|child| child.unmet()).sum();
            prop_assert!(kept <= free && stock.for_floors() + stock.common() <= free);
            prop_assert_eq!(stock.for_floors() + stock.common(), free, "somebody may have it");
            prop_assert_eq!(unmet <= free, kept == unmet);
            for child in &children {
                let others: usize = kept - stock.kept_for(*child);
                let room = stock.for_child(*child);
                prop_assert!(room >= stock.kept_for(*child) && room + others <= free);
                prop_assert!(unmet > free || room >= child.unmet(), "a floor that fits is had at once");
                if child.unmet() > 0 && free > 0 && room == 0 {
                    let poorer = |other: &&Share| other.used < child.used;
                    let theirs: usize = children.iter().filter(poorer).map(|other| stock.kept_for(*other)).sum();
                    prop_assert_eq!(theirs, free, "all is kept for those who have less");
                }
            }
        }

        /// Closing a connection for others helps them, or is not done.
        #[test]
        fn what_is_spared_is_of_use(
            free in 0usize..20,
            children in prop::collection::vec((0usize..12, 0usize..12), 2..8),
        ) {
            let mut children = shares(&children);
            let before = stock(free, &children);
            prop_assume!(children[0].used > 0);
            let spared = before.is_spared_by(children[0]);
            children[0].used -= 1;
            let after = stock(free + 1, &children);
            let room = |stock: &Stock| {
                stock.common() + children[1..].iter().map(|child| stock.for_child(*child)).sum::<usize>()
            };
            if !spared {
                prop_assert_eq!(room(&after), room(&before));
            } else if children[1..].iter().any(|child| child.unmet() > before.for_child(*child)) {
                prop_assert!(room(&after) > room(&before) || after.level > before.level);
            }
        }
    }
}
