//! A snapshot of an open volume as a block device, read-only. Its manifest and indexes are read with the first request for
//! data, so that a client may look at all there are for nothing.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::OnceCell;

use super::{Volume, core::Core, device::info_of, open::open_snapshot};
use crate::{
    format::manifest::Snapshot,
    nbd::{Device, DeviceError, DeviceExtent, DeviceInfo},
};

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
