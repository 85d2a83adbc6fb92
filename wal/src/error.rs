//! What can go wrong in the log, and what the caller must do about it.

use std::{fmt, io, sync::Arc};

use crate::{
    Lsn,
    format::{HeaderFault, RecordFault},
};

/// What a caller does about a [`WalError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Bytes are damaged or missing: name it to the user, never go on as if nothing were.
    Corrupt,
    /// There is no room: make room, then try again.
    Full,
    /// The caller asked for something that cannot be: a fault of the caller.
    Invalid,
    /// The disk failed: nothing more may be acknowledged.
    Io,
    /// The log was closed.
    Closed,
}

/// An error of the log.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The disk refused an operation.
    #[error("cannot {operation} {name}: {source}")]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file, or `.` for the folder.
        name: String,
        /// What the disk said.
        source: io::Error,
    },
    /// Records that were promised durable are damaged or gone.
    #[error("{0}")]
    Corrupt(Corruption),
    /// The disk has no room for another segment. Nothing was written; make room and try again.
    #[error(
        "no room for the next log segment of {needed_bytes} bytes: free some space on the disk of the log"
    )]
    DiskFull {
        /// Size of the segment that did not fit.
        needed_bytes: u64,
    },
    /// The record was trimmed.
    #[error("log record {lsn} was trimmed")]
    Trimmed {
        /// The record asked for.
        lsn: Lsn,
    },
    /// The record has not been written yet, or never will be.
    #[error("log record {lsn} is not written: the log has been written up to {appended}")]
    NotWritten {
        /// The record asked for.
        lsn: Lsn,
        /// How far the log has been written.
        appended: Lsn,
    },
    /// There are no LSNs left above this one.
    #[error("no log can begin above {start}: there are no positions left")]
    Exhausted {
        /// Where it would have to begin.
        start: Lsn,
    },
    /// Options that no log can have.
    #[error(
        "log segments of {segment_bytes} bytes and a log of {log_bytes_max} bytes cannot be: a segment is a multiple of 4096 bytes, at most 1 TiB, and the log has room for two"
    )]
    Options {
        /// As given.
        segment_bytes: u64,
        /// As given.
        log_bytes_max: u64,
    },
    /// The log failed before, for this reason.
    #[error("the log takes no more writes since it failed: {0}")]
    Poisoned(Arc<WalError>),
    /// The log thread ended by a panic.
    #[error("the log thread panicked")]
    Panicked,
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
}

impl WalError {
    /// What the caller must do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Corrupt(_) => ErrorKind::Corrupt,
            Self::DiskFull { .. } => ErrorKind::Full,
            Self::Trimmed { .. }
            | Self::NotWritten { .. }
            | Self::Options { .. }
            | Self::Exhausted { .. } => ErrorKind::Invalid,
            Self::Io { .. } | Self::Panicked => ErrorKind::Io,
            Self::Poisoned(cause) => cause.kind(),
            Self::Closed => ErrorKind::Closed,
        }
    }

    /// Names the operation and the file in what the disk said.
    pub(crate) fn io(operation: &'static str, name: &str) -> impl FnOnce(io::Error) -> WalError {
        move |source| WalError::Io { operation, name: name.to_owned(), source }
    }
}

/// Whether the disk (or the user's quota on it) has no room.
pub(crate) fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Why an append was not taken. Nothing was queued and no LSN was used.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// No room in the log, in the queue to the disk, or on the disk. Wait for the next `on_progress`, then
    /// try again.
    #[error("the log is full: {needed} bytes needed, the limit is {limit}")]
    Full {
        /// Bytes that would be in use.
        needed: u64,
        /// Bytes that may be.
        limit: u64,
    },
    /// The log failed, for this reason. Nothing will ever be appended again.
    #[error("the log takes no more writes since it failed: {0}")]
    Poisoned(Arc<WalError>),
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
    /// The record fits no segment.
    #[error("a log record of {bytes} bytes is too large: at most {bytes_max} fit a segment")]
    TooLarge {
        /// Bytes of the record, header and padding included.
        bytes: u64,
        /// Bytes a segment has for records.
        bytes_max: u64,
    },
}

/// A place in the log whose bytes are not what was promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// The first LSN that cannot be read.
    pub lsn: Lsn,
    /// Where reading can go on, if it can.
    pub resumes: Option<Lsn>,
    /// The LSN below which everything was promised.
    pub durable: Lsn,
    /// The segment's file.
    pub segment: String,
    /// Offset in that file.
    pub offset: u64,
    /// What is wrong there.
    pub what: Damage,
    /// Whether something is lost that was promised and that no outer source is known to have. Then the log
    /// does not open.
    pub lost: bool,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "log damaged at {} ({} offset {}): {}; the log was promised durable up to {}",
            self.lsn, self.segment, self.offset, self.what, self.durable
        )?;
        match (self.lost, self.resumes) {
            (false, _) => write!(f, "; nothing needed is lost"),
            (true, Some(resumes)) => write!(f, "; readable again from {resumes}"),
            (true, None) => Ok(()),
        }
    }
}

/// What is wrong at a damaged place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A segment's header does not verify.
    #[error("segment header: {0}")]
    Header(HeaderFault),
    /// A record does not verify.
    #[error("record: {0}")]
    Record(RecordFault),
    /// A segment file is missing.
    #[error("a segment is missing before this one")]
    Missing,
    /// Two segments cover one LSN, or their headers contradict each other.
    #[error("segments contradict each other")]
    Overlap,
    /// The mark in which a closed log says how far it is durable does not verify.
    #[error("the mark of the last close does not verify")]
    Mark,
}
