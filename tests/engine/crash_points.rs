//! Dying at each operation of a scripted session, on each disk and on the store; then opening again, and comparing with
//! what was promised.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use s3bd::{
    format::{ids::Codec, slot::Argon2},
    nbd::Device,
    seal::slot::Secret,
    store::{faulty::Faulty, memory::Memory},
    volume::{
        Volume,
        error::VolumeError,
        init::{NewVolume, init},
        open::Agreed,
    },
};
use wal::disk::sim::{Prng, SimDisk};

use crate::{
    host::{Disks, env, reopen, small_settings},
    oracle::{Oracle, Windows},
    rig::{Rig, WHATEVER, noise},
};

const SIZE: u64 = 64 << 10;

/// Where the session dies.
#[derive(Clone, Copy, Debug)]
enum Death {
    Wal(u64),
    State(u64),
    Cache(u64),
    Store(u64),
    Never,
}

/// A session, and what it was promised.
struct Session {
    rig: Rig,
    oracle: Oracle,
    prng: Prng,
}

impl Session {
    async fn new(seed: u64) -> Self {
        let mut settings = small_settings();
        settings.checkpoint_objects = 2;
        settings.object_bytes = 16 << 10;
        settings.unpublished_memory_bytes_max = 4 << 10;
        let rig = Rig::new(seed, SIZE, 512, settings).await;
        Self {
            rig,
            oracle: Oracle::new(Windows::new(vec![0..SIZE, SIZE..2 * SIZE]), SIZE),
            prng: Prng::new(seed),
        }
    }

    fn arm(&self, death: Death) {
        let disks = &self.rig.hosts[0];
        match death {
            Death::Wal(at) => disks.wal.die_at(at),
            Death::State(at) => disks.state.die_at(at),
            Death::Cache(at) => disks.cache.die_at(at),
            Death::Store(changes) => self.rig.faulty.set_crash_after(Some(changes)),
            Death::Never => {}
        }
    }

    async fn write(&mut self, volume: &Volume, offset: u64, length: usize) -> Result<(), ()> {
        let data = noise(&mut self.prng, length);
        self.oracle.send(offset, length as u64, Some(data.clone()));
        volume.write(offset, Bytes::from(data), false).await.map_err(drop)?;
        self.oracle.acknowledge(volume);
        Ok(())
    }

    async fn trim(&mut self, volume: &Volume, offset: u64, length: u64) -> Result<(), ()> {
        self.oracle.send(offset, length, None);
        volume.trim(offset, length, false).await.map_err(drop)?;
        self.oracle.acknowledge(volume);
        Ok(())
    }

    /// Answered like a flush.
    async fn resize(&mut self, volume: &Volume, size_bytes: u64) -> Result<(), ()> {
        let before = volume.info().size_bytes;
        self.oracle.send_size(size_bytes);
        volume.core().resize(before, size_bytes).await.map_err(drop)?;
        self.oracle.acknowledge(volume);
        self.oracle.flushed();
        Ok(())
    }

    async fn flush(&mut self, volume: &Volume) -> Result<(), ()> {
        volume.flush().await.map_err(drop)?;
        self.oracle.flushed();
        Ok(())
    }

    async fn sync(&mut self, volume: &Volume) -> Result<(), ()> {
        volume.sync().await.map_err(drop)?;
        self.oracle.published();
        Ok(())
    }

    async fn open(&mut self) -> Result<Volume, VolumeError> {
        self.oracle.reopened();
        Ok(self.rig.open(0, Agreed::default()).await?.0)
    }

    /// Init came before; open, write, flush, publish, checkpoint, trim, resize, close, open, write, die, recover, write,
    /// close.
    async fn run(&mut self) -> Result<(), ()> {
        let volume = self.open().await.map_err(drop)?;
        self.write(&volume, 0, 5000).await?;
        self.flush(&volume).await?;
        self.write(&volume, 3000, 30_000).await?;
        self.sync(&volume).await?;
        for step in 0..4 {
            self.write(&volume, step * 9000 + 77, 2000).await?;
            self.flush(&volume).await?;
            self.trim(&volume, step * 5000, 700).await?;
            tokio::time::sleep(Duration::from_secs(6)).await;
        }
        self.resize(&volume, 2 * SIZE).await?;
        self.write(&volume, SIZE - 300, 9000).await?;
        self.sync(&volume).await?;
        self.resize(&volume, SIZE / 2).await?;
        volume.close().await.map_err(drop)?;
        self.oracle.published();
        let volume = self.open().await.map_err(drop)?;
        self.resize(&volume, SIZE).await?;
        self.write(&volume, 1000, 1000).await?;
        self.flush(&volume).await?;
        self.write(&volume, 40_000, 20_000).await?;
        drop(volume);
        let volume = self.open().await.map_err(drop)?;
        self.trim(&volume, 0, SIZE).await?;
        self.write(&volume, 100, 100).await?;
        self.sync(&volume).await?;
        volume.close().await.map_err(drop)?;
        self.oracle.published();
        Ok(())
    }

    /// Runs until the death; a call that waits for a dead store is one that never returns.
    async fn run_until(&mut self, death: Death) -> bool {
        self.arm(death);
        matches!(tokio::time::timeout(Duration::from_secs(3600), self.run()).await, Ok(Ok(())))
    }

    /// What a user finds afterwards, with the disk and without.
    async fn check(&mut self, death: Death, seed: u64) {
        self.rig.faulty.set_crash_after(None);
        let bucket = self.rig.memory.snapshot();
        self.rig.hosts[0] = self.rig.hosts[0].crash(seed);
        let volume = self.open().await.unwrap_or_else(|error| panic!("{death:?}: {error}"));
        let mut oracle = self.oracle.clone();
        let found = oracle.windows.clone().read(&volume).await;
        oracle.survived_power_cut(&found).unwrap_or_else(|wrong| panic!("{death:?}, seed {seed}: {wrong}"));
        volume.close().await.unwrap_or_else(|error| panic!("{death:?}: {error}"));
        let volume = self.open().await.unwrap_or_else(|error| panic!("{death:?}: {error}"));
        assert_eq!(oracle.windows.clone().read(&volume).await, found, "{death:?}: once more");
        drop(volume);

        self.rig.memory.restore(bucket);
        self.rig.hosts[0] = Disks::new();
        let volume = self.rig.open(0, WHATEVER).await.unwrap_or_else(|error| panic!("{death:?}: {error}")).0;
        let found = oracle.windows.clone().read(&volume).await;
        self.oracle
            .clone()
            .survived_loss(&found)
            .unwrap_or_else(|wrong| panic!("{death:?}, no disk: {wrong}"));
    }
}

async fn die_at_each(deaths: impl Fn(&Rig) -> u64, make: impl Fn(u64) -> Death) -> u64 {
    let mut whole = Session::new(1).await;
    assert!(whole.run_until(Death::Never).await, "the script runs to its end where nothing dies");
    let count = deaths(&whole.rig);
    for at in 1..=count {
        let death = make(at);
        let mut session = Session::new(1).await;
        session.run_until(death).await;
        session.check(death, at).await;
    }
    count
}

fn operations(disk: &SimDisk) -> u64 {
    disk.operations()
}

#[tokio::test(start_paused = true)]
async fn what_was_promised_holds_wherever_the_logs_disk_dies() {
    let count = die_at_each(|rig| operations(&rig.hosts[0].wal), Death::Wal).await;
    assert!(count > 50, "{count}");
}

#[tokio::test(start_paused = true)]
async fn what_was_promised_holds_wherever_the_state_disk_dies() {
    let count = die_at_each(|rig| operations(&rig.hosts[0].state), Death::State).await;
    assert!(count > 50, "{count}");
}

#[tokio::test(start_paused = true)]
async fn a_cache_disk_that_dies_is_never_noticed() {
    let mut whole = Session::new(1).await;
    assert!(whole.run_until(Death::Never).await);
    let count = operations(&whole.rig.hosts[0].cache);
    for at in 1..=count {
        let mut session = Session::new(1).await;
        assert!(session.run_until(Death::Cache(at)).await, "the cache's disk died at {at}");
    }
    assert!(count > 5, "{count}");
}

#[tokio::test(start_paused = true)]
async fn what_was_promised_holds_wherever_the_store_ends() {
    let count = die_at_each(|rig| rig.faulty.counts().changes(), |at| Death::Store(at - 1)).await;
    assert!(count > 20, "{count}");
}

#[tokio::test(start_paused = true)]
async fn an_init_that_dies_anywhere_leaves_a_volume_or_none_and_can_be_done_again() {
    let secret = Secret::password("secret");
    let cost = Argon2 { memory_kib: 64, passes: 1, lanes: 1 };
    let new =
        NewVolume { size_bytes: SIZE, block_bytes: 512, compression: Codec::Plain, secret: &secret, cost };
    for changes in 0.. {
        let memory = Memory::new();
        let faulty = Faulty::new(memory.clone());
        faulty.set_crash_after(Some(changes));
        let first = init(&env(Arc::new(faulty), &Disks::new(), 1, "first"), &new).await;
        let again = init(&env(Arc::new(memory.clone()), &Disks::new(), 2, "second"), &new).await;
        match (&first, again) {
            (Ok(_), Err(VolumeError::Exists { .. })) | (Err(_), Ok(_)) => {}
            (first, again) => panic!("dead after {changes} changes: {first:?}, then {again:?}"),
        }
        let disks = Disks::new();
        let (volume, _) = reopen(&memory, &disks, 3).await.unwrap();
        volume.write(0, Bytes::from_static(b"x"), true).await.unwrap();
        volume.close().await.unwrap();
        if first.is_ok() {
            assert!(changes >= 3, "keys, manifest, header");
            return;
        }
    }
}
