//! What a takeover leaves to the host that was overtaken: a snapshot of the manifest at which its log left the line.
//!
//! # Overview
//! A host that did not close the volume may hold acknowledged writes above its last manifest. Whoever takes the volume
//! from it pins that manifest in the first of its own tenure, so that it is still there, with all that it needs, when the
//! other host comes back and its log is rescued. It is a snapshot like any other: people delete it when they have no
//! more use for it.

use super::{
    bucket::{Bucket, Published},
    claims::Tenure,
    error::{Kind, VolumeError},
    snapshots::SnapshotTable,
    survey::is_of,
};
use crate::format::{local::LogIdentity, manifest::Snapshot};

/// What the names of such snapshots begin with; the new tenure's generation follows.
const PREFIX: &str = "before-takeover-";

/// The snapshot that a tenure on top of `newest` begins with: none where the manifest was the last of its tenure, or came
/// from a log of this host.
pub(super) fn snapshot(
    tenure: Tenure,
    newest: &Published,
    identity: &LogIdentity,
    table: &SnapshotTable,
) -> Option<Snapshot> {
    let Published { manifest, link } = newest;
    if manifest.closed || identity.has(manifest.generation, manifest.nonce) {
        return None;
    }
    let mut name = format!("{PREFIX}{}", tenure.generation);
    // Somebody may have given it to another one.
    while table.get(&name).is_ok() {
        name.push_str("-again");
    }
    Some(Snapshot {
        id: manifest.next_snapshot,
        name,
        generation: link.generation,
        epoch: link.epoch,
        roots_epoch: manifest.roots.epoch,
        time_ms: manifest.time_ms,
        size_bytes: manifest.size_bytes,
        clones: Vec::new(),
    })
}

/// The newest manifest from this log that a snapshot keeps. All that a snapshot of `newest` pins is in its line.
pub(super) async fn pinned(
    bucket: &Bucket,
    newest: &Published,
    identity: &LogIdentity,
) -> Result<Option<Published>, VolumeError> {
    let table = match SnapshotTable::load(bucket, &newest.manifest).await {
        Err(error) if error.is_damage() => return Ok(None),
        table => table?,
    };
    let mut pins: Vec<_> = table.iter().map(|snapshot| (snapshot.epoch, snapshot.generation)).collect();
    pins.retain(|(_, generation)| identity.tenures.iter().any(|tenure| tenure.generation == *generation));
    pins.sort_unstable();
    for (epoch, generation) in pins.into_iter().rev() {
        match bucket.load_manifest(generation, epoch).await {
            Ok(Some(pinned)) if is_of(&pinned.manifest, identity) => return Ok(Some(pinned)),
            Ok(_) => {}
            Err(error) if error.kind() == Kind::Corrupt => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Names of the snapshots that takeovers took from the tenures of a log.
pub(super) fn taken_from(table: &SnapshotTable, identity: &LogIdentity) -> Vec<String> {
    let is_from = |snapshot: &&Snapshot| {
        let mut tenures = identity.tenures.iter();
        snapshot.name.starts_with(PREFIX) && tenures.any(|tenure| tenure.generation == snapshot.generation)
    };
    table.iter().filter(is_from).map(|snapshot| snapshot.name.clone()).collect()
}
