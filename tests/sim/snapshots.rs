//! Snapshots in a history: what hosts do with them, and what each holds for as long as it is there.
//!
//! # Overview
//! A name is given once in a history, and its content is settled when the host asks for it: whatever becomes of the answer,
//! a snapshot of that name holds that. Whether there is one is known from the answers alone. What takeovers take, and what is
//! taken for a clone, has names that nobody asked for; it holds a point of the line of which it was taken.

use std::{collections::BTreeMap, sync::Arc};

use s3bd::{
    format::manifest::{CloneRef, Manifest, Snapshot},
    nbd::Device,
    volume::{
        Volume,
        bucket::Bucket,
        error::VolumeError,
        open::{open_snapshot, open_snapshot_alone, pinned_manifest},
        pins::snapshot_name,
        settings::Settings,
        snapshots::{Change, SnapshotTable},
    },
};
use wal::disk::sim::Prng;

use crate::{
    family::may_depend,
    host::{Disks, env},
    machine::{Common, Machine, Process, name},
};

/// Beyond them one is deleted where one would be taken.
const SNAPSHOTS_MAX: usize = 5;

/// What answers told of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It was asked for, or its deletion: it may be there.
    Perhaps,
    Taken,
    Deleted,
}

/// Snapshots by name.
#[derive(Debug, Default)]
pub struct Snapshots {
    /// What each holds, wherever there is one.
    pub images: BTreeMap<String, Arc<Vec<u8>>>,
    pub known: BTreeMap<String, Known>,
}

impl Snapshots {
    /// Something is known of one, by its name; of a name that comes back, nothing ever is.
    fn know(&mut self, name: &str, known: Known) {
        if !name.starts_with(&snapshot_name("", 1)) {
            self.known.insert(name.to_owned(), known);
        }
    }
}

/// All that a snapshot holds.
async fn read(volume: &Volume) -> Result<Vec<u8>, String> {
    let size_bytes = volume.info().size_bytes as u32;
    Ok(volume.read(0, size_bytes).await.map_err(|error| error.to_string())?.concat())
}

/// Compares what was read of a snapshot with what it was taken of.
async fn compare(common: &Common, bucket: &Bucket, snapshot: &Snapshot, found: &[u8]) -> Result<(), String> {
    if found.len() as u64 != snapshot.size_bytes {
        return Err(format!("it has {} bytes, and says {}", found.len(), snapshot.size_bytes));
    }
    let image = common.promises().snapshots.images.get(&snapshot.name).cloned();
    match image {
        Some(image) if *image == found => Ok(()),
        Some(_) => Err("it does not hold what was acknowledged when it was taken".to_owned()),
        None => {
            // Deleted meanwhile, by whoever took the volume.
            let Ok(pinned) = pinned_manifest(bucket, snapshot).await else { return Ok(()) };
            let descent = common.descent(&pinned.manifest).await?;
            common.promises().find(descent.key, found, 1, 0).map(|_| ())
        }
    }
}

/// Whether the bucket has the snapshots that it has to have, and, with `thorough`, what they hold.
pub async fn check(
    common: &Common,
    bucket: &Bucket,
    settings: &Settings,
    newest: &Manifest,
    known: &BTreeMap<String, Known>,
    thorough: bool,
) -> Result<(), String> {
    let table = SnapshotTable::load(bucket, newest).await.map_err(|error| error.to_string())?;
    for (name, known) in known {
        match (known, table.get(name).is_ok()) {
            (Known::Taken, false) => return Err(format!("snapshot {name} is not there")),
            (Known::Deleted, true) => return Err(format!("snapshot {name} is there again")),
            _ => {}
        }
    }
    if !thorough {
        return Ok(());
    }
    for snapshot in table.iter() {
        let env = env(Arc::clone(&bucket.store), &Disks::new(), 1, &name(usize::MAX));
        let compared = async {
            let opened = open_snapshot_alone(env, bucket.clone(), settings.clone(), &snapshot.name).await;
            let found = read(&opened.map_err(|error| error.to_string())?).await?;
            compare(common, bucket, snapshot, &found).await
        };
        compared.await.map_err(|wrong| format!("snapshot {}: {wrong}", snapshot.name))?;
        common.count("snapshot checked");
    }
    Ok(())
}

impl Machine {
    /// Of the snapshots that a process knows of, one.
    pub fn choose(process: &Process, seed: u64) -> Option<Snapshot> {
        let state = process.volume.core().state();
        let count = state.snapshots.len() as u64;
        let chosen = Prng::new(seed).below(count.max(1)) as usize;
        state.snapshots.iter().nth(chosen).cloned()
    }

    /// Takes one. It holds all that was sent before: a host sends nothing else meanwhile.
    pub async fn take_snapshot(&self, process: &Process) -> Result<(), VolumeError> {
        if process.volume.core().state().snapshots.len() >= SNAPSHOTS_MAX {
            return self.delete_snapshot(process, process.key.1).await;
        }
        let (name, at) = {
            let mut promises = self.common.promises();
            let name = format!("taken-{}", promises.snapshots.images.len());
            let image = promises.image(process.key);
            promises.snapshots.images.insert(name.clone(), image);
            promises.snapshots.know(&name, Known::Perhaps);
            (name, promises.last(process.key))
        };
        process.volume.core().change(Change::Take(name.clone())).await?;
        self.changed(process, at, &name, Known::Taken, "snapshot taken");
        Ok(())
    }

    pub async fn delete_snapshot(&self, process: &Process, seed: u64) -> Result<(), VolumeError> {
        match Self::choose(process, seed) {
            Some(snapshot) => self.delete(process, &snapshot).await,
            None => Ok(()),
        }
    }

    /// Deletes one; or finds that clones depend on it.
    pub async fn delete(&self, process: &Process, snapshot: &Snapshot) -> Result<(), VolumeError> {
        let name = &snapshot.name;
        let at = {
            let mut promises = self.common.promises();
            // Deleted by another host, which took the volume: this one is not told before it publishes.
            if promises.snapshots.known.get(name) != Some(&Known::Deleted) {
                promises.snapshots.know(name, Known::Perhaps);
            }
            promises.last(process.key)
        };
        let before = self.common.watched.memory.snapshot();
        let deleted = process.volume.core().change(Change::Delete(name.clone())).await;
        let after = self.common.watched.memory.snapshot();
        match deleted {
            Ok(_) => {
                let clones = self.common.watched.family().clones(&after, &self.common.volume, Some(name));
                assert!(
                    clones.is_empty() || self.common.promises().torn,
                    "{name} is deleted under {clones:?}"
                );
                self.changed(process, at, name, Known::Deleted, "snapshot deleted");
                Ok(())
            }
            Err(VolumeError::SnapshotInUse { clones, .. }) => {
                let depends = |clone: &CloneRef| may_depend(&before, clone) || may_depend(&after, clone);
                assert!(snapshot.clones.iter().any(depends), "{name} is kept for {clones:?}");
                self.common.count("deletion refused");
                Ok(())
            }
            // Who depends on it, could not be found out.
            Err(VolumeError::Store(error)) if self.common.faults.denied > 0 => {
                self.note(format!("not deleted: {error}"));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// A change of the table was answered: it is published, with all before it.
    pub fn changed(&self, process: &Process, at: usize, name: &str, known: Known, event: &'static str) {
        let mut promises = self.common.promises();
        promises.count(event);
        if !promises.torn {
            promises.snapshots.know(name, known);
        }
        promises.publish(process.key, at);
    }

    /// Goes back to one that a host asked for. On the answer it is published; without one, it is or nothing is.
    pub async fn roll_back(&self, process: &Process, seed: u64, keep: bool) -> Result<(), VolumeError> {
        let Some(Snapshot { name, .. }) = Self::choose(process, seed) else { return Ok(()) };
        let core = process.volume.core();
        let keep = keep && core.state().snapshots.len() < SNAPSHOTS_MAX;
        let at = {
            let mut promises = self.common.promises();
            let Some(image) = promises.snapshots.images.get(&name).cloned() else { return Ok(()) };
            promises.send_back(process.key, &image)
        };
        match core.roll_back(&name, keep).await {
            Ok(_) => {
                let end = core.state().end;
                let mut promises = self.common.promises();
                promises.count("rolled back");
                promises.acknowledge(process.key, at, end);
                promises.publish(process.key, at);
                Ok(())
            }
            Err(VolumeError::Store(error)) if self.common.faults.denied > 0 => {
                self.note(format!("not rolled back: {error}"));
                self.common.promises().take_back(process.key);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Reads one through the process that has the volume open.
    pub async fn read_snapshot(&self, process: &Process, seed: u64) -> Result<(), VolumeError> {
        let Some(snapshot) = Self::choose(process, seed) else { return Ok(()) };
        let found = async {
            let volume = open_snapshot(process.volume.core(), &snapshot).await;
            read(&volume.map_err(|error| error.to_string())?).await
        };
        let wrong = match found.await {
            Ok(found) => {
                self.compare(&snapshot, &found).await;
                self.common.promises().count("snapshot read");
                return Ok(());
            }
            Err(wrong) => wrong,
        };
        process.volume.core().check()?;
        let wrong = format!("snapshot {}: {wrong}", snapshot.name);
        self.note(&wrong);
        if self.common.faults.denied > 0 || self.common.promises().torn {
            return Ok(());
        }
        // Whoever took the volume may have deleted it.
        let newest = self.common.direct.newest_manifest().await.expect("a bucket that is whole").manifest;
        assert!((newest.generation.0, newest.nonce) != process.key, "{}: {wrong}", name(self.number));
        Ok(())
    }

    /// All of them, where nothing fails.
    pub async fn read_snapshots(&self, process: &Process) {
        let snapshots: Vec<_> = process.volume.core().state().snapshots.iter().cloned().collect();
        for snapshot in snapshots {
            let volume = open_snapshot(process.volume.core(), &snapshot).await.expect("it is there");
            let found = read(&volume).await.expect("it can be read");
            self.compare(&snapshot, &found).await;
        }
    }

    async fn compare(&self, snapshot: &Snapshot, found: &[u8]) {
        let compared = compare(&self.common, &self.common.direct, snapshot, found).await;
        compared
            .unwrap_or_else(|wrong| panic!("snapshot {} on {}: {wrong}", snapshot.name, name(self.number)));
    }
}
