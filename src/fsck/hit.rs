//! Which snapshots need what is damaged.
//!
//! What is kept for a snapshot is known from epochs alone; no map of a snapshot is read. It may be that a snapshot which was
//! taken right after an object's last block was overwritten has nothing in it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Check, Finding, finding::object_name};
use crate::{
    format::{
        ids::{Epoch, Generation, Sequence},
        index::MapKind,
        manifest::{Manifest, Snapshot},
        names,
        page::Page,
    },
    gc::work::{keys_of, leaf_of},
    map::tree,
    volume::error::VolumeError,
};

/// From when to when an object was named by the maps.
type Life = (Epoch, Option<Epoch>);

impl Check<'_> {
    /// Names the snapshots that need objects of this volume in which something is missing or damaged.
    pub(super) async fn name_snapshots(
        &mut self,
        manifest: &Manifest,
        snapshots: &[Snapshot],
    ) -> Result<(), VolumeError> {
        let frames = self.report.findings.iter().filter_map(|finding| match finding {
            Finding::Frame { at, .. } => names::parse_object(&at.object),
            // With the other one whole, both are put back.
            Finding::ObjectIndex { name, mirrored: false, .. } => names::parse_object(name),
            _ => None,
        });
        let mut damaged = self.lost.damaged(self.bucket().header.volume);
        damaged.extend(frames);
        if damaged.is_empty() || snapshots.is_empty() {
            return Ok(());
        }
        let lives = self.lives(manifest, &damaged).await?;
        for snapshot in snapshots {
            let needs = |(born, died): &Life| {
                *born <= snapshot.epoch && died.is_none_or(|died| snapshot.roots_epoch < died)
            };
            let mut needed = lives.iter().filter(|(_, life)| needs(life)).map(|(name, _)| *name);
            let Some(first) = needed.next() else { continue };
            let (objects, first) = (1 + needed.count() as u64, object_name(first));
            self.add(Finding::SnapshotHit { snapshot: snapshot.name.clone(), objects, first });
        }
        Ok(())
    }

    /// What the object table and the newest manifest's list say of these objects.
    async fn lives(
        &self,
        manifest: &Manifest,
        names: &BTreeSet<(Generation, Sequence)>,
    ) -> Result<BTreeMap<(Generation, Sequence), Life>, VolumeError> {
        let mut lives = BTreeMap::new();
        let leaves: BTreeSet<u64> = names.iter().map(|(_, sequence)| leaf_of(*sequence)).collect();
        for leaf in leaves {
            let ((first, last), root) = (keys_of(leaf), manifest.roots.objects.as_ref());
            let pages = match tree::leaves(&self.direct, MapKind::Objects, root, first, last).await {
                Ok(pages) => pages,
                // That has been said.
                Err(error) if error.is_damage() => continue,
                Err(error) => return Err(error),
            };
            for page in pages {
                let Page::Objects(entries) = &*page else { continue };
                let of_page = entries
                    .iter()
                    .map(|(sequence, info)| ((info.generation, *sequence), (info.born, info.died)));
                lives.extend(of_page.filter(|(name, _)| names.contains(name)));
            }
        }
        let listed = manifest
            .objects
            .iter()
            .map(|listed| ((listed.generation, listed.sequence), (listed.epoch, None)));
        lives.extend(listed.filter(|(name, _)| names.contains(name)));
        Ok(lives)
    }
}
