//! bincode with the options that make it a stored format: fixed-width little-endian integers, a limit, no bytes left over.

use bincode::Options;
use serde::{Serialize, de::DeserializeOwned};

use super::FormatError;

/// No single stored value is larger, bytes. A page of 512 entries is below 100 KiB, an index of an object of
/// 16 MiB in 512-byte extents below 2 MiB; the rest is room.
pub const VALUE_BYTES_MAX: u64 = 64 << 20;

fn options() -> impl Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_little_endian()
        .with_limit(VALUE_BYTES_MAX)
        .reject_trailing_bytes()
}

/// Encodes a value; fails only above [`VALUE_BYTES_MAX`].
pub fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, FormatError> {
    options()
        .serialize(value)
        .map_err(|_| FormatError::Malformed { what, detail: "larger than a value may be" })
}

/// Decodes exactly `bytes`. Call it only on bytes whose checksum or seal has been verified: most single-byte
/// damage would still decode.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, FormatError> {
    options().deserialize(bytes).map_err(|_| FormatError::Malformed { what, detail: "does not decode" })
}
