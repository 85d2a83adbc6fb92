//! Uploading a cut: its blocks are gathered, packed into objects, sealed, and put.
//!
//! # Invariants
//! - What a cut's objects hold is the state exactly as of that cut, whatever is written or published meanwhile.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use futures::stream::{StreamExt, TryStreamExt};

use super::{
    checkpoint,
    claims::Tenure,
    core::Core,
    env::random_bytes,
    error::VolumeError,
    layer::Layer,
    moves::Moves,
    object::{BuiltObject, CutFacts, ObjectBuilder},
    pack::{self, ObjectPlan},
    read::At,
};
use crate::{
    format::{
        ids::{ObjectRef, Sequence},
        index::{FrameKind, Run},
    },
    map::delta::NewObject,
};

/// Bytes of neighbours that are read in one go to be moved, and how many such reads at once: enough to hide a store's latency.
const MOVED_BYTES: u64 = 1 << 20;
const READS_MAX: usize = 16;

/// A cut, as it is to be uploaded.
pub(super) struct Upload {
    pub(super) facts: CutFacts,
    /// What was written.
    pub(super) layer: Arc<Layer>,
    /// What goes along with it.
    pub(super) moves: Option<Moves>,
    /// Whether it has an object at least, so that it is found without its manifest.
    pub(super) has_objects: bool,
    pub(super) tenure: Tenure,
    /// Numbers for objects.
    pub(super) sequences: Arc<AtomicU64>,
}

/// The objects of a cut, uploaded.
#[derive(Debug)]
pub(super) struct Uploaded {
    pub(super) objects: Vec<NewObject>,
    /// Plaintext that was moved, bytes.
    pub(super) moved_bytes: u64,
}

/// Builds and uploads all objects of a cut, some at once.
pub(super) async fn upload_cut(core: Arc<Core>, upload: Upload) -> Result<Uploaded, VolumeError> {
    let Upload { facts, layer, moves, has_objects, tenure, sequences } = upload;
    if !has_objects {
        return Ok(Uploaded { objects: Vec::new(), moved_bytes: 0 });
    }
    let (block_bytes, object_bytes) = (u64::from(core.bucket.block_bytes()), core.settings.object_bytes);
    let mut plans =
        if layer.is_empty() { Vec::new() } else { pack::plan(&layer, block_bytes, object_bytes).objects };
    if let Some(moves) = &moves {
        let runs = moves.resolve(&core, At::Below(facts.epoch.next())).await?;
        plans.extend(pack::plan_moved(&runs, block_bytes, object_bytes));
    }
    if plans.is_empty() {
        plans.push(ObjectPlan::default());
    }
    let parts = plans.len() as u32;
    let mut uploads = Vec::with_capacity(plans.len());
    for (part, plan) in (0..).zip(plans) {
        let object = object(&core, tenure, &sequences);
        uploads.push(upload_object(Arc::clone(&core), CutFacts { part, parts, ..facts }, object, plan));
    }
    let objects: Vec<(NewObject, u64)> =
        futures::stream::iter(uploads).buffered(core.settings.uploads_max).try_collect().await?;
    let moved_bytes = objects.iter().map(|(_, moved_bytes)| moved_bytes).sum();
    Ok(Uploaded { objects: objects.into_iter().map(|(new, _)| new).collect(), moved_bytes })
}

/// The next object of a tenure.
pub(super) fn object(core: &Core, tenure: Tenure, sequences: &AtomicU64) -> ObjectRef {
    ObjectRef {
        owner: core.bucket.header.volume,
        generation: tenure.generation,
        sequence: Sequence(sequences.fetch_add(1, Ordering::Relaxed)),
        salt: random_bytes(&*core.env.random),
    }
}

/// The object, and the plaintext that was moved into it, bytes.
async fn upload_object(
    core: Arc<Core>,
    facts: CutFacts,
    object: ObjectRef,
    plan: ObjectPlan,
) -> Result<(NewObject, u64), VolumeError> {
    let _slot = core.upload_slots.acquire().await.map_err(|_| VolumeError::Closed)?;
    let at = At::Below(facts.epoch.next());
    let ObjectPlan { holes, mut lost, moved, .. } = plan;
    let frames = match moved {
        true => gather_moved(&core, plan.frames, at).await?,
        false => {
            let mut frames = Vec::with_capacity(plan.frames.len());
            for runs in plan.frames {
                frames.push(gather(&core, runs, at, &mut lost).await?);
            }
            frames
        }
    };
    let moved_bytes = if moved { frames.iter().map(|(_, plain)| plain.len() as u64).sum() } else { 0 };
    let builder = ObjectBuilder::new(&core.bucket.keys, object, core.settings.compression, facts);
    let block_bytes = core.bucket.block_bytes() as usize;
    let built = core.env.compute(move || build(builder, frames, holes, lost, block_bytes)).await?;
    Ok((checkpoint::put_object(&core, built).await?, moved_bytes))
}

/// The plaintext of those runs of some frames that can be read: nobody's write is lost with the others, which stay where
/// they are. Neighbours are read in one go, whatever frames they go to, since they may lie together where they come from.
async fn gather_moved(
    core: &Core,
    frames: Vec<Vec<Run>>,
    at: At,
) -> Result<Vec<(Vec<Run>, Vec<u8>)>, VolumeError> {
    let piece_blocks = MOVED_BYTES / u64::from(core.bucket.block_bytes());
    let mut pieces: Vec<Vec<Run>> = Vec::new();
    for run in frames.iter().flatten() {
        match pieces.last_mut() {
            Some(piece)
                if piece.last().is_some_and(|last| last.block + last.count == run.block)
                    && run.block + run.count - piece[0].block <= piece_blocks =>
            {
                piece.push(*run);
            }
            _ => pieces.push(vec![*run]),
        }
    }
    let reads: Vec<_> = pieces.into_iter().map(|piece| read_moved(core, piece, at)).collect();
    let read: Vec<Vec<Option<Vec<u8>>>> =
        futures::stream::iter(reads).buffered(READS_MAX).try_collect().await?;
    let mut read = read.into_iter().flatten();
    let mut gathered = Vec::with_capacity(frames.len());
    for runs in frames {
        let (mut kept, mut plain) = (Vec::with_capacity(runs.len()), Vec::new());
        for run in runs {
            if let Some(bytes) = read.next().flatten() {
                kept.push(run);
                plain.extend(bytes);
            }
        }
        gathered.push((kept, plain));
    }
    Ok(gathered)
}

/// The plaintext of runs that are neighbours; none of one that cannot be read.
async fn read_moved(core: &Core, runs: Vec<Run>, at: At) -> Result<Vec<Option<Vec<u8>>>, VolumeError> {
    let block_bytes = u64::from(core.bucket.block_bytes());
    let bytes = |run: &Run| run.block * block_bytes..(run.block + run.count) * block_bytes;
    let all = Run { block: runs[0].block, count: runs.iter().map(|run| run.count).sum() };
    match core.read_flat(bytes(&all), at).await {
        Ok(mut plain) => {
            let cut = |run: &Run| Some(plain.split_to((run.count * block_bytes) as usize).to_vec());
            return Ok(runs.iter().map(cut).collect());
        }
        Err(error) if error.is_damage() => {}
        Err(error) => return Err(error),
    }
    let mut read = Vec::with_capacity(runs.len());
    for run in &runs {
        read.push(match core.read_flat(bytes(run), at).await {
            Ok(plain) => Some(plain.to_vec()),
            Err(error) if error.is_damage() => {
                tracing::warn!(%error, "blocks that cannot be read stay in their object");
                None
            }
            Err(error) => return Err(error),
        });
    }
    Ok(read)
}

/// The plaintext of a frame's runs. Blocks that cannot be completed, since what lies below them is damaged, go to `lost`
/// instead: they were damaged before this cut, and stay so.
async fn gather(
    core: &Core,
    runs: Vec<Run>,
    at: At,
    lost: &mut Vec<Run>,
) -> Result<(Vec<Run>, Vec<u8>), VolumeError> {
    let block_bytes = u64::from(core.bucket.block_bytes());
    let mut plain = Vec::new();
    let mut kept: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        let bytes = run.block * block_bytes..(run.block + run.count) * block_bytes;
        match core.read(bytes, at).await {
            Ok(parts) => {
                parts.iter().for_each(|part| plain.extend_from_slice(part));
                kept.push(run);
                continue;
            }
            Err(error) if error.is_damage() => {
                tracing::error!(%error, "a block that was written in part cannot be completed");
            }
            Err(error) => return Err(error),
        }
        for block in run.block..run.block + run.count {
            match core.read(block * block_bytes..(block + 1) * block_bytes, at).await {
                Ok(parts) => {
                    parts.iter().for_each(|part| plain.extend_from_slice(part));
                    kept.push(Run { block, count: 1 });
                }
                Err(error) if error.is_damage() => {
                    // Its acknowledged part goes, too: whoever asks how the volume does, or syncs, is told.
                    core.noted.note_incomplete(block, &error, core.env.clock.now_ms());
                    lost.push(Run { block, count: 1 });
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok((kept, plain))
}

fn build(
    mut builder: ObjectBuilder,
    frames: Vec<(Vec<Run>, Vec<u8>)>,
    mut holes: Vec<Run>,
    mut lost: Vec<Run>,
    block_bytes: usize,
) -> Result<BuiltObject, VolumeError> {
    for (runs, plain) in frames {
        let (runs, plain, zeros) = pack::split_zeros(&runs, plain, block_bytes);
        if !runs.is_empty() {
            builder.add(FrameKind::Data(runs), &plain);
        }
        holes.extend(zeros);
    }
    holes.sort_unstable_by_key(|run| run.block);
    lost.sort_unstable_by_key(|run| run.block);
    builder.set_holes(holes);
    builder.set_lost(lost);
    checkpoint::finish(builder)
}
