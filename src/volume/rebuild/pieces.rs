//! What the objects of a volume say of themselves: of which cut each is, or of which checkpoint, and how long it is.
//!
//! Of each object some 200 bytes are kept, never what its index lists.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{StreamExt, TryStreamExt};

use crate::{
    format::{
        ids::{Epoch, Generation, LogPosition, Sequence},
        index::Maps,
        manifest::ListedObject,
        names,
    },
    map::delta::NewObject,
    store::Listed,
    volume::{
        bucket::Bucket,
        error::{Kind, VolumeError},
    },
};

/// Objects looked at at once.
const LOADS_MAX: usize = 16;

/// A cut's name.
pub(super) type CutName = (Generation, Epoch);
/// An object's name.
pub(super) type ObjectName = (Generation, Sequence);

/// What a cut, or a checkpoint, says of the volume at its moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// The newest cut with objects that it was built on; of a checkpoint, the newest that it maps.
    pub(super) parent: Option<CutName>,
    pub(super) log: LogPosition,
    pub(super) time_ms: u64,
    pub(super) size_bytes: u64,
}

/// An object of a cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) listed: ListedObject,
    part: u32,
    parts: u32,
    pub(super) facts: Facts,
}

/// The objects of one cut.
#[derive(Clone, Debug, Default)]
pub(super) struct Cut {
    pub(super) pieces: Vec<Piece>,
}

impl Cut {
    /// Why it is not whole.
    pub(super) fn fault(&self) -> Option<String> {
        let wanted = self.pieces.first().map_or(0, |piece| piece.parts);
        let there: BTreeSet<u32> = self.pieces.iter().map(|piece| piece.part).collect();
        let agree = self.pieces.iter().all(|piece| {
            let (a, b) = (piece, &self.pieces[0]);
            let (of_a, of_b) = (a.facts, b.facts);
            (a.parts, of_a.parent, of_a.log, of_a.size_bytes)
                == (b.parts, of_b.parent, of_b.log, of_b.size_bytes)
        });
        if !agree {
            return Some("its objects contradict each other".to_owned());
        }
        let whole = there.len() == wanted as usize && self.pieces.len() == there.len();
        (!whole).then(|| format!("{} of its {wanted} objects are there", there.len()))
    }

    pub(super) fn parent(&self) -> Option<CutName> {
        self.pieces.first().and_then(|piece| piece.facts.parent)
    }
}

/// A checkpoint, as the last of its objects says.
#[derive(Clone, Debug)]
pub(super) struct Checkpoint {
    /// That object.
    pub(super) last: ObjectName,
    /// The cut up to which it maps.
    pub(super) epoch: Epoch,
    pub(super) facts: Facts,
    pub(super) maps: Maps,
}

impl Checkpoint {
    pub(super) fn name(&self) -> CutName {
        (self.last.0, self.epoch)
    }
}

/// All objects of a volume.
#[derive(Clone, Debug, Default)]
pub(super) struct Pieces {
    pub(super) cuts: BTreeMap<CutName, Cut>,
    /// By tenure and epoch, and then by age.
    pub(super) checkpoints: Vec<Checkpoint>,
    /// Objects with pages.
    pub(super) pages: BTreeMap<ObjectName, ListedObject>,
    /// Lengths of all objects, bytes.
    pub(super) lengths: BTreeMap<ObjectName, u64>,
    /// Objects that cannot be read.
    pub(super) damaged: Vec<String>,
    pub(super) highest: Sequence,
    pub(super) floor: Generation,
}

impl Pieces {
    /// Lists the objects and reads the index of each.
    pub(super) async fn load(bucket: &Bucket, advance: impl Fn(u64, u64)) -> Result<Self, VolumeError> {
        let listed = bucket.store.list(names::OBJECTS, None, None).await?;
        let total = listed.len() as u64;
        let mut pieces = Self::default();
        let loads = listed.iter().map(|line| explain(bucket, line));
        let mut loads = futures::stream::iter(loads).buffered(LOADS_MAX);
        let mut done = 0;
        while let Some(explained) = loads.try_next().await? {
            done += 1;
            advance(done, total);
            match explained {
                Ok(Some(new)) => pieces.add(&new),
                Ok(None) => {}
                Err(text) => pieces.damaged.push(text),
            }
        }
        let lengths = listed.iter().filter_map(|line| Some((names::parse_object(&line.key)?, line.bytes)));
        pieces.lengths.extend(lengths);
        pieces.checkpoints.sort_unstable_by_key(|checkpoint| (checkpoint.name(), checkpoint.last.1));
        pieces.cuts.values_mut().for_each(|cut| cut.pieces.sort_unstable_by_key(|piece| piece.part));
        Ok(pieces)
    }

    fn add(&mut self, new: &NewObject) {
        let NewObject { listed, index, .. } = new;
        self.highest = self.highest.max(listed.sequence);
        self.floor = self.floor.max(listed.generation);
        let name = (listed.generation, listed.sequence);
        let facts = Facts {
            parent: index.parent,
            log: index.log,
            time_ms: index.time_ms,
            size_bytes: index.size_bytes,
        };
        if index.parts > 0 {
            let piece = Piece { listed: *listed, part: index.part, parts: index.parts, facts };
            self.cuts.entry((listed.generation, listed.epoch)).or_default().pieces.push(piece);
            return;
        }
        self.pages.insert(name, *listed);
        if let Some(maps) = index.maps.clone().filter(|maps| maps.roots.epoch == index.epoch) {
            self.checkpoints.push(Checkpoint { last: name, epoch: index.epoch, facts, maps });
        }
    }
}

/// The object's index; its own words for why it has none.
async fn explain(bucket: &Bucket, listed: &Listed) -> Result<Result<Option<NewObject>, String>, VolumeError> {
    let Some((generation, sequence)) = names::parse_object(&listed.key) else { return Ok(Ok(None)) };
    match bucket.explain(generation, sequence).await {
        Ok(new) => Ok(Ok(Some(new))),
        Err(error) if error.kind() == Kind::Corrupt => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}
