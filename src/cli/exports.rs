//! What an open server offers: the volume, and each of its snapshots, read-only, as `name@snapshot`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use async_trait::async_trait;

use crate::{
    nbd::{Device, Export, ExportError, Exports},
    volume::{Volume, open::open_snapshot},
};

/// The exports of one volume.
pub(super) struct VolumeExports {
    volume: Export,
    source: Arc<Volume>,
    /// Snapshots that clients have open, by number.
    open: Mutex<HashMap<u64, Weak<Volume>>>,
}

impl VolumeExports {
    pub(super) fn new(volume: Export, source: Arc<Volume>) -> Self {
        Self { volume, source, open: Mutex::default() }
    }

    /// Whether a client reads the snapshot with this number.
    pub(super) fn is_open(&self, id: u64) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&id).is_some_and(|volume| volume.strong_count() > 0)
    }

    async fn snapshot(&self, name: &str) -> Result<Arc<Volume>, ExportError> {
        let core = self.source.core();
        let snapshot = core.state().snapshots.get(name).cloned().map_err(|_| ExportError::Unknown)?;
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let there = lock().get(&snapshot.id).and_then(Weak::upgrade);
        if let Some(there) = there {
            return Ok(there);
        }
        let opened = open_snapshot(core, &snapshot).await.map(Arc::new).map_err(|error| {
            tracing::error!(%error, name, "a snapshot cannot be opened");
            core.noted.note(format!("snapshot {name:?} cannot be opened: {error}"), core.env.clock.now_ms());
            ExportError::Unavailable
        })?;
        let mut open = lock();
        open.retain(|_, volume| volume.strong_count() > 0);
        open.insert(snapshot.id, Arc::downgrade(&opened));
        Ok(opened)
    }
}

#[async_trait]
impl Exports for VolumeExports {
    async fn list(&self) -> Vec<String> {
        let state = self.source.core().state();
        let name = &self.volume.name;
        let snapshots = state.snapshots.iter().map(|snapshot| format!("{name}@{}", snapshot.name));
        std::iter::once(name.clone()).chain(snapshots).collect()
    }

    async fn find(&self, name: &str) -> Result<Export, ExportError> {
        if name.is_empty() || name == self.volume.name {
            return Ok(self.volume.clone());
        }
        let snapshot = name.strip_prefix(&*self.volume.name).and_then(|rest| rest.strip_prefix('@'));
        let device = self.snapshot(snapshot.ok_or(ExportError::Unknown)?).await?;
        let name = name.to_owned();
        Ok(Export { description: format!("{name}, read-only"), name, device: device as Arc<dyn Device> })
    }
}
