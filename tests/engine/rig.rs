//! A volume in a store with faults, and hosts that open it in turn.

use std::{ops::Range, sync::Arc, time::Duration};

use s3bd::{
    format::ids::Codec,
    seal::frame::Compression,
    store::{
        Store,
        faulty::Faulty,
        memory::Memory,
        retry::{RetryOptions, Retrying},
    },
    volume::{
        Volume,
        error::VolumeError,
        open::{Agreed, OpenReport},
        settings::Settings,
    },
};
use wal::disk::sim::Prng;

use crate::host::{Disks, env, make_with, open_with, small_settings};

/// Everything is fine with the user: another host's tenure, an older bucket, what a log held of a lost line.
pub const WHATEVER: Agreed = Agreed { takeover: true, rollback: false, discard: true };

/// A bucket with one volume, and hosts.
pub struct Rig {
    pub memory: Memory,
    pub faulty: Faulty<Memory>,
    pub store: Arc<dyn Store>,
    pub hosts: Vec<Disks>,
    pub settings: Settings,
    opened: u64,
    seed: u64,
}

impl Rig {
    pub async fn new(seed: u64, size_bytes: u64, block_bytes: u32, settings: Settings) -> Self {
        let memory = Memory::new();
        make_with(&memory, size_bytes, block_bytes).await;
        let faulty = Faulty::new(memory.clone());
        let store = retrying(faulty.clone(), seed);
        let hosts = vec![Disks::new(), Disks::new()];
        Self { memory, faulty, store, hosts, settings, opened: 0, seed }
    }

    /// Opens the volume on a host. Randomness differs from opening to opening.
    pub async fn open(&mut self, host: usize, agreed: Agreed) -> Result<(Volume, OpenReport), VolumeError> {
        self.opened += 1;
        let seed = self.seed.wrapping_mul(1_000_003) + self.opened;
        let env = env(Arc::clone(&self.store), &self.hosts[host], seed, &format!("host {host}"));
        open_with(env, self.settings.clone(), agreed).await
    }
}

/// The store as the program uses it: with patience.
pub fn retrying<S: Store + 'static>(store: S, seed: u64) -> Arc<dyn Store> {
    let prng = std::sync::Mutex::new(Prng::new(seed));
    let random = Arc::new(move || prng.lock().unwrap().next_u64());
    Arc::new(Retrying::new(store, RetryOptions::default(), random))
}

/// Settings by chance, all of them tight.
pub fn tight_settings(prng: &mut Prng) -> Settings {
    let codecs = [Codec::Plain, Codec::Zstd, Codec::Lz4, Codec::Xz];
    let codec = codecs[prng.below(4) as usize];
    Settings {
        compression: Compression { codec, level: 1 },
        object_bytes: [4 << 10, 64 << 10, 256 << 10][prng.below(3) as usize],
        memory_bytes_max: [0, 64 << 10, 1 << 20][prng.below(3) as usize],
        unpublished_memory_bytes_max: [0, 8 << 10, 1 << 20][prng.below(3) as usize],
        cache_bytes_max: [0, 1 << 20, 16 << 20][prng.below(3) as usize],
        wal_bytes_max: 16 << 20,
        checkpoint_objects: 1 + prng.below(6) as usize,
        checkpoint_extents: [50, 100_000][prng.below(2) as usize],
        uploads_max: 1 + prng.below(4) as usize,
        commit_interval: Duration::from_secs(1 + prng.below(10)),
        gc_idle: Duration::from_secs(1 + prng.below(30)),
        gc_grace: Duration::from_secs([0, 10, 300][prng.below(3) as usize]),
        ..small_settings()
    }
}

/// Bytes that say nothing, but never the same twice.
pub fn noise(prng: &mut Prng, length: usize) -> Vec<u8> {
    let seed = prng.next_u64();
    // Half of them compress well.
    let stride = if seed & 1 == 0 { 1 } else { 64 };
    (0..length)
        .map(|at| ((seed >> 8).wrapping_add((at / stride) as u64).wrapping_mul(0x9e37_79b9) >> 16) as u8)
        .collect()
}

/// Clips a range to the volume.
pub fn clip(offset: u64, length: u64, size_bytes: u64) -> Range<u64> {
    let offset = offset.min(size_bytes - 1);
    offset..(offset + length.max(1)).min(size_bytes)
}

/// Runs `history` for every seed of a fixed set, each in a runtime whose clock is paused. `S3BD_SEED` runs one seed
/// alone, `S3BD_CASES` another number of them.
pub fn for_seeds<F: Future<Output = ()>>(cases: u64, history: impl Fn(u64) -> F) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("S3BD_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("S3BD_CASES").unwrap_or(cases),
    };
    for seed in seeds {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        let run = std::panic::AssertUnwindSafe(|| runtime.block_on(history(seed)));
        if let Err(panic) = std::panic::catch_unwind(run) {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
            panic!("S3BD_SEED={seed}: {}", text.unwrap_or_default());
        }
    }
}
