//! The blocking half of the directory store: keys as paths, and the order of write, sync, rename and sync.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::{Errno, ReadWriteFlags};

use super::{ErrorKind, Got, Put, PutMode, Range, StoreError, resolve_range};

/// Folder of the files that are being written, directly below the root.
pub(super) const TEMPORARY_FOLDER: &str = ".s3bd-tmp";

/// Longest file name of every Linux file system in use (`NAME_MAX`), bytes.
const NAME_BYTES_MAX: usize = 255;

/// Longest path that a system call takes (`PATH_MAX`), less its final zero, bytes.
const PATH_BYTES_MAX: usize = 4095;

/// Longest read that is tried on the caller's thread, bytes: two frames of the usual size, about 10 µs of copying.
const CACHED_READ_BYTES_MAX: u64 = 128 * 1024;

/// How often a put makes its folder anew when others remove it as empty in the same moment.
const PLACE_TRIES_MAX: u32 = 64;

/// The directory, and what is known of its folders.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    /// Held open, so that a file system cannot be unmounted from under us and its empty mount point be taken for it.
    root: OwnedFd,
    /// Folders (path to inode number) whose own name is known to be synced.
    durable: Mutex<BTreeMap<String, u64>>,
    /// Folders whose last sync failed.
    unsynced: Mutex<BTreeSet<String>>,
    has_unsynced: AtomicBool,
}

/// A key as a path below the root: checked, and split at its last slash.
pub(super) struct KeyPath<'a> {
    whole: &'a str,
    /// Empty for a key without a slash.
    folder: &'a str,
    name: &'a str,
}

impl<'a> KeyPath<'a> {
    fn of(operation: &'static str, key: &'a str) -> Result<KeyPath<'a>, StoreError> {
        if let Some(problem) = path_problem(key) {
            return Err(StoreError::new(ErrorKind::Invalid, operation, key, problem));
        }
        let (folder, name) = key.rsplit_once('/').unwrap_or(("", key));
        Ok(KeyPath { whole: key, folder, name })
    }
}

/// Why a key cannot be a path; `None` if it can.
pub(super) fn path_problem(key: &str) -> Option<&'static str> {
    if key.is_empty() {
        return Some("the key is empty");
    }
    if key.len() > PATH_BYTES_MAX {
        return Some("the key is longer than 4095 bytes, which no path may be");
    }
    if key.contains('\0') {
        return Some("a file name cannot hold a zero byte");
    }
    if key.split('/').next() == Some(TEMPORARY_FOLDER) {
        return Some("keys below .s3bd-tmp/ are for files being written");
    }
    key.split('/').find_map(|part| match part {
        "" => Some("a part of the key is empty"),
        "." | ".." => Some("a part of the key is . or .."),
        _ if part.len() > NAME_BYTES_MAX => Some("a part of the key is longer than 255 bytes"),
        _ => None,
    })
}

/// What the caller has to do about an error of the operating system that came before anything was changed.
fn kind_of(errno: Errno) -> ErrorKind {
    match errno {
        Errno::ACCESS | Errno::PERM | Errno::ROFS => ErrorKind::Denied,
        Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ | Errno::LOOP | Errno::FBIG => ErrorKind::Invalid,
        Errno::NOTDIR | Errno::ISDIR | Errno::XDEV | Errno::OPNOTSUPP => ErrorKind::Invalid,
        // A full disk, no descriptors, EIO, a network file system that is away: all may pass.
        _ => ErrorKind::Retry,
    }
}

pub(super) fn os_error(operation: &'static str, key: &str, errno: Errno) -> StoreError {
    let reason = std::io::Error::from(errno).to_string();
    StoreError::new(kind_of(errno), operation, key, reason)
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

const FOLDER_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const FILE_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// A file being written in the temporary folder; removed when dropped before it was placed.
struct Temporary<'a> {
    files: &'a Files,
    path: String,
    file: File,
    placed: bool,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.placed {
            // Left behind, it is removed by the next open.
            let _ = rustix::fs::unlinkat(&self.files.root, &self.path, AtFlags::empty());
        }
    }
}

impl Files {
    pub(super) fn open(path: &Path) -> Result<Files, StoreError> {
        let opened = rustix::fs::open(path, FOLDER_FLAGS, Mode::empty());
        let root = opened.map_err(|errno| {
            let (kind, reason) = match errno {
                Errno::NOENT => (ErrorKind::NotFound, "no such directory: create it first"),
                Errno::NOTDIR => (ErrorKind::Invalid, "is not a directory"),
                Errno::ACCESS => (ErrorKind::Denied, "permission denied"),
                _ => return os_error("open", "", errno),
            };
            StoreError::new(kind, "open", "", format!("{}: {reason}", path.display()))
        })?;
        Ok(Files {
            path: path.to_owned(),
            root,
            durable: Mutex::default(),
            unsynced: Mutex::default(),
            has_unsynced: AtomicBool::new(false),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    // ---- put

    pub(super) fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError> {
        let path = KeyPath::of("put", key)?;
        let fail = |errno| match (errno, self.root_exists("put")) {
            (Errno::NOENT, Err(gone)) => gone,
            _ => os_error("put", key, errno),
        };
        let mut temporary = self.write_temporary(body).map_err(fail)?;
        for _ in 0..PLACE_TRIES_MAX {
            let folder = self.open_or_make_folder(path.folder).map_err(fail)?;
            let Some(folder) = folder else { continue };
            match self.place(&temporary, &folder, path.name, mode) {
                Ok(()) => {
                    temporary.placed = true;
                    self.sync_folders(path.folder, &folder).map_err(|errno| self.not_synced(&path, errno))?;
                    return Ok(Put::Created);
                }
                Err(Errno::EXIST | Errno::ISDIR | Errno::NOTEMPTY) if self.is_folder(key) => {
                    self.remove_empty_folder(&path)?;
                }
                Err(Errno::EXIST) if mode == PutMode::Create => return Ok(Put::Exists),
                // The folder was removed as empty by another call.
                Err(Errno::NOENT) => self.forget_durable(path.folder),
                Err(errno) => return Err(fail(errno)),
            }
        }
        Err(StoreError::new(ErrorKind::Retry, "put", key, "its folder was removed again and again"))
    }

    /// Writes and syncs a body under a new temporary name that is locked by this process.
    fn write_temporary(&self, body: &[Bytes]) -> Result<Temporary<'_>, Errno> {
        let mut temporary = self.create_temporary()?;
        for part in body {
            temporary.file.write_all(part).map_err(|error| errno_of(&error))?;
        }
        rustix::fs::fsync(&temporary.file)?;
        Ok(temporary)
    }

    fn create_temporary(&self) -> Result<Temporary<'_>, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        loop {
            let mut random = [0u8; 16];
            getrandom::fill(&mut random).map_err(|_| Errno::AGAIN)?;
            let path = format!("{TEMPORARY_FOLDER}/{:032x}", u128::from_le_bytes(random));
            let opened = rustix::fs::openat(&self.root, &path, flags, Mode::from_raw_mode(0o666));
            let file = match opened {
                Ok(fd) => File::from(fd),
                Err(Errno::NOENT) => {
                    make_folder(&self.root, TEMPORARY_FOLDER)?;
                    continue;
                }
                Err(errno) => return Err(errno),
            };
            let temporary = Temporary { files: self, path, file, placed: false };
            // Another process that cleans up may have taken the name between these two calls.
            let locked = rustix::fs::flock(&temporary.file, FlockOperation::NonBlockingLockExclusive);
            match locked {
                Err(Errno::WOULDBLOCK) => continue,
                other => other?,
            }
            if rustix::fs::fstat(&temporary.file)?.st_nlink > 0 {
                return Ok(temporary);
            }
        }
    }

    /// Gives the temporary file its name.
    fn place(
        &self,
        temporary: &Temporary<'_>,
        folder: &OwnedFd,
        name: &str,
        mode: PutMode,
    ) -> Result<(), Errno> {
        let flags = match mode {
            PutMode::Create => RenameFlags::NOREPLACE,
            PutMode::Replace => RenameFlags::empty(),
        };
        match rustix::fs::renameat_with(&self.root, &temporary.path, folder, name, flags) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if mode == PutMode::Create => {
                let linked = rustix::fs::linkat(&self.root, &temporary.path, folder, name, AtFlags::empty());
                linked.map_err(|errno| if errno == Errno::PERM { Errno::OPNOTSUPP } else { errno })?;
                // The second name is only in the way; the next open would remove it too.
                let _ = rustix::fs::unlinkat(&self.root, &temporary.path, AtFlags::empty());
                Ok(())
            }
            result => result,
        }
    }

    /// The folder of a key, made with its parents where it is missing; `None` if another call removed one meanwhile.
    fn open_or_make_folder(&self, folder: &str) -> Result<Option<OwnedFd>, Errno> {
        match self.open_folder(folder) {
            Err(Errno::NOENT) => {}
            other => return other.map(Some),
        }
        if rustix::fs::fstat(&self.root)?.st_nlink == 0 {
            return Err(Errno::NOENT);
        }
        for (end, _) in folder.match_indices('/').chain([(folder.len(), "")]) {
            match make_folder(&self.root, &folder[..end]) {
                Err(Errno::NOENT) => return Ok(None),
                other => other?,
            }
        }
        match self.open_folder(folder) {
            Err(Errno::NOENT) => Ok(None),
            other => other.map(Some),
        }
    }

    pub(super) fn open_folder(&self, folder: &str) -> Result<OwnedFd, Errno> {
        let path = if folder.is_empty() { "." } else { folder };
        rustix::fs::openat(&self.root, path, FOLDER_FLAGS, Mode::empty())
    }

    /// Syncs a folder, and those above it unless their names are known to be synced.
    fn sync_folders(&self, folder: &str, opened: &OwnedFd) -> Result<(), Errno> {
        rustix::fs::fsync(opened)?;
        let inode = rustix::fs::fstat(opened)?.st_ino;
        if folder.is_empty() || self.durable().get(folder) == Some(&inode) {
            return Ok(());
        }
        for (end, _) in folder.rmatch_indices('/') {
            rustix::fs::fsync(self.open_folder(&folder[..end])?)?;
        }
        rustix::fs::fsync(&self.root)?;
        self.durable().insert(folder.to_owned(), inode);
        Ok(())
    }

    fn not_synced(&self, path: &KeyPath<'_>, errno: Errno) -> StoreError {
        self.remember_unsynced(path.folder);
        let reason = format!("its folder could not be synced: {}", std::io::Error::from(errno));
        StoreError::new(ErrorKind::OutcomeUnknown, "put", path.whole, reason)
    }

    fn is_folder(&self, key: &str) -> bool {
        self.stat(key).is_ok_and(|stat| is_type(&stat, FileType::Directory))
    }

    /// Makes way for a key where an empty folder has its name.
    fn remove_empty_folder(&self, path: &KeyPath<'_>) -> Result<(), StoreError> {
        match rustix::fs::unlinkat(&self.root, path.whole, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                let reason = "other keys lie below this name, and a directory cannot hold both";
                Err(StoreError::new(ErrorKind::Invalid, "put", path.whole, reason))
            }
            Err(errno) => Err(os_error("put", path.whole, errno)),
        }
    }

    // ---- get, head

    /// A small read answered from memory, without waiting for the disk; `None` where that cannot be.
    pub(super) fn get_cached(&self, key: &str, range: Range) -> Option<Got> {
        if self.has_unsynced.load(Ordering::Acquire) || path_problem(key).is_some() {
            return None;
        }
        let resolve = ResolveFlags::CACHED;
        let file = rustix::fs::openat2(&self.root, key, FILE_FLAGS, Mode::empty(), resolve).ok()?;
        let stat = rustix::fs::fstat(&file).ok().filter(|stat| is_type(stat, FileType::RegularFile))?;
        let object_bytes = u64::try_from(stat.st_size).ok()?;
        let (offset, length) = resolve_range(range, object_bytes)?;
        if length > CACHED_READ_BYTES_MAX {
            return None;
        }
        let mut bytes = vec![0; length as usize];
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let count = rustix::io::preadv2(&file, &mut slices, offset, ReadWriteFlags::NOWAIT).ok()?;
        (count as u64 == length).then(|| Got { bytes: bytes.into(), object_bytes })
    }

    pub(super) fn get(&self, key: &str, range: Range) -> Result<Got, StoreError> {
        KeyPath::of("get", key)?;
        self.settle("get", key)?;
        let short = |reason: String| StoreError::new(ErrorKind::Short, "get", key, reason);
        let file = match rustix::fs::openat(&self.root, key, FILE_FLAGS, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(self.absent("get", key)),
            Err(errno) => return Err(os_error("get", key, errno)),
        };
        let stat = rustix::fs::fstat(&file).map_err(|errno| os_error("get", key, errno))?;
        if !is_type(&stat, FileType::RegularFile) {
            return Err(self.absent("get", key));
        }
        let object_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let Some((offset, length)) = resolve_range(range, object_bytes) else {
            return Err(short(format!("{range:?} does not lie within {object_bytes} bytes")));
        };
        let length = usize::try_from(length).map_err(|_| short(format!("{length} bytes are too many")))?;
        let bytes = read_exact_at(&file, offset, length).map_err(|errno| match errno {
            Errno::IO => short("the disk cannot read it back (EIO)".to_owned()),
            _ => os_error("get", key, errno),
        })?;
        match bytes.len() == length {
            true => Ok(Got { bytes: bytes.into(), object_bytes }),
            false => Err(short(format!("the file ended after {} of {length} bytes", bytes.len()))),
        }
    }

    pub(super) fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        KeyPath::of("head", key)?;
        self.settle("head", key)?;
        match self.stat(key) {
            Ok(stat) if is_type(&stat, FileType::RegularFile) => Ok(u64::try_from(stat.st_size).ok()),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {
                self.root_exists("head")?;
                Ok(None)
            }
            Err(errno) => Err(os_error("head", key, errno)),
        }
    }

    pub(super) fn stat(&self, path: &str) -> Result<Stat, Errno> {
        rustix::fs::statat(&self.root, path, AtFlags::empty())
    }

    fn absent(&self, operation: &'static str, key: &str) -> StoreError {
        let absent = StoreError::new(ErrorKind::NotFound, operation, key, "no such object");
        self.root_exists(operation).err().unwrap_or(absent)
    }

    /// Whether the directory itself is still there: a removed one must not look like an empty one.
    pub(super) fn root_exists(&self, operation: &'static str) -> Result<(), StoreError> {
        let stat = rustix::fs::fstat(&self.root).map_err(|errno| os_error(operation, "", errno))?;
        if stat.st_nlink == 0 {
            let reason = format!("{}: the directory was removed", self.path.display());
            return Err(StoreError::new(ErrorKind::NotFound, operation, "", reason));
        }
        Ok(())
    }

    // ---- delete

    pub(super) fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let paths: Vec<_> = keys.iter().map(|key| KeyPath::of("delete", key)).collect::<Result<_, _>>()?;
        let mut folders = BTreeSet::new();
        for path in &paths {
            match rustix::fs::unlinkat(&self.root, path.whole, AtFlags::empty()) {
                Ok(()) => _ = folders.insert(path.folder),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::ISDIR) => {}
                Err(errno) => return Err(os_error("delete", path.whole, errno)),
            }
        }
        self.root_exists("delete")?;
        // Deepest first, so that a folder emptied by the removal of its last folder goes too.
        for folder in folders.into_iter().rev() {
            self.remove_if_empty(folder).map_err(|errno| {
                let reason = format!("removed, and not synced: {}", std::io::Error::from(errno));
                StoreError::new(ErrorKind::OutcomeUnknown, "delete", folder, reason)
            })?;
        }
        Ok(())
    }

    /// Removes a folder and those above it as far as they are empty, and syncs the first that is not.
    fn remove_if_empty(&self, folder: &str) -> Result<(), Errno> {
        let mut folder = folder;
        while !folder.is_empty() {
            self.forget_durable(folder);
            match rustix::fs::unlinkat(&self.root, folder, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(_) => break,
            }
            folder = folder.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
        match self.open_folder(folder) {
            Err(Errno::NOENT) => Ok(()),
            opened => rustix::fs::fsync(opened?),
        }
    }

    // ---- syncs that failed, and files left behind

    fn remember_unsynced(&self, folder: &str) {
        self.lock_unsynced().insert(folder.to_owned());
        self.has_unsynced.store(true, Ordering::Release);
    }

    /// Syncs what could not be synced before; until then nothing may be read.
    pub(super) fn settle(&self, operation: &'static str, key: &str) -> Result<(), StoreError> {
        if !self.has_unsynced.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut unsynced = self.lock_unsynced();
        while let Some(folder) = unsynced.first().cloned() {
            let synced = match self.open_folder(&folder) {
                Err(Errno::NOENT) => Ok(()),
                opened => opened.and_then(|opened| self.sync_folders(&folder, &opened)),
            };
            synced.map_err(|errno| {
                let reason =
                    format!("folder {folder:?} still cannot be synced: {}", std::io::Error::from(errno));
                StoreError::new(ErrorKind::Retry, operation, key, reason)
            })?;
            unsynced.remove(&folder);
        }
        self.has_unsynced.store(false, Ordering::Release);
        Ok(())
    }

    /// Removes the temporary files of writers that are gone. What cannot be removed is left to the next open.
    pub(super) fn remove_stale(&self) {
        let Ok(folder) = self.open_folder(TEMPORARY_FOLDER) else { return };
        let Ok(mut entries) = rustix::fs::Dir::read_from(&folder) else { return };
        while let Some(Ok(entry)) = entries.read() {
            let name = entry.file_name();
            let Ok(file) = rustix::fs::openat(&folder, name, FILE_FLAGS, Mode::empty()) else { continue };
            // A writer that lives holds the lock; one that has just placed its file has no such name any more.
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _ = rustix::fs::unlinkat(&folder, name, AtFlags::empty());
            }
        }
    }

    fn durable(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_durable(&self, folder: &str) {
        self.durable().remove(folder);
    }

    fn lock_unsynced(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make_folder(root: &OwnedFd, path: &str) -> Result<(), Errno> {
    match rustix::fs::mkdirat(root, path, Mode::from_raw_mode(0o777)) {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

pub(super) fn is_type(stat: &Stat, file_type: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == file_type
}

/// Reads up to `length` bytes; fewer only where the file ends.
fn read_exact_at(file: &OwnedFd, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match rustix::io::pread(file, &mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
