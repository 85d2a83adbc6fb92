//! A volume's part of the bucket as those with the keys see it: header, slots, claims, manifests.
//! Indexes of objects: [`super::indexes`].
//!
//! Reads only what it names; writes claims, manifests and objects, and never the same name with other bytes.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{
    error::{FrameError, VolumeError},
    slots::{self, Unlocked},
};
use crate::{
    format::{
        FormatError,
        claim::Claim,
        codec,
        envelope::{Content, MANIFEST_BYTES_MAX, SMALL_BYTES_MAX},
        header::Header,
        ids::{Epoch, FrameRef, Generation, ObjectRef, VolumeId},
        manifest::{Digest, Manifest, ManifestLink},
        names,
    },
    seal::{SealError, keys::Keys, slot::Secret, small},
    store::{ErrorKind, Put, PutMode, Range, Store, StoreError},
};

/// SHA-256 of the bytes of an object.
#[must_use]
pub fn digest(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// The volume in the bucket, unlocked.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// The store, below the volume's prefix.
    pub store: Arc<dyn Store>,
    /// The header.
    pub header: Header,
    /// Digest of the header's bytes.
    pub header_digest: Digest,
    /// The keys.
    pub keys: Arc<Keys>,
}

/// A manifest that was read: what it says, and how others refer to it.
#[derive(Clone, Debug)]
pub struct Published {
    /// What it says.
    pub manifest: Manifest,
    /// Its name and digest.
    pub link: ManifestLink,
}

impl Published {
    /// The numbers in its name.
    #[must_use]
    pub fn name(&self) -> (Generation, Epoch) {
        (self.link.generation, self.link.epoch)
    }
}

/// The bytes of a header, slot, claim or manifest. Fetches no more than it can have; an error where it has more.
pub(crate) async fn fetch_small(
    store: &dyn Store,
    name: &str,
) -> Result<Result<Bytes, FormatError>, StoreError> {
    let is_manifest = name.starts_with(names::MANIFESTS);
    let length = if is_manifest { MANIFEST_BYTES_MAX } else { SMALL_BYTES_MAX };
    // The end of it: all of it, where it is no longer.
    let got = store.get(name, Range::Suffix { length }).await?;
    let too_long =
        FormatError::Malformed { what: "object", detail: "larger than anything of its name can be" };
    Ok(if got.object_bytes > length { Err(too_long) } else { Ok(got.bytes) })
}

pub(super) async fn get_small(store: &dyn Store, name: &str) -> Result<Bytes, VolumeError> {
    fetch_small(store, name).await?.map_err(|error| VolumeError::damaged(name, error))
}

/// The same; `None` where there is none.
pub(super) async fn get_whole(store: &dyn Store, name: &str) -> Result<Option<Bytes>, VolumeError> {
    match get_small(store, name).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(VolumeError::Store(error)) if error.kind == ErrorKind::NotFound && !error.key.is_empty() => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Times that something is fetched before its bytes in the store count as damaged.
const FETCHES_MAX: u32 = 3;

/// Reads again what came damaged, [`FETCHES_MAX`] times in all: the network damages bytes, too, and one flipped bit must
/// not keep a volume from being opened. What stays damaged is the caller's to tell, once.
pub(super) async fn whole<T, F>(read: impl Fn() -> F + Send) -> Result<T, VolumeError>
where
    F: Future<Output = Result<T, VolumeError>> + Send,
{
    whole_after(None, read).await
}

/// The same, where they were read with others before, and `damage` found.
pub(super) async fn whole_after<T, F>(
    mut damage: Option<VolumeError>,
    read: impl Fn() -> F + Send,
) -> Result<T, VolumeError>
where
    F: Future<Output = Result<T, VolumeError>> + Send,
{
    let mut attempt = 1;
    loop {
        match read().await {
            Err(error @ (VolumeError::Damaged { .. } | VolumeError::DamagedFrame { .. }))
                if attempt < FETCHES_MAX =>
            {
                tracing::debug!(%error, attempt, "bytes from the store are not whole: fetching them again");
                damage = Some(error);
                attempt += 1;
            }
            result => {
                if let (Some(error), Ok(_)) = (damage, &result) {
                    tracing::warn!(%error, "bytes from the store were not whole, and are now: something on the way damages them");
                }
                return result;
            }
        }
    }
}

impl Bucket {
    /// Reads the header alone: no secret needed.
    ///
    /// # Errors
    /// `NoVolume`; `Unfinished`; `HeaderMissing` where manifests say that it was opened; damage, and what the store refuses.
    pub async fn header(store: &dyn Store) -> Result<(Header, Digest), VolumeError> {
        whole(|| Self::header_once(store)).await
    }

    async fn header_once(store: &dyn Store) -> Result<(Header, Digest), VolumeError> {
        let bytes = match get_whole(store, names::HEADER).await? {
            Some(bytes) => bytes,
            None if get_whole(store, names::HEADER_UNFINISHED).await?.is_some() => {
                return Err(VolumeError::Unfinished);
            }
            None if !Self::was_opened(store).await? => return Err(VolumeError::NoVolume),
            // It may have been made and opened meanwhile.
            None => get_whole(store, names::HEADER).await?.ok_or(VolumeError::HeaderMissing)?,
        };
        let header = Header::decode(&bytes).map_err(|error| VolumeError::damaged(names::HEADER, error))?;
        Ok((header, digest(&bytes)))
    }

    /// Whether there is a manifest of a tenure: whoever opened the volume saw a header, and an init that did not end has
    /// none yet.
    pub(super) async fn was_opened(store: &dyn Store) -> Result<bool, VolumeError> {
        let opened = names::first_manifest(Generation(1));
        Ok(!store.list(names::MANIFESTS, Some(&opened), Some(1)).await?.is_empty())
    }

    /// Reads header and key slots, and opens the volume with `secret`: one derivation a slot at most.
    pub async fn unlock(store: Arc<dyn Store>, secret: &Secret) -> Result<Self, VolumeError> {
        let Unlocked { header, header_digest, master, .. } = slots::unlock(&*store, secret).await?;
        let keys = Arc::new(Keys::new(header.volume, &master));
        Ok(Self { store, header, header_digest, keys })
    }

    /// The store that has the objects of `owner`: this volume's, or, of a clone, that of a volume it reads from.
    ///
    /// # Errors
    /// Nothing is known of that volume.
    pub fn store_of(&self, owner: VolumeId) -> Result<Arc<dyn Store>, FrameError> {
        if owner == self.header.volume {
            return Ok(Arc::clone(&self.store));
        }
        let name = self.keys.owner_name(owner).ok_or(FrameError::Owner)?;
        self.store.sibling(&name).ok_or(FrameError::Owner)
    }

    /// An object's name for people: with its volume's, where that is another one.
    #[must_use]
    pub fn object_name(&self, object: &ObjectRef) -> String {
        let name = names::object(object.generation, object.sequence);
        match self.keys.owner_name(object.owner).filter(|_| object.owner != self.header.volume) {
            Some(owner) => format!("{name} of {owner}"),
            None => name,
        }
    }

    /// A damaged frame, named.
    pub(crate) fn damaged_frame(&self, frame: &FrameRef, error: FrameError) -> VolumeError {
        VolumeError::DamagedFrame {
            name: self.object_name(&frame.object),
            number: frame.number,
            offset: frame.offset,
            stored_bytes: frame.stored_bytes,
            error,
        }
    }

    /// Block size, bytes.
    #[must_use]
    pub fn block_bytes(&self) -> u32 {
        self.header.block_bytes
    }

    /// Names of all manifests, newest last.
    pub async fn list_manifests(&self) -> Result<Vec<(Generation, Epoch)>, VolumeError> {
        let listed = self.store.list(names::MANIFESTS, None, None).await?;
        Ok(listed.iter().filter_map(|line| names::parse_manifest(&line.key)).collect())
    }

    /// Reads one manifest; `None` where there is none of that name.
    pub async fn load_manifest(
        &self,
        generation: Generation,
        epoch: Epoch,
    ) -> Result<Option<Published>, VolumeError> {
        whole(|| self.load_manifest_once(generation, epoch)).await
    }

    async fn load_manifest_once(
        &self,
        generation: Generation,
        epoch: Epoch,
    ) -> Result<Option<Published>, VolumeError> {
        let name = names::manifest(generation, epoch);
        let Some(bytes) = get_whole(&*self.store, &name).await? else { return Ok(None) };
        let plain = small::open(&self.keys, Content::Manifest, &name, &bytes)
            .map_err(|error| VolumeError::damaged(&name, error))?;
        let manifest = Manifest::decode(&plain).map_err(|error| VolumeError::damaged(&name, error))?;
        let is_itself = manifest.generation == generation
            && manifest.epoch == epoch
            && manifest.volume == self.header.volume
            && manifest.header == self.header_digest
            && manifest.size_bytes.is_multiple_of(self.block_bytes().into());
        if !is_itself {
            return Err(VolumeError::damaged(&name, SealError::Broken));
        }
        manifest.owners.iter().for_each(|owner| self.keys.add_owner(owner));
        Ok(Some(Published { manifest, link: ManifestLink { generation, epoch, digest: digest(&bytes) } }))
    }

    /// The newest manifest, which must be whole, and whose parent must be what it says where it was kept.
    pub async fn newest_manifest(&self) -> Result<Published, VolumeError> {
        let mut names = self.list_manifests().await?;
        loop {
            match self.newest_of(&names).await {
                // Its writer may have published since, and let it or its parent go.
                Err(error @ VolumeError::NoManifest { .. }) => {
                    let before = std::mem::replace(&mut names, self.list_manifests().await?);
                    if before.last() == names.last() {
                        return Err(error);
                    }
                }
                newest => return newest,
            }
        }
    }

    async fn newest_of(&self, names: &[(Generation, Epoch)]) -> Result<Published, VolumeError> {
        let (generation, epoch) =
            *names.last().ok_or_else(|| VolumeError::NoManifest { detail: "there is none".to_owned() })?;
        if generation == Generation(0) {
            return self.first_manifest(names).await;
        }
        let newest = self.load_manifest(generation, epoch).await?;
        let newest = newest.ok_or_else(|| VolumeError::NoManifest {
            detail: format!("{} was listed and is gone", names::manifest(generation, epoch)),
        })?;
        if let Some(parent) = newest.manifest.parent
            && parent.epoch >= newest.manifest.oldest_kept
        {
            whole(|| self.check_parent(parent)).await?;
        }
        Ok(newest)
    }

    /// Of a volume that was never opened: the one manifest that is sealed with its keys. Others are of inits that lost
    /// to it, or that did not come to their end.
    async fn first_manifest(&self, names: &[(Generation, Epoch)]) -> Result<Published, VolumeError> {
        let mut fault = VolumeError::NoManifest { detail: "there is none".to_owned() };
        for (generation, epoch) in names.iter().rev() {
            match self.load_manifest(*generation, *epoch).await {
                Ok(Some(first)) => return Ok(first),
                Ok(None) => {}
                Err(error @ VolumeError::Damaged { .. }) => fault = error,
                Err(error) => return Err(error),
            }
        }
        Err(fault)
    }

    async fn check_parent(&self, parent: ManifestLink) -> Result<(), VolumeError> {
        let name = names::manifest(parent.generation, parent.epoch);
        match get_whole(&*self.store, &name).await? {
            Some(bytes) if digest(&bytes) == parent.digest => Ok(()),
            Some(_) => Err(VolumeError::damaged(&name, SealError::Broken)),
            None => Err(VolumeError::NoManifest {
                detail: format!("{name}, the newest one's parent, is missing"),
            }),
        }
    }

    /// Seals and puts a manifest. Durable on `Ok`; it counts as published only after the check of claims.
    pub async fn put_manifest(&self, manifest: &Manifest, salt: [u8; 16]) -> Result<Published, VolumeError> {
        let name = names::manifest(manifest.generation, manifest.epoch);
        let plain = manifest.encode().map_err(|error| VolumeError::damaged(&name, error))?;
        let bytes = small::seal(&self.keys, Content::Manifest, &name, salt, &plain);
        let link =
            ManifestLink { generation: manifest.generation, epoch: manifest.epoch, digest: digest(&bytes) };
        match self.store.put(&name, &[bytes.into()], PutMode::Create).await? {
            Put::Created => Ok(Published { manifest: manifest.clone(), link }),
            // Only another writer of this very generation could have put it: ours is not the one that serves.
            Put::Exists => Err(VolumeError::Fenced { ours: manifest.generation, found: manifest.generation }),
        }
    }

    /// Names of all claims above `after`, oldest first.
    pub async fn list_claims(
        &self,
        after: Option<Generation>,
    ) -> Result<Vec<(Generation, u64)>, VolumeError> {
        let start = after.map(names::after_claims);
        let listed = self.store.list(names::CLAIMS, start.as_deref(), None).await?;
        Ok(listed.iter().filter_map(|line| names::parse_claim(&line.key)).collect())
    }

    /// Reads one claim.
    pub async fn load_claim(&self, generation: Generation, nonce: u64) -> Result<Claim, VolumeError> {
        whole(|| self.load_claim_once(generation, nonce)).await
    }

    async fn load_claim_once(&self, generation: Generation, nonce: u64) -> Result<Claim, VolumeError> {
        let name = names::claim(generation, nonce);
        let bytes = get_small(&*self.store, &name).await?;
        let plain = small::open(&self.keys, Content::Claim, &name, &bytes)
            .map_err(|error| VolumeError::damaged(&name, error))?;
        codec::decode("claim", &plain).map_err(|error| VolumeError::damaged(&name, error))
    }

    /// Seals and puts a claim.
    pub async fn put_claim(&self, claim: &Claim, salt: [u8; 16]) -> Result<Put, VolumeError> {
        let name = names::claim(claim.generation, claim.nonce);
        let plain = codec::encode("claim", claim).map_err(|error| VolumeError::damaged(&name, error))?;
        let bytes = small::seal(&self.keys, Content::Claim, &name, salt, &plain);
        Ok(self.store.put(&name, &[bytes.into()], PutMode::Create).await?)
    }
}
