//! Bytes of the log: segment header, mark and record, to types and back. Layouts: `docs/format.md`.
//!
//! # Invariants
//!
//! - Every integer is little endian and has a fixed place; every byte of a header, and every byte of a record
//!   up to its end
//!   (padding included), is covered by a CRC32C or compared with what it must be.
//! - A record's checksum begins with the checksum of its segment's header, which covers the tag. So a record
//!   verifies only in
//!   the segment it was written to: what an earlier life of a recycled file left behind verifies nowhere.
//! - A record verifies only at its own LSN.

use crc_fast::{CrcAlgorithm, Digest};

use crate::Lsn;

/// Length of a segment's header.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 128;
/// Offset of the mark in a segment: the second sector, so that rewriting it can never tear the header.
pub(crate) const MARK_OFFSET: u64 = 512;
/// Length of the mark.
pub(crate) const MARK_BYTES: usize = 32;
/// Offset of the first record in a segment: after the two sectors of header and mark.
pub(crate) const DATA_OFFSET: u64 = 1024;
/// Length of a record's header.
pub(crate) const RECORD_HEADER_BYTES: usize = 32;
/// Records begin and end at multiples of this, so that the search for records after a hole has few places to
/// look.
pub(crate) const RECORD_ALIGN: u64 = 16;
/// Segments are multiples of this: the block size of the file systems there are.
pub(crate) const SEGMENT_ALIGN: u64 = 4096;
/// Largest segment. Far above use; it keeps position arithmetic on damaged headers from overflowing.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 40;

const SEGMENT_MAGIC: [u8; 8] = *b"\x8bWALSEG\n";
const SEGMENT_VERSION: u16 = 1;
const SEGMENT_CRC_OFFSET: usize = SEGMENT_HEADER_BYTES - 4;
const MARK_MAGIC: [u8; 8] = *b"\x8bWALMRK\n";
const RECORD_MAGIC: [u8; 4] = *b"wrec";
const RECORD_VERSION: u8 = 1;
/// Where the bytes begin that a record's checksum covers: after magic and checksum.
const RECORD_CRC_FROM: usize = 8;

/// Why a segment's header was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// The file is too short for a header.
    #[error("the file ends within it")]
    Short,
    /// It does not begin as a segment does.
    #[error("wrong magic")]
    Magic,
    /// The checksum differs.
    #[error("wrong checksum")]
    Checksum,
    /// Written by a later version.
    #[error("version {0} is not known here")]
    Version(u16),
    /// The checksum holds and the values cannot be.
    #[error("impossible values")]
    Values,
    /// It is the header of another file.
    #[error("it belongs to the segment that begins at {0}")]
    Name(Lsn),
}

/// Why a record was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// There is nothing here that claims to be the record of this place.
    #[error("none here")]
    Absent,
    /// Written by a later version.
    #[error("version {0} is not known here")]
    Version(u8),
    /// It goes on beyond where records end.
    #[error("impossible length {0}")]
    Length(u32),
    /// The checksum differs.
    #[error("wrong checksum")]
    Checksum,
    /// The checksum holds and the values cannot be.
    #[error("impossible values")]
    Values,
}

/// The header of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Size of the segment, and of its LSN range.
    pub(crate) segment_bytes: u64,
    /// First LSN of the range.
    pub(crate) first: Lsn,
    /// Where the records before this segment end. All of them were durable before this header was written.
    pub(crate) previous_end: Lsn,
    /// Below this nothing was needed from the log when the segment was begun.
    pub(crate) trimmed: Lsn,
    /// The application's bytes.
    pub(crate) tag: [u8; 32],
}

impl SegmentHeader {
    /// LSN after the range.
    pub(crate) fn range_end(&self) -> Lsn {
        self.first.plus(self.segment_bytes)
    }

    /// LSN of the first record.
    pub(crate) fn data_start(&self) -> Lsn {
        self.first.plus(DATA_OFFSET)
    }

    /// Everything below this was durable, here or elsewhere, when the header was written.
    pub(crate) fn durable(&self) -> Lsn {
        self.previous_end.max(self.trimmed)
    }

    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..10].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.segment_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.previous_end.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.trimmed.0.to_le_bytes());
        bytes[48..80].copy_from_slice(&self.tag);
        let crc = crc32c(&[&bytes[..SEGMENT_CRC_OFFSET]]);
        bytes[SEGMENT_CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header of the segment that begins at `first`, and its checksum.
    pub(crate) fn decode(
        bytes: &[u8; SEGMENT_HEADER_BYTES],
        first: Lsn,
    ) -> Result<(SegmentHeader, u32), HeaderFault> {
        if bytes[0..8] != SEGMENT_MAGIC {
            return Err(HeaderFault::Magic);
        }
        let crc = crc32c(&[&bytes[..SEGMENT_CRC_OFFSET]]);
        if crc != u32_at(bytes, SEGMENT_CRC_OFFSET) {
            return Err(HeaderFault::Checksum);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != SEGMENT_VERSION {
            return Err(HeaderFault::Version(version));
        }
        let mut tag = [0; 32];
        tag.copy_from_slice(&bytes[48..80]);
        let header = SegmentHeader {
            segment_bytes: u64_at(bytes, 16),
            first: Lsn(u64_at(bytes, 24)),
            previous_end: Lsn(u64_at(bytes, 32)),
            trimmed: Lsn(u64_at(bytes, 40)),
            tag,
        };
        header.check(first)?;
        Ok((header, crc))
    }

    fn check(&self, first: Lsn) -> Result<(), HeaderFault> {
        if self.first != first {
            return Err(HeaderFault::Name(self.first));
        }
        let sane = is_segment_size(self.segment_bytes)
            && self.first.0.checked_add(self.segment_bytes).is_some()
            && self.first.0.is_multiple_of(RECORD_ALIGN)
            && self.durable() <= self.first;
        if sane { Ok(()) } else { Err(HeaderFault::Values) }
    }
}

/// Whether a segment may have this size.
pub(crate) fn is_segment_size(bytes: u64) -> bool {
    bytes.is_multiple_of(SEGMENT_ALIGN) && (SEGMENT_ALIGN..=SEGMENT_BYTES_MAX).contains(&bytes)
}

/// The mark of a segment: how far the log was durable when it was closed.
pub(crate) fn encode_mark(first: Lsn, segment_crc: u32, durable: Lsn) -> [u8; MARK_BYTES] {
    let mut bytes = [0; MARK_BYTES];
    bytes[0..8].copy_from_slice(&MARK_MAGIC);
    bytes[8..16].copy_from_slice(&first.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&durable.0.to_le_bytes());
    bytes[24..28].copy_from_slice(&segment_crc.to_le_bytes());
    let crc = crc32c(&[&bytes[..28]]);
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The LSN that the mark of this segment claims durable; `None` if it does not verify.
pub(crate) fn decode_mark(bytes: &[u8; MARK_BYTES], first: Lsn, segment_crc: u32) -> Option<Lsn> {
    let durable = Lsn(u64_at(bytes, 16));
    (*bytes == encode_mark(first, segment_crc, durable)).then_some(durable)
}

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) kind: u8,
    pub(crate) payload_bytes: u32,
    pub(crate) lsn: Lsn,
    /// Everything below was durable when the record was written.
    pub(crate) durable: Lsn,
}

impl RecordHeader {
    /// LSN after the record and its padding.
    pub(crate) fn end(&self) -> Lsn {
        self.lsn.plus(record_bytes(u64::from(self.payload_bytes)))
    }

    fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&RECORD_MAGIC);
        bytes[8] = RECORD_VERSION;
        bytes[9] = self.kind;
        bytes[12..16].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.lsn.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.durable.0.to_le_bytes());
        bytes
    }

    /// What claims to be the record at `lsn`, which may go on for `room` bytes. Not verified yet: see
    /// [`verify_record`].
    pub(crate) fn decode(
        bytes: &[u8; RECORD_HEADER_BYTES],
        lsn: Lsn,
        room: u64,
    ) -> Result<RecordHeader, RecordFault> {
        if bytes[0..4] != RECORD_MAGIC || u64_at(bytes, 16) != lsn.0 {
            return Err(RecordFault::Absent);
        }
        if bytes[8] != RECORD_VERSION {
            return Err(RecordFault::Version(bytes[8]));
        }
        let header = RecordHeader {
            kind: bytes[9],
            payload_bytes: u32_at(bytes, 12),
            lsn,
            durable: Lsn(u64_at(bytes, 24)),
        };
        if record_bytes(u64::from(header.payload_bytes)) > room {
            return Err(RecordFault::Length(header.payload_bytes));
        }
        Ok(header)
    }
}

/// Bytes a record takes in the log: header, payload, and zeros up to the alignment.
pub(crate) fn record_bytes(payload_bytes: u64) -> u64 {
    payload_bytes.saturating_add(RECORD_HEADER_BYTES as u64).next_multiple_of(RECORD_ALIGN)
}

/// Completes the record whose header room and payload are the end of `buffer`, from `from` on.
pub(crate) fn finish_record(buffer: &mut Vec<u8>, from: usize, header: &RecordHeader, segment_crc: u32) {
    let bytes = record_bytes(u64::from(header.payload_bytes)) as usize;
    buffer.resize(from + bytes, 0);
    let record = &mut buffer[from..];
    record[..RECORD_HEADER_BYTES].copy_from_slice(&header.encode());
    let crc = crc32c(&[&segment_crc.to_le_bytes(), &record[RECORD_CRC_FROM..]]);
    record[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Whether `record`, all its bytes up to its end, is the one that was written to the segment with this
/// checksum.
pub(crate) fn verify_record(
    record: &[u8],
    header: &RecordHeader,
    segment_crc: u32,
) -> Result<(), RecordFault> {
    let (Some(stored), Some(covered)) = (record.get(4..8), record.get(RECORD_CRC_FROM..)) else {
        return Err(RecordFault::Checksum);
    };
    if crc32c(&[&segment_crc.to_le_bytes(), covered]).to_le_bytes() != stored {
        return Err(RecordFault::Checksum);
    }
    // A record cannot have known itself durable.
    if header.durable > header.lsn { Err(RecordFault::Values) } else { Ok(()) }
}

/// CRC-32C (iSCSI, Castagnoli) of the parts as one.
fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    digest.finalize() as u32
}

fn u64_at<const N: usize>(bytes: &[u8; N], offset: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(value)
}

fn u32_at<const N: usize>(bytes: &[u8; N], offset: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(value)
}

#[cfg(test)]
mod tests;
