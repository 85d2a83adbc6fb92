//! The one owner of the files: writes what is queued, and makes, fills and seals segments.
//!
//! # Errors
//! A write that fails costs the frame and makes the writer skip the next ones ([`super::backoff`]). Nothing is reported to callers.
//!
//! # Invariants
//! - `file_bytes <= bytes_max` at every moment after the folder was read, files that could not be removed included.
//! - Between inserts one segment's length below that is unused, so that an eviction has where to move frames to.

use std::{io, sync::Arc};

use bytes::Bytes;
use wal::disk::Disk;

use super::{
    backoff::{Backoff, Change},
    entry::{FrameKey, HEADER_BYTES, Header},
    index::Place,
    segment::{self, Queue, Segment, Tail},
    state::Shared,
};

/// A call to the disk that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {name}: {source}")]
pub(super) struct Failure {
    operation: &'static str,
    name: String,
    source: io::Error,
}

impl Failure {
    pub(super) fn new(operation: &'static str, name: impl Into<String>, source: io::Error) -> Self {
        Self { operation, name: name.into(), source }
    }

    /// The disk has no room; it is worth removing something.
    fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// See the module.
pub(super) struct Writer {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) shared: Arc<Shared>,
    /// Whether the folder has been read.
    pub(super) loaded: bool,
    /// How often it was read in vain.
    pub(super) loads_failed: u32,
    pub(super) probation: Option<Tail>,
    pub(super) main: Option<Tail>,
    /// Number of the next segment.
    pub(super) number_next: u32,
    /// Files that should be gone and their lengths.
    pub(super) doomed: Vec<(String, u64)>,
    backoff: Backoff,
    buffer: Vec<u8>,
}

impl Writer {
    pub(super) fn new(disk: Arc<dyn Disk>, shared: Arc<Shared>) -> Self {
        Self {
            disk,
            shared,
            loaded: false,
            loads_failed: 0,
            probation: None,
            main: None,
            number_next: 0,
            doomed: Vec::new(),
            backoff: Backoff::new(0),
            buffer: Vec::new(),
        }
    }

    /// Reads the folder and then writes what is queued, until the cache is closed and the queue empty.
    pub(super) fn run(mut self) {
        self.drain();
        loop {
            {
                let mut state = self.shared.lock();
                while !state.has_queued() && !state.limit_changed && !state.closed {
                    state = self.shared.work.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                if state.closed && !state.has_queued() {
                    return;
                }
            }
            self.drain();
        }
    }

    /// Does all that there is to do now.
    pub(super) fn drain(&mut self) {
        if !self.loaded {
            self.attempt(|_| Ok(()));
        }
        loop {
            if std::mem::take(&mut self.shared.lock().limit_changed) && self.loaded {
                self.shrink();
            }
            let next = self.shared.lock().next_queued();
            let Some((key, bytes, ticket)) = next else { return };
            // Queued before the folder was read, and in it.
            if self.shared.lock().index.contains(key.hash64()) {
                self.shared.lock().dequeue(&key, ticket);
                continue;
            }
            let stored = self.attempt(|writer| writer.store(key, &bytes)).flatten();
            let mut state = self.shared.lock();
            if !state.dequeue(&key, ticket) {
                continue;
            }
            match stored {
                Some(place) => state.publish(key.hash64(), place),
                None => state.dropped += 1,
            }
        }
    }

    /// Does something with the disk unless the disk is being left alone; `None` if it failed or was skipped.
    fn attempt<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Option<T> {
        if !self.backoff.admit() {
            return None;
        }
        let outcome = if self.loaded { Ok(()) } else { self.load() };
        match outcome.and_then(|()| work(self)) {
            Ok(value) => {
                if self.backoff.succeeded() == Change::Recovered {
                    tracing::warn!("cache: the cache disk works again");
                }
                Some(value)
            }
            Err(failure) => {
                self.count_error();
                if self.backoff.failed() == Change::Broke {
                    tracing::warn!(%failure, "cache: nothing more is cached for now; trying again later");
                }
                None
            }
        }
    }

    pub(super) fn count_error(&self) {
        self.shared.errors.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// Writes a frame; `None` if it is larger than a segment, or nothing can make room.
    fn store(&mut self, key: FrameKey, bytes: &Bytes) -> Result<Option<Place>, Failure> {
        let mut entry = std::mem::take(&mut self.buffer);
        entry.clear();
        entry.extend_from_slice(&Header::new(key, bytes).encode());
        entry.extend_from_slice(bytes);
        let was_here = self.shared.lock().ghost.take(key.hash64());
        let queue = if was_here { Queue::Main } else { Queue::Probation };
        let outcome = self.append_evicting(queue, &entry);
        self.buffer = entry;
        outcome
    }

    fn append_evicting(&mut self, queue: Queue, entry: &[u8]) -> Result<Option<Place>, Failure> {
        let Some(segment_bytes) = segment::segment_bytes(self.bytes_max()) else { return Ok(None) };
        if !segment::fits_empty(entry.len(), segment_bytes) {
            return Ok(None);
        }
        if !self.has_room(queue, entry.len()) && !self.make_room(segment_bytes)? {
            return Ok(None);
        }
        // Making room may have begun a segment of main already.
        if !self.has_room(queue, entry.len()) {
            self.seal(queue);
            match self.begin(queue, segment_bytes) {
                // Others fill this disk: keep to what we have.
                Err(failure) if failure.is_full() && self.evict_dropping() => {
                    self.begin(queue, segment_bytes)?;
                }
                outcome => outcome?,
            }
        }
        self.append(queue, entry).map(Some)
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.shared.lock().bytes_max
    }

    pub(super) fn tail(&mut self, queue: Queue) -> &mut Option<Tail> {
        match queue {
            Queue::Probation => &mut self.probation,
            Queue::Main => &mut self.main,
        }
    }

    pub(super) fn has_room(&mut self, queue: Queue, entry_bytes: usize) -> bool {
        self.tail(queue).as_ref().is_some_and(|tail| tail.fits(entry_bytes))
    }

    /// Writes an entry that has room in the tail of `queue`.
    pub(super) fn append(&mut self, queue: Queue, entry: &[u8]) -> Result<Place, Failure> {
        let Some(tail) = self.tail(queue) else { unreachable!("the caller began a segment") };
        let number = tail.number;
        let offset =
            tail.append(entry).map_err(|error| Failure::new("write", segment::name(queue, number), error))?;
        Ok(Place { segment: number, offset, length: (entry.len() - HEADER_BYTES) as u32 })
    }

    /// Makes a new segment the tail of `queue`; the caller has seen to the room.
    pub(super) fn begin(&mut self, queue: Queue, segment_bytes: u64) -> Result<(), Failure> {
        let number = self.number_next;
        let name = segment::name(queue, number);
        // Numbers are not used twice, whatever becomes of this one. (Four billion of them are 16 PiB of the smallest usual segments.)
        self.number_next = number.checked_add(1).ok_or_else(|| {
            Failure::new("create", name.clone(), io::Error::other("segment numbers are used up"))
        })?;
        // Allocated ahead: a full disk shows here and not in the middle, and with ext4 the log's fdatasync does not have to
        // wait for our data (it writes out what newly allocated blocks hold, in data=ordered mode).
        let file =
            self.disk.create(&name, segment_bytes).map_err(|error| Failure::new("create", name, error))?;
        *self.tail(queue) = Some(Tail::new(number, Arc::clone(&file), segment_bytes));
        let mut state = self.shared.lock();
        state.file_bytes += segment_bytes;
        state.segments.insert(number, Segment { queue, file, file_bytes: segment_bytes, hashes: Vec::new() });
        Ok(())
    }

    /// Ends the tail of `queue`, if there is one.
    pub(super) fn seal(&mut self, queue: Queue) {
        let Some(tail) = self.tail(queue).take() else { return };
        let number = tail.number;
        if tail.is_empty() {
            self.discard(number);
            return;
        }
        if let Err(error) = tail.seal() {
            tracing::debug!(%error, number, "cache: no table of contents; the next open walks the segment");
        }
        if let Some(segment) = self.shared.lock().segments.get_mut(&number) {
            segment.hashes.shrink_to_fit();
        }
    }

    /// Removes a segment, whatever it holds, and its file.
    pub(super) fn discard(&mut self, number: u32) {
        let Some(segment) = self.shared.lock().segments.remove(&number) else { return };
        self.remove_file(segment::name(segment.queue, number), segment.file_bytes);
    }

    /// Removes a file that is counted in `file_bytes`.
    pub(super) fn remove_file(&mut self, name: String, bytes: u64) {
        match self.disk.remove(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(%error, name, "cache: cannot remove a segment; trying again later");
                self.doomed.push((name, bytes));
            }
            _ => self.shared.lock().file_bytes -= bytes,
        }
    }
}
