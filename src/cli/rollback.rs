//! `s3bd rollback`: goes back to a snapshot.

use anyhow::Context;
use clap::Args;

use super::{
    confirm::confirm,
    exit::{CliError, FAILED},
    open::close,
    progress::describe_replay,
    say,
    secret::SecretArgs,
    serve::Signals,
    target::Target,
    tell,
};
use crate::{
    format::manifest::Snapshot,
    seal::frame::Compression,
    volume::{
        Volume,
        bucket::Bucket,
        env::Env,
        format_time,
        open::{Agreed, Repair, inspect, open},
        settings::Settings,
        snapshots::SnapshotTable,
    },
};

/// Go back to a snapshot: the volume holds again what it held when that was taken.
///
/// For a volume that is not open. What it holds now, the local log included, is kept as a snapshot, from which another
/// rollback comes back. Nothing is copied. If it is interrupted, the volume is what it was; run it again.
#[derive(Debug, Args)]
pub(super) struct Rollback {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    secret: SecretArgs,
    /// Keep no snapshot of what the volume holds now.
    #[arg(long)]
    no_snapshot: bool,
    /// Take the volume from a host that has not closed it.
    #[arg(long)]
    takeover: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

impl Rollback {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let (target, snapshot) = self.target.split_snapshot()?;
        let name = target.name();
        let (outside, bucket) = target.unlock(&self.secret).await?;
        let agreed = Agreed { takeover: self.takeover, ..Agreed::default() };
        let to = self.look(&outside.env, &bucket, agreed, &snapshot).await.with_context(|| name.clone())?;
        if !self.yes && !confirm(&name, &self.question(&to), FAILED)? {
            return Err(CliError { code: FAILED, text: format!("{name}: nothing was changed") }.into());
        }
        let mut signals = Signals::catch()?;
        let settings =
            Settings { compression: Compression::of(bucket.header.compression), ..Settings::default() };
        let interrupted = || anyhow::anyhow!("{name}: interrupted: the volume is what it was; run it again");
        let opened = tokio::select! {
            opened = open(outside.env, bucket, settings, agreed) => opened,
            () = signals.next() => return Err(interrupted()),
        };
        let (volume, report) = opened.with_context(|| name.clone())?;
        if !report.was_clean && report.has_log {
            tell(format_args!("{name} was not closed; {}", describe_replay(&report.replayed)));
        }
        let done = tokio::select! {
            done = self.roll_back(&volume, &name, &to) => done,
            () = signals.next() => return Err(interrupted()),
        };
        let closed = close(&volume, &mut signals, &name).await;
        say(done?);
        closed
    }

    /// Whether the volume may be opened, and the snapshot. Changes nothing.
    async fn look(
        &self,
        env: &Env,
        bucket: &Bucket,
        agreed: Agreed,
        snapshot: &str,
    ) -> anyhow::Result<Snapshot> {
        let report = inspect(env, bucket, agreed, &Repair::default()).await?;
        Ok(SnapshotTable::load(bucket, &report.newest).await?.get(snapshot)?.clone())
    }

    fn question(&self, to: &Snapshot) -> String {
        let since = match self.no_snapshot {
            true => "and give up what was written since",
            false => "and keep what it holds now as another one",
        };
        format!("go back to the snapshot {:?} of {} {since}?", to.name, format_time(to.time_ms))
    }

    async fn roll_back(&self, volume: &Volume, name: &str, to: &Snapshot) -> anyhow::Result<String> {
        let done = volume.core().roll_back(&to.name, !self.no_snapshot).await;
        let done = done.with_context(|| name.to_owned())?;
        let kept = match &done.kept {
            Some(kept) => format!("what it held before is kept as @{kept}"),
            None => "what it held before is not kept".to_owned(),
        };
        let taken = format_time(done.to.time_ms);
        Ok(format!("{name}: holds what @{} of {taken} holds, as epoch {}; {kept}", done.to.name, done.epoch))
    }
}
