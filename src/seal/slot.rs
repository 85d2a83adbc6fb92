//! Key slots: wrapping the master key under a secret, and back.

use secrecy::{ExposeSecret, SecretSlice};
use zeroize::Zeroizing;

use super::{aead::Key, recovery::RecoveryKey};
use crate::format::{
    ids::VolumeId,
    object::TAG_BYTES,
    slot::{Argon2, Slot, Unlock},
};

/// What a person has that unlocks a volume.
pub enum Secret {
    /// Nothing: a volume without a password.
    Nothing,
    /// A password.
    Password(SecretSlice<u8>),
    /// The bytes of a key file.
    KeyFile(SecretSlice<u8>),
    /// A recovery key.
    RecoveryKey(RecoveryKey),
}

impl Secret {
    /// A password from its text.
    #[must_use]
    pub fn password(text: &str) -> Self {
        Self::Password(text.as_bytes().to_vec().into())
    }

    /// What it is, in words.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Nothing => "no secret",
            Self::Password(_) => "password",
            Self::KeyFile(_) => "key file",
            Self::RecoveryKey(_) => "recovery key",
        }
    }

    /// How it unlocks a slot that is made with it.
    #[must_use]
    pub fn unlock(&self, cost: Argon2) -> Unlock {
        match self {
            Self::Nothing => Unlock::Nothing,
            Self::Password(_) => Unlock::Password(cost),
            Self::KeyFile(_) => Unlock::KeyFile,
            Self::RecoveryKey(_) => Unlock::RecoveryKey,
        }
    }

    fn fits(&self, unlock: Unlock) -> bool {
        matches!(
            (self, unlock),
            (Self::Nothing, Unlock::Nothing)
                | (Self::Password(_), Unlock::Password(_))
                | (Self::KeyFile(_), Unlock::KeyFile)
                | (Self::RecoveryKey(_), Unlock::RecoveryKey)
        )
    }
}

/// Why a slot does not give the master key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnlockError {
    /// The slot wants another kind of secret, or belongs to another volume.
    #[error("this slot wants another kind of secret")]
    OtherKind,
    /// The secret is not the one the slot was made with.
    #[error("wrong password, key file or recovery key")]
    WrongSecret,
    /// The secret is right, and the slot's content is not what was written.
    #[error("the secret is right, but the key slot is damaged")]
    Damaged,
    /// The derivation failed (not enough memory, or absurd parameters).
    #[error("the key derivation cannot run with the slot's parameters")]
    Derivation,
}

/// What is random or chosen about a new slot.
pub struct NewSlot {
    /// Whose master key.
    pub volume: VolumeId,
    /// Cost for passwords.
    pub cost: Argon2,
    /// Fresh random bytes.
    pub salt: [u8; 32],
    /// What the owner calls it.
    pub label: String,
    /// Now, milliseconds since 1970.
    pub created_ms: u64,
}

/// Wraps `master` under `secret`.
///
/// # Errors
/// `Derivation` for a cost beyond the bounds, too: no reader would take the slot.
pub fn wrap(master: &Key, secret: &Secret, new: NewSlot) -> Result<Slot, UnlockError> {
    let unlock = secret.unlock(new.cost);
    if matches!(unlock, Unlock::Password(cost) if !cost.is_bounded()) {
        return Err(UnlockError::Derivation);
    }
    let wrapping = wrapping_key(secret, unlock, &new.salt)?;
    // With room for the tag: to grow would leave a copy of the master key behind.
    let mut sealed = Zeroizing::new(Vec::with_capacity(master.bytes().len() + TAG_BYTES));
    sealed.extend_from_slice(master.bytes());
    wrapping.cipher().seal_tail(0, &aad(new.volume, unlock, &new.label, new.created_ms), &mut sealed, 0);
    let mut wrapped = [[0; 16]; 3];
    for (to, from) in wrapped.iter_mut().zip(sealed.chunks_exact(16)) {
        to.copy_from_slice(from);
    }
    Ok(Slot {
        volume: new.volume,
        unlock,
        salt: new.salt,
        check: check(&wrapping),
        wrapped,
        label: new.label,
        created_ms: new.created_ms,
    })
}

/// Takes the master key out of a slot: one derivation.
pub fn unwrap(slot: &Slot, secret: &Secret, volume: VolumeId) -> Result<Key, UnlockError> {
    if slot.volume != volume || !secret.fits(slot.unlock) {
        return Err(UnlockError::OtherKind);
    }
    let wrapping = wrapping_key(secret, slot.unlock, &slot.salt)?;
    if !bool::from(subtle::ConstantTimeEq::ct_eq(&check(&wrapping)[..], &slot.check[..])) {
        return Err(UnlockError::WrongSecret);
    }
    let mut sealed = Zeroizing::new(slot.wrapped.concat());
    let length = wrapping
        .cipher()
        .open_in_place(0, &aad(volume, slot.unlock, &slot.label, slot.created_ms), &mut sealed)
        .map_err(|_| UnlockError::Damaged)?;
    let master: [u8; 32] = sealed[..length].try_into().map_err(|_| UnlockError::Damaged)?;
    Ok(Key::new(master))
}

fn wrapping_key(secret: &Secret, unlock: Unlock, salt: &[u8; 32]) -> Result<Key, UnlockError> {
    match (secret, unlock) {
        (Secret::Nothing, _) => Ok(Key::derive_from(b"", salt, &[b"s3bd 1 no secret"])),
        (Secret::KeyFile(bytes), _) => {
            Ok(Key::derive_from(bytes.expose_secret(), salt, &[b"s3bd 1 key file"]))
        }
        (Secret::RecoveryKey(key), _) => Ok(Key::derive_from(key.bytes(), salt, &[b"s3bd 1 recovery key"])),
        (Secret::Password(text), Unlock::Password(cost)) => argon2id(text.expose_secret(), salt, cost),
        (Secret::Password(_), _) => Err(UnlockError::OtherKind),
    }
}

fn argon2id(password: &[u8], salt: &[u8], cost: Argon2) -> Result<Key, UnlockError> {
    let params = argon2::Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32))
        .map_err(|_| UnlockError::Derivation)?;
    // Its memory depends on the password, too. Too much of it is an error, and not the end of the process.
    let mut memory = Zeroizing::new(Vec::new());
    memory.try_reserve_exact(params.block_count()).map_err(|_| UnlockError::Derivation)?;
    memory.resize(params.block_count(), argon2::Block::default());
    let mut out = Zeroizing::new([0; 32]);
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into_with_memory(password, salt, &mut *out, &mut *memory)
        .map_err(|_| UnlockError::Derivation)?;
    Ok(Key::new(*out))
}

fn check(wrapping: &Key) -> [u8; 16] {
    let derived = wrapping.derive(b"", &[b"s3bd 1 check"]);
    *derived.bytes().first_chunk().expect("32 bytes hold 16")
}

fn aad(volume: VolumeId, unlock: Unlock, label: &str, created_ms: u64) -> Vec<u8> {
    let mut out = [&b"s3bd 1 slot"[..], &volume.0, &created_ms.to_le_bytes()].concat();
    match unlock {
        Unlock::Nothing => out.push(0),
        Unlock::Password(cost) => {
            out.push(1);
            for number in [cost.memory_kib, cost.passes, cost.lanes] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        Unlock::KeyFile => out.push(2),
        Unlock::RecoveryKey => out.push(3),
    }
    out.extend_from_slice(label.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Argon2 = Argon2 { memory_kib: 64, passes: 1, lanes: 1 };
    const VOLUME: VolumeId = VolumeId([1; 16]);

    fn slot(secret: &Secret) -> Slot {
        let new = NewSlot { volume: VOLUME, cost: CHEAP, salt: [3; 32], label: String::new(), created_ms: 0 };
        wrap(&Key::new([7; 32]), secret, new).unwrap()
    }

    #[test]
    fn each_kind_of_secret_unwraps_its_own_slot_only() {
        let make = || {
            [
                Secret::Nothing,
                Secret::password("correct"),
                Secret::KeyFile(vec![5; 32].into()),
                // The same bytes, and no such file.
                Secret::RecoveryKey(RecoveryKey::new([5; 32])),
            ]
        };
        for (i, secret) in make().iter().enumerate() {
            for (j, tried) in make().iter().enumerate() {
                let opened = unwrap(&slot(secret), tried, VOLUME);
                let expected = if i == j { Ok(Key::new([7; 32])) } else { Err(UnlockError::OtherKind) };
                assert_eq!(opened, expected);
            }
        }
    }

    #[test]
    fn a_wrong_secret_and_a_damaged_slot_are_told_apart() {
        let right = Secret::password("correct");
        let good = slot(&right);
        assert_eq!(unwrap(&good, &Secret::password("horse"), VOLUME), Err(UnlockError::WrongSecret));
        let mut damaged = good.clone();
        damaged.wrapped[1][5] ^= 1;
        assert_eq!(unwrap(&damaged, &right, VOLUME), Err(UnlockError::Damaged));
        assert_eq!(unwrap(&good, &right, VolumeId([2; 16])), Err(UnlockError::OtherKind));
    }
}
