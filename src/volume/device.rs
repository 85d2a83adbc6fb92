//! A volume as a block device.

use async_trait::async_trait;
use bytes::Bytes;

use super::{Volume, core::Core, error::VolumeError, read::At, state::Source};
use crate::nbd::{Device, DeviceError, DeviceExtent, DeviceInfo};

/// Frames are read whole: requests of this size, aligned, waste nothing.
const PREFERRED_BYTES: u32 = super::pack::FRAME_BYTES as u32;

/// The answer to a request that failed, which is noted.
fn answer(core: &Core) -> impl FnOnce(VolumeError) -> DeviceError + '_ {
    |error| {
        tracing::debug!(%error, "request failed");
        core.noted.request_failed(&error, core.env.clock.now_ms());
        error.device_error()
    }
}

/// What clients are told of a volume, or of a snapshot of it, of this size.
pub(super) fn info_of(core: &Core, size_bytes: u64) -> DeviceInfo {
    DeviceInfo {
        size_bytes,
        preferred_block_bytes: core.bucket.block_bytes().clamp(4096, PREFERRED_BYTES),
        read_only: core.log.is_none(),
    }
}

#[async_trait]
impl Device for Volume {
    fn info(&self) -> DeviceInfo {
        let size_bytes = self.core().state().size_bytes;
        info_of(self.core(), size_bytes)
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Bytes>, DeviceError> {
        let core = self.core();
        core.check_readable().map_err(answer(core))?;
        core.note_read(offset, length.into());
        let read = core.read(offset..offset + u64::from(length), At::Newest);
        match core.settings.read_timeout {
            None => read.await.map_err(answer(core)),
            Some(limit) => match tokio::time::timeout(limit, read).await {
                Ok(result) => result.map_err(answer(core)),
                Err(_) => {
                    tracing::warn!(offset, length, "a read timed out: the store does not answer");
                    let text = format!("a read of {length} bytes at {offset} timed out after {limit:?}");
                    core.noted.note(text, core.env.clock.now_ms());
                    Err(DeviceError::Io)
                }
            },
        }
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        let core = self.core();
        core.write(offset, data).await.map_err(answer(core))?;
        if fua { self.flush().await } else { Ok(()) }
    }

    async fn zero(&self, offset: u64, length: u64, _allocate: bool, fua: bool) -> Result<(), DeviceError> {
        let core = self.core();
        core.zero(offset, length).await.map_err(answer(core))?;
        if fua { self.flush().await } else { Ok(()) }
    }

    async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), DeviceError> {
        self.zero(offset, length, false, fua).await.map_err(|error| match error {
            // Giving space back never needs any.
            DeviceError::NoSpace => DeviceError::Invalid,
            other => other,
        })
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        let core = self.core();
        core.flush().await.map_err(answer(core))
    }

    async fn cache(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let core = self.core();
        core.check_readable().map_err(answer(core))?;
        core.fetch_ahead(offset..offset + length).await.map_err(answer(core))
    }

    async fn extents(
        &self,
        offset: u64,
        length: u64,
        count_max: usize,
    ) -> Result<Vec<DeviceExtent>, DeviceError> {
        let core = self.core();
        core.check_readable().map_err(answer(core))?;
        // Enough for any reply, and few enough pages that the answer comes soon; a client asks on from there.
        let end = offset + length.min(1 << 36);
        let segments = core.segments(offset..end, At::Newest).await.map_err(answer(core))?;
        let mut extents: Vec<DeviceExtent> = Vec::new();
        for segment in segments {
            let hole = matches!(segment.source, Source::Zero);
            let length = segment.range.end - segment.range.start;
            let full = extents.len() == count_max;
            match extents.last_mut() {
                Some(last) if last.hole == hole => last.length += length,
                _ if full => break,
                _ => extents.push(DeviceExtent { length, hole }),
            }
        }
        Ok(extents)
    }
}
