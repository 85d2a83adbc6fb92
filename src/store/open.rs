//! Opening a location: the backend and the layers on it, in the one order that is right.
//!
//! From the outside in: the volume's prefix; retries; the bound on calls under way, so that a call that waits to be
//! tried again holds no permit; the meter, so that every try counts; the backend.

use std::sync::Arc;
use std::time::Duration;

use super::directory::Directory;
use super::health::HealthSnapshot;
use super::limited::{Limited, Limits};
use super::location::{Backend, Location};
use super::metered::{Meter, MeterSnapshot, Metered};
use super::prefixed::Prefixed;
use super::retry::{Random, RetryOptions, Retrying};
use super::s3::S3;
use super::s3_config::S3Options;
use super::{ErrorKind, Store, StoreError};

/// How to open a location.
#[derive(Clone)]
pub struct OpenOptions {
    /// For buckets; `concurrency_max` for directories too.
    pub s3: S3Options,
    /// How long to wait, and for how long in all.
    pub retry: RetryOptions,
    /// Spreads the waiting times.
    pub random: Random,
}

/// What holds a volume, opened: the bucket with its layers.
#[derive(Clone, Debug)]
pub struct Opened {
    retrying: Retrying<Limited<Metered<Arc<dyn Store>>>>,
    meter: Meter,
    volume: String,
    /// The bucket itself, where it is one.
    s3: Option<Arc<S3>>,
}

/// Whether a store keeps what is deleted or replaced in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldVersions {
    /// It does not.
    Gone,
    /// It does, or did once.
    Kept,
    /// It does not say.
    Unknown,
}

/// Opens what holds the volume. Reads configuration and credentials; makes no request to a bucket.
///
/// # Errors
/// [`ErrorKind::NotFound`] with an empty key where there is no such directory; [`ErrorKind::Invalid`] and
/// [`ErrorKind::Denied`] as [`S3::connect`] and [`Directory::open`] have them.
pub async fn open_store(location: &Location, options: &OpenOptions) -> Result<Opened, StoreError> {
    open_backend(&location.backend, &location.volume, options).await
}

/// Opens a bucket or a directory, of which no volume is meant.
///
/// # Errors
/// As [`open_store`] has them.
pub async fn open_bucket(backend: &Backend, options: &OpenOptions) -> Result<Arc<dyn Store>, StoreError> {
    Ok(open_backend(backend, "", options).await?.bucket())
}

async fn open_backend(backend: &Backend, volume: &str, options: &OpenOptions) -> Result<Opened, StoreError> {
    let mut s3 = None;
    let backend: Arc<dyn Store> = match backend {
        Backend::Bucket(bucket) => {
            let bucket = Arc::new(S3::connect(bucket, &options.s3).await?);
            s3 = Some(Arc::clone(&bucket));
            bucket
        }
        Backend::Directory(path) => {
            let path = path.clone();
            let opened = tokio::task::spawn_blocking(move || Directory::open(&path)).await;
            let ended = |error| {
                StoreError::new(ErrorKind::Retry, "open", "", format!("opening ended early: {error}"))
            };
            Arc::new(opened.map_err(ended)??)
        }
    };
    Ok(Opened { s3, ..Opened::over(backend, volume, options) })
}

impl Opened {
    /// Puts the layers on a backend.
    pub fn over(backend: Arc<dyn Store>, volume: &str, options: &OpenOptions) -> Opened {
        let meter = Meter::default();
        let limited = Limited::new(Metered::new(backend, meter.clone()), limits(options.s3.concurrency_max));
        let retrying = Retrying::new(limited, options.retry.clone(), Arc::clone(&options.random));
        Opened { retrying, meter, volume: volume.to_owned(), s3: None }
    }

    /// The keys of the volume, with the deadlines of the options.
    pub fn store(&self) -> Arc<dyn Store> {
        self.store_of(&self.volume)
    }

    /// The keys of the volume, with another deadline for reads than the options have.
    pub fn store_with_read_deadline(&self, read_deadline: Option<Duration>) -> Arc<dyn Store> {
        let retrying = self.retrying.with_read_deadline(read_deadline);
        Arc::new(Prefixed::new(retrying, format!("{}/", self.volume)))
    }

    /// The keys of another volume in the same bucket, such as the parent of a clone.
    pub fn store_of(&self, volume: &str) -> Arc<dyn Store> {
        Arc::new(Prefixed::new(self.retrying.clone(), format!("{volume}/")))
    }

    /// The whole bucket, for commands that list volumes.
    pub fn bucket(&self) -> Arc<dyn Store> {
        Arc::new(self.retrying.clone())
    }

    /// Whether old versions of objects stay in the store. One request, made once.
    pub async fn old_versions(&self) -> OldVersions {
        match &self.s3 {
            Some(s3) => match s3.keeps_old_versions().await {
                Ok(true) => OldVersions::Kept,
                Ok(false) => OldVersions::Gone,
                // Refused, not known to the server, or not answered.
                Err(error) => {
                    tracing::debug!(%error, "the store does not say whether it keeps old versions");
                    OldVersions::Unknown
                }
            },
            None => OldVersions::Gone,
        }
    }

    /// Calls and bytes so far.
    pub fn meter(&self) -> MeterSnapshot {
        self.meter.snapshot()
    }

    /// Whether the store answers, and who waits for it.
    pub fn health(&self) -> HealthSnapshot {
        self.retrying.health()
    }
}

/// A fifth for changes, the rest for reads, as [`Limits::default`] has it.
fn limits(concurrency_max: usize) -> Limits {
    let changes_max = (concurrency_max / 5).max(1);
    Limits { reads_max: concurrency_max.saturating_sub(changes_max).max(1), changes_max }
}

/// Randomness of the operating system, for waiting times.
pub fn os_random() -> Random {
    // Without randomness the waiting times are merely the same for everybody.
    Arc::new(|| getrandom::u64().unwrap_or(u64::MAX / 2))
}
