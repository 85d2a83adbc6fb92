//! Group commit: many threads append, one thread (or the caller itself) writes and syncs for all of them.
//!
//! # Concurrency
//!
//! Appending threads share one short lock, under which a record gets its LSN and joins the queue; nobody
//! holds it over I/O.
//! The log thread takes all that waits, writes it in one go, syncs once if anybody asked, and says so once.
//! It is woken only when it sleeps. `on_progress` is called without a lock held and may call the writer.
//!
//! # Invariants
//!
//! - LSN order is queue order is file order: an LSN is given and the record queued under one lock.
//! - `synced <= appended <= next`, in every [`Progress`].
//! - Queue and batch are bounded: [`QUEUE_BYTES_MAX`], [`BATCH_BYTES_MAX`].
//! - An LSN that was given is written, unless the log fails first or the writer is dropped without
//!   [`Writer::close`].
//!
//! # Errors and retries
//!
//! A failed write or sync poisons: `appended` and `synced` stay where they are for ever, what is queued is
//! dropped, later appends say why.
//! A sync is never tried again. A disk without room for the next segment is no failure: `disk_full` is set,
//! the queue is kept and
//! taken up again after [`Writer::trim`], [`Writer::request_sync`] or [`Writer::retry`].

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use bytes::Bytes;

use crate::{
    AppendError, Log, Lsn, Record, Seal, WalError,
    core::{Core, Orders},
    format::record_bytes,
    place::Cursor,
    segment::{ReadFault, Segments, Waits, record_room},
};

/// Bytes of records waiting for the disk: a second or two of a slow disk, and little memory.
pub const QUEUE_BYTES_MAX: u64 = 32 << 20;
/// Bytes written with one system call: above this nothing is gained, and a sync that was asked for would wait
/// for more.
pub const BATCH_BYTES_MAX: usize = 4 << 20;

/// Who does the writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A thread that owns the log.
    Thread,
    /// The caller, within its call: deterministic, for simulation.
    Inline,
}

/// How far the log has come. `synced <= appended <= next`.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Records that end at or below this are in the file and can be read back.
    pub appended: Lsn,
    /// Records that end at or below this are on the medium.
    pub synced: Lsn,
    /// Nothing below this is needed.
    pub trimmed: Lsn,
    /// End of the last record that has an LSN.
    pub next: Lsn,
    /// Whether the queue waits because the disk has no room for the next segment.
    pub disk_full: bool,
    /// Why the log failed, if it did.
    pub poisoned: Option<Arc<WalError>>,
}

/// The place that a record was given; it is not written yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its LSN.
    pub lsn: Lsn,
    /// LSN after it: it is on the medium once `synced >= end`.
    pub end: Lsn,
}

/// Called after each batch, without a lock held.
pub type OnProgress = Box<dyn Fn(&Progress) + Send + Sync>;

/// A record that has its place and waits to be written.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) lsn: Lsn,
    pub(crate) end: Lsn,
    pub(crate) kind: u8,
    pub(crate) head: Vec<u8>,
    pub(crate) body: Bytes,
}

impl Pending {
    pub(crate) fn bytes(&self) -> u64 {
        self.end.since(self.lsn)
    }
}

/// What the appending threads and the log thread share.
pub(crate) struct State {
    cursor: Cursor,
    orders: Orders,
    /// Bytes in the queue and in the log thread's hands.
    pending_bytes: u64,
    /// Bytes of all segments that are there or that a queued record will begin.
    reserved_bytes: u64,
    pub(crate) progress: Progress,
    closed: bool,
    sleeping: bool,
}

/// The shared state and its condition.
pub(crate) struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    on_progress: OnProgress,
}

/// What a turn of the log thread brought.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) written_bytes: u64,
    pub(crate) retired_bytes: u64,
    pub(crate) appended: Lsn,
    pub(crate) synced: Lsn,
    pub(crate) trimmed: Lsn,
    pub(crate) disk_full: bool,
    pub(crate) failed: Option<Arc<WalError>>,
}

/// Appends to a log from any thread.
pub struct Writer {
    shared: Arc<Shared>,
    segments: Arc<Segments>,
    seal_overhead: usize,
    segment_bytes: u64,
    log_bytes_max: u64,
    engine: Engine,
}

enum Engine {
    Thread(Mutex<Option<JoinHandle<Result<(), WalError>>>>),
    Inline(Box<Mutex<Core>>),
}

impl Writer {
    /// Takes over the log. `on_progress` is called after each batch that changed something; it must be quick,
    /// and in
    /// [`Mode::Inline`] it runs within the call that caused it.
    ///
    /// # Panics
    /// If the host gives no thread.
    #[must_use]
    pub fn start(log: Log, seal: Box<dyn Seal>, on_progress: OnProgress, mode: Mode) -> Writer {
        let progress = Progress {
            appended: log.appended(),
            synced: log.synced(),
            trimmed: log.trimmed(),
            next: log.appended(),
            disk_full: false,
            poisoned: None,
        };
        let state = State {
            cursor: log.cursor(),
            orders: Orders::default(),
            pending_bytes: 0,
            reserved_bytes: log.live_bytes(),
            progress,
            closed: false,
            sleeping: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: Condvar::new(), on_progress });
        let (segments, options) = (log.segments(), log.options());
        let (segment_bytes, log_bytes_max) = (options.segment_bytes, options.log_bytes_max);
        let seal_overhead = seal.overhead();
        let core = Core::new(log, seal);
        let engine = match mode {
            Mode::Inline => Engine::Inline(Box::new(Mutex::new(core))),
            Mode::Thread => Engine::Thread(Mutex::new(Some(start_thread(Arc::clone(&shared), core)))),
        };
        Writer { shared, segments, seal_overhead, segment_bytes, log_bytes_max, engine }
    }

    /// Gives the record its place and queues it; never waits for the disk. Its payload is `head`, then
    /// `body`, sealed as one.
    /// When this returns nothing is on any medium; the record occupies `[lsn, end)`.
    ///
    /// # Errors
    /// [`AppendError::Full`]: wait for the next `on_progress`, then try again. [`AppendError::TooLarge`]:
    /// split it. Poisoned and closed
    /// are for ever.
    pub fn append(&self, kind: u8, head: &[u8], body: Bytes) -> Result<Appended, AppendError> {
        let payload_bytes = (head.len() + body.len() + self.seal_overhead) as u64;
        let bytes = record_bytes(payload_bytes);
        let bytes_max = record_room(self.segment_bytes).min(u64::from(u32::MAX));
        if bytes > bytes_max {
            return Err(AppendError::TooLarge { bytes, bytes_max });
        }
        let mut state = self.shared.lock();
        self.check_open(&state)?;
        let placed = state.cursor.place(payload_bytes);
        self.check_room(&state, bytes, placed.begins_segment)?;
        if placed.begins_segment {
            state.reserved_bytes += self.segment_bytes;
        }
        state.cursor.take(placed);
        state.progress.next = placed.end;
        state.pending_bytes += bytes;
        let (lsn, end) = (placed.lsn, placed.end);
        state.orders.queue.push_back(Pending { lsn, end, kind, head: head.to_vec(), body });
        self.go(state);
        Ok(Appended { lsn, end })
    }

    fn check_open(&self, state: &State) -> Result<(), AppendError> {
        if let Some(cause) = &state.progress.poisoned {
            return Err(AppendError::Poisoned(Arc::clone(cause)));
        }
        if state.closed { Err(AppendError::Closed) } else { Ok(()) }
    }

    fn check_room(&self, state: &State, bytes: u64, begins_segment: bool) -> Result<(), AppendError> {
        let opened = if begins_segment { self.segment_bytes } else { 0 };
        let (needed, limit) = (state.reserved_bytes + opened, self.log_bytes_max);
        // What is there from before may be more than the limit; only more segments are refused.
        if state.progress.disk_full || (begins_segment && needed > limit) {
            return Err(AppendError::Full { needed, limit });
        }
        let (needed, limit) = (state.pending_bytes + bytes, QUEUE_BYTES_MAX);
        if needed > limit && state.pending_bytes > 0 {
            return Err(AppendError::Full { needed, limit });
        }
        Ok(())
    }

    /// Asks that `synced >= upto` (at most all that has an LSN). One sync answers all who asked; there is
    /// none if it holds already.
    pub fn request_sync(&self, upto: Lsn) {
        let mut state = self.shared.lock();
        let upto = upto.min(state.progress.next);
        if !state.is_able() || upto <= state.orders.sync_upto.max(state.progress.synced) {
            return;
        }
        state.orders.sync_upto = upto;
        state.orders.poke = true;
        self.go(state);
    }

    /// Says that nothing below `upto` is needed; segments wholly below it are recycled or removed.
    pub fn trim(&self, upto: Lsn) {
        let mut state = self.shared.lock();
        let upto = upto.min(state.progress.next);
        if !state.is_able() || upto <= state.orders.trim_upto.max(state.progress.trimmed) {
            return;
        }
        state.orders.trim_upto = upto;
        state.orders.poke = true;
        self.go(state);
    }

    /// Tries again to find room on a full disk.
    pub fn retry(&self) {
        let mut state = self.shared.lock();
        if state.is_able() {
            state.orders.poke = true;
            self.go(state);
        }
    }

    /// How far the log has come.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.shared.lock().progress.clone()
    }

    /// Bytes of all segment files that are there or that a queued record will begin: what
    /// [`Options::log_bytes_max`](crate::Options) bounds.
    pub fn used_bytes(&self) -> u64 {
        self.shared.lock().reserved_bytes
    }

    /// Reads back a record that has been written, verified; may wait for the disk.
    ///
    /// # Errors
    /// [`WalError::NotWritten`], [`WalError::Trimmed`] (its segment is gone), [`WalError::Corrupt`] if the
    /// bytes are not the record, [`WalError::Io`].
    pub fn read(&self, lsn: Lsn) -> Result<Record, WalError> {
        match self.read_if(lsn, Waits::Yes)? {
            Some(record) => Ok(record),
            // Only a read that may not wait is without an answer.
            None => Err(WalError::NotWritten { lsn, appended: self.progress().appended }),
        }
    }

    /// Like [`Writer::read`], or `None` if the bytes are not in the page cache (or that cannot be told).
    ///
    /// # Errors
    /// As [`Writer::read`].
    pub fn read_nowait(&self, lsn: Lsn) -> Result<Option<Record>, WalError> {
        self.read_if(lsn, Waits::No)
    }

    fn read_if(&self, lsn: Lsn, waits: Waits) -> Result<Option<Record>, WalError> {
        let appended = self.progress().appended;
        if lsn >= appended {
            return Err(WalError::NotWritten { lsn, appended });
        }
        let segment = self.segments.holding(lsn).ok_or(WalError::Trimmed { lsn })?;
        match segment.read(lsn, waits) {
            Ok(record) => Ok(Some(record)),
            Err(ReadFault::Wait) => Ok(None),
            Err(ReadFault::Io(error)) => Err(WalError::io("read", &segment.name)(error)),
            // Its file may have become another segment's while it was read.
            Err(ReadFault::Record(_)) if self.segments.holding(lsn).is_none() => {
                Err(WalError::Trimmed { lsn })
            }
            Err(ReadFault::Record(fault)) => Err(WalError::Corrupt(segment.damage(lsn, appended, fault))),
        }
    }

    /// Writes and syncs all that waits, notes durably that the log was closed whole, and ends the thread.
    /// Later calls find it closed.
    ///
    /// # Errors
    /// Why something that waited is not durable: [`WalError::Poisoned`], [`WalError::DiskFull`],
    /// [`WalError::Io`]; [`WalError::Closed`] the second time.
    pub fn close(&self) -> Result<(), WalError> {
        let mut state = self.shared.lock();
        if std::mem::replace(&mut state.closed, true) {
            return Err(WalError::Closed);
        }
        state.orders.close = true;
        state.orders.poke = true;
        self.shared.wake(state);
        match &self.engine {
            Engine::Inline(core) => run_inline(&self.shared, core).unwrap_or(Ok(())),
            Engine::Thread(thread) => join(thread).unwrap_or(Ok(())),
        }
    }

    /// Lets the log thread, or this one, do what was asked for.
    fn go(&self, state: MutexGuard<'_, State>) {
        self.shared.wake(state);
        if let Engine::Inline(core) = &self.engine {
            run_inline(&self.shared, core);
        }
    }
}

impl Drop for Writer {
    /// Ends the thread without writing what waits, as if the process had ended.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.orders.abandon = true;
        self.shared.wake(state);
        if let Engine::Thread(thread) = &self.engine {
            let _ = join(thread);
        }
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the log thread if it sleeps.
    fn wake(&self, mut state: MutexGuard<'_, State>) {
        if std::mem::take(&mut state.sleeping) {
            drop(state);
            self.wake.notify_one();
        }
    }

    /// What was asked for since the last time; sleeps until there is something.
    fn wait_for_orders(&self) -> Orders {
        let mut state = self.lock();
        while !state.has_work() {
            state.sleeping = true;
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.sleeping = false;
        state.take_orders()
    }

    /// Makes a turn's outcome known.
    fn publish(&self, outcome: &Outcome) {
        let mut state = self.lock();
        state.apply(outcome);
        let progress = state.progress.clone();
        drop(state);
        (self.on_progress)(&progress);
    }
}

impl State {
    /// Whether anything will still be done.
    fn is_able(&self) -> bool {
        !self.closed && self.progress.poisoned.is_none()
    }

    fn has_work(&self) -> bool {
        let orders = &self.orders;
        orders.poke || orders.abandon || (!orders.queue.is_empty() && !self.progress.disk_full)
    }

    fn take_orders(&mut self) -> Orders {
        let again = Orders {
            sync_upto: self.orders.sync_upto,
            trim_upto: self.orders.trim_upto,
            abandon: self.orders.abandon,
            ..Orders::default()
        };
        std::mem::replace(&mut self.orders, again)
    }

    fn apply(&mut self, outcome: &Outcome) {
        self.pending_bytes -= outcome.written_bytes;
        self.reserved_bytes -= outcome.retired_bytes;
        let progress = &mut self.progress;
        progress.disk_full = outcome.disk_full;
        progress.trimmed = progress.trimmed.max(outcome.trimmed);
        if let Some(cause) = &outcome.failed {
            progress.poisoned.get_or_insert_with(|| Arc::clone(cause));
            self.orders.queue.clear();
        }
        assert!(progress.appended <= outcome.appended && progress.synced <= outcome.synced, "no way back");
        progress.appended = outcome.appended;
        progress.synced = outcome.synced;
        progress.next = progress.next.max(progress.appended);
        assert!(progress.synced <= progress.appended && progress.appended <= progress.next);
    }
}

/// Runs turns until nothing is left to do. `Some` once the log is closed.
fn run_inline(shared: &Shared, core: &Mutex<Core>) -> Option<Result<(), WalError>> {
    loop {
        let mut core = core.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = shared.lock();
        if !state.has_work() && !core.has_more() {
            return None;
        }
        let orders = state.take_orders();
        drop(state);
        core.obey(orders);
        let outcome = core.turn();
        core.prepare();
        let closed = core.has_ended().then(|| core.end());
        drop(core);
        if let Some(outcome) = outcome {
            shared.publish(&outcome);
        }
        if closed.is_some() {
            return closed;
        }
    }
}

fn start_thread(shared: Arc<Shared>, core: Core) -> JoinHandle<Result<(), WalError>> {
    std::thread::Builder::new()
        .name("wal".to_owned())
        .spawn(move || {
            let _guard = PanicGuard(Arc::clone(&shared));
            run_thread(&shared, core)
        })
        .unwrap_or_else(|error| panic!("cannot start the log thread: {error}"))
}

fn run_thread(shared: &Shared, mut core: Core) -> Result<(), WalError> {
    loop {
        let orders = if core.has_more() { shared.lock().take_orders() } else { shared.wait_for_orders() };
        core.obey(orders);
        if let Some(outcome) = core.turn() {
            shared.publish(&outcome);
        }
        if core.has_ended() {
            return core.end();
        }
        core.prepare();
    }
}

fn join(thread: &Mutex<Option<JoinHandle<Result<(), WalError>>>>) -> Option<Result<(), WalError>> {
    let handle = thread.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    if handle.thread().id() == std::thread::current().id() {
        // The last owner let go within `on_progress`: the thread ends by itself.
        return None;
    }
    Some(handle.join().unwrap_or(Err(WalError::Panicked)))
}

/// Poisons the log if its thread ends by a panic, so that nobody waits for it.
struct PanicGuard(Arc<Shared>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = self.0.lock();
            state.progress.poisoned.get_or_insert_with(|| Arc::new(WalError::Panicked));
            state.orders.queue.clear();
            let progress = state.progress.clone();
            drop(state);
            // It may be what panicked; to panic again would abort the process.
            let tell = AssertUnwindSafe(|| (self.0.on_progress)(&progress));
            let _ = std::panic::catch_unwind(tell);
        }
    }
}
