//! The layer that shows one volume of a bucket: keys without what they all begin with.

use async_trait::async_trait;
use bytes::Bytes;

use super::{Got, Listed, Put, PutMode, Range, Store, StoreError};

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
}

#[async_trait]
impl<S: Store> Store for Prefixed<S> {
    async fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError> {
        self.inner.put(&self.full(key), body, mode).await
    }

    async fn get(&self, key: &str, range: Range) -> Result<Got, StoreError> {
        self.inner.get(&self.full(key), range).await
    }

    async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        self.inner.head(&self.full(key)).await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Listed>, StoreError> {
        // Starting after the prefix itself leaves out the empty object that web consoles make for a folder.
        let after = self.full(start_after.unwrap_or(""));
        let mut listed = self.inner.list(&self.full(prefix), Some(&after), limit).await?;
        for line in &mut listed {
            line.key.drain(..self.prefix.len());
        }
        Ok(listed)
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let full: Vec<_> = keys.iter().map(|key| self.full(key)).collect();
        self.inner.delete(&full).await
    }
}
