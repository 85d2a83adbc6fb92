//! Where each cached frame is: from the hash of its key to its place in a segment.
//!
//! Sixteen bytes of place and eight of hash, in tables that are between 7/16 and 7/8 full: 29 to 57 bytes an entry.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// Tables the index is split into, so that growing one of them holds up the readers for a 64th of the time.
const SHARDS: usize = 64;

/// The keys are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only u64 keys");
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Number of the segment.
    pub(super) segment: u32,
    /// Where its header begins in the segment, bytes.
    pub(super) offset: u32,
    /// Length of the payload, bytes.
    pub(super) length: u32,
}

#[derive(Clone, Copy)]
struct Slot {
    place: Place,
    /// Read since it came to this segment.
    hit: bool,
}

#[derive(Default)]
struct Shard(HashMap<u64, Slot, BuildHasherDefault<Identity>>);

/// See the module.
pub(super) struct Index {
    shards: Vec<Shard>,
    /// Payload bytes of all entries.
    bytes: u64,
    entries: u64,
}

impl Default for Index {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard::default()).collect(), bytes: 0, entries: 0 }
    }
}

impl Index {
    fn shard(&mut self, hash: u64) -> &mut HashMap<u64, Slot, BuildHasherDefault<Identity>> {
        // The table takes its bucket from the low bits and its tag from the topmost seven: these are neither.
        &mut self.shards[(hash >> 48) as usize % SHARDS].0
    }

    pub(super) fn contains(&self, hash: u64) -> bool {
        self.shards[(hash >> 48) as usize % SHARDS].0.contains_key(&hash)
    }

    /// The place of an entry, which counts as read from now on.
    pub(super) fn hit(&mut self, hash: u64) -> Option<Place> {
        let slot = self.shard(hash).get_mut(&hash)?;
        slot.hit = true;
        Some(slot.place)
    }

    /// The place of an entry that is in `segment`, and whether it has been read there.
    pub(super) fn at_segment(&self, hash: u64, segment: u32) -> Option<(Place, bool)> {
        let slot = self.shards[(hash >> 48) as usize % SHARDS].0.get(&hash)?;
        (slot.place.segment == segment).then_some((slot.place, slot.hit))
    }

    /// Puts an entry at `place`, not read yet, wherever it was before.
    pub(super) fn insert(&mut self, hash: u64, place: Place) {
        let before = self.shard(hash).insert(hash, Slot { place, hit: false });
        self.bytes += u64::from(place.length);
        match before {
            Some(slot) => self.bytes -= u64::from(slot.place.length),
            None => self.entries += 1,
        }
    }

    /// Moves an entry if it is still at `from`; says whether it was.
    pub(super) fn relocate(&mut self, hash: u64, from: Place, to: Place) -> bool {
        debug_assert_eq!(from.length, to.length, "the same bytes");
        match self.shard(hash).get_mut(&hash) {
            Some(slot) if slot.place == from => {
                *slot = Slot { place: to, hit: false };
                true
            }
            _ => false,
        }
    }

    pub(super) fn remove(&mut self, hash: u64) -> bool {
        let Some(slot) = self.shard(hash).remove(&hash) else { return false };
        self.bytes -= u64::from(slot.place.length);
        self.entries -= 1;
        true
    }

    /// Removes an entry if it is still at `place`; says whether it was.
    pub(super) fn remove_at(&mut self, hash: u64, place: Place) -> bool {
        let there = self.shard(hash).get(&hash).is_some_and(|slot| slot.place == place);
        there && self.remove(hash)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn entries(&self) -> u64 {
        self.entries
    }
}
