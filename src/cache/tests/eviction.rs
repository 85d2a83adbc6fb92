//! Who stays when there is no room for all.

use wal::disk::sim::SimDisk;

use super::{MIB, given, held, key, open, put};

/// Frames that fill the cache of a mebibyte: 15 segments (one is spare) of 15.
const FULL: u64 = 15 * 15;

#[test]
fn files_never_exceed_the_limit() {
    let disk = SimDisk::new();
    let cache = open(&disk, MIB);
    for number in 0..FULL * 5 {
        put(&cache, [number]);
        given(&cache, [number / 2, number / 3]);
        assert!(disk.used_bytes() <= MIB);
        assert_eq!(cache.stats().file_bytes, disk.used_bytes());
    }
    let stats = cache.stats();
    assert!(stats.entries > FULL * 8 / 10, "and the room is used: {stats:?}");
    assert_eq!((stats.errors, stats.dropped), (0, 0));
    assert_eq!(stats.entries + stats.evicted, FULL * 5);
    assert_eq!(stats.entries, held(&cache, 0..FULL * 5) as u64);
}

#[test]
fn hot_set_survives_a_scan_of_four_times_the_cache_without_being_read_meanwhile() {
    let disk = SimDisk::new();
    let cache = open(&disk, MIB);
    let hot = 0..FULL / 2;
    put(&cache, hot.clone());
    assert_eq!(given(&cache, hot.clone()), hot.clone().count());
    put(&cache, 1000..1000 + FULL * 4);
    assert_eq!(held(&cache, hot.clone()), hot.clone().count());
    // A restart in between forgets who was read, and not who is in main.
    drop(cache);
    let cache = open(&disk, MIB);
    put(&cache, 9000..9000 + FULL * 4);
    assert_eq!(given(&cache, hot.clone()), hot.count());
}

#[test]
fn scattered_hot_frames_survive_a_scan() {
    let cache = open(&SimDisk::new(), MIB);
    let hot = || (0..FULL).filter(|number| number % 4 == 0);
    put(&cache, 0..FULL - 15);
    let kept = given(&cache, hot().filter(|number| *number < FULL - 15));
    put(&cache, 1000..1000 + FULL * 4);
    assert_eq!(held(&cache, hot()), kept, "a quarter of each segment, so each was copied");
}

#[test]
fn scan_that_repeats_does_not_push_out_the_hot_set() {
    let cache = open(&SimDisk::new(), MIB);
    let hot = 0..FULL / 3;
    put(&cache, hot.clone());
    given(&cache, hot.clone());
    for _ in 0..4 {
        for number in 1000..1000 + FULL * 4 {
            if given(&cache, [number]) == 0 {
                put(&cache, [number]);
            }
        }
        assert!(held(&cache, hot.clone()) * 10 >= hot.clone().count() * 9, "{}", held(&cache, hot.clone()));
        given(&cache, hot.clone());
    }
}

#[test]
fn working_set_that_changes_takes_the_place_of_the_old_one() {
    let cache = open(&SimDisk::new(), MIB);
    put(&cache, 0..FULL / 2);
    given(&cache, 0..FULL / 2);
    let new = 5000..5000 + FULL / 2;
    for _ in 0..12 {
        for number in new.clone() {
            if given(&cache, [number]) == 0 {
                put(&cache, [number]);
            }
        }
        put(&cache, (0..40).map(|some| 100_000 + cache.stats().hits * 100 + some));
    }
    assert!(held(&cache, new.clone()) * 10 >= new.clone().count() * 9, "{}", held(&cache, new));
}

#[test]
fn limit_holds_while_segments_of_several_lengths_are_recycled() {
    for seed in 0..6 {
        let mut prng = wal::disk::sim::Prng::new(seed);
        let disk = SimDisk::new();
        let cache = open(&disk, MIB);
        let mut bytes_max = MIB;
        for number in 0..1600 {
            put(&cache, [number]);
            given(&cache, [number - prng.below(number.min(100) + 1), prng.below(number + 1)]);
            if number % 400 == 399 {
                bytes_max = MIB / 4 * (1 + prng.below(12));
                cache.set_bytes_max(bytes_max);
            }
            assert!(disk.used_bytes() <= bytes_max, "{} of {bytes_max}", disk.used_bytes());
        }
        assert_eq!(cache.stats().errors, 0);
    }
}

#[test]
fn frame_that_comes_back_soon_after_it_was_evicted_goes_to_main() {
    let cache = open(&SimDisk::new(), MIB);
    put(&cache, 0..FULL + 40);
    assert!(!cache.contains(&key(0)), "evicted unread");
    put(&cache, [0]);
    put(&cache, 1000..1000 + FULL * 2);
    assert!(cache.contains(&key(0)));
}

#[test]
fn skewed_reads_are_served_better_than_first_in_first_out_could() {
    // 80 % of reads go to a fifth of four caches' worth of frames.
    let cache = open(&SimDisk::new(), MIB);
    let mut prng = wal::disk::sim::Prng::new(1);
    let frames = FULL * 4;
    let mut hits = 0;
    let rounds = 20_000;
    for _ in 0..rounds {
        let number = if prng.below(10) < 8 { prng.below(frames / 5) } else { prng.below(frames) };
        match given(&cache, [number]) {
            0 => put(&cache, [number]),
            _ => hits += 1,
        }
    }
    // The best there is, to hold the fifth and an eighth of the rest, would be 85 %.
    assert!(hits * 100 > rounds * 65, "{hits} of {rounds}");
}
