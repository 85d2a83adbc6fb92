//! AES-256-GCM on a key of our own type.

use std::fmt;

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{AeadInOut, inout::InOutBuf},
};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::SealError;
use crate::format::object::TAG_BYTES;

/// 256 secret bits. Zeroed when dropped, never printed.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Key([u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// From its bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// HKDF-SHA-256 of this key: extract with `salt`, expand with the concatenation of `info` (RFC 5869).
    #[must_use]
    pub fn derive(&self, salt: &[u8], info: &[&[u8]]) -> Self {
        Self::derive_from(&self.0, salt, info)
    }

    /// The same from key material of any length.
    #[must_use]
    pub fn derive_from(material: &[u8], salt: &[u8], info: &[&[u8]]) -> Self {
        let mut out = [0; 32];
        hkdf::Hkdf::<sha2::Sha256>::new(Some(salt), material)
            .expand_multi_info(info, &mut out)
            .expect("32 bytes are fewer than 255 hashes");
        Self(out)
    }

    /// A cipher with its round keys made.
    #[must_use]
    pub fn cipher(&self) -> Cipher {
        Cipher(Aes256Gcm::new(&self.0.into()))
    }
}

/// A key made ready to seal and open.
pub struct Cipher(Aes256Gcm);

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher(..)")
    }
}

fn nonce(number: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    nonce
}

impl Cipher {
    /// Encrypts `data` in place under nonce `number` and returns the tag.
    #[must_use]
    pub fn seal_in_place(&self, number: u64, aad: &[u8], data: &mut [u8]) -> [u8; TAG_BYTES] {
        self.0
            .encrypt_inout_detached(&nonce(number).into(), aad, InOutBuf::from(data))
            .expect("a frame is far below the 64 GiB of one nonce")
            .into()
    }

    /// Decrypts `data`, whose last [`TAG_BYTES`] bytes are the tag, in place; returns the length of the plaintext.
    pub fn open_in_place(&self, number: u64, aad: &[u8], data: &mut [u8]) -> Result<usize, SealError> {
        let length = data.len().checked_sub(TAG_BYTES).ok_or(SealError::Broken)?;
        let (body, tag) = data.split_at_mut(length);
        let tag: [u8; TAG_BYTES] = (&*tag).try_into().map_err(|_| SealError::Broken)?;
        self.0
            .decrypt_inout_detached(&nonce(number).into(), aad, InOutBuf::from(body), &tag.into())
            .map_err(|_| SealError::Broken)?;
        Ok(length)
    }

    /// Encrypts the tail of `data` from `start` on in place and appends the tag.
    pub fn seal_tail(&self, number: u64, aad: &[u8], data: &mut Vec<u8>, start: usize) {
        let tag = self.seal_in_place(number, aad, &mut data[start..]);
        data.extend_from_slice(&tag);
    }
}
