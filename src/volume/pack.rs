//! Packing a cut: from the byte ranges of a layer to frames of blocks, in objects.
//!
//! # Invariants
//! - What is packed is exactly the state of the volume at the cut, for every block that the layer touches: a block
//!   written in part is completed from below the layer.
//! - A cut's number of objects is known before the first is built, and each says it.
//! - Blocks that are all zeros become holes; so does every block of a zeroed range.

use std::ops::Range;

use super::layer::{Content, Layer, Piece};
use crate::format::index::Run;

/// Plaintext of a frame, bytes: small enough that a random read costs little more than it wants, large enough for
/// compression to find repeats and for the index to stay a thousandth of the data.
pub const FRAME_BYTES: u64 = 64 << 10;

/// What the blocks of a cut come from.
#[derive(Clone, Debug, Default)]
pub struct CutPlan {
    /// The objects: frames of data, in the order of blocks.
    pub objects: Vec<ObjectPlan>,
}

/// One object of a cut.
#[derive(Clone, Debug, Default)]
pub struct ObjectPlan {
    /// Its frames: ascending runs whose blocks have data each.
    pub frames: Vec<Vec<Run>>,
    /// Runs of zeros.
    pub holes: Vec<Run>,
    /// Runs whose content is lost.
    pub lost: Vec<Run>,
    /// Nobody wrote these blocks: what cannot be read of them stays where it is.
    pub moved: bool,
}

/// Plans the objects of a cut: frames of [`FRAME_BYTES`], objects of `object_bytes` of plaintext at most (and at least
/// one frame). There is at least one object, since every cut must be found without its manifest.
#[must_use]
pub fn plan(layer: &Layer, block_bytes: u64, object_bytes: u64) -> CutPlan {
    let Blocks { data, holes, lost } = blocks(layer, block_bytes);
    let mut objects = objects(&data.runs, block_bytes, object_bytes, false);
    if objects.is_empty() {
        objects.push(ObjectPlan::default());
    }
    objects[0].holes = holes.runs;
    objects[0].lost = lost.runs;
    CutPlan { objects }
}

/// Plans objects for blocks that are moved: ascending runs.
#[must_use]
pub fn plan_moved(runs: &[Run], block_bytes: u64, object_bytes: u64) -> Vec<ObjectPlan> {
    objects(runs, block_bytes, object_bytes, true)
}

fn objects(data: &[Run], block_bytes: u64, object_bytes: u64, moved: bool) -> Vec<ObjectPlan> {
    let frame_blocks = (FRAME_BYTES / block_bytes).max(1);
    let frames_max = (object_bytes / (frame_blocks * block_bytes)).max(1) as usize;
    frames(data, frame_blocks)
        .chunks(frames_max)
        .map(|frames| ObjectPlan { frames: frames.to_vec(), moved, ..ObjectPlan::default() })
        .collect()
}

/// The blocks of a layer.
#[derive(Default)]
struct Blocks {
    data: Runs,
    holes: Runs,
    lost: Runs,
}

/// Runs of blocks with data, of zeros, and of what is lost, each ascending.
fn blocks(layer: &Layer, block_bytes: u64) -> Blocks {
    let Blocks { mut data, mut holes, mut lost } = Blocks::default();
    for Piece { start, end, content } in layer.pieces() {
        let touched = start / block_bytes..end.div_ceil(block_bytes);
        let whole = start.div_ceil(block_bytes)..end / block_bytes;
        match content {
            Content::Data(..) => data.add(touched),
            Content::Zero => {
                if whole.start >= whole.end {
                    data.add(touched);
                    continue;
                }
                data.add(touched.start..whole.start);
                holes.add(whole.clone());
                data.add(whole.end..touched.end);
            }
            // A block that is lost in part was written in part: whoever completes it finds out.
            Content::Lost => lost.add(whole),
        }
    }
    Blocks { data, holes, lost }
}

/// Runs under construction, in ascending order of what is added.
#[derive(Default)]
struct Runs {
    runs: Vec<Run>,
}

impl Runs {
    fn add(&mut self, blocks: Range<u64>) {
        let mut start = blocks.start;
        if let Some(last) = self.runs.last_mut() {
            let end = last.block + last.count;
            start = start.max(end);
            if start == end && start < blocks.end {
                last.count += blocks.end - start;
                return;
            }
        }
        if start < blocks.end {
            self.runs.push(Run { block: start, count: blocks.end - start });
        }
    }
}

/// Cuts runs into frames of `frame_blocks` blocks. Frames begin at multiples of their size where a run is long, so
/// that what is read together later lies in as few frames as may be.
fn frames(data: &[Run], frame_blocks: u64) -> Vec<Vec<Run>> {
    let mut frames = Vec::new();
    let mut frame: Vec<Run> = Vec::new();
    let mut room = frame_blocks;
    for run in data {
        let mut rest = *run;
        while rest.count > 0 {
            let to_boundary = frame_blocks - rest.block % frame_blocks;
            let count = rest.count.min(room).min(if rest.count >= frame_blocks { to_boundary } else { room });
            frame.push(Run { block: rest.block, count });
            rest = Run { block: rest.block + count, count: rest.count - count };
            room -= count;
            if room == 0 || (rest.count >= frame_blocks && rest.block % frame_blocks == 0) {
                frames.push(std::mem::take(&mut frame));
                room = frame_blocks;
            }
        }
    }
    if !frame.is_empty() {
        frames.push(frame);
    }
    frames
}

/// Splits the blocks of a frame by whether they are all zeros: the runs with data, their bytes, and the runs of zeros.
#[must_use]
pub fn split_zeros(runs: &[Run], plain: Vec<u8>, block_bytes: usize) -> (Vec<Run>, Vec<u8>, Vec<Run>) {
    let zero: Vec<bool> = plain.chunks_exact(block_bytes).map(is_zero).collect();
    if !zero.contains(&true) {
        return (runs.to_vec(), plain, Vec::new());
    }
    let (mut data, mut holes, mut kept) = (Runs::default(), Runs::default(), Vec::new());
    let numbers = runs.iter().flat_map(|run| run.block..run.block + run.count);
    for ((block, zero), bytes) in numbers.zip(zero).zip(plain.chunks_exact(block_bytes)) {
        if zero {
            holes.add(block..block + 1);
        } else {
            data.add(block..block + 1);
            kept.extend_from_slice(bytes);
        }
    }
    (data.runs, kept, holes.runs)
}

fn is_zero(block: &[u8]) -> bool {
    let (words, rest) = block.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::volume::payload::Payload;

    const BLOCK: u64 = 512;

    proptest! {
        #[test]
        fn every_touched_block_is_in_one_frame_or_hole(
            pieces in prop::collection::vec((0..200_000_u64, 1..70_000_u64, any::<bool>()), 0..20),
        ) {
            let mut layer = Layer::default();
            for (start, length, zero) in pieces {
                let content = if zero {
                    Content::Zero
                } else {
                    Content::Data(Payload::detached(Bytes::from(vec![1; length as usize])), 0)
                };
                layer.insert(Piece { start, end: start + length, content });
            }
            let plan = plan(&layer, BLOCK, 1 << 18);
            let mut kind = vec![0_u8; 1000];
            for object in &plan.objects {
                prop_assert!(object.frames.len() <= 4);
                for frame in &object.frames {
                    prop_assert!(frame.iter().map(|run| run.count).sum::<u64>() <= FRAME_BYTES / BLOCK);
                    prop_assert!(frame.is_sorted_by(|a, b| a.block + a.count <= b.block));
                    for block in frame.iter().flat_map(|run| run.block..run.block + run.count) {
                        prop_assert_eq!(std::mem::replace(&mut kind[block as usize], 1), 0);
                    }
                }
                prop_assert!(object.holes.is_sorted_by(|a, b| a.block + a.count <= b.block));
                for block in object.holes.iter().flat_map(|run| run.block..run.block + run.count) {
                    prop_assert_eq!(std::mem::replace(&mut kind[block as usize], 2), 0);
                }
            }
            for (block, kind) in (0_u64..).zip(kind) {
                let range = block * BLOCK..(block + 1) * BLOCK;
                let touching: Vec<Piece> = layer.overlapping(range.clone()).collect();
                let zeroed = touching.iter().all(|piece| matches!(piece.content, Content::Zero))
                    && touching.iter().map(|piece| piece.end - piece.start).sum::<u64>() == BLOCK
                    && touching.len() == 1;
                match kind {
                    0 => prop_assert!(touching.is_empty()),
                    1 => prop_assert!(!touching.is_empty()),
                    _ => prop_assert!(zeroed),
                }
            }
        }
    }

    #[test]
    fn long_runs_are_cut_at_multiples_of_a_frame() {
        let cut = frames(&[Run { block: 5, count: 40 }], 16);
        let runs: Vec<(u64, u64)> = cut.iter().map(|frame| (frame[0].block, frame[0].count)).collect();
        assert_eq!(runs, [(5, 11), (16, 16), (32, 13)]);
    }

    #[test]
    fn zero_blocks_become_holes() {
        let plain = [vec![0; 512], vec![7; 512], vec![0; 1024]].concat();
        let (data, kept, holes) = split_zeros(&[Run { block: 10, count: 4 }], plain, 512);
        assert_eq!(data, [Run { block: 11, count: 1 }]);
        assert_eq!(kept, vec![7; 512]);
        assert_eq!(holes, [Run { block: 10, count: 1 }, Run { block: 12, count: 2 }]);
    }
}
