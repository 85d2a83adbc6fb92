//! The store in memory: an ordered map under one lock, for tests, simulations and trying things out.
//!
//! # Concurrency
//! Each call takes the lock once, so every call is atomic. Handles are clones that share the contents.
//!
//! # Not handled
//! Faults: wrap it in [`super::faulty::Faulty`].

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    ErrorKind, Folder, Got, Listed, Put, PutMode, Range, Store, StoreError, join_parts, resolve_range,
};

/// Milliseconds since 1970, as the store sees them.
pub type StoreClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A handle to a store in memory; clones share the contents.
#[derive(Clone)]
pub struct Memory {
    shared: Arc<Shared>,
}

struct Shared {
    objects: Mutex<Contents>,
    create_honoured: AtomicBool,
    clock_ms: StoreClock,
}

/// All objects of a store at one moment. Cheap to clone: bodies are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    objects: BTreeMap<String, Object>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Object {
    bytes: Bytes,
    modified_ms: u64,
}

impl Contents {
    /// Keys and bodies in byte order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.objects.iter().map(|(key, object)| (key.as_str(), &object.bytes))
    }

    /// The body of one object.
    pub fn get(&self, key: &str) -> Option<&Bytes> {
        self.objects.get(key).map(|object| &object.bytes)
    }

    /// Puts `bytes` under `key`, keeping the time where the name was taken; for tests that damage a bucket.
    pub fn set(&mut self, key: &str, bytes: Bytes) {
        let modified_ms = self.objects.get(key).map_or(0, |object| object.modified_ms);
        self.objects.insert(key.to_owned(), Object { bytes, modified_ms });
    }

    /// Removes an object and says whether it was there.
    pub fn remove(&mut self, key: &str) -> bool {
        self.objects.remove(key).is_some()
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}

impl Memory {
    /// An empty store that honours [`PutMode::Create`]. Its clock starts at zero when it is made and follows tokio's.
    pub fn new() -> Memory {
        let opened = tokio::time::Instant::now();
        let clock: StoreClock =
            Arc::new(move || u64::try_from(opened.elapsed().as_millis()).unwrap_or(u64::MAX));
        Memory::with_clock(clock)
    }

    /// An empty store whose `modified_ms` come from `clock_ms`.
    pub fn with_clock(clock_ms: StoreClock) -> Memory {
        let shared = Shared { objects: Mutex::default(), create_honoured: AtomicBool::new(true), clock_ms };
        Memory { shared: Arc::new(shared) }
    }

    /// With `false`, [`PutMode::Create`] overwrites and answers [`Put::Created`], as many servers do.
    pub fn set_create_honoured(&self, honoured: bool) {
        self.shared.create_honoured.store(honoured, Ordering::SeqCst);
    }

    /// A copy of everything stored.
    pub fn snapshot(&self) -> Contents {
        self.lock().clone()
    }

    /// Replaces everything stored, as somebody does who puts an older copy of the bucket back.
    pub fn restore(&self, contents: Contents) {
        *self.lock() = contents;
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        // Nothing between lock and unlock can panic halfway through a change.
        self.shared.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("objects", &self.lock().len()).finish()
    }
}

#[async_trait]
impl Store for Memory {
    async fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError> {
        if key.is_empty() {
            return Err(StoreError::new(ErrorKind::Invalid, "put", key, "the key is empty"));
        }
        let object = Object { bytes: join_parts(body), modified_ms: (self.shared.clock_ms)() };
        let create = mode == PutMode::Create && self.shared.create_honoured.load(Ordering::SeqCst);
        let mut contents = self.lock();
        if create && contents.objects.contains_key(key) {
            return Ok(Put::Exists);
        }
        contents.objects.insert(key.to_owned(), object);
        Ok(Put::Created)
    }

    async fn get(&self, key: &str, range: Range) -> Result<Got, StoreError> {
        let found = self.lock().get(key).cloned();
        let Some(bytes) = found else {
            return Err(StoreError::new(ErrorKind::NotFound, "get", key, "no such object"));
        };
        let object_bytes = bytes.len() as u64;
        let Some((offset, length)) = resolve_range(range, object_bytes) else {
            let reason = format!("{range:?} does not lie within {object_bytes} bytes");
            return Err(StoreError::new(ErrorKind::Short, "get", key, reason));
        };
        let bytes = bytes.slice(offset as usize..(offset + length) as usize);
        Ok(Got { bytes, object_bytes })
    }

    async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        Ok(self.lock().get(key).map(|bytes| bytes.len() as u64))
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Listed>, StoreError> {
        let from = match start_after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let contents = self.lock();
        let range = contents.objects.range::<str, _>((from, Bound::Unbounded));
        let listed = range
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(limit.unwrap_or(usize::MAX))
            .map(|(key, object)| Listed {
                key: key.clone(),
                bytes: object.bytes.len() as u64,
                modified_ms: object.modified_ms,
            });
        Ok(listed.collect())
    }

    async fn list_folder(&self, prefix: &str) -> Result<Folder, StoreError> {
        let lines = self.list(prefix, None, None).await?;
        Ok(Folder::of(prefix, lines))
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let mut contents = self.lock();
        for key in keys {
            contents.remove(key);
        }
        Ok(())
    }
}
