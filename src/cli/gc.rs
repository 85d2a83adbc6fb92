//! `s3bd gc`: gives back what nobody needs, at once and to the end.

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::{say, secret::SecretArgs, size::show_size, target::Target};
use crate::{
    control::{Answer, Collected, Request},
    volume::{
        env::{Clock, System},
        garbage::survey,
        settings::Settings,
        strays,
    },
};

/// Delete what nobody needs, and move what is left of sparse objects. An open volume does this by itself; by hand, it is
/// done at once and to the end: by the server that has the volume open on this host, or else by opening the volume.
/// Snapshots that were held for clones which are gone may be deleted afterwards.
#[derive(Debug, Args)]
pub(super) struct Gc {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    secret: SecretArgs,
    /// Change nothing, but say what would go now, and what later and why: from the bucket alone, also while the volume is open
    /// elsewhere.
    #[arg(long)]
    dry_run: bool,
    /// Delete objects as well that nothing names, left by processes that died: those of earlier tenures that are older than a
    /// day.
    #[arg(long)]
    strays: bool,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

/// What `--dry-run --json` prints.
#[derive(Debug, Serialize)]
struct Found {
    now_objects: u64,
    now_bytes: u64,
    /// Dead as well, but readers on other hosts may need them.
    later_objects: u64,
    later_bytes: u64,
    /// For so long, at most; null where none waits.
    later_in_seconds: Option<u64>,
    sparse_objects: u64,
    sparse_live_bytes: u64,
    stray_objects: Option<u64>,
    stray_bytes: Option<u64>,
}

impl Gc {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        if self.dry_run {
            return self.look().await;
        }
        let name = self.target.name();
        let request = Request::Collect { strays: self.strays };
        let collected = match self.target.perform(&self.secret, request).await? {
            Answer::Collected(collected) => collected,
            other => anyhow::bail!("the server's answer makes no sense: {other:?}"),
        };
        if self.json {
            say(serde_json::to_string_pretty(&collected)?);
            return Ok(());
        }
        let Collected { deleted_objects, deleted_bytes, moved_bytes, waiting_objects, waiting_bytes, .. } =
            collected;
        say(format_args!(
            "{name}: deleted {deleted_objects} objects ({}), moved {}",
            show_size(deleted_bytes),
            show_size(moved_bytes)
        ));
        for clone in collected.released_clones {
            say(format_args!(
                "{name}: the clone {clone} is gone or independent: no snapshot is held for it any more"
            ));
        }
        if let (Some(objects), Some(bytes)) = (collected.stray_objects, collected.stray_bytes) {
            say(format_args!("{name}: deleted {objects} strays ({})", show_size(bytes)));
        }
        if waiting_objects > 0 {
            say(format_args!(
                "{name}: {waiting_objects} objects ({}) wait for the grace time of readers on other hosts: an open volume \
                 deletes them by itself, or run this again in some minutes",
                show_size(waiting_bytes)
            ));
        }
        Ok(())
    }

    async fn look(&self) -> anyhow::Result<()> {
        let name = self.target.name();
        let (_, bucket) = self.target.unlock(&self.secret).await?;
        let now_ms = System.now_ms();
        let garbage = survey(&bucket, &Settings::default(), now_ms).await.with_context(|| name.clone())?;
        let dead = (garbage.objects, garbage.bytes);
        let (now, later) = if garbage.grace.is_some() { ((0, 0), dead) } else { (dead, (0, 0)) };
        // Begun ones count: it is an upper bound.
        let later_in_seconds = garbage.grace.map(|grace| grace.as_millis().div_ceil(1000) as u64);
        let strays = match self.strays {
            true => Some(strays::count(&bucket).await.with_context(|| name.clone())?),
            false => None,
        };
        if self.json {
            let found = Found {
                now_objects: now.0,
                now_bytes: now.1,
                later_objects: later.0,
                later_bytes: later.1,
                later_in_seconds,
                sparse_objects: garbage.sparse_objects,
                sparse_live_bytes: garbage.sparse_live_bytes,
                stray_objects: strays.map(|strays| strays.objects),
                stray_bytes: strays.map(|strays| strays.bytes),
            };
            say(serde_json::to_string_pretty(&found)?);
            return Ok(());
        }
        let count = |(objects, bytes): (u64, u64)| format!("{objects} objects ({})", show_size(bytes));
        say(format_args!("{name}: garbage that goes now: {}", count(now)));
        let why = later_in_seconds.map_or(String::new(), |seconds| {
            format!(": readers on other hosts may need them for up to {seconds} s more (the grace time)")
        });
        say(format_args!("{name}: garbage that goes later: {}{why}", count(later)));
        say(format_args!(
            "{name}: sparse: {} objects, which go later, when {} in them have been moved",
            garbage.sparse_objects,
            show_size(garbage.sparse_live_bytes)
        ));
        if let Some(strays) = strays {
            say(format_args!("{name}: strays: {}", count((strays.objects, strays.bytes))));
        }
        say(format_args!("{name}: nothing was changed"));
        Ok(())
    }
}
