//! What a user sees of one volume on one host.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use s3bd::{
    cache::{FrameCache, FrameKey},
    format::names,
    nbd::Device,
    store::{Range, Store, memory::Memory},
    volume::{
        Volume,
        error::{Kind, VolumeError},
        open::Agreed,
        seen::older_than_seen,
        settings::{Durability, Settings},
        tally::Tally,
    },
};

use wal::disk::Disk;

use crate::host::{Disks, env, make, open_with, reopen, small_settings, unlock};

const SIZE: u64 = 1 << 40;

pub async fn read(volume: &Volume, offset: u64, length: u32) -> Vec<u8> {
    volume.read(offset, length).await.unwrap().concat()
}

async fn write(volume: &Volume, offset: u64, data: &[u8]) {
    volume.write(offset, Bytes::copy_from_slice(data), false).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_written_is_read_before_and_after_publishing_and_reopening() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let disks = Disks::new();
    let (volume, report) = reopen(&store, &disks, 7).await.unwrap();
    assert!(report.was_clean);
    let noise: Vec<u8> = (0..200_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    write(&volume, 1000, &noise).await;
    write(&volume, SIZE - 10, b"end of vol").await;
    assert_eq!(read(&volume, 1000, 200_000).await, noise);
    volume.zero(2000, 5000, false, false).await.unwrap();
    write(&volume, 2500, b"in the hole").await;
    let mut expected = noise.clone();
    expected[1000..6000].fill(0);
    expected[1500..1511].copy_from_slice(b"in the hole");
    assert_eq!(read(&volume, 1000, 200_000).await, expected);
    volume.sync().await.unwrap();
    assert_eq!(read(&volume, 1000, 200_000).await, expected);
    assert_eq!(read(&volume, SIZE - 12, 12).await, b"\0\0end of vol");
    write(&volume, 1100, b"partial").await;
    expected[100..107].copy_from_slice(b"partial");
    volume.close().await.unwrap();

    for (seed, disks) in [(8, disks), (9, Disks::new())] {
        let (volume, report) = reopen(&store, &disks, seed).await.unwrap();
        assert!(report.was_clean);
        assert_eq!(report.replayed.tally.records(), 0);
        assert_eq!(read(&volume, 1000, 200_000).await, expected);
        assert_eq!(read(&volume, SIZE - 12, 12).await, b"\0\0end of vol");
        volume.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn flushed_writes_survive_a_power_cut() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let disks = Disks::new();
    let (volume, _) = reopen(&store, &disks, 7).await.unwrap();
    write(&volume, 0, b"flushed").await;
    volume.flush().await.unwrap();
    drop(volume);
    let disks = disks.crash(3);
    let (volume, report) = reopen(&store, &disks, 8).await.unwrap();
    assert!(!report.was_clean);
    assert_eq!(report.replayed.tally.records(), 1);
    assert_eq!(read(&volume, 0, 7).await, b"flushed");
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn another_host_is_told_who_has_the_volume_and_a_takeover_fences_the_first() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let (here, there) = (Disks::new(), Disks::new());
    let (first, _) = reopen(&store, &here, 7).await.unwrap();
    write(&first, 0, b"published").await;
    first.sync().await.unwrap();
    let other = |seed| env(std::sync::Arc::new(store.clone()), &there, seed, "there");
    let refused = open_with(other(8), small_settings(), Agreed::default()).await.unwrap_err();
    assert!(matches!(&refused, VolumeError::InUse { host, .. } if host == "here"), "{refused}");
    let takeover = Agreed { takeover: true, ..Agreed::default() };
    let (second, _) = open_with(other(9), small_settings(), takeover).await.unwrap();
    write(&first, 0, b"too late!").await;
    assert!(matches!(first.sync().await, Err(VolumeError::Fenced { .. })));
    assert!(first.write(0, Bytes::from_static(b"x"), false).await.is_err());
    assert_eq!(read(&second, 0, 9).await, b"published");
    second.close().await.unwrap();
    let diverged = reopen(&store, &here, 10).await.unwrap_err();
    assert!(matches!(diverged, VolumeError::Diverged { held: Tally { writes: 1, .. }, .. }), "{diverged}");
    let discard = Agreed { discard: true, ..Agreed::default() };
    let mine = env(std::sync::Arc::new(store.clone()), &here, 11, "here");
    let (again, report) = open_with(mine, small_settings(), discard).await.unwrap();
    assert_eq!(report.given_up.tally.records(), 1);
    assert_eq!(read(&again, 0, 9).await, b"published");
}

#[tokio::test(start_paused = true)]
async fn an_older_bucket_is_refused_until_the_user_agrees() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let disks = Disks::new();
    let old = store.snapshot();
    let (volume, _) = reopen(&store, &disks, 7).await.unwrap();
    write(&volume, 0, b"new").await;
    volume.close().await.unwrap();
    let reader = env(Arc::new(store.clone()), &disks, 9, "here");
    let bucket = unlock(&reader).await;
    assert!(older_than_seen(&reader, &bucket).await.unwrap().is_none());
    store.restore(old);
    let refused = reopen(&store, &disks, 8).await.unwrap_err();
    assert!(matches!(refused, VolumeError::RolledBack { .. }), "{refused}");
    // Who only reads is warned, where the host has seen something.
    let warned = older_than_seen(&reader, &bucket).await.unwrap();
    assert!(matches!(warned, Some(VolumeError::RolledBack { .. })), "{warned:?}");
    let elsewhere = env(Arc::new(store.clone()), &Disks::new(), 9, "there");
    assert!(older_than_seen(&elsewhere, &bucket).await.unwrap().is_none());
    let agreed = Agreed { rollback: true, ..Agreed::default() };
    let opening = |seed, agreed| {
        let mine = env(std::sync::Arc::new(store.clone()), &disks, seed, "here");
        open_with(mine, small_settings(), agreed)
    };
    // The log still has it, and nothing else has.
    let refused = opening(9, agreed).await.unwrap_err();
    assert!(matches!(refused, VolumeError::Diverged { held: Tally { writes: 1, .. }, .. }), "{refused}");
    let (volume, _) = opening(10, Agreed { discard: true, ..agreed }).await.unwrap();
    assert_eq!(read(&volume, 0, 3).await, [0; 3], "as it was then");
}

#[tokio::test(start_paused = true)]
async fn with_an_older_bucket_a_log_that_was_trimmed_beyond_it_is_not_replayed_with_a_hole() {
    for unpublished in [false, true] {
        let store = Memory::new();
        make(&store, SIZE).await;
        let disks = Disks::new();
        let settings = Settings {
            wal_bytes_max: 64 << 10,
            wal_segment_bytes_min: 16 << 10,
            commit_interval: Duration::from_secs(3600),
            ..small_settings()
        };
        let opening = |seed, agreed| {
            open_with(env(Arc::new(store.clone()), &disks, seed, "here"), settings.clone(), agreed)
        };
        let (volume, _) = opening(7, Agreed::default()).await.unwrap();
        write(&volume, 0, b"old").await;
        volume.sync().await.unwrap();
        let old = store.snapshot();
        for round in 0..10 {
            write(&volume, 4096 * (1 + round), &[1; 4096]).await;
            volume.sync().await.unwrap();
        }
        if unpublished {
            write(&volume, 0, b"new").await;
        }
        drop(volume);
        store.restore(old);
        let refused = opening(8, Agreed::default()).await.unwrap_err();
        assert!(matches!(refused, VolumeError::RolledBack { .. }), "{refused}");
        let rollback = Agreed { rollback: true, ..Agreed::default() };
        let refused = opening(9, rollback).await.unwrap_err();
        let VolumeError::Diverged { held, .. } = refused else { panic!("{refused}") };
        assert!(held.writes > 0);
        let (volume, report) = opening(10, Agreed { discard: true, ..rollback }).await.unwrap();
        assert_eq!(report.given_up.tally, held);
        assert_eq!(read(&volume, 0, 3).await, b"old");
        assert_eq!(read(&volume, 4096, 40960).await, [0; 40960]);
        write(&volume, 0, b"on").await;
        volume.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_log_published_before_a_rollback_is_not_given_up_without_a_word() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let disks = Disks::new();
    let (volume, _) = reopen(&store, &disks, 7).await.unwrap();
    write(&volume, 0, b"old").await;
    volume.sync().await.unwrap();
    let old = store.snapshot();
    write(&volume, 0, b"new").await;
    volume.sync().await.unwrap();
    drop(volume);
    store.restore(old);
    let host = |disks, seed, name| env(Arc::new(store.clone()), disks, seed, name);
    let rollback = Agreed { rollback: true, ..Agreed::default() };
    let (volume, report) = open_with(host(&disks, 8, "here"), small_settings(), rollback).await.unwrap();
    assert_eq!((report.replayed.tally.records(), read(&volume, 0, 3).await), (1, b"new".to_vec()));
    // It dies before it publishes what it replayed, and another host goes on.
    drop(volume);
    let takeover = Agreed { takeover: true, ..Agreed::default() };
    let other = Disks::new();
    let (volume, _) = open_with(host(&other, 9, "there"), small_settings(), takeover).await.unwrap();
    assert_eq!(read(&volume, 0, 3).await, b"old");
    volume.close().await.unwrap();
    drop(volume);
    let refused = reopen(&store, &disks, 10).await.unwrap_err();
    assert!(
        matches!(refused, VolumeError::Diverged { held: Tally { writes: 1, bytes: 3, .. }, .. }),
        "{refused}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_finds_no_room_for_its_log_says_so_and_not_that_it_is_damaged() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let disks = Disks::new();
    disks.wal.set_capacity(Some(0));
    let refused = reopen(&store, &disks, 7).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Full, "{refused}");
    disks.wal.set_capacity(None);
    reopen(&store, &disks, 8).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_rots_in_the_cache_is_fetched_again() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let disks = Disks::new();
    let (volume, _) = reopen(&store, &disks, 7).await.unwrap();
    let noise: Vec<u8> = (0..100_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    write(&volume, 0, &noise).await;
    volume.close().await.unwrap();
    drop(volume);
    // In the middle of frames: headers and checksums stay as they are.
    let mut flipped = 0;
    for name in disks.cache.list().unwrap() {
        flipped += [20_000, 80_000].into_iter().filter(|at| disks.cache.flip_bit(&name, *at, 3)).count();
    }
    assert!(flipped >= 2, "the frames are in the cache");
    let (volume, _) = reopen(&store, &disks, 8).await.unwrap();
    assert_eq!(read(&volume, 0, 100_000).await, noise);
}

#[tokio::test(start_paused = true)]
async fn what_the_cache_has_under_a_right_checksum_and_does_not_open_is_fetched_again() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let (volume, _) = reopen(&store, &Disks::new(), 7).await.unwrap();
    let noise: Vec<u8> = (0..200_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    write(&volume, 0, &noise).await;
    volume.sync().await.unwrap();
    let direct = unlock(&env(Arc::new(store.clone()), &Disks::new(), 9, "here")).await;
    let objects = direct.newest_manifest().await.unwrap().manifest.objects;
    volume.close().await.unwrap();
    drop(volume);
    // A cache of another's making: of each frame it has the bytes of the next one.
    let disks = Disks::new();
    let cache_bytes_max = small_settings().cache_bytes_max;
    let cache = FrameCache::open_inline(Arc::new(disks.cache.clone()), cache_bytes_max);
    let mut frames = Vec::new();
    for listed in objects {
        let object = direct.load_index(listed).await.unwrap();
        let places = (0..).map_while(|number| object.index.place(object.object, number));
        frames.extend(places.map(|place| FrameKey::from(&place)));
        let name = names::object(listed.generation, listed.sequence);
        let bytes = store.get(&name, Range::Full).await.unwrap().bytes;
        for place in (0..).map_while(|number| object.index.place(object.object, number)) {
            let next = (place.offset as usize + 100) % (bytes.len() - place.stored_bytes as usize);
            cache.insert(FrameKey::from(&place), bytes.slice(next..next + place.stored_bytes as usize));
        }
    }
    assert!(frames.len() >= 3 && frames.iter().all(|frame| cache.contains(frame)), "{}", frames.len());
    cache.close();
    drop(cache);
    let (volume, report) = reopen(&store, &disks, 8).await.unwrap();
    assert!(report.was_clean);
    assert_eq!(read(&volume, 0, noise.len() as u32).await, noise);
}

/// A volume of which the first block is damaged in the bucket, and one at 1 MiB is whole.
async fn with_a_damaged_block() -> Memory {
    let store = Memory::new();
    make(&store, SIZE).await;
    let (volume, _) = reopen(&store, &Disks::new(), 7).await.unwrap();
    write(&volume, 0, &[1; 512]).await;
    volume.sync().await.unwrap();
    let before: Vec<String> = store.snapshot().iter().map(|(key, _)| key.to_owned()).collect();
    write(&volume, 1 << 20, &[2; 512]).await;
    volume.close().await.unwrap();
    let mut contents = store.snapshot();
    let damaged = before.iter().find(|key| key.contains("objects/")).unwrap();
    let mut bytes = contents.get(damaged).unwrap().to_vec();
    bytes[70] ^= 1;
    contents.set(damaged, bytes.into());
    store.restore(contents);
    store
}

#[tokio::test(start_paused = true)]
async fn a_damaged_frame_is_an_error_for_its_range_alone() {
    let store = with_a_damaged_block().await;
    let (volume, _) = reopen(&store, &Disks::new(), 8).await.unwrap();
    assert!(volume.read(0, 1).await.is_err());
    assert_eq!(read(&volume, 1 << 20, 512).await, [2; 512]);
    // A write to a part of the damaged block does not stop the publisher; the block stays an error till overwritten.
    write(&volume, 0, b"part").await;
    write(&volume, 2 << 20, b"whole").await;
    volume.sync().await.unwrap_err();
    assert!(volume.read(0, 4).await.is_err());
    assert_eq!(read(&volume, 2 << 20, 5).await, b"whole");
    write(&volume, 0, &[3; 512]).await;
    volume.sync().await.unwrap();
    assert_eq!(read(&volume, 0, 512).await, [3; 512]);
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_the_bucket_is_told_once_of_a_block_that_could_not_be_completed() {
    let store = with_a_damaged_block().await;
    let remote = Settings { durability: Durability::Remote, ..small_settings() };
    let here = env(Arc::new(store.clone()), &Disks::new(), 8, "here");
    let (volume, _) = open_with(here, remote, Agreed::default()).await.unwrap();
    for _ in 0..2 {
        write(&volume, 0, b"part").await;
        assert!(volume.flush().await.is_err(), "the write is not in the bucket");
        volume.flush().await.unwrap();
        let told = volume.sync().await.unwrap_err();
        let VolumeError::Incomplete(incomplete) = &told else { panic!("{told}") };
        assert_eq!((incomplete.count, &incomplete.blocks[..]), (1, &[0][..]));
        assert!(told.to_string().contains("block 0:"), "{told}");
        volume.sync().await.unwrap();
    }
    write(&volume, 0, &[3; 512]).await;
    volume.flush().await.unwrap();
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_sync_with_nothing_to_publish_returns_after_every_kind_of_opening() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let disks = Disks::new();
    for seed in 7..10 {
        let (volume, _) = reopen(&store, &disks, seed).await.unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(60), volume.sync()).await.unwrap().unwrap();
        write(&volume, 0, &[seed as u8; 100]).await;
        volume.sync().await.unwrap();
        volume.sync().await.unwrap();
        if seed == 8 {
            volume.close().await.unwrap();
        }
    }
}
