//! Making a volume of its own of what a fenced host's log holds: the epoch it was built on, copied in full, and the log on
//! top.
//!
//! # Crash consistency
//! The new volume's header has another name until all is done, so that until then there is no volume of that name. What
//! was copied stays, and the next attempt writes it again: first the same base, then the same records in the same order,
//! so the end is the same. An attempt with another log or another base is refused: the first half of the new volume's id
//! is a digest of both.
//!
//! # Not handled
//! Damage in the base epoch: nothing is copied around it, since a copy has no way to say that a range is lost.

use std::{ops::Range, sync::Arc};

use super::{
    Volume,
    bucket::{Bucket, Published, digest, get_small},
    core::Core,
    env::{Env, random_bytes},
    error::VolumeError,
    init::{NewVolume, init_as},
    log::Opener,
    open::{Agreed, open, open_local, read_only_at},
    read::At,
    record::{self, LogRecord},
    replay::{LogDamage, Replayed, find_damage, goes_on_at},
    settings::Settings,
    snapshots::SnapshotTable,
    state::Source,
    survey::{Fenced, fenced_log},
    takeover,
    tally::Tally,
};
use crate::{
    format::{
        ids::VolumeId,
        local::{LogIdentity, LogTenure},
        names,
        slot::Argon2,
    },
    seal::slot::Secret,
    store::{PutMode, renamed::Renamed},
};
use futures::stream::{StreamExt, TryStreamExt};

/// Bytes copied in one go, and how many of them at once: 16 MiB in memory, and requests enough to fill a link.
const PIECE_BYTES: u64 = 1 << 20;
const PIECES_MAX: usize = 16;
/// The map is asked for this many bytes at once.
const WINDOW_BYTES: u64 = 1 << 36;

/// The new volume.
pub struct Destination<'a> {
    /// Its environment: its part of a bucket.
    pub env: Env,
    /// What unlocks it.
    pub secret: &'a Secret,
    /// Cost of a password's derivation.
    pub cost: Argon2,
    /// How it is written.
    pub settings: Settings,
}

/// What became a volume.
#[derive(Clone, Debug)]
pub struct Rescued {
    /// The epoch it begins with.
    pub base: Published,
    /// Bytes copied from that.
    pub copied_bytes: u64,
    /// What came on top, from the log.
    pub replayed: Replayed,
    /// Where that ended before the log did, and what is beyond.
    pub damage: Option<Box<LogDamage>>,
    /// Names of the snapshots that keep what is needed for this, and are needed for nothing else.
    pub kept_by: Vec<String>,
}

/// Copies what the log of this host holds, and the epoch below it, into a new volume. `advance` is told the bytes done.
/// Changes nothing in the old volume or in its log. Of a damaged log, what is before the damage is copied.
///
/// # Errors
/// `Exists` where there is a finished volume of that name; `NothingFenced` where the log holds nothing of its own line;
/// `NoBase` where the epoch below it is gone; `LogUncounted` where it is damaged, and nothing is certain before that.
pub async fn rescue(
    env: &Env,
    bucket: &Bucket,
    destination: Destination<'_>,
    advance: impl Fn(u64),
) -> Result<Rescued, VolumeError> {
    let local = open_local(env, bucket)?;
    let Fenced { identity, base } = fenced_log(env, bucket, &local).await?;
    let damage = find_damage(bucket, &local, identity.log, &base.manifest)?.map(Box::new);
    if let Some(damage) = damage.as_ref().filter(|damage| damage.before.tally.records() == 0) {
        return Err(VolumeError::LogUncounted { detail: format!("write-ahead log: {damage}") });
    }
    let kept_by = match bucket.newest_manifest().await {
        Ok(newest) => SnapshotTable::load(bucket, &newest.manifest).await,
        Err(error) => Err(error),
    };
    // It is only told where it can be known.
    let kept_by = kept_by.map_or(Vec::new(), |table| takeover::taken_from(&table, &identity));
    let source = read_only_at(env.clone(), bucket.clone(), destination.settings.clone(), &base, None).await?;
    let (store, secret) = (Arc::clone(&destination.env.store), destination.secret);
    let target = open_destination(&destination, bucket, &base, origin(bucket, &identity, &base)).await?;
    // An attempt that ended in the middle may have left it with another size.
    let size_bytes = target.core().state().size_bytes;
    target.core().resize(size_bytes, base.manifest.size_bytes).await?;
    let copied_bytes = copy(source.core(), target.core(), &advance).await?;
    let floor = goes_on_at(bucket, &local, identity.log, &base.manifest)?;
    let scan = wal::scan_above(&*local.wal, floor)?;
    let opener = Opener::new(Arc::clone(&bucket.keys), identity.log);
    let mut replayed = Replayed::default();
    let unusable = damage.as_ref().and_then(|damage| damage.unusable());
    for found in scan.records(floor) {
        let found = found.map_err(VolumeError::local("write-ahead log"))?;
        if unusable.is_some_and(|unusable| found.lsn >= unusable) {
            break;
        }
        let plain = opener.open(&found)?;
        let before = target.core().state().size_bytes;
        match record::decode(found.lsn, found.kind, plain, before)? {
            LogRecord::Write { offset, time_ms, data } => {
                replayed.add(Tally::write(data.len() as u64), time_ms);
                target.core().write(offset, data).await?;
            }
            LogRecord::Zero { offset, time_ms, length } => {
                replayed.add(Tally::ZERO, time_ms);
                target.core().zero(offset, length).await?;
            }
            LogRecord::Resize { size_bytes, time_ms } => {
                replayed.add(Tally::RESIZE, time_ms);
                replayed.size_bytes = Some(size_bytes);
                target.core().resize(before, size_bytes).await?;
            }
            LogRecord::Published { .. } | LogRecord::Closed => {}
        }
        advance(copied_bytes + replayed.tally.bytes);
    }
    target.close().await?;
    drop(target);
    finish(&*store).await?;
    // It opens like any other from now on.
    Bucket::unlock(store, secret).await?;
    Ok(Rescued { base, copied_bytes, replayed, damage, kept_by })
}

/// Stands for what is rescued: the first half of the new volume's id. The other half is random, since one log may become
/// several volumes.
fn origin(bucket: &Bucket, identity: &LogIdentity, base: &Published) -> [u8; 8] {
    let mut bytes = b"s3bd rescue".to_vec();
    bytes.extend(bucket.header.volume.0);
    bytes.extend(identity.log.0);
    for LogTenure { generation, nonce, .. } in &identity.tenures {
        bytes.extend(generation.0.to_le_bytes());
        bytes.extend(nonce.to_le_bytes());
    }
    bytes.extend(base.link.digest);
    let mut origin = [0; 8];
    origin.copy_from_slice(&digest(&bytes)[..8]);
    origin
}

/// The new volume under its provisional header: made now, or by an attempt that did not come to its end.
pub(super) async fn open_destination(
    destination: &Destination<'_>,
    bucket: &Bucket,
    base: &Published,
    origin: [u8; 8],
) -> Result<Volume, VolumeError> {
    match Bucket::header(&*destination.env.store).await {
        Ok((header, _)) => {
            return Err(VolumeError::Exists { created: super::format_time(header.created_ms) });
        }
        Err(VolumeError::NoVolume | VolumeError::Unfinished) => {}
        Err(error) => return Err(error),
    }
    let mut env = destination.env.clone();
    env.store = Arc::new(Renamed::new(env.store, names::HEADER, names::HEADER_UNFINISHED));
    let (size_bytes, block_bytes) = (base.manifest.size_bytes, bucket.block_bytes());
    let made = match Bucket::header(&*env.store).await {
        Ok(_) => Bucket::unlock(Arc::clone(&env.store), destination.secret).await?,
        Err(VolumeError::NoVolume) => {
            let compression = bucket.header.compression;
            let new = NewVolume {
                size_bytes,
                block_bytes,
                compression,
                secret: destination.secret,
                cost: destination.cost,
            };
            let mut id: [u8; 16] = random_bytes(&*env.random);
            id[..8].copy_from_slice(&origin);
            init_as(&env, &new, VolumeId(id)).await?
        }
        Err(error) => return Err(error),
    };
    if made.header.volume.0[..8] != origin {
        let text = "something else that is not finished is here (the rescue of another log, or from another epoch; a clone): \
                    choose another name, or clear it with s3bd remove";
        return Err(VolumeError::Invalid(text.to_owned()));
    }
    let agreed = Agreed { takeover: true, rollback: true, discard: true };
    Ok(open(env, made, destination.settings.clone(), agreed).await?.0)
}

/// Gives the header its name.
pub(super) async fn finish(store: &dyn crate::store::Store) -> Result<(), VolumeError> {
    let header = get_small(store, names::HEADER_UNFINISHED).await?;
    store.put(names::HEADER, &[header], PutMode::Create).await?;
    store.delete(&[names::HEADER_UNFINISHED.to_owned()]).await?;
    Ok(())
}

/// Copies what is mapped, never holes. Bytes copied.
pub(super) async fn copy(from: &Core, to: &Core, advance: &impl Fn(u64)) -> Result<u64, VolumeError> {
    let size = from.state().size_bytes;
    let mut copied = 0;
    let mut start = 0;
    while start < size {
        let window = start..size.min(start.saturating_add(WINDOW_BYTES));
        start = window.end;
        let segments = from.segments(window, At::Newest).await?;
        let mapped = segments.into_iter().filter(|segment| !matches!(segment.source, Source::Zero));
        let pieces = pieces(mapped.map(|segment| segment.range));
        let copies = pieces.into_iter().map(|piece| async move {
            let length = piece.end - piece.start;
            let data = from.read_flat(piece.clone(), At::Newest).await?;
            to.write(piece.start, data.freeze()).await?;
            Ok::<u64, VolumeError>(length)
        });
        let mut copies = futures::stream::iter(copies).buffer_unordered(PIECES_MAX);
        while let Some(length) = copies.try_next().await? {
            copied += length;
            advance(copied);
        }
    }
    Ok(copied)
}

/// Neighbours together, in pieces of a bounded length.
fn pieces(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut pieces: Vec<Range<u64>> = Vec::new();
    for mut range in ranges {
        if let Some(last) = pieces.last_mut().filter(|last| last.end == range.start) {
            last.end = range.end.min(last.start + PIECE_BYTES);
            range.start = last.end;
        }
        while range.start < range.end {
            let end = range.end.min(range.start + PIECE_BYTES);
            pieces.push(range.start..end);
            range.start = end;
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_what_is_mapped_and_are_bounded() {
        let mib = 1 << 20;
        let cut = pieces([0..100, 100..3 * mib, 4 * mib..4 * mib + 5].into_iter());
        assert_eq!(cut, [0..mib, mib..2 * mib, 2 * mib..3 * mib, 4 * mib..4 * mib + 5]);
    }
}
