//! Who is connected: kept by the server, for those who ask.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

/// A client whose handshake is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Its address; none on a Unix socket.
    pub address: Option<SocketAddr>,
    /// The export it uses.
    pub export: String,
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
    pub(super) fn enter(&self, address: Option<SocketAddr>, export: &str) -> Entry {
        let mut connected = self.lock();
        let id = connected.next_id;
        connected.next_id += 1;
        connected.clients.insert(id, Client { address, export: export.to_owned() });
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
        let first = clients.enter(None, "disk");
        let address = "127.0.0.1:1".parse().ok();
        let second = clients.enter(address, "disk");
        assert_eq!(clients.list().iter().map(|client| client.address).collect::<Vec<_>>(), [None, address]);
        drop(first);
        assert_eq!(clients.list(), [Client { address, export: "disk".to_owned() }]);
        drop(second);
        assert!(clients.list().is_empty());
    }
}
