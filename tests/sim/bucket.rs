//! The one bucket: shows every change of it to the oracle, and is away or refuses listings when told to.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use s3bd::{
    format::names,
    store::{
        ErrorKind, Folder, Got, Listed, Put, PutMode, Range, Store, StoreError,
        memory::{Contents, Memory},
        prefixed::Prefixed,
    },
};

use crate::{
    family::{Family, is_volume},
    journal::Journal,
};

/// Clones are of the same bucket.
#[derive(Clone)]
pub struct Watched {
    pub memory: Memory,
    family: Arc<Mutex<Family>>,
    journal: Arc<Mutex<Journal>>,
    switches: Arc<Switches>,
}

#[derive(Default)]
struct Switches {
    away: AtomicBool,
    list_refused: AtomicBool,
}

/// What lies below the name of one volume.
pub fn below(store: Arc<dyn Store>, volume: &str) -> Arc<dyn Store> {
    Arc::new(Prefixed::new(store, format!("{volume}/")))
}

impl Watched {
    pub fn new(memory: Memory, family: Family, journal: Arc<Mutex<Journal>>) -> Self {
        Self { memory, family: Arc::new(Mutex::new(family)), journal, switches: Arc::default() }
    }

    /// The volumes. Nothing that is asked of them may wait.
    pub fn family(&self) -> MutexGuard<'_, Family> {
        self.family.lock().unwrap()
    }

    pub fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap()
    }

    pub fn set_away(&self, away: bool) {
        self.switches.away.store(away, Ordering::Relaxed);
    }

    pub fn set_list_refused(&self, refused: bool) {
        self.switches.list_refused.store(refused, Ordering::Relaxed);
    }

    /// Something of a volume was put or deleted: it is to be looked at as it is now, and so are others that read what it had.
    fn changed(&self, contents: &Contents, change: &str, volume: &str, is_object_gone: bool) {
        self.journal().note(format!("bucket: {change}"));
        let family = self.family();
        let mut looked_at = if is_object_gone { family.readers(contents, volume) } else { Vec::new() };
        if is_volume(contents, volume) {
            looked_at.push(volume.to_owned());
        }
        for name in looked_at {
            let needs = family.needs(contents, &name);
            family.members[&name].promises().changed(change, contents, needs);
        }
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
            let (volume, name) = key.split_once('/').expect("every key is some volume's");
            let contents = self.memory.snapshot();
            self.journal().check_salt(name, &contents.get(key).expect("it was just put").clone());
            self.family().put(volume, name, body);
            self.changed(&contents, &format!("put {key}"), volume, false);
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
            let (volume, name) = key.split_once('/').expect("every key is some volume's");
            let is_object = name.starts_with(names::OBJECTS) && self.memory.head(key).await?.is_some();
            if is_object {
                self.journal().count("object collected");
            }
            self.memory.delete(std::slice::from_ref(key)).await?;
            self.changed(&self.memory.snapshot(), &format!("delete {key}"), volume, is_object);
        }
        Ok(())
    }
}
