//! What happened in a history, to all of its volumes: for people, and counted.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use s3bd::format::names;

/// What has to happen in a run of many histories, or the simulation does not test what it says.
pub const EVENTS: [&str; 43] = [
    "rebuilt without manifests",
    "opened",
    "took over",
    "replayed",
    "resized",
    "rolled back",
    "in use",
    "fenced",
    "diverged",
    "discarded",
    "rollback found",
    "rollback accepted",
    "killed",
    "power lost",
    "disk full",
    "sync failed",
    "state put back",
    "state lost",
    "state copied",
    "put back under writers",
    "locked",
    "read beside a writer",
    "paused",
    "snapshot taken",
    "snapshot deleted",
    "snapshot read",
    "snapshot checked",
    "object collected",
    "bucket checked",
    "clone made",
    "clone of a clone made",
    "clone's maker died",
    "leftover refused",
    "leftover cleared",
    "deletion refused",
    "pinned",
    "pin released",
    "stale pin found",
    "flattened",
    "flattening died",
    "removed",
    "removal died",
    "removal refused",
];

#[derive(Debug)]
pub struct Journal {
    pub events: BTreeMap<&'static str, u64>,
    /// What was sealed with each salt.
    salts: BTreeMap<Bytes, Bytes>,
    trace: Arc<Mutex<Vec<String>>>,
    started: tokio::time::Instant,
}

impl Journal {
    pub fn new(trace: Arc<Mutex<Vec<String>>>) -> Self {
        let started = tokio::time::Instant::now();
        Self { events: BTreeMap::new(), salts: BTreeMap::new(), trace, started }
    }

    pub fn note(&self, text: impl AsRef<str>) {
        let line = format!("{:>9} ms  {}", self.started.elapsed().as_millis(), text.as_ref());
        self.trace.lock().unwrap().push(line);
    }

    pub fn count(&mut self, event: &'static str) {
        *self.events.entry(event).or_default() += 1;
    }

    /// No two contents may share a salt: its key and nonce would be used twice. `name` is below its volume's.
    pub fn check_salt(&mut self, name: &str, bytes: &Bytes) {
        let salt = if name.starts_with(names::OBJECTS) {
            // In its header, with all that its key derives from.
            bytes.slice(..64)
        } else if name.starts_with(names::CLAIMS) || name.starts_with(names::MANIFESTS) {
            // Right after the envelope.
            bytes.slice(24..40)
        } else {
            return;
        };
        let before = self.salts.insert(salt, bytes.clone());
        assert!(before.is_none_or(|before| before == *bytes), "{name} has the salt of something else");
    }
}
