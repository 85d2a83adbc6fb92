//! How much may be moved: never more than what moving and collecting together give back.

use super::judge::Entry;

/// Plaintext, bytes, since the volume was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    freed_bytes: u64,
    moved_bytes: u64,
}

impl Budget {
    /// An object was deleted that had so much.
    pub fn free(&mut self, plain_bytes: u64) {
        self.freed_bytes = self.freed_bytes.saturating_add(plain_bytes);
    }

    /// So much was moved.
    pub fn spend(&mut self, live_bytes: u64) {
        self.moved_bytes = self.moved_bytes.saturating_add(live_bytes);
    }

    /// Chooses objects to be moved, in their order (the sparsest first), of `room` live bytes at most, but one in any case. One of
    /// which half lives frees as much as is moved; any other is paid for by what was freed before, but where all sparse ones
    /// are to go that there are (`thorough`). Tiny ones are paid for in any case.
    #[must_use]
    pub fn choose(&self, sparse: &[Entry], tiny: &[Entry], room: u64, thorough: bool) -> Vec<Entry> {
        let mut chosen: Vec<Entry> = Vec::new();
        let mut live_bytes = 0_u64;
        for entry in sparse {
            if !chosen.is_empty() && live_bytes + entry.live_bytes > room {
                return chosen;
            }
            let pays = thorough || entry.live_bytes.saturating_mul(2) <= entry.plain_bytes;
            if !pays && !self.pays_for(live_bytes + entry.live_bytes) {
                break;
            }
            live_bytes += entry.live_bytes;
            chosen.push(*entry);
        }
        let merged: u64 = tiny.iter().map(|entry| entry.live_bytes).sum();
        if self.pays_for(merged) && live_bytes.saturating_add(merged) <= room {
            chosen.extend(tiny);
        }
        chosen
    }

    /// Whether what was freed is worth both this and all that was moved before.
    fn pays_for(&self, live_bytes: u64) -> bool {
        self.freed_bytes >= self.moved_bytes.saturating_add(live_bytes).saturating_mul(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{Generation, Sequence};

    fn entry(sequence: u64, plain_bytes: u64, live_bytes: u64) -> Entry {
        Entry {
            sequence: Sequence(sequence),
            generation: Generation(1),
            bytes: plain_bytes,
            plain_bytes,
            live_bytes,
        }
    }

    #[test]
    fn as_many_as_there_is_room_for_and_one_in_any_case() {
        let sparse = [entry(1, 1000, 100), entry(2, 1000, 400), entry(3, 1000, 500)];
        let budget = Budget::default();
        assert_eq!(budget.choose(&sparse, &[], 600, false), sparse[..2]);
        assert_eq!(budget.choose(&sparse, &[], 50, false), sparse[..1]);
        assert_eq!(budget.choose(&[], &[], 50, false), []);
    }

    #[test]
    fn of_what_lives_by_more_than_half_no_more_is_moved_than_was_freed() {
        let dense = [entry(1, 1000, 500), entry(2, 1000, 600)];
        let mut budget = Budget::default();
        assert_eq!(budget.choose(&dense, &[], 2000, false), dense[..1]);
        assert_eq!(budget.choose(&dense, &[], 2000, true), dense);
        budget.free(2200);
        assert_eq!(budget.choose(&dense, &[], 2000, false), dense);
        budget.spend(1);
        assert_eq!(budget.choose(&dense, &[], 2000, false), dense[..1]);
    }

    #[test]
    fn merging_is_paid_for_by_what_was_freed() {
        let tiny: Vec<Entry> = (0..20).map(|sequence| entry(sequence, 10, 10)).collect();
        let mut budget = Budget::default();
        assert_eq!(budget.choose(&[], &tiny, 1000, false), []);
        budget.free(400);
        assert_eq!(budget.choose(&[], &tiny, 1000, false), tiny);
        budget.spend(200);
        assert_eq!(budget.choose(&[], &tiny, 1000, false), []);
    }
}
