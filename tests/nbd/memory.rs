//! A device in memory, for tests and measurements.

use std::sync::{
    RwLock,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use async_trait::async_trait;
use bytes::Bytes;
use s3bd::nbd::{Device, DeviceError, DeviceExtent, DeviceInfo};
use tokio::sync::Semaphore;

/// Granule of the allocation map.
const BLOCK_BYTES: u64 = 4096;
/// Bytes under one lock, so that requests to different places do not wait for each other.
const SHARD_BYTES: u64 = 32 << 20;

/// A disk in memory. Reads and writes are ready at once unless it is told to wait.
pub(crate) struct Memory {
    shards: Vec<RwLock<Vec<u8>>>,
    written: RwLock<Vec<bool>>,
    info: DeviceInfo,
    /// Requests that touch this range fail with EIO.
    pub(crate) bad: std::ops::Range<u64>,
    /// While true, requests wait for a permit of `gate`.
    pub(crate) waits: AtomicBool,
    /// A permit lets one waiting request go on.
    pub(crate) gate: Semaphore,
    /// While true, zero, trim and cache are refused as not supported.
    pub(crate) unsupported: AtomicBool,
    /// While true, requests panic.
    pub(crate) panics: AtomicBool,
    /// Requests that have begun, and that have ended.
    pub(crate) begun: AtomicUsize,
    pub(crate) ended: AtomicUsize,
    pub(crate) flushes: AtomicUsize,
    /// Writes, zeroes and trims with FUA.
    pub(crate) forced: AtomicUsize,
}

impl Memory {
    pub(crate) fn new(size_bytes: u64) -> Self {
        let shard = |start: u64| RwLock::new(vec![0; (size_bytes - start).min(SHARD_BYTES) as usize]);
        Self {
            shards: (0..size_bytes).step_by(SHARD_BYTES as usize).map(shard).collect(),
            written: RwLock::new(vec![false; size_bytes.div_ceil(BLOCK_BYTES) as usize]),
            info: DeviceInfo { size_bytes, preferred_block_bytes: 4096, read_only: false },
            bad: 0..0,
            waits: AtomicBool::new(false),
            gate: Semaphore::new(0),
            unsupported: AtomicBool::new(false),
            panics: AtomicBool::new(false),
            begun: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            flushes: AtomicUsize::new(0),
            forced: AtomicUsize::new(0),
        }
    }

    pub(crate) fn read_only(mut self) -> Self {
        self.info.read_only = true;
        self
    }

    pub(crate) fn bad(mut self, bad: std::ops::Range<u64>) -> Self {
        self.bad = bad;
        self
    }

    pub(crate) fn waiting(self) -> Self {
        self.waits.store(true, SeqCst);
        self
    }

    /// Runs one request: waits if told to, fails if it touches what is bad.
    async fn begin(&self, offset: u64, length: u64) -> Result<Ended<'_>, DeviceError> {
        self.begun.fetch_add(1, SeqCst);
        let ended = Ended(self);
        if self.waits.load(SeqCst) {
            self.gate.acquire().await.expect("open").forget();
        }
        assert!(!self.panics.load(SeqCst), "told to");
        assert!(offset + length <= self.info.size_bytes, "the server checks the range");
        if offset < self.bad.end && self.bad.start < offset + length {
            return Err(DeviceError::Io);
        }
        Ok(ended)
    }

    fn for_shards(
        &self,
        offset: u64,
        length: u64,
        mut each: impl FnMut(&RwLock<Vec<u8>>, std::ops::Range<usize>),
    ) {
        let (mut offset, mut left) = (offset, length);
        while left > 0 {
            let within = offset % SHARD_BYTES;
            let step = left.min(SHARD_BYTES - within);
            each(&self.shards[(offset / SHARD_BYTES) as usize], within as usize..(within + step) as usize);
            (offset, left) = (offset + step, left - step);
        }
    }

    /// Zeroes a range; whole blocks within it become holes.
    fn clear(&self, offset: u64, length: u64, hole: bool) {
        self.for_shards(offset, length, |shard, range| shard.write().unwrap()[range].fill(0));
        let mut written = self.written.write().unwrap();
        let last = if offset + length == self.info.size_bytes {
            written.len() as u64
        } else {
            (offset + length) / BLOCK_BYTES
        };
        for block in offset.div_ceil(BLOCK_BYTES)..last {
            written[block as usize] = !hole;
        }
    }
}

struct Ended<'a>(&'a Memory);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, SeqCst);
    }
}

#[async_trait]
impl Device for Memory {
    fn info(&self) -> DeviceInfo {
        self.info
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Bytes>, DeviceError> {
        let _ended = self.begin(offset, length.into()).await?;
        let mut parts = Vec::with_capacity(1);
        self.for_shards(offset, length.into(), |shard, range| {
            parts.push(Bytes::copy_from_slice(&shard.read().unwrap()[range]));
        });
        Ok(parts)
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        let _ended = self.begin(offset, data.len() as u64).await?;
        if self.info.read_only {
            return Err(DeviceError::ReadOnly);
        }
        self.forced.fetch_add(usize::from(fua), SeqCst);
        let mut done = 0;
        self.for_shards(offset, data.len() as u64, |shard, range| {
            let length = range.len();
            shard.write().unwrap()[range].copy_from_slice(&data[done..done + length]);
            done += length;
        });
        let blocks = offset / BLOCK_BYTES..(offset + data.len() as u64).div_ceil(BLOCK_BYTES);
        let known = self.written.read().unwrap()[blocks.start as usize..blocks.end as usize]
            .iter()
            .all(|known| *known);
        if !known {
            self.written.write().unwrap()[blocks.start as usize..blocks.end as usize].fill(true);
        }
        Ok(())
    }

    async fn zero(&self, offset: u64, length: u64, allocate: bool, fua: bool) -> Result<(), DeviceError> {
        let _ended = self.begin(offset, length).await?;
        if self.unsupported.load(SeqCst) {
            return Err(DeviceError::Unsupported);
        }
        self.forced.fetch_add(usize::from(fua), SeqCst);
        self.clear(offset, length, !allocate);
        Ok(())
    }

    async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), DeviceError> {
        let _ended = self.begin(offset, length).await?;
        if self.unsupported.load(SeqCst) {
            return Err(DeviceError::Unsupported);
        }
        self.forced.fetch_add(usize::from(fua), SeqCst);
        self.clear(offset, length, true);
        Ok(())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        let _ended = self.begin(0, 0).await?;
        self.flushes.fetch_add(1, SeqCst);
        Ok(())
    }

    async fn cache(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let _ended = self.begin(offset, length).await?;
        if self.unsupported.load(SeqCst) { Err(DeviceError::Unsupported) } else { Ok(()) }
    }

    async fn extents(
        &self,
        offset: u64,
        length: u64,
        count_max: usize,
    ) -> Result<Vec<DeviceExtent>, DeviceError> {
        let _ended = self.begin(offset, length).await?;
        let written = self.written.read().unwrap();
        let (mut at, end) = (offset, offset + length);
        let mut extents: Vec<DeviceExtent> = Vec::new();
        while at < end {
            let block = at / BLOCK_BYTES;
            let hole = !written[block as usize];
            let length = ((block + 1) * BLOCK_BYTES).min(end) - at;
            let count = extents.len();
            match extents.last_mut() {
                Some(last) if last.hole == hole => last.length += length,
                _ if count == count_max => break,
                _ => extents.push(DeviceExtent { length, hole }),
            }
            at += length;
        }
        Ok(extents)
    }
}
