//! The publisher: closes cuts, uploads their objects, publishes them in order, and only then trims the log.
//!
//! # Overview
//! One task owns the line of manifests. It takes one event at a time: the oldest cut's objects are all uploaded, a
//! checkpoint's pages are, a cut is due, the volume is closing. Objects upload in tasks of their own, so the next cut
//! uploads while the manifest before it is published; while both are under way the active layer goes on growing, and the
//! rate of manifests is bounded by the store and not by the writes.
//!
//! # Invariants
//! - Manifest N is put only when every object it names was acknowledged, and names exactly one whole cut more than its
//!   parent. Epochs are published in order.
//! - The log is trimmed, and a remote flush answered, only after the manifest was put and the claims were checked.
//!
//! # Errors and retries
//! The store below retries what may pass, for ever. What comes up from it ends the tenure: a newer claim, or a store that
//! refuses for good. The log keeps what is not published.

mod maps;
mod quiet;

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use wal::Lsn;

use super::{
    bucket::Published,
    checkpoint::{BackTo, Checkpoint},
    claims::{self, Tenure},
    collect,
    core::{Core, Progress},
    earlier::Rebased,
    env::random_bytes,
    error::VolumeError,
    local,
    moves::Offer,
    object::CutFacts,
    record,
    snapshots::{Pending, SnapshotTable, Taken},
    state::Frozen,
    survey,
    task::Task,
    upload::{Upload, Uploaded, upload_cut},
};
use crate::{
    format::{
        envelope::Content,
        ids::{Epoch, Generation, LogPosition, Sequence},
        local::{SEEN, Seen},
        manifest::{Manifest, Snapshot, SnapshotChange, Totals},
        names,
    },
    map::delta::NewObject,
};

/// Cuts between closing and publishing: one is published while the next one uploads.
pub(super) const CUTS_MAX: usize = 2;
/// Manifests that stay behind the newest: enough to fall back on, and to find where a log left the line.
const MANIFESTS_KEPT: usize = 16;
/// Objects' worth of data in the delta that is worth a checkpoint where it is a share of the volume: so the garbage that only a
/// checkpoint finds stays a share of the volume, too.
const DELTA_OBJECTS_MIN: u64 = 2;
const DELTA_SHARE: u64 = 16;
/// How often a log that found no room on its disk looks again: often enough for those who wait, and no load.
const LOG_ROOM_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// A closed cut on its way to the bucket.
#[derive(Debug)]
struct Cut {
    epoch: Epoch,
    lsn: Lsn,
    size_bytes: u64,
    /// Whether it has objects with data.
    layered: bool,
    /// Whether a client wrote anything of it,
    written: bool,
    /// and how much data, bytes.
    written_bytes: u64,
    objects: Task<Uploaded>,
    /// Who waits for what it moves.
    moved: Option<oneshot::Sender<u64>>,
}

/// Owns the line of manifests of one tenure.
#[derive(Debug)]
pub struct Publisher {
    core: Arc<Core>,
    tenure: Tenure,
    newest: Published,
    position: LogPosition,
    /// As of the newest manifest and what is to be published next.
    snapshots: SnapshotTable,
    data_cut: Option<(Generation, Epoch)>,
    sequences: Arc<AtomicU64>,
    cuts: VecDeque<Cut>,
    checkpoint: Option<Task<Checkpoint>>,
    checkpointed: Option<Checkpoint>,
    /// Who waits for a rollback: its checkpoint is being written, or is to be published.
    rolling_back: Option<oneshot::Sender<Result<(), VolumeError>>>,
    /// Who waits for the checkpoint under way.
    checkpoint_for: Vec<oneshot::Sender<Result<(), VolumeError>>>,
    /// No checkpoint before the delta has this many objects of cuts: after one failed, some more come first.
    checkpoint_after: usize,
    kept: VecDeque<(Generation, Epoch)>,
    /// The volume is closing, and its last checkpoint could not be written.
    checkpoint_given_up: bool,
    log_full: bool,
    /// Since when nobody has written.
    quiet_since: Instant,
    /// Since then, a checkpoint was made for the sake of deleted objects alone. There is no second one: it leaves dead pages, too.
    has_accounted: bool,
    /// Collects garbage while there is a publisher.
    collector: Option<Task<Infallible>>,
    closing: watch::Receiver<bool>,
    state_disk: Arc<dyn wal::disk::Disk>,
}

/// What became of changes of the snapshot table.
#[derive(Default)]
struct Changed {
    changes: Vec<SnapshotChange>,
    answers: Vec<(oneshot::Sender<Result<Snapshot, VolumeError>>, Snapshot)>,
}

enum Event {
    Uploaded(Result<Uploaded, VolumeError>),
    Checkpointed(Box<Result<Checkpoint, VolumeError>>),
    Look,
    /// The log waits for room on its disk; or it is time to look whether there is some.
    LogRoom,
    /// The collector found out what ends the tenure.
    CollectorEnded(VolumeError),
}

/// What a publisher starts with.
#[derive(Debug)]
pub struct Start {
    /// Who writes.
    pub tenure: Tenure,
    /// The tenure's first manifest, published.
    pub newest: Published,
    /// Names of the manifests in the bucket, oldest first, the first one of this tenure included.
    pub kept: VecDeque<(Generation, Epoch)>,
    /// Set to close the volume.
    pub closing: watch::Receiver<bool>,
    /// For `seen`.
    pub state_disk: Arc<dyn wal::disk::Disk>,
}

impl Publisher {
    /// For an open volume, whose state is that of `start.newest` and what the log holds above.
    #[must_use]
    pub fn new(core: Arc<Core>, start: Start) -> Self {
        let Start { tenure, newest, kept, closing, state_disk } = start;
        let manifest = &newest.manifest;
        let snapshots = core.state().snapshots.clone();
        Self {
            core,
            tenure,
            position: manifest.log,
            snapshots,
            data_cut: manifest.data_cut,
            sequences: Arc::new(AtomicU64::new(manifest.next_sequence.0)),
            newest,
            cuts: VecDeque::new(),
            checkpoint: None,
            checkpointed: None,
            rolling_back: None,
            checkpoint_for: Vec::new(),
            checkpoint_after: 0,
            checkpoint_given_up: false,
            log_full: false,
            quiet_since: Instant::now(),
            has_accounted: false,
            collector: None,
            kept,
            closing,
            state_disk,
        }
    }

    /// Publishes until the volume is closed, or cannot go on; then everybody who waits is told why.
    pub async fn run(mut self) -> Result<(), VolumeError> {
        let (core, tenure) = (Arc::clone(&self.core), self.tenure);
        self.collector = Some(Task::spawn(async move { collect::run(core, tenure).await }));
        let result = self.serve().await;
        if let Err(error) = &result {
            self.core.fail(error.clone());
            if let VolumeError::Fenced { found, .. } = error {
                self.core.noted.find_out_who(&self.core, *found);
            }
        }
        result
    }

    async fn serve(&mut self) -> Result<(), VolumeError> {
        loop {
            self.core.check()?;
            self.take_rebased();
            self.start_rollback();
            self.start_checkpoint_if_asked();
            if *self.closing.borrow() {
                // Before the look at what is to be cut: nothing comes after the last cut.
                self.core.state_mut().closing = true;
            }
            self.tidy();
            if self.is_cut_due() {
                self.core.state_mut().close_cut();
            }
            self.upload_cuts();
            if *self.closing.borrow() && self.cuts.is_empty() && self.checkpoint.is_none() {
                if self.is_checkpointed() {
                    return self.publish_closed().await;
                }
                self.start_checkpoint();
            }
            match self.next_event().await {
                Event::Uploaded(objects) => {
                    let cut = self.cuts.pop_front().ok_or(VolumeError::Closed)?;
                    self.publish(cut, objects?).await?;
                    self.start_checkpoint_if_due();
                }
                Event::Checkpointed(done) => match *done {
                    Ok(checkpoint) => {
                        if let Some(BackTo { size_bytes, data_cut }) = checkpoint.back_to {
                            self.core.state_mut().size_bytes = size_bytes;
                            self.data_cut = data_cut;
                        }
                        self.checkpointed = Some(checkpoint);
                        self.checkpoint_after = 0;
                    }
                    Err(error) => match self.rolling_back.take() {
                        // Nothing was published: the volume is what it was.
                        Some(done) if error.kind() != super::error::Kind::Fenced => {
                            self.fold_back();
                            let _ = done.send(Err(error));
                        }
                        Some(_) => return Err(error),
                        None => self.checkpoint_failed(error)?,
                    },
                },
                Event::Look => {}
                Event::CollectorEnded(error) => return Err(error),
                Event::LogRoom => {
                    self.log_full = self.core.log()?.retry_if_full();
                    if self.log_full {
                        self.core.make_log_room();
                    }
                }
            }
        }
    }

    /// The state goes on with earlier maps: so do the totals of the manifests to come.
    fn take_rebased(&mut self) {
        if let Some(Rebased { mapped_blocks, known, inherited }) = self.core.rebased().take() {
            self.newest.manifest.inherited = inherited;
            let totals = &mut self.newest.manifest.totals;
            totals.mapped_blocks = mapped_blocks;
            (totals.objects, totals.object_bytes) = known;
        }
    }

    fn is_checkpointed(&self) -> bool {
        if self.checkpoint_given_up {
            return true;
        }
        let state = self.core.state();
        state.delta.extents.is_empty() && state.checkpointing.is_none() && self.core.moving().is_empty()
    }

    async fn next_event(&mut self) -> Event {
        let due = [self.cut_due_at(), self.idle_at()].into_iter().flatten().min();
        let Self { core, cuts, checkpoint, collector, closing, log_full, .. } = self;
        let closing_now = *closing.borrow();
        let uploaded = async {
            match cuts.front_mut() {
                Some(cut) => cut.objects.join().await,
                None => std::future::pending().await,
            }
        };
        let checkpointed = async {
            match checkpoint {
                Some(task) => task.join().await,
                None => std::future::pending().await,
            }
        };
        let timer = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let collected = async {
            match collector {
                Some(task) => match task.join().await {
                    Ok(never) => match never {},
                    Err(error) => error,
                },
                None => std::future::pending().await,
            }
        };
        let log_room = async {
            match (*log_full, &core.log) {
                (true, _) => tokio::time::sleep(LOG_ROOM_INTERVAL).await,
                (false, Some(log)) => log.disk_full().await,
                (false, None) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            objects = uploaded => Event::Uploaded(objects),
            done = checkpointed => {
                self.checkpoint = None;
                Event::Checkpointed(Box::new(done))
            }
            () = core.cut_wanted.notified() => Event::Look,
            () = log_room => Event::LogRoom,
            error = collected => Event::CollectorEnded(error),
            changed = closing.changed(), if !closing_now => {
                // A dropped sender closes, too.
                if changed.is_err() { self.closing = watch::channel(true).1; }
                Event::Look
            }
            () = timer => Event::Look,
        }
    }

    /// Whether the active layer is to be closed now.
    fn is_cut_due(&self) -> bool {
        let wanted = *self.core.cut_to();
        let state = self.core.state();
        if state.frozen.len() >= CUTS_MAX || self.are_cuts_held() {
            return false;
        }
        if self.checkpointed.is_some() && state.frozen.is_empty() {
            return true;
        }
        if state.frozen.is_empty() && self.is_collector_waiting(&state) {
            return true;
        }
        let Some(since) = state.active_since else { return false };
        *self.closing.borrow()
            || state.active.data_bytes() >= self.core.settings.object_bytes
            || wanted > state.frozen.back().map_or(Lsn(self.position.lsn), |cut| cut.lsn)
            || since.elapsed() >= self.cut_age_max()
    }

    /// Whether cuts wait for their release. Closing does not: it would have no end.
    fn are_cuts_held(&self) -> bool {
        self.core.are_cuts_held() && !*self.closing.borrow()
    }

    /// When the active layer becomes due by its age.
    fn cut_due_at(&self) -> Option<Instant> {
        let state = self.core.state();
        if state.frozen.len() >= CUTS_MAX || self.are_cuts_held() {
            return None;
        }
        state.active_since.map(|since| since + self.cut_age_max())
    }

    /// Starts uploading the closed cuts that come next.
    fn upload_cuts(&mut self) {
        while self.cuts.len() < CUTS_MAX {
            let Some(frozen) = self.core.state().frozen.get(self.cuts.len()).cloned() else { return };
            let Frozen { epoch, lsn, size_bytes, layer, .. } = frozen;
            let (written, written_bytes) = (!layer.is_empty(), layer.data_bytes());
            // What is moved is what was there before a rollback: beside one it would be on top of it.
            let takes_none = *self.closing.borrow() || self.rolling_back.is_some();
            let offer = if takes_none { None } else { self.core.offers().pop_front() };
            let (moves, moved) = offer.map(|Offer { moves, done }| (moves, done)).unzip();
            let layered = written || moves.is_some();
            let upload = Upload {
                facts: self.facts(epoch, lsn, size_bytes),
                layer,
                moves,
                has_objects: layered,
                tenure: self.tenure,
                sequences: Arc::clone(&self.sequences),
            };
            if layered {
                self.data_cut = Some((self.tenure.generation, epoch));
            }
            let objects = Task::spawn(upload_cut(Arc::clone(&self.core), upload));
            self.cuts.push_back(Cut {
                epoch,
                lsn,
                size_bytes,
                layered,
                written,
                written_bytes,
                objects,
                moved,
            });
        }
    }

    fn facts(&self, epoch: Epoch, lsn: Lsn, size_bytes: u64) -> CutFacts {
        CutFacts {
            epoch,
            part: 0,
            parts: 0,
            parent: self.data_cut,
            log: LogPosition { log: self.position.log, lsn: lsn.0 },
            time_ms: self.core.env.clock.now_ms(),
            size_bytes,
        }
    }

    /// Publishes a cut whose objects are all uploaded, and a checkpoint with it if one is ready.
    async fn publish(&mut self, cut: Cut, uploaded: Uploaded) -> Result<(), VolumeError> {
        let Uploaded { objects, moved_bytes } = uploaded;
        let checkpoint = self.checkpointed.take();
        let is_rollback = checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.back_to.is_some());
        let pages = checkpoint.iter().flat_map(|checkpoint| &checkpoint.objects).map(|pages| {
            let mut pages = pages.clone();
            pages.listed.epoch = cut.epoch;
            pages
        });
        let news: Vec<NewObject> = pages.chain(objects).collect();
        let before = self.newest.manifest.epoch;
        let mut manifest = self.manifest(&cut, &news, checkpoint.as_ref());
        manifest.oldest_kept = self.oldest_kept(&cut);
        let Changed { changes, answers } = self.change_snapshots(&mut manifest);
        self.put(manifest).await?;
        let has_checkpoint = checkpoint.is_some();
        self.apply(&cut, &news, checkpoint, &changes);
        self.settle(cut.lsn).await?;
        if has_checkpoint {
            // Nobody may be waiting any more.
            self.checkpoint_for.drain(..).for_each(|done| drop(done.send(Ok(()))));
        }
        if is_rollback && let Some(done) = self.rolling_back.take() {
            let Core { env, bucket, .. } = &*self.core;
            survey::forget_up_to(env, bucket, &*self.state_disk, self.tenure, before)?;
            let _ = done.send(Ok(()));
        }
        if cut.written {
            self.quiet_since = Instant::now();
            self.has_accounted = false;
        }
        self.core.collect_wanted.notify_one();
        if let Some(moved) = cut.moved {
            let _ = moved.send(moved_bytes);
        }
        for (done, snapshot) in answers {
            // Nobody may be waiting any more.
            let _ = done.send(Ok(snapshot));
        }
        Ok(())
    }

    /// Brings into `manifest` what was asked of the snapshot table when its cut was closed.
    fn change_snapshots(&mut self, manifest: &mut Manifest) -> Changed {
        let mut changed = Changed::default();
        let next = || {
            let mut pending = self.core.pending();
            let is_due = pending.front().is_some_and(|first| first.epoch <= manifest.epoch);
            if is_due { pending.pop_front() } else { None }
        };
        let due: Vec<Pending> = std::iter::from_fn(next).collect();
        for Pending { change, done, .. } in due {
            let taken = Taken {
                id: manifest.next_snapshot,
                generation: manifest.generation,
                epoch: manifest.epoch,
                roots_epoch: manifest.roots.epoch,
                time_ms: manifest.time_ms,
                size_bytes: manifest.size_bytes,
            };
            match self.snapshots.plan(&change, taken) {
                Ok(change) => {
                    let before = self.snapshots.subject(&change).cloned();
                    self.snapshots.apply(&change);
                    manifest.next_snapshot = manifest.next_snapshot.max(change.number() + 1);
                    let subject = self.snapshots.subject(&change).cloned().or(before);
                    changed.answers.extend(subject.map(|snapshot| (done, snapshot)));
                    manifest.snapshots.push(change.clone());
                    changed.changes.push(change);
                }
                Err(error) => {
                    let _ = done.send(Err(error));
                }
            }
        }
        changed
    }

    /// The state is that of the manifest just published.
    fn apply(
        &mut self,
        cut: &Cut,
        news: &[NewObject],
        checkpoint: Option<Checkpoint>,
        changes: &[SnapshotChange],
    ) {
        let mut state = self.core.state_mut();
        // In one step: what is gone from the table is not to be deleted once more.
        self.tell_collector(cut, news, checkpoint.as_ref(), changes);
        if let Some(checkpoint) = checkpoint {
            state.roots = checkpoint.roots;
            state.checkpointing = None;
            self.core.moving().retain(|page| !checkpoint.moved.contains(page));
        }
        news.iter().for_each(|new| state.delta.apply(new));
        state.delta.epoch = cut.epoch;
        state.frozen.pop_front();
        state.delta.snapshots.extend_from_slice(changes);
        for change in changes {
            if let (SnapshotChange::Deleted(_), Some(snapshot)) = (change, state.snapshots.subject(change))
                && snapshot.epoch < self.newest.manifest.oldest_kept
            {
                // Nothing keeps its manifest any more.
                self.kept.push_front((snapshot.generation, snapshot.epoch));
            }
            state.snapshots.apply(change);
        }
    }

    /// The manifest for a cut, from the newest one.
    fn manifest(&self, cut: &Cut, news: &[NewObject], checkpoint: Option<&Checkpoint>) -> Manifest {
        let mut manifest = self.newest.manifest.clone();
        let state = self.core.state();
        manifest.epoch = cut.epoch;
        manifest.parent = Some(self.newest.link);
        manifest.log = LogPosition { log: self.position.log, lsn: cut.lsn.0 };
        manifest.writer = claims::writer(&self.core.env);
        manifest.time_ms = self.core.env.clock.now_ms();
        manifest.size_bytes = cut.size_bytes;
        manifest.next_sequence = Sequence(self.sequences.load(Ordering::Relaxed));
        if self.core.flattening().is_independent {
            manifest.owners.clear();
        }
        if cut.layered {
            manifest.data_cut = Some((self.tenure.generation, cut.epoch));
        }
        let waiting = state.frozen.iter().skip(1).map(|frozen| frozen.layer.data_bytes());
        manifest.unpublished_bytes = waiting.sum::<u64>() + state.active.data_bytes();
        let older = state.checkpointing.iter().flat_map(|delta| &delta.listed);
        manifest.objects = match checkpoint {
            Some(_) => state.delta.listed.clone(),
            None => older.chain(&state.delta.listed).copied().collect(),
        };
        manifest.objects.extend(news.iter().map(|new| new.listed));
        let older = state.checkpointing.iter().flat_map(|delta| &delta.snapshots);
        manifest.snapshots = match checkpoint {
            Some(_) => state.delta.snapshots.clone(),
            None => older.chain(&state.delta.snapshots).cloned().collect(),
        };
        manifest.roots = state.roots.clone();
        if let Some(checkpoint) = checkpoint {
            manifest.roots = checkpoint.roots.clone();
            // The delta that it wrote began with them.
            manifest.inherited.clear();
            manifest.totals.mapped_blocks = checkpoint.mapped_blocks;
            if let Some(BackTo { data_cut, .. }) = checkpoint.back_to {
                manifest.data_cut = data_cut;
            }
        }
        let Totals { objects, object_bytes, .. } = &mut manifest.totals;
        let unlisted = checkpoint.map_or((0, 0), |checkpoint| checkpoint.unlisted);
        *objects += unlisted.0 + news.len() as u64;
        *object_bytes += unlisted.1 + news.iter().map(|new| new.listed.bytes).sum::<u64>();
        if let Some(Checkpoint { deleted, .. }) = checkpoint {
            *objects = objects.saturating_sub(deleted.len() as u64);
            *object_bytes = object_bytes.saturating_sub(deleted.values().sum());
        }
        manifest
    }

    /// Puts a manifest and checks the claims: on `Ok` it is published.
    async fn put(&mut self, manifest: Manifest) -> Result<(), VolumeError> {
        let published =
            self.core.bucket.put_manifest(&manifest, random_bytes(&*self.core.env.random)).await?;
        claims::check(&self.core.bucket, self.tenure).await?;
        self.position = manifest.log;
        self.kept.push_back((manifest.generation, manifest.epoch));
        self.newest = published;
        Ok(())
    }

    /// After a publish: what may be let go now, and who may be told.
    async fn settle(&mut self, lsn: Lsn) -> Result<(), VolumeError> {
        let Published { manifest, link } = &self.newest;
        let seen = Seen { generation: link.generation, epoch: link.epoch, digest: link.digest };
        let log = self.core.log()?;
        let (kind, head) = record::published_head(link.generation, link.epoch, lsn);
        // For people who look into the log, and for `recover` where the bucket is gone: losing it loses nothing.
        let _ = log.append(kind, &head, Bytes::new());
        log.trim(lsn);
        remember(&self.core, &*self.state_disk, &seen);
        self.core.published.advance(lsn);
        self.core.progress.send_replace(Progress {
            generation: link.generation,
            nonce: self.tenure.nonce,
            epoch: link.epoch,
            lsn,
            time_ms: manifest.time_ms,
        });
        tracing::debug!(epoch = %link.epoch, %lsn, objects = manifest.objects.len(), "published");
        let oldest = manifest.oldest_kept;
        self.remove_manifests_below(oldest);
        Ok(())
    }

    /// Removes old manifests. Called right after a check of claims, and never for those that the newest says are kept.
    /// In a task of its own: a store that refuses to delete, or is slow, holds up nothing.
    fn remove_manifests_below(&mut self, oldest: Epoch) {
        let count = self.kept.iter().take_while(|kept| kept.1 < oldest).count();
        let gone = self.kept.drain(..count);
        // One that is pinned may be forgotten: it comes back with the deletion of its snapshot.
        let state = self.core.state();
        let names: Vec<String> = gone
            .filter(|kept| !state.snapshots.pins(*kept))
            .map(|(generation, epoch)| names::manifest(generation, epoch))
            .collect();
        drop(state);
        if names.is_empty() {
            return;
        }
        let store = Arc::clone(&self.core.bucket.store);
        tokio::spawn(async move {
            if let Err(error) = store.delete(&names).await {
                tracing::warn!(%error, "old manifests stay in the bucket");
            }
        });
    }

    /// The last manifest of the tenure.
    async fn publish_closed(&mut self) -> Result<(), VolumeError> {
        let mut manifest = self.newest.manifest.clone();
        manifest.epoch = self.newest.manifest.epoch.next();
        manifest.parent = Some(self.newest.link);
        manifest.time_ms = self.core.env.clock.now_ms();
        manifest.closed = true;
        manifest.unpublished_bytes = 0;
        self.put(manifest).await?;
        self.settle(Lsn(self.position.lsn)).await?;
        let (kind, head) = record::closed_head();
        let _ = self.core.log()?.append(kind, &head, Bytes::new());
        Ok(())
    }
}

/// Notes the newest epoch seen, on this host. A failure weakens the check for rollback, and nothing else.
pub fn remember(core: &Core, disk: &dyn wal::disk::Disk, seen: &Seen) {
    let stored = local::store(disk, &core.bucket.keys, &*core.env.random, Content::Seen, SEEN, seen);
    if let Err(error) = stored {
        tracing::warn!(%error, "cannot note the newest epoch seen");
    }
}
