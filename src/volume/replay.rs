//! What the log of this host holds above a manifest: counted, or laid onto a layer.

use std::{fmt, ops::Range, sync::Arc};

use wal::Lsn;

use super::{
    bucket::Bucket,
    env::Local,
    error::{Kind, VolumeError},
    layer::{Content, Layer, Piece},
    log::Opener,
    payload::PayloadMemory,
    record::{self, LogRecord},
    resize::{SIZE_BYTES_MAX, check_size, zeros_between},
    tally::Tally,
};
use crate::format::{ids::LogId, index::Run, manifest::Manifest};

/// Writes, zeroes and changes of the size found in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// What they do, counted.
    pub tally: Tally,
    /// When the first and the last were written, milliseconds since 1970.
    pub times_ms: Option<(u64, u64)>,
    /// The size that the last of them gave the volume, bytes; none where they left it as it was.
    pub size_bytes: Option<u64>,
    /// What was cut off at the log's end, which nobody was promised: bytes, and why.
    pub torn: Option<(u64, String)>,
    /// Why what else is there cannot be counted.
    pub uncounted: Option<String>,
}

impl Replayed {
    pub(super) fn add(&mut self, one: Tally, time_ms: u64) {
        self.tally += one;
        let first = self.times_ms.map_or(time_ms, |times| times.0);
        self.times_ms = Some((first, time_ms));
    }

    /// Notes what a scan found torn.
    pub(super) fn note_torn(&mut self, scan: &wal::Scan) {
        self.torn = scan.torn.map(|torn| (torn.bytes_discarded, torn.why.to_string()));
    }
}

/// What is wrong with a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFault {
    /// What was promised durable is not there.
    Corrupt(wal::Corruption),
    /// A record is whole, and is not one of this log: its seal does not open, or it makes no sense.
    Unusable {
        /// Its LSN.
        lsn: Lsn,
        /// Its kind.
        kind: u8,
        /// What is wrong.
        detail: &'static str,
    },
}

impl fmt::Display for LogFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt(corruption) => corruption.fmt(f),
            Self::Unusable { lsn, kind, detail } => {
                write!(
                    f,
                    "log damaged at {lsn}: the record of kind {kind} there is no record of this log: {detail}"
                )
            }
        }
    }
}

/// A log that is damaged, and what can be known of it.
#[derive(Clone, Debug)]
pub struct LogDamage {
    /// Where first, and what.
    pub fault: LogFault,
    /// What is whole before the damage, and joins on to the manifest.
    pub before: Replayed,
    /// Whether the log can be cut before the damage: not where it begins above the manifest's end, nor where segments
    /// overlap.
    pub joins: bool,
    /// What can be read beyond the damage, and is no use without what is between.
    pub beyond: Replayed,
    /// Blocks that those records touch, ascending.
    pub blocks: Vec<Run>,
}

/// Ranges of blocks named in an error.
const RANGES_MAX: usize = 8;

impl fmt::Display for LogDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, before, joins, beyond, blocks } = self;
        write!(f, "{fault}; ")?;
        if *joins {
            write!(f, "whole before the damage: {}", before.tally)?;
        } else if self.is_trimmed() {
            write!(f, "the log begins later than this epoch ends: what is between went into later epochs")?;
        } else {
            write!(f, "nothing in it is sure to join on to the epoch below it")?;
        }
        if beyond.tally.records() > 0 {
            write!(f, "; readable beyond it: {}", beyond.tally)?;
            for (number, run) in blocks.iter().take(RANGES_MAX).enumerate() {
                let comma = if number > 0 { ", " } else { ", of blocks " };
                write!(f, "{comma}{} to {}", run.block, run.block + (run.count - 1))?;
            }
            if blocks.len() > RANGES_MAX {
                write!(f, " and {} more ranges", blocks.len() - RANGES_MAX)?;
            }
        }
        write!(f, "; which blocks the lost ones wrote cannot be known")
    }
}

impl LogDamage {
    /// The way on for a log that belongs to the newest manifest.
    #[must_use]
    pub fn way_on(&self) -> &'static str {
        match self.joins {
            true => "s3bd recover goes on with what is before the damage, and gives up the rest",
            false => "s3bd recover --discard gives the log up",
        }
    }

    /// Whether what is missing is only what comes before the log.
    fn is_trimmed(&self) -> bool {
        matches!(&self.fault, LogFault::Corrupt(corruption) if corruption.what == wal::Damage::Missing && !self.joins)
    }

    /// The first record that is whole and cannot be used, where that is what is wrong.
    pub(super) fn unusable(&self) -> Option<Lsn> {
        match self.fault {
            LogFault::Unusable { lsn, .. } => Some(lsn),
            LogFault::Corrupt(_) => None,
        }
    }
}

/// Where the log goes on from a manifest: where its cut ends, or, where the log was trimmed above that, where an opening on
/// that manifest noted that it found nothing in between.
///
/// # Errors
/// What the disk of the log refuses.
pub(super) fn goes_on_at(
    bucket: &Bucket,
    local: &Local,
    log: LogId,
    manifest: &Manifest,
) -> Result<Lsn, VolumeError> {
    let floor = Lsn(manifest.log.lsn);
    let start = wal::start(&*local.wal)?;
    if start <= floor {
        return Ok(floor);
    }
    let Some(first) = wal::scan_above(&*local.wal, start)?.records(start).next() else { return Ok(floor) };
    let first = first.map_err(VolumeError::local("write-ahead log"))?;
    let opened = Opener::new(Arc::clone(&bucket.keys), log).open(&first);
    let base =
        LogRecord::Published { generation: manifest.generation, epoch: manifest.epoch, lsn: first.lsn };
    // What cannot be read notes nothing; whoever replays the log comes upon it.
    let noted = opened.and_then(|plain| record::decode(first.lsn, first.kind, plain, SIZE_BYTES_MAX));
    Ok(if noted.is_ok_and(|noted| noted == base) { first.lsn } else { floor })
}

/// Whether every record from `floor` on is in the log. A log that was trimmed above the newest manifest has a hole there:
/// the bucket is older than the log.
pub(super) fn reaches_back(scan: &wal::Scan, floor: Lsn) -> bool {
    scan.start <= floor
}

/// What is wrong with the log above the manifest's end; `None` where it can be replayed.
pub(super) fn find_damage(
    bucket: &Bucket,
    local: &Local,
    log: LogId,
    newest: &Manifest,
) -> Result<Option<LogDamage>, VolumeError> {
    let floor = goes_on_at(bucket, local, log, newest)?;
    let scan = wal::scan_above(&*local.wal, floor)?;
    let corruption = scan.lost_above(floor);
    // Which of two segments that overlap is the log's cannot be known: nothing is cut there.
    let overlap = corruption.as_ref().is_some_and(|corruption| corruption.what == wal::Damage::Overlap);
    let joins = reaches_back(&scan, floor) && !overlap;
    let opener = Opener::new(Arc::clone(&bucket.keys), log);
    let read = |record: &wal::Record| {
        let plain = opener.open(record)?;
        // How large the volume was at each of them is not known beyond the damage, and counting needs no bound.
        record::decode(record.lsn, record.kind, plain, SIZE_BYTES_MAX).map(touched)
    };
    let (mut before, mut beyond, mut blocks) = (Replayed::default(), Replayed::default(), Vec::new());
    let block_bytes = u64::from(bucket.block_bytes());
    let mut add_beyond = |Touched { range, tally, time_ms }: Touched| {
        beyond.add(tally, time_ms);
        if range.is_empty() {
            return;
        }
        let first = range.start / block_bytes;
        blocks.push(Run { block: first, count: range.end.div_ceil(block_bytes) - first });
    };
    let mut unusable = None;
    for record in scan.records(floor) {
        match read(&record.map_err(VolumeError::local("write-ahead log"))?) {
            Ok(Some(touched)) if joins && unusable.is_none() => before.add(touched.tally, touched.time_ms),
            Ok(Some(touched)) => add_beyond(touched),
            Ok(None) => {}
            Err(VolumeError::LogRecord { lsn, kind, detail }) if joins => {
                unusable.get_or_insert(LogFault::Unusable { lsn, kind, detail });
            }
            Err(_) => {}
        }
    }
    // What is read as the log's is before what ended it.
    let Some(fault) = unusable.or_else(|| corruption.map(LogFault::Corrupt)) else { return Ok(None) };
    if joins {
        let readable = scan.beyond()?.map_while(Result::ok).filter_map(|record| read(&record).ok().flatten());
        readable.for_each(&mut add_beyond);
    }
    Ok(Some(LogDamage { fault, before, joins, beyond, blocks: Run::join(blocks) }))
}

/// What a record changes.
struct Touched {
    /// What it writes or zeros, bytes.
    range: Range<u64>,
    tally: Tally,
    /// When it was written.
    time_ms: u64,
}

fn touched(record: LogRecord) -> Option<Touched> {
    match record {
        LogRecord::Write { offset, time_ms, data } => {
            let bytes = data.len() as u64;
            Some(Touched { range: offset..offset + bytes, tally: Tally::write(bytes), time_ms })
        }
        LogRecord::Zero { offset, time_ms, length } => {
            Some(Touched { range: offset..offset + length, tally: Tally::ZERO, time_ms })
        }
        LogRecord::Resize { time_ms, .. } => Some(Touched { range: 0..0, tally: Tally::RESIZE, time_ms }),
        LogRecord::Published { .. } | LogRecord::Closed => None,
    }
}

/// What the log holds above `from`; where that is not known, above what its own records call published. Of another line
/// than the newest manifest's, the volume may have had another size in it.
///
/// # Errors
/// `LogUncounted` where it is damaged there: behind the damage may be what only this log has.
pub(super) fn count_above(
    bucket: &Bucket,
    local: &Local,
    log: LogId,
    from: Option<Lsn>,
) -> Result<Replayed, VolumeError> {
    let uncounted = |error: VolumeError| match error.kind() {
        Kind::Corrupt => VolumeError::LogUncounted { detail: error.to_string() },
        _ => error,
    };
    let scan = match from {
        Some(from) => wal::scan_above(&*local.wal, from)?,
        None => wal::scan(&*local.wal)?,
    };
    if let Some(damage) = scan.damage.as_ref().filter(|damage| damage.lost) {
        return Err(uncounted(wal::WalError::Corrupt(damage.clone()).into()));
    }
    count(bucket, &scan, log, from).map_err(uncounted)
}

fn count(bucket: &Bucket, scan: &wal::Scan, log: LogId, from: Option<Lsn>) -> Result<Replayed, VolumeError> {
    let opener = Opener::new(Arc::clone(&bucket.keys), log);
    let mut published = from.unwrap_or(Lsn(0));
    let mut above: Vec<(Lsn, Tally, u64, Option<u64>)> = Vec::new();
    for found in scan.records(published) {
        let found = found.map_err(VolumeError::local("write-ahead log"))?;
        let lsn = found.lsn;
        match record::decode(lsn, found.kind, opener.open(&found)?, SIZE_BYTES_MAX)? {
            LogRecord::Write { data, time_ms, .. } => {
                above.push((lsn, Tally::write(data.len() as u64), time_ms, None));
            }
            LogRecord::Zero { time_ms, .. } => above.push((lsn, Tally::ZERO, time_ms, None)),
            LogRecord::Resize { size_bytes, time_ms } => {
                above.push((lsn, Tally::RESIZE, time_ms, Some(size_bytes)));
            }
            // Where the line itself says it, that counts: the log may have published into a line that is no more. So the last
            // one does, and not the highest: it may have gone on from an older epoch.
            LogRecord::Published { lsn, .. } if from.is_none() => published = lsn,
            LogRecord::Published { .. } | LogRecord::Closed => {}
        }
    }
    let mut counted = Replayed::default();
    for (_, one, time_ms, size_bytes) in above.into_iter().filter(|(lsn, ..)| *lsn >= published) {
        counted.add(one, time_ms);
        counted.size_bytes = size_bytes.or(counted.size_bytes);
    }
    Ok(counted)
}

/// Lays the log's records onto a layer.
pub(super) struct Replay<'a> {
    opener: Opener,
    payloads: &'a PayloadMemory,
    block_bytes: u32,
    /// The volume's size after the last record.
    pub(super) size_bytes: u64,
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
        let (block_bytes, size_bytes) = (bucket.block_bytes(), newest.size_bytes);
        Self { opener, payloads, block_bytes, size_bytes, layer, found, end: start }
    }

    pub(super) fn run(&mut self, records: wal::Records) -> Result<(), VolumeError> {
        for found in records {
            let found = found.map_err(VolumeError::local("write-ahead log"))?;
            let plain = self.opener.open(&found)?;
            match record::decode(found.lsn, found.kind, plain, self.size_bytes)? {
                LogRecord::Write { offset, time_ms, data } => {
                    self.end = found.end;
                    let bytes = data.len() as u64;
                    self.found.add(Tally::write(bytes), time_ms);
                    let payload = self.payloads.payload(found.lsn, found.end, Some(data));
                    self.payloads.trim(found.end);
                    let content = Content::Data(payload, 0);
                    self.layer.insert(Piece { start: offset, end: offset + bytes, content });
                }
                LogRecord::Zero { offset, time_ms, length } => {
                    self.end = found.end;
                    self.found.add(Tally::ZERO, time_ms);
                    let content = Content::Zero;
                    self.layer.insert(Piece { start: offset, end: offset + length, content });
                }
                LogRecord::Resize { size_bytes, time_ms } => {
                    let detail = "a size that is no multiple of the block";
                    check_size(size_bytes, self.block_bytes).map_err(|_| VolumeError::LogRecord {
                        lsn: found.lsn,
                        kind: found.kind,
                        detail,
                    })?;
                    self.end = found.end;
                    self.found.add(Tally::RESIZE, time_ms);
                    self.found.size_bytes = Some(size_bytes);
                    self.layer.insert(zeros_between(self.size_bytes, size_bytes));
                    self.size_bytes = size_bytes;
                }
                LogRecord::Published { .. } | LogRecord::Closed => {}
            }
        }
        Ok(())
    }
}
