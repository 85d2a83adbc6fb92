//! What is read of objects that the next owner of a volume has collected: never called damage.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use s3bd::{
    nbd::Device,
    store::Store,
    volume::{
        error::VolumeError,
        open::{open_snapshot, open_snapshot_alone},
        read::At,
        settings::Settings,
        snapshot_view::SnapshotView,
        snapshots::Change,
    },
};

use crate::{
    host::{Disks, env, small_settings, unlock},
    rig::{Rig, WHATEVER},
};

/// Nothing is collected but by hand, and nothing is kept that was read.
fn collected_by_hand() -> Settings {
    Settings {
        gc_grace: Duration::ZERO,
        gc_idle: Duration::from_secs(1 << 30),
        cache_bytes_max: 0,
        memory_bytes_max: 0,
        ..small_settings()
    }
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_was_overtaken_says_so_when_what_it_reads_is_collected() {
    let settings = collected_by_hand();
    let mut rig = Rig::new(6, 1 << 20, 4096, settings).await;
    let (overtaken, _) = rig.open(0, WHATEVER).await.unwrap();
    overtaken.write(0, Bytes::from(vec![1; 64 << 10]), false).await.unwrap();
    overtaken.sync().await.unwrap();
    let (volume, report) = rig.open(1, WHATEVER).await.unwrap();
    let taken = report.taken.expect("the other host has not closed the volume");
    volume.core().change(Change::Delete(taken.name)).await.unwrap();
    volume.write(0, Bytes::from(vec![2; 128 << 10]), false).await.unwrap();
    volume.sync().await.unwrap();
    assert!(volume.core().collect().await.unwrap().deleted > 0);
    // It has published nothing since, so nothing has told it.
    assert!(overtaken.core().check().is_ok());
    assert!(overtaken.read(0, 64 << 10).await.is_err());
    let fault = overtaken.core().check();
    assert!(matches!(fault, Err(VolumeError::Fenced { .. })), "{fault:?}");
    volume.close().await.unwrap();
}

/// A snapshot that another host deleted is gone with what it alone held: no damage, wherever it is read.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_the_next_owner_deleted_is_not_called_damaged() {
    let settings = collected_by_hand();
    for opened_before in [true, false] {
        let mut rig = Rig::new(6, 1 << 20, 4096, settings.clone()).await;
        let (overtaken, _) = rig.open(0, WHATEVER).await.unwrap();
        overtaken.write(0, Bytes::from(vec![1; 64 << 10]), false).await.unwrap();
        overtaken.core().change(Change::Take("one".to_owned())).await.unwrap();
        overtaken.sync().await.unwrap();
        let snapshot = overtaken.core().state().snapshots.get("one").unwrap().clone();
        let view = SnapshotView::new(Arc::clone(overtaken.core()), snapshot);
        let env = env(rig.store.clone(), &Disks::new(), 99, "elsewhere");
        let bucket = unlock(&env).await;
        let alone = open_snapshot_alone(env, bucket, settings.clone(), "one").await.unwrap();
        if opened_before {
            // What it holds is not read yet: the maps alone are.
            assert!(!view.extents(0, 64 << 10, 8).await.unwrap()[0].hole);
        }
        let (volume, report) = rig.open(1, WHATEVER).await.unwrap();
        for name in ["one".to_owned(), report.taken.unwrap().name] {
            volume.core().change(Change::Delete(name)).await.unwrap();
        }
        volume.write(0, Bytes::from(vec![2; 128 << 10]), false).await.unwrap();
        volume.sync().await.unwrap();
        assert!(volume.core().collect().await.unwrap().deleted > 0);
        let found = alone.core().read(0..64 << 10, At::Newest).await;
        assert!(matches!(found, Err(VolumeError::NoSnapshot { .. })), "{found:?}");
        // It has published nothing since, so nothing has told it.
        assert!(overtaken.core().check().is_ok());
        assert!(view.read(0, 64 << 10).await.is_err());
        let fault = overtaken.core().check();
        assert!(
            matches!(fault, Err(VolumeError::Fenced { .. })),
            "{fault:?}, opened before: {opened_before}"
        );
        volume.close().await.unwrap();
    }
}

/// What is missing from a snapshot that is still there is damage, and ends no tenure.
#[tokio::test(start_paused = true)]
async fn what_is_missing_of_a_snapshot_that_is_there_is_damage() {
    let settings = collected_by_hand();
    let mut rig = Rig::new(6, 1 << 20, 4096, settings).await;
    let (volume, _) = rig.open(0, WHATEVER).await.unwrap();
    volume.write(0, Bytes::from(vec![1; 64 << 10]), false).await.unwrap();
    volume.core().change(Change::Take("one".to_owned())).await.unwrap();
    volume.sync().await.unwrap();
    let snapshot = volume.core().state().snapshots.get("one").unwrap().clone();
    let view = open_snapshot(volume.core(), &snapshot).await.unwrap();
    let objects: Vec<String> = rig
        .memory
        .snapshot()
        .iter()
        .map(|(key, _)| key.to_owned())
        .filter(|key| key.starts_with("objects/"))
        .collect();
    rig.store.delete(&objects).await.unwrap();
    let found = view.core().read(0..64 << 10, At::Newest).await;
    assert!(matches!(found, Err(VolumeError::DamagedFrame { .. })), "{found:?}");
    assert!(volume.core().check().is_ok());
}
