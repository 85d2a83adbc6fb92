//! When checkpoints and rollbacks begin, and what becomes of those that fail.

use std::sync::Arc;

use wal::Lsn;

use super::{Publisher, Task};
use crate::{
    map::delta::Delta,
    volume::{
        checkpoint,
        error::{Kind, VolumeError},
        object::CutFacts,
        rollback::{self, Asked},
    },
};

impl Publisher {
    pub(super) fn start_checkpoint_if_due(&mut self) {
        let state = self.core.state();
        let settings = &self.core.settings;
        // Not the pages: a checkpoint must not be the reason for the next one.
        let cut_objects = state.delta.cut_objects;
        let due = cut_objects.max(state.delta.snapshots.len())
            >= settings.checkpoint_objects.max(self.checkpoint_after)
            || (self.checkpoint_after == 0
                && (state.delta.extents.len() >= settings.checkpoint_extents
                    || self.is_garbage_hidden(&state)));
        drop(state);
        if due && self.checkpoint.is_none() && self.checkpointed.is_none() {
            self.start_checkpoint();
        }
    }

    /// Where somebody waits for one.
    pub(super) fn start_checkpoint_if_asked(&mut self) {
        let may_begin = self.checkpoint.is_none() && self.checkpointed.is_none() && !self.are_cuts_held();
        if may_begin && !self.core.flattening().checkpoints.is_empty() {
            self.start_checkpoint();
        }
    }

    pub(super) fn start_checkpoint(&mut self) {
        self.checkpoint_for.append(&mut self.core.flattening().checkpoints);
        let job = self.checkpoint_job();
        let core = Arc::clone(&self.core);
        self.checkpoint = Some(Task::spawn(async move { checkpoint::run(&core, &job).await }));
    }

    /// Begins to write the maps of the state that the volume goes back to, once nothing else is under way.
    pub(super) fn start_rollback(&mut self) {
        let is_quiet = {
            let state = self.core.state();
            state.active.is_empty() && state.frozen.is_empty()
        };
        if !is_quiet || self.checkpoint.is_some() || self.checkpointed.is_some() {
            return;
        }
        let Some(Asked { to, back_to, done }) = self.core.rollback().take() else { return };
        let job = self.checkpoint_job();
        let core = Arc::clone(&self.core);
        self.rolling_back = Some(done);
        self.checkpoint = Some(Task::spawn(async move { rollback::run(&core, &job, &to, back_to).await }));
    }

    /// What is to be checkpointed now: from here on the delta is a new one.
    pub(super) fn checkpoint_job(&self) -> checkpoint::Job {
        let core = &self.core;
        let newest = &self.newest.manifest;
        // Of the newest manifest and not of what is on its way: who finds the maps without one goes on from there.
        let facts = CutFacts {
            parent: newest.data_cut,
            ..self.facts(newest.epoch, Lsn(newest.log.lsn), newest.size_bytes)
        };
        let (pages, deleted) = {
            let collecting = core.collecting();
            (collecting.pages.clone(), collecting.deleted.clone())
        };
        let moved = [core.moving().as_slice(), &pages].concat();
        let mut state = core.state_mut();
        let empty = Delta::new(core.bucket.block_bytes(), state.delta.epoch);
        let delta = Arc::new(std::mem::replace(&mut state.delta, empty));
        state.checkpointing = Some(Arc::clone(&delta));
        checkpoint::Job {
            facts,
            delta,
            roots: state.roots.clone(),
            mapped_blocks: self.newest.manifest.totals.mapped_blocks,
            tenure: self.tenure,
            sequences: Arc::clone(&self.sequences),
            moved,
            deleted,
            explained: true,
        }
    }

    /// A checkpoint that cannot be written is put off: the volume goes on, or is closed, with a longer list in its manifests.
    pub(super) fn checkpoint_failed(&mut self, error: VolumeError) -> Result<(), VolumeError> {
        if error.kind() == Kind::Fenced {
            return Err(error);
        }
        // A checkpoint spares the next opening some reading, and no more.
        self.checkpoint_given_up = *self.closing.borrow();
        tracing::error!(%error, "the map cannot be brought up to date: this will be tried again; run s3bd fsck");
        let text = format!(
            "the map cannot be brought up to date, which will be tried again, and nothing is lost meanwhile: {error}; run \
             s3bd fsck"
        );
        self.core.noted.note(text, self.core.env.clock.now_ms());
        self.fold_back();
        self.checkpoint_for.drain(..).for_each(|done| drop(done.send(Err(error.clone()))));
        let state = self.core.state();
        let changes = state.delta.cut_objects.max(state.delta.snapshots.len());
        self.checkpoint_after = changes + self.core.settings.checkpoint_objects;
        drop(state);
        Ok(())
    }

    /// One delta again: what is written from now on may cover the page that could not be read.
    pub(super) fn fold_back(&self) {
        let mut state = self.core.state_mut();
        if let Some(older) = state.checkpointing.take() {
            let newer = std::mem::replace(&mut state.delta, Arc::unwrap_or_clone(older));
            state.delta.append(newer);
        }
    }
}
