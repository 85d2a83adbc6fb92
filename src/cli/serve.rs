//! Listening and signals: what `s3bd open` does between opening and closing.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use super::exit::{CliError, IN_USE};
use crate::nbd::{Exports, Limits, Listener, Server};

/// Where to listen.
pub(super) struct Addresses {
    pub(super) tcp: Option<SocketAddr>,
    pub(super) unix: Option<PathBuf>,
}

/// Binds before the volume is opened: a taken port must cost nothing.
pub(super) async fn bind(addresses: &Addresses) -> anyhow::Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    if let Some(address) = addresses.tcp {
        listeners.push(Listener::bind_tcp(address).map_err(|error| in_use(&address, &error))?);
    }
    if let Some(path) = &addresses.unix {
        let bound = Listener::bind_unix(path).await;
        listeners.push(bound.map_err(|error| in_use(&path.display(), &error))?);
    }
    Ok(listeners)
}

fn in_use(address: &dyn std::fmt::Display, error: &std::io::Error) -> anyhow::Error {
    CliError { code: IN_USE, text: format!("cannot listen on {address}: {error}") }.into()
}

/// Addresses as clients write them.
pub(super) fn describe(listeners: &[Listener], unix: Option<&PathBuf>, export: &str) -> Vec<String> {
    let tcp =
        listeners.iter().filter_map(Listener::tcp_address).map(|address| format!("nbd://{address}/{export}"));
    let unix = unix.map(|path| format!("nbd+unix:///{export}?socket={}", path.display()));
    tcp.chain(unix).collect()
}

/// How long after a signal another one counts as the same: who ends a process group may signal its members and the group
/// as well, as timeout(1) does, and nobody meant to leave at once.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// Both signals that end the program.
pub(super) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// When the last one came that counted.
    last: Option<Instant>,
}

impl Signals {
    pub(super) fn catch() -> anyhow::Result<Self> {
        let catch = |kind| signal(kind).context("cannot catch signals");
        let (interrupt, terminate) = (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, last: None })
    }

    /// The next of either that is not the same as the one before.
    pub(super) async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => {}
                _ = self.terminate.recv() => {}
            }
            if self.last.is_none_or(|last| last.elapsed() >= SAME_SIGNAL) {
                self.last = Some(Instant::now());
                return;
            }
        }
    }
}

/// A server of `exports`.
pub(super) fn server(exports: Arc<dyn Exports>) -> Server {
    Server::new(exports, Limits::default())
}
