//! The embedded store: objects are files below one directory of this host, for `file:DIR/VOLUME`.
//!
//! # Invariants
//! - A file appears under its name whole and synced, by one rename; what is being written has a name in
//!   `.s3bd-tmp/`, which no key reaches and no listing shows.
//! - `put` returns when the file, its folder and every folder made for it are synced.
//! - [`PutMode::Create`] is `renameat2(RENAME_NOREPLACE)`, or link and unlink where the file system has no such rename:
//!   atomic among all processes.
//!
//! # Crash consistency
//! A crash leaves whole objects, empty folders and files in `.s3bd-tmp/`. The latter are held by a lock while their
//! writer lives; the next open removes those whose lock is free.
//!
//! # Concurrency
//! Any number of processes. Calls run on tokio's blocking threads, except for small reads that the page cache answers
//! at once (`RESOLVE_CACHED`, `RWF_NOWAIT`).
//!
//! # Errors and retries
//! A full disk, a lack of descriptors and a server that is away may pass: [`ErrorKind::Retry`]. Bytes that the disk
//! cannot read back are [`ErrorKind::Short`]: that object is damaged, and waiting does not mend it. A folder whose sync
//! failed is synced again before anything is read, so that nothing is seen that a power cut could still take away.
//!
//! # Not handled
//! - A key that is also a folder of other keys (`a` and `a/b`): refused as [`ErrorKind::Invalid`].
//! - A listing may miss a name that another call is replacing at that moment, where the file system's `readdir` does.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::directory_files::Files;
use super::{ErrorKind, Folder, Got, Listed, Put, PutMode, Range, Store, StoreError};

/// A handle to a directory that holds objects; clones share it.
#[derive(Clone, Debug)]
pub struct Directory {
    files: Arc<Files>,
}

impl Directory {
    /// Opens a directory that exists, and removes what writers that died left in `.s3bd-tmp/`. Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] with an empty key where there is none; [`ErrorKind::Invalid`] where it is something
    /// else; [`ErrorKind::Denied`] where this user may not enter.
    pub fn open(path: &Path) -> Result<Directory, StoreError> {
        let files = Files::open(path)?;
        files.remove_stale();
        Ok(Directory { files: Arc::new(files) })
    }

    /// The directory.
    pub fn path(&self) -> PathBuf {
        self.files.path().to_owned()
    }

    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        call: impl FnOnce(&Files) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let files = Arc::clone(&self.files);
        let joined = tokio::task::spawn_blocking(move || call(&files)).await;
        joined.unwrap_or_else(|error| {
            // Only at the runtime's end, or by a panic within: the work may have been done.
            let kind = match operation {
                "put" | "delete" => ErrorKind::OutcomeUnknown,
                _ => ErrorKind::Retry,
            };
            Err(StoreError::new(kind, operation, key, format!("the blocking call ended early: {error}")))
        })
    }
}

#[async_trait]
impl Store for Directory {
    async fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError> {
        let (owned_key, body) = (key.to_owned(), body.to_vec());
        self.blocking("put", key, move |files| files.put(&owned_key, &body, mode)).await
    }

    async fn get(&self, key: &str, range: Range) -> Result<Got, StoreError> {
        if let Some(got) = self.files.get_cached(key, range) {
            return Ok(got);
        }
        let owned_key = key.to_owned();
        self.blocking("get", key, move |files| files.get(&owned_key, range)).await
    }

    async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let owned_key = key.to_owned();
        self.blocking("head", key, move |files| files.head(&owned_key)).await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Listed>, StoreError> {
        let (owned_prefix, start_after) = (prefix.to_owned(), start_after.map(str::to_owned));
        self.blocking("list", prefix, move |files| files.list(&owned_prefix, start_after.as_deref(), limit))
            .await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Folder, StoreError> {
        let owned_prefix = prefix.to_owned();
        self.blocking("list", prefix, move |files| files.list_folder(&owned_prefix)).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let first_key = keys.first().cloned().unwrap_or_default();
        let keys = keys.to_vec();
        self.blocking("delete", &first_key, move |files| files.delete(&keys)).await
    }
}
