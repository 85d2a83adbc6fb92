//! The log of the examples: a folder with the second tenure's segment, written by the product's own log.

use std::sync::Arc;

use bytes::Bytes;
use s3bd::{
    format::ids::{Epoch, Generation, LogId},
    seal::keys::Keys,
    volume::{
        log::{Log, Opener},
        payload::PayloadMemory,
        record::{self, LogRecord},
        settings::Settings,
    },
};
use wal::{
    Lsn, Scan,
    disk::{Disk, sim::SimDisk},
};

use crate::world::{EPOCH, GENERATION, LOG, MASTER, TIME_MS, VOLUME, counting};

pub const SEGMENT_BYTES: u64 = 4096;
pub const SEGMENT_NAME: &str = "0000000000001000.wal";
pub const TAG: [u8; 32] = counting(0x60);
pub const MARK_OFFSET: usize = 512;
pub const DATA_OFFSET: usize = 1024;
/// Everything below is in a published cut when the second tenure begins.
const TRIMMED: Lsn = Lsn(0x400);

/// The keys of the volume.
pub fn keys() -> Arc<Keys> {
    Arc::new(Keys::new(VOLUME, &s3bd::seal::aead::Key::new(MASTER)))
}

fn start(disk: &SimDisk, tag: [u8; 32], floor: Lsn) -> Log {
    let options = wal::Options { segment_bytes: SEGMENT_BYTES, log_bytes_max: 4 * SEGMENT_BYTES, tag };
    let (log, _) = wal::Log::open(Arc::new(disk.clone()), options, Some(floor)).unwrap();
    let settings = Settings { log_mode: wal::Mode::Inline, ..Settings::default() };
    Log::start(log, (LOG, &tag), keys(), Arc::new(PayloadMemory::new(0)), &settings)
}

/// The records of the segment.
pub fn records() -> Vec<LogRecord> {
    vec![
        LogRecord::Write { offset: 1536, time_ms: TIME_MS, data: Bytes::from_static(b"a sector, cut short") },
        LogRecord::Zero { offset: 8192, time_ms: TIME_MS, length: 2048 },
        LogRecord::Resize { size_bytes: 2 << 20, time_ms: TIME_MS },
        LogRecord::Published { generation: GENERATION, epoch: EPOCH, lsn: Lsn(0x14f0) },
        LogRecord::Closed,
    ]
}

/// Kind, head and data of a record.
pub fn parts(record: &LogRecord) -> (u8, Vec<u8>, Bytes) {
    match record {
        LogRecord::Write { offset, time_ms, data } => {
            let (kind, head) = record::write_head(*offset, *time_ms);
            (kind, head.to_vec(), data.clone())
        }
        LogRecord::Zero { offset, time_ms, length } => {
            let (kind, head) = record::zero_head(*offset, *length, *time_ms);
            (kind, head.to_vec(), Bytes::new())
        }
        LogRecord::Resize { size_bytes, time_ms } => {
            let (kind, head) = record::resize_head(*size_bytes, *time_ms);
            (kind, head.to_vec(), Bytes::new())
        }
        LogRecord::Published { generation, epoch, lsn } => {
            let (kind, head) = record::published_head(*generation, *epoch, *lsn);
            (kind, head.to_vec(), Bytes::new())
        }
        LogRecord::Closed => (record::closed_head().0, Vec::new(), Bytes::new()),
    }
}

/// The segment as the product's log writes it.
pub fn segment() -> Vec<u8> {
    let disk = SimDisk::new();
    let first = start(&disk, counting(0x50), Lsn::ZERO);
    let (kind, head) = record::published_head(Generation(6), Epoch(40), Lsn(0));
    first.append(kind, &head, Bytes::new()).unwrap();
    first.close().unwrap();
    drop(first);
    let second = start(&disk, TAG, TRIMMED);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for (at, record) in records().iter().enumerate() {
        let (kind, head, data) = parts(record);
        let appended = second.append(kind, &head, data).unwrap();
        if at == 1 {
            runtime.block_on(second.sync(appended.end)).unwrap();
        }
    }
    second.close().unwrap();
    read(&disk)
}

fn read(disk: &SimDisk) -> Vec<u8> {
    let mut bytes = vec![0; SEGMENT_BYTES as usize];
    disk.open(SEGMENT_NAME).unwrap().read_at(&mut bytes, 0).unwrap();
    bytes
}

/// What a scan finds in a folder with this segment alone.
pub fn scan(segment: &[u8]) -> Scan {
    let disk = SimDisk::new();
    disk.create(SEGMENT_NAME, SEGMENT_BYTES).unwrap().write_at(segment, 0).unwrap();
    wal::scan(&disk).unwrap()
}

/// The records of the segment, opened, with where each begins and ends.
pub fn open(segment: &[u8]) -> Result<Vec<(Lsn, Lsn, LogRecord)>, String> {
    open_as(LOG, segment)
}

/// The same as in a folder that holds the log `id`.
pub fn open_as(id: LogId, segment: &[u8]) -> Result<Vec<(Lsn, Lsn, LogRecord)>, String> {
    let scan = scan(segment);
    if let Some(damage) = &scan.damage {
        return Err(damage.to_string());
    }
    let opener = Opener::new(keys(), id);
    let open = |found: std::io::Result<wal::Record>| {
        let found = found.map_err(|error| error.to_string())?;
        assert_eq!(found.tag, TAG);
        let plain = opener.open(&found).map_err(|error| error.to_string())?;
        let record =
            record::decode(found.lsn, found.kind, plain, 1 << 20).map_err(|error| error.to_string())?;
        Ok((found.lsn, found.end, record))
    };
    scan.records(Lsn::ZERO).map(open).collect()
}

/// Where each record is in the segment.
pub fn places(segment: &[u8]) -> Vec<std::ops::Range<usize>> {
    let opened = open(segment).unwrap();
    opened.iter().map(|(lsn, end, _)| lsn.0 as usize - 0x1000..end.0 as usize - 0x1000).collect()
}
