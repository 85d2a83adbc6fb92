//! Objects that are put back under their own names: byte for byte what was uploaded, or not at all.

use std::{collections::BTreeSet, sync::Arc};

use s3bd::{
    format::{
        names,
        object::{FOOTER_BYTES, Footer, HEADER_BYTES},
    },
    fsck::{Finding, Level, Remedy, repair::Step},
    nbd::Device,
    store::memory::Memory,
    volume::snapshots::Change,
};
use wal::disk::sim::Prng;

use crate::{
    anatomy::Anatomy,
    damage::{Damage, Which, all},
    hits::ALL,
    host::{Disks, make, reopen},
    repair::repair,
    volumes::{SIZE, check_at, faults, kind, noise, other_volume, rich_and_its_host},
};

/// A volume with a snapshot, and the names of objects that only the snapshot needs.
async fn outlived() -> (Memory, Vec<String>) {
    let store = Memory::new();
    make(&store, SIZE).await;
    let (volume, _) = reopen(&store, &Disks::new(), 21).await.unwrap();
    volume.write(0, noise(&mut Prng::new(1), 9000), false).await.unwrap();
    volume.sync().await.unwrap();
    volume.core().change(Change::Take("kept".to_owned())).await.unwrap();
    let contents = store.snapshot();
    let objects =
        contents.iter().map(|(key, _)| key.to_owned()).filter(|key| key.starts_with(names::OBJECTS));
    let objects = objects.collect();
    volume.write(0, noise(&mut Prng::new(2), 10_240), false).await.unwrap();
    // With a checkpoint, which finds the first object dead.
    volume.close().await.unwrap();
    let (volume, _) = reopen(&store, &Disks::new(), 23).await.unwrap();
    volume.close().await.unwrap();
    (store, objects)
}

/// Flips a bit in each of these places of an object.
fn flipped(store: &Memory, name: &str, places: &[usize]) -> Memory {
    let mut contents = store.snapshot();
    let mut bytes = contents.get(name).unwrap().to_vec();
    places.iter().for_each(|at| bytes[*at] ^= 8);
    contents.set(name, bytes.into());
    let store = Memory::new();
    store.restore(contents);
    store
}

/// Places in an object: in its header, a frame, the mirror's index and footer, the last index and footer.
fn places(bytes: &[u8]) -> [usize; 6] {
    let length = bytes.len();
    let end_bytes = Footer::decode(bytes, length as u64).unwrap().end_bytes() as usize;
    let (mirror, last) = (length - 2 * end_bytes, length - end_bytes);
    [20, HEADER_BYTES + 9, mirror + 3, last - FOOTER_BYTES + 13, last + 3, length - 4]
}

#[tokio::test(start_paused = true)]
async fn what_only_a_snapshot_needs_is_put_back_as_it_was_and_then_nothing_is_wrong() {
    let (store, names) = outlived().await;
    let name = &names[0];
    let original = store.snapshot().get(name).unwrap().clone();
    let [header, _, mirror, mirror_footer, last, footer] = places(&original);
    let damages: [&[usize]; 7] = [
        &[mirror],
        &[mirror_footer],
        &[last],
        &[footer],
        &[header],
        &[header, last, footer],
        &[header, mirror, mirror_footer],
    ];
    for damage in damages {
        let store = flipped(&store, name, damage);
        assert!(!check_at(Arc::new(store.clone()), Level::Default).await.is_sound(), "{damage:?}");
        let (plan, applied) = repair(Arc::new(store.clone()), &Disks::new(), 40).await.unwrap();
        assert!(matches!(plan.steps[..], [Step::PutBack { .. }]), "{damage:?}: {plan:#?}");
        assert!(plan.left.is_empty(), "{damage:?}: {plan:#?}");
        assert!(applied.failed.is_empty() && applied.objects_put_back == 1, "{damage:?}: {applied:?}");
        assert!(store.snapshot().get(name) == Some(&original), "{damage:?}: it has other bytes");
        let report = check_at(Arc::new(store.clone()), ALL).await;
        assert!(report.is_sound() && faults(&report).is_empty(), "{damage:?}: {report:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_proven_whole_is_not_put_and_its_snapshots_are_named() {
    let (store, names) = outlived().await;
    let name = &names[0];
    let [header, frame, mirror, _, last, footer] = places(store.snapshot().get(name).unwrap());
    for damage in [&[frame, last][..], &[frame, header], &[mirror, footer], &[mirror, last]] {
        let store = flipped(&store, name, damage);
        let before = store.snapshot();
        let (plan, _) = repair(Arc::new(store.clone()), &Disks::new(), 40).await.unwrap();
        assert!(plan.steps.is_empty(), "{damage:?}: {plan:#?}");
        assert!(store.snapshot() == before, "{damage:?}: it was written to");
        let report = check_at(Arc::new(store.clone()), Level::Default).await;
        let found: BTreeSet<_> = faults(&report).into_iter().map(kind).collect();
        let ends = damage.contains(&mirror);
        assert_eq!(found.contains("snapshot_hit"), ends, "{damage:?}: {report:#?}");
        if ends {
            let hit = report.findings.iter().find(|finding| matches!(finding, Finding::SnapshotHit { .. }));
            assert_eq!(hit.map(Finding::remedy), Some(Remedy::Snapshots));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_put_back_is_what_was_uploaded_whatever_needs_it() {
    let (store, disks) = rich_and_its_host().await;
    let anatomy = Anatomy::of(&store).await;
    let stranger = other_volume().await.snapshot();
    let mut put_back = 0;
    for damage in all() {
        let (Damage::ObjectHeader(which, _)
        | Damage::Index(which, _)
        | Damage::Footer(which, _)
        | Damage::Mirror(which, _)) = damage
        else {
            continue;
        };
        if which == Which::Dead {
            continue;
        }
        let store = Memory::new();
        store.restore(damage.apply(&anatomy, &stranger));
        let (plan, applied) = repair(Arc::new(store.clone()), &disks.snapshot(), 40).await.unwrap();
        assert!(matches!(plan.steps[..], [Step::PutBack { .. }]), "{damage:?}: {plan:#?}");
        assert_eq!(applied.objects_put_back, 1, "{damage:?}: {applied:?}");
        let name = damage.name(&anatomy);
        let contents = store.snapshot();
        assert!(contents.get(&name) == anatomy.contents.get(&name), "{damage:?}: it has other bytes");
        put_back += 1;
    }
    assert!(put_back > 20, "{put_back}");
}
