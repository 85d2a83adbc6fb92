//! `s3bd recover`: uploads what the log of this host holds, and closes the volume.

use anyhow::Context;
use clap::Args;

use super::{
    open::close,
    progress::{describe_lost_log, describe_replay, show_upload},
    say,
    secret::SecretArgs,
    serve::Signals,
    size::show_size,
    target::Target,
};
use crate::{
    seal::frame::Compression,
    volume::{
        open::{Agreed, OpenReport, inspect, open},
        settings::Settings,
    },
};

/// Upload what the local log holds.
#[derive(Debug, Args)]
pub(super) struct Recover {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    secret: SecretArgs,
    /// Say what would be done, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Take the volume from a host that has not closed it.
    #[arg(long)]
    takeover: bool,
    /// Give up what the local log holds of a history that another writer has overtaken.
    #[arg(long)]
    discard: bool,
    /// Go on although the bucket holds an older state than this host has seen.
    #[arg(long)]
    accept_rollback: bool,
}

impl Recover {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let name = self.target.name();
        let (outside, bucket) = self.target.unlock(&self.secret).await?;
        let agreed =
            Agreed { takeover: self.takeover, rollback: self.accept_rollback, discard: self.discard };
        if self.dry_run {
            let report = inspect(&outside.env, &bucket, agreed).await.with_context(|| name.clone())?;
            self.say(&report);
            say("nothing was changed");
            return Ok(());
        }
        let mut signals = Signals::catch()?;
        let compression = Compression::of(bucket.header.compression);
        let opened = open(outside.env, bucket, Settings { compression, ..Settings::default() }, agreed).await;
        let (volume, report) = opened.with_context(|| name.clone())?;
        self.say(&report);
        let uploaded = async {
            tokio::select! {
                result = volume.sync() => result.map(|()| true),
                () = signals.next() => Ok(false),
            }
        };
        let core = std::sync::Arc::clone(volume.core());
        let done = tokio::select! {
            result = uploaded => result.with_context(|| name.clone())?,
            () = show_upload(core, "uploading") => true,
        };
        if !done {
            anyhow::bail!(
                "{name}: interrupted: what was not uploaded is still in the local log; run it again"
            );
        }
        close(&volume, &mut signals, &name).await?;
        let epoch = volume.core().progress.borrow().epoch;
        let published = match report.replayed.records {
            0 => "nothing was left to upload".to_owned(),
            records => format!("{records} writes ({}) were uploaded", show_size(report.replayed.bytes)),
        };
        say(format_args!(
            "{name}: {published}: everything is in the bucket, as epoch {epoch}; the volume is closed"
        ));
        Ok(())
    }

    fn say(&self, report: &OpenReport) {
        let newest = &report.newest;
        say(format_args!(
            "{}: the newest epoch in the bucket is {} of generation {}, published {} by {}{}",
            self.target.name(),
            newest.epoch,
            newest.generation,
            crate::volume::format_time(newest.time_ms),
            newest.writer.host,
            if report.was_clean { ", which closed the volume" } else { ", which did not close the volume" },
        ));
        if report.has_log || report.was_clean {
            say(describe_replay(&report.replayed));
        } else {
            say(describe_lost_log(newest));
        }
        if report.given_up.records > 0 {
            say(format_args!(
                "{} writes ({}) of a history that was overtaken are given up",
                report.given_up.records,
                show_size(report.given_up.bytes)
            ));
        }
    }
}
