//! What the collector would find, told from the bucket alone; changes nothing, and works while the volume is open elsewhere.

use std::time::Duration;

use super::{
    bucket::Bucket,
    error::VolumeError,
    settings::Settings,
    snapshots::SnapshotTable,
    walk::{Direct, Walk},
};
use crate::{
    format::{index::MapKind, page::Page},
    gc::judge::{Judge, Tally},
};

/// Pages under way at once.
const PAGE_LOADS_MAX: usize = 16;

/// Garbage, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Objects that are dead and that no snapshot needs.
    pub objects: u64,
    /// Their lengths, bytes.
    pub bytes: u64,
    /// Readers on other hosts may need them for so much longer, at most; `None` where nobody is waited for.
    pub grace: Option<Duration>,
    /// Objects of which three fifths or less live.
    pub sparse_objects: u64,
    /// What lives in them, and would be moved: plaintext, bytes.
    pub sparse_live_bytes: u64,
}

/// Counts garbage as of the newest epoch, at `now_ms`, as who opens the volume with these settings finds it: older manifests are
/// let go by then, and the grace time counts from the newest one. What was overwritten since the last checkpoint does not show
/// yet.
///
/// # Errors
/// Damage to the object table, and what the store refuses.
pub async fn survey(bucket: &Bucket, settings: &Settings, now_ms: u64) -> Result<Garbage, VolumeError> {
    let newest = bucket.newest_manifest().await?.manifest;
    let snapshots = SnapshotTable::load(bucket, &newest).await?;
    let pinned = |born, died| snapshots.needs(born, died);
    let judge = Judge {
        horizon: newest.roots.epoch,
        pinned: &pinned,
        is_deleted: &|_| false,
        is_emptied: &|_| false,
        tiny_bytes: 0,
        thorough: false,
    };
    let direct = Direct::new(bucket.clone());
    let mut walk =
        Walk::new(&direct, MapKind::Objects, newest.roots.objects.as_ref(), PAGE_LOADS_MAX, |_, _| true);
    let (mut garbage, mut sum) = (Garbage::default(), Tally::default());
    while let Some((_, page)) = walk.next().await {
        let Page::Objects(entries) = &*page? else { continue };
        let verdict = judge.judge(entries);
        sum.bytes += verdict.tally.bytes;
        sum.waste_bytes += verdict.tally.waste_bytes;
        garbage.objects += verdict.garbage.len() as u64;
        garbage.bytes += verdict.garbage.iter().map(|entry| entry.bytes).sum::<u64>();
        garbage.sparse_objects += verdict.sparse.len() as u64;
        garbage.sparse_live_bytes += verdict.sparse.iter().map(|entry| entry.live_bytes).sum::<u64>();
    }
    // What is dead is waste until it is deleted.
    sum.bytes += garbage.bytes;
    sum.waste_bytes += garbage.bytes;
    let listed_bytes = newest.objects.iter().map(|listed| listed.bytes).sum();
    let age = Duration::from_millis(now_ms.saturating_sub(newest.time_ms));
    let grace = settings.gc_grace.saturating_sub(age);
    let is_waited_for =
        garbage.objects > 0 && !grace.is_zero() && !sum.is_burden(listed_bytes, settings.object_bytes);
    garbage.grace = is_waited_for.then_some(grace);
    Ok(garbage)
}
