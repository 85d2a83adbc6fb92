//! What changed since a checkpoint: the newest place of each block, and the objects that brought it.

use std::{collections::BTreeMap, sync::Arc};

use super::extents::ExtentMap;
use crate::format::{
    ids::{Epoch, ObjectRef, Sequence, VolumeId},
    index::{FrameKind, Index, Run},
    manifest::{ListedObject, SnapshotChange},
    page::{Extent, ObjectInfo, Target},
};

/// Changes of the maps that no checkpoint holds yet.
#[derive(Clone, Debug)]
pub struct Delta {
    block_bytes: u64,
    /// Newest place of each block.
    pub extents: ExtentMap,
    /// The objects, in the order in which a manifest lists them.
    pub listed: Vec<ListedObject>,
    /// How many of them are of cuts; the others hold pages of the checkpoint that this delta follows.
    pub cut_objects: usize,
    /// Their lengths, bytes.
    pub cut_bytes: u64,
    /// What each of them still has in `extents`.
    pub objects: BTreeMap<Sequence, ObjectInfo>,
    /// Plaintext that objects of earlier checkpoints hold for `extents` again, bytes.
    pub gained: BTreeMap<Sequence, u64>,
    /// Changes of the snapshot table.
    pub snapshots: Vec<SnapshotChange>,
    /// The newest cut in it.
    pub epoch: Epoch,
}

/// An object of a cut: as the manifest lists it, and what its index says.
#[derive(Clone, Debug)]
pub struct NewObject {
    /// As the manifest lists it.
    pub listed: ListedObject,
    /// Its place and salt.
    pub object: ObjectRef,
    /// Its index.
    pub index: Arc<Index>,
}

impl NewObject {
    /// What the object table will say of it if nothing in it is overwritten.
    #[must_use]
    pub fn info(&self) -> ObjectInfo {
        let plain_bytes = self.index.frames.iter().map(|frame| u64::from(frame.plain_bytes)).sum();
        ObjectInfo {
            generation: self.listed.generation,
            bytes: self.listed.bytes,
            plain_bytes,
            live_bytes: plain_bytes,
            born: self.listed.epoch,
            died: (plain_bytes == 0).then_some(self.listed.epoch),
        }
    }
}

impl Delta {
    /// Nothing changed since the checkpoint at `epoch`.
    #[must_use]
    pub fn new(block_bytes: u32, epoch: Epoch) -> Self {
        Self {
            block_bytes: block_bytes.into(),
            extents: ExtentMap::default(),
            listed: Vec::new(),
            cut_objects: 0,
            cut_bytes: 0,
            objects: BTreeMap::new(),
            gained: BTreeMap::new(),
            snapshots: Vec::new(),
            epoch,
        }
    }

    /// Whether a checkpoint would have nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty() && self.snapshots.is_empty()
    }

    /// Lays one object of a cut on top. The objects of one cut hold different blocks, so their order does not matter;
    /// cuts are applied in the order of their epochs.
    pub fn apply(&mut self, new: &NewObject) {
        let epoch = new.listed.epoch;
        self.epoch = self.epoch.max(epoch);
        self.listed.push(new.listed);
        if new.index.parts > 0 {
            self.cut_objects += 1;
            self.cut_bytes += new.listed.bytes;
        }
        self.objects.insert(new.listed.sequence, new.info());
        self.lay_all(new);
    }

    /// Lays an object of another volume, of which a clone's manifest lists it, below all own ones: what it holds counts,
    /// and the object itself is not this volume's to account for.
    pub fn inherit(&mut self, new: &NewObject) {
        self.epoch = self.epoch.max(new.listed.epoch);
        self.lay_all(new);
    }

    fn lay_all(&mut self, new: &NewObject) {
        let epoch = new.listed.epoch;
        for run in &new.index.holes {
            self.lay(*run, Target::Hole, epoch);
        }
        for run in &new.index.lost {
            self.lay(*run, Target::Lost, epoch);
        }
        for (number, frame) in (0..).zip(&new.index.frames) {
            let (FrameKind::Data(runs), Some(place)) = (&frame.kind, new.index.place(new.object, number))
            else {
                continue;
            };
            let target = Target::Frame(Arc::new(place), 0);
            let mut offset = 0;
            for run in runs {
                self.lay(*run, target.skip(offset), epoch);
                offset += run.count;
            }
        }
    }

    /// Lays all that changed after it on top.
    pub fn append(&mut self, newer: Self) {
        self.epoch = self.epoch.max(newer.epoch);
        self.listed.extend(newer.listed);
        self.cut_objects += newer.cut_objects;
        self.cut_bytes += newer.cut_bytes;
        self.objects.extend(newer.objects);
        self.snapshots.extend(newer.snapshots);
        for (sequence, bytes) in newer.gained {
            *self.gained.entry(sequence).or_default() += bytes;
        }
        for Extent { block, count, target } in newer.extents.iter() {
            self.lay(Run { block, count }, target, newer.epoch);
        }
    }

    /// Lays an extent of an earlier state on top, so that its object, one of `owner`'s, is named again. Once for each block.
    pub fn revive(&mut self, extent: Extent, owner: VolumeId) {
        let Extent { block, count, ref target } = extent;
        if let Target::Frame(frame, _) = target
            && frame.object.owner == owner
        {
            let bytes = count * self.block_bytes;
            match self.objects.get_mut(&frame.object.sequence) {
                Some(info) => {
                    info.live_bytes += bytes;
                    info.died = None;
                }
                None => *self.gained.entry(frame.object.sequence).or_default() += bytes,
            }
        }
        self.lay(Run { block, count }, extent.target, self.epoch);
    }

    fn lay(&mut self, run: Run, target: Target, epoch: Epoch) {
        let Self { extents, objects, block_bytes, .. } = self;
        extents.insert(Extent { block: run.block, count: run.count, target }, |old| {
            let Target::Frame(frame, _) = &old.target else { return };
            let Some(info) = objects.get_mut(&frame.object.sequence) else { return };
            info.live_bytes = info.live_bytes.saturating_sub(old.count * *block_bytes);
            if info.live_bytes == 0 {
                info.died.get_or_insert(epoch);
            }
        });
    }
}
