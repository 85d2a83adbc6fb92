//! The bucket against what this host has seen of it: where the newest manifests are gone, those that are left are whole.

use super::Finding;
use crate::volume::{bucket::Bucket, env::Env, error::VolumeError, seen::older_than_seen};

/// Compares the newest manifest with the newest that this host has seen. Reads alone, and takes no lock; a host that has
/// never had the volume open finds nothing.
///
/// # Errors
/// `SeenDamaged`, and those of reading the newest manifest, which a check finds.
pub async fn compare(env: &Env, bucket: &Bucket) -> Result<Option<Finding>, VolumeError> {
    match older_than_seen(env, bucket).await? {
        Some(VolumeError::RolledBack { found, found_generation, seen, seen_generation }) => {
            Ok(Some(Finding::BehindSeen { found, found_generation, seen, seen_generation }))
        }
        _ => Ok(None),
    }
}
