//! Opening a log: judge what is there, make it durable, begin a new segment, sweep.
//!
//! # Crash consistency
//!
//! Nothing changes before the log was judged. Then, in this order: (1) what was found above the LSN known
//! durable is written again in place, the
//! same bytes, and synced: an earlier process may have died of a failed sync, after which the kernel takes
//! the pages for clean though the medium
//! does not have them; (2) a new segment is begun whose header says where the log ends. That header is the
//! cut: from its name on,
//! no byte between there and the new segment is read again; where a damaged log is cut off, what is beyond the
//! damage was removed before it. (3) Segments without a record are removed. A
//! crash at any point leaves a log that scans
//! to the same records.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    Damage, Log, Lsn, Options, Scan, WalError,
    disk::Disk,
    format::SegmentHeader,
    log::Live,
    reader::Run,
    scan::scan_from,
    segment::{Found, is_spare_name},
};

/// Positions that must be left for a log to begin: more than any writes before it is opened again.
const LSN_ROOM_BYTES: u64 = 1 << 60;
/// Bytes written again at once.
const REWRITE_BYTES: u64 = 1 << 20;

pub(crate) fn open(
    disk: Arc<dyn Disk>,
    options: Options,
    floor: Option<Lsn>,
) -> Result<(Log, Scan), WalError> {
    options.check()?;
    let scan = scan_from(&*disk, floor)?;
    let floor = floor.unwrap_or(scan.trimmed);
    if let Some(damage) = scan.lost_above(floor) {
        return Err(WalError::Corrupt(damage));
    }
    begin(disk, options, floor, scan)
}

/// A damaged log, cut off before the damage, and before `unusable`.
pub(crate) fn open_cut(
    disk: Arc<dyn Disk>,
    options: Options,
    floor: Option<Lsn>,
    unusable: Option<Lsn>,
) -> Result<(Log, Scan), WalError> {
    options.check()?;
    let mut scan = scan_from(&*disk, floor)?;
    let floor = floor.unwrap_or(scan.trimmed);
    let damage = scan.lost_above(floor);
    // Of several damaged places this is the first, whichever of them was reported.
    let mut end = damage.as_ref().map(|_| scan.reached);
    if let Some(damage) = damage.filter(|damage| damage.what == Damage::Overlap || scan.start > floor) {
        return Err(WalError::Corrupt(damage));
    }
    if let Some(unusable) = unusable.filter(|unusable| *unusable < scan.reached) {
        scan.cut(unusable);
        end = Some(scan.reached);
    }
    let Some(end) = end else { return begin(disk, options, floor, scan) };
    let first = first_lsn(&scan, floor, options.segment_bytes)?;
    // The newest first: what a crash leaves of them is never taken for a log that goes on.
    while let Some(last) = scan.found.pop_if(|last| is_beyond(last, end)) {
        remove_all(&*disk, &[last.name])?;
    }
    begin_at(disk, options, floor, scan, first)
}

/// Whether a segment holds nothing from before the end.
fn is_beyond(found: &Found, end: Lsn) -> bool {
    found.first > end || (found.first == end && found.segment.is_err())
}

fn begin(disk: Arc<dyn Disk>, options: Options, floor: Lsn, scan: Scan) -> Result<(Log, Scan), WalError> {
    let first = first_lsn(&scan, floor, options.segment_bytes)?;
    begin_at(disk, options, floor, scan, first)
}

fn begin_at(
    disk: Arc<dyn Disk>,
    options: Options,
    floor: Lsn,
    scan: Scan,
    first: Lsn,
) -> Result<(Log, Scan), WalError> {
    harden(&*disk, &scan)?;
    remove_spares(&*disk)?;
    let (older, empty) = sort(&scan);
    let header = SegmentHeader {
        segment_bytes: options.segment_bytes,
        first,
        previous_end: scan.reached,
        // Below what the log called trimmed, where its owner has less elsewhere: so that the next scan looks there.
        trimmed: floor,
        tag: options.tag,
    };
    let log = Log::begin(Arc::clone(&disk), options, older, header, scan.runs.clone())?;
    remove_all(&*disk, &empty)?;
    Ok((log, scan))
}

/// Makes what was found durable.
fn harden(disk: &dyn Disk, scan: &Scan) -> Result<(), WalError> {
    for run in scan.runs.iter().filter(|run| run.to > scan.durable) {
        rewrite(run, run.from.max(scan.durable))?;
    }
    disk.sync().map_err(WalError::io("sync", "."))
}

/// Writes the bytes from `from` to the run's end again, and syncs them.
fn rewrite(run: &Run, from: Lsn) -> Result<(), WalError> {
    let segment = &run.segment;
    let mut at = from;
    while at < run.to {
        let mut bytes = vec![0; run.to.since(at).min(REWRITE_BYTES) as usize];
        let offset = segment.offset(at);
        segment.file.read_at(&mut bytes, offset).map_err(WalError::io("read", &segment.name))?;
        segment.file.write_at(&bytes, offset).map_err(WalError::io("write", &segment.name))?;
        at = at.plus(bytes.len() as u64);
    }
    segment.file.sync_data().map_err(WalError::io("sync", &segment.name))
}

/// Spares of an earlier tenure are not used: what they hold is not known.
fn remove_spares(disk: &dyn Disk) -> Result<(), WalError> {
    let names = disk.list().map_err(WalError::io("list", "."))?;
    let spares: Vec<String> = names.into_iter().filter(|name| is_spare_name(name)).collect();
    remove_all(disk, &spares)
}

fn remove_all(disk: &dyn Disk, names: &[String]) -> Result<(), WalError> {
    for name in names {
        disk.remove(name).map_err(WalError::io("remove", name))?;
    }
    if names.is_empty() { Ok(()) } else { disk.sync().map_err(WalError::io("sync", ".")) }
}

/// The segments to keep, oldest first, and the names of those that hold no record and no damage.
fn sort(scan: &Scan) -> (VecDeque<Live>, Vec<String>) {
    let mut older = VecDeque::new();
    let mut empty = Vec::new();
    let ends = scan.found.iter().skip(1).map(Some).chain([None]);
    for (found, next) in scan.found.iter().zip(ends) {
        let segment = found.segment.as_ref().ok().map(|(segment, _)| Arc::clone(segment));
        let has_records = scan.runs.iter().any(|run| run.segment.header.first == found.first);
        if segment.is_some() && !has_records && scan.damage.is_none() {
            empty.push(found.name.clone());
            continue;
        }
        let end = next.map_or(scan.reached, records_end_before).min(found.range_end());
        older.push_back(Live {
            first: found.first,
            name: found.name.clone(),
            bytes: found.file_bytes,
            end,
            segment,
        });
    }
    (older, empty)
}

/// Where the records before this segment end, as far as it says.
fn records_end_before(next: &Found) -> Lsn {
    next.segment.as_ref().map_or(next.first, |(segment, _)| segment.header.previous_end)
}

/// The first LSN of a new segment: above all that was ever given out.
fn first_lsn(scan: &Scan, floor: Lsn, segment_bytes: u64) -> Result<Lsn, WalError> {
    let used = scan.found.iter().map(Found::range_end).max().unwrap_or_default();
    let least = used.max(scan.end).max(floor).max(scan.trimmed);
    let first = least.round_up(segment_bytes);
    if first.0.checked_add(LSN_ROOM_BYTES).is_none() {
        return Err(WalError::Exhausted { start: least });
    }
    // All that was found is below: the new header is the last.
    assert!(first >= least);
    Ok(first)
}
