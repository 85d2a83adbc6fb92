//! The identities that stored things refer to each other by.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl $name {
            /// The number after this one; there is none after the last.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }

            /// The same for a number that was read and may be anything: `None` after the last.
            #[must_use]
            pub fn checked_next(self) -> Option<Self> {
                self.0.checked_add(1).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number!(
    /// One writer's tenure. Higher wins.
    Generation
);
number!(
    /// The number of a published cut.
    Epoch
);
number!(
    /// The number of an object; unique in the winning line of a volume, never used twice there.
    Sequence
);

/// 128 random bits that name a volume for ever, whatever its bucket and path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeId(pub [u8; 16]);

/// 128 random bits that name one write-ahead log, on one host, from its creation to its removal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogId(pub [u8; 16]);

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

/// Everything that is needed to find an object and derive its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectRef {
    /// The volume whose prefix the object is under; another one's in a clone.
    pub owner: VolumeId,
    /// Tenure that wrote it.
    pub generation: Generation,
    /// Its number.
    pub sequence: Sequence,
    /// The random salt in its header, from which its key derives.
    pub salt: [u8; 16],
}

/// How a frame's plaintext was packed before it was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Codec {
    /// As it is: compression would have made it larger.
    Plain,
    /// Zstandard (RFC 8878).
    Zstd,
    /// LZ4 block format.
    Lz4,
    /// XZ container, LZMA2.
    Xz,
}

impl Codec {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Xz => "xz",
        }
    }

    /// The byte that stands for it in associated data.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Self::Plain => 0,
            Self::Zstd => 1,
            Self::Lz4 => 2,
            Self::Xz => 3,
        }
    }
}

/// A frame: one unit of compression and sealing within an object. One ranged read and this are enough to get at its
/// plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameRef {
    /// The object it is in.
    pub object: ObjectRef,
    /// Its number in the object, from 0; its nonce.
    pub number: u32,
    /// Where it begins in the object, bytes.
    pub offset: u64,
    /// Length in the object, authentication tag included, bytes.
    pub stored_bytes: u32,
    /// Length of the plaintext, bytes.
    pub plain_bytes: u32,
    /// How the plaintext was packed.
    pub codec: Codec,
}

/// Position in one host's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPosition {
    /// Which log.
    pub log: LogId,
    /// Everything below this LSN is in the cut.
    pub lsn: u64,
}
