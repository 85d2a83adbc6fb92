//! Whole volumes: silence but for what is worth knowing, and counts that are right.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use s3bd::{
    fsck::{Finding, Level, Options, Progress, Sample, Stage, check},
    nbd::Device,
    store::{
        ErrorKind, PutMode, Store,
        faulty::{Call, Fault, Faulty},
        memory::Memory,
    },
    volume::{error::VolumeError, open::Agreed, settings::Settings},
};
use wal::disk::sim::Prng;

use crate::{
    host::{Disks, env, make, open_with, reopen, small_settings},
    volumes::{LEVELS, SIZE, assert_sound, check_at, churn, faults, kind, rich, secret, unlock},
};

#[tokio::test(start_paused = true)]
async fn a_fresh_volume_is_sound() {
    let store = Memory::new();
    make(&store, SIZE).await;
    assert_sound(&store, &[]).await;
    let report = check_at(Arc::new(store), Level::Default).await;
    assert_eq!((report.counts.manifests, report.counts.key_slots, report.counts.pages), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_sound_after_many_checkpoints_at_every_step() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let disks = Disks::new();
    let mut prng = Prng::new(5);
    for tenure in 0..3 {
        let (volume, _) = reopen(&store, &disks, 20 + tenure).await.unwrap();
        for round in 0..10 {
            churn(&volume, &mut prng, 3).await;
            let report = check_at(Arc::new(store.clone()), LEVELS[round % 3]).await;
            assert!(faults(&report).is_empty(), "{report:#?}");
            assert!(report.findings.iter().any(|found| matches!(found, Finding::InUse { .. })));
        }
        volume.close().await.unwrap();
        assert_sound(&store, &[]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_crashed_volume_is_sound_and_said_to_be_in_use() {
    let store = rich().await;
    assert_sound(&store, &["in_use"]).await;
    let report = check_at(Arc::new(store.clone()), Level::ReadData(Sample::ALL)).await;
    let counts = report.counts;
    let in_bucket = |prefix: &str| {
        let contents = store.snapshot();
        let sizes =
            contents.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, bytes)| bytes.len());
        sizes.fold((0, 0), |(count, sum), size| (count + 1, sum + size as u64))
    };
    assert_eq!((counts.objects, counts.object_bytes), in_bucket("objects/"));
    assert_eq!(counts.manifests, in_bucket("manifests/").0);
    assert_eq!(counts.claims, in_bucket("claims/").0);
    assert!(counts.frames > 20 && counts.frame_bytes > counts.mapped_bytes / 2, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_claim_above_the_newest_manifest_is_told() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let disks = Disks::new();
    let (volume, _) = reopen(&store, &disks, 7).await.unwrap();
    volume.close().await.unwrap();
    let closed = store.snapshot();
    let (volume, _) = reopen(&store, &disks, 8).await.unwrap();
    let mut opening = closed;
    for (name, bytes) in store.snapshot().iter().filter(|(name, _)| name.starts_with("claims/")) {
        opening.set(name, bytes.clone());
    }
    drop(volume);
    store.restore(opening);
    let report = check_at(Arc::new(store), Level::Quick).await;
    let [Finding::InUse { generation, holder: Some(holder), .. }] = &report.findings[..] else {
        panic!("{report:#?}")
    };
    assert_eq!((generation.0, holder.host.as_str()), (2, "here"));
}

#[tokio::test(start_paused = true)]
async fn strays_unknown_names_and_a_fenced_writers_manifests_are_notes() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let (here, there) = (Disks::new(), Disks::new());
    let (first, _) = reopen(&store, &here, 7).await.unwrap();
    churn(&first, &mut Prng::new(3), 5).await;
    let other = env(Arc::new(store.clone()), &there, 8, "there");
    let takeover = Agreed { takeover: true, ..Agreed::default() };
    let (second, _) = open_with(other, small_settings(), takeover).await.unwrap();
    first.write(0, Bytes::from_static(b"too late"), false).await.unwrap();
    assert!(matches!(first.sync().await, Err(VolumeError::Fenced { .. })));
    churn(&second, &mut Prng::new(4), 5).await;
    second.close().await.unwrap();
    for name in ["notes.txt", "objects/lost+found", "keys/mine", "zzz", "claims/0", "manifests/old"] {
        store.put(name, &[Bytes::from_static(b"what is this")], PutMode::Create).await.unwrap();
    }
    for level in LEVELS {
        let report = check_at(Arc::new(store.clone()), level).await;
        let kinds: Vec<_> = report.findings.iter().map(kind).filter(|kind| kind != "slot_damaged").collect();
        let quick = ["manifest_aside", "unknown_keys"];
        let all = ["manifest_aside", "unknown_keys", "strays"];
        assert_eq!(kinds, if level == Level::Quick { &quick[..] } else { &all[..] }, "{report:#?}");
        for finding in &report.findings {
            match finding {
                Finding::UnknownKeys { count, first } => {
                    assert_eq!((*count, first.as_str()), (5, "claims/0"));
                }
                // The object of the fenced cut, and the name that is none.
                Finding::Strays { objects, .. } => assert_eq!(*objects, 2),
                Finding::ManifestAside { host, .. } => assert_eq!(host, "here"),
                _ => {}
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_collector_deleted_is_no_finding() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let settings = Settings { gc_grace: Duration::ZERO, ..small_settings() };
    let host = env(Arc::new(store.clone()), &Disks::new(), 7, "here");
    let (volume, _) = open_with(host, settings, Agreed::default()).await.unwrap();
    for byte in 1..20 {
        volume.write(0, Bytes::from(vec![byte; 200 << 10]), false).await.unwrap();
        volume.write(4 << 20, Bytes::from(vec![byte; 9000]), false).await.unwrap();
        volume.sync().await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let figures = volume.core().collecting().figures();
    assert!(figures.deleted > 5, "{figures:?}");
    assert_sound(&store, &["in_use"]).await;
    // Some entries wait for a checkpoint that has another reason.
    let report = check_at(Arc::new(store.clone()), Level::Default).await;
    assert!(report.counts.collected > 0, "{:?}", report.counts);
    volume.close().await.unwrap();
    assert_sound(&store, &[]).await;
}

/// A volume that its writer goes on publishing, with many manifests removed, while it is checked: every request of the
/// check waits for some of it.
#[tokio::test(start_paused = true)]
async fn a_volume_that_is_written_meanwhile_is_sound() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let disks = Disks::new();
    let (volume, _) = reopen(&store, &disks, 7).await.unwrap();
    let mut prng = Prng::new(9);
    churn(&volume, &mut prng, 40).await;
    let slow = |call: &Call<'_>| Fault::Delay(Duration::from_millis(1 + call.index % 7));
    let slow = Arc::new(Faulty::with_plan(store.clone(), slow));
    for level in LEVELS {
        let before = unlock(&store).await.newest_manifest().await.unwrap().manifest.epoch;
        let checks = check_at(slow.clone(), level);
        tokio::pin!(checks);
        let report = loop {
            tokio::select! {
                report = &mut checks => break report,
                () = async {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    volume.write(prng.next_u64() % (1 << 20), Bytes::from_static(b"more"), false).await.unwrap();
                    volume.sync().await.unwrap();
                } => {}
            }
        };
        assert!(faults(&report).is_empty(), "{report:#?}");
        let after = unlock(&store).await.newest_manifest().await.unwrap().manifest.epoch;
        assert!(after.0 > before.0 + 20, "it was written meanwhile: {before} to {after}");
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_damaged_on_the_way_are_fetched_again() {
    let store = rich().await;
    // Never two damaged answers in a row for one reader: the calls alternate.
    let damaged = AtomicU64::new(0);
    let plan = move |call: &Call<'_>| match call.operation {
        "get" if call.index % 17 == 3 => match damaged.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => Fault::FlipBit(call.index * 7919),
            _ => Fault::CutShort,
        },
        _ => Fault::None,
    };
    let faulty = Arc::new(Faulty::with_plan(store, plan));
    for level in LEVELS {
        for _ in 0..3 {
            let report = check_at(faulty.clone(), level).await;
            assert!(faults(&report).is_empty(), "{report:#?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_is_an_error_and_no_finding() {
    let store = rich().await;
    let calls = Arc::new(AtomicU64::new(0));
    let mut refused_at = 0;
    loop {
        calls.store(0, Ordering::Relaxed);
        let count = calls.clone();
        let plan = move |_: &Call<'_>| match count.fetch_add(1, Ordering::Relaxed) == refused_at {
            true => Fault::Before(ErrorKind::Denied),
            false => Fault::None,
        };
        let faulty = Arc::new(Faulty::with_plan(store.clone(), plan));
        let options = Options { level: Level::ReadData(Sample::ALL), concurrency: 1 };
        match s3bd::fsck::check_store(faulty, &secret(), &options, &()).await {
            Err(VolumeError::Store(error)) => assert_eq!(error.kind, ErrorKind::Denied),
            other => {
                assert!(faults(&other.unwrap()).is_empty());
                break;
            }
        }
        refused_at += 7;
    }
    assert!(refused_at > 100, "{refused_at}");
}

#[derive(Default)]
struct Told {
    stages: Mutex<Vec<(Stage, Option<u64>, u64)>>,
}

impl Progress for Told {
    fn begin(&self, stage: Stage, total: Option<u64>) {
        let mut stages = self.stages.lock().unwrap();
        match stages.last_mut() {
            Some(last) if last.0 == stage => last.1 = total,
            _ => stages.push((stage, total, 0)),
        }
    }

    fn advance(&self, units: u64) {
        self.stages.lock().unwrap().last_mut().unwrap().2 += units;
    }
}

#[tokio::test(start_paused = true)]
async fn progress_comes_to_its_totals() {
    let store = rich().await;
    // Closed, so that nothing hides blocks below it.
    let takeover = Agreed { takeover: true, ..Agreed::default() };
    let env = env(Arc::new(store.clone()), &Disks::new(), 30, "there");
    let (volume, _) = open_with(env, small_settings(), takeover).await.unwrap();
    volume.close().await.unwrap();
    for level in LEVELS {
        let told = Told::default();
        let options = Options { level, concurrency: 4 };
        check(&unlock(&store).await, &options, &told).await.unwrap();
        let stages = told.stages.into_inner().unwrap();
        let order: Vec<_> = stages.iter().map(|stage| stage.0).collect();
        assert_eq!(order, [Stage::Line, Stage::Listed, Stage::Objects, Stage::Blocks]);
        for (stage, total, done) in stages {
            assert_eq!(total, Some(done), "{stage:?} at {level:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn samples_are_what_they_say_and_reach_every_frame_in_time() {
    let store = rich().await;
    let frames = async |percent, seed| {
        let level = Level::ReadData(Sample { percent, seed });
        check_at(Arc::new(store.clone()), level).await.counts.frames
    };
    let all = frames(100.0, 0).await;
    assert_eq!(frames(0.0, 0).await, 0);
    let half = frames(50.0, 1).await;
    assert_eq!(half, frames(50.0, 1).await);
    assert!(half > all / 4 && half < all * 3 / 4, "{half} of {all}");
    let mut halves = 0;
    for seed in 0..20 {
        halves += frames(50.0, seed).await;
    }
    assert!(halves > 20 * all * 4 / 10 && halves < 20 * all * 6 / 10, "{halves} of {all} in twenty halves");
}

#[tokio::test(start_paused = true)]
async fn a_check_can_run_in_a_task_of_its_own() {
    let store = rich().await;
    let task = tokio::spawn(async move { check_at(Arc::new(store), Level::Default).await });
    assert!(task.await.unwrap().is_sound());
}
