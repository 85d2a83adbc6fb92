//! A bucket of several volumes: finding them, and removing one.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use s3bd::{
    format::{ids::Codec, slot::Argon2},
    nbd::Device,
    seal::slot::Secret,
    store::{Put, PutMode, Store, faulty::Faulty, memory::Memory, prefixed::Prefixed},
    volume::{
        Volume,
        bucket::Bucket,
        clone::{NewClone, begin},
        env::Env,
        error::VolumeError,
        init::{NewVolume, init},
        list::{Depth, HeaderName, Listed, Standing, find_volumes, look},
        open::{Agreed, open, pinned_manifest},
        remove::{self, Removed},
        snapshots::Change,
    },
};

use crate::{
    host::{Disks, env, small_settings},
    rig::retrying,
};

const SIZE: u64 = 1 << 20;
const COST: Argon2 = Argon2 { memory_kib: 64, passes: 1, lanes: 1 };

/// A bucket, and one host.
struct Yard {
    memory: Memory,
    faulty: Faulty<Memory>,
    store: Arc<dyn Store>,
    hosts: BTreeMap<String, Disks>,
    opened: u64,
}

fn password() -> Secret {
    Secret::password("secret")
}

impl Yard {
    fn new() -> Self {
        let memory = Memory::new();
        let faulty = Faulty::new(memory.clone());
        Self { store: retrying(faulty.clone(), 1), memory, faulty, hosts: BTreeMap::new(), opened: 0 }
    }

    /// The host's folders of a volume.
    fn disks(&mut self, volume: &str) -> Disks {
        self.hosts.entry(volume.to_owned()).or_insert_with(Disks::new).clone()
    }

    fn env(&mut self, volume: &str) -> Env {
        let disks = self.disks(volume);
        self.env_on(volume, &disks, "host")
    }

    fn env_on(&mut self, volume: &str, disks: &Disks, host: &str) -> Env {
        self.opened += 1;
        let store = Arc::new(Prefixed::new(Arc::clone(&self.store), format!("{volume}/")));
        env(store, disks, 100 + self.opened, host)
    }

    async fn init(&mut self, volume: &str, secret: &Secret) {
        let new =
            NewVolume { size_bytes: SIZE, block_bytes: 512, compression: Codec::Zstd, secret, cost: COST };
        init(&self.env(volume), &new).await.unwrap();
    }

    async fn unlock(&mut self, volume: &str) -> Result<Bucket, VolumeError> {
        Bucket::unlock(self.env(volume).store, &password()).await
    }

    async fn open(&mut self, volume: &str) -> Volume {
        let bucket = self.unlock(volume).await.unwrap();
        open(self.env(volume), bucket, small_settings(), Agreed::default()).await.unwrap().0
    }

    async fn list(&self, secret: Option<&Secret>) -> Vec<Listed> {
        let mut listed = Vec::new();
        for found in find_volumes(&*self.store, Depth::Any).await.unwrap() {
            listed.push(look(&self.store, &found, secret).await.unwrap());
        }
        listed
    }

    async fn remove(&mut self, volume: &str, takeover: bool) -> Result<Removed, VolumeError> {
        let bucket = self.unlock(volume).await?;
        remove::remove(&self.env(volume), &bucket, takeover, |_| {}).await
    }

    fn left_of(&self, volume: &str) -> Vec<String> {
        let contents = self.memory.snapshot();
        let below = format!("{volume}/");
        contents.iter().filter(|(key, _)| key.starts_with(&below)).map(|(key, _)| key.to_owned()).collect()
    }

    async fn put(&self, key: &str) {
        self.store.put(key, &[Bytes::from_static(b"?")], PutMode::Replace).await.map(|_: Put| ()).unwrap();
    }
}

async fn write(volume: &Volume, offset: u64) {
    volume.write(offset, Bytes::from(vec![7; 5000]), true).await.unwrap();
}

fn names_of(listed: &[Listed]) -> Vec<&str> {
    listed.iter().map(|listed| &listed.volume[..]).collect()
}

fn state(listed: &Listed) -> String {
    serde_json::to_value(listed).unwrap()["state"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn every_volume_is_found_with_what_may_be_known_of_it_and_a_damaged_one_is_named() {
    let mut yard = Yard::new();
    for volume in ["a", "a/b", "team/web/disk", "objects", "z"] {
        yard.init(volume, &password()).await;
    }
    yard.init("open", &Secret::Nothing).await;
    yard.init("other", &Secret::password("another")).await;
    // Things that are no volumes.
    for key in ["file", "backup/2024/volume.txt", "a/b/unknown/x", "keys/x"] {
        yard.put(key).await;
    }
    let volume = yard.open("a").await;
    write(&volume, 0).await;
    volume.core().change(Change::Take("first".to_owned())).await.unwrap();
    volume.sync().await.unwrap();
    drop(volume);
    yard.put("z/volume").await;
    yard.put("half/volume.unfinished").await;
    let manifest = yard.left_of("team/web/disk").into_iter().find(|key| key.contains("manifests/")).unwrap();
    yard.put(&manifest).await;
    yard.store.delete(&["a/b/volume".to_owned()]).await.unwrap();

    let listed = yard.list(Some(&password())).await;
    assert_eq!(names_of(&listed), ["a", "a/b", "half", "objects", "open", "other", "team/web/disk", "z"]);
    let states: Vec<String> = listed.iter().map(state).collect();
    let expected = ["open", "unfinished", "unfinished", "closed", "closed", "locked", "damaged", "damaged"];
    assert_eq!(states, expected);
    let Standing::Open { info } = &listed[0].standing else { panic!("{:?}", listed[0]) };
    assert_eq!((info.size_bytes, info.snapshots[0].name.as_str()), (SIZE, "first"));
    assert!(info.used_bytes >= 5000);
    let facts = listed[5].header.as_ref().unwrap();
    assert!(facts.protected && facts.block_bytes == 512 && facts.id.len() == 32);

    let states: Vec<String> = yard.list(None).await.iter().map(state).collect();
    let expected = ["locked", "unfinished", "unfinished", "locked", "closed", "locked", "locked", "damaged"];
    assert_eq!(states, expected);
    let found = find_volumes(&*yard.store, Depth::One).await.unwrap();
    let found: Vec<_> = found.iter().map(|found| (&found.volume[..], found.header)).collect();
    assert!(
        found.contains(&("half", HeaderName::Unfinished)) && found.iter().all(|found| !found.0.contains('/'))
    );

    // Written to since, so it was a volume.
    let volume = yard.open("objects").await;
    volume.close().await.unwrap();
    yard.store.delete(&["objects/volume".to_owned()]).await.unwrap();
    let listed = yard.list(None).await;
    assert_eq!(state(&listed[3]), "damaged");
}

#[tokio::test(start_paused = true)]
async fn a_listing_costs_requests_by_folders_and_volumes_and_not_by_objects() {
    let mut yard = Yard::new();
    yard.init("disk", &password()).await;
    for number in 0..5000 {
        yard.put(&format!("disk/objects/{number:016x}-0000000000000001")).await;
    }
    let before = yard.faulty.counts();
    let found = find_volumes(&*yard.store, Depth::Any).await.unwrap();
    let after = yard.faulty.counts();
    assert_eq!(found.len(), 1);
    assert_eq!(after.lists - before.lists, 2);
    assert_eq!(after.gets, before.gets);
}

/// Makes a clone of the snapshot `first`.
async fn clone(yard: &mut Yard, volume: &Volume, name: &str) {
    let bucket = volume.core().bucket.clone();
    let secret = password();
    let new = NewClone { name, secret: &secret, cost: COST };
    let begun = begin(&yard.env(name), &bucket, &new).await.unwrap();
    let pinned = volume.core().pin(Some("first"), begun.reference()).await.unwrap();
    let pinned = pinned_manifest(&bucket, &pinned).await.unwrap();
    begun.finish(&bucket, "disk", &pinned).await.unwrap();
}

/// A volume with a snapshot, objects, and another one whose name goes on from its own.
async fn yard_with_disk() -> (Yard, Volume) {
    let mut yard = Yard::new();
    yard.init("disk", &password()).await;
    yard.init("disk/inner", &password()).await;
    let volume = yard.open("disk").await;
    for at in 0..4 {
        write(&volume, at * 100_000).await;
        volume.sync().await.unwrap();
    }
    volume.core().change(Change::Take("first".to_owned())).await.unwrap();
    (yard, volume)
}

#[tokio::test(start_paused = true)]
async fn a_volume_with_clones_stays_until_they_are_gone() {
    let (mut yard, volume) = yard_with_disk().await;
    clone(&mut yard, &volume, "copy").await;
    volume.close().await.unwrap();
    let refused = yard.remove("disk", false).await;
    assert!(matches!(&refused, Err(VolumeError::HasClones { clones }) if clones == &["copy"]), "{refused:?}");
    let listed = yard.list(Some(&password())).await;
    let Standing::Closed { info } = &listed[0].standing else { panic!("{listed:?}") };
    assert_eq!(info.clone_of.as_deref(), Some("disk"));
    let Standing::Closed { info } = &listed[1].standing else { panic!("{listed:?}") };
    assert_eq!(info.snapshots[0].clones, ["copy"]);

    yard.remove("copy", false).await.unwrap();
    assert!(yard.left_of("copy").is_empty());
    yard.remove("disk", false).await.unwrap();
    assert_eq!(names_of(&yard.list(None).await), ["disk/inner"]);
    assert!(yard.left_of("disk").iter().all(|key| key.starts_with("disk/inner/")));
    yard.open("disk/inner").await.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_another_host_has_open_is_removed_only_by_force_and_its_writer_is_fenced() {
    let (mut yard, volume) = yard_with_disk().await;
    let elsewhere = Disks::new();
    let bucket = yard.unlock("disk").await.unwrap();
    let other = yard.env_on("disk", &elsewhere, "elsewhere");
    let refused = remove::remove(&other, &bucket, false, |_| {}).await;
    assert!(matches!(refused, Err(VolumeError::InUse { .. })), "{refused:?}");
    assert!(!yard.left_of("disk").contains(&"disk/volume.unfinished".to_owned()), "something was changed");
    write(&volume, 0).await;
    volume.sync().await.unwrap();
    remove::remove(&other, &bucket, true, |_| {}).await.unwrap();
    assert!(yard.left_of("disk").iter().all(|key| key.starts_with("disk/inner/")));
    drop(volume);
}

#[tokio::test(start_paused = true)]
async fn a_folder_whose_log_holds_more_stays() {
    let (mut yard, volume) = yard_with_disk().await;
    write(&volume, 500_000).await;
    drop(volume);
    let removed = yard.remove("disk", false).await.unwrap();
    let (_, why) = removed.folder_left.unwrap();
    assert!(why.contains("1 write (5000 bytes)"), "{why}");
    assert!(yard.left_of("disk").iter().all(|key| key.starts_with("disk/inner/")));
}

#[tokio::test(start_paused = true)]
async fn a_removal_that_dies_anywhere_leaves_the_volume_or_none_and_goes_on() {
    let mut whole = 0;
    for changes in 0.. {
        let (mut yard, volume) = yard_with_disk().await;
        volume.close().await.unwrap();
        yard.faulty.set_crash_after(Some(changes));
        let hour = std::time::Duration::from_secs(3600);
        let first = tokio::time::timeout(hour, yard.remove("disk", false)).await;
        yard.faulty.set_crash_after(None);
        let is_there = yard.left_of("disk").contains(&"disk/volume".to_owned());
        if is_there {
            whole += 1;
            // All of it, whoever opens it now; and it can be removed all the same.
            let bucket = yard.unlock("disk").await.unwrap();
            let agreed = Agreed { takeover: true, ..Agreed::default() };
            let disks = if changes % 2 == 0 { yard.disks("disk") } else { Disks::new() };
            let env = yard.env_on("disk", &disks, "host");
            let again = open(env, bucket, small_settings(), agreed).await.unwrap().0;
            let found = again.read(300_000, 5000).await.unwrap().concat();
            assert!(found.iter().all(|byte| *byte == 7));
            again.close().await.unwrap();
            yard.remove("disk", false).await.unwrap();
        } else {
            assert!(matches!(
                yard.unlock("disk").await,
                Err(VolumeError::Unfinished | VolumeError::NoVolume)
            ));
            if !matches!(first, Ok(Ok(_))) {
                assert!(remove::has_remains(&*yard.env("disk").store).await.unwrap());
                let listed = yard.list(None).await;
                assert_eq!((&listed[0].volume[..], state(&listed[0])), ("disk", "unfinished".to_owned()));
                remove::clear(&yard.env("disk"), |_| {}).await.unwrap();
            }
        }
        assert!(!remove::has_remains(&*yard.env("disk").store).await.unwrap());
        assert!(yard.left_of("disk").iter().all(|key| key.starts_with("disk/inner/")));
        if matches!(first, Ok(Ok(_))) {
            assert!(whole >= 3 && changes > 6, "{whole} {changes}");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_removal_that_was_begun_goes_on_where_it_was() {
    let (mut yard, volume) = yard_with_disk().await;
    volume.close().await.unwrap();
    // The unfinished header and the claim, and no more.
    yard.faulty.set_crash_after(Some(2));
    let hour = std::time::Duration::from_secs(3600);
    assert!(!matches!(tokio::time::timeout(hour, yard.remove("disk", false)).await, Ok(Ok(_))));
    yard.faulty.set_crash_after(None);
    yard.remove("disk", false).await.unwrap();
    assert!(!remove::has_remains(&*yard.env("disk").store).await.unwrap());
}
