//! What `info` tells agrees with what is there.

use std::sync::Arc;

use bytes::Bytes;
use s3bd::{
    nbd::Device,
    store::memory::Memory,
    volume::{error::VolumeError, info::info},
};
use wal::disk::sim::Prng;

use crate::{
    anatomy::Anatomy,
    host::{BLOCK_BYTES, Disks, make, reopen},
    volumes::{SIZE, churn, noise, rich, unlock},
};

#[tokio::test(start_paused = true)]
async fn a_fresh_volume_is_closed_and_empty() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let told = info(&unlock(&store).await).await.unwrap();
    assert_eq!((told.size_bytes, told.block_bytes, told.used_bytes), (SIZE, BLOCK_BYTES, 0));
    assert_eq!((told.objects, told.stored_bytes, told.key_slots), (0, 0, 1));
    assert!(told.clean && told.protected && told.open.is_none() && told.snapshots.is_empty());
    assert_eq!(told.published_by.host, "maker");
}

#[tokio::test(start_paused = true)]
async fn used_bytes_are_exact_with_a_list_on_top_of_a_checkpoint() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let (volume, _) = reopen(&store, &Disks::new(), 7).await.unwrap();
    let mut prng = Prng::new(21);
    let mut with_list = 0;
    for _ in 0..15 {
        churn(&volume, &mut prng, 1).await;
        let anatomy = Anatomy::of(&store).await;
        let blocks: u64 = anatomy.extents.iter().map(|(run, _)| run.count).sum();
        let told = info(&unlock(&store).await).await.unwrap();
        assert_eq!(told.used_bytes, blocks * u64::from(BLOCK_BYTES));
        let stored: u64 = anatomy.objects.iter().map(|part| part.bytes).sum();
        assert_eq!((told.objects, told.stored_bytes), (anatomy.objects.len() as u64, stored));
        with_list += u64::from(anatomy.newest.roots.blocks.is_some() && !anatomy.newest.objects.is_empty());
    }
    assert!(with_list > 3, "{with_list}");
    // A hole over everything, in the list alone.
    volume.zero(0, SIZE, false, false).await.unwrap();
    volume.sync().await.unwrap();
    assert_eq!(info(&unlock(&store).await).await.unwrap().used_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn who_has_it_open_is_told_until_it_is_closed() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let (volume, _) = reopen(&store, &Disks::new(), 7).await.unwrap();
    let told = info(&unlock(&store).await).await.unwrap();
    let open = told.open.unwrap();
    assert_eq!((open.by.unwrap().host.as_str(), open.generation.0, told.clean), ("here", 1, false));
    volume.write(0, noise(&mut Prng::new(1), 5000), false).await.unwrap();
    volume.close().await.unwrap();
    let told = info(&unlock(&store).await).await.unwrap();
    assert!(told.clean && told.open.is_none());
    assert_eq!(told.used_bytes, 5120);
    let json = serde_json::to_value(&told).unwrap();
    assert_eq!((json["epoch"].as_u64(), json["clean"].as_bool()), (Some(told.epoch.0), Some(true)));
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_gone_leaves_the_holder_unknown() {
    let store = rich().await;
    let mut contents = store.snapshot();
    let claim = Anatomy::of(&store).await.names("claims/").pop().unwrap();
    contents.remove(&claim);
    store.restore(contents);
    let open = info(&unlock(&store).await).await.unwrap().open.unwrap();
    assert_eq!((open.generation.0, open.by, open.since_ms), (2, None, None));
}

#[tokio::test(start_paused = true)]
async fn a_damaged_index_is_an_error_that_names_its_object() {
    let store = rich().await;
    let anatomy = Anatomy::of(&store).await;
    let part = anatomy.object(|part| part.entry.is_none());
    let mut contents = anatomy.contents.clone();
    contents.set(&part.name, Bytes::from_static(b"nothing of an object"));
    let damaged = Memory::new();
    damaged.restore(contents);
    let bucket = s3bd::volume::bucket::Bucket::unlock(Arc::new(damaged), &crate::volumes::secret()).await;
    match info(&bucket.unwrap()).await {
        Err(VolumeError::Damaged { name, .. }) => assert_eq!(name, part.name),
        other => panic!("{other:?}"),
    }
}
