//! `s3bd snapshot`: names for moments of a volume.

use anyhow::Context;
use clap::{Args, Subcommand};

use super::{confirm::confirm, exit, say, secret::SecretArgs, size::show_size, target::Target};
use crate::{
    control::{Answer, Request},
    volume::{
        bucket::Published,
        follow::at_newest,
        format_time,
        usage::{SnapshotUsage, snapshot_usage},
    },
};

/// Take, list, delete and rename snapshots: also while the volume is open on this host, and written to.
#[derive(Debug, Subcommand)]
pub(super) enum Snapshot {
    /// Take a snapshot: all that was acknowledged before, and nothing after. Costs one small request or two, whatever the
    /// volume's size.
    Create(Create),
    /// List the snapshots: when they were taken, what only they hold, and what they share.
    List(List),
    /// Delete a snapshot. What only it held is removed from the bucket by and by.
    Delete(Delete),
    /// Give a snapshot another name.
    Rename(Rename),
}

/// Take a snapshot.
#[derive(Debug, Args)]
#[command(override_usage = "s3bd snapshot create [OPTIONS] <VOLUME>@<NAME>")]
pub(super) struct Create {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    secret: SecretArgs,
}

/// List the snapshots.
#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    secret: SecretArgs,
    /// Print them as JSON.
    #[arg(long)]
    json: bool,
}

/// Delete a snapshot.
#[derive(Debug, Args)]
#[command(override_usage = "s3bd snapshot delete [OPTIONS] <VOLUME>@<NAME>")]
pub(super) struct Delete {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    secret: SecretArgs,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

/// Rename a snapshot.
#[derive(Debug, Args)]
#[command(override_usage = "s3bd snapshot rename [OPTIONS] <VOLUME>@<NAME> <NEW_NAME>")]
pub(super) struct Rename {
    #[command(flatten)]
    target: Target,
    /// The new name, without the volume.
    #[arg(value_name = "NEW_NAME")]
    to: String,
    #[command(flatten)]
    secret: SecretArgs,
}

impl Snapshot {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Create(command) => command.run().await,
            Self::List(command) => command.run().await,
            Self::Delete(command) => command.run().await,
            Self::Rename(command) => command.run().await,
        }
    }
}

impl Create {
    async fn run(self) -> anyhow::Result<()> {
        let (target, name) = self.target.split_snapshot()?;
        let answer = target.perform(&self.secret, Request::SnapshotCreate { name }).await?;
        let Answer::Snapshot(taken) = answer else { return Err(exit::nonsense(&answer)) };
        say(format_args!(
            "{}@{}: taken at epoch {}, {}",
            target.name(),
            taken.name,
            taken.epoch,
            format_time(taken.time_ms)
        ));
        Ok(())
    }
}

impl List {
    /// From the server that has the volume open on this host, which needs no secret, or else from the bucket alone.
    async fn snapshots(&self) -> anyhow::Result<Vec<SnapshotUsage>> {
        let name = self.target.name();
        if let Some(server) = self.target.find_server().await? {
            let answer = self.target.ask(server, &Request::SnapshotList).await?;
            let Answer::Snapshots { snapshots } = answer else { return Err(exit::nonsense(&answer)) };
            return Ok(snapshots);
        }
        let (_, bucket) = self.target.unlock(&self.secret).await?;
        let usage = async |newest: Published| snapshot_usage(&bucket, &newest.manifest).await;
        at_newest(&bucket, usage).await.context(name)
    }

    async fn run(self) -> anyhow::Result<()> {
        let snapshots = self.snapshots().await?;
        if self.json {
            say(serde_json::to_string_pretty(&snapshots)?);
            return Ok(());
        }
        if snapshots.is_empty() {
            say(format_args!("{}: no snapshots", self.target.name()));
            return Ok(());
        }
        let width =
            snapshots.iter().map(|snapshot| snapshot.name.chars().count()).max().unwrap_or(0).clamp(4, 40);
        let row = |name: &str, taken: &str, size: &str, own: &str, shared: &str, clones: &str| {
            say(format!("{name:<width$}  {taken:<23}  {size:>10}  {own:>10}  {shared:>10}  {clones}")
                .trim_end());
        };
        row("NAME", "TAKEN", "SIZE", "ONLY HERE", "SHARED", "CLONES");
        for SnapshotUsage { name, time_ms, size_bytes, own_bytes, shared_bytes, clones, .. } in &snapshots {
            row(
                name,
                &format_time(*time_ms),
                &show_size(*size_bytes),
                &show_size(*own_bytes),
                &show_size(*shared_bytes),
                &clones.join(", "),
            );
        }
        Ok(())
    }
}

impl Delete {
    async fn run(self) -> anyhow::Result<()> {
        let (target, name) = self.target.split_snapshot()?;
        let whole = self.target.name();
        if !self.yes && !confirm(&whole, "delete this snapshot and what only it holds?", exit::USAGE)? {
            anyhow::bail!("{whole}: nothing was changed");
        }
        target.perform(&self.secret, Request::SnapshotDelete { name }).await?;
        say(format_args!("{whole}: deleted"));
        Ok(())
    }
}

impl Rename {
    async fn run(self) -> anyhow::Result<()> {
        let (target, name) = self.target.split_snapshot()?;
        let to = self.to.clone();
        target.perform(&self.secret, Request::SnapshotRename { name, to }).await?;
        say(format_args!("{}: is {}@{} now", self.target.name(), target.name(), self.to));
        Ok(())
    }
}
