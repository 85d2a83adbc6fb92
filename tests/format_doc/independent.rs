//! Keys, associated data and seals as `docs/format.md` spells them out, written a second time on the bare primitives.

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use s3bd::format::ids::{ObjectRef, VolumeId};

use crate::world::{COST, LOG, MASTER, TIME_MS, VOLUME};

pub fn hkdf(material: &[u8], salt: &[u8], info: &[u8]) -> [u8; 32] {
    let mut key = [0; 32];
    hkdf::Hkdf::<sha2::Sha256>::new(Some(salt), material).expand(info, &mut key).unwrap();
    key
}

/// The key for one purpose.
pub fn purpose(name: &str) -> [u8; 32] {
    hkdf(&MASTER, &VOLUME.0, format!("s3bd 1 {name}").as_bytes())
}

/// The key of one object.
pub fn object_key(object: &ObjectRef) -> [u8; 32] {
    let numbers = [object.generation.0.to_le_bytes(), object.sequence.0.to_le_bytes()].concat();
    hkdf(&purpose("object"), &object.salt, &[&object.owner.0[..], &numbers].concat())
}

/// What a clone that was flattened says.
pub fn word_of_independence(clone: &VolumeId) -> [u8; 32] {
    hkdf(&purpose("object"), &clone.0, b"s3bd 1 independent")
}

/// The key of one small sealed thing.
pub fn small_key(salt: &[u8]) -> [u8; 32] {
    hkdf(&purpose("small"), salt, &VOLUME.0)
}

/// The key of one tenure of the log of the examples.
pub fn log_key(tag: &[u8; 32]) -> [u8; 32] {
    hkdf(&purpose("log"), tag, &[VOLUME.0, LOG.0].concat())
}

/// Of version 1 of what has these four bytes in its envelope.
pub fn small_aad(tag: &str, name: &str) -> Vec<u8> {
    [tag.as_bytes(), &[1, 0], &VOLUME.0, name.as_bytes()].concat()
}

pub fn wrapping_key_of_password(password: &str, salt: &[u8]) -> [u8; 32] {
    let params = argon2::Params::new(COST.memory_kib, COST.passes, COST.lanes, Some(32)).unwrap();
    let mut key = [0; 32];
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into(password.as_bytes(), salt, &mut key)
        .unwrap();
    key
}

/// Of a slot whose way to unlock is these bytes.
pub fn slot_aad(unlock: &[u8], label: &str) -> Vec<u8> {
    [&b"s3bd 1 slot"[..], &VOLUME.0, &TIME_MS.to_le_bytes(), unlock, label.as_bytes()].concat()
}

pub fn slot_aad_of_password(label: &str) -> Vec<u8> {
    let cost = [COST.memory_kib, COST.passes, COST.lanes].map(u32::to_le_bytes).concat();
    slot_aad(&[&[1], &cost[..]].concat(), label)
}

/// The first half of what the check value of a slot is cut from.
pub fn check(wrapping: &[u8]) -> [u8; 16] {
    *hkdf(wrapping, b"", b"s3bd 1 check").first_chunk().unwrap()
}

/// Opens ciphertext and tag; the nonce is a number of eight bytes and four zeros.
pub fn open(key: &[u8; 32], number: u64, aad: &[u8], sealed: &[u8]) -> Vec<u8> {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    let cipher = Aes256Gcm::new(&(*key).into());
    cipher.decrypt(&nonce.into(), Payload { msg: sealed, aad }).expect("the document's seal opens")
}
