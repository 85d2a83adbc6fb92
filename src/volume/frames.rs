//! Reading frames: from memory, from the cache on disk, from the store; each frame at most once at a time.
//!
//! # Concurrency
//! A frame that is being loaded is guarded in the memory cache: others wait for that load. A group of frames takes its
//! guards in ascending order, so groups never wait for each other in a circle.
//!
//! # Errors and retries
//! Bytes from the cache on disk that do not open are forgotten and fetched. Bytes from the store that do not open are
//! fetched again, alone, as [`whole_after`] says; then the frame is damaged.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::StreamExt;
use quick_cache::{Weighter, sync::Cache};

use super::{
    bucket::{Bucket, whole_after},
    env::Env,
    error::{FrameError, VolumeError},
    object::BuiltObject,
};
use crate::{
    cache::{FrameCache, FrameKey, Lookup},
    format::{
        ids::{FrameRef, ObjectRef},
        names,
        page::Page,
    },
    map::tree::{PAGE_LOADS_MAX, PageAt, Pages},
    seal::{aead::Cipher, frame},
    store::{ErrorKind, Range},
};

/// Frames this far apart in one object are fetched by one request: one request costs as much as the transfer of
/// far more than this within a region.
const GAP_BYTES_MAX: u64 = 128 << 10;
/// No single request fetches more than this, so that the first frames do not wait long for the last.
const FETCH_BYTES_MAX: u64 = 4 << 20;
/// The same for pages, of which [`PAGE_LOADS_MAX`] requests are under way at once.
const PAGES_FETCH_BYTES_MAX: u64 = 1 << 20;
/// Ciphers kept ready: one costs under a kilobyte to keep and two microseconds to make.
const CIPHERS_MAX: usize = 4096;
/// Objects that are remembered as told of: 48 bytes each.
const CUT_OBJECTS_MAX: usize = 4096;

#[derive(Clone)]
struct ByLength;

impl Weighter<FrameKey, Bytes> for ByLength {
    fn weight(&self, _: &FrameKey, plain: &Bytes) -> u64 {
        // What the cache itself needs for an entry counts too.
        plain.len() as u64 + 128
    }
}

#[derive(Clone)]
struct BySize;

impl Weighter<FrameKey, Arc<Page>> for BySize {
    fn weight(&self, _: &FrameKey, page: &Arc<Page>) -> u64 {
        // An entry in memory, its share of the frame it points to included.
        let entries = match &**page {
            Page::Inner(children) => children.len(),
            Page::Blocks(extents) => extents.len(),
            Page::Objects(entries) => entries.len(),
            Page::Snapshots(entries) => entries.len(),
        };
        entries as u64 * 128 + 256
    }
}

/// All ways to a frame.
#[derive(Debug)]
pub struct Frames {
    bucket: Bucket,
    env: Env,
    plain: Cache<FrameKey, Bytes, ByLength>,
    pages: Cache<FrameKey, Arc<Page>, BySize>,
    ciphers: Cache<ObjectRef, Arc<Cipher>>,
    /// Objects that were told of as missing or cut short.
    cut_objects: Cache<ObjectRef, ()>,
    disk: Option<Arc<FrameCache>>,
}

fn key(frame: &FrameRef) -> FrameKey {
    FrameKey::new(&frame.object, frame.offset)
}

impl Frames {
    /// With `memory_bytes_max` bytes for unpacked frames and pages, and a cache on disk.
    #[must_use]
    pub fn new(bucket: Bucket, env: Env, memory_bytes_max: u64, disk: Option<FrameCache>) -> Self {
        // Pages lead to everything else and are small: a quarter is ample, and keeps a scan from evicting them.
        let page_bytes_max = memory_bytes_max / 4;
        let plain_bytes_max = memory_bytes_max - page_bytes_max;
        Self {
            bucket,
            env,
            plain: Cache::with_weighter((plain_bytes_max >> 16).max(64) as usize, plain_bytes_max, ByLength),
            pages: Cache::with_weighter((page_bytes_max >> 12).max(64) as usize, page_bytes_max, BySize),
            ciphers: Cache::new(CIPHERS_MAX),
            cut_objects: Cache::new(CUT_OBJECTS_MAX),
            disk: disk.map(Arc::new),
        }
    }

    /// Unpacked frames and pages in memory, bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.plain.weight() + self.pages.weight()
    }

    /// The cache on disk, where there is one.
    #[must_use]
    pub fn disk(&self) -> Option<&FrameCache> {
        self.disk.as_deref()
    }

    /// Writes out what the cache on disk has queued. Blocks.
    pub fn close(&self) {
        if let Some(disk) = &self.disk {
            disk.close();
        }
    }

    /// Puts what was just uploaded into the cache on disk.
    pub fn keep(&self, built: &BuiltObject) {
        let Some(disk) = &self.disk else { return };
        for number in 0..built.new.index.frames.len() as u32 {
            let Some(place) = built.new.index.place(built.new.object, number) else { continue };
            let start = place.offset as usize;
            disk.insert(key(&place), built.bytes.slice(start..start + place.stored_bytes as usize));
        }
    }

    /// Keeps a page that was just written: whoever looks at the new maps next wants it.
    pub fn keep_page(&self, frame: &FrameRef, page: &Page) {
        self.pages.insert(key(frame), Arc::new(page.clone()));
    }

    /// The plaintext of a frame, where it is in memory.
    #[must_use]
    pub fn in_memory(&self, frame: &FrameRef) -> Option<Bytes> {
        self.plain.get(&key(frame))
    }

    /// Whether a frame is in memory or in the cache on disk.
    #[must_use]
    pub fn is_near(&self, frame: &FrameRef) -> bool {
        let key = key(frame);
        self.plain.contains_key(&key) || self.disk.as_ref().is_some_and(|disk| disk.contains(&key))
    }

    /// The plaintexts of `frames`, which are ascending by object and number, without repeats. Neighbours that have to
    /// be fetched are fetched together, groups at once.
    pub async fn load(&self, frames: &[FrameRef]) -> Vec<Result<Bytes, VolumeError>> {
        let mut groups = Vec::new();
        for group in frames.chunk_by(joins(FETCH_BYTES_MAX)) {
            groups.push(self.load_group(&self.plain, group, |_, plain| Ok(plain)));
        }
        futures::future::join_all(groups).await.into_iter().flatten().collect()
    }

    /// What `make` makes of the plaintexts of frames that go together, by their places in `group`; kept in `cache`.
    async fn load_group<T: Clone, W: Weighter<FrameKey, T> + Clone>(
        &self,
        cache: &Cache<FrameKey, T, W>,
        group: &[FrameRef],
        make: impl Fn(usize, Bytes) -> Result<T, VolumeError>,
    ) -> Vec<Result<T, VolumeError>> {
        let mut results: Vec<Option<Result<T, VolumeError>>> = Vec::with_capacity(group.len());
        let mut missing = Vec::new();
        for (at, frame) in group.iter().enumerate() {
            results.push(match cache.get_value_or_guard_async(&key(frame)).await {
                Ok(made) => Some(Ok(made)),
                Err(guard) => match self.load_cached(frame).await {
                    Some(plain) => {
                        let made = make(at, plain);
                        if let Ok(made) = &made {
                            let _ = guard.insert(made.clone());
                        }
                        Some(made)
                    }
                    None => {
                        missing.push((at, guard));
                        None
                    }
                },
            });
        }
        let wanted: Vec<FrameRef> = missing.iter().map(|(at, _)| group[*at]).collect();
        for ((at, guard), fetched) in missing.into_iter().zip(self.fetch(&wanted).await) {
            let made = fetched.and_then(|plain| make(at, plain));
            if let Ok(made) = &made {
                let _ = guard.insert(made.clone());
            }
            results[at] = Some(made);
        }
        results.into_iter().map(|result| result.expect("every frame was loaded or fetched")).collect()
    }

    /// From the cache on disk, verified.
    async fn load_cached(&self, frame: &FrameRef) -> Option<Bytes> {
        let disk = self.disk.as_ref()?;
        let key = key(frame);
        let stored = match disk.get_nowait(&key) {
            Lookup::Hit(stored) => stored,
            Lookup::Miss => return None,
            Lookup::WouldWait => {
                let disk = Arc::clone(disk);
                self.env.compute(move || disk.get(&key)).await?
            }
        };
        match self.open(frame, &stored) {
            Ok(plain) => Some(plain),
            Err(_) => {
                disk.forget(&key);
                None
            }
        }
    }

    /// From the store: all of `frames` by one request where they are whole, else each by its own.
    async fn fetch(&self, frames: &[FrameRef]) -> Vec<Result<Bytes, VolumeError>> {
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else { return Vec::new() };
        let length = last.offset + u64::from(last.stored_bytes) - first.offset;
        let together = self.get(first, length).await;
        let mut results = Vec::with_capacity(frames.len());
        for frame in frames {
            let opened = together.clone().and_then(|bytes| {
                let start = (frame.offset - first.offset) as usize;
                self.accept(frame, bytes.slice(start..start + frame.stored_bytes as usize))
            });
            results.push(match opened {
                Ok(plain) => Ok(plain),
                Err(VolumeError::Store(error)) if error.kind != ErrorKind::Short => {
                    Err(VolumeError::Store(error))
                }
                Err(error) => self.fetch_alone(frame, Some(error)).await,
            });
        }
        results
    }

    async fn fetch_alone(&self, frame: &FrameRef, damage: Option<VolumeError>) -> Result<Bytes, VolumeError> {
        let fetched = whole_after(damage, || async {
            let stored = self.get(frame, frame.stored_bytes.into()).await?;
            self.accept(frame, stored)
        });
        fetched.await.inspect_err(|error| self.tell_damage(frame, error))
    }

    /// One line for a frame; of an object that is not there, or ends early, one for all its frames.
    fn tell_damage(&self, frame: &FrameRef, error: &VolumeError) {
        if !error.is_damage() {
            return;
        }
        let is_cut =
            matches!(error, VolumeError::DamagedFrame { error: FrameError::Missing | FrameError::Short, .. });
        if !is_cut {
            tracing::error!(%error, "damaged data");
        } else if self.cut_objects.get(&frame.object).is_none() {
            self.cut_objects.insert(frame.object, ());
            tracing::error!(%error, "damaged data; more that is gone with this object is not told of");
        }
    }

    async fn get(&self, first: &FrameRef, length: u64) -> Result<Bytes, VolumeError> {
        let name = names::object(first.object.generation, first.object.sequence);
        let range = Range::Part { offset: first.offset, length };
        let store = self.bucket.store_of(first.object.owner);
        let store = store.map_err(|error| self.bucket.damaged_frame(first, error))?;
        match store.get(&name, range).await {
            Ok(got) if got.bytes.len() as u64 == length => Ok(got.bytes),
            Ok(_) => Err(self.bucket.damaged_frame(first, FrameError::Short)),
            Err(error) => match error.kind {
                ErrorKind::NotFound if !error.key.is_empty() => {
                    Err(self.bucket.damaged_frame(first, FrameError::Missing))
                }
                ErrorKind::Short => Err(self.bucket.damaged_frame(first, FrameError::Short)),
                _ => Err(error.into()),
            },
        }
    }

    /// Opens bytes from the store, and keeps them if they are whole.
    fn accept(&self, frame: &FrameRef, stored: Bytes) -> Result<Bytes, VolumeError> {
        let plain = self.open(frame, &stored)?;
        if let Some(disk) = &self.disk {
            disk.insert(key(frame), stored);
        }
        Ok(plain)
    }

    fn open(&self, frame: &FrameRef, stored: &[u8]) -> Result<Bytes, VolumeError> {
        let cipher = match self.ciphers.get(&frame.object) {
            Some(cipher) => cipher,
            None => {
                let key = self.bucket.keys.object(&frame.object);
                let cipher = Arc::new(
                    key.ok_or_else(|| self.bucket.damaged_frame(frame, FrameError::Owner))?.cipher(),
                );
                self.ciphers.insert(frame.object, Arc::clone(&cipher));
                cipher
            }
        };
        let plain = frame::open(&cipher, frame, stored)
            .map_err(|error| self.bucket.damaged_frame(frame, error.into()))?;
        Ok(plain.into())
    }

    async fn load_page(&self, at: PageAt) -> Result<Arc<Page>, VolumeError> {
        let plain = match self.load_cached(&at.frame).await {
            Some(plain) => plain,
            None => self.fetch_alone(&at.frame, None).await?,
        };
        self.decode_page(&at, &plain)
    }

    /// Of `places` those of a group, which says where they are in it.
    async fn load_pages(
        &self,
        places: &[PageAt],
        group: &[(usize, FrameRef)],
    ) -> Vec<Result<Arc<Page>, VolumeError>> {
        let frames: Vec<FrameRef> = group.iter().map(|(_, frame)| *frame).collect();
        let decode = |at: usize, plain: Bytes| self.decode_page(&places[group[at].0], &plain);
        self.load_group(&self.pages, &frames, decode).await
    }

    fn decode_page(&self, at: &PageAt, plain: &[u8]) -> Result<Arc<Page>, VolumeError> {
        let page = Page::decode(plain, at.map, at.level, at.first_key, self.bucket.block_bytes())
            .map_err(|error| self.bucket.damaged_frame(&at.frame, error.into()))?;
        Ok(Arc::new(page))
    }
}

#[async_trait]
impl Pages for Frames {
    type Error = VolumeError;

    async fn load(&self, at: PageAt) -> Result<Arc<Page>, VolumeError> {
        self.pages.get_or_insert_async(&key(&at.frame), self.load_page(at)).await
    }

    /// Neighbours that have to be fetched are fetched together.
    async fn load_all(&self, places: &[PageAt]) -> Vec<Result<Arc<Page>, VolumeError>> {
        // As they lie, and not as their keys go: pages of several checkpoints alternate.
        let mut order: Vec<(usize, FrameRef)> = places.iter().map(|at| at.frame).enumerate().collect();
        order.sort_unstable_by_key(|(_, frame)| super::read::order(frame));
        let mut joined = joins(PAGES_FETCH_BYTES_MAX);
        let groups = order.chunk_by(|(_, before), (_, after)| joined(before, after));
        let loads: Vec<_> = groups.map(|group| self.load_pages(places, group)).collect();
        let loaded = futures::stream::iter(loads).buffered(PAGE_LOADS_MAX).collect::<Vec<_>>().await;
        let mut loaded: Vec<_> = order.iter().map(|(at, _)| *at).zip(loaded.into_iter().flatten()).collect();
        loaded.sort_unstable_by_key(|(at, _)| *at);
        loaded.into_iter().map(|(_, page)| page).collect()
    }

    fn is_damage(error: &VolumeError) -> bool {
        error.is_damage()
    }
}

/// Whether two frames that follow each other in a sorted list belong to one request; for `chunk_by`, so it keeps
/// count of the group it is in. A request fetches `fetch_bytes_max` bytes at most.
fn joins(fetch_bytes_max: u64) -> impl FnMut(&FrameRef, &FrameRef) -> bool {
    let mut group_start = None;
    move |before, after| {
        let start = *group_start.get_or_insert(before.offset);
        let end = before.offset + u64::from(before.stored_bytes);
        let joined = before.object == after.object
            && after.offset >= end
            && after.offset - end <= GAP_BYTES_MAX
            && after.offset + u64::from(after.stored_bytes) - start <= fetch_bytes_max;
        if !joined {
            group_start = Some(after.offset);
        }
        joined
    }
}
