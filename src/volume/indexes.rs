//! Indexes of objects: read from an object's end, or from the mirror of the end where that is damaged.
//!
//! # Errors
//! Of an object whose end and mirror are both damaged, the error is that of the end. A store that does not answer is never
//! taken for damage.

use std::sync::Arc;

use super::{
    bucket::{Bucket, digest, whole},
    error::{FrameError, VolumeError},
};
use crate::{
    format::{
        ids::{Generation, ObjectRef, Sequence, VolumeId},
        index::Index,
        manifest::ListedObject,
        names,
        object::{self, FOOTER_BYTES, Footer, HEADER_BYTES},
    },
    map::delta::NewObject,
    seal::{SealError, frame},
    store::{ErrorKind, Got, Range, Store},
};

/// Last bytes of an object that are looked through where its footer is damaged: the index of an object of 64 MiB, all in
/// frames of scattered blocks of 512 bytes, fits in.
const SEARCH_BYTES: u64 = 8 << 20;

/// Which of the two ends of an object, which are equal: index and footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its last bytes.
    Last,
    /// Those before.
    Mirror,
}

impl End {
    /// Where it is in an object of `object_bytes` bytes that ends with `end_bytes`.
    fn range(self, object_bytes: u64, end_bytes: u64) -> Range {
        match self {
            Self::Last => Range::Suffix { length: end_bytes },
            Self::Mirror => {
                Range::Part { offset: object_bytes.saturating_sub(2 * end_bytes), length: end_bytes }
            }
        }
    }
}

/// What was read of an object's end, or, where that was damaged, what `mirror` reads.
async fn or_mirror(
    last: Result<NewObject, VolumeError>,
    mirror: impl Future<Output = Result<NewObject, VolumeError>>,
) -> Result<NewObject, VolumeError> {
    let damage = match last {
        Err(error @ (VolumeError::Damaged { .. } | VolumeError::DamagedFrame { .. })) => error,
        read => return read,
    };
    match mirror.await {
        Ok(new) => {
            tracing::warn!(
                "{damage}: its mirror is whole (s3bd fsck --repair puts the object back as it was)"
            );
            Ok(new)
        }
        Err(VolumeError::Store(error)) if error.kind != ErrorKind::Short => Err(VolumeError::Store(error)),
        Err(_) => Err(damage),
    }
}

impl Bucket {
    /// Reads the index of an object of this volume that a manifest lists: one suffix read.
    pub async fn load_index(&self, listed: ListedObject) -> Result<NewObject, VolumeError> {
        self.load_index_of(self.header.volume, listed).await
    }

    /// The same of an object of `owner`, of which a clone's manifest lists it.
    pub async fn load_index_of(
        &self,
        owner: VolumeId,
        listed: ListedObject,
    ) -> Result<NewObject, VolumeError> {
        let load = |end| whole(move || self.load_end(owner, listed, end));
        or_mirror(load(End::Last).await, load(End::Mirror)).await
    }

    async fn load_end(
        &self,
        owner: VolumeId,
        listed: ListedObject,
        end: End,
    ) -> Result<NewObject, VolumeError> {
        let reference = listed.place(owner);
        let name = self.object_name(&reference);
        let Ok(store) = self.store_of(owner) else { return Err(VolumeError::MissingObject { name }) };
        let key = names::object(listed.generation, listed.sequence);
        let found = match get(&*store, &key, end.range(listed.bytes, listed.end_bytes())).await {
            Err(VolumeError::MissingObject { .. }) => return Err(VolumeError::MissingObject { name }),
            found => found?,
        };
        let sealed = found.bytes.len().checked_sub(FOOTER_BYTES).map(|end| &found.bytes[..end]);
        if found.object_bytes != listed.bytes || sealed.is_none_or(|sealed| digest(sealed) != listed.digest) {
            return Err(VolumeError::damaged(&name, SealError::Broken));
        }
        let index = self.open_index(reference, &found.bytes, found.object_bytes)?;
        Ok(NewObject { listed, object: reference, index: Arc::new(index) })
    }

    /// Reads header and index of an object of this volume of which nothing is known but its name.
    pub async fn explain(
        &self,
        generation: Generation,
        sequence: Sequence,
    ) -> Result<NewObject, VolumeError> {
        let (object, footer, object_bytes) = whole(|| self.head_and_foot(generation, sequence)).await?;
        let explain = |end| whole(move || self.explain_end(object, footer, object_bytes, end));
        or_mirror(explain(End::Last).await, explain(End::Mirror)).await
    }

    async fn head_and_foot(
        &self,
        generation: Generation,
        sequence: Sequence,
    ) -> Result<(ObjectRef, Footer, u64), VolumeError> {
        let name = &names::object(generation, sequence);
        let (head, foot) = futures::try_join!(
            get(&*self.store, name, Range::Part { offset: 0, length: HEADER_BYTES as u64 }),
            get(&*self.store, name, Range::Suffix { length: FOOTER_BYTES as u64 }),
        )?;
        let found = object::decode_header(&head.bytes).map_err(|error| VolumeError::damaged(name, error))?;
        if (found.owner, found.generation, found.sequence) != (self.header.volume, generation, sequence) {
            return Err(VolumeError::damaged(name, SealError::Broken));
        }
        let footer = find_footer(&*self.store, name, &foot).await?;
        Ok((found, footer, foot.object_bytes))
    }

    async fn explain_end(
        &self,
        object: ObjectRef,
        footer: Footer,
        object_bytes: u64,
        end: End,
    ) -> Result<NewObject, VolumeError> {
        let ObjectRef { generation, sequence, salt, .. } = object;
        let name = names::object(generation, sequence);
        let found = get(&*self.store, &name, end.range(object_bytes, footer.end_bytes())).await?;
        let index = self.open_index(object, &found.bytes, found.object_bytes)?;
        let listed = ListedObject {
            generation,
            sequence,
            salt,
            epoch: index.epoch,
            bytes: object_bytes,
            index_bytes: footer.index_bytes,
            digest: digest(&found.bytes[..found.bytes.len() - FOOTER_BYTES]),
        };
        Ok(NewObject { listed, object, index: Arc::new(index) })
    }

    /// Opens the index in `tail`, which ends as one of the ends of an object of `object_bytes` bytes does.
    pub fn open_index(
        &self,
        reference: ObjectRef,
        tail: &[u8],
        object_bytes: u64,
    ) -> Result<Index, VolumeError> {
        let name = self.object_name(&reference);
        let footer =
            Footer::decode(tail, object_bytes).map_err(|error| VolumeError::damaged(&name, error))?;
        let place = footer.index(reference);
        let sealed = tail
            .len()
            .checked_sub(FOOTER_BYTES + footer.index_bytes as usize)
            .map(|start| &tail[start..tail.len() - FOOTER_BYTES])
            .ok_or_else(|| self.damaged_frame(&place, FrameError::Short))?;
        let key =
            self.keys.object(&reference).ok_or_else(|| self.damaged_frame(&place, FrameError::Owner))?;
        let plain = frame::open(&key.cipher(), &place, sealed)
            .map_err(|error| self.damaged_frame(&place, error.into()))?;
        let index = Index::decode(&plain, footer.index_offset, self.block_bytes())
            .map_err(|error| self.damaged_frame(&place, error.into()))?;
        if index.generation != reference.generation || index.sequence != reference.sequence {
            return Err(self.damaged_frame(&place, SealError::Broken.into()));
        }
        Ok(index)
    }
}

/// The footer of the object `name`, of which the last bytes are in `tail`: that of its mirror where its own is damaged.
///
/// # Errors
/// `Damaged` by what its own is; `MissingObject`; what the store refuses.
pub(crate) async fn find_footer(store: &dyn Store, name: &str, tail: &Got) -> Result<Footer, VolumeError> {
    let damage = match Footer::decode(&tail.bytes, tail.object_bytes) {
        Ok(footer) => return Ok(footer),
        Err(error) => VolumeError::damaged(name, error),
    };
    let more = get(store, name, Range::Suffix { length: SEARCH_BYTES }).await?;
    Footer::find(&more.bytes, more.object_bytes).ok_or(damage)
}

async fn get(store: &dyn Store, name: &str, range: Range) -> Result<Got, VolumeError> {
    match store.get(name, range).await {
        Ok(got) => Ok(got),
        Err(error) if error.kind == ErrorKind::NotFound && !error.key.is_empty() => {
            Err(VolumeError::MissingObject { name: name.to_owned() })
        }
        Err(error) => Err(error.into()),
    }
}
