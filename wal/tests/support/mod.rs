//! What the tests of the whole crate share: opening, appending, and a model of what must be there.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::sync::Arc;

use bytes::Bytes;
use wal::{
    AppendError, Appended, Log, Lsn, Mode, Options, PlainSeal, Record, Scan, WalError, Writer,
    disk::{Disk, sim::SimDisk},
};

/// Small, so that a few records fill one.
pub(crate) const SEGMENT_BYTES: u64 = 4096;

pub(crate) fn options(tag: u8) -> Options {
    Options { segment_bytes: SEGMENT_BYTES, log_bytes_max: 8 * SEGMENT_BYTES, tag: [tag; 32] }
}

/// Above `floor`; 0 stands for what the log itself calls trimmed.
pub(crate) fn open_log(disk: &SimDisk, tag: u8, floor: Lsn) -> Result<(Log, Scan), WalError> {
    Log::open(Arc::new(disk.clone()), options(tag), Some(floor).filter(|floor| floor.0 > 0))
}

pub(crate) fn inline(log: Log) -> Writer {
    Writer::start(log, Box::new(PlainSeal), Box::new(|_| {}), Mode::Inline)
}

pub(crate) fn open(disk: &SimDisk, tag: u8, floor: Lsn) -> Result<Writer, WalError> {
    Ok(inline(open_log(disk, tag, floor)?.0))
}

/// Bytes that differ from record to record.
pub(crate) fn payload(number: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| (number.wrapping_mul(167) ^ at.wrapping_mul(31) ^ (at >> 8)) as u8).collect()
}

pub(crate) fn put(writer: &Writer, number: u64, bytes: usize) -> Appended {
    let payload = payload(number, bytes);
    let (head, body) = payload.split_at(bytes / 3);
    writer.append(number as u8, head, Bytes::copy_from_slice(body)).unwrap()
}

pub(crate) fn read_all(scan: &Scan, from: Lsn) -> Vec<Record> {
    scan.records(from).map(|record| record.unwrap()).collect()
}

/// Names of the segment files, oldest first.
pub(crate) fn segments(disk: &SimDisk) -> Vec<String> {
    disk.list().unwrap().into_iter().filter(|name| name.ends_with(".wal")).collect()
}

/// The name of the segment file that holds this LSN.
pub(crate) fn segment_of(disk: &SimDisk, lsn: Lsn) -> (String, u64) {
    let mut firsts = segments(disk).into_iter().filter_map(|name| {
        let first = u64::from_str_radix(name.strip_suffix(".wal")?, 16).ok()?;
        Some((name, first))
    });
    let (name, first) = firsts.rfind(|(_, first)| *first <= lsn.0).unwrap();
    (name, lsn.0 - first)
}

/// What was appended, and how much of it must be there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) records: Vec<Known>,
    pub(crate) synced: Lsn,
    pub(crate) trimmed: Lsn,
    pub(crate) numbers: u64,
    /// End of the last record that was given a place: none below may be given out.
    pub(crate) used: Lsn,
    /// How far the log was written: after a crash, none below that.
    pub(crate) written: Lsn,
}

#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) lsn: Lsn,
    pub(crate) end: Lsn,
    pub(crate) kind: u8,
    pub(crate) payload: Vec<u8>,
}

impl Model {
    /// Appends, and expects what was taken.
    pub(crate) fn append(&mut self, writer: &Writer, bytes: usize) -> Result<(), AppendError> {
        self.numbers += 1;
        let payload = payload(self.numbers, bytes);
        let kind = self.numbers as u8;
        let (head, body) = payload.split_at(bytes / 3);
        let Appended { lsn, end } = writer.append(kind, head, Bytes::copy_from_slice(body))?;
        assert!(lsn >= self.used, "{lsn} given out again: {} was used", self.used);
        self.used = end;
        self.records.push(Known { lsn, end, kind, payload });
        Ok(())
    }

    pub(crate) fn sync(&mut self, writer: &Writer) {
        writer.request_sync(self.used);
        self.note(writer);
    }

    /// Trims `below` of the records that are synced: as many hundredths of them.
    pub(crate) fn trim(&mut self, writer: &Writer, hundredths: usize) {
        let synced: Vec<Lsn> =
            self.records.iter().map(|known| known.end).filter(|end| *end <= self.synced).collect();
        if let Some(end) = (synced.len() * hundredths / 100).checked_sub(1).map(|last| synced[last]) {
            writer.trim(end);
            self.trimmed = self.trimmed.max(end);
        }
    }

    pub(crate) fn note(&mut self, writer: &Writer) {
        let progress = writer.progress();
        assert!(progress.synced <= progress.appended && progress.appended <= progress.next);
        self.synced = self.synced.max(progress.synced);
        self.written = self.written.max(progress.appended);
    }

    /// Compares what was found after a crash: a prefix of what was appended, at least what was synced. Then
    /// expects just that.
    pub(crate) fn check(&mut self, scan: &Scan, found: &[Record]) {
        let expected: Vec<&Known> = self.records.iter().filter(|known| known.lsn >= self.trimmed).collect();
        assert!(found.len() <= expected.len(), "more found than appended");
        for (record, known) in found.iter().zip(&expected) {
            assert_eq!((record.lsn, record.end, record.kind), (known.lsn, known.end, known.kind));
            assert_eq!(record.payload, known.payload);
        }
        if let Some(lost) = expected.get(found.len()) {
            assert!(
                lost.end > self.synced,
                "{} was synced ({}) and is lost: {scan:?}",
                lost.lsn,
                self.synced
            );
        }
        let end = found.last().map_or(self.trimmed, |record| record.end);
        self.records.retain(|known| known.end <= end);
        self.synced = end;
        self.used = self.used.min(self.written);
    }

    /// Opens the log after a crash and checks it; the tag differs from any before.
    pub(crate) fn reopen(&mut self, disk: &SimDisk, tag: u8) -> Writer {
        let (log, scan) = open_log(disk, tag, self.trimmed).unwrap();
        assert_eq!(scan.damage, None);
        let found: Vec<Record> = log.records(self.trimmed).map(|record| record.unwrap()).collect();
        assert_eq!(found, read_all(&scan, self.trimmed));
        self.check(&scan, &found);
        inline(log)
    }
}
