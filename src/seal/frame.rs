//! Frames: packing, sealing, and back.

use std::borrow::Cow;

use super::{SealError, aead::Cipher};
use crate::format::{
    ids::{Codec, FrameRef},
    object::{TAG_BYTES, frame_aad},
};

/// How to pack frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// With what; [`Codec::Plain`] never compresses.
    pub codec: Codec,
    /// The codec's own level; LZ4 has none.
    pub level: i32,
}

impl Compression {
    /// What a volume has unless its owner says otherwise.
    pub const DEFAULT: Self = Self::of(Codec::Zstd);

    /// A codec at the level that suits a disk: Zstandard at 1 packs some 250 MB/s on old machines, which is more than most
    /// uplinks carry; XZ at 6, its own default, is for those who want it small.
    #[must_use]
    pub const fn of(codec: Codec) -> Self {
        let level = match codec {
            Codec::Plain | Codec::Lz4 => 0,
            Codec::Zstd => 1,
            Codec::Xz => 6,
        };
        Self { codec, level }
    }
}

/// Packs `plain`: the codec used, and the bytes; plain where compression does not make it smaller.
#[must_use]
pub fn pack(compression: Compression, plain: &[u8]) -> (Codec, Cow<'_, [u8]>) {
    let packed = match compression.codec {
        Codec::Plain => None,
        Codec::Zstd => zstd::bulk::compress(plain, compression.level).ok(),
        Codec::Lz4 => Some(lz4_flex::block::compress(plain)),
        Codec::Xz => pack_xz(plain, compression.level),
    };
    match packed {
        Some(packed) if packed.len() < plain.len() => (compression.codec, Cow::Owned(packed)),
        _ => (Codec::Plain, Cow::Borrowed(plain)),
    }
}

fn pack_xz(plain: &[u8], level: i32) -> Option<Vec<u8>> {
    use std::io::Write;
    let mut options = xz2::stream::LzmaOptions::new_preset(level.clamp(0, 9) as u32).ok()?;
    // A dictionary beyond the frame only costs memory; liblzma wants at least 4 KiB.
    options.dict_size((plain.len() as u32).max(4096));
    let mut filters = xz2::stream::Filters::new();
    filters.lzma2(&options);
    let stream = xz2::stream::Stream::new_stream_encoder(&filters, xz2::stream::Check::None).ok()?;
    let mut encoder = xz2::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(plain).ok()?;
    encoder.finish().ok()
}

/// Unpacks to exactly `plain_bytes` bytes.
fn unpack(codec: Codec, packed: Vec<u8>, plain_bytes: usize) -> Result<Vec<u8>, SealError> {
    let plain = match codec {
        Codec::Plain => packed,
        Codec::Zstd => zstd::bulk::decompress(&packed, plain_bytes).map_err(|_| SealError::Unpack)?,
        Codec::Lz4 => lz4_flex::block::decompress(&packed, plain_bytes).map_err(|_| SealError::Unpack)?,
        Codec::Xz => unpack_xz(&packed, plain_bytes)?,
    };
    if plain.len() == plain_bytes { Ok(plain) } else { Err(SealError::Unpack) }
}

fn unpack_xz(packed: &[u8], plain_bytes: usize) -> Result<Vec<u8>, SealError> {
    use std::io::Read;
    // The dictionary is at most the frame; the rest is the decoder's own state.
    let memory_bytes_max = plain_bytes as u64 + (8 << 20);
    let stream =
        xz2::stream::Stream::new_stream_decoder(memory_bytes_max, 0).map_err(|_| SealError::Unpack)?;
    let mut plain = Vec::with_capacity(plain_bytes);
    xz2::read::XzDecoder::new_stream(packed, stream)
        .take(plain_bytes as u64 + 1)
        .read_to_end(&mut plain)
        .map_err(|_| SealError::Unpack)?;
    Ok(plain)
}

/// Seals packed bytes as the frame `frame`, whose `stored_bytes` count the tag; appends them to `out`.
pub fn seal(cipher: &Cipher, frame: &FrameRef, packed: &[u8], out: &mut Vec<u8>) {
    debug_assert_eq!(frame.stored_bytes as usize, packed.len() + TAG_BYTES);
    let start = out.len();
    out.extend_from_slice(packed);
    cipher.seal_tail(frame.number.into(), &frame_aad(frame), out, start);
}

/// Opens the bytes of `frame` as they are in its object, and unpacks them.
pub fn open(cipher: &Cipher, frame: &FrameRef, stored: &[u8]) -> Result<Vec<u8>, SealError> {
    if stored.len() != frame.stored_bytes as usize {
        return Err(SealError::Broken);
    }
    let mut data = stored.to_vec();
    let length = cipher.open_in_place(frame.number.into(), &frame_aad(frame), &mut data)?;
    data.truncate(length);
    unpack(frame.codec, data, frame.plain_bytes as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        format::ids::{Generation, ObjectRef, Sequence, VolumeId},
        seal::aead::Key,
    };

    const ALL: [Codec; 4] = [Codec::Plain, Codec::Zstd, Codec::Lz4, Codec::Xz];

    fn frame(number: u32, codec: Codec, packed: &[u8], plain: &[u8]) -> FrameRef {
        FrameRef {
            object: ObjectRef {
                owner: VolumeId([1; 16]),
                generation: Generation(1),
                sequence: Sequence(1),
                salt: [0; 16],
            },
            number,
            offset: 64,
            stored_bytes: (packed.len() + TAG_BYTES) as u32,
            plain_bytes: plain.len() as u32,
            codec,
        }
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn every_codec_comes_back_and_never_grows() {
        for codec in ALL {
            for plain in [vec![7; 65536], noise(65536), vec![1], b"abcabcabc".repeat(1000)] {
                let (used, packed) = pack(Compression { codec, level: 1 }, &plain);
                assert!(packed.len() <= plain.len(), "{codec:?}");
                assert_eq!(unpack(used, packed.into_owned(), plain.len()), Ok(plain), "{codec:?}");
            }
        }
    }

    #[test]
    fn noise_is_kept_plain() {
        for codec in ALL {
            assert_eq!(pack(Compression { codec, level: 1 }, &noise(65536)).0, Codec::Plain);
        }
    }

    #[test]
    fn a_wrong_length_is_an_error_and_no_larger_allocation() {
        for codec in ALL {
            let (used, packed) = pack(Compression { codec, level: 1 }, &[5; 65536]);
            for length in [65535, 65537] {
                assert_eq!(unpack(used, packed.to_vec(), length), Err(SealError::Unpack), "{codec:?}");
            }
        }
    }

    #[test]
    fn a_frame_opens_only_as_itself() {
        let cipher = Key::new([9; 32]).cipher();
        let plain = b"abc".repeat(999);
        let (codec, packed) = pack(Compression::DEFAULT, &plain);
        let frame = frame(3, codec, &packed, &plain);
        let mut stored = Vec::new();
        seal(&cipher, &frame, &packed, &mut stored);
        assert_eq!(open(&cipher, &frame, &stored), Ok(plain));
        for bit in 0..stored.len() * 8 {
            let mut damaged = stored.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&cipher, &frame, &damaged), Err(SealError::Broken), "bit {bit}");
        }
        let moved = [
            FrameRef { number: 4, ..frame },
            FrameRef { offset: 65, ..frame },
            FrameRef { plain_bytes: 1, ..frame },
            FrameRef { codec: Codec::Plain, ..frame },
            FrameRef { object: ObjectRef { sequence: Sequence(2), ..frame.object }, ..frame },
        ];
        for elsewhere in moved {
            assert_eq!(open(&cipher, &elsewhere, &stored), Err(SealError::Broken));
        }
    }
}
