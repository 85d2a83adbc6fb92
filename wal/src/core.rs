//! What the log thread does with what was asked for, one turn at a time: retire, write, sync.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    Log, Lsn, Seal, WalError,
    format::{RECORD_HEADER_BYTES, RecordHeader, finish_record},
    writer::{BATCH_BYTES_MAX, Outcome, Pending},
};

/// Segments retired in one turn: each costs an fsync, and writers wait meanwhile.
const RETIRED_A_TURN_MAX: usize = 4;

/// What was asked for since the last turn.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    pub(crate) queue: VecDeque<Pending>,
    pub(crate) sync_upto: Lsn,
    pub(crate) trim_upto: Lsn,
    /// Something else than the queue changed.
    pub(crate) poke: bool,
    pub(crate) close: bool,
    pub(crate) abandon: bool,
}

/// The log and what waits for it.
pub(crate) struct Core {
    log: Log,
    seal: Box<dyn Seal>,
    backlog: VecDeque<Pending>,
    buffer: Vec<u8>,
    sync_upto: Lsn,
    /// The sync being worked towards. It stays where it is while `sync_upto` moves on, so that a steady
    /// stream cannot put it off.
    sync_goal: Option<Lsn>,
    closing: bool,
    abandoned: bool,
    disk_full: bool,
    failed: Option<Arc<WalError>>,
    /// What the last outcome said.
    told: Told,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Told {
    appended: Lsn,
    synced: Lsn,
    trimmed: Lsn,
    disk_full: bool,
    failed: bool,
}

impl Core {
    pub(crate) fn new(log: Log, seal: Box<dyn Seal>) -> Core {
        let told = Told {
            appended: log.appended(),
            synced: log.synced(),
            trimmed: log.trimmed(),
            disk_full: false,
            failed: false,
        };
        Core {
            log,
            seal,
            backlog: VecDeque::new(),
            buffer: Vec::new(),
            sync_upto: Lsn::ZERO,
            sync_goal: None,
            closing: false,
            abandoned: false,
            disk_full: false,
            failed: None,
            told,
        }
    }

    /// Takes note of what was asked for.
    pub(crate) fn obey(&mut self, mut orders: Orders) {
        self.backlog.append(&mut orders.queue);
        self.sync_upto = self.sync_upto.max(orders.sync_upto);
        self.log.trim(orders.trim_upto);
        if orders.poke {
            self.disk_full = false;
        }
        if orders.close {
            self.closing = true;
            self.sync_upto = self.backlog.back().map_or(self.log.appended(), |last| last.end);
        }
        self.abandoned |= orders.abandon;
    }

    /// Whether another turn would do something.
    pub(crate) fn has_more(&self) -> bool {
        let writes = !self.backlog.is_empty() && !self.disk_full;
        self.is_able() && (writes || self.sync_is_due() || self.log.can_retire())
    }

    /// Whether there will be no more turns.
    pub(crate) fn has_ended(&self) -> bool {
        self.abandoned || (self.closing && !self.has_more())
    }

    fn is_able(&self) -> bool {
        self.failed.is_none() && !self.abandoned
    }

    fn sync_is_due(&self) -> bool {
        let goal = self.sync_goal.unwrap_or(self.sync_upto);
        goal > self.log.synced() && goal <= self.log.appended()
    }

    /// Does a bounded piece of what waits. `None` if nothing came of it that anybody would want to know.
    pub(crate) fn turn(&mut self) -> Option<Outcome> {
        let mut outcome = Outcome::default();
        if self.is_able() {
            match self.work(&mut outcome) {
                Ok(()) => {}
                Err(WalError::DiskFull { .. }) => self.disk_full = true,
                Err(error) => self.fail(error),
            }
        }
        outcome.appended = self.log.appended();
        outcome.synced = self.log.synced();
        outcome.trimmed = self.log.trimmed();
        outcome.disk_full = self.disk_full;
        outcome.failed = self.failed.clone();
        let told = Told {
            appended: outcome.appended,
            synced: outcome.synced,
            trimmed: outcome.trimmed,
            disk_full: outcome.disk_full,
            failed: self.failed.is_some(),
        };
        let news = std::mem::replace(&mut self.told, told) != told || outcome.retired_bytes > 0;
        news.then_some(outcome)
    }

    fn work(&mut self, outcome: &mut Outcome) -> Result<(), WalError> {
        for _ in 0..RETIRED_A_TURN_MAX {
            outcome.retired_bytes += self.log.retire()?;
        }
        if self.sync_goal.is_none() && self.sync_upto > self.log.synced() {
            self.sync_goal = Some(self.sync_upto);
        }
        let written = self.write_batch(&mut outcome.written_bytes);
        if self.sync_goal.is_some_and(|goal| goal <= self.log.appended()) {
            // A disk without room for more does not keep what is written from being synced.
            if matches!(written, Ok(()) | Err(WalError::DiskFull { .. })) {
                self.log.sync()?;
            }
            self.sync_goal = None;
        }
        written
    }

    /// Writes what waits, up to a batch.
    fn write_batch(&mut self, written_bytes: &mut u64) -> Result<(), WalError> {
        let mut taken_bytes = 0;
        while taken_bytes < BATCH_BYTES_MAX {
            let Some(pending) = self.backlog.front() else { break };
            if !self.log.is_current(pending.lsn) {
                self.flush(written_bytes)?;
                self.log.begin_segment()?;
            }
            let Some(pending) = self.backlog.pop_front() else { break };
            taken_bytes += pending.bytes() as usize;
            self.add(&pending);
        }
        self.flush(written_bytes)
    }

    /// Seals the record into the buffer.
    fn add(&mut self, pending: &Pending) {
        let from = self.buffer.len();
        assert_eq!(pending.lsn, self.log.appended().plus(from as u64), "the queue has no gaps");
        self.buffer.resize(from + RECORD_HEADER_BYTES, 0);
        self.seal.seal(pending.lsn, pending.kind, &pending.head, &pending.body, &mut self.buffer);
        let payload_bytes = self.buffer.len() - from - RECORD_HEADER_BYTES;
        let promised = pending.head.len() + pending.body.len() + self.seal.overhead();
        assert_eq!(payload_bytes, promised, "the seal adds what it said it would");
        let header = RecordHeader {
            kind: pending.kind,
            payload_bytes: payload_bytes as u32,
            lsn: pending.lsn,
            durable: self.log.synced(),
        };
        debug_assert_eq!(header.end(), pending.end);
        finish_record(&mut self.buffer, from, &header, self.log.segment_crc());
    }

    fn flush(&mut self, written_bytes: &mut u64) -> Result<(), WalError> {
        if !self.buffer.is_empty() {
            self.log.write(self.log.appended(), &self.buffer)?;
            *written_bytes += self.buffer.len() as u64;
            self.buffer.clear();
            self.buffer.shrink_to(2 * BATCH_BYTES_MAX);
        }
        Ok(())
    }

    fn fail(&mut self, error: WalError) {
        self.failed = Some(Arc::new(error));
        self.backlog.clear();
        self.buffer = Vec::new();
    }

    /// Gets ready for the next segment, when nobody waits.
    pub(crate) fn prepare(&mut self) {
        if self.is_able() && !self.closing {
            self.log.prepare();
        }
    }

    /// The last act.
    pub(crate) fn end(&mut self) -> Result<(), WalError> {
        if let Some(cause) = &self.failed {
            return Err(WalError::Poisoned(Arc::clone(cause)));
        }
        if self.abandoned {
            return Ok(());
        }
        match self.backlog.front() {
            Some(_) => Err(WalError::DiskFull { needed_bytes: self.log.options().segment_bytes }),
            None => self.log.close(),
        }
    }
}
