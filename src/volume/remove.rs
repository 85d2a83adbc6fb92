//! Removing a volume from its bucket.
//!
//! # Crash consistency
//! (1) The header is put under its unfinished name as well, (2) a claim, so that whoever opened the volume at this moment
//! is fenced, (3) another look at who depends on it, (4) the header goes: from here on there is no volume of that name,
//! (5) this host's folder goes, (6) keys, manifests, objects and claims, (7) the unfinished header. Until (4) the volume is
//! whole; after it, [`clear`] goes on.
//!
//! # Not handled
//! A writer elsewhere whose volume is taken from it by force, and that sleeps through the whole removal: what it puts
//! afterwards stays, under the name of no volume.

use wal::Lsn;

use super::{
    bucket::{Bucket, Published, get_whole},
    claims::{self, Looked, Tenure},
    env::Env,
    error::{Kind, VolumeError},
    open::{Agreed, Repair, inspect},
    pins,
    snapshots::SnapshotTable,
};
use crate::{
    format::{
        header::Header,
        ids::{LogId, VolumeId},
        names,
    },
    store::{PutMode, Store},
};

/// Names listed and deleted in one go: what a server takes in one request.
const NAMES_MAX: usize = 1000;

/// The log of a tenure that removes: it has none.
const NO_LOG: LogId = LogId([0; 16]);

/// A volume that may be removed.
#[derive(Clone, Debug)]
pub struct Removable {
    /// Its snapshots.
    pub snapshots: usize,
    /// What the log of this host holds and no manifest does, in words; its folder stays then.
    pub unpublished: Option<String>,
    /// Of a clone, the name of its origin in the same bucket.
    pub origin: Option<String>,
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Objects of the store that are gone.
    pub objects: u64,
    /// This host's folder of the volume, and why it is still there.
    pub folder_left: Option<(String, String)>,
    /// Of a clone, the name of its origin in the same bucket: the snapshot that the clone depended on is there still.
    pub origin: Option<String>,
}

/// Whether the volume may be removed. Changes nothing.
///
/// # Errors
/// `HasClones`; `InUse` and `Locked` where it is open, the former only without `takeover`; damage that keeps it unknown
/// who depends on it.
pub async fn look(env: &Env, bucket: &Bucket, takeover: bool) -> Result<Removable, VolumeError> {
    let newest = bucket.newest_manifest().await?;
    let takeover = takeover || was_begun(bucket, &newest).await?;
    let agreed = Agreed { takeover, rollback: true, discard: true };
    let unpublished = match inspect(env, bucket, agreed, &Repair::default()).await {
        Ok(report) => {
            let held = [&report.replayed, &report.given_up];
            let tally = report.replayed.tally + report.given_up.tally;
            let unknown = held.iter().find_map(|held| held.uncounted.clone());
            let counted = (tally.records() > 0).then(|| format!("its log holds {tally}"));
            counted.or(unknown)
        }
        Err(error) if error.kind() == Kind::Corrupt && !error.is_of_line() => Some(error.to_string()),
        Err(error) => return Err(error),
    };
    let snapshots = check_clones(bucket, &newest).await?;
    let origin = newest.manifest.owners.first().map(|owner| owner.name.clone());
    Ok(Removable { snapshots, unpublished, origin })
}

/// Whether the newest tenure is that of a removal that did not end.
async fn was_begun(bucket: &Bucket, newest: &Published) -> Result<bool, VolumeError> {
    let claims = bucket.list_claims(Some(newest.link.generation)).await?;
    let Some((generation, nonce)) = claims.last().copied() else { return Ok(false) };
    match bucket.load_claim(generation, nonce).await {
        Ok(claim) => Ok(claim.log == NO_LOG),
        Err(error) if error.kind() == Kind::Corrupt => Ok(false),
        Err(error) => Err(error),
    }
}

/// The number of snapshots, where no clone depends on any.
async fn check_clones(bucket: &Bucket, newest: &Published) -> Result<usize, VolumeError> {
    let table = SnapshotTable::load(bucket, &newest.manifest).await?;
    let mut clones = Vec::new();
    for clone in table.iter().flat_map(|snapshot| &snapshot.clones) {
        if !pins::is_stale(bucket, clone).await? {
            clones.push(clone.name.clone());
        }
    }
    if clones.is_empty() { Ok(table.len()) } else { Err(VolumeError::HasClones { clones }) }
}

/// Removes the volume. `advance` is told the objects that are gone. On `Ok` nothing of it is left in the bucket.
///
/// # Errors
/// Those of [`look`]: nothing was changed. What the store refuses: the volume is there as it was, or there is none of that
/// name any more; once more, it goes on.
pub async fn remove(
    env: &Env,
    bucket: &Bucket,
    takeover: bool,
    advance: impl Fn(u64),
) -> Result<Removed, VolumeError> {
    let Removable { unpublished, origin, .. } = look(env, bucket, takeover).await?;
    let header = get_whole(&*bucket.store, names::HEADER).await?.ok_or(VolumeError::NoVolume)?;
    bucket.store.put(names::HEADER_UNFINISHED, &[header], PutMode::Replace).await?;
    let tenure = claim(env, bucket).await?;
    let newest = bucket.newest_manifest().await?;
    if let Err(error) = check_clones(bucket, &newest).await {
        // A clone was made at this very moment: the volume stays, and is closed as it was.
        claims::put_first_manifest(bucket, env, tenure, &newest, |first| first.closed = true).await?;
        bucket.store.delete(&[names::HEADER_UNFINISHED.to_owned()]).await?;
        return Err(error);
    }
    bucket.store.delete(&[names::HEADER.to_owned()]).await?;
    let volume = bucket.header.volume;
    let folder_left = match unpublished {
        Some(why) => Some((env.local.describe(volume), why)),
        None => remove_folder(env, volume)?,
    };
    let objects = clear_bucket(&*bucket.store, advance).await?;
    Ok(Removed { objects, folder_left, origin })
}

async fn claim(env: &Env, bucket: &Bucket) -> Result<Tenure, VolumeError> {
    loop {
        let newest = bucket.newest_manifest().await?;
        let claimed = bucket.list_claims(None).await?.last().map(|claim| claim.0);
        let looked = Looked { from: newest.name(), claimed, floor: newest.link.generation };
        if let Some(tenure) = claims::claim(bucket, env, NO_LOG, looked).await? {
            return Ok(tenure);
        }
    }
}

/// Removes what is left where there is no volume: of one that was being made or removed. Needs no secret.
///
/// # Errors
/// `Exists` where there is a volume; what the store refuses: once more, it goes on.
pub async fn clear(env: &Env, advance: impl Fn(u64)) -> Result<Removed, VolumeError> {
    let store = &*env.store;
    if let Some(bytes) = get_whole(store, names::HEADER).await? {
        let created = Header::decode(&bytes).map_or(0, |header| header.created_ms);
        return Err(VolumeError::Exists { created: super::format_time(created) });
    }
    let unfinished = get_whole(store, names::HEADER_UNFINISHED).await?;
    let header = unfinished.and_then(|bytes| Header::decode(&bytes).ok());
    let folder_left = match header {
        Some(header) => remove_empty_folder(env, header.volume)?,
        None => None,
    };
    let objects = clear_bucket(store, advance).await?;
    Ok(Removed { objects, folder_left, origin: None })
}

/// Whether anything is left under the names of a volume.
///
/// # Errors
/// What the store refuses.
pub async fn has_remains(store: &dyn Store) -> Result<bool, VolumeError> {
    for folder in names::FOLDERS {
        if !store.list(folder, None, Some(1)).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(get_whole(store, names::HEADER_UNFINISHED).await?.is_some())
}

/// The unfinished header last: what has one is found, and goes on.
async fn clear_bucket(store: &dyn Store, advance: impl Fn(u64)) -> Result<u64, VolumeError> {
    let mut objects = 0;
    // The keys first: without them nothing else means anything. The claims last: they fence.
    for folder in [names::KEYS, names::MANIFESTS, names::OBJECTS, names::CLAIMS] {
        loop {
            let listed = store.list(folder, None, Some(NAMES_MAX)).await?;
            if listed.is_empty() {
                break;
            }
            let keys: Vec<String> = listed.into_iter().map(|line| line.key).collect();
            store.delete(&keys).await?;
            objects += keys.len() as u64;
            advance(objects);
        }
    }
    for name in [names::INDEPENDENT, names::HEADER_UNFINISHED] {
        store.delete(&[name.to_owned()]).await?;
    }
    Ok(objects)
}

/// Removes this host's folder of a volume; where it cannot be, which and why.
fn remove_folder(env: &Env, volume: VolumeId) -> Result<Option<(String, String)>, VolumeError> {
    let folder = env.local.describe(volume);
    let local_error = VolumeError::local(&*folder);
    let remove = || {
        if !env.local.exists(volume)? {
            return Ok(None);
        }
        // Held until it is gone, so that nobody opens what is being removed.
        let Some(_local) = env.local.open(volume)? else {
            return Ok(Some((folder.clone(), "another process has it open".to_owned())));
        };
        env.local.remove(volume)?;
        Ok(None)
    };
    remove().map_err(local_error)
}

/// The same, where the log cannot be read for want of a key: only if nothing is in it.
fn remove_empty_folder(env: &Env, volume: VolumeId) -> Result<Option<(String, String)>, VolumeError> {
    let folder = env.local.describe(volume);
    if !env.local.exists(volume).map_err(VolumeError::local(&*folder))? {
        return Ok(None);
    }
    let Some(local) = env.local.open(volume).map_err(VolumeError::local(&*folder))? else {
        return Err(VolumeError::Locked { folder });
    };
    let scan = wal::scan_above(&*local.wal, Lsn(0))?;
    drop(local);
    match scan.records {
        0 => remove_folder(env, volume),
        records => Ok(Some((folder, format!("its log holds {records} records, published or not")))),
    }
}
