//! The writer: group commit, room, failure, in a thread and inline.

mod support;

use std::{
    sync::{Arc, Condvar, Mutex},
    thread,
};

use bytes::Bytes;
use support::{SEGMENT_BYTES, open_log, options, payload, put, read_all};
use wal::{
    AppendError, ErrorKind, Log, Lsn, Mode, Options, PlainSeal, Progress, Seal, WalError, Writer,
    disk::{Disk, Folder, sim::SimDisk},
    scan,
};

/// A writer whose progress can be waited for.
struct Watched {
    writer: Writer,
    watch: Arc<Watch>,
}

#[derive(Default)]
struct Watch {
    progress: Mutex<Progress>,
    changed: Condvar,
}

impl Watched {
    fn start(log: Log, mode: Mode) -> Watched {
        let watch = Arc::new(Watch::default());
        let told = Arc::clone(&watch);
        let on_progress = Box::new(move |progress: &Progress| {
            let mut last = told.progress.lock().unwrap();
            assert!(last.synced <= progress.synced && last.appended <= progress.appended);
            *last = progress.clone();
            told.changed.notify_all();
        });
        Watched { writer: Writer::start(log, Box::new(PlainSeal), on_progress, mode), watch }
    }

    fn wait_for(&self, done: impl Fn(&Progress) -> bool) -> Progress {
        let mut progress = self.watch.progress.lock().unwrap();
        while !done(&progress) {
            progress = self.watch.changed.wait(progress).unwrap();
        }
        progress.clone()
    }
}

fn both(test: impl Fn(Mode)) {
    for mode in [Mode::Inline, Mode::Thread] {
        test(mode);
    }
}

#[test]
fn what_was_synced_is_read_back_now_and_after_a_restart() {
    both(|mode| {
        let disk = SimDisk::new();
        let watched = Watched::start(open_log(&disk, 1, Lsn(0)).unwrap().0, mode);
        let places: Vec<_> = (0..40).map(|number| put(&watched.writer, number, 300)).collect();
        let end = places[39].end;
        watched.writer.request_sync(end);
        watched.wait_for(|progress| progress.synced >= end);
        for (number, place) in (0..).zip(&places) {
            let record = watched.writer.read(place.lsn).unwrap();
            assert_eq!((record.lsn, record.end, record.kind), (place.lsn, place.end, number as u8));
            assert_eq!(record.payload, payload(number, 300));
            assert_eq!(watched.writer.read_nowait(place.lsn).unwrap(), Some(record));
        }
        watched.writer.close().unwrap();
        drop(watched);
        let (log, scan) = open_log(&disk.crash(1), 2, Lsn(0)).unwrap();
        let found = read_all(&scan, Lsn(0));
        assert_eq!(found.len(), 40);
        assert_eq!(log.records(places[20].lsn).count(), 20);
        assert!(found.iter().all(|record| record.tag == [1; 32]));
        assert_eq!((scan.end, scan.durable, scan.records), (end, end, 40));
        assert_eq!((scan.torn, scan.damage), (None, None));
        // What an earlier tenure wrote is read back as well.
        let writer = support::inline(log);
        assert_eq!(writer.read(places[7].lsn).unwrap(), found[7]);
    });
}

#[test]
fn one_sync_answers_all_who_asked() {
    let disk = SimDisk::new();
    let log = Log::open(
        Arc::new(disk.clone()),
        Options { segment_bytes: 1 << 20, log_bytes_max: 8 << 20, tag: [1; 32] },
        None,
    );
    let watched = Watched::start(log.unwrap().0, Mode::Thread);
    let before = disk.counts();
    thread::scope(|scope| {
        for number in 0..16 {
            let watched = &watched;
            scope.spawn(move || {
                for round in 0..50 {
                    let end = put(&watched.writer, number * 50 + round, 64).end;
                    watched.writer.request_sync(end);
                    watched.wait_for(|progress| progress.synced >= end);
                }
            });
        }
    });
    let syncs = disk.counts().file_syncs - before.file_syncs;
    assert!(syncs <= 800, "{syncs} syncs for 800 appends that each asked for one");
    // What waits together is written and synced together, whatever the scheduling.
    let before = disk.counts();
    let end = (0..1000).map(|number| put(&watched.writer, number, 64).end).last().unwrap();
    watched.writer.request_sync(end);
    watched.wait_for(|progress| progress.synced >= end);
    watched.writer.request_sync(end);
    watched.writer.request_sync(Lsn(u64::MAX));
    assert_eq!(disk.counts().file_syncs - before.file_syncs, 1);
}

#[test]
fn nothing_is_synced_twice() {
    let disk = SimDisk::new();
    let writer = support::open(&disk, 1, Lsn(0)).unwrap();
    let end = put(&writer, 1, 100).end;
    writer.request_sync(end);
    let before = disk.counts();
    writer.request_sync(end);
    writer.request_sync(Lsn(u64::MAX));
    assert_eq!(disk.counts(), before);
}

#[test]
fn a_full_log_goes_on_after_a_trim() {
    both(|mode| {
        let disk = SimDisk::new();
        let watched = Watched::start(open_log(&disk, 1, Lsn(0)).unwrap().0, mode);
        let mut ends = Vec::new();
        let full = loop {
            match watched.writer.append(0, &[], Bytes::from(vec![7; 1000])) {
                Ok(appended) => ends.push(appended.end),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(full, AppendError::Full { needed, limit } if needed == 9 * SEGMENT_BYTES && limit == 8 * SEGMENT_BYTES)
        );
        let all = *ends.last().unwrap();
        watched.writer.request_sync(all);
        watched.wait_for(|progress| progress.synced >= all);
        assert!(disk.used_bytes() <= 8 * SEGMENT_BYTES);
        watched.writer.trim(ends[0]);
        assert!(matches!(
            watched.writer.append(0, &[], Bytes::from(vec![7; 1000])),
            Err(AppendError::Full { .. })
        ));
        watched.writer.trim(ends[3]);
        watched.wait_for(|progress| progress.trimmed >= ends[3]);
        watched.writer.append(0, &[], Bytes::from(vec![7; 1000])).unwrap();
        assert_eq!(watched.writer.read(Lsn(1024)).unwrap_err().kind(), ErrorKind::Invalid);
    });
}

#[test]
fn a_log_that_goes_round_for_long_never_grows() {
    let disk = SimDisk::new();
    let writer = support::open(&disk, 1, Lsn(0)).unwrap();
    for number in 0..2000 {
        let end = put(&writer, number, 700).end;
        writer.trim(end);
        assert!(disk.used_bytes() <= 4 * SEGMENT_BYTES);
    }
    // Recycled: hardly a file was ever made.
    assert!(disk.list().unwrap().iter().filter(|name| name.ends_with(".spare")).count() <= 2);
}

#[test]
fn a_full_disk_keeps_what_waits_and_resumes() {
    both(|mode| {
        let disk = SimDisk::new();
        let watched = Watched::start(open_log(&disk, 1, Lsn(0)).unwrap().0, mode);
        disk.set_capacity(Some(SEGMENT_BYTES));
        let mut ends = Vec::new();
        for number in 0..4 {
            match watched.writer.append(0, &payload(number, 1400), Bytes::new()) {
                Ok(appended) => ends.push(appended.end),
                Err(error) => assert!(matches!(error, AppendError::Full { .. }), "{error}"),
            }
        }
        let end = *ends.last().unwrap();
        let progress = watched.wait_for(|progress| progress.disk_full);
        assert!(progress.poisoned.is_none() && progress.appended < end);
        watched.writer.request_sync(end);
        assert!(matches!(watched.writer.append(0, &[], Bytes::new()), Err(AppendError::Full { .. })));
        disk.set_capacity(None);
        watched.writer.retry();
        let progress = watched.wait_for(|progress| progress.synced >= end);
        assert!(!progress.disk_full);
        watched.writer.close().unwrap();
        let found = read_all(&scan(&disk.crash(3)).unwrap(), Lsn(0));
        assert_eq!(found.iter().map(|record| record.end).collect::<Vec<_>>(), ends);
    });
}

#[test]
fn opening_on_a_full_disk_says_so_and_loses_nothing() {
    let disk = SimDisk::new();
    let writer = support::open(&disk, 1, Lsn(0)).unwrap();
    let end = put(&writer, 0, 500).end;
    drop(writer);
    disk.set_capacity(Some(2 * SEGMENT_BYTES - 1));
    let error = open_log(&disk, 2, Lsn(0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full);
    assert_eq!(scan(&disk).unwrap().end, end);
    disk.set_capacity(None);
    assert_eq!(open_log(&disk, 2, Lsn(0)).unwrap().1.records, 1);
}

#[test]
fn a_log_that_has_no_positions_left_is_refused() {
    let error = open_log(&SimDisk::new(), 1, Lsn(u64::MAX - 5000)).unwrap_err();
    assert!(matches!(error, WalError::Exhausted { .. }), "{error}");
}

#[test]
fn a_large_trim_leaves_few_spares() {
    let disk = SimDisk::new();
    let writer = support::open(&disk, 1, Lsn(0)).unwrap();
    let end = (0..14).map(|number| put(&writer, number, 1000).end).last().unwrap();
    assert!(support::segments(&disk).len() >= 6);
    writer.trim(end);
    assert_eq!((support::segments(&disk).len(), disk.list().unwrap().len()), (1, 3));
}

#[test]
fn a_queue_that_the_disk_does_not_drain_is_bounded() {
    let disk = SimDisk::new();
    let options = Options { segment_bytes: 4 << 20, log_bytes_max: 1 << 30, tag: [1; 32] };
    let (log, _) = Log::open(Arc::new(disk), options, None).unwrap();
    // The log thread stands still while this is held.
    let gate = Arc::new(Mutex::new(()));
    let inner = Arc::clone(&gate);
    let on_progress = Box::new(move |_: &Progress| drop(inner.lock().unwrap()));
    let writer = Writer::start(log, Box::new(PlainSeal), on_progress, Mode::Thread);
    let held = gate.lock().unwrap();
    let body = Bytes::from(vec![1; 1 << 20]);
    let mut taken = 0;
    let full = loop {
        match writer.append(1, &[], body.clone()) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    // One batch may be on its way.
    assert!((31..=40).contains(&taken), "{taken}");
    assert!(matches!(full, AppendError::Full { limit: wal::QUEUE_BYTES_MAX, .. }), "{full}");
    drop(held);
    writer.close().unwrap();
    assert_eq!(writer.progress().synced, writer.progress().next);
}

#[test]
fn a_log_thread_that_panics_poisons() {
    struct Broken;
    impl Seal for Broken {
        fn overhead(&self) -> usize {
            4
        }
        fn seal(&mut self, _: Lsn, _: u8, _: &[u8], _: &[u8], _: &mut Vec<u8>) {}
    }
    let watch = Arc::new(Watch::default());
    let told = Arc::clone(&watch);
    let on_progress = Box::new(move |progress: &Progress| {
        *told.progress.lock().unwrap() = progress.clone();
        told.changed.notify_all();
    });
    let log = open_log(&SimDisk::new(), 1, Lsn(0)).unwrap().0;
    let watched = Watched { writer: Writer::start(log, Box::new(Broken), on_progress, Mode::Thread), watch };
    watched.writer.append(1, &[], Bytes::new()).unwrap();
    watched.wait_for(|progress| progress.poisoned.is_some());
    assert!(matches!(watched.writer.append(1, &[], Bytes::new()), Err(AppendError::Poisoned(_))));
    assert!(matches!(watched.writer.close(), Err(WalError::Panicked)));
}

#[test]
fn closing_on_a_full_disk_says_so() {
    let disk = SimDisk::new();
    let writer = support::open(&disk, 1, Lsn(0)).unwrap();
    disk.set_capacity(Some(SEGMENT_BYTES));
    put(&writer, 0, 2500);
    put(&writer, 1, 2500);
    assert!(matches!(writer.close(), Err(WalError::DiskFull { needed_bytes: SEGMENT_BYTES })));
}

#[test]
fn a_failed_sync_poisons_for_ever() {
    both(|mode| {
        let disk = SimDisk::new();
        let watched = Watched::start(open_log(&disk, 1, Lsn(0)).unwrap().0, mode);
        let good = put(&watched.writer, 1, 100).end;
        watched.writer.request_sync(good);
        watched.wait_for(|progress| progress.synced >= good);
        let bad = put(&watched.writer, 2, 100).end;
        disk.fail_syncs(true);
        watched.writer.request_sync(bad);
        let progress = watched.wait_for(|progress| progress.poisoned.is_some());
        assert_eq!(progress.synced, good);
        disk.fail_syncs(false);
        let before = disk.counts();
        watched.writer.request_sync(bad);
        watched.writer.retry();
        watched.writer.trim(bad);
        let refused = watched.writer.append(3, &[], Bytes::new()).unwrap_err();
        assert!(
            matches!(&refused, AppendError::Poisoned(cause) if cause.kind() == ErrorKind::Io),
            "{refused}"
        );
        assert!(matches!(watched.writer.close(), Err(WalError::Poisoned(_))));
        assert_eq!(disk.counts(), before, "nothing is tried on the disk any more");
        assert_eq!(watched.writer.progress().synced, good);
    });
}

#[test]
fn a_process_that_follows_a_failed_sync_brings_what_it_finds_to_the_medium() {
    let disk = SimDisk::new();
    let writer = support::open(&disk, 1, Lsn(0)).unwrap();
    put(&writer, 1, 1500);
    disk.fail_syncs(true);
    writer.request_sync(Lsn(u64::MAX));
    drop(writer);
    disk.fail_syncs(false);
    // The page cache still has the record, taken for clean.
    let (_, scan) = open_log(&disk, 2, Lsn(0)).unwrap();
    assert_eq!(scan.records, 1);
    for seed in 0..50 {
        assert_eq!(wal::scan(&disk.crash(seed)).unwrap().records, 1);
    }
}

#[test]
fn a_failed_write_poisons_and_what_was_synced_stays() {
    let disk = SimDisk::new();
    let writer = support::open(&disk, 1, Lsn(0)).unwrap();
    let good = put(&writer, 1, 100).end;
    writer.request_sync(good);
    disk.fail_at(disk.operations() + 1);
    put(&writer, 2, 2000);
    assert!(writer.progress().poisoned.is_some());
    assert_eq!(writer.progress().appended, good);
    drop(writer);
    for seed in 0..20 {
        let (_, scan) = open_log(&disk.crash(seed), 2, Lsn(0)).unwrap();
        assert_eq!((scan.records, scan.end), (1, good));
    }
}

#[test]
fn a_record_too_large_for_a_segment_is_refused_and_the_largest_is_not() {
    let disk = SimDisk::new();
    let writer = support::open(&disk, 1, Lsn(0)).unwrap();
    let largest = SEGMENT_BYTES as usize - 1024 - 32;
    let place = put(&writer, 1, largest);
    assert_eq!(writer.read(place.lsn).unwrap().payload.len(), largest);
    let refused = writer.append(1, &[], Bytes::from(vec![0; largest + 1])).unwrap_err();
    assert!(matches!(refused, AppendError::TooLarge { bytes: 3088, bytes_max: 3072 }), "{refused}");
}

#[test]
fn closed_means_closed() {
    both(|mode| {
        let disk = SimDisk::new();
        let watched = Watched::start(open_log(&disk, 1, Lsn(0)).unwrap().0, mode);
        watched.writer.close().unwrap();
        let before = disk.counts();
        assert!(matches!(watched.writer.close(), Err(WalError::Closed)));
        assert!(matches!(watched.writer.append(1, &[], Bytes::new()), Err(AppendError::Closed)));
        watched.writer.request_sync(Lsn(u64::MAX));
        watched.writer.trim(Lsn(u64::MAX));
        watched.writer.retry();
        assert_eq!(disk.counts(), before);
    });
}

#[test]
fn what_is_not_written_cannot_be_read() {
    let disk = SimDisk::new();
    let writer = support::open(&disk, 1, Lsn(0)).unwrap();
    let next = writer.progress().next;
    assert!(matches!(writer.read(next), Err(WalError::NotWritten { .. })));
    let place = put(&writer, 1, 100);
    assert!(writer.read(place.lsn).is_ok());
    let inside = writer.read(place.lsn.plus(16)).unwrap_err();
    assert_eq!(inside.kind(), ErrorKind::Corrupt);
}

#[test]
fn impossible_options_are_refused() {
    for (segment_bytes, log_bytes_max) in [(0, 0), (4095, 1 << 20), (4096, 8191), (u64::MAX, u64::MAX)] {
        let options = Options { segment_bytes, log_bytes_max, tag: [0; 32] };
        let error = Log::open(Arc::new(SimDisk::new()), options, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}

/// Puts the LSN before and a checksum of sorts behind.
struct Stamp;

impl Seal for Stamp {
    fn overhead(&self) -> usize {
        9
    }

    fn seal(&mut self, lsn: Lsn, kind: u8, head: &[u8], body: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&lsn.0.to_be_bytes());
        out.extend_from_slice(head);
        out.extend_from_slice(body);
        out.push(kind ^ 0xff);
    }
}

#[test]
fn payloads_reach_the_disk_sealed() {
    let disk = SimDisk::new();
    let writer =
        Writer::start(open_log(&disk, 1, Lsn(0)).unwrap().0, Box::new(Stamp), Box::new(|_| {}), Mode::Inline);
    let place = writer.append(5, b"head", Bytes::from_static(b"body")).unwrap();
    let sealed = [&place.lsn.0.to_be_bytes()[..], b"headbody", &[5 ^ 0xff]].concat();
    assert_eq!(writer.read(place.lsn).unwrap().payload, sealed);
}

#[test]
fn progress_may_be_answered_with_more_work() {
    both(|mode| {
        let disk = SimDisk::new();
        let slot: Arc<Mutex<Option<std::sync::Weak<Writer>>>> = Arc::default();
        let seen = Arc::clone(&slot);
        let on_progress = Box::new(move |progress: &Progress| {
            let writer = seen.lock().unwrap().as_ref().and_then(std::sync::Weak::upgrade);
            if let Some(writer) = writer {
                writer.request_sync(progress.appended);
                writer.trim(progress.synced);
            }
        });
        let log = open_log(&disk, 1, Lsn(0)).unwrap().0;
        let writer = Arc::new(Writer::start(log, Box::new(PlainSeal), on_progress, mode));
        *slot.lock().unwrap() = Some(Arc::downgrade(&writer));
        for number in 0..500 {
            while writer.append(1, &payload(number, 500), Bytes::new()).is_err() {
                thread::yield_now();
            }
        }
        writer.close().unwrap();
        assert_eq!(writer.progress().synced, writer.progress().next);
    });
}

#[test]
fn a_real_folder_does_as_the_simulated_one() {
    let temporary = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(Folder::open(temporary.path().join("wal")).unwrap());
    let mut floor = Lsn(0);
    for tenure in 0..3 {
        let (log, scan) = Log::open(Arc::clone(&disk), options(tenure), Some(floor)).unwrap();
        assert_eq!(scan.records, if tenure == 0 { 0 } else { 5 });
        let watched = Watched::start(log, Mode::Thread);
        let mut ends = Vec::new();
        for number in 0..200 {
            let end = loop {
                match watched.writer.append(1, &payload(number, 900), Bytes::new()) {
                    Ok(appended) => break appended.end,
                    Err(_) => {
                        let half = ends[ends.len() - 5];
                        watched.writer.trim(half);
                        watched.wait_for(|progress| progress.trimmed >= half);
                    }
                }
            };
            ends.push(end);
        }
        floor = ends[194];
        watched.writer.trim(floor);
        watched.writer.close().unwrap();
        let found = wal::records(&*disk, floor).unwrap().map(Result::unwrap).collect::<Vec<_>>();
        assert_eq!(found.len(), 5);
        assert_eq!(found[4].payload, payload(199, 900));
    }
}
