//! The socket's file: `control.sock` in a volume's folder.

use std::{
    fs::{self, File, Permissions},
    io,
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::net::{UnixListener, UnixSocket, UnixStream};
use wal::disk::FolderLock;

/// Name of the socket in the volume's folder.
pub const SOCKET: &str = "control.sock";

/// Longest path of a socket: `sun_path` has 108 bytes, one of them for the end.
const PATH_BYTES_MAX: usize = 107;

/// Connections that the kernel lets wait to be accepted.
const BACKLOG: u32 = 64;

/// A socket that listens, made by whoever holds the folder's lock. Its file is removed on drop, before the lock is given
/// back.
#[derive(Debug)]
pub struct ControlSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Given back after the file is gone, so that a successor's is never removed.
    _lock: Option<Arc<FolderLock>>,
}

impl ControlSocket {
    /// Listens in `folder`, whose lock the caller holds: what is there under the socket's name is of a process that died.
    ///
    /// # Errors
    /// It cannot be made: the volume can be served without.
    pub fn bind(folder: &Path, lock: Option<Arc<FolderLock>>) -> io::Result<Self> {
        fs::set_permissions(folder, Permissions::from_mode(0o700))?;
        let path = folder.join(SOCKET);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixSocket::new_stream()?;
        let (short, _folder) = short_path(folder)?;
        socket.bind(&short)?;
        // Before it listens, so that nobody connects in between.
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Self { listener: socket.listen(BACKLOG)?, path, _lock: lock })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "control socket not removed");
        }
    }
}

/// Connects to the socket in `folder`. `None` where nobody listens there.
pub(super) async fn connect(folder: &Path) -> io::Result<Option<UnixStream>> {
    let connected = match short_path(folder) {
        Ok((short, _folder)) => UnixStream::connect(&short).await,
        Err(error) => Err(error),
    };
    match connected {
        Ok(stream) => Ok(Some(stream)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
                Ok(None)
            }
            _ => Err(error),
        },
    }
}

/// A path of the socket that fits into a socket's address, good for as long as the folder is held open.
fn short_path(folder: &Path) -> io::Result<(PathBuf, Option<File>)> {
    let path = folder.join(SOCKET);
    if path.as_os_str().len() <= PATH_BYTES_MAX {
        return Ok((path, None));
    }
    let folder = File::open(folder)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd())), Some(folder)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn only_the_owner_may_ask_and_the_file_goes_with_the_server() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("volume");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        assert!(connect(&folder).await.unwrap().is_none());
        let socket = ControlSocket::bind(&folder, None).unwrap();
        assert_eq!((mode(&folder), mode(&folder.join(SOCKET))), (0o700, 0o600));
        assert!(connect(&folder).await.unwrap().is_some());
        drop(socket);
        assert!(!folder.join(SOCKET).exists());
        assert!(connect(&folder).await.unwrap().is_none());
        assert!(connect(&root.path().join("nothing")).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_a_killed_server_left_is_nobody_and_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        // A socket that is dropped leaves its file, as a process does that is killed.
        drop(std::os::unix::net::UnixListener::bind(root.path().join(SOCKET)).unwrap());
        assert!(root.path().join(SOCKET).exists());
        assert!(connect(root.path()).await.unwrap().is_none());
        let _socket = ControlSocket::bind(root.path(), None).unwrap();
        assert!(connect(root.path()).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_state_directory_may_have_a_path_longer_than_a_socket_address() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("x".repeat(200));
        fs::create_dir(&folder).unwrap();
        let socket = ControlSocket::bind(&folder, None).unwrap();
        assert!(connect(&folder).await.unwrap().is_some());
        drop(socket);
        assert!(!folder.join(SOCKET).exists());
    }
}
