//! The master key of a volume and the keys that derive from it, one a purpose.

use std::{collections::HashMap, sync::RwLock};

use super::aead::Key;
use crate::format::{
    ids::{LogId, ObjectRef, VolumeId},
    independent::Independent,
    manifest::Owner,
};

/// The keys of one open volume.
#[derive(Debug)]
pub struct Keys {
    volume: VolumeId,
    object: Key,
    small: Key,
    log: Key,
    /// The volumes that a clone reads from: their object keys, and their names in the bucket.
    owners: RwLock<HashMap<VolumeId, (Key, String)>>,
}

impl Keys {
    /// All keys of `volume` from its master key.
    #[must_use]
    pub fn new(volume: VolumeId, master: &Key) -> Self {
        let purpose = |name: &[u8]| master.derive(&volume.0, &[b"s3bd 1 ", name]);
        Self {
            volume,
            object: purpose(b"object"),
            small: purpose(b"small"),
            log: purpose(b"log"),
            owners: RwLock::default(),
        }
    }

    /// The volume they belong to.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// Makes the objects of another volume readable.
    pub fn add_owner(&self, owner: &Owner) {
        let mut owners = self.owners.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        owners.insert(owner.volume, (Key::new(owner.object_key), owner.name.clone()));
    }

    /// What another volume, a clone, has to know to read the objects of this one, which is called `name`.
    #[must_use]
    pub fn as_owner(&self, name: &str) -> Owner {
        Owner { volume: self.volume, name: name.to_owned(), object_key: *self.object.bytes() }
    }

    /// The name in the bucket of another volume whose objects can be read; none where it is unknown.
    #[must_use]
    pub fn owner_name(&self, owner: VolumeId) -> Option<String> {
        let owners = self.owners.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        owners.get(&owner).map(|(_, name)| name.clone())
    }

    /// What the volume `clone` has to say for `owner` to believe that it needs nothing of it any more: only who reads that
    /// one's objects can. None where the owner is unknown.
    #[must_use]
    pub fn word_of_independence(&self, owner: VolumeId, clone: VolumeId) -> Option<Independent> {
        let word = |key: &Key| Independent(*key.derive(&clone.0, &[b"s3bd 1 independent"]).bytes());
        if owner == self.volume {
            return Some(word(&self.object));
        }
        let owners = self.owners.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        owners.get(&owner).map(|(key, _)| word(key))
    }

    /// The key of one object; none where its owner is unknown.
    #[must_use]
    pub fn object(&self, object: &ObjectRef) -> Option<Key> {
        let info: [&[u8]; 3] =
            [&object.owner.0, &object.generation.0.to_le_bytes(), &object.sequence.0.to_le_bytes()];
        if object.owner == self.volume {
            return Some(self.object.derive(&object.salt, &info));
        }
        let owners = self.owners.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        Some(owners.get(&object.owner)?.0.derive(&object.salt, &info))
    }

    /// The key of one small sealed thing.
    #[must_use]
    pub(super) fn small(&self, salt: &[u8]) -> Key {
        self.small.derive(salt, &[&self.volume.0])
    }

    /// The key of one tenure of one log.
    #[must_use]
    pub(super) fn log(&self, log: LogId, salt: &[u8]) -> Key {
        self.log.derive(salt, &[&self.volume.0, &log.0])
    }
}
