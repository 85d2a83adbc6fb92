//! What each snapshot keeps: the bytes of objects that only it needs, and of those that others need as well.
//!
//! An object is deleted as a whole, so it is counted as a whole: what only one snapshot holds is what its deletion frees.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    bucket::Bucket,
    error::VolumeError,
    open::load_delta,
    snapshots::SnapshotTable,
    walk::{Direct, Walk},
};
use crate::format::{
    ids::Epoch,
    index::MapKind,
    manifest::{Manifest, Snapshot},
    page::{ObjectInfo, Page},
};

/// Pages of the object table read at once.
const PAGE_LOADS_MAX: usize = 16;

/// A snapshot, as `s3bd snapshot list` tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotUsage {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// The epoch that it pins.
    pub epoch: Epoch,
    /// When it was taken, milliseconds since 1970.
    pub time_ms: u64,
    /// Size of the volume then, bytes.
    pub size_bytes: u64,
    /// Stored bytes of objects that nothing else needs: its deletion frees them.
    pub own_bytes: u64,
    /// Stored bytes of objects that the volume or other snapshots need, too.
    pub shared_bytes: u64,
    /// Names of the clones that depend on it.
    pub clones: Vec<String>,
}

/// Which of the snapshots need an object: a range of them by epoch, since both their epochs and those of their roots
/// ascend.
struct Counter<'a> {
    snapshots: Vec<&'a Snapshot>,
    own: Vec<u64>,
    /// What is added from this one on.
    shared: Vec<i128>,
}

impl<'a> Counter<'a> {
    fn new(table: &'a SnapshotTable) -> Self {
        let mut snapshots: Vec<&Snapshot> = table.iter().collect();
        snapshots.sort_by_key(|snapshot| (snapshot.epoch, snapshot.id));
        let (own, shared) = (vec![0; snapshots.len()], vec![0; snapshots.len() + 1]);
        Self { snapshots, own, shared }
    }

    fn add(&mut self, info: &ObjectInfo) {
        let first = self.snapshots.partition_point(|snapshot| snapshot.epoch < info.born);
        let needs = |snapshot: &&Snapshot| info.died.is_none_or(|died| snapshot.roots_epoch < died);
        let end = self.snapshots.partition_point(needs);
        match end.saturating_sub(first) {
            0 => {}
            1 if info.died.is_some() => self.own[first] += info.bytes,
            _ => {
                self.shared[first] += i128::from(info.bytes);
                self.shared[end] -= i128::from(info.bytes);
            }
        }
    }

    fn finish(self) -> Vec<SnapshotUsage> {
        let mut shared_bytes = 0;
        let mut usage = BTreeMap::new();
        for ((snapshot, own_bytes), step) in self.snapshots.iter().zip(self.own).zip(self.shared) {
            shared_bytes += step;
            let Snapshot { id, epoch, time_ms, size_bytes, .. } = **snapshot;
            let told = SnapshotUsage {
                id,
                name: snapshot.name.clone(),
                epoch,
                time_ms,
                size_bytes,
                own_bytes,
                shared_bytes: u64::try_from(shared_bytes).unwrap_or(u64::MAX),
                clones: snapshot.clones.iter().map(|clone| clone.name.clone()).collect(),
            };
            usage.insert(id, told);
        }
        usage.into_values().collect()
    }
}

/// The snapshots as of a manifest, oldest first, with what each keeps. Reads the whole object table, a few pages at a time.
///
/// # Errors
/// Damage to the table, and what the store refuses.
pub async fn snapshot_usage(bucket: &Bucket, manifest: &Manifest) -> Result<Vec<SnapshotUsage>, VolumeError> {
    let table = SnapshotTable::load(bucket, manifest).await?;
    let mut counter = Counter::new(&table);
    if table.is_empty() {
        return Ok(Vec::new());
    }
    load_delta(bucket, manifest).await?.objects.values().for_each(|info| counter.add(info));
    let direct = Direct::new(bucket.clone());
    let root = manifest.roots.objects.as_ref();
    let mut walk = Walk::new(&direct, MapKind::Objects, root, PAGE_LOADS_MAX, |_, _| true);
    while let Some((_, page)) = walk.next().await {
        if let Page::Objects(entries) = &*page? {
            entries.iter().for_each(|(_, info)| counter.add(info));
        }
    }
    Ok(counter.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{ids::Generation, manifest::SnapshotChange};

    fn snapshot(id: u64, epoch: u64, roots_epoch: u64) -> SnapshotChange {
        SnapshotChange::Taken(Snapshot {
            id,
            name: format!("s{id}"),
            generation: Generation(1),
            epoch: Epoch(epoch),
            roots_epoch: Epoch(roots_epoch),
            time_ms: 0,
            size_bytes: 0,
            clones: Vec::new(),
        })
    }

    #[test]
    fn an_object_is_own_to_the_only_one_that_needs_it_and_shared_otherwise() {
        let mut table = SnapshotTable::default();
        let all = [snapshot(1, 10, 8), snapshot(2, 20, 18), snapshot(3, 30, 28)];
        all.iter().for_each(|change| table.apply(change));
        let mut counter = Counter::new(&table);
        let info = |bytes, born, died: Option<u64>| ObjectInfo {
            generation: Generation(1),
            bytes,
            plain_bytes: 0,
            live_bytes: 0,
            born: Epoch(born),
            died: died.map(Epoch),
        };
        counter.add(&info(1, 1, None)); // all and the volume
        counter.add(&info(10, 15, Some(25))); // 2 alone
        counter.add(&info(100, 5, Some(9))); // 1 alone: its roots are of 8
        counter.add(&info(1000, 5, Some(25))); // 1 and 2
        counter.add(&info(10_000, 31, None)); // none
        counter.add(&info(100_000, 11, Some(18))); // none: gone before the roots of 2
        counter.add(&info(1_000_000, 25, None)); // 3 and the volume
        let told: Vec<_> = counter.finish().iter().map(|told| (told.own_bytes, told.shared_bytes)).collect();
        assert_eq!(told, [(100, 1001), (10, 1001), (0, 1_000_001)]);
    }
}
