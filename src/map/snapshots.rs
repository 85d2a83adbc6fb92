//! Changes of the snapshot table as they are merged into its tree.

use std::collections::{BTreeMap, BTreeSet};

use super::tree::{Changes, PageAt, leads_to};
use crate::format::{
    ids::FrameRef,
    index::MapKind,
    manifest::{Snapshot, SnapshotChange},
    page::{Extent, Page},
};

/// What happened to snapshots since a checkpoint.
#[derive(Debug)]
pub struct SnapshotChanges<'a> {
    changes: &'a [SnapshotChange],
    numbers: BTreeSet<u64>,
    moved: &'a [PageAt],
}

impl<'a> SnapshotChanges<'a> {
    /// These, in order; and those of `moved` that are of this map are written anew.
    #[must_use]
    pub fn new(changes: &'a [SnapshotChange], moved: &'a [PageAt]) -> Self {
        Self { changes, numbers: changes.iter().map(SnapshotChange::number).collect(), moved }
    }
}

impl Changes for SnapshotChanges<'_> {
    const MAP: MapKind = MapKind::Snapshots;

    fn touches(&self, first: u64, last: u64) -> bool {
        self.creates(first, last) || leads_to(self.moved, Self::MAP, first, last)
    }

    fn moves(&self, page: &FrameRef) -> bool {
        self.moved.iter().any(|at| at.frame == *page)
    }

    fn creates(&self, first: u64, last: u64) -> bool {
        self.numbers.range(first..=last).next().is_some()
    }

    fn highest(&self) -> Option<u64> {
        self.numbers.last().copied()
    }

    fn merge(&self, old: Option<&Page>, first: u64, last: u64, _: &mut dyn FnMut(&Extent)) -> Page {
        let mut entries: BTreeMap<u64, Snapshot> = match old {
            Some(Page::Snapshots(entries)) => {
                entries.iter().map(|snapshot| (snapshot.id, snapshot.clone())).collect()
            }
            _ => BTreeMap::new(),
        };
        let within = |change: &&SnapshotChange| (first..=last).contains(&change.number());
        self.changes.iter().filter(within).for_each(|change| change.apply(&mut entries));
        Page::Snapshots(entries.into_values().collect())
    }
}
