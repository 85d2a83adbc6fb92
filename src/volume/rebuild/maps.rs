//! Whether the maps of a checkpoint are whole, and what they know.

use std::collections::{BTreeMap, BTreeSet};

use super::pieces::{Checkpoint, ObjectName, Pieces};
use crate::{
    format::{
        ids::{ObjectRef, Sequence},
        index::{MapKind, Run},
        manifest::{ListedObject, Root},
        names,
        page::{Page, Target},
    },
    map::extents::ExtentMap,
    volume::{
        bucket::Bucket,
        error::VolumeError,
        snapshots::SnapshotTable,
        walk::{Direct, Walk},
    },
};

/// Pages under way at once.
const LOADS_MAX: usize = 32;

/// What whole maps know.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// The objects with the checkpoint's own pages, by number.
    pub(super) pages: Vec<ListedObject>,
    /// Lengths of the objects in its object table, bytes.
    pub(super) table: BTreeMap<ObjectName, u64>,
    /// Its snapshot table.
    pub(super) snapshots: SnapshotTable,
}

impl Known {
    /// The highest number of an object in the table.
    pub(super) fn highest(&self) -> Sequence {
        self.table.keys().map(|name| name.1).max().unwrap_or(Sequence(0))
    }
}

/// Walks the maps of a checkpoint. Of what is not whole, says why.
///
/// # Errors
/// `NoManifest` where they name an object of another volume: nothing but a manifest has its key.
pub(super) async fn look(
    bucket: &Bucket,
    pieces: &Pieces,
    checkpoint: &Checkpoint,
) -> Result<Result<Known, String>, VolumeError> {
    let direct = Direct::new(bucket.clone());
    let mut known = Known::default();
    let mut named: BTreeSet<ObjectName> = BTreeSet::new();
    let roots = &checkpoint.maps.roots;
    let maps = [
        (MapKind::Objects, roots.objects),
        (MapKind::Blocks, roots.blocks),
        (MapKind::Snapshots, roots.snapshots),
    ];
    for (map, root) in maps {
        let mut walk = Walk::new(&direct, map, root.as_ref(), LOADS_MAX, |_, _| true);
        while let Some((at, page)) = walk.next().await {
            named.insert(own(bucket, &at.frame.object)?);
            match page {
                Ok(page) => take(bucket, &page, &mut known, &mut named)?,
                Err(error) if error.is_damage() => return Ok(Err(error.to_string())),
                Err(error) => return Err(error),
            }
        }
    }
    for name in named {
        let there = pieces.lengths.get(&name);
        let is_whole = match (known.table.get(&name), pieces.pages.get(&name)) {
            (Some(bytes), _) => there == Some(bytes),
            (None, Some(page)) if (page.generation, page.epoch) == checkpoint.name() => {
                known.pages.push(*page);
                true
            }
            (None, _) => false,
        };
        if !is_whole {
            let what = if there.is_some() { "is damaged" } else { "is missing from the bucket" };
            return Ok(Err(format!("{}, which it needs, {what}", names::object(name.0, name.1))));
        }
    }
    Ok(Ok(known))
}

/// The name of an object of this volume.
fn own(bucket: &Bucket, object: &ObjectRef) -> Result<ObjectName, VolumeError> {
    if object.owner == bucket.header.volume {
        return Ok((object.generation, object.sequence));
    }
    Err(VolumeError::NoManifest {
        detail: format!(
            "this volume is a clone, and a part of it is in objects of the volume {}, its origin: their key is in manifests \
             alone",
            object.owner
        ),
    })
}

fn take(
    bucket: &Bucket,
    page: &Page,
    known: &mut Known,
    named: &mut BTreeSet<ObjectName>,
) -> Result<(), VolumeError> {
    match page {
        Page::Inner(_) => {}
        Page::Blocks(extents) => {
            for extent in extents {
                if let Target::Frame(frame, _) = &extent.target {
                    named.insert(own(bucket, &frame.object)?);
                }
            }
        }
        Page::Objects(entries) => {
            known.table.extend(entries.iter().map(|(number, info)| ((info.generation, *number), info.bytes)));
        }
        Page::Snapshots(entries) => known.snapshots.extend(entries),
    }
    Ok(())
}

/// How many of the blocks that `changes` are about the map has.
///
/// # Errors
/// Damage to a page, and what the store refuses.
pub(super) async fn mapped_below(
    bucket: &Bucket,
    root: Option<&Root>,
    changes: &ExtentMap,
) -> Result<u64, VolumeError> {
    let direct = Direct::new(bucket.clone());
    let run = |first: u64, last: u64| Run { block: first, count: (last - first).saturating_add(1) };
    let wanted = |first, last| changes.overlapping(run(first, last)).next().is_some();
    let mut walk = Walk::new(&direct, MapKind::Blocks, root, LOADS_MAX, wanted);
    let mut blocks = 0;
    while let Some((_, page)) = walk.next().await {
        if let Page::Blocks(extents) = &*page? {
            let changed = |block, count| changes.overlapping(Run { block, count }).map(|extent| extent.count);
            blocks += extents.iter().flat_map(|extent| changed(extent.block, extent.count)).sum::<u64>();
        }
    }
    Ok(blocks)
}
