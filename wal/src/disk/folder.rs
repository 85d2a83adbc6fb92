//! The real disk: a folder of the host's file system, and the lock that keeps others out of it.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, IoSliceMut},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::FallocateFlags,
    io::{Errno, ReadWriteFlags},
};

use super::{Disk, DiskFile};

/// Only the owner may enter: the files hold a user's data, sealed or not.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A folder of the host's file system.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Held open, so that its fsync is one system call and follows the folder when it is moved.
    handle: File,
}

impl Folder {
    /// Opens the folder, making it (mode 0700) and its parents where they are not there.
    ///
    /// # Errors
    /// What the host says.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Folder> {
        let path = path.as_ref().to_path_buf();
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&path)?;
        let handle = File::open(&path)?;
        Ok(Folder { path, handle })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock file `name` for this process, or says `None` when another holds it. Held until the lock
    /// is dropped.
    ///
    /// # Errors
    /// What the host says, other than that the lock is taken.
    pub fn lock(&self, name: &str) -> io::Result<Option<FolderLock>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(self.place(name)?)?;
        match fs2::FileExt::try_lock_exclusive(&file) {
            Ok(()) => Ok(Some(FolderLock { _file: file })),
            Err(error) if error.raw_os_error() == fs2::lock_contended_error().raw_os_error() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn place(&self, name: &str) -> io::Result<PathBuf> {
        if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no file name")));
        }
        Ok(self.path.join(name))
    }
}

/// A lock on a folder, given back when dropped (or when the process ends in any way).
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl Disk for Folder {
    fn create(&self, name: &str, allocate_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let place = self.place(name)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(&place)?;
        if let Err(error) = allocate(&file, allocate_bytes) {
            // Why there is no room says more than why an empty file stays.
            let _ = std::fs::remove_file(&place);
            return Err(error);
        }
        Ok(Arc::new(RealFile { file }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.place(name)?)?;
        Ok(Arc::new(RealFile { file }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            // A name that is not UTF-8 is not ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.place(from)?, self.place(to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.place(name)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
}

/// Allocates blocks, so that no later write finds the disk full. fs2's `allocate` loses the error number, so
/// not that.
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP) => return file.set_len(bytes),
            Err(error) => return Err(error.into()),
        }
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
}

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(bytes) => done += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn read_at_nowait(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        let mut done = 0;
        while done < buffer.len() {
            let rest = &mut [IoSliceMut::new(&mut buffer[done..])];
            match rustix::io::preadv2(&self.file, rest, offset + done as u64, ReadWriteFlags::NOWAIT) {
                Ok(0) => break,
                Ok(bytes) => done += bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(done))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(temporary.path().join("a/b")).unwrap();
        (temporary, folder)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (_temporary, folder) = folder();
        let file = folder.create("x", 8192).unwrap();
        assert_eq!(file.len().unwrap(), 8192);
        file.write_at(b"hello", 8190).unwrap();
        file.sync_data().unwrap();
        folder.sync().unwrap();
        let mut buffer = [0; 16];
        let file = folder.open("x").unwrap();
        assert_eq!(file.read_at(&mut buffer, 8190).unwrap(), 5);
        assert_eq!(&buffer[..5], b"hello");
        // A file system may refuse to say, but what it says is the same.
        if let Some(bytes) = file.read_at_nowait(&mut buffer, 8191).unwrap() {
            assert_eq!(&buffer[..bytes], b"ello");
        }
        file.set_len(3).unwrap();
        assert_eq!(file.read_at(&mut buffer, 0).unwrap(), 3);
    }

    #[test]
    fn names_are_listed_sorted_and_never_leave_the_folder() {
        let (_temporary, folder) = folder();
        for name in ["c", "a", "b"] {
            folder.create(name, 0).unwrap();
        }
        assert_eq!(folder.create("a", 0).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        folder.rename("c", "d").unwrap();
        folder.remove("b").unwrap();
        assert_eq!(folder.list().unwrap(), ["a", "d"]);
        for name in ["../x", "", ".", "..", "a/b"] {
            assert_eq!(folder.create(name, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_file_that_cannot_be_allocated_leaves_no_name() {
        let (_temporary, folder) = folder();
        // Larger than any file system allows.
        folder.create("huge", 1 << 62).unwrap_err();
        assert!(folder.list().unwrap().is_empty());
    }

    #[test]
    fn only_the_owner_may_read() {
        use std::os::unix::fs::PermissionsExt;
        let (_temporary, folder) = folder();
        folder.create("x", 0).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(folder.path()), 0o700);
        assert_eq!(mode(&folder.path().join("x")), 0o600);
    }

    #[test]
    fn a_lock_is_taken_once() {
        let (_temporary, folder) = folder();
        let lock = folder.lock("lock").unwrap();
        assert!(lock.is_some());
        assert!(folder.lock("lock").unwrap().is_none());
        drop(lock);
        assert!(folder.lock("lock").unwrap().is_some());
    }
}
