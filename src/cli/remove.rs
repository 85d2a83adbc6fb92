//! `s3bd remove`: removes a volume.

use anyhow::Context;
use clap::Args;

use super::{
    confirm::confirm_by,
    exit::{CliError, FAILED},
    progress::Counted,
    say,
    secret::SecretArgs,
    target::{Outside, Target},
    tell,
};
use crate::{
    store::open::OldVersions,
    volume::{
        bucket::Bucket,
        error::VolumeError,
        pins::snapshot_name,
        remove::{Removable, Removed, clear, has_remains, look, remove},
    },
};

/// Remove a volume, with all its snapshots, from its bucket, and what this host keeps of it.
///
/// Refused while the volume is open, and while clones depend on it. Of a clone, the snapshot of its origin that it depended
/// on stays; who removes it is told which. Also clears what is left of a volume that was being
/// made or removed when that was interrupted; run again, it goes on.
#[derive(Debug, Args)]
pub(super) struct Remove {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    secret: SecretArgs,
    /// Remove it also where another host has it open, or has not closed it.
    #[arg(long)]
    takeover: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

impl Remove {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let name = self.target.name();
        let outside = self.target.outside().await?;
        let removed = self.remove(&outside, &name).await?;
        if let Some((folder, why)) = &removed.folder_left {
            tell(format_args!("{name}: {folder} stays: {why}; remove it by hand if you do not need it"));
        }
        say(format_args!("{name}: removed, with {} objects", removed.objects));
        if let Some(origin) = &removed.origin {
            let (origin, snapshot) =
                (self.target.name_beside(origin), snapshot_name(self.target.volume(), 1));
            tell(format_args!(
                "{name}: it was a clone, and the snapshot of {origin} that it depended on stays: if it was made with this clone, \
                 it is called {snapshot} (or {snapshot}-2, ...), and s3bd snapshot delete {origin}@{snapshot} removes it"
            ));
        }
        if outside.opened.old_versions().await == OldVersions::Kept {
            tell(format_args!(
                "{name}: the bucket keeps old versions of what is removed, so its data is there until those are removed, too"
            ));
        }
        Ok(())
    }

    async fn remove(&self, outside: &Outside, name: &str) -> anyhow::Result<Removed> {
        let env = &outside.env;
        match Bucket::header(&*env.store).await {
            Ok(_) => {}
            Err(error @ (VolumeError::NoVolume | VolumeError::Unfinished)) => {
                if !has_remains(&*env.store).await.with_context(|| name.to_owned())? {
                    return Err(error).with_context(|| name.to_owned());
                }
                self.ask(name, "clear what is left of a volume that is not finished?")?;
                let bar = Counted::new("removing");
                return clear(env, |objects| bar.show(objects)).await.with_context(|| name.to_owned());
            }
            Err(error) => return Err(error).with_context(|| name.to_owned()),
        }
        let bucket = self.target.unlock_in(env, &self.secret).await?;
        let found = look(env, &bucket, self.takeover).await.with_context(|| name.to_owned())?;
        let Removable { snapshots, unpublished, .. } = found;
        let mut question = match snapshots {
            0 => "remove it for good?".to_owned(),
            many => format!("remove it, and its {many} snapshots, for good?"),
        };
        if let Some(held) = unpublished {
            question = format!("{held} that are in no epoch; {question}");
        }
        self.ask(name, &question)?;
        let bar = Counted::new("removing");
        let removed = remove(env, &bucket, self.takeover, |objects| bar.show(objects)).await;
        removed.with_context(|| name.to_owned())
    }

    fn ask(&self, name: &str, question: &str) -> anyhow::Result<()> {
        if self.yes || confirm_by(name, question, &self.target.export(), FAILED)? {
            return Ok(());
        }
        Err(CliError { code: FAILED, text: format!("{name}: nothing was changed") }.into())
    }
}
