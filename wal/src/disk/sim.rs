//! A disk in memory that fails as disks do, from a seed.
//!
//! # Fault model
//!
//! - **Bytes.** A sector is 512 bytes. What was written and not synced is kept, dropped or torn sector by
//!   sector at [`SimDisk::crash`]: each
//!   sector independently holds its last synced bytes or those after any later write to it. So writes to
//!   different sectors are reordered at
//!   will, and one write is torn at any sectors; within a sector nothing is torn. Length changes are kept or
//!   dropped likewise.
//! - **Names.** Create, rename and remove, as long as they are not followed by [`Disk::sync`], each happened
//!   or not, independently, except that an
//!   operation on a name did not happen if an earlier one on that name did not.
//! - **A failed sync** ([`SimDisk::fail_syncs`], [`SimDisk::fail_at`]) marks the file's sectors clean: reads
//!   still see them, the medium never will, until they are
//!   written again. A failed folder sync leaves the names in doubt.
//! - **A lying sync** ([`SimDisk::lie`]) says it succeeded and did nothing.
//! - **A failed write** leaves its first half (whole sectors) in the file.
//! - **Death** at an operation ([`SimDisk::die_at`]): that operation is as if issued and not completed, every
//!   later call fails.
//! - **A full disk** ([`SimDisk::set_capacity`]): allocation and growth beyond it fail; writes to what is
//!   allocated do not.
//! - **Rot** ([`SimDisk::flip_bit`]) and **an older copy put back** ([`SimDisk::snapshot`],
//!   [`SimDisk::put_back`]).
//!
//! Not modelled: sectors damaged by a write to their neighbours, a medium that loses what was synced.
//!
//! Operations that change something or sync are counted from 1; reads and lists are not. All is
//! deterministic: the seed decides.

mod media;

use std::{
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Disk, DiskFile};
use media::{Media, NameChange};

/// Bytes that are written whole or not at all.
pub const SECTOR_BYTES: u64 = 512;

/// A disk in memory; clones are handles on the same disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    media: Media,
    counts: Counts,
    faults: Faults,
    dead: bool,
}

/// How often what was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations that change something or sync.
    pub operations: u64,
    /// Writes to files.
    pub writes: u64,
    /// Syncs of files.
    pub file_syncs: u64,
    /// Syncs of the folder.
    pub folder_syncs: u64,
}

#[derive(Clone, Default)]
struct Faults {
    fail_at: Option<u64>,
    die_at: Option<u64>,
    fail_syncs: bool,
    fail_reads: bool,
    lie: bool,
    capacity: Option<u64>,
}

/// What becomes of an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Succeeds,
    Fails,
    Dies,
}

impl Default for SimDisk {
    fn default() -> Self {
        SimDisk::new()
    }
}

impl SimDisk {
    /// An empty disk without faults.
    #[must_use]
    pub fn new() -> SimDisk {
        SimDisk::of(Media::default())
    }

    fn of(media: Media) -> SimDisk {
        SimDisk { state: Arc::new(Mutex::new(State { media, ..State::default() })) }
    }

    /// What has been done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Operations so far: those that change something or sync.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.lock().counts.operations
    }

    /// The operation of this number (the first is 1) fails; later ones do not.
    pub fn fail_at(&self, operation: u64) {
        self.lock().faults.fail_at = Some(operation);
    }

    /// The operation of this number does not complete, and every later call fails.
    pub fn die_at(&self, operation: u64) {
        self.lock().faults.die_at = Some(operation);
    }

    /// Takes back [`SimDisk::fail_at`] and [`SimDisk::die_at`].
    pub fn disarm(&self) {
        let faults = &mut self.lock().faults;
        (faults.fail_at, faults.die_at) = (None, None);
    }

    /// Every later call fails.
    pub fn die(&self) {
        self.lock().dead = true;
    }

    /// Whether it has died.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// From now on every sync fails, or (`false`) none.
    pub fn fail_syncs(&self, fails: bool) {
        self.lock().faults.fail_syncs = fails;
    }

    /// From now on every read fails, or (`false`) none.
    pub fn fail_reads(&self, fails: bool) {
        self.lock().faults.fail_reads = fails;
    }

    /// From now on syncs do nothing and say they did, or (`false`) are honest.
    pub fn lie(&self, lies: bool) {
        self.lock().faults.lie = lies;
    }

    /// Bytes that all files together may have; `None` is no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().faults.capacity = bytes;
    }

    /// Bytes that all files together have.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.lock().media.used_bytes()
    }

    /// Flips a bit (0 to 7) of a byte at rest. Whether there is such a byte.
    pub fn flip_bit(&self, name: &str, offset: u64, bit: u8) -> bool {
        self.lock().media.flip_bit(name, offset, bit)
    }

    /// What survives the loss of power now, as a new disk without faults. This disk stays as it is, so that
    /// other seeds can be tried.
    #[must_use]
    pub fn crash(&self, seed: u64) -> SimDisk {
        SimDisk::of(self.lock().media.crash(&mut Prng::new(seed)))
    }

    /// A copy of all files as they are, unsynced or not, as a new disk without faults.
    #[must_use]
    pub fn snapshot(&self) -> SimDisk {
        SimDisk::of(self.lock().media.clone())
    }

    /// Replaces all files by those of an older copy.
    pub fn put_back(&self, copy: &SimDisk) {
        let media = copy.lock().media.clone();
        self.lock().media = media;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, inode: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { disk: self.clone(), inode })
    }
}

impl State {
    /// Counts an operation and says what becomes of it; an error if the disk is dead.
    fn operate(&mut self) -> io::Result<Fate> {
        self.alive()?;
        self.counts.operations += 1;
        let now = Some(self.counts.operations);
        if self.faults.die_at == now {
            self.dead = true;
            return Ok(Fate::Dies);
        }
        Ok(if self.faults.fail_at == now { Fate::Fails } else { Fate::Succeeds })
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(io::Error::other("simulated: the disk is dead")) } else { Ok(()) }
    }

    fn readable(&self) -> io::Result<()> {
        self.alive()?;
        if self.faults.fail_reads { Err(failed()) } else { Ok(()) }
    }

    /// Whether so many more bytes fit.
    fn room_for(&self, more_bytes: u64) -> io::Result<()> {
        match self.faults.capacity {
            Some(capacity) if more_bytes > 0 && self.media.used_bytes() + more_bytes > capacity => {
                Err(io::Error::new(io::ErrorKind::StorageFull, "simulated: no space left"))
            }
            _ => Ok(()),
        }
    }

    /// Changes a name, unless fate is against it.
    fn change_name(&mut self, change: NameChange) -> io::Result<()> {
        let fate = self.operate()?;
        if fate != Fate::Fails {
            self.media.change_name(change);
        }
        settle(fate)
    }
}

fn failed() -> io::Error {
    io::Error::other("simulated: input/output error")
}

fn settle(fate: Fate) -> io::Result<()> {
    if fate == Fate::Succeeds { Ok(()) } else { Err(failed()) }
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("simulated: no file {name}"))
}

impl Disk for SimDisk {
    fn create(&self, name: &str, allocate_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.lock();
        state.alive()?;
        if state.media.find(name).is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("simulated: {name} exists")));
        }
        state.room_for(allocate_bytes)?;
        let inode = state.media.new_inode(allocate_bytes);
        state.change_name(NameChange::Create { name: name.to_owned(), inode })?;
        drop(state);
        Ok(self.file(inode))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.lock();
        state.alive()?;
        let inode = state.media.find(name).ok_or_else(|| not_found(name))?;
        drop(state);
        Ok(self.file(inode))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.lock();
        state.alive()?;
        Ok(state.media.names())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock();
        let inode = state.media.find(from).ok_or_else(|| not_found(from))?;
        state.change_name(NameChange::Rename { from: from.to_owned(), to: to.to_owned(), inode })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.media.find(name).ok_or_else(|| not_found(name))?;
        state.change_name(NameChange::Remove { name: name.to_owned() })
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.lock();
        let fate = state.operate()?;
        state.counts.folder_syncs += 1;
        if state.faults.fail_syncs {
            return Err(failed());
        }
        if fate == Fate::Succeeds && !state.faults.lie {
            state.media.sync_names();
        }
        settle(fate)
    }
}

struct SimFile {
    disk: SimDisk,
    inode: u64,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("inode", &self.inode).finish_non_exhaustive()
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        let state = self.disk.lock();
        state.alive()?;
        Ok(state.media.inode(self.inode)?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.lock();
        state.readable()?;
        Ok(state.media.inode(self.inode)?.read(buffer, offset))
    }

    fn read_at_nowait(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        self.read_at(buffer, offset).map(Some)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.alive()?;
        let grows = (offset + bytes.len() as u64).saturating_sub(state.media.inode(self.inode)?.len());
        state.room_for(grows)?;
        let fate = state.operate()?;
        state.counts.writes += 1;
        let half = (bytes.len() as u64 / 2).next_multiple_of(SECTOR_BYTES).min(bytes.len() as u64) as usize;
        let written = if fate == Fate::Fails { &bytes[..half] } else { bytes };
        state.media.inode_mut(self.inode)?.write(written, offset);
        settle(fate)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        let fate = state.operate()?;
        state.counts.file_syncs += 1;
        let fails = fate == Fate::Fails || state.faults.fail_syncs;
        let lies = state.faults.lie;
        let inode = state.media.inode_mut(self.inode)?;
        if fails {
            inode.forget();
            return Err(failed());
        }
        if fate == Fate::Succeeds && !lies {
            inode.sync();
        }
        settle(fate)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.alive()?;
        let grows = bytes.saturating_sub(state.media.inode(self.inode)?.len());
        state.room_for(grows)?;
        let fate = state.operate()?;
        if fate != Fate::Fails {
            state.media.inode_mut(self.inode)?.set_len(bytes);
        }
        settle(fate)
    }
}

/// splitmix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Prng(u64);

impl Prng {
    /// A generator that this seed decides.
    #[must_use]
    pub fn new(seed: u64) -> Prng {
        Prng(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }
}

#[cfg(test)]
mod tests;
