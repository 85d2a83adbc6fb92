//! The key slots of a volume in its bucket: unlocking with a secret, and adding, removing and changing secrets.
//!
//! # Invariants
//! - A slot is never written over: its name is random and not among those that are listed, the put is create-only, and
//!   what is there afterwards is read back. Where a store ignores that and two hosts draw one name at one moment (once in
//!   2^32), who finds the other's slot there puts its own under another name.
//! - A slot is removed only while another one is there that may open the volume, and who removed one looks again: two
//!   hosts that remove the last two at once do not both miss it, and put back what they removed.
//!
//! # Crash consistency
//! `add` and `remove` make one change each. `change` puts the new slot, reads it back and opens it with the new secret,
//! and only then deletes the old ones, all that the old secret opens: a crash leaves an old slot, or the new one beside
//! some. Once more with the same secrets, it finds the new slot and only deletes what is left of the old ones.
//!
//! # Not handled
//! Who removes one of the last two slots and dies before looking again, while another host removes the other one.

use bytes::Bytes;

use super::{
    bucket::{Bucket, get_whole, whole},
    env::{Env, random_bytes},
    error::VolumeError,
};
use crate::{
    format::{
        FormatError,
        envelope::SMALL_BYTES_MAX,
        header::{Header, Protection},
        manifest::Digest,
        names,
        slot::{Argon2, Slot, Unlock},
    },
    seal::{
        aead::Key,
        slot::{NewSlot, Secret, UnlockError, unwrap, wrap},
        small::OpenError,
    },
    store::{Listed, Put, PutMode, Store},
};

/// Names drawn for one slot before something must be wrong with the randomness or the store.
const NAMES_MAX: u32 = 16;

/// A volume whose master key is known.
#[derive(Debug)]
pub struct Unlocked {
    /// Its header.
    pub header: Header,
    /// Digest of the header's bytes.
    pub header_digest: Digest,
    /// The master key.
    pub master: Key,
    /// Name of the slot that the secret opened.
    pub slot: String,
}

/// A key slot as it is in the bucket.
#[derive(Clone, Debug)]
pub struct KeySlot {
    /// Name of its object.
    pub name: String,
    /// What it says; an error where it is damaged.
    pub slot: Result<Slot, OpenError>,
}

impl KeySlot {
    /// Its name as people say it: without the prefix.
    #[must_use]
    pub fn id(&self) -> &str {
        id(&self.name)
    }

    /// Whether a secret may open the volume by it.
    fn is_way_in(&self, header: &Header) -> bool {
        let is_open = header.protection == Protection::Open;
        let opens = |slot: &Slot| slot.volume == header.volume && (slot.unlock == Unlock::Nothing) == is_open;
        self.slot.as_ref().is_ok_and(opens)
    }
}

/// A slot's name without the prefix.
#[must_use]
pub fn id(name: &str) -> &str {
    name.strip_prefix(names::KEYS).unwrap_or(name)
}

/// A secret that is to open the volume.
#[derive(Clone, Copy)]
pub struct NewSecret<'a> {
    /// The secret.
    pub secret: &'a Secret,
    /// Cost of a password's derivation.
    pub cost: Argon2,
    /// What its owner calls it.
    pub label: &'a str,
}

/// A listed slot; `None` where it is gone by now. Bytes that are not whole are fetched again.
async fn load_listed(store: &dyn Store, listed: &Listed) -> Result<Option<Slot>, VolumeError> {
    // Anybody may have put it there.
    if listed.bytes > SMALL_BYTES_MAX {
        let error = FormatError::Malformed { what: "key slot", detail: "larger than a slot can be" };
        return Err(VolumeError::damaged(&listed.key, error));
    }
    Ok(whole(|| load_slot(store, &listed.key)).await?.map(|(slot, _)| slot))
}

async fn load_slot(store: &dyn Store, name: &str) -> Result<Option<(Slot, Bytes)>, VolumeError> {
    let Some(bytes) = get_whole(store, name).await? else { return Ok(None) };
    let slot = Slot::decode(&bytes).map_err(|error| VolumeError::damaged(name, error))?;
    Ok(Some((slot, bytes)))
}

/// All key slots, by name. Needs no secret.
pub async fn load_slots(store: &dyn Store) -> Result<Vec<KeySlot>, VolumeError> {
    let mut slots = Vec::new();
    for listed in store.list(names::KEYS, None, None).await? {
        let slot = match load_listed(store, &listed).await {
            Ok(Some(slot)) => Ok(slot),
            Ok(None) => continue,
            Err(VolumeError::Damaged { error, .. }) => Err(error),
            Err(error) => return Err(error),
        };
        slots.push(KeySlot { name: listed.key, slot });
    }
    Ok(slots)
}

/// The one slot of that name or label.
///
/// # Errors
/// `UnknownSlot`, `AmbiguousSlot`.
pub fn find<'a>(slots: &'a [KeySlot], which: &str) -> Result<&'a KeySlot, VolumeError> {
    if let Some(named) = slots.iter().find(|slot| slot.id() == which || slot.name == which) {
        return Ok(named);
    }
    let labelled = |slot: &&KeySlot| slot.slot.as_ref().is_ok_and(|slot| slot.label == which);
    match slots.iter().filter(labelled).collect::<Vec<_>>()[..] {
        [one] => Ok(one),
        [] => Err(VolumeError::UnknownSlot { which: which.to_owned() }),
        ref several => {
            let ids: Vec<_> = several.iter().map(|slot| slot.id()).collect();
            Err(VolumeError::AmbiguousSlot { label: which.to_owned(), slots: ids.join(", ") })
        }
    }
}

/// Opens the volume with `secret`: one derivation for each slot of its kind at most, none for the others.
///
/// # Errors
/// `WrongSecret` only where no slot is damaged, since a damaged one might have been the secret's; `NoSlot` names those.
pub async fn unlock(store: &dyn Store, secret: &Secret) -> Result<Unlocked, VolumeError> {
    let (header, header_digest) = Bucket::header(store).await?;
    match (header.protection, secret) {
        (Protection::Secret, Secret::Nothing) => return Err(VolumeError::SecretNeeded),
        (Protection::Open, Secret::Password(_) | Secret::KeyFile(_) | Secret::RecoveryKey(_)) => {
            return Err(VolumeError::SecretNotNeeded);
        }
        _ => {}
    }
    let (mut wrong, mut others) = (0, 0);
    let mut damage = Vec::new();
    for listed in store.list(names::KEYS, None, None).await? {
        let slot = match load_listed(store, &listed).await {
            Ok(Some(slot)) => slot,
            Ok(None) => continue,
            Err(error @ VolumeError::Damaged { .. }) => {
                damage.push(error.to_string());
                continue;
            }
            Err(error) => return Err(error),
        };
        if slot.volume != header.volume {
            damage.push(format!("{}: it belongs to another volume", listed.key));
            continue;
        }
        match unwrap(&slot, secret, header.volume) {
            Ok(master) => return Ok(Unlocked { header, header_digest, master, slot: listed.key }),
            Err(UnlockError::OtherKind) => others += 1,
            Err(UnlockError::WrongSecret) => wrong += 1,
            Err(error) => damage.push(format!("{}: {error}", listed.key)),
        }
    }
    Err(refusal(secret, wrong, others, damage))
}

fn refusal(secret: &Secret, wrong: usize, others: usize, mut damage: Vec<String>) -> VolumeError {
    if !damage.is_empty() {
        if wrong > 0 {
            damage.push(format!("and this secret is wrong for the {wrong} whole ones of its kind"));
        }
        return VolumeError::NoSlot { detail: damage.join("; ") };
    }
    match (wrong, others) {
        (0, 0) => VolumeError::NoSlot { detail: "there is none".to_owned() },
        (0, slots) => VolumeError::NoFittingSlot { given: secret.kind(), slots },
        (slots, _) => VolumeError::WrongSecret { slots },
    }
}

/// Makes another secret open the volume; returns the name of its slot. Durable, read back and opened on `Ok`. One
/// derivation for each slot of the secret's kind, and one for the new one.
///
/// # Errors
/// `SecretKnown` where a slot is there that the secret opens: nothing was changed. `OutcomeUnknown` ones may have left the
/// slot there; `load_slots` shows it.
pub async fn add(env: &Env, unlocked: &Unlocked, new: &NewSecret<'_>) -> Result<String, VolumeError> {
    if let Some(known) = opened_by(env, unlocked, new.secret).await?.into_iter().next() {
        return Err(secret_known(known));
    }
    make(env, unlocked, new).await
}

/// Makes a slot.
async fn make(env: &Env, unlocked: &Unlocked, new: &NewSecret<'_>) -> Result<String, VolumeError> {
    if unlocked.header.protection == Protection::Open || matches!(new.secret, Secret::Nothing) {
        let text = "its key follows from the bucket, so no secret can protect it: make a new volume with a \
                    password, and copy the data";
        return Err(VolumeError::Invalid(format!("this volume has no password, and {text}")));
    }
    let volume = unlocked.header.volume;
    let slot = NewSlot {
        volume,
        cost: new.cost,
        salt: random_bytes(&*env.random),
        label: new.label.to_owned(),
        created_ms: env.clock.now_ms(),
    };
    let unlock_error = |error: UnlockError| VolumeError::Invalid(error.to_string());
    let slot = wrap(&unlocked.master, new.secret, slot).map_err(unlock_error)?;
    let bytes = Bytes::from(slot.encode().map_err(|error| VolumeError::damaged(names::KEYS, error))?);
    let name = put_new(env, &bytes).await?;
    // What was read back has these bytes: do they open?
    match unwrap(&slot, new.secret, volume) {
        Ok(master) if master == unlocked.master => Ok(name),
        Ok(_) => Err(VolumeError::Invalid(format!("{name} was made, and holds another key: remove it"))),
        Err(error) => Err(VolumeError::Invalid(format!("{name} was made, and does not open: {error}"))),
    }
}

/// Puts a slot under a name that nothing has, and reads it back.
async fn put_new(env: &Env, bytes: &Bytes) -> Result<String, VolumeError> {
    let store = &*env.store;
    let taken: Vec<String> =
        store.list(names::KEYS, None, None).await?.into_iter().map(|line| line.key).collect();
    for _ in 0..NAMES_MAX {
        let name = names::slot(u32::from_le_bytes(random_bytes(&*env.random)));
        if taken.contains(&name) {
            continue;
        }
        if store.put(&name, std::slice::from_ref(bytes), PutMode::Create).await? == Put::Exists {
            continue;
        }
        match whole(|| load_slot(store, &name)).await? {
            Some((_, found)) if found == bytes => return Ok(name),
            // Another host's, on a store without create-only puts.
            Some(_) => {}
            None => {
                let error = FormatError::Malformed { what: "key slot", detail: "gone after it was put" };
                return Err(VolumeError::damaged(&name, error));
            }
        }
    }
    Err(VolumeError::Invalid(format!("{NAMES_MAX} random names for a key slot are all taken")))
}

/// Removes a slot.
///
/// # Errors
/// `LastSlot` where no other one is there that may open the volume: nothing was changed.
pub async fn remove(env: &Env, header: &Header, name: &str) -> Result<(), VolumeError> {
    let store = &*env.store;
    let last = || VolumeError::LastSlot { slot: id(name).to_owned() };
    if !has_way_in(store, header, Some(name)).await? {
        return Err(last());
    }
    let removed = match get_whole(store, name).await {
        Ok(removed) => removed,
        // No slot, whatever it is: nothing to put back.
        Err(VolumeError::Damaged { .. }) => None,
        Err(error) => return Err(error),
    };
    store.delete(&[name.to_owned()]).await?;
    if has_way_in(store, header, None).await? {
        return Ok(());
    }
    // Under another name: a delete that is repeated late cannot take this one, too.
    if let Some(removed) = removed {
        let back = put_new(env, &removed).await?;
        tracing::warn!(
            slot = id(&back),
            "the other key slots were removed meanwhile: put back under this name"
        );
    }
    Err(last())
}

async fn has_way_in(store: &dyn Store, header: &Header, but: Option<&str>) -> Result<bool, VolumeError> {
    let slots = load_slots(store).await?;
    Ok(slots.iter().any(|slot| Some(&slot.name[..]) != but && slot.is_way_in(header)))
}

/// A secret that took another's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Name of the new secret's slot.
    pub new: String,
    /// Names of the slots that the old secret opened; they are gone.
    pub old: Vec<String>,
}

/// Puts another secret in the place of `old`, which unlocked the volume, in all slots that it opens.
///
/// # Errors
/// `SecretKnown` where the new secret opens another slot, unless that one looks as an earlier change of the same would have
/// made it: nothing was changed. `OldSlotLeft`: the new secret opens the volume, and the old one may still do so.
pub async fn change(
    env: &Env,
    unlocked: &Unlocked,
    old: &Secret,
    new: &NewSecret<'_>,
) -> Result<Changed, VolumeError> {
    let name = match find_made(env, unlocked, new).await? {
        Some(name) => name,
        None => make(env, unlocked, new).await?,
    };
    let left = |slots: &[String], error: VolumeError| VolumeError::OldSlotLeft {
        new: id(&name).to_owned(),
        old: slots.iter().map(|slot| id(slot)).collect::<Vec<_>>().join(", "),
        error: Box::new(error),
    };
    let opened = opened_by(env, unlocked, old).await;
    let opened = opened.map_err(|error| left(std::slice::from_ref(&unlocked.slot), error))?;
    let mut slots: Vec<String> = opened.into_iter().map(|(there, _)| there).collect();
    // It opened the volume a moment ago, whatever is read of it now.
    if !slots.contains(&unlocked.slot) {
        slots.push(unlocked.slot.clone());
    }
    slots.retain(|slot| *slot != name);
    for (at, slot) in slots.iter().enumerate() {
        remove(env, &unlocked.header, slot).await.map_err(|error| left(&slots[at..], error))?;
    }
    Ok(Changed { new: name, old: slots })
}

/// The slot that an earlier change made that did not come to its end. `SecretKnown` where another one is there.
async fn find_made(
    env: &Env,
    unlocked: &Unlocked,
    new: &NewSecret<'_>,
) -> Result<Option<String>, VolumeError> {
    let unlock = new.secret.unlock(new.cost);
    let opened = opened_by(env, unlocked, new.secret).await?;
    let made = opened
        .iter()
        .find(|(there, slot)| *there != unlocked.slot && slot.unlock == unlock && slot.label == new.label);
    if let Some((there, _)) = made {
        return Ok(Some(there.clone()));
    }
    // Where the secret stays what it is, all the slots that it opens are the old ones.
    let is_same_secret = opened.iter().any(|(there, _)| *there == unlocked.slot);
    match opened.into_iter().next().filter(|_| !is_same_secret) {
        Some(known) => Err(secret_known(known)),
        None => Ok(None),
    }
}

fn secret_known((there, slot): (String, Slot)) -> VolumeError {
    VolumeError::SecretKnown { slot: id(&there).to_owned(), label: slot.label }
}

/// The slots that `secret` opens, and their names: one derivation for each slot of its kind.
async fn opened_by(
    env: &Env,
    unlocked: &Unlocked,
    secret: &Secret,
) -> Result<Vec<(String, Slot)>, VolumeError> {
    let mut opened = Vec::new();
    for KeySlot { name, slot } in load_slots(&*env.store).await? {
        let Ok(slot) = slot else { continue };
        if unwrap(&slot, secret, unlocked.header.volume).is_ok_and(|master| master == unlocked.master) {
            opened.push((name, slot));
        }
    }
    Ok(opened)
}
