//! Tests of the cache as a whole, on the simulated disk and on a real folder.

mod basic;
mod damage;
mod eviction;
mod faults;
mod model;
mod threads;

use std::sync::Arc;

use bytes::Bytes;
use wal::disk::{Disk, sim::SimDisk};

use super::{FrameCache, FrameKey};
use crate::format::ids::{Generation, Sequence, VolumeId};

/// A cache of this size has 16 segments of 64 KiB.
const MIB: u64 = 1 << 20;

/// Frame `number` of some volume, in objects of eight frames.
fn key(number: u64) -> FrameKey {
    FrameKey {
        owner: VolumeId([9; 16]),
        generation: Generation(1 + number % 3),
        sequence: Sequence(number / 8),
        offset: 64 + (number % 8) * 100_000,
    }
}

/// The bytes of frame `number`: what they are follows from the number, as with sealed frames.
fn frame_of(number: u64, length: usize) -> Bytes {
    let mut prng = wal::disk::sim::Prng::new(number);
    let words = (0..length.div_ceil(8)).flat_map(|_| prng.next_u64().to_le_bytes());
    words.take(length).collect()
}

/// Frame `number`, of 4096 bytes.
fn frame(number: u64) -> Bytes {
    frame_of(number, 4096)
}

/// Opens a cache without a thread.
fn open(disk: &SimDisk, bytes_max: u64) -> FrameCache {
    FrameCache::open_inline(Arc::new(disk.clone()), bytes_max)
}

fn put(cache: &FrameCache, numbers: impl IntoIterator<Item = u64>) {
    numbers.into_iter().for_each(|number| cache.insert(key(number), frame(number)));
}

/// How many of these frames the cache gives; panics if it gives other bytes.
fn given(cache: &FrameCache, numbers: impl IntoIterator<Item = u64>) -> usize {
    let given = |number: &u64| {
        let got = cache.get(&key(*number));
        assert!(got.as_ref().is_none_or(|got| *got == frame(*number)), "wrong bytes for frame {number}");
        got.is_some()
    };
    numbers.into_iter().filter(given).count()
}

/// How many of these frames the cache says it has.
fn held(cache: &FrameCache, numbers: impl IntoIterator<Item = u64>) -> usize {
    numbers.into_iter().filter(|number| cache.contains(&key(*number))).count()
}

/// All files of a disk: name and length.
fn files(disk: &SimDisk) -> Vec<(String, u64)> {
    let names = disk.list().unwrap();
    names.into_iter().map(|name| (name.clone(), disk.open(&name).unwrap().len().unwrap())).collect()
}
