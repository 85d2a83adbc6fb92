//! A manifest: the object that publishes an epoch. `manifests/<generation>-<epoch>`; the body is sealed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    FormatError,
    claim::Writer,
    codec,
    ids::{Epoch, FrameRef, Generation, LogPosition, ObjectRef, Sequence, VolumeId},
    object::FOOTER_BYTES,
    page::{LEVEL_MAX, StoredFrame},
};

/// SHA-256 of stored bytes.
pub type Digest = [u8; 32];

/// The name of a manifest and the digest of its bytes in the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestLink {
    /// Tenure that published it.
    pub generation: Generation,
    /// Its epoch.
    pub epoch: Epoch,
    /// SHA-256 of the object's bytes.
    pub digest: Digest,
}

/// Version 1 of a manifest's plaintext.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The volume it belongs to.
    pub volume: VolumeId,
    /// Tenure that published it.
    pub generation: Generation,
    /// The nonce of the claim that began the tenure; 0 for the manifest of `init`.
    pub nonce: u64,
    /// Its epoch: one more than its parent's.
    pub epoch: Epoch,
    /// What it was built on; none for the first.
    pub parent: Option<ManifestLink>,
    /// Manifests of lower epochs may have been removed, unless pinned.
    pub oldest_kept: Epoch,
    /// SHA-256 of the object `volume`.
    pub header: Digest,
    /// The newest cut with objects, this one included.
    pub data_cut: Option<(Generation, Epoch)>,
    /// How far into which log this cut reaches.
    pub log: LogPosition,
    /// Who published it.
    pub writer: Writer,
    /// When, milliseconds since 1970.
    pub time_ms: u64,
    /// Size of the volume, bytes.
    pub size_bytes: u64,
    /// No object of this line has this number or a higher one.
    pub next_sequence: Sequence,
    /// The writer ended its tenure with this manifest.
    pub closed: bool,
    /// Acknowledged writes that its writer held above this cut when it wrote it, bytes.
    pub unpublished_bytes: u64,
    /// The maps as of the last checkpoint.
    pub roots: Roots,
    /// Objects since the last checkpoint, in order of epoch: what they hold is on top of the roots.
    pub objects: Vec<ListedObject>,
    /// Of a clone, until its first checkpoint: what its origin's objects hold on top of the roots, below `objects`.
    pub inherited: Vec<Inherited>,
    /// Changes of the snapshot table since the last checkpoint, in order.
    pub snapshots: Vec<SnapshotChange>,
    /// Next number for a snapshot.
    pub next_snapshot: u64,
    /// Volumes other than this one whose objects the maps name.
    pub owners: Vec<Owner>,
    /// Totals of this epoch.
    pub totals: Totals,
}

/// Roots of the maps at a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roots {
    /// The maps hold every cut up to this epoch.
    pub epoch: Epoch,
    /// Block map.
    pub blocks: Option<Root>,
    /// Object table.
    pub objects: Option<Root>,
    /// Snapshot table.
    pub snapshots: Option<Root>,
}

impl Roots {
    /// Whether levels and lengths are such as a writer makes them.
    #[must_use]
    pub fn are_bounded(&self) -> bool {
        let is_bounded = |root: &Root| root.level <= LEVEL_MAX && root.frame.is_bounded();
        [self.blocks, self.objects, self.snapshots].iter().flatten().all(is_bounded)
    }
}

/// The root page of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// 0: the root is a leaf.
    pub level: u8,
    /// Object that holds the page.
    pub object: ObjectRef,
    /// The page's frame in that object; its object number is 0.
    pub frame: StoredFrame,
}

impl Root {
    /// A root at `level` whose page is `page`.
    #[must_use]
    pub fn new(level: u8, page: &FrameRef) -> Self {
        Self { level, object: page.object, frame: StoredFrame::new(0, page) }
    }

    /// Where its page is.
    #[must_use]
    pub fn page(&self) -> FrameRef {
        self.frame.place(self.object)
    }
}

/// An object that a manifest lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedObject {
    /// Tenure that wrote it.
    pub generation: Generation,
    /// Its number.
    pub sequence: Sequence,
    /// The salt in its header.
    pub salt: [u8; 16],
    /// The epoch that brought it.
    pub epoch: Epoch,
    /// Its length, bytes.
    pub bytes: u64,
    /// Length of its sealed index, bytes; the index lies right before the footer, and both once more before that.
    pub index_bytes: u32,
    /// SHA-256 of its sealed index.
    pub digest: Digest,
}

impl ListedObject {
    /// The object's place, given the volume whose manifest lists it.
    #[must_use]
    pub fn place(&self, owner: VolumeId) -> ObjectRef {
        ObjectRef { owner, generation: self.generation, sequence: self.sequence, salt: self.salt }
    }

    /// Length of its sealed index and its footer, bytes; it ends with them, and has them once more right before.
    #[must_use]
    pub fn end_bytes(&self) -> u64 {
        u64::from(self.index_bytes) + FOOTER_BYTES as u64
    }
}

/// An object of another volume that a clone's first manifests list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inherited {
    /// Whose.
    pub owner: VolumeId,
    /// As its owner's manifest listed it.
    pub object: ListedObject,
}

/// A change of the snapshot table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotChange {
    /// A snapshot was taken.
    Taken(Snapshot),
    /// The snapshot with this number was deleted.
    Deleted(u64),
    /// The snapshot with this number has another name.
    Renamed(u64, String),
    /// A clone depends on the snapshot with this number.
    Cloned(u64, CloneRef),
    /// This clone does not depend on the snapshot with this number any more.
    Released(u64, VolumeId),
}

impl SnapshotChange {
    /// The number of the snapshot that changes.
    #[must_use]
    pub fn number(&self) -> u64 {
        match self {
            Self::Taken(snapshot) => snapshot.id,
            Self::Deleted(id) | Self::Renamed(id, _) | Self::Cloned(id, _) | Self::Released(id, _) => *id,
        }
    }

    /// Brings snapshots by number up to date.
    pub fn apply(&self, snapshots: &mut BTreeMap<u64, Snapshot>) {
        match self {
            Self::Taken(snapshot) => {
                snapshots.insert(snapshot.id, snapshot.clone());
            }
            Self::Deleted(id) => {
                snapshots.remove(id);
            }
            Self::Renamed(id, name) => {
                snapshots.entry(*id).and_modify(|snapshot| snapshot.name.clone_from(name));
            }
            Self::Cloned(id, clone) => {
                snapshots.entry(*id).and_modify(|snapshot| snapshot.clones.push(clone.clone()));
            }
            Self::Released(id, volume) => {
                let release =
                    |snapshot: &mut Snapshot| snapshot.clones.retain(|clone| clone.volume != *volume);
                snapshots.entry(*id).and_modify(release);
            }
        }
    }
}

/// A name pinned to an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its number; never used twice in a volume.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Tenure of the manifest it pins.
    pub generation: Generation,
    /// Epoch of the manifest it pins.
    pub epoch: Epoch,
    /// Epoch of that manifest's roots: what died later than this, and was born up to `epoch`, is needed.
    pub roots_epoch: Epoch,
    /// When it was taken, milliseconds since 1970.
    pub time_ms: u64,
    /// Size of the volume then, bytes.
    pub size_bytes: u64,
    /// Clones that depend on it.
    pub clones: Vec<CloneRef>,
}

/// A clone, as the volume that it came from knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneRef {
    /// Its id.
    pub volume: VolumeId,
    /// Its name in the same bucket.
    pub name: String,
}

/// Another volume whose objects this one reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Which.
    pub volume: VolumeId,
    /// Its name in the same bucket.
    pub name: String,
    /// The key its objects' keys derive from.
    pub object_key: [u8; 32],
}

/// What an epoch adds up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Objects of this volume that have not been deleted.
    pub objects: u64,
    /// Their lengths, bytes.
    pub object_bytes: u64,
    /// Blocks with data as of the roots.
    pub mapped_blocks: u64,
}

impl Manifest {
    /// Plaintext bytes, to be sealed.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        codec::encode("manifest", self)
    }

    /// Reads opened plaintext, and checks what must hold between its fields.
    pub fn decode(plain: &[u8]) -> Result<Self, FormatError> {
        let manifest: Self = codec::decode("manifest", plain)?;
        let malformed = |detail| Err(FormatError::Malformed { what: "manifest", detail });
        if manifest.parent.is_some_and(|parent| parent.epoch.checked_next() != Some(manifest.epoch)) {
            return malformed("its epoch does not follow its parent's");
        }
        if manifest.roots.epoch > manifest.epoch || manifest.oldest_kept > manifest.epoch {
            return malformed("epochs");
        }
        if !manifest.roots.are_bounded() {
            return malformed("root of a map");
        }
        let Some(mut previous) = manifest.roots.epoch.checked_next() else { return malformed("epochs") };
        let mut numbers = BTreeSet::new();
        let inherited = manifest.inherited.iter().map(|inherited| &inherited.object);
        for object in inherited.chain(&manifest.objects) {
            if object.sequence >= manifest.next_sequence || !numbers.insert(object.sequence) {
                return malformed("object number");
            }
            if object.epoch < previous || object.epoch > manifest.epoch {
                return malformed("epoch of an object");
            }
            previous = object.epoch;
        }
        Ok(manifest)
    }
}
