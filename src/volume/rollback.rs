//! Going back to a snapshot: the volume says again what it said then.
//!
//! # Overview
//! The maps of the newest epoch are compared with those of the snapshot ([`crate::map::compare`]); what differs is laid
//! on top with the places that the snapshot has, and is checkpointed, a bounded number of extents at a time. So it costs
//! pages by the difference, and no data is copied. Objects that the maps had let go are named again.
//!
//! # Crash consistency
//! None of the new pages is named by anything before one manifest with the last roots, and the size, is published: a
//! crash leaves the state before or the one after, and before it pages that are strays.
//!
//! # Not handled
//! Clients: what they had cached would be of the state before. So it is offline.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    checkpoint::{self, BackTo, Checkpoint, Job},
    core::Core,
    error::VolumeError,
    open::load_delta,
    snapshots::Change,
};
use crate::{
    format::{
        ids::Epoch,
        manifest::{Manifest, Snapshot},
        names,
    },
    map::{
        compare::{Compare, MapState},
        delta::{Delta, NewObject},
    },
};

/// What the publisher is asked for.
#[derive(Debug)]
pub(super) struct Asked {
    /// The maps to go back to.
    pub(super) to: MapState,
    /// And what else.
    pub(super) back_to: BackTo,
    /// Told when a manifest with them is published, or why there is none.
    pub(super) done: oneshot::Sender<Result<(), VolumeError>>,
}

/// What a rollback did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// The snapshot that the volume is now equal to.
    pub to: Snapshot,
    /// The snapshot that keeps what it was before; none where nobody wanted that.
    pub kept: Option<String>,
    /// The epoch that has it.
    pub epoch: Epoch,
}

impl Core {
    /// Goes back to the snapshot of this name. Everything written before is published first and, with `keep`, kept as a
    /// snapshot. On `Ok` a published manifest has it. For a volume that nobody reads or writes meanwhile.
    ///
    /// # Errors
    /// `NoSnapshot`, and damage to the maps of either state: the volume is what it was, with one snapshot more if that was
    /// taken. What ends the tenure: the outcome is unknown.
    pub async fn roll_back(&self, name: &str, keep: bool) -> Result<RolledBack, VolumeError> {
        let end = self.state().end;
        self.publish_to(end).await?;
        let to = self.state().snapshots.get(name)?.clone();
        let pinned = self.bucket.load_manifest(to.generation, to.epoch).await?;
        let manifest = pinned.ok_or_else(|| VolumeError::NoManifest {
            detail: format!(
                "{}, which the snapshot pins, is missing",
                names::manifest(to.generation, to.epoch)
            ),
        })?;
        let extents = load_delta(&self.bucket, &manifest.manifest).await?.extents;
        let maps = MapState { root: manifest.manifest.roots.blocks, extents };
        let Manifest { size_bytes, data_cut, .. } = manifest.manifest;
        let kept = if keep { Some(self.keep_before().await?) } else { None };
        let (done, answer) = oneshot::channel();
        *self.rollback() = Some(Asked { to: maps, back_to: BackTo { size_bytes, data_cut }, done });
        self.cut_wanted.notify_one();
        self.answered(answer).await??;
        let epoch = self.progress.borrow().epoch;
        Ok(RolledBack { to, kept, epoch })
    }

    /// Takes a snapshot of what is there, under a name that nothing has.
    async fn keep_before(&self) -> Result<String, VolumeError> {
        let mut epoch = self.progress.borrow().epoch;
        loop {
            let name = format!("before-rollback-{epoch}");
            match self.change(Change::Take(name)).await {
                Ok(snapshot) => return Ok(snapshot.name),
                Err(VolumeError::SnapshotExists { .. }) => epoch = epoch.next(),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Writes the pages of a state that says what `to` says, where `job` says what there is.
pub(super) async fn run(
    core: &Core,
    job: &Job,
    to: &MapState,
    back_to: BackTo,
) -> Result<Checkpoint, VolumeError> {
    let head = MapState { root: job.roots.blocks, extents: job.delta.extents.clone() };
    let mut compare = Compare::new(&*core.frames, &head, to);
    let mut delta = Delta::clone(&job.delta);
    let mut done: Option<Checkpoint> = None;
    let (mut job, mut unlisted) = (job.clone(), (0, 0));
    job.explained = false;
    job.facts.size_bytes = job.facts.size_bytes.max(back_to.size_bytes);
    let owner = core.bucket.header.volume;
    loop {
        let mut is_last = false;
        let mut laid = 0;
        // One batch too many is a few pages; none would leave a delta that is on top unmerged.
        while laid < core.settings.checkpoint_extents.max(1) {
            let Some(extents) = compare.next().await? else {
                is_last = true;
                break;
            };
            laid += extents.len();
            extents.into_iter().for_each(|extent| delta.revive(extent, owner));
        }
        if laid == 0
            && let Some(done) = done
        {
            return Ok(Checkpoint { unlisted, back_to: Some(back_to), ..done });
        }
        if let Some(before) = &done {
            unlisted.0 += before.objects.len() as u64;
            unlisted.1 += before.objects.iter().map(|pages| pages.listed.bytes).sum::<u64>();
        }
        job.delta = Arc::new(delta);
        let moved = done.map_or(Vec::new(), |before| before.moved);
        compare.settle().await;
        let written = checkpoint::run(core, &job).await?;
        // The next batch goes on from these maps: their pages get their entries with it.
        delta = Delta::new(core.bucket.block_bytes(), job.delta.epoch);
        written.objects.iter().for_each(|pages: &NewObject| delta.apply(pages));
        (job.roots, job.mapped_blocks) = (written.roots.clone(), written.mapped_blocks);
        let moved = [moved, written.moved.clone()].concat();
        job.moved.clear();
        let written = Checkpoint { moved, unlisted, back_to: Some(back_to), ..written };
        if is_last {
            return Ok(written);
        }
        done = Some(written);
    }
}
