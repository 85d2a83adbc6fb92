//! Things that are whole, each by itself, and contradict each other: as a bug would leave them.

use std::{collections::BTreeSet, sync::Arc};

use s3bd::{
    format::{
        ids::{Epoch, Generation, LogId, LogPosition, ObjectRef, Sequence},
        index::{FrameKind, MapKind},
        manifest::{Manifest, Root, Snapshot, SnapshotChange},
        names,
        page::{ObjectInfo, Page},
    },
    fsck::{Finding, Level, Report, Severity},
    map::tree::PageAt,
    seal::frame::Compression,
    store::{PutMode, Store, memory::Memory},
    volume::{
        object::{CutFacts, ObjectBuilder},
        walk::Direct,
    },
};

use crate::volumes::{check_at, faults, kind, rich, unlock};

type Entries = Vec<(Sequence, ObjectInfo)>;

/// Publishes the newest manifest once more, changed, with an object table of one changed page.
async fn forge(change: impl FnOnce(&mut Manifest, &mut Entries)) -> (Memory, Report) {
    let store = rich().await;
    let bucket = unlock(&store).await;
    let newest = bucket.newest_manifest().await.unwrap();
    let mut manifest = newest.manifest;
    let root = manifest.roots.objects.unwrap();
    assert_eq!(root.level, 0);
    let at = PageAt { frame: root.page(), map: MapKind::Objects, level: 0, first_key: 0 };
    let page = Direct::new(bucket.clone()).page(at).await.unwrap();
    let Page::Objects(mut entries) = Page::clone(&page) else { panic!("a leaf") };
    manifest.epoch = manifest.epoch.next();
    manifest.parent = Some(newest.link);
    let sequence = manifest.next_sequence;
    manifest.next_sequence = sequence.next();
    let object =
        ObjectRef { owner: manifest.volume, generation: manifest.generation, sequence, salt: [9; 16] };
    let facts = CutFacts {
        epoch: manifest.roots.epoch,
        part: 0,
        parts: 0,
        parent: None,
        log: LogPosition { log: LogId([0; 16]), lsn: 0 },
        time_ms: 0,
        size_bytes: manifest.size_bytes,
    };
    let before = entries.clone();
    change(&mut manifest, &mut entries);
    if before != entries {
        let mut builder = ObjectBuilder::new(&bucket.keys, object, Compression::DEFAULT, facts);
        let plain = Page::Objects(entries).encode().unwrap();
        let kind = FrameKind::Page { map: MapKind::Objects, level: 0, first_key: 0 };
        manifest.roots.objects = Some(Root::new(0, &builder.add(kind, &plain)));
        let mut built = builder.finish().unwrap();
        built.new.listed.epoch = manifest.epoch;
        manifest.objects.push(built.new.listed);
        manifest.totals.objects += 1;
        manifest.totals.object_bytes += built.new.listed.bytes;
        let name = names::object(object.generation, sequence);
        store.put(&name, &[built.bytes], PutMode::Create).await.unwrap();
    }
    bucket.put_manifest(&manifest, [1; 16]).await.unwrap();
    let report = check_at(Arc::new(store.clone()), Level::Default).await;
    (store, report)
}

fn kinds(report: &Report) -> BTreeSet<String> {
    faults(report).into_iter().map(kind).collect()
}

/// What a check at the default level says of a forgery, notes left out.
async fn found(change: impl FnOnce(&mut Manifest, &mut Entries)) -> Vec<Finding> {
    let (_, report) = forge(change).await;
    faults(&report).into_iter().cloned().collect()
}

/// An entry whose object lives, and of which more could live.
fn partly_live(entries: &mut Entries) -> &mut ObjectInfo {
    let partly = |info: &ObjectInfo| info.live_bytes > 512 && info.live_bytes + 512 <= info.plain_bytes;
    &mut entries.iter_mut().find(|(_, info)| partly(info)).unwrap().1
}

#[tokio::test(start_paused = true)]
async fn a_forgery_without_a_change_is_sound() {
    assert_eq!(found(|_, _| {}).await, []);
    // The entry of a dead object may be anything its live bytes do not depend on.
    let dead = |info: &ObjectInfo| info.died.is_some_and(|died| died > info.born);
    let earlier = |info: &mut ObjectInfo| info.died = Some(info.born);
    let found = found(|_, entries| {
        earlier(&mut entries.iter_mut().find(|(_, info)| dead(info)).unwrap().1);
    });
    assert_eq!(found.await, []);
}

#[tokio::test(start_paused = true)]
async fn live_bytes_that_the_maps_do_not_name_or_name_beyond() {
    let found_less = found(|_, entries| partly_live(entries).live_bytes -= 512).await;
    let [Finding::LiveBytes { excess_bytes: 512, .. }] = &found_less[..] else { panic!("{found_less:?}") };
    assert_eq!(found_less[0].severity(), Severity::Error);
    let found_more = found(|_, entries| partly_live(entries).live_bytes += 512).await;
    let [Finding::LiveBytes { excess_bytes: -512, .. }] = &found_more[..] else { panic!("{found_more:?}") };
    assert_eq!(found_more[0].severity(), Severity::Warning);
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_is_not_there() {
    let (_, report) = forge(|_, entries| {
        entries.remove(entries.iter().position(|(_, info)| info.live_bytes > 0).unwrap());
    })
    .await;
    assert_eq!(kinds(&report), BTreeSet::from(["object_unknown".to_owned(), "totals".to_owned()]));
    assert_eq!(report.counts.strays, 1, "{report:#?}");
}

#[tokio::test(start_paused = true)]
async fn entries_that_make_no_sense() {
    let live = |info: &ObjectInfo| info.live_bytes > 0;
    type Change = fn(&mut ObjectInfo, &Manifest);
    let changes: [(Change, &[&str]); 7] = [
        (|info, manifest| info.died = Some(manifest.epoch), &["table_entry"]),
        (|info, manifest| info.born = manifest.epoch, &["index_disagrees", "table_entry"]),
        (|info, _| info.plain_bytes += 512, &["index_disagrees"]),
        (|info, _| info.plain_bytes = info.live_bytes - 1, &["index_disagrees", "table_entry"]),
        (|info, _| info.bytes += 1, &["object_length", "totals"]),
        (|info, _| info.live_bytes = 0, &["live_bytes", "table_entry"]),
        (|info, _| info.generation = Generation(9), &["object_missing", "table_entry"]),
    ];
    for (number, (change, expected)) in changes.into_iter().enumerate() {
        let (_, report) = forge(|manifest, entries| {
            // Not the first one: the entry before it says which tenure its number is of.
            change(&mut entries.iter_mut().skip(1).find(|(_, info)| live(info)).unwrap().1, manifest);
        })
        .await;
        let expected = expected.iter().map(|kind| (*kind).to_owned()).collect();
        assert_eq!(kinds(&report), expected, "change {number}: {report:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn sums_that_are_wrong() {
    let changes: [fn(&mut Manifest); 3] = [
        |manifest| manifest.totals.objects += 1,
        |manifest| manifest.totals.object_bytes -= 1,
        |manifest| manifest.totals.mapped_blocks += 1,
    ];
    for change in changes {
        let found = found(|manifest, _| change(manifest)).await;
        assert!(matches!(&found[..], [Finding::Totals { .. }]), "{found:?}");
        assert_eq!(found[0].severity(), Severity::Warning);
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_that_the_list_lacks() {
    let (_, report) = forge(|manifest, _| {
        manifest.objects.pop();
    })
    .await;
    assert_eq!(kinds(&report), BTreeSet::from(["totals".to_owned()]));
    assert_eq!(report.counts.strays, 1);
}

#[tokio::test(start_paused = true)]
async fn a_line_that_does_not_hold_together() {
    let replaced = found(|manifest, _| manifest.parent.as_mut().unwrap().digest[3] ^= 1).await;
    assert!(matches!(&replaced[..], [Finding::ManifestReplaced { needed: true, .. }]), "{replaced:?}");
    let missing = found(|manifest, _| {
        manifest.epoch = Epoch(manifest.epoch.0 + 1);
        manifest.parent.as_mut().unwrap().epoch = Epoch(manifest.epoch.0 - 1);
    })
    .await;
    assert!(matches!(&missing[..], [Finding::ManifestMissing { needed: true, .. }]), "{missing:?}");
    let descends = found(|manifest, _| manifest.parent.as_mut().unwrap().generation = Generation(7)).await;
    assert!(matches!(&descends[..], [Finding::ManifestDescends { .. }]), "{descends:?}");
    let unclaimed = found(|manifest, _| manifest.nonce ^= 1).await;
    assert!(
        matches!(&unclaimed[..], [Finding::ClaimMissing { generation: Generation(2), over: false }]),
        "{unclaimed:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_whose_manifest_is_gone() {
    let snapshot = |epoch: Epoch, generation| Snapshot {
        id: 1,
        name: "before".to_owned(),
        generation,
        epoch,
        roots_epoch: Epoch(0),
        time_ms: 0,
        size_bytes: 0,
        clones: Vec::new(),
    };
    let kept = found(|manifest, _| {
        let parent = manifest.parent.unwrap();
        manifest.snapshots.push(SnapshotChange::Taken(snapshot(parent.epoch, parent.generation)));
    });
    assert_eq!(kept.await, []);
    let gone = found(|manifest, _| {
        manifest.snapshots.push(SnapshotChange::Taken(snapshot(Epoch(1), Generation(1))));
        manifest.snapshots.push(SnapshotChange::Renamed(1, "after".to_owned()));
    })
    .await;
    let [Finding::SnapshotLost { snapshot: name, .. }] = &gone[..] else { panic!("{gone:?}") };
    assert_eq!(name, "after");
    let deleted = found(|manifest, _| {
        manifest.snapshots.push(SnapshotChange::Taken(snapshot(Epoch(1), Generation(1))));
        manifest.snapshots.push(SnapshotChange::Deleted(1));
    });
    assert_eq!(deleted.await, []);
}

#[tokio::test(start_paused = true)]
async fn roots_that_lead_nowhere() {
    let changes: [fn(&mut Manifest); 3] = [
        |manifest| manifest.roots.blocks.as_mut().unwrap().level -= 1,
        |manifest| manifest.roots.blocks = manifest.roots.objects,
        |manifest| manifest.roots.blocks.as_mut().unwrap().object.sequence = Sequence(u64::MAX),
    ];
    for change in changes {
        let found = found(|manifest, _| change(manifest)).await;
        assert!(found.iter().any(|found| matches!(found, Finding::Page { .. })), "{found:?}");
    }
    let found = found(|manifest, _| manifest.roots.blocks.as_mut().unwrap().level = 200).await;
    assert!(matches!(&found[..], [Finding::ManifestDamaged { newest: true, .. }]), "{found:?}");
}
