//! The newest epoch that this host has seen published: a bucket that holds an older one was put back.

use wal::disk::Disk;

use super::{
    bucket::{Bucket, Published},
    env::Env,
    error::VolumeError,
    local,
};
use crate::format::{
    envelope::Content,
    local::{SEEN, Seen},
};

/// What is noted in the state directory.
pub(super) fn load(state: &dyn Disk, bucket: &Bucket) -> Result<Option<Seen>, VolumeError> {
    match local::load::<Seen>(state, &bucket.keys, Content::Seen, SEEN) {
        Err(error @ VolumeError::Damaged { .. }) => {
            Err(VolumeError::SeenDamaged { detail: error.to_string() })
        }
        loaded => loaded,
    }
}

/// `RolledBack` where `newest` does not go on from what was seen.
pub(super) fn rolled_back(seen: &Seen, newest: &Published) -> Option<VolumeError> {
    let found = newest.name();
    // Epochs only grow along a line, so a higher generation with a lower epoch did not go on from what was seen: somebody
    // opened the older copy before.
    let beyond = found > (seen.generation, seen.epoch) && found.1 > seen.epoch;
    let same = found == (seen.generation, seen.epoch) && newest.link.digest == seen.digest;
    let error = VolumeError::RolledBack {
        found: found.1,
        found_generation: found.0,
        seen: seen.epoch,
        seen_generation: seen.generation,
    };
    (!beyond && !same).then_some(error)
}

/// What those are warned of who only read: `RolledBack` where the bucket is older than what this host has seen. Takes no
/// lock and makes no folder.
///
/// # Errors
/// `SeenDamaged`, and those of reading the newest manifest.
pub async fn older_than_seen(env: &Env, bucket: &Bucket) -> Result<Option<VolumeError>, VolumeError> {
    let folder = env.local.look(bucket.header.volume).map_err(VolumeError::local("state directory"))?;
    let Some(folder) = folder else { return Ok(None) };
    // Before the bucket: a writer of this host may publish meanwhile.
    let Some(seen) = load(&*folder, bucket)? else { return Ok(None) };
    Ok(rolled_back(&seen, &bucket.newest_manifest().await?))
}
