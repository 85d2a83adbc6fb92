//! Carrying a plan out on an open volume.

use serde::Serialize;

use super::{
    original,
    plan::{Plan, Step, object_of},
};
use crate::{
    format::{ids::FrameRef, names},
    fsck::{
        detail::FrameAt,
        progress::{Progress, Stage},
    },
    volume::{Volume, error::VolumeError, snapshots::Change},
};

/// What a repair did. It counts when the volume is closed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Bytes written anew.
    pub rewritten_bytes: u64,
    /// Bytes marked as lost.
    pub lost_bytes: u64,
    /// Pages written anew.
    pub moved_pages: u64,
    /// Objects that were put back under their own names, as they were uploaded.
    pub objects_put_back: u64,
    /// Snapshots that are not kept any more for clones that are not there.
    pub released_pins: u64,
    /// What was not done, in words: the copy that the plan counted on is gone, or what it gave up is whole again.
    pub failed: Vec<String>,
}

/// Carries out the steps of `plan` on the volume that [`super::begin`] opened; what was written since the plan was made, out of
/// this host's log, stays as it is. Dropped or killed at any point, it leaves a volume for which another plan can be made.
///
/// # Errors
/// What ends the tenure, and maps that cannot be laid: then the volume is to be dropped and not closed, since closing
/// publishes what the log holds onto the damaged ones. Other steps that fail by themselves are in the report.
pub async fn apply(volume: &Volume, plan: &Plan, progress: &dyn Progress) -> Result<Applied, VolumeError> {
    progress.begin(Stage::Repair, Some(plan.steps.len() as u64));
    let mut applied = Applied::default();
    for step in &plan.steps {
        if !matches!(step, Step::EarlierMaps { .. }) {
            // The maps are the first step. What is written anew goes through the log, which may need room.
            volume.core().release_cuts();
        }
        match carry_out(volume, step, &mut applied).await {
            Ok(()) => {}
            Err(error) if error.is_damage() && !matches!(step, Step::EarlierMaps { .. }) => {
                applied.failed.push(error.to_string())
            }
            Err(error) => return Err(error),
        }
        progress.advance(1);
    }
    volume.core().release_cuts();
    Ok(applied)
}

async fn carry_out(volume: &Volume, step: &Step, applied: &mut Applied) -> Result<(), VolumeError> {
    let core = volume.core();
    match step {
        Step::Rewrite { at, blocks, .. } => {
            for run in &blocks.runs {
                applied.rewritten_bytes += core.rewrite(*run, at).await?;
            }
        }
        Step::MarkLost { at, blocks } => {
            for run in &blocks.runs {
                match core.mark_lost(*run, at).await? {
                    Some(bytes) => applied.lost_bytes += bytes,
                    None => {
                        applied.failed.push(whole_again(at));
                        break;
                    }
                }
            }
        }
        Step::EarlierMaps { maps } => core.rebase(maps).await?,
        Step::MovePage { page, .. } => {
            core.moving().push(*page);
            applied.moved_pages += 1;
        }
        Step::PutBack { known } => match original::put_back(core, known).await? {
            true => applied.objects_put_back += 1,
            false => applied.failed.push(format!(
                "{}: not put back: it is not what it was when the plan was made: run s3bd fsck again",
                object_of(known)
            )),
        },
        Step::Checkpoint { .. } => core.checkpoint().await?,
        Step::ReleasePin { volume, .. } => {
            core.change(Change::Release(*volume)).await?;
            applied.released_pins += 1;
        }
        Step::RemoveUnfinished => core.bucket.store.delete(&[names::HEADER_UNFINISHED.to_owned()]).await?,
        Step::LosePage { page, run } => match core.mark_unmapped_lost(*page, *run).await? {
            Some(bytes) => applied.lost_bytes += bytes,
            None => applied.failed.push(whole_again(&page.frame)),
        },
    }
    Ok(())
}

fn whole_again(frame: &FrameRef) -> String {
    format!("{}: whole again, so nothing was marked as lost: run s3bd fsck again", FrameAt::from(frame))
}
