//! Frames and maps read straight from the bucket: no cache, no tenure, and memory for the pages under way alone.
//!
//! For commands that look at a whole volume once (`fsck`, `info`), where a cache would only be filled and thrown away.
//! A repair has this host's cache on disk for what the bucket has not whole any more.
//!
//! # Errors and retries
//! Bytes that do not open are fetched again, up to [`FETCHES_MAX`] times, since the network damages bytes too.

use std::sync::Arc;

use bytes::Bytes;
use futures::{
    future::{BoxFuture, FutureExt},
    stream::{FuturesOrdered, StreamExt},
};
use serde::Serialize;

use super::{
    bucket::Bucket,
    error::{FrameError, VolumeError},
};
use crate::{
    cache::{FrameCache, FrameKey},
    format::{
        ids::FrameRef,
        index::MapKind,
        manifest::Root,
        names,
        page::{Page, span_bits},
    },
    map::tree::{PageAt, last_key},
    seal::frame,
    store::{ErrorKind, Range},
};

/// Times that bytes are fetched before they count as damaged in the store.
pub const FETCHES_MAX: u32 = 3;

/// Reads frames from the bucket.
#[derive(Clone, Debug)]
pub struct Direct {
    /// Whose.
    pub bucket: Bucket,
    /// Asked for frames that are damaged in the bucket.
    pub copies: Option<Arc<FrameCache>>,
}

/// Where a whole copy of a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Copy {
    /// In its object.
    Bucket,
    /// In this host's cache.
    Cache,
}

impl Direct {
    /// Reads from the bucket alone.
    #[must_use]
    pub fn new(bucket: Bucket) -> Self {
        Self { bucket, copies: None }
    }

    /// `length` bytes from where `first` begins.
    ///
    /// # Errors
    /// `DamagedFrame` where the object is missing or ends before; else the store's own.
    pub async fn get(&self, first: &FrameRef, length: u64) -> Result<Bytes, VolumeError> {
        let name = names::object(first.object.generation, first.object.sequence);
        let range = Range::Part { offset: first.offset, length };
        let store = self.bucket.store_of(first.object.owner);
        let store = store.map_err(|error| self.bucket.damaged_frame(first, error))?;
        match store.get(&name, range).await {
            Ok(got) => Ok(got.bytes),
            Err(error) => match error.kind {
                ErrorKind::NotFound if !error.key.is_empty() => {
                    Err(self.bucket.damaged_frame(first, FrameError::Missing))
                }
                ErrorKind::Short => Err(self.bucket.damaged_frame(first, FrameError::Short)),
                _ => Err(error.into()),
            },
        }
    }

    /// Opens and unpacks the stored bytes of a frame.
    pub fn open(&self, frame: &FrameRef, stored: &[u8]) -> Result<Vec<u8>, VolumeError> {
        let key = self.bucket.keys.object(&frame.object);
        let key = key.ok_or_else(|| self.bucket.damaged_frame(frame, FrameError::Owner))?;
        frame::open(&key.cipher(), frame, stored)
            .map_err(|error| self.bucket.damaged_frame(frame, error.into()))
    }

    /// The plaintext of a frame.
    pub async fn load(&self, frame: &FrameRef) -> Result<Vec<u8>, VolumeError> {
        self.find(frame).await.map(|(plain, _)| plain)
    }

    /// The plaintext of a frame, and where it came from.
    pub async fn find(&self, frame: &FrameRef) -> Result<(Vec<u8>, Copy), VolumeError> {
        match self.fetch(frame).await {
            Ok(plain) => Ok((plain, Copy::Bucket)),
            Err(error) if error.is_damage() => {
                let key = FrameKey::new(&frame.object, frame.offset);
                let copy = self.copies.as_ref().and_then(|copies| copies.get(&key));
                let plain = copy.and_then(|stored| self.open(frame, &stored).ok());
                plain.map(|plain| (plain, Copy::Cache)).ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    async fn fetch(&self, frame: &FrameRef) -> Result<Vec<u8>, VolumeError> {
        let mut attempt = 1;
        loop {
            let got = self.get(frame, frame.stored_bytes.into()).await;
            match got.and_then(|stored| self.open(frame, &stored)) {
                Err(error) if error.is_damage() && attempt < FETCHES_MAX => attempt += 1,
                result => return result,
            }
        }
    }

    /// A page, which must be of the map and the level that its place says.
    pub async fn page(&self, at: PageAt) -> Result<Arc<Page>, VolumeError> {
        let plain = self.load(&at.frame).await?;
        let page = Page::decode(&plain, at.map, at.level, at.first_key, self.bucket.block_bytes())
            .map_err(|error| self.bucket.damaged_frame(&at.frame, error.into()))?;
        Ok(Arc::new(page))
    }
}

/// A page of a walk: its place, and what is there.
pub type Loaded = (PageAt, Result<Arc<Page>, VolumeError>);

/// All pages of a map, in the order of their keys, each before what lies below it; leaves are loaded ahead.
pub struct Walk<'a> {
    direct: &'a Direct,
    wanted: Box<dyn Fn(u64, u64) -> bool + Send + Sync + 'a>,
    /// Still to be loaded, the next one last.
    pending: Vec<PageAt>,
    loading: FuturesOrdered<BoxFuture<'a, Loaded>>,
    /// What was last sent for is an inner page: its children come before all else.
    at_inner: bool,
    loads_max: usize,
}

impl<'a> Walk<'a> {
    /// From `root` on, with `loads_max` pages under way at most. Of what lies below a page, only those pages for whose
    /// first and last key `wanted` holds.
    pub fn new(
        direct: &'a Direct,
        map: MapKind,
        root: Option<&Root>,
        loads_max: usize,
        wanted: impl Fn(u64, u64) -> bool + Send + Sync + 'a,
    ) -> Self {
        let first = root.map(|root| PageAt { frame: root.page(), map, level: root.level, first_key: 0 });
        Self {
            direct,
            wanted: Box::new(wanted),
            pending: first.into_iter().collect(),
            loading: FuturesOrdered::new(),
            at_inner: false,
            loads_max: loads_max.max(1),
        }
    }

    /// The next page; `None` at the end. After one that is not whole, goes on with what does not lie below it.
    pub async fn next(&mut self) -> Option<Loaded> {
        while !self.at_inner
            && self.loading.len() < self.loads_max
            && let Some(at) = self.pending.pop()
        {
            self.at_inner = at.level > 0;
            let direct = self.direct;
            self.loading.push_back(async move { (at, direct.page(at).await) }.boxed());
        }
        let (at, page) = self.loading.next().await?;
        if at.level > 0 {
            self.at_inner = false;
            if let Ok(page) = &page {
                self.descend(&at, page);
            }
        }
        Some((at, page))
    }

    fn descend(&mut self, at: &PageAt, page: &Page) {
        let Page::Inner(children) = page else { return };
        let level = at.level - 1;
        for (slot, frame) in children.iter().rev() {
            let first_key = at.first_key | u64::from(*slot).checked_shl(span_bits(level)).unwrap_or(0);
            if (self.wanted)(first_key, last_key(level, first_key)) {
                self.pending.push(PageAt { frame: *frame, map: at.map, level, first_key });
            }
        }
    }
}
