//! The collector: deletes objects that nobody needs, and moves what is left of sparse ones.
//!
//! # Overview
//! A task beside the publisher. It walks the object table's leaves, all of them after opening and then those that a
//! checkpoint touched, and does what [`crate::gc`] decides: garbage is deleted in batches, each after a check of claims; what
//! lives in sparse objects goes along with the next cut ([`super::moves`]), pages with the next checkpoint. The publisher tells it
//! what was published; it tells the publisher when manifests should be let go ([`Shared`]).
//!
//! # Crash consistency
//! An object is deleted only when a published manifest says that it is dead, and its entry goes with a later checkpoint. A
//! crash in between leaves an entry without its object, which is deleted once more, without harm. What was moved is in a cut like any
//! other, and the old object dies with the checkpoint that finds it empty.
//!
//! # Errors and retries
//! A newer claim ends it. Whatever else goes wrong is tried again later: the volume does not need it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::stream::StreamExt;
use tokio::{sync::oneshot, time::Instant};

use super::{
    bucket::Bucket,
    claims::{self, Tenure},
    core::Core,
    error::{Kind, VolumeError},
    moves::Moves,
    publish::CUTS_MAX,
};
use crate::{
    format::{
        ids::{Epoch, Generation, ObjectRef, Sequence},
        index::{FrameKind, Index, IndexFrame, MapKind, Run},
        manifest::Root,
        names,
        page::Page,
    },
    gc::{
        budget::Budget,
        horizon::Line,
        judge::{Entry, Judge, TINY_MIN, Verdict},
        work::{WorkSet, keys_of, leaf_of},
    },
    map::tree::{self, PageAt},
};

/// Objects deleted by one request, after one check of claims.
const DELETES_MAX: usize = 1000;
/// Deleted objects whose entries wait for a checkpoint; then one is due, and no more are deleted before it.
const DELETED_MAX: usize = 1 << 16;
/// Pages that wait for a checkpoint to be moved.
const PAGES_MAX: usize = 256;
/// Objects' worth of live bytes moved with one cut, at most.
const WORTH_MAX: u64 = 4;
/// Batches of blocks on their way at once: one with each cut that is.
const MOVING_MAX: usize = CUTS_MAX;
/// Indexes read at once.
const INDEX_LOADS_MAX: usize = 16;
/// Objects known to hold pages, so that they are not taken for tiny ones again and again.
const PAGE_OBJECTS_MAX: usize = 4096;
/// An object below this share of the usual length is tiny.
const TINY_SHARE: u64 = 8;
/// Between two leaves that nobody waits for: 20,000 of them in some minutes.
const WALK_PAUSE: Duration = Duration::from_millis(10);
/// Between an error of the store and the next attempt.
const RETRY_PAUSE: Duration = Duration::from_secs(60);
/// Times that a command has the collector settle, at most, while clients go on writing.
const ROUNDS_MAX: u32 = 16;

/// What the collector has done since the volume was opened, and what is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Objects deleted.
    pub deleted: u64,
    /// Their lengths, bytes.
    pub deleted_bytes: u64,
    /// Plaintext moved out of sparse objects, bytes.
    pub moved_bytes: u64,
    /// Dead objects that wait for manifests or for the grace time.
    pub waiting: u64,
    /// Their lengths, bytes.
    pub waiting_bytes: u64,
}

/// What publisher and collector tell each other.
#[derive(Debug)]
pub struct Shared {
    line: Line,
    began: Instant,
    touched: BTreeSet<u64>,
    all_touched: bool,
    /// Deleted objects that the published table still has, and their lengths, bytes.
    pub(super) deleted: BTreeMap<Sequence, u64>,
    /// Pages of sparse objects, for the next checkpoint.
    pub(super) pages: Vec<PageAt>,
    /// Manifests are to be let go as soon as may be.
    pub(super) pressed: bool,
    /// Nothing but manifests holds something back.
    pub(super) held_by_manifests: bool,
    /// There is nothing to be done until something is published, or time passes.
    pub(super) settled: bool,
    /// Nobody has written for a while.
    idle: bool,
    page_objects: BTreeSet<Sequence>,
    waiting: Vec<Request>,
    figures: Figures,
}

#[derive(Debug)]
struct Request {
    rounds: u32,
    done: oneshot::Sender<Figures>,
}

/// What was published, as far as the collector needs to know.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) epoch: Epoch,
    pub(super) roots: Epoch,
    pub(super) oldest_kept: Epoch,
    /// By a checkpoint, of the object table.
    pub(super) touched: BTreeSet<u64>,
    /// Entries that the checkpoint took out.
    pub(super) deleted: BTreeMap<Sequence, u64>,
    /// Pages that the checkpoint moved.
    pub(super) moved: Vec<PageAt>,
    /// New objects that hold pages.
    pub(super) page_objects: Vec<Sequence>,
    /// Whether a snapshot was deleted.
    pub(super) unpinned: bool,
}

impl Shared {
    /// For a volume whose newest manifest is of `epoch`, with roots of `roots` that were published `age` ago or before.
    #[must_use]
    pub fn new(epoch: Epoch, roots: Epoch, oldest_kept: Epoch, age: Duration) -> Self {
        // An age counts from before there was this volume: the line's clock is that much ahead.
        let began = Instant::now();
        let began = began.checked_sub(age).unwrap_or(began);
        Self {
            line: Line::new(epoch, roots, oldest_kept, Duration::ZERO),
            began,
            touched: BTreeSet::new(),
            all_touched: true,
            deleted: BTreeMap::new(),
            pages: Vec::new(),
            pressed: false,
            held_by_manifests: false,
            settled: false,
            idle: false,
            page_objects: BTreeSet::new(),
            waiting: Vec::new(),
            figures: Figures::default(),
        }
    }

    /// A manifest was published, and the claims checked.
    pub(super) fn publish(&mut self, news: News) {
        self.line.publish(news.epoch, news.roots, news.oldest_kept, self.began.elapsed());
        self.all_touched |= news.unpinned;
        self.touched.extend(news.touched);
        news.deleted.keys().for_each(|sequence| {
            self.deleted.remove(sequence);
            self.page_objects.remove(sequence);
        });
        self.pages.retain(|page| !news.moved.contains(page));
        self.page_objects.extend(news.page_objects);
        while self.page_objects.len() > PAGE_OBJECTS_MAX {
            self.page_objects.pop_first();
        }
        self.settled = false;
    }

    /// Whether a checkpoint is due for the entries of what was deleted.
    pub(super) fn is_full(&self) -> bool {
        self.deleted.len() >= DELETED_MAX
    }

    /// Whether somebody waits for the collector to be done.
    pub(super) fn is_hurried(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Nobody has written for a while, or somebody has.
    pub(super) fn set_idle(&mut self, idle: bool) -> bool {
        std::mem::replace(&mut self.idle, idle) != idle
    }

    /// What was done, and what is left.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// Nothing is left for those who wait, or they have waited long enough.
    pub(super) fn answer(&mut self, nothing_left: bool) {
        let figures = self.figures;
        let (done, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|request| nothing_left || request.rounds >= ROUNDS_MAX);
        self.waiting = waiting;
        for request in done {
            // Nobody may be waiting any more.
            let _ = request.done.send(figures);
        }
    }
}

impl Core {
    /// Collects until nothing is left that may go, without waiting for the grace time. While clients write there is always
    /// more: then it ends after a few rounds.
    ///
    /// # Errors
    /// `ReadOnly`, and what ends the tenure.
    pub async fn collect(&self) -> Result<Figures, VolumeError> {
        self.log()?;
        self.check()?;
        let (done, figures) = oneshot::channel();
        {
            let mut shared = self.collecting();
            shared.waiting.push(Request { rounds: 0, done });
            shared.all_touched = true;
            shared.settled = false;
        }
        self.collect_wanted.notify_one();
        self.answered(figures).await
    }
}

/// Runs until it is dropped, or the volume is fenced.
pub(super) async fn run(core: Arc<Core>, tenure: Tenure) -> Result<(), VolumeError> {
    let mut collector = Collector {
        core,
        tenure,
        work: WorkSet::default(),
        budget: Budget::default(),
        horizon: Epoch(0),
        thorough: false,
        emptied: BTreeMap::new(),
        moving: VecDeque::new(),
        garbage: BTreeMap::new(),
    };
    loop {
        match collector.collect().await {
            Ok(()) => collector.rest().await,
            // The publisher finds the same, and ends the tenure.
            Err(error) if error.kind() == Kind::Fenced => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "garbage is not collected now: this will be tried again");
                collector.garbage.clear();
                collector.put_off().await;
            }
        }
    }
}

/// Blocks on their way out of sparse objects.
struct Moving {
    objects: Vec<Sequence>,
    /// Gets the plaintext that was moved, bytes.
    done: oneshot::Receiver<u64>,
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
    /// Batches on their way, oldest first.
    moving: VecDeque<Moving>,
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
            if self.moving.len() < MOVING_MAX
                && let Some(leaf) = self.work.pop_sparse()
            {
                self.compact(leaf).await?;
                continue;
            }
            if !self.moving.is_empty() {
                self.moved().await?;
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
            shared.pressed = self.work.is_pressed(listed, self.core.settings.object_bytes);
            let (now, pressed) = (shared.began.elapsed(), shared.pressed);
            let horizon = shared.line.horizon(now, self.core.settings.gc_grace, pressed);
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

    /// Moves what lives in the sparse objects of a leaf: as much as an object holds.
    async fn compact(&mut self, leaf: u64) -> Result<(), VolumeError> {
        let verdict = self.judge(leaf).await?;
        // The sparser all of it is, the more.
        let sum = self.work.sum();
        let worth = (2 * sum.plain_bytes / sum.live_bytes.max(1)).clamp(1, WORTH_MAX);
        let room = worth * self.core.settings.object_bytes;
        let chosen = self.budget.choose(&verdict.sparse, &verdict.tiny, room, self.thorough);
        if chosen.is_empty() {
            return Ok(());
        }
        // The most that it can be: what is overwritten before its cut is not moved.
        self.budget.spend(chosen.iter().map(|entry| entry.live_bytes).sum());
        // More than one object's worth may be there.
        self.work.push_sparse(leaf);
        let mut runs: Vec<Run> = Vec::new();
        let mut objects: BTreeSet<(Generation, Sequence)> = BTreeSet::new();
        let bucket = &self.core.bucket;
        let mut loads = Vec::with_capacity(chosen.len());
        for entry in &chosen {
            loads.push(bucket.explain(entry.generation, entry.sequence));
        }
        let explained: Vec<_> = futures::stream::iter(loads).buffered(INDEX_LOADS_MAX).collect().await;
        for (entry, explained) in chosen.iter().zip(explained) {
            match explained {
                Ok(new) if new.index.parts == 0 => self.move_pages(new.object, &new.index).await?,
                Ok(new) => {
                    objects.insert((entry.generation, entry.sequence));
                    runs.extend(new.index.frames.iter().flat_map(IndexFrame::runs).copied());
                }
                // Then it stays where it is; whoever reads it is told.
                Err(error) if error.kind() == Kind::Corrupt => {
                    tracing::warn!(%error, "an object cannot be compacted");
                }
                Err(error) => return Err(error),
            }
        }
        let sequences = chosen.iter().map(|entry| entry.sequence);
        if objects.is_empty() {
            self.emptied(sequences.collect());
            return Ok(());
        }
        // Of what is on its way nothing is chosen again.
        self.emptied.extend(sequences.clone().map(|sequence| (sequence, Epoch(u64::MAX))));
        let done = self.offer(runs, objects)?;
        self.moving.push_back(Moving { objects: sequences.collect(), done });
        Ok(())
    }

    /// Offers what lies in these objects to the next cut.
    fn offer(
        &self,
        runs: Vec<Run>,
        objects: BTreeSet<(Generation, Sequence)>,
    ) -> Result<oneshot::Receiver<u64>, VolumeError> {
        let owner = self.core.bucket.header.volume;
        let moves = Moves {
            runs: Run::join(runs),
            leaves: Arc::new(move |object| {
                object.owner == owner && objects.contains(&(object.generation, object.sequence))
            }),
            urgent: self.core.collecting().is_hurried(),
        };
        self.core.offer(moves)
    }

    /// Until the oldest batch is published, or anything else is.
    async fn moved(&mut self) -> Result<(), VolumeError> {
        let Some(oldest) = self.moving.front_mut() else { return Ok(()) };
        let moved = tokio::select! {
            biased;
            moved = &mut oldest.done => moved,
            () = self.core.collect_wanted.notified() => return Ok(()),
        };
        let Some(Moving { objects, .. }) = self.moving.pop_front() else { return Ok(()) };
        let moved_bytes = moved.map_err(|_| self.core.check().err().unwrap_or(VolumeError::Closed))?;
        self.core.collecting().figures.moved_bytes += moved_bytes;
        self.emptied(objects);
        Ok(())
    }

    /// What stays in these objects, since it cannot be read or was not chosen by the next checkpoint, is tried again after
    /// that.
    fn emptied(&mut self, objects: Vec<Sequence>) {
        let epoch = self.core.progress.borrow().epoch.next();
        self.emptied.extend(objects.into_iter().map(|sequence| (sequence, epoch)));
    }

    /// Has the next checkpoint move those pages of an object that the maps still name.
    async fn move_pages(&self, object: ObjectRef, index: &Index) -> Result<(), VolumeError> {
        self.core.collecting().page_objects.insert(object.sequence);
        for (number, frame) in (0..).zip(&index.frames) {
            let FrameKind::Page { map, level, first_key } = frame.kind else { continue };
            let Some(place) = index.place(object, number) else { continue };
            let at = PageAt { frame: place, map, level, first_key };
            let roots = self.core.state().roots.clone();
            let root = match map {
                MapKind::Blocks => roots.blocks,
                MapKind::Objects => roots.objects,
                MapKind::Snapshots => roots.snapshots,
            };
            if tree::find(&*self.core.frames, map, root.as_ref(), level, first_key).await? == Some(place) {
                let mut shared = self.core.collecting();
                if shared.pages.len() < PAGES_MAX && !shared.pages.contains(&at) {
                    shared.pages.push(at);
                }
            }
        }
        Ok(())
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
        shared.pressed = self.work.is_pressed(listed, self.core.settings.object_bytes);
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

/// The roots of the oldest manifest from epoch `oldest` on.
pub(super) async fn oldest_roots(bucket: &Bucket, oldest: Epoch) -> Result<Epoch, VolumeError> {
    let mut kept = bucket.list_manifests().await?;
    kept.retain(|name| name.1 >= oldest);
    let first = kept.iter().map(|name| name.1).min().unwrap_or(oldest);
    let mut roots = None;
    for (generation, epoch) in kept.into_iter().filter(|name| name.1 == first) {
        // One that is damaged could need anything; it goes in time.
        let found = match bucket.load_manifest(generation, epoch).await {
            Ok(Some(found)) => found.manifest.roots.epoch,
            Ok(None) => continue,
            Err(error) if error.kind() == Kind::Corrupt => Epoch(0),
            Err(error) => return Err(error),
        };
        roots = Some(roots.map_or(found, |roots: Epoch| roots.min(found)));
    }
    Ok(roots.unwrap_or_default())
}
