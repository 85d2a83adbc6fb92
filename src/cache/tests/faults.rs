//! A disk that is full, fails or is not there costs hits and nothing else, and only as long as it lasts.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use wal::disk::{Disk, DiskFile, sim::SimDisk};

use super::{FrameCache, MIB, frame, given, held, key, open, put};
use crate::cache::Lookup;

/// A disk some of whose calls fail while they are told to.
#[derive(Clone, Debug, Default)]
struct Faulty {
    disk: SimDisk,
    fails: Arc<Fails>,
}

#[derive(Debug, Default)]
struct Fails {
    reads: AtomicBool,
    writes: AtomicBool,
    names: AtomicBool,
    list: AtomicBool,
    removes: AtomicBool,
    /// `read_at_nowait` never has anything.
    cold: AtomicBool,
}

fn check(fails: &AtomicBool) -> io::Result<()> {
    if fails.load(Ordering::SeqCst) { Err(io::Error::other("told to fail")) } else { Ok(()) }
}

fn set(fails: &AtomicBool, to: bool) {
    fails.store(to, Ordering::SeqCst);
}

#[derive(Debug)]
struct FaultyFile {
    file: Arc<dyn DiskFile>,
    fails: Arc<Fails>,
}

impl Faulty {
    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FaultyFile { file, fails: self.fails.clone() })
    }

    fn cache(&self) -> FrameCache {
        FrameCache::open_inline(Arc::new(self.clone()), MIB)
    }
}

impl Disk for Faulty {
    fn create(&self, name: &str, allocate_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        check(&self.fails.names)?;
        Ok(self.file(self.disk.create(name, allocate_bytes)?))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        check(&self.fails.names)?;
        Ok(self.file(self.disk.open(name)?))
    }
    fn list(&self) -> io::Result<Vec<String>> {
        check(&self.fails.list)?;
        self.disk.list()
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check(&self.fails.names)?;
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        check(&self.fails.removes)?;
        self.disk.remove(name)
    }
    fn sync(&self) -> io::Result<()> {
        panic!("the cache never syncs")
    }
}

impl DiskFile for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        check(&self.fails.reads)?;
        self.file.read_at(buffer, offset)
    }
    fn read_at_nowait(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        check(&self.fails.reads)?;
        if self.fails.cold.load(Ordering::SeqCst) {
            Ok(None)
        } else {
            self.file.read_at(buffer, offset).map(Some)
        }
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        check(&self.fails.writes)?;
        self.file.write_at(bytes, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        panic!("the cache never syncs")
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
}

/// Inserts until the cache takes frames again; how many it took.
fn inserts_until_it_works(cache: &FrameCache) -> u64 {
    let mut number = 1_000_000;
    loop {
        put(cache, [number]);
        if cache.contains(&key(number)) {
            return number - 1_000_000;
        }
        number += 1;
        assert!(number < 1_010_000, "it never comes back");
    }
}

#[test]
fn what_is_not_in_the_page_cache_would_wait() {
    let disk = Faulty::default();
    let cache = disk.cache();
    put(&cache, [1]);
    set(&disk.fails.cold, true);
    assert_eq!(cache.get_nowait(&key(1)), Lookup::WouldWait);
    assert_eq!(cache.get(&key(1)), Some(frame(1)));
    assert_eq!((cache.stats().hits, cache.stats().misses), (1, 0), "one read, counted once");
}

#[test]
fn full_disk_makes_a_smaller_cache_that_goes_on_working() {
    let disk = SimDisk::new();
    disk.set_capacity(Some(MIB / 2));
    let cache = open(&disk, MIB);
    put(&cache, 0..1000);
    let stats = cache.stats();
    assert!(disk.used_bytes() <= MIB / 2);
    assert!(stats.entries >= 90, "{stats:?}");
    assert_eq!(held(&cache, 990..1000), 10, "it takes new frames");
    assert_eq!(given(&cache, 0..1000) as u64, stats.entries);
    disk.set_capacity(None);
    put(&cache, 2000..3000);
    assert!(disk.used_bytes() > MIB * 3 / 4, "it grows when there is room again");
}

#[test]
fn disk_without_any_room_is_no_cache_until_there_is_room() {
    let disk = SimDisk::new();
    disk.set_capacity(Some(0));
    let cache = open(&disk, MIB);
    put(&cache, 0..500);
    let stats = cache.stats();
    assert_eq!((given(&cache, 0..500), stats.entries, stats.dropped), (0, 0, 500));
    assert!((1..20).contains(&stats.errors), "few attempts: {stats:?}");
    disk.set_capacity(None);
    inserts_until_it_works(&cache);
    put(&cache, 0..50);
    assert_eq!(given(&cache, 0..50), 50);
}

#[test]
fn failing_writes_lose_nothing_that_was_there_and_come_back() {
    let disk = Faulty::default();
    let cache = disk.cache();
    put(&cache, 0..300);
    let before = cache.stats().entries;
    set(&disk.fails.writes, true);
    put(&cache, 1000..3000);
    assert!(cache.stats().entries * 10 >= before * 7, "{before} {:?}", cache.stats());
    assert_eq!(held(&cache, 1000..3000), 0);
    let kept = cache.stats().entries as usize;
    assert_eq!(given(&cache, 0..300), kept, "reads go on");
    set(&disk.fails.writes, false);
    assert!(inserts_until_it_works(&cache) <= 4096);
    put(&cache, 5000..5020);
    assert_eq!(given(&cache, 5000..5020), 20);
}

#[test]
fn failing_reads_are_misses_are_held_back_and_come_back() {
    let disk = Faulty::default();
    let cache = disk.cache();
    put(&cache, 0..200);
    set(&disk.fails.reads, true);
    assert_eq!(cache.get_nowait(&key(0)), Lookup::WouldWait, "left to get");
    (0..20).for_each(|_| assert_eq!(given(&cache, 0..200), 0));
    let stats = cache.stats();
    assert!(stats.errors < 20, "few attempts: {stats:?}");
    assert!(stats.entries > 180, "and few frames lost: {stats:?}");
    set(&disk.fails.reads, false);
    let mut reads = 0;
    while given(&cache, [199]) == 0 {
        reads += 1;
        assert!(reads <= 4096);
    }
    assert_eq!(given(&cache, 0..200) as u64, stats.entries);
}

#[test]
fn folder_that_cannot_be_read_at_first_is_found_later_with_all_that_is_in_it() {
    let faults: [fn(&Fails) -> &AtomicBool; 3] =
        [|fails| &fails.list, |fails| &fails.reads, |fails| &fails.names];
    for fault in faults {
        let disk = Faulty::default();
        put(&disk.cache(), 0..100);
        let fault = fault(&disk.fails);
        set(fault, true);
        let cache = disk.cache();
        put(&cache, 200..205);
        assert_eq!(given(&cache, 0..300), 0);
        set(fault, false);
        inserts_until_it_works(&cache);
        assert_eq!(given(&cache, 0..100), 100);
    }
}

#[test]
fn segments_that_can_never_be_read_do_not_keep_the_cache_away_for_ever() {
    let disk = Faulty::default();
    put(&disk.cache(), 0..100);
    set(&disk.fails.reads, true);
    let cache = disk.cache();
    inserts_until_it_works(&cache);
}

#[test]
fn files_that_cannot_be_removed_count_and_the_rest_stays() {
    let disk = Faulty::default();
    let cache = disk.cache();
    put(&cache, 0..300);
    let before = cache.stats().entries;
    set(&disk.fails.removes, true);
    put(&cache, 1000..2000);
    assert!(disk.disk.used_bytes() <= MIB);
    assert!(cache.stats().entries * 2 > before, "{before} {:?}", cache.stats());
    set(&disk.fails.removes, false);
    inserts_until_it_works(&cache);
    put(&cache, 3000..4000);
    assert_eq!(held(&cache, 3990..4000), 10);
    assert!(disk.disk.used_bytes() <= MIB);
    assert_eq!(cache.stats().file_bytes, disk.disk.used_bytes());
}

#[test]
fn failure_at_any_single_operation_is_passed_over() {
    let whole = SimDisk::new();
    put(&open(&whole, MIB), 0..400);
    for operation in (1..whole.operations()).step_by(3) {
        let disk = SimDisk::new();
        disk.fail_at(operation);
        let cache = open(&disk, MIB);
        put(&cache, 0..400);
        given(&cache, 0..400);
        put(&cache, 1000..1100);
        assert_eq!(given(&cache, 1090..1100), 10, "operation {operation}");
        assert!(disk.used_bytes() <= MIB);
        drop(cache);
        given(&open(&disk, MIB), 0..1100);
    }
}
