//! A page of a map: a sorted piece of it, sealed as a frame of an object. Layout: `docs/format.md`, "Page".
//!
//! Frames and objects are named once a page and referred to by their position in the page's own tables.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    FormatError, codec,
    ids::{Codec, Epoch, FrameRef, Generation, ObjectRef, Sequence},
    index::{FRAME_PLAIN_BYTES_MAX, MapKind},
    manifest::Snapshot,
    object::TAG_BYTES,
};

/// A page covers 2^9 keys at level 0 and 2^9 pages at each level above: a leaf of single 4 KiB blocks is then some
/// 30 KiB, so a random write costs little more in map than in data, and a petabyte is five levels deep.
pub const FANOUT_BITS: u32 = 9;
/// Children of a page, or keys of a leaf.
pub const FANOUT: u64 = 1 << FANOUT_BITS;
/// The level at which one page covers all 64-bit keys.
pub const LEVEL_MAX: u8 = 7;

/// Keys that one page at `level` covers, as a power of two.
#[must_use]
pub fn span_bits(level: u8) -> u32 {
    FANOUT_BITS * (u32::from(level) + 1)
}

/// A page, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// Children by slot, ascending; a slot that is not there has no entries below it.
    Inner(Vec<(u16, FrameRef)>),
    /// Leaf of the block map: extents, ascending and apart. What is not there was never written.
    Blocks(Vec<Extent>),
    /// Leaf of the object table, ascending.
    Objects(Vec<(Sequence, ObjectInfo)>),
    /// Leaf of the snapshot table, ascending by number.
    Snapshots(Vec<Snapshot>),
}

/// A run of blocks and where its content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block.
    pub block: u64,
    /// Number of blocks.
    pub count: u64,
    /// Where.
    pub target: Target,
}

/// Where the content of a run of blocks is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nowhere: it reads as zeros.
    Hole,
    /// Nowhere any more: reading it is an error until it is overwritten.
    Lost,
    /// In a frame, from this block of its plaintext on.
    Frame(Arc<FrameRef>, u32),
}

impl Target {
    /// The target of what lies `blocks` further on in the same extent.
    #[must_use]
    pub fn skip(&self, blocks: u64) -> Self {
        match self {
            Self::Frame(frame, offset) => Self::Frame(Arc::clone(frame), offset + blocks as u32),
            other => other.clone(),
        }
    }
}

/// What is known of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectInfo {
    /// Tenure that wrote it.
    pub generation: Generation,
    /// Its length, bytes.
    pub bytes: u64,
    /// Plaintext in its frames when it was written, bytes.
    pub plain_bytes: u64,
    /// Plaintext in its frames that the maps still name, bytes.
    pub live_bytes: u64,
    /// The epoch whose cut brought it.
    pub born: Epoch,
    /// The epoch from which the maps name nothing in it.
    pub died: Option<Epoch>,
}

/// A frame as a page or a root stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFrame {
    /// Position in the table of objects beside it.
    pub object: u32,
    /// Its number in the object.
    pub number: u32,
    /// Where it begins in the object, bytes.
    pub offset: u64,
    /// Length in the object, tag included, bytes.
    pub stored_bytes: u32,
    /// Length of its plaintext, bytes.
    pub plain_bytes: u32,
    /// How the plaintext was packed.
    pub codec: Codec,
}

impl StoredFrame {
    /// The stored form of `frame`, whose object is at `object` in the table beside it.
    #[must_use]
    pub fn new(object: u32, frame: &FrameRef) -> Self {
        Self {
            object,
            number: frame.number,
            offset: frame.offset,
            stored_bytes: frame.stored_bytes,
            plain_bytes: frame.plain_bytes,
            codec: frame.codec,
        }
    }

    /// Whether its lengths are such as a writer makes them, so that a reader may allocate as much.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        self.plain_bytes <= FRAME_PLAIN_BYTES_MAX
            && self.stored_bytes as usize >= TAG_BYTES
            && self.offset.checked_add(self.stored_bytes.into()).is_some()
    }

    /// The whole reference, given the object.
    #[must_use]
    pub fn place(&self, object: ObjectRef) -> FrameRef {
        FrameRef {
            object,
            number: self.number,
            offset: self.offset,
            stored_bytes: self.stored_bytes,
            plain_bytes: self.plain_bytes,
            codec: self.codec,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredPage {
    objects: Vec<ObjectRef>,
    frames: Vec<StoredFrame>,
    body: StoredBody,
}

#[derive(Serialize, Deserialize)]
enum StoredBody {
    Inner(Vec<(u16, u32)>),
    Blocks(Vec<StoredExtent>),
    Objects(Vec<(Sequence, ObjectInfo)>),
    Snapshots(Vec<Snapshot>),
}

#[derive(Serialize, Deserialize)]
struct StoredExtent {
    block: u64,
    count: u16,
    /// Position in the table of frames, or [`LOST`].
    frame: u32,
    offset: u32,
}

const LOST: u32 = u32::MAX;

/// Tables of frames and objects, each named once.
#[derive(Default)]
struct Tables {
    objects: Vec<ObjectRef>,
    frames: Vec<StoredFrame>,
    object_at: HashMap<ObjectRef, u32>,
    frame_at: HashMap<(u32, u32), u32>,
}

impl Tables {
    fn add(&mut self, frame: &FrameRef) -> u32 {
        let object = *self.object_at.entry(frame.object).or_insert_with(|| {
            self.objects.push(frame.object);
            self.objects.len() as u32 - 1
        });
        *self.frame_at.entry((object, frame.number)).or_insert_with(|| {
            self.frames.push(StoredFrame::new(object, frame));
            self.frames.len() as u32 - 1
        })
    }
}

impl Page {
    /// Plaintext bytes, to be packed and sealed.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let mut tables = Tables::default();
        let body = match self {
            Self::Inner(children) => {
                StoredBody::Inner(children.iter().map(|(slot, page)| (*slot, tables.add(page))).collect())
            }
            Self::Blocks(extents) => StoredBody::Blocks(
                extents.iter().filter_map(|extent| store_extent(extent, &mut tables)).collect(),
            ),
            Self::Objects(entries) => StoredBody::Objects(entries.clone()),
            Self::Snapshots(entries) => StoredBody::Snapshots(entries.clone()),
        };
        codec::encode("page", &StoredPage { objects: tables.objects, frames: tables.frames, body })
    }

    /// Reads opened and unpacked plaintext of a page of `map` at `level` from `first_key` on, and checks that every entry
    /// is in order, in range and within its frame.
    pub fn decode(
        plain: &[u8],
        map: MapKind,
        level: u8,
        first_key: u64,
        block_bytes: u32,
    ) -> Result<Self, FormatError> {
        let stored: StoredPage = codec::decode("page", plain)?;
        unpack(stored, map, level, first_key, block_bytes)
            .map_err(|detail| FormatError::Malformed { what: "page", detail })
    }
}

fn store_extent(extent: &Extent, tables: &mut Tables) -> Option<StoredExtent> {
    let (frame, offset) = match &extent.target {
        Target::Hole => return None,
        Target::Lost => (LOST, 0),
        Target::Frame(frame, offset) => (tables.add(frame), *offset),
    };
    Some(StoredExtent { block: extent.block, count: extent.count as u16, frame, offset })
}

fn unpack(
    stored: StoredPage,
    map: MapKind,
    level: u8,
    first_key: u64,
    block_bytes: u32,
) -> Result<Page, &'static str> {
    if level > LEVEL_MAX {
        return Err("level");
    }
    if !stored.frames.iter().all(StoredFrame::is_bounded) {
        return Err("length of a frame");
    }
    let mut objects = HashSet::with_capacity(stored.objects.len());
    let mut numbers = HashSet::with_capacity(stored.frames.len());
    if !stored.objects.iter().all(|object| objects.insert(object))
        || !stored.frames.iter().all(|frame| numbers.insert((frame.object, frame.number)))
    {
        return Err("object or frame named twice");
    }
    let frames = stored
        .frames
        .iter()
        .map(|frame| stored.objects.get(frame.object as usize).map(|object| frame.place(*object)))
        .collect::<Option<Vec<_>>>()
        .ok_or("object of a frame")?;
    let last_key = first_key | (u64::MAX >> (64 - span_bits(level).min(64)));
    // The topmost level has keys for two children only.
    let slots = if level == LEVEL_MAX { 2 } else { FANOUT };
    let within = |key: u64| (first_key..=last_key).contains(&key);
    match stored.body {
        StoredBody::Inner(children) if level > 0 => {
            let ascending = children.is_sorted_by(|a, b| a.0 < b.0);
            if !ascending || children.last().is_some_and(|last| u64::from(last.0) >= slots) {
                return Err("slots of children");
            }
            let place = |(slot, at): (u16, u32)| Some((slot, *frames.get(at as usize)?));
            Ok(Page::Inner(children.into_iter().map(place).collect::<Option<_>>().ok_or("frame of a child")?))
        }
        StoredBody::Blocks(extents) if level == 0 && map == MapKind::Blocks => {
            let frames: Vec<_> = frames.into_iter().map(Arc::new).collect();
            let extents = unpack_extents(&extents, &frames, block_bytes)?;
            let in_range = extents.first().is_none_or(|extent| within(extent.block))
                && extents.last().is_none_or(|extent| within(extent.block + (extent.count - 1)));
            if in_range { Ok(Page::Blocks(extents)) } else { Err("range of extents") }
        }
        StoredBody::Objects(entries) if level == 0 && map == MapKind::Objects => {
            if entries.is_sorted_by(|a, b| a.0 < b.0) && entries.iter().all(|entry| within(entry.0.0)) {
                Ok(Page::Objects(entries))
            } else {
                Err("order of objects")
            }
        }
        StoredBody::Snapshots(entries) if level == 0 && map == MapKind::Snapshots => {
            if entries.is_sorted_by(|a, b| a.id < b.id) && entries.iter().all(|entry| within(entry.id)) {
                Ok(Page::Snapshots(entries))
            } else {
                Err("order of snapshots")
            }
        }
        _ => Err("kind of page for its map and level"),
    }
}

fn unpack_extents(
    stored: &[StoredExtent],
    frames: &[Arc<FrameRef>],
    block_bytes: u32,
) -> Result<Vec<Extent>, &'static str> {
    let mut end = 0;
    let mut extents = Vec::with_capacity(stored.len());
    for extent in stored {
        if extent.count == 0 || extent.block < end {
            return Err("order of extents");
        }
        end = extent.block.checked_add(extent.count.into()).ok_or("length of an extent")?;
        let target = if extent.frame == LOST {
            Target::Lost
        } else {
            let frame = frames.get(extent.frame as usize).ok_or("frame of an extent")?;
            let last = u64::from(extent.offset) + u64::from(extent.count);
            if last * u64::from(block_bytes) > u64::from(frame.plain_bytes) {
                return Err("extent beyond its frame");
            }
            Target::Frame(Arc::clone(frame), extent.offset)
        };
        extents.push(Extent { block: extent.block, count: extent.count.into(), target });
    }
    Ok(extents)
}
