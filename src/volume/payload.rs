//! Payloads of log records in memory, within a budget: what does not fit is read back from the log.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use wal::Lsn;

/// The data of one log record: in memory, or only in the log.
#[derive(Debug)]
pub struct Payload {
    /// Where its record is.
    pub lsn: Lsn,
    /// Where its record ends.
    pub end: Lsn,
    data: Mutex<Option<Bytes>>,
    budget: Option<Arc<Used>>,
}

#[derive(Debug, Default)]
struct Used {
    bytes: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Payload {
    /// A payload outside of any log and budget.
    #[must_use]
    pub fn detached(data: Bytes) -> Arc<Self> {
        Arc::new(Self { lsn: Lsn(0), end: Lsn(0), data: Mutex::new(Some(data)), budget: None })
    }

    /// Its bytes, where they are in memory.
    #[must_use]
    pub fn in_memory(&self) -> Option<Bytes> {
        lock(&self.data).clone()
    }

    fn release(&self) {
        if let (Some(data), Some(used)) = (lock(&self.data).take(), &self.budget) {
            used.bytes.fetch_sub(data.len() as u64, Ordering::Relaxed);
        }
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.release();
    }
}

/// How much unpublished data stays in memory.
#[derive(Debug)]
pub struct PayloadMemory {
    bytes_max: u64,
    used: Arc<Used>,
    oldest_first: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    payloads: VecDeque<Weak<Payload>>,
    /// Length at which those that were dropped are taken out, so that overwriting one block over and over does not
    /// make it longer and longer.
    sweep_at: usize,
}

/// No sweep below this many: they are not worth one.
const SWEEP_MIN: usize = 1024;

impl Queue {
    fn push(&mut self, payload: &Arc<Payload>) {
        if self.payloads.len() >= self.sweep_at.max(SWEEP_MIN) {
            self.payloads.retain(|payload| payload.strong_count() > 0);
            self.sweep_at = 2 * self.payloads.len();
        }
        self.payloads.push_back(Arc::downgrade(payload));
    }
}

impl PayloadMemory {
    /// With room for `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max, used: Arc::default(), oldest_first: Mutex::default() }
    }

    /// Bytes in use.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used.bytes.load(Ordering::Relaxed)
    }

    /// A payload whose record is at `lsn`; `None` for data that is in the log already and stays there.
    pub fn payload(&self, lsn: Lsn, end: Lsn, data: Option<Bytes>) -> Arc<Payload> {
        let bytes = data.as_ref().map_or(0, |data| data.len() as u64);
        self.used.bytes.fetch_add(bytes, Ordering::Relaxed);
        let budget = Some(Arc::clone(&self.used));
        let payload = Arc::new(Payload { lsn, end, data: Mutex::new(data), budget });
        if bytes > 0 {
            lock(&self.oldest_first).push(&payload);
        }
        payload
    }

    /// Drops the oldest data from memory until the budget holds, but only what can be read back: records whose end is
    /// at most `appended`.
    pub fn trim(&self, appended: Lsn) {
        let queue = &mut lock(&self.oldest_first).payloads;
        while let Some(oldest) = queue.front() {
            match oldest.upgrade() {
                None => {}
                Some(payload) if self.used_bytes() > self.bytes_max && payload.end <= appended => {
                    payload.release()
                }
                Some(_) => break,
            }
            queue.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(memory: &PayloadMemory, count: u64) -> Vec<Arc<Payload>> {
        let one = |i| memory.payload(Lsn(i * 100), Lsn(i * 100 + 100), Some(Bytes::from(vec![i as u8; 10])));
        (0..count).map(one).collect()
    }

    #[test]
    fn the_oldest_written_payloads_leave_memory_first() {
        let memory = PayloadMemory::new(30);
        let payloads = fill(&memory, 5);
        memory.trim(Lsn(100));
        let kept: Vec<bool> = payloads.iter().map(|payload| payload.in_memory().is_some()).collect();
        assert_eq!(kept, [false, true, true, true, true], "only the first was written to the log");
        memory.trim(Lsn(500));
        assert_eq!(memory.used_bytes(), 30);
        drop(payloads);
        assert_eq!(memory.used_bytes(), 0);
    }

    #[test]
    fn dropped_payloads_leave_the_queue() {
        let memory = PayloadMemory::new(1000);
        drop(fill(&memory, 100));
        memory.trim(Lsn(0));
        assert!(lock(&memory.oldest_first).payloads.is_empty());
    }

    #[test]
    fn overwriting_one_block_for_ever_takes_no_more_and_more_memory() {
        let memory = PayloadMemory::new(1 << 20);
        let _oldest = fill(&memory, 1);
        for _ in 0..100 {
            drop(fill(&memory, 100));
            memory.trim(Lsn(u64::MAX));
        }
        assert!(lock(&memory.oldest_first).payloads.len() <= SWEEP_MIN + 100);
    }
}
