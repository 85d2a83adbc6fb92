//! The one bucket: shows every change of it to the oracle, and is away or refuses listings when told to.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use s3bd::{
    format::{manifest::Manifest, names},
    nbd::Device,
    store::{ErrorKind, Folder, Got, Listed, Put, PutMode, Range, Store, StoreError, memory::Memory},
    volume::{bucket::Bucket, open::open_read_only, settings::Settings},
};

use crate::{
    host::{Disks, env},
    machine::name,
    promises::{Key, Moment, Promises},
    snapshots,
};

/// Clones are of the same bucket.
#[derive(Clone)]
pub struct Watched {
    pub memory: Memory,
    pub promises: Arc<Mutex<Promises>>,
    switches: Arc<Switches>,
}

#[derive(Default)]
struct Switches {
    away: AtomicBool,
    list_refused: AtomicBool,
}

impl Watched {
    pub fn new(memory: Memory, promises: Arc<Mutex<Promises>>) -> Self {
        Self { memory, promises, switches: Arc::default() }
    }

    pub fn set_away(&self, away: bool) {
        self.switches.away.store(away, Ordering::Relaxed);
    }

    pub fn set_list_refused(&self, refused: bool) {
        self.switches.list_refused.store(refused, Ordering::Relaxed);
    }

    fn changed(&self, change: String) {
        let contents = self.memory.snapshot();
        self.promises.lock().unwrap().changed(change, contents);
    }

    /// No two contents may share a salt: its key and nonce would be used twice.
    fn check_salt(&self, key: &str) {
        let contents = self.memory.snapshot();
        let Some(bytes) = contents.get(key) else { return };
        // Right after the envelope; an object has it in its header, with all that its key derives from.
        let salt = if key.starts_with("objects/") { bytes.slice(..64) } else { bytes.slice(24..40) };
        let mut promises = self.promises.lock().unwrap();
        let before = promises.salts.insert(salt, bytes.clone());
        assert!(before.is_none_or(|before| before == *bytes), "{key} has the salt of something else");
    }

    fn answers(&self, operation: &'static str, key: &str) -> Result<(), StoreError> {
        if self.switches.away.load(Ordering::Relaxed) {
            return Err(StoreError::new(ErrorKind::Retry, operation, key, "simulated: away"));
        }
        if operation == "list" && self.switches.list_refused.load(Ordering::Relaxed) {
            return Err(StoreError::new(ErrorKind::Denied, operation, key, "simulated: refused"));
        }
        Ok(())
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.memory.fmt(f)
    }
}

#[async_trait]
impl Store for Watched {
    async fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError> {
        self.answers("put", key)?;
        let put = self.memory.put(key, body, mode).await?;
        if put == Put::Created {
            self.check_salt(key);
            self.promises.lock().unwrap().keep_manifest(key, body);
            self.changed(format!("put {key}"));
        }
        Ok(put)
    }

    async fn get(&self, key: &str, range: Range) -> Result<Got, StoreError> {
        self.answers("get", key)?;
        self.memory.get(key, range).await
    }

    async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        self.answers("head", key)?;
        self.memory.head(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Listed>, StoreError> {
        self.answers("list", prefix)?;
        self.memory.list(prefix, after, limit).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Folder, StoreError> {
        self.answers("list", prefix)?;
        self.memory.list_folder(prefix).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        // One by one: a request for many may be cut off in the middle.
        for key in keys {
            self.answers("delete", key)?;
            if key.starts_with("objects/") && self.memory.snapshot().get(key).is_some() {
                self.promises.lock().unwrap().count("object collected");
            }
            self.memory.delete(std::slice::from_ref(key)).await?;
            self.changed(format!("delete {key}"));
        }
        Ok(())
    }
}

/// The tenure whose line a manifest continues, and whether all manifests down to there are of one host.
#[derive(Clone, Debug)]
pub struct Origin {
    pub key: Key,
    pub hosts: Vec<String>,
}

/// Follows a manifest back to a tenure that served: first manifests say what their parents said.
pub async fn origin(
    bucket: &Bucket,
    promises: &Mutex<Promises>,
    manifest: &Manifest,
) -> Result<Origin, String> {
    let mut hosts = Vec::new();
    let mut manifest = manifest.clone();
    loop {
        let key = (manifest.generation.0, manifest.nonce);
        hosts.push(manifest.writer.host.clone());
        if promises.lock().unwrap().tenures.contains_key(&key) {
            return Ok(Origin { key, hosts });
        }
        let link = manifest.parent.ok_or("a manifest without a parent, and of no tenure that served")?;
        // A tenure that does not serve yet may have removed it from the bucket.
        let bytes = promises.lock().unwrap().manifests.get(&link.digest).cloned();
        let bytes = bytes.ok_or_else(|| format!("no parent: {link:?}"))?;
        let alone = Memory::new();
        let name = names::manifest(link.generation, link.epoch);
        alone.put(&name, &[bytes], PutMode::Create).await.map_err(|error| error.to_string())?;
        let alone = Bucket { store: Arc::new(alone), ..bucket.clone() };
        let parent = alone.load_manifest(link.generation, link.epoch).await;
        manifest = parent.map_err(|error| error.to_string())?.expect("it was put").manifest;
    }
}

/// Rebuilds the volume from the bucket alone: a prefix of the winning line with all that was durable by then.
/// With `thorough`, the content of each of its snapshots, too.
pub async fn check(
    bucket: &Bucket,
    settings: &Settings,
    promises: &Mutex<Promises>,
    moment: Moment,
    thorough: bool,
) {
    let memory = Memory::new();
    memory.restore(moment.contents);
    let bucket = Bucket { store: Arc::new(memory), ..bucket.clone() };
    let checked = async {
        let newest = bucket.newest_manifest().await.map_err(|error| error.to_string())?.manifest;
        let origin = origin(&bucket, promises, &newest).await?;
        let settings = Settings { cache_bytes_max: 0, ..settings.clone() };
        snapshots::check(&bucket, &settings, promises, &newest, &moment.snapshots, thorough).await?;
        let env = env(Arc::clone(&bucket.store), &Disks::new(), 1, &name(usize::MAX));
        let size_bytes = newest.size_bytes as u32;
        let volume =
            open_read_only(env, bucket.clone(), settings).await.map_err(|error| error.to_string())?;
        let found = volume.read(0, size_bytes).await.map_err(|error| error.to_string())?.concat();
        promises.lock().unwrap().find(origin.key, &found, moment.durable, 0)
    };
    if let Err(wrong) = checked.await {
        panic!("the bucket alone, after {}: {wrong}", moment.change);
    }
    promises.lock().unwrap().count("bucket checked");
}
