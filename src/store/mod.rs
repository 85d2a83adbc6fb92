//! The object store: the trait that everything above uses, and the layers that implement it.
//!
//! # Invariants
//! - What a `put` acknowledged is seen by the next `get` and the next `list`, from anywhere.
//! - A name is either absent or holds the whole bytes of some `put`; never a part.
//!
//! # Errors and retries
//! A backend (`s3`, `directory`, `memory`) makes each call once and says what is known of the outcome.
//! [`retry::Retrying`] waits and calls again for what may pass; an outcome that is unknown is settled by reading the
//! object back, never by assuming.

pub mod cost;
pub mod directory;
pub mod faulty;
pub mod health;
pub mod limited;
pub mod location;
pub mod memory;
pub mod metered;
pub mod open;
pub mod prefixed;
pub mod renamed;
pub mod retry;
pub mod s3;
pub mod s3_config;
pub mod s3_credentials;

mod directory_files;
mod directory_list;
mod s3_error;
mod s3_list;
mod s3_pace;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

/// Which part of an object to read; offsets and lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// The whole object.
    Full,
    /// `length` bytes from `offset`; the part must lie within the object, else the answer is [`ErrorKind::Short`].
    Part {
        /// First byte.
        offset: u64,
        /// Number of bytes, more than zero.
        length: u64,
    },
    /// The last `length` bytes, or the whole object where it is shorter.
    Suffix {
        /// Number of bytes, more than zero.
        length: u64,
    },
}

/// Whether a `put` may replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// The name must not exist. A store without conditional puts cannot hold this; it then overwrites and says
    /// [`Put::Created`], so no protocol may depend on it alone.
    Create,
    /// Overwrites what is there.
    Replace,
}

/// What a `put` that was answered did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The bytes are stored under the name.
    Created,
    /// [`PutMode::Create`] only: the name is taken, nothing was changed.
    Exists,
}

/// What a `get` returned.
#[derive(Clone, Debug)]
pub struct Got {
    /// The bytes of the range asked for, whole.
    pub bytes: Bytes,
    /// Length of the object, bytes.
    pub object_bytes: u64,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Full key.
    pub key: String,
    /// Length of the object, bytes.
    pub bytes: u64,
    /// When the store says it was written, milliseconds since 1970.
    pub modified_ms: u64,
}

/// What lies right below a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folder {
    /// Objects whose keys have no slash after the prefix, in byte order; without one that the prefix itself names.
    pub objects: Vec<Listed>,
    /// What the other keys begin with, each once and up to its slash: full prefixes, in byte order.
    pub folders: Vec<String>,
}

impl Folder {
    /// Sorts lines of a listing of `prefix` into objects and folders.
    pub(crate) fn of(prefix: &str, lines: impl IntoIterator<Item = Listed>) -> Folder {
        let mut folder = Folder::default();
        for line in lines {
            match line.key.strip_prefix(prefix).map(|below| below.find('/')) {
                Some(Some(at)) => folder.folders.push(line.key[..=prefix.len() + at].to_owned()),
                Some(None) if line.key.len() > prefix.len() => folder.objects.push(line),
                _ => {}
            }
        }
        folder.sorted()
    }

    /// In byte order, each line once.
    pub(crate) fn sorted(mut self) -> Folder {
        self.objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        self.objects.dedup_by(|a, b| a.key == b.key);
        self.folders.sort_unstable();
        self.folders.dedup();
        self
    }
}

/// A flat, strongly consistent object store. Keys are UTF-8 with `/` as the only separator in use.
///
/// Every call is cancel safe in that dropping its future leaves the outcome of a change unknown and nothing worse.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Stores `body` (the concatenation of its parts) under `key`; on `Ok` it is durable.
    async fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError>;
    /// Reads a range of one object.
    async fn get(&self, key: &str, range: Range) -> Result<Got, StoreError>;
    /// Length of an object, bytes; `None` where there is none.
    async fn head(&self, key: &str) -> Result<Option<u64>, StoreError>;
    /// All keys that begin with `prefix` and sort after `start_after`, in byte order; at most `limit` where given.
    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Listed>, StoreError>;
    /// What lies right below `prefix`, which is empty or ends in a slash. Costs by what is there, not by what lies
    /// below the folders.
    async fn list_folder(&self, prefix: &str) -> Result<Folder, StoreError>;
    /// Removes objects. Names that do not exist are no error. On an error some may be gone.
    async fn delete(&self, keys: &[String]) -> Result<(), StoreError>;
    /// The keys of another volume in the same bucket; `None` where this store does not show one volume of a bucket.
    fn sibling(&self, _volume: &str) -> Option<Arc<dyn Store>> {
        None
    }
}

/// What the caller of a store has to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// No such object (or bucket, where `key` is empty).
    NotFound,
    /// The range does not lie within the object, or the body that came was cut short.
    Short,
    /// It may pass: throttling, 5xx, network, expired credentials. Nothing was changed.
    Retry,
    /// A change was sent and no answer came: it may have happened, or may yet happen.
    OutcomeUnknown,
    /// The store refuses these credentials or this name.
    Denied,
    /// The object is in an archive: nobody can read it until somebody restores it.
    Archived,
    /// The request can never succeed as it is (bad configuration, invalid name, no credentials found).
    Invalid,
}

/// The call and its key in words; nothing where no key is to blame.
fn place(operation: &str, key: &str) -> String {
    if key.is_empty() { String::new() } else { format!("{operation} {key}: ") }
}

/// A call that failed: which, on what, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}{reason}", place(operation, key))]
pub struct StoreError {
    /// What to do about it.
    pub kind: ErrorKind,
    /// The call: "put", "get", "head", "list", "delete".
    pub operation: &'static str,
    /// The key or prefix.
    pub key: String,
    /// The store's own words, one line.
    pub reason: String,
}

impl StoreError {
    /// An error of `operation` on `key`; line breaks in `reason` become spaces, and a long one is cut.
    pub fn new(
        kind: ErrorKind,
        operation: &'static str,
        key: impl Into<String>,
        reason: impl AsRef<str>,
    ) -> StoreError {
        let one_line = reason.as_ref().split(|c: char| c.is_control()).collect::<Vec<_>>().join(" ");
        let reason = one_line.trim().chars().take(REASON_CHARS_MAX).collect();
        StoreError { kind, operation, key: key.into(), reason }
    }
}

/// Longest reason kept, characters: a server's whole error page is no use in a log line.
const REASON_CHARS_MAX: usize = 400;

#[async_trait]
impl<S: Store + ?Sized> Store for Arc<S> {
    async fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError> {
        (**self).put(key, body, mode).await
    }

    async fn get(&self, key: &str, range: Range) -> Result<Got, StoreError> {
        (**self).get(key, range).await
    }

    async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        (**self).head(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Listed>, StoreError> {
        (**self).list(prefix, start_after, limit).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Folder, StoreError> {
        (**self).list_folder(prefix).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        (**self).delete(keys).await
    }

    fn sibling(&self, volume: &str) -> Option<Arc<dyn Store>> {
        (**self).sibling(volume)
    }
}

/// Where a range lies within an object of `object_bytes` bytes: offset and length; `None` where it does not.
pub(crate) fn resolve_range(range: Range, object_bytes: u64) -> Option<(u64, u64)> {
    match range {
        Range::Full => Some((0, object_bytes)),
        Range::Part { offset, length } => {
            let end = offset.checked_add(length)?;
            (length > 0 && end <= object_bytes).then_some((offset, length))
        }
        Range::Suffix { length } => {
            let length = length.min(object_bytes);
            Some((object_bytes - length, length))
        }
    }
}

/// The parts of a body as one buffer. Copies, except where there is only one part.
pub(crate) fn join_parts(body: &[Bytes]) -> Bytes {
    match body {
        [] => Bytes::new(),
        [one] => one.clone(),
        many => {
            let mut joined = Vec::with_capacity(many.iter().map(Bytes::len).sum());
            many.iter().for_each(|part| joined.extend_from_slice(part));
            Bytes::from(joined)
        }
    }
}
