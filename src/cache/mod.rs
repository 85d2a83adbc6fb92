//! The persistent local cache: frames exactly as they are in the bucket, on a local disk, by object and offset.
//!
//! What is cached never changes and is verified by its seal when it is used, so the cache owes nothing: it may forget any frame at any
//! time, and does so whenever keeping it would cost an error, a wait or a bound. It never syncs.
//!
//! # Shape
//! Two logs of segment files (`segment`): *probation*, where frames go that were fetched or uploaded just now, and *main*, for those that were
//! read again. New frames are appended; room is made by giving up a whole segment, the oldest of its log. Files are never
//! written over: a segment that was given up is removed and a new one has a new number, so that a reader who still has the old
//! one open reads what was always there. An index in memory (`index`) leads from a key to its place.
//!
//! # Eviction
//! S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023), with segments for queue heads:
//! when there is no room left, probation keeps to a tenth of the cache. What leaves it unread is gone, and only its
//! key is remembered for a while (`ghost`); what was read moves to main, and so does a frame that comes back
//! while its key is remembered. What leaves main goes to its end if it was read since, else it is gone.
//!
//! Why this one: a scan, however long, passes through a tenth of the cache and never touches main, even if nothing in main is read meanwhile. LRU and CLOCK (a
//! second chance in one log) lose everything to a scan longer than the cache. SIEVE is better only as long as the hot frames are
//! read during the scan (its authors advise against it for block workloads), and keeps survivors in place, which a log cannot. One bit
//! a frame instead of the paper's two: its first author found that better for block caches behind another
//! cache, as this one is (blog.jasony.me, 2023-08-01).
//!
//! Work is bounded: for each new segment at most one segment's length of frames is moved. From a segment at most half moves, what is beyond
//! that is lost though it was read. A segment of probation of which half or more was read becomes part of main as a whole, by a rename.
//!
//! # Bounds
//! - Disk: all files together at most `bytes_max`, whatever happens; the log has its own space and its own limit.
//! - Memory: 37 to 73 bytes an entry (index 29 to 57, list of its segment 8, twice that while it grows). Up to 32 GiB a cache takes an
//!   entry for each 4 KiB, so that it can be full of frames of one block: 0.9 to 1.8 percent of the disk at the very worst, 97 to 191 MB for the
//!   default of 10 GiB. Larger ones take 8.4 million entries (310 to 612 MB), and from 128 GiB on one for each 16 KiB: half a percent at the very
//!   worst. (At least 64 a segment.) Frames of 64 KiB that compress by half take 0.1 to 0.2 percent. The ghost: 8 bytes for
//!   each 64 KiB of disk, at most 32 MiB. Frames waiting to be written: 32 MiB, and a frame keeps alive the buffer it was sliced from.
//!
//! # Concurrency
//! One thread owns the files (`writer`). Readers take one lock for a look-up, then read without it and verify what they got, key
//! and checksum: should it not be the frame, they look again, and forget it if it has not moved. The lock is never held over a
//! call to the disk, nor for more than some hundred entries at a time.
//!
//! # Errors and retries
//! No caller ever sees one. What cannot be read is a miss; what cannot be written is dropped. After a failed write the next writes are
//! skipped, 8 at first and up to 4096, then one is tried; the same goes for reads after five failures in a row. One warning when it begins and one
//! line when it is over. On a full disk the cache goes on in the space that it has.
//!
//! # Not handled
//! A disk that hangs makes [`FrameCache::get`] and [`FrameCache::close`] hang: there is no clock here. Two processes
//! must not share a folder (the volume's lock sees to that); if they do, nothing wrong is ever read. Frames that were read from
//! the queue in memory are not marked as read; whether a frame was read is not remembered over a restart, but which log it is in is.

mod backoff;
mod entry;
mod evict;
mod ghost;
mod index;
mod load;
mod segment;
mod state;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    thread::JoinHandle,
};

use bytes::Bytes;
use wal::disk::{Disk, DiskFile};

pub use entry::FrameKey;
use entry::HEADER_BYTES;
use index::Place;
use state::{Found, Shared};
use writer::Writer;

/// How often a read looks again for a frame that was moved under it. Each time the move was finished, so once is usual.
const LOOKS_MAX: usize = 3;

/// What [`FrameCache::get_nowait`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The bytes of the frame.
    Hit(Bytes),
    /// It is probably there, but to read it would wait for the disk: ask [`FrameCache::get`] where waiting is allowed.
    WouldWait,
    /// It is not there.
    Miss,
}

/// What a cache has and did, since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Frames that were asked for and given.
    pub hits: u64,
    /// Frames that were asked for and not there.
    pub misses: u64,
    /// Bytes of all frames on disk.
    pub bytes: u64,
    /// Number of frames on disk.
    pub entries: u64,
    /// Length of all files, which is what `bytes_max` bounds.
    pub file_bytes: u64,
    /// Bytes that wait to be written, in memory.
    pub queued_bytes: u64,
    /// Frames that gave way to others.
    pub evicted: u64,
    /// Inserts that were dropped: no room in the queue, or the disk would not take them.
    pub dropped: u64,
    /// Calls to the disk that failed, and entries found damaged.
    pub errors: u64,
    /// The limit.
    pub bytes_max: u64,
}

/// Who writes.
enum Mode {
    Thread(Mutex<Option<JoinHandle<()>>>),
    Inline(Mutex<Writer>),
}

/// A bounded cache of frames in one folder; see the module.
pub struct FrameCache {
    shared: Arc<Shared>,
    mode: Mode,
}

impl fmt::Debug for FrameCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FrameCache").field(&self.stats()).finish()
    }
}

/// Removes a cache that nobody has open. Returns the number of files; what cannot be removed stays.
pub fn remove(disk: &dyn Disk) -> usize {
    let names = disk.list().unwrap_or_default();
    let ours = names.iter().filter(|name| segment::parse_name(name).is_some());
    ours.filter(|name| disk.remove(name).is_ok()).count()
}

impl FrameCache {
    /// Opens the cache in the folder `disk`, for at most `bytes_max` bytes of files; less than 64 KiB is no cache, and nothing on disk.
    ///
    /// Never fails: a folder that cannot be used is a cache that holds nothing, which tries again now and then. Returns
    /// at once; a thread reads the folder, and what it finds can be had from then on.
    #[must_use]
    pub fn open(disk: Arc<dyn Disk>, bytes_max: u64) -> Self {
        let shared = Arc::new(Shared::new(bytes_max));
        let writer = Writer::new(disk, Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("s3bd-cache".into()).spawn(move || writer.run());
        let handle = thread.inspect_err(|error| {
            tracing::warn!(%error, "cache: no thread to write it; nothing is cached");
            shared.lock().closed = true;
        });
        Self { shared, mode: Mode::Thread(Mutex::new(handle.ok())) }
    }

    /// Like [`FrameCache::open`], without a thread: the folder is read before this returns, and every insert is written in the
    /// caller's call. For deterministic simulation.
    #[must_use]
    pub fn open_inline(disk: Arc<dyn Disk>, bytes_max: u64) -> Self {
        let shared = Arc::new(Shared::new(bytes_max));
        let mut writer = Writer::new(disk, Arc::clone(&shared));
        writer.drain();
        Self { shared, mode: Mode::Inline(Mutex::new(writer)) }
    }

    /// The bytes of a frame if they are in memory (queued, or in the page cache). Never waits for the disk.
    #[must_use]
    pub fn get_nowait(&self, key: &FrameKey) -> Lookup {
        let hash = key.hash64();
        match self.shared.find(key, hash) {
            Found::Queued(bytes) => Lookup::Hit(self.count_hit(bytes)),
            Found::Nothing => {
                self.count_miss();
                Lookup::Miss
            }
            // Whatever is wrong with it, `get` finds out and deals with it.
            Found::Stored(place, file) => match read_nowait(&*file, place, key) {
                Some(bytes) => Lookup::Hit(self.count_hit(bytes)),
                None => Lookup::WouldWait,
            },
        }
    }

    /// The bytes of a frame if they are in the cache. May wait for the disk: not for async code.
    #[must_use]
    pub fn get(&self, key: &FrameKey) -> Option<Bytes> {
        let hash = key.hash64();
        for _ in 0..LOOKS_MAX {
            let (place, file) = match self.shared.find(key, hash) {
                Found::Queued(bytes) => return Some(self.count_hit(bytes)),
                Found::Nothing => break,
                Found::Stored(place, file) => (place, file),
            };
            let mut buffer = buffer_for(place);
            let (whole, error) = match file.read_at(&mut buffer, place.offset.into()) {
                Ok(read) => (read == buffer.len() && entry::verify(&buffer) == Some(*key), None),
                Err(error) => (false, Some(error)),
            };
            if whole {
                self.shared.read_succeeded();
                return Some(self.count_hit(payload(buffer)));
            }
            if self.shared.read_failed(hash, place, error.as_ref()) {
                break;
            }
        }
        self.count_miss();
        None
    }

    /// Whether a frame is in the cache, as far as one can tell without reading it. Does not count as reading it.
    #[must_use]
    pub fn contains(&self, key: &FrameKey) -> bool {
        self.shared.lock().contains(key, key.hash64())
    }

    /// Puts a frame in, as it is in its object. Never waits for the disk: it is queued, readable from then on, and
    /// written by the cache's thread; if too much waits already, it is dropped. A frame that is there stays as it is.
    pub fn insert(&self, key: FrameKey, bytes: Bytes) {
        if !self.shared.lock().enqueue(key, bytes) {
            return;
        }
        self.wake();
    }

    /// Takes a frame out, for instance because its seal did not open.
    pub fn forget(&self, key: &FrameKey) {
        self.shared.lock().forget(key);
    }

    /// What the cache has and did.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let state = self.shared.lock();
        CacheStats {
            hits: self.shared.hits.load(Ordering::Relaxed),
            misses: self.shared.misses.load(Ordering::Relaxed),
            bytes: state.index.bytes(),
            entries: state.index.entries(),
            file_bytes: state.file_bytes,
            queued_bytes: state.queued_bytes(),
            evicted: state.evicted,
            dropped: state.dropped,
            errors: self.shared.errors.load(Ordering::Relaxed),
            bytes_max: state.bytes_max,
        }
    }

    /// Changes the limit. A smaller one is reached by the cache's thread, soon; with [`FrameCache::open_inline`], at once.
    pub fn set_bytes_max(&self, bytes_max: u64) {
        self.shared.lock().set_bytes_max(bytes_max);
        self.wake();
    }

    /// Writes what is queued and ends the thread. Frames can still be read, and no more are taken in.
    pub fn close(&self) {
        self.shared.lock().closed = true;
        self.wake();
        if let Mode::Thread(handle) = &self.mode
            && let Some(handle) = handle.lock().unwrap_or_else(PoisonError::into_inner).take()
            && handle.join().is_err()
        {
            tracing::warn!("cache: its thread had panicked; nothing was cached since");
        }
    }

    /// Lets the writer know that there is something to do, or does it.
    fn wake(&self) {
        match &self.mode {
            Mode::Thread(_) => self.shared.work.notify_one(),
            Mode::Inline(writer) => writer.lock().unwrap_or_else(PoisonError::into_inner).drain(),
        }
    }

    fn count_hit(&self, bytes: Bytes) -> Bytes {
        self.shared.hits.fetch_add(1, Ordering::Relaxed);
        bytes
    }

    fn count_miss(&self) {
        self.shared.misses.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for FrameCache {
    fn drop(&mut self) {
        self.close();
    }
}

/// Room for the entry at `place`.
fn buffer_for(place: Place) -> Vec<u8> {
    vec![0; HEADER_BYTES + place.length as usize]
}

/// The frame in the bytes of an entry.
fn payload(entry: Vec<u8>) -> Bytes {
    Bytes::from(entry).slice(HEADER_BYTES..)
}

/// The frame at `place`, if all of it is in the page cache and it is what it should be.
fn read_nowait(file: &dyn DiskFile, place: Place, key: &FrameKey) -> Option<Bytes> {
    let mut buffer = buffer_for(place);
    let read = file.read_at_nowait(&mut buffer, place.offset.into()).ok().flatten()?;
    (read == buffer.len() && entry::verify(&buffer) == Some(*key)).then(|| payload(buffer))
}
