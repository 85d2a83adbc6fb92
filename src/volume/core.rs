//! The parts of an open volume that its tasks share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::{Notify, watch};
use wal::Lsn;

use super::{
    bucket::Bucket,
    env::Env,
    error::VolumeError,
    frames::Frames,
    log::Log,
    payload::PayloadMemory,
    settings::Settings,
    state::State,
    waiters::Waiters,
};
use crate::format::ids::{Epoch, Generation};

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
    pub frames: Frames,
    /// The log; none where the volume is read-only.
    pub log: Option<Arc<Log>>,
    /// Unpublished data in memory.
    pub payloads: Arc<PayloadMemory>,
    /// Everything below is in the bucket, and would be found by another host.
    pub published: Waiters,
    /// Progress of publishing, for those who wait for more than an LSN.
    pub progress: watch::Sender<Progress>,
    /// Wakes the publisher: there may be a reason to cut.
    pub cut_wanted: Notify,
    /// Cuts up to this LSN are wanted at once.
    pub cut_to: Mutex<Lsn>,
    state: RwLock<State>,
}

/// What has been published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Tenure.
    pub generation: Generation,
    /// Newest epoch.
    pub epoch: Epoch,
    /// How far into the log it reaches.
    pub lsn: Lsn,
}

impl Core {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        env: Env,
        bucket: Bucket,
        settings: Settings,
        frames: Frames,
        log: Option<Arc<Log>>,
        payloads: Arc<PayloadMemory>,
        state: State,
    ) -> Self {
        Self {
            env,
            bucket,
            settings,
            frames,
            log,
            payloads,
            published: Waiters::default(),
            progress: watch::Sender::default(),
            cut_wanted: Notify::new(),
            cut_to: Mutex::default(),
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

    /// Nothing more is acknowledged, for this reason; the first one stays. Everybody who waits gets it.
    pub fn fail(&self, error: VolumeError) {
        let mut state = self.state_mut();
        if state.fault.is_none() {
            tracing::error!(%error, "the volume takes no more requests");
            state.fault = Some(error);
        }
        drop(state);
        self.published.end();
        if let Some(log) = &self.log {
            log.end_waits();
        }
        self.cut_wanted.notify_one();
    }

    /// Why nothing may be acknowledged, if so.
    pub fn check(&self) -> Result<(), VolumeError> {
        self.state().fault.clone().map_or(Ok(()), Err)
    }
}
