//! Seals of the small things: manifests and claims, and the facts kept in the state directory.
//!
//! Layout: an envelope around 16 bytes of salt and the ciphertext with its tag (`docs/format.md`, "Sealed envelope").

use super::{SealError, keys::Keys};
use crate::format::{
    FormatError,
    envelope::{self, Content, SALT_BYTES},
};

/// Version of every sealed envelope; part of what is sealed, so that none passes for another.
const VERSION: u16 = 1;

/// Why a small sealed thing cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The envelope.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The seal within.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Seals `plain` for the place `name`, which is the object's name below the volume. `salt` is fresh and random.
#[must_use]
pub fn seal(keys: &Keys, content: Content, name: &str, salt: [u8; SALT_BYTES], plain: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(SALT_BYTES + plain.len() + crate::format::object::TAG_BYTES);
    body.extend_from_slice(&salt);
    body.extend_from_slice(plain);
    keys.small(&salt).cipher().seal_tail(0, &aad(keys, content, name), &mut body, SALT_BYTES);
    envelope::wrap(content, VERSION, &body)
}

/// Opens what [`seal`] made for the same place.
pub fn open(keys: &Keys, content: Content, name: &str, bytes: &[u8]) -> Result<Vec<u8>, OpenError> {
    let (_, body) = envelope::unwrap(content, VERSION, bytes)?;
    let (salt, sealed) = body.split_first_chunk::<SALT_BYTES>().ok_or(SealError::Broken)?;
    let mut plain = sealed.to_vec();
    let length = keys.small(salt).cipher().open_in_place(0, &aad(keys, content, name), &mut plain)?;
    plain.truncate(length);
    Ok(plain)
}

fn aad(keys: &Keys, content: Content, name: &str) -> Vec<u8> {
    [&content.tag()[..], &VERSION.to_le_bytes(), &keys.volume().0, name.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{format::ids::VolumeId, seal::aead::Key};

    #[test]
    fn opens_only_in_its_place_and_only_whole() {
        let keys = Keys::new(VolumeId([1; 16]), &Key::new([2; 32]));
        let other = Keys::new(VolumeId([3; 16]), &Key::new([2; 32]));
        let sealed = seal(&keys, Content::Manifest, "manifests/1-1", [7; 16], b"plain");
        assert_eq!(open(&keys, Content::Manifest, "manifests/1-1", &sealed).unwrap(), b"plain");
        assert!(open(&keys, Content::Manifest, "manifests/1-2", &sealed).is_err());
        assert!(open(&keys, Content::Claim, "manifests/1-1", &sealed).is_err());
        assert!(open(&other, Content::Manifest, "manifests/1-1", &sealed).is_err());
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&keys, Content::Manifest, "manifests/1-1", &damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_checksum_mended_by_an_attacker_does_not_open_it() {
        let keys = Keys::new(VolumeId([1; 16]), &Key::new([2; 32]));
        let sealed = seal(&keys, Content::Claim, "claims/1", [7; 16], b"plain");
        let mut body = sealed[envelope::ENVELOPE_BYTES..].to_vec();
        body[20] ^= 1;
        let forged = envelope::wrap(Content::Claim, 1, &body);
        assert_eq!(open(&keys, Content::Claim, "claims/1", &forged), Err(OpenError::Seal(SealError::Broken)));
    }
}
