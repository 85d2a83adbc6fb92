//! What a flattened clone says to its origin: object `independent`.
//!
//! An envelope around 32 bytes that derive from the origin's key for objects and the clone's id (`docs/format.md`,
//! "Independence").

use super::{
    FormatError,
    envelope::{self, Content},
};

const VERSION: u16 = 1;

/// The word of a volume that needs nothing of its origin any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Independent(pub [u8; 32]);

impl Independent {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        envelope::wrap(Content::Independent, VERSION, &self.0)
    }

    /// From its bytes: whole, and not yet known to be true.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (_, word) = envelope::unwrap(Content::Independent, VERSION, bytes)?;
        let what = Content::Independent.name();
        word.try_into()
            .map(Self)
            .map_err(|_| FormatError::Malformed { what, detail: "the length of its word" })
    }
}
