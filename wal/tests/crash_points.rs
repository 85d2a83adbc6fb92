//! Dies at every operation on the disk, loses what was not synced in every way the seeds give, opens again,
//! and compares with what was promised.

mod support;

use support::{Model, SEGMENT_BYTES, inline, open_log, read_all};
use wal::{
    Lsn, Writer,
    disk::{Disk, sim::SimDisk},
    scan,
};

/// Ways to lose what was not synced, for each point.
const SEEDS: u64 = 12;

/// A tenure that begins segments, recycles them, syncs now and then, and closes; it stops where the disk
/// dies.
fn workload(writer: &Writer, model: &mut Model) {
    for step in 0..36_usize {
        let bytes = 100 + step * 211 % 1900;
        if model.append(writer, bytes).is_err() {
            // Full, or failed: then this does not help.
            model.sync(writer);
            model.trim(writer, 100);
            if model.append(writer, bytes).is_err() {
                return;
            }
        }
        if step % 3 == 0 {
            model.sync(writer);
        }
        if step % 8 == 7 {
            model.trim(writer, 80);
        }
        model.note(writer);
    }
    let _ = writer.close();
    model.note(writer);
}

/// What an earlier tenure left: a disk with records, and what must be there.
fn earlier() -> (SimDisk, Model) {
    let disk = SimDisk::new();
    let mut model = Model::default();
    let writer = model.reopen(&disk, 1);
    workload(&writer, &mut model);
    (disk, model)
}

#[test]
fn death_at_any_operation_loses_nothing_that_was_synced() {
    let (start, before) = earlier();
    let mut point = 0;
    loop {
        point += 1;
        let disk = start.snapshot();
        disk.die_at(point);
        let mut model = before.clone();
        if let Ok((log, _)) = open_log(&disk, 2, model.trimmed) {
            workload(&inline(log), &mut model);
        }
        if !disk.is_dead() {
            break;
        }
        for seed in 0..SEEDS {
            let crashed = disk.crash(point * SEEDS + seed);
            let mut model = model.clone();
            let writer = model.reopen(&crashed, 3);
            // And it goes on from there.
            workload(&writer, &mut model);
            let end = model.used;
            assert_eq!(model.synced, end, "point {point} seed {seed}");
            drop(writer);
            model.reopen(&crashed.crash(seed), 4);
        }
    }
    assert!(point > 100, "only {point} operations");
}

#[test]
fn death_while_opening_again_and_again_loses_nothing_that_was_synced() {
    let (start, before) = earlier();
    for seed in 0..40 {
        let (mut disk, mut model) = (start.snapshot(), before.clone());
        for (tag, point) in (2..).zip(1..) {
            disk.die_at(disk.operations() + point);
            let opened = open_log(&disk, tag, model.trimmed);
            if opened.is_ok() && !disk.is_dead() {
                break;
            }
            disk = disk.crash(seed * 1000 + point);
        }
        let disk = disk.crash(seed);
        model.reopen(&disk, 200);
        assert!(disk.list().unwrap().len() < 12, "opening leaves nothing behind: {:?}", disk.list());
    }
}

#[test]
fn a_failure_at_any_operation_acknowledges_nothing_that_is_not_there() {
    let (start, before) = earlier();
    let operations = {
        let (disk, mut model) = (start.snapshot(), before.clone());
        workload(&inline(open_log(&disk, 2, model.trimmed).unwrap().0), &mut model);
        disk.operations()
    };
    for point in 1..=operations {
        let (disk, mut model) = (start.snapshot(), before.clone());
        disk.fail_at(point);
        if let Ok((log, _)) = open_log(&disk, 2, model.trimmed) {
            workload(&inline(log), &mut model);
        }
        // First the process alone is started again, then power is lost.
        for seed in 0..SEEDS {
            model.clone().reopen(&disk.crash(point * SEEDS + seed), 3);
        }
        drop(model.reopen(&disk, 3));
        for seed in 0..SEEDS {
            model.clone().reopen(&disk.crash(point * SEEDS + seed), 4);
        }
    }
}

#[test]
fn lying_syncs_never_yield_what_was_not_written_nor_a_hole() {
    let (start, before) = earlier();
    let (mut refused, mut opened) = (0, 0);
    for seed in 0..300 {
        let (disk, mut model) = (start.snapshot(), before.clone());
        disk.lie(true);
        disk.die_at(5 + seed % 90);
        if let Ok((log, _)) = open_log(&disk, 2, model.trimmed) {
            workload(&inline(log), &mut model);
        }
        let crashed = disk.crash(seed);
        // A prefix is all that can be asked for, and a refusal is as good.
        model.synced = Lsn(0);
        match open_log(&crashed, 3, model.trimmed) {
            Ok((_, scan)) => {
                model.check(&scan, &read_all(&scan, model.trimmed));
                opened += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0 && opened > 0, "refused {refused}, opened {opened}");
}

#[test]
fn a_scan_changes_nothing() {
    let (disk, model) = earlier();
    let writer = model.clone().reopen(&disk, 2);
    support::put(&writer, 1, 100);
    let before = disk.counts();
    let first = scan(&disk).unwrap();
    assert_eq!(disk.counts(), before);
    let second = scan(&disk).unwrap();
    assert_eq!((first.start, first.end, first.records), (second.start, second.end, second.records));
}

#[test]
fn what_a_recycled_segment_held_is_never_a_record_again() {
    for tear in [false, true] {
        let disk = SimDisk::new();
        let mut model = Model::default();
        let writer = model.reopen(&disk, 1);
        // Records of one size, so that those of the earlier life lie exactly where the next would.
        for _ in 0..40 {
            model.append(&writer, 480).unwrap();
            model.sync(&writer);
            model.trim(&writer, 100);
        }
        // A segment of the second life or later, with one record in it, and many old ones behind it.
        while writer.progress().next.0 % SEGMENT_BYTES != 1024 + 512 {
            model.append(&writer, 480).unwrap();
            model.sync(&writer);
        }
        if tear {
            model.append(&writer, 480).unwrap();
        }
        drop(writer);
        for seed in 0..30 {
            let mut model = model.clone();
            let synced = model.synced;
            model.reopen(&disk.crash(seed), 2);
            assert!(model.synced <= synced.plus(if tear { 512 } else { 0 }));
        }
    }
}

#[test]
fn segments_of_another_size_join_on() {
    let disk = SimDisk::new();
    let mut model = Model::default();
    for (tag, segment_bytes) in [(1, 4096), (2, 16384), (3, 8192), (4, 4096)] {
        let options = wal::Options { segment_bytes, log_bytes_max: 64 * 4096, tag: [tag; 32] };
        let floor = Some(model.trimmed).filter(|floor| floor.0 > 0);
        let (log, scan) = wal::Log::open(std::sync::Arc::new(disk.clone()), options, floor).unwrap();
        model.check(&scan, &read_all(&scan, model.trimmed));
        let writer = inline(log);
        for _ in 0..12 {
            model.append(&writer, 900).unwrap();
        }
        model.sync(&writer);
        model.trim(&writer, 30);
    }
    assert_eq!(scan(&disk).unwrap().damage, None);
    model.reopen(&disk.crash(7), 5);
}
