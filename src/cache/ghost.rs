//! The keys that left probation unread not long ago.
//!
//! A table of fixed size and one probe, so it may forget early where two keys want one slot, and never late: a key is known for as
//! many departures as the table has slots. Eight bytes a slot.

/// Fewest slots.
const SLOTS_MIN: u64 = 64;
/// Most slots: 32 MiB.
const SLOTS_MAX: u64 = 4 << 20;

#[derive(Default)]
pub(super) struct Ghost {
    /// Fingerprint and the departure it came with; departure 0 is an empty slot.
    slots: Vec<(u32, u32)>,
    departures: u32,
}

impl Ghost {
    pub(super) fn new(keys: u64) -> Self {
        Self { slots: vec![(0, 0); keys.clamp(SLOTS_MIN, SLOTS_MAX) as usize], departures: 0 }
    }

    fn place(&self, hash: u64) -> (usize, u32) {
        ((hash % self.slots.len() as u64) as usize, (hash >> 32) as u32)
    }

    pub(super) fn insert(&mut self, hash: u64) {
        if self.slots.is_empty() {
            return;
        }
        // After 2^32 departures a slot that was never used again may look young: one needless promotion.
        self.departures = self.departures.wrapping_add(1).max(1);
        let (at, fingerprint) = self.place(hash);
        self.slots[at] = (fingerprint, self.departures);
    }

    /// Whether the key left not long ago; it is forgotten by that.
    pub(super) fn take(&mut self, hash: u64) -> bool {
        if self.slots.is_empty() {
            return false;
        }
        let (at, fingerprint) = self.place(hash);
        let (found, departure) = self.slots[at];
        let known = departure != 0
            && found == fingerprint
            && (self.departures.wrapping_sub(departure) as usize) < self.slots.len();
        if known {
            self.slots[at] = (0, 0);
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ghost_knows_a_key_once_and_not_for_ever() {
        let mut ghost = Ghost::new(100);
        ghost.insert(5);
        assert!(ghost.take(5));
        assert!(!ghost.take(5));
        ghost.insert(5);
        (0..100).for_each(|other| ghost.insert((other % 3) + 6));
        assert!(!ghost.take(5), "a hundred others left after it");
    }
}
