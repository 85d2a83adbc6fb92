//! Building block objects: frames are packed and sealed one after the other, then index and footer follow, twice.

use std::sync::Arc;

use bytes::Bytes;

use super::bucket::digest;
use crate::{
    format::{
        FormatError,
        ids::{Codec, Epoch, FrameRef, Generation, LogPosition, ObjectRef},
        index::{FrameKind, Index, IndexFrame, Maps, Run},
        manifest::ListedObject,
        object::{self, Footer, HEADER_BYTES, TAG_BYTES},
    },
    map::delta::NewObject,
    seal::{
        aead::Cipher,
        frame::{self, Compression},
        keys::Keys,
    },
};

/// What an object says of the cut it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct CutFacts {
    /// The cut whose data it holds; of pages, the cut up to which they map.
    pub epoch: Epoch,
    /// Which of the cut's objects this is.
    pub part: u32,
    /// Their number; 0 for pages.
    pub parts: u32,
    /// The newest cut with objects before it.
    pub parent: Option<(Generation, Epoch)>,
    /// How far the cut reaches.
    pub log: LogPosition,
    /// When it was packed, milliseconds since 1970.
    pub time_ms: u64,
    /// Size of the volume at the cut, bytes.
    pub size_bytes: u64,
}

/// An object under construction, in memory.
#[derive(Debug)]
pub struct ObjectBuilder {
    object: ObjectRef,
    cipher: Cipher,
    compression: Compression,
    bytes: Vec<u8>,
    index: Index,
}

/// A finished object, to be uploaded.
#[derive(Clone, Debug)]
pub struct BuiltObject {
    /// Its bytes.
    pub bytes: Bytes,
    /// Its entry in a manifest and its index.
    pub new: NewObject,
}

impl ObjectBuilder {
    /// Begins an object; `object.salt` is fresh and random, and `object` belongs to the volume of `keys`.
    #[must_use]
    pub fn new(keys: &Keys, object: ObjectRef, compression: Compression, facts: CutFacts) -> Self {
        debug_assert_eq!(object.owner, keys.volume());
        let key = keys.object(&object).expect("the volume's own objects have a key");
        let index = Index {
            generation: object.generation,
            sequence: object.sequence,
            epoch: facts.epoch,
            part: facts.part,
            parts: facts.parts,
            parent: facts.parent,
            log: facts.log,
            time_ms: facts.time_ms,
            size_bytes: facts.size_bytes,
            frames: Vec::new(),
            holes: Vec::new(),
            lost: Vec::new(),
            maps: None,
        };
        let bytes = object::encode_header(&object).to_vec();
        Self { object, cipher: key.cipher(), compression, bytes, index }
    }

    /// Length so far, bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it has no frame yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == HEADER_BYTES
    }

    /// Packs, seals and appends one frame.
    pub fn add(&mut self, kind: FrameKind, plain: &[u8]) -> FrameRef {
        let place = self.seal(self.index.frames.len() as u32, plain);
        self.index.frames.push(IndexFrame {
            offset: place.offset,
            stored_bytes: place.stored_bytes,
            plain_bytes: place.plain_bytes,
            codec: place.codec,
            kind,
        });
        place
    }

    /// Runs that read as zeros from this cut on, ascending.
    pub fn set_holes(&mut self, holes: Vec<Run>) {
        self.index.holes = holes;
    }

    /// Runs whose content is lost, ascending.
    pub fn set_lost(&mut self, lost: Vec<Run>) {
        self.index.lost = lost;
    }

    /// The maps that the checkpoint which this object ends has brought.
    pub fn set_maps(&mut self, maps: Maps) {
        self.index.maps = Some(maps);
    }

    fn seal(&mut self, number: u32, plain: &[u8]) -> FrameRef {
        let (codec, packed) = frame::pack(self.compression, plain);
        let place = FrameRef {
            object: self.object,
            number,
            offset: self.bytes.len() as u64,
            stored_bytes: (packed.len() + TAG_BYTES) as u32,
            plain_bytes: plain.len() as u32,
            codec,
        };
        frame::seal(&self.cipher, &place, &packed, &mut self.bytes);
        place
    }

    /// Appends the mirror of index and footer, and both themselves.
    pub fn finish(mut self) -> Result<BuiltObject, FormatError> {
        let plain = self.index.encode()?;
        // Indexes are small and read at every open: the fast codec, whatever the data has.
        self.compression = Compression { codec: Codec::Zstd, level: 1 };
        let place = self.seal(crate::format::index::INDEX_NUMBER, &plain);
        let footer = Footer {
            index_offset: place.offset,
            index_bytes: place.stored_bytes,
            index_plain_bytes: place.plain_bytes,
            index_codec: place.codec,
        };
        let digest = digest(&self.bytes[place.offset as usize..]);
        self.bytes.extend_from_slice(&footer.encode());
        self.bytes.extend_from_within(place.offset as usize..);
        let listed = ListedObject {
            generation: self.object.generation,
            sequence: self.object.sequence,
            salt: self.object.salt,
            epoch: self.index.epoch,
            bytes: self.bytes.len() as u64,
            index_bytes: place.stored_bytes,
            digest,
        };
        let new = NewObject { listed, object: self.object, index: Arc::new(self.index) };
        Ok(BuiltObject { bytes: self.bytes.into(), new })
    }
}
