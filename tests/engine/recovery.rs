//! `recover`: what it says beforehand, and dying at each of its operations.

use std::time::Duration;

use bytes::Bytes;
use s3bd::{
    nbd::Device,
    store::faulty::{Call, Fault},
    volume::{
        error::VolumeError,
        open::{Agreed, OpenReport, Repair, inspect},
        tally::Tally,
    },
};

use crate::{
    host::{BLOCK_BYTES, Disks, env, small_settings, unlock},
    oracle::{Oracle, Windows},
    rig::{Rig, WHATEVER, noise},
};
use wal::disk::sim::Prng;

const SIZE: u64 = 64 << 10;

async fn inspect_on(rig: &Rig, host: usize, agreed: Agreed) -> Result<OpenReport, VolumeError> {
    let env = env(rig.store.clone(), &rig.hosts[host], 99, "here");
    inspect(&env, &unlock(&env).await, agreed, &Repair::default()).await
}

/// A host that lost its power: published, flushed and unflushed writes, some of them torn.
async fn after_a_power_cut(seed: u64) -> (Rig, Oracle) {
    let mut settings = small_settings();
    settings.object_bytes = 16 << 10;
    settings.checkpoint_objects = 2;
    let mut rig = Rig::new(seed, SIZE, BLOCK_BYTES, settings).await;
    let mut oracle = Oracle::new(Windows::new(vec![0..SIZE]), SIZE);
    let mut prng = Prng::new(seed);
    let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
    for step in 0..12_u64 {
        let data = noise(&mut prng, 3000);
        let offset = prng.below(SIZE - 3000);
        oracle.send(offset, 3000, Some(data.clone()));
        volume.write(offset, Bytes::from(data), false).await.unwrap();
        oracle.acknowledge(&volume);
        if step == 3 {
            volume.sync().await.unwrap();
            oracle.published();
        }
        if step == 8 {
            volume.flush().await.unwrap();
            oracle.flushed();
        }
    }
    drop(volume);
    rig.hosts[0] = rig.hosts[0].crash(seed);
    oracle.reopened();
    (rig, oracle)
}

async fn recover(rig: &mut Rig) -> Result<OpenReport, VolumeError> {
    let (volume, report) = rig.open(0, Agreed::default()).await?;
    volume.sync().await?;
    volume.close().await?;
    Ok(report)
}

#[tokio::test(start_paused = true)]
async fn what_a_dry_run_says_is_what_recover_finds_and_it_changes_nothing() {
    for seed in 0..20 {
        let (mut rig, mut oracle) = after_a_power_cut(seed).await;
        let bucket = rig.memory.snapshot();
        let operations =
            |disks: &Disks| [disks.state.operations(), disks.wal.operations(), disks.cache.operations()];
        let before = operations(&rig.hosts[0]);
        let said = inspect_on(&rig, 0, Agreed::default()).await.unwrap();
        assert!(rig.memory.snapshot().iter().eq(bucket.iter()), "seed {seed}: the bucket changed");
        assert_eq!(operations(&rig.hosts[0]), before, "seed {seed}: the state directory changed");
        let found = recover(&mut rig).await.unwrap();
        assert_eq!(said.replayed, found.replayed, "seed {seed}");
        assert!(
            said.has_log && !said.was_clean && said.replayed.tally.records() >= 5,
            "seed {seed}: {said:?}"
        );
        let (first, last) = said.replayed.times_ms.unwrap();
        assert!(first < last, "seed {seed}");
        let (volume, _) = rig.open(1, Agreed::default()).await.unwrap();
        oracle.survived_power_cut(&oracle.windows.clone().read(&volume).await).unwrap();
    }
}

/// A trim of the whole volume is one record, and not as much data as the volume is large.
#[tokio::test(start_paused = true)]
async fn a_replay_counts_what_was_written_and_trims_apart() {
    let mut rig = Rig::new(1, SIZE, BLOCK_BYTES, small_settings()).await;
    let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
    volume.trim(0, SIZE, false).await.unwrap();
    volume.write(0, Bytes::from_static(&[1; 1536]), false).await.unwrap();
    volume.zero(4096, 8192, true, false).await.unwrap();
    volume.write(8192, Bytes::from_static(&[2; 512]), false).await.unwrap();
    volume.flush().await.unwrap();
    drop(volume);
    rig.hosts[0] = rig.hosts[0].crash(3);
    let counted = Tally { writes: 2, bytes: 2048, zeroes: 2, resizes: 0 };
    assert_eq!(inspect_on(&rig, 0, Agreed::default()).await.unwrap().replayed.tally, counted);
    let (volume, report) = rig.open(0, Agreed::default()).await.unwrap();
    assert_eq!(report.replayed.tally, counted);
    drop(volume);
    // What a fenced log holds is counted by another path.
    let (other, _) = rig.open(1, WHATEVER).await.unwrap();
    other.close().await.unwrap();
    let refused = rig.open(0, Agreed::default()).await.unwrap_err();
    assert!(refused.to_string().contains("holds 2 writes (2048 bytes), 2 trims or zeroings"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn recover_may_be_interrupted_at_any_operation_and_run_again() {
    let (mut whole, _) = after_a_power_cut(7).await;
    let changes_before = whole.faulty.counts().changes();
    recover(&mut whole).await.unwrap();
    let disks = &whole.hosts[0];
    let counts =
        [disks.wal.operations(), disks.state.operations(), whole.faulty.counts().changes() - changes_before];
    for (part, count) in counts.into_iter().enumerate() {
        assert!(count > 5, "{part}: {count}");
        for at in 1..=count {
            let (mut rig, mut oracle) = after_a_power_cut(7).await;
            match part {
                0 => rig.hosts[0].wal.die_at(at),
                1 => rig.hosts[0].state.die_at(at),
                _ => rig.faulty.set_crash_after(Some(at - 1)),
            }
            let _ = tokio::time::timeout(Duration::from_secs(3600), recover(&mut rig)).await;
            rig.faulty.set_crash_after(None);
            rig.hosts[0] = rig.hosts[0].crash(at);
            recover(&mut rig).await.unwrap_or_else(|error| panic!("{part}, {at}: {error}"));
            // Everything is in the bucket.
            let (volume, report) = rig.open(1, Agreed::default()).await.unwrap();
            assert!(report.was_clean, "{part}, {at}");
            let found = oracle.windows.clone().read(&volume).await;
            oracle.survived_power_cut(&found).unwrap_or_else(|wrong| panic!("{part}, {at}: {wrong}"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_local_state_is_gone_the_report_says_how_much_was_not_published() {
    let mut rig = Rig::new(1, SIZE, BLOCK_BYTES, small_settings()).await;
    let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
    rig.faulty.set_plan(|call: &Call<'_>| match call.key.starts_with("objects/") {
        true => Fault::Delay(Duration::from_secs(10)),
        false => Fault::None,
    });
    volume.write(0, Bytes::from_static(&[1; 512]), false).await.unwrap();
    let late = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        volume.write(4096, Bytes::from_static(&[2; 1536]), false).await.unwrap();
    };
    let (synced, ()) = tokio::join!(volume.sync(), late);
    synced.unwrap();
    drop(volume);
    let refused = inspect_on(&rig, 1, Agreed::default()).await.unwrap_err();
    assert!(matches!(refused, VolumeError::InUse { .. }), "{refused}");
    let takeover = Agreed { takeover: true, ..Agreed::default() };
    let said = inspect_on(&rig, 1, takeover).await.unwrap();
    assert!(!said.has_log && !said.was_clean && said.replayed.tally.records() == 0, "{said:?}");
    assert_eq!(said.newest.unpublished_bytes, 1536);
}
