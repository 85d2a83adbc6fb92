//! Snapshots of an open volume.

use bytes::Bytes;
use s3bd::{
    format::manifest::SnapshotChange,
    nbd::Device,
    store::memory::Memory,
    volume::{
        Volume,
        error::VolumeError,
        open::open_snapshot,
        settings::Settings,
        snapshots::{Change, SnapshotTable},
        usage::snapshot_usage,
    },
};

use crate::{
    basic::read,
    cost::settings,
    host::{Disks, env, make, open_with, small_settings, unlock},
    rig::{Rig, noise},
};
use wal::disk::sim::Prng;

const SIZE: u64 = 1 << 40;

async fn write(volume: &Volume, offset: u64, data: &[u8]) {
    volume.write(offset, Bytes::copy_from_slice(data), false).await.unwrap();
}

fn take(name: &str) -> Change {
    Change::Take(name.to_owned())
}

async fn open_one(store: &Memory, disks: &Disks, seed: u64) -> Volume {
    let env = env(std::sync::Arc::new(store.clone()), disks, seed, "here");
    open_with(env, small_settings(), Default::default()).await.unwrap().0
}

async fn read_snapshot(volume: &Volume, name: &str, offset: u64, length: u32) -> Vec<u8> {
    let snapshot = volume.core().state().snapshots.get(name).cloned().unwrap();
    let view = open_snapshot(volume.core(), &snapshot).await.unwrap();
    assert!(view.info().read_only);
    read(&view, offset, length).await
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_holds_what_was_acknowledged_before_it_and_nothing_after() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let disks = Disks::new();
    let volume = open_one(&store, &disks, 7).await;
    write(&volume, 1000, b"before").await;
    let core = std::sync::Arc::clone(volume.core());
    // Polled once, and then overtaken: what is written next is not in it.
    let mut taking = Box::pin(core.change(take("monday")));
    assert!(futures::poll!(&mut taking).is_pending());
    write(&volume, 1000, b"after!").await;
    let taken = taking.await.unwrap();
    assert_eq!((taken.id, &*taken.name, taken.size_bytes), (1, "monday", SIZE));
    assert_eq!(read_snapshot(&volume, "monday", 999, 8).await, b"\0before\0");
    assert_eq!(read(&volume, 999, 8).await, b"\0after!\0");
    volume.sync().await.unwrap();
    assert_eq!(read_snapshot(&volume, "monday", 1000, 6).await, b"before");
    volume.close().await.unwrap();

    let volume = open_one(&store, &Disks::new(), 8).await;
    assert_eq!(read_snapshot(&volume, "monday", 1000, 6).await, b"before");
    assert_eq!(read(&volume, 1000, 6).await, b"after!");
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn names_are_checked_and_changes_last() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let disks = Disks::new();
    let volume = open_one(&store, &disks, 7).await;
    let core = volume.core();
    for bad in ["", "a/b", "a@b", "a\nb", &"x".repeat(256)] {
        assert!(matches!(core.change(take(bad)).await, Err(VolumeError::Invalid(_))), "{bad:?}");
    }
    core.change(take("a")).await.unwrap();
    assert!(matches!(core.change(take("a")).await, Err(VolumeError::SnapshotExists { .. })));
    // Asked for at once, one of them gets it.
    let (one, two) = tokio::join!(core.change(take("b")), core.change(take("b")));
    assert!(one.is_ok());
    assert!(matches!(two, Err(VolumeError::SnapshotExists { .. })), "{two:?}");
    let rename = |from: &str, to: &str| Change::Rename { from: from.to_owned(), to: to.to_owned() };
    assert!(matches!(core.change(rename("a", "b")).await, Err(VolumeError::SnapshotExists { .. })));
    assert!(matches!(core.change(rename("z", "y")).await, Err(VolumeError::NoSnapshot { .. })));
    core.change(rename("a", "c")).await.unwrap();
    core.change(Change::Delete("b".to_owned())).await.unwrap();
    assert!(matches!(core.change(Change::Delete("b".to_owned())).await, Err(VolumeError::NoSnapshot { .. })));
    core.change(take("a")).await.unwrap();
    drop(volume);
    let volume = open_one(&store, &disks.crash(1), 8).await;
    let names: Vec<_> = volume.core().state().snapshots.iter().map(|s| (s.id, s.name.clone())).collect();
    assert_eq!(names, [(1, "c".to_owned()), (3, "a".to_owned())]);
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_table_moves_into_pages_and_comes_back() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let disks = Disks::new();
    let volume = open_one(&store, &disks, 7).await;
    for i in 0..1200 {
        volume.core().change(take(&format!("s{i}"))).await.unwrap();
        if i % 3 == 0 {
            volume.core().change(Change::Delete(format!("s{i}"))).await.unwrap();
        }
    }
    volume.close().await.unwrap();
    let env = env(std::sync::Arc::new(store.clone()), &disks, 9, "there");
    let bucket = unlock(&env).await;
    let newest = bucket.newest_manifest().await.unwrap();
    assert!(
        newest.manifest.roots.snapshots.is_some_and(|root| root.level > 0),
        "{:?}",
        newest.manifest.roots
    );
    assert!(newest.manifest.snapshots.len() < 20, "{}", newest.manifest.snapshots.len());
    let table = SnapshotTable::load(&bucket, &newest.manifest).await.unwrap();
    let names: Vec<_> = table.iter().map(|snapshot| snapshot.name.clone()).collect();
    let expected: Vec<_> = (0..1200).filter(|i| i % 3 != 0).map(|i| format!("s{i}")).collect();
    assert_eq!(names, expected);
    assert!(bucket.list_manifests().await.unwrap().len() >= 800);
}

#[tokio::test(start_paused = true)]
async fn manifests_of_snapshots_stay_and_go_with_them() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let disks = Disks::new();
    let volume = open_one(&store, &disks, 7).await;
    let mut prng = Prng::new(5);
    let pinned = volume.core().change(take("kept")).await.unwrap();
    let cut = async |prng: &mut Prng| {
        write(&volume, 512 * (prng.next_u64() % 1000), &noise(prng, 512)).await;
        volume.sync().await.unwrap();
    };
    for _ in 0..100 {
        cut(&mut prng).await;
    }
    let there = async || {
        let bucket = &volume.core().bucket;
        bucket.load_manifest(pinned.generation, pinned.epoch).await.unwrap().is_some()
    };
    assert!(there().await);
    assert!(volume.core().bucket.list_manifests().await.unwrap().len() < 40);
    volume.core().change(Change::Delete("kept".to_owned())).await.unwrap();
    tokio::task::yield_now().await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert!(!there().await);
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_costs_the_same_whatever_is_mapped_and_however_many_there_are() {
    let spent = async |rig: &Rig, volume: &Volume, name: &str| {
        let before = rig.faulty.counts().total();
        volume.core().change(take(name)).await.unwrap();
        rig.faulty.counts().total() - before
    };
    let mut rig = Rig::new(1, 1 << 50, 4096, Settings { checkpoint_objects: 1000, ..settings() }).await;
    let (volume, _) = rig.open(0, Default::default()).await.unwrap();
    let first = spent(&rig, &volume, "first").await;
    // A manifest, and the look at the claims.
    assert_eq!(first, 2);
    for i in 0..200_u64 {
        write(&volume, i << 40, b"far apart").await;
        volume.core().change(take(&format!("s{i}"))).await.unwrap();
    }
    assert_eq!(spent(&rig, &volume, "last").await, first);
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_change_that_a_newer_claim_overtakes_is_refused() {
    let mut rig = Rig::new(2, 1 << 30, 512, small_settings()).await;
    let (volume, _) = rig.open(0, Default::default()).await.unwrap();
    let agreed = s3bd::volume::open::Agreed { takeover: true, ..Default::default() };
    let (other, _) = rig.open(1, agreed).await.unwrap();
    let answer = volume.core().change(take("late")).await;
    assert!(matches!(answer, Err(VolumeError::Fenced { .. })), "{answer:?}");
    let late = |volume: &Volume| volume.core().state().snapshots.get("late").is_ok();
    assert!(!late(&volume) && !late(&other));
    other.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn usage_tells_what_a_deletion_frees() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let disks = Disks::new();
    let volume = open_one(&store, &disks, 7).await;
    let data = noise(&mut Prng::new(1), 64 << 10);
    write(&volume, 0, &data).await;
    volume.core().change(take("one")).await.unwrap();
    let told = async || {
        let newest = volume.core().bucket.newest_manifest().await.unwrap();
        assert!(newest.manifest.snapshots.iter().all(|change| !matches!(change, SnapshotChange::Deleted(_))));
        snapshot_usage(&volume.core().bucket, &newest.manifest).await.unwrap()
    };
    let shared = told().await;
    assert!(shared[0].own_bytes == 0 && shared[0].shared_bytes > 1000, "{shared:?}");
    volume.zero(0, 64 << 10, false, false).await.unwrap();
    volume.close().await.unwrap();
    let volume = open_one(&store, &disks, 8).await;
    let newest = volume.core().bucket.newest_manifest().await.unwrap();
    let own = snapshot_usage(&volume.core().bucket, &newest.manifest).await.unwrap();
    assert!(own[0].own_bytes > 1000, "{own:?}");
    volume.close().await.unwrap();
}
