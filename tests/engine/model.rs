//! Random histories of one volume against an oracle: writes, flushes, crashes, lost disks, other hosts, a slow store.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use s3bd::{
    nbd::Device,
    store::faulty::SeededPlan,
    volume::{Volume, error::VolumeError, open::Agreed, settings::Durability, snapshots::Change},
};
use wal::disk::sim::Prng;

use crate::{
    host::Disks,
    oracle::{Oracle, Windows},
    rig::{Rig, WHATEVER, clip, for_seeds, noise, tight_settings},
};

const PEBIBYTE: u64 = 1 << 50;

/// One history under way.
struct Model {
    rig: Rig,
    prng: Prng,
    oracle: Oracle,
    volume: Volume,
    host: usize,
    /// Size of the volume as it was made, and as it is.
    first_bytes: u64,
    size_bytes: u64,
    near_bytes: u64,
    trace: Vec<String>,
}

impl Model {
    async fn new(seed: u64) -> Self {
        let mut prng = Prng::new(seed);
        let block_bytes: u32 = [512, 4096, 4096, 64 << 10, 128 << 10][prng.below(5) as usize];
        let block = u64::from(block_bytes);
        let near_bytes = (8 * block).max(192 << 10);
        let size_bytes = if prng.below(3) == 0 { near_bytes } else { PEBIBYTE };
        let mut windows = vec![0..near_bytes];
        if size_bytes > near_bytes {
            windows.extend([1 << 30, (1 << 40) - 512, (1 << 45) + 77].map(|start| start..start + 5000));
            windows.push(size_bytes - 5000..size_bytes);
        }
        let mut settings = tight_settings(&mut prng);
        if prng.below(4) == 0 {
            settings.durability = Durability::Remote;
        }
        let mut rig = Rig::new(seed, size_bytes, block_bytes, settings).await;
        if prng.below(2) == 0 {
            let plan = SeededPlan {
                seed,
                delay: 300,
                late: 20,
                after: 20,
                twice: 20,
                before: 20,
                ..SeededPlan::default()
            };
            rig.faulty.set_plan(SeededPlan { delay_max: Duration::from_millis(1500), ..plan });
        }
        let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
        // Where it may grow to.
        windows.push(size_bytes..size_bytes + 20_000);
        let oracle = Oracle::new(Windows::new(windows), size_bytes);
        Self {
            rig,
            prng,
            oracle,
            volume,
            host: 0,
            first_bytes: size_bytes,
            size_bytes,
            near_bytes,
            trace: Vec::new(),
        }
    }

    /// Somewhere from a part of the first window to twice the size at first; so the last windows come and go.
    async fn resize(&mut self) {
        let first_bytes = self.first_bytes;
        let block = u64::from(self.volume.core().bucket.block_bytes());
        let size_bytes = match self.prng.below(5) {
            0 => self.near_bytes / 2 + self.prng.below(self.near_bytes),
            1 => first_bytes / 2 + self.prng.below(first_bytes),
            2 => first_bytes - self.prng.below(first_bytes.min(9000)),
            _ => first_bytes,
        };
        let size_bytes = size_bytes.next_multiple_of(block);
        self.trace.push(format!("resize {:#x} to {size_bytes:#x}", self.size_bytes));
        self.oracle.send_size(size_bytes);
        let result = self.volume.core().resize(self.size_bytes, size_bytes).await;
        let ok = result.is_ok();
        if ok {
            self.size_bytes = size_bytes;
        }
        // It is answered after a flush.
        self.written(ok, ok).await;
    }

    /// A range within or around the windows.
    fn range(&mut self, length_max: u64) -> std::ops::Range<u64> {
        let windows = self.oracle.windows.ranges();
        let window = match self.prng.below(3) {
            0 => windows[self.prng.below(windows.len() as u64) as usize].clone(),
            _ => windows[0].clone(),
        };
        let window = if window.start < self.size_bytes { window } else { windows[0].clone() };
        let offset = window.start + self.prng.below(window.end.min(self.size_bytes) - window.start);
        let length = 1 + self.prng.below(length_max);
        let range = clip(offset, length, self.size_bytes);
        // What lies outside of the windows is not compared, so nothing but zeros goes there.
        range.start..range.end.min(window.end)
    }

    async fn write(&mut self, fua: bool) {
        let length_max = [600, 5000, 40_000, self.near_bytes][self.prng.below(4) as usize];
        let range = self.range(length_max);
        let data = noise(&mut self.prng, (range.end - range.start) as usize);
        self.trace.push(format!("write {range:x?}"));
        self.oracle.send(range.start, range.end - range.start, Some(data.clone()));
        let result = self.volume.write(range.start, Bytes::from(data), fua).await;
        self.written(result.is_ok(), fua).await;
    }

    async fn zero(&mut self) {
        let range = match self.prng.below(4) {
            0 => clip(self.prng.below(self.size_bytes), self.prng.below(self.size_bytes), self.size_bytes),
            1 => 0..self.size_bytes,
            _ => self.range(self.near_bytes),
        };
        self.trace.push(format!("zero {range:x?}"));
        let length = range.end - range.start;
        self.oracle.send(range.start, length, None);
        let result = self.volume.zero(range.start, length, false, false).await;
        self.written(result.is_ok(), false).await;
    }

    async fn written(&mut self, ok: bool, fua: bool) {
        if ok {
            self.oracle.acknowledge(&self.volume);
            if fua {
                self.flushed();
            }
        } else {
            self.expect_dead_disk().await;
        }
    }

    fn flushed(&mut self) {
        self.oracle.flushed();
        if self.rig.settings.durability == Durability::Remote {
            self.oracle.published();
        }
    }

    async fn flush(&mut self) {
        self.trace.push("flush".to_owned());
        match self.volume.flush().await {
            Ok(()) => self.flushed(),
            Err(_) => self.expect_dead_disk().await,
        }
    }

    async fn sync(&mut self) {
        self.trace.push("sync".to_owned());
        match self.volume.sync().await {
            Ok(()) => self.oracle.published(),
            Err(_) => self.expect_dead_disk().await,
        }
    }

    /// The only reason for an error here is a disk that died: then the power fails.
    async fn expect_dead_disk(&mut self) {
        let disks = &self.rig.hosts[self.host];
        assert!(
            disks.wal.is_dead() || disks.state.is_dead(),
            "an error with a healthy disk: {:?}",
            self.volume.core().check()
        );
        self.power_cut().await;
    }

    /// Takes a snapshot, or deletes one.
    async fn snapshot(&mut self) {
        let core = Arc::clone(self.volume.core());
        let oldest = core.state().snapshots.iter().next().map(|snapshot| snapshot.name.clone());
        let change = match oldest {
            Some(name) if self.prng.below(2) == 0 => Change::Delete(name),
            _ => Change::Take(format!("s{}", self.prng.next_u64())),
        };
        self.trace.push(format!("{change:?}"));
        if core.change(change).await.is_err() {
            self.expect_dead_disk().await;
        }
    }

    fn note_published(&mut self) {
        let lsn = self.volume.core().progress.borrow().lsn;
        self.oracle.published_to(lsn);
    }

    async fn kill(&mut self) {
        self.note_published();
        if self.rig.hosts[self.host].wal.is_dead() || self.rig.hosts[self.host].state.is_dead() {
            return self.power_cut().await;
        }
        self.trace.push("kill".to_owned());
        // Another process has its own files: the old one's tasks cannot reach them.
        let disks = &mut self.rig.hosts[self.host];
        *disks =
            Disks { state: disks.state.snapshot(), wal: disks.wal.snapshot(), cache: disks.cache.snapshot() };
        self.reopen(Agreed::default()).await;
        let found = self.oracle.windows.read(&self.volume).await;
        let checked = self.oracle.survived_kill(&found);
        self.must(checked);
    }

    async fn power_cut(&mut self) {
        self.note_published();
        self.trace.push("power cut".to_owned());
        let disks = &mut self.rig.hosts[self.host];
        *disks = disks.crash(self.prng.next_u64());
        self.reopen(Agreed::default()).await;
        let found = self.oracle.windows.read(&self.volume).await;
        let checked = self.oracle.survived_power_cut(&found);
        self.must(checked);
    }

    async fn lose_disk(&mut self) {
        self.note_published();
        self.trace.push("disk lost".to_owned());
        self.rig.hosts[self.host] = Disks::new();
        self.reopen(WHATEVER).await;
        self.check_loss().await;
    }

    /// The other host goes on; this one's power may fail first.
    async fn move_away(&mut self) {
        self.note_published();
        self.trace.push("another host".to_owned());
        let disks = &mut self.rig.hosts[self.host];
        *disks = disks.crash(self.prng.next_u64());
        self.host = 1 - self.host;
        self.reopen(WHATEVER).await;
        self.check_loss().await;
    }

    async fn check_loss(&mut self) {
        let found = self.oracle.windows.read(&self.volume).await;
        let checked = self.oracle.survived_loss(&found);
        self.must(checked);
    }

    async fn close(&mut self) {
        self.trace.push("close".to_owned());
        if self.volume.close().await.is_err() {
            return self.expect_dead_disk().await;
        }
        self.oracle.published();
        self.host = self.prng.below(2) as usize;
        // The host may hold what it lost when another one took the volume from it.
        self.reopen(Agreed { discard: true, ..Agreed::default() }).await;
        let found = self.oracle.windows.read(&self.volume).await;
        let checked = self.oracle.check(&found);
        self.must(checked);
    }

    /// Opens the volume in place of the one that is open; a disk that dies meanwhile is replaced by what is left of it.
    async fn reopen(&mut self, agreed: Agreed) {
        self.oracle.reopened();
        loop {
            match self.rig.open(self.host, agreed).await {
                Ok((volume, _)) => {
                    self.volume = volume;
                    self.size_bytes = self.volume.info().size_bytes;
                    return;
                }
                Err(error) => self.recover_from(error),
            }
        }
    }

    fn recover_from(&mut self, error: VolumeError) {
        let disks = &mut self.rig.hosts[self.host];
        if disks.wal.is_dead() || disks.state.is_dead() {
            *disks = disks.crash(self.prng.next_u64());
        } else {
            panic!("{error}\n{}", self.trace.join("\n"));
        }
    }

    fn arm(&mut self) {
        self.trace.push("a disk is about to die".to_owned());
        let disks = &self.rig.hosts[self.host];
        let disk = if self.prng.below(3) == 0 { &disks.state } else { &disks.wal };
        disk.die_at(disk.operations() + 1 + self.prng.below(12));
    }

    fn must<T>(&self, checked: Result<T, String>) -> T {
        checked.unwrap_or_else(|wrong| panic!("{wrong}\n{}", self.trace.join("\n")))
    }

    async fn check(&self) {
        let found = self.oracle.windows.read(&self.volume).await;
        self.check_found(&found).await;
    }

    async fn check_found(&self, found: &[u8]) {
        self.must(self.oracle.check(found));
        self.check_extents(found).await;
    }

    /// Holes are zeros, and extents cover what was asked for.
    async fn check_extents(&self, image: &[u8]) {
        let mut at = 0;
        for window in self.oracle.windows.ranges() {
            let length = window.end.min(self.size_bytes).saturating_sub(window.start);
            if length == 0 {
                at += (window.end - window.start) as usize;
                continue;
            }
            let extents = self.volume.extents(window.start, length, usize::MAX).await.unwrap();
            let mut end = 0;
            for extent in extents {
                let bytes = &image[at + end as usize..][..extent.length as usize];
                let is_zero = bytes.iter().all(|byte| *byte == 0);
                assert!(!extent.hole || is_zero, "a hole with data\n{}", self.trace.join("\n"));
                end += extent.length;
            }
            assert_eq!(end, length, "extents end early");
            at += (window.end - window.start) as usize;
        }
    }

    async fn step(&mut self) {
        match self.prng.below(100) {
            0..40 => self.write(false).await,
            40..43 => self.write(true).await,
            43..55 => self.zero().await,
            55..63 => self.flush().await,
            63..68 => self.sync().await,
            68..80 => {
                let millis = [1, 100, 3000, 20_000][self.prng.below(4) as usize];
                self.trace.push(format!("{millis} ms"));
                tokio::time::sleep(Duration::from_millis(millis)).await;
            }
            80..86 => self.check_alive().await,
            86..88 => self.arm(),
            88..91 => self.resize().await,
            91..93 => self.kill().await,
            93..95 => self.power_cut().await,
            95..96 => self.lose_disk().await,
            96..98 => self.move_away().await,
            98 => self.snapshot().await,
            _ => self.close().await,
        }
    }

    async fn check_alive(&mut self) {
        if self.volume.core().check().is_err() {
            return self.expect_dead_disk().await;
        }
        // It may have died with something that nobody waits for.
        match self.oracle.windows.try_read(&self.volume).await {
            Ok(found) => self.check_found(&found).await,
            Err(_) => self.expect_dead_disk().await,
        }
    }
}

async fn history(seed: u64) {
    let mut model = Model::new(seed).await;
    for _ in 0..60 {
        // A day by a clock that only moves while everybody waits: longer is for ever.
        let done = tokio::time::timeout(Duration::from_secs(86_400), model.step()).await;
        assert!(done.is_ok(), "nothing moves\n{}", model.trace.join("\n"));
    }
    let end = tokio::time::timeout(Duration::from_secs(86_400), async {
        model.check_alive().await;
        model.close().await;
        model.check().await;
    });
    assert!(end.await.is_ok(), "the end never comes\n{}", model.trace.join("\n"));
    assert_eq!(model.oracle.pending(), 0);
    let _ = Arc::clone(model.volume.core());
}

#[test]
fn every_history_keeps_what_was_promised() {
    for_seeds(200, history);
}
