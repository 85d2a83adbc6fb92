//! Going back to snapshots, in random histories and dying at each operation; and what differs between epochs, against a
//! count of everything.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use s3bd::{
    format::{index::Run, manifest::Manifest, page::Target},
    fsck::{Level, Options, Report, Sample, Severity, check_store},
    map::{extents::ExtentMap, tree},
    nbd::Device,
    seal::slot::Secret,
    store::{
        Store,
        faulty::{Call, Fault},
    },
    volume::{
        Volume,
        bucket::Bucket,
        diff::{Changed, Now, TwoEpochs},
        error::VolumeError,
        open::{Agreed, Repair, load_delta, open_repaired},
        rebuild::rebuild,
        settings::Settings,
        snapshots::Change,
        walk::Direct,
    },
};
use wal::disk::sim::Prng;

use crate::{
    host::{BLOCK_BYTES, Disks, env, small_settings, unlock},
    rig::{Rig, clip, for_seeds, noise, tight_settings},
};

const SIZE: u64 = 2 << 20;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// A volume, and what it and its snapshots must hold.
struct History {
    rig: Rig,
    prng: Prng,
    image: Vec<u8>,
    snapshots: BTreeMap<String, Vec<u8>>,
}

impl History {
    async fn new(seed: u64, settings: Settings) -> Self {
        let rig = Rig::new(seed, SIZE, BLOCK_BYTES, settings).await;
        Self { rig, prng: Prng::new(seed), image: vec![0; SIZE as usize], snapshots: BTreeMap::new() }
    }

    async fn open(&mut self) -> Volume {
        self.rig.open(0, Agreed::default()).await.unwrap().0
    }

    async fn change(&mut self, volume: &Volume) {
        let end = self.image.len() as u64;
        let length = [700, 5000, 60_000, 400_000][self.prng.below(4) as usize];
        let range = clip(self.prng.below(end), 1 + self.prng.below(length), end);
        let (offset, length) = (range.start, range.end - range.start);
        let cells = &mut self.image[range.start as usize..range.end as usize];
        if self.prng.below(4) == 0 {
            cells.fill(0);
            volume.trim(offset, length, false).await.unwrap();
        } else {
            let data = noise(&mut self.prng, length as usize);
            cells.copy_from_slice(&data);
            volume.write(offset, Bytes::from(data), false).await.unwrap();
        }
    }

    async fn take(&mut self, volume: &Volume, name: &str) -> Result<(), VolumeError> {
        volume.core().change(Change::Take(name.to_owned())).await?;
        self.snapshots.insert(name.to_owned(), self.image.clone());
        Ok(())
    }

    fn any_snapshot(&mut self) -> Option<String> {
        let at = self.prng.below(self.snapshots.len().max(1) as u64) as usize;
        self.snapshots.keys().nth(at).cloned()
    }

    async fn roll_back(&mut self, volume: &Volume, name: &str) {
        let keep = self.prng.below(2) == 0;
        let done = volume.core().roll_back(name, keep).await.unwrap();
        assert_eq!((done.to.name.as_str(), done.kept.is_some()), (name, keep));
        let before = std::mem::replace(&mut self.image, self.snapshots[name].clone());
        self.snapshots.extend(done.kept.map(|kept| (kept, before)));
    }

    async fn bucket(&self) -> Bucket {
        unlock(&env(Arc::new(self.rig.memory.clone()), &Disks::new(), 9, "reader")).await
    }
}

async fn read(volume: &Volume) -> Vec<u8> {
    let size = volume.core().state().size_bytes;
    let parts = volume.read(0, size as u32).await.unwrap();
    parts.iter().flat_map(|part| part.iter().copied()).collect()
}

async fn check_bucket(store: Arc<dyn Store>) -> Report {
    let options = Options { level: Level::ReadData(Sample::ALL), concurrency: 3 };
    check_store(store, &Secret::password("secret"), &options, &()).await.unwrap()
}

async fn assert_sound(history: &History) {
    let report = check_bucket(Arc::new(history.rig.memory.clone())).await;
    let wrong: Vec<_> =
        report.findings.iter().filter(|finding| finding.severity() > Severity::Note).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Manifests of all snapshots and the newest epoch.
async fn epochs(history: &History, bucket: &Bucket) -> Vec<(Manifest, Vec<u8>)> {
    let newest = bucket.newest_manifest().await.unwrap().manifest;
    let table = s3bd::volume::snapshots::SnapshotTable::load(bucket, &newest).await.unwrap();
    let mut epochs = Vec::new();
    for snapshot in table.iter() {
        let pinned = bucket.load_manifest(snapshot.generation, snapshot.epoch).await.unwrap().unwrap();
        epochs.push((pinned.manifest, history.snapshots[&snapshot.name].clone()));
    }
    epochs.push((newest, history.image.clone()));
    epochs
}

/// The place of every block.
async fn places(bucket: &Bucket, manifest: &Manifest) -> Vec<Target> {
    let direct = Direct::new(bucket.clone());
    let all = Run { block: 0, count: SIZE / BLOCK };
    let mut map = ExtentMap::default();
    let tree = tree::lookup(&direct, manifest.roots.blocks.as_ref(), all).await.unwrap();
    tree.into_iter().for_each(|extent| map.insert(extent, |_| {}));
    let delta = load_delta(bucket, manifest).await.unwrap();
    delta.extents.iter().for_each(|extent| map.insert(extent, |_| {}));
    let mut places = vec![Target::Hole; all.count as usize];
    for extent in map.iter() {
        (0..extent.count).for_each(|at| places[(extent.block + at) as usize] = extent.target.skip(at));
    }
    places
}

async fn diff(bucket: &Bucket, before: &Manifest, after: &Manifest) -> Vec<Changed> {
    let epochs = TwoEpochs::load(bucket, before, after).await.unwrap();
    let direct = Direct::new(bucket.clone());
    let mut ranges = epochs.ranges(&direct);
    let mut found: Vec<Changed> = Vec::new();
    while let Some(changed) = ranges.next().await.unwrap() {
        if let Some(last) = found.last() {
            let end = last.offset + last.length;
            assert!(changed.offset > end || changed.offset == end && changed.now != last.now);
        }
        found.push(changed);
    }
    found
}

/// Compares what differs between any two epochs with a count of all blocks, and with the bytes.
async fn check_differences(history: &History) {
    let bucket = history.bucket().await;
    let epochs = epochs(history, &bucket).await;
    let mut all_places = Vec::new();
    for (manifest, _) in &epochs {
        all_places.push(places(&bucket, manifest).await);
    }
    for (before, (from, old)) in epochs.iter().enumerate() {
        for (after, (to, new)) in epochs.iter().enumerate() {
            let mut named = vec![None; (SIZE / BLOCK) as usize];
            for Changed { offset, length, now } in diff(&bucket, from, to).await {
                named[(offset / BLOCK) as usize..((offset + length) / BLOCK) as usize].fill(Some(now));
            }
            for (block, named) in named.into_iter().enumerate() {
                let (was, is) = (&all_places[before][block], &all_places[after][block]);
                let now = if *is == Target::Hole { Now::Zero } else { Now::Data };
                assert_eq!(named, (was != is).then_some(now), "block {block}");
                let bytes = block * BLOCK as usize..(block + 1) * BLOCK as usize;
                assert!(named.is_some() || old.get(bytes.clone()) == new.get(bytes), "block {block} changed");
            }
        }
    }
}

async fn random_history(seed: u64) {
    let settings = tight_settings(&mut Prng::new(seed ^ 77));
    let mut history = History::new(seed, settings).await;
    let mut volume = history.open().await;
    for step in 0..60 {
        match history.prng.below(16) {
            0..8 => history.change(&volume).await,
            8 => volume.sync().await.unwrap(),
            9 => tokio::time::sleep(Duration::from_secs(6)).await,
            10 | 11 => history.take(&volume, &format!("at-{step}")).await.unwrap(),
            12 => {
                if let Some(name) = history.any_snapshot() {
                    volume.core().change(Change::Delete(name.clone())).await.unwrap();
                    history.snapshots.remove(&name);
                }
            }
            13 => {
                volume.close().await.unwrap();
                volume = history.open().await;
            }
            _ => {
                if let Some(name) = history.any_snapshot() {
                    history.roll_back(&volume, &name).await;
                    assert!(read(&volume).await == history.image, "step {step}: not as {name} was");
                }
            }
        }
    }
    volume.close().await.unwrap();
    assert_sound(&history).await;
    check_differences(&history).await;
    let volume = history.open().await;
    assert!(read(&volume).await == history.image);
    for name in history.snapshots.keys().cloned().collect::<Vec<_>>() {
        history.roll_back(&volume, &name).await;
        assert!(read(&volume).await == history.image, "not as {name} was");
    }
    volume.close().await.unwrap();
    assert_sound(&history).await;
}

#[test]
fn any_snapshot_comes_back_and_differences_are_those_of_all_blocks() {
    for_seeds(16, random_history);
}

/// A volume of half its first size, with a snapshot of before: what a rollback starts from.
async fn shrunk(seed: u64) -> (History, Volume) {
    let settings = Settings {
        checkpoint_objects: 3,
        checkpoint_extents: 40,
        object_bytes: 16 << 10,
        ..crate::host::small_settings()
    };
    let mut history = History::new(seed, settings).await;
    let volume = history.open().await;
    for _ in 0..12 {
        history.change(&volume).await;
    }
    history.take(&volume, "large").await.unwrap();
    volume.trim(SIZE / 2, SIZE / 2, false).await.unwrap();
    volume.sync().await.unwrap();
    volume.core().state_mut().size_bytes = SIZE / 2;
    history.image.truncate(SIZE as usize / 2);
    for _ in 0..6 {
        history.change(&volume).await;
    }
    volume.sync().await.unwrap();
    (history, volume)
}

/// The maps are compared with pages under way, and each step of the checkpoint reads pages, too: those that are on top already
/// among them, which lie ahead of what was compared so far.
#[tokio::test(start_paused = true)]
async fn a_rollback_in_many_steps_waits_for_none_of_its_own_reads() {
    // A leaf has four extents, one for each frame.
    let settings = Settings { checkpoint_extents: 3, ..crate::host::small_settings() };
    let mut history = History::new(5, settings).await;
    let volume = history.open().await;
    let fill = async |volume: &Volume, history: &mut History| {
        let data = noise(&mut history.prng, SIZE as usize);
        history.image.copy_from_slice(&data);
        volume.write(0, Bytes::from(data), false).await.unwrap();
    };
    fill(&volume, &mut history).await;
    history.take(&volume, "before").await.unwrap();
    fill(&volume, &mut history).await;
    volume.close().await.unwrap();
    // Another host, which has no page near, and a store that takes its time.
    let (volume, _) = history.rig.open(1, Agreed::default()).await.unwrap();
    for leaf in [3, 6] {
        volume.write(leaf * 512 * BLOCK, Bytes::from(vec![7; BLOCK as usize]), false).await.unwrap();
    }
    volume.sync().await.unwrap();
    history.rig.faulty.set_plan(|_: &Call<'_>| Fault::Delay(Duration::from_secs(1)));
    let rolled_back = tokio::time::timeout(Duration::from_secs(86_400), history.roll_back(&volume, "before"));
    rolled_back.await.expect("it ends");
    assert_eq!(read(&volume).await, history.image);
    volume.close().await.unwrap();
    assert_sound(&history).await;
}

#[tokio::test(start_paused = true)]
async fn a_rollback_that_dies_anywhere_leaves_the_state_before_or_after() {
    let mut ends = [0, 0];
    for changes in 0.. {
        let (mut history, volume) = shrunk(5).await;
        history.rig.faulty.set_crash_after(Some(changes));
        let all = async {
            volume.core().roll_back("large", true).await?;
            volume.close().await
        };
        let done = matches!(tokio::time::timeout(Duration::from_secs(3600), all).await, Ok(Ok(())));
        drop(volume);
        history.rig.faulty.set_crash_after(None);
        let (before, after) = (history.image.clone(), history.snapshots["large"].clone());
        let bucket = history.rig.memory.snapshot();
        for disk_lost in [false, true] {
            history.rig.memory.restore(bucket.clone());
            history.rig.hosts[0] = if disk_lost { Disks::new() } else { history.rig.hosts[0].crash(changes) };
            let volume = history.rig.open(0, crate::rig::WHATEVER).await.unwrap().0;
            let found = read(&volume).await;
            let is_after = found == after;
            assert!(is_after || found == before, "after {changes} changes: neither before nor after");
            assert!(is_after || !done, "after {changes} changes: it was said to be done");
            ends[usize::from(is_after)] += 1;
            if !is_after {
                volume.core().roll_back("large", false).await.unwrap();
                assert!(read(&volume).await == after, "once more, after {changes} changes");
            }
            volume.close().await.unwrap();
            assert_sound(&history).await;
        }
        if done {
            assert!(ends[0] >= 4 && ends[1] >= 2, "{ends:?}");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_brings_its_size_back_and_what_was_before_is_kept() {
    let (mut history, volume) = shrunk(8).await;
    let small = history.image.clone();
    let done = volume.core().roll_back("large", true).await.unwrap();
    assert_eq!(volume.core().state().size_bytes, SIZE);
    assert!(read(&volume).await == history.snapshots["large"]);
    let missing = volume.core().roll_back("nothing", true).await;
    assert!(matches!(missing, Err(VolumeError::NoSnapshot { .. })), "{missing:?}");
    let kept = done.kept.unwrap();
    volume.close().await.unwrap();
    assert_sound(&history).await;
    let volume = history.open().await;
    volume.core().roll_back(&kept, false).await.unwrap();
    assert_eq!(volume.core().state().size_bytes, SIZE / 2);
    assert!(read(&volume).await == small);
    volume.close().await.unwrap();
    assert_sound(&history).await;
}

/// Gets of a diff from a snapshot to the newest epoch, where one block in each of `mapped` leaves is written, and
/// `changed` of them once more.
async fn requests_of_diff(mapped: u64, changed: u64) -> u64 {
    const LEAF_BYTES: u64 = 512 * BLOCK;
    let settings = Settings { checkpoint_objects: 64, ..crate::host::small_settings() };
    let mut rig = Rig::new(3, 1 << 40, BLOCK_BYTES, settings).await;
    let volume = rig.open(0, Agreed::default()).await.unwrap().0;
    let mut prng = Prng::new(4);
    for leaf in 0..mapped {
        let data = noise(&mut prng, BLOCK as usize);
        volume.write(leaf * LEAF_BYTES, Bytes::from(data), false).await.unwrap();
    }
    volume.close().await.unwrap();
    let volume = rig.open(0, Agreed::default()).await.unwrap().0;
    volume.core().change(Change::Take("a".to_owned())).await.unwrap();
    for at in 0..changed {
        let data = noise(&mut prng, BLOCK as usize);
        volume.write(at * 5 * LEAF_BYTES, Bytes::from(data), false).await.unwrap();
    }
    volume.close().await.unwrap();
    let bucket = unlock(&env(Arc::clone(&rig.store), &Disks::new(), 9, "reader")).await;
    let after = bucket.newest_manifest().await.unwrap().manifest;
    let table = s3bd::volume::snapshots::SnapshotTable::load(&bucket, &after).await.unwrap();
    let taken = table.get("a").unwrap();
    let before = bucket.load_manifest(taken.generation, taken.epoch).await.unwrap().unwrap().manifest;
    let gets = rig.faulty.counts().gets;
    let found = diff(&bucket, &before, &after).await;
    assert_eq!(found.len() as u64, changed);
    rig.faulty.counts().gets - gets
}

#[tokio::test(start_paused = true)]
async fn a_diff_costs_requests_by_what_changed_and_not_by_what_is_mapped() {
    let small = requests_of_diff(600, 10).await;
    let large = requests_of_diff(6000, 10).await;
    assert!(large <= small + 4, "{small}, then {large}");
    let more = requests_of_diff(6000, 100).await;
    assert!(more > large + 90 && more < 2 * 100 + 40, "{large}, then {more}");
}

/// The cuts that a volume went back behind are no part of its line, also where no manifest says so.
#[tokio::test(start_paused = true)]
async fn objects_alone_add_up_to_what_was_written_after_a_rollback() {
    let (mut history, volume) = shrunk(11).await;
    volume.core().roll_back("large", false).await.unwrap();
    history.image = history.snapshots["large"].clone();
    for _ in 0..5 {
        history.change(&volume).await;
        volume.sync().await.unwrap();
    }
    volume.close().await.unwrap();
    let mut contents = history.rig.memory.snapshot();
    let manifests: Vec<String> =
        contents.iter().map(|(key, _)| key.to_owned()).filter(|key| key.starts_with("manifests/")).collect();
    manifests.iter().for_each(|name| assert!(contents.remove(name)));
    history.rig.memory.restore(contents);
    let env = env(history.rig.store.clone(), &Disks::new(), 50, "finder");
    let bucket = unlock(&env).await;
    let base = rebuild(&bucket, &env, |_, _| {}).await.unwrap().base;
    let repair = Repair { base: Some(base), ..Repair::default() };
    let settings = history.rig.settings.clone();
    let volume = open_repaired(env, bucket, settings, crate::rig::WHATEVER, &repair).await.unwrap().0;
    assert!(read(&volume).await == history.image);
}

#[tokio::test(start_paused = true)]
async fn over_a_bucket_from_before_a_rollback_nothing_is_replayed_that_came_after() {
    // The copy is of the tenure that goes back, or of an earlier one.
    for closes in [false, true] {
        let mut history = History::new(20, small_settings()).await;
        let mut volume = history.open().await;
        let write = async |volume: &Volume, offset: u64, byte: u8| {
            volume.write(offset, Bytes::from(vec![byte; 5000]), false).await.unwrap();
            volume.sync().await.unwrap();
        };
        write(&volume, 0, 1).await;
        volume.core().change(Change::Take("first".to_owned())).await.unwrap();
        write(&volume, 0, 2).await;
        let older = history.rig.memory.snapshot();
        let before = read(&volume).await;
        if closes {
            volume.close().await.unwrap();
            volume = history.open().await;
        }
        write(&volume, 20_000, 3).await;
        volume.core().roll_back("first", false).await.unwrap();
        write(&volume, 40_000, 4).await;
        let after = read(&volume).await;
        assert_eq!([after[0], after[20_000], after[40_000]], [1, 0, 4]);
        drop(volume);
        // The log is its line's, as ever.
        let volume = history.open().await;
        assert!(read(&volume).await == after);
        drop(volume);
        history.rig.memory.restore(older);
        let agreed = Agreed { takeover: true, rollback: true, discard: false };
        let refused = history.rig.open(0, agreed).await.map(drop).unwrap_err();
        assert!(matches!(refused, VolumeError::Diverged { .. }), "{refused}");
        let (volume, report) = history.rig.open(0, Agreed { discard: true, ..agreed }).await.unwrap();
        assert!(report.given_up.tally.records() > 0, "it says what it gives up");
        assert!(read(&volume).await == before, "what the bucket has, and nothing else");
        volume.close().await.unwrap();
        assert_sound(&history).await;
    }
}
