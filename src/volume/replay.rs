//! What the log of this host holds above a manifest: counted, or laid onto a layer.

use std::sync::Arc;

use wal::Lsn;

use super::{
    bucket::Bucket,
    env::Local,
    error::VolumeError,
    layer::{Content, Layer, Piece},
    log::Opener,
    payload::PayloadMemory,
    record::{self, LogRecord},
};
use crate::format::{ids::LogId, manifest::Manifest};

/// Writes and zeroes found in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Their number.
    pub records: u64,
    /// Bytes that they write or zero.
    pub bytes: u64,
    /// When the first and the last were written, milliseconds since 1970.
    pub times_ms: Option<(u64, u64)>,
    /// What was cut off at the log's end, which nobody was promised: bytes, and why.
    pub torn: Option<(u64, String)>,
}

impl Replayed {
    fn add(&mut self, bytes: u64, time_ms: u64) {
        self.records += 1;
        self.bytes += bytes;
        let first = self.times_ms.map_or(time_ms, |times| times.0);
        self.times_ms = Some((first, time_ms));
    }

    /// Notes what a scan found torn.
    pub(super) fn note_torn(&mut self, scan: &wal::Scan) {
        self.torn = scan.torn.map(|torn| (torn.bytes_discarded, torn.why.to_string()));
    }
}

/// What the log holds above `from`, or above what its own records call published.
pub(super) fn count_above(
    bucket: &Bucket,
    local: &Local,
    log: LogId,
    from: Option<Lsn>,
    size_bytes: u64,
) -> Result<Replayed, VolumeError> {
    let scan = wal::scan(&*local.wal)?;
    let opener = Opener::new(Arc::clone(&bucket.keys), log);
    let mut published = from.unwrap_or(Lsn(0));
    let mut above: Vec<(Lsn, u64, u64)> = Vec::new();
    for found in scan.records(published) {
        let found = found.map_err(VolumeError::local("write-ahead log"))?;
        let lsn = found.lsn;
        match record::decode(lsn, found.kind, opener.open(&found)?, size_bytes)? {
            LogRecord::Write { data, time_ms, .. } => above.push((lsn, data.len() as u64, time_ms)),
            LogRecord::Zero { length, time_ms, .. } => above.push((lsn, length, time_ms)),
            LogRecord::Published { lsn, .. } => published = published.max(lsn),
            LogRecord::Closed => {}
        }
    }
    let mut counted = Replayed::default();
    above.iter().filter(|(lsn, ..)| *lsn >= published).for_each(|(_, bytes, time)| counted.add(*bytes, *time));
    Ok(counted)
}

/// Lays the log's records onto a layer.
pub(super) struct Replay<'a> {
    opener: Opener,
    payloads: &'a PayloadMemory,
    size_bytes: u64,
    pub(super) layer: Layer,
    pub(super) found: Replayed,
    /// End of the last record in the layer: what the log notes after it is never published itself, so nobody may wait
    /// for that.
    pub(super) end: Lsn,
}

impl<'a> Replay<'a> {
    pub(super) fn new(
        bucket: &Bucket,
        log: LogId,
        payloads: &'a PayloadMemory,
        newest: &Manifest,
        start: Lsn,
    ) -> Self {
        let opener = Opener::new(Arc::clone(&bucket.keys), log);
        let (layer, found) = (Layer::default(), Replayed::default());
        Self { opener, payloads, size_bytes: newest.size_bytes, layer, found, end: start }
    }

    pub(super) fn run(&mut self, records: wal::Records) -> Result<(), VolumeError> {
        for found in records {
            let found = found.map_err(VolumeError::local("write-ahead log"))?;
            let plain = self.opener.open(&found)?;
            match record::decode(found.lsn, found.kind, plain, self.size_bytes)? {
                LogRecord::Write { offset, time_ms, data } => {
                    self.end = found.end;
                    let end = offset + data.len() as u64;
                    let payload = self.payloads.payload(found.lsn, found.end, Some(data));
                    self.payloads.trim(found.end);
                    self.lay(Piece { start: offset, end, content: Content::Data(payload, 0) }, time_ms);
                }
                LogRecord::Zero { offset, time_ms, length } => {
                    self.end = found.end;
                    self.lay(Piece { start: offset, end: offset + length, content: Content::Zero }, time_ms);
                }
                LogRecord::Published { .. } | LogRecord::Closed => {}
            }
        }
        Ok(())
    }

    fn lay(&mut self, piece: Piece, time_ms: u64) {
        self.found.add(piece.end - piece.start, time_ms);
        self.layer.insert(piece);
    }
}
