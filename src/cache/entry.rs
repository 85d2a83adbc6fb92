//! One frame as it is in a segment: a header of 56 bytes, then the bytes of the frame.
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | magic `sfc1`; the digit is the version |
//! | 4..8 | length of the payload, u32, little-endian like all that follow |
//! | 8..24 | owner of the object |
//! | 24..32 | generation |
//! | 32..40 | sequence |
//! | 40..48 | offset of the frame in the object |
//! | 48..52 | CRC-32C of the payload |
//! | 52..56 | CRC-32C of bytes 0..52 |
//!
//! Private to this cache: another version is another magic, and its entries are not found.

use std::hash::Hasher;

use crate::format::{
    envelope::crc32c,
    ids::{FrameRef, Generation, ObjectRef, Sequence, VolumeId},
};

/// Bytes before the payload.
pub(super) const HEADER_BYTES: usize = 56;
const MAGIC: &[u8; 4] = b"sfc1";
const CRC_AT: usize = 52;

/// What a frame is cached under: its object's name and its place in it. Such a name is never used for other bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameKey {
    /// The volume whose prefix the object is under.
    pub owner: VolumeId,
    /// Tenure that wrote the object.
    pub generation: Generation,
    /// The object's number.
    pub sequence: Sequence,
    /// Where the frame begins in the object, bytes.
    pub offset: u64,
}

impl FrameKey {
    /// The key of what begins at byte `offset` of `object`.
    #[must_use]
    pub fn new(object: &ObjectRef, offset: u64) -> Self {
        Self { owner: object.owner, generation: object.generation, sequence: object.sequence, offset }
    }

    /// What the index knows it by. The same in every process, so that a simulation repeats itself; two keys of one
    /// hash cost a miss and nothing else.
    pub(super) fn hash64(&self) -> u64 {
        // SipHash with a fixed key.
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(&self.owner.0);
        hasher.write_u64(self.generation.0);
        hasher.write_u64(self.sequence.0);
        hasher.write_u64(self.offset);
        hasher.finish()
    }
}

impl From<&FrameRef> for FrameKey {
    fn from(frame: &FrameRef) -> Self {
        Self::new(&frame.object, frame.offset)
    }
}

/// A decoded entry header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) key: FrameKey,
    /// Length of the payload, bytes.
    pub(super) length: u32,
    crc: u32,
}

impl Header {
    pub(super) fn new(key: FrameKey, payload: &[u8]) -> Self {
        Self { key, length: payload.len() as u32, crc: crc32c(&[payload]) }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(MAGIC);
        out[4..8].copy_from_slice(&self.length.to_le_bytes());
        out[8..24].copy_from_slice(&self.key.owner.0);
        out[24..32].copy_from_slice(&self.key.generation.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.key.sequence.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.key.offset.to_le_bytes());
        out[48..52].copy_from_slice(&self.crc.to_le_bytes());
        let crc = crc32c(&[&out[..CRC_AT]]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header that `bytes` begins with, if it is one.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let head: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let whole = head[..4] == *MAGIC && head[CRC_AT..] == crc32c(&[&head[..CRC_AT]]).to_le_bytes();
        whole.then(|| Self {
            key: FrameKey {
                owner: VolumeId(head[8..24].try_into().expect("sixteen bytes")),
                generation: Generation(read_u64(head, 24)),
                sequence: Sequence(read_u64(head, 32)),
                offset: read_u64(head, 40),
            },
            length: read_u32(head, 4),
            crc: read_u32(head, 48),
        })
    }
}

/// Whether `bytes` are the whole entry of a key with this hash.
pub(super) fn verify_hash(bytes: &[u8], hash: u64) -> bool {
    verify(bytes).is_some_and(|key| key.hash64() == hash)
}

/// The key of the entry that `bytes` are, whole and undamaged.
pub(super) fn verify(bytes: &[u8]) -> Option<FrameKey> {
    let header = Header::decode(bytes)?;
    let payload = &bytes[HEADER_BYTES..];
    (payload.len() == header.length as usize && crc32c(&[payload]) == header.crc).then_some(header.key)
}

fn read_u64(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn read_u32(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> (FrameKey, Vec<u8>) {
        let key = FrameKey {
            owner: VolumeId([7; 16]),
            generation: Generation(2),
            sequence: Sequence(3),
            offset: 1 << 40,
        };
        let payload = b"sealed bytes";
        let mut bytes = Header::new(key, payload).encode().to_vec();
        bytes.extend_from_slice(payload);
        (key, bytes)
    }

    #[test]
    fn entry_comes_back_and_every_flipped_bit_or_cut_is_refused() {
        let (key, bytes) = entry();
        assert_eq!(verify(&bytes), Some(key));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(verify(&damaged), None, "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(verify(&bytes[..length]), None, "cut to {length}");
        }
    }
}
