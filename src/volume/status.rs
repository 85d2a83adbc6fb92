//! What an open volume says of itself: its state, how far behind the bucket is, what it uses, what went wrong last.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{bucket::Bucket, collect::Figures, core::Core, error::VolumeError};
use crate::format::ids::{Epoch, Generation};

/// How long a fenced writer tries to find out by whom.
const FIND_OUT_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(60);

/// An open volume at one moment. Times are milliseconds, and milliseconds since 1970 where they are no spans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// The volume's id, hexadecimal.
    pub volume: String,
    /// Size of the volume, bytes.
    pub size_bytes: u64,
    /// Size of a block, bytes.
    pub block_bytes: u32,
    /// Whether it takes no writes.
    pub read_only: bool,
    /// Whether requests are answered, and if not why.
    pub state: Condition,
    /// The newest epoch published by this server, or the one it reads.
    pub epoch: Epoch,
    /// Its tenure.
    pub generation: Generation,
    /// When that epoch was published.
    pub published_ms: u64,
    /// What no published manifest holds yet.
    pub unpublished: Unpublished,
    /// The write-ahead log; none where the volume is read-only.
    pub log: Option<LogStatus>,
    /// The cache on disk; none where another process has it.
    pub cache: Option<CacheStatus>,
    /// What the collector did and has left; none where the volume is read-only, or the server older than this.
    #[serde(default)]
    pub garbage: Option<GarbageStatus>,
    /// Memory.
    pub memory: MemoryStatus,
    /// The last error that a client's request met, or that ended the tenure.
    pub last_error: Option<LastError>,
}

/// Whether an open volume answers requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Condition {
    /// It does.
    Serving,
    /// What is left is being uploaded; writes are refused.
    Closing,
    /// Everything is published, or was left behind.
    Closed,
    /// Another host has taken the volume over: nothing is acknowledged any more.
    Fenced {
        /// When this server found out.
        since_ms: u64,
        /// The tenure above this one.
        by_generation: Generation,
        /// Whose it is, as far as its claim could be read.
        by: Option<Claimant>,
    },
    /// The log failed: no write is acknowledged any more, reads are answered.
    LogFailed {
        /// When.
        since_ms: u64,
        /// Why.
        error: String,
    },
    /// Nothing is acknowledged any more for another reason.
    Failed {
        /// When.
        since_ms: u64,
        /// Why.
        error: String,
    },
}

/// Whoever claimed the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimant {
    /// Host name.
    pub host: String,
    /// Process id.
    pub pid: u32,
    /// When it claimed the volume.
    pub claimed_ms: u64,
}

/// How far behind the bucket is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpublished {
    /// Data, bytes; trims and zeroes are not counted.
    pub bytes: u64,
    /// Age of the oldest write, trim or zero; none where everything is published.
    pub oldest_age_ms: Option<u64>,
}

/// The write-ahead log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    /// Length of its files, bytes.
    pub used_bytes: u64,
    /// Their limit.
    pub bytes_max: u64,
    /// Whether it waits for room on its disk.
    pub disk_full: bool,
}

/// The cache on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    /// Length of its files, bytes.
    pub used_bytes: u64,
    /// Their limit.
    pub bytes_max: u64,
    /// Frames asked for and found, since it was opened.
    pub hits: u64,
    /// Frames asked for and not found.
    pub misses: u64,
}

/// Garbage since the volume was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GarbageStatus {
    /// Objects deleted.
    pub deleted_objects: u64,
    /// Their lengths, bytes.
    pub deleted_bytes: u64,
    /// Plaintext moved out of sparse objects, bytes.
    pub moved_bytes: u64,
    /// Dead objects that wait for manifests to be let go, or for the grace time.
    pub waiting_objects: u64,
    /// Their lengths, bytes.
    pub waiting_bytes: u64,
}

impl From<Figures> for GarbageStatus {
    fn from(figures: Figures) -> Self {
        Self {
            deleted_objects: figures.deleted,
            deleted_bytes: figures.deleted_bytes,
            moved_bytes: figures.moved_bytes,
            waiting_objects: figures.waiting,
            waiting_bytes: figures.waiting_bytes,
        }
    }
}

/// What is held in memory, and the limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Unpacked frames and pages, bytes.
    pub frames_bytes: u64,
    /// Their limit.
    pub frames_bytes_max: u64,
    /// Unpublished data, bytes.
    pub unpublished_bytes: u64,
    /// Its limit; what is above it is read back from the log.
    pub unpublished_bytes_max: u64,
}

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// What.
    pub error: String,
    /// When.
    pub time_ms: u64,
}

/// Who waits until something is in the bucket. Each is told once of what could not be published as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// A user, or who closes the volume.
    Sync,
    /// A client, where a flush waits for the bucket.
    Flush,
}

/// Blocks named in an error.
const BLOCKS_NAMED_MAX: usize = 8;

/// Blocks that were written in part, and could not be completed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Incomplete {
    /// Their number.
    pub count: u64,
    /// The first few, as they were found.
    pub blocks: Vec<u64>,
}

impl std::fmt::Display for Incomplete {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { count, blocks } = self;
        let named: Vec<String> = blocks.iter().map(u64::to_string).collect();
        let named = named.join(", ");
        match count.saturating_sub(blocks.len() as u64) {
            0 if *count == 1 => write!(f, "block {named}"),
            0 => write!(f, "blocks {named}"),
            more => write!(f, "blocks {named} and {more} more"),
        }
    }
}

/// What went wrong so far, as far as it is worth telling.
#[derive(Debug, Default)]
pub struct Noted {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    last: Option<LastError>,
    /// What those who sync, and those who flush to the bucket, were not told yet.
    incomplete: [Incomplete; 2],
    fault_ms: Option<u64>,
    overtaken_by: Option<Claimant>,
}

impl Noted {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something went wrong.
    pub fn note(&self, error: String, now_ms: u64) {
        self.lock().last = Some(LastError { error, time_ms: now_ms });
    }

    /// The acknowledged part of this block is lost with the rest of it, which was damaged before.
    pub(super) fn note_incomplete(&self, block: u64, error: &VolumeError, now_ms: u64) {
        let text = format!(
            "block {block} was written in part, cannot be completed and is unreadable until it is overwritten: {error}"
        );
        self.note(text, now_ms);
        for incomplete in &mut self.lock().incomplete {
            incomplete.count += 1;
            if incomplete.blocks.len() < BLOCKS_NAMED_MAX {
                incomplete.blocks.push(block);
            }
        }
    }

    /// An error where blocks could not be completed since this was last asked for the same one who waits.
    ///
    /// # Errors
    /// `Incomplete`, with the blocks.
    pub fn tell_incomplete(&self, waiting: Waiting) -> Result<(), VolumeError> {
        let incomplete = std::mem::take(&mut self.lock().incomplete[waiting as usize]);
        if incomplete.count == 0 { Ok(()) } else { Err(VolumeError::Incomplete(incomplete)) }
    }

    /// A client's request failed. What the client has done wrong itself is not worth telling.
    pub(super) fn request_failed(&self, error: &VolumeError, now_ms: u64) {
        let is_clients = matches!(
            error,
            VolumeError::OutOfRange { .. }
                | VolumeError::ReadOnly
                | VolumeError::Closed
                | VolumeError::Invalid(_)
        );
        // After the tenure's end every request fails for the same reason.
        if !is_clients && self.lock().fault_ms.is_none() {
            self.note(error.to_string(), now_ms);
        }
    }

    /// The tenure ended.
    pub(super) fn fault(&self, error: &VolumeError, now_ms: u64) {
        if !matches!(error, VolumeError::Closed) {
            self.note(error.to_string(), now_ms);
        }
        self.lock().fault_ms.get_or_insert(now_ms);
    }

    /// Reads the claim that fenced this writer, in a task of its own, for those who ask by whom.
    pub(super) fn find_out_who(&self, core: &Arc<Core>, found: Generation) {
        let (bucket, core) = (core.bucket.clone(), Arc::downgrade(core));
        tokio::spawn(async move {
            let Ok(Ok(by)) = tokio::time::timeout(FIND_OUT_TIME_MAX, claimant(&bucket, found)).await else {
                return;
            };
            if let Some(core) = core.upgrade() {
                core.noted.lock().overtaken_by = by;
            }
        });
    }
}

async fn claimant(bucket: &Bucket, generation: Generation) -> Result<Option<Claimant>, VolumeError> {
    let before = Generation(generation.0.saturating_sub(1));
    for (found, nonce) in bucket.list_claims(Some(before)).await? {
        if found == generation {
            let claim = bucket.load_claim(generation, nonce).await?;
            let (host, pid) = (claim.writer.host, claim.writer.pid);
            return Ok(Some(Claimant { host, pid, claimed_ms: claim.time_ms }));
        }
    }
    Ok(None)
}

impl Core {
    /// The volume as it is now.
    #[must_use]
    pub fn status(&self) -> VolumeStatus {
        let progress = *self.progress.borrow();
        let state = self.state();
        let oldest_age_ms = state.unpublished_since().map(|since| since.elapsed().as_millis() as u64);
        let unpublished = Unpublished { bytes: state.unpublished_bytes(), oldest_age_ms };
        let (size_bytes, closing, fault) = (state.size_bytes, state.closing, state.fault.clone());
        drop(state);
        let disk_full = |log: &super::log::Log| log.progress().disk_full;
        VolumeStatus {
            volume: self.bucket.header.volume.to_string(),
            size_bytes,
            block_bytes: self.bucket.block_bytes(),
            read_only: self.log.is_none(),
            state: self.condition(closing, fault.as_ref()),
            epoch: progress.epoch,
            generation: progress.generation,
            published_ms: progress.time_ms,
            unpublished,
            log: self.log.as_ref().map(|log| LogStatus {
                used_bytes: log.used_bytes(),
                bytes_max: self.settings.wal_bytes_max,
                disk_full: disk_full(log),
            }),
            cache: self.frames.disk().map(|cache| {
                let stats = cache.stats();
                CacheStatus {
                    used_bytes: stats.file_bytes,
                    bytes_max: stats.bytes_max,
                    hits: stats.hits,
                    misses: stats.misses,
                }
            }),
            garbage: self.log.as_ref().map(|_| self.collecting().figures().into()),
            memory: MemoryStatus {
                frames_bytes: self.frames.memory_bytes(),
                frames_bytes_max: self.settings.memory_bytes_max,
                unpublished_bytes: self.payloads.used_bytes(),
                unpublished_bytes_max: self.settings.unpublished_memory_bytes_max,
            },
            last_error: self.noted.lock().last.clone(),
        }
    }

    fn condition(&self, closing: bool, fault: Option<&VolumeError>) -> Condition {
        // A failed sync is an error to whoever asked for it; the tenure ends at the next write.
        let log_failure =
            self.log.as_ref().filter(|log| log.progress().poisoned.is_some()).map(|log| log.failure());
        let noted = self.noted.lock();
        let noted_ms = noted.last.as_ref().map(|last| last.time_ms);
        let since_ms = noted.fault_ms.or(noted_ms).unwrap_or_default();
        match fault.or(log_failure.as_ref()) {
            None if closing => Condition::Closing,
            None => Condition::Serving,
            Some(VolumeError::Closed) => Condition::Closed,
            Some(VolumeError::Fenced { found, .. }) => {
                Condition::Fenced { since_ms, by_generation: *found, by: noted.overtaken_by.clone() }
            }
            Some(error @ VolumeError::Log(_)) => Condition::LogFailed { since_ms, error: error.to_string() },
            Some(error) => Condition::Failed { since_ms, error: error.to_string() },
        }
    }
}
