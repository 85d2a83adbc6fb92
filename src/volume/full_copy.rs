//! A full copy of one epoch of a volume, as a volume of its own: it depends on nothing.
//!
//! # Crash consistency
//! As for a rescue: there is no volume of that name until all is copied, and the next attempt from the same epoch goes on
//! with what was begun.

use std::sync::Arc;

use super::{
    bucket::{Bucket, Published, digest},
    env::Env,
    error::VolumeError,
    open::read_only_at,
    rescue::{Destination, copy, finish, open_destination},
};

/// Copies what is mapped in the epoch `base` into a new volume, never holes. `advance` is told the bytes done. The bytes
/// copied.
///
/// # Errors
/// `Exists` where there is a finished volume of that name; damage, around which nothing is copied; what the store refuses.
pub async fn copy_in_full(
    env: &Env,
    bucket: &Bucket,
    base: &Published,
    destination: Destination<'_>,
    advance: impl Fn(u64),
) -> Result<u64, VolumeError> {
    let source = read_only_at(env.clone(), bucket.clone(), destination.settings.clone(), base, None).await?;
    let target = open_destination(&destination, bucket, base, origin(bucket, base)).await?;
    let copied_bytes = copy(source.core(), target.core(), &advance).await?;
    target.close().await?;
    drop(target);
    finish(&*destination.env.store).await?;
    // It opens like any other from now on.
    Bucket::unlock(Arc::clone(&destination.env.store), destination.secret).await?;
    Ok(copied_bytes)
}

/// Stands for what is copied: the first half of the new volume's id.
fn origin(bucket: &Bucket, base: &Published) -> [u8; 8] {
    let bytes = [&b"s3bd full copy"[..], &bucket.header.volume.0, &base.link.digest].concat();
    let mut origin = [0; 8];
    origin.copy_from_slice(&digest(&bytes)[..8]);
    origin
}
