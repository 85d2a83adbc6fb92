//! The disk as the log and other local files see it: one flat folder of files.
//!
//! This is the seam at which faults and simulation enter: [`Folder`] is the real one, `sim::SimDisk` one in
//! memory.
//!
//! # Crash consistency
//!
//! Bytes of a file are on the medium after [`DiskFile::sync_data`], names after [`Disk::sync`]; before that
//! each may be there,
//! or not, or in part, in any order.

mod folder;
#[cfg(feature = "sim")]
pub mod sim;

use std::{fmt::Debug, io, sync::Arc};

pub use folder::{Folder, FolderLock};

/// One flat folder.
pub trait Disk: Send + Sync + Debug {
    /// Makes a new file of `allocate_bytes` zero bytes whose blocks are allocated.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken; `StorageFull` if there is no room, and then there is no file
    /// either.
    fn create(&self, name: &str, allocate_bytes: u64) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// `NotFound`, or what the disk says.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Names of all files, sorted by their bytes.
    ///
    /// # Errors
    /// What the disk says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Gives a file another name; a file that had that name is gone. Durable after [`Disk::sync`].
    ///
    /// # Errors
    /// What the disk says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a name. Durable after [`Disk::sync`].
    ///
    /// # Errors
    /// What the disk says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Brings all names to the medium (fsync of the folder).
    ///
    /// # Errors
    /// What the disk says; the names may be on the medium or not.
    fn sync(&self) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile: Send + Sync + Debug {
    /// Length in bytes.
    ///
    /// # Errors
    /// What the disk says.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// What the disk says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buffer` from `offset` on; fewer bytes only where the file ends.
    ///
    /// # Errors
    /// What the disk says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Like [`DiskFile::read_at`], or `None` if that would wait for the medium (or cannot be told).
    ///
    /// # Errors
    /// What the disk says.
    fn read_at_nowait(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        let _ = (buffer, offset);
        Ok(None)
    }

    /// Writes all of `bytes` at `offset`. Durable after [`DiskFile::sync_data`].
    ///
    /// # Errors
    /// What the disk says; any part of the bytes may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Brings bytes and length to the medium (fdatasync).
    ///
    /// # Errors
    /// What the disk says. What was not synced before may never reach the medium; to sync again proves
    /// nothing.
    fn sync_data(&self) -> io::Result<()>;

    /// Cuts or extends with zeros. Durable after [`DiskFile::sync_data`].
    ///
    /// # Errors
    /// What the disk says.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
}
