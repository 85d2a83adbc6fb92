//! Volumes to be checked, made by the real engine.

use std::sync::Arc;

use bytes::Bytes;
use s3bd::{
    format::{ids::Codec, names, slot::Argon2},
    fsck::{Finding, Level, Options, Report, Sample, Severity, check_store},
    nbd::Device,
    seal::{
        aead::Key,
        slot::{NewSlot, Secret, wrap},
    },
    store::{
        PutMode, Store,
        memory::{Contents, Memory},
    },
    volume::{
        Volume,
        bucket::Bucket,
        init::{NewVolume, init},
        open::Agreed,
        settings::Settings,
    },
};
use wal::disk::sim::Prng;

use crate::host::{BLOCK_BYTES, Disks, env, make, open_with, small_settings};

/// So large that the block map needs several levels.
pub const SIZE: u64 = 1 << 40;
pub const LEVELS: [Level; 3] = [Level::Quick, Level::Default, Level::ReadData(Sample::ALL)];

pub fn secret() -> Secret {
    Secret::password("secret")
}

pub async fn unlock(store: &Memory) -> Bucket {
    Bucket::unlock(Arc::new(store.clone()), &secret()).await.unwrap()
}

/// Checks at one level, with few requests at once so that every bound is met.
pub async fn check_at(store: Arc<dyn Store>, level: Level) -> Report {
    let options = Options { level, concurrency: 3 };
    check_store(store, &secret(), &options, &()).await.unwrap()
}

/// The findings that are more than notes.
pub fn faults(report: &Report) -> Vec<&Finding> {
    report.findings.iter().filter(|finding| finding.severity() > Severity::Note).collect()
}

/// Fails unless every level finds nothing but `notes`, by their names in JSON.
pub async fn assert_sound(store: &Memory, notes: &[&str]) {
    for level in LEVELS {
        let report = check_at(Arc::new(store.clone()), level).await;
        let found: Vec<String> = report.findings.iter().map(kind).collect();
        let strays_only_if_listed = |note: &&&str| level != Level::Quick || **note != "strays";
        let expected: Vec<&str> = notes.iter().filter(strays_only_if_listed).copied().collect();
        assert_eq!(found, expected, "{level:?}: {report:#?}");
        assert!(report.is_sound());
    }
}

/// A finding's name in JSON.
pub fn kind(finding: &Finding) -> String {
    serde_json::to_value(finding).unwrap()["finding"].as_str().unwrap().to_owned()
}

/// Bytes that no compression makes smaller.
pub fn noise(prng: &mut Prng, length: u64) -> Bytes {
    (0..length).map(|_| prng.next_u64() as u8).collect()
}

/// Where writes go: a busy start, a middle, and the very end.
const PLACES: [(u64, u64); 3] = [(0, 2 << 20), (SIZE / 2, 512 << 10), (SIZE - (256 << 10), 256 << 10)];

/// Writes, zeroes and syncs, `rounds` times: many cuts and checkpoints.
pub async fn churn(volume: &Volume, prng: &mut Prng, rounds: u64) {
    for _ in 0..rounds {
        for _ in 0..4 {
            let (start, length) = PLACES[(prng.next_u64() % 3) as usize];
            let offset = start + prng.next_u64() % (length - 1);
            let count = (1 + prng.next_u64() % (40 << 10)).min(start + length - offset);
            if prng.next_u64().is_multiple_of(5) {
                volume.zero(offset, count, false, false).await.unwrap();
            } else {
                volume.write(offset, noise(prng, count), false).await.unwrap();
            }
        }
        volume.sync().await.unwrap();
    }
}

/// A volume with several tenures, checkpoints, dead objects, and a list on top; left as a crash leaves it.
pub async fn rich() -> Memory {
    rich_and_its_host().await.0
}

/// The same, and the disks of the host that wrote it.
pub async fn rich_and_its_host() -> (Memory, Disks) {
    static RICH: tokio::sync::OnceCell<(Contents, Disks)> = tokio::sync::OnceCell::const_new();
    let made = RICH.get_or_init(|| async {
        let (store, disks) = make_rich().await;
        (store.snapshot(), disks)
    });
    let (contents, disks) = made.await;
    let store = Memory::new();
    store.restore(contents.clone());
    let Disks { state, wal, cache } = disks;
    (store, Disks { state: state.snapshot(), wal: wal.snapshot(), cache: cache.snapshot() })
}

/// With these the collector leaves everything as it is: dead objects are there to be looked at.
pub fn uncollected() -> Settings {
    let never = std::time::Duration::from_secs(1 << 30);
    // Less than an object that waits is no burden, so nothing is let go before its time.
    Settings { gc_idle: never, gc_grace: never, object_bytes: 16 << 20, ..small_settings() }
}

async fn open_uncollected(store: &Memory, disks: &Disks, seed: u64) -> Volume {
    let env = env(Arc::new(store.clone()), disks, seed, "here");
    open_with(env, uncollected(), Agreed::default()).await.unwrap().0
}

async fn make_rich() -> (Memory, Disks) {
    let store = Memory::new();
    make(&store, SIZE).await;
    add_slot(&store).await;
    let disks = Disks::new();
    let mut prng = Prng::new(11);
    let volume = open_uncollected(&store, &disks, 7).await;
    churn(&volume, &mut prng, 20).await;
    // Whole objects that the next writes cover, so that they die.
    for _ in 0..3 {
        volume.write(4 << 20, noise(&mut prng, 300 << 10), false).await.unwrap();
        volume.sync().await.unwrap();
    }
    volume.close().await.unwrap();
    let volume = open_uncollected(&store, &disks, 8).await;
    churn(&volume, &mut prng, 9).await;
    // So that checkpoints under way end, and the list on top is not empty.
    settle(&volume, &store, &mut prng).await;
    drop(volume);
    (store, disks)
}

/// Publishes until the newest manifest lists data above its last checkpoint, and none is under way.
async fn settle(volume: &Volume, store: &Memory, prng: &mut Prng) {
    for _ in 0..20 {
        churn(volume, prng, 1).await;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let newest = unlock(store).await.newest_manifest().await.unwrap().manifest;
        if (1..4).contains(&newest.objects.len()) && newest.objects.last().unwrap().epoch == newest.epoch {
            return;
        }
    }
    panic!("no list on top of a checkpoint");
}

/// Another password, in the last slot.
async fn add_slot(store: &Memory) {
    let volume = unlock(store).await.header.volume;
    let cost = Argon2 { memory_kib: 64, passes: 1, lanes: 1 };
    let new = NewSlot { volume, cost, salt: [3; 32], label: "second".to_owned(), created_ms: 0 };
    // Only its envelope matters here: what it wraps is not looked at.
    let slot = wrap(&Key::new([7; 32]), &Secret::password("other"), new).unwrap();
    store.put(&names::slot(u32::MAX), &[slot.encode().unwrap().into()], PutMode::Create).await.unwrap();
}

/// A volume with another id.
pub async fn other_volume() -> Memory {
    let store = Memory::new();
    let env = env(Arc::new(store.clone()), &Disks::new(), 99, "stranger");
    let cost = Argon2 { memory_kib: 64, passes: 1, lanes: 1 };
    let secret = secret();
    init(
        &env,
        &NewVolume {
            size_bytes: SIZE,
            block_bytes: BLOCK_BYTES,
            compression: Codec::Zstd,
            secret: &secret,
            cost,
        },
    )
    .await
    .unwrap();
    store
}
