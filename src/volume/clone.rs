//! Making a clone: a volume of its own that reads what a snapshot of another one holds, where that has it.
//!
//! # Overview
//! Nothing is copied. The clone's first manifest has the root of the snapshot's block map, and lists the objects that the
//! snapshot's manifest lists on top of it, each with its owner. What the clone writes goes into objects of its own; its
//! numbers begin above all that the snapshot names, so that no two objects in its maps share a number.
//!
//! # Crash consistency
//! (1) header, under the name of an unfinished one, (2) slot, (3) the pin in the origin's snapshot table, (4) first manifest,
//! (5) header, under its own name, (6) the unfinished one goes. Until (5) there is no volume of that name, and `s3bd
//! remove` clears what there is. From (3) on the snapshot is kept; a pin whose clone is not there is stale ([`pins`]).
//!
//! [`pins`]: super::pins

use bytes::Bytes;

use super::{
    bucket::{Bucket, Published},
    env::{Env, random_bytes},
    error::VolumeError,
    init::{Fresh, first_manifest, fresh, put_first_slot, refuse_existing},
};
use crate::{
    format::{
        ids::{Epoch, VolumeId},
        manifest::{CloneRef, Inherited, Manifest, Owner, Roots, Totals},
        names,
        slot::Argon2,
    },
    seal::slot::Secret,
    store::{Put, PutMode},
};

/// What a clone is to be; all else it has from its origin.
pub struct NewClone<'a> {
    /// Its name in the bucket.
    pub name: &'a str,
    /// What unlocks it.
    pub secret: &'a Secret,
    /// Cost of a password's derivation.
    pub cost: Argon2,
}

/// A clone that has a header and a slot, and is no volume yet.
#[derive(Debug)]
pub struct Begun {
    env: Env,
    bucket: Bucket,
    header_bytes: Bytes,
    slot: String,
    name: String,
    /// What is left of an `init` that did not end has lower epochs.
    epoch_min: Epoch,
}

/// Steps (1) and (2). `env` is the clone's, in the bucket of `origin`.
///
/// # Errors
/// `Exists` and `Unfinished` where something of that name is there: nothing was changed.
pub async fn begin(env: &Env, origin: &Bucket, new: &NewClone<'_>) -> Result<Begun, VolumeError> {
    let epoch_min = refuse_existing(env).await?;
    let volume = VolumeId(random_bytes(&*env.random));
    let (block_bytes, compression) = (origin.block_bytes(), origin.header.compression);
    let Fresh { bucket, header_bytes, master } = fresh(env, volume, block_bytes, compression, new.secret)?;
    let body = std::slice::from_ref(&header_bytes);
    let put = env.store.put(names::HEADER_UNFINISHED, body, PutMode::Create).await?;
    // A store without conditional puts says Created to both of two commands: the last one goes on.
    if put == Put::Exists || get_unfinished(env).await?.as_ref() != Some(&header_bytes) {
        return Err(VolumeError::Unfinished);
    }
    let slot = put_first_slot(env, &bucket, &master, new.secret, new.cost).await?;
    Ok(Begun { env: env.clone(), bucket, header_bytes, slot, name: new.name.to_owned(), epoch_min })
}

async fn get_unfinished(env: &Env) -> Result<Option<Bytes>, VolumeError> {
    super::bucket::get_whole(&*env.store, names::HEADER_UNFINISHED).await
}

impl Begun {
    /// What the origin's snapshot is to be pinned for, in step (3).
    #[must_use]
    pub fn reference(&self) -> CloneRef {
        CloneRef { volume: self.bucket.header.volume, name: self.name.clone() }
    }

    /// Takes steps (1) and (2) back. If the snapshot is pinned all the same, the pin is stale.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn undo(self) -> Result<(), VolumeError> {
        // The header last: what has one is found, and can be removed.
        for name in [self.slot, names::HEADER_UNFINISHED.to_owned()] {
            self.env.store.delete(&[name]).await?;
        }
        Ok(())
    }

    /// Steps (4) to (6), after a snapshot of `origin`, which is called `origin_name` in the bucket, was pinned: that of the
    /// manifest `pinned`. On `Ok` the clone is a volume, closed.
    ///
    /// # Errors
    /// `Exists` where another volume was made under the name at the same moment, and what the store refuses.
    pub async fn finish(
        self,
        origin: &Bucket,
        origin_name: &str,
        pinned: &Published,
    ) -> Result<Bucket, VolumeError> {
        let first = self.first_manifest(origin, origin_name, &pinned.manifest);
        let Self { env, bucket, header_bytes, .. } = self;
        bucket.put_manifest(&first, random_bytes(&*env.random)).await?;
        let store = &env.store;
        let put = store.put(names::HEADER, &[header_bytes], PutMode::Create).await?;
        let (found, found_digest) = Bucket::header(&**store).await?;
        if put == Put::Exists || found_digest != bucket.header_digest {
            return Err(VolumeError::Exists { created: super::format_time(found.created_ms) });
        }
        // On a store without conditional puts another one's may lie where ours was.
        bucket.newest_manifest().await?;
        store.delete(&[names::HEADER_UNFINISHED.to_owned()]).await?;
        Ok(bucket)
    }

    fn first_manifest(&self, origin: &Bucket, origin_name: &str, pinned: &Manifest) -> Manifest {
        let owner = origin.header.volume;
        let own = pinned.objects.iter().map(|object| Inherited { owner, object: *object });
        let mut owners: Vec<Owner> = vec![origin.keys.as_owner(origin_name)];
        owners.extend(pinned.owners.iter().cloned());
        let epoch = pinned.epoch.next().max(self.epoch_min);
        Manifest {
            roots: Roots { objects: None, snapshots: None, ..pinned.roots.clone() },
            inherited: pinned.inherited.iter().copied().chain(own).collect(),
            next_sequence: pinned.next_sequence,
            // Its cuts are no history by themselves: one who puts them together by hand finds that they are not whole.
            data_cut: pinned.data_cut,
            owners,
            totals: Totals { mapped_blocks: pinned.totals.mapped_blocks, ..Totals::default() },
            ..first_manifest(&self.env, &self.bucket, epoch, pinned.size_bytes)
        }
    }
}
