//! A snapshot of an open volume as a block device, read-only. Its manifest and indexes are read with the first request for
//! data, so that a client may look at all there are for nothing.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::OnceCell;

use super::{
    Volume,
    bucket::{Bucket, Published},
    core::Core,
    device::info_of,
    error::VolumeError,
    follow::is_gone,
    open::{load_delta, open_snapshot, pinned_manifest},
    snapshots::SnapshotTable,
};
use crate::{
    format::manifest::Snapshot,
    map::delta::Delta,
    nbd::{Device, DeviceError, DeviceExtent, DeviceInfo},
};

/// A snapshot that is read, and why what it needs should be there.
#[derive(Debug)]
pub(super) struct Viewed {
    pub(super) snapshot: Snapshot,
    /// The open volume that it is read through; none where it was opened alone.
    pub(super) source: Option<Arc<Core>>,
}

impl Viewed {
    /// What the snapshot's maps begin with.
    ///
    /// # Errors
    /// Those of [`Viewed::check`], damage, and what the store refuses.
    pub(super) async fn load(&self, bucket: &Bucket) -> Result<(Published, Delta), VolumeError> {
        let loaded = async {
            let pinned = pinned_manifest(bucket, &self.snapshot).await?;
            let delta = load_delta(bucket, &pinned.manifest).await?;
            Ok((pinned, delta))
        };
        match loaded.await {
            Err(error) if is_gone(&error) || matches!(error, VolumeError::NoManifest { .. }) => {
                self.check(bucket).await?;
                Err(error)
            }
            loaded => loaded,
        }
    }

    /// Something that the snapshot needs is gone: whether it should be there, and so is damage.
    ///
    /// # Errors
    /// `Fenced` where another host has taken the volume from the server that it is read through, and may have deleted it:
    /// that ends the tenure. `NoSnapshot` where it was deleted. What the store refuses.
    pub(super) async fn check(&self, bucket: &Bucket) -> Result<(), VolumeError> {
        let Snapshot { id, name, .. } = &self.snapshot;
        let is_there = match self.source.as_ref().filter(|source| source.log.is_some()) {
            Some(writer) => {
                writer.check_overtaken().await?;
                writer.state().snapshots.iter().any(|snapshot| snapshot.id == *id)
            }
            None => {
                let newest = bucket.newest_manifest().await?;
                let table = SnapshotTable::load(bucket, &newest.manifest).await?;
                table.iter().any(|snapshot| snapshot.id == *id)
            }
        };
        is_there.then_some(()).ok_or_else(|| VolumeError::NoSnapshot { name: name.clone() })
    }
}

/// The snapshot, opened or not yet.
#[derive(Debug)]
pub struct SnapshotView {
    source: Arc<Core>,
    snapshot: Snapshot,
    opened: OnceCell<Volume>,
}

impl SnapshotView {
    /// Of the volume of `source`. Makes no request.
    #[must_use]
    pub fn new(source: Arc<Core>, snapshot: Snapshot) -> Self {
        Self { source, snapshot, opened: OnceCell::new() }
    }

    /// An error is for the request alone: the next one tries again.
    async fn volume(&self) -> Result<&Volume, DeviceError> {
        let opened = self.opened.get_or_try_init(|| open_snapshot(&self.source, &self.snapshot)).await;
        opened.map_err(|error| {
            let text = format!("snapshot {:?} cannot be read: {error}", self.snapshot.name);
            tracing::error!("{text}");
            self.source.noted.note(text, self.source.env.clock.now_ms());
            error.device_error()
        })
    }
}

#[async_trait]
impl Device for SnapshotView {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { read_only: true, ..info_of(&self.source, self.snapshot.size_bytes) }
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Bytes>, DeviceError> {
        self.volume().await?.read(offset, length).await
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        self.volume().await?.write(offset, data, fua).await
    }

    async fn zero(&self, offset: u64, length: u64, allocate: bool, fua: bool) -> Result<(), DeviceError> {
        self.volume().await?.zero(offset, length, allocate, fua).await
    }

    async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), DeviceError> {
        self.volume().await?.trim(offset, length, fua).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        // There is nothing that could be lost.
        Ok(())
    }

    async fn cache(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.volume().await?.cache(offset, length).await
    }

    async fn extents(
        &self,
        offset: u64,
        length: u64,
        count_max: usize,
    ) -> Result<Vec<DeviceExtent>, DeviceError> {
        self.volume().await?.extents(offset, length, count_max).await
    }
}
