//! Maps of an earlier checkpoint: with the objects since, they say what the newest maps say.
//!
//! A checkpoint leaves the pages before it as they are, and each manifest lists what it brought. So while an earlier manifest is there,
//! a page that was damaged since is not needed: its checkpoint is made once more.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    bucket::{Bucket, Published},
    core::Core,
    error::{Kind, VolumeError},
    open::inherit,
    walk::{Direct, Walk},
};
use crate::{
    format::{
        ids::{Epoch, Generation, Sequence},
        index::MapKind,
        manifest::{Inherited, ListedObject, ManifestLink, Roots},
    },
    map::delta::Delta,
};

/// Manifests looked at, from the newest back: more than a writer keeps.
const CHAIN_MAX: usize = 64;
/// Pages under way at once.
const LOADS_MAX: usize = 32;

type ObjectName = (Generation, Sequence);

/// The maps of an earlier checkpoint, and all that brings them up to the newest epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlierMaps {
    /// The newest manifest that has them.
    pub manifest: ManifestLink,
    /// Their roots.
    pub roots: Roots,
    /// Of a clone, what its origin's objects hold on top of the roots.
    inherited: Vec<Inherited>,
    /// The objects since, by epoch, without the pages of later checkpoints.
    pub objects: Vec<ListedObject>,
    /// Blocks with data in those maps.
    mapped_blocks: u64,
    /// Objects of which those maps and the objects since know, and their bytes.
    known: (u64, u64),
    /// What they stand in for.
    instead_of: (Roots, Vec<ListedObject>),
}

/// What the totals of the next manifest have to be told.
#[derive(Clone, Debug)]
pub(super) struct Rebased {
    pub(super) mapped_blocks: u64,
    pub(super) known: (u64, u64),
    pub(super) inherited: Vec<Inherited>,
}

/// The latest maps before those of `newest` that are whole; `None` where no manifest in the bucket has any. `pages` are
/// objects known to hold pages of the newest maps alone, which need not be there.
///
/// # Errors
/// What the store refuses.
pub async fn find(
    direct: &Direct,
    newest: &Published,
    pages: &BTreeSet<ObjectName>,
) -> Result<Option<EarlierMaps>, VolumeError> {
    let bucket = &direct.bucket;
    let mut listed = BTreeMap::new();
    listed.extend(newest.manifest.objects.iter().map(by_epoch));
    let mut tried = newest.manifest.roots.epoch;
    let mut parent = newest.manifest.parent;
    let mut data_cut = newest.manifest.data_cut;
    for _ in 0..CHAIN_MAX {
        let Some(link) = parent else { break };
        let older = match bucket.load_manifest(link.generation, link.epoch).await {
            Ok(Some(older)) if older.link == link => older.manifest,
            Ok(_) => break,
            Err(error) if error.kind() == Kind::Corrupt => break,
            Err(error) => return Err(error),
        };
        if older.data_cut > data_cut {
            // The volume went back behind cuts that this one lists.
            break;
        }
        data_cut = older.data_cut;
        listed.extend(older.objects.iter().map(by_epoch));
        // Then the newest has all changes of the table since, too.
        let same_snapshots = older.roots.snapshots == newest.manifest.roots.snapshots;
        if older.roots.epoch < tried && same_snapshots {
            tried = older.roots.epoch;
            if is_whole(direct, &older.roots).await?
                && let Some(objects) = select(bucket, &older.roots, &listed, pages).await?
            {
                let mapped_blocks = older.totals.mapped_blocks;
                // What its table has is counted there, though some of it may be deleted since.
                let later = objects.iter().filter(|listed| listed.epoch > older.epoch);
                let totals = older.totals;
                let known = later.fold((totals.objects, totals.object_bytes), |(objects, bytes), listed| {
                    (objects + 1, bytes + listed.bytes)
                });
                let instead_of = (newest.manifest.roots.clone(), newest.manifest.objects.clone());
                let roots = older.roots;
                return Ok(Some(EarlierMaps {
                    manifest: link,
                    roots,
                    inherited: older.inherited,
                    objects,
                    mapped_blocks,
                    known,
                    instead_of,
                }));
            }
        }
        parent = older.parent;
    }
    Ok(None)
}

fn by_epoch(object: &ListedObject) -> ((Epoch, Sequence), ListedObject) {
    ((object.epoch, object.sequence), *object)
}

async fn is_whole(direct: &Direct, roots: &Roots) -> Result<bool, VolumeError> {
    for (map, root) in [(MapKind::Blocks, roots.blocks), (MapKind::Objects, roots.objects)] {
        let mut walk = Walk::new(direct, map, root.as_ref(), LOADS_MAX, |_, _| true);
        while let Some((_, page)) = walk.next().await {
            match page {
                Ok(_) => {}
                Err(error) if error.is_damage() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(true)
}

/// Those of `since` that `roots` do not hold, without those that hold pages of later maps; `None` where one cannot be read.
async fn select(
    bucket: &Bucket,
    roots: &Roots,
    since: &BTreeMap<(Epoch, Sequence), ListedObject>,
    pages: &BTreeSet<ObjectName>,
) -> Result<Option<Vec<ListedObject>>, VolumeError> {
    let mut kept = Vec::new();
    for listed in since.values().filter(|listed| listed.epoch > roots.epoch) {
        let is_later_pages = match bucket.load_index(*listed).await {
            _ if pages.contains(&(listed.generation, listed.sequence)) => true,
            Ok(new) => new.index.parts == 0 && new.index.epoch > roots.epoch,
            Err(error) if error.kind() == Kind::Corrupt => return Ok(None),
            Err(error) => return Err(error),
        };
        if !is_later_pages {
            kept.push(*listed);
        }
    }
    Ok(Some(kept))
}

impl EarlierMaps {
    /// What the objects change in those maps.
    ///
    /// # Errors
    /// Damage to an index, and what the store refuses.
    pub async fn delta(&self, bucket: &Bucket) -> Result<Delta, VolumeError> {
        let mut delta = Delta::new(bucket.block_bytes(), self.roots.epoch);
        inherit(bucket, &self.inherited, &mut delta).await?;
        for listed in &self.objects {
            delta.apply(&bucket.load_index(*listed).await?);
        }
        Ok(delta)
    }
}

impl Core {
    /// Goes on with `maps`, which say the same as the newest; the next checkpoint is made from them, and closing makes it.
    ///
    /// # Errors
    /// `Invalid` where something was published since the volume was opened: nothing was changed.
    pub async fn rebase(&self, maps: &EarlierMaps) -> Result<(), VolumeError> {
        let mut delta = maps.delta(&self.bucket).await?;
        let mut state = self.state_mut();
        let is_as_opened = state.checkpointing.is_none()
            && state.roots == maps.instead_of.0
            && state.delta.listed == maps.instead_of.1;
        if !is_as_opened {
            return Err(VolumeError::Invalid(
                "the volume was published before its maps could be mended: run it again".to_owned(),
            ));
        }
        delta.snapshots = std::mem::take(&mut state.delta.snapshots);
        delta.epoch = state.delta.epoch;
        state.delta = delta;
        state.roots = maps.roots.clone();
        let EarlierMaps { mapped_blocks, known, .. } = *maps;
        *self.rebased() = Some(Rebased { mapped_blocks, known, inherited: maps.inherited.clone() });
        Ok(())
    }
}
