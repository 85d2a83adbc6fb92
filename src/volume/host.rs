//! This host's folders: `STATE_DIR/<volume id>/` with the log, the cache, and the small files of the state.

use std::{io, path::PathBuf, sync::Arc};

use wal::disk::{Disk, Folder};

use super::env::{Local, LocalRoot};
use crate::format::ids::VolumeId;

/// Folders below one path. The folder `lock`s keep two processes from one volume.
#[derive(Clone, Debug)]
pub struct HostRoot {
    path: PathBuf,
}

impl HostRoot {
    /// Below `path`, which is made when it is needed.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The folder of a volume, which need not exist.
    #[must_use]
    pub fn folder(&self, volume: VolumeId) -> PathBuf {
        self.path.join(volume.to_string())
    }
}

impl LocalRoot for HostRoot {
    fn open(&self, volume: VolumeId) -> io::Result<Option<Local>> {
        let path = self.folder(volume);
        let state = Folder::open(&path)?;
        let Some(lock) = state.lock("lock")? else { return Ok(None) };
        Ok(Some(Local {
            wal: Arc::new(Folder::open(path.join("wal"))?),
            cache: Arc::new(Folder::open(path.join("cache"))?),
            state: Arc::new(state),
            lock: Some(Arc::new(lock)),
        }))
    }

    fn exists(&self, volume: VolumeId) -> io::Result<bool> {
        self.folder(volume).try_exists()
    }

    fn look(&self, volume: VolumeId) -> io::Result<Option<Arc<dyn Disk>>> {
        // To open a folder makes it.
        if !self.exists(volume)? {
            return Ok(None);
        }
        Ok(Some(Arc::new(Folder::open(self.folder(volume))?)))
    }

    fn remove(&self, volume: VolumeId) -> io::Result<()> {
        std::fs::remove_dir_all(self.folder(volume))
    }

    fn describe(&self, volume: VolumeId) -> String {
        self.folder(volume).display().to_string()
    }
}

/// This host's name.
#[must_use]
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
