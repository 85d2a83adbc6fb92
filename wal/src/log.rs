//! The sequential core: owns the files, writes in LSN order, begins and retires segments. One thread, no
//! locks.
//!
//! # Invariants
//!
//! - `trimmed <= synced <= appended`, after the first record; `appended` is where the next bytes are written,
//!   or in a later segment.
//! - A segment's header is written only after all records before it are durable. So a segment that exists
//!   vouches for the
//!   whole log before it, and only the last segment can have a torn end.
//! - Segments retire oldest first, each durably before the next. So what is left is always the end of the
//!   log.
//!
//! # Crash consistency
//!
//! *Beginning a segment:* (1) sync the segment before; (2) write header and mark into a spare; (3) sync the
//! spare; (4) rename it to its
//! segment's name; (5) sync the folder; only then (6) write records. A crash before (4) leaves a spare, which
//! nobody reads; between
//! (4) and (5) the name is there or not, and if it is, so is its header, for (3) came before. Without it the
//! log ends where it ended at (1), and
//! no record of the new segment had been written. Records are written under the new name only, so none is
//! lost with it.
//!
//! *Retiring a segment:* rename it to a spare's name (or remove it), then sync the folder, before anything is
//! written to the
//! spare. A crash before the sync leaves the segment whole under its old name, or gone. Were the header
//! written sooner, the old name could come back
//! with the new header.
//!
//! *What a spare holds* from its earlier life stays there and is never taken for a record: see
//! [`crate::format`].
//!
//! # Errors and retries
//!
//! No room for another segment leaves all as it was; the caller tries again. After any other error of a
//! method that changes
//! something the log must not be used any more.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    Lsn, Scan, WalError,
    disk::{Disk, DiskFile},
    error::is_no_room,
    format::{
        DATA_OFFSET, MARK_BYTES, MARK_OFFSET, SEGMENT_HEADER_BYTES, SegmentHeader, encode_mark,
        is_segment_size,
    },
    place::Cursor,
    reader::{Records, Run},
    segment::{Segment, Segments, segment_name, spare_name},
};

/// One spare for the next segment, one for the case that two retire at once; more would only hold disk space.
const SPARES_MAX: usize = 2;

/// How a log is laid out.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of a segment: a multiple of 4096. Records are smaller than this by at least 1056 bytes.
    pub segment_bytes: u64,
    /// Size of all files of the log together: room for two segments at least.
    pub log_bytes_max: u64,
    /// Opaque bytes kept in the header of every segment begun in this tenure, and given back with each of its
    /// records.
    /// Should differ from tenure to tenure: checksums begin with it.
    pub tag: [u8; 32],
}

impl Options {
    pub(crate) fn check(&self) -> Result<(), WalError> {
        let Options { segment_bytes, log_bytes_max, .. } = *self;
        if is_segment_size(segment_bytes) && log_bytes_max / 2 >= segment_bytes {
            return Ok(());
        }
        Err(WalError::Options { segment_bytes, log_bytes_max })
    }
}

/// A segment file of the log.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) first: Lsn,
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// End of its records.
    pub(crate) end: Lsn,
    /// `None` if its header is damaged.
    pub(crate) segment: Option<Arc<Segment>>,
}

#[derive(Debug)]
struct Spare {
    name: String,
    file: Arc<dyn DiskFile>,
}

/// The log, owned by one thread. Made by [`Log::open`], given to [`crate::Writer::start`].
#[derive(Debug)]
pub struct Log {
    disk: Arc<dyn Disk>,
    options: Options,
    /// Older segments, oldest first; not the current one.
    older: VecDeque<Live>,
    current: Arc<Segment>,
    /// Where readers find segments.
    segments: Arc<Segments>,
    spares: Vec<Spare>,
    spares_made: u64,
    /// The segment in which it was last tried to make a spare ahead of time; once is enough.
    prepared_in: Option<Lsn>,
    /// Bytes of the older segments and the current one.
    live_bytes: u64,
    appended: Lsn,
    synced: Lsn,
    trimmed: Lsn,
    /// What was found at open.
    replay: Vec<Run>,
}

impl Log {
    /// Opens the log in this folder: scans it, cuts off what is torn, and begins a new segment with the tag
    /// of `options`.
    ///
    /// `floor`: everything below it is elsewhere, so damage below it is no loss, and no LSN below it is given
    /// out. It may be below what the log was trimmed to; `None` stands for that.
    /// When this returns, all that [`Scan`] says is in the log is durable.
    ///
    /// # Errors
    /// [`WalError::Corrupt`] if anything at or above `floor` that was promised durable is damaged or missing:
    /// nothing was
    /// changed. [`WalError::DiskFull`] if there is no room for a segment. [`WalError::Options`].
    /// [`WalError::Io`].
    pub fn open(disk: Arc<dyn Disk>, options: Options, floor: Option<Lsn>) -> Result<(Log, Scan), WalError> {
        crate::open::open(disk, options, floor)
    }

    /// Like [`Log::open`], for a log that is damaged below what was promised durable: it ends before the
    /// first damage, and before `unusable`, a record that is whole and that its owner cannot use. What is
    /// beyond is given up, and its files removed.
    ///
    /// # Errors
    /// As [`Log::open`]; [`WalError::Corrupt`] where nothing joins on to `floor`, so that no prefix is left,
    /// or where segments contradict each other.
    pub fn open_cut(
        disk: Arc<dyn Disk>,
        options: Options,
        floor: Option<Lsn>,
        unusable: Option<Lsn>,
    ) -> Result<(Log, Scan), WalError> {
        crate::open::open_cut(disk, options, floor, unusable)
    }

    /// A log without a segment yet to write to, then its first. Used by open only.
    pub(crate) fn begin(
        disk: Arc<dyn Disk>,
        options: Options,
        older: VecDeque<Live>,
        header: SegmentHeader,
        replay: Vec<Run>,
    ) -> Result<Log, WalError> {
        let name = spare_name(0);
        let file = create_spare(&*disk, &name, options.segment_bytes)?;
        let current = name_segment(&*disk, Spare { name, file }, header)?;
        let segments = Arc::new(Segments::default());
        for segment in older.iter().filter_map(|live| live.segment.as_ref()) {
            segments.insert(Arc::clone(segment));
        }
        segments.insert(Arc::clone(&current));
        let start = current.header.data_start();
        // What is not needed is kept until the caller says so, for it may have a use for what others would
        // not need.
        let trimmed = older.front().map_or(current.header.first, |oldest| oldest.first);
        let live_bytes = older.iter().map(|live| live.bytes).sum::<u64>() + options.segment_bytes;
        Ok(Log {
            disk,
            options,
            older,
            segments,
            spares: Vec::new(),
            spares_made: 1,
            prepared_in: None,
            live_bytes,
            appended: start,
            synced: start,
            trimmed,
            current,
            replay,
        })
    }

    /// The records found at open with an LSN of at least `from`, oldest first, one in memory at a time.
    #[must_use]
    pub fn records(&self, from: Lsn) -> Records {
        Records::new(&self.replay, from)
    }

    /// LSN of the first record that will be appended.
    #[must_use]
    pub fn next(&self) -> Lsn {
        self.appended
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn segments(&self) -> Arc<Segments> {
        Arc::clone(&self.segments)
    }

    pub(crate) fn cursor(&self) -> Cursor {
        let segment_bytes = self.options.segment_bytes;
        Cursor { first: self.current.header.first, next: self.appended, segment_bytes }
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    pub(crate) fn appended(&self) -> Lsn {
        self.appended
    }

    pub(crate) fn synced(&self) -> Lsn {
        self.synced
    }

    pub(crate) fn trimmed(&self) -> Lsn {
        self.trimmed
    }

    /// The checksum with which every record of the current segment begins.
    pub(crate) fn segment_crc(&self) -> u32 {
        self.current.crc
    }

    /// Whether a record at this LSN belongs to the current segment.
    pub(crate) fn is_current(&self, lsn: Lsn) -> bool {
        self.current.covers(lsn)
    }

    /// Writes finished records that begin at `lsn`, in the current segment.
    pub(crate) fn write(&mut self, lsn: Lsn, bytes: &[u8]) -> Result<(), WalError> {
        assert_eq!(lsn, self.appended, "records are written in LSN order, without gaps");
        let end = lsn.plus(bytes.len() as u64);
        assert!(end <= self.current.header.range_end(), "records never straddle segments");
        let offset = self.current.offset(lsn);
        self.current.file.write_at(bytes, offset).map_err(WalError::io("write", &self.current.name))?;
        self.appended = end;
        Ok(())
    }

    /// Brings all that was written to the medium.
    pub(crate) fn sync(&mut self) -> Result<(), WalError> {
        if self.synced < self.appended {
            self.current.file.sync_data().map_err(WalError::io("sync", &self.current.name))?;
            self.synced = self.appended;
        }
        Ok(())
    }

    /// Begins the segment after the current one. See Crash consistency.
    pub(crate) fn begin_segment(&mut self) -> Result<(), WalError> {
        self.sync()?;
        let spare = match self.spares.pop() {
            Some(spare) => spare,
            None => self.make_spare()?,
        };
        let header = SegmentHeader {
            segment_bytes: self.options.segment_bytes,
            first: self.current.header.range_end(),
            previous_end: self.appended,
            trimmed: self.trimmed.min(self.appended).max(self.current.header.trimmed),
            tag: self.options.tag,
        };
        let next = name_segment(&*self.disk, spare, header)?;
        self.segments.insert(Arc::clone(&next));
        let full = std::mem::replace(&mut self.current, next);
        self.older.push_back(Live {
            first: full.header.first,
            name: full.name.clone(),
            bytes: full.header.segment_bytes,
            end: self.appended,
            segment: Some(full),
        });
        self.live_bytes += self.options.segment_bytes;
        self.appended = self.current.header.data_start();
        self.synced = self.appended;
        Ok(())
    }

    /// Makes a spare ahead of time, once the current segment is half full and if the log has room for it.
    /// A spare that cannot be made is no error: the segment that needs it will say so.
    pub(crate) fn prepare(&mut self) {
        let half_full = self.current.offset(self.appended) > self.options.segment_bytes / 2;
        let room = self.live_bytes + self.options.segment_bytes <= self.options.log_bytes_max;
        if !half_full || !room || !self.spares.is_empty() {
            return;
        }
        let current = self.current.header.first;
        if self.prepared_in.replace(current) == Some(current) {
            return;
        }
        if let Ok(spare) = self.make_spare() {
            self.spares.push(spare);
        }
    }

    fn make_spare(&mut self) -> Result<Spare, WalError> {
        let name = self.next_spare_name();
        let file = create_spare(&*self.disk, &name, self.options.segment_bytes)?;
        Ok(Spare { name, file })
    }

    fn next_spare_name(&mut self) -> String {
        let name = spare_name(self.spares_made);
        self.spares_made += 1;
        name
    }

    /// Notes that nothing below `upto` is needed.
    pub(crate) fn trim(&mut self, upto: Lsn) {
        self.trimmed = self.trimmed.max(upto);
    }

    /// Whether the oldest segment is wholly below the trimmed LSN.
    pub(crate) fn can_retire(&self) -> bool {
        self.older.front().is_some_and(|oldest| oldest.end <= self.trimmed)
    }

    /// Retires the oldest segment, if it is wholly below the trimmed LSN; returns its size. See Crash
    /// consistency.
    pub(crate) fn retire(&mut self) -> Result<u64, WalError> {
        if !self.can_retire() {
            return Ok(0);
        }
        let Some(oldest) = self.older.pop_front() else { return Ok(0) };
        self.segments.remove(oldest.first);
        let recycled = oldest.bytes == self.options.segment_bytes && self.spares.len() < SPARES_MAX;
        match oldest.segment {
            Some(segment) if recycled => {
                let name = self.next_spare_name();
                self.disk.rename(&oldest.name, &name).map_err(WalError::io("rename", &oldest.name))?;
                self.sync_folder()?;
                self.spares.push(Spare { name, file: Arc::clone(&segment.file) });
            }
            _ => {
                self.disk.remove(&oldest.name).map_err(WalError::io("remove", &oldest.name))?;
                self.sync_folder()?;
            }
        }
        self.live_bytes -= oldest.bytes;
        Ok(oldest.bytes)
    }

    /// Syncs, then says in the current segment's mark, durably, that all is. What is found damaged later is
    /// then known to be lost.
    pub(crate) fn close(&mut self) -> Result<(), WalError> {
        self.sync()?;
        let header = &self.current.header;
        let mark = encode_mark(header.first, self.current.crc, self.synced.max(header.durable()));
        self.current.file.write_at(&mark, MARK_OFFSET).map_err(WalError::io("write", &self.current.name))?;
        self.current.file.sync_data().map_err(WalError::io("sync", &self.current.name))
    }

    fn sync_folder(&self) -> Result<(), WalError> {
        self.disk.sync().map_err(WalError::io("sync", "."))
    }
}

fn create_spare(disk: &dyn Disk, name: &str, bytes: u64) -> Result<Arc<dyn DiskFile>, WalError> {
    disk.create(name, bytes).map_err(|error| {
        if is_no_room(&error) {
            WalError::DiskFull { needed_bytes: bytes }
        } else {
            WalError::io("create", name)(error)
        }
    })
}

/// Makes the spare a segment: steps (2) to (5) of Crash consistency.
fn name_segment(disk: &dyn Disk, spare: Spare, header: SegmentHeader) -> Result<Arc<Segment>, WalError> {
    let name = segment_name(header.first);
    let encoded = header.encode();
    let (_, crc) = SegmentHeader::decode(&encoded, header.first)
        .unwrap_or_else(|fault| panic!("a header is written that would not be read: {fault}"));
    let mut bytes = [0; DATA_OFFSET as usize];
    bytes[..SEGMENT_HEADER_BYTES].copy_from_slice(&encoded);
    bytes[MARK_OFFSET as usize..][..MARK_BYTES].copy_from_slice(&encode_mark(
        header.first,
        crc,
        header.durable(),
    ));
    if let Err(error) = spare.file.write_at(&bytes, 0) {
        return Err(no_header(disk, &spare, &header, error));
    }
    spare.file.sync_data().map_err(WalError::io("sync", &spare.name))?;
    disk.rename(&spare.name, &name).map_err(WalError::io("rename", &spare.name))?;
    disk.sync().map_err(WalError::io("sync", "."))?;
    Ok(Arc::new(Segment { name, header, crc, file: spare.file }))
}

/// A header that finds no room (on a file system that cannot allocate ahead) leaves all as it was, without
/// this spare.
fn no_header(disk: &dyn Disk, spare: &Spare, header: &SegmentHeader, error: std::io::Error) -> WalError {
    if !is_no_room(&error) {
        return WalError::io("write", &spare.name)(error);
    }
    match disk.remove(&spare.name) {
        Ok(()) => WalError::DiskFull { needed_bytes: header.segment_bytes },
        Err(error) => WalError::io("remove", &spare.name)(error),
    }
}
