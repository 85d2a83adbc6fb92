//! The layer that shows one volume of a bucket: keys without what they all begin with.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{ErrorKind, Folder, Got, Listed, Put, PutMode, Range, Store, StoreError};

/// A [`Store`] of the keys below a prefix. Errors name full keys.
#[derive(Clone, Debug)]
pub struct Prefixed<S> {
    inner: S,
    prefix: String,
}

impl<S: Store> Prefixed<S> {
    /// Shows what lies below `prefix`, which ends in a slash.
    pub fn new(inner: S, prefix: impl Into<String>) -> Prefixed<S> {
        let prefix = prefix.into();
        debug_assert!(prefix.ends_with('/'), "{prefix:?} must end in a slash");
        Prefixed { inner, prefix }
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The full form of a key that must not be the prefix itself.
    fn full_key(&self, operation: &'static str, key: &str) -> Result<String, StoreError> {
        match key {
            "" => Err(StoreError::new(ErrorKind::Invalid, operation, &self.prefix, "the key is empty")),
            key => Ok(self.full(key)),
        }
    }
}

#[async_trait]
impl<S: Store + Clone + 'static> Store for Prefixed<S> {
    async fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError> {
        self.inner.put(&self.full_key("put", key)?, body, mode).await
    }

    async fn get(&self, key: &str, range: Range) -> Result<Got, StoreError> {
        self.inner.get(&self.full_key("get", key)?, range).await
    }

    async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        self.inner.head(&self.full_key("head", key)?).await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Listed>, StoreError> {
        // Starting after the prefix itself leaves out the empty object that web consoles make for a folder.
        let after = self.full(start_after.unwrap_or(""));
        let listed = self.inner.list(&self.full(prefix), Some(&after), limit).await?;
        let strip =
            |line: Listed| Some(Listed { key: line.key.strip_prefix(&self.prefix)?.to_owned(), ..line });
        Ok(listed.into_iter().filter_map(strip).collect())
    }

    async fn list_folder(&self, prefix: &str) -> Result<Folder, StoreError> {
        let folder = self.inner.list_folder(&self.full(prefix)).await?;
        let strip = |key: String| key.strip_prefix(&self.prefix).map(str::to_owned);
        let line = |line: Listed| Some(Listed { key: strip(line.key)?, ..line });
        Ok(Folder {
            objects: folder.objects.into_iter().filter_map(line).collect(),
            folders: folder.folders.into_iter().filter_map(strip).collect(),
        })
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let full: Vec<String> =
            keys.iter().map(|key| self.full_key("delete", key)).collect::<Result<_, _>>()?;
        self.inner.delete(&full).await
    }

    fn sibling(&self, volume: &str) -> Option<Arc<dyn Store>> {
        Some(Arc::new(Prefixed::new(self.inner.clone(), format!("{volume}/"))))
    }
}
