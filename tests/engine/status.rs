//! What an open volume says of itself is what it is.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use s3bd::{
    nbd::Device,
    store::{faulty::Faulty, memory::Memory},
    volume::{
        Volume,
        env::{Clock, Env},
        open::{Agreed, open_read_only},
        settings::Settings,
        status::{Condition, VolumeStatus},
    },
};

use crate::{
    host::{Disks, env, make, open_with, reopen, small_settings, unlock},
    rig::retrying,
};

const SIZE: u64 = 1 << 30;

#[tokio::test(start_paused = true)]
async fn a_volume_says_how_far_behind_its_bucket_is() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let (volume, _) = reopen(&store, &Disks::new(), 7).await.unwrap();
    let before = volume.core().status();
    assert_eq!((before.state, before.size_bytes, before.read_only), (Condition::Serving, SIZE, false));
    assert_eq!((before.unpublished.bytes, before.unpublished.oldest_age_ms), (0, None));
    volume.write(0, Bytes::from(vec![1; 3000]), false).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    volume.write(1000, Bytes::from(vec![2; 3000]), false).await.unwrap();
    let behind = volume.core().status();
    assert_eq!((behind.unpublished.bytes, behind.unpublished.oldest_age_ms), (4000, Some(2000)));
    assert_eq!(behind.memory.unpublished_bytes, 6000);
    assert_eq!(behind.epoch, before.epoch);
    let log = behind.log.unwrap();
    assert!(log.used_bytes > 0 && log.used_bytes <= log.bytes_max, "{log:?}");
    volume.sync().await.unwrap();
    let after = volume.core().status();
    assert_eq!((after.unpublished.bytes, after.unpublished.oldest_age_ms), (0, None));
    assert!(after.epoch > before.epoch && after.published_ms > before.published_ms);
    volume.read(0, 3000).await.unwrap();
    let cache = volume.core().status().cache.unwrap();
    assert_eq!((cache.hits, cache.bytes_max), (1, small_settings().cache_bytes_max), "{cache:?}");
    volume.close().await.unwrap();
    assert_eq!(volume.core().status().state, Condition::Closed);
}

/// A clock that stands.
#[derive(Debug)]
struct Stopped(u64);

impl Clock for Stopped {
    fn now_ms(&self) -> u64 {
        self.0
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_out_of_the_log_is_as_old_as_it_is() {
    let store = Faulty::new(Memory::new());
    make(store.inner(), SIZE).await;
    let (disks, lag) = (Disks::new(), Duration::from_secs(60));
    let settings = Settings { commit_interval: 100 * lag, lag_time_max: Some(lag), ..small_settings() };
    let opened = async |seed, now_ms| {
        let clock = Arc::new(Stopped(now_ms));
        let env = Env { clock, ..env(retrying(store.clone(), seed), &disks, seed, "here") };
        open_with(env, settings.clone(), Agreed::default()).await.unwrap().0
    };
    let age = |volume: &Volume| volume.core().status().unpublished.oldest_age_ms;
    let volume = opened(7, 1_000_000).await;
    volume.write(0, Bytes::from(vec![1; 3000]), false).await.unwrap();
    volume.flush().await.unwrap();
    drop(volume);
    let volume = opened(8, 900_000).await;
    assert_eq!(age(&volume), Some(0), "a clock that was put back makes nothing younger than it can be");
    drop(volume);
    let volume = opened(9, 1_090_000).await;
    assert_eq!(age(&volume), Some(90_000));
    // And the bucket is as far behind as that says.
    store.set_away(true);
    let write = volume.write(0, Bytes::from_static(&[2]), false);
    tokio::pin!(write);
    assert!(tokio::time::timeout(lag / 2, &mut write).await.is_err(), "further behind than allowed");
    store.set_away(false);
    write.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_fenced_volume_says_by_whom_and_since_when() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let (first, _) = reopen(&store, &Disks::new(), 7).await.unwrap();
    let there = env(Arc::new(store.clone()), &Disks::new(), 8, "there");
    let takeover = Agreed { takeover: true, ..Agreed::default() };
    let (second, _) = open_with(there, small_settings(), takeover).await.unwrap();
    first.write(0, Bytes::from_static(b"late"), false).await.unwrap();
    assert_eq!(first.core().status().state, Condition::Serving, "it cannot know yet");
    assert!(first.sync().await.is_err());
    // The claim is read in a task of its own.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let status = first.core().status();
    let Condition::Fenced { by_generation, by: Some(by), .. } = &status.state else { panic!("{status:?}") };
    assert_eq!(*by_generation, second.core().status().generation);
    assert_eq!((by.host.as_str(), by.pid), ("there", std::process::id()));
    assert_eq!(status.unpublished.bytes, 4, "what it holds is still counted");
    let last = status.last_error.expect("the fence").error;
    assert!(last.contains("fenced"), "{last}");
}

#[tokio::test(start_paused = true)]
async fn a_volume_whose_log_failed_says_so() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let disks = Disks::new();
    let (volume, _) = reopen(&store, &disks, 7).await.unwrap();
    volume.write(0, Bytes::from_static(b"data"), false).await.unwrap();
    disks.wal.fail_syncs(true);
    assert!(volume.flush().await.is_err());
    assert!(volume.write(0, Bytes::from_static(b"data"), false).await.is_err());
    let status: VolumeStatus = volume.core().status();
    assert!(matches!(status.state, Condition::LogFailed { .. }), "{status:?}");
    assert!(status.last_error.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_damaged_frame_is_the_last_error_and_a_clients_own_mistake_is_not() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let (volume, _) = reopen(&store, &Disks::new(), 7).await.unwrap();
    volume.write(0, Bytes::from(vec![1; 512]), false).await.unwrap();
    volume.close().await.unwrap();
    let mut contents = store.snapshot();
    let objects = contents.iter().map(|(key, _)| key.to_owned()).filter(|key| key.contains("objects/"));
    for key in objects.collect::<Vec<_>>() {
        let mut bytes = contents.get(&key).unwrap().to_vec();
        bytes[70] ^= 1;
        contents.set(&key, bytes.into());
    }
    store.restore(contents);
    let env = env(Arc::new(store.clone()), &Disks::new(), 8, "reader");
    let bucket = unlock(&env).await;
    let epoch = bucket.newest_manifest().await.unwrap().manifest.epoch;
    let volume = open_read_only(env, bucket, small_settings()).await.unwrap();
    let status = volume.core().status();
    assert_eq!((status.epoch, status.read_only, status.log), (epoch, true, None));
    assert!(volume.write(0, Bytes::from_static(b"x"), false).await.is_err());
    assert_eq!(volume.core().status().last_error, None);
    assert!(volume.read(0, 512).await.is_err());
    let last = volume.core().status().last_error.expect("the damage").error;
    assert!(last.contains("objects/") && last.contains("frame"), "{last}");
    assert_eq!(volume.core().status().state, Condition::Serving);
}
