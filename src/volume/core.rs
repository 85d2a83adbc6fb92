//! The parts of an open volume that its tasks share.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{Notify, Semaphore, oneshot, watch};
use wal::Lsn;

use super::{
    bucket::Bucket, collect::Shared, earlier::Rebased, env::Env, error::VolumeError, flatten, frames::Frames,
    log::Log, moves::Offers, payload::PayloadMemory, readahead::Streams, rollback::Asked, settings::Settings,
    snapshot_view::Viewed, snapshots::Pending, state::State, status::Noted, waiters::Waiters,
};
use crate::{
    format::ids::{Epoch, Generation},
    map::tree::PageAt,
};

/// Shared by the server's requests and the publisher.
#[derive(Debug)]
pub struct Core {
    /// Outside.
    pub env: Env,
    /// The volume in the bucket.
    pub bucket: Bucket,
    /// As opened.
    pub settings: Settings,
    /// Ways to frames and pages.
    pub frames: Arc<Frames>,
    /// The log; none where the volume is read-only.
    pub log: Option<Arc<Log>>,
    /// Unpublished data in memory.
    pub payloads: Arc<PayloadMemory>,
    /// Everything below is in the bucket, and would be found by another host.
    pub published: Waiters,
    /// Progress of publishing, for those who wait for more than an LSN.
    pub progress: watch::Sender<Progress>,
    /// The last error that a client's request met, or that ended the tenure.
    pub noted: Noted,
    /// Wakes the publisher: there may be a reason to cut.
    pub cut_wanted: Notify,
    /// Wakes the collector: there may be something to do.
    pub collect_wanted: Notify,
    /// Objects being packed or uploaded hold one each.
    pub upload_slots: Semaphore,
    /// Cuts up to this LSN are wanted at once.
    cut_to: Mutex<Lsn>,
    /// No cut is closed, whatever is due.
    cuts_held: AtomicBool,
    streams: Mutex<Streams>,
    moving: Mutex<Vec<PageAt>>,
    /// Of a reader that goes on with newer epochs where its own was collected; held while it looks for one.
    pub(super) following: Option<tokio::sync::Mutex<()>>,
    /// The snapshot that is read, where it is one.
    pub(super) viewed: Option<Viewed>,
    rebased: Mutex<Option<Rebased>>,
    offers: Mutex<Offers>,
    collecting: Mutex<Shared>,
    pending: Mutex<VecDeque<Pending>>,
    rollback: Mutex<Option<Asked>>,
    flattening: Mutex<flatten::Asked>,
    failed: watch::Sender<bool>,
    state: RwLock<State>,
}

/// What has been published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Tenure.
    pub generation: Generation,
    /// Of its claim.
    pub nonce: u64,
    /// Newest epoch.
    pub epoch: Epoch,
    /// How far into the log it reaches.
    pub lsn: Lsn,
    /// When it was published, milliseconds since 1970.
    pub time_ms: u64,
}

impl Core {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        env: Env,
        bucket: Bucket,
        settings: Settings,
        frames: Arc<Frames>,
        log: Option<Arc<Log>>,
        payloads: Arc<PayloadMemory>,
        state: State,
    ) -> Self {
        let uploads_max = settings.uploads_max.max(1);
        Self {
            env,
            bucket,
            settings,
            frames,
            log,
            payloads,
            published: Waiters::default(),
            progress: watch::Sender::default(),
            noted: Noted::default(),
            cut_wanted: Notify::new(),
            collect_wanted: Notify::new(),
            upload_slots: Semaphore::new(uploads_max),
            cut_to: Mutex::default(),
            cuts_held: AtomicBool::new(false),
            streams: Mutex::default(),
            moving: Mutex::default(),
            following: None,
            viewed: None,
            rebased: Mutex::default(),
            offers: Mutex::default(),
            collecting: Mutex::new(Shared::new(
                state.cut_epoch,
                state.roots.epoch,
                Epoch(0),
                std::time::Duration::ZERO,
            )),
            pending: Mutex::default(),
            rollback: Mutex::default(),
            flattening: Mutex::default(),
            failed: watch::Sender::new(false),
            state: RwLock::new(state),
        }
    }

    /// The state, for reading. Never held across an await.
    pub fn state(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, for changing. Never held across an await.
    pub fn state_mut(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log.
    ///
    /// # Errors
    /// `ReadOnly` where there is none.
    pub fn log(&self) -> Result<&Arc<Log>, VolumeError> {
        self.log.as_ref().ok_or(VolumeError::ReadOnly)
    }

    /// The LSN up to which a cut is wanted at once.
    pub fn cut_to(&self) -> MutexGuard<'_, Lsn> {
        self.cut_to.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for everything below `lsn` to be published as soon as may be.
    pub fn want_cut(&self, lsn: Lsn) {
        let mut wanted = self.cut_to();
        *wanted = (*wanted).max(lsn);
        drop(wanted);
        self.cut_wanted.notify_one();
    }

    /// Closes no cut until they are released: a block that was written in part would be completed from maps that are about
    /// to be mended, and count as lost.
    pub(super) fn hold_cuts(&self) {
        self.cuts_held.store(true, Ordering::Release);
    }

    /// Cuts are closed again when they are due.
    pub fn release_cuts(&self) {
        self.cuts_held.store(false, Ordering::Release);
        self.cut_wanted.notify_one();
        self.collect_wanted.notify_one();
    }

    /// Whether no cut is closed.
    pub(super) fn are_cuts_held(&self) -> bool {
        self.cuts_held.load(Ordering::Acquire)
    }

    /// The streams of reads.
    pub fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pages that the next checkpoint writes anew whatever they hold, since where they are they cannot be relied on.
    pub fn moving(&self) -> MutexGuard<'_, Vec<PageAt>> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Set where the state goes on with earlier maps, until the publisher has seen it.
    pub(super) fn rebased(&self) -> MutexGuard<'_, Option<Rebased>> {
        self.rebased.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks that wait to be moved with a cut.
    pub(super) fn offers(&self) -> MutexGuard<'_, Offers> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What publisher and collector tell each other. Taken within the state's lock, or without it.
    pub fn collecting(&self) -> MutexGuard<'_, Shared> {
        self.collecting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes of the snapshot table whose cuts are not published, oldest first. Taken within the state's lock, or without it.
    pub(super) fn pending(&self) -> MutexGuard<'_, VecDeque<Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What flattening asks of the publisher.
    pub(super) fn flattening(&self) -> MutexGuard<'_, flatten::Asked> {
        self.flattening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state that the volume is to go back to, until the publisher has seen it.
    pub(super) fn rollback(&self) -> MutexGuard<'_, Option<Asked>> {
        self.rollback.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing more is acknowledged, for this reason; the first one stays. Everybody who waits gets it.
    pub fn fail(&self, error: VolumeError) {
        if self.check().is_ok() {
            tracing::error!(%error, "the volume takes no more requests");
        }
        self.fail_quietly(error);
    }

    /// The same, where it is no news.
    pub fn fail_quietly(&self, error: VolumeError) {
        if self.check().is_ok() {
            self.noted.fault(&error, self.env.clock.now_ms());
        }
        self.state_mut().fault.get_or_insert(error);
        self.failed.send_replace(true);
        self.published.end();
        self.pending().clear();
        *self.rollback() = None;
        self.offers().clear();
        self.flattening().checkpoints.clear();
        if let Some(log) = &self.log {
            log.end_waits();
        }
        self.cut_wanted.notify_one();
    }

    /// Data that no published manifest holds yet, bytes; zeros are not counted.
    pub fn unpublished_bytes(&self) -> u64 {
        self.state().unpublished_bytes()
    }

    /// Returns once nothing more is acknowledged: why.
    pub async fn failed(&self) -> VolumeError {
        let mut failed = self.failed.subscribe();
        // The sender lives as long as `self`.
        let _ = failed.wait_for(|failed| *failed).await;
        self.check().err().unwrap_or(VolumeError::Closed)
    }

    /// What the publisher answers to somebody; or what ended the tenure, also where that was asked after it had ended.
    pub(super) async fn answered<T>(&self, answer: oneshot::Receiver<T>) -> Result<T, VolumeError> {
        tokio::select! {
            biased;
            answer = answer => answer.map_err(|_| self.check().err().unwrap_or(VolumeError::Closed)),
            error = self.failed() => Err(error),
        }
    }

    /// Why nothing may be read, if so. A log that failed ends writing alone; a newer claim means that others may have
    /// written since.
    pub fn check_readable(&self) -> Result<(), VolumeError> {
        match self.check() {
            Err(VolumeError::Log(_)) => Ok(()),
            checked => checked,
        }
    }

    /// Why nothing may be acknowledged, if so.
    pub fn check(&self) -> Result<(), VolumeError> {
        self.state().fault.clone().map_or(Ok(()), Err)
    }
}
