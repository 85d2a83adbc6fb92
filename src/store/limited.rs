//! The layer that bounds how many calls are under way at once.
//!
//! # Concurrency
//! Reads (get, head, list) and changes (put, delete) have permits of their own, so uploads never starve a reader. A
//! permit is held for one try, not while the layer above waits to try again. Waiters are served in order.
//!
//! Each call is a task of its own. Who has many under way, as with a buffered stream, does not look at all of them at all
//! times, and may wait for yet another call meanwhile: were permits held by what nobody looks at, that call would never get
//! one, and neither would anybody else's. Dropped, a call ends.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;

use super::{ErrorKind, Folder, Got, Listed, Put, PutMode, Range, Store, StoreError};
use crate::task::Task;

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
#[derive(Debug)]
pub struct Limited<S> {
    inner: Arc<S>,
    reads: Arc<Semaphore>,
    changes: Arc<Semaphore>,
}

impl<S> Clone for Limited<S> {
    fn clone(&self) -> Self {
        let Self { inner, reads, changes } = self;
        Self { inner: Arc::clone(inner), reads: Arc::clone(reads), changes: Arc::clone(changes) }
    }
}

impl<S: Store> Limited<S> {
    /// Wraps `inner`. A limit of zero counts as one.
    pub fn new(inner: S, limits: Limits) -> Limited<S> {
        let permits = |count: usize| Arc::new(Semaphore::new(count.clamp(1, Semaphore::MAX_PERMITS)));
        Limited {
            inner: Arc::new(inner),
            reads: permits(limits.reads_max),
            changes: permits(limits.changes_max),
        }
    }
}

/// Makes a call in a task of its own, once there is a permit.
async fn with_permit<T: Send + 'static>(
    permits: &Arc<Semaphore>,
    (operation, key): (&'static str, &str),
    call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    let (permits, asked) = (Arc::clone(permits), key.to_owned());
    let closing = move || StoreError::new(ErrorKind::Retry, operation, &asked, "the store is closing");
    let ended = closing.clone();
    let mut task = Task::spawn(async move {
        // Nobody closes these semaphores.
        let _permit = permits.acquire_owned().await.map_err(|_| closing())?;
        call.await
    });
    task.join().await.unwrap_or_else(|| Err(ended()))
}

#[async_trait]
impl<S: Store + 'static> Store for Limited<S> {
    async fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError> {
        let (inner, name, body) = (Arc::clone(&self.inner), key.to_owned(), body.to_vec());
        with_permit(&self.changes, ("put", key), async move { inner.put(&name, &body, mode).await }).await
    }

    async fn get(&self, key: &str, range: Range) -> Result<Got, StoreError> {
        let (inner, name) = (Arc::clone(&self.inner), key.to_owned());
        with_permit(&self.reads, ("get", key), async move { inner.get(&name, range).await }).await
    }

    async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let (inner, name) = (Arc::clone(&self.inner), key.to_owned());
        with_permit(&self.reads, ("head", key), async move { inner.head(&name).await }).await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Listed>, StoreError> {
        let (inner, folder, after) =
            (Arc::clone(&self.inner), prefix.to_owned(), start_after.map(str::to_owned));
        let call = async move { inner.list(&folder, after.as_deref(), limit).await };
        with_permit(&self.reads, ("list", prefix), call).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Folder, StoreError> {
        let (inner, folder) = (Arc::clone(&self.inner), prefix.to_owned());
        with_permit(&self.reads, ("list", prefix), async move { inner.list_folder(&folder).await }).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let (inner, names) = (Arc::clone(&self.inner), keys.to_vec());
        let first = keys.first().map_or("", String::as_str);
        with_permit(&self.changes, ("delete", first), async move { inner.delete(&names).await }).await
    }
}
