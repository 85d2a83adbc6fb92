//! A claim: the object that begins a writer's tenure. `claims/<generation>-<nonce>`; the body is sealed.

use serde::{Deserialize, Serialize};

use super::ids::{Epoch, Generation, LogId};

/// Version 1 of a claim's plaintext.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The tenure it begins.
    pub generation: Generation,
    /// Random; also in the name, so that two claimants of one generation differ.
    pub nonce: u64,
    /// The newest manifest that the claimant saw before it claimed.
    pub from: Option<(Generation, Epoch)>,
    /// Who.
    pub writer: Writer,
    /// The claimant's log.
    pub log: LogId,
    /// When, milliseconds since 1970.
    pub time_ms: u64,
}

/// Who wrote something, for people to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Host name.
    pub host: String,
    /// Process id.
    pub pid: u32,
    /// Version of s3bd.
    pub version: String,
}
