//! `s3bd fsck --repair`: shows the plan, asks, carries it out, and checks again.

use std::sync::Arc;

use anyhow::Context;
use serde::Serialize;

use super::{confirm::confirm, exit, fsck::Bar, open::close, say, serve::Signals, size::show_size, tell};
use crate::{
    fsck::{
        Options, Report, check,
        repair::{Applied, Plan, apply, begin, prepare},
    },
    seal::{frame::Compression, slot::Secret},
    volume::{
        bucket::Bucket,
        env::Env,
        error::VolumeError,
        open::{Agreed, Repair, inspect},
        settings::Settings,
        status::Waiting,
        tally::count,
    },
};

/// How a repair is to go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mode {
    pub(super) dry_run: bool,
    pub(super) yes: bool,
    pub(super) json: bool,
}

/// What came of a repair.
#[derive(Debug, Default, Serialize)]
pub(super) struct Outcome {
    /// What would be, or was, done; none where nothing can be mended.
    pub(super) plan: Option<Plan>,
    /// What was done.
    pub(super) applied: Option<Applied>,
    /// The check after it.
    pub(super) after: Option<Report>,
}

/// Repairs what `report` found, as far as `mode` and the user agree.
pub(super) async fn repair(
    env: &Env,
    secret: &Secret,
    name: &str,
    report: &Report,
    options: &Options,
    mode: Mode,
) -> anyhow::Result<Outcome> {
    let bucket = match Bucket::unlock(Arc::clone(&env.store), secret).await {
        Ok(bucket) => bucket,
        // Without header and keys there is no repair, as the findings say.
        Err(VolumeError::Damaged { .. } | VolumeError::NoSlot { .. } | VolumeError::HeaderMissing) => {
            return Ok(Outcome::default());
        }
        Err(error) => return Err(error).with_context(|| name.to_owned()),
    };
    let plan = prepare(env, &bucket, report).await.with_context(|| name.to_owned())?;
    if !mode.json {
        show(name, &plan);
    }
    let mut outcome = Outcome { plan: Some(plan.clone()), ..Outcome::default() };
    if mode.dry_run || plan.steps.is_empty() {
        if !mode.json {
            say(format_args!("{name}: nothing was changed"));
        }
        return Ok(outcome);
    }
    // Whether this host may have the volume, before anybody is asked.
    inspect(env, &bucket, Agreed::default(), &Repair::default()).await.with_context(|| name.to_owned())?;
    if !mode.yes && !confirm(name, "carry this out?", exit::USAGE)? {
        say(format_args!("{name}: nothing was changed"));
        return Ok(outcome);
    }
    outcome.applied = Some(carry_out(env.clone(), bucket.clone(), name, &plan).await?);
    let bar = Bar::new();
    let after = check(&bucket, options, &bar).await;
    bar.clear();
    outcome.after = Some(after.with_context(|| name.to_owned())?);
    Ok(outcome)
}

fn show(name: &str, plan: &Plan) {
    for line in plan.lines() {
        say(format_args!("{name}: {line}"));
    }
    let (anew, lost) = plan.blocks();
    say(format_args!(
        "{name}: the repair: {}; {} written anew, {} marked as unreadable, {} left unmended",
        count(plan.steps.len() as u64, "step"),
        count(anew, "block"),
        count(lost, "block"),
        count(plan.left.len() as u64, "finding")
    ));
}

/// Opens the volume, mends, and closes it. A signal ends it at once; what was done is in the log, and the next repair
/// goes on from there.
async fn carry_out(env: Env, bucket: Bucket, name: &str, plan: &Plan) -> anyhow::Result<Applied> {
    let mut signals = Signals::catch()?;
    let compression = Compression::of(bucket.header.compression);
    let settings = Settings { compression, ..Settings::default() };
    // An opening may die anywhere.
    let volume = tokio::select! {
        opened = begin(env, bucket, settings, plan) => opened.with_context(|| name.to_owned())?,
        () = signals.next() => anyhow::bail!("{name}: interrupted: nothing was changed; run it again"),
    };
    let bar = Bar::new();
    let applied = tokio::select! {
        applied = apply(&volume, plan, &bar) => Some(applied),
        () = signals.next() => None,
    };
    bar.clear();
    let Some(applied) = applied else {
        anyhow::bail!(
            "{name}: interrupted: what was mended or marked as unreadable so far may stay; run it again for the rest"
        );
    };
    let mut applied = applied.with_context(|| name.to_owned())?;
    close(&volume, &mut signals, name).await?;
    if let Err(incomplete) = volume.core().noted.tell_incomplete(Waiting::Sync) {
        applied.failed.push(incomplete.to_string());
    }
    let unmoved = volume.core().moving().len();
    if unmoved > 0 {
        applied.moved_pages -= unmoved as u64;
        applied.failed.push(format!("not written anew: {}", count(unmoved as u64, "page")));
    }
    for failed in &applied.failed {
        tell(format_args!("{name}: not mended: {failed}"));
    }
    tracing::info!(
        "{name}: {} written anew, {} marked as unreadable, {} written anew, {} put back",
        show_size(applied.rewritten_bytes),
        show_size(applied.lost_bytes),
        count(applied.moved_pages, "page"),
        count(applied.objects_put_back, "object")
    );
    Ok(applied)
}
