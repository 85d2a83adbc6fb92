//! A segmented write-ahead log over an injected disk.

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
pub use scan::{Scan, Torn, records, scan, scan_above};
pub use writer::{Appended, BATCH_BYTES_MAX, Mode, OnProgress, Progress, QUEUE_BYTES_MAX, Writer};
