//! What an open server offers: the volume, and each of its snapshots, read-only, as `name@snapshot`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use async_trait::async_trait;

use crate::{
    nbd::{Device, Export, ExportError, Exports},
    volume::{Volume, snapshot_view::SnapshotView},
};

/// The exports of one volume.
pub(super) struct VolumeExports {
    volume: Export,
    source: Arc<Volume>,
    /// Snapshots that clients have open, by number.
    open: Mutex<HashMap<u64, Weak<SnapshotView>>>,
}

impl VolumeExports {
    pub(super) fn new(volume: Export, source: Arc<Volume>) -> Self {
        Self { volume, source, open: Mutex::default() }
    }

    /// Whether a client reads the snapshot with this number.
    pub(super) fn is_open(&self, id: u64) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&id).is_some_and(|view| view.strong_count() > 0)
    }

    fn snapshot(&self, name: &str) -> Result<Arc<SnapshotView>, ExportError> {
        let core = self.source.core();
        let snapshot = core.state().snapshots.get(name).cloned().map_err(|_| ExportError::Unknown)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = open.get(&snapshot.id).and_then(Weak::upgrade) {
            return Ok(there);
        }
        open.retain(|_, view| view.strong_count() > 0);
        let id = snapshot.id;
        let view = Arc::new(SnapshotView::new(Arc::clone(core), snapshot));
        open.insert(id, Arc::downgrade(&view));
        Ok(view)
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
        let device = self.snapshot(snapshot.ok_or(ExportError::Unknown)?)?;
        let name = name.to_owned();
        Ok(Export { description: format!("{name}, read-only"), name, device: device as Arc<dyn Device> })
    }
}
