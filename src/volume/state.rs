//! What an open volume is at one moment: layers over deltas over the trees of the last checkpoint.
//!
//! # Invariants
//! - Newest first: the active layer, the frozen layers, the delta, the delta being checkpointed, the trees. What an
//!   earlier one says of a block hides all later ones.
//! - A frozen layer is removed in the same step that lays its cut's objects onto the delta; a delta is removed in the
//!   same step that sets the roots which hold it. So every moment is a whole state.
//! - `published_lsn <= ` the LSN at which the oldest frozen layer began `<= ` what the log has.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use wal::Lsn;

use super::{
    error::VolumeError,
    layer::{Content, Layer, Piece},
    snapshots::SnapshotTable,
};
use crate::{
    format::{
        ids::{Epoch, FrameRef},
        index::Run,
        manifest::{Root, Roots},
        page::{Extent, Target},
    },
    map::delta::Delta,
};

/// A closed cut that is not published yet.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// Its epoch.
    pub epoch: Epoch,
    /// Everything below is in it, or in an earlier one.
    pub lsn: Lsn,
    /// Size of the volume, bytes.
    pub size_bytes: u64,
    /// What was written in it.
    pub layer: Arc<Layer>,
    /// When the oldest write in it came.
    pub since: Option<tokio::time::Instant>,
}

/// Everything that a reader or a writer must see as one.
#[derive(Debug)]
pub struct State {
    /// Takes writes.
    pub active: Layer,
    /// When the oldest write in `active` came.
    pub active_since: Option<tokio::time::Instant>,
    /// Everything in layers, deltas and trees is of records below this LSN.
    pub end: Lsn,
    /// Closed cuts, oldest first.
    pub frozen: VecDeque<Frozen>,
    /// Epoch of the last cut that was closed.
    pub cut_epoch: Epoch,
    /// Published since the checkpoint that is under way, or since the last.
    pub delta: Delta,
    /// What the checkpoint under way is writing.
    pub checkpointing: Option<Arc<Delta>>,
    /// The last checkpoint.
    pub roots: Roots,
    /// Snapshots as of the newest published manifest.
    pub snapshots: SnapshotTable,
    /// Size, bytes.
    pub size_bytes: u64,
    /// The volume is closing: nothing more is written, so that what is there can be published to its end.
    pub closing: bool,
    /// Set once, when nothing more may be acknowledged: why.
    pub fault: Option<VolumeError>,
}

/// Where the bytes of a range come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Zeros.
    Zero,
    /// A log record's payload, from this offset on.
    Log(Arc<super::payload::Payload>, u64),
    /// A frame's plaintext, from this offset on.
    Frame(Arc<FrameRef>, u64),
    /// Nowhere any more.
    Lost,
}

/// A byte range and where it comes from.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The range.
    pub range: Range<u64>,
    /// Its source.
    pub source: Source,
}

/// What is known of a range without reading pages.
#[derive(Debug, Default)]
pub struct Located {
    /// Segments found, in no order.
    pub segments: Vec<Segment>,
    /// Byte ranges, each within the block runs to look up in the tree.
    pub unknown: Vec<(Range<u64>, Run)>,
    /// The tree to look them up in.
    pub root: Option<Root>,
}

impl State {
    /// Data that no published manifest holds yet, bytes; zeros are not counted.
    #[must_use]
    pub fn unpublished_bytes(&self) -> u64 {
        self.active.data_bytes() + self.frozen.iter().map(|frozen| frozen.layer.data_bytes()).sum::<u64>()
    }

    /// When the oldest write came that no published manifest holds; none where there is none.
    #[must_use]
    pub fn unpublished_since(&self) -> Option<tokio::time::Instant> {
        // Cuts are published in order; one that was closed for a snapshot alone has no writes.
        self.frozen.iter().find_map(|frozen| frozen.since).or(self.active_since)
    }

    /// Closes the cut: freezes the active layer, and a new one takes writes. Returns the cut's epoch.
    pub fn close_cut(&mut self) -> Epoch {
        self.cut_epoch = self.cut_epoch.next();
        self.frozen.push_back(Frozen {
            epoch: self.cut_epoch,
            lsn: self.end,
            size_bytes: self.size_bytes,
            layer: Arc::new(std::mem::take(&mut self.active)),
            since: self.active_since.take(),
        });
        self.cut_epoch
    }

    /// Where the bytes of `range` come from, as of now, or as of just below the frozen layer of epoch `below`.
    pub fn locate(&self, range: Range<u64>, below: Option<Epoch>, block_bytes: u64) -> Located {
        let mut pieces = Vec::new();
        let mut gaps = vec![range];
        if below.is_none() {
            gaps = self.active.resolve(gaps, &mut pieces);
        }
        let visible = |frozen: &&Frozen| below.is_none_or(|below| frozen.epoch < below);
        for frozen in self.frozen.iter().rev().filter(visible) {
            gaps = frozen.layer.resolve(gaps, &mut pieces);
        }
        let mut located = Located { root: self.roots.blocks, ..Located::default() };
        located.segments.extend(pieces.into_iter().map(Segment::from));
        for gap in gaps {
            self.locate_blocks(gap, block_bytes, &mut located);
        }
        located
    }

    fn locate_blocks(&self, gap: Range<u64>, block_bytes: u64, located: &mut Located) {
        let first = gap.start / block_bytes;
        let run = Run { block: first, count: gap.end.div_ceil(block_bytes) - first };
        let mut extents = Vec::new();
        let mut runs = self.delta.extents.resolve(&[run], &mut extents);
        if let Some(older) = &self.checkpointing {
            runs = older.extents.resolve(&runs, &mut extents);
        }
        located.segments.extend(extents.iter().map(|extent| segment(extent, &gap, block_bytes)));
        for run in runs {
            let bytes = run.block * block_bytes..(run.block + run.count) * block_bytes;
            located.unknown.push((bytes.start.max(gap.start)..bytes.end.min(gap.end), run));
        }
    }
}

impl From<Piece> for Segment {
    fn from(piece: Piece) -> Self {
        let source = match piece.content {
            Content::Zero => Source::Zero,
            Content::Lost => Source::Lost,
            Content::Data(payload, offset) => Source::Log(payload, offset),
        };
        Self { range: piece.start..piece.end, source }
    }
}

/// The part of an extent within `clip`, as bytes.
#[must_use]
pub fn segment(extent: &Extent, clip: &Range<u64>, block_bytes: u64) -> Segment {
    let start = extent.block * block_bytes;
    let range = start.max(clip.start)..((extent.block + extent.count) * block_bytes).min(clip.end);
    let source = match &extent.target {
        Target::Hole => Source::Zero,
        Target::Lost => Source::Lost,
        Target::Frame(frame, offset) => {
            Source::Frame(Arc::clone(frame), u64::from(*offset) * block_bytes + (range.start - start))
        }
    };
    Segment { range, source }
}
