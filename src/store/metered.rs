//! The layer that counts calls and bytes, for `status`, for metrics and for the cost of a bucket.
//!
//! It sits directly on a backend, below the retries, so that every request made is a request counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{ErrorKind, Folder, Got, Listed, Put, PutMode, Range, Store, StoreError};

/// Calls of one kind since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallTotals {
    /// Calls made.
    pub calls: u64,
    /// Of these, calls that the store did not answer. "No such object" is an answer.
    pub failed: u64,
    /// Body bytes: sent by puts that were acknowledged, received by gets.
    pub bytes: u64,
    /// Lines of listings, and keys of deletes that were acknowledged.
    pub entries: u64,
}

/// Everything counted since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeterSnapshot {
    /// Puts.
    pub put: CallTotals,
    /// Gets.
    pub get: CallTotals,
    /// Heads.
    pub head: CallTotals,
    /// Listings. A long one is several requests to S3 and one call here.
    pub list: CallTotals,
    /// Deletes. Of many keys it may be several requests to S3.
    pub delete: CallTotals,
}

/// The counters; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    put: Counter,
    get: Counter,
    head: Counter,
    list: Counter,
    delete: Counter,
}

#[derive(Debug, Default)]
struct Counter {
    calls: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    entries: AtomicU64,
}

impl Meter {
    /// What was counted so far.
    pub fn snapshot(&self) -> MeterSnapshot {
        let counters = &self.counters;
        MeterSnapshot {
            put: counters.put.load(),
            get: counters.get.load(),
            head: counters.head.load(),
            list: counters.list.load(),
            delete: counters.delete.load(),
        }
    }
}

impl Counter {
    fn load(&self) -> CallTotals {
        CallTotals {
            calls: self.calls.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            entries: self.entries.load(Ordering::Relaxed),
        }
    }

    /// Counts the call before it is made, so that one whose future is dropped is counted too.
    async fn count<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
        size: impl FnOnce(&T) -> (u64, u64),
    ) -> Result<T, StoreError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let result = call.await;
        match &result {
            Ok(answer) => {
                let (bytes, entries) = size(answer);
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                self.entries.fetch_add(entries, Ordering::Relaxed);
            }
            Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Short) => {}
            Err(_) => _ = self.failed.fetch_add(1, Ordering::Relaxed),
        }
        result
    }
}

/// A [`Store`] whose calls are counted.
#[derive(Clone, Debug)]
pub struct Metered<S> {
    inner: S,
    meter: Meter,
}

impl<S: Store> Metered<S> {
    /// Wraps `inner`; the counts go to `meter`.
    pub fn new(inner: S, meter: Meter) -> Metered<S> {
        Metered { inner, meter }
    }
}

#[async_trait]
impl<S: Store> Store for Metered<S> {
    async fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError> {
        let bytes: u64 = body.iter().map(|part| part.len() as u64).sum();
        self.meter.counters.put.count(self.inner.put(key, body, mode), |_| (bytes, 0)).await
    }

    async fn get(&self, key: &str, range: Range) -> Result<Got, StoreError> {
        let size = |got: &Got| (got.bytes.len() as u64, 0);
        self.meter.counters.get.count(self.inner.get(key, range), size).await
    }

    async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        self.meter.counters.head.count(self.inner.head(key), |_| (0, 0)).await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Listed>, StoreError> {
        let size = |listed: &Vec<Listed>| (0, listed.len() as u64);
        self.meter.counters.list.count(self.inner.list(prefix, start_after, limit), size).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Folder, StoreError> {
        let size = |folder: &Folder| (0, (folder.objects.len() + folder.folders.len()) as u64);
        self.meter.counters.list.count(self.inner.list_folder(prefix), size).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let entries = keys.len() as u64;
        self.meter.counters.delete.count(self.inner.delete(keys), |_| (0, entries)).await
    }
}
