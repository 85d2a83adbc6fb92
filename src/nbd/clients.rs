//! Who is connected: kept by the server, for those who ask.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, UnixStream};

/// A client whose handshake is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Its address; none on a Unix socket.
    pub address: Option<SocketAddr>,
    /// Name of the program at the other end of a Unix socket, as it was when it connected; none where that is not known.
    #[serde(default)]
    pub program: Option<String>,
    /// The export it uses.
    pub export: String,
}

/// The other end of a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    pub(super) address: Option<SocketAddr>,
    pub(super) program: Option<String>,
}

impl Peer {
    pub(super) fn of_tcp(stream: &TcpStream) -> Self {
        Self { address: stream.peer_addr().ok(), program: None }
    }

    pub(super) fn of_unix(stream: &UnixStream) -> Self {
        let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
        // proc(5): its name ends with the line.
        let name = process.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok());
        Self { address: None, program: name.map(|name| name.trim_end().to_owned()) }
    }
}

/// The clients of a server; clones are the same list.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    connected: Arc<Mutex<Connected>>,
}

#[derive(Debug, Default)]
struct Connected {
    next_id: u64,
    clients: BTreeMap<u64, Client>,
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, Connected> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those connected now, in the order in which they came.
    #[must_use]
    pub fn list(&self) -> Vec<Client> {
        self.lock().clients.values().cloned().collect()
    }

    /// Adds one, until what is returned is dropped.
    pub(super) fn enter(&self, peer: Peer, export: &str) -> Entry {
        let Peer { address, program } = peer;
        let mut connected = self.lock();
        let id = connected.next_id;
        connected.next_id += 1;
        connected.clients.insert(id, Client { address, program, export: export.to_owned() });
        Entry { clients: self.clone(), id }
    }
}

/// A place in the list.
#[derive(Debug)]
pub(super) struct Entry {
    clients: Clients,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.clients.lock().clients.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_listed_while_they_are_connected() {
        let clients = Clients::default();
        let first = clients.enter(Peer::default(), "disk");
        let address = "127.0.0.1:1".parse().ok();
        let second = clients.enter(Peer { address, program: None }, "disk");
        assert_eq!(clients.list().iter().map(|client| client.address).collect::<Vec<_>>(), [None, address]);
        drop(first);
        assert_eq!(clients.list(), [Client { address, program: None, export: "disk".to_owned() }]);
        drop(second);
        assert!(clients.list().is_empty());
    }
}
