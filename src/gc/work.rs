//! Which leaves of the object table are worth a look.
//!
//! A leaf has the entries of 512 objects, so 10^7 objects are 20,000 leaves, and all that is held of each is a [`Tally`].

use std::collections::{BTreeMap, BTreeSet};

use super::judge::Tally;
use crate::format::{
    ids::{Epoch, Sequence},
    page::FANOUT_BITS,
};

/// The number of the leaf that has an object's entry.
#[must_use]
pub fn leaf_of(sequence: Sequence) -> u64 {
    sequence.0 >> FANOUT_BITS
}

/// First and last object number of a leaf.
#[must_use]
pub fn keys_of(leaf: u64) -> (u64, u64) {
    (leaf << FANOUT_BITS, (leaf << FANOUT_BITS) | ((1 << FANOUT_BITS) - 1))
}

/// The leaves.
#[derive(Clone, Debug, Default)]
pub struct WorkSet {
    due: BTreeSet<u64>,
    /// With objects worth moving.
    sparse: BTreeSet<u64>,
    tallies: BTreeMap<u64, Tally>,
    sum: Tally,
}

impl WorkSet {
    /// These are to be looked at.
    pub fn touch(&mut self, leaves: impl IntoIterator<Item = u64>) {
        self.due.extend(leaves);
    }

    /// The horizon is here now: so are those whose dead it may free.
    pub fn advance(&mut self, horizon: Epoch) {
        let freed = |tally: &Tally| tally.held_died.is_some_and(|(first, _)| first <= horizon);
        let leaves = self.tallies.iter().filter(|(_, tally)| freed(tally));
        self.due.extend(leaves.map(|(leaf, _)| *leaf));
    }

    /// The next to be looked at.
    pub fn pop(&mut self) -> Option<u64> {
        self.due.pop_first()
    }

    /// A leaf was looked at: this is what stays of it.
    pub fn visited(&mut self, leaf: u64, tally: Tally, is_sparse: bool) {
        let before = if tally == Tally::default() {
            self.tallies.remove(&leaf)
        } else {
            self.tallies.insert(leaf, tally)
        };
        let before = before.unwrap_or_default();
        let sum = &mut self.sum;
        for (sum, before, now) in [
            (&mut sum.bytes, before.bytes, tally.bytes),
            (&mut sum.plain_bytes, before.plain_bytes, tally.plain_bytes),
            (&mut sum.live_bytes, before.live_bytes, tally.live_bytes),
            (&mut sum.waste_bytes, before.waste_bytes, tally.waste_bytes),
            (&mut sum.held_bytes, before.held_bytes, tally.held_bytes),
            (&mut sum.held, before.held, tally.held),
        ] {
            *sum = *sum - before + now;
        }
        if is_sparse {
            self.sparse.insert(leaf);
        } else {
            self.sparse.remove(&leaf);
        }
    }

    /// A leaf with objects worth moving; it counts as one no more.
    pub fn pop_sparse(&mut self) -> Option<u64> {
        self.sparse.pop_first()
    }

    /// The leaf has more of them.
    pub fn push_sparse(&mut self, leaf: u64) {
        self.sparse.insert(leaf);
    }

    /// Whether no leaf is to be looked at.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.due.is_empty()
    }

    /// Of all leaves that were looked at; without `held_died`.
    #[must_use]
    pub fn sum(&self) -> Tally {
        self.sum
    }

    /// Whether anything that died later than `kept` waits.
    #[must_use]
    pub fn is_held_above(&self, kept: Epoch) -> bool {
        self.tallies.values().any(|tally| tally.held_died.is_some_and(|(_, last)| last > kept))
    }

    /// Leaves of which anything is held in memory.
    #[must_use]
    pub fn leaves(&self) -> usize {
        self.tallies.len() + self.due.len() + self.sparse.len()
    }

    /// Whether more than a quarter of all plaintext in living objects is dead.
    #[must_use]
    pub fn is_sparse(&self) -> bool {
        self.sum.live_bytes.saturating_mul(4) < self.sum.plain_bytes.saturating_mul(3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(held_bytes: u64, died: Option<(u64, u64)>) -> Tally {
        let held_died = died.map(|(first, last)| (Epoch(first), Epoch(last)));
        let waste_bytes = held_bytes;
        Tally { bytes: 100, waste_bytes, held_bytes, held: held_bytes / 10, held_died, ..Tally::default() }
    }

    #[test]
    fn leaves_come_back_when_the_horizon_frees_what_they_hold() {
        let mut work = WorkSet::default();
        work.touch(0..=leaf_of(Sequence(1500)));
        assert_eq!(std::iter::from_fn(|| work.pop()).collect::<Vec<_>>(), [0, 1, 2]);
        work.visited(0, tally(0, None), false);
        work.visited(1, tally(20, Some((5, 9))), true);
        work.visited(2, tally(30, Some((7, 7))), false);
        assert!(work.is_done());
        work.advance(Epoch(4));
        assert!(work.is_done());
        work.advance(Epoch(6));
        assert_eq!((work.pop(), work.pop()), (Some(1), None));
        assert!(work.is_held_above(Epoch(8)) && !work.is_held_above(Epoch(9)));
        assert_eq!((work.pop_sparse(), work.pop_sparse()), (Some(1), None));
        work.visited(1, Tally::default(), false);
        assert_eq!((work.sum().bytes, work.sum().held_bytes, work.sum().held), (200, 30, 3));
        assert!(!work.sum().is_burden(0, 0));
        work.visited(1, tally(90, Some((9, 9))), false);
        assert_eq!((work.sum().bytes, work.sum().waste_bytes), (300, 120));
        let sum = work.sum();
        assert!(sum.is_burden(0, 120) && !sum.is_burden(60, 0) && !sum.is_burden(0, 121));
    }

    #[test]
    fn ten_million_objects_are_some_megabytes() {
        let mut work = WorkSet::default();
        work.touch(0..=leaf_of(Sequence(10_000_000)));
        let mut leaves_max = work.leaves();
        while let Some(leaf) = work.pop() {
            work.visited(leaf, tally(10, Some((1, 2))), true);
            leaves_max = leaves_max.max(work.leaves());
        }
        work.advance(Epoch(1));
        assert_eq!((leaves_max, work.leaves()), (2 * 19_532, 3 * 19_532));
        assert!(size_of::<Tally>() <= 80);
    }
}
