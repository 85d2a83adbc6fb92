//! Reading a log from one end to the other in bounded memory.

use std::{collections::VecDeque, io, sync::Arc};

use bytes::Bytes;

use crate::{
    Lsn, Record,
    format::{RECORD_ALIGN, RECORD_HEADER_BYTES, RecordFault, RecordHeader, record_bytes, verify_record},
    segment::Segment,
};

/// Bytes read at once: long enough that a disk streams, short enough to be no burden.
const WINDOW_BYTES: u64 = 1 << 20;

/// A window that moves over a segment's file.
pub(crate) struct Window {
    segment: Arc<Segment>,
    buffer: Vec<u8>,
    /// Offset of the buffer in the file.
    offset: u64,
}

impl Window {
    pub(crate) fn new(segment: Arc<Segment>) -> Window {
        Window { segment, buffer: Vec::new(), offset: 0 }
    }

    /// `bytes` bytes from `offset` on, or fewer where the file ends.
    fn bytes(&mut self, offset: u64, bytes: u64) -> io::Result<&[u8]> {
        let held = self.offset..self.offset + self.buffer.len() as u64;
        if offset < held.start || offset + bytes > held.end {
            let rest = self.segment.header.segment_bytes.saturating_sub(offset);
            let length = rest.min(WINDOW_BYTES.max(bytes));
            self.buffer.resize(length as usize, 0);
            let read = self.segment.file.read_at(&mut self.buffer, offset)?;
            self.buffer.truncate(read);
            self.offset = offset;
        }
        let from = (offset - self.offset) as usize;
        let to = self.buffer.len().min(from + bytes as usize);
        Ok(&self.buffer[from..to])
    }

    /// The record at `lsn`, which must end at or before `limit`.
    pub(crate) fn record(&mut self, lsn: Lsn, limit: Lsn) -> io::Result<Result<Seen<'_>, RecordFault>> {
        let crc = self.segment.crc;
        let offset = self.segment.offset(lsn);
        let room = limit.min(self.segment.header.range_end()).since(lsn);
        let Some(head) = self.bytes(offset, RECORD_HEADER_BYTES as u64)?.first_chunk() else {
            return Ok(Err(RecordFault::Absent));
        };
        let header = match RecordHeader::decode(head, lsn, room) {
            Ok(header) => header,
            Err(fault) => return Ok(Err(fault)),
        };
        let bytes = record_bytes(u64::from(header.payload_bytes));
        let record = self.bytes(offset, bytes)?;
        if (record.len() as u64) < bytes {
            return Ok(Err(RecordFault::Length(header.payload_bytes)));
        }
        if let Err(fault) = verify_record(record, &header, crc) {
            return Ok(Err(fault));
        }
        let payload = &record[RECORD_HEADER_BYTES..][..header.payload_bytes as usize];
        Ok(Ok(Seen { header, payload }))
    }

    /// Where the invalid record at `lsn` claims to end.
    pub(crate) fn claimed_end(&mut self, lsn: Lsn) -> io::Result<Lsn> {
        let offset = self.segment.offset(lsn);
        let claim = self.bytes(offset, RECORD_HEADER_BYTES as u64)?.first_chunk();
        let claim = claim.and_then(|head| RecordHeader::decode(head, lsn, u64::MAX).ok());
        Ok(claim.map_or(lsn.plus(RECORD_HEADER_BYTES as u64), |header| header.end()))
    }

    /// The next valid record after `lsn` that ends at or before `limit`: its place, its end, and what it
    /// claims durable.
    pub(crate) fn search(&mut self, lsn: Lsn, limit: Lsn) -> io::Result<Option<RecordHeader>> {
        let mut at = lsn.plus(RECORD_ALIGN);
        while at.plus(RECORD_HEADER_BYTES as u64) <= limit {
            if let Ok(seen) = self.record(at, limit)? {
                return Ok(Some(seen.header));
            }
            let offset = self.segment.offset(at);
            if self.bytes(offset, RECORD_HEADER_BYTES as u64)?.len() < RECORD_HEADER_BYTES {
                break;
            }
            at = at.plus(RECORD_ALIGN);
        }
        Ok(None)
    }
}

/// A valid record in the window.
pub(crate) struct Seen<'w> {
    pub(crate) header: RecordHeader,
    pub(crate) payload: &'w [u8],
}

/// A run of valid records in one segment.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) segment: Arc<Segment>,
    pub(crate) from: Lsn,
    pub(crate) to: Lsn,
}

/// Records of a log, oldest first, one in memory at a time. Ends after the first error.
pub struct Records {
    runs: VecDeque<Run>,
    from: Lsn,
    window: Option<(Window, Run)>,
}

impl Records {
    /// Records of these runs whose LSN is at least `from`.
    pub(crate) fn new(runs: &[Run], from: Lsn) -> Records {
        let runs = runs.iter().filter(|run| run.to > from).cloned().collect();
        Records { runs, from, window: None }
    }

    fn step(&mut self) -> io::Result<Option<Record>> {
        loop {
            if self.window.as_ref().is_none_or(|(_, run)| run.from >= run.to) {
                let Some(run) = self.runs.pop_front() else { return Ok(None) };
                self.window = Some((Window::new(Arc::clone(&run.segment)), run));
            }
            let Some((window, run)) = &mut self.window else { return Ok(None) };
            let seen = window.record(run.from, run.to)?.map_err(|fault| changed(run, fault))?;
            let (lsn, end) = (run.from, seen.header.end());
            run.from = end;
            if lsn >= self.from {
                let payload = Bytes::copy_from_slice(seen.payload);
                let tag = run.segment.header.tag;
                return Ok(Some(Record { lsn, end, kind: seen.header.kind, payload, tag }));
            }
        }
    }
}

/// A record that was valid when the log was scanned and is no more.
fn changed(run: &Run, fault: RecordFault) -> io::Error {
    let message =
        format!("log record {} in {} has changed since the scan: {fault}", run.from, run.segment.name);
    io::Error::new(io::ErrorKind::InvalidData, message)
}

impl Iterator for Records {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<io::Result<Record>> {
        let item = self.step().transpose();
        if matches!(item, Some(Err(_))) {
            self.runs.clear();
            self.window = None;
        }
        item
    }
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records")
            .field("from", &self.from)
            .field("runs", &self.runs.len())
            .finish_non_exhaustive()
    }
}
