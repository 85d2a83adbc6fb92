//! What changed between two epochs of a volume, told from their maps alone: no data is read.
//!
//! A block counts as changed where its place did. A place never holds two contents, so what is not named is the same; what
//! is named may be the same all the same, where it was written again or moved.

use std::collections::VecDeque;

use serde::Serialize;

use super::{bucket::Bucket, error::VolumeError, open::load_delta, walk::Direct};
use crate::{
    format::{
        manifest::Manifest,
        page::{Extent, Target},
    },
    map::compare::{Compare, MapState},
};

/// The maps of two epochs.
#[derive(Clone, Debug)]
pub struct TwoEpochs {
    before: MapState,
    after: MapState,
    block_bytes: u64,
    size_bytes: u64,
}

/// A range whose place changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// What is there in the later epoch.
    pub now: Now,
}

/// What a range is in the later epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Now {
    /// Data, which may be zeros.
    Data,
    /// Zeros.
    Zero,
    /// Its content is lost.
    Lost,
}

/// The ranges that changed, one after the other.
pub struct Ranges<'a> {
    epochs: &'a TwoEpochs,
    compare: Compare<'a, Direct>,
    found: VecDeque<Changed>,
    at_end: bool,
}

impl TwoEpochs {
    /// Reads the indexes that the two manifests list.
    ///
    /// # Errors
    /// Damage to one of them, and what the store refuses.
    pub async fn load(bucket: &Bucket, before: &Manifest, after: &Manifest) -> Result<Self, VolumeError> {
        let (top_before, top_after) =
            futures::try_join!(load_delta(bucket, before), load_delta(bucket, after))?;
        Ok(Self {
            before: MapState { root: before.roots.blocks, extents: top_before.extents },
            after: MapState { root: after.roots.blocks, extents: top_after.extents },
            block_bytes: bucket.block_bytes().into(),
            size_bytes: after.size_bytes,
        })
    }

    /// What changed; reads pages of the bucket that `direct` is of.
    #[must_use]
    pub fn ranges<'a>(&'a self, direct: &'a Direct) -> Ranges<'a> {
        let compare = Compare::new(direct, &self.before, &self.after);
        Ranges { epochs: self, compare, found: VecDeque::new(), at_end: false }
    }
}

impl Ranges<'_> {
    /// The next range, ascending and apart, within the size of the later epoch; neighbours that are the same now are one.
    ///
    /// # Errors
    /// Damage to a page, and what the store refuses.
    pub async fn next(&mut self) -> Result<Option<Changed>, VolumeError> {
        // The last one may go on.
        while self.found.len() < 2 && !self.at_end {
            match self.compare.next().await? {
                Some(extents) => extents.iter().for_each(|extent| self.add(extent)),
                None => self.at_end = true,
            }
        }
        Ok(self.found.pop_front())
    }

    fn add(&mut self, extent: &Extent) {
        let TwoEpochs { block_bytes, size_bytes, .. } = *self.epochs;
        let offset = extent.block.saturating_mul(block_bytes).min(size_bytes);
        let end = (extent.block + extent.count).saturating_mul(block_bytes).min(size_bytes);
        if offset == end {
            return;
        }
        let now = match extent.target {
            Target::Frame(..) => Now::Data,
            Target::Hole => Now::Zero,
            Target::Lost => Now::Lost,
        };
        match self.found.back_mut() {
            Some(last) if last.now == now && last.offset + last.length == offset => {
                last.length = end - last.offset
            }
            _ => self.found.push_back(Changed { offset, length: end - offset, now }),
        }
    }
}
