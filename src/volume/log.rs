//! The volume's write-ahead log: `wal` with records sealed, and waits for its progress.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use wal::{AppendError, Appended, Lsn};

use super::{error::VolumeError, payload::PayloadMemory, settings::Settings, waiters::Waiters};
use crate::{
    format::ids::LogId,
    seal::{keys::Keys, log::LogSeal},
};

/// Largest data of one record, bytes; larger writes are several records. Reading back a small piece of a record reads
/// all of it, so not too large; 1 MiB is what most clients send at most.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// Opens records of every tenure that the log still holds.
#[derive(Debug)]
pub struct Opener {
    keys: Arc<Keys>,
    log: LogId,
    seals: Mutex<HashMap<[u8; 32], Arc<LogSeal>>>,
}

impl Opener {
    /// With the keys of the volume, for one log.
    #[must_use]
    pub fn new(keys: Arc<Keys>, log: LogId) -> Self {
        Self { keys, log, seals: Mutex::default() }
    }

    /// The plaintext of a record: head and data.
    pub fn open(&self, record: &wal::Record) -> Result<Bytes, VolumeError> {
        let mut seals = self.seals.lock().unwrap_or_else(PoisonError::into_inner);
        let seal = seals
            .entry(record.tag)
            .or_insert_with(|| Arc::new(LogSeal::new(&self.keys, self.log, &record.tag)));
        let seal = Arc::clone(seal);
        drop(seals);
        let plain = seal.open(record.lsn.0, record.kind, &record.payload).map_err(|_| {
            VolumeError::LogRecord { lsn: record.lsn, kind: record.kind, detail: "its seal does not open" }
        })?;
        Ok(plain.into())
    }
}

struct SealRecords(LogSeal);

impl wal::Seal for SealRecords {
    fn overhead(&self) -> usize {
        LogSeal::overhead()
    }

    fn seal(&mut self, lsn: Lsn, kind: u8, head: &[u8], body: &[u8], out: &mut Vec<u8>) {
        self.0.seal(lsn.0, kind, head, body, out);
    }
}

/// An open log.
#[derive(Debug)]
pub struct Log {
    writer: wal::Writer,
    opener: Opener,
    waits: Arc<Waits>,
}

#[derive(Debug, Default)]
struct Waits {
    appended: Waiters,
    synced: Waiters,
    changed: tokio::sync::Notify,
    disk_full: tokio::sync::Notify,
}

impl Log {
    /// Starts writing. `tag` is the salt that the log was opened with.
    #[must_use]
    pub fn start(
        log: wal::Log,
        (id, tag): (LogId, &[u8; 32]),
        keys: Arc<Keys>,
        payloads: Arc<PayloadMemory>,
        settings: &Settings,
    ) -> Self {
        let waits = Arc::new(Waits::default());
        let seal = SealRecords(LogSeal::new(&keys, id, tag));
        let on_progress = {
            let waits = Arc::clone(&waits);
            move |progress: &wal::Progress| {
                waits.appended.advance(progress.appended);
                waits.synced.advance(progress.synced);
                if progress.poisoned.is_some() {
                    waits.appended.end();
                    waits.synced.end();
                }
                if progress.disk_full {
                    waits.disk_full.notify_one();
                }
                payloads.trim(progress.appended);
                waits.changed.notify_waiters();
            }
        };
        let writer = wal::Writer::start(log, Box::new(seal), Box::new(on_progress), settings.log_mode);
        let progress = writer.progress();
        waits.appended.advance(progress.appended);
        waits.synced.advance(progress.synced);
        Self { writer, opener: Opener::new(keys, id), waits }
    }

    /// Queues a record; never blocks.
    pub fn append(&self, kind: u8, head: &[u8], body: Bytes) -> Result<Appended, AppendError> {
        self.writer.append(kind, head, body)
    }

    /// Where the log stands.
    pub fn progress(&self) -> wal::Progress {
        self.writer.progress()
    }

    /// Length of its files, bytes.
    pub fn used_bytes(&self) -> u64 {
        self.writer.used_bytes()
    }

    /// Returns when everything below `lsn` is in the log's file.
    pub async fn wait_appended(&self, lsn: Lsn) -> Result<(), VolumeError> {
        self.waits.appended.wait(lsn).await.map_err(|_| self.failure())
    }

    /// Everything whose append was answered.
    pub fn appended(&self) -> Lsn {
        self.waits.appended.reached()
    }

    /// Returns when everything below `lsn` is on the disk's medium.
    pub async fn sync(&self, lsn: Lsn) -> Result<(), VolumeError> {
        if self.waits.synced.reached() < lsn {
            self.writer.request_sync(lsn);
        }
        self.waits.synced.wait(lsn).await.map_err(|_| self.failure())
    }

    /// Ready at the next progress of any kind after it was enabled or first polled.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.waits.changed.notified()
    }

    /// Returns when the log waits for room on its disk.
    pub async fn disk_full(&self) {
        self.waits.disk_full.notified().await;
    }

    /// Tries again to find room, where the log waits for it: whether it does.
    pub fn retry_if_full(&self) -> bool {
        let full = self.writer.progress().disk_full;
        if full {
            self.writer.retry();
        }
        full
    }

    /// Why nothing more is written.
    pub fn failure(&self) -> VolumeError {
        match self.writer.progress().poisoned {
            Some(cause) => VolumeError::Log(Arc::new(wal::WalError::Poisoned(cause))),
            None => VolumeError::Closed,
        }
    }

    /// Everybody who waits is told that it will not come.
    pub fn end_waits(&self) {
        self.waits.appended.end();
        self.waits.synced.end();
        self.waits.changed.notify_waiters();
    }

    /// The plaintext of the record at `lsn`, from the file. Blocks.
    pub fn read(&self, lsn: Lsn) -> Result<Bytes, VolumeError> {
        self.opener.open(&self.writer.read(lsn)?)
    }

    /// Nothing below `lsn` is needed any more.
    pub fn trim(&self, lsn: Lsn) {
        self.writer.trim(lsn);
        self.waits.changed.notify_waiters();
    }

    /// Writes and syncs what waits, and ends the thread.
    pub fn close(&self) -> Result<(), VolumeError> {
        Ok(self.writer.close()?)
    }
}
