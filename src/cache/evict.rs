//! Making room: which segment goes, and which of its frames stay. The policy is argued in the module's head.

use super::{
    entry::{self, HEADER_BYTES},
    index::Place,
    segment::{self, Queue, Segment},
    writer::{Failure, Writer},
};

/// Share of the cache that probation keeps to when there is no room left: 10 % as in the S3-FIFO paper, section 4.
const PROBATION_SHARE: u64 = 10;

/// Entries that are looked up or changed in one hold of the lock: some tens of microseconds for the readers to wait.
pub(super) const HOLD_ENTRIES_MAX: usize = 512;

/// What to do with the frames of a segment that goes.
struct Verdict {
    /// Read since they came, and so to be kept.
    hot: Vec<(u64, Place)>,
    /// Bytes of those, headers included.
    hot_bytes: u64,
    /// Not read since.
    cold: Vec<u64>,
}

impl Writer {
    /// Evicts until two segments of `segment_bytes` have room, one of which is the reserve for the next eviction. Moves no more
    /// than `segment_bytes` of frames for it. False if there is nothing left to evict and still no room.
    ///
    /// # Errors
    /// A file could not be removed; what follows would do no better, so the others stay for now.
    pub(super) fn make_room(&mut self, segment_bytes: u64) -> Result<bool, Failure> {
        self.remove_doomed();
        let mut budget_bytes = segment_bytes;
        while !self.has_free(2 * segment_bytes) {
            let Some(number) = self.choose_victim() else { return Ok(false) };
            let doomed = self.doomed.len();
            budget_bytes = self.evict(number, segment_bytes, budget_bytes);
            if let Some((name, _)) = self.doomed.get(doomed) {
                return Err(Failure::new(
                    "remove",
                    name.clone(),
                    std::io::Error::other("it stays where it is"),
                ));
            }
        }
        Ok(true)
    }

    /// Evicts until no more than `bytes_max` is used, reserve included; moves nothing.
    pub(super) fn shrink(&mut self) {
        self.remove_doomed();
        let reserve_bytes = segment::segment_bytes(self.bytes_max()).unwrap_or(u64::MAX);
        let doomed = self.doomed.len();
        while !self.has_free(reserve_bytes) && self.evict_dropping() {
            if self.doomed.len() > doomed {
                // The rest goes when the next frames want room.
                break;
            }
        }
    }

    /// Evicts one segment with all it holds; false if there is none.
    pub(super) fn evict_dropping(&mut self) -> bool {
        let Some(number) = self.choose_victim() else { return false };
        self.drop_segment(number);
        true
    }

    fn has_free(&self, bytes: u64) -> bool {
        let state = self.shared.lock();
        state.file_bytes.saturating_add(bytes) <= state.bytes_max
    }

    fn remove_doomed(&mut self) {
        for (name, bytes) in std::mem::take(&mut self.doomed) {
            self.remove_file(name, bytes);
        }
    }

    /// The oldest of probation while that is over its share, else the oldest of main; never a tail while there is another.
    fn choose_victim(&mut self) -> Option<u32> {
        let tails = [&self.probation, &self.main].map(|tail| tail.as_ref().map(|tail| tail.number));
        let victim = {
            let state = self.shared.lock();
            let is_sealed = |number: &u32| !tails.contains(&Some(*number));
            let oldest = |queue| {
                let mut of_queue = state.segments.iter().filter(|(_, segment)| segment.queue == queue);
                of_queue.find(|(number, _)| is_sealed(number)).map(|(number, _)| *number)
            };
            let in_probation: u64 = state
                .segments
                .values()
                .filter(|segment| segment.queue == Queue::Probation)
                .map(|segment| segment.file_bytes)
                .sum();
            let over = in_probation > state.bytes_max / PROBATION_SHARE;
            let order = if over { [Queue::Probation, Queue::Main] } else { [Queue::Main, Queue::Probation] };
            order.into_iter().find_map(oldest).or_else(|| state.segments.keys().next().copied())
        }?;
        for queue in [Queue::Probation, Queue::Main] {
            // Only where nothing else is left.
            self.tail(queue).take_if(|tail| tail.number == victim);
        }
        Some(victim)
    }

    /// Evicts a segment, keeping its hot frames as far as `budget_bytes` goes; returns what is left of that.
    fn evict(&mut self, number: u32, segment_bytes: u64, budget_bytes: u64) -> u64 {
        let Some((verdict, queue, file_bytes)) = self.judge(number) else { return budget_bytes };
        if queue == Queue::Probation && verdict.hot_bytes * 2 >= file_bytes {
            match self.promote(number) {
                Ok(()) => return budget_bytes,
                Err(failure) => {
                    self.count_error();
                    tracing::debug!(%failure, "cache: a segment cannot be renamed; evicted");
                }
            }
        }
        // At most half of it, so that two evictions free a segment.
        let keep_bytes_max = budget_bytes.min(file_bytes / 2);
        let kept_bytes = self.keep(number, &verdict.hot, segment_bytes, keep_bytes_max);
        if queue == Queue::Probation {
            for some in verdict.cold.chunks(HOLD_ENTRIES_MAX) {
                let mut state = self.shared.lock();
                some.iter().for_each(|hash| state.ghost.insert(*hash));
            }
        }
        self.drop_segment(number);
        budget_bytes - kept_bytes
    }

    fn judge(&self, number: u32) -> Option<(Verdict, Queue, u64)> {
        let (mut hashes, queue, file_bytes) = {
            let mut state = self.shared.lock();
            let segment = state.segments.get_mut(&number)?;
            (std::mem::take(&mut segment.hashes), segment.queue, segment.file_bytes)
        };
        // A frame that was forgotten and came again is listed twice.
        hashes.sort_unstable();
        hashes.dedup();
        let mut verdict = Verdict { hot: Vec::new(), hot_bytes: 0, cold: Vec::new() };
        for some in hashes.chunks(HOLD_ENTRIES_MAX) {
            let state = self.shared.lock();
            for hash in some {
                match state.index.at_segment(*hash, number) {
                    Some((place, true)) => {
                        verdict.hot_bytes += entry_bytes(place);
                        verdict.hot.push((*hash, place));
                    }
                    Some((_, false)) => verdict.cold.push(*hash),
                    None => {}
                }
            }
        }
        // In the order of the file, which is the order of reading ahead.
        verdict.hot.sort_unstable_by_key(|(_, place)| place.offset);
        self.shared.lock().segments.get_mut(&number)?.hashes = hashes;
        Some((verdict, queue, file_bytes))
    }

    /// Makes a segment of probation the youngest of main, as it is, not read yet.
    fn promote(&mut self, number: u32) -> Result<(), Failure> {
        let promoted = self.number_next;
        let from = segment::name(Queue::Probation, number);
        let to = segment::name(Queue::Main, promoted);
        let Some(next) = promoted.checked_add(1) else {
            return Err(Failure::new("rename", from, std::io::Error::other("segment numbers are used up")));
        };
        self.number_next = next;
        self.disk.rename(&from, &to).map_err(|error| Failure::new("rename", from, error))?;
        let Some(hashes) = self.list_promoted(number, promoted) else { return Ok(()) };
        for some in hashes.chunks(HOLD_ENTRIES_MAX) {
            let mut state = self.shared.lock();
            for hash in some {
                if let Some((place, _)) = state.index.at_segment(*hash, number) {
                    state.index.relocate(*hash, place, Place { segment: promoted, ..place });
                }
            }
        }
        let mut state = self.shared.lock();
        state.segments.remove(&number);
        if let Some(segment) = state.segments.get_mut(&promoted) {
            segment.hashes = hashes;
        }
        Ok(())
    }

    /// Lists a segment under its new number too, and returns its hashes.
    fn list_promoted(&self, number: u32, promoted: u32) -> Option<Vec<u64>> {
        let mut state = self.shared.lock();
        let segment = state.segments.get_mut(&number)?;
        let hashes = std::mem::take(&mut segment.hashes);
        let (file, file_bytes) = (segment.file.clone(), segment.file_bytes);
        state.segments.insert(promoted, Segment { queue: Queue::Main, file, file_bytes, hashes: Vec::new() });
        Some(hashes)
    }

    /// Copies frames of segment `number` to the end of main, in order, `bytes_max` at most; returns the bytes.
    fn keep(&mut self, number: u32, hot: &[(u64, Place)], segment_bytes: u64, bytes_max: u64) -> u64 {
        let Some(file) = self.shared.lock().segments.get(&number).map(|segment| segment.file.clone()) else {
            return 0;
        };
        let mut kept_bytes = 0;
        for (hash, from) in hot {
            if kept_bytes + entry_bytes(*from) > bytes_max {
                break;
            }
            let mut bytes = vec![0; entry_bytes(*from) as usize];
            let read = file.read_at(&mut bytes, from.offset.into());
            if !matches!(read, Ok(read) if read == bytes.len()) || !entry::verify_hash(&bytes, *hash) {
                self.count_error();
                continue;
            }
            match self.append_kept(&bytes, segment_bytes) {
                Ok(Some(to)) => self.relist(*hash, *from, to),
                Ok(None) => break,
                Err(failure) => {
                    self.count_error();
                    tracing::debug!(%failure, "cache: hot frames are evicted, as they cannot be moved");
                    break;
                }
            }
            kept_bytes += entry_bytes(*from);
        }
        kept_bytes
    }

    /// Appends to main out of the reserve; `None` if that is used up.
    fn append_kept(&mut self, entry: &[u8], segment_bytes: u64) -> Result<Option<Place>, Failure> {
        if !self.has_room(Queue::Main, entry.len()) {
            if !segment::fits_empty(entry.len(), segment_bytes) || !self.has_free(segment_bytes) {
                return Ok(None);
            }
            self.seal(Queue::Main);
            self.begin(Queue::Main, segment_bytes)?;
        }
        self.append(Queue::Main, entry).map(Some)
    }

    fn relist(&self, hash: u64, from: Place, to: Place) {
        let mut state = self.shared.lock();
        // Forgotten in the meantime, perhaps.
        if state.index.relocate(hash, from, to)
            && let Some(segment) = state.segments.get_mut(&to.segment)
        {
            segment.hashes.push(hash);
        }
    }

    /// Forgets what is still in a segment and removes it.
    fn drop_segment(&mut self, number: u32) {
        let hashes = match self.shared.lock().segments.get_mut(&number) {
            Some(segment) => std::mem::take(&mut segment.hashes),
            None => return,
        };
        for some in hashes.chunks(HOLD_ENTRIES_MAX) {
            let mut guard = self.shared.lock();
            let state = &mut *guard;
            for hash in some {
                if state.index.at_segment(*hash, number).is_some() {
                    state.index.remove(*hash);
                    state.evicted += 1;
                }
            }
        }
        self.discard(number);
    }
}

/// Bytes on disk of the entry at `place`.
fn entry_bytes(place: Place) -> u64 {
    HEADER_BYTES as u64 + u64::from(place.length)
}
