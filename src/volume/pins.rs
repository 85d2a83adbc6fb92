//! Pins: the snapshots that clones depend on, and how it is known that one does not any more.
//!
//! A clone has its volume id in its header, under `volume`, or under `volume.unfinished` while it is made or removed. A pin
//! is stale when neither has the id that the pin names. The unfinished name is looked at first: while a clone is made it is
//! there before the pin, and goes after `volume` has come. A clone that was flattened has a note beside its header, with a
//! word that only who reads the origin's objects knows.

use bytes::Bytes;

use super::{
    bucket::{Bucket, get_whole},
    core::Core,
    error::VolumeError,
    snapshots::Change,
};
use crate::{
    format::{
        header::Header,
        ids::VolumeId,
        independent::Independent,
        manifest::{CloneRef, Snapshot},
        names,
    },
    store::{PutMode, Store, location::SNAPSHOT_BYTES_MAX},
};

/// Names tried for the snapshot of a clone that names none.
const NAMES_MAX: u32 = 1000;

/// Whether nothing is left of the clone that a snapshot of `origin` is pinned for.
///
/// # Errors
/// What the store refuses.
pub async fn is_stale(origin: &Bucket, clone: &CloneRef) -> Result<bool, VolumeError> {
    let Some(store) = origin.store.sibling(&clone.name) else { return Ok(false) };
    for name in [names::HEADER_UNFINISHED, names::HEADER] {
        if may_be(&*store, name, clone.volume).await? {
            return is_independent(origin, &*store, clone.volume).await;
        }
    }
    Ok(true)
}

/// Whether a volume says that it needs nothing of `origin` any more.
async fn is_independent(origin: &Bucket, store: &dyn Store, clone: VolumeId) -> Result<bool, VolumeError> {
    let Some(bytes) = get_whole(store, names::INDEPENDENT).await? else { return Ok(false) };
    let word = origin.keys.word_of_independence(origin.header.volume, clone);
    Ok(word.is_some() && Independent::decode(&bytes).ok() == word)
}

/// Says to `owner` that this volume, its clone, needs nothing of it any more. Durable on `Ok`.
///
/// # Errors
/// What the store refuses.
pub(super) async fn declare_independence(bucket: &Bucket, owner: VolumeId) -> Result<(), VolumeError> {
    let word = bucket.keys.word_of_independence(owner, bucket.header.volume);
    let word =
        word.ok_or_else(|| VolumeError::Invalid("the key of the volume's origin is not known".to_owned()))?;
    bucket.store.put(names::INDEPENDENT, &[Bytes::from(word.encode())], PutMode::Replace).await?;
    Ok(())
}

/// Whether the header of `volume` is there; one that is damaged may be any volume's.
async fn may_be(store: &dyn Store, name: &str, volume: VolumeId) -> Result<bool, VolumeError> {
    let Some(bytes) = get_whole(store, name).await? else { return Ok(false) };
    Ok(Header::decode(&bytes).map_or(true, |header| header.volume == volume))
}

/// A name for the snapshot that is taken for a clone called `clone`: the first of them, or one for the next tries.
#[must_use]
pub fn snapshot_name(clone: &str, number: u32) -> String {
    let plain = |c: char| if c.is_control() || matches!(c, '/' | '@') { '-' } else { c };
    let mut name = format!("clone-{}", clone.chars().map(plain).collect::<String>());
    let suffix = if number == 1 { String::new() } else { format!("-{number}") };
    while name.len() + suffix.len() > SNAPSHOT_BYTES_MAX {
        name.pop();
    }
    name + &suffix
}

impl Core {
    /// Takes a snapshot for a clone called `clone`.
    ///
    /// # Errors
    /// As [`Core::change`] has them.
    pub async fn take_for_clone(&self, clone: &str) -> Result<Snapshot, VolumeError> {
        let mut number = 1;
        loop {
            match self.change(Change::Take(snapshot_name(clone, number))).await {
                // Of an earlier clone of that name.
                Err(VolumeError::SnapshotExists { .. }) if number < NAMES_MAX => number += 1,
                taken => return taken,
            }
        }
    }

    /// Pins a snapshot for `clone`; where none is named, one that is taken now.
    ///
    /// # Errors
    /// As [`Core::change`] has them.
    pub async fn pin(&self, snapshot: Option<&str>, clone: CloneRef) -> Result<Snapshot, VolumeError> {
        let name = match snapshot {
            Some(name) => name.to_owned(),
            None => self.take_for_clone(&clone.name).await?.name,
        };
        self.change(Change::Pin(name, clone)).await
    }

    /// Releases the pins of clones that are not there any more, of one snapshot or of all. Those released.
    ///
    /// # Errors
    /// As [`Core::change`] has them, and what the store refuses.
    pub async fn release_stale(&self, snapshot: Option<&str>) -> Result<Vec<CloneRef>, VolumeError> {
        let pins: Vec<CloneRef> = {
            let state = self.state();
            let meant = |held: &&Snapshot| snapshot.is_none_or(|name| held.name == name);
            state.snapshots.iter().filter(meant).flat_map(|held| held.clones.clone()).collect()
        };
        let mut released = Vec::new();
        for clone in pins {
            if is_stale(&self.bucket, &clone).await? {
                self.change_once(Change::Release(clone.volume)).await?;
                released.push(clone);
            }
        }
        Ok(released)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::location::check_snapshot_name;

    #[test]
    fn every_volume_gives_a_snapshot_its_name() {
        assert_eq!(snapshot_name("team/web", 1), "clone-team-web");
        assert_eq!(snapshot_name("a@b", 12), "clone-a-b-12");
        for clone in ["ü".repeat(384), "x".repeat(768)] {
            for number in [1, 999] {
                let name = snapshot_name(&clone, number);
                assert!(name.len() > 250 && check_snapshot_name(&name).is_ok(), "{name}");
            }
        }
    }
}
