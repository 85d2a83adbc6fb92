//! What readers and the writer share, under one lock that is never held over a call to the disk.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use wal::disk::DiskFile;

use super::{
    backoff::{Backoff, Change},
    entry::FrameKey,
    ghost::Ghost,
    index::{Index, Place},
    segment::{self, Segment},
};

/// Bytes that wait to be written, at most: two objects of the usual 16 MiB.
pub(super) const QUEUE_BYTES_MAX: usize = 32 << 20;
/// Inserts that wait, forgotten ones counted, at most.
const QUEUE_INSERTS_MAX: usize = 1 << 16;
/// What a waiting frame costs beside its bytes, rounded up.
const QUEUED_OVERHEAD_BYTES: usize = 256;
/// Failed reads in a row before reads are held back: single bad sectors are no reason.
const READ_PATIENCE: u32 = 4;

/// A frame that waits to be written.
struct Queued {
    bytes: Bytes,
    /// Tells this insert from an earlier one of the same key that was forgotten.
    ticket: u64,
}

/// See the module.
pub(super) struct State {
    pub(super) index: Index,
    /// By number, so oldest first.
    pub(super) segments: BTreeMap<u32, Segment>,
    pub(super) ghost: Ghost,
    queued: HashMap<FrameKey, Queued>,
    order: VecDeque<(FrameKey, u64)>,
    queued_bytes: usize,
    ticket: u64,
    pub(super) bytes_max: u64,
    /// Set when `bytes_max` was changed; the writer clears it.
    pub(super) limit_changed: bool,
    pub(super) closed: bool,
    pub(super) evicted: u64,
    pub(super) dropped: u64,
    /// Length of all files, those that could not be removed included; kept by the writer.
    pub(super) file_bytes: u64,
    reads: Backoff,
}

/// Where a frame was found.
pub(super) enum Found {
    /// Not written yet.
    Queued(Bytes),
    Stored(Place, Arc<dyn DiskFile>),
    Nothing,
}

/// The state, its lock, and counters that need none.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Something for the writer to do.
    pub(super) work: Condvar,
    /// The last read failed.
    reads_fail: AtomicBool,
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) errors: AtomicU64,
}

impl Shared {
    pub(super) fn new(bytes_max: u64) -> Self {
        let state = State {
            index: Index::default(),
            segments: BTreeMap::new(),
            ghost: ghost_for(bytes_max),
            queued: HashMap::new(),
            order: VecDeque::new(),
            queued_bytes: 0,
            ticket: 0,
            bytes_max,
            limit_changed: false,
            closed: false,
            evicted: 0,
            dropped: 0,
            file_bytes: 0,
            reads: Backoff::new(READ_PATIENCE),
        };
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            reads_fail: AtomicBool::new(false),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Whatever a panic left half done, entries are verified when they are read.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a frame, which counts as read if it is on disk.
    pub(super) fn find(&self, key: &FrameKey, hash: u64) -> Found {
        let mut state = self.lock();
        if let Some(queued) = state.queued.get(key) {
            // Not a mark in its favour: who asks within moments of the first fetch asks for the same reason.
            return Found::Queued(queued.bytes.clone());
        }
        if !state.index.contains(hash) || !state.reads.admit() {
            return Found::Nothing;
        }
        let Some(place) = state.index.hit(hash) else { return Found::Nothing };
        match state.segments.get(&place.segment) {
            Some(segment) => Found::Stored(place, Arc::clone(&segment.file)),
            None => Found::Nothing,
        }
    }

    /// The last read went well.
    pub(super) fn read_succeeded(&self) {
        if !self.reads_fail.load(Ordering::Relaxed) {
            return;
        }
        let change = self.lock().reads.succeeded();
        self.reads_fail.store(false, Ordering::Relaxed);
        if change == Change::Recovered {
            tracing::warn!("cache: the cache disk can be read again");
        }
    }

    /// The bytes at `place` are not the frame (`None`) or could not be read; it is forgotten if it is still there.
    /// Says whether it was: else it has moved, and can be looked for again.
    pub(super) fn read_failed(&self, hash: u64, place: Place, error: Option<&io::Error>) -> bool {
        let mut state = self.lock();
        if !state.index.remove_at(hash, place) {
            return false;
        }
        self.errors.fetch_add(1, Ordering::Relaxed);
        let Some(error) = error else {
            tracing::debug!(?place, "cache: an entry is not what it should be; forgotten");
            return true;
        };
        self.reads_fail.store(true, Ordering::Relaxed);
        if state.reads.failed() == Change::Broke {
            tracing::warn!(%error, "cache: cannot read the cache disk; using the object store, and trying again later");
        }
        true
    }
}

/// A ghost knows as many keys as a cache of that size holds frames of 64 KiB.
fn ghost_for(bytes_max: u64) -> Ghost {
    if segment::segment_bytes(bytes_max).is_some() { Ghost::new(bytes_max >> 16) } else { Ghost::default() }
}

impl State {
    pub(super) fn set_bytes_max(&mut self, bytes_max: u64) {
        if bytes_max != self.bytes_max {
            self.bytes_max = bytes_max;
            self.limit_changed = true;
            self.ghost = ghost_for(bytes_max);
        }
    }

    pub(super) fn contains(&self, key: &FrameKey, hash: u64) -> bool {
        self.queued.contains_key(key) || self.index.contains(hash)
    }

    /// Queues a frame unless it is there or there is no room; says whether it was queued.
    pub(super) fn enqueue(&mut self, key: FrameKey, bytes: Bytes) -> bool {
        if self.closed || self.bytes_max == 0 || self.contains(&key, key.hash64()) {
            return false;
        }
        let cost = bytes.len() + QUEUED_OVERHEAD_BYTES;
        if self.queued_bytes + cost > QUEUE_BYTES_MAX || self.order.len() >= QUEUE_INSERTS_MAX {
            self.dropped += 1;
            return false;
        }
        self.ticket += 1;
        self.queued_bytes += cost;
        self.order.push_back((key, self.ticket));
        self.queued.insert(key, Queued { bytes, ticket: self.ticket });
        true
    }

    /// The next frame to write, which stays readable from the queue until [`State::dequeue`]. `None`: nothing waits.
    pub(super) fn next_queued(&mut self) -> Option<(FrameKey, Bytes, u64)> {
        while let Some((key, ticket)) = self.order.pop_front() {
            if let Some(queued) = self.queued.get(&key).filter(|queued| queued.ticket == ticket) {
                return Some((key, queued.bytes.clone(), ticket));
            }
        }
        None
    }

    /// Takes a frame out of the queue; says whether it was still wanted.
    pub(super) fn dequeue(&mut self, key: &FrameKey, ticket: u64) -> bool {
        let wanted = self.queued.get(key).is_some_and(|queued| queued.ticket == ticket);
        if wanted {
            self.unqueue(key);
        }
        wanted
    }

    fn unqueue(&mut self, key: &FrameKey) {
        if let Some(queued) = self.queued.remove(key) {
            self.queued_bytes -= queued.bytes.len() + QUEUED_OVERHEAD_BYTES;
        }
    }

    pub(super) fn forget(&mut self, key: &FrameKey) {
        self.unqueue(key);
        self.index.remove(key.hash64());
    }

    pub(super) fn has_queued(&self) -> bool {
        !self.order.is_empty()
    }

    pub(super) fn queued_bytes(&self) -> u64 {
        self.queued_bytes as u64
    }

    /// Lists an entry as held by its segment, at `place`.
    pub(super) fn publish(&mut self, hash: u64, place: Place) {
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.hashes.push(hash);
            self.index.insert(hash, place);
        }
    }
}
