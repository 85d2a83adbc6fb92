//! The control socket: how commands reach the open server of a volume on this host. The protocol is in `docs/control.md`.
//!
//! The server side ([`Server`]) runs over the trait [`Service`] and the client side ([`client`]) finds servers by their
//! sockets in the state directory; neither opens a volume or a store. `cli` puts them together.
//!
//! # Invariants
//! - A socket's file is there only while its server holds the lock of the volume's folder, or after it died: whoever
//!   takes the lock replaces it, and a connection that is refused means that nobody serves.
//! - The folder has mode 0700 and the socket 0600: only the user that serves, and root, may ask.
//! - Lines, connections and waits are bounded; nothing a client does or leaves undone holds up the volume.
//!
//! # Not handled
//! The socket is no network protocol: it knows no password, as whoever may open it may also read the server's memory.

pub mod client;
mod line;
mod protocol;
mod server;
mod socket;
mod status;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;

pub use protocol::{Answer, Collected, Hello, Refusal, RefusalKind, Reply, Request, Resized, VERSION};
pub use server::{Limits, Server};
pub use socket::{ControlSocket, SOCKET};
pub use status::{Status, StoreStatus};

/// What answers requests.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// Who serves which volume.
    fn hello(&self) -> Hello;
    /// The answer to a request. Dropped at any wait when the client leaves: what must not be done by halves runs in a task
    /// of its own. A request that takes long tells `working` how far it is.
    async fn answer(&self, request: Request, working: &Working) -> Result<Answer, Refusal>;
    /// For how long the store has not answered, milliseconds; none while it does. Told to whoever waits.
    fn store_away_ms(&self) -> Option<u64>;
}

/// How far a request is.
#[derive(Debug, Default)]
pub struct Working {
    left_bytes: AtomicU64,
}

/// What a client is told while it waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// What is left to be done, as far as it is known, bytes.
    pub left_bytes: u64,
    /// For how long the store has not answered, milliseconds; none while it does.
    pub store_away_ms: Option<u64>,
}

impl Working {
    /// So much is left now, bytes.
    pub fn set(&self, left_bytes: u64) {
        self.left_bytes.store(left_bytes, Ordering::Relaxed);
    }

    /// What is left, bytes.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.left_bytes.load(Ordering::Relaxed)
    }
}
