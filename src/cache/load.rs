//! Finding what an earlier run left in the folder.
//!
//! # Crash consistency
//! Nothing is ever synced, so anything may be there, in part, in any order. Every entry stands for itself: its header says which
//! frame it is and is whole or not; its payload is verified when it is read. So the files are taken as they come, newest
//! first, and where a header is bad the rest of its segment is not looked at. A frame that was forgotten may come back; it is as
//! good or bad as before.

use std::io;

use rustix::io::Errno;

use super::{
    evict::HOLD_ENTRIES_MAX,
    index::Place,
    segment::{self, Contents, Queue, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, Segment, Tail},
    writer::{Failure, Writer},
};

/// How often the folder is read in vain before what is in it is taken for lost: some dozens of inserts, by [`super::backoff`].
const LOADS_FAILED_MAX: u32 = 4;

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
            tracing::debug!(
                files = names.len() - found.len(),
                "cache: files that are not the cache's are left alone"
            );
        }
        found.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
        // Numbers begin anew only in an empty folder.
        self.number_next = found.first().map_or(0, |(number, _)| number + 1);
        let mut unreadable = Vec::new();
        for (number, queue) in found {
            // Loading starts anew after a failure.
            if self.shared.lock().segments.get(&number).is_some_and(|known| known.queue == queue) {
                continue;
            }
            let name = segment::name(queue, number);
            match self.load_segment(queue, number, &name) {
                Ok(()) => {}
                Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::MFILE | Errno::NFILE)) => {
                    return Err(Failure::new("open", name, error));
                }
                Err(error) => unreadable.push((name, error)),
            }
        }
        self.settle_unreadable(unreadable)?;
        self.loaded = true;
        self.shrink();
        Ok(())
    }

    /// Takes in one segment, or removes it if there is nothing in it.
    fn load_segment(&mut self, queue: Queue, number: u32, name: &str) -> io::Result<()> {
        let file = self.disk.open(name)?;
        let file_bytes = file.len()?;
        let contents = match file_bytes {
            SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX => segment::scan(&*file, file_bytes)?,
            _ => Contents::default(),
        };
        self.shared.lock().file_bytes += file_bytes;
        // Two files of one number are somebody else's doing.
        if contents.entries.is_empty() || self.shared.lock().segments.contains_key(&number) {
            tracing::debug!(name, file_bytes, "cache: a segment with nothing to be found is removed");
            self.remove_file(name.to_owned(), file_bytes);
            return Ok(());
        }
        let segment = Segment { queue, file: file.clone(), file_bytes, hashes: Vec::new() };
        self.list_segment(segment, number, &contents);
        if !contents.sealed && self.tail(queue).is_none() {
            *self.tail(queue) = Some(Tail::resume(number, file, file_bytes, contents));
        }
        Ok(())
    }

    /// Removes segments that could not be read, where others could; where none could, it is the disk, and they may be
    /// good once it is well. Not for ever.
    fn settle_unreadable(&mut self, unreadable: Vec<(String, io::Error)>) -> Result<(), Failure> {
        if self.shared.lock().segments.is_empty() && self.loads_failed < LOADS_FAILED_MAX {
            if let Some((name, error)) = unreadable.into_iter().next() {
                self.loads_failed += 1;
                return Err(Failure::new("read", name, error));
            }
            return Ok(());
        }
        for (name, error) in unreadable {
            tracing::debug!(%error, name, "cache: a segment that cannot be read is removed");
            let file_bytes = self.disk.open(&name).and_then(|file| file.len()).unwrap_or(0);
            self.shared.lock().file_bytes += file_bytes;
            self.remove_file(name, file_bytes);
        }
        Ok(())
    }

    fn list_segment(&mut self, segment: Segment, number: u32, contents: &Contents) {
        self.shared.lock().segments.insert(number, segment);
        for some in contents.entries.chunks(HOLD_ENTRIES_MAX) {
            let mut state = self.shared.lock();
            for (hash, offset, length) in some {
                // A newer copy is listed already.
                if !state.index.contains(*hash) {
                    state.publish(*hash, Place { segment: number, offset: *offset, length: *length });
                }
            }
        }
    }
}
