//! A volume without any manifest whose dead objects were collected: which checkpoint it is put together from, and which never.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use s3bd::{
    format::{ids::Epoch, index::MapKind, names, page::Page},
    store::faulty::{Call, Fault},
    volume::{
        Volume,
        bucket::Bucket,
        error::Kind,
        open::{Agreed, Repair},
        rebuild::Rebuilt,
        snapshots::{Change, SnapshotTable},
        walk::{Direct, Walk},
    },
};
use wal::disk::sim::Prng;

use crate::{
    history::{History, SIZE, content, with_a_fenced_writer},
    host::{Disks, env, unlock},
    rig::{WHATEVER, noise},
};

/// Writes of this length go to a few places only, so that objects die.
const PIECE: usize = 9000;
const PLACES: u64 = 6;

async fn churn(history: &mut History, volume: &Volume, prng: &mut Prng, cuts: usize) {
    for _ in 0..cuts {
        let mut image = history.images.last().unwrap().clone();
        for _ in 0..2 {
            let data = noise(prng, PIECE);
            let at = prng.below(PLACES) * 20_000;
            image[at as usize..][..PIECE].copy_from_slice(&data);
            s3bd::nbd::Device::write(volume, at, Bytes::from(data), false).await.unwrap();
        }
        history.publish(volume, image).await;
    }
}

/// The collector lets everything be: for what a test deletes by itself, or pretends that was never published.
fn let_be(history: &mut History) {
    let never = Duration::from_secs(1 << 30);
    let settings = &mut history.rig.settings;
    (settings.gc_idle, settings.gc_grace) = (never, never);
    // Less than an object that waits is no burden, so nothing is let go before its time.
    settings.object_bytes = 16 << 20;
}

/// Cuts that overwrite each other, with checkpoints between; nothing is collected, and the volume is not closed.
async fn of_churn(seed: u64, cuts: usize) -> History {
    let mut history = History::of_cuts(seed, 1).await;
    let_be(&mut history);
    let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
    churn(&mut history, &volume, &mut Prng::new(seed), cuts).await;
    history
}

async fn bucket(history: &History) -> Bucket {
    unlock(&env(history.rig.store.clone(), &Disks::new(), 2, "collector")).await
}

/// Epochs of the checkpoints that manifests have, the newest last.
async fn checkpoints(history: &History) -> Vec<Epoch> {
    let bucket = bucket(history).await;
    let mut epochs = Vec::new();
    for (generation, epoch) in bucket.list_manifests().await.unwrap() {
        epochs.push(bucket.load_manifest(generation, epoch).await.unwrap().unwrap().manifest.roots.epoch);
    }
    epochs.dedup();
    epochs
}

/// Deletes what died up to `horizon` and no snapshot needs. How many objects that were.
async fn collect(history: &History, horizon: Epoch) -> usize {
    let bucket = bucket(history).await;
    let newest = bucket.newest_manifest().await.unwrap().manifest;
    let snapshots = SnapshotTable::load(&bucket, &newest).await.unwrap();
    let direct = Direct::new(bucket);
    let mut walk = Walk::new(&direct, MapKind::Objects, newest.roots.objects.as_ref(), 4, |_, _| true);
    let mut garbage = Vec::new();
    while let Some((_, page)) = walk.next().await {
        let page = page.unwrap();
        let Page::Objects(entries) = &*page else { continue };
        let dead = |info: &s3bd::format::page::ObjectInfo| info.died.is_some_and(|died| died <= horizon);
        let dead = entries.iter().filter(|(_, info)| dead(info) && !snapshots.needs(info.born, info.died));
        garbage.extend(dead.map(|(number, info)| names::object(info.generation, *number)));
    }
    garbage.iter().for_each(|name| history.remove(name));
    garbage.len()
}

fn remove_manifests(history: &History) {
    history.names("manifests/").iter().for_each(|name| history.remove(name));
}

fn on(found: &Rebuilt) -> Repair {
    Repair { base: Some(found.base.clone()), ..Repair::default() }
}

#[tokio::test(start_paused = true)]
async fn after_a_collection_the_newest_checkpoint_gives_the_newest_content() {
    for (seed, closed) in [(200, false), (201, true), (202, false), (203, true)] {
        let mut history = of_churn(seed, 17).await;
        if closed {
            let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
            volume.close().await.unwrap();
        }
        let newest = *checkpoints(&history).await.last().unwrap();
        assert!(collect(&history, newest).await > 5, "seed {seed}");
        remove_manifests(&history);
        let found = history.rebuild().await.unwrap();
        assert_eq!((found.checkpoint, found.passed.len()), (Some(newest), 0), "seed {seed}");
        assert_eq!((found.left_out.len(), found.damaged.len()), (0, 0), "seed {seed}: {found:?}");
        let image = history.images.len() - 1;
        let used = history.images[image].chunks(512).filter(|block| block.iter().any(|byte| *byte != 0));
        assert_eq!(found.used_bytes, 512 * used.count() as u64, "seed {seed}");
        assert_eq!(history.image_after(&on(&found)).await, image, "seed {seed}");
        // And once more, from what the new tenure left.
        remove_manifests(&history);
        let found = history.rebuild().await.unwrap();
        let (volume, _) = history.open(&Disks::new(), WHATEVER, &on(&found)).await.unwrap();
        let mut wanted = history.images[image].clone();
        wanted[..512].fill(9);
        assert!(content(&volume).await == wanted, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_the_collector_ran_the_newest_checkpoint_gives_the_newest_content() {
    for (closed, cuts_after) in [(false, 0), (false, 2), (true, 0), (true, 2)] {
        let mut history = History::of_cuts(270, 3).await;
        history.rig.settings.gc_grace = Duration::ZERO;
        let mut prng = Prng::new(271);
        let (mut volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
        for _ in 0..6 {
            let image = noise(&mut prng, SIZE as usize);
            s3bd::nbd::Device::write(&volume, 0, Bytes::from(image.clone()), false).await.unwrap();
            history.publish(&volume, image).await;
        }
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let figures = volume.core().collecting().figures();
        assert!(figures.deleted > 10 && figures.waiting == 0, "{figures:?}");
        if closed {
            volume.close().await.unwrap();
            volume = history.rig.open(0, Agreed::default()).await.unwrap().0;
        }
        churn(&mut history, &volume, &mut prng, cuts_after).await;
        drop(volume);
        remove_manifests(&history);
        let found = history.rebuild().await.unwrap();
        assert!(found.checkpoint.is_some(), "{found:?}");
        assert_eq!((found.passed.len(), found.left_out.len(), found.damaged.len()), (0, 0, 0), "{found:?}");
        assert_eq!(history.image_after(&on(&found)).await, history.images.len() - 1, "{closed} {cuts_after}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_with_a_damaged_page_gives_way_to_the_one_before() {
    for lost_cut in [false, true] {
        let mut history = of_churn(210, 17).await;
        let epochs = checkpoints(&history).await;
        let [.., before, newest] = epochs[..] else { panic!("{epochs:?}") };
        assert!(collect(&history, before).await > 3);
        let lines = bucket(&history).await.newest_manifest().await.unwrap().manifest;
        let root = lines.roots.blocks.unwrap();
        remove_manifests(&history);
        let all = history.rebuild().await.unwrap();
        assert_eq!(all.checkpoint, Some(newest));
        // In the middle of its page.
        let name = names::object(root.object.generation, root.object.sequence);
        let end = root.frame.offset + u64::from(root.frame.stored_bytes) - 20;
        let bytes = history.memory().snapshot().get(&name).unwrap().len();
        history.damage(&name, bytes - 1 - end as usize);
        let found = history.rebuild().await.unwrap();
        assert_eq!((found.checkpoint, found.passed.len()), (Some(before), 1), "{found:?}");
        assert_eq!((found.passed[0].0, found.epoch), (newest, all.epoch));
        assert!(found.cuts > all.cuts);
        let mut image = history.images.len() - 1;
        if lost_cut {
            // With one of the cuts above it, all that was built on that.
            let objects = &found.base.published.manifest.objects;
            let cut = objects[objects.len() - 3];
            history.remove(&names::object(cut.generation, cut.sequence));
            let less = history.rebuild().await.unwrap();
            assert_eq!((less.checkpoint, less.passed.len(), less.left_out.len()), (Some(before), 1, 2));
            // Some of the cuts only moved what others had written: the log's position tells which image it is.
            let wanted = history.image_of(&on(&less));
            assert!((image - 3..image).contains(&wanted));
            assert_eq!(history.image_after(&on(&less)).await, wanted);
            continue;
        }
        assert_eq!(history.image_after(&on(&found)).await, image);
        image += 1;
        assert_eq!(history.images.len(), image);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fenced_writers_later_checkpoint_is_not_taken() {
    for cuts_after in [0, 1, 9] {
        let mut history = History::of_cuts(220, 4).await;
        // Else it would have let go of the manifests that are kept here.
        let_be(&mut history);
        let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
        let kept = history.names("manifests/");
        let images = history.images.len();
        churn(&mut history, &volume, &mut Prng::new(221), 9).await;
        drop(volume);
        let later = *checkpoints(&history).await.last().unwrap();
        // Its line is given up where the other one begins; its objects are all there.
        for name in history.names("manifests/").iter().filter(|name| !kept.contains(name)) {
            history.remove(name);
        }
        history.images.truncate(images);
        let (volume, _) = history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap();
        churn(&mut history, &volume, &mut Prng::new(222), cuts_after).await;
        drop(volume);
        let own = *checkpoints(&history).await.last().unwrap();
        assert!(own < later || cuts_after == 9, "{own} {later}");
        remove_manifests(&history);
        let found = history.rebuild().await.unwrap();
        assert_eq!(found.checkpoint, Some(own), "{cuts_after}");
        // And what the collector moved by itself.
        assert!(found.left_out.len() >= 9, "{:?}", found.left_out);
        assert_eq!(history.image_after(&on(&found)).await, images - 1 + cuts_after, "{cuts_after}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_no_manifest_had_is_no_trouble_where_others_use_its_numbers() {
    for cuts_after in [0, 2, 5] {
        let mut history = History::of_cuts(230, 2).await;
        let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
        // That of the cut is put; that of the checkpoint is on its way when the host ends.
        let manifests = AtomicU64::new(0);
        history.rig.faulty.set_plan(move |call: &Call<'_>| {
            let is_manifest = call.operation == "put" && call.key.starts_with("manifests/");
            match is_manifest && manifests.fetch_add(1, Ordering::Relaxed) > 0 {
                true => Fault::Delay(Duration::from_secs(3600)),
                false => Fault::None,
            }
        });
        churn(&mut history, &volume, &mut Prng::new(231), 1).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(volume);
        history.rig.faulty.set_plan(|_: &Call<'_>| Fault::None);
        history.rig.settings.checkpoint_objects = 1000;
        let (volume, _) = history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap();
        churn(&mut history, &volume, &mut Prng::new(232), cuts_after).await;
        drop(volume);
        let objects = history.names("objects/");
        let numbers: BTreeSet<_> = objects.iter().map(|name| &name[name.len() - 16..]).collect();
        assert_eq!(numbers.len() < objects.len(), cuts_after > 0, "{objects:?}");
        remove_manifests(&history);
        let found = history.rebuild().await.unwrap();
        assert_eq!(found.checkpoint.is_some(), cuts_after == 0, "{cuts_after}");
        let newest = history.images.len() - 1;
        assert_eq!(history.image_after(&on(&found)).await, newest, "{cuts_after}");
    }
}

#[tokio::test(start_paused = true)]
async fn snapshots_are_as_of_the_checkpoint_and_hold_what_they_need() {
    let mut history = of_churn(240, 4).await;
    let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
    let take = async |volume: &Volume, name: &str| volume.core().change(Change::Take(name.to_owned())).await;
    let old = take(&volume, "old").await.unwrap();
    churn(&mut history, &volume, &mut Prng::new(241), 8).await;
    volume.close().await.unwrap();
    let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
    let young = take(&volume, "young").await.unwrap();
    drop(volume);
    collect(&history, *checkpoints(&history).await.last().unwrap()).await;
    remove_manifests(&history);
    let found = history.rebuild().await.unwrap();
    let names: Vec<_> = found.snapshots.iter().map(|snapshot| &snapshot.name[..]).collect();
    assert_eq!(names, ["old"]);
    let (volume, _) = history.open(&Disks::new(), WHATEVER, &on(&found)).await.unwrap();
    assert!(content(&volume).await == *history.images.last().unwrap());
    assert_eq!(volume.core().state().snapshots.get("old").unwrap(), &old);
    let again = take(&volume, "young").await.unwrap();
    assert!(again.id >= young.id && again.id > old.id && again.epoch > old.epoch);
    volume.core().change(Change::Delete("old".to_owned())).await.unwrap();
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_fenced_writer_had_not_published_is_not_taken_after_a_collection() {
    for cuts_after in [0, 6] {
        let mut history = with_a_fenced_writer(250, cuts_after).await;
        collect(&history, *checkpoints(&history).await.last().unwrap()).await;
        remove_manifests(&history);
        let found = history.rebuild().await.unwrap();
        assert_eq!(found.left_out.len(), 1, "{:?}", found.left_out);
        assert_eq!(history.image_after(&on(&found)).await, 4 + cuts_after);
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_checkpoint_a_collected_volume_is_refused_with_the_reason() {
    let history = of_churn(260, 12).await;
    remove_manifests(&history);
    let found = history.rebuild().await.unwrap();
    let first = history.names("objects/")[0].clone();
    // All pages, and a cut that everything was built on.
    let pages = found.base.published.manifest.roots.clone();
    assert!(pages.blocks.is_some());
    history.remove(&first);
    for name in history.names("objects/") {
        let bytes = history.memory().snapshot().get(&name).unwrap().len();
        if bytes < 6000 {
            history.remove(&name);
        }
    }
    let refused = history.rebuild().await.unwrap_err();
    // The exit code of damage, which is the same for all of that kind: `recover_scan_says_what_is_missing` of e2e sees it.
    assert_eq!(refused.kind(), Kind::Corrupt);
    let why =
        "no object belongs to a whole cut of the last writer's line, together with all that it was built on";
    assert_eq!(refused.to_string(), format!("no usable manifest: {why}"));
}
