//! What takes the room in a bucket, told from the bucket alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use s3bd::{
    format::{
        ids::{Epoch, Generation, Sequence},
        index::{FrameKind, Index, MapKind},
        manifest::Manifest,
        names,
        page::{ObjectInfo, Page, Target},
    },
    store::memory::Memory,
    volume::{
        bucket::Bucket,
        snapshots::SnapshotTable,
        walk::{Direct, Walk},
    },
};

const BLOCK_BYTES: u64 = 4096;

/// Bytes in a bucket: the first two of plaintext, the others as they are stored.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ledger {
    /// What the newest state has.
    pub head: u64,
    /// What snapshots have, and it has not.
    pub snapshots: u64,
    /// Everything in the bucket.
    pub stored: u64,
    /// Of data objects that live, what is dead in them: where the last checkpoint saw that half or more is,
    pub sparse: u64,
    /// where it did not, or less is,
    pub dense: u64,
    /// and where a snapshot has the object.
    pub pinned_sparse: u64,
    /// Data objects that are dead, though no checkpoint has found that out.
    pub hidden: u64,
    /// Dead objects that snapshots need.
    pub pinned: u64,
    /// Dead objects that nothing but kept manifests need.
    pub kept: u64,
    /// Dead objects that nobody needs but readers elsewhere, or that are about to be deleted.
    pub graced: u64,
    /// Objects of pages that live.
    pub pages: u64,
    /// Objects that nothing names: on their way, or deleted late.
    pub unnamed: u64,
    /// Manifests.
    pub manifests: u64,
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |bytes: u64| bytes as f64 / self.head.max(1) as f64;
        write!(f, "{:.2} = head 1", share(self.stored))?;
        for (name, bytes) in [
            ("snapshots", self.snapshots),
            ("sparse", self.sparse),
            ("dense", self.dense),
            ("pinned-sparse", self.pinned_sparse),
            ("hidden", self.hidden),
            ("pinned", self.pinned),
            ("kept", self.kept),
            ("graced", self.graced),
            ("pages", self.pages),
            ("unnamed", self.unnamed),
            ("manifests", self.manifests),
        ] {
            write!(f, " {name} {:.2}", share(bytes))?;
        }
        Ok(())
    }
}

/// Draws up ledgers of a bucket.
#[derive(Debug)]
pub struct Bookkeeper {
    bucket: Bucket,
    memory: Memory,
    indexes: BTreeMap<Sequence, Index>,
}

impl Bookkeeper {
    pub fn new(bucket: Bucket, memory: Memory) -> Self {
        Self { bucket, memory, indexes: BTreeMap::new() }
    }

    /// As of now.
    pub async fn balance(&mut self) -> Ledger {
        let contents = self.memory.snapshot();
        let mut objects: BTreeMap<Sequence, u64> = BTreeMap::new();
        let mut ledger = Ledger::default();
        for (name, bytes) in contents.iter() {
            let bytes = bytes.len() as u64;
            ledger.stored += bytes;
            if let Some((_, sequence)) = names::parse_object(name) {
                objects.insert(sequence, bytes);
            } else if name.starts_with(names::MANIFESTS) {
                ledger.manifests += bytes;
            }
        }
        self.indexes.retain(|sequence, _| objects.contains_key(sequence));
        let newest = self.bucket.newest_manifest().await.unwrap().manifest;
        let table = SnapshotTable::load(&self.bucket, &newest).await.unwrap();
        let head = self.places(&newest).await;
        let mut live: BTreeMap<Sequence, u64> = BTreeMap::new();
        for sequence in head.values() {
            *live.entry(*sequence).or_default() += BLOCK_BYTES;
        }
        ledger.head = head.len() as u64 * BLOCK_BYTES;
        let mut only_pinned: BTreeSet<(u64, Sequence)> = BTreeSet::new();
        for snapshot in table.iter() {
            let pinned =
                self.bucket.load_manifest(snapshot.generation, snapshot.epoch).await.unwrap().unwrap();
            let places = self.places(&pinned.manifest).await;
            only_pinned.extend(places.into_iter().filter(|(block, at)| head.get(block) != Some(at)));
        }
        for (_, sequence) in &only_pinned {
            *live.entry(*sequence).or_default() += BLOCK_BYTES;
        }
        ledger.snapshots = only_pinned.len() as u64 * BLOCK_BYTES;
        let kept = self.kept_roots(&newest).await;
        let infos = self.infos(&newest).await;
        for (sequence, bytes) in &objects {
            let Some(info) = infos.get(sequence) else {
                ledger.unnamed += bytes;
                continue;
            };
            let pinned = table.needs(info.born, info.died);
            let is_data = self.index(info.generation, *sequence).await.is_none_or(|index| index.parts > 0);
            let live = live.get(sequence).copied().unwrap_or_default();
            let dead = bytes.saturating_sub(live);
            match info.died {
                None if !is_data => ledger.pages += bytes,
                None if live == 0 => ledger.hidden += bytes,
                None if pinned => ledger.pinned_sparse += dead,
                None if info.live_bytes * 2 <= info.plain_bytes => ledger.sparse += dead,
                None => ledger.dense += dead,
                Some(_) if pinned => ledger.pinned += dead,
                Some(died) if died > kept => ledger.kept += dead,
                Some(_) => ledger.graced += dead,
            }
        }
        ledger
    }

    async fn index(&mut self, generation: Generation, sequence: Sequence) -> Option<&Index> {
        if !self.indexes.contains_key(&sequence) {
            let found = self.bucket.explain(generation, sequence).await.ok()?;
            self.indexes.insert(sequence, Index::clone(&found.index));
        }
        self.indexes.get(&sequence)
    }

    /// Where each block lies.
    async fn places(&mut self, manifest: &Manifest) -> BTreeMap<u64, Sequence> {
        let mut places = BTreeMap::new();
        let direct = Direct::new(self.bucket.clone());
        let mut walk = Walk::new(&direct, MapKind::Blocks, manifest.roots.blocks.as_ref(), 4, |_, _| true);
        while let Some((_, page)) = walk.next().await {
            let Page::Blocks(extents) = &*page.unwrap() else { continue };
            for extent in extents {
                if let Target::Frame(frame, _) = &extent.target {
                    let blocks = extent.block..extent.block + extent.count;
                    places.extend(blocks.map(|block| (block, frame.object.sequence)));
                }
            }
        }
        for listed in &manifest.objects {
            let Some(index) = self.index(listed.generation, listed.sequence).await else { continue };
            for frame in &index.frames {
                let FrameKind::Data(runs) = &frame.kind else { continue };
                for run in runs {
                    places.extend((run.block..run.block + run.count).map(|block| (block, listed.sequence)));
                }
            }
        }
        places
    }

    /// What is known of each object: by the table, or by the list.
    async fn infos(&mut self, manifest: &Manifest) -> BTreeMap<Sequence, ObjectInfo> {
        let mut infos = BTreeMap::new();
        let direct = Direct::new(self.bucket.clone());
        let mut walk = Walk::new(&direct, MapKind::Objects, manifest.roots.objects.as_ref(), 4, |_, _| true);
        while let Some((_, page)) = walk.next().await {
            if let Page::Objects(entries) = &*page.unwrap() {
                infos.extend(entries.iter().copied());
            }
        }
        for listed in &manifest.objects {
            let Some(index) = self.index(listed.generation, listed.sequence).await else { continue };
            let plain_bytes = index.frames.iter().map(|frame| u64::from(frame.plain_bytes)).sum();
            let info = ObjectInfo {
                generation: listed.generation,
                bytes: listed.bytes,
                plain_bytes,
                live_bytes: plain_bytes,
                born: listed.epoch,
                died: None,
            };
            infos.insert(listed.sequence, info);
        }
        infos
    }

    /// Roots of the oldest manifest that is kept.
    async fn kept_roots(&self, newest: &Manifest) -> Epoch {
        let names = self.bucket.list_manifests().await.unwrap();
        let oldest = names.into_iter().filter(|name| name.1 >= newest.oldest_kept).min_by_key(|name| name.1);
        let Some((generation, epoch)) = oldest else { return newest.roots.epoch };
        let manifest = self.bucket.load_manifest(generation, epoch).await.unwrap();
        manifest.map_or(newest.roots.epoch, |found| found.manifest.roots.epoch)
    }
}
