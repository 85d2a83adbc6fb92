//! What the log's records say: kinds, heads, and back. Layout: `docs/format.md`, "Log records".

use bytes::Bytes;
use wal::Lsn;

use super::{error::VolumeError, resize::SIZE_BYTES_MAX};
use crate::format::ids::{Epoch, Generation};

/// Bytes of a write's head, before its data.
pub const WRITE_HEAD_BYTES: usize = 16;
const WRITE: u8 = 1;
const ZERO: u8 = 2;
const RESIZE: u8 = 3;
const PUBLISHED: u8 = 6;
const CLOSED: u8 = 7;

/// A record, opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogRecord {
    /// Data written at a byte offset.
    Write {
        /// First byte.
        offset: u64,
        /// When, milliseconds since 1970.
        time_ms: u64,
        /// The data.
        data: Bytes,
    },
    /// A range that reads as zeros from here on: a trim or a write of zeroes.
    Zero {
        /// First byte.
        offset: u64,
        /// When, milliseconds since 1970.
        time_ms: u64,
        /// Bytes.
        length: u64,
    },
    /// The volume has another size from here on; what lies between the two reads as zeros.
    Resize {
        /// Its size, bytes.
        size_bytes: u64,
        /// When, milliseconds since 1970.
        time_ms: u64,
    },
    /// A cut was published: everything below `lsn` is in that manifest.
    Published {
        /// Tenure.
        generation: Generation,
        /// Epoch.
        epoch: Epoch,
        /// How far the cut reaches.
        lsn: Lsn,
    },
    /// The volume was closed: nothing before is unpublished.
    Closed,
}

/// Head of a write of data at `offset`.
#[must_use]
pub fn write_head(offset: u64, time_ms: u64) -> (u8, [u8; WRITE_HEAD_BYTES]) {
    let mut head = [0; WRITE_HEAD_BYTES];
    head[..8].copy_from_slice(&offset.to_le_bytes());
    head[8..].copy_from_slice(&time_ms.to_le_bytes());
    (WRITE, head)
}

/// Head of a record of zeros, the whole of it.
#[must_use]
pub fn zero_head(offset: u64, length: u64, time_ms: u64) -> (u8, [u8; 24]) {
    let mut head = [0; 24];
    head[..8].copy_from_slice(&offset.to_le_bytes());
    head[8..16].copy_from_slice(&time_ms.to_le_bytes());
    head[16..].copy_from_slice(&length.to_le_bytes());
    (ZERO, head)
}

/// Head of a change of the volume's size, the whole of it.
#[must_use]
pub fn resize_head(size_bytes: u64, time_ms: u64) -> (u8, [u8; 16]) {
    let mut head = [0; 16];
    head[..8].copy_from_slice(&size_bytes.to_le_bytes());
    head[8..].copy_from_slice(&time_ms.to_le_bytes());
    (RESIZE, head)
}

/// Head of a record of a published cut, the whole of it.
#[must_use]
pub fn published_head(generation: Generation, epoch: Epoch, lsn: Lsn) -> (u8, [u8; 24]) {
    let mut head = [0; 24];
    head[..8].copy_from_slice(&generation.0.to_le_bytes());
    head[8..16].copy_from_slice(&epoch.0.to_le_bytes());
    head[16..].copy_from_slice(&lsn.0.to_le_bytes());
    (PUBLISHED, head)
}

/// Head of the record of a clean close, the whole of it.
#[must_use]
pub fn closed_head() -> (u8, [u8; 0]) {
    (CLOSED, [])
}

/// Reads an opened payload. `volume_bytes` bounds what a write or a zero may touch: the size of the volume at this record,
/// or [`SIZE_BYTES_MAX`] where that is not known.
pub fn decode(lsn: Lsn, kind: u8, plain: Bytes, volume_bytes: u64) -> Result<LogRecord, VolumeError> {
    let damaged = |detail| VolumeError::LogRecord { lsn, kind, detail };
    let number = |at: usize| -> Result<u64, VolumeError> {
        let bytes = plain.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_le_bytes).ok_or_else(|| damaged("shorter than its head"))
    };
    let within = |offset: u64, length: u64| {
        offset.checked_add(length).is_some_and(|end| end <= volume_bytes && length > 0)
    };
    let exactly =
        |length: usize| if plain.len() == length { Ok(()) } else { Err(damaged("of a wrong length")) };
    match kind {
        WRITE => {
            let (offset, time_ms) = (number(0)?, number(8)?);
            let data = plain.slice(WRITE_HEAD_BYTES..);
            if !within(offset, data.len() as u64) {
                return Err(damaged("beyond the volume's end"));
            }
            Ok(LogRecord::Write { offset, time_ms, data })
        }
        ZERO => {
            exactly(24)?;
            let (offset, time_ms, length) = (number(0)?, number(8)?, number(16)?);
            if !within(offset, length) {
                return Err(damaged("beyond the volume's end"));
            }
            Ok(LogRecord::Zero { offset, time_ms, length })
        }
        RESIZE => {
            exactly(16)?;
            let (size_bytes, time_ms) = (number(0)?, number(8)?);
            if !(1..=SIZE_BYTES_MAX).contains(&size_bytes) {
                return Err(damaged("a size that no volume has"));
            }
            Ok(LogRecord::Resize { size_bytes, time_ms })
        }
        PUBLISHED => {
            exactly(24)?;
            Ok(LogRecord::Published {
                generation: Generation(number(0)?),
                epoch: Epoch(number(8)?),
                lsn: Lsn(number(16)?),
            })
        }
        CLOSED => exactly(0).map(|()| LogRecord::Closed),
        _ => Err(damaged("of a kind that this s3bd does not know")),
    }
}
