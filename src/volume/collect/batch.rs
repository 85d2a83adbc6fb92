//! A batch of sparse objects that are being emptied.

use std::{collections::BTreeSet, sync::Arc};

use futures::stream::StreamExt;

use super::PAGES_MAX;
use crate::{
    format::{
        ids::{Generation, ObjectRef, Sequence},
        index::{FrameKind, Index, IndexFrame, MapKind, Run},
    },
    gc::judge::{Entry, Tally},
    map::tree::{self, PageAt},
    volume::{
        core::Core,
        error::{Kind, VolumeError},
        moves::Moves,
        task::Task,
    },
};

/// Objects' worth of live bytes moved with one cut, at most: the sparser all of it is, the more.
const WORTH_MAX: u64 = 4;
/// The same where a cut has much of its own: a gigabyte of the usual objects, whose runs take some megabytes of memory.
const WORTH_OF_CUT_MAX: u64 = 64;
/// What is moved for each byte that clients write, where there is so much of it. Half and half would do, and this catches up.
const MOVED_SHARE: u64 = 2;
/// Indexes read at once.
const INDEX_LOADS_MAX: usize = 16;

/// Live bytes that may be moved with one cut.
pub(super) fn room(sum: Tally, core: &Core) -> u64 {
    let object_bytes = core.settings.object_bytes;
    let worth = (2 * sum.plain_bytes / sum.live_bytes.max(1)).clamp(1, WORTH_MAX);
    let written_bytes = core.collecting().written_bytes;
    (worth * object_bytes).max((MOVED_SHARE * written_bytes).min(WORTH_OF_CUT_MAX * object_bytes))
}

/// A batch on its way: dropped, it goes no further than the cut that has taken it along.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) objects: Vec<Sequence>,
    work: Task<u64>,
}

impl Batch {
    /// Begins to empty these objects.
    pub(super) fn start(core: &Arc<Core>, chosen: Vec<Entry>) -> Self {
        let objects = chosen.iter().map(|entry| entry.sequence).collect();
        Self { objects, work: Task::spawn(empty(Arc::clone(core), chosen)) }
    }

    /// Until it is published. Returns the plaintext that was moved with its cut, bytes.
    pub(super) async fn join(&mut self) -> Result<u64, VolumeError> {
        self.work.join().await
    }
}

/// Offers the blocks of these objects to the next cut, and their pages to the next checkpoint.
async fn empty(core: Arc<Core>, chosen: Vec<Entry>) -> Result<u64, VolumeError> {
    let mut runs: Vec<Run> = Vec::new();
    let mut objects: BTreeSet<(Generation, Sequence)> = BTreeSet::new();
    let mut loads = Vec::with_capacity(chosen.len());
    for entry in &chosen {
        loads.push(core.bucket.explain(entry.generation, entry.sequence));
    }
    let mut explained = futures::stream::iter(loads).buffered(INDEX_LOADS_MAX);
    while let Some(explained) = explained.next().await {
        match explained {
            Ok(new) if new.index.parts == 0 => move_pages(&core, new.object, &new.index).await?,
            Ok(new) => {
                objects.insert((new.object.generation, new.object.sequence));
                runs.extend(new.index.frames.iter().flat_map(IndexFrame::runs).copied());
            }
            // All of it was overwritten, and collected, since it was chosen; or it is lost, and whoever reads it is told.
            Err(VolumeError::MissingObject { .. }) => {}
            // Then it stays where it is; whoever reads it is told.
            Err(error) if error.kind() == Kind::Corrupt => {
                tracing::warn!(%error, "an object cannot be compacted");
            }
            Err(error) => return Err(error),
        }
    }
    if objects.is_empty() {
        return Ok(0);
    }
    let owner = core.bucket.header.volume;
    let urgent = core.collecting().is_hurried();
    let leaves = move |object: &ObjectRef| {
        object.owner == owner && objects.contains(&(object.generation, object.sequence))
    };
    let offered = core.offer(Moves { runs: Run::join(runs), leaves: Arc::new(leaves), urgent })?;
    core.moved(offered).await
}

/// Has the next checkpoint move those pages of an object that the maps still name.
async fn move_pages(core: &Core, object: ObjectRef, index: &Index) -> Result<(), VolumeError> {
    core.collecting().page_objects.insert(object.sequence);
    for (number, frame) in (0..).zip(&index.frames) {
        let FrameKind::Page { map, level, first_key } = frame.kind else { continue };
        let Some(place) = index.place(object, number) else { continue };
        let at = PageAt { frame: place, map, level, first_key };
        let roots = core.state().roots.clone();
        let root = match map {
            MapKind::Blocks => roots.blocks,
            MapKind::Objects => roots.objects,
            MapKind::Snapshots => roots.snapshots,
        };
        if tree::find(&*core.frames, map, root.as_ref(), level, first_key).await? == Some(place) {
            let mut shared = core.collecting();
            if shared.pages.len() < PAGES_MAX && !shared.pages.contains(&at) {
                shared.pages.push(at);
            }
        }
    }
    Ok(())
}
