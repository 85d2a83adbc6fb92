//! Making a volume: keys first, then the first manifest, and last the header, whose existence is the volume's.

use bytes::Bytes;

use super::{
    bucket::{Bucket, digest},
    claims,
    env::{Env, random_bytes},
    error::VolumeError,
    resize::check_size,
};
use crate::{
    format::{
        header::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Header, Protection},
        ids::{Codec, Epoch, Generation, LogId, LogPosition, Sequence, VolumeId},
        manifest::{Manifest, Roots, Totals},
        names,
        slot::Argon2,
    },
    seal::{
        aead::Key,
        keys::Keys,
        slot::{NewSlot, Secret, wrap},
    },
    store::{Put, PutMode},
};

/// What a new volume is to be.
pub struct NewVolume<'a> {
    /// Size, bytes; a multiple of the block size.
    pub size_bytes: u64,
    /// Block size, bytes.
    pub block_bytes: u32,
    /// How new frames are packed by default.
    pub compression: Codec,
    /// What unlocks it.
    pub secret: &'a Secret,
    /// Cost of a password's derivation.
    pub cost: Argon2,
}

/// Makes a volume. On `Ok` it exists, closed and empty; on an error there is none, or the one that was there is untouched.
pub async fn init(env: &Env, new: &NewVolume<'_>) -> Result<Bucket, VolumeError> {
    init_as(env, new, VolumeId(random_bytes(&*env.random))).await
}

/// The same, with an id that nothing else ever had.
pub(super) async fn init_as(env: &Env, new: &NewVolume<'_>, volume: VolumeId) -> Result<Bucket, VolumeError> {
    check(new)?;
    let store = &env.store;
    let epoch = refuse_existing(env).await?;
    let Fresh { bucket, header_bytes, master } =
        fresh(env, volume, new.block_bytes, new.compression, new.secret)?;
    let header_digest = bucket.header_digest;
    put_first_slot(env, &bucket, &master, new.secret, new.cost).await?;
    let first = first_manifest(env, &bucket, epoch, new.size_bytes);
    bucket.put_manifest(&first, random_bytes(&*env.random)).await.map_err(|error| match error {
        VolumeError::Fenced { .. } => VolumeError::Invalid(
            "another init of this volume is under way: nothing of it was changed".to_owned(),
        ),
        error => error,
    })?;
    let put = store.put(names::HEADER, &[header_bytes], PutMode::Create).await?;
    // A store without conditional puts says Created to both of two inits: one of them finds the other's header.
    let (found, found_digest) = Bucket::header(&**store).await?;
    if put == Put::Exists || found_digest != header_digest {
        return Err(VolumeError::Exists { created: super::format_time(found.created_ms) });
    }
    // And its manifest may lie where ours was.
    bucket.newest_manifest().await?;
    Ok(bucket)
}

/// A header and keys that are in no bucket yet.
pub(super) struct Fresh {
    pub(super) bucket: Bucket,
    pub(super) header_bytes: Bytes,
    pub(super) master: Key,
}

/// Draws the keys of a new volume, and makes its header.
pub(super) fn fresh(
    env: &Env,
    volume: VolumeId,
    block_bytes: u32,
    compression: Codec,
    secret: &Secret,
) -> Result<Fresh, VolumeError> {
    let master = Key::new(random_bytes(&*env.random));
    let protection = match secret {
        Secret::Nothing => Protection::Open,
        Secret::Password(_) | Secret::KeyFile(_) | Secret::RecoveryKey(_) => Protection::Secret,
    };
    let header = Header { volume, block_bytes, protection, compression, created_ms: env.clock.now_ms() };
    let header_bytes = header.encode().map_err(|error| VolumeError::damaged(names::HEADER, error))?;
    let header_digest = digest(&header_bytes);
    let keys = std::sync::Arc::new(Keys::new(volume, &master));
    let bucket = Bucket { store: env.store.clone(), header, header_digest, keys };
    Ok(Fresh { bucket, header_bytes: header_bytes.into(), master })
}

/// Puts the first slot of a new volume. Its name.
pub(super) async fn put_first_slot(
    env: &Env,
    bucket: &Bucket,
    master: &Key,
    secret: &Secret,
    cost: Argon2,
) -> Result<String, VolumeError> {
    let slot = NewSlot {
        volume: bucket.header.volume,
        cost,
        salt: random_bytes(&*env.random),
        label: "first".to_owned(),
        created_ms: bucket.header.created_ms,
    };
    let slot = wrap(master, secret, slot).map_err(|error| VolumeError::Invalid(error.to_string()))?;
    // A random number, so that two inits at once do not overwrite each other's slots.
    let name = names::slot(u32::from_le_bytes(random_bytes(&*env.random)));
    let bytes = slot.encode().map_err(|error| VolumeError::damaged(&name, error))?;
    env.store.put(&name, &[bytes.into()], PutMode::Create).await?;
    Ok(name)
}

fn check(new: &NewVolume<'_>) -> Result<(), VolumeError> {
    let block = new.block_bytes;
    if !block.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block) {
        let text =
            format!("a block of {block} bytes cannot be: it is a power of two from 512 bytes to 16 MiB");
        return Err(VolumeError::Invalid(text));
    }
    check_size(new.size_bytes, block)
}

/// The epoch to begin with: above what an init left that did not come to its end, or that is under way now. Those are never
/// written over, since whose header comes first is not decided yet.
pub(super) async fn refuse_existing(env: &Env) -> Result<Epoch, VolumeError> {
    match Bucket::header(&*env.store).await {
        Ok((header, _)) => Err(VolumeError::Exists { created: super::format_time(header.created_ms) }),
        Err(VolumeError::NoVolume) => {
            let rest = env.store.list(names::MANIFESTS, None, None).await?;
            let newest = rest.iter().filter_map(|line| names::parse_manifest(&line.key)).next_back();
            Ok(newest.map_or(Epoch(0), |(_, newest)| newest.next()))
        }
        Err(error) => Err(error),
    }
}

pub(super) fn first_manifest(env: &Env, bucket: &Bucket, epoch: Epoch, size_bytes: u64) -> Manifest {
    Manifest {
        volume: bucket.header.volume,
        generation: Generation(0),
        nonce: 0,
        epoch,
        parent: None,
        oldest_kept: epoch,
        header: bucket.header_digest,
        data_cut: None,
        log: LogPosition { log: LogId([0; 16]), lsn: 0 },
        writer: claims::writer(env),
        time_ms: env.clock.now_ms(),
        size_bytes,
        next_sequence: Sequence(1),
        closed: true,
        unpublished_bytes: 0,
        roots: Roots { epoch: Epoch(0), blocks: None, objects: None, snapshots: None },
        objects: Vec::new(),
        inherited: Vec::new(),
        snapshots: Vec::new(),
        next_snapshot: 1,
        owners: Vec::new(),
        totals: Totals::default(),
    }
}
