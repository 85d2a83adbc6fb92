//! The small files of the state directory, each replaced as a whole.
//!
//! # Crash consistency
//! A file is written beside, synced, renamed over the old one, and the folder synced: it is the old one or the new one.

use serde::{Serialize, de::DeserializeOwned};
use wal::disk::Disk;

use super::{env::Random, env::random_bytes, error::VolumeError};
use crate::{
    format::{codec, envelope::Content},
    seal::{keys::Keys, small},
};

/// Larger files of this kind are damaged, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a file; `None` where there is none.
pub fn load<T: DeserializeOwned>(
    disk: &dyn Disk,
    keys: &Keys,
    content: Content,
    name: &str,
) -> Result<Option<T>, VolumeError> {
    let file = match disk.open(name) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(VolumeError::local(name)(error)),
    };
    let read = || {
        let mut bytes = vec![0; file.len()?.min(FILE_BYTES_MAX) as usize];
        let length = file.read_at(&mut bytes, 0)?;
        bytes.truncate(length);
        Ok(bytes)
    };
    let bytes = read().map_err(VolumeError::local(name))?;
    let plain =
        small::open(keys, content, name, &bytes).map_err(|error| VolumeError::damaged(name, error))?;
    codec::decode(content.name(), &plain).map(Some).map_err(|error| VolumeError::damaged(name, error))
}

/// Replaces a file. Durable on `Ok`.
pub fn store<T: Serialize>(
    disk: &dyn Disk,
    keys: &Keys,
    random: &dyn Random,
    content: Content,
    name: &str,
    value: &T,
) -> Result<(), VolumeError> {
    let plain = codec::encode(content.name(), value).map_err(|error| VolumeError::damaged(name, error))?;
    let bytes = small::seal(keys, content, name, random_bytes(random), &plain);
    let beside = format!("{name}.new");
    let replace = || {
        match disk.remove(&beside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = disk.create(&beside, bytes.len() as u64)?;
        file.write_at(&bytes, 0)?;
        file.sync_data()?;
        disk.rename(&beside, name)?;
        disk.sync()
    };
    replace().map_err(VolumeError::local(name))
}
