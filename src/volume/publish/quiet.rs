//! What the publisher does for the collector: tells it what was published, lets manifests go, and brings the maps up to date
//! when nobody writes.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Cut, DELTA_OBJECTS_MIN, DELTA_SHARE, MANIFESTS_KEPT, Publisher};
use crate::{
    format::{ids::Epoch, manifest::SnapshotChange},
    map::delta::NewObject,
    volume::{checkpoint::Checkpoint, collect::News, state::State},
};

/// Enough for writes to come together in a cut, and no wait to somebody at a terminal.
const HURRIED_AGE_MAX: Duration = Duration::from_secs(1);

impl Publisher {
    /// The oldest manifest that the next one keeps: of the newest sixteen, or of the newest two where that gives room back.
    pub(super) fn oldest_kept(&self, cut: &Cut) -> Epoch {
        let oldest = self.newest.manifest.oldest_kept;
        let kept = if self.is_letting_go(cut) {
            self.kept.back()
        } else if self.kept.len() >= 2 * MANIFESTS_KEPT {
            self.kept.get(self.kept.len() - MANIFESTS_KEPT)
        } else {
            None
        };
        let newest = self.newest.manifest.epoch;
        let unwanted = self.core.flattening().keep_from.min(newest);
        kept.map_or(oldest, |kept| oldest.max(kept.1)).max(unwanted)
    }

    /// Whether manifests are let go as soon as may be.
    pub(super) fn is_letting_go(&self, cut: &Cut) -> bool {
        let is_quiet = !cut.written && self.has_been_quiet();
        let collecting = self.core.collecting();
        collecting.pressed || (is_quiet && collecting.held_by_manifests)
    }

    /// How old a write becomes before its cut is closed: not much where somebody waits for the collector, which sees only
    /// what is published.
    pub(super) fn cut_age_max(&self) -> Duration {
        let age = self.core.settings.cut_age_max();
        if self.core.collecting().is_hurried() { age.min(HURRIED_AGE_MAX) } else { age }
    }

    pub(super) fn has_been_quiet(&self) -> bool {
        let is_hurried = self.core.collecting().is_hurried();
        is_hurried || self.quiet_since.elapsed() >= self.core.settings.gc_idle
    }

    pub(super) fn tell_collector(
        &self,
        cut: &Cut,
        news: &[NewObject],
        checkpoint: Option<&Checkpoint>,
        changes: &[SnapshotChange],
    ) {
        let manifest = &self.newest.manifest;
        let pages = news.iter().filter(|new| new.index.parts == 0).map(|new| new.listed.sequence);
        let told = checkpoint.cloned();
        let (touched, deleted, moved) =
            told.map(|told| (told.touched, told.deleted, told.moved)).unwrap_or_default();
        self.core.collecting().publish(News {
            epoch: manifest.epoch,
            roots: manifest.roots.epoch,
            oldest_kept: manifest.oldest_kept,
            touched,
            deleted,
            moved,
            page_objects: pages.collect(),
            unpinned: changes.iter().any(|change| matches!(change, SnapshotChange::Deleted(_))),
            written_bytes: cut.written_bytes,
        });
    }

    /// Whether nobody has written for a while, or somebody waits for the collector.
    pub(super) fn is_quiet(&self, state: &State) -> bool {
        state.active_since.is_none() && state.frozen.is_empty() && self.has_been_quiet()
    }

    /// When nobody will have written for a while.
    pub(super) fn idle_at(&self) -> Option<Instant> {
        let state = self.core.state();
        let is_still = state.active_since.is_none() && state.frozen.is_empty();
        drop(state);
        let at = self.quiet_since + self.core.settings.gc_idle;
        (is_still && at > Instant::now()).then_some(at)
    }

    /// While nobody writes: brings the maps up to date, once, so that the collector sees what can go.
    pub(super) fn tidy(&mut self) {
        let core = Arc::clone(&self.core);
        let state = core.state();
        let is_quiet = self.is_quiet(&state);
        let has_extents = !state.delta.extents.is_empty() || state.checkpointing.is_some();
        drop(state);
        let mut collecting = core.collecting();
        if collecting.set_idle(is_quiet) && is_quiet {
            collecting.settled = false;
            core.collect_wanted.notify_one();
        }
        let may_begin = self.checkpoint.is_none() && self.checkpointed.is_none() && core.offers().is_empty();
        if !collecting.settled || !may_begin || *self.closing.borrow() || self.are_cuts_held() {
            return;
        }
        let is_missed = !self.has_accounted && collecting.unaccounted_bytes() >= self.missed_bytes();
        let has_work = (has_extents || is_missed) && self.checkpoint_after == 0;
        let nothing_left = is_quiet && !has_work && !collecting.held_by_manifests;
        collecting.answer(nothing_left);
        drop(collecting);
        if is_quiet && has_work {
            self.has_accounted |= !has_extents;
            self.start_checkpoint();
        }
    }

    /// Deleted bytes that people would miss where the totals still have them: what is collected by hand next would count them
    /// once more.
    fn missed_bytes(&self) -> u64 {
        let totals = &self.newest.manifest.totals;
        totals.object_bytes.max(self.core.settings.object_bytes) / DELTA_SHARE
    }

    /// Whether a cut is wanted that nobody has written for: to move blocks, or to let manifests go.
    pub(super) fn is_collector_waiting(&self, state: &State) -> bool {
        if *self.closing.borrow() {
            return false;
        }
        let is_still = state.active_since.is_none();
        let moves = self.core.offers().front().is_some_and(|offer| offer.moves.urgent || is_still);
        let collecting = self.core.collecting();
        let is_let_go = is_still && collecting.settled && collecting.held_by_manifests;
        drop(collecting);
        moves || (is_let_go && self.is_quiet(state) && state.delta.extents.is_empty())
    }

    /// Whether the delta has so much that what it hides is a burden, or so many entries wait to be taken out.
    pub(super) fn is_garbage_hidden(&self, state: &State) -> bool {
        let totals = &self.newest.manifest.totals;
        let object_bytes = self.core.settings.object_bytes;
        // Not the pages: a checkpoint must not be the reason for the next one.
        state.delta.cut_bytes >= (totals.object_bytes / DELTA_SHARE).max(DELTA_OBJECTS_MIN * object_bytes)
            || self.core.collecting().is_full()
    }
}
