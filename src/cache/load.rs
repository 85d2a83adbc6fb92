//! Finding what an earlier run left in the folder.
//!
//! # Crash consistency
//! Nothing is ever synced, so anything may be there, in part, in any order. Every entry stands for itself: its header says which
//! frame it is and is whole or not; its payload is verified when it is read. So the files are taken as they come, newest
//! first, and where a header is bad the rest of its segment is not looked at. A frame that was forgotten may come back; it is as
//! good or bad as before.

use super::{
    index::Place,
    segment::{self, Queue, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, Segment, Tail},
    writer::{Failure, Writer},
};

impl Writer {
    /// Reads the folder; afterwards frames can be found and added.
    pub(super) fn load(&mut self) -> Result<(), Failure> {
        let names = self.disk.list().map_err(|error| Failure::new("list", "", error))?;
        let mut found: Vec<(u32, Queue)> = names
            .iter()
            .filter_map(|name| segment::parse_name(name))
            .map(|(queue, number)| (number, queue))
            .collect();
        if found.len() < names.len() {
            tracing::debug!(files = names.len() - found.len(), "cache: files that are not the cache's are left alone");
        }
        found.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
        // Numbers begin anew only in an empty folder.
        self.number_next = found.first().map_or(0, |(number, _)| number + 1);
        for (number, queue) in found {
            if !self.load_segment(queue, number) {
                tracing::debug!(file = segment::name(queue, number), "cache: a segment with nothing to be read is removed");
            }
        }
        self.loaded = true;
        self.shrink();
        Ok(())
    }

    /// Takes in one segment; false if there is nothing in it, and then it is removed.
    fn load_segment(&mut self, queue: Queue, number: u32) -> bool {
        let name = segment::name(queue, number);
        let opened = self.disk.open(&name).and_then(|file| file.len().map(|file_bytes| (file, file_bytes)));
        let file_bytes = opened.as_ref().map_or(0, |(_, file_bytes)| *file_bytes);
        self.shared.lock().file_bytes += file_bytes;
        let Ok((file, file_bytes)) = opened else {
            self.remove_file(name, file_bytes);
            return false;
        };
        let contents = match file_bytes {
            SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX => segment::scan(&*file, file_bytes),
            _ => segment::Contents::default(),
        };
        // Two files of one number are somebody else's doing.
        if contents.entries.is_empty() || self.shared.lock().segments.contains_key(&number) {
            self.remove_file(name, file_bytes);
            return false;
        }
        self.list_segment(Segment { queue, file: file.clone(), file_bytes, hashes: Vec::new() }, number, &contents);
        if !contents.sealed && self.tail(queue).is_none() {
            *self.tail(queue) = Some(Tail::resume(number, file, file_bytes, contents));
        }
        true
    }

    fn list_segment(&mut self, segment: Segment, number: u32, contents: &segment::Contents) {
        let mut state = self.shared.lock();
        state.segments.insert(number, segment);
        for (hash, offset, length) in &contents.entries {
            // A newer copy is listed already.
            if !state.index.contains(*hash) {
                state.publish(*hash, Place { segment: number, offset: *offset, length: *length });
            }
        }
    }
}
