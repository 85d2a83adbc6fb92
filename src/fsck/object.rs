//! One object in the bucket, by its own account: header, index, footer, and the mirror of both.

use std::sync::Arc;

use super::{Finding, detail::IndexProblem, finding::object_name};
use crate::{
    format::{
        FormatError,
        ids::{Epoch, Generation, ObjectRef, Sequence, VolumeId},
        index::Index,
        manifest::ListedObject,
        object::{self, FOOTER_BYTES, HEADER_BYTES},
        page::ObjectInfo,
    },
    seal::{SealError, small::OpenError},
    store::{ErrorKind, Got, Range, Store},
    volume::{
        bucket::{Bucket, digest},
        error::VolumeError,
        indexes::find_footer,
        walk::FETCHES_MAX,
    },
};

/// Bytes at an object's end read in one go: the index of an object of 16 MiB in frames of 64 KiB, twice, has a fifth of that.
const TAIL_BYTES: u64 = 64 << 10;

/// What stands under an object's name.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing.
    Missing,
    /// Another object, or bytes of another length.
    Other(Remnant),
    /// The object, and of the right length: its index where that is whole, and what is wrong with it.
    Here(Option<Arc<Index>>, Vec<Finding>),
}

/// What stands under the name of an object, and is not that as it was uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remnant {
    /// Its length.
    pub(super) bytes: u64,
    /// What it is, in words; none where its header is the object's own, so that it is what is left of it.
    pub(super) instead: Option<String>,
}

/// What is known of an object from elsewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    owner: VolumeId,
    pub(super) generation: Generation,
    pub(super) sequence: Sequence,
    pub(super) bytes: u64,
    epoch: Epoch,
    /// Not known of what the newest manifest lists.
    plain_bytes: Option<u64>,
    /// Known of what the newest manifest lists.
    listed: Option<ListedObject>,
}

impl Known {
    pub(super) fn of_entry(owner: VolumeId, sequence: Sequence, info: &ObjectInfo) -> Self {
        Self {
            owner,
            generation: info.generation,
            sequence,
            bytes: info.bytes,
            epoch: info.born,
            plain_bytes: Some(info.plain_bytes),
            listed: None,
        }
    }

    pub(super) fn of_listed(owner: VolumeId, listed: ListedObject) -> Self {
        Self {
            owner,
            generation: listed.generation,
            sequence: listed.sequence,
            bytes: listed.bytes,
            epoch: listed.epoch,
            plain_bytes: None,
            listed: Some(listed),
        }
    }

    pub(super) fn name(&self) -> (Generation, Sequence) {
        (self.generation, self.sequence)
    }
}

/// Looks at an object, again where something of it is not whole: the network damages bytes, too. With `header`, at its
/// header as well, which no reader needs.
pub(super) async fn look(bucket: &Bucket, known: &Known, header: bool) -> Result<Found, VolumeError> {
    let mut attempt = 1;
    loop {
        match look_once(bucket, known, header).await? {
            Found::Here(_, findings) if !findings.is_empty() && attempt < FETCHES_MAX => attempt += 1,
            Found::Other(_) if attempt < FETCHES_MAX => attempt += 1,
            found => return Ok(found),
        }
    }
}

async fn look_once(bucket: &Bucket, known: &Known, header: bool) -> Result<Found, VolumeError> {
    let name = object_name(known.name());
    let tail_bytes = known.listed.map_or(TAIL_BYTES, |listed| 2 * listed.end_bytes());
    // Of a volume that is not known there is nothing.
    let Ok(store) = bucket.store_of(known.owner) else { return Ok(Found::Missing) };
    let Some(tail) = get(&*store, &name, Range::Suffix { length: tail_bytes }).await? else {
        return Ok(Found::Missing);
    };
    if tail.object_bytes != known.bytes {
        let bytes = tail.object_bytes;
        return Ok(match get_header(&*store, &name).await? {
            None => Found::Missing,
            Some(Ok(found)) if is_named(&found, known) => Found::Other(Remnant { bytes, instead: None }),
            Some(found) => Found::Other(Remnant { bytes, instead: Some(in_words(found.ok(), known)) }),
        });
    }
    let mut findings = Vec::new();
    // Without a list to say it, only the header has the salt that the object's key comes from.
    let mut reference = known.listed.map(|listed| listed.place(known.owner));
    if header || reference.is_none() {
        let Some(head) = get_header(&*store, &name).await? else { return Ok(Found::Missing) };
        match head {
            Ok(found) if is_named(&found, known) => reference = Some(found),
            Ok(other) => {
                // With an end of its own it is that object; without, a damaged header.
                let stands = Known { listed: None, ..*known };
                let ends = read_ends(bucket, &*store, &stands, Some(other), tail.clone()).await?;
                if let (Ok(Some(_)), _) | (_, Ok(Some(_))) = ends {
                    let instead = Some(in_words(Some(other), known));
                    return Ok(Found::Other(Remnant { bytes: tail.object_bytes, instead }));
                }
                findings.push(Finding::ObjectHeader { name: name.clone(), error: None });
            }
            Err(error) => findings.push(Finding::ObjectHeader { name: name.clone(), error }),
        }
    }
    let listed = known.listed.is_some();
    let index = match read_ends(bucket, &*store, known, reference, tail).await? {
        (Ok(index), Ok(_)) => index,
        (Ok(index), Err(error)) => {
            findings.push(Finding::ObjectMirror { name, listed, error: words(&error) });
            index
        }
        (Err(error), mirror) => {
            let mirrored = mirror.is_ok();
            findings.push(Finding::ObjectIndex { name, listed, mirrored, error: words(&error) });
            mirror.unwrap_or(None)
        }
    };
    findings.extend(index.iter().flat_map(|index| judge(known, index)));
    Ok(Found::Here(index.map(Arc::new), findings))
}

async fn get(store: &dyn Store, name: &str, range: Range) -> Result<Option<Got>, VolumeError> {
    match store.get(name, range).await {
        Ok(got) => Ok(Some(got)),
        Err(error) if error.kind == ErrorKind::NotFound && !error.key.is_empty() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The header under a name; `None` where nothing is there. Bytes that are too few for one have no error of their own.
async fn get_header(
    store: &dyn Store,
    name: &str,
) -> Result<Option<Result<ObjectRef, Option<FormatError>>>, VolumeError> {
    match get(store, name, Range::Part { offset: 0, length: HEADER_BYTES as u64 }).await {
        Ok(head) => Ok(head.map(|head| object::decode_header(&head.bytes).map_err(Some))),
        Err(VolumeError::Store(error)) if error.kind == ErrorKind::Short => Ok(Some(Err(None))),
        Err(error) => Err(error),
    }
}

/// What has this header, and is not the object that is `known`.
fn in_words(found: Option<ObjectRef>, known: &Known) -> String {
    let Some(found) = found else { return "something without the header of an object".to_owned() };
    let name = object_name((found.generation, found.sequence));
    if found.owner != known.owner {
        format!("the object {name} of the volume with the id {}", found.owner)
    } else if (found.generation, found.sequence) != known.name() {
        format!("the object {name}")
    } else {
        "another object of the same name".to_owned()
    }
}

fn is_named(found: &ObjectRef, known: &Known) -> bool {
    found.owner == known.owner
        && (found.generation, found.sequence) == known.name()
        && known.listed.is_none_or(|listed| listed.salt == found.salt)
}

/// What is wrong, without the object's name, which the finding has.
fn words(error: &VolumeError) -> String {
    match error {
        VolumeError::Damaged { error: OpenError::Seal(error), .. } => format!("object index: {error}"),
        VolumeError::Damaged { error, .. } => error.to_string(),
        VolumeError::DamagedFrame { error, .. } => format!("object index: {error}"),
        other => other.to_string(),
    }
}

/// An index; `None` where the key to it is not known.
type ReadIndex = Result<Option<Index>, VolumeError>;

/// The index at the object's end, and its mirror, of an object that ends with `tail`.
///
/// # Errors
/// What the store refuses.
async fn read_ends(
    bucket: &Bucket,
    store: &dyn Store,
    known: &Known,
    reference: Option<ObjectRef>,
    mut tail: Got,
) -> Result<(ReadIndex, ReadIndex), VolumeError> {
    let name = object_name(known.name());
    let end_bytes = match (find_footer(store, &name, &tail).await, known.listed) {
        (Ok(footer), None) => footer.end_bytes(),
        (Err(VolumeError::Store(error)), _) => return Err(VolumeError::Store(error)),
        (_, Some(listed)) => listed.end_bytes(),
        (Err(error), None) => return Ok((Err(error.clone()), Err(error))),
    };
    if 2 * end_bytes > tail.bytes.len() as u64
        && let Some(longer) = get(store, &name, Range::Suffix { length: 2 * end_bytes }).await?
    {
        tail = longer;
    }
    let open = |last: Option<usize>| {
        let broken = || VolumeError::damaged(&name, SealError::Broken);
        let end = last.and_then(|last| tail.bytes.get(..last)).ok_or_else(broken)?;
        if let Some(listed) = known.listed {
            let sealed =
                end.len().checked_sub(end_bytes as usize).map(|start| &end[start..end.len() - FOOTER_BYTES]);
            if sealed.is_none_or(|sealed| digest(sealed) != listed.digest) {
                return Err(broken());
            }
        }
        reference.map(|reference| bucket.open_index(reference, end, tail.object_bytes)).transpose()
    };
    let length = tail.bytes.len();
    Ok((open(Some(length)), open(length.checked_sub(end_bytes as usize))))
}

/// What an index says otherwise than it is known from elsewhere.
fn judge(known: &Known, index: &Index) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut differ = |problem, index, expected| {
        findings.push(Finding::IndexDisagrees { name: object_name(known.name()), problem, index, expected });
    };
    let plain_bytes = index.frames.iter().map(|frame| u64::from(frame.plain_bytes)).sum();
    if let Some(expected) = known.plain_bytes
        && expected != plain_bytes
    {
        differ(IndexProblem::PlainBytes, plain_bytes, expected);
    }
    // Pages are brought by a later cut than the one up to which they map.
    let is_pages = index.parts == 0;
    if index.epoch > known.epoch || (!is_pages && index.epoch != known.epoch) {
        differ(IndexProblem::Epoch, index.epoch.0, known.epoch.0);
    }
    findings
}
