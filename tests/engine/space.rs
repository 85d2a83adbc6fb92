//! How much room a volume takes that is overwritten again and again, and what it is that takes it.

#![allow(clippy::print_stdout, reason = "a series is there to be read")]

mod ledger;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use s3bd::{
    nbd::Device,
    store::{faulty::SeededPlan, memory::Memory},
    volume::{Volume, open::Agreed, settings::Settings, snapshots::Change},
};
use wal::disk::sim::Prng;

use self::ledger::Bookkeeper;
use crate::{
    host::{Disks, env, small_settings, unlock},
    rig::{Rig, for_seeds},
};

const MIB: u64 = 1 << 20;

/// A volume, and how it is overwritten.
#[derive(Clone, Copy, Debug)]
struct Load {
    size_bytes: u64,
    object_bytes: u64,
    write_bytes: u64,
    seed: u64,
}

/// As multiples of what lives.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The most that the bucket had meanwhile.
    most: f64,
    /// What it has at the end.
    left: f64,
}

async fn names(volume: &Volume) -> Vec<String> {
    let state = volume.core().state();
    state.snapshots.iter().map(|snapshot| snapshot.name.clone()).collect()
}

/// Bytes in the bucket.
fn stored(memory: &Memory) -> u64 {
    memory.snapshot().iter().map(|(_, bytes)| bytes.len() as u64).sum()
}

/// Overwrites a volume ten times over with random bytes at random places, snapshots coming and going. All of it lives, and
/// nothing compresses: so its size is what lives. What a snapshot holds beside that does not count as such.
async fn overwrite(load: Load, is_printed: bool) -> Seen {
    let Load { size_bytes, object_bytes, write_bytes, seed } = load;
    let settings = Settings {
        object_bytes,
        lag_bytes_max: Some(4 * object_bytes),
        checkpoint_objects: 64,
        wal_bytes_max: 64 * object_bytes.max(MIB),
        memory_bytes_max: 16 * MIB,
        cache_bytes_max: 0,
        ..small_settings()
    };
    let mut rig = Rig::new(seed, size_bytes, 4096, settings).await;
    // Time goes on for a clock that only moves while everybody waits.
    let delay_max = Duration::from_millis(20);
    rig.faulty.set_plan(SeededPlan { seed, delay: 1000, delay_max, ..SeededPlan::default() });
    let volume = rig.open(0, Agreed::default()).await.unwrap().0;
    let reader = env(Arc::new(rig.memory.clone()), &Disks::new(), 99, "bookkeeper");
    let mut books = Bookkeeper::new(unlock(&reader).await, rig.memory.clone());
    let mut prng = Prng::new(seed);
    let mut random = |length: u64| {
        let words = (0..length / 8).flat_map(|_| prng.next_u64().to_le_bytes());
        (Bytes::from_iter(words), prng.next_u64())
    };
    for offset in (0..size_bytes).step_by(64 << 10) {
        volume.write(offset, random(64 << 10).0, false).await.unwrap();
    }
    let writes = 10 * size_bytes / write_bytes;
    let mut most = 0.0_f64;
    for number in 0..writes {
        let (data, place) = random(write_bytes);
        volume.write(place % (size_bytes / write_bytes) * write_bytes, data, false).await.unwrap();
        if number % (writes / 160).max(1) == 0 {
            most = most.max(stored(&rig.memory) as f64 / size_bytes as f64);
            if is_printed {
                println!("{:5.2} {}", 10.0 * number as f64 / writes as f64, books.balance().await);
            }
        }
        // A snapshot comes for a twentieth of a pass, three times a pass.
        if number % (writes / 30) == 0 {
            volume.core().change(Change::Take(format!("s{number}"))).await.unwrap();
        }
        if number % (writes / 30) == (writes / 200).max(1) {
            for name in names(&volume).await {
                volume.core().change(Change::Delete(name)).await.unwrap();
            }
        }
    }
    for name in names(&volume).await {
        volume.core().change(Change::Delete(name)).await.unwrap();
    }
    volume.sync().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let figures = volume.core().collecting().figures();
    assert!(figures.moved_bytes <= figures.deleted_bytes, "{load:?}: {figures:?}");
    if is_printed {
        println!("  end {}\n{figures:?}", books.balance().await);
    }
    let left = stored(&rig.memory) as f64 / size_bytes as f64;
    volume.close().await.unwrap();
    Seen { most, left }
}

fn assert_bounded(load: Load, seen: Seen) {
    assert!(seen.left <= 1.5, "{load:?}: once writing has stopped and all is collected: {seen:?}");
    assert!(seen.most <= 2.5, "{load:?}: while it goes on: {seen:?}");
}

#[test]
fn ten_times_overwritten_a_volume_takes_two_and_a_half_times_its_room_and_one_and_a_half_in_the_end() {
    for write_bytes in [4 << 10, 64 << 10] {
        for_seeds(2, |seed| async move {
            let load = Load { size_bytes: 8 * MIB, object_bytes: 256 << 10, write_bytes, seed };
            assert_bounded(load, overwrite(load, false).await);
        });
    }
}

/// By hand, at any size: what takes the room, as it goes on.
#[test]
#[ignore = "takes minutes: S3BD_SPACE_MIB=64 S3BD_WRITE_KIB=1024 S3BD_SEED=1 ... --ignored --nocapture"]
fn series() {
    let number = |name: &str, or: u64| std::env::var(name).map_or(or, |text| text.parse().unwrap());
    for_seeds(1, |seed| async move {
        let load = Load {
            size_bytes: number("S3BD_SPACE_MIB", 8) * MIB,
            object_bytes: number("S3BD_OBJECT_KIB", 256) << 10,
            write_bytes: number("S3BD_WRITE_KIB", 4) << 10,
            seed,
        };
        let seen = overwrite(load, true).await;
        println!("{load:?}: {seen:?}");
        assert_bounded(load, seen);
    });
}
