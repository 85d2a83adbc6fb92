//! Extents in memory: an ordered map from block to target in which what is inserted later hides what was there.

use std::collections::BTreeMap;

use crate::format::{
    index::Run,
    page::{Extent, Target},
};

/// Runs of blocks with a target each, apart from each other.
#[derive(Clone, Debug, Default)]
pub struct ExtentMap {
    extents: BTreeMap<u64, (u64, Target)>,
}

impl ExtentMap {
    /// Number of extents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// Whether it says nothing of any block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Puts `extent` in the place of whatever its blocks had; calls `replaced` with each piece that this hides.
    pub fn insert(&mut self, extent: Extent, mut replaced: impl FnMut(Extent)) {
        let Extent { block, count, target } = extent;
        let end = block + count;
        let mut first = block;
        if let Some((&start, &(length, _))) = self.extents.range(..block).next_back()
            && start + length > block
        {
            first = start;
        }
        while let Some((&start, _)) = self.extents.range(first..end).next() {
            let (length, old) = self.extents.remove(&start).expect("just found");
            let old_end = start + length;
            if start < block {
                self.extents.insert(start, (block - start, old.clone()));
            }
            if old_end > end {
                self.extents.insert(end, (old_end - end, old.skip(end - start)));
            }
            let from = start.max(block);
            replaced(Extent { block: from, count: old_end.min(end) - from, target: old.skip(from - start) });
            first = block.max(start + 1);
        }
        self.extents.insert(block, (count, target));
    }

    /// The extents that touch `run`, clipped to it, ascending.
    pub fn overlapping(&self, run: Run) -> impl Iterator<Item = Extent> + '_ {
        let end = run.block.saturating_add(run.count);
        let first = self
            .extents
            .range(..run.block)
            .next_back()
            .filter(|(start, (length, _))| *start + length > run.block)
            .map_or(run.block, |(start, _)| *start);
        self.extents.range(first..end).map(move |(&start, (length, target))| {
            let from = start.max(run.block);
            Extent { block: from, count: (start + length).min(end) - from, target: target.skip(from - start) }
        })
    }

    /// All extents, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        self.extents.iter().map(|(&block, (count, target))| Extent {
            block,
            count: *count,
            target: target.clone(),
        })
    }

    /// Splits `runs` into what this map knows, appended to `found`, and what it does not, which is returned.
    pub fn resolve(&self, runs: &[Run], found: &mut Vec<Extent>) -> Vec<Run> {
        let mut gaps = Vec::new();
        for run in runs {
            let mut at = run.block;
            for extent in self.overlapping(*run) {
                if extent.block > at {
                    gaps.push(Run { block: at, count: extent.block - at });
                }
                at = extent.block + extent.count;
                found.push(extent);
            }
            let end = run.block + run.count;
            if at < end {
                gaps.push(Run { block: at, count: end - at });
            }
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::ids::{Codec, FrameRef, Generation, ObjectRef, Sequence, VolumeId};

    const BLOCKS: u64 = 64;

    fn target(number: u32) -> Target {
        if number == 0 {
            return Target::Hole;
        }
        let object = ObjectRef {
            owner: VolumeId([0; 16]),
            generation: Generation(1),
            sequence: Sequence(1),
            salt: [0; 16],
        };
        let frame =
            FrameRef { object, number, offset: 0, stored_bytes: 0, plain_bytes: 0, codec: Codec::Plain };
        Target::Frame(frame.into(), 0)
    }

    fn flat(extents: impl Iterator<Item = Extent>) -> Vec<Option<Target>> {
        let mut blocks = vec![None; BLOCKS as usize];
        for extent in extents {
            for i in 0..extent.count {
                blocks[(extent.block + i) as usize] = Some(extent.target.skip(i));
            }
        }
        blocks
    }

    proptest! {
        #[test]
        fn behaves_as_an_array_of_blocks(
            inserts in prop::collection::vec((0..BLOCKS, 1..BLOCKS, 0_u32..5), 0..40),
            from in 0..BLOCKS,
            length in 1..BLOCKS,
        ) {
            let mut map = ExtentMap::default();
            let mut model: Vec<Option<Target>> = vec![None; BLOCKS as usize];
            for (block, count, number) in inserts {
                let count = count.min(BLOCKS - block);
                let mut hidden = Vec::new();
                map.insert(Extent { block, count, target: target(number) }, |old| hidden.push(old));
                let range = block as usize..(block + count) as usize;
                let mut expected = vec![None; BLOCKS as usize];
                expected[range.clone()].clone_from_slice(&model[range.clone()]);
                prop_assert_eq!(flat(hidden.into_iter()), expected);
                for (i, at) in range.enumerate() {
                    model[at] = Some(target(number).skip(i as u64));
                }
            }
            prop_assert_eq!(flat(map.iter()), model.clone());
            let run = Run { block: from, count: length.min(BLOCKS - from) };
            let mut found = Vec::new();
            let gaps = map.resolve(&[run], &mut found);
            let known = flat(found.into_iter());
            for block in 0..BLOCKS {
                let inside = block >= run.block && block < run.block + run.count;
                let gap = gaps.iter().any(|gap| block >= gap.block && block < gap.block + gap.count);
                let expected = if inside { model[block as usize].clone() } else { None };
                prop_assert_eq!(gap, inside && expected.is_none());
                prop_assert_eq!(&known[block as usize], &expected);
            }
        }
    }
}
