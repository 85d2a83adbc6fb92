//! Mending what a check found: a pure plan, its application, a report.
//!
//! # Overview
//! [`survey()`] walks the maps for what they have in damaged places and looks for whole copies: in the bucket (an object whose
//! header or index is damaged still has its frames), and in this host's cache, which holds sealed frames as they were in
//! the bucket. An object that is damaged in its header or one of its two ends alone is known byte for byte, and put back as it was
//! ([`mod@original`]): a snapshot's maps name it for ever. Where a page of the newest maps has no copy, the maps of an earlier manifest and the objects since say the same.
//! [`plan()`] decides: what has a whole copy is written anew, into new objects; what has none is marked as lost, so that
//! reading it is an error until it is overwritten. [`apply()`] opens the volume as any writer does, writes, and lets the publisher
//! publish; damaged objects die by that, since no map names them any more.
//!
//! # Crash consistency
//! The bucket is changed by manifests alone, and by putting back under an object's name what its writer put there. A repair that ends early, at whatever point, leaves a volume that can be opened, and is
//! run again: what was done already is found whole. A block that the log holds in part is completed from the maps when its cut
//! is published, so no cut is closed before the maps that the plan goes on with are laid: through a damaged page the rest
//! of the block would be lost for good, and the log trimmed.
//!
//! # Not handled
//! A newest manifest or an index that it lists: `recover`. Claims, the header, key slots, the object table's figures: they have no
//! second copy.

mod apply;
mod original;
mod plan;
mod survey;
mod words;

use std::sync::Arc;

use wal::disk::Disk;

pub use self::{
    apply::{Applied, apply},
    original::Known,
    plan::{Left, Plan, Step, Suspects, plan},
    survey::{FoundFrame, FoundPage, Survey, survey},
};
use super::Report;
use crate::{
    cache::FrameCache,
    volume::{
        Volume,
        bucket::Bucket,
        env::{Env, Threads},
        error::VolumeError,
        open::{Agreed, Repair, open_repaired},
        settings::Settings,
        walk::Direct,
    },
};

/// Room in the cache beyond what is in it and what a repair may write anew out of it.
const CACHE_BYTES_SPARE: u64 = 64 << 20;

/// Makes the plan for what a check of `bucket` found. Holds this host's folder of the volume meanwhile, and changes nothing.
///
/// # Errors
/// `Locked` where another process of this host has the volume open, and what the store refuses.
pub async fn prepare(env: &Env, bucket: &Bucket, report: &Report) -> Result<Plan, VolumeError> {
    let suspects = Suspects::of(&report.findings);
    let (epoch, generation) = (report.epoch.unwrap_or_default(), report.generation.unwrap_or_default());
    let without_survey = plan(report, &Survey { epoch, generation, ..Survey::default() });
    let blocked = without_survey.left.iter().any(|left| left.remedy.is_repair());
    if suspects.is_empty() || blocked || report.epoch.is_none() {
        return Ok(without_survey);
    }
    let volume = bucket.header.volume;
    let folder = env.local.describe(volume);
    let local = env.local.open(volume).map_err(VolumeError::local(&*folder))?;
    let local = local.ok_or(VolumeError::Locked { folder })?;
    let (cache, bytes_max) = (Arc::clone(&local.cache), cache_bytes_max(&*local.cache));
    let copies = env.compute(move || FrameCache::open_inline(cache, bytes_max)).await;
    let direct = Direct { bucket: bucket.clone(), copies: Some(Arc::new(copies)) };
    let mut survey = survey(&direct, &suspects).await?;
    survey.originals = original::find_all(env, &direct, &suspects.parts, &survey).await?;
    // Put back, an object needs nothing else: every frame in it is whole.
    survey.forget_originals();
    Ok(plan(report, &survey))
}

/// So much that nothing of a cache gives way during a repair, which may need it.
fn cache_bytes_max(cache: &dyn Disk) -> u64 {
    let length = |name: &String| cache.open(name).and_then(|file| file.len()).unwrap_or(0);
    let found: u64 = cache.list().unwrap_or_default().iter().map(length).sum();
    found.saturating_mul(2).saturating_add(CACHE_BYTES_SPARE)
}

/// Opens the volume to carry out `plan`: with a claim, as any writer does. Nothing is published before [`apply()`] has laid
/// the plan's maps, or the volume is closed.
///
/// # Errors
/// Those of opening, `InUse` among them; `Invalid` where the volume was written to since the plan was made.
pub async fn begin(env: Env, bucket: Bucket, settings: Settings, plan: &Plan) -> Result<Volume, VolumeError> {
    let volume = bucket.header.volume;
    let folder = env.local.describe(volume);
    let local = env.local.open(volume).map_err(VolumeError::local(&*folder))?;
    let local = local.ok_or(VolumeError::Locked { folder })?;
    let cache_bytes_max = settings.cache_bytes_max.max(cache_bytes_max(&*local.cache));
    drop(local);
    // The cache must be there at the first read: it is loaded before `open` returns.
    let env = Env { threads: Threads::Inline, ..env };
    let settings = Settings { cache_bytes_max, ..settings };
    // What the log holds is published onto the mended maps alone: `apply` releases it.
    let held = Repair { hold_cuts: true, ..Repair::default() };
    let (volume, report) = open_repaired(env, bucket, settings, Agreed::default(), &held).await?;
    let newest = (report.newest.generation, report.newest.epoch);
    if newest == (plan.generation, plan.epoch) {
        return Ok(volume);
    }
    // Closing publishes what the log holds, onto maps that another plan may mend: then it stays in the log.
    if report.replayed.tally.records() == 0 {
        volume.close().await?;
    }
    Err(VolumeError::Invalid(
        "the volume was written to since the plan was made, and nothing was mended: run it again".to_owned(),
    ))
}
