//! Whatever the files hold, the cache gives a frame's own bytes or none.

use bytes::Bytes;
use proptest::prelude::*;
use wal::disk::{Disk, sim::SimDisk};

use super::{MIB, files, given, held, key, open, put};
use crate::cache::{FrameCache, Lookup, segment};

/// Small frames, so that a segment has all there is to damage in few bytes.
fn small(number: u64) -> Bytes {
    super::frame_of(number, 24 + number as usize * 3)
}

fn given_small(cache: &FrameCache, numbers: std::ops::Range<u64>) -> usize {
    let given = |number: &u64| {
        let got = cache.get(&key(*number));
        assert!(got.as_ref().is_none_or(|got| *got == small(*number)), "wrong bytes for frame {number}");
        got.is_some()
    };
    numbers.filter(given).count()
}

/// A disk with a sealed segment and one that is not, of small frames.
fn disk_of_small() -> (SimDisk, u64) {
    let disk = SimDisk::new();
    let cache = open(&disk, 64 << 10);
    let count = segment::entries_max(4096) as u64;
    let mut number = 0;
    while files(&disk).len() < 2 {
        cache.insert(key(number), small(number));
        number += 1;
    }
    assert!(number <= count + 1);
    (2..6).for_each(|more| cache.insert(key(number + more), small(number + more)));
    (disk, number + 6)
}

#[test]
fn every_flipped_bit_gives_a_miss_or_the_right_bytes() {
    let (disk, frames) = disk_of_small();
    let all = given_small(&open(&disk.snapshot(), 64 << 10), 0..frames);
    let mut least = all;
    for (name, bytes) in files(&disk) {
        for offset in 0..bytes {
            // One bit of each byte, and all of them where the headers and the table are dense.
            let bits = if offset < 300 || bytes - offset < 100 {
                0..8
            } else {
                (offset % 8) as u8..(offset % 8) as u8 + 1
            };
            for bit in bits {
                let damaged = disk.snapshot();
                assert!(damaged.flip_bit(&name, offset, bit));
                least = least.min(given_small(&open(&damaged, 64 << 10), 0..frames));
            }
        }
    }
    assert!(least < all, "some were found damaged");
}

#[test]
fn bits_flipped_under_an_open_cache_give_a_miss_and_the_frame_can_come_again() {
    let disk = SimDisk::new();
    let cache = open(&disk, MIB);
    put(&cache, 0..10);
    let (name, _) = files(&disk).remove(0);
    for number in 0..10 {
        assert!(disk.flip_bit(&name, number * (4096 + 56) + 60 + number * 31, 3));
        assert_eq!(given(&cache, [number]), 0);
        assert!(!cache.contains(&key(number)), "forgotten");
        put(&cache, [number]);
        assert_eq!(given(&cache, [number]), 1);
    }
    assert_eq!(cache.stats().errors, 10);
}

#[test]
fn whole_entries_in_each_others_place_are_not_taken_for_each_other() {
    let disk = SimDisk::new();
    let cache = open(&disk, MIB);
    put(&cache, 0..4);
    let file = disk.open(&files(&disk)[0].0).unwrap();
    let entry_bytes = 4096 + 56;
    let mut entries = vec![0; 4 * entry_bytes];
    assert_eq!(file.read_at(&mut entries, 0).unwrap(), entries.len());
    entries.rotate_left(entry_bytes);
    file.write_at(&entries, 0).unwrap();
    assert_eq!(cache.get_nowait(&key(0)), Lookup::WouldWait, "left to get");
    assert_eq!(given(&cache, 0..4), 0);
    assert_eq!(held(&cache, 0..4), 0);
    drop(cache);
    assert_eq!(given(&open(&disk, MIB), 0..4), 4, "each says who it is");
}

#[test]
fn files_cut_anywhere_or_grown_are_read_as_far_as_they_go() {
    let (disk, frames) = disk_of_small();
    for (name, bytes) in files(&disk) {
        for length in (0..bytes).step_by(37).chain([bytes - 1, bytes + 1, bytes * 3]) {
            let damaged = disk.snapshot();
            damaged.open(&name).unwrap().set_len(length).unwrap();
            let cache = open(&damaged, 64 << 10);
            given_small(&cache, 0..frames);
            put_small(&cache, 0..frames);
            given_small(&cache, 0..frames);
            assert!(damaged.used_bytes() <= 64 << 10);
        }
    }
}

#[test]
fn file_cut_under_an_open_cache_gives_misses() {
    let disk = SimDisk::new();
    let cache = open(&disk, MIB);
    put(&cache, 0..40);
    for (name, _) in files(&disk) {
        disk.open(&name).unwrap().set_len(10_000).unwrap();
    }
    let left = given(&cache, 0..40);
    assert!((1..40).contains(&left), "{left}");
    put(&cache, 0..100);
    assert!(given(&cache, 0..100) >= 40);
}

#[test]
fn older_and_swapped_segments_are_no_harm() {
    let disk = SimDisk::new();
    put(&open(&disk, MIB), 0..60);
    let older = disk.snapshot();
    put(&open(&disk, MIB), 60..300);
    let names: Vec<String> = files(&disk).into_iter().map(|(name, _)| name).collect();
    disk.rename(&names[1], "swap").unwrap();
    disk.rename(&names[3], &names[1]).unwrap();
    disk.rename("swap", &names[3]).unwrap();
    let cache = open(&disk, MIB);
    assert!(given(&cache, 0..300) > 150);
    // Under the open cache.
    disk.put_back(&older);
    given(&cache, 0..300);
    put(&cache, 0..300);
    given(&cache, 0..300);
    drop(cache);
    given(&open(&disk, MIB), 0..300);
}

#[test]
fn without_a_table_of_contents_the_headers_are_walked() {
    let disk = SimDisk::new();
    put(&open(&disk, MIB), 0..100);
    for (name, bytes) in files(&disk) {
        let file = disk.open(&name).unwrap();
        file.write_at(&[0xff; 16], bytes - 16).unwrap();
    }
    let cache = open(&disk, MIB);
    assert_eq!(held(&cache, 0..100), 100);
    assert_eq!(given(&cache, 0..100), 100);
}

#[test]
fn crash_at_any_operation_loses_frames_and_never_gives_wrong_ones() {
    let frames = 200;
    let whole = SimDisk::new();
    work(&whole, frames);
    let mut survived = 0;
    for operation in 1..=whole.operations() {
        let disk = SimDisk::new();
        disk.die_at(operation);
        work(&disk, frames);
        for seed in 0..3 {
            let after = disk.crash(operation * 4 + seed);
            let cache = open(&after, 64 << 10);
            survived += given_small(&cache, 0..frames);
            put_small(&cache, 0..frames);
            given_small(&cache, 0..frames);
            assert!(after.used_bytes() <= 64 << 10);
            // And once more, what was written around torn entries.
            drop(cache);
            given_small(&open(&after.crash(seed), 64 << 10), 0..frames);
        }
    }
    assert!(survived > 0);
}

/// Inserts with evictions, promotions and a reopening.
fn work(disk: &SimDisk, frames: u64) {
    let half = frames / 2;
    let hot = || (0..half).filter(|number| number % 3 == 0 || *number < 30);
    let cache = open(disk, 64 << 10);
    put_small(&cache, 0..half);
    hot().for_each(|number| drop(cache.get(&key(number))));
    drop(cache);
    let cache = open(disk, 64 << 10);
    hot().for_each(|number| drop(cache.get(&key(number))));
    put_small(&cache, half..frames);
    let stats = cache.stats();
    assert!(disk.is_dead() || stats.evicted > 20, "{stats:?}");
}

fn put_small(cache: &FrameCache, numbers: std::ops::Range<u64>) {
    numbers.for_each(|number| cache.insert(key(number), small(number)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn garbage_in_our_files_is_no_harm(
        garbage in proptest::collection::vec(any::<u8>(), 0..9000),
        main in any::<bool>(),
        number in prop_oneof![0_u32..20, any::<u32>()],
        at in 0_u64..9000,
    ) {
        let (disk, frames) = disk_of_small();
        let queue = if main { segment::Queue::Main } else { segment::Queue::Probation };
        let name = segment::name(queue, number);
        let file = disk.open(&name).or_else(|_| disk.create(&name, 8192)).unwrap();
        file.write_at(&garbage, at).unwrap();
        let cache = open(&disk, 64 << 10);
        given_small(&cache, 0..frames);
        put_small(&cache, 0..frames * 4);
        given_small(&cache, 0..frames * 4);
    }
}
