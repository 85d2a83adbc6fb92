//! What goes in comes out, within the bounds, and again after reopening.

use std::sync::Arc;

use bytes::Bytes;
use wal::disk::{Disk, sim::SimDisk};

use super::{FrameCache, MIB, files, frame, frame_of, given, held, key, open, put};
use crate::cache::{Lookup, segment};

#[test]
fn frame_goes_in_and_comes_out() {
    let cache = open(&SimDisk::new(), MIB);
    assert_eq!(cache.get_nowait(&key(1)), Lookup::Miss);
    put(&cache, [1, 2]);
    assert!(cache.contains(&key(1)));
    assert_eq!(cache.get(&key(1)), Some(frame(1)));
    assert_eq!(cache.get_nowait(&key(2)), Lookup::Hit(frame(2)));
    assert_eq!(cache.get(&key(3)), None);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.entries, stats.bytes), (2, 2, 2, 8192));
    assert_eq!((stats.errors, stats.dropped, stats.evicted, stats.queued_bytes), (0, 0, 0, 0));
}

#[test]
fn frames_of_any_length_up_to_a_segment_come_back() {
    let cache = open(&SimDisk::new(), MIB);
    let segment_bytes = segment::segment_bytes(MIB).unwrap() as usize;
    let fits = segment_bytes - 2 * 56 - 16;
    for (number, length) in [0, 1, 16, 4096, fits].into_iter().enumerate() {
        let frame = frame_of(number as u64, length);
        cache.insert(key(number as u64), frame.clone());
        assert_eq!(cache.get(&key(number as u64)), Some(frame), "{length}");
    }
    cache.insert(key(99), frame_of(99, fits + 1));
    assert!(!cache.contains(&key(99)), "larger than a segment");
    assert_eq!(cache.stats().dropped, 1);
}

#[test]
fn keys_that_differ_in_one_field_are_different_frames() {
    let cache = open(&SimDisk::new(), MIB);
    let base = key(0);
    let mut others = [base; 4];
    others[0].owner.0[15] ^= 1;
    others[1].generation.0 += 1;
    others[2].sequence.0 += 1;
    others[3].offset += 1;
    cache.insert(base, frame(0));
    for (at, other) in others.iter().enumerate() {
        assert!(!cache.contains(other) && cache.get(other).is_none());
        cache.insert(*other, frame(1 + at as u64));
    }
    assert_eq!(cache.get(&base), Some(frame(0)));
    others
        .iter()
        .enumerate()
        .for_each(|(at, other)| assert_eq!(cache.get(other), Some(frame(1 + at as u64))));
}

#[test]
fn reopening_finds_all_frames_and_goes_on_in_the_same_files() {
    let disk = SimDisk::new();
    for round in 0..40 {
        let cache = open(&disk, MIB);
        assert_eq!(given(&cache, 0..round), round as usize);
        put(&cache, [round]);
    }
    assert_eq!(
        files(&disk).len(),
        3,
        "40 frames of 4 KiB in segments of 64 KiB, however often it was opened"
    );
}

#[test]
fn frames_larger_and_smaller_limits_keep_what_fits() {
    let disk = SimDisk::new();
    put(&open(&disk, MIB), 0..200);
    assert_eq!(given(&open(&disk, 4 * MIB), 0..200), 200);
    let smaller = open(&disk, MIB / 2);
    assert!(disk.used_bytes() <= MIB / 2);
    let kept = given(&smaller, 0..200);
    assert!((60..200).contains(&kept), "{kept}");
    assert_eq!(held(&smaller, 150..200), 50, "the newest");
    smaller.set_bytes_max(MIB / 4);
    assert!(disk.used_bytes() <= MIB / 4);
    assert!(given(&smaller, 0..200) < kept);
    smaller.set_bytes_max(0);
    assert_eq!((disk.used_bytes(), given(&smaller, 0..200)), (0, 0));
    put(&smaller, [1]);
    assert!(!smaller.contains(&key(1)));
    smaller.set_bytes_max(MIB);
    put(&smaller, 0..10);
    assert_eq!(given(&smaller, 0..10), 10);
}

#[test]
fn limit_of_nothing_leaves_nothing_on_disk() {
    let disk = SimDisk::new();
    put(&open(&disk, MIB), 0..50);
    for bytes_max in [0, 1, (64 << 10) - 1] {
        let cache = open(&disk, bytes_max);
        put(&cache, 0..50);
        assert_eq!((files(&disk).len(), cache.stats().entries), (0, 0));
    }
}

#[test]
fn smallest_cache_works() {
    let disk = SimDisk::new();
    let cache = open(&disk, 64 << 10);
    for number in 0..200 {
        cache.insert(key(number), frame_of(number, 1000));
        assert_eq!(cache.get(&key(number)), Some(frame_of(number, 1000)));
        assert!(disk.used_bytes() <= 64 << 10);
    }
}

#[test]
fn a_cache_can_be_full_of_frames_of_one_block() {
    let cache = open(&SimDisk::new(), 64 * MIB);
    // But for its headers, and for two segments of sixteen that are kept free.
    let frames = 13_000;
    put(&cache, 0..frames);
    assert_eq!(held(&cache, 0..frames), frames as usize, "{:?}", cache.stats());
}

#[test]
fn tiny_frames_do_not_grow_the_index_without_bound() {
    let cache = open(&SimDisk::new(), MIB);
    (0..20_000).for_each(|number| cache.insert(key(number), Bytes::from_static(b"sixteen bytes...")));
    let stats = cache.stats();
    assert!(stats.entries <= 16 * segment::entries_max(64 << 10) as u64, "{stats:?}");
    assert!(stats.entries > 500, "{stats:?}");
}

#[test]
fn forgotten_frame_is_gone_and_can_come_again() {
    let cache = open(&SimDisk::new(), MIB);
    put(&cache, 0..100);
    for _ in 0..3 {
        cache.forget(&key(50));
        cache.forget(&key(50));
        assert_eq!(cache.get(&key(50)), None);
        put(&cache, [50]);
        assert_eq!(given(&cache, 0..100), 100);
    }
    assert_eq!(cache.stats().entries, 100);
    assert_eq!(cache.stats().bytes, 100 * 4096);
}

#[test]
fn closed_cache_still_reads_and_takes_no_more() {
    let cache = FrameCache::open(Arc::new(SimDisk::new()), MIB);
    put(&cache, 0..20);
    cache.close();
    cache.close();
    put(&cache, 20..40);
    assert_eq!((given(&cache, 0..40), cache.stats().entries, cache.stats().queued_bytes), (20, 20, 0));
}

#[test]
fn other_files_in_the_folder_are_left_alone() {
    let disk = SimDisk::new();
    let strange = ["README", "main-zzzzzzzz", "probation-1", "main-ffffffff", "probation-00000001.bak"];
    strange.iter().for_each(|name| drop(disk.create(name, 100).unwrap()));
    let cache = open(&disk, MIB);
    put(&cache, 0..1000);
    assert!(given(&cache, 0..1000) > 150);
    cache.set_bytes_max(0);
    let left: Vec<String> = files(&disk).into_iter().map(|(name, _)| name).collect();
    assert!(left.len() == strange.len() && strange.iter().all(|name| left.contains(&(*name).to_owned())));
}
