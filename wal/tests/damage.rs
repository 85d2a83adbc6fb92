//! Damage at rest: what was promised and is gone is named, never skipped, never returned.

mod support;

use std::sync::Arc;

use support::{Model, SEGMENT_BYTES, inline, open, open_log, options, put, read_all, segment_of, segments};
use wal::{
    Damage, ErrorKind, Log, Lsn, RecordFault, WalError,
    disk::{Disk, sim::SimDisk},
    records, scan, scan_above,
};

/// Twelve records in several segments, all synced; closed or not.
fn log_of_twelve(closed: bool) -> (SimDisk, Vec<wal::Appended>) {
    let disk = SimDisk::new();
    let writer = open(&disk, 1, Lsn(0)).unwrap();
    let places: Vec<_> = (0..12).map(|number| put(&writer, number, 900)).collect();
    writer.request_sync(Lsn(u64::MAX));
    if closed {
        writer.close().unwrap();
    }
    (disk, places)
}

fn corruption(result: Result<wal::Writer, WalError>) -> wal::Corruption {
    match result {
        Err(WalError::Corrupt(corruption)) => corruption,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn any_flipped_bit_of_a_promised_record_is_refused_and_named() {
    let (disk, places) = log_of_twelve(true);
    for place in &places {
        let (segment, offset) = segment_of(&disk, place.lsn);
        for byte in (0..place.end.since(place.lsn)).filter(|byte| *byte < 48 || byte % 97 == 0) {
            let damaged = disk.snapshot();
            assert!(damaged.flip_bit(&segment, offset + byte, (byte % 8) as u8));
            let before = damaged.counts();
            let found = corruption(open(&damaged, 2, Lsn(0)));
            assert_eq!(
                (found.lsn, &found.segment, found.offset),
                (place.lsn, &segment, offset),
                "byte {byte}"
            );
            assert!(found.lost);
            assert_eq!(damaged.counts(), before, "a refused log is not touched");
            let scan = scan(&damaged).unwrap();
            assert_eq!(scan.end.max(scan.start), place_end_before(&places, place.lsn));
            assert_eq!(scan.damage, Some(found));
        }
    }
}

/// End of the record before, which may be in the segment before.
fn place_end_before(places: &[wal::Appended], lsn: Lsn) -> Lsn {
    places.iter().map(|place| place.end).rfind(|end| *end <= lsn).unwrap_or_default()
}

#[test]
fn any_flipped_bit_of_a_segment_header_is_refused() {
    let (disk, _) = log_of_twelve(false);
    for name in segments(&disk) {
        for bit in 0..128 * 8 {
            let damaged = disk.snapshot();
            damaged.flip_bit(&name, bit / 8, (bit % 8) as u8);
            let found = corruption(open(&damaged, 2, Lsn(0)));
            assert!(matches!(found.what, Damage::Header(_)), "{found}");
            assert_eq!(found.segment, name);
        }
    }
}

#[test]
fn a_flipped_bit_of_a_mark_is_reported_and_no_loss() {
    let (disk, places) = log_of_twelve(true);
    let (segment, _) = segment_of(&disk, places[11].lsn);
    disk.flip_bit(&segment, 512 + 20, 1);
    let (_, scan) = open_log(&disk, 2, Lsn(0)).unwrap();
    let damage = scan.damage.unwrap();
    assert_eq!((damage.what, damage.lost), (Damage::Mark, false));
    assert_eq!(scan.records, 12);
}

#[test]
fn a_damaged_last_record_that_nothing_vouches_for_is_cut_off() {
    let (disk, places) = log_of_twelve(false);
    let last = places[11];
    for byte in 0..last.end.since(last.lsn) {
        let damaged = disk.snapshot();
        let (segment, offset) = segment_of(&disk, last.lsn);
        damaged.flip_bit(&segment, offset + byte, 0);
        let (log, scan) = open_log(&damaged, 2, Lsn(0)).unwrap();
        assert_eq!((scan.records, scan.end, scan.damage), (11, last.lsn, None));
        // A record without magic or LSN is as good as none.
        if let Some(torn) = scan.torn {
            assert_eq!(torn.from, last.lsn);
            assert_ne!(torn.why, RecordFault::Absent);
        }
        assert!(log.next() >= last.end);
    }
}

#[test]
fn a_hole_in_what_was_never_promised_ends_the_log() {
    let disk = SimDisk::new();
    let writer = open(&disk, 1, Lsn(0)).unwrap();
    let places: Vec<_> = (0..4).map(|number| put(&writer, number, 500)).collect();
    let (segment, offset) = segment_of(&disk, places[1].lsn);
    disk.flip_bit(&segment, offset, 0);
    let (_, found) = open_log(&disk, 2, Lsn(0)).unwrap();
    let torn = found.torn.unwrap();
    assert_eq!((found.end, torn.from, torn.why), (places[1].lsn, places[1].lsn, RecordFault::Absent));
    assert_eq!(torn.bytes_discarded, places[3].end.since(places[1].lsn));
    // Cut: even if the byte heals, what was cut off stays so.
    disk.flip_bit(&segment, offset, 0);
    let again = scan(&disk).unwrap();
    assert_eq!((again.end, again.records, again.torn), (places[1].lsn, 1, None));
}

#[test]
fn a_later_record_that_claims_durability_makes_a_hole_corruption() {
    let disk = SimDisk::new();
    let writer = open(&disk, 1, Lsn(0)).unwrap();
    let first = put(&writer, 1, 300);
    writer.request_sync(first.end);
    put(&writer, 2, 300);
    let (segment, offset) = segment_of(&disk, first.lsn);
    disk.flip_bit(&segment, offset + 100, 5);
    let found = corruption(open(&disk, 2, Lsn(0)));
    assert_eq!((found.lsn, found.durable, found.resumes), (first.lsn, first.end, Some(first.end)));
    assert_eq!(found.what, Damage::Record(RecordFault::Checksum));
}

#[test]
fn damage_below_what_is_elsewhere_is_reported_and_skipped() {
    let (disk, places) = log_of_twelve(true);
    let (segment, offset) = segment_of(&disk, places[4].lsn);
    disk.flip_bit(&segment, offset + 200, 5);
    assert_eq!(corruption(open(&disk.snapshot(), 2, places[3].end)).lsn, places[4].lsn);
    assert_eq!(records(&disk, places[4].lsn).unwrap_err().kind(), ErrorKind::Corrupt);
    for floor in [places[4].end, places[5].end, places[8].lsn] {
        let (log, scan) = open_log(&disk.snapshot(), 2, floor).unwrap();
        let damage = scan.damage.unwrap();
        assert_eq!((damage.lsn, damage.lost), (places[4].lsn, false));
        let found: Vec<_> = log.records(floor).map(|record| record.unwrap().lsn).collect();
        let expected: Vec<_> = places.iter().map(|place| place.lsn).filter(|lsn| *lsn >= floor).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn damage_below_what_the_log_calls_trimmed_is_found_by_one_who_has_less_elsewhere() {
    let (disk, places) = log_of_twelve(true);
    // Opened with more elsewhere than the next one has: the log calls that trimmed, and holds all of it.
    open(&disk, 2, places[8].lsn).unwrap().close().unwrap();
    assert_eq!(scan(&disk).unwrap().trimmed, places[8].lsn);
    let whole = disk.snapshot();
    let (segment, offset) = segment_of(&disk, places[4].lsn);
    disk.flip_bit(&segment, offset + 200, 5);
    assert_eq!(scan(&disk).unwrap().lost_above(places[8].lsn), None);
    let seen = scan_above(&disk, places[3].end).unwrap();
    assert_eq!(seen.lost_above(places[3].end).map(|damage| damage.lsn), Some(places[4].lsn));
    assert_eq!(corruption(open(&disk, 3, places[3].end)).lsn, places[4].lsn);
    // So is a hole where the log does not reach back so far.
    let short = whole.snapshot();
    short.remove(&segments(&short)[0]).unwrap();
    let found = corruption(open(&short, 3, places[0].end));
    assert_eq!((found.what, found.lsn), (Damage::Missing, places[0].end));
    assert!(open(&short, 3, Lsn(0)).is_ok(), "the log needs it no more");
    // Who opens it so says so in the log, which from then on looks there by itself.
    open(&whole, 3, places[3].end).unwrap().close().unwrap();
    assert_eq!(scan(&whole).unwrap().trimmed, places[3].end);
    whole.flip_bit(&segment, offset + 200, 5);
    assert_eq!(corruption(open(&whole, 4, Lsn(0))).lsn, places[4].lsn);
}

#[test]
fn an_empty_segment_with_a_damaged_header_is_no_loss() {
    let (disk, places) = log_of_twelve(true);
    let empty = disk.snapshot();
    drop(open(&empty, 2, Lsn(0)).unwrap());
    let name = segments(&empty).pop().unwrap();
    drop(open(&disk, 3, Lsn(0)).unwrap());
    drop(open(&disk, 4, Lsn(0)).unwrap());
    // Left by an opening that ended before it removed what was empty.
    let mut bytes = vec![0; SEGMENT_BYTES as usize];
    empty.open(&name).unwrap().read_at(&mut bytes, 0).unwrap();
    disk.create(&name, SEGMENT_BYTES).unwrap().write_at(&bytes, 0).unwrap();
    assert_eq!(scan(&disk).unwrap().damage, None);
    disk.flip_bit(&name, 20, 1);
    let (_, found) = open_log(&disk, 5, Lsn(0)).unwrap();
    assert_eq!((found.records, found.end), (12, places[11].end));
    assert!(found.damage.is_some_and(|damage| !damage.lost));
}

#[test]
fn a_log_with_two_damaged_places_ends_before_the_first() {
    let (disk, places) = log_of_twelve(true);
    let (segment, offset) = segment_of(&disk, places[4].lsn);
    disk.flip_bit(&segment, offset + 200, 5);
    let later = segments(&disk).pop().unwrap();
    disk.flip_bit(&later, 20, 1);
    let cut = |disk: &SimDisk| Log::open_cut(Arc::new(disk.clone()), options(2), None, None);
    let (log, _) = cut(&disk).unwrap();
    let kept = |log: &Log| log.records(Lsn(0)).map(|record| record.unwrap().lsn).collect::<Vec<_>>();
    let before: Vec<_> = places[..4].iter().map(|place| place.lsn).collect();
    assert_eq!(kept(&log), before);
    drop(log);
    assert_eq!(kept(&open_log(&disk, 3, Lsn(0)).unwrap().0), before);
}

#[test]
fn a_log_is_cut_before_a_record_that_its_owner_cannot_use() {
    for number in 0..12 {
        let (disk, places) = log_of_twelve(true);
        let (floor, unusable) = (Some(places[0].lsn), Some(places[number].lsn));
        let (log, _) = Log::open_cut(Arc::new(disk.clone()), options(2), floor, unusable).unwrap();
        let kept = |log: &Log| log.records(Lsn(0)).map(|record| record.unwrap().lsn).collect::<Vec<_>>();
        let before: Vec<_> = places[..number].iter().map(|place| place.lsn).collect();
        assert_eq!(kept(&log), before);
        let writer = inline(log);
        let next = put(&writer, 50, 100);
        writer.close().unwrap();
        let (log, found) = open_log(&disk, 3, places[0].lsn).unwrap();
        assert_eq!(kept(&log), [before, vec![next.lsn]].concat());
        assert_eq!(found.damage, None);
    }
}

#[test]
fn a_missing_segment_is_refused_unless_all_of_it_is_elsewhere() {
    let (disk, places) = log_of_twelve(true);
    let names = segments(&disk);
    assert!(names.len() >= 4);
    for (index, name) in names.iter().enumerate() {
        let damaged = disk.snapshot();
        damaged.remove(name).unwrap();
        let inside: Vec<_> = places.iter().filter(|place| segment_of(&disk, place.lsn).0 == *name).collect();
        let end = inside.last().unwrap().end;
        let opened = open(&damaged.snapshot(), 2, Lsn(0));
        if index + 1 == names.len() {
            // Nothing after it vouches for it: only an outer source could know.
            assert!(opened.is_ok());
            continue;
        }
        let found = corruption(opened);
        assert_eq!(found.what, Damage::Missing, "{found}");
        let (log, _) = open_log(&damaged, 2, end).unwrap();
        assert_eq!(log.records(end).count(), places.iter().filter(|place| place.lsn >= end).count());
    }
}

#[test]
fn a_truncated_segment_is_refused() {
    let (disk, places) = log_of_twelve(true);
    let (segment, offset) = segment_of(&disk, places[1].lsn);
    disk.open(&segment).unwrap().set_len(offset + 40).unwrap();
    let found = corruption(open(&disk, 2, Lsn(0)));
    assert_eq!(found.lsn, places[1].lsn);
}

#[test]
fn a_segment_under_anothers_name_is_refused() {
    let (disk, _) = log_of_twelve(true);
    let names = segments(&disk);
    disk.rename(&names[1], &names[2]).unwrap();
    assert!(corruption(open(&disk, 2, Lsn(0))).lost);
}

#[test]
fn an_older_copy_of_a_segment_is_refused() {
    let disk = SimDisk::new();
    let mut model = Model::default();
    let writer = model.reopen(&disk, 1);
    model.append(&writer, 900).unwrap();
    model.sync(&writer);
    let older = disk.snapshot();
    for _ in 0..8 {
        model.append(&writer, 900).unwrap();
    }
    model.sync(&writer);
    drop(writer);
    // The first segment as it was, under the later ones.
    let name = segments(&disk).remove(0);
    let mut bytes = vec![0; SEGMENT_BYTES as usize];
    older.open(&name).unwrap().read_at(&mut bytes, 0).unwrap();
    disk.open(&name).unwrap().write_at(&bytes, 0).unwrap();
    let found = corruption(open(&disk, 2, Lsn(0)));
    assert_eq!(found.lsn, model.records[0].end);
    // A whole older copy is a whole log: that it is older only an outer source can tell.
    disk.put_back(&older);
    let (_, scan) = open_log(&disk, 2, Lsn(0)).unwrap();
    assert_eq!(scan.end, model.records[0].end);
}

#[test]
fn a_log_begun_above_its_end_does_not_pretend_to_join_on() {
    let (disk, places) = log_of_twelve(true);
    let above = places[11].end.plus(100_000);
    let (log, _) = open_log(&disk, 2, above).unwrap();
    assert!(log.next() >= above);
    let writer = inline(log);
    let place = put(&writer, 50, 100);
    writer.close().unwrap();
    let found = scan(&disk).unwrap();
    assert_eq!((found.start, found.end, found.trimmed), (above, place.end, above));
    assert_eq!((found.records, found.damage.clone()), (13, None));
    assert_eq!(read_all(&found, above).len(), 1);
    // Nor does it when it is opened by one who knows less: the log remembers.
    let (log, _) = open_log(&disk, 3, Lsn(0)).unwrap();
    assert_eq!(log.records(above).count(), 1);
}

#[test]
fn a_disk_that_cannot_be_read_is_an_error_and_no_empty_log() {
    let (disk, _) = log_of_twelve(true);
    disk.fail_reads(true);
    assert_eq!(scan(&disk).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(open(&disk, 2, Lsn(0)).unwrap_err().kind(), ErrorKind::Io);
    disk.fail_reads(false);
    let found = scan(&disk).unwrap();
    disk.fail_reads(true);
    let mut records = found.records(Lsn(0));
    assert!(records.next().unwrap().is_err());
    assert!(records.next().is_none());
}

#[test]
fn a_read_of_a_record_damaged_meanwhile_is_refused() {
    let disk = SimDisk::new();
    let writer = open(&disk, 1, Lsn(0)).unwrap();
    let places = [put(&writer, 1, 200), put(&writer, 2, 200)];
    let (segment, offset) = segment_of(&disk, places[0].lsn);
    disk.flip_bit(&segment, offset + 90, 2);
    let error = writer.read(places[0].lsn).unwrap_err();
    assert!(matches!(&error, WalError::Corrupt(found) if found.lsn == places[0].lsn), "{error}");
    assert!(writer.read(places[1].lsn).is_ok(), "a damaged record takes no other with it");
}

#[test]
fn files_of_others_are_left_alone() {
    let (disk, _) = log_of_twelve(true);
    for name in ["README", "0.wal", "000000000000000G.wal", "lost+found"] {
        disk.create(name, 10).unwrap();
    }
    disk.create("00000007.spare", 10).unwrap();
    assert_eq!(open_log(&disk, 2, Lsn(0)).unwrap().1.records, 12);
    let names = disk.list().unwrap();
    assert!(names.iter().any(|name| name == "README") && names.iter().any(|name| name == "0.wal"));
    assert!(!names.iter().any(|name| name.ends_with(".spare")), "spares are the log's own");
}
