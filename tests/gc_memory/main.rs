//! What the collector's decisions hold in memory for ten million objects.

#[path = "../format_decoders/allocations.rs"]
mod allocations;

use std::collections::BTreeMap;

use s3bd::{
    format::{
        ids::{Epoch, Generation, Sequence},
        manifest::{Snapshot, SnapshotChange},
        page::ObjectInfo,
    },
    gc::{
        judge::{Entry, Judge},
        work::{WorkSet, keys_of, leaf_of},
    },
    volume::snapshots::SnapshotTable,
};

const OBJECTS: u64 = 10_000_000;
/// Of 20,000 leaves, with all that is noted of each; 3.6 MB were seen.
const BYTES_MAX: usize = 8 << 20;
/// As the collector deletes them.
const DELETES_MAX: usize = 1000;

/// An entry of every kind, all over the table.
fn entries(leaf: u64) -> Vec<(Sequence, ObjectInfo)> {
    let (first, last) = keys_of(leaf);
    let info = |key: u64| ObjectInfo {
        generation: Generation(1),
        bytes: 1 << 24,
        plain_bytes: 1 << 24,
        live_bytes: if key % 5 < 2 { 0 } else { (key % 7) << 20 },
        born: Epoch(key / 4),
        died: (key % 5 < 2).then_some(Epoch(key / 4 + 1 + key % 1000)),
    };
    (first..=last.min(OBJECTS)).map(|key| (Sequence(key), info(key))).collect()
}

fn snapshots() -> SnapshotTable {
    let mut table = SnapshotTable::default();
    for id in 1..=1000 {
        let epoch = Epoch(id * 2000);
        table.apply(&SnapshotChange::Taken(Snapshot {
            id,
            name: format!("s{id}"),
            generation: Generation(1),
            epoch,
            roots_epoch: Epoch(epoch.0 - 100),
            time_ms: 0,
            size_bytes: 1 << 40,
            clones: Vec::new(),
        }));
    }
    table
}

#[test]
fn ten_million_objects_are_judged_in_some_megabytes() {
    let table = snapshots();
    let (mut garbage_seen, mut sparse_seen, mut held_max) = (0, 0, 0);
    let held_bytes = allocations::peak_bytes(|| {
        let mut work = WorkSet::default();
        let mut garbage: BTreeMap<Sequence, Entry> = BTreeMap::new();
        // Twice: as after opening, and as when a horizon has come.
        for horizon in [OBJECTS / 8, OBJECTS / 4] {
            let leaves: Vec<u64> = (0..=leaf_of(Sequence(OBJECTS))).collect();
            work.touch(leaves);
            work.advance(Epoch(horizon));
            while let Some(leaf) = work.pop() {
                let pinned = |born, died| table.needs(born, died);
                let judge = Judge {
                    horizon: Epoch(horizon),
                    pinned: &pinned,
                    is_deleted: &|_| false,
                    is_emptied: &|_| false,
                    tiny_bytes: 1 << 21,
                    thorough: true,
                };
                let verdict = judge.judge(&entries(leaf));
                sparse_seen += verdict.sparse.len();
                work.visited(leaf, verdict.tally, !verdict.sparse.is_empty());
                held_max = held_max.max(work.sum().held);
                garbage.extend(verdict.garbage.into_iter().map(|entry| (entry.sequence, entry)));
                if garbage.len() >= DELETES_MAX {
                    garbage_seen += garbage.len();
                    garbage.clear();
                }
            }
        }
    });
    assert!(
        garbage_seen > 1_000_000 && sparse_seen > 1_000_000 && held_max > 100_000,
        "{garbage_seen} {sparse_seen} {held_max}"
    );
    assert!(held_bytes <= BYTES_MAX, "{held_bytes} bytes");
}
