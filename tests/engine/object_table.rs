//! The object table against a count of everything that the maps name.

use std::collections::BTreeMap;

use bytes::Bytes;
use s3bd::{
    format::{
        ids::{Epoch, Sequence},
        index::MapKind,
        manifest::Root,
        page::{ObjectInfo, Page, Target},
    },
    map::tree::{PageAt, Pages},
    nbd::Device,
    volume::{Volume, open::Agreed},
};
use wal::disk::sim::Prng;

use crate::rig::{Rig, clip, for_seeds, noise, tight_settings};

const TERABYTE: u64 = 1 << 40;

/// Bytes of plaintext by object.
type Live = BTreeMap<Sequence, u64>;

/// Walks a map: counts its pages, and calls `leaf` for each leaf.
async fn walk(
    volume: &Volume,
    map: MapKind,
    root: Option<Root>,
    live: &mut Live,
    mut leaf: impl FnMut(&Page, &mut Live),
) {
    let mut row: Vec<PageAt> =
        root.iter().map(|root| PageAt { frame: root.page(), map, level: root.level, first_key: 0 }).collect();
    while let Some(at) = row.pop() {
        *live.entry(at.frame.object.sequence).or_default() += u64::from(at.frame.plain_bytes);
        let page = Pages::load(&*volume.core().frames, at).await.unwrap();
        match &*page {
            Page::Inner(children) => row.extend(children.iter().map(|(slot, frame)| PageAt {
                frame: *frame,
                level: at.level - 1,
                first_key: at.first_key | u64::from(*slot) << (9 * u32::from(at.level)),
                ..at
            })),
            page => leaf(page, live),
        }
    }
}

/// Compares the table with a count, after a close: nothing lies above the roots but the last checkpoint's pages.
async fn check(volume: &Volume, block_bytes: u64) {
    let (roots, news, epoch) = {
        let state = volume.core().state();
        assert!(state.delta.extents.is_empty());
        (state.roots.clone(), state.delta.objects.clone(), state.delta.epoch)
    };
    let (mut live, mut table) = (Live::new(), BTreeMap::<Sequence, ObjectInfo>::new());
    walk(volume, MapKind::Blocks, roots.blocks, &mut live, |page, live| {
        let Page::Blocks(extents) = page else { panic!("a leaf of another map") };
        for extent in extents {
            let Target::Frame(frame, _) = &extent.target else { continue };
            *live.entry(frame.object.sequence).or_default() += extent.count * block_bytes;
        }
    })
    .await;
    walk(volume, MapKind::Objects, roots.objects, &mut live, |page, _| {
        let Page::Objects(entries) = page else { panic!("a leaf of another map") };
        table.extend(entries.iter().copied());
    })
    .await;
    assert!(news.keys().all(|sequence| !table.contains_key(sequence)));
    table.extend(news);
    for (sequence, info) in &table {
        let counted = live.remove(sequence).unwrap_or(0);
        assert_eq!(info.live_bytes, counted, "object {sequence}: {info:?}");
        assert_eq!(info.died.is_some(), counted == 0, "object {sequence}: {info:?}");
        assert!(info.died.is_none_or(|died| died >= Epoch(1) && died <= epoch));
        assert!(info.live_bytes <= info.plain_bytes);
    }
    assert!(live.is_empty(), "objects that the table does not know: {live:?}");
}

async fn history(seed: u64) {
    let mut prng = Prng::new(seed);
    let settings = tight_settings(&mut prng);
    let block_bytes = [512, 4096][prng.below(2) as usize];
    let mut rig = Rig::new(seed, TERABYTE, block_bytes, settings).await;
    for _ in 0..4 {
        let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
        for _ in 0..25 {
            let base = prng.below(4) << prng.below(40);
            let range = clip(base + prng.below(100_000), 1 + prng.below(20_000), TERABYTE);
            let length = range.end - range.start;
            match prng.below(8) {
                0 => volume
                    .trim(range.start, (length << prng.below(12)).min(TERABYTE - range.start), false)
                    .await
                    .unwrap(),
                1 => volume.sync().await.unwrap(),
                _ => {
                    let data = Bytes::from(noise(&mut prng, length as usize));
                    volume.write(range.start, data, false).await.unwrap();
                }
            }
        }
        volume.close().await.unwrap();
        drop(volume);
        let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
        check(&volume, block_bytes.into()).await;
    }
}

#[test]
fn the_object_table_counts_what_the_maps_name() {
    for_seeds(15, history);
}
