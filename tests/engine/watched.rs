//! A store that lets nobody delete an object that anybody may still read, by a count of everything that manifests name.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use s3bd::{
    format::{
        ids::{Epoch, Generation, Sequence, VolumeId},
        index::MapKind,
        manifest::Manifest,
        names,
        page::{Page, Target},
    },
    seal::slot::Secret,
    store::{
        Folder, Got, Listed, Put, PutMode, Range, Store, StoreError, memory::Memory, prefixed::Prefixed,
    },
    volume::{
        bucket::Bucket,
        snapshots::SnapshotTable,
        walk::{Direct, Walk},
    },
};

/// An object by its owner's prefix in the bucket, and its name there.
type Needed = BTreeSet<String>;

/// Everything that the manifests in a bucket need, of all volumes in it, counted page by page; manifests never change.
#[derive(Debug)]
pub struct References {
    memory: Memory,
    /// What opens the volume of a name.
    secret: fn(&str) -> Secret,
    buckets: Mutex<BTreeMap<Bytes, Bucket>>,
    known: Mutex<BTreeMap<(VolumeId, Generation, Epoch), Needed>>,
}

impl References {
    pub fn new(memory: &Memory, secret: fn(&str) -> Secret) -> Self {
        Self { memory: memory.clone(), secret, buckets: Mutex::default(), known: Mutex::default() }
    }

    /// What is needed by the newest manifests, those that are kept, and all snapshots: keys.
    pub async fn all(&self) -> Needed {
        let mut needed = Needed::new();
        for (prefix, bucket) in self.volumes().await {
            // One that nobody has opened yet has none.
            let Ok(newest) = bucket.newest_manifest().await else { continue };
            let newest = newest.manifest;
            let snapshots = SnapshotTable::load(&bucket, &newest).await.unwrap();
            needed.extend(self.of(&prefix, &bucket, &newest).await);
            for (generation, epoch) in bucket.list_manifests().await.unwrap() {
                if epoch >= newest.oldest_kept {
                    let kept = bucket.load_manifest(generation, epoch).await.unwrap().unwrap();
                    needed.extend(self.of(&prefix, &bucket, &kept.manifest).await);
                }
            }
            for snapshot in snapshots.iter() {
                let pinned = bucket.load_manifest(snapshot.generation, snapshot.epoch).await.unwrap();
                let pinned = pinned.expect("a snapshot's manifest").manifest;
                needed.extend(self.of(&prefix, &bucket, &pinned).await);
            }
        }
        needed
    }

    async fn volumes(&self) -> Vec<(String, Bucket)> {
        let mut volumes = Vec::new();
        for (key, header) in self.memory.snapshot().iter() {
            let Some(prefix) = key.strip_suffix(names::HEADER) else { continue };
            if !prefix.is_empty() && !prefix.ends_with('/') {
                continue;
            }
            let known = self.buckets.lock().unwrap().get(header).cloned();
            let bucket = match known {
                Some(bucket) => bucket,
                None => self.unlock(prefix).await,
            };
            self.buckets.lock().unwrap().insert(header.clone(), bucket.clone());
            volumes.push((prefix.to_owned(), bucket));
        }
        volumes
    }

    async fn unlock(&self, prefix: &str) -> Bucket {
        let memory: Arc<dyn Store> = Arc::new(self.memory.clone());
        let store: Arc<dyn Store> = match prefix {
            "" => memory,
            _ => Arc::new(Prefixed::new(memory, prefix)),
        };
        Bucket::unlock(store, &(self.secret)(prefix.trim_end_matches('/'))).await.unwrap()
    }

    async fn of(&self, prefix: &str, bucket: &Bucket, manifest: &Manifest) -> Needed {
        let own = bucket.header.volume;
        let name = (own, manifest.generation, manifest.epoch);
        if let Some(known) = self.known.lock().unwrap().get(&name) {
            return known.clone();
        }
        let key = |owner: VolumeId, generation: Generation, sequence: Sequence| {
            let object = names::object(generation, sequence);
            if owner == own {
                return format!("{prefix}{object}");
            }
            let owner =
                manifest.owners.iter().find(|other| other.volume == owner).expect("an owner it names");
            format!("{}/{object}", owner.name)
        };
        let listed = manifest.objects.iter().map(|listed| (own, listed));
        let inherited = manifest.inherited.iter().map(|inherited| (inherited.owner, &inherited.object));
        let listed = listed.chain(inherited);
        let mut needed: Needed =
            listed.map(|(owner, listed)| key(owner, listed.generation, listed.sequence)).collect();
        let direct = Direct::new(bucket.clone());
        let roots = &manifest.roots;
        let maps = [
            (MapKind::Blocks, roots.blocks),
            (MapKind::Objects, roots.objects),
            (MapKind::Snapshots, roots.snapshots),
        ];
        for (map, root) in maps {
            let mut walk = Walk::new(&direct, map, root.as_ref(), 4, |_, _| true);
            while let Some((at, page)) = walk.next().await {
                let mut frames = vec![at.frame];
                if let Page::Blocks(extents) = &*page.unwrap() {
                    frames.extend(extents.iter().filter_map(|extent| match &extent.target {
                        Target::Frame(frame, _) => Some(**frame),
                        _ => None,
                    }));
                }
                let objects = frames.iter().map(|frame| &frame.object);
                needed.extend(objects.map(|object| key(object.owner, object.generation, object.sequence)));
            }
        }
        self.known.lock().unwrap().insert(name, needed.clone());
        needed
    }
}

/// The objects of a bucket, and their lengths, bytes.
pub fn objects(memory: &Memory) -> BTreeMap<String, u64> {
    let contents = memory.snapshot();
    let objects = contents.iter().filter(|(key, _)| is_object(key));
    objects.map(|(key, bytes)| (key.to_owned(), bytes.len() as u64)).collect()
}

fn is_object(key: &str) -> bool {
    key.starts_with(names::OBJECTS) || key.contains(&format!("/{}", names::OBJECTS))
}

/// A store that lets nobody delete what is needed.
#[derive(Debug)]
pub struct Watched {
    inner: Arc<dyn Store>,
    references: Arc<References>,
    deleted: AtomicU64,
}

impl Watched {
    pub fn new(inner: Arc<dyn Store>, references: Arc<References>) -> Self {
        Self { inner, references, deleted: AtomicU64::new(0) }
    }

    /// Objects deleted so far.
    pub fn deleted(&self) -> u64 {
        self.deleted.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Store for Watched {
    async fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError> {
        self.inner.put(key, body, mode).await
    }

    async fn get(&self, key: &str, range: Range) -> Result<Got, StoreError> {
        self.inner.get(key, range).await
    }

    async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        self.inner.head(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Listed>, StoreError> {
        self.inner.list(prefix, start_after, limit).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Folder, StoreError> {
        self.inner.list_folder(prefix).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let objects = keys.iter().filter(|key| is_object(key)).count() as u64;
        if objects > 0 {
            let needed = self.references.all().await;
            let wrong: Vec<_> = keys.iter().filter(|key| needed.contains(*key)).collect();
            assert!(wrong.is_empty(), "deleted, though needed: {wrong:?}");
            self.deleted.fetch_add(objects, Ordering::Relaxed);
        }
        self.inner.delete(keys).await
    }
}
