//! The layer that keeps one object under another name, for as long as it must not be found.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Folder, Got, Listed, Put, PutMode, Range, Store, StoreError};

/// A [`Store`] in which one key stands for another. Listings show the names as they are.
#[derive(Clone, Debug)]
pub struct Renamed<S> {
    inner: S,
    shown: &'static str,
    stored: &'static str,
}

impl<S: Store> Renamed<S> {
    /// Keeps what is called `shown` under the name `stored`.
    pub fn new(inner: S, shown: &'static str, stored: &'static str) -> Renamed<S> {
        Renamed { inner, shown, stored }
    }

    fn key<'a>(&self, key: &'a str) -> &'a str {
        if key == self.shown { self.stored } else { key }
    }
}

#[async_trait]
impl<S: Store> Store for Renamed<S> {
    async fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError> {
        self.inner.put(self.key(key), body, mode).await
    }

    async fn get(&self, key: &str, range: Range) -> Result<Got, StoreError> {
        self.inner.get(self.key(key), range).await
    }

    async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        self.inner.head(self.key(key)).await
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
        let stored: Vec<String> = keys.iter().map(|key| self.key(key).to_owned()).collect();
        self.inner.delete(&stored).await
    }

    fn sibling(&self, volume: &str) -> Option<Arc<dyn Store>> {
        // Of another volume every name is meant as it is.
        self.inner.sibling(volume)
    }
}
