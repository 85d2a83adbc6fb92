//! Changes as they are merged into trees: of the block map by a delta, and of the object table by what the block map
//! let go.

use std::collections::BTreeMap;

use super::{
    delta::Delta,
    extents::ExtentMap,
    tree::{Changes, PageAt, leads_to},
};
use crate::format::{
    ids::{Epoch, FrameRef, Sequence},
    index::{MapKind, Run},
    page::{Extent, ObjectInfo, Page, Target},
};

/// A delta's extents, as changes of the block map.
#[derive(Debug)]
pub struct BlockChanges<'a> {
    extents: &'a ExtentMap,
    highest: Option<u64>,
    size_blocks: u64,
    moved: &'a [PageAt],
}

impl<'a> BlockChanges<'a> {
    /// The changes that `delta` makes.
    #[must_use]
    pub fn new(delta: &'a Delta) -> Self {
        let last = delta.extents.iter().filter(|extent| extent.target != Target::Hole).last();
        let highest = last.map(|extent| extent.block + (extent.count - 1));
        Self { extents: &delta.extents, highest, size_blocks: u64::MAX, moved: &[] }
    }

    /// And, of a volume of `size_blocks` blocks, writes those of `moved` anew that are of this map.
    #[must_use]
    pub fn with(self, size_blocks: u64, moved: &'a [PageAt]) -> Self {
        Self { size_blocks, moved, ..self }
    }
}

fn run(first: u64, last: u64) -> Run {
    Run { block: first, count: (last - first).saturating_add(1) }
}

impl Changes for BlockChanges<'_> {
    const MAP: MapKind = MapKind::Blocks;

    fn touches(&self, first: u64, last: u64) -> bool {
        self.extents.overlapping(run(first, last)).next().is_some()
            || leads_to(self.moved, Self::MAP, first, last)
    }

    fn moves(&self, page: &FrameRef) -> bool {
        self.moved.iter().any(|at| at.frame == *page)
    }

    fn covers(&self, first: u64, last: u64) -> bool {
        let last = last.min(self.size_blocks.saturating_sub(1));
        let mut next = first;
        for extent in self.extents.overlapping(run(first, last)) {
            if extent.block > next {
                return false;
            }
            next = extent.block + extent.count;
        }
        next > last
    }

    fn creates(&self, first: u64, last: u64) -> bool {
        self.extents.overlapping(run(first, last)).any(|extent| extent.target != Target::Hole)
    }

    fn highest(&self) -> Option<u64> {
        self.highest
    }

    fn merge(&self, old: Option<&Page>, first: u64, last: u64, replaced: &mut dyn FnMut(&Extent)) -> Page {
        let mut merged = ExtentMap::default();
        if let Some(Page::Blocks(extents)) = old {
            extents.iter().for_each(|extent| merged.insert(extent.clone(), |_| {}));
        }
        for extent in self.extents.overlapping(run(first, last)) {
            merged.insert(extent, |old| replaced(&old));
        }
        Page::Blocks(merged.iter().filter(|extent| extent.target != Target::Hole).collect())
    }
}

/// What happens to an object's entry in the object table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectChange {
    /// It is new: this is its entry.
    New(ObjectInfo),
    /// The maps let go of this many bytes of plaintext in it.
    Freed(u64),
    /// The maps name so many bytes of plaintext in it again, and let go of so many others.
    Gained {
        /// Named again, bytes.
        gained: u64,
        /// Let go, bytes.
        freed: u64,
    },
    /// It was deleted: its entry goes.
    Deleted,
}

/// Changes of the object table by one checkpoint.
#[derive(Clone, Debug, Default)]
pub struct ObjectChanges {
    /// The checkpoint's epoch: what loses its last live byte died then.
    pub epoch: Epoch,
    /// By object number.
    pub changes: BTreeMap<Sequence, ObjectChange>,
    /// Pages to be written anew whatever they hold; those of other maps are passed over.
    pub moved: Vec<PageAt>,
}

impl ObjectChanges {
    /// The maps let go of `bytes` of plaintext in an object.
    pub fn free(&mut self, sequence: Sequence, bytes: u64) {
        match self.changes.entry(sequence).or_insert(ObjectChange::Freed(0)) {
            ObjectChange::New(info) => release(info, bytes, self.epoch),
            ObjectChange::Freed(freed) | ObjectChange::Gained { freed, .. } => *freed += bytes,
            // Nothing of it was named any more.
            ObjectChange::Deleted => {}
        }
    }

    /// The maps name `bytes` of plaintext in an object of an earlier checkpoint again.
    pub fn gain(&mut self, sequence: Sequence, bytes: u64) {
        self.changes.insert(sequence, ObjectChange::Gained { gained: bytes, freed: 0 });
    }
}

fn release(info: &mut ObjectInfo, bytes: u64, epoch: Epoch) {
    info.live_bytes = info.live_bytes.saturating_sub(bytes);
    if info.live_bytes == 0 {
        info.died.get_or_insert(epoch);
    }
}

impl Changes for ObjectChanges {
    const MAP: MapKind = MapKind::Objects;

    fn touches(&self, first: u64, last: u64) -> bool {
        self.changes.range(Sequence(first)..=Sequence(last)).next().is_some()
            || leads_to(&self.moved, Self::MAP, first, last)
    }

    fn moves(&self, page: &FrameRef) -> bool {
        self.moved.iter().any(|at| at.frame == *page)
    }

    fn creates(&self, first: u64, last: u64) -> bool {
        let mut range = self.changes.range(Sequence(first)..=Sequence(last));
        range.any(|(_, change)| matches!(change, ObjectChange::New(_)))
    }

    fn highest(&self) -> Option<u64> {
        let mut descending = self.changes.iter().rev();
        descending.find(|(_, change)| matches!(change, ObjectChange::New(_))).map(|(sequence, _)| sequence.0)
    }

    fn merge(&self, old: Option<&Page>, first: u64, last: u64, _: &mut dyn FnMut(&Extent)) -> Page {
        let mut entries: BTreeMap<Sequence, ObjectInfo> = match old {
            Some(Page::Objects(entries)) => entries.iter().copied().collect(),
            _ => BTreeMap::new(),
        };
        for (sequence, change) in self.changes.range(Sequence(first)..=Sequence(last)) {
            match change {
                ObjectChange::New(info) => {
                    entries.insert(*sequence, *info);
                }
                ObjectChange::Freed(bytes) => {
                    if let Some(info) = entries.get_mut(sequence) {
                        release(info, *bytes, self.epoch);
                    }
                }
                ObjectChange::Gained { gained, freed } => {
                    if let Some(info) = entries.get_mut(sequence) {
                        info.live_bytes += gained;
                        info.died = None;
                        release(info, *freed, self.epoch);
                    }
                }
                ObjectChange::Deleted => {
                    entries.remove(sequence);
                }
            }
        }
        Page::Objects(entries.into_iter().collect())
    }
}
