//! A server of one disk in memory, on a Unix socket in a folder of its own.

use std::{path::PathBuf, sync::Arc};

use s3bd::nbd::{Export, Limits, Listener, Server};
use tokio::{sync::oneshot, task::JoinHandle};

use super::memory::Memory;

pub(crate) struct Fixture {
    pub(crate) device: Arc<Memory>,
    pub(crate) path: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    pub(crate) async fn start(device: Memory, limits: Limits) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("nbd.sock");
        let listener = Listener::bind_unix(&path).await.expect("a socket");
        let device = Arc::new(device);
        let export =
            Export { name: "volume".to_owned(), description: "a disk".to_owned(), device: device.clone() };
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            let shutdown = async move {
                let _ = stopped.await;
            };
            Server::new(Arc::new(export), limits).serve(vec![listener], shutdown).await;
        });
        Self { device, path, stop: Some(stop), server, _folder: folder }
    }

    pub(crate) async fn small() -> Self {
        Self::start(Memory::new(1 << 20), Limits::default()).await
    }

    /// Tells the server to shut down.
    pub(crate) fn stop(&mut self) {
        let _ = self.stop.take().expect("stopped once").send(());
    }

    /// Waits for the server to return.
    pub(crate) async fn stopped(self) {
        self.server.await.expect("the server does not panic");
    }
}
