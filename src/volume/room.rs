//! Room for the log on a disk that is full: the cache, which may be on the same one, gives way.
//!
//! What the cache holds is in the bucket, and what the log waits to hold is nowhere else.

use super::{core::Core, env::Local, open::wal_segment_bytes};
use crate::cache;

/// Segments of the log that the cache gives room for at once: the one that is written, and the next.
const SEGMENTS: u64 = 2;

impl Core {
    /// The log waits for room: the cache becomes smaller, and stays so until the volume is opened again. Its thread removes the
    /// files soon.
    pub(super) fn make_log_room(&self) {
        let Some(cache) = self.frames.disk() else { return };
        let used_bytes = cache.stats().file_bytes;
        if used_bytes == 0 {
            return;
        }
        let left_bytes = used_bytes.saturating_sub(SEGMENTS * wal_segment_bytes(&self.settings));
        tracing::warn!(
            used_bytes,
            left_bytes,
            "the disk of the log is full, and writes wait: the cache becomes smaller"
        );
        cache.set_bytes_max(left_bytes);
    }
}

/// Opens a log. Where it finds no room, the cache, which is not open yet, is emptied, and it is tried once more.
pub(super) fn with_room<T>(
    local: &Local,
    open: impl Fn() -> Result<T, wal::WalError>,
) -> Result<T, wal::WalError> {
    let opened = open();
    if !matches!(opened, Err(wal::WalError::DiskFull { .. })) {
        return opened;
    }
    let files = cache::remove(&*local.cache);
    if files == 0 {
        return opened;
    }
    tracing::warn!(files, "the disk of the log is full: the cache was emptied");
    open()
}
