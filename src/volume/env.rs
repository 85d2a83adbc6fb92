//! What the engine needs from outside: store, disk, clock, randomness. Faults and simulation enter here alone.

use std::{fmt, io, sync::Arc};

use wal::disk::Disk;

use crate::{format::ids::VolumeId, store::Store};

/// Wall-clock time, for people; nothing is decided by it but ages that are shown. Timers are tokio's.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
}

/// A source of random bytes that nobody can foresee.
pub trait Random: Send + Sync + fmt::Debug {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// `N` fresh random bytes.
pub fn random_bytes<const N: usize>(random: &dyn Random) -> [u8; N] {
    let mut bytes = [0; N];
    random.fill(&mut bytes);
    bytes
}

/// The operating system's clock and randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Clock for System {
    #[allow(clippy::disallowed_methods, reason = "this is the clock that everything else is given")]
    fn now_ms(&self) -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| since.as_millis() as u64)
    }
}

impl Random for System {
    fn fill(&self, bytes: &mut [u8]) {
        // Keys and salts come from here: without randomness nothing may go on.
        getrandom::fill(bytes).expect("the operating system gives random bytes");
    }
}

/// Where the local folders of volumes are.
pub trait LocalRoot: Send + Sync + fmt::Debug {
    /// Opens the folders of one volume for this process alone; `None` where another process has them.
    fn open(&self, volume: VolumeId) -> io::Result<Option<Local>>;
    /// Whether there are any yet: [`LocalRoot::open`] makes them.
    fn exists(&self, _volume: VolumeId) -> io::Result<bool> {
        Ok(true)
    }
    /// The small files of a volume, to be read beside whoever has the folders; `None` where there are none.
    fn look(&self, _volume: VolumeId) -> io::Result<Option<Arc<dyn Disk>>> {
        Ok(None)
    }
    /// Removes the folders of a volume, which the caller has open.
    fn remove(&self, _volume: VolumeId) -> io::Result<()> {
        Ok(())
    }
    /// Its path, for messages.
    fn describe(&self, volume: VolumeId) -> String;
}

/// The local folders of one volume, held for this process until dropped.
#[derive(Debug)]
pub struct Local {
    /// Small facts: `log`, `seen`.
    pub state: Arc<dyn Disk>,
    /// The write-ahead log's segments.
    pub wal: Arc<dyn Disk>,
    /// The cache's segments.
    pub cache: Arc<dyn Disk>,
    /// What keeps other processes out, for as long as anybody has it.
    pub lock: Option<Arc<wal::disk::FolderLock>>,
}

/// Whether work that takes a processor for long, or blocks, gets threads of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// Yes.
    Pool,
    /// Everything runs in the caller's task, so that one seed decides the schedule.
    Inline,
}

/// Everything from outside.
#[derive(Clone, Debug)]
pub struct Env {
    /// The volume's part of the bucket: keys are below `VOLUME/`.
    pub store: Arc<dyn Store>,
    /// Local folders.
    pub local: Arc<dyn LocalRoot>,
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// Threads.
    pub threads: Threads,
    /// This host's name, for claims and manifests.
    pub host: String,
}

impl Env {
    /// Runs `work`, which takes a processor for long, without holding up other tasks.
    pub async fn compute<T, F>(&self, work: F) -> T
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        match self.threads {
            Threads::Inline => work(),
            Threads::Pool => match tokio::task::spawn_blocking(work).await {
                Ok(value) => value,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // Only at the runtime's end, when nobody waits for the answer.
                    Err(_) => std::future::pending().await,
                },
            },
        }
    }
}
