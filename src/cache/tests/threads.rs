//! The cache with its thread, on a real folder.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use wal::disk::{Disk, DiskFile, Folder, sim::SimDisk};

use super::{FrameCache, MIB, frame, frame_of, given, key, put};
use crate::cache::{Lookup, state::QUEUE_BYTES_MAX};

#[test]
fn frames_survive_closing_and_opening_in_a_real_folder() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = || Arc::new(Folder::open(temporary.path()).unwrap());
    let cache = FrameCache::open(folder(), 8 * MIB);
    put(&cache, 0..500);
    drop(cache);
    let cache = FrameCache::open_inline(folder(), 8 * MIB);
    assert_eq!(given(&cache, 0..500), 500);
    let hits = (0..500).filter(|number| cache.get_nowait(&key(*number)) == Lookup::Hit(frame(*number)));
    assert!(hits.count() > 0, "just written, so in the page cache (where the file system can tell)");
}

#[test]
fn readers_get_right_frames_or_none_while_segments_are_recycled() {
    let temporary = tempfile::tempdir().unwrap();
    let cache = FrameCache::open(Arc::new(Folder::open(temporary.path()).unwrap()), MIB);
    let written = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    let hits: usize = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4_u64)
            .map(|reader| {
                let (cache, written, done) = (&cache, &written, &done);
                scope.spawn(move || {
                    let mut prng = wal::disk::sim::Prng::new(reader);
                    let mut hits = 0;
                    while !done.load(Ordering::Relaxed) {
                        // The oldest that are still there are the next to go.
                        let back = prng.below(400);
                        let number = written.load(Ordering::Relaxed).saturating_sub(back);
                        hits += given(cache, [number]);
                        if let Lookup::Hit(got) = cache.get_nowait(&key(number / 2)) {
                            assert_eq!(got, frame(number / 2));
                        }
                    }
                    hits
                })
            })
            .collect();
        for number in 0..8_000 {
            put(&cache, [number]);
            written.store(number, Ordering::Relaxed);
            if number % 7 == 0 {
                cache.forget(&key(number / 2));
            }
        }
        done.store(true, Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    assert!(hits > 0);
    cache.close();
    let stats = cache.stats();
    assert_eq!(stats.errors, 0, "nobody took a recycled segment for a damaged one: {stats:?}");
    let on_disk: u64 =
        temporary.path().read_dir().unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(on_disk <= MIB && stats.file_bytes == on_disk);
}

/// A disk whose writes wait until they are let through.
#[derive(Clone, Debug, Default)]
struct Stuck {
    disk: SimDisk,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

#[derive(Debug, Default)]
struct Gate {
    is_open: bool,
    /// A write waits, or has.
    reached: bool,
}

#[derive(Debug)]
struct StuckFile(Stuck, Arc<dyn DiskFile>);

/// Lets everything through when a test ends, so that one that fails does not hang.
struct LetThrough<'a>(&'a Stuck);

impl Drop for LetThrough<'_> {
    fn drop(&mut self) {
        self.0.let_through();
    }
}

impl Stuck {
    fn let_through(&self) {
        self.gate.0.lock().unwrap().is_open = true;
        self.gate.1.notify_all();
    }

    fn wait_for_a_write(&self) {
        let gate = self.gate.0.lock().unwrap();
        drop(self.gate.1.wait_while(gate, |gate| !gate.reached).unwrap());
    }
}

impl Disk for Stuck {
    fn create(&self, name: &str, allocate_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(StuckFile(self.clone(), self.disk.create(name, allocate_bytes)?)))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(name)
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for StuckFile {
    fn len(&self) -> io::Result<u64> {
        self.1.len()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.1.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (gate, changed) = &*self.0.gate;
        let mut gate = gate.lock().unwrap();
        gate.reached = true;
        changed.notify_all();
        drop(changed.wait_while(gate, |gate| !gate.is_open).unwrap());
        self.1.write_at(bytes, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.1.set_len(bytes)
    }
}

#[test]
fn queue_is_bounded_and_read_from_and_never_waits_for_the_disk() {
    let disk = Stuck::default();
    let cache = FrameCache::open(Arc::new(disk.clone()), 256 * MIB);
    let _at_the_end = LetThrough(&disk);
    let large = |number| frame_of(number, 1 << 20);
    (0..100).for_each(|number| cache.insert(key(number), large(number)));
    let stats = cache.stats();
    assert!(stats.queued_bytes <= QUEUE_BYTES_MAX as u64);
    assert_eq!(stats.dropped, 100 - 31, "31 of a mebibyte and their overhead fit");
    assert_eq!(cache.get_nowait(&key(30)), Lookup::Hit(large(30)));
    assert_eq!(cache.get(&key(0)), Some(large(0)), "even the one that is being written");
    assert!(cache.contains(&key(30)) && !cache.contains(&key(31)));
    disk.wait_for_a_write();
    // Forgotten while it waits, and while it is being written.
    cache.forget(&key(30));
    cache.forget(&key(0));
    assert_eq!((cache.get(&key(30)), cache.get(&key(0))), (None, None));
    disk.let_through();
    cache.close();
    let stats = cache.stats();
    assert_eq!((stats.queued_bytes, stats.entries), (0, 29));
    assert_eq!((cache.get(&key(30)), cache.get(&key(0))), (None, None));
    assert!((1..30).all(|number| cache.get(&key(number)) == Some(large(number))));
}

#[test]
fn forgotten_inserts_do_not_pile_up_behind_a_stuck_disk() {
    let disk = Stuck::default();
    let cache = FrameCache::open(Arc::new(disk.clone()), MIB);
    let _at_the_end = LetThrough(&disk);
    put(&cache, [0]);
    disk.wait_for_a_write();
    let frame = frame(1);
    for _ in 0..100_000 {
        cache.insert(key(1), frame.clone());
        cache.forget(&key(1));
    }
    assert_eq!(cache.stats().dropped, 100_000 - (1 << 16));
    disk.let_through();
    cache.close();
    assert_eq!(given(&cache, [0, 1]), 1);
}

#[test]
fn frame_that_is_replaced_while_it_is_written_is_the_new_one() {
    let disk = Stuck::default();
    let cache = FrameCache::open(Arc::new(disk.clone()), MIB);
    let _at_the_end = LetThrough(&disk);
    let sealed_wrongly = frame(2);
    cache.insert(key(1), sealed_wrongly);
    disk.wait_for_a_write();
    cache.forget(&key(1));
    put(&cache, [1]);
    disk.let_through();
    cache.close();
    assert_eq!((given(&cache, [1]), cache.stats().entries), (1, 1));
}
