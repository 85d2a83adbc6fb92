//! Clones: what they share with the volume that they come from, and what becomes of each.

mod collected;
mod damage;
mod family;
mod flatten;
mod rollback;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use s3bd::{
    format::{ids::Codec, slot::Argon2},
    fsck::{Finding, Level, Options, Report, Sample, Severity, check_store, repair},
    nbd::Device,
    seal::slot::Secret,
    store::{Store, faulty::Faulty, memory::Memory, prefixed::Prefixed},
    volume::{
        Volume,
        bucket::Bucket,
        clone::{NewClone, begin},
        env::Env,
        error::VolumeError,
        full_copy::copy_in_full,
        init::{NewVolume, init},
        open::{Agreed, open, pinned_manifest},
        rescue::Destination,
        settings::Settings,
        snapshots::Change,
    },
};
use wal::disk::sim::Prng;

use crate::{
    host::{Disks, env, small_settings},
    rig::{noise, retrying},
};

const SIZE: u64 = 64 << 10;
const COST: Argon2 = Argon2 { memory_kib: 64, passes: 1, lanes: 1 };

/// A bucket with several volumes, each opened by a host of its own.
pub struct Street {
    memory: Memory,
    faulty: Faulty<Memory>,
    store: Arc<dyn Store>,
    settings: Settings,
    hosts: BTreeMap<String, Disks>,
    opened: u64,
    seed: u64,
}

/// Each volume has a password of its own.
fn secret(volume: &str) -> Secret {
    Secret::password(volume)
}

impl Street {
    fn new(seed: u64, settings: Settings) -> Self {
        let memory = Memory::new();
        let faulty = Faulty::new(memory.clone());
        let store = retrying(faulty.clone(), seed);
        Self { memory, faulty, store, settings, hosts: BTreeMap::new(), opened: 0, seed }
    }

    fn env(&mut self, volume: &str) -> Env {
        self.opened += 1;
        let seed = self.seed.wrapping_mul(1_000_003) + self.opened;
        let disks = self.hosts.entry(volume.to_owned()).or_insert_with(Disks::new);
        let store = Prefixed::new(Arc::clone(&self.store), format!("{volume}/"));
        env(Arc::new(store), disks, seed, &format!("host of {volume}"))
    }

    async fn init(&mut self, volume: &str, size_bytes: u64) {
        let secret = secret(volume);
        let compression = Codec::Zstd;
        let new = NewVolume { size_bytes, block_bytes: 512, compression, secret: &secret, cost: COST };
        init(&self.env(volume), &new).await.unwrap();
    }

    async fn unlock(&mut self, volume: &str) -> Result<Bucket, VolumeError> {
        Bucket::unlock(self.env(volume).store, &secret(volume)).await
    }

    async fn try_open(&mut self, volume: &str, agreed: Agreed) -> Result<Volume, VolumeError> {
        let bucket = self.unlock(volume).await?;
        let (env, settings) = (self.env(volume), self.settings.clone());
        Ok(open(env, bucket, settings, agreed).await?.0)
    }

    async fn open(&mut self, volume: &str) -> Volume {
        self.try_open(volume, Agreed::default()).await.unwrap()
    }

    /// Makes a clone of an open volume.
    async fn clone_open(
        &mut self,
        origin: &str,
        volume: &Volume,
        snapshot: Option<&str>,
        name: &str,
    ) -> Result<Bucket, VolumeError> {
        let secret = secret(name);
        let new = NewClone { name, secret: &secret, cost: COST };
        let bucket = volume.core().bucket.clone();
        let begun = begin(&self.env(name), &bucket, &new).await?;
        match volume.core().pin(snapshot, begun.reference()).await {
            Ok(pinned) => begun.finish(&bucket, origin, &pinned_manifest(&bucket, &pinned).await?).await,
            Err(error) => {
                begun.undo().await?;
                Err(error)
            }
        }
    }

    /// Makes a clone of a volume that is not open.
    async fn clone_closed(
        &mut self,
        origin: &str,
        snapshot: Option<&str>,
        name: &str,
    ) -> Result<(), VolumeError> {
        let volume = self.try_open(origin, Agreed::default()).await?;
        let made = self.clone_open(origin, &volume, snapshot, name).await;
        volume.close().await?;
        made.map(drop)
    }

    async fn check(&mut self, volume: &str) -> Report {
        let options = Options { level: Level::ReadData(Sample::ALL), concurrency: 3 };
        check_store(self.env(volume).store, &secret(volume), &options, &()).await.unwrap()
    }

    /// Fails unless a check finds nothing but notes, and snapshots that nobody needs any more.
    async fn assert_sound(&mut self, volume: &str) {
        let report = self.check(volume).await;
        let is_fault = |fault: &&Finding| !matches!(fault, Finding::PinStale { .. });
        let faults: Vec<_> = faults(&report).filter(is_fault).collect();
        assert!(faults.is_empty(), "{volume}: {faults:#?}");
    }

    async fn repair(&mut self, volume: &str, report: &Report) -> repair::Applied {
        let (env, bucket) = (self.env(volume), self.unlock(volume).await.unwrap());
        let plan = repair::prepare(&env, &bucket, report).await.unwrap();
        let opened = repair::begin(env, bucket, self.settings.clone(), &plan).await.unwrap();
        let applied = repair::apply(&opened, &plan, &()).await.unwrap();
        opened.close().await.unwrap();
        applied
    }

    /// What `s3bd remove` does in the end.
    fn remove(&mut self, volume: &str) {
        let mut contents = self.memory.snapshot();
        let prefix = format!("{volume}/");
        let names: Vec<String> =
            contents.iter().map(|(key, _)| key.to_owned()).filter(|key| key.starts_with(&prefix)).collect();
        for name in names {
            contents.remove(&name);
        }
        self.memory.restore(contents);
        self.hosts.remove(volume);
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        let contents = self.memory.snapshot();
        contents.iter().map(|(key, _)| key.to_owned()).filter(|key| key.starts_with(prefix)).collect()
    }
}

fn faults(report: &Report) -> impl Iterator<Item = &Finding> {
    report.findings.iter().filter(|finding| finding.severity() > Severity::Note)
}

async fn content(volume: &Volume) -> Vec<u8> {
    volume.read(0, SIZE as u32).await.unwrap().concat()
}

/// A volume and what it should hold.
struct Pair {
    volume: Volume,
    wanted: Vec<u8>,
}

impl Pair {
    async fn write(&mut self, prng: &mut Prng, offset: u64, length: usize) {
        let data = noise(prng, length);
        let start = offset as usize;
        self.wanted[start..start + length].copy_from_slice(&data);
        self.volume.write(offset, Bytes::from(data), false).await.unwrap();
    }

    async fn trim(&mut self, offset: u64, length: usize) {
        self.wanted[offset as usize..offset as usize + length].fill(0);
        self.volume.trim(offset, length as u64, false).await.unwrap();
    }

    async fn assert_as_wanted(&self, what: &str) {
        let found = content(&self.volume).await;
        let differs = (0..found.len()).find(|at| found[*at] != self.wanted[*at]);
        assert_eq!(differs, None, "{what}: the first byte that differs");
    }
}

#[tokio::test(start_paused = true)]
async fn a_clone_holds_what_its_origin_held_and_each_goes_its_own_way() {
    // With and without a checkpoint before the snapshot, and on top of it.
    for (closes, cuts_after) in [(false, 0), (false, 3), (true, 0), (true, 3)] {
        let settings = Settings { checkpoint_objects: 100, ..small_settings() };
        let mut street = Street::new(200, settings);
        let mut prng = Prng::new(7);
        street.init("origin", SIZE).await;
        let mut origin = Pair { volume: street.open("origin").await, wanted: vec![0; SIZE as usize] };
        origin.write(&mut prng, 0, 40_000).await;
        origin.trim(10_000, 5000).await;
        if closes {
            origin.volume.close().await.unwrap();
            origin.volume = street.open("origin").await;
        }
        for cut in 0..cuts_after {
            origin.write(&mut prng, cut * 9000 + 77, 3000).await;
            origin.volume.sync().await.unwrap();
        }
        // Not published when the command comes.
        origin.write(&mut prng, 60_001, 100).await;
        street.clone_open("origin", &origin.volume, None, "team/clone").await.unwrap();
        let held = origin.wanted.clone();
        origin.write(&mut prng, 0, 20_000).await;

        // Both are open, on hosts that know nothing of each other.
        let mut clone = Pair { volume: street.open("team/clone").await, wanted: held };
        clone.assert_as_wanted("at first").await;
        clone.write(&mut prng, 5000, 3).await;
        clone.write(&mut prng, 30_000, 10_000).await;
        clone.trim(100, 4000).await;
        origin.trim(39_000, 3000).await;
        clone.volume.sync().await.unwrap();
        origin.volume.sync().await.unwrap();
        clone.assert_as_wanted("published").await;
        street.assert_sound("team/clone").await;
        clone.volume.close().await.unwrap();
        origin.volume.close().await.unwrap();
        street.assert_sound("team/clone").await;
        street.assert_sound("origin").await;

        street.hosts.clear();
        for (name, pair) in [("origin", &mut origin), ("team/clone", &mut clone)] {
            pair.volume = street.open(name).await;
            pair.assert_as_wanted(name).await;
            pair.write(&mut prng, 50_000, 5000).await;
            pair.volume.close().await.unwrap();
        }
        assert_eq!(street.names("team/clone/volume"), ["team/clone/volume"], "nothing is left of its making");
        let newest = street.unlock("team/clone").await.unwrap().newest_manifest().await.unwrap().manifest;
        assert!(newest.inherited.is_empty(), "its own maps have it");
        assert_eq!(newest.owners.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn clones_of_clones_read_what_each_of_those_before_them_wrote() {
    for checkpoint_objects in [1, 100] {
        let settings = Settings { checkpoint_objects, ..small_settings() };
        let mut street = Street::new(210, settings);
        let mut prng = Prng::new(11);
        street.init("v0", SIZE).await;
        let mut wanted = vec![0; SIZE as usize];
        for level in 0..5_u64 {
            let name = format!("v{level}");
            let mut pair = Pair { volume: street.open(&name).await, wanted };
            pair.assert_as_wanted(&name).await;
            pair.write(&mut prng, level * 10_000, 15_000).await;
            pair.volume.sync().await.unwrap();
            pair.write(&mut prng, level * 3000 + 5, 1000).await;
            pair.volume.core().change(Change::Take("here".to_owned())).await.unwrap();
            wanted = pair.wanted.clone();
            // Closed or not, and written to after the snapshot.
            pair.write(&mut prng, 0, SIZE as usize).await;
            let next = format!("v{}", level + 1);
            street.clone_open(&name, &pair.volume, Some("here"), &next).await.unwrap();
            if level % 2 == 0 {
                pair.volume.close().await.unwrap();
            }
            street.assert_sound(&next).await;
        }
        let last = Pair { volume: street.open("v5").await, wanted };
        last.assert_as_wanted("the last").await;
        let owners = street.unlock("v5").await.unwrap().newest_manifest().await.unwrap().manifest.owners;
        assert_eq!(
            owners.iter().map(|owner| &*owner.name).collect::<Vec<_>>(),
            ["v4", "v3", "v2", "v1", "v0"]
        );
    }
}

/// Requests of making a clone of a volume that holds `places` scattered blocks.
async fn requests_for_a_clone(places: u64) -> (u64, u64) {
    let settings = Settings { checkpoint_objects: 64, object_bytes: 16 << 20, ..small_settings() };
    let mut street = Street::new(220, settings);
    street.init("origin", 1 << 40).await;
    let volume = street.open("origin").await;
    for place in 0..places {
        let data = noise(&mut Prng::new(place), 512);
        volume.write(place << 24, Bytes::from(data), false).await.unwrap();
    }
    volume.close().await.unwrap();
    let before = street.faulty.counts();
    street.clone_closed("origin", None, "clone").await.unwrap();
    let after = street.faulty.counts();
    (after.puts - before.puts, after.total() - before.total())
}

#[tokio::test(start_paused = true)]
async fn a_clone_costs_the_same_whatever_its_origin_holds() {
    let (few, many) = (requests_for_a_clone(1).await, requests_for_a_clone(5000).await);
    assert_eq!(few, many);
    assert!(few.0 <= 12 && few.1 <= 60, "{few:?}");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_with_a_clone_stays_and_goes_when_the_clone_is_gone() {
    let mut street = Street::new(230, small_settings());
    street.init("origin", SIZE).await;
    let volume = street.open("origin").await;
    volume.write(0, Bytes::from(vec![7; 5000]), false).await.unwrap();
    volume.core().change(Change::Take("here".to_owned())).await.unwrap();
    street.clone_open("origin", &volume, Some("here"), "red").await.unwrap();
    street.clone_open("origin", &volume, Some("here"), "blue").await.unwrap();
    let delete = || volume.core().change(Change::Delete("here".to_owned()));
    let refused = delete().await.unwrap_err().to_string();
    assert!(refused.contains("red") && refused.contains("blue"), "{refused}");
    street.remove("red");
    let refused = delete().await.unwrap_err().to_string();
    assert!(!refused.contains("red") && refused.contains("blue"), "{refused}");
    street.remove("blue");
    // Another volume of that name is another volume.
    street.init("blue", SIZE).await;
    delete().await.unwrap();
    volume.close().await.unwrap();
    street.assert_sound("origin").await;
}

#[tokio::test(start_paused = true)]
async fn a_check_names_the_pin_of_a_clone_that_is_gone_and_a_repair_releases_it() {
    let mut street = Street::new(240, small_settings());
    street.init("origin", SIZE).await;
    street.clone_closed("origin", None, "gone").await.unwrap();
    street.clone_closed("origin", None, "there").await.unwrap();
    street.assert_sound("origin").await;
    street.remove("gone");
    let report = street.check("origin").await;
    let found: Vec<_> = faults(&report).collect();
    assert!(matches!(&found[..], [Finding::PinStale { clone, .. }] if clone == "gone"), "{found:#?}");
    let applied = street.repair("origin", &report).await;
    assert_eq!((applied.released_pins, applied.failed.len()), (1, 0));
    street.assert_sound("origin").await;
    let volume = street.open("origin").await;
    volume.core().change(Change::Delete("clone-gone".to_owned())).await.unwrap();
    let refused = volume.core().change(Change::Delete("clone-there".to_owned())).await;
    assert!(matches!(refused, Err(VolumeError::SnapshotInUse { .. })), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_become_a_clone_leaves_nothing() {
    let mut street = Street::new(250, small_settings());
    street.init("origin", SIZE).await;
    street.init("taken", SIZE).await;
    let volume = street.open("origin").await;
    let unknown = street.clone_open("origin", &volume, Some("nowhere"), "clone").await;
    assert!(matches!(unknown, Err(VolumeError::NoSnapshot { .. })), "{unknown:?}");
    assert!(street.names("clone/").is_empty());
    let before = street.memory.snapshot();
    let taken = street.clone_open("origin", &volume, None, "taken").await;
    assert!(matches!(taken, Err(VolumeError::Exists { .. })), "{taken:?}");
    assert!(street.memory.snapshot().iter().eq(before.iter()), "nothing was changed");
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_dies_anywhere_leaves_a_volume_or_nothing_that_anybody_trips_over() {
    let written = vec![9; 30_000];
    for changes in 0.. {
        let mut street = Street::new(260, small_settings());
        street.init("origin", SIZE).await;
        let volume = street.open("origin").await;
        volume.write(0, Bytes::from(written.clone()), false).await.unwrap();
        volume.close().await.unwrap();
        street.faulty.set_crash_after(Some(changes));
        let limit = Duration::from_secs(3600);
        let made = tokio::time::timeout(limit, street.clone_closed("origin", None, "clone")).await;
        let done = matches!(made, Ok(Ok(())));
        street.faulty.set_crash_after(None);
        for disks in street.hosts.values_mut() {
            *disks = disks.crash(changes);
        }
        let what = format!("dead after {changes} changes");
        // The origin is well, open or closed, and its log with it.
        let origin = street.open("origin").await;
        assert_eq!(origin.read(0, 30_000).await.unwrap().concat(), written, "{what}");
        origin.close().await.unwrap();
        let report = street.check("origin").await;
        let pins_only = faults(&report).all(|fault| matches!(fault, Finding::PinStale { .. }));
        assert!(pins_only, "{what}: {report:#?}");
        // What is there of the clone is all of it, or says that it is not finished.
        match street.try_open("clone", Agreed::default()).await {
            Ok(clone) => {
                assert_eq!(clone.read(0, 30_000).await.unwrap().concat(), written, "{what}");
                clone.close().await.unwrap();
                let report = street.check("clone").await;
                let left = report.findings.iter().filter(|finding| **finding == Finding::UnfinishedLeft);
                assert_eq!(left.count(), street.names("clone/volume.unfinished").len(), "{what}");
                street.repair("clone", &report).await;
                assert!(street.names("clone/volume.unfinished").is_empty(), "{what}");
                street.assert_sound("clone").await;
            }
            Err(VolumeError::NoVolume) if !done => assert!(street.names("clone/").is_empty(), "{what}"),
            Err(error @ VolumeError::Unfinished) if !done => {
                assert!(error.to_string().contains("s3bd remove"), "{error}");
                street.remove("clone");
            }
            Err(error) => panic!("{what}: {error}"),
        }
        // And a snapshot that nothing depends on can be deleted.
        let origin = street.open("origin").await;
        let is_there = street.unlock("clone").await.is_ok();
        let names: Vec<String> = {
            let state = origin.core().state();
            state.snapshots.iter().map(|snapshot| snapshot.name.clone()).collect()
        };
        for name in names {
            let deleted = origin.core().change(Change::Delete(name)).await;
            assert_eq!(deleted.is_err(), is_there, "{what}: {deleted:?}");
        }
        origin.close().await.unwrap();
        street.assert_sound("origin").await;
        if done {
            assert!(changes > 8, "{changes}");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn damage_in_the_origin_hits_the_ranges_of_a_clone_that_lie_in_it_and_is_named() {
    let settings = Settings { memory_bytes_max: 0, cache_bytes_max: 0, ..small_settings() };
    let mut street = Street::new(270, settings);
    street.init("origin", SIZE).await;
    let volume = street.open("origin").await;
    volume.write(0, Bytes::from(noise(&mut Prng::new(1), 10_000)), false).await.unwrap();
    volume.sync().await.unwrap();
    let first = street.names("origin/objects/");
    volume.write(20_000, Bytes::from(noise(&mut Prng::new(2), 10_000)), false).await.unwrap();
    volume.close().await.unwrap();
    street.clone_closed("origin", None, "clone").await.unwrap();
    let clone = street.open("clone").await;
    clone.write(40_000, Bytes::from(vec![3; 1000]), false).await.unwrap();
    clone.close().await.unwrap();
    let mut contents = street.memory.snapshot();
    assert!(contents.remove(&first[0]));
    street.memory.restore(contents);
    let clone = street.open("clone").await;
    let error = clone.core().read_flat(0..512, s3bd::volume::read::At::Newest).await.unwrap_err();
    assert!(error.is_damage() && error.to_string().contains("of origin"), "{error}");
    clone.read(20_000, 10_000).await.unwrap();
    clone.close().await.unwrap();
    let report = street.check("clone").await;
    let found: Vec<_> = faults(&report).collect();
    let [Finding::ObjectMissing { blocks, listed: false, .. }] = found[..] else { panic!("{found:#?}") };
    assert_eq!(blocks.count, 20, "{blocks}");
    // What cannot be had back is given up, and the clone is whole again.
    street.repair("clone", &report).await;
    let volume = street.open("clone").await;
    volume.write(0, Bytes::from(vec![1; 10_240]), false).await.unwrap();
    volume.close().await.unwrap();
    street.assert_sound("clone").await;
}

#[tokio::test(start_paused = true)]
async fn a_full_copy_depends_on_nothing() {
    let mut street = Street::new(280, small_settings());
    let mut prng = Prng::new(5);
    street.init("origin", SIZE).await;
    let mut origin = Pair { volume: street.open("origin").await, wanted: vec![0; SIZE as usize] };
    origin.write(&mut prng, 3000, 20_000).await;
    let taken = origin.volume.core().change(Change::Take("here".to_owned())).await.unwrap();
    let wanted = origin.wanted.clone();
    origin.write(&mut prng, 0, 10_000).await;
    let secret = secret("copy");
    let bucket = origin.volume.core().bucket.clone();
    let pinned = pinned_manifest(&bucket, &taken).await.unwrap();
    let destination =
        Destination { env: street.env("copy"), secret: &secret, cost: COST, settings: small_settings() };
    let env = street.env("origin");
    let copied = copy_in_full(&env, &bucket, &pinned, destination, |_| {}).await.unwrap();
    assert!((20_000..24_000).contains(&copied), "holes are not copied: {copied}");
    origin.volume.core().change(Change::Delete("here".to_owned())).await.unwrap();
    origin.volume.close().await.unwrap();
    street.remove("origin");
    let copy = Pair { volume: street.open("copy").await, wanted };
    copy.assert_as_wanted("copy").await;
    copy.volume.close().await.unwrap();
    street.assert_sound("copy").await;
}
