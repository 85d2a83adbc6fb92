//! The fixed parts of a block object: its header and its footer. Layout: `docs/format.md`, "Object".
//!
//! An object ends with its index and its footer, and has the same bytes once more right before: the *mirror* of its end.

use super::{
    FormatError,
    envelope::crc32c,
    ids::{Codec, FrameRef, Generation, ObjectRef, Sequence, VolumeId},
    index::INDEX_NUMBER,
};

/// Length of the header, bytes.
pub const HEADER_BYTES: usize = 64;
/// Length of the footer, bytes.
pub const FOOTER_BYTES: usize = 32;
/// Length of AES-GCM's tag, bytes.
pub const TAG_BYTES: usize = 16;
const VERSION: u16 = 1;
const HEADER_MAGIC: &[u8; 8] = b"s3bdobje";
const FOOTER_MAGIC: &[u8; 8] = b"s3bdfoot";

/// The header of an object; also the head of its frames' associated data, so it can be made from a reference alone.
#[must_use]
pub fn encode_header(object: &ObjectRef) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..8].copy_from_slice(HEADER_MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out[12..28].copy_from_slice(&object.owner.0);
    out[28..36].copy_from_slice(&object.generation.0.to_le_bytes());
    out[36..44].copy_from_slice(&object.sequence.0.to_le_bytes());
    out[44..60].copy_from_slice(&object.salt);
    let crc = crc32c(&[&out[..60]]);
    out[60..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Reads a header.
pub fn decode_header(bytes: &[u8]) -> Result<ObjectRef, FormatError> {
    let what = "object header";
    let head: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(FormatError::Short {
        what,
        found: bytes.len() as u64,
        expected: HEADER_BYTES as u64,
    })?;
    check_fixed(what, HEADER_MAGIC, head)?;
    Ok(ObjectRef {
        owner: VolumeId(head[12..28].try_into().expect("sixteen bytes")),
        generation: Generation(read_u64(&head[28..36])),
        sequence: Sequence(read_u64(&head[36..44])),
        salt: head[44..60].try_into().expect("sixteen bytes"),
    })
}

/// Magic, version, reserved bytes and checksum, which header and footer have in the same places.
fn check_fixed(what: &'static str, magic: &[u8; 8], bytes: &[u8]) -> Result<(), FormatError> {
    if bytes[..8] != *magic {
        return Err(FormatError::Magic { what });
    }
    let (body, crc) = bytes.split_at(bytes.len() - 4);
    if crc != crc32c(&[body]).to_le_bytes() {
        return Err(FormatError::Checksum { what });
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if version != VERSION {
        return Err(FormatError::Version { what, found: version, newest: VERSION });
    }
    Ok(())
}

fn read_u64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

/// The last bytes of an object: where its index is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Where the mirror of the index begins, bytes: the frames end there.
    pub index_offset: u64,
    /// Length of the sealed index, bytes.
    pub index_bytes: u32,
    /// Length of the index's plaintext, bytes.
    pub index_plain_bytes: u32,
    /// How the index was packed.
    pub index_codec: Codec,
}

impl Footer {
    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut out = [0; FOOTER_BYTES];
        out[..8].copy_from_slice(FOOTER_MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10] = self.index_codec.byte();
        out[12..20].copy_from_slice(&self.index_offset.to_le_bytes());
        out[20..24].copy_from_slice(&self.index_bytes.to_le_bytes());
        out[24..28].copy_from_slice(&self.index_plain_bytes.to_le_bytes());
        let crc = crc32c(&[&out[..28]]);
        out[28..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the last bytes of an object of `object_bytes` bytes.
    pub fn decode(bytes: &[u8], object_bytes: u64) -> Result<Self, FormatError> {
        let what = "object footer";
        let foot: &[u8; FOOTER_BYTES] = bytes.last_chunk().ok_or(FormatError::Short {
            what,
            found: bytes.len() as u64,
            expected: FOOTER_BYTES as u64,
        })?;
        check_fixed(what, FOOTER_MAGIC, foot)?;
        let malformed = |detail| FormatError::Malformed { what, detail };
        let footer = Self {
            index_offset: read_u64(&foot[12..20]),
            index_bytes: u32::from_le_bytes(foot[20..24].try_into().expect("four bytes")),
            index_plain_bytes: u32::from_le_bytes(foot[24..28].try_into().expect("four bytes")),
            index_codec: match foot[10] {
                0 => Codec::Plain,
                1 => Codec::Zstd,
                2 => Codec::Lz4,
                3 => Codec::Xz,
                _ => return Err(malformed("codec")),
            },
        };
        if footer.index_offset.checked_add(2 * footer.end_bytes()) != Some(object_bytes)
            || footer.index_offset < HEADER_BYTES as u64
        {
            return Err(malformed("place of the index"));
        }
        if u64::from(footer.index_plain_bytes) > super::codec::VALUE_BYTES_MAX {
            return Err(malformed("length of the index"));
        }
        Ok(footer)
    }

    /// The last footer among the last bytes of an object of `object_bytes` bytes: for where those of the footer itself are
    /// damaged, and its mirror is not.
    #[must_use]
    pub fn find(tail: &[u8], object_bytes: u64) -> Option<Self> {
        let ends = (FOOTER_BYTES..=tail.len()).rev();
        let mut tails = ends.map(|end| &tail[..end]);
        tails.find_map(|tail| {
            let is_one = tail[tail.len() - FOOTER_BYTES..].starts_with(FOOTER_MAGIC);
            is_one.then(|| Self::decode(tail, object_bytes).ok()).flatten()
        })
    }

    /// Length of the sealed index and the footer, bytes.
    #[must_use]
    pub fn end_bytes(&self) -> u64 {
        u64::from(self.index_bytes) + FOOTER_BYTES as u64
    }

    /// The index as a frame of its object.
    #[must_use]
    pub fn index(&self, object: ObjectRef) -> FrameRef {
        FrameRef {
            object,
            number: INDEX_NUMBER,
            offset: self.index_offset,
            stored_bytes: self.index_bytes,
            plain_bytes: self.index_plain_bytes,
            codec: self.index_codec,
        }
    }
}

/// Associated data of a frame: it binds the ciphertext to volume, object, number, place, lengths and codec.
#[must_use]
pub fn frame_aad(frame: &FrameRef) -> [u8; HEADER_BYTES + 21] {
    let mut out = [0; HEADER_BYTES + 21];
    out[..HEADER_BYTES].copy_from_slice(&encode_header(&frame.object));
    let tail = &mut out[HEADER_BYTES..];
    tail[..4].copy_from_slice(&frame.number.to_le_bytes());
    tail[4..12].copy_from_slice(&frame.offset.to_le_bytes());
    tail[12..16].copy_from_slice(&frame.stored_bytes.to_le_bytes());
    tail[16..20].copy_from_slice(&frame.plain_bytes.to_le_bytes());
    tail[20] = frame.codec.byte();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> ObjectRef {
        ObjectRef {
            owner: VolumeId([1; 16]),
            generation: Generation(2),
            sequence: Sequence(3),
            salt: [4; 16],
        }
    }

    fn footer() -> Footer {
        Footer { index_offset: 100, index_bytes: 20, index_plain_bytes: 40, index_codec: Codec::Zstd }
    }

    #[test]
    fn header_and_footer_come_back() {
        assert_eq!(decode_header(&encode_header(&object())), Ok(object()));
        assert_eq!(Footer::decode(&footer().encode(), 204), Ok(footer()));
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        for bit in 0..HEADER_BYTES * 8 {
            let mut bytes = encode_header(&object());
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_header(&bytes).is_err(), "header bit {bit}");
        }
        for bit in 0..FOOTER_BYTES * 8 {
            let mut bytes = footer().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Footer::decode(&bytes, 204).is_err(), "footer bit {bit}");
        }
    }

    #[test]
    fn a_footer_of_an_object_of_another_length_is_refused() {
        assert!(Footer::decode(&footer().encode(), 203).is_err());
        assert!(Footer::decode(&footer().encode()[1..], 204).is_err());
    }

    #[test]
    fn a_footer_is_found_by_its_mirror() {
        let end = [&[7; 20], &footer().encode()[..]].concat();
        let mut bytes = [vec![0; 100], end.clone(), end].concat();
        assert_eq!(Footer::find(&bytes, 204), Some(footer()));
        bytes[203] ^= 1;
        assert_eq!(Footer::find(&bytes, 204), Some(footer()));
        assert_eq!(Footer::find(&bytes[120..], 204), Some(footer()));
        assert_eq!(Footer::find(&bytes[121..], 204), None, "cut off");
        bytes[151] ^= 1;
        assert_eq!(Footer::find(&bytes, 204), None);
        assert_eq!(Footer::find(&[], 204), None);
    }
}
