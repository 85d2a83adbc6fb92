//! The collector's task: one leaf after the other is looked at, garbage is deleted, and batches are sent on their way.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use super::{
    batch::{Batch, room},
    oldest_roots,
};
use crate::{
    format::{
        ids::{Epoch, Sequence},
        index::MapKind,
        manifest::Root,
        names,
        page::Page,
    },
    gc::{
        budget::Budget,
        judge::{Entry, Judge, TINY_MIN, Verdict},
        work::{WorkSet, keys_of, leaf_of},
    },
    map::tree,
    volume::{
        claims::{self, Tenure},
        core::Core,
        error::{Kind, VolumeError},
        publish::CUTS_MAX,
    },
};

/// Objects deleted by one request, after one check of claims.
const DELETES_MAX: usize = 1000;
/// Batches on their way at once: one with each cut that is.
const BATCHES_MAX: usize = CUTS_MAX;
/// An object below this share of the usual length is tiny.
const TINY_SHARE: u64 = 8;
/// Between two leaves that nobody waits for: 20,000 of them in some minutes.
const WALK_PAUSE: Duration = Duration::from_millis(10);
/// Between an error of the store and the next attempt.
const RETRY_PAUSE: Duration = Duration::from_secs(60);

/// Runs until it is dropped, or the volume is fenced: the publisher, which may have nothing to publish, is to end the tenure.
pub(in crate::volume) async fn run(core: Arc<Core>, tenure: Tenure) -> Result<Infallible, VolumeError> {
    let mut collector = Collector {
        core,
        tenure,
        work: WorkSet::default(),
        budget: Budget::default(),
        horizon: Epoch(0),
        thorough: false,
        emptied: BTreeMap::new(),
        batches: VecDeque::new(),
        garbage: BTreeMap::new(),
    };
    loop {
        match collector.collect().await {
            Ok(()) => collector.rest().await,
            Err(error) if error.kind() == Kind::Fenced => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "garbage is not collected now: this will be tried again");
                collector.garbage.clear();
                collector.put_off().await;
            }
        }
    }
}

struct Collector {
    core: Arc<Core>,
    tenure: Tenure,
    work: WorkSet,
    budget: Budget,
    horizon: Epoch,
    thorough: bool,
    /// Objects whose blocks are moved, and the epoch that the maps have to reach to know it.
    emptied: BTreeMap<Sequence, Epoch>,
    /// On their way, oldest first.
    batches: VecDeque<Batch>,
    /// To be deleted.
    garbage: BTreeMap<Sequence, Entry>,
}

impl Collector {
    /// Until there is nothing to be done now.
    async fn collect(&mut self) -> Result<(), VolumeError> {
        loop {
            while self.core.are_cuts_held() {
                self.core.collect_wanted.notified().await;
            }
            self.take_news().await?;
            if let Some(leaf) = self.work.pop() {
                self.visit(leaf).await?;
                if self.garbage.len() >= DELETES_MAX || self.work.is_done() {
                    self.delete().await?;
                }
                let hurried = {
                    let shared = self.core.collecting();
                    shared.pressed || shared.is_hurried()
                };
                if !hurried && !self.work.is_done() {
                    tokio::time::sleep(WALK_PAUSE).await;
                }
                continue;
            }
            if self.work.sum().held > 0 && self.learn_oldest().await? {
                continue;
            }
            if self.batches.len() < BATCHES_MAX
                && let Some(leaf) = self.work.pop_sparse()
            {
                self.compact(leaf).await?;
                continue;
            }
            if !self.batches.is_empty() {
                self.await_batch().await?;
                continue;
            }
            if self.settle() {
                return Ok(());
            }
        }
    }

    /// Finds out the roots of the oldest manifest that is kept, where that is from before this tenure and not known.
    async fn learn_oldest(&self) -> Result<bool, VolumeError> {
        let oldest = {
            let shared = self.core.collecting();
            if shared.line.kept().is_some() {
                return Ok(false);
            }
            shared.line.oldest_kept()
        };
        let roots = oldest_roots(&self.core.bucket, oldest).await?;
        self.core.collecting().line.learn(oldest, roots);
        Ok(true)
    }

    /// Brings the work up to date with what was published.
    async fn take_news(&mut self) -> Result<(), VolumeError> {
        if self.core.collecting().all_touched {
            self.touch_all().await?;
        }
        let roots = self.core.state().roots.epoch;
        self.emptied.retain(|_, epoch| *epoch > roots);
        let listed = self.listed_bytes();
        let (horizon, thorough) = {
            let mut shared = self.core.collecting();
            self.work.touch(std::mem::take(&mut shared.touched));
            shared.pressed = self.work.sum().is_burden(listed, self.core.settings.object_bytes);
            let (now, pressed) = (shared.began.elapsed(), shared.pressed);
            let horizon = shared.line.horizon(now, self.core.settings.gc_grace, pressed);
            // Who was not waited for is not waited for again when the pressure ends with the first that is deleted.
            let horizon = horizon.max(self.horizon);
            (horizon, (shared.idle || shared.is_hurried()) && self.work.is_sparse())
        };
        if horizon != self.horizon {
            self.horizon = horizon;
            self.work.advance(horizon);
        }
        if thorough != std::mem::replace(&mut self.thorough, thorough) && thorough {
            self.touch_all().await?;
        }
        Ok(())
    }

    async fn touch_all(&mut self) -> Result<(), VolumeError> {
        self.core.collecting().all_touched = false;
        let root = self.core.state().roots.objects;
        match tree::leaf_keys(&*self.core.frames, MapKind::Objects, root.as_ref()).await {
            Ok(keys) => {
                self.work.touch(keys.into_iter().map(|key| leaf_of(Sequence(key))));
                Ok(())
            }
            Err(error) => {
                self.core.collecting().all_touched = true;
                Err(error)
            }
        }
    }

    fn listed_bytes(&self) -> u64 {
        let state = self.core.state();
        let older = state.checkpointing.iter().flat_map(|delta| &delta.listed);
        older.chain(&state.delta.listed).map(|listed| listed.bytes).sum()
    }

    /// Looks at a leaf.
    async fn visit(&mut self, leaf: u64) -> Result<(), VolumeError> {
        let verdict = match self.judge(leaf).await {
            Ok(verdict) => verdict,
            Err(error) => {
                self.work.touch([leaf]);
                return Err(error);
            }
        };
        let is_sparse = !verdict.sparse.is_empty() || !verdict.tiny.is_empty();
        self.work.visited(leaf, verdict.tally, is_sparse);
        self.garbage.extend(verdict.garbage.into_iter().map(|entry| (entry.sequence, entry)));
        Ok(())
    }

    async fn judge(&self, leaf: u64) -> Result<Verdict, VolumeError> {
        let (first, last) = keys_of(leaf);
        loop {
            let root = self.core.state().roots.objects;
            let leaves =
                tree::leaves(&*self.core.frames, MapKind::Objects, root.as_ref(), first, last).await?;
            if let Some(verdict) = self.judge_leaves(root, &leaves) {
                return Ok(verdict);
            }
        }
    }

    /// `None` where these are not of the maps any more: then it may be forgotten what of them is deleted.
    fn judge_leaves(&self, root: Option<Root>, leaves: &[Arc<Page>]) -> Option<Verdict> {
        let state = self.core.state();
        if state.roots.objects != root {
            return None;
        }
        let shared = self.core.collecting();
        let pinned = |born, died| state.snapshots.needs(born, died);
        let is_deleted = |sequence: Sequence| shared.deleted.contains_key(&sequence);
        let judge = Judge {
            horizon: self.horizon,
            pinned: &pinned,
            is_deleted: &is_deleted,
            is_emptied: &|sequence| self.emptied.contains_key(&sequence),
            tiny_bytes: self.core.settings.object_bytes / TINY_SHARE,
            thorough: self.thorough,
        };
        let entries = leaves.iter().filter_map(|page| match &**page {
            Page::Objects(entries) => Some(entries),
            _ => None,
        });
        let mut verdict = judge.judge(&entries.flatten().copied().collect::<Vec<_>>());
        let is_page = |entry: &Entry| shared.page_objects.contains(&entry.sequence);
        verdict.tiny.retain(|entry| !is_page(entry));
        if verdict.tiny.len() < TINY_MIN {
            verdict.tiny.clear();
        }
        Some(verdict)
    }

    /// Deletes what was found to be garbage.
    async fn delete(&mut self) -> Result<(), VolumeError> {
        let garbage: Vec<Entry> = std::mem::take(&mut self.garbage).into_values().collect();
        // They are looked at again, whatever comes of this.
        self.work.touch(garbage.iter().map(|entry| leaf_of(entry.sequence)));
        for batch in garbage.chunks(DELETES_MAX) {
            while self.core.collecting().is_full() {
                self.core.cut_wanted.notify_one();
                self.core.collect_wanted.notified().await;
            }
            claims::check(&self.core.bucket, self.tenure).await?;
            let names: Vec<String> =
                batch.iter().map(|entry| names::object(entry.generation, entry.sequence)).collect();
            self.core.bucket.store.delete(&names).await?;
            let mut shared = self.core.collecting();
            for entry in batch {
                self.budget.free(entry.plain_bytes);
                shared.deleted.insert(entry.sequence, entry.bytes);
                shared.figures.deleted += 1;
                shared.figures.deleted_bytes += entry.bytes;
            }
            tracing::debug!(objects = batch.len(), horizon = %self.horizon, "deleted garbage");
        }
        Ok(())
    }

    /// Sends what lives in the sparse objects of a leaf on its way: as much as goes along with one cut.
    async fn compact(&mut self, leaf: u64) -> Result<(), VolumeError> {
        let verdict = self.judge(leaf).await?;
        let room = room(self.work.sum(), &self.core);
        let chosen = self.budget.choose(&verdict.sparse, &verdict.tiny, room, self.thorough);
        if chosen.is_empty() {
            return Ok(());
        }
        // The most that it can be: what is overwritten before its cut is not moved.
        self.budget.spend(chosen.iter().map(|entry| entry.live_bytes).sum());
        // There may be more than there is room for.
        self.work.push_sparse(leaf);
        // Of what is on its way nothing is chosen again.
        self.emptied.extend(chosen.iter().map(|entry| (entry.sequence, Epoch(u64::MAX))));
        self.batches.push_back(Batch::start(&self.core, chosen));
        Ok(())
    }

    /// Until the oldest batch is published, or anything else is.
    async fn await_batch(&mut self) -> Result<(), VolumeError> {
        let Some(oldest) = self.batches.front_mut() else { return Ok(()) };
        let moved = tokio::select! {
            biased;
            moved = oldest.join() => moved,
            () = self.core.collect_wanted.notified() => return Ok(()),
        };
        let Some(batch) = self.batches.pop_front() else { return Ok(()) };
        match moved {
            Ok(moved_bytes) => {
                self.core.collecting().figures.moved_bytes += moved_bytes;
                self.emptied(batch.objects);
                Ok(())
            }
            Err(error) => {
                self.emptied.retain(|sequence, _| !batch.objects.contains(sequence));
                Err(error)
            }
        }
    }

    /// What stays in these objects, since it cannot be read or was not chosen by the next checkpoint, is tried again after
    /// that.
    fn emptied(&mut self, objects: Vec<Sequence>) {
        let epoch = self.core.progress.borrow().epoch.next();
        self.emptied.extend(objects.into_iter().map(|sequence| (sequence, epoch)));
    }

    /// Notes that nothing is to be done now; `false` where something was published meanwhile.
    fn settle(&self) -> bool {
        let listed = self.listed_bytes();
        let mut shared = self.core.collecting();
        if shared.all_touched || !shared.touched.is_empty() {
            return false;
        }
        let sum = self.work.sum();
        (shared.figures.waiting, shared.figures.waiting_bytes) = (sum.held, sum.held_bytes);
        shared.pressed = self.work.sum().is_burden(listed, self.core.settings.object_bytes);
        shared.held_by_manifests = shared.line.kept().is_some_and(|kept| self.work.is_held_above(kept));
        shared.waiting.iter_mut().for_each(|request| request.rounds += 1);
        shared.settled = true;
        drop(shared);
        self.core.cut_wanted.notify_one();
        true
    }

    /// Until something was published, or the grace time of something is over.
    async fn rest(&self) {
        let next = {
            let shared = self.core.collecting();
            let held = shared.figures.waiting > 0;
            let next = shared.line.next_graced(self.core.settings.gc_grace);
            next.filter(|_| held).and_then(|next| shared.began.checked_add(next))
        };
        let wanted = self.core.collect_wanted.notified();
        match next {
            Some(next) => {
                let _ = tokio::time::timeout_at(next, wanted).await;
            }
            None => wanted.await,
        }
    }

    /// After an error: those who wait are not kept waiting.
    async fn put_off(&self) {
        {
            let mut shared = self.core.collecting();
            shared.settled = true;
            shared.answer(true);
        }
        self.core.cut_wanted.notify_one();
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}
