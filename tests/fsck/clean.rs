//! Whole volumes: silence but for what is worth knowing, and counts that are right.

use std::sync::Arc;

use bytes::Bytes;
use s3bd::{
    fsck::{Finding, Level, Sample},
    nbd::Device,
    store::{PutMode, Store, memory::Memory},
    volume::{info, open::Agreed},
};
use wal::disk::sim::Prng;

use crate::{
    host::{Disks, env, make, open_with, reopen, small_settings},
    volumes::{LEVELS, SIZE, assert_sound, check_at, churn, faults, rich, unlock},
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
        for _ in 0..10 {
            churn(&volume, &mut prng, 3).await;
            for level in LEVELS {
                let report = check_at(Arc::new(store.clone()), level).await;
                assert!(faults(&report).is_empty(), "{report:#?}");
                assert!(report.findings.iter().any(|found| matches!(found, Finding::InUse { .. })));
            }
        }
        volume.close().await.unwrap();
        assert_sound(&store, &[]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_crashed_volume_is_sound_and_said_to_be_in_use() {
    assert_sound(&rich().await, &["in_use"]).await;
}
