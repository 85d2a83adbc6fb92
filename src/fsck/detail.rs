//! What findings are about: a frame and its place, what is wrong with an entry, an index or a sum.

use std::fmt;

use serde::Serialize;

use crate::format::{ids::FrameRef, names};

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

/// What is wrong with an entry of the object table, on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryProblem {
    /// Objects with lower numbers are of a later tenure.
    GenerationDescends,
    /// It is of a later tenure than the newest manifest.
    GenerationAhead,
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

/// What an object's index says otherwise than the object table or the manifest's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IndexProblem {
    /// The bytes of plaintext in its frames.
    PlainBytes,
    /// The epoch that brought it.
    Epoch,
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

impl fmt::Display for FrameAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, frame, offset, stored_bytes } = self;
        write!(f, "{object}, frame {frame} ({stored_bytes} bytes at {offset})")
    }
}

impl EntryProblem {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::GenerationDescends => "objects with lower numbers are of a later generation",
            Self::GenerationAhead => "it is of a later generation than the newest manifest",
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

impl IndexProblem {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::PlainBytes => "the bytes in its frames",
            Self::Epoch => "the epoch that brought it",
        }
    }
}

impl Total {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Objects => "objects",
            Self::ObjectBytes => "bytes in objects",
            Self::MappedBlocks => "mapped blocks",
        }
    }
}
