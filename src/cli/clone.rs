//! `s3bd clone`: a writable volume that shares what a snapshot of another one holds, or a full copy of it.

use std::sync::Arc;

use anyhow::Context;
use clap::Args;

use super::{
    exit,
    new_secret::{CostArgs, NewSecretArgs},
    progress::Bytes,
    say,
    secret::SecretArgs,
    serve::Signals,
    size::show_size,
    target::Target,
};
use crate::{
    control::{Answer, Request},
    format::slot::Argon2,
    seal::{frame::Compression, slot::Secret},
    store::location::Location,
    volume::{
        bucket::Bucket,
        clone::{NewClone, begin},
        env::Env,
        full_copy::copy_in_full,
        info::SnapshotInfo,
        open::manifest_of_snapshot,
        rescue::Destination,
        settings::Settings,
    },
};

/// Make a writable volume of what a snapshot holds. It shares the blocks, so it is made at once, whatever they are; each of
/// the two is written, opened and closed by itself, on any host. Of a volume alone a snapshot is taken first; it may be open
/// on this host. The snapshot stays as long as the clone depends on it.
#[derive(Debug, Args)]
pub(super) struct Clone {
    /// BUCKET/VOLUME, BUCKET/VOLUME@SNAPSHOT, or the same of file:DIR/VOLUME.
    #[command(flatten)]
    target: Target,
    /// The new volume: BUCKET/NEW in the same bucket, or file:DIR/NEW in the same directory; anywhere with --full.
    #[arg(value_name = "NEW")]
    new: Location,
    /// Copy everything: the new volume depends on nothing. Run again, an interrupted copy of a snapshot that you name goes on.
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    new_secret: CloneSecretArgs,
    #[command(flatten)]
    cost: CostArgs,
}

/// The secret of the new volume.
#[derive(Debug, Args)]
struct CloneSecretArgs {
    #[command(flatten)]
    new: NewSecretArgs,
    /// The new volume opens with the secret that opens the old one.
    #[arg(long, help_heading = "New secret", conflicts_with = "NewSecretArgs")]
    same_secret: bool,
    /// The new volume has no password: whoever reads the bucket reads its data, and all that the old volume has, too, unless
    /// it is a full copy.
    #[arg(long, help_heading = "New secret", conflicts_with_all = ["NewSecretArgs", "same_secret"])]
    new_no_password: bool,
}

/// The volume that is cloned, unlocked.
struct Origin {
    target: Target,
    env: Env,
    bucket: Bucket,
}

/// The volume that is made.
struct Made<'a> {
    target: Target,
    env: Env,
    secret: &'a Secret,
    cost: Argon2,
}

impl Clone {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let target = self.target.without_snapshot();
        let new = target.at(self.new.clone());
        if !self.full && !target.is_beside(&new) {
            let text = format!(
                "{} is not beside {}: a clone shares objects, so it is in the same bucket; --full copies anywhere",
                new.name(),
                target.name()
            );
            return Err(exit::usage(text));
        }
        if self.new_secret.new.recovery_key {
            let text = "a recovery key is added to a volume that has another secret: run s3bd key add --recovery-key afterwards";
            return Err(exit::usage(text));
        }
        let cost = self.cost.cost()?;
        let (env, new_env) = (target.outside().await?.env, new.outside().await?.env);
        let (header, _) = Bucket::header(&*env.store).await.with_context(|| target.name())?;
        let secret = self.secret.obtain(&target.name(), header.protection).await?;
        let bucket = Bucket::unlock(Arc::clone(&env.store), &secret).await.with_context(|| target.name())?;
        let origin = Origin { target, env, bucket };
        if let Some(snapshot) = self.target.snapshot() {
            // Before anything is begun.
            manifest_of_snapshot(&origin.bucket, snapshot).await.with_context(|| self.target.name())?;
        }
        let chosen = self.new_secret.choose(&new, &new_env)?;
        let made = Made { target: new, env: new_env, secret: chosen.as_ref().unwrap_or(&secret), cost };
        match self.full {
            true => self.copy(&origin, &made).await,
            false => self.share(&origin, &made).await,
        }
    }

    async fn share(&self, origin: &Origin, made: &Made<'_>) -> anyhow::Result<()> {
        let name = made.target.name();
        let Made { secret, cost, .. } = *made;
        let new = NewClone { name: made.target.volume(), secret, cost };
        let begun = begin(&made.env, &origin.bucket, &new).await.with_context(|| name.clone())?;
        let wanted = self.target.snapshot().map(str::to_owned);
        let request = Request::SnapshotPin { name: wanted, clone: begun.reference() };
        let pinned = match origin.perform(&request).await {
            Ok(pinned) => pinned,
            Err(error) => {
                // Whatever became of the pin: without the clone it holds nothing.
                begun.undo().await.with_context(|| name.clone())?;
                return Err(error);
            }
        };
        let manifest = manifest_of_snapshot(&origin.bucket, &pinned.name).await;
        let manifest = manifest.with_context(|| origin.target.name())?;
        let done = begun.finish(&origin.bucket, origin.target.volume(), &manifest).await;
        done.with_context(|| name.clone())?;
        say(format_args!(
            "{name}: made a clone of {}@{} ({}), {}; the snapshot stays as long as the clone depends on it",
            origin.target.name(),
            pinned.name,
            show_size(pinned.size_bytes),
            protection(secret),
        ));
        Ok(())
    }

    async fn copy(&self, origin: &Origin, made: &Made<'_>) -> anyhow::Result<()> {
        let name = made.target.name();
        let (snapshot, is_ours) = match self.target.snapshot() {
            Some(snapshot) => (snapshot.to_owned(), false),
            None => {
                let copy = made.target.volume().to_owned();
                (origin.perform(&Request::SnapshotCreateFor { copy }).await?.name, true)
            }
        };
        let copied = self.copy_snapshot(origin, made, &snapshot).await;
        if is_ours {
            // Complete or not: the next attempt takes another one.
            origin.perform(&Request::SnapshotDelete { name: snapshot.clone() }).await?;
        }
        let copied_bytes = copied?;
        say(format_args!(
            "{name}: made a full copy of {}@{snapshot} ({} copied), {}; it depends on nothing",
            origin.target.name(),
            show_size(copied_bytes),
            protection(made.secret),
        ));
        Ok(())
    }

    async fn copy_snapshot(&self, origin: &Origin, made: &Made<'_>, snapshot: &str) -> anyhow::Result<u64> {
        let name = made.target.name();
        let base = manifest_of_snapshot(&origin.bucket, snapshot).await;
        let base = base.with_context(|| origin.target.name())?;
        let compression = Compression::of(origin.bucket.header.compression);
        let settings = Settings { compression, ..Settings::default() };
        let Made { secret, cost, .. } = *made;
        let destination = Destination { env: made.env.clone(), secret, cost, settings };
        let mut signals = Signals::catch()?;
        let bar = Bytes::new("copying");
        tokio::select! {
            copied = copy_in_full(&origin.env, &origin.bucket, &base, destination, |bytes| bar.show(bytes)) => {
                copied.context(name)
            }
            () = signals.next() => anyhow::bail!("{name}: interrupted: the volume is not finished; s3bd remove clears it"),
        }
    }
}

impl CloneSecretArgs {
    /// The secret that was chosen; none: that of the old volume.
    fn choose(&self, target: &Target, env: &Env) -> anyhow::Result<Option<Secret>> {
        if self.same_secret {
            return Ok(None);
        }
        if self.new_no_password {
            return Ok(Some(Secret::Nothing));
        }
        Ok(Some(self.new.choose(&target.name(), env)?.secret))
    }
}

impl Origin {
    async fn perform(&self, request: &Request) -> anyhow::Result<SnapshotInfo> {
        match self.target.perform_unlocked(&self.env, &self.bucket, request).await? {
            Answer::Snapshot(snapshot) => Ok(snapshot),
            answer => Err(exit::nonsense(&answer)),
        }
    }
}

fn protection(secret: &Secret) -> &'static str {
    match secret {
        Secret::Nothing => "without a password",
        Secret::Password(_) => "protected by a password",
        Secret::KeyFile(_) => "protected by a key file",
        Secret::RecoveryKey(_) => "protected by a recovery key",
    }
}
