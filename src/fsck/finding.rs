//! What a check finds: each kind of it typed, with its severity. In words: `words`.

use std::fmt;

use serde::{Serialize, Serializer};

use super::{
    blocks::Blocks,
    detail::{EntryProblem, FrameAt, IndexProblem, Total},
};
use crate::{
    format::{
        FormatError,
        ids::{Epoch, Generation, Sequence, VolumeId},
        index::MapKind,
        names,
    },
    seal::small::OpenError,
    volume::{error::FrameError, info::Party},
};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Nothing is wrong; worth knowing.
    Note,
    /// Something is not as it should be, and no data depends on it.
    Warning,
    /// Stored bytes are damaged, missing or contradict each other.
    Error,
}

fn as_text<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// The object `volume` does not exist, but others of the volume do.
    HeaderMissing,
    /// The object `volume` does not decode.
    HeaderDamaged {
        /// Why.
        #[serde(serialize_with = "as_text")]
        error: OpenError,
    },
    /// The object `volume` decodes, and is not the one that the manifests name.
    HeaderReplaced,
    /// No key slot opens, for a reason other than the secret.
    KeysUnusable {
        /// What is wrong with them.
        detail: String,
    },
    /// A key slot does not decode.
    SlotDamaged {
        /// Its name.
        name: String,
        /// Why.
        #[serde(serialize_with = "as_text")]
        error: FormatError,
    },
    /// A key slot of another volume.
    SlotForeign {
        /// Its name.
        name: String,
        /// Which volume it is of.
        volume: String,
    },
    /// A claim does not open or is not what its name says.
    ClaimDamaged {
        /// Its name.
        name: String,
        /// There is a later one, and no manifest of its tenure or an earlier one is kept: nothing needs it any more.
        over: bool,
        /// Why.
        #[serde(serialize_with = "as_text")]
        error: OpenError,
    },
    /// A tenure that must have been, without its claim.
    ClaimMissing {
        /// Which.
        generation: Generation,
        /// There is a later one, and no manifest of its tenure or an earlier one is kept: nothing needs it any more.
        over: bool,
    },
    /// The last tenure is not closed.
    InUse {
        /// Which.
        generation: Generation,
        /// Host and process; none where the claim cannot be read.
        holder: Option<Party>,
        /// When it was claimed, milliseconds since 1970.
        since_ms: Option<u64>,
    },
    /// There are no manifests, or none is whole.
    NoManifest,
    /// The newest manifest does not go on from one that this host has seen.
    BehindSeen {
        /// Its epoch.
        found: Epoch,
        /// Its generation.
        found_generation: Generation,
        /// The newest epoch that this host has seen.
        seen: Epoch,
        /// Its generation.
        seen_generation: Generation,
    },
    /// A manifest does not open or is not what its name says.
    ManifestDamaged {
        /// Its name.
        name: String,
        /// Whether it is above all whole ones.
        newest: bool,
        /// Whether no open can do without it.
        needed: bool,
        /// Why.
        #[serde(serialize_with = "as_text")]
        error: OpenError,
    },
    /// A manifest does not open, and the line goes on without it.
    ManifestPassed {
        /// Its name.
        name: String,
        /// Why.
        #[serde(serialize_with = "as_text")]
        error: OpenError,
    },
    /// A manifest that has to be there is not.
    ManifestMissing {
        /// Its name.
        name: String,
        /// Which one was built on it.
        child: String,
        /// Whether no open can do without it.
        needed: bool,
    },
    /// A manifest opens, and is not the one that the next one was built on.
    ManifestReplaced {
        /// Its name.
        name: String,
        /// The next one.
        child: String,
        /// Whether no open can do without it.
        needed: bool,
    },
    /// A manifest was built on one of a later tenure.
    ManifestDescends {
        /// Its name.
        name: String,
        /// What it was built on.
        parent: String,
    },
    /// A manifest that nothing was built on: of a writer that was fenced.
    ManifestAside {
        /// Its name.
        name: String,
        /// Who wrote it.
        host: String,
        /// When, milliseconds since 1970.
        time_ms: u64,
    },
    /// The manifest that a snapshot pins is missing or damaged.
    SnapshotLost {
        /// The snapshot's name.
        snapshot: String,
        /// The manifest's name.
        manifest: String,
    },
    /// Objects in which something is missing or damaged are kept for a snapshot.
    SnapshotHit {
        /// The snapshot's name.
        snapshot: String,
        /// How many.
        objects: u64,
        /// The first of them.
        first: String,
    },
    /// A snapshot is kept for a clone that is not there any more, depends on nothing any more, or was never finished.
    PinStale {
        /// The snapshot's name.
        snapshot: String,
        /// The clone's name.
        clone: String,
        /// The clone's id.
        #[serde(serialize_with = "as_text")]
        volume: VolumeId,
    },
    /// What a flattened clone says to its origin is damaged.
    IndependenceDamaged {
        /// Why.
        #[serde(serialize_with = "as_text")]
        error: FormatError,
    },
    /// The header's name while the volume was made is there beside its own.
    UnfinishedLeft,
    /// Objects of a cut that the newest manifest lists are not all there.
    CutIncomplete {
        /// The cut.
        epoch: Epoch,
        /// Objects it has in the list.
        found: u64,
        /// Objects it says it has.
        parts: u32,
    },
    /// An object is missing.
    ObjectMissing {
        /// Its name.
        name: String,
        /// Whether the newest manifest lists it, so that no open can do without it.
        listed: bool,
        /// Pages of the maps that were in it.
        pages: u64,
        /// Blocks whose content was in it, or below those pages.
        blocks: Blocks,
    },
    /// An object's length is not what it was.
    ObjectLength {
        /// Its name.
        name: String,
        /// Its length, bytes.
        found: u64,
        /// Its length when it was written, bytes.
        expected: u64,
        /// What stands under its name instead, in words; none where its own header does, so that it was cut or grew.
        instead: Option<String>,
        /// Whether the newest manifest lists it, so that no open can do without it.
        listed: bool,
        /// Pages of the maps beyond its end, or, where something else stands there, in all of it.
        pages: u64,
        /// Blocks whose content lies there, or below those pages.
        blocks: Blocks,
    },
    /// An object that no epoch needs any more has an entry in the object table, and is missing or of another length.
    DeadObject {
        /// Its name.
        name: String,
        /// Its length, bytes; none where it is missing.
        found: Option<u64>,
    },
    /// An object's header is damaged or another one's.
    ObjectHeader {
        /// Its name.
        name: String,
        /// Why; none where it is another one's.
        #[serde(serialize_with = "as_optional_text")]
        error: Option<FormatError>,
    },
    /// An object's footer or index is damaged or another one's.
    ObjectIndex {
        /// Its name.
        name: String,
        /// Whether the newest manifest lists it, so that no open can do without it.
        listed: bool,
        /// Whether their mirror is whole, which is read instead.
        mirrored: bool,
        /// Why.
        error: String,
    },
    /// The mirror of an object's footer and index is damaged or another one's.
    ObjectMirror {
        /// The object's name.
        name: String,
        /// Whether the newest manifest lists it, so that no open can do without one of the two.
        listed: bool,
        /// Why.
        error: String,
    },
    /// An object's index contradicts what is known of it.
    IndexDisagrees {
        /// Its name.
        name: String,
        /// In what.
        problem: IndexProblem,
        /// What the index says.
        index: u64,
        /// What the object table or the manifest's list says.
        expected: u64,
    },
    /// An entry of the object table makes no sense.
    TableEntry {
        /// The object.
        name: String,
        /// Why.
        problem: EntryProblem,
    },
    /// The maps name an object that neither the object table nor the manifest's list has.
    ObjectUnknown {
        /// Its name, as the maps have it.
        name: String,
        /// Pages of the maps in it.
        pages: u64,
        /// Blocks whose content is in it.
        blocks: Blocks,
    },
    /// The maps name more or fewer bytes of an object than its entry says are live.
    LiveBytes {
        /// The object.
        name: String,
        /// Bytes that the maps name, less those in the entry.
        excess_bytes: i64,
    },
    /// A page of a map is damaged or missing.
    Page {
        /// Where it is.
        at: FrameAt,
        /// Of which map.
        map: MapKind,
        /// 0: a leaf.
        level: u8,
        /// First key it covers: a block, or the number of an object or snapshot.
        first_key: u64,
        /// Last key it covers, within the volume.
        last_key: u64,
        /// Why.
        #[serde(serialize_with = "as_text")]
        error: FrameError,
    },
    /// A frame of data is damaged or missing.
    Frame {
        /// Where it is.
        at: FrameAt,
        /// Blocks whose content is in it.
        blocks: Blocks,
        /// Why.
        #[serde(serialize_with = "as_text")]
        error: FrameError,
    },
    /// Blocks whose content was lost before, and which have not been overwritten since.
    LostBlocks {
        /// Which.
        blocks: Blocks,
    },
    /// A sum in the newest manifest is wrong.
    Totals {
        /// Which.
        total: Total,
        /// What the manifest says.
        manifest: u64,
        /// What was counted.
        counted: u64,
    },
    /// Objects that neither the object table nor the manifest's list has.
    Strays {
        /// Their number.
        objects: u64,
        /// Their lengths, bytes.
        bytes: u64,
        /// The first of them.
        first: String,
        /// When the oldest and the newest were written, milliseconds since 1970, by the store's clock.
        written_ms: (u64, u64),
    },
    /// Objects were collected while the check ran, since nothing needs them in the epoch that is now the newest.
    MovedOn {
        /// Their number.
        objects: u64,
    },
    /// Names below the volume's prefix that s3bd does not use.
    UnknownKeys {
        /// Their number, at least.
        count: u64,
        /// The first of them.
        first: String,
    },
}

fn as_optional_text<T: fmt::Display, S: Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

impl Finding {
    /// How bad it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::InUse { .. }
            | Self::ClaimDamaged { over: true, .. }
            | Self::ClaimMissing { over: true, .. }
            | Self::ManifestAside { .. }
            | Self::ManifestPassed { .. }
            | Self::DeadObject { found: None, .. }
            | Self::MovedOn { .. }
            | Self::Strays { .. }
            | Self::UnfinishedLeft
            | Self::UnknownKeys { .. } => Severity::Note,
            // Space that is never collected, and figures that people read.
            Self::LiveBytes { excess_bytes: ..0, .. }
            | Self::PinStale { .. }
            | Self::IndependenceDamaged { .. }
            | Self::Totals { .. }
            | Self::DeadObject { found: Some(_), .. } => Severity::Warning,
            Self::HeaderMissing
            | Self::HeaderDamaged { .. }
            | Self::HeaderReplaced
            | Self::KeysUnusable { .. }
            | Self::SlotDamaged { .. }
            | Self::SlotForeign { .. }
            | Self::ClaimDamaged { .. }
            | Self::ClaimMissing { .. }
            | Self::NoManifest
            | Self::BehindSeen { .. }
            | Self::ManifestDamaged { .. }
            | Self::ManifestMissing { .. }
            | Self::ManifestReplaced { .. }
            | Self::ManifestDescends { .. }
            | Self::SnapshotLost { .. }
            | Self::SnapshotHit { .. }
            | Self::CutIncomplete { .. }
            | Self::ObjectMissing { .. }
            | Self::ObjectLength { .. }
            | Self::ObjectHeader { .. }
            | Self::ObjectIndex { .. }
            | Self::ObjectMirror { .. }
            | Self::IndexDisagrees { .. }
            | Self::TableEntry { .. }
            | Self::ObjectUnknown { .. }
            // A collector that believes too small a number deletes what is in use.
            | Self::LiveBytes { .. }
            | Self::Page { .. }
            | Self::Frame { .. }
            | Self::LostBlocks { .. } => Severity::Error,
        }
    }
}

/// The name of an object of the volume under check.
pub(super) fn object_name((generation, sequence): (Generation, Sequence)) -> String {
    names::object(generation, sequence)
}
