//! An object as it was uploaded, made of what is left of it: where its header is damaged, or one of its two ends.
//!
//! # Invariants
//! Every byte is proven before it is put: index and frames open by their seals, which bind them to volume, object, place and
//! lengths, and lie one after the other without a gap; header and footers follow from that. So what is put under an
//! object's name is what its writer put there, and nothing else, whoever else puts or reads it meanwhile. The objects of
//! other volumes are never written.
//!
//! # Not handled
//! An object that is deleted between the last look and the put is there again, and is nobody's: a stray.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{
    plan::Suspects,
    survey::{self, Survey},
};
use crate::{
    format::{
        ids::{Generation, ObjectRef, Sequence},
        manifest::{Digest, Manifest, Snapshot},
        names,
        object::{self, FOOTER_BYTES, Footer, HEADER_BYTES},
    },
    seal::frame,
    store::{ErrorKind, PutMode, Range},
    volume::{
        bucket::{Bucket, Published, digest},
        claims::{self, Tenure},
        core::{Core, Progress},
        env::Env,
        error::{Kind, VolumeError},
        open::load_delta,
        snapshots::SnapshotTable,
        walk::{Direct, FETCHES_MAX},
    },
};

type Name = (Generation, Sequence);

/// What is known of an object of this volume from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its header says this.
    pub object: ObjectRef,
    /// Of its sealed index, where the newest manifest lists it.
    pub digest: Option<Digest>,
}

/// An object as it is, and as it was.
struct Found {
    now: Bytes,
    original: Bytes,
}

/// Those of the objects `names` that can be put back. Reads each of them whole, one after the other.
pub(super) async fn find_all(
    env: &Env,
    direct: &Direct,
    names: &BTreeSet<Name>,
    found: &Survey,
) -> Result<Vec<Known>, VolumeError> {
    let bucket = &direct.bucket;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let newest = bucket.newest_manifest().await?.manifest;
    let mut known = BTreeMap::new();
    add(&mut known, bucket, &newest, found);
    for name in names {
        if !known.contains_key(name)
            && let Some(object) = load_header(bucket, *name).await?
        {
            known.insert(*name, Known { object, digest: None });
        }
    }
    ask_snapshots(direct, &newest, names, &mut known).await?;
    let mut whole = Vec::new();
    for known in names.iter().filter_map(|name| known.get(name)) {
        if find(env, bucket, known).await?.is_some() {
            whole.push(*known);
        }
    }
    Ok(whole)
}

/// What a manifest's list and its maps say of objects of this volume; who said something first is believed.
fn add(known: &mut BTreeMap<Name, Known>, bucket: &Bucket, manifest: &Manifest, found: &Survey) {
    let own = bucket.header.volume;
    let listed = manifest.objects.iter();
    let listed = listed.map(|listed| Known { object: listed.place(own), digest: Some(listed.digest) });
    let frames = found.frames.iter().map(|found| found.frame.object);
    let mapped = frames.chain(found.pages.iter().map(|found| found.page.frame.object));
    let mapped = mapped.filter(|object| object.owner == own).map(|object| Known { object, digest: None });
    for one in listed.chain(mapped) {
        known.entry((one.object.generation, one.object.sequence)).or_insert(one);
    }
}

/// Of what only snapshots need, and whose header is damaged, their maps have what it said.
async fn ask_snapshots(
    direct: &Direct,
    newest: &Manifest,
    names: &BTreeSet<Name>,
    known: &mut BTreeMap<Name, Known>,
) -> Result<(), VolumeError> {
    let bucket = &direct.bucket;
    let is_unknown = |known: &BTreeMap<Name, Known>| names.iter().any(|name| !known.contains_key(name));
    if !is_unknown(known) {
        return Ok(());
    }
    let snapshots = match SnapshotTable::load(bucket, newest).await {
        Err(error) if error.kind() == Kind::Corrupt => SnapshotTable::default(),
        table => table?,
    };
    for snapshot in snapshots.iter() {
        let unknown = names.iter().filter(|name| !known.contains_key(name)).copied();
        let suspects = Suspects { objects: unknown.collect(), ..Suspects::default() };
        match look(direct, snapshot, &suspects).await {
            Ok(Some((manifest, found))) => add(known, bucket, &manifest, &found),
            Ok(None) => {}
            // Then it says nothing of them: that is a finding of its own.
            Err(error) if error.kind() == Kind::Corrupt => {}
            Err(error) => return Err(error),
        }
        if !is_unknown(known) {
            break;
        }
    }
    Ok(())
}

/// A snapshot's manifest, and what its maps have in damaged objects; `None` where it is missing.
async fn look(
    direct: &Direct,
    snapshot: &Snapshot,
    suspects: &Suspects,
) -> Result<Option<(Manifest, Survey)>, VolumeError> {
    let pinned = direct.bucket.load_manifest(snapshot.generation, snapshot.epoch).await?;
    let Some(Published { manifest, .. }) = pinned else { return Ok(None) };
    let delta = load_delta(&direct.bucket, &manifest).await?;
    let found = survey::look(direct, suspects, &manifest.roots, &delta).await?;
    Ok(Some((manifest, found)))
}

/// The header of an object of this volume, where it is whole.
async fn load_header(bucket: &Bucket, name: Name) -> Result<Option<ObjectRef>, VolumeError> {
    let key = names::object(name.0, name.1);
    let range = Range::Part { offset: 0, length: HEADER_BYTES as u64 };
    match bucket.store.get(&key, range).await {
        Ok(got) => Ok(object::decode_header(&got.bytes).ok().filter(|found| {
            found.owner == bucket.header.volume && (found.generation, found.sequence) == name
        })),
        Err(error) if error.kind == ErrorKind::Short => Ok(None),
        Err(error) if error.kind == ErrorKind::NotFound && !error.key.is_empty() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Puts an object back under its name, as it was uploaded; nothing is put where it is whole by now. Whether it is whole
/// afterwards, by what is read back: durable then. It is not where too little of it is left.
///
/// # Errors
/// What ends the tenure, and what the store refuses.
pub(super) async fn put_back(core: &Core, known: &Known) -> Result<bool, VolumeError> {
    let (env, bucket) = (&core.env, &core.bucket);
    let name = names::object(known.object.generation, known.object.sequence);
    let Some(Found { now, original }) = find(env, bucket, known).await? else { return Ok(false) };
    if now == original {
        return Ok(true);
    }
    let Progress { generation, nonce, .. } = *core.progress.borrow();
    claims::check(bucket, Tenure { generation, nonce }).await?;
    bucket.store.put(&name, std::slice::from_ref(&original), PutMode::Replace).await?;
    Ok(find(env, bucket, known).await?.is_some_and(|found| found.now == original))
}

/// An object, fetched again where it is not to be had out of what came: the network damages bytes, too.
async fn find(env: &Env, bucket: &Bucket, known: &Known) -> Result<Option<Found>, VolumeError> {
    let name = names::object(known.object.generation, known.object.sequence);
    for _ in 0..FETCHES_MAX {
        let now = match bucket.store.get(&name, Range::Full).await {
            Ok(got) => got.bytes,
            Err(error) if error.kind == ErrorKind::NotFound && !error.key.is_empty() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (from, bucket, known) = (now.clone(), bucket.clone(), *known);
        if let Some(original) = env.compute(move || original(&bucket, &known, &from)).await {
            return Ok(Some(Found { now, original }));
        }
    }
    Ok(None)
}

/// What the object was, of which `now` is left; `None` where a frame or both of its ends are damaged.
fn original(bucket: &Bucket, known: &Known, now: &[u8]) -> Option<Bytes> {
    let Known { object, digest: listed } = *known;
    if object.owner != bucket.header.volume {
        return None;
    }
    let object_bytes = now.len() as u64;
    let footer = Footer::find(now, object_bytes)?;
    let ends = [now.len(), now.len().checked_sub(footer.end_bytes() as usize)?];
    let (index, footer, sealed) = ends.into_iter().find_map(|end| {
        let end = &now[..end];
        let (index, footer) =
            (bucket.open_index(object, end, object_bytes).ok()?, Footer::decode(end, object_bytes).ok()?);
        let sealed = &end[end.len() - footer.end_bytes() as usize..end.len() - FOOTER_BYTES];
        listed.is_none_or(|listed| digest(sealed) == listed).then_some((index, footer, sealed))
    })?;
    let cipher = bucket.keys.object(&object)?.cipher();
    for number in 0..index.frames.len() {
        let place = index.place(object, number as u32)?;
        let start = place.offset as usize;
        let stored = now.get(start..start + place.stored_bytes as usize)?;
        frame::open(&cipher, &place, stored).ok()?;
    }
    let header = object::encode_header(&object);
    let frames = now.get(HEADER_BYTES..footer.index_offset as usize)?;
    let foot = footer.encode();
    Some([&header[..], frames, sealed, &foot, sealed, &foot].concat().into())
}
