//! What the collector deletes against a count of everything that anybody may still read; and how much stays.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use s3bd::{
    nbd::Device,
    seal::slot::Secret,
    store::{
        ErrorKind,
        faulty::{Call, Fault, SeededPlan},
    },
    volume::{Volume, error::VolumeError, open::Agreed, settings::Settings, snapshots::Change},
};
use wal::disk::sim::Prng;

use crate::{
    host::{Disks, env, small_settings, unlock},
    oracle::{Oracle, Windows},
    rig::{Rig, WHATEVER, for_seeds, noise, tight_settings},
    watched::{References, Watched, objects},
};

/// A volume whose deletions are watched.
struct Collected {
    rig: Rig,
    references: Arc<References>,
    watched: Arc<Watched>,
    volume: Volume,
}

impl Collected {
    async fn new(seed: u64, size_bytes: u64, block_bytes: u32, settings: Settings) -> Self {
        let mut rig = Rig::new(seed, size_bytes, block_bytes, settings).await;
        let references = Arc::new(References::new(&rig.memory, |_| Secret::password("secret")));
        let watched = Arc::new(Watched::new(Arc::clone(&rig.store), Arc::clone(&references)));
        rig.store = Arc::<Watched>::clone(&watched);
        let volume = rig.open(0, Agreed::default()).await.unwrap().0;
        Self { rig, references, watched, volume }
    }

    fn objects(&self) -> BTreeMap<String, u64> {
        objects(&self.rig.memory)
    }

    async fn snapshots(&self) -> Vec<String> {
        let state = self.volume.core().state();
        state.snapshots.iter().map(|snapshot| snapshot.name.clone()).collect()
    }
}

/// Settings by chance, under which there is much to collect.
pub fn settings(prng: &mut Prng) -> Settings {
    Settings {
        gc_idle: Duration::from_secs(1 + prng.below(20)),
        gc_grace: Duration::from_secs([0, 10, 300][prng.below(3) as usize]),
        object_bytes: [4 << 10, 16 << 10][prng.below(2) as usize],
        ..tight_settings(prng)
    }
}

async fn history(seed: u64) {
    let mut prng = Prng::new(seed);
    let block_bytes: u32 = [512, 4096][prng.below(2) as usize];
    let size_bytes = 128 << 10;
    let settings = settings(&mut prng);
    let mut oracle = Oracle::new(Windows::new(vec![0..size_bytes]), size_bytes);
    let mut it = Collected::new(seed, size_bytes, block_bytes, settings).await;
    let crashes = prng.below(2) == 0;
    let (mut names_used, mut has_crashed) = (0, false);
    let mut images: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for _ in 0..80 {
        let offset = prng.below(size_bytes - 1);
        let length_max = [600, 5000, 40_000][prng.below(3) as usize];
        let length = (1 + prng.below(length_max)).min(size_bytes - offset);
        match prng.below(100) {
            0..50 => {
                let data = noise(&mut prng, length as usize);
                oracle.send(offset, length, Some(data.clone()));
                it.volume.write(offset, data.into(), false).await.unwrap();
                oracle.acknowledge(&it.volume);
            }
            50..58 => {
                oracle.send(offset, length, None);
                it.volume.trim(offset, length, false).await.unwrap();
                oracle.acknowledge(&it.volume);
            }
            58..70 => it.volume.sync().await.unwrap(),
            70..78 => {
                names_used += 1;
                let name = format!("s{names_used}");
                it.volume.core().change(Change::Take(name.clone())).await.unwrap();
                images.insert(name, oracle.image());
            }
            78..85 => {
                let names = it.snapshots().await;
                if !names.is_empty() {
                    let name = names[prng.below(names.len() as u64) as usize].clone();
                    it.volume.core().change(Change::Delete(name)).await.unwrap();
                }
            }
            85..91 => {
                tokio::time::sleep(Duration::from_secs([1, 10, 60, 1000][prng.below(4) as usize])).await
            }
            91..94 => {
                let names = it.snapshots().await;
                let known: Vec<_> = names.iter().filter(|name| images.contains_key(*name)).collect();
                if !known.is_empty() {
                    let name = known[prng.below(known.len() as u64) as usize];
                    let before = oracle.image();
                    let done = it.volume.core().roll_back(name, prng.below(2) == 0).await.unwrap();
                    let back = images[name][..size_bytes as usize].to_vec();
                    images.extend(done.kept.map(|kept| (kept, before)));
                    oracle.send(0, size_bytes, Some(back));
                    oracle.acknowledge(&it.volume);
                    oracle.published();
                }
            }
            94..97 => {
                it.volume.close().await.unwrap();
                it.volume = it.rig.open(0, Agreed::default()).await.unwrap().0;
            }
            _ if crashes => {
                has_crashed = true;
                oracle.published_to(it.volume.core().progress.borrow().lsn);
                it.rig.hosts[0] = it.rig.hosts[0].crash(prng.next_u64());
                oracle.reopened();
                it.volume = it.rig.open(0, WHATEVER).await.unwrap().0;
                oracle.survived_power_cut(&oracle.windows.clone().read(&it.volume).await).unwrap();
            }
            _ => oracle.check(&oracle.windows.read(&it.volume).await).unwrap(),
        }
    }
    for name in it.snapshots().await {
        if prng.below(2) == 0 {
            it.volume.core().change(Change::Delete(name)).await.unwrap();
        }
    }
    it.volume.sync().await.unwrap();
    tokio::time::sleep(Duration::from_secs(86_400)).await;
    oracle.check(&oracle.windows.read(&it.volume).await).unwrap();
    let (objects, needed) = (it.objects(), it.references.all().await);
    let missing: Vec<_> = needed.iter().filter(|name| !objects.contains_key(*name)).collect();
    assert!(missing.is_empty(), "needed and gone: {missing:?}");
    let left: Vec<_> = objects.keys().filter(|name| !needed.contains(*name)).collect();
    assert!(has_crashed || left.is_empty(), "nobody needs these of {}: {left:?}", objects.len());
    assert!(it.watched.deleted() > 0, "a history without garbage");
    let before = it.rig.faulty.counts();
    tokio::time::sleep(Duration::from_secs(86_400)).await;
    assert_eq!(it.rig.faulty.counts().total(), before.total(), "an idle volume is silent");
    it.volume.close().await.unwrap();
}

#[test]
fn what_is_deleted_nobody_needs_and_what_nobody_needs_is_deleted() {
    for_seeds(60, history);
}

#[tokio::test(start_paused = true)]
async fn a_reader_elsewhere_finds_the_newer_epoch_when_its_own_is_collected() {
    let settings = Settings { gc_grace: Duration::ZERO, cache_bytes_max: 0, ..small_settings() };
    let it = Collected::new(3, 1 << 20, 4096, settings).await;
    it.volume.write(0, Bytes::from(vec![1; 64 << 10]), false).await.unwrap();
    it.volume.sync().await.unwrap();
    let reader = env(Arc::clone(&it.rig.store), &Disks::new(), 50, "reader");
    let settings = Settings { memory_bytes_max: 0, ..it.rig.settings.clone() };
    let bucket = unlock(&reader).await;
    let reader = s3bd::volume::open::open_read_only(reader, bucket, settings).await.unwrap();
    let epoch = reader.core().progress.borrow().epoch;
    it.volume.write(0, Bytes::from(vec![2; 128 << 10]), false).await.unwrap();
    it.volume.sync().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(it.watched.deleted() > 0);
    let parts = reader.read(0, 64 << 10).await.unwrap();
    assert!(parts.iter().all(|part| part.iter().all(|byte| *byte == 2)));
    assert!(reader.core().progress.borrow().epoch > epoch);
}

#[tokio::test(start_paused = true)]
async fn collecting_by_hand_leaves_nothing_that_may_go() {
    let settings =
        Settings { gc_grace: Duration::ZERO, gc_idle: Duration::from_secs(1 << 30), ..small_settings() };
    let it = Collected::new(4, 1 << 20, 4096, settings).await;
    for byte in 1..20 {
        it.volume.write(0, Bytes::from(vec![byte; 300 << 10]), false).await.unwrap();
        it.volume.sync().await.unwrap();
    }
    let figures = it.volume.core().collect().await.unwrap();
    assert!(figures.deleted > 10, "{figures:?}");
    assert_eq!(figures.waiting, 0, "{figures:?}");
    let (objects, needed) = (it.objects(), it.references.all().await);
    assert!(objects.keys().all(|name| needed.contains(name)), "{} of {}", needed.len(), objects.len());
    let again = it.volume.core().collect().await.unwrap();
    assert_eq!((again.deleted, again.moved_bytes), (figures.deleted, figures.moved_bytes));
    it.volume.close().await.unwrap();
}

/// What clients wrote is published for it at once: it is not for them to wait until that is due.
#[tokio::test(start_paused = true)]
async fn collecting_by_hand_waits_for_no_commit_interval() {
    let never = Duration::from_secs(1 << 30);
    let settings = Settings { commit_interval: never, gc_idle: never, ..small_settings() };
    let it = Collected::new(7, 1 << 20, 4096, settings).await;
    let writes = async || {
        loop {
            it.volume.write(0, Bytes::from(vec![1; 4096]), false).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let collected = async || tokio::time::timeout(Duration::from_secs(600), it.volume.core().collect()).await;
    it.volume.write(8192, Bytes::from(vec![2; 4096]), false).await.unwrap();
    collected().await.expect("it ends").unwrap();
    tokio::select! {
        collected = collected() => { collected.expect("it ends while clients write").unwrap(); }
        () = writes() => {}
    }
    it.volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_deleted_is_in_no_figure_any_more_and_is_not_deleted_again() {
    let settings =
        Settings { gc_grace: Duration::ZERO, gc_idle: Duration::from_secs(30), ..small_settings() };
    let mut it = Collected::new(8, 4 << 20, 4096, settings).await;
    for round in 0..3 {
        for part in 0..4 {
            let data = noise(&mut Prng::new(10 * round + part), 512 << 10);
            it.volume.write(part << 19, data.into(), false).await.unwrap();
        }
        it.volume.sync().await.unwrap();
    }
    let figures = it.volume.core().collect().await.unwrap();
    assert!(figures.deleted_bytes > it.objects().values().sum(), "{figures:?} {:?}", it.objects());
    let stored = async |it: &Collected| {
        let manifest = it.volume.core().bucket.newest_manifest().await.unwrap().manifest;
        (manifest.totals.object_bytes, it.objects().values().sum::<u64>(), manifest.epoch)
    };
    let (said, found, epoch) = stored(&it).await;
    assert!(said >= found && said - found < found / 8, "{said} said, {found} found");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let (_, _, later) = stored(&it).await;
    assert!(later.0 - epoch.0 < 4, "it falls silent: {epoch}, {later}");
    it.volume.close().await.unwrap();
    it.volume = it.rig.open(0, Agreed::default()).await.unwrap().0;
    let again = it.volume.core().collect().await.unwrap().deleted_bytes;
    assert!(again < found / 8, "{again}");
}

/// Overwrites, snapshots that come and go, compaction and tidying: until the store dies.
async fn session(it: &mut Collected, oracle: &mut Oracle) -> Result<(), ()> {
    let mut prng = Prng::new(5);
    for round in 0..6 {
        for _ in 0..12 {
            let offset = prng.below(60) << 10;
            let data = noise(&mut prng, 4 << 10);
            oracle.send(offset, data.len() as u64, Some(data.clone()));
            it.volume.write(offset, data.into(), false).await.map_err(drop)?;
            oracle.acknowledge(&it.volume);
        }
        it.volume.sync().await.map_err(drop)?;
        oracle.published();
        let change = match round {
            1 => Some(Change::Take("one".to_owned())),
            3 => Some(Change::Delete("one".to_owned())),
            _ => None,
        };
        if let Some(change) = change {
            it.volume.core().change(change).await.map_err(drop)?;
        }
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    tokio::time::sleep(Duration::from_secs(600)).await;
    it.volume.core().check().map_err(drop)
}

#[tokio::test(start_paused = true)]
async fn wherever_the_store_dies_nothing_needed_is_gone_and_collecting_goes_on() {
    let settings = || Settings {
        object_bytes: 16 << 10,
        checkpoint_objects: 4,
        gc_idle: Duration::from_secs(10),
        gc_grace: Duration::from_secs(5),
        ..small_settings()
    };
    let new_oracle = || Oracle::new(Windows::new(vec![0..64 << 10]), 64 << 10);
    let mut whole = Collected::new(1, 64 << 10, 512, settings()).await;
    let before = whole.rig.faulty.counts().changes();
    session(&mut whole, &mut new_oracle()).await.unwrap();
    let changes = whole.rig.faulty.counts().changes() - before;
    let figures = whole.volume.core().collecting().figures();
    assert!(figures.deleted > 10 && figures.moved_bytes > 0, "{figures:?}");
    for at in 0..changes {
        let mut it = Collected::new(1, 64 << 10, 512, settings()).await;
        let mut oracle = new_oracle();
        it.rig.faulty.set_crash_after(Some(at));
        let ended = tokio::time::timeout(Duration::from_secs(2000), session(&mut it, &mut oracle)).await;
        assert!(at + 1 >= changes || !matches!(ended, Ok(Ok(()))) || it.rig.faulty.has_crashed(), "{at}");
        it.rig.faulty.set_crash_after(None);
        it.rig.hosts[0] = it.rig.hosts[0].crash(at);
        oracle.reopened();
        it.volume = it.rig.open(0, WHATEVER).await.unwrap().0;
        let found = oracle.windows.clone().read(&it.volume).await;
        oracle.survived_power_cut(&found).unwrap_or_else(|wrong| panic!("{at}: {wrong}"));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let (objects, needed) = (it.objects(), it.references.all().await);
        let missing: Vec<_> = needed.iter().filter(|name| !objects.contains_key(*name)).collect();
        assert!(missing.is_empty(), "{at}: needed and gone: {missing:?}");
        let waiting = it.volume.core().collecting().figures().waiting;
        assert_eq!(waiting, 0, "{at}: dead objects stay");
        oracle.check(&oracle.windows.read(&it.volume).await).unwrap_or_else(|wrong| panic!("{at}: {wrong}"));
    }
}

#[tokio::test(start_paused = true)]
async fn who_finds_while_collecting_that_another_host_has_the_volume_says_so() {
    let mut rig =
        Rig::new(90, 64 << 10, 512, Settings { gc_grace: Duration::ZERO, ..small_settings() }).await;
    let volume = rig.open(0, Agreed::default()).await.unwrap().0;
    // Nothing can be deleted, until it has published all that it has to.
    let is_refused = |call: &Call<'_>| call.operation == "delete" && call.key.starts_with("objects/");
    rig.faulty.set_plan(
        move |call: &Call<'_>| {
            if is_refused(call) { Fault::Before(ErrorKind::Invalid) } else { Fault::None }
        },
    );
    let mut prng = Prng::new(1);
    for _ in 0..5 {
        volume.write(0, Bytes::from(noise(&mut prng, 60_000)), false).await.unwrap();
        volume.sync().await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let (other, _) = rig.open(1, WHATEVER).await.unwrap();
    volume.core().check().expect("it has not looked since");
    rig.faulty.set_plan(SeededPlan::default());
    let day = Duration::from_secs(86_400);
    let collected = tokio::time::timeout(day, volume.core().collect()).await.expect("an answer");
    let error = collected.expect_err("another host has it");
    assert!(matches!(error, VolumeError::Fenced { .. }), "{error}");
    assert!(volume.read(0, 512).await.is_err(), "others may have written since");
    other.close().await.unwrap();
}
