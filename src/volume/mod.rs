//! The engine: an open volume, from its log to its bucket.
//!
//! # Overview
//! A write goes to the log and to the active layer in one step ([`mod@write`]), and is answered when the log's file has it.
//! The [`publish`]er closes layers as cuts, packs and uploads them, and publishes a manifest for each, in order; then the
//! log is trimmed. A read ([`read`]) looks newest first: layers, deltas, trees; frames come from memory, the cache on
//! disk, or the store ([`frames`]). [`open`] and [`claims`] say who may write; [`checkpoint`] turns deltas into pages.
//!
//! # Invariants
//! - `published_lsn <= synced_lsn <= appended_lsn`, but for cuts closed by size, which may be published before the log
//!   was synced that far: then the bucket is ahead, and the log goes on above it.
//! - A cut is whole or absent, and cuts are published in order: the bucket is always a prefix of the log.
//!
//! # Errors
//! A damaged range is an error for the requests that touch it. A failed log or a newer claim ends the tenure: every
//! request fails from then on, and the log keeps what is not published.

pub mod base;
pub mod bucket;
pub mod checkpoint;
pub mod claims;
pub mod clone;
pub mod collect;
pub mod core;
pub mod device;
pub mod diff;
pub mod earlier;
pub mod env;
pub mod error;
pub mod flatten;
pub mod follow;
pub mod frames;
pub mod full_copy;
pub mod garbage;
pub mod host;
pub mod indexes;
pub mod info;
pub mod init;
pub mod layer;
pub mod list;
pub mod local;
pub mod log;
pub mod mend;
pub mod moves;
pub mod object;
pub mod open;
pub mod pack;
pub mod payload;
pub mod pins;
pub mod publish;
pub mod read;
pub mod readahead;
pub mod rebuild;
pub mod record;
pub mod remove;
pub mod replay;
pub mod rescue;
pub mod resize;
pub mod rollback;
mod room;
pub mod seen;
pub mod settings;
pub mod slots;
pub mod snapshot_view;
pub mod snapshots;
pub mod state;
pub mod status;
pub mod strays;
mod survey;
mod takeover;
pub mod tally;
mod task;
mod upload;
pub mod usage;
pub mod waiters;
pub mod walk;
pub mod write;

use std::sync::Arc;

use tokio::{sync::watch, task::JoinHandle};
use wal::disk::FolderLock;

use self::{core::Core, env::Local, error::VolumeError, status::Waiting};

/// An open volume. Dropping it without [`Volume::close`] leaves it as a crash would.
#[derive(Debug)]
pub struct Volume {
    core: Arc<Core>,
    publisher: tokio::sync::Mutex<Option<JoinHandle<Result<(), VolumeError>>>>,
    close: watch::Sender<bool>,
    /// Keeps other processes of this host out.
    local: std::sync::Mutex<Option<Local>>,
}

impl Volume {
    fn new(
        core: Arc<Core>,
        publisher: Option<JoinHandle<Result<(), VolumeError>>>,
        close: watch::Sender<bool>,
        local: Option<Local>,
    ) -> Self {
        Self {
            core,
            publisher: tokio::sync::Mutex::new(publisher),
            close,
            local: std::sync::Mutex::new(local),
        }
    }

    /// The shared parts.
    #[must_use]
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The lock on the volume's folder, for what must not outlive it; none where another process has it, and none after
    /// closing.
    #[must_use]
    pub fn lock(&self) -> Option<Arc<FolderLock>> {
        let local = self.local.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        local.as_ref().and_then(|local| local.lock.clone())
    }

    /// Returns when everything acknowledged before the call is published.
    ///
    /// # Errors
    /// `Incomplete` where it is, but for blocks that were written in part and could not be completed: said once of each.
    pub async fn sync(&self) -> Result<(), VolumeError> {
        self.core.check()?;
        let end = self.core.state().end;
        self.core.publish_to(end).await?;
        self.core.noted.tell_incomplete(Waiting::Sync)
    }

    /// Publishes everything, with a checkpoint, and ends the tenure. Writes are refused from now on, so that there is an
    /// end to what is published; on `Ok` any host may open the volume at once.
    pub async fn close(&self) -> Result<(), VolumeError> {
        let mut publisher = self.publisher.lock().await;
        let Some(task) = publisher.as_mut() else {
            self.core.frames.close();
            self.release();
            return self.core.check();
        };
        self.close.send_replace(true);
        let result = match task.await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(VolumeError::Closed),
            },
        };
        *publisher = None;
        self.core.fail_quietly(VolumeError::Closed);
        let log = Arc::clone(self.core.log()?);
        let closed = self.core.env.compute(move || log.close()).await;
        self.core.frames.close();
        self.release();
        result.and(closed)
    }

    /// Waits until the publisher ends by itself: the volume was fenced, or cannot go on.
    pub async fn ended(&self) -> VolumeError {
        self.core.failed().await
    }

    fn release(&self) {
        *self.local.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Some(task) = self.publisher.get_mut() {
            task.abort();
        }
    }
}

/// A time for people, UTC, to the second.
#[must_use]
pub fn format_time(time_ms: u64) -> String {
    match jiff::Timestamp::from_millisecond(time_ms as i64) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        Err(_) => format!("{time_ms} ms after 1970"),
    }
}
