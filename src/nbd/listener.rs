//! Sockets to accept clients on: TCP and Unix.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    task::{Context, Poll},
};

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};

/// Clients that the kernel lets wait to be accepted; far more than are served at once.
const BACKLOG: u32 = 1024;

/// A socket that listens. A Unix socket's file is removed on drop, if it is still the one that was made.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: Option<SocketFile> },
}

/// A client's connection.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Listens on a TCP port (0: any that is free), which may have been in use a moment ago. Connections get
    /// keep-alive probes, so that a client that vanished does not hold its place.
    ///
    /// # Errors
    /// The address cannot be had: say which, and leave.
    pub fn bind_tcp(address: SocketAddr) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        // Accepted connections inherit it.
        socket.set_keepalive(true)?;
        socket.bind(address)?;
        Ok(Self { socket: Socket::Tcp(socket.listen(BACKLOG)?) })
    }

    /// Listens on a Unix socket that its owner alone may open (0600). A socket file on which nobody listens is replaced.
    ///
    /// # Errors
    /// `AddrInUse`: a server listens there. `AlreadyExists`: the path is something other than a socket. Else the
    /// socket cannot be made.
    pub async fn bind_unix(path: &Path) -> io::Result<Self> {
        remove_stale(path).await?;
        let socket = UnixSocket::new_stream()?;
        socket.bind(path)?;
        let file = SocketFile::of(path)?;
        // Before it listens, so that nobody connects in between.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { socket: Socket::Unix { listener: socket.listen(BACKLOG)?, _file: Some(file) } })
    }

    /// Takes a TCP socket that listens already, as from a service manager.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking.
    pub fn from_tcp(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { socket: Socket::Tcp(TcpListener::from_std(listener)?) })
    }

    /// Takes a Unix socket that listens already, as from a service manager; its file is left alone.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking.
    pub fn from_unix(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { socket: Socket::Unix { listener: UnixListener::from_std(listener)?, _file: None } })
    }

    /// The address of a TCP socket, with the port that it got.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix { .. } => None,
        }
    }

    pub(super) fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        match &self.socket {
            Socket::Tcp(listener) => listener.poll_accept(context).map_ok(|(stream, _)| Stream::Tcp(stream)),
            Socket::Unix { listener, .. } => {
                listener.poll_accept(context).map_ok(|(stream, _)| Stream::Unix(stream))
            }
        }
    }
}

/// Removes a socket file on which nobody listens.
async fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(io::ErrorKind::AlreadyExists.into()),
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        // Also if its backlog is full, which is an error of its own.
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// The file of a Unix socket that was made here.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A successor may have replaced it.
        if let Ok(metadata) = std::fs::symlink_metadata(&self.path)
            && (metadata.dev(), metadata.ino()) == (self.device, self.inode)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "socket file not removed");
        }
    }
}
