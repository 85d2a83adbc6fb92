//! A segmented write-ahead log over an injected disk. It knows bytes and LSNs, and nothing of what they mean.
//!
//! ```text
//! threads ── append ──> queue ──> log thread: seal, write, sync ──> segment files ──> Records, Writer::read
//!                                     └── on_progress: appended, synced, trimmed
//! ```
//!
//! # Overview
//!
//! An [`Lsn`] is a byte position in an endless log. A segment is a file named by its first LSN in hexadecimal
//! that covers a range of them;
//! it begins with a header, then come records, none of which straddles segments. [`Log::open`] scans what is
//! there ([`Scan`]), judges it,
//! and begins a new segment; [`Writer`] appends, groups commits, retires segments that were trimmed, and
//! reads single records back. What is
//! written is sealed by the caller's [`Seal`] first. Byte layouts: `docs/format.md`; disks: [`disk`].
//!
//! # Invariants
//!
//! - `trimmed <= next`, `synced <= appended <= next` in every [`Progress`]; none ever decreases.
//! - A segment's header is written only after every record before it is durable. So for segments k < k+1:
//!   `end(k) = previous_end(k+1) <= durable`, and only the last segment can have a torn end.
//! - `durable <= lsn` in every record: what a record claims was synced before it was written.
//! - A record verifies only at its own LSN and below its own segment's header, whose checksum (and so whose
//!   tag) its checksum begins with.
//! - What is found is a prefix of what was appended, at least up to what was `synced`, and begins no later
//!   than what was `trimmed`.
//! - An LSN at which something was written is never given out again.
//! - All files of the log together have at most `log_bytes_max` bytes, plus one segment at each open.
//! - Queue and batch are bounded ([`QUEUE_BYTES_MAX`], [`BATCH_BYTES_MAX`]); replay holds one record in
//!   memory.
//!
//! # Crash consistency
//!
//! What beginning and retiring a segment leave behind at each step is argued in `log.rs`, opening in
//! `open.rs`, torn or corrupt in
//! `verdict.rs`, each beside its code. In short: a header is durable before its name is; a name is gone,
//! durably, before
//! its file is used again; the header of a new segment is what cuts off a torn end, in one step.
//!
//! # Errors and retries
//!
//! [`WalError::kind`] says what to do. A failed write or sync poisons the log for ever. A full log, a full
//! queue and a full disk are
//! [`AppendError::Full`]: wait for `on_progress`, try again; nothing is lost. The order that cannot miss a
//! wake-up: note that you wait, try once more, then wait.
//!
//! # Not handled
//!
//! - Damage to the last records before a crash, if nothing written later vouches for them, cannot be told
//!   from a torn end; it is cut
//!   off and reported as [`Torn`]. After [`Writer::close`] a mark vouches for all.
//! - Likewise a last segment whose file is gone, and a whole older copy of the folder put back:
//!   `start_at_least` is how one who knows says so.
//! - A disk whose syncs lie: found wherever something later survived, else the log is a shorter prefix.
//! - Two processes on one folder: take [`disk::Folder::lock`].
//! - Forgery: checksums are no seals. Payloads are sealed by the caller, who finds out.

mod core;
pub mod disk;
mod error;
mod format;
mod log;
mod lsn;
mod open;
mod place;
mod reader;
mod record;
mod scan;
mod segment;
mod verdict;
mod writer;

pub use error::{AppendError, Corruption, Damage, ErrorKind, WalError};
pub use format::{HeaderFault, RecordFault};
pub use log::{Log, Options};
pub use lsn::Lsn;
pub use reader::Records;
pub use record::{PlainSeal, Record, Seal};
pub use scan::{Scan, Torn, records, scan, scan_above, start};
pub use writer::{Appended, BATCH_BYTES_MAX, Mode, OnProgress, Progress, QUEUE_BYTES_MAX, Writer};
