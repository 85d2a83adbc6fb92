//! Checkpoints: the delta becomes pages, in objects of their own.
//!
//! # Overview
//! The block map's pages are written first; they tell what each object lost. The object table follows: entries for the
//! objects of the delta, less for those that lost bytes. The table's own old pages lose bytes by that, too, so the set
//! of entries to change is closed before the first is written (`close_over`).
//!
//! # Crash consistency
//! Nothing refers to the new pages until a manifest with their roots is published. A checkpoint that does not come so
//! far leaves strays.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::AtomicU64},
};

use async_trait::async_trait;

use super::{
    claims::Tenure,
    core::Core,
    error::VolumeError,
    object::{BuiltObject, CutFacts, ObjectBuilder},
    upload,
};
use crate::{
    format::{
        ids::{Epoch, FrameRef, Generation, Sequence},
        index::{FrameKind, MapKind, Maps},
        manifest::Roots,
        names,
        page::{Extent, Page, Target},
    },
    gc::work::leaf_of,
    map::{
        delta::{Delta, NewObject},
        objects::{BlockChanges, ObjectChange, ObjectChanges},
        snapshots::SnapshotChanges,
        tree::{self, PageAt, PageSink},
    },
    store::{Put, PutMode},
};

/// What a checkpoint wrote.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The new roots.
    pub roots: Roots,
    /// The objects with their pages, uploaded.
    pub objects: Vec<NewObject>,
    /// Blocks with data in the new block map.
    pub mapped_blocks: u64,
    /// Pages of the old maps that were written anew for their own sake.
    pub moved: Vec<PageAt>,
    /// Objects that are in the new table and in no list: their number, and their lengths, bytes.
    pub unlisted: (u64, u64),
    /// Of a rollback: what else is again as it was.
    pub back_to: Option<BackTo>,
    /// Objects whose entries went from the object table, and their lengths, bytes.
    pub deleted: BTreeMap<Sequence, u64>,
    /// Leaves of the object table in which an object lost something, by number.
    pub touched: BTreeSet<u64>,
}

/// What a rollback brings back beside the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackTo {
    /// Size of the volume, bytes.
    pub size_bytes: u64,
    /// The newest cut with objects. The next one names it as its parent, so that the chain of cuts, without any manifest,
    /// passes over those that the volume went back behind.
    pub data_cut: Option<(Generation, Epoch)>,
}

/// What a checkpoint starts from.
#[derive(Clone, Debug)]
pub struct Job {
    /// What to merge.
    pub delta: Arc<Delta>,
    /// Into what.
    pub roots: Roots,
    /// Blocks with data in those.
    pub mapped_blocks: u64,
    /// Who writes.
    pub tenure: Tenure,
    /// Numbers for objects.
    pub sequences: Arc<AtomicU64>,
    /// For the objects' indexes.
    pub facts: CutFacts,
    /// Pages to be written anew whatever they hold.
    pub moved: Vec<PageAt>,
    /// Whether the last object says that these are the maps as of `facts`. Those of a rollback are not: they say what an
    /// earlier cut said, and are found by the manifest that publishes them alone.
    pub explained: bool,
    /// Objects that are deleted, and their lengths, bytes: their entries go.
    pub deleted: BTreeMap<Sequence, u64>,
}

/// Writes the pages for a delta.
pub async fn run(core: &Core, job: &Job) -> Result<Checkpoint, VolumeError> {
    let mut pages = PageWriter::new(core, job);
    let size_blocks = job.facts.size_bytes / u64::from(core.bucket.block_bytes());
    let blocks = tree::rewrite::<_, _, _, VolumeError>(
        &*core.frames,
        job.roots.blocks,
        &BlockChanges::new(&job.delta).with(size_blocks, &job.moved),
        &mut pages,
    )
    .await?;
    let snapshots = tree::rewrite::<_, _, _, VolumeError>(
        &*core.frames,
        job.roots.snapshots,
        &SnapshotChanges::new(&job.delta.snapshots, &job.moved),
        &mut pages,
    )
    .await?;
    let moved = job.moved.clone();
    let mut changes = ObjectChanges { epoch: job.delta.epoch, moved, ..ObjectChanges::default() };
    let news = job.delta.objects.iter().map(|(sequence, info)| (*sequence, ObjectChange::New(*info)));
    changes.changes.extend(news);
    job.delta.gained.iter().for_each(|(sequence, bytes)| changes.gain(*sequence, *bytes));
    changes.changes.extend(job.deleted.keys().map(|sequence| (*sequence, ObjectChange::Deleted)));
    for (sequence, bytes) in std::mem::take(&mut pages.freed) {
        changes.free(sequence, bytes);
    }
    close_over(core, job, &mut changes).await?;
    let lost = |change: &ObjectChange| !matches!(change, ObjectChange::Freed(0) | ObjectChange::Deleted);
    let touched = changes.changes.iter().filter(|(_, change)| lost(change));
    let touched = touched.map(|(sequence, _)| leaf_of(*sequence)).collect();
    let objects =
        tree::rewrite::<_, _, _, VolumeError>(&*core.frames, job.roots.objects, &changes, &mut pages).await?;
    let roots = Roots { epoch: job.delta.epoch, blocks, objects, snapshots };
    let added =
        job.delta.extents.iter().filter(|extent| extent.target != Target::Hole).map(|extent| extent.count);
    let mapped_blocks = (job.mapped_blocks + added.sum::<u64>()).saturating_sub(pages.unmapped_blocks);
    Ok(Checkpoint {
        roots: roots.clone(),
        objects: pages.finish(job.explained.then_some(Maps { roots, mapped_blocks })).await?,
        mapped_blocks,
        moved: job.moved.clone(),
        unlisted: (0, 0),
        back_to: None,
        deleted: job.deleted.clone(),
        touched,
    })
}

/// Adds what the object table loses by its own change: its replaced pages are bytes of objects, whose entries may lie
/// in further pages. Ends when those are all among the changed ones.
async fn close_over(core: &Core, job: &Job, changes: &mut ObjectChanges) -> Result<(), VolumeError> {
    loop {
        let replaced = tree::paths(&*core.frames, job.roots.objects.as_ref(), changes).await?;
        let own = |page: &&FrameRef| page.object.owner == core.bucket.header.volume;
        let touched = changes.changes.len();
        for page in replaced.iter().filter(own) {
            changes.changes.entry(page.object.sequence).or_insert(ObjectChange::Freed(0));
        }
        if changes.changes.len() == touched {
            for page in replaced.iter().filter(own) {
                changes.free(page.object.sequence, page.plain_bytes.into());
            }
            return Ok(());
        }
    }
}

/// Writes pages into objects, and counts what the old tree let go.
struct PageWriter<'a> {
    core: &'a Core,
    job: &'a Job,
    builder: Option<ObjectBuilder>,
    done: Vec<NewObject>,
    freed: Vec<(Sequence, u64)>,
    unmapped_blocks: u64,
}

impl<'a> PageWriter<'a> {
    fn new(core: &'a Core, job: &'a Job) -> Self {
        Self { core, job, builder: None, done: Vec::new(), freed: Vec::new(), unmapped_blocks: 0 }
    }

    fn begin(&self) -> ObjectBuilder {
        let Job { tenure, sequences, facts, .. } = self.job;
        let object = upload::object(self.core, *tenure, sequences);
        ObjectBuilder::new(&self.core.bucket.keys, object, self.core.settings.compression, *facts)
    }

    async fn upload(&mut self) -> Result<(), VolumeError> {
        if let Some(builder) = self.builder.take() {
            let built = finish(builder)?;
            self.done.push(put_object(self.core, built).await?);
        }
        Ok(())
    }

    async fn finish(mut self, maps: Option<Maps>) -> Result<Vec<NewObject>, VolumeError> {
        if let (Some(builder), Some(maps)) = (&mut self.builder, maps) {
            builder.set_maps(maps);
        }
        self.upload().await?;
        Ok(self.done)
    }

    fn free(&mut self, frame: &FrameRef, bytes: u64) {
        if frame.object.owner == self.core.bucket.header.volume {
            self.freed.push((frame.object.sequence, bytes));
        }
    }
}

/// Ends an object.
pub fn finish(builder: ObjectBuilder) -> Result<BuiltObject, VolumeError> {
    builder.finish().map_err(|error| VolumeError::damaged("object index", error))
}

/// Uploads a finished object. Durable on `Ok`, and in the cache.
pub async fn put_object(core: &Core, built: BuiltObject) -> Result<NewObject, VolumeError> {
    let generation = built.new.object.generation;
    let name = names::object(generation, built.new.object.sequence);
    match core.bucket.store.put(&name, std::slice::from_ref(&built.bytes), PutMode::Create).await? {
        Put::Created => {
            core.frames.keep(&built);
            Ok(built.new)
        }
        // A name of this generation with other bytes: somebody else writes under it.
        Put::Exists => Err(VolumeError::Fenced { ours: generation, found: generation }),
    }
}

#[async_trait]
impl PageSink for PageWriter<'_> {
    type Error = VolumeError;

    async fn write(
        &mut self,
        map: MapKind,
        level: u8,
        first_key: u64,
        page: &Page,
    ) -> Result<FrameRef, VolumeError> {
        if self
            .builder
            .as_ref()
            .is_some_and(|builder| builder.len() as u64 >= self.core.settings.object_bytes)
        {
            self.upload().await?;
        }
        let plain = page.encode().map_err(|error| VolumeError::damaged("page", error))?;
        let builder = match self.builder.take() {
            Some(builder) => builder,
            None => self.begin(),
        };
        let frame = self.builder.insert(builder).add(FrameKind::Page { map, level, first_key }, &plain);
        self.core.frames.keep_page(&frame, page);
        Ok(frame)
    }

    fn page_replaced(&mut self, page: &FrameRef) {
        self.free(page, page.plain_bytes.into());
    }

    fn extent_replaced(&mut self, extent: &Extent) {
        self.unmapped_blocks += extent.count;
        if let Target::Frame(frame, _) = &extent.target {
            self.free(frame, extent.count * u64::from(self.core.bucket.block_bytes()));
        }
    }
}
