//! Files and names of the simulated disk: as calls see them, as the medium has them, and what lies between.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use super::{Prng, SECTOR_BYTES};

const SECTOR: usize = SECTOR_BYTES as usize;

/// A change to the names.
#[derive(Clone, Debug)]
pub(super) enum NameChange {
    Create { name: String, inode: u64 },
    Rename { from: String, to: String, inode: u64 },
    Remove { name: String },
}

impl NameChange {
    fn names(&self) -> Vec<&String> {
        match self {
            Self::Create { name, .. } | Self::Remove { name } => vec![name],
            Self::Rename { from, to, .. } => vec![from, to],
        }
    }

    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Create { name, inode } => {
                names.insert(name.clone(), *inode);
            }
            Self::Rename { from, to, inode } => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
            Self::Remove { name } => {
                names.remove(name);
            }
        }
    }
}

/// All there is.
#[derive(Clone, Debug, Default)]
pub(super) struct Media {
    inodes: BTreeMap<u64, Inode>,
    inodes_made: u64,
    names: BTreeMap<String, u64>,
    synced_names: BTreeMap<String, u64>,
    pending_names: Vec<NameChange>,
}

impl Media {
    pub(super) fn find(&self, name: &str) -> Option<u64> {
        self.names.get(name).copied()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.names.values().filter_map(|inode| self.inodes.get(inode)).map(Inode::len).sum()
    }

    pub(super) fn new_inode(&mut self, bytes: u64) -> u64 {
        self.inodes_made += 1;
        let mut inode = Inode::default();
        inode.set_len(bytes);
        self.inodes.insert(self.inodes_made, inode);
        self.inodes_made
    }

    pub(super) fn inode(&self, inode: u64) -> io::Result<&Inode> {
        self.inodes.get(&inode).ok_or_else(|| io::Error::other("simulated: stale file"))
    }

    pub(super) fn inode_mut(&mut self, inode: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&inode).ok_or_else(|| io::Error::other("simulated: stale file"))
    }

    pub(super) fn change_name(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.pending_names.push(change);
    }

    pub(super) fn sync_names(&mut self) {
        self.synced_names = self.names.clone();
        self.pending_names.clear();
    }

    pub(super) fn flip_bit(&mut self, name: &str, offset: u64, bit: u8) -> bool {
        let inode = self.find(name).and_then(|inode| self.inodes.get_mut(&inode));
        inode.is_some_and(|inode| inode.flip_bit(offset as usize, bit))
    }

    /// What survives.
    pub(super) fn crash(&self, prng: &mut Prng) -> Media {
        let luck = Luck::draw(prng);
        let mut names = self.synced_names.clone();
        let mut in_doubt = BTreeSet::new();
        for change in &self.pending_names {
            let blocked = change.names().into_iter().any(|name| in_doubt.contains(name));
            if !blocked && luck.keeps(prng) {
                change.apply(&mut names);
            } else {
                in_doubt.extend(change.names().into_iter().cloned());
            }
        }
        let alive: BTreeSet<u64> = names.values().copied().collect();
        let inodes = self
            .inodes
            .iter()
            .filter(|(number, _)| alive.contains(number))
            .map(|(number, inode)| (*number, inode.crash(luck, prng)))
            .collect();
        Media {
            inodes,
            inodes_made: self.inodes_made,
            synced_names: names.clone(),
            names,
            pending_names: Vec::new(),
        }
    }
}

/// How a crash treats what was not synced.
#[derive(Clone, Copy, Debug)]
enum Luck {
    KeepsAll,
    DropsAll,
    /// Keeps so many of 16.
    Keeps(u64),
}

impl Luck {
    fn draw(prng: &mut Prng) -> Luck {
        match prng.below(8) {
            0 => Luck::KeepsAll,
            1 => Luck::DropsAll,
            _ => Luck::Keeps(1 + prng.below(15)),
        }
    }

    fn keeps(self, prng: &mut Prng) -> bool {
        match self {
            Luck::KeepsAll => true,
            Luck::DropsAll => false,
            Luck::Keeps(of_16) => prng.below(16) < of_16,
        }
    }
}

/// A file.
#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    /// As reads see it.
    live: Vec<u8>,
    /// As the medium has it.
    synced: Vec<u8>,
    /// Sectors written since the last sync, in order, each whole as it was after the write.
    pending: Vec<(usize, [u8; SECTOR])>,
    /// Lengths since the last sync, in order.
    pending_lengths: Vec<usize>,
}

impl Inode {
    pub(super) fn len(&self) -> u64 {
        self.live.len() as u64
    }

    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let from = (offset as usize).min(self.live.len());
        let bytes = buffer.len().min(self.live.len() - from);
        buffer[..bytes].copy_from_slice(&self.live[from..from + bytes]);
        bytes
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        if bytes.is_empty() {
            return;
        }
        let from = offset as usize;
        let to = from + bytes.len();
        if to > self.live.len() {
            self.set_len(to as u64);
        }
        self.live[from..to].copy_from_slice(bytes);
        for sector in from / SECTOR..=(to - 1) / SECTOR {
            self.pending.push((sector, sector_of(&self.live, sector)));
        }
    }

    pub(super) fn set_len(&mut self, bytes: u64) {
        self.live.resize(bytes as usize, 0);
        self.pending_lengths.push(self.live.len());
    }

    /// Honest: all is on the medium.
    pub(super) fn sync(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if let Some(length) = std::mem::take(&mut self.pending_lengths).last() {
            self.synced.resize(*length, 0);
        }
        for (sector, bytes) in pending {
            put_sector(&mut self.synced, sector, &bytes);
        }
    }

    /// A failed sync: what is dirty is taken for clean.
    pub(super) fn forget(&mut self) {
        self.pending.clear();
        self.pending_lengths.clear();
    }

    fn flip_bit(&mut self, offset: usize, bit: u8) -> bool {
        if let Some(byte) = self.synced.get_mut(offset) {
            *byte ^= 1 << bit;
        }
        let live = self.live.get_mut(offset);
        live.is_some_and(|byte| {
            *byte ^= 1 << bit;
            true
        })
    }

    fn crash(&self, luck: Luck, prng: &mut Prng) -> Inode {
        let mut bytes = self.synced.clone();
        // Lengths happen in order; how many of them did is drawn.
        for length in &self.pending_lengths {
            if !luck.keeps(prng) {
                break;
            }
            bytes.resize(*length, 0);
        }
        // A sector's later versions cannot be there without it having been written at all; each may be its
        // last.
        let mut stopped = BTreeSet::new();
        for (sector, version) in &self.pending {
            if stopped.contains(sector) {
                continue;
            }
            if luck.keeps(prng) {
                put_sector(&mut bytes, *sector, version);
            } else {
                stopped.insert(*sector);
            }
        }
        Inode { live: bytes.clone(), synced: bytes, pending: Vec::new(), pending_lengths: Vec::new() }
    }
}

fn sector_of(bytes: &[u8], sector: usize) -> [u8; SECTOR] {
    let mut copy = [0; SECTOR];
    let from = sector * SECTOR;
    let to = bytes.len().min(from + SECTOR);
    copy[..to - from].copy_from_slice(&bytes[from..to]);
    copy
}

/// Puts a sector where it belongs, as far as the file goes.
fn put_sector(bytes: &mut [u8], sector: usize, version: &[u8; SECTOR]) {
    let from = sector * SECTOR;
    if from < bytes.len() {
        let to = bytes.len().min(from + SECTOR);
        bytes[from..to].copy_from_slice(&version[..to - from]);
    }
}
