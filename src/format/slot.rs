//! A key slot: the master key wrapped under something a person has. Object `keys/<slot>`, plain around its ciphertext.

use serde::{Deserialize, Serialize};

use super::{FormatError, codec, envelope, ids::VolumeId};

/// Version 1 of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Whose key it is.
    pub volume: VolumeId,
    /// What unwraps it.
    pub unlock: Unlock,
    /// Random, for the derivation of the wrapping key.
    pub salt: [u8; 32],
    /// Follows from the wrapping key: tells a wrong secret (differs) from a damaged slot (agrees, and the seal fails).
    pub check: [u8; 16],
    /// AES-256-GCM of the master key under the wrapping key, tag included.
    pub wrapped: [[u8; 16]; 3],
    /// What the owner calls it.
    pub label: String,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
}

/// How the wrapping key comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unlock {
    /// From nothing secret: a volume without a password.
    Nothing,
    /// Argon2id of a password (RFC 9106).
    Password(Argon2),
    /// HKDF of the bytes of a key file.
    KeyFile,
    /// HKDF of a recovery key.
    RecoveryKey,
}

/// Cost of an Argon2id derivation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Argon2 {
    /// Memory, KiB.
    pub memory_kib: u32,
    /// Passes.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Argon2 {
    /// RFC 9106, section 4, second recommendation: 64 MiB, three passes, four lanes.
    pub const RECOMMENDED: Self = Self { memory_kib: 64 << 10, passes: 3, lanes: 4 };

    /// Bounds on what a slot, which anybody with the bucket may have written, can make a reader spend: 4 GiB, 64 passes.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        self.passes >= 1
            && self.passes <= 64
            && (1..=64).contains(&self.lanes)
            && self.memory_kib >= 8 * self.lanes
            && self.memory_kib <= 4 << 20
    }
}

impl Slot {
    /// The bytes of the object.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        Ok(envelope::wrap(envelope::Content::Slot, 1, &codec::encode("key slot", self)?))
    }

    /// Reads the bytes of the object.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (_, body) = envelope::unwrap(envelope::Content::Slot, 1, bytes)?;
        let slot: Self = codec::decode("key slot", body)?;
        match slot.unlock {
            Unlock::Password(cost) if !cost.is_bounded() => {
                Err(FormatError::Malformed { what: "key slot", detail: "argon2 cost out of bounds" })
            }
            _ => Ok(slot),
        }
    }
}
