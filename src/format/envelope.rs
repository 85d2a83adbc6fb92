//! The frame around every small object in the bucket: what it is, its version, its length, its checksum.
//!
//! The checksum finds damage; only the seal inside finds malice. Layout: `docs/format.md`, "Envelope".

use super::{FormatError, codec::VALUE_BYTES_MAX, object::TAG_BYTES};

/// Bytes before the body.
pub const ENVELOPE_BYTES: usize = 24;
/// Bytes of the salt of a sealed envelope.
pub const SALT_BYTES: usize = 16;
/// Longest manifest, bytes: the largest value, its salt and tag, in an envelope. More is not read.
pub const MANIFEST_BYTES_MAX: u64 = VALUE_BYTES_MAX + (ENVELOPE_BYTES + SALT_BYTES + TAG_BYTES) as u64;
/// Longest header, slot and claim, bytes. They have some hundred, and names and labels of people; more is not read.
pub const SMALL_BYTES_MAX: u64 = 64 << 10;
const MAGIC: &[u8; 4] = b"s3bd";

/// What an envelope holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// `volume`
    Header,
    /// `keys/<slot>`
    Slot,
    /// `claims/<generation>-<nonce>`
    Claim,
    /// `manifests/<generation>-<epoch>`
    Manifest,
    /// `independent`
    Independent,
    /// `seen` in the state directory
    Seen,
    /// `log` in the state directory
    LogIdentity,
}

impl Content {
    /// The four bytes that say it, in the envelope and in the seal of what is in it.
    #[must_use]
    pub fn tag(self) -> [u8; 4] {
        *match self {
            Self::Header => b"volu",
            Self::Slot => b"slot",
            Self::Claim => b"clai",
            Self::Manifest => b"mani",
            Self::Independent => b"inde",
            Self::Seen => b"seen",
            Self::LogIdentity => b"logi",
        }
    }

    /// Its name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Header => "volume header",
            Self::Slot => "key slot",
            Self::Claim => "claim",
            Self::Manifest => "manifest",
            Self::Independent => "note of independence",
            Self::Seen => "record of the newest epoch seen",
            Self::LogIdentity => "log identity",
        }
    }
}

/// CRC-32C (Castagnoli) of `parts` in order.
#[must_use]
pub fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    digest.finalize() as u32
}

/// Puts `body` into an envelope.
#[must_use]
pub fn wrap(content: Content, version: u16, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ENVELOPE_BYTES + body.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&content.tag());
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&(body.len() as u64).to_le_bytes());
    let crc = crc32c(&[&out, body]);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(body);
    out
}

/// Takes the body out of an envelope, and its version, which is at most `newest`.
pub fn unwrap(content: Content, newest: u16, bytes: &[u8]) -> Result<(u16, &[u8]), FormatError> {
    let what = content.name();
    let short = |expected: u64| FormatError::Short { what, found: bytes.len() as u64, expected };
    let (head, body) = bytes.split_at_checked(ENVELOPE_BYTES).ok_or(short(ENVELOPE_BYTES as u64))?;
    if head[..4] != *MAGIC || head[4..8] != content.tag() {
        return Err(FormatError::Magic { what });
    }
    let length = u64::from_le_bytes(head[12..20].try_into().expect("eight bytes"));
    if (body.len() as u64) < length {
        return Err(short(length.saturating_add(ENVELOPE_BYTES as u64)));
    }
    if body.len() as u64 > length {
        return Err(FormatError::Malformed { what, detail: "bytes after its end" });
    }
    let crc = u32::from_le_bytes(head[20..24].try_into().expect("four bytes"));
    if crc != crc32c(&[&head[..20], body]) {
        return Err(FormatError::Checksum { what });
    }
    let version = u16::from_le_bytes([head[8], head[9]]);
    if version == 0 || version > newest {
        return Err(FormatError::Version { what, found: version, newest });
    }
    Ok((version, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let bytes = wrap(Content::Header, 1, b"body");
        assert_eq!(bytes[..20], *b"s3bdvolu\x01\0\0\0\x04\0\0\0\0\0\0\0");
        assert_eq!(bytes[20..24], crc32c(&[&bytes[..20], b"body"]).to_le_bytes());
        assert_eq!(unwrap(Content::Header, 1, &bytes), Ok((1, &b"body"[..])));
    }

    #[test]
    fn crc_is_the_castagnoli_check_value() {
        // RFC 3720, B.4 uses the same polynomial; the check value of "123456789" is the catalogue's.
        assert_eq!(crc32c(&[b"12345", b"6789"]), 0xe306_9283);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let bytes = wrap(Content::Manifest, 1, b"some body");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(unwrap(Content::Manifest, 1, &damaged).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(unwrap(Content::Manifest, 1, &bytes[..length]).is_err(), "length {length}");
        }
        let longer = [&bytes[..], b"x"].concat();
        assert!(unwrap(Content::Manifest, 1, &longer).is_err());
    }

    #[test]
    fn a_newer_version_says_so() {
        let bytes = wrap(Content::Claim, 2, b"");
        let error = unwrap(Content::Claim, 1, &bytes).unwrap_err();
        assert_eq!(error, FormatError::Version { what: "claim", found: 2, newest: 1 });
    }
}
