//! The layer that bounds how many calls are under way at once.
//!
//! # Concurrency
//! Reads (get, head, list) and changes (put, delete) have permits of their own, so uploads never starve a reader. A
//! permit is held for one try, not while the layer above waits to try again. Waiters are served in order.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{ErrorKind, Folder, Got, Listed, Put, PutMode, Range, Store, StoreError};

/// How many calls may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Gets, heads and listings.
    pub reads_max: usize,
    /// Puts and deletes.
    pub changes_max: usize,
}

impl Default for Limits {
    /// 32 reads hide 30 ms of latency behind about a thousand small reads a second; 8 changes of 16 MiB hold 128 MiB.
    fn default() -> Limits {
        Limits { reads_max: 32, changes_max: 8 }
    }
}

/// A [`Store`] with a bounded number of calls under way; clones share the bound.
#[derive(Clone, Debug)]
pub struct Limited<S> {
    inner: S,
    reads: Arc<Semaphore>,
    changes: Arc<Semaphore>,
}

impl<S: Store> Limited<S> {
    /// Wraps `inner`. A limit of zero counts as one.
    pub fn new(inner: S, limits: Limits) -> Limited<S> {
        let permits = |count: usize| Arc::new(Semaphore::new(count.clamp(1, Semaphore::MAX_PERMITS)));
        Limited { inner, reads: permits(limits.reads_max), changes: permits(limits.changes_max) }
    }
}

async fn permit<'a>(
    semaphore: &'a Semaphore,
    operation: &'static str,
    key: &str,
) -> Result<SemaphorePermit<'a>, StoreError> {
    // Nobody closes these semaphores.
    let closed = |_| StoreError::new(ErrorKind::Retry, operation, key, "the store is closing");
    semaphore.acquire().await.map_err(closed)
}

#[async_trait]
impl<S: Store> Store for Limited<S> {
    async fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError> {
        let _permit = permit(&self.changes, "put", key).await?;
        self.inner.put(key, body, mode).await
    }

    async fn get(&self, key: &str, range: Range) -> Result<Got, StoreError> {
        let _permit = permit(&self.reads, "get", key).await?;
        self.inner.get(key, range).await
    }

    async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let _permit = permit(&self.reads, "head", key).await?;
        self.inner.head(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Listed>, StoreError> {
        let _permit = permit(&self.reads, "list", prefix).await?;
        self.inner.list(prefix, start_after, limit).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Folder, StoreError> {
        let _permit = permit(&self.reads, "list", prefix).await?;
        self.inner.list_folder(prefix).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let first_key = keys.first().map_or("", String::as_str);
        let _permit = permit(&self.changes, "delete", first_key).await?;
        self.inner.delete(keys).await
    }
}
