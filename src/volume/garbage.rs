//! What the collector would find, told from the bucket alone; changes nothing, and works while the volume is open elsewhere.

use super::{
    bucket::Bucket,
    collect::oldest_roots,
    error::VolumeError,
    snapshots::SnapshotTable,
    walk::{Direct, Walk},
};
use crate::{
    format::{index::MapKind, page::Page},
    gc::judge::Judge,
};

/// Pages under way at once.
const PAGE_LOADS_MAX: usize = 16;

/// Garbage, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Objects that nobody needs, deleted already or not.
    pub objects: u64,
    /// Their lengths, bytes.
    pub bytes: u64,
    /// Dead objects that manifests hold which are kept.
    pub waiting_objects: u64,
    /// Their lengths, bytes.
    pub waiting_bytes: u64,
    /// Objects of which three fifths or less live.
    pub sparse_objects: u64,
    /// What lives in them, and would be moved: plaintext, bytes.
    pub sparse_live_bytes: u64,
}

/// Counts garbage as of the newest epoch. What was overwritten since the last checkpoint does not show yet.
///
/// # Errors
/// Damage to the object table, and what the store refuses.
pub async fn survey(bucket: &Bucket) -> Result<Garbage, VolumeError> {
    let newest = bucket.newest_manifest().await?.manifest;
    let snapshots = SnapshotTable::load(bucket, &newest).await?;
    let horizon = oldest_roots(bucket, newest.oldest_kept).await?.min(newest.roots.epoch);
    let pinned = |born, died| snapshots.needs(born, died);
    let judge = Judge {
        horizon,
        pinned: &pinned,
        is_deleted: &|_| false,
        is_emptied: &|_| false,
        tiny_bytes: 0,
        thorough: false,
    };
    let direct = Direct::new(bucket.clone());
    let mut walk =
        Walk::new(&direct, MapKind::Objects, newest.roots.objects.as_ref(), PAGE_LOADS_MAX, |_, _| true);
    let mut garbage = Garbage::default();
    while let Some((_, page)) = walk.next().await {
        let Page::Objects(entries) = &*page? else { continue };
        let verdict = judge.judge(entries);
        garbage.objects += verdict.garbage.len() as u64;
        garbage.bytes += verdict.garbage.iter().map(|entry| entry.bytes).sum::<u64>();
        garbage.waiting_objects += verdict.tally.held;
        garbage.waiting_bytes += verdict.tally.held_bytes;
        garbage.sparse_objects += verdict.sparse.len() as u64;
        garbage.sparse_live_bytes += verdict.sparse.iter().map(|entry| entry.live_bytes).sum::<u64>();
    }
    Ok(garbage)
}
