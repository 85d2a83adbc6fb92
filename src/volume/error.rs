//! What can go wrong with a volume, classified once by what the caller must do.

use std::sync::Arc;

use super::{replay::LogDamage, status::Incomplete, tally::Tally};
use crate::{
    format::{
        FormatError,
        ids::{Epoch, Generation},
        names,
    },
    nbd::DeviceError,
    seal::{SealError, small::OpenError},
    store::{ErrorKind, StoreError},
};

/// What the caller has to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Wait and call again.
    Retry,
    /// A change may have happened or may yet happen: find out before anything else.
    OutcomeUnknown,
    /// Another writer has the volume: stop.
    Fenced,
    /// Stored bytes are not what was written.
    Corrupt,
    /// No room.
    Full,
    /// The request can never succeed as it is.
    Invalid,
    /// The volume is not open any more.
    Closed,
}

/// An error of the engine. Cheap to clone: one failure may be the answer to many requests.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VolumeError {
    /// The store's answer.
    #[error("{0}")]
    Store(Arc<StoreError>),
    /// There is no volume of that name.
    #[error("there is no volume here: the object \"volume\" does not exist (s3bd init makes one)")]
    NoVolume,
    /// There is a volume without its header.
    #[error(
        "the object \"volume\" is missing, and the rest of a volume is here: nothing can be read without it, and it has no second \
         copy; put it back from a copy or an older version of the bucket, and change nothing else here until then"
    )]
    HeaderMissing,
    /// There is the beginning of one.
    #[error(
        "this volume is not finished: s3bd clone or s3bd recover --rescue-to is making it, or ended before it was made (a \
         rescue or a full clone goes on when it is run again with this name), or s3bd remove was interrupted; s3bd remove \
         clears what is there"
    )]
    Unfinished,
    /// The log holds nothing that another line does not.
    #[error(
        "the local log in {folder} holds nothing that was overtaken: there is nothing to rescue (s3bd recover without \
         --rescue-to uploads what it holds)"
    )]
    NothingFenced {
        /// Where the log is.
        folder: String,
    },
    /// The epoch that a lost line was built on is gone.
    #[error(
        "the local log in {folder} holds {held} found nowhere else, but the epoch they go on from is not in the \
         bucket any more, so they cannot become a volume: manifests that old were removed since, and no snapshot \
         (before-takeover-...) keeps it any more, or an older copy of the bucket was put back; s3bd recover --discard gives \
         them up"
    )]
    NoBase {
        /// What is in it, as far as it can be told from what the bucket has.
        held: Tally,
        /// Where the log is.
        folder: String,
    },
    /// No snapshot of that name.
    #[error("there is no snapshot {name:?} of this volume: s3bd snapshot list shows them")]
    NoSnapshot {
        /// What was asked for.
        name: String,
    },
    /// The name is taken.
    #[error("there is a snapshot {name:?} of this volume already")]
    SnapshotExists {
        /// Its name.
        name: String,
    },
    /// Clones read what the snapshot holds.
    #[error(
        "snapshot {name:?} stays: {} on it: remove what depends on it first (s3bd remove), or make it independent (s3bd \
         flatten)",
        depends(clones)
    )]
    SnapshotInUse {
        /// Its name.
        name: String,
        /// Names of the clones.
        clones: Vec<String>,
    },
    /// Clones read what the volume holds.
    #[error(
        "{} on this volume: remove what depends on it first (s3bd remove), or make it independent (s3bd flatten); nothing \
         was changed",
        depends(clones)
    )]
    HasClones {
        /// Names of the clones.
        clones: Vec<String>,
    },
    /// A clone cannot be made independent of what its snapshots name.
    #[error(
        "{} of this volume: what a snapshot holds stays in the origin's objects; delete {} first (s3bd snapshot delete), or \
         make a full copy instead (s3bd clone --full)",
        snapshots(names), if names.len() == 1 { "it" } else { "them" }
    )]
    HasSnapshots {
        /// Names of the snapshots.
        names: Vec<String>,
    },
    /// There is one already.
    #[error("there is a volume here already, made {created}; nothing was changed")]
    Exists {
        /// When, for people.
        created: String,
    },
    /// No key slot opens.
    #[error(
        "wrong password, key file or recovery key: none of the {slots} key slots of its kind opens with it"
    )]
    WrongSecret {
        /// Slots tried.
        slots: usize,
    },
    /// No slot is for such a secret.
    #[error("none of the {slots} key slots of this volume is for a {given}: s3bd key list shows them")]
    NoFittingSlot {
        /// What was given.
        given: &'static str,
        /// Slots of other kinds.
        slots: usize,
    },
    /// It needs a secret.
    #[error(
        "this volume is protected by a password: give it with --password-file, --password-command or S3BD_PASSWORD, or a \
         key file with --key-file"
    )]
    SecretNeeded,
    /// It needs none.
    #[error("this volume has no password: open it with --no-password")]
    SecretNotNeeded,
    /// Slots are there, and none is whole.
    #[error("no key slot is usable: {detail}")]
    NoSlot {
        /// What is wrong with them.
        detail: String,
    },
    /// No slot of that name or label.
    #[error("there is no key slot {which:?}: s3bd key list shows them")]
    UnknownSlot {
        /// What was asked for.
        which: String,
    },
    /// Several slots of that label.
    #[error("several key slots are labelled {label:?}: say which of {slots}")]
    AmbiguousSlot {
        /// What was asked for.
        label: String,
        /// Their names.
        slots: String,
    },
    /// A secret that was to be added, or to take another's place, opens the volume already.
    #[error(
        "the new secret opens the volume already, by key slot {slot} ({label:?}): nothing was changed; s3bd key remove takes away \
         what is not wanted any more"
    )]
    SecretKnown {
        /// The slot.
        slot: String,
        /// What its owner calls it.
        label: String,
    },
    /// Without this slot nothing would open the volume.
    #[error(
        "key slot {slot} is not removed: no other slot would be left that opens the volume, and there is no way in without \
         one; add another first"
    )]
    LastSlot {
        /// Its name.
        slot: String,
    },
    /// A change of a secret did all but its last step.
    #[error(
        "the new secret opens the volume by key slot {new}, but of the old secret's slots these may still be there: \
         {old}: {error}; run it again, or remove them with s3bd key remove"
    )]
    OldSlotLeft {
        /// The new slot.
        new: String,
        /// The old slots.
        old: String,
        /// Why they are there.
        error: Box<VolumeError>,
    },
    /// A small object in the bucket or a file in the state directory is not what was written.
    #[error("{name}: {error}")]
    Damaged {
        /// Its name.
        name: String,
        /// What is wrong.
        error: OpenError,
    },
    /// An object that a manifest lists does not exist.
    #[error("{name}: a manifest lists it, and it is missing from the bucket")]
    MissingObject {
        /// Its name.
        name: String,
    },
    /// A frame is not what was written.
    #[error("{name}, frame {number} ({stored_bytes} bytes at {offset}): {error}")]
    DamagedFrame {
        /// Name of its object.
        name: String,
        /// Its number.
        number: u32,
        /// Where it begins in the object, bytes.
        offset: u64,
        /// Its length, bytes.
        stored_bytes: u32,
        /// What is wrong.
        error: FrameError,
    },
    /// A range whose content is known to be lost.
    #[error("blocks {first} to {last} are marked as lost: overwrite them to clear it")]
    Lost {
        /// First block.
        first: u64,
        /// Last block.
        last: u64,
    },
    /// What was acknowledged of these blocks is lost; all else is published.
    #[error(
        "written in part and not to be completed, since the rest of each is damaged in the bucket: {0}: unreadable until \
         overwritten as a whole; everything else that was acknowledged is in the bucket (s3bd fsck says what is damaged)"
    )]
    Incomplete(Incomplete),
    /// No manifest can be used.
    #[error("no usable manifest: {detail}")]
    NoManifest {
        /// What was found.
        detail: String,
    },
    /// The bucket changed between looking and going on.
    #[error("another host has published or claimed this volume meanwhile: look again")]
    MovedOn,
    /// The bucket holds an older state than this host has seen.
    #[error(
        "the bucket's newest epoch is {found} of generation {found_generation}, but this host has seen epoch {seen} of \
         generation {seen_generation}: an older copy of the bucket, or of a part of it, was put back, or manifests were removed (--accept-rollback \
         goes on with what is there)"
    )]
    RolledBack {
        /// Newest epoch in the bucket.
        found: Epoch,
        /// Its generation.
        found_generation: Generation,
        /// Newest epoch seen here.
        seen: Epoch,
        /// Its generation.
        seen_generation: Generation,
    },
    /// Another host holds the volume.
    #[error(
        "{host} (process {pid}) has had this volume open since {since} and has not closed it: close it there, or use \
         --takeover if that host is gone; what it has not published yet stays in its own log"
    )]
    InUse {
        /// Its name.
        host: String,
        /// Its process.
        pid: u32,
        /// When it claimed the volume.
        since: String,
    },
    /// Another process of this host holds the volume's folder.
    #[error("another process on this host has this volume open: {folder} is locked")]
    Locked {
        /// Folder.
        folder: String,
    },
    /// A newer claim exists.
    #[error(
        "fenced: generation {found} took this volume over from generation {ours}; nothing more is acknowledged, and \
         what was not published stays in the log"
    )]
    Fenced {
        /// This writer.
        ours: Generation,
        /// The newer one.
        found: Generation,
    },
    /// The claim of this writer is not there any more.
    #[error(
        "the claim of generation {ours}, under which this volume is open, is gone from the bucket: an older copy of the bucket \
         was put back, or objects were deleted; nothing more is acknowledged, and what was not published stays in the log: \
         close this server, see that the bucket is as it should be, and open the volume again"
    )]
    ClaimGone {
        /// This writer.
        ours: Generation,
    },
    /// The local log holds acknowledged writes that the winning line of manifests does not contain.
    #[error(
        "the local log holds {held} written under generation {generation} and \
         never published, and {by}: the log is kept in {folder}; {}s3bd recover --discard gives them up",
        if *has_base { "s3bd recover --rescue-to makes them a volume of its own, " } else {
            "the epoch they go on from is not in the bucket, so they cannot become a volume; "
        }
    )]
    Diverged {
        /// Whether what they go on from is in the bucket.
        has_base: bool,
        /// What was never published.
        held: Tally,
        /// Tenure.
        generation: Generation,
        /// Where the log is.
        folder: String,
        /// Who published since, in words.
        by: String,
    },
    /// The log does not belong to the newest manifest, and what it holds beside that cannot be counted.
    #[error(
        "{detail}; others have published since, so how much of what they do not have is in the log of this host cannot be \
         known, and it is kept: s3bd recover --rescue-to makes a volume of what is certain in it, if anything is; s3bd recover \
         --discard gives it up"
    )]
    LogUncounted {
        /// What is wrong with the log.
        detail: String,
    },
    /// The log is not empty, and what says which log it is does not exist any more.
    #[error(
        "the local log in {folder} is not empty ({records} records are whole), but the file \"log\" in it, without which they cannot be read, \
         is missing, and so is its copy \"log.copy\": put one of them back if you have it; s3bd recover --discard gives \
         the log up"
    )]
    LogUnknown {
        /// Whole records.
        records: u64,
        /// Where the log is.
        folder: String,
    },
    /// What this host has seen of the bucket cannot be read.
    #[error(
        "{detail}: whether the bucket holds an older state than this host has seen cannot be known \
         (--accept-rollback goes on without knowing)"
    )]
    SeenDamaged {
        /// What is wrong with the file.
        detail: String,
    },
    /// The log's own error.
    #[error("write-ahead log: {0}")]
    Log(Arc<wal::WalError>),
    /// The log is damaged below what was durable.
    #[error("write-ahead log: {0}; {way_on}", way_on = .0.way_on())]
    LogDamaged(Box<LogDamage>),
    /// A log record opens to something that makes no sense.
    #[error("write-ahead log: the record at {lsn} of kind {kind} is damaged: {detail}")]
    LogRecord {
        /// Its LSN.
        lsn: wal::Lsn,
        /// Its kind.
        kind: u8,
        /// What is wrong.
        detail: &'static str,
    },
    /// A local file or folder.
    #[error("{path}: {error}")]
    Local {
        /// Which.
        path: String,
        /// What the operating system said.
        error: Arc<std::io::Error>,
    },
    /// A range beyond the volume.
    #[error("bytes {offset} to {end} are not within the volume's {size_bytes} bytes")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Byte after the last.
        end: u64,
        /// The volume's size.
        size_bytes: u64,
    },
    /// The volume's size is not what the caller took it for.
    #[error("the volume has {found} bytes by now, and not {expected}: nothing was changed; run it again")]
    SizeChanged {
        /// What it was taken for, bytes.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// It was opened read-only.
    #[error("the volume is open read-only")]
    ReadOnly,
    /// It is closed, or closing.
    #[error("the volume is closed")]
    Closed,
    /// The caller's settings.
    #[error("{0}")]
    Invalid(String),
}

/// Who depends, in words.
fn depends(clones: &[String]) -> String {
    match clones {
        [one] => format!("the clone {one} depends"),
        many => format!("the clones {} depend", many.join(", ")),
    }
}

/// Some snapshots, in words.
fn snapshots(names: &[String]) -> String {
    match names {
        [one] => format!("there is the snapshot {one:?}"),
        [first, rest @ ..] => format!("there is the snapshot {first:?}, and {} more,", rest.len()),
        [] => String::new(),
    }
}

/// What is wrong with a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The object does not exist.
    #[error("the object is missing")]
    Missing,
    /// The object ends before the frame does.
    #[error("the object is cut short")]
    Short,
    /// The seal.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// What it holds.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// It belongs to a volume whose key is not known here.
    #[error("it belongs to a volume that this one does not know")]
    Owner,
}

impl VolumeError {
    /// What to do about it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Store(error) => match error.kind {
                ErrorKind::Retry => Kind::Retry,
                ErrorKind::OutcomeUnknown => Kind::OutcomeUnknown,
                ErrorKind::NotFound | ErrorKind::Short => Kind::Corrupt,
                ErrorKind::Denied | ErrorKind::Archived | ErrorKind::Invalid => Kind::Invalid,
            },
            Self::Log(error) if error.kind() == wal::ErrorKind::Full => Kind::Full,
            Self::Damaged { .. }
            | Self::MissingObject { .. }
            | Self::DamagedFrame { .. }
            | Self::Lost { .. }
            | Self::Incomplete(_)
            | Self::NoManifest { .. }
            | Self::NoSlot { .. }
            | Self::NoBase { .. }
            | Self::RolledBack { .. }
            | Self::SeenDamaged { .. }
            | Self::LogUnknown { .. }
            | Self::LogUncounted { .. }
            | Self::Log(_)
            | Self::LogDamaged(_)
            | Self::LogRecord { .. }
            | Self::HeaderMissing => Kind::Corrupt,
            Self::Fenced { .. }
            | Self::ClaimGone { .. }
            | Self::InUse { .. }
            | Self::Diverged { .. }
            | Self::MovedOn => Kind::Fenced,
            Self::Local { error, .. } if error.kind() == std::io::ErrorKind::StorageFull => Kind::Full,
            Self::NoVolume
            | Self::Unfinished
            | Self::NothingFenced { .. }
            | Self::NoSnapshot { .. }
            | Self::SnapshotExists { .. }
            | Self::SnapshotInUse { .. }
            | Self::HasClones { .. }
            | Self::HasSnapshots { .. }
            | Self::Exists { .. }
            | Self::WrongSecret { .. }
            | Self::NoFittingSlot { .. }
            | Self::UnknownSlot { .. }
            | Self::AmbiguousSlot { .. }
            | Self::SecretKnown { .. }
            | Self::LastSlot { .. }
            | Self::SecretNeeded
            | Self::SecretNotNeeded
            | Self::Locked { .. }
            | Self::Local { .. }
            | Self::OutOfRange { .. }
            | Self::SizeChanged { .. }
            | Self::ReadOnly
            | Self::Invalid(_) => Kind::Invalid,
            Self::Closed => Kind::Closed,
            Self::OldSlotLeft { error, .. } => error.kind(),
        }
    }

    /// Whether stored data of the range asked for is damaged, missing or lost, while the rest of the volume is well.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::DamagedFrame { .. } | Self::Lost { .. })
    }

    /// Whether a manifest, or what it lists, is damaged or missing: an older one may be whole.
    #[must_use]
    pub fn is_of_line(&self) -> bool {
        match self {
            Self::NoManifest { .. } | Self::MissingObject { .. } | Self::DamagedFrame { .. } => true,
            Self::Damaged { name, .. } => {
                name.starts_with(names::MANIFESTS) || name.starts_with(names::OBJECTS)
            }
            _ => false,
        }
    }

    /// The block device's answer for it.
    #[must_use]
    pub fn device_error(&self) -> DeviceError {
        match self {
            Self::ReadOnly => DeviceError::ReadOnly,
            // Of writes and zeroes alone: the volume shrank since they were sent.
            Self::OutOfRange { .. } => DeviceError::NoSpace,
            Self::Closed => DeviceError::Shutdown,
            _ => DeviceError::Io,
        }
    }

    /// A damaged small object, named.
    pub(crate) fn damaged(name: &str, error: impl Into<OpenError>) -> Self {
        Self::Damaged { name: name.to_owned(), error: error.into() }
    }

    /// A failed local operation, named.
    pub(crate) fn local(path: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |error| Self::Local { path, error: Arc::new(error) }
    }
}

impl From<StoreError> for VolumeError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<wal::WalError> for VolumeError {
    fn from(error: wal::WalError) -> Self {
        Self::Log(Arc::new(error))
    }
}
