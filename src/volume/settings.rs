//! How a volume is opened: the bounds and intervals that its user chose.

use std::time::Duration;

use crate::seal::frame::Compression;

/// When a flush is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When it is on the local disk.
    Local,
    /// When it is in a published manifest.
    Remote,
}

/// Settings of an open volume.
#[derive(Clone, Debug)]
pub struct Settings {
    /// When a flush is answered.
    pub durability: Durability,
    /// How frames are packed.
    pub compression: Compression,
    /// The oldest unpublished write is at most about this old when its cut closes.
    pub commit_interval: Duration,
    /// Plaintext of an object, bytes; a cut closes when it has this much.
    pub object_bytes: u64,
    /// Size limit of the write-ahead log on disk, bytes.
    pub wal_bytes_max: u64,
    /// A segment of the log has a sixteenth of that, but no less than this, bytes: a multiple of 4096 with room for two
    /// segments, and for the largest record in one.
    pub wal_segment_bytes_min: u64,
    /// Size limit of the cache on disk, bytes; 0: none.
    pub cache_bytes_max: u64,
    /// Unpacked frames and pages in memory, bytes.
    pub memory_bytes_max: u64,
    /// Unpublished data in memory, bytes; more is read back from the log.
    pub unpublished_memory_bytes_max: u64,
    /// Objects being packed or uploaded at once.
    pub uploads_max: usize,
    /// A checkpoint is due when the manifest lists this many objects of cuts,
    pub checkpoint_objects: usize,
    /// or when the delta in memory has this many extents.
    pub checkpoint_extents: usize,
    /// Writes wait while the oldest unpublished one is older than this; `None`: whatever its age.
    pub lag_time_max: Option<Duration>,
    /// Writes wait while they would make the unpublished data more than this, bytes; `None`: as much as the log holds.
    pub lag_bytes_max: Option<u64>,
    /// A client's read that takes longer is answered with an error; `None` waits.
    pub read_timeout: Option<Duration>,
    /// Nobody has written for so long: then what is left to be done for the bucket is done.
    pub gc_idle: Duration,
    /// Readers elsewhere have so much time to find a newer manifest before what it has let go is deleted.
    pub gc_grace: Duration,
    /// Whether the log has a thread of its own.
    pub log_mode: wal::Mode,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            durability: Durability::Local,
            compression: Compression::DEFAULT,
            // Three requests a cut: 30 s while there are writes is about a dollar a month on Amazon S3.
            commit_interval: Duration::from_secs(30),
            object_bytes: 16 << 20,
            wal_bytes_max: 4 << 30,
            // Four of the largest records: little is left over at a segment's end.
            wal_segment_bytes_min: 4 << 20,
            cache_bytes_max: 10 << 30,
            memory_bytes_max: 256 << 20,
            unpublished_memory_bytes_max: 128 << 20,
            // 4 x 16 MiB of plaintext and as much sealed: 128 MiB at most, and more streams than an uplink needs.
            uploads_max: 4,
            // A manifest entry is 100 bytes: 64 of them keep a commit near the few kilobytes it should cost.
            checkpoint_objects: 64,
            // About 200 bytes each: 50 MB, while pages for as many random writes are a few thousand frames.
            checkpoint_extents: 250_000,
            lag_time_max: None,
            lag_bytes_max: None,
            read_timeout: None,
            // As long as a cut waits by default: an idle volume is silent after a minute.
            gc_idle: Duration::from_secs(30),
            // A reader who is behind reads again; this spares it that for all but long reads.
            gc_grace: Duration::from_secs(300),
            log_mode: wal::Mode::Thread,
        }
    }
}

impl Settings {
    /// A cut closes when its oldest write is this old: early enough for it to be published before writers have to wait.
    #[must_use]
    pub fn cut_age_max(&self) -> Duration {
        self.lag_time_max.map_or(self.commit_interval, |lag| self.commit_interval.min(lag / 2))
    }
}
