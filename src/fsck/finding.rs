//! What a check finds: each kind of it typed, with its severity, and what it means for the data in words.

use std::fmt;

use serde::{Serialize, Serializer};

use super::blocks::Blocks;
use crate::{
    format::{
        FormatError,
        ids::{Epoch, FrameRef, Generation, Sequence},
        index::MapKind,
        names,
    },
    seal::small::OpenError,
    volume::{error::FrameError, format_time, info::Party},
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

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// A frame of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FrameAt {
    /// Its object.
    pub object: String,
    /// Its number.
    pub frame: u32,
    /// Where it begins in the object, bytes.
    pub offset: u64,
    /// Its length there, bytes.
    pub stored_bytes: u32,
}

impl From<&FrameRef> for FrameAt {
    fn from(frame: &FrameRef) -> Self {
        Self {
            object: names::object(frame.object.generation, frame.object.sequence),
            frame: frame.number,
            offset: frame.offset,
            stored_bytes: frame.stored_bytes,
        }
    }
}

impl fmt::Display for FrameAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, frame, offset, stored_bytes } = self;
        write!(f, "{object}, frame {frame} ({stored_bytes} bytes at {offset})")
    }
}

/// What is wrong with an entry of the object table, on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryProblem {
    /// Objects with lower numbers are of a later tenure.
    GenerationDescends,
    /// Its number is one that the newest manifest calls unused.
    NumberTooHigh,
    /// It was born after the checkpoint that wrote the entry.
    BornLater,
    /// It died before it was born.
    DiedEarlier,
    /// It has live bytes, and an epoch of death.
    DeadAndAlive,
    /// It has no live bytes, and no epoch of death.
    NeitherDeadNorAlive,
    /// More of it is live than it ever had.
    LiveBytes,
    /// The newest manifest lists it, too.
    AlsoListed,
}

impl EntryProblem {
    fn text(self) -> &'static str {
        match self {
            Self::GenerationDescends => "objects with lower numbers are of a later generation",
            Self::NumberTooHigh => "its number has not been given out yet",
            Self::BornLater => "it was born after the checkpoint that wrote its entry",
            Self::DiedEarlier => "it died before it was born",
            Self::DeadAndAlive => "it has live bytes and an epoch of death",
            Self::NeitherDeadNorAlive => "it has neither live bytes nor an epoch of death",
            Self::LiveBytes => "more bytes of it are live than it ever held",
            Self::AlsoListed => "the newest manifest lists it, too",
        }
    }
}

/// What an object's index says otherwise than the object table or the manifest's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IndexProblem {
    /// The bytes of plaintext in its frames.
    PlainBytes,
    /// The epoch that brought it.
    Epoch,
    /// Where its frames end.
    Frames,
}

impl IndexProblem {
    fn text(self) -> &'static str {
        match self {
            Self::PlainBytes => "the bytes in its frames",
            Self::Epoch => "the epoch that brought it",
            Self::Frames => "where its frames end",
        }
    }
}

/// A sum in the newest manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Total {
    /// Number of objects.
    Objects,
    /// Their lengths, bytes.
    ObjectBytes,
    /// Blocks with data as of the last checkpoint.
    MappedBlocks,
}

impl Total {
    fn text(self) -> &'static str {
        match self {
            Self::Objects => "objects",
            Self::ObjectBytes => "bytes in objects",
            Self::MappedBlocks => "mapped blocks",
        }
    }
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
        /// Why.
        #[serde(serialize_with = "as_text")]
        error: OpenError,
    },
    /// A tenure that must have been, without its claim.
    ClaimMissing {
        /// Which.
        generation: Generation,
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
    /// A manifest does not open or is not what its name says.
    ManifestDamaged {
        /// Its name.
        name: String,
        /// Whether it is the newest.
        newest: bool,
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
    },
    /// A manifest opens, and is not the one that the next one was built on.
    ManifestReplaced {
        /// Its name.
        name: String,
        /// The next one.
        child: String,
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
        /// Whether the newest manifest lists it, so that no open can do without it.
        listed: bool,
        /// Pages of the maps beyond its end.
        pages: u64,
        /// Blocks whose content lies beyond its end, or below those pages.
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
            | Self::ManifestAside { .. }
            | Self::DeadObject { found: None, .. }
            | Self::MovedOn { .. }
            | Self::Strays { .. }
            | Self::UnknownKeys { .. } => Severity::Note,
            // Space that is never collected, and figures that people read.
            Self::LiveBytes { excess_bytes: ..0, .. }
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
            | Self::ManifestDamaged { .. }
            | Self::ManifestMissing { .. }
            | Self::ManifestReplaced { .. }
            | Self::ManifestDescends { .. }
            | Self::SnapshotLost { .. }
            | Self::CutIncomplete { .. }
            | Self::ObjectMissing { .. }
            | Self::ObjectLength { .. }
            | Self::ObjectHeader { .. }
            | Self::ObjectIndex { .. }
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

/// What the loss of pages and blocks of one object means.
fn hits(listed: bool, pages: u64, blocks: &Blocks) -> String {
    let mut text = Vec::new();
    if listed {
        text.push(
            "the newest manifest lists it, so the volume cannot be opened, and what was written to it cannot be told"
                .to_owned(),
        );
    }
    if pages > 0 {
        text.push(format!("{pages} pages of the maps cannot be read"));
    }
    if !blocks.is_empty() {
        text.push(format!("{blocks} cannot be read"));
    }
    if text.is_empty() {
        "no data that can be read now was in what is missing".to_owned()
    } else {
        text.join("; ")
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeaderMissing => {
                write!(f, "volume: the header is missing: nothing of the volume can be opened without it")
            }
            Self::HeaderDamaged { error } => write!(f, "volume: {error}: nothing can be opened without it"),
            Self::HeaderReplaced => {
                write!(f, "volume: this is not the header that the manifests were written under")
            }
            Self::KeysUnusable { detail } => {
                write!(f, "keys: no key slot is usable: {detail}: without a key no data can be read")
            }
            Self::SlotDamaged { name, error } => {
                write!(f, "{name}: {error}: its password or key file does not open the volume any more")
            }
            Self::SlotForeign { name, volume } => {
                write!(f, "{name}: this key slot is of another volume, {volume}, and opens nothing here")
            }
            Self::ClaimDamaged { name, error } => {
                write!(f, "{name}: {error}: no data is hit; who wrote under this generation cannot be told")
            }
            Self::ClaimMissing { generation } => write!(
                f,
                "claims: the claim of generation {generation} is missing: no data is hit, but a stalled writer of \
                 that time would not be kept out"
            ),
            Self::InUse { generation, holder, since_ms } => {
                write!(f, "generation {generation} is not closed: ")?;
                match holder {
                    Some(Party { host, pid, .. }) => write!(f, "{host} (process {pid})")?,
                    None => write!(f, "another host")?,
                }
                write!(f, " has the volume open")?;
                since_ms.map_or(Ok(()), |since| write!(f, " since {}", format_time(since)))?;
                write!(f, ", or ended without closing it")
            }
            Self::NoManifest => {
                write!(f, "manifests: none is whole: the volume cannot be opened (s3bd recover)")
            }
            Self::ManifestDamaged { name, newest: true, error } => write!(
                f,
                "{name}: {error}: it is the newest, so the volume cannot be opened; all that follows is about the one \
                 before"
            ),
            Self::ManifestDamaged { name, newest: false, error } => {
                write!(
                    f,
                    "{name}: {error}: no data of the newest epoch is hit; this epoch cannot be gone back to"
                )
            }
            Self::ManifestMissing { name, child } => write!(
                f,
                "{name}: missing: {child} was built on it; no data of the newest epoch is hit, but the line behind it \
                 cannot be verified"
            ),
            Self::ManifestReplaced { name, child } => write!(
                f,
                "{name}: this is not the manifest that {child} was built on; the line behind it cannot be verified"
            ),
            Self::ManifestDescends { name, parent } => {
                write!(f, "{name}: built on {parent}, which is of a later generation")
            }
            Self::ManifestAside { name, host, time_ms } => write!(
                f,
                "{name}: written by {host} at {} after it had lost the volume: not a part of it",
                format_time(*time_ms)
            ),
            Self::SnapshotLost { snapshot, manifest } => {
                write!(
                    f,
                    "snapshot {snapshot:?}: {manifest} is missing or damaged: the snapshot cannot be opened"
                )
            }
            Self::CutIncomplete { epoch, found, parts } => write!(
                f,
                "epoch {epoch}: the newest manifest lists {found} of its {parts} objects: a part of what was written \
                 then is missing"
            ),
            Self::ObjectMissing { name, listed, pages, blocks } => {
                write!(f, "{name}: missing: {}", hits(*listed, *pages, blocks))
            }
            Self::ObjectLength { name, found, expected, listed, pages, blocks } => {
                write!(
                    f,
                    "{name}: {found} bytes long, {expected} were written: {}",
                    hits(*listed, *pages, blocks)
                )
            }
            Self::DeadObject { name, .. } => {
                write!(
                    f,
                    "{name}: already deleted; its entry in the object table goes with the next collection"
                )
            }
            Self::ObjectHeader { name, error } => {
                match error {
                    Some(error) => write!(f, "{name}: {error}")?,
                    None => write!(f, "{name}: the object header is another object's")?,
                }
                write!(f, ": no data is hit, but a volume rebuilt from its objects would lack this one")
            }
            Self::ObjectIndex { name, listed, error } => {
                write!(f, "{name}: {error}: ")?;
                match listed {
                    true => write!(f, "the newest manifest lists it, so the volume cannot be opened"),
                    false => {
                        write!(f, "no data is hit, but a volume rebuilt from its objects would lack this one")
                    }
                }
            }
            Self::IndexDisagrees { name, problem, index, expected } => {
                write!(f, "{name}: its index gives {} as {index}, elsewhere it is {expected}", problem.text())
            }
            Self::TableEntry { name, problem } => {
                write!(f, "{name}: its entry in the object table makes no sense: {}", problem.text())
            }
            Self::ObjectUnknown { name, pages, blocks } => write!(
                f,
                "{name}: the maps name it ({pages} pages, {blocks}), and the object table does not know it: a \
                 collection might take it for garbage"
            ),
            Self::LiveBytes { name, excess_bytes } if *excess_bytes < 0 => write!(
                f,
                "{name}: the maps name {} bytes less of it than the object table says: their space is never freed",
                excess_bytes.unsigned_abs()
            ),
            Self::LiveBytes { name, excess_bytes } => write!(
                f,
                "{name}: the maps name {excess_bytes} bytes more of it than the object table says: a collection might \
                 delete it while it is in use"
            ),
            Self::Page { at, map, level, first_key, last_key, error } => {
                write!(f, "{at}: {error}: it is a page of ")?;
                match map {
                    MapKind::Blocks => write!(
                        f,
                        "the block map, level {level}: blocks {first_key} to {last_key} \
                        cannot be read, but for what was written since the last checkpoint"
                    ),
                    MapKind::Objects => write!(
                        f,
                        "the object table, level {level}: no data is hit, but nothing is \
                        known of objects {first_key} to {last_key}, and no checkpoint can be written over it"
                    ),
                    MapKind::Snapshots => write!(
                        f,
                        "the snapshot table, level {level}: snapshots {first_key} to \
                        {last_key} cannot be found"
                    ),
                }
            }
            Self::Frame { at, blocks, error } => write!(f, "{at}: {error}: {blocks} cannot be read"),
            Self::LostBlocks { blocks } => {
                write!(f, "{blocks}: content lost earlier; reading is an error until they are overwritten")
            }
            Self::Totals { total, manifest, counted } => {
                write!(f, "the newest manifest counts {manifest} {}, and there are {counted}", total.text())
            }
            Self::Strays { objects, bytes, first, written_ms: (oldest, newest) } => write!(
                f,
                "{objects} objects ({bytes} bytes) are in no list: uploads under way, or left by a writer that ended \
                 early; written from {} to {}, the first is {first}",
                format_time(*oldest),
                format_time(*newest)
            ),
            Self::MovedOn { objects } => write!(
                f,
                "the volume was written to during the check: {objects} objects were collected and not looked at"
            ),
            Self::UnknownKeys { count, first } => {
                write!(f, "{count} names below the volume are not s3bd's; the first is {first}")
            }
        }
    }
}

/// The name of an object of the volume under check.
pub(super) fn object_name((generation, sequence): (Generation, Sequence)) -> String {
    names::object(generation, sequence)
}
