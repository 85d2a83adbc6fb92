//! What went wrong in other systems of this kind, each tried here. The table is in `docs/durability.md`.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use s3bd::{
    nbd::{Device, DeviceError},
    store::{
        ErrorKind,
        faulty::{Call, CallCounts, Fault},
    },
    volume::{Volume, open::Agreed, settings::Settings},
};
use wal::disk::sim::Prng;

use crate::{
    host::{Disks, reopen, small_settings},
    rig::{Rig, WHATEVER, noise},
};

const SIZE: u64 = 32 << 20;
const BLOCK: usize = 4096;

async fn opened(settings: Settings) -> (Rig, Volume) {
    let mut rig = Rig::new(17, SIZE, BLOCK as u32, settings).await;
    let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
    (rig, volume)
}

async fn write(volume: &Volume, offset: usize, data: &[u8]) {
    volume.write(offset as u64, Bytes::copy_from_slice(data), false).await.unwrap();
}

async fn read(volume: &Volume, offset: usize, length: usize) -> Vec<u8> {
    volume.read(offset as u64, length as u32).await.unwrap().concat()
}

/// All calls between two counts.
fn between(before: CallCounts, after: CallCounts) -> u64 {
    after.total() - before.total()
}

#[tokio::test(start_paused = true)]
async fn writes_to_parts_of_one_block_at_once_are_all_there() {
    let (mut rig, volume) = opened(Settings { memory_bytes_max: 0, ..small_settings() }).await;
    write(&volume, 0, &[9; BLOCK]).await;
    volume.sync().await.unwrap();
    let part = BLOCK / 8;
    let mut expected = vec![9; BLOCK];
    // The bucket answers late, so that whoever read before writing would read what was there before all of them.
    rig.faulty.set_plan(|_: &Call<'_>| Fault::Delay(Duration::from_secs(1)));
    for round in 0..3_u8 {
        let parts = (0..7_usize).map(|at| {
            let volume = &volume;
            async move { write(volume, at * part, &vec![round * 16 + at as u8; part]).await }
        });
        let sync = async { volume.sync().await.unwrap() };
        tokio::join!(futures::future::join_all(parts), sync);
        (0..7).for_each(|at| expected[at * part..(at + 1) * part].fill(round * 16 + at as u8));
        assert_eq!(read(&volume, 0, BLOCK).await, expected, "round {round}");
    }
    volume.close().await.unwrap();
    let (volume, _) = rig.open(1, Agreed::default()).await.unwrap();
    assert_eq!(read(&volume, 0, BLOCK).await, expected, "in the bucket");
}

#[tokio::test(start_paused = true)]
async fn what_was_trimmed_stays_trimmed_after_a_power_cut() {
    let store = s3bd::store::memory::Memory::new();
    crate::host::make(&store, SIZE).await;
    let disks = Disks::new();
    let (volume, _) = reopen(&store, &disks, 7).await.unwrap();
    write(&volume, 0, &[1; 4 * BLOCK]).await;
    volume.sync().await.unwrap();
    write(&volume, 4 * BLOCK, &[2; BLOCK]).await;
    volume.trim(BLOCK as u64, 4 * BLOCK as u64, false).await.unwrap();
    volume.flush().await.unwrap();
    drop(volume);
    let (volume, _) = reopen(&store, &disks.crash(5), 8).await.unwrap();
    assert_eq!(read(&volume, 0, BLOCK).await, [1; BLOCK]);
    assert_eq!(read(&volume, BLOCK, 4 * BLOCK).await, [0; 4 * BLOCK]);
    volume.close().await.unwrap();
    let (volume, _) = reopen(&store, &Disks::new(), 9).await.unwrap();
    assert_eq!(read(&volume, BLOCK, 4 * BLOCK).await, [0; 4 * BLOCK]);
}

#[tokio::test(start_paused = true)]
async fn claims_stay_whatever_is_published_and_whoever_takes_over() {
    let (mut rig, mut volume) = opened(small_settings()).await;
    let claims = |rig: &Rig| -> BTreeSet<String> {
        let contents = rig.memory.snapshot();
        contents.iter().map(|(key, _)| key.to_owned()).filter(|key| key.starts_with("claims/")).collect()
    };
    let mut ever = claims(&rig);
    for tenure in 0..6_usize {
        // More than enough for old manifests to be removed.
        for at in 0..20 {
            write(&volume, at * BLOCK, &noise(&mut Prng::new(at as u64), 100)).await;
            volume.sync().await.unwrap();
        }
        drop(volume);
        volume = rig.open(tenure % 2, WHATEVER).await.unwrap().0;
        let now = claims(&rig);
        assert!(now.is_superset(&ever), "a claim was removed: {ever:?} {now:?}");
        ever.extend(now);
    }
    assert_eq!(ever.len(), 7);
    let contents = rig.memory.snapshot();
    let manifests = contents.iter().filter(|(key, _)| key.starts_with("manifests/")).count();
    assert!(manifests < 60, "old manifests were to be removed: {manifests}");
}

#[tokio::test(start_paused = true)]
async fn a_read_that_fails_at_opening_is_waited_for_and_never_taken_for_an_empty_volume() {
    for failing in ["manifests/", "claims/", "objects/"] {
        for kind in [ErrorKind::Retry, ErrorKind::Denied] {
            let (mut rig, volume) = opened(small_settings()).await;
            write(&volume, 0, b"published").await;
            volume.sync().await.unwrap();
            drop(volume);
            let epochs = rig.memory.snapshot().len();
            // Every listing and every read of that part fails at first.
            let until = rig.faulty.counts().total() + 40;
            rig.faulty.set_plan(move |call: &Call<'_>| {
                let read = matches!(call.operation, "get" | "list" | "head");
                if read && call.key.starts_with(failing) && call.index < until {
                    Fault::Before(kind)
                } else {
                    Fault::None
                }
            });
            let (volume, _) = rig.open(1, WHATEVER).await.unwrap();
            assert_eq!(read(&volume, 0, 9).await, b"published", "{failing} {kind:?}");
            assert!(rig.memory.snapshot().len() > epochs, "it went on from what was there");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_cache_evicts_nothing_that_is_not_in_the_bucket_yet() {
    let settings = Settings {
        cache_bytes_max: 1 << 20,
        memory_bytes_max: 0,
        unpublished_memory_bytes_max: 0,
        ..small_settings()
    };
    let (rig, volume) = opened(settings).await;
    let data = noise(&mut Prng::new(1), 8 << 20);
    write(&volume, 0, &data).await;
    volume.sync().await.unwrap();
    rig.faulty.set_away(true);
    let newer = noise(&mut Prng::new(2), 8 << 20);
    for at in (0..newer.len()).step_by(1 << 20) {
        write(&volume, at, &newer[at..at + (1 << 20)]).await;
    }
    let cache = volume.core().status().cache.unwrap();
    assert!(cache.used_bytes <= 1 << 20, "{cache:?}");
    assert!(read(&volume, 0, newer.len()).await == newer, "all of it is in the log alone");
    rig.faulty.set_away(false);
    volume.sync().await.unwrap();
    assert!(read(&volume, 0, newer.len()).await == newer);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_timed_out_is_an_error_once_and_not_when_the_store_is_back() {
    let timeout = Duration::from_secs(5);
    let settings =
        Settings { read_timeout: Some(timeout), memory_bytes_max: 0, cache_bytes_max: 0, ..small_settings() };
    let (rig, volume) = opened(settings).await;
    write(&volume, 0, &[1; BLOCK]).await;
    volume.sync().await.unwrap();
    rig.faulty.set_away(true);
    let since = tokio::time::Instant::now();
    assert_eq!(volume.read(0, 1).await.unwrap_err(), DeviceError::Io);
    assert_eq!(since.elapsed(), timeout);
    volume.write(BLOCK as u64, Bytes::from_static(b"goes on"), true).await.expect("writes need no store");
    assert_eq!(read(&volume, BLOCK, 7).await, b"goes on");
    let last = volume.core().status().last_error.expect("the timeout").error;
    assert!(last.contains("timed out"), "{last}");
    rig.faulty.set_away(false);
    // Whoever called last waits to call again for half a minute at most.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(read(&volume, 0, BLOCK).await, [1; BLOCK]);
}

#[tokio::test(start_paused = true)]
async fn neighbours_are_read_by_one_request_and_warm_reads_by_none() {
    let (mut rig, volume) = opened(Settings { object_bytes: 16 << 20, ..small_settings() }).await;
    let data = noise(&mut Prng::new(3), 1 << 20);
    write(&volume, 0, &data).await;
    volume.close().await.unwrap();
    rig.settings.memory_bytes_max = 16 << 20;
    let (volume, _) = rig.open(1, Agreed::default()).await.unwrap();
    read(&volume, data.len(), BLOCK).await;
    let before = rig.faulty.counts();
    assert!(read(&volume, 0, data.len()).await == data);
    let cold = between(before, rig.faulty.counts());
    assert!(cold <= 2, "sixteen frames and a page took {cold} requests");
    let before = rig.faulty.counts();
    assert!(read(&volume, 0, data.len()).await == data);
    assert_eq!(between(before, rig.faulty.counts()), 0);
}

#[tokio::test(start_paused = true)]
async fn small_writes_share_objects_and_flushes_make_no_request() {
    let (rig, volume) = opened(Settings { object_bytes: 1 << 20, ..small_settings() }).await;
    let before = rig.faulty.counts();
    let mut prng = Prng::new(4);
    for at in 0..64 {
        write(&volume, at * 37 * BLOCK, &noise(&mut prng, BLOCK)).await;
        volume.flush().await.unwrap();
    }
    assert_eq!(between(before, rig.faulty.counts()), 0, "a flush is the log's");
    volume.sync().await.unwrap();
    let spent = rig.faulty.counts();
    assert_eq!((spent.puts - before.puts, spent.lists - before.lists), (2, 1), "one object for 64 blocks");
}
