//! What a collector deleted while the check ran: missing, and no fault.

use std::collections::BTreeSet;

use super::{Check, Finding, data::Reader};
use crate::{
    format::{
        ids::{Generation, Sequence},
        index::MapKind,
        page::{ObjectInfo, Page},
    },
    volume::{
        error::{Kind, VolumeError},
        snapshots::SnapshotTable,
        walk::Walk,
    },
};

impl Check<'_> {
    /// Of all that is missing, forgets what the manifest that is now the newest does not need.
    pub(super) async fn forget_collected(&mut self, reader: &mut Reader) -> Result<(), VolumeError> {
        // What a clone needs of another volume is never collected.
        let own = self.bucket().header.volume;
        let mut missing = self.lost.missing(own);
        missing.extend(reader.missing(own));
        let dead = std::mem::take(&mut self.dead_missing);
        if (missing.is_empty() && dead.is_empty()) || !self.has_moved_on().await? {
            dead.into_iter().for_each(|name| self.add(Finding::DeadObject { name, found: None }));
            return Ok(());
        }
        self.report.counts.collected += dead.len() as u64;
        let needed = match self.needed(&missing).await {
            Ok(needed) => needed,
            // Then nothing can be excused.
            Err(error) if error.kind() == Kind::Corrupt => return Ok(()),
            Err(error) => return Err(error),
        };
        let collected: BTreeSet<_> = missing.difference(&needed).copied().collect();
        self.lost.forget(&collected);
        reader.forget(&collected);
        if !collected.is_empty() {
            self.add(Finding::MovedOn { objects: collected.len() as u64 });
        }
        Ok(())
    }

    /// Those of `names` that the newest manifest lists, or that have an entry in its object table and are needed by it or by a
    /// snapshot.
    async fn needed(
        &self,
        names: &BTreeSet<(Generation, Sequence)>,
    ) -> Result<BTreeSet<(Generation, Sequence)>, VolumeError> {
        let newest = self.bucket().newest_manifest().await?.manifest;
        let listed = newest.objects.iter().map(|listed| (listed.generation, listed.sequence));
        let mut needed: BTreeSet<_> = listed.filter(|name| names.contains(name)).collect();
        let snapshots = SnapshotTable::load(self.bucket(), &newest).await?;
        let sequences: BTreeSet<u64> = names.iter().map(|name| name.1.0).collect();
        let wanted = |first, last| sequences.range(first..=last).next().is_some();
        let root = newest.roots.objects.as_ref();
        let mut walk = Walk::new(&self.direct, MapKind::Objects, root, self.loads_max(), wanted);
        while let Some((_, page)) = walk.next().await {
            let page = page?;
            let Page::Objects(entries) = &*page else { continue };
            let is_needed = |info: &ObjectInfo| info.died.is_none() || snapshots.needs(info.born, info.died);
            let alive = entries.iter().filter(|(_, info)| is_needed(info));
            let alive = alive.map(|(sequence, info)| (info.generation, *sequence));
            needed.extend(alive.filter(|name| names.contains(name)));
        }
        Ok(needed)
    }
}
