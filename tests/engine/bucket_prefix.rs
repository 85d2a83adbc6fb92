//! After every single change to the bucket the volume is rebuilt from the bucket alone, and must be a prefix of what was
//! acknowledged, never older than what was published before.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use s3bd::{
    nbd::Device,
    store::{
        Got, Listed, Put, PutMode, Range, Store, StoreError,
        memory::{Contents, Memory},
    },
    volume::{
        Volume,
        env::Env,
        open::{Agreed, open_read_only},
    },
};
use wal::disk::sim::Prng;

use crate::{
    host::{Disks, env, make_with, open_with, unlock},
    oracle::{Oracle, Windows},
    rig::{WHATEVER, clip, for_seeds, noise, tight_settings},
};

/// A store that keeps what it was after every change, with what was acknowledged by then.
#[derive(Clone)]
struct Watched {
    memory: Memory,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    /// Acknowledged, or about to be.
    oracle: Option<Oracle>,
    moments: Vec<(Contents, Oracle)>,
}

impl Watched {
    fn note(&self) {
        let mut seen = self.seen.lock().unwrap();
        if let Some(oracle) = seen.oracle.clone() {
            seen.moments.push((self.memory.snapshot(), oracle));
        }
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.memory.fmt(f)
    }
}

#[async_trait]
impl Store for Watched {
    async fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError> {
        let put = self.memory.put(key, body, mode).await;
        self.note();
        // So that others come in between.
        tokio::time::sleep(Duration::from_millis(30)).await;
        put
    }

    async fn get(&self, key: &str, range: Range) -> Result<Got, StoreError> {
        self.memory.get(key, range).await
    }

    async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        self.memory.head(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Listed>, StoreError> {
        self.memory.list(prefix, after, limit).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        // One by one: a request for many may be cut off in the middle.
        for key in keys {
            self.memory.delete(std::slice::from_ref(key)).await?;
            self.note();
        }
        Ok(())
    }
}

/// The session: its oracle is shared with the store, which takes a copy with every change.
struct Session {
    volume: Volume,
    watched: Watched,
    prng: Prng,
    windows: Windows,
}

impl Session {
    fn oracle<T>(&self, act: impl FnOnce(&mut Oracle) -> T) -> T {
        let mut seen = self.watched.seen.lock().unwrap();
        act(seen.oracle.as_mut().unwrap())
    }

    async fn step(&mut self) {
        let window = self.windows.ranges()[0].clone();
        match self.prng.below(20) {
            0..12 => {
                let range = clip(self.prng.below(window.end), 1 + self.prng.below(20_000), window.end);
                let length = range.end - range.start;
                let data = (self.prng.below(4) > 0).then(|| noise(&mut self.prng, length as usize));
                self.oracle(|oracle| oracle.send(range.start, length, data.clone()));
                match data {
                    Some(data) => self.volume.write(range.start, data.into(), false).await.unwrap(),
                    None => self.volume.trim(range.start, length, false).await.unwrap(),
                }
                self.oracle(|oracle| oracle.acknowledge(&self.volume));
            }
            12..15 => {
                self.volume.sync().await.unwrap();
                self.oracle(Oracle::published);
            }
            _ => tokio::time::sleep(Duration::from_millis(self.prng.below(8000))).await,
        }
        let lsn = self.volume.core().progress.borrow().lsn;
        self.oracle(|oracle| oracle.published_to(lsn));
    }
}

async fn history(seed: u64) {
    let mut prng = Prng::new(seed);
    let settings = tight_settings(&mut prng);
    let block_bytes = [512, 4096, 64 << 10][prng.below(3) as usize];
    let size_bytes = 4 * u64::from(block_bytes).max(32 << 10);
    let memory = Memory::new();
    make_with(&memory, size_bytes, block_bytes).await;
    let watched = Watched { memory, seen: Arc::default() };
    let disks = Disks::new();
    let windows = Windows::new(vec![0..size_bytes]);
    watched.seen.lock().unwrap().oracle = Some(Oracle::new(windows.clone(), size_bytes));
    for round in 0..3 {
        let env = env(Arc::new(watched.clone()), &disks, seed * 10 + round, "here");
        let (volume, _) = open_with(env, settings.clone(), Agreed::default()).await.unwrap();
        let mut session = Session { volume, watched: watched.clone(), prng, windows: windows.clone() };
        for _ in 0..15 {
            session.step().await;
        }
        if round != 1 {
            session.volume.close().await.unwrap();
            session.oracle(Oracle::published);
        }
        session.oracle(Oracle::reopened);
        prng = session.prng;
    }
    let moments = std::mem::take(&mut watched.seen.lock().unwrap().moments);
    let last = moments.len() - 1;
    for (at, (contents, oracle)) in moments.into_iter().enumerate() {
        let bucket = Memory::new();
        bucket.restore(contents);
        let env = env(Arc::new(bucket), &Disks::new(), seed + at as u64, "there");
        // Taking over is the same with a claim; now and then, since it takes longer.
        check(env, settings.clone(), oracle, at % 5 == 0 || at == last)
            .await
            .unwrap_or_else(|wrong| panic!("change {at}: {wrong}"));
    }
}

async fn check(
    env: Env,
    settings: s3bd::volume::settings::Settings,
    mut oracle: Oracle,
    takeover: bool,
) -> Result<(), String> {
    let volume = if takeover {
        open_with(env, settings, WHATEVER).await.map_err(|error| error.to_string())?.0
    } else {
        let bucket = unlock(&env).await;
        open_read_only(env, bucket, settings).await.map_err(|error| error.to_string())?
    };
    let found = oracle.windows.clone().read(&volume).await;
    oracle.survived_loss(&found)?;
    Ok(())
}

#[test]
fn the_bucket_alone_is_a_prefix_after_every_change_to_it() {
    for_seeds(20, history);
}
