//! Manifests, claims' lines and objects that are damaged or gone: what is fallen back to, and what is never taken.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use s3bd::{
    fsck,
    nbd::Device,
    store::{
        faulty::{Call, Fault},
        memory::Memory,
    },
    volume::{
        Volume,
        base::find_whole,
        error::VolumeError,
        open::{Agreed, OpenReport, Repair, inspect, open_repaired},
        rebuild::{Rebuilt, rebuild},
        tally::Tally,
    },
};
use wal::disk::{Disk, sim::Prng};

use crate::{
    host::{BLOCK_BYTES, Disks, env, small_settings, unlock},
    rig::{Rig, WHATEVER, noise},
};

pub const SIZE: u64 = 512 << 10;

/// The volume's content after each cut of the winning line, the empty one first.
pub struct History {
    pub rig: Rig,
    pub images: Vec<Vec<u8>>,
    /// Where each ends in the log.
    ends: Vec<u64>,
    opened: u64,
}

impl History {
    /// Cuts published by host 0, with checkpoints between them.
    pub async fn of_cuts(seed: u64, cuts: usize) -> Self {
        let mut settings = small_settings();
        settings.checkpoint_objects = 3;
        let rig = Rig::new(seed, SIZE, BLOCK_BYTES, settings).await;
        let mut history = Self { rig, images: vec![vec![0; SIZE as usize]], ends: vec![0], opened: 1000 };
        let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
        let mut prng = Prng::new(seed);
        for _ in 0..cuts {
            history.cut(&volume, &mut prng).await;
        }
        drop(volume);
        history
    }

    pub async fn cut(&mut self, volume: &Volume, prng: &mut Prng) {
        let mut image = self.images.last().unwrap().clone();
        for _ in 0..3 {
            let data = noise(prng, 2500);
            let at = prng.below(SIZE - 2500);
            image[at as usize..][..data.len()].copy_from_slice(&data);
            volume.write(at, Bytes::from(data), false).await.unwrap();
        }
        self.publish(volume, image).await;
    }

    pub async fn publish(&mut self, volume: &Volume, image: Vec<u8>) {
        volume.sync().await.unwrap();
        self.images.push(image);
        self.ends.push(volume.core().state().end.0);
    }

    /// The image that a base holds: some epochs publish a checkpoint alone.
    pub fn image_of(&self, repair: &Repair) -> usize {
        let lsn = repair.base.as_ref().unwrap().published.manifest.log.lsn;
        self.ends.iter().rposition(|end| *end <= lsn).unwrap()
    }

    pub fn memory(&self) -> &Memory {
        &self.rig.memory
    }

    pub fn names(&self, prefix: &str) -> Vec<String> {
        let contents = self.memory().snapshot();
        contents.iter().map(|(name, _)| name.to_owned()).filter(|name| name.starts_with(prefix)).collect()
    }

    pub fn damage(&self, name: &str, at_end: usize) {
        let mut contents = self.memory().snapshot();
        let mut bytes = contents.get(name).unwrap().to_vec();
        let at = bytes.len() - 1 - at_end;
        bytes[at] ^= 1;
        contents.set(name, bytes.into());
        self.memory().restore(contents);
    }

    pub fn remove(&self, name: &str) {
        let mut contents = self.memory().snapshot();
        assert!(contents.remove(name), "{name}");
        self.memory().restore(contents);
    }

    pub async fn open(
        &mut self,
        disks: &Disks,
        agreed: Agreed,
        repair: &Repair,
    ) -> Result<(Volume, OpenReport), VolumeError> {
        self.opened += 1;
        let env = env(self.rig.store.clone(), disks, self.opened, "a new host");
        let bucket = unlock(&env).await;
        open_repaired(env, bucket, self.rig.settings.clone(), agreed, repair).await
    }

    async fn fall_back(&self) -> (Repair, Vec<u64>) {
        let env = env(self.rig.store.clone(), &Disks::new(), 1, "looking");
        let found = find_whole(&unlock(&env).await).await.unwrap();
        (
            Repair { base: found.base, ..Repair::default() },
            found.passed.iter().map(|passed| passed.epoch.0).collect(),
        )
    }

    pub async fn rebuild(&self) -> Result<Rebuilt, VolumeError> {
        let env = env(self.rig.store.clone(), &Disks::new(), 1, "looking");
        rebuild(&unlock(&env).await, &env, |_, _| {}).await
    }

    /// Opens with the repair on a new host, closes, opens as usual: which image it is.
    pub async fn image_after(&mut self, repair: &Repair) -> usize {
        let disks = Disks::new();
        let (volume, _) = self.open(&disks, WHATEVER, repair).await.unwrap();
        let found = content(&volume).await;
        volume.close().await.unwrap();
        let (volume, report) = self.open(&Disks::new(), Agreed::default(), &Repair::default()).await.unwrap();
        assert!(report.was_clean);
        assert_eq!(content(&volume).await, found, "once more");
        volume.write(0, Bytes::from_static(&[9; 512]), false).await.unwrap();
        volume.close().await.unwrap();
        self.images.iter().rposition(|image| *image == found).expect("it is one of the cuts")
    }
}

pub async fn content(volume: &Volume) -> Vec<u8> {
    volume.read(0, SIZE as u32).await.unwrap().concat()
}

#[tokio::test(start_paused = true)]
async fn behind_damaged_manifests_the_newest_whole_one_is_found() {
    for lost in 1..=4_usize {
        for removed in [false, true] {
            let mut history = History::of_cuts(lost as u64, 8).await;
            let manifests = history.names("manifests/");
            for (back, name) in manifests.iter().rev().take(lost).enumerate() {
                // A missing newest one cannot be told from one that was never put; `seen` tells, and claims do.
                if removed && back > 0 { history.remove(name) } else { history.damage(name, 3) }
            }
            let refused = history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap_err();
            assert!(refused.is_of_line(), "{refused}");
            let before = history.names("");
            let (repair, passed) = history.fall_back().await;
            assert_eq!(history.names(""), before, "looking changes nothing");
            assert_eq!(passed.len(), if removed { 1 } else { lost });
            let base = repair.base.as_ref().unwrap().published.name();
            assert_eq!(s3bd::format::names::manifest(base.0, base.1), manifests[manifests.len() - 1 - lost]);
            let wanted = history.image_of(&repair);
            assert!((8 - lost..=8).contains(&wanted));
            assert_eq!(history.image_after(&repair).await, wanted);
            // What was gone back behind is no fault of what goes on.
            let env = env(history.rig.store.clone(), &Disks::new(), 1, "looking");
            let options = fsck::Options { level: fsck::Level::Default, concurrency: 3 };
            let report = fsck::check(&unlock(&env).await, &options, &()).await.unwrap();
            assert!(report.is_sound(), "{report:#?}");
            let passed = |finding: &&fsck::Finding| matches!(finding, fsck::Finding::ManifestPassed { .. });
            let passed = report.findings.iter().filter(passed).count();
            assert_eq!(passed, if removed { 1 } else { lost }, "{report:#?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_writers_own_log_gives_back_what_its_damaged_manifests_published() {
    let mut history = History::of_cuts(5, 6).await;
    for name in history.names("manifests/").iter().rev().take(2) {
        history.damage(name, 3);
    }
    let disks = history.rig.hosts[0].clone();
    let (repair, _) = history.fall_back().await;
    let behind = 6 - history.image_of(&repair) as u64;
    let (volume, report) = history.open(&disks, Agreed::default(), &repair).await.unwrap();
    assert!(behind > 0 && report.has_log);
    assert_eq!(report.replayed.tally.records(), 3 * behind);
    assert_eq!(content(&volume).await, history.images[6]);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_index_or_a_missing_object_makes_an_epoch_not_whole_and_opening_changes_nothing() {
    for missing in [false, true] {
        let mut history = History::of_cuts(9, 7).await;
        let newest = history.names("objects/").pop().unwrap();
        if missing {
            history.remove(&newest)
        } else {
            history.damage(&newest, 40)
        }
        let manifests = history.names("manifests/");
        let refused = history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap_err();
        assert!(refused.is_of_line(), "{refused}");
        assert_eq!(history.names("manifests/"), manifests, "no manifest was put on what cannot be opened");
        let (repair, passed) = history.fall_back().await;
        assert!(!passed.is_empty());
        assert!(history.image_after(&repair).await >= 5);
    }
}

#[tokio::test(start_paused = true)]
async fn an_epoch_whose_objects_were_collected_is_not_fallen_back_to() {
    let history = History::of_cuts(10, 9).await;
    let newest = history.names("manifests/").pop().unwrap();
    history.damage(&newest, 3);
    // Of the first cut: no list has it any more, but the map does.
    history.remove(&history.names("objects/")[0]);
    let env = env(history.rig.store.clone(), &Disks::new(), 1, "looking");
    let found = find_whole(&unlock(&env).await).await.unwrap();
    let collected = |why: &str| why.contains("not in the bucket any more") || why.contains("missing");
    assert!(found.passed[1..].iter().all(|passed| collected(&passed.why)), "{:?}", found.passed);
    assert!(found.passed.len() > 2);
}

/// Host 0 is overtaken with a cut on its way; the cut's manifest comes late.
pub async fn with_a_fenced_writer(seed: u64, cuts_after: usize) -> History {
    let mut history = History::of_cuts(seed, 3).await;
    let (first, _) = history.rig.open(0, Agreed::default()).await.unwrap();
    let mut prng = Prng::new(seed + 1);
    history.cut(&first, &mut prng).await;
    history.rig.faulty.set_plan(|call: &Call<'_>| {
        match call.operation == "put" && call.key.starts_with("manifests/") {
            true => Fault::Delay(Duration::from_secs(600)),
            false => Fault::None,
        }
    });
    first.write(0, Bytes::from(vec![0xee; 9000]), false).await.unwrap();
    let late = async { first.sync().await.unwrap_err() };
    let faulty = history.rig.faulty.clone();
    let taken = async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        faulty.set_plan(|_: &Call<'_>| Fault::None);
        let (second, _) = history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap();
        for _ in 0..cuts_after {
            history.cut(&second, &mut prng).await;
        }
    };
    let (fenced, ()) = tokio::join!(late, taken);
    assert!(matches!(fenced, VolumeError::Fenced { .. }), "{fenced}");
    history
}

#[tokio::test(start_paused = true)]
async fn a_fenced_writers_late_manifest_is_not_fallen_back_to() {
    for cuts_after in [0, 2] {
        let mut history = with_a_fenced_writer(20, cuts_after).await;
        let manifests = history.names("manifests/");
        let newest = &manifests.last().unwrap()[..26];
        for name in manifests.iter().filter(|name| name.starts_with(newest)) {
            history.damage(name, 3);
        }
        let (repair, _) = history.fall_back().await;
        assert_eq!(history.image_after(&repair).await, 4);
    }
}

#[tokio::test(start_paused = true)]
async fn without_any_manifest_the_objects_give_the_newest_cut_of_the_winning_line() {
    for seed in 0..6 {
        let fenced = seed % 2 == 1;
        let mut history = match fenced {
            true => with_a_fenced_writer(30 + seed, seed as usize / 2).await,
            false => History::of_cuts(30 + seed, 7).await,
        };
        let newest = history.images.len() - 1;
        history.names("manifests/").iter().for_each(|name| history.remove(name));
        let refused = history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap_err();
        assert!(matches!(refused, VolumeError::NoManifest { .. }), "{refused}");
        let found = history.rebuild().await.unwrap();
        assert_eq!(found.left_out.len(), usize::from(fenced), "seed {seed}: {:?}", found.left_out);
        assert!(found.checkpoint.is_some() && (found.cuts as usize) < newest, "seed {seed}: {found:?}");
        assert_eq!((found.size_bytes, found.passed.len()), (SIZE, 0), "seed {seed}");
        let used = history.images[newest].chunks(512).filter(|block| block.iter().any(|byte| *byte != 0));
        assert_eq!(found.used_bytes, 512 * used.count() as u64, "seed {seed}");
        let repair = Repair { base: Some(found.base), ..Repair::default() };
        assert_eq!(history.image_after(&repair).await, newest, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_that_lacks_an_object_is_left_out_whole() {
    let mut history = History::of_cuts(40, 5).await;
    // None that maps the cut.
    history.rig.settings.checkpoint_objects = 1000;
    let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
    let large = noise(&mut Prng::new(41), 300 << 10);
    volume.write(0, Bytes::from(large.clone()), false).await.unwrap();
    let image = [&large[..], &history.images[5][300 << 10..]].concat();
    history.publish(&volume, image).await;
    drop(volume);
    history.names("manifests/").iter().for_each(|name| history.remove(name));
    // An object of the newest cut that has several: later ones may have been moved by the collector.
    let found = history.rebuild().await.unwrap();
    let bucket = unlock(&env(Arc::new(history.rig.memory.clone()), &Disks::new(), 77, "looker")).await;
    for last in found.base.published.manifest.objects.iter().rev() {
        if bucket.explain(last.generation, last.sequence).await.unwrap().index.parts > 1 {
            history.remove(&s3bd::format::names::object(last.generation, last.sequence));
            break;
        }
    }
    let found = history.rebuild().await.unwrap();
    assert!(found.left_out.iter().any(|left| left.2.contains("of its")), "{:?}", found.left_out);
    let repair = Repair { base: Some(found.base), ..Repair::default() };
    assert_eq!(history.image_after(&repair).await, 5);
}

#[tokio::test(start_paused = true)]
async fn the_writers_own_log_goes_on_top_of_what_its_objects_add_up_to() {
    let mut history = History::of_cuts(50, 4).await;
    let disks = history.rig.hosts[0].clone();
    let (volume, _) = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap();
    volume.write(100, Bytes::from_static(&[7; 700]), false).await.unwrap();
    volume.flush().await.unwrap();
    let wanted = content(&volume).await;
    drop(volume);
    history.names("manifests/").iter().for_each(|name| history.remove(name));
    let repair = Repair { base: Some(history.rebuild().await.unwrap().base), ..Repair::default() };
    let agreed = Agreed { takeover: true, ..Agreed::default() };
    // The manifest that this host put last is gone: whether anything is lost with it cannot be known.
    let refused = history.open(&disks, agreed, &repair).await.unwrap_err();
    assert!(matches!(refused, VolumeError::RolledBack { .. }), "{refused}");
    let agreed = Agreed { rollback: true, ..agreed };
    let (volume, report) = history.open(&disks, agreed, &repair).await.unwrap();
    assert!(report.has_log && report.replayed.tally.records() == 1, "{report:?}");
    assert_eq!(content(&volume).await, wanted);
}

#[tokio::test(start_paused = true)]
async fn falling_back_and_rebuilding_may_be_interrupted_at_any_operation() {
    for scan in [false, true] {
        let damaged = async || {
            let history = History::of_cuts(60, 5).await;
            for (back, name) in history.names("manifests/").iter().rev().enumerate() {
                match (scan, back) {
                    (true, _) => history.remove(name),
                    (false, 0) => history.damage(name, 3),
                    (false, _) => {}
                }
            }
            history
        };
        let recover = async |history: &mut History, disks: &Disks| -> Result<(), VolumeError> {
            let env = env(history.rig.store.clone(), disks, 5, "a new host");
            let bucket = unlock(&env).await;
            let normal = inspect(&env, &bucket, WHATEVER, &Repair::default()).await;
            let repair = match (normal, scan) {
                (Ok(_), _) => Repair::default(),
                (Err(_), true) => Repair { base: Some(history.rebuild().await?.base), ..Repair::default() },
                (Err(_), false) => history.fall_back().await.0,
            };
            let (volume, _) = history.open(disks, WHATEVER, &repair).await?;
            volume.close().await
        };
        let mut whole = damaged().await;
        let (before, disks) = (whole.rig.faulty.counts().changes(), Disks::new());
        recover(&mut whole, &disks).await.unwrap();
        let changes = whole.rig.faulty.counts().changes() - before;
        let counts = [disks.state.operations(), disks.wal.operations(), changes];
        for (part, count) in counts.into_iter().enumerate() {
            for at in 1..=count {
                let (mut history, disks) = (damaged().await, Disks::new());
                match part {
                    0 => disks.state.die_at(at),
                    1 => disks.wal.die_at(at),
                    _ => history.rig.faulty.set_crash_after(Some(at - 1)),
                }
                let _ = tokio::time::timeout(Duration::from_secs(3600), recover(&mut history, &disks)).await;
                history.rig.faulty.set_crash_after(None);
                let disks = disks.crash(at);
                let again = recover(&mut history, &disks).await;
                again.unwrap_or_else(|error| panic!("scan {scan}, {part}, {at}: {error}"));
                let opened = history.open(&Disks::new(), Agreed::default(), &Repair::default()).await;
                let found = content(&opened.unwrap().0).await;
                assert!(found == history.images[if scan { 5 } else { 4 }], "scan {scan}, {part}, {at}");
            }
        }
    }
}

/// A host whose log holds, above what is published, one record for each step of 512 bytes, all of them flushed.
pub async fn with_a_log_of(steps: u64) -> History {
    let mut history = History::of_cuts(70, 2).await;
    let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
    for step in 0..steps {
        volume.write(step * 4096, Bytes::from(vec![step as u8 + 1; 512]), false).await.unwrap();
        volume.flush().await.unwrap();
    }
    drop(volume);
    history
}

/// Damages the record that holds the write of this step, wherever the log has it.
pub fn damage_record(disks: &Disks, step: u64) {
    let scan = wal::scan(&disks.wal).unwrap();
    let records: Vec<_> =
        scan.records(scan.start).map(Result::unwrap).filter(|record| record.kind == 1).collect();
    flip_record(disks, records[records.len() - 30 + step as usize].lsn.0);
}

/// Damages the record at this LSN, in the segment that holds it.
pub fn flip_record(disks: &Disks, lsn: u64) {
    let names = disks.wal.list().unwrap();
    let first = |name: &str| u64::from_str_radix(name.strip_suffix(".wal")?, 16).ok();
    let segments = names.iter().filter_map(|name| Some((first(name)?, name)));
    let (first, name) = segments.filter(|(first, _)| *first <= lsn).max().unwrap();
    assert!(disks.wal.flip_bit(name, lsn - first + 40, 3));
}

#[tokio::test(start_paused = true)]
async fn of_a_damaged_log_what_is_before_the_damage_is_recovered_and_the_rest_is_named() {
    for step in [0, 7, 28] {
        let mut history = with_a_log_of(30).await;
        let disks = history.rig.hosts[0].clone();
        damage_record(&disks, step);
        let refused = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap_err();
        let VolumeError::LogDamaged(damage) = &refused else { panic!("{refused}") };
        assert!(damage.joins);
        assert_eq!((damage.before.tally.records(), damage.before.tally.bytes), (step, step * 512));
        assert_eq!(damage.beyond.tally.records(), 29 - step);
        assert_eq!(damage.blocks.len() as u64, 29 - step);
        assert_eq!(damage.blocks[0].block, (step + 1) * 8);
        assert!(refused.to_string().contains("s3bd recover"), "{refused}");

        let repair = Repair { cut_log: true, ..Repair::default() };
        let (volume, report) = history.open(&disks, Agreed::default(), &repair).await.unwrap();
        assert_eq!(report.replayed.tally.records(), step);
        let mut wanted = history.images[2].clone();
        (0..step).for_each(|step| wanted[step as usize * 4096..][..512].fill(step as u8 + 1));
        assert!(content(&volume).await == wanted, "step {step}");
        drop(volume);
        // It is a log like any other from then on.
        let (volume, _) =
            history.open(&disks.crash(step), Agreed::default(), &Repair::default()).await.unwrap();
        assert!(content(&volume).await == wanted, "step {step}: once more");
        volume.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn cutting_a_damaged_log_may_be_interrupted_at_any_operation() {
    let repair = Repair { cut_log: true, ..Repair::default() };
    let damaged = async || {
        let history = with_a_log_of(30).await;
        let disks = history.rig.hosts[0].snapshot();
        damage_record(&disks, 7);
        (history, disks)
    };
    let (mut history, disks) = damaged().await;
    let (volume, _) = history.open(&disks, Agreed::default(), &repair).await.unwrap();
    volume.close().await.unwrap();
    drop(volume);
    let wanted = content(&history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap().0).await;
    let count = disks.wal.operations();
    for at in 1..=count {
        let (mut history, disks) = damaged().await;
        disks.wal.die_at(at);
        if let Ok((volume, _)) = history.open(&disks, Agreed::default(), &repair).await {
            let _ = tokio::time::timeout(Duration::from_secs(60), volume.close()).await;
        }
        let disks = disks.crash(at);
        let (volume, _) = history.open(&disks, Agreed::default(), &repair).await.unwrap();
        assert!(content(&volume).await == wanted, "{at}");
    }
    assert!(count > 3, "{count}");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_seen_names_the_way_on() {
    let mut history = History::of_cuts(80, 2).await;
    let disks = history.rig.hosts[0].clone();
    assert!(disks.state.flip_bit("seen", 60, 1));
    let refused = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap_err();
    assert!(matches!(refused, VolumeError::SeenDamaged { .. }), "{refused}");
    assert!(refused.to_string().contains("--accept-rollback"), "{refused}");
    let agreed = Agreed { rollback: true, ..Agreed::default() };
    let (volume, _) = history.open(&disks, agreed, &Repair::default()).await.unwrap();
    assert!(content(&volume).await == history.images[2]);
    drop(volume);
    history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_older_copy_of_ones_own_state_is_not_called_another_writer() {
    let mut history = History::of_cuts(90, 2).await;
    let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
    volume.write(0, Bytes::from_static(b"in the copy"), false).await.unwrap();
    volume.flush().await.unwrap();
    drop(volume);
    let copy = history.rig.hosts[0].snapshot();
    let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
    volume.close().await.unwrap();
    history.rig.hosts[0] = copy;
    let refused = history.rig.open(0, Agreed::default()).await.unwrap_err();
    assert!(matches!(refused, VolumeError::Diverged { held: Tally { writes: 1, .. }, .. }), "{refused}");
    let text = refused.to_string();
    assert!(text.contains("older copy of its state directory") && !text.contains("another writer"), "{text}");
    // Really another one.
    let other = with_a_fenced_writer(91, 1).await;
    let mut other = other;
    let refused = other.rig.open(0, Agreed::default()).await.unwrap_err();
    assert!(refused.to_string().contains("another writer (a new host)"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_fenced_log_with_a_damaged_record_is_not_given_up_without_a_word() {
    for back in [23, 31] {
        let mut history = with_a_log_of(30).await;
        let disks = history.rig.hosts[0].clone();
        let (volume, _) = history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap();
        volume.close().await.unwrap();
        let scan = wal::scan(&disks.wal).unwrap();
        let writes: Vec<_> =
            scan.records(scan.start).map(Result::unwrap).filter(|record| record.kind == 1).collect();
        // An overtaken one, or one that both lines have: then what is above can still be counted.
        flip_record(&disks, writes[writes.len() - back].lsn.0);
        let refused = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap_err();
        match back {
            23 => assert!(matches!(refused, VolumeError::LogUncounted { .. }), "{refused}"),
            _ => assert!(
                matches!(refused, VolumeError::Diverged { held: Tally { writes: 30, .. }, .. }),
                "{refused}"
            ),
        }
        assert!(refused.to_string().contains("--discard"), "{refused}");
        let (_, report) = history.open(&disks, WHATEVER, &Repair::default()).await.unwrap();
        assert_eq!(report.given_up.uncounted.is_some(), back == 23, "{:?}", report.given_up);
    }
}

#[tokio::test(start_paused = true)]
async fn a_rollback_that_another_host_went_on_from_is_found() {
    let mut history = History::of_cuts(160, 2).await;
    let old = history.memory().snapshot();
    let disks = history.rig.hosts[0].clone();
    let (volume, _) = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap();
    let mut prng = Prng::new(161);
    for _ in 0..4 {
        history.cut(&volume, &mut prng).await;
    }
    volume.close().await.unwrap();
    drop(volume);
    history.memory().restore(old);
    // Twice, so that its generation is above all that was seen.
    let other = Disks::new();
    for _ in 0..2 {
        let (volume, _) = history.open(&other, WHATEVER, &Repair::default()).await.unwrap();
        volume.close().await.unwrap();
    }
    let refused = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap_err();
    assert!(matches!(refused, VolumeError::RolledBack { .. }), "{refused}");
}
