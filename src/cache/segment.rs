//! A segment: one file of entries, appended one after the other, and a table of contents when it is full.
//!
//! Bytes: entries from 0 on ([`super::entry`]); at the end of a sealed segment the headers of all of them once more, back to back, then
//! a trailer: magic `sft1`, number of entries, CRC-32C of the table, CRC-32C of the trailer so far, each a little-endian u32. The
//! table only makes opening fast (one read a segment and not one a frame); where it is missing or damaged the headers are walked.

use std::{io, sync::Arc};

use wal::disk::DiskFile;

use super::entry::{HEADER_BYTES, Header};
use crate::format::envelope::crc32c;

/// Bytes of the trailer.
const TRAILER_BYTES: usize = 16;
const TRAILER_MAGIC: &[u8; 4] = b"sft1";
/// Segments of a cache of usual size; a segment is what an eviction gives up.
const SEGMENTS: u64 = 64;
/// Smallest segment of a cache of usual size; smaller caches have fewer first, and smaller ones then.
const SEGMENT_BYTES_USUAL_MIN: u64 = 4 << 20;
/// Largest segment of a cache of usual size; larger caches have more first, and larger ones then.
const SEGMENT_BYTES_USUAL_MAX: u64 = 64 << 20;
/// Fewest segments: probation and main have one open each, one is spare, and the rest has an order.
const SEGMENTS_MIN: u64 = 16;
/// Most segments of a cache up to 1 TiB. Each is an open file, and the limit of a process is 1024 unless somebody raised it.
const SEGMENTS_MAX: u64 = 512;
/// Largest segment, so that offsets fit u32 with room.
pub(super) const SEGMENT_BYTES_MAX: u64 = 2 << 30;
/// Smallest segment: a block of the file system.
pub(super) const SEGMENT_BYTES_MIN: u64 = 4 << 10;
/// A segment of usual size takes as many entries as it has blocks of 4 KiB: it is full of the smallest frames that are usual,
/// those of a cut of one block, before the bound counts.
const ENTRY_BYTES_USUAL_MIN: u64 = 4 << 10;
/// A larger one takes no more than that, unless its entries are of this size on average: what the index of a large cache
/// takes in memory stays a fixed share of its disk. Frames are some 64 KiB of plaintext: this counts only where they
/// compress to less than a quarter, and there the cache still holds four times its size in plaintext.
const ENTRY_BYTES_MEAN_MIN: u64 = 16 << 10;
/// Entries that any segment may hold.
const ENTRIES_MIN: u64 = 64;
/// Numbers from here on are not believed when found in a folder, so that no strange name uses up the numbers.
const NUMBER_FOUND_MAX: u32 = 1 << 31;

/// Length of new segments in a cache of `bytes_max`; `None` where that is too small to be a cache.
pub(super) fn segment_bytes(bytes_max: u64) -> Option<u64> {
    let usual = (bytes_max / SEGMENTS).clamp(SEGMENT_BYTES_USUAL_MIN, SEGMENT_BYTES_USUAL_MAX);
    let fewest = (bytes_max / SEGMENTS_MAX).min(SEGMENT_BYTES_MAX);
    let bytes = usual.max(fewest).min(bytes_max / SEGMENTS_MIN) / SEGMENT_BYTES_MIN * SEGMENT_BYTES_MIN;
    (bytes > 0).then_some(bytes)
}

/// Most entries in a segment of `bytes`.
pub(super) fn entries_max(bytes: u64) -> usize {
    let usual = bytes.min(SEGMENT_BYTES_USUAL_MAX) / ENTRY_BYTES_USUAL_MIN;
    usual.max(bytes / ENTRY_BYTES_MEAN_MIN).max(ENTRIES_MIN) as usize
}

/// Which of the two logs a segment belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// Frames that nobody has asked for again yet.
    Probation,
    /// Frames that were read again.
    Main,
}

/// Name of a segment's file; higher numbers were begun later.
pub(super) fn name(queue: Queue, number: u32) -> String {
    match queue {
        Queue::Probation => format!("probation-{number:08x}"),
        Queue::Main => format!("main-{number:08x}"),
    }
}

/// The segment that a file name stands for, if it is one of ours.
pub(super) fn parse_name(found: &str) -> Option<(Queue, u32)> {
    let (queue, digits) = found.split_once('-')?;
    let queue = match queue {
        "probation" => Queue::Probation,
        "main" => Queue::Main,
        _ => return None,
    };
    let number = u32::from_str_radix(digits, 16).ok()?;
    (number < NUMBER_FOUND_MAX && found == name(queue, number)).then_some((queue, number))
}

/// What everyone knows of a segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) queue: Queue,
    pub(super) file: Arc<dyn DiskFile>,
    /// Length of the file.
    pub(super) file_bytes: u64,
    /// Hashes of the keys that were put here; some may be elsewhere or forgotten by now.
    pub(super) hashes: Vec<u64>,
}

/// The end of a segment that is still written to.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) number: u32,
    file: Arc<dyn DiskFile>,
    file_bytes: u64,
    /// Where the next entry goes.
    used_bytes: u64,
    /// The headers so far.
    table: Vec<u8>,
    /// Appends that failed in a row.
    failures: u32,
}

impl Tail {
    pub(super) fn new(number: u32, file: Arc<dyn DiskFile>, file_bytes: u64) -> Self {
        Self { number, file, file_bytes, used_bytes: 0, table: Vec::new(), failures: 0 }
    }

    /// Goes on where a walk over the file ended.
    pub(super) fn resume(number: u32, file: Arc<dyn DiskFile>, file_bytes: u64, contents: Contents) -> Self {
        Self { number, file, file_bytes, used_bytes: contents.used_bytes, table: contents.table, failures: 0 }
    }

    /// Whether an entry of `entry_bytes`, header included, has room.
    pub(super) fn fits(&self, entry_bytes: usize) -> bool {
        let count = self.table.len() / HEADER_BYTES;
        let after = self.used_bytes + entry_bytes as u64 + reserved_bytes(count + 1);
        // After three failures it is this place of the disk, and not the disk.
        after <= self.file_bytes && count < entries_max(self.file_bytes) && self.failures < 3
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Writes an entry, header first, at the end; returns where. After an error the next one goes to the same place.
    pub(super) fn append(&mut self, entry: &[u8]) -> io::Result<u32> {
        debug_assert!(self.fits(entry.len()), "asked before");
        if let Err(error) = self.file.write_at(entry, self.used_bytes) {
            self.failures += 1;
            return Err(error);
        }
        self.failures = 0;
        let offset = self.used_bytes as u32;
        self.used_bytes += entry.len() as u64;
        self.table.extend_from_slice(&entry[..HEADER_BYTES]);
        Ok(offset)
    }

    /// Writes the table of contents. If that fails the segment is still good.
    pub(super) fn seal(self) -> io::Result<()> {
        let count = self.table.len() / HEADER_BYTES;
        let mut end = self.table;
        let crc = crc32c(&[&end]);
        end.extend_from_slice(&trailer(count as u32, crc));
        self.file.write_at(&end, self.file_bytes - end.len() as u64)
    }
}

/// Whether an entry of `entry_bytes`, header included, fits an empty segment of `file_bytes`.
pub(super) fn fits_empty(entry_bytes: usize, file_bytes: u64) -> bool {
    entry_bytes as u64 + reserved_bytes(1) <= file_bytes
}

/// Room for the table of `count` entries.
fn reserved_bytes(count: usize) -> u64 {
    (count * HEADER_BYTES + TRAILER_BYTES) as u64
}

fn trailer(count: u32, crc: u32) -> [u8; TRAILER_BYTES] {
    let mut out = [0; TRAILER_BYTES];
    out[..4].copy_from_slice(TRAILER_MAGIC);
    out[4..8].copy_from_slice(&count.to_le_bytes());
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    let own = crc32c(&[&out[..12]]);
    out[12..].copy_from_slice(&own.to_le_bytes());
    out
}

/// What a file was found to hold.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Hash of the key, offset and payload length of each entry, in order.
    pub(super) entries: Vec<(u64, u32, u32)>,
    used_bytes: u64,
    table: Vec<u8>,
    /// It has a table of contents: nothing is appended any more.
    pub(super) sealed: bool,
}

impl Contents {
    /// Takes the next entry if its header is whole and it ends before `end`.
    fn push(&mut self, head: &[u8], end: u64) -> bool {
        let Some(header) = Header::decode(head) else { return false };
        let after = self.used_bytes + HEADER_BYTES as u64 + u64::from(header.length);
        if after > end {
            return false;
        }
        self.entries.push((header.key.hash64(), self.used_bytes as u32, header.length));
        self.table.extend_from_slice(&head[..HEADER_BYTES]);
        self.used_bytes = after;
        true
    }
}

/// Finds the entries of a file of `file_bytes` (at most [`SEGMENT_BYTES_MAX`]) by its table, or else by their headers. Payloads are
/// not read.
///
/// # Errors
/// Nothing in the file could be read. An error further on ends the walk as a bad header does.
pub(super) fn scan(file: &dyn DiskFile, file_bytes: u64) -> io::Result<Contents> {
    if let Some(contents) = load_table(file, file_bytes) {
        return Ok(contents);
    }
    let mut contents = Contents::default();
    let mut head = [0; HEADER_BYTES];
    while contents.entries.len() < entries_max(file_bytes) {
        match file.read_at(&mut head, contents.used_bytes) {
            Ok(HEADER_BYTES) if contents.push(&head, file_bytes) => {}
            Err(error) if contents.entries.is_empty() => return Err(error),
            _ => break,
        }
    }
    Ok(contents)
}

fn load_table(file: &dyn DiskFile, file_bytes: u64) -> Option<Contents> {
    let mut end = [0; TRAILER_BYTES];
    let trailer_at = file_bytes.checked_sub(TRAILER_BYTES as u64)?;
    read_full(file, &mut end, trailer_at)?;
    let count = u32::from_le_bytes(end[4..8].try_into().expect("four bytes"));
    let crc = u32::from_le_bytes(end[8..12].try_into().expect("four bytes"));
    if end != trailer(count, crc) || count as usize > entries_max(file_bytes) {
        return None;
    }
    let mut table = vec![0; count as usize * HEADER_BYTES];
    let table_at = trailer_at.checked_sub(table.len() as u64)?;
    read_full(file, &mut table, table_at)?;
    if crc32c(&[&table]) != crc {
        return None;
    }
    let mut contents = Contents { sealed: true, ..Contents::default() };
    table.chunks_exact(HEADER_BYTES).all(|head| contents.push(head, table_at)).then_some(contents)
}

fn read_full(file: &dyn DiskFile, buffer: &mut [u8], offset: u64) -> Option<()> {
    let length = buffer.len();
    matches!(file.read_at(buffer, offset), Ok(read) if read == length).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_sizes_follow_the_cache() {
        assert_eq!(segment_bytes(0), None);
        assert_eq!(segment_bytes((64 << 10) - 1), None);
        assert_eq!(segment_bytes(64 << 10), Some(4 << 10));
        assert_eq!(segment_bytes(64 << 20), Some(4 << 20));
        assert_eq!(segment_bytes(1 << 30), Some(16 << 20));
        assert_eq!(segment_bytes(32 << 30), Some(64 << 20));
        assert_eq!(segment_bytes(1 << 40), Some(2 << 30));
        assert_eq!(segment_bytes(u64::MAX), Some(2 << 30));
    }

    #[test]
    fn entries_follow_the_bytes_of_a_segment() {
        for bytes in [4 << 20, 16 << 20, SEGMENT_BYTES_USUAL_MAX] {
            let entry_bytes = ENTRY_BYTES_USUAL_MIN + 2 * HEADER_BYTES as u64;
            assert!(entries_max(bytes) as u64 * entry_bytes > bytes, "{bytes} bytes");
        }
        assert_eq!(entries_max(SEGMENT_BYTES_USUAL_MAX), 16384);
        assert_eq!(entries_max(256 << 20), 16384);
        assert_eq!(entries_max(2 << 30), 131_072);
        assert_eq!(entries_max(4 << 10), 64);
    }

    #[test]
    fn only_names_that_we_write_are_ours() {
        for queue in [Queue::Probation, Queue::Main] {
            assert_eq!(parse_name(&name(queue, 0x2a)), Some((queue, 0x2a)));
        }
        for strange in
            ["main-2a", "main-0000002A", "main-ffffffff", "main-+000002a", "other-0000002a", "main", ""]
        {
            assert_eq!(parse_name(strange), None, "{strange}");
        }
    }
}
