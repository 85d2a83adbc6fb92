//! The snapshot table in memory, and changes of it: each is published with a cut of its own.
//!
//! # Overview
//! [`Core::change`] closes a cut in the very step in which it is called, so that a snapshot holds every write acknowledged
//! before, and none after; clients wait for nothing. The publisher brings the change into the manifest of that cut, and
//! the caller gets its answer when that is published. What was not answered was not promised: the log knows nothing of it.
//!
//! # Invariants
//! - [`State::snapshots`](super::state::State) changes in the step that applies a published cut: what is no longer pinned
//!   there is not pinned by any manifest that counts.

use std::collections::{BTreeMap, HashMap};

use tokio::sync::oneshot;

use super::{
    bucket::Bucket,
    core::Core,
    error::VolumeError,
    walk::{Direct, Walk},
};
use crate::{
    format::{
        ids::{Epoch, Generation, VolumeId},
        index::MapKind,
        manifest::{CloneRef, Manifest, Snapshot, SnapshotChange},
        page::Page,
    },
    store::location::check_snapshot_name,
};

/// Pages of the table read at once.
const PAGE_LOADS_MAX: usize = 16;

/// All snapshots of a volume: some 150 bytes each.
#[derive(Clone, Debug, Default)]
pub struct SnapshotTable {
    by_id: BTreeMap<u64, Snapshot>,
    ids: HashMap<String, u64>,
    /// Tenure and roots of what is pinned; the higher the epoch, the higher that of the roots.
    pins: BTreeMap<(Epoch, u64), (Generation, Epoch)>,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Take a snapshot of this name.
    Take(String),
    /// Delete the snapshot of this name, on which no clone may depend.
    Delete(String),
    /// Give a snapshot another name.
    Rename {
        /// What it is called.
        from: String,
        /// What it is to be called.
        to: String,
    },
    /// A clone is going to depend on the snapshot of this name.
    Pin(String, CloneRef),
    /// This clone depends on no snapshot any more.
    Release(VolumeId),
}

/// A change whose cut is closed.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) epoch: Epoch,
    pub(super) change: Change,
    pub(super) done: oneshot::Sender<Result<Snapshot, VolumeError>>,
}

/// What a snapshot taken now would pin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) id: u64,
    pub(super) generation: Generation,
    pub(super) epoch: Epoch,
    pub(super) roots_epoch: Epoch,
    pub(super) time_ms: u64,
    pub(super) size_bytes: u64,
}

impl SnapshotTable {
    /// The table as of a manifest.
    ///
    /// # Errors
    /// Damage to its pages, and what the store refuses.
    pub async fn load(bucket: &Bucket, manifest: &Manifest) -> Result<Self, VolumeError> {
        let direct = Direct::new(bucket.clone());
        let root = manifest.roots.snapshots.as_ref();
        let mut walk = Walk::new(&direct, MapKind::Snapshots, root, PAGE_LOADS_MAX, |_, _| true);
        let mut table = Self::default();
        while let Some((_, page)) = walk.next().await {
            if let Page::Snapshots(entries) = &*page? {
                table.extend(entries);
            }
        }
        manifest.snapshots.iter().for_each(|change| table.apply(change));
        Ok(table)
    }

    /// Takes in entries of the tree.
    pub fn extend(&mut self, entries: &[Snapshot]) {
        entries.iter().for_each(|snapshot| self.apply(&SnapshotChange::Taken(snapshot.clone())));
    }

    /// Brings the table up to date.
    pub fn apply(&mut self, change: &SnapshotChange) {
        let id = change.number();
        if let Some(old) = self.by_id.get(&id) {
            self.ids.remove(&old.name);
            self.pins.remove(&(old.epoch, id));
        }
        change.apply(&mut self.by_id);
        if let Some(new) = self.by_id.get(&id) {
            self.ids.insert(new.name.clone(), id);
            self.pins.insert((new.epoch, id), (new.generation, new.roots_epoch));
        }
    }

    /// All of them, by number, which is by age.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Snapshot> + ExactSizeIterator {
        self.by_id.values()
    }

    /// Their number.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The snapshot of this name.
    ///
    /// # Errors
    /// `NoSnapshot`.
    pub fn get(&self, name: &str) -> Result<&Snapshot, VolumeError> {
        let found = self.ids.get(name).and_then(|id| self.by_id.get(id));
        found.ok_or_else(|| VolumeError::NoSnapshot { name: name.to_owned() })
    }

    /// Whether a snapshot pins this manifest.
    #[must_use]
    pub fn pins(&self, manifest: (Generation, Epoch)) -> bool {
        let (generation, epoch) = manifest;
        self.pins.range((epoch, 0)..=(epoch, u64::MAX)).any(|(_, pin)| pin.0 == generation)
    }

    /// Whether a snapshot needs an object that was born at `born`, and that the maps let go at `died`, if they have.
    #[must_use]
    pub fn needs(&self, born: Epoch, died: Option<Epoch>) -> bool {
        // Of those that may, the first has the oldest roots.
        let first = self.pins.range((born, 0)..).next();
        first.is_some_and(|(_, (_, roots_epoch))| died.is_none_or(|died| *roots_epoch < died))
    }

    /// What `change` comes to, given what a snapshot taken now would be.
    pub(super) fn plan(&self, change: &Change, taken: Taken) -> Result<SnapshotChange, VolumeError> {
        let free = |name: &str| {
            check_snapshot_name(name).map_err(|problem| {
                VolumeError::Invalid(format!("{name:?} cannot be the name of a snapshot: {problem}"))
            })?;
            match self.get(name) {
                Ok(_) => Err(VolumeError::SnapshotExists { name: name.to_owned() }),
                Err(_) => Ok(()),
            }
        };
        match change {
            Change::Take(name) => {
                free(name)?;
                let Taken { id, generation, epoch, roots_epoch, time_ms, size_bytes } = taken;
                Ok(SnapshotChange::Taken(Snapshot {
                    id,
                    name: name.clone(),
                    generation,
                    epoch,
                    roots_epoch,
                    time_ms,
                    size_bytes,
                    clones: Vec::new(),
                }))
            }
            Change::Delete(name) => {
                let snapshot = self.get(name)?;
                if !snapshot.clones.is_empty() {
                    let clones = snapshot.clones.iter().map(|clone| clone.name.clone()).collect();
                    return Err(VolumeError::SnapshotInUse { name: name.clone(), clones });
                }
                Ok(SnapshotChange::Deleted(snapshot.id))
            }
            Change::Rename { from, to } => {
                let snapshot = self.get(from)?;
                if from != to {
                    free(to)?;
                }
                Ok(SnapshotChange::Renamed(snapshot.id, to.clone()))
            }
            Change::Pin(name, clone) => Ok(SnapshotChange::Cloned(self.get(name)?.id, clone.clone())),
            Change::Release(volume) => {
                let found =
                    self.iter().find(|snapshot| snapshot.clones.iter().any(|clone| clone.volume == *volume));
                let snapshot = found.ok_or_else(|| {
                    VolumeError::Invalid(format!("no snapshot of this volume is held for the clone {volume}"))
                })?;
                Ok(SnapshotChange::Released(snapshot.id, *volume))
            }
        }
    }

    /// The snapshot that `change` is about, as it is after it; one that was deleted, as it was.
    pub(super) fn subject(&self, change: &SnapshotChange) -> Option<&Snapshot> {
        self.by_id.get(&change.number())
    }
}

impl Core {
    /// Changes the snapshot table. On `Ok` a published manifest has it: the snapshot as it is now, or was before it was
    /// deleted. A snapshot that is taken holds all that was acknowledged when this is first polled, and nothing later.
    ///
    /// # Errors
    /// `NoSnapshot`, `SnapshotExists`, `SnapshotInUse`, `Invalid`: nothing was changed. What ends the tenure: the outcome
    /// is unknown.
    pub async fn change(&self, change: Change) -> Result<Snapshot, VolumeError> {
        match self.change_once(change.clone()).await {
            // Of clones that are gone, nobody tells.
            Err(VolumeError::SnapshotInUse { name, .. })
                if !self.release_stale(Some(&name)).await?.is_empty() =>
            {
                self.change_once(change).await
            }
            done => done,
        }
    }

    pub(super) async fn change_once(&self, change: Change) -> Result<Snapshot, VolumeError> {
        let (done, answer) = oneshot::channel();
        self.log()?;
        {
            let mut state = self.state_mut();
            if let Some(fault) = &state.fault {
                return Err(fault.clone());
            }
            if state.closing {
                return Err(VolumeError::Closed);
            }
            let nothing = Taken {
                id: 0,
                generation: Generation(0),
                epoch: Epoch(0),
                roots_epoch: Epoch(0),
                time_ms: 0,
                size_bytes: 0,
            };
            // The publisher looks once more, after the changes that are under way.
            if self.pending().is_empty() {
                state.snapshots.plan(&change, nothing)?;
            }
            let epoch = state.close_cut();
            self.pending().push_back(Pending { epoch, change, done });
        }
        self.cut_wanted.notify_one();
        answer.await.unwrap_or_else(|_| Err(self.check().err().unwrap_or(VolumeError::Closed)))
    }
}
