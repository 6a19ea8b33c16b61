//! Sets of rows. A row is named by its id, from 1 to 7.

/// A set of rows, one bit each.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Rows(u8);

impl Rows {
    pub(crate) fn contains(self, row: u8) -> bool {
        self.0 & (1 << row) != 0
    }

    pub(crate) fn insert(&mut self, row: u8) {
        self.0 |= 1 << row;
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// In id order.
    pub(crate) fn iter(self) -> impl Iterator<Item = u8> {
        (1..8).filter(move |row| self.contains(*row))
    }

    pub(crate) fn first(self) -> Option<u8> {
        self.iter().next()
    }

    pub(crate) fn last(self) -> Option<u8> {
        (!self.is_empty()).then(|| 7 - self.0.leading_zeros() as u8)
    }

    /// Every set of these rows.
    pub(crate) fn subsets(self) -> impl Iterator<Item = Self> {
        (0..=self.0).map(Self).filter(move |rows| rows.without(self).is_empty())
    }

    pub(crate) fn len(self) -> usize {
        self.0.count_ones() as usize
    }
}

impl FromIterator<u8> for Rows {
    fn from_iter<I: IntoIterator<Item = u8>>(rows: I) -> Self {
        let mut set = Self::default();
        rows.into_iter().for_each(|row| set.insert(row));
        set
    }
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
