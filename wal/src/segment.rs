//! Segments as files: their names, their headers, and reading one record from the one that holds it.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;

use crate::{
    Corruption, Damage, Lsn, Record, WalError,
    disk::{Disk, DiskFile},
    format::{
        DATA_OFFSET, HeaderFault, MARK_BYTES, MARK_OFFSET, RECORD_HEADER_BYTES, RecordFault, RecordHeader,
        SEGMENT_HEADER_BYTES, SegmentHeader, decode_mark, record_bytes, verify_record,
    },
};

const SUFFIX: &str = ".wal";
const SPARE_SUFFIX: &str = ".spare";
/// First read of a record of unknown length: a 4 KiB block, its headers and its seal come with one system
/// call.
const READ_GUESS_BYTES: u64 = 4096 + 512;

/// The file name of the segment that begins at `first`.
pub(crate) fn segment_name(first: Lsn) -> String {
    format!("{:016x}{SUFFIX}", first.0)
}

/// The first LSN of the segment of this name, if it is a segment's.
pub(crate) fn parse_segment_name(name: &str) -> Option<Lsn> {
    let digits = name.strip_suffix(SUFFIX)?;
    let first = Lsn(u64::from_str_radix(digits, 16).ok()?);
    (segment_name(first) == name).then_some(first)
}

/// The file name of a spare.
pub(crate) fn spare_name(number: u64) -> String {
    format!("{number:08x}{SPARE_SUFFIX}")
}

/// Whether it is a spare's name.
pub(crate) fn is_spare_name(name: &str) -> bool {
    name.strip_suffix(SPARE_SUFFIX).is_some_and(|digits| u64::from_str_radix(digits, 16).is_ok())
}

/// A segment whose header verified.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) name: String,
    pub(crate) header: SegmentHeader,
    /// The header's checksum, with which every record's begins.
    pub(crate) crc: u32,
    pub(crate) file: Arc<dyn DiskFile>,
}

/// A segment file as found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) first: Lsn,
    pub(crate) file_bytes: u64,
    /// The segment, and what its mark claims durable (`None`: the mark does not verify).
    pub(crate) segment: Result<(Arc<Segment>, Option<Lsn>), HeaderFault>,
}

impl Found {
    /// LSN after the range; if the header is damaged, the file's length stands in for it.
    pub(crate) fn range_end(&self) -> Lsn {
        match &self.segment {
            Ok((segment, _)) => segment.header.range_end(),
            Err(_) => self.first.plus(self.file_bytes),
        }
    }
}

/// Opens every segment file of the folder, in LSN order.
pub(crate) fn load_segments(disk: &dyn Disk) -> Result<Vec<Found>, WalError> {
    let names = disk.list().map_err(WalError::io("list", "."))?;
    let mut found = Vec::new();
    for name in names {
        if let Some(first) = parse_segment_name(&name) {
            found.push(load_segment(disk, name, first)?);
        }
    }
    found.sort_unstable_by_key(|found| found.first);
    Ok(found)
}

fn load_segment(disk: &dyn Disk, name: String, first: Lsn) -> Result<Found, WalError> {
    let file = disk.open(&name).map_err(WalError::io("open", &name))?;
    let file_bytes = file.len().map_err(WalError::io("measure", &name))?;
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let length = file.read_at(&mut bytes, 0).map_err(WalError::io("read", &name))?;
    if length < SEGMENT_HEADER_BYTES {
        return Ok(Found { name, first, file_bytes, segment: Err(HeaderFault::Short) });
    }
    let segment = match SegmentHeader::decode(&bytes, first) {
        Err(fault) => Err(fault),
        Ok((header, crc)) => {
            let mut mark = [0; MARK_BYTES];
            file.read_at(&mut mark, MARK_OFFSET).map_err(WalError::io("read", &name))?;
            let durable = decode_mark(&mark, first, crc);
            Ok((Arc::new(Segment { name: name.clone(), header, crc, file }), durable))
        }
    };
    Ok(Found { name, first, file_bytes, segment })
}

/// Why a record could not be read.
pub(crate) enum ReadFault {
    Io(std::io::Error),
    Record(RecordFault),
    /// It would have to wait for the medium.
    Wait,
}

/// Whether a read may wait for the medium.
#[derive(Clone, Copy)]
pub(crate) enum Waits {
    Yes,
    No,
}

impl Segment {
    /// Whether the LSN is in the range that holds records.
    pub(crate) fn covers(&self, lsn: Lsn) -> bool {
        (self.header.data_start()..self.header.range_end()).contains(&lsn)
    }

    /// Offset in the file.
    pub(crate) fn offset(&self, lsn: Lsn) -> u64 {
        lsn.since(self.header.first)
    }

    /// A record of this segment that does not verify though it should.
    pub(crate) fn damage(&self, lsn: Lsn, durable: Lsn, fault: RecordFault) -> Corruption {
        Corruption {
            lsn,
            resumes: None,
            durable,
            segment: self.name.clone(),
            offset: self.offset(lsn),
            what: Damage::Record(fault),
            lost: true,
        }
    }

    /// Reads and verifies the record at `lsn`.
    pub(crate) fn read(&self, lsn: Lsn, waits: Waits) -> Result<Record, ReadFault> {
        let room = self.header.range_end().since(lsn);
        let mut buffer = vec![0; room.min(READ_GUESS_BYTES) as usize];
        self.fill(&mut buffer, lsn, waits)?;
        let head =
            buffer.first_chunk::<RECORD_HEADER_BYTES>().ok_or(ReadFault::Record(RecordFault::Absent))?;
        let header = RecordHeader::decode(head, lsn, room).map_err(ReadFault::Record)?;
        let bytes = record_bytes(u64::from(header.payload_bytes)) as usize;
        let known = buffer.len().min(bytes);
        buffer.resize(bytes, 0);
        if known < bytes {
            self.fill(&mut buffer[known..], lsn.plus(known as u64), waits)?;
        }
        verify_record(&buffer, &header, self.crc).map_err(ReadFault::Record)?;
        buffer.truncate(RECORD_HEADER_BYTES + header.payload_bytes as usize);
        let payload = Bytes::from(buffer).slice(RECORD_HEADER_BYTES..);
        Ok(Record { lsn, end: header.end(), kind: header.kind, payload, tag: self.header.tag })
    }

    /// Fills the buffer; what the file does not have stays zero, and then verifies as no record.
    fn fill(&self, buffer: &mut [u8], lsn: Lsn, waits: Waits) -> Result<(), ReadFault> {
        let offset = self.offset(lsn);
        match waits {
            Waits::Yes => self.file.read_at(buffer, offset).map(drop).map_err(ReadFault::Io),
            Waits::No => match self.file.read_at_nowait(buffer, offset) {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err(ReadFault::Wait),
                Err(error) => Err(ReadFault::Io(error)),
            },
        }
    }
}

/// The segments there are, for readers on any thread.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    by_first: RwLock<BTreeMap<Lsn, Arc<Segment>>>,
}

impl Segments {
    pub(crate) fn insert(&self, segment: Arc<Segment>) {
        self.by_first.write().unwrap_or_else(PoisonError::into_inner).insert(segment.header.first, segment);
    }

    pub(crate) fn remove(&self, first: Lsn) {
        self.by_first.write().unwrap_or_else(PoisonError::into_inner).remove(&first);
    }

    /// The segment in whose range this LSN is.
    pub(crate) fn holding(&self, lsn: Lsn) -> Option<Arc<Segment>> {
        let map = self.by_first.read().unwrap_or_else(PoisonError::into_inner);
        let (_, segment) = map.range(..=lsn).next_back()?;
        segment.covers(lsn).then(|| Arc::clone(segment))
    }
}

/// Bytes of a segment that records can take.
pub(crate) fn record_room(segment_bytes: u64) -> u64 {
    segment_bytes - DATA_OFFSET
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_fixed_width_hexadecimal() {
        assert_eq!(segment_name(Lsn(0x4000)), "0000000000004000.wal");
        assert_eq!(parse_segment_name("0000000000004000.wal"), Some(Lsn(0x4000)));
        assert_eq!(parse_segment_name(&segment_name(Lsn(u64::MAX))), Some(Lsn(u64::MAX)));
    }

    #[test]
    fn names_that_are_nearly_a_segments_are_not() {
        for name in
            ["4000.wal", "000000000000400G.wal", "+000000000004000.wal", "00000000000ABC00.wal", "lock"]
        {
            assert_eq!(parse_segment_name(name), None, "{name}");
        }
        assert!(is_spare_name(&spare_name(7)));
        assert!(!is_spare_name("0000000000004000.wal"));
    }
}
