//! What a command does to a volume that is open for writing: in the server's process when it is served on this host, and
//! else in the command's own. One function for both, so that words and results are the same.

use std::{sync::Arc, time::Duration};

use anyhow::Context;

use super::{
    progress::{StoreAway, tell_unclosed},
    secret::SecretArgs,
    serve::Signals,
    target::Target,
};
use crate::{
    control::{Answer, Collected, Progress, Request, Resized, Working, client::Client},
    format::manifest::Snapshot,
    seal::frame::Compression,
    volume::{
        bucket::Bucket,
        core::Core,
        env::Env,
        error::VolumeError,
        flatten::Flattened,
        open::{Agreed, open},
        resize::{Mapped, check_size},
        settings::Settings,
        snapshots::Change,
        usage::snapshot_usage,
    },
};

/// How often people are shown how far something is.
const SHOW_INTERVAL: Duration = Duration::from_millis(200);

/// Does what `request` asks for, and tells `working` of what takes long. Dropped halfway, it is done as a whole or not at all;
/// garbage, and what a clone copies, in part.
///
/// # Errors
/// `None` where the request is none of those that are about an open volume.
pub(super) async fn perform(
    core: &Arc<Core>,
    request: &Request,
    working: &Working,
) -> Option<Result<Answer, VolumeError>> {
    let change = match request.clone() {
        Request::SnapshotCreate { name } => Change::Take(name),
        Request::SnapshotDelete { name } => Change::Delete(name),
        Request::SnapshotRename { name, to } => Change::Rename { from: name, to },
        Request::SnapshotPin { name, clone } => return Some(told(core.pin(name.as_deref(), clone).await)),
        Request::SnapshotCreateFor { copy } => return Some(told(core.take_for_clone(&copy).await)),
        Request::Collect { strays } => return Some(collect(core, strays).await),
        Request::Flatten => return Some(flatten(core, working).await),
        Request::SnapshotList => return Some(list_snapshots(core).await),
        Request::Resize { from_bytes, size_bytes, dry_run } => {
            return Some(resize(core, from_bytes, size_bytes, dry_run).await.map(Answer::Resized));
        }
        Request::Hello | Request::Status | Request::Sync => return None,
    };
    Some(told(core.change(change).await))
}

fn told(done: Result<Snapshot, VolumeError>) -> Result<Answer, VolumeError> {
    done.map(|snapshot| Answer::Snapshot((&snapshot).into()))
}

/// A new size, or what it would discard; who is connected is for the server to say.
async fn resize(
    core: &Core,
    from_bytes: u64,
    size_bytes: u64,
    dry_run: bool,
) -> Result<Resized, VolumeError> {
    let mut resized = Resized {
        from_bytes,
        size_bytes,
        discarded_bytes: None,
        discarded_exact: false,
        clients: Vec::new(),
    };
    if dry_run {
        check_size(size_bytes, core.bucket.block_bytes())?;
        let Mapped { bytes, exact } = core.mapped_from(size_bytes).await?;
        (resized.discarded_bytes, resized.discarded_exact) = (Some(bytes), exact);
    } else {
        core.resize(from_bytes, size_bytes).await?;
    }
    Ok(resized)
}

async fn collect(core: &Core, strays: bool) -> Result<Answer, VolumeError> {
    let released = core.release_stale(None).await?;
    let before = core.collecting().figures();
    let figures = core.collect().await?;
    let strays = if strays { Some(core.delete_strays().await?) } else { None };
    Ok(Answer::Collected(Collected {
        deleted_objects: figures.deleted - before.deleted,
        deleted_bytes: figures.deleted_bytes - before.deleted_bytes,
        moved_bytes: figures.moved_bytes - before.moved_bytes,
        waiting_objects: figures.waiting,
        waiting_bytes: figures.waiting_bytes,
        released_clones: released.into_iter().map(|clone| clone.name).collect(),
        stray_objects: strays.map(|strays| strays.objects),
        stray_bytes: strays.map(|strays| strays.bytes),
    }))
}

async fn flatten(core: &Core, working: &Working) -> Result<Answer, VolumeError> {
    let Flattened { origin, copied_bytes } = core.flatten(|left_bytes| working.set(left_bytes)).await?;
    Ok(Answer::Flattened { origin, copied_bytes })
}

async fn list_snapshots(core: &Arc<Core>) -> Result<Answer, VolumeError> {
    let newest = core.bucket.newest_manifest().await?;
    let snapshots = snapshot_usage(&core.bucket, &newest.manifest).await?;
    Ok(Answer::Snapshots { snapshots })
}

impl Target {
    /// Has `request` done: by the server that has the volume open on this host, or, where there is none, by opening the
    /// volume, and closing it again. Tells where the server waits for the store.
    pub(super) async fn perform(&self, secret: &SecretArgs, request: Request) -> anyhow::Result<Answer> {
        let mut away = StoreAway::new(&self.name());
        self.perform_shown(secret, request, |progress| away.show(progress)).await
    }

    /// The same; `show` is told how far it is.
    pub(super) async fn perform_shown(
        &self,
        secret: &SecretArgs,
        request: Request,
        show: impl FnMut(Progress) + Send,
    ) -> anyhow::Result<Answer> {
        match self.find_server().await? {
            Some(mut server) => server.ask(&request, show).await.with_context(|| self.name()),
            None => {
                let (outside, bucket) = self.unlock(secret).await?;
                self.perform_alone(outside.env, bucket, &request, show).await
            }
        }
    }

    /// The same for a volume that was unlocked.
    pub(super) async fn perform_unlocked(
        &self,
        env: &Env,
        bucket: &Bucket,
        request: &Request,
    ) -> anyhow::Result<Answer> {
        match self.find_server().await? {
            Some(server) => self.ask(server, request).await,
            None => self.perform_alone(env.clone(), bucket.clone(), request, |_| ()).await,
        }
    }

    /// Has `request` done by a server, and tells where that waits for the store.
    pub(super) async fn ask(&self, mut server: Client, request: &Request) -> anyhow::Result<Answer> {
        let mut away = StoreAway::new(&self.name());
        server.ask(request, |progress| away.show(progress)).await.with_context(|| self.name())
    }

    async fn perform_alone(
        &self,
        env: Env,
        bucket: Bucket,
        request: &Request,
        mut show: impl FnMut(Progress),
    ) -> anyhow::Result<Answer> {
        let name = self.name();
        let compression = Compression::of(bucket.header.compression);
        let settings = Settings { compression, ..Settings::default() };
        let (volume, report) =
            open(env, bucket, settings, Agreed::default()).await.with_context(|| name.clone())?;
        tell_unclosed(&name, &report);
        let mut signals = Signals::catch()?;
        let working = Working::default();
        let showing = async {
            loop {
                tokio::time::sleep(SHOW_INTERVAL).await;
                // That the store is away is what the log of this process tells.
                show(Progress { left_bytes: working.get(), store_away_ms: None });
            }
        };
        let answer = tokio::select! {
            answer = perform(volume.core(), request, &working) => answer,
            () = showing => None,
            () = signals.next() => Some(Err(VolumeError::Invalid("interrupted".to_owned()))),
        };
        let closed = super::open::close(&volume, &mut signals, &name).await;
        let answer = answer.unwrap_or(Err(VolumeError::ReadOnly)).with_context(|| name.clone())?;
        closed?;
        Ok(answer)
    }
}
