//! Objects that nothing names: uploads that never came to be published, by a process that died or was fenced.
//!
//! # Overview
//! A listing alone decides nothing. An object is a stray if it is of an earlier tenure than the newest manifest's, was written a
//! day before that one by the store's own clock, and neither the object table nor a list of any manifest that is kept has
//! its name.

use std::collections::BTreeSet;

use super::{
    bucket::Bucket,
    claims::{self, Tenure},
    core::{Core, Progress},
    error::{Kind, VolumeError},
    walk::{Direct, Walk},
};
use crate::{
    format::{
        ids::{Epoch, Generation, Sequence},
        index::MapKind,
        manifest::{Manifest, Root},
        names,
        page::Page,
    },
    gc::work::{keys_of, leaf_of},
};

/// Younger ones may be uploads of a writer that does not know yet that it was fenced.
const AGE_MIN_MS: u64 = 24 * 3600 * 1000;
/// Names listed at once, and removed by one request.
const NAMES_MAX: usize = 1000;
/// Pages of the object table under way at once.
const PAGE_LOADS_MAX: usize = 16;

/// Strays, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strays {
    /// Their number.
    pub objects: u64,
    /// Their lengths, bytes.
    pub bytes: u64,
}

/// What the manifests that are kept say of objects.
struct Known {
    generation: Generation,
    /// By the clock of the store.
    written_ms: u64,
    listed: BTreeSet<(Generation, Sequence)>,
    /// Object tables; the newest one first.
    tables: Vec<Root>,
}

impl Known {
    async fn load(bucket: &Bucket) -> Result<Self, VolumeError> {
        let lines = bucket.store.list(names::MANIFESTS, None, None).await?;
        let newest = bucket.newest_manifest().await?.manifest;
        let name = names::manifest(newest.generation, newest.epoch);
        // Not in the listing: published since. Then the listing's newest is the younger bound.
        let written_ms = lines.iter().find(|line| line.key == name).or(lines.last());
        let mut known = Self {
            generation: newest.generation,
            written_ms: written_ms.map_or(0, |line| line.modified_ms),
            listed: BTreeSet::new(),
            tables: Vec::new(),
        };
        known.add(&newest);
        let kept: Vec<(Generation, Epoch)> =
            lines.iter().filter_map(|line| names::parse_manifest(&line.key)).collect();
        for (generation, epoch) in kept.into_iter().filter(|name| name.1 >= newest.oldest_kept) {
            match bucket.load_manifest(generation, epoch).await {
                Ok(Some(kept)) => known.add(&kept.manifest),
                Ok(None) => {}
                // Nobody can go on from that one.
                Err(error) if error.kind() == Kind::Corrupt => {}
                Err(error) => return Err(error),
            }
        }
        Ok(known)
    }

    fn add(&mut self, manifest: &Manifest) {
        self.listed.extend(manifest.objects.iter().map(|listed| (listed.generation, listed.sequence)));
        if let Some(root) = manifest.roots.objects
            && !self.tables.contains(&root)
        {
            self.tables.push(root);
        }
    }

    /// Takes out of `names` those that a table has.
    async fn take_out(
        &self,
        direct: &Direct,
        names: &mut BTreeSet<(Generation, Sequence)>,
    ) -> Result<(), VolumeError> {
        for root in &self.tables {
            let leaves: BTreeSet<u64> = names.iter().map(|name| leaf_of(name.1)).collect();
            let wanted = |first: u64, last: u64| {
                let mut within = leaves.range(leaf_of(Sequence(first))..=leaf_of(Sequence(last)));
                within.any(|leaf| keys_of(*leaf).0 <= last)
            };
            let mut walk = Walk::new(direct, MapKind::Objects, Some(root), PAGE_LOADS_MAX, wanted);
            while let Some((_, page)) = walk.next().await {
                if let Page::Objects(entries) = &*page? {
                    for (sequence, info) in entries {
                        names.remove(&(info.generation, *sequence));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Finds strays, and hands them to `found`, some at a time, with the bytes they have.
///
/// # Errors
/// Damage to the object table, and what the store refuses: then nothing can be said of what was not looked at yet.
async fn find<F>(bucket: &Bucket, mut found: impl FnMut(Vec<String>) -> F) -> Result<Strays, VolumeError>
where
    F: Future<Output = Result<(), VolumeError>>,
{
    let known = Known::load(bucket).await?;
    let direct = Direct::new(bucket.clone());
    let (mut strays, mut after) = (Strays::default(), None::<String>);
    loop {
        let lines = bucket.store.list(names::OBJECTS, after.as_deref(), Some(NAMES_MAX)).await?;
        let Some(last) = lines.last() else { return Ok(strays) };
        after = Some(last.key.clone());
        let is_old = |written_ms: u64| written_ms.saturating_add(AGE_MIN_MS) <= known.written_ms;
        let old = lines.iter().filter(|line| is_old(line.modified_ms));
        let mut unknown: BTreeSet<_> = old
            .filter_map(|line| names::parse_object(&line.key))
            .filter(|name| name.0 < known.generation && !known.listed.contains(name))
            .collect();
        known.take_out(&direct, &mut unknown).await?;
        let is_stray = |key: &str| names::parse_object(key).is_some_and(|name| unknown.contains(&name));
        let batch: Vec<_> = lines.iter().filter(|line| is_stray(&line.key)).collect();
        if !batch.is_empty() {
            strays.objects += batch.len() as u64;
            strays.bytes += batch.iter().map(|line| line.bytes).sum::<u64>();
            found(batch.into_iter().map(|line| line.key.clone()).collect()).await?;
        }
    }
}

/// Counts strays; changes nothing.
///
/// # Errors
/// As those of the object table and the store.
pub async fn count(bucket: &Bucket) -> Result<Strays, VolumeError> {
    find(bucket, |_| std::future::ready(Ok(()))).await
}

impl Core {
    /// Deletes strays: right after a check of claims each time.
    ///
    /// # Errors
    /// `ReadOnly`, `Fenced`, and as [`count`].
    pub async fn delete_strays(&self) -> Result<Strays, VolumeError> {
        self.log()?;
        let Progress { generation, nonce, .. } = *self.progress.borrow();
        let tenure = Tenure { generation, nonce };
        find(&self.bucket, |names| async move {
            self.check()?;
            claims::check(&self.bucket, tenure).await?;
            Ok(self.bucket.store.delete(&names).await?)
        })
        .await
    }
}
