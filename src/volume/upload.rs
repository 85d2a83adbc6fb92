//! Uploading a cut: its blocks are gathered, packed into objects, sealed, and put.
//!
//! # Invariants
//! - What a cut's objects hold is the state exactly as of that cut, whatever is written or published meanwhile.

use std::sync::Arc;

use futures::stream::{StreamExt, TryStreamExt};

use super::{
    checkpoint,
    core::Core,
    error::VolumeError,
    object::{BuiltObject, CutFacts, ObjectBuilder},
    pack::{self, ObjectPlan},
    read::At,
};
use crate::{
    format::{
        ids::ObjectRef,
        index::{FrameKind, Run},
    },
    map::delta::NewObject,
};

/// Builds and uploads all objects of a cut, some at once.
pub(super) async fn upload_cut(
    core: Arc<Core>,
    facts: CutFacts,
    plans: Vec<(ObjectRef, ObjectPlan)>,
) -> Result<Vec<NewObject>, VolumeError> {
    let parts = plans.len() as u32;
    let mut uploads = Vec::with_capacity(plans.len());
    for (part, (object, plan)) in (0..).zip(plans) {
        uploads.push(upload_object(Arc::clone(&core), CutFacts { part, parts, ..facts }, object, plan));
    }
    futures::stream::iter(uploads).buffered(core.settings.uploads_max).try_collect().await
}

async fn upload_object(
    core: Arc<Core>,
    facts: CutFacts,
    object: ObjectRef,
    plan: ObjectPlan,
) -> Result<NewObject, VolumeError> {
    let _slot = core.upload_slots.acquire().await.map_err(|_| VolumeError::Closed)?;
    let at = At::Below(facts.epoch.next());
    let mut lost = plan.lost;
    let mut frames = Vec::with_capacity(plan.frames.len());
    for runs in plan.frames {
        frames.push(gather(&core, runs, at, &mut lost).await?);
    }
    let builder = ObjectBuilder::new(&core.bucket.keys, object, core.settings.compression, facts);
    let block_bytes = core.bucket.block_bytes() as usize;
    let built = core.env.compute(move || build(builder, frames, plan.holes, lost, block_bytes)).await?;
    checkpoint::put_object(&core, built).await
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
                    // Its acknowledged part goes, too: whoever asks how the volume does is told.
                    let text = format!(
                        "block {block} was written in part, cannot be completed and is unreadable until it is overwritten: \
                         {error}"
                    );
                    core.noted.note(text, core.env.clock.now_ms());
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
