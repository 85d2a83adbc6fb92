//! A host for tests: simulated disks, a store in memory, a clock that stands, randomness from a seed.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use s3bd::{
    format::{
        ids::{Codec, VolumeId},
        slot::Argon2,
    },
    seal::slot::Secret,
    store::{Store, memory::Memory},
    volume::{
        Volume,
        bucket::Bucket,
        env::{Clock, Env, Local, LocalRoot, Random, Threads},
        error::VolumeError,
        init::{NewVolume, init},
        open::{Agreed, OpenReport, open},
        settings::Settings,
    },
};
use wal::disk::{
    Disk,
    sim::{Prng, SimDisk},
};

/// The folders of one volume on a simulated host.
#[derive(Clone, Debug)]
pub struct Disks {
    pub state: SimDisk,
    pub wal: SimDisk,
    pub cache: SimDisk,
}

impl Disks {
    pub fn new() -> Self {
        Self { state: SimDisk::new(), wal: SimDisk::new(), cache: SimDisk::new() }
    }

    /// A copy of all files as they are, on disks without faults.
    pub fn snapshot(&self) -> Self {
        Self { state: self.state.snapshot(), wal: self.wal.snapshot(), cache: self.cache.snapshot() }
    }

    /// What a power cut leaves.
    pub fn crash(&self, seed: u64) -> Self {
        Self {
            state: self.state.crash(seed),
            wal: self.wal.crash(seed.wrapping_add(1)),
            cache: self.cache.crash(seed.wrapping_add(2)),
        }
    }
}

impl LocalRoot for Disks {
    fn open(&self, _: VolumeId) -> io::Result<Option<Local>> {
        Ok(Some(Local {
            state: Arc::new(self.state.clone()),
            wal: Arc::new(self.wal.clone()),
            cache: Arc::new(self.cache.clone()),
            lock: None,
        }))
    }

    fn look(&self, _: VolumeId) -> io::Result<Option<Arc<dyn Disk>>> {
        Ok(Some(Arc::new(self.state.clone())))
    }

    fn describe(&self, _: VolumeId) -> String {
        "simulated".to_owned()
    }
}

/// Milliseconds that pass at each look.
#[derive(Debug, Default)]
pub struct CountingClock(AtomicU64);

impl Clock for CountingClock {
    fn now_ms(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub struct SeededRandom(Mutex<u64>);

impl SeededRandom {
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }
}

impl Random for SeededRandom {
    fn fill(&self, bytes: &mut [u8]) {
        let mut seed = self.0.lock().unwrap();
        let mut prng = Prng::new(*seed);
        bytes.iter_mut().for_each(|byte| *byte = prng.next_u64() as u8);
        *seed = prng.next_u64();
    }
}

pub const BLOCK_BYTES: u32 = 512;

/// Small enough that every bound is met within a few writes.
pub fn small_settings() -> Settings {
    Settings {
        commit_interval: Duration::from_secs(5),
        object_bytes: 256 << 10,
        wal_bytes_max: 64 << 20,
        cache_bytes_max: 16 << 20,
        memory_bytes_max: 1 << 20,
        unpublished_memory_bytes_max: 64 << 10,
        checkpoint_objects: 4,
        log_mode: wal::Mode::Inline,
        ..Settings::default()
    }
}

pub fn env(store: Arc<dyn Store>, disks: &Disks, seed: u64, host: &str) -> Env {
    Env {
        store,
        local: Arc::new(disks.clone()),
        clock: Arc::new(CountingClock::default()),
        random: Arc::new(SeededRandom::new(seed)),
        threads: Threads::Inline,
        host: host.to_owned(),
    }
}

pub async fn make(store: &Memory, size_bytes: u64) -> Bucket {
    make_with(store, size_bytes, BLOCK_BYTES).await
}

pub async fn make_with(store: &Memory, size_bytes: u64, block_bytes: u32) -> Bucket {
    make_in(Arc::new(store.clone()), size_bytes, block_bytes).await
}

pub async fn make_in(store: Arc<dyn Store>, size_bytes: u64, block_bytes: u32) -> Bucket {
    let env = env(store, &Disks::new(), 1, "maker");
    let cost = Argon2 { memory_kib: 64, passes: 1, lanes: 1 };
    let secret = Secret::password("secret");
    init(&env, &NewVolume { size_bytes, block_bytes, compression: Codec::Zstd, secret: &secret, cost })
        .await
        .unwrap()
}

pub async fn unlock(env: &Env) -> Bucket {
    Bucket::unlock(Arc::clone(&env.store), &Secret::password("secret")).await.unwrap()
}

pub async fn open_with(
    env: Env,
    settings: Settings,
    agreed: Agreed,
) -> Result<(Volume, OpenReport), VolumeError> {
    let bucket = Bucket::unlock(Arc::clone(&env.store), &Secret::password("secret")).await?;
    open(env, bucket, settings, agreed).await
}

pub async fn reopen(store: &Memory, disks: &Disks, seed: u64) -> Result<(Volume, OpenReport), VolumeError> {
    open_with(env(Arc::new(store.clone()), disks, seed, "here"), small_settings(), Agreed::default()).await
}
