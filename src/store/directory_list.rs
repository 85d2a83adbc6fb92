//! Listing a directory store: a walk that yields full keys in byte order.
//!
//! Within a folder, entries are sorted as if the names of folders ended in `/`: all keys below a folder begin so, and
//! thus `a.b` comes before `a/c`, and `a0` after it, as the bytes of the full keys want it.

use rustix::fs::{Dir, FileType, Stat};
use rustix::io::Errno;

use super::directory_files::{Files, TEMPORARY_FOLDER, is_type, os_error, path_problem};
use super::{Folder, Listed, StoreError};

/// One walk: what is looked for, and what was found.
struct Walk<'a> {
    files: &'a Files,
    prefix: &'a str,
    start_after: Option<&'a str>,
    limit: usize,
    listed: Vec<Listed>,
}

impl Files {
    pub(super) fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Listed>, StoreError> {
        self.settle("list", prefix)?;
        let limit = limit.unwrap_or(usize::MAX);
        let mut walk = Walk { files: self, prefix, start_after, limit, listed: Vec::new() };
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        if folder.is_empty() && prefix.starts_with('/') {
            return Ok(Vec::new());
        }
        if folder.is_empty() || path_problem(folder).is_none() {
            walk.folder(folder).map_err(|errno| os_error("list", prefix, errno))?;
        }
        // After the walk: a directory that was removed meanwhile has not been listed whole.
        self.root_exists("list")?;
        Ok(walk.listed)
    }
}

impl Files {
    /// What lies right below `prefix`. A folder counts where any object lies below it.
    pub(super) fn list_folder(&self, prefix: &str) -> Result<Folder, StoreError> {
        self.settle("list", prefix)?;
        let error = |errno| os_error("list", prefix, errno);
        let path = prefix.strip_suffix('/').unwrap_or(prefix);
        let mut walk = Walk { files: self, prefix, start_after: None, limit: usize::MAX, listed: Vec::new() };
        let mut folders = Vec::new();
        if path.is_empty() != prefix.is_empty() || (!path.is_empty() && path_problem(path).is_some()) {
            return Ok(Folder::default());
        }
        for sort_name in walk.entries(path).map_err(error)? {
            let key = format!("{prefix}{sort_name}");
            match key.strip_suffix('/') {
                Some(below) if self.holds_files(below).map_err(error)? => folders.push(key),
                Some(_) => {}
                None => walk.file(key).map_err(error)?,
            }
        }
        let objects = walk.listed;
        self.root_exists("list")?;
        Ok(Folder { objects, folders })
    }

    fn holds_files(&self, path: &str) -> Result<bool, Errno> {
        let mut walk = Walk { files: self, prefix: path, start_after: None, limit: 1, listed: Vec::new() };
        walk.folder(path)?;
        Ok(!walk.listed.is_empty())
    }
}

impl Walk<'_> {
    /// Lists the folder and what is below it, as far as it is wanted.
    fn folder(&mut self, folder: &str) -> Result<(), Errno> {
        for sort_name in self.entries(folder)? {
            if self.listed.len() >= self.limit {
                return Ok(());
            }
            let key = if folder.is_empty() { sort_name } else { format!("{folder}/{sort_name}") };
            match key.strip_suffix('/') {
                Some(path) if self.wants_folder(&key) => self.folder(path)?,
                None if self.wants_file(&key) => self.file(key)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn wants_folder(&self, with_slash: &str) -> bool {
        let in_prefix = with_slash.starts_with(self.prefix) || self.prefix.starts_with(with_slash);
        in_prefix && self.start_after.is_none_or(|after| with_slash > after || after.starts_with(with_slash))
    }

    fn wants_file(&self, key: &str) -> bool {
        key.starts_with(self.prefix) && self.start_after.is_none_or(|after| key > after)
    }

    fn file(&mut self, key: String) -> Result<(), Errno> {
        match self.files.stat(&key) {
            Ok(stat) if is_type(&stat, FileType::RegularFile) => {
                let bytes = u64::try_from(stat.st_size).unwrap_or(0);
                self.listed.push(Listed { key, bytes, modified_ms: modified_ms(&stat) });
                Ok(())
            }
            // Removed since its folder was read, or nothing of ours.
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Names in a folder, those of folders with a slash at their end, in byte order; empty where there is no folder.
    fn entries(&self, folder: &str) -> Result<Vec<String>, Errno> {
        let opened = match self.files.open_folder(folder) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            opened => opened?,
        };
        let mut entries = Dir::new(opened)?;
        let mut sort_names = Vec::new();
        while let Some(entry) = entries.read() {
            let entry = entry?;
            // A name that is not UTF-8 is no key of ours.
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | "..") || (folder.is_empty() && name == TEMPORARY_FOLDER) {
                continue;
            }
            let is_folder = match entry.file_type() {
                FileType::Directory => true,
                FileType::RegularFile => false,
                _ => self.is_folder(folder, name),
            };
            sort_names.push(if is_folder { format!("{name}/") } else { name.to_owned() });
        }
        sort_names.sort_unstable();
        Ok(sort_names)
    }

    /// For symbolic links, and for file systems that do not tell the type in the folder.
    fn is_folder(&self, folder: &str, name: &str) -> bool {
        let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
        self.files.stat(&path).is_ok_and(|stat| is_type(&stat, FileType::Directory))
    }
}

fn modified_ms(stat: &Stat) -> u64 {
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    let milliseconds = u64::from(stat.st_mtime_nsec as u32) / 1_000_000;
    seconds.saturating_mul(1000).saturating_add(milliseconds)
}
