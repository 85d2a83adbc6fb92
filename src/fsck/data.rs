//! Reading data: the frames that the volume's blocks lie in, fetched in groups, opened and unpacked on all processors.
//!
//! Extents come in the order of blocks. They are gathered up to [`EXTENTS_MAX`] and then sorted by frame, so that a
//! frame that many of them share is read once, and neighbours in an object by one request.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::stream::{StreamExt, TryStreamExt};

use super::{Blocks, Check, Finding, Sample};
use crate::{
    format::{
        ids::{FrameRef, Generation, Sequence, VolumeId},
        index::Run,
    },
    volume::{
        error::{FrameError, VolumeError},
        walk::Direct,
    },
};

/// Extents gathered: some 20 MiB of memory, and at 4 KiB each a gigabyte of data.
const EXTENTS_MAX: usize = 256 << 10;
/// Frames this far apart in one object are fetched by one request, as when the volume is read.
const GAP_BYTES_MAX: u64 = 128 << 10;
/// No single request fetches more than this.
const FETCH_BYTES_MAX: u64 = 4 << 20;

type FrameName = (Generation, Sequence, u32);

fn name(frame: &FrameRef) -> FrameName {
    (frame.object.generation, frame.object.sequence, frame.number)
}

/// Reads the frames of extents, all or a sample.
pub(super) struct Reader {
    sample: Option<Sample>,
    extents: Vec<(Arc<FrameRef>, Run)>,
    damaged: BTreeMap<FrameName, (FrameRef, FrameError, Blocks)>,
}

impl Reader {
    /// Without a sample it reads nothing.
    pub(super) fn new(sample: Option<Sample>) -> Self {
        Self { sample, extents: Vec::new(), damaged: BTreeMap::new() }
    }

    /// Takes an extent, and reads what was gathered when that is enough.
    pub(super) async fn add(
        &mut self,
        check: &mut Check<'_>,
        frame: Arc<FrameRef>,
        run: Run,
    ) -> Result<(), VolumeError> {
        if !self.sample.is_some_and(|sample| sample.takes(&frame)) {
            check.progress.advance(run.count);
            return Ok(());
        }
        self.extents.push((frame, run));
        if self.extents.len() >= EXTENTS_MAX { self.flush(check).await } else { Ok(()) }
    }

    /// Reads what was gathered.
    pub(super) async fn flush(&mut self, check: &mut Check<'_>) -> Result<(), VolumeError> {
        let mut extents = std::mem::take(&mut self.extents);
        // Stable: the runs of one frame stay in the order of blocks.
        extents.sort_by_key(|(frame, _)| name(frame));
        let mut frames: Vec<(FrameRef, u64)> = Vec::new();
        for (frame, run) in &extents {
            match frames.last_mut() {
                Some((last, blocks)) if *last == **frame => *blocks += run.count,
                _ => frames.push((**frame, run.count)),
            }
        }
        let groups = frames.chunk_by(joins()).map(|group| read_group(check.direct.clone(), group.to_vec()));
        let mut groups =
            futures::stream::iter(groups.collect::<Vec<_>>()).buffered(check.loads_max()).boxed();
        let mut damaged = Vec::new();
        while let Some(read) = groups.try_next().await? {
            check.report.counts.frames += read.frames;
            check.report.counts.frame_bytes += read.bytes;
            damaged.extend(read.damaged);
            check.progress.advance(read.blocks);
        }
        for (frame, error) in damaged {
            let first = extents.partition_point(|(other, _)| name(other) < name(&frame));
            let entry = self.damaged.entry(name(&frame)).or_insert((frame, error, Blocks::default()));
            let hit = extents[first..].iter().take_while(|(other, _)| name(other) == name(&frame));
            hit.filter(|(other, _)| **other == frame).for_each(|(_, run)| entry.2.add(*run));
        }
        Ok(())
    }

    /// Objects of the volume `own` that turned out to be missing.
    pub(super) fn missing(&self, own: VolumeId) -> impl Iterator<Item = (Generation, Sequence)> + '_ {
        let missing = self
            .damaged
            .iter()
            .filter(move |(_, (frame, error, _))| *error == FrameError::Missing && frame.object.owner == own);
        missing.map(|((generation, sequence, _), _)| (*generation, *sequence))
    }

    /// These objects may be missing.
    pub(super) fn forget(&mut self, names: &BTreeSet<(Generation, Sequence)>) {
        self.damaged.retain(|(generation, sequence, _), (_, error, _)| {
            *error != FrameError::Missing || !names.contains(&(*generation, *sequence))
        });
    }

    /// What is damaged, each frame with the blocks in it.
    pub(super) fn findings(self) -> Vec<Finding> {
        let damaged = self.damaged.into_values();
        damaged.map(|(frame, error, blocks)| Finding::Frame { at: (&frame).into(), blocks, error }).collect()
    }
}

impl Sample {
    /// Whether `frame` is in it.
    fn takes(&self, frame: &FrameRef) -> bool {
        if self.percent >= 100.0 {
            return true;
        }
        let mut state = self.seed;
        for number in [frame.object.generation.0, frame.object.sequence.0, frame.number.into()] {
            state = mix(state ^ number);
        }
        // 2^-53: as many bits as a fraction has.
        ((state >> 11) as f64) * 2_f64.powi(-53) * 100.0 < self.percent
    }
}

/// One step of SplitMix64 (Steele, Lea, Flood 2014): every bit of the answer depends on every bit of `state`.
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What came of a group of frames.
#[derive(Default)]
struct Read {
    frames: u64,
    bytes: u64,
    blocks: u64,
    damaged: Vec<(FrameRef, FrameError)>,
}

/// Reads neighbours by one request; those that are not whole again, each alone.
async fn read_group(direct: Direct, group: Vec<(FrameRef, u64)>) -> Result<Read, VolumeError> {
    let (Some((first, _)), Some((last, _))) = (group.first().copied(), group.last()) else {
        return Ok(Read::default());
    };
    let mut read = Read { blocks: group.iter().map(|(_, blocks)| blocks).sum(), ..Read::default() };
    let end = last.offset.saturating_add(last.stored_bytes.into());
    let again = match direct.get(&first, end - first.offset).await {
        Ok(bytes) => {
            let opener = direct.clone();
            let frames = group.clone();
            let opened =
                tokio::task::spawn_blocking(move || open_all(&opener, &first, &frames, &bytes)).await;
            match opened {
                Ok(again) => again,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => return Err(VolumeError::Closed),
                },
            }
        }
        Err(error) if error.is_damage() => group.iter().map(|(frame, _)| *frame).collect(),
        Err(error) => return Err(error),
    };
    let mut whole = group.iter().map(|(frame, _)| *frame).collect::<Vec<_>>();
    for frame in again {
        match direct.load(&frame).await {
            Ok(_) => {}
            Err(VolumeError::DamagedFrame { error, .. }) => {
                whole.retain(|other| *other != frame);
                read.damaged.push((frame, error));
            }
            Err(error) => return Err(error),
        }
    }
    read.frames = whole.len() as u64;
    read.bytes = whole.iter().map(|frame| u64::from(frame.stored_bytes)).sum();
    Ok(read)
}

/// The frames that do not open.
fn open_all(direct: &Direct, first: &FrameRef, group: &[(FrameRef, u64)], bytes: &[u8]) -> Vec<FrameRef> {
    let opens = |frame: &FrameRef| {
        let start = (frame.offset - first.offset) as usize;
        let stored = bytes.get(start..start.saturating_add(frame.stored_bytes as usize));
        stored.is_some_and(|stored| direct.open(frame, stored).is_ok())
    };
    group.iter().map(|(frame, _)| *frame).filter(|frame| !opens(frame)).collect()
}

/// Whether two frames that follow each other in a sorted list belong to one request; for `chunk_by`, so it keeps
/// count of the group it is in.
fn joins() -> impl FnMut(&(FrameRef, u64), &(FrameRef, u64)) -> bool {
    let mut group_start = None;
    move |(before, _), (after, _)| {
        let start = *group_start.get_or_insert(before.offset);
        let end = before.offset.saturating_add(before.stored_bytes.into());
        let joined = before.object == after.object
            && after.offset >= end
            && after.offset - end <= GAP_BYTES_MAX
            && (after.offset - start).saturating_add(after.stored_bytes.into()) <= FETCH_BYTES_MAX;
        if !joined {
            group_start = Some(after.offset);
        }
        joined
    }
}
