//! The volume header: what never changes about a volume. Object `volume`, plain, create-only.

use serde::{Deserialize, Serialize};

use super::{
    FormatError, codec, envelope,
    ids::{Codec, VolumeId},
};

/// Smallest block, bytes: the sector that every client knows.
pub const BLOCK_BYTES_MIN: u32 = 512;
/// Largest block, bytes: a frame holds at least one block, and frames are read whole.
pub const BLOCK_BYTES_MAX: u32 = 16 << 20;

/// Version 1 of the header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Names the volume for ever.
    pub volume: VolumeId,
    /// The map's granule, bytes: a power of two from [`BLOCK_BYTES_MIN`] to [`BLOCK_BYTES_MAX`].
    pub block_bytes: u32,
    /// Whether a secret is needed to read it.
    pub protection: Protection,
    /// How new frames are packed unless whoever opens it says otherwise.
    pub compression: Codec,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
}

/// Whether a volume's master key is kept from those who hold the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protection {
    /// The master key follows from the bucket alone: seals find damage, and hide nothing.
    Open,
    /// The master key is wrapped by passwords or key files.
    Secret,
}

impl Header {
    /// The bytes of the object.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        Ok(envelope::wrap(envelope::Content::Header, 1, &codec::encode("volume header", self)?))
    }

    /// Reads the bytes of the object.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (_, body) = envelope::unwrap(envelope::Content::Header, 1, bytes)?;
        let header: Self = codec::decode("volume header", body)?;
        let block = header.block_bytes;
        if !block.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block) {
            return Err(FormatError::Malformed { what: "volume header", detail: "block size" });
        }
        Ok(header)
    }
}
