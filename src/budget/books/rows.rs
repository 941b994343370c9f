//! Numbered rows, and their numbers. The books have a row for each idle connection's address, so rows name each other by
//! half a word. Knows nothing of what is in them.

use std::num::NonZeroU32;
use std::ops::{Index, IndexMut};

use slab::Slab;

/// Which of many: of rows, or of members. Four bytes, as an `Option` too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ordinal(NonZeroU32);

impl Ordinal {
    pub(crate) const FIRST: Self = Self(NonZeroU32::MIN);

    #[inline]
    pub(crate) fn of(index: usize) -> Self {
        let number = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
        Self(number.expect("BUG: more rows than a process can have descriptors"))
    }

    #[inline]
    pub(crate) fn index(self) -> usize {
        self.0.get() as usize - 1
    }

    /// For an atomic word: zero is none.
    #[inline]
    pub(crate) fn to_word(this: Option<Self>) -> u32 {
        this.map_or(0, |this| this.0.get())
    }

    #[inline]
    pub(crate) fn from_word(word: u32) -> Option<Self> {
        NonZeroU32::new(word).map(Self)
    }
}

/// A row keeps its number for as long as it is there; then another gets it.
#[derive(Debug)]
pub(super) struct Rows<T>(Slab<T>);

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self(Slab::new())
    }
}

impl<T> Rows<T> {
    pub(super) fn insert(&mut self, row: T) -> Ordinal {
        Ordinal::of(self.0.insert(row))
    }

    pub(super) fn remove(&mut self, number: Ordinal) -> T {
        self.0.remove(number.index())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Ordinal, &T)> {
        self.0.iter().map(|(index, row)| (Ordinal::of(index), row))
    }
}

impl<T> Index<Ordinal> for Rows<T> {
    type Output = T;

    #[inline]
    fn index(&self, number: Ordinal) -> &T {
        &self.0[number.index()]
    }
}

impl<T> IndexMut<Ordinal> for Rows<T> {
    #[inline]
    fn index_mut(&mut self, number: Ordinal) -> &mut T {
        &mut self.0[number.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_half_a_word_and_survives_being_one() {
        assert_eq!((size_of::<Ordinal>(), size_of::<Option<Ordinal>>()), (4, 4));
        for which in [None, Some(Ordinal::FIRST), Some(Ordinal::of(7))] {
            assert_eq!(Ordinal::from_word(Ordinal::to_word(which)), which);
        }
        assert_eq!((Ordinal::FIRST.index(), Ordinal::of(7).index()), (0, 7));
    }

    #[test]
    fn rows_keep_their_numbers() {
        let mut rows = Rows::default();
        let numbers = ["a", "b", "c"].map(|row| rows.insert(row));
        assert_eq!(numbers[0], Ordinal::FIRST);
        assert_eq!(rows.remove(numbers[1]), "b");
        rows[numbers[2]] = "d";
        assert_eq!(rows.iter().collect::<Vec<_>>(), [(numbers[0], &"a"), (numbers[2], &"d")]);
    }
}
