//! The index at an object's end: what each frame is, so that an object explains itself. Sealed under the object's key.

use serde::{Deserialize, Serialize};

use super::{
    FormatError, codec,
    ids::{Codec, Epoch, FrameRef, Generation, LogPosition, ObjectRef, Sequence},
    manifest::Roots,
    object::TAG_BYTES,
};

/// The frame number that stands for the index in its nonce and associated data.
pub const INDEX_NUMBER: u32 = u32::MAX;

/// No frame has more plaintext, bytes: a frame is one block at least, and a block 16 MiB at most; pages are far smaller.
pub const FRAME_PLAIN_BYTES_MAX: u32 = 16 << 20;

/// Version 1 of an index's plaintext.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Tenure that wrote the object.
    pub generation: Generation,
    /// The object's number.
    pub sequence: Sequence,
    /// The cut whose data it holds; of pages, the cut up to which they map.
    pub epoch: Epoch,
    /// The cut is whole with the parts 0 to `parts` - 1.
    pub part: u32,
    /// Number of objects with data of the cut; 0 in an object of pages, which no cut needs to be whole.
    pub parts: u32,
    /// The newest cut with objects that this one was built on; of pages, the newest that they map.
    pub parent: Option<(Generation, Epoch)>,
    /// How far into which log the cut reaches.
    pub log: LogPosition,
    /// When the cut was packed, milliseconds since 1970.
    pub time_ms: u64,
    /// Size of the volume at the cut, bytes.
    pub size_bytes: u64,
    /// The frames, by number.
    pub frames: Vec<IndexFrame>,
    /// Runs that read as zeros from this cut on; part 0 has all of the cut's. None overlaps a frame's runs.
    pub holes: Vec<Run>,
    /// Runs whose content is lost: reading them is an error until they are overwritten.
    pub lost: Vec<Run>,
    /// In the last object of a checkpoint: the maps that it brought.
    pub maps: Option<Maps>,
}

/// The maps as of a checkpoint, so that they are found where no manifest is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maps {
    /// Their roots.
    pub roots: Roots,
    /// Blocks with data in them.
    pub mapped_blocks: u64,
}

/// A run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// First block.
    pub block: u64,
    /// Number of blocks, more than zero.
    pub count: u64,
}

impl Run {
    /// Ascending and apart: those that touch or overlap made one.
    #[must_use]
    pub fn join(mut runs: Vec<Self>) -> Vec<Self> {
        runs.sort_unstable_by_key(|run| run.block);
        let mut joined: Vec<Self> = Vec::with_capacity(runs.len());
        for run in runs {
            match joined.last_mut() {
                Some(last) if run.block <= last.block + last.count => {
                    last.count = last.count.max(run.block + run.count - last.block);
                }
                _ => joined.push(run),
            }
        }
        joined
    }

    /// The block after the run, where that is a number.
    #[must_use]
    pub fn end(&self) -> Option<u64> {
        self.block.checked_add(self.count)
    }
}

/// One frame as its object's index describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexFrame {
    /// Where it begins in the object, bytes.
    pub offset: u64,
    /// Length in the object, tag included, bytes.
    pub stored_bytes: u32,
    /// Length of its plaintext, bytes.
    pub plain_bytes: u32,
    /// How the plaintext was packed.
    pub codec: Codec,
    /// What it holds.
    pub kind: FrameKind,
}

impl IndexFrame {
    /// Its runs of blocks; none for a page.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        match &self.kind {
            FrameKind::Data(runs) => runs,
            FrameKind::Page { .. } => &[],
        }
    }
}

/// What a frame holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FrameKind {
    /// Blocks: these runs, ascending, their content one after the other.
    Data(Vec<Run>),
    /// A page of a map.
    Page {
        /// Which map.
        map: MapKind,
        /// 0: a leaf.
        level: u8,
        /// First key of the range that the page covers.
        first_key: u64,
    },
}

/// The three maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MapKind {
    /// Block → place.
    Blocks,
    /// Object number → what is known of it.
    Objects,
    /// Snapshot number → name and epoch.
    Snapshots,
}

impl Index {
    /// Plaintext bytes, to be sealed.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        codec::encode("object index", self)
    }

    /// Reads opened plaintext of the index at `offset` of its object, and checks that the frames before it lie one after
    /// the other, hold what their runs say, and no block twice.
    pub fn decode(plain: &[u8], offset: u64, block_bytes: u32) -> Result<Self, FormatError> {
        let index: Self = codec::decode("object index", plain)?;
        index
            .check(offset, block_bytes)
            .map_err(|detail| FormatError::Malformed { what: "object index", detail })?;
        Ok(index)
    }

    fn check(&self, offset: u64, block_bytes: u32) -> Result<(), &'static str> {
        if self.maps.as_ref().is_some_and(|maps| !maps.roots.are_bounded()) {
            return Err("root of a map");
        }
        if self.parts > 0 && self.part >= self.parts {
            return Err("part of a cut");
        }
        let mut end = super::object::HEADER_BYTES as u64;
        for frame in &self.frames {
            if frame.offset != end {
                return Err("frames do not follow each other");
            }
            let is_bounded =
                frame.plain_bytes <= FRAME_PLAIN_BYTES_MAX && frame.stored_bytes as usize >= TAG_BYTES;
            end = end
                .checked_add(frame.stored_bytes.into())
                .filter(|_| is_bounded)
                .ok_or("length of a frame")?;
            if let FrameKind::Data(runs) = &frame.kind {
                let blocks = check_runs(runs)?;
                if blocks.checked_mul(block_bytes.into()) != Some(frame.plain_bytes.into()) {
                    return Err("runs of a frame");
                }
            }
        }
        if end != offset {
            return Err("frames do not end where the index begins");
        }
        check_runs(&self.holes)?;
        check_runs(&self.lost)?;
        let mut all: Vec<Run> = self.frames.iter().flat_map(IndexFrame::runs).copied().collect();
        all.extend(self.holes.iter().chain(&self.lost));
        all.sort_unstable_by_key(|run| run.block);
        check_runs(&all).map(|_| ())
    }

    /// Where frame `number` is.
    #[must_use]
    pub fn place(&self, object: ObjectRef, number: u32) -> Option<FrameRef> {
        let frame = self.frames.get(number as usize)?;
        Some(FrameRef {
            object,
            number,
            offset: frame.offset,
            stored_bytes: frame.stored_bytes,
            plain_bytes: frame.plain_bytes,
            codec: frame.codec,
        })
    }
}

/// Ascending, apart, not empty; the number of blocks in them.
fn check_runs(runs: &[Run]) -> Result<u64, &'static str> {
    let mut end = 0;
    let mut blocks = 0_u64;
    for run in runs {
        if run.count == 0 || run.block < end {
            return Err("order of runs");
        }
        end = run.end().ok_or("length of a run")?;
        blocks = blocks.checked_add(run.count).ok_or("length of runs")?;
    }
    Ok(blocks)
}
