//! What is missing, gathered by object: a page or an extent in a missing object is told with the object, not by itself.
//!
//! Numbers alone name objects: those of a clone and those of the volumes that it reads from differ.

use std::collections::{BTreeMap, BTreeSet};

use super::{Blocks, Finding, finding::object_name, object::Remnant};
use crate::{
    format::{
        ids::{FrameRef, Generation, Sequence, VolumeId},
        index::{MapKind, Run},
    },
    map::tree::{PageAt, last_key},
    volume::error::FrameError,
};

/// An object that is missing, or is not as long as it was.
#[derive(Debug)]
struct Broken {
    owner: VolumeId,
    /// What stands there now; none where it is missing.
    found: Option<Remnant>,
    expected: u64,
    listed: bool,
    pages: u64,
    blocks: Blocks,
}

/// All that is missing, and what that hits.
#[derive(Debug, Default)]
pub(super) struct Lost {
    objects: BTreeMap<(Generation, Sequence), Broken>,
    pages: Vec<(PageAt, FrameError)>,
    /// Blocks marked as lost by the maps themselves.
    pub(super) marked: Blocks,
    /// Size of the volume, blocks.
    pub(super) size_blocks: u64,
}

impl Lost {
    /// An object of `expected` bytes is not there, or `found` is.
    pub(super) fn object(
        &mut self,
        owner: VolumeId,
        name: (Generation, Sequence),
        found: Option<Remnant>,
        expected: u64,
        listed: bool,
    ) {
        let broken = Broken { owner, found, expected, listed, pages: 0, blocks: Blocks::default() };
        self.objects.insert(name, broken);
    }

    /// Whether an object is known not to be as it was.
    pub(super) fn knows(&self, name: (Generation, Sequence)) -> bool {
        self.objects.contains_key(&name)
    }

    /// Notes that `run` has its content in `frame`, and says whether that is gone with its object.
    pub(super) fn hits(&mut self, frame: &FrameRef, run: Run) -> bool {
        match self.holder(frame) {
            Some(broken) => {
                broken.blocks.add(run);
                true
            }
            None => false,
        }
    }

    /// A page that cannot be read.
    pub(super) fn page(&mut self, at: PageAt, error: FrameError) {
        self.pages.push((at, error));
    }

    /// Objects of the volume `own` in which something is missing or damaged.
    pub(super) fn damaged(&self, own: VolumeId) -> BTreeSet<(Generation, Sequence)> {
        let objects = self.objects.iter().filter(|(_, broken)| broken.owner == own).map(|(name, _)| *name);
        let pages = self.pages.iter().filter(|(at, _)| at.frame.object.owner == own);
        objects.chain(pages.map(|(at, _)| holder(&at.frame))).collect()
    }

    /// Objects of the volume `own` of which something is missing.
    pub(super) fn missing(&self, own: VolumeId) -> BTreeSet<(Generation, Sequence)> {
        let objects = self.objects.iter().filter(|(_, broken)| broken.found.is_none() && broken.owner == own);
        let pages = self
            .pages
            .iter()
            .filter(|(at, error)| *error == FrameError::Missing && at.frame.object.owner == own);
        objects.map(|(name, _)| *name).chain(pages.map(|(at, _)| holder(&at.frame))).collect()
    }

    /// These objects may be missing.
    pub(super) fn forget(&mut self, names: &BTreeSet<(Generation, Sequence)>) {
        self.objects.retain(|name, broken| broken.found.is_some() || !names.contains(name));
        self.pages.retain(|(at, error)| *error != FrameError::Missing || !names.contains(&holder(&at.frame)));
    }

    /// The broken object that `frame` is gone with.
    fn holder(&mut self, frame: &FrameRef) -> Option<&mut Broken> {
        let broken = self.objects.get_mut(&holder(frame))?;
        let end = frame.offset.saturating_add(frame.stored_bytes.into());
        let is_gone = |found: &Remnant| found.instead.is_some() || end > found.bytes;
        broken.found.as_ref().is_none_or(is_gone).then_some(broken)
    }

    /// A finding for each object, and for each page that is not gone with its object.
    pub(super) fn findings(mut self, size_blocks: u64) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (at, error) in std::mem::take(&mut self.pages) {
            let last = last_key(at.level, at.first_key);
            let last = if at.map == MapKind::Blocks { last.min(size_blocks.saturating_sub(1)) } else { last };
            let absent = matches!(error, FrameError::Missing | FrameError::Short);
            // Of what stands there instead, no frame opens, whatever its length.
            match self.holder(&at.frame).filter(|broken| absent || broken.found.is_some()) {
                Some(broken) => {
                    broken.pages += 1;
                    if at.map == MapKind::Blocks && last >= at.first_key {
                        let count = (last - at.first_key).saturating_add(1);
                        broken.blocks.add(Run { block: at.first_key, count });
                    }
                }
                None => findings.push(Finding::Page {
                    at: (&at.frame).into(),
                    map: at.map,
                    level: at.level,
                    first_key: at.first_key,
                    // Of a volume that became smaller, it may lie beyond the end.
                    last_key: last.max(at.first_key),
                    error,
                }),
            }
        }
        findings.extend(self.objects.into_iter().map(|(name, broken)| {
            let name = object_name(name);
            let Broken { found, expected, listed, pages, blocks, .. } = broken;
            match found {
                None => Finding::ObjectMissing { name, listed, pages, blocks },
                Some(Remnant { bytes: found, instead }) => {
                    Finding::ObjectLength { name, found, expected, instead, listed, pages, blocks }
                }
            }
        }));
        if !self.marked.is_empty() {
            findings.push(Finding::LostBlocks { blocks: self.marked });
        }
        findings
    }
}

/// The name of the object that a frame is in.
fn holder(frame: &FrameRef) -> (Generation, Sequence) {
    (frame.object.generation, frame.object.sequence)
}
