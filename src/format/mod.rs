//! Bytes to types and back, pure: no I/O, no keys. `docs/format.md` describes every byte.
//!
//! # Invariants
//! - Every decoder takes arbitrary bytes and answers with a value or a [`FormatError`]; never a panic, never an
//!   allocation larger than its input warrants.
//! - Stored structs never change: a new version is a new struct, and enums only grow at the end.

pub mod claim;
pub mod codec;
pub mod envelope;
pub mod header;
pub mod ids;
pub mod independent;
pub mod index;
pub mod local;
pub mod manifest;
pub mod names;
pub mod object;
pub mod page;
pub mod slot;

/// Why bytes are not what they should be. The caller adds the name of the object they came from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Shorter than its own header, or than the length it states.
    #[error("{what} is cut short: {found} bytes of {expected}")]
    Short {
        /// What was being decoded.
        what: &'static str,
        /// Bytes there.
        found: u64,
        /// Bytes needed.
        expected: u64,
    },
    /// It does not begin as such a thing begins.
    #[error("not a {what}: wrong magic")]
    Magic {
        /// What was being decoded.
        what: &'static str,
    },
    /// Written by a newer s3bd.
    #[error("{what} has format version {found}; this s3bd reads up to {newest}: use a newer s3bd")]
    Version {
        /// What was being decoded.
        what: &'static str,
        /// Version found.
        found: u16,
        /// Newest version known here.
        newest: u16,
    },
    /// The checksum over it does not match.
    #[error("{what} is damaged: checksum mismatch")]
    Checksum {
        /// What was being decoded.
        what: &'static str,
    },
    /// Whole, but a field makes no sense.
    #[error("{what} is malformed: {detail}")]
    Malformed {
        /// What was being decoded.
        what: &'static str,
        /// Which field.
        detail: &'static str,
    },
}
