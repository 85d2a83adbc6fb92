//! Reading what was collected meanwhile: the maps have moved on, and say where it is now.
//!
//! A reader finds a place in the maps, and the object there is deleted before it is read, since the maps let go of it. In the
//! volume's own process the state is newer by then, or another host has taken the volume, which ends the tenure. A read-only
//! opener reads the newest manifest, and goes on with that. A snapshot has no newer state: it was deleted.

use super::{
    bucket::{Bucket, Published},
    core::{Core, Progress},
    error::{FrameError, VolumeError},
    open::load_delta,
};
use crate::format::{ids::Epoch, manifest::Manifest};

/// Manifests that are tried one after the other: each may be outdated while what it lists is being read.
const TRIES_MAX: u32 = 5;

/// How far a state's maps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    roots: Epoch,
    delta: Epoch,
}

/// Whether an object is gone that the maps named.
pub(super) fn is_gone(error: &VolumeError) -> bool {
    matches!(
        error,
        VolumeError::DamagedFrame { error: FrameError::Missing, .. } | VolumeError::MissingObject { .. }
    )
}

/// What `look` finds at the newest epoch. Who has the volume open goes on meanwhile, and collects what newer maps do not name: an
/// object that is gone is looked for at the newest epoch by then, and is missing only where that is the same.
///
/// # Errors
/// Those of `look`, and of reading the newest manifest.
pub async fn at_newest<T, F>(bucket: &Bucket, look: impl Fn(Published) -> F + Send) -> Result<T, VolumeError>
where
    F: Future<Output = Result<T, VolumeError>> + Send,
{
    let mut newest = bucket.newest_manifest().await?;
    loop {
        let error = match look(newest.clone()).await {
            Err(error) if is_gone(&error) => error,
            looked => return looked,
        };
        let before = std::mem::replace(&mut newest, bucket.newest_manifest().await?);
        if before.link == newest.link {
            return Err(error);
        }
    }
}

impl Core {
    /// How far the maps are.
    pub(super) fn version(&self) -> Version {
        let state = self.state();
        Version { roots: state.roots.epoch, delta: state.delta.epoch }
    }

    /// Something that the maps of `version` name is gone: whether there are newer ones now, so that it is worth looking again.
    ///
    /// # Errors
    /// `Fenced` where another host has taken the volume; `NoSnapshot` where what is read is a snapshot that was deleted; what
    /// the store refuses.
    pub(super) async fn has_moved_on(&self, version: Version) -> Result<bool, VolumeError> {
        if self.version() != version {
            return Ok(true);
        }
        if let Some(viewed) = &self.viewed {
            return viewed.check(&self.bucket).await.map(|()| false);
        }
        let Some(following) = &self.following else {
            return self.check_overtaken().await.map(|()| false);
        };
        let _alone = following.lock().await;
        if self.version() != version {
            return Ok(true);
        }
        for _ in 0..TRIES_MAX {
            let newest = self.bucket.newest_manifest().await?;
            if newest.manifest.epoch <= self.progress.borrow().epoch {
                return Ok(false);
            }
            match self.go_on_with(&newest).await {
                Err(error) if is_gone(&error) => {}
                result => return result.map(|()| true),
            }
        }
        Ok(false)
    }

    /// Whoever took the volume from this writer may have collected what is gone: then the tenure is over, and nothing is damaged.
    pub(super) async fn check_overtaken(&self) -> Result<(), VolumeError> {
        if self.log.is_none() {
            return Ok(());
        }
        let ours = self.progress.borrow().generation;
        let Some(higher) = self.bucket.list_claims(Some(ours)).await?.pop() else { return Ok(()) };
        let fault = VolumeError::Fenced { ours, found: higher.0 };
        self.fail(fault.clone());
        Err(fault)
    }

    async fn go_on_with(&self, newest: &Published) -> Result<(), VolumeError> {
        let delta = load_delta(&self.bucket, &newest.manifest).await?;
        let mut state = self.state_mut();
        state.delta = delta;
        state.roots = newest.manifest.roots.clone();
        state.size_bytes = newest.manifest.size_bytes;
        state.cut_epoch = newest.manifest.epoch;
        drop(state);
        let (generation, epoch) = newest.name();
        let lsn = self.progress.borrow().lsn;
        let Manifest { nonce, time_ms, .. } = newest.manifest;
        self.progress.send_replace(Progress { generation, nonce, epoch, lsn, time_ms });
        tracing::info!(%epoch, "what was read is collected: going on with a newer epoch");
        Ok(())
    }
}
