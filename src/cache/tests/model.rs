//! Any sequence of calls against a model: a frame's own bytes or nothing, and never more on disk than allowed.

use std::collections::BTreeSet;

use proptest::prelude::*;
use wal::disk::sim::SimDisk;

use super::{frame_of, key, open};

#[derive(Clone, Debug)]
enum Step {
    /// Inserts so many frames from this one on.
    Insert(u64, u64),
    Get(u64, u64),
    Forget(u64),
    Resize(u64),
    Reopen(u64),
    Crash(u64),
    Capacity(Option<u64>),
    Fail(u64),
    Flip(usize, u64, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let number = 0_u64..400;
    let size = || prop_oneof![Just(0), Just(70_000), 64_u64 << 10..1 << 20, Just(1 << 20)];
    prop_oneof![
        10 => (number.clone(), 1_u64..40).prop_map(|(first, count)| Step::Insert(first, count)),
        8 => (number.clone(), 1_u64..40).prop_map(|(first, count)| Step::Get(first, count)),
        2 => number.prop_map(Step::Forget),
        1 => size().prop_map(Step::Resize),
        1 => size().prop_map(Step::Reopen),
        1 => any::<u64>().prop_map(Step::Crash),
        1 => prop_oneof![Just(None), (0_u64..1 << 20).prop_map(Some)].prop_map(Step::Capacity),
        1 => (1_u64..30).prop_map(Step::Fail),
        1 => (0_usize..16, 0_u64..65_536, 0_u8..8).prop_map(|(file, at, bit)| Step::Flip(file, at, bit)),
    ]
}

fn bytes_of(number: u64) -> bytes::Bytes {
    frame_of(number, (number as usize * 97) % 9000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn get_gives_the_frame_or_nothing_within_the_limit(steps in proptest::collection::vec(step(), 1..120)) {
        let mut disk = SimDisk::new();
        let mut bytes_max = 1 << 20;
        let mut cache = open(&disk, bytes_max);
        // What may be had: inserted and, as long as no reopening brings it back, not forgotten.
        let mut known = BTreeSet::new();
        let mut ever = BTreeSet::new();
        for step in steps {
            match step {
                Step::Insert(first, count) => for number in first..first + count {
                    cache.insert(key(number), bytes_of(number));
                    known.insert(number);
                    ever.insert(number);
                },
                Step::Get(first, count) => for number in first..first + count {
                    let Some(got) = cache.get(&key(number)) else { continue };
                    prop_assert!(known.contains(&number), "nobody gave it frame {number}");
                    prop_assert_eq!(got, bytes_of(number));
                },
                Step::Forget(number) => {
                    cache.forget(&key(number));
                    known.remove(&number);
                    prop_assert!(!cache.contains(&key(number)));
                }
                Step::Resize(bytes) => {
                    bytes_max = bytes;
                    cache.set_bytes_max(bytes);
                }
                Step::Reopen(bytes) => {
                    drop(cache);
                    bytes_max = bytes;
                    cache = open(&disk, bytes);
                    known.clone_from(&ever);
                }
                Step::Crash(seed) => {
                    drop(cache);
                    disk = disk.crash(seed);
                    cache = open(&disk, bytes_max);
                    known.clone_from(&ever);
                }
                Step::Capacity(bytes) => disk.set_capacity(bytes),
                Step::Fail(after) => disk.fail_at(disk.operations() + after),
                Step::Flip(file, at, bit) => {
                    let names = super::files(&disk);
                    if let Some((name, _)) = names.get(file) {
                        disk.flip_bit(name, at, bit);
                    }
                }
            }
            let stats = cache.stats();
            prop_assert!(disk.used_bytes() <= bytes_max || unremoved(&cache), "{} of {bytes_max}", disk.used_bytes());
            prop_assert_eq!(stats.queued_bytes, 0);
            prop_assert!(stats.bytes <= stats.file_bytes);
            let held = ever.iter().filter(|number| cache.contains(&key(**number))).count();
            prop_assert_eq!(stats.entries, held as u64);
        }
    }
}

/// A removal failed, or the folder could not be read: until the next insert more may be there than is allowed.
fn unremoved(cache: &crate::cache::FrameCache) -> bool {
    cache.stats().errors > 0 || cache.stats().file_bytes > cache.stats().bytes_max
}
