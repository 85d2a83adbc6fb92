//! What a fenced host held, made a volume of its own; and dying at each operation of that.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use s3bd::{
    format::slot::Argon2,
    nbd::Device,
    seal::slot::Secret,
    store::{faulty::Faulty, memory::Memory},
    volume::{
        bucket::Bucket,
        env::Env,
        error::VolumeError,
        open::{Agreed, Repair},
        rescue::{Destination, Rescued, rescue},
        snapshots::{Change, SnapshotTable},
        tally::Tally,
    },
};

use crate::{
    history::{History, SIZE, with_a_fenced_writer},
    host::{Disks, env, open_with, small_settings, unlock},
    rig::{WHATEVER, retrying},
};

/// Where the new volume goes.
pub struct Elsewhere {
    memory: Memory,
    faulty: Faulty<Memory>,
    disks: Disks,
    attempts: u64,
}

impl Elsewhere {
    pub fn new() -> Self {
        let memory = Memory::new();
        Self { faulty: Faulty::new(memory.clone()), memory, disks: Disks::new(), attempts: 500 }
    }

    fn env(&mut self) -> Env {
        self.attempts += 1;
        env(retrying(self.faulty.clone(), 3), &self.disks, self.attempts, "rescuer")
    }

    pub async fn rescue(&mut self, history: &History) -> Result<Rescued, VolumeError> {
        let old = env(history.rig.store.clone(), &history.rig.hosts[0], 77, "host 0");
        let bucket = unlock(&old).await;
        let secret = Secret::password("secret");
        let cost = Argon2 { memory_kib: 64, passes: 1, lanes: 1 };
        let destination = Destination { env: self.env(), secret: &secret, cost, settings: small_settings() };
        rescue(&old, &bucket, destination, |_| {}).await
    }

    pub async fn content(&mut self) -> Vec<u8> {
        let env = env(Arc::new(self.memory.clone()), &Disks::new(), 900, "reader");
        let (volume, report) = open_with(env, small_settings(), Agreed::default()).await.unwrap();
        assert!(report.was_clean);
        volume.read(0, SIZE as u32).await.unwrap().concat()
    }
}

/// The base epoch with the one write that was overtaken.
pub fn wanted(history: &History) -> Vec<u8> {
    [&[0xee; 9000][..], &history.images[4][9000..]].concat()
}

#[tokio::test(start_paused = true)]
async fn what_a_fenced_host_held_becomes_a_volume_and_nothing_else_changes() {
    for cuts_after in [0, 2] {
        let history = with_a_fenced_writer(110 + cuts_after as u64, cuts_after).await;
        let operations =
            |disks: &Disks| [disks.state.operations(), disks.wal.operations(), disks.cache.operations()];
        let (bucket, before) = (history.rig.memory.snapshot(), operations(&history.rig.hosts[0]));
        let mut new = Elsewhere::new();
        let rescued = new.rescue(&history).await.unwrap();
        assert_eq!((rescued.replayed.tally.writes, rescued.replayed.tally.bytes), (1, 9000));
        let mapped =
            history.images[4].chunks(512).filter(|block| block.iter().any(|byte| *byte != 0)).count();
        assert!(rescued.copied_bytes <= 512 * mapped as u64, "holes are no data");
        assert!(history.rig.memory.snapshot().iter().eq(bucket.iter()), "the bucket changed");
        assert_eq!(operations(&history.rig.hosts[0]), before, "the log changed");
        assert!(new.content().await == wanted(&history));
        let again = new.rescue(&history).await.unwrap_err();
        assert!(matches!(again, VolumeError::Exists { .. }), "{again}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_was_not_overtaken_has_nothing_to_rescue() {
    let history = History::of_cuts(120, 3).await;
    let refused = Elsewhere::new().rescue(&history).await.unwrap_err();
    assert!(matches!(refused, VolumeError::NothingFenced { .. }), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_rescue_whose_base_is_gone_says_so() {
    let history = with_a_fenced_writer(130, 1).await;
    // All that the fenced host's line has in common with the other.
    for name in history.names("manifests/").iter().filter(|name| name[10..26] < *"0000000000000003") {
        history.remove(name);
    }
    let refused = Elsewhere::new().rescue(&history).await.unwrap_err();
    assert!(matches!(refused, VolumeError::NoBase { .. }), "{refused}");
}

/// The snapshots of the newest manifest, as another host finds them.
async fn snapshots(history: &History) -> SnapshotTable {
    let bucket = unlock(&env(history.rig.store.clone(), &Disks::new(), 78, "looking")).await;
    let newest = bucket.newest_manifest().await.unwrap();
    SnapshotTable::load(&bucket, &newest.manifest).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_takeover_keeps_what_a_rescue_needs_for_as_long_as_its_snapshot_is_there() {
    let mut history = with_a_fenced_writer(160, 100).await;
    let manifests = history.names("manifests/");
    assert!(manifests.len() < 60, "most were removed");
    let table = snapshots(&history).await;
    let names: Vec<_> = table.iter().map(|snapshot| snapshot.name.clone()).collect();
    assert_eq!(names, ["before-takeover-3"]);
    let pinned = table.get("before-takeover-3").unwrap();
    let name = s3bd::format::names::manifest(pinned.generation, pinned.epoch);
    assert!(manifests.contains(&name), "a pinned manifest stays");
    let refused = history.rig.open(0, Agreed::default()).await.unwrap_err();
    assert!(matches!(refused, VolumeError::Diverged { held: Tally { writes: 1, .. }, .. }), "{refused}");
    let mut new = Elsewhere::new();
    let rescued = new.rescue(&history).await.unwrap();
    assert_eq!((rescued.replayed.tally.records(), rescued.base.link.epoch), (1, pinned.epoch));
    assert_eq!(rescued.kept_by, names);
    assert!(new.content().await == wanted(&history));

    // A host that held nothing unpublished has no need of it.
    let (volume, report) = history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap();
    assert_eq!(report.taken.unwrap().name, "before-takeover-4");
    volume.core().change(Change::Delete("before-takeover-3".to_owned())).await.unwrap();
    for byte in 0..2 {
        volume.write(0, Bytes::from(vec![byte; 512]), false).await.unwrap();
        volume.sync().await.unwrap();
    }
    volume.close().await.unwrap();
    assert!(!history.names("manifests/").contains(&name), "nothing keeps it any more");
    let refused = Elsewhere::new().rescue(&history).await.unwrap_err();
    assert!(matches!(refused, VolumeError::NoBase { .. }), "{refused}");
    assert!(refused.to_string().contains("before-takeover"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn only_a_takeover_from_another_host_that_had_not_closed_takes_a_snapshot() {
    let mut history = History::of_cuts(170, 3).await;
    // By the same host, and after a close.
    let (volume, report) = history.rig.open(0, WHATEVER).await.unwrap();
    assert_eq!(report.taken, None);
    volume.close().await.unwrap();
    let (volume, report) = history.rig.open(1, WHATEVER).await.unwrap();
    assert_eq!(report.taken, None);
    volume.write(0, Bytes::from_static(&[1; 512]), false).await.unwrap();
    volume.flush().await.unwrap();
    drop(volume);
    // It gives its own log up: there is no other.
    let (volume, report) = history.rig.open(1, WHATEVER).await.unwrap();
    assert_eq!(report.taken, None);
    drop(volume);
    let (volume, report) = history.rig.open(0, WHATEVER).await.unwrap();
    let taken = report.taken.unwrap();
    assert_eq!((taken.generation, taken.epoch), (report.newest.generation, report.newest.epoch));
    assert_eq!((taken.roots_epoch, taken.time_ms), (report.newest.roots.epoch, report.newest.time_ms));
    assert_eq!(volume.core().state().snapshots.get(&taken.name).unwrap(), &taken);
    let second = volume.core().change(Change::Take("mine".to_owned())).await.unwrap();
    assert!(second.id > taken.id);
    volume.close().await.unwrap();
    let table = snapshots(&history).await;
    assert_eq!(table.iter().collect::<Vec<_>>(), [&taken, &second]);
}

#[tokio::test(start_paused = true)]
async fn a_rescue_may_be_interrupted_at_any_operation_and_run_again() {
    let history = with_a_fenced_writer(140, 1).await;
    let mut whole = Elsewhere::new();
    whole.rescue(&history).await.unwrap();
    let counts =
        [whole.faulty.counts().changes(), whole.disks.state.operations(), whole.disks.wal.operations()];
    for (part, count) in counts.into_iter().enumerate() {
        assert!(count > 3, "{part}: {count}");
        for at in 1..=count {
            let mut new = Elsewhere::new();
            match part {
                0 => new.faulty.set_crash_after(Some(at - 1)),
                1 => new.disks.state.die_at(at),
                _ => new.disks.wal.die_at(at),
            }
            let ended = tokio::time::timeout(Duration::from_secs(3600), new.rescue(&history)).await;
            new.faulty.set_crash_after(None);
            new.disks = new.disks.crash(at);
            let done = matches!(ended, Ok(Ok(_)));
            match Bucket::header(&new.memory).await {
                Ok(_) => {}
                Err(VolumeError::NoVolume | VolumeError::Unfinished) if !done => {}
                Err(error) => panic!("{part}, {at}: {error}"),
            }
            match new.rescue(&history).await {
                Ok(_) | Err(VolumeError::Exists { .. }) => {}
                Err(error) => panic!("{part}, {at}: {error}"),
            }
            assert!(new.content().await == wanted(&history), "{part}, {at}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_unfinished_rescue_is_not_continued_with_another_log() {
    let (history, other) = (with_a_fenced_writer(150, 1).await, with_a_fenced_writer(151, 1).await);
    let mut new = Elsewhere::new();
    new.faulty.set_crash_after(Some(8));
    let cut = tokio::time::timeout(Duration::from_secs(3600), new.rescue(&history)).await;
    assert!(!matches!(cut, Ok(Ok(_))));
    new.faulty.set_crash_after(None);
    new.disks = new.disks.crash(1);
    let unfinished = Bucket::header(&new.memory).await;
    assert!(matches!(unfinished, Err(VolumeError::Unfinished)), "it was begun");
    let refused = new.rescue(&other).await.unwrap_err();
    assert!(matches!(refused, VolumeError::Invalid(_)), "{refused}");
    new.rescue(&history).await.unwrap();
    assert!(new.content().await == wanted(&history));
}
