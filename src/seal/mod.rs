//! Keys, and the AES-256-GCM seals that bind each stored thing to its place.
//!
//! # Invariants
//! - No key seals two plaintexts under one nonce, whatever crashes: every object, every small sealed thing and every
//!   tenure of a log has a key of its own, derived from a fresh random salt; what one key seals is numbered.
//! - Associated data binds a seal to the volume, the object and the position, so nothing sealed can be moved.
//!
//! Sources: NIST SP 800-38D (GCM), RFC 5869 (HKDF), RFC 9106 (Argon2).

pub mod aead;
pub mod frame;
pub mod keys;
pub mod log;
pub mod recovery;
pub mod slot;
pub mod small;

/// Why a seal did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The bytes, or the place they were found in, are not those that were sealed.
    #[error("its seal does not open: damaged, moved or replaced")]
    Broken,
    /// Opened, but it does not unpack to the length stated.
    #[error("it does not unpack to the length stated")]
    Unpack,
}
