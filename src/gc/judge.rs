//! The entries of one leaf of the object table: what is garbage, what waits to be, what is worth moving.

use crate::format::{
    ids::{Epoch, Generation, Sequence},
    page::ObjectInfo,
};

/// Tiny objects are merged when a leaf has so many of them: each byte is then moved once for every such factor.
pub const TINY_MIN: usize = 16;

/// Waste is a burden where it is more than this share of all: then there is half as much again as is needed.
const WASTE_SHARE: u64 = 3;

/// An object of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub sequence: Sequence,
    /// Tenure that wrote it.
    pub generation: Generation,
    /// Its length, bytes.
    pub bytes: u64,
    /// Plaintext in its frames, bytes.
    pub plain_bytes: u64,
    /// As much of that as the maps name, bytes.
    pub live_bytes: u64,
}

impl Entry {
    fn new(sequence: Sequence, info: &ObjectInfo) -> Self {
        let ObjectInfo { generation, bytes, plain_bytes, live_bytes, .. } = *info;
        Self { sequence, generation, bytes, plain_bytes, live_bytes }
    }
}

/// What the entries of a leaf add up to; lengths of objects but where it says plaintext, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Of all.
    pub bytes: u64,
    /// Plaintext in objects that live.
    pub plain_bytes: u64,
    /// Plaintext that the maps name.
    pub live_bytes: u64,
    /// Of the dead that no snapshot needs, and, of those that live and that no snapshot has, the share that is dead.
    pub waste_bytes: u64,
    /// Of those that are dead, and that nothing but a kept manifest or the grace time holds.
    pub held_bytes: u64,
    /// Their number.
    pub held: u64,
    /// When the first and the last of them died.
    pub held_died: Option<(Epoch, Epoch)>,
}

impl Tally {
    /// Whether waste is more than a share of all that is there: then manifests and readers are waited for no longer.
    /// `listed_bytes` are in objects that the table does not have yet; less than `least` is no burden.
    #[must_use]
    pub fn is_burden(&self, listed_bytes: u64, least: u64) -> bool {
        self.waste_bytes >= least
            && self.waste_bytes.saturating_mul(WASTE_SHARE) > self.bytes.saturating_add(listed_bytes)
    }
}

/// What is to be done about a leaf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// To be deleted.
    pub garbage: Vec<Entry>,
    /// Worth moving, the sparsest first.
    pub sparse: Vec<Entry>,
    /// Worth merging: small as they are.
    pub tiny: Vec<Entry>,
    /// All that stays.
    pub tally: Tally,
}

/// How entries are judged.
pub struct Judge<'a> {
    /// What died up to here may go.
    pub horizon: Epoch,
    /// Whether a snapshot needs an object with this birth and death.
    pub pinned: &'a (dyn Fn(Epoch, Option<Epoch>) -> bool + Sync),
    /// Objects that are deleted, though the table still has them.
    pub is_deleted: &'a (dyn Fn(Sequence) -> bool + Sync),
    /// Objects whose blocks are moved, though the table does not know it yet.
    pub is_emptied: &'a (dyn Fn(Sequence) -> bool + Sync),
    /// Below this length an object is tiny, bytes.
    pub tiny_bytes: u64,
    /// Whether objects are worth moving of which up to three quarters live, and not just three fifths.
    pub thorough: bool,
}

impl Judge<'_> {
    /// Looks at the entries of a leaf.
    #[must_use]
    pub fn judge(&self, entries: &[(Sequence, ObjectInfo)]) -> Verdict {
        let mut verdict = Verdict::default();
        for (sequence, info) in entries.iter().filter(|(sequence, _)| !(self.is_deleted)(*sequence)) {
            let entry = Entry::new(*sequence, info);
            let pinned = (self.pinned)(info.born, info.died);
            let tally = &mut verdict.tally;
            match info.died {
                Some(died) if !pinned && died <= self.horizon => {
                    verdict.garbage.push(entry);
                    continue;
                }
                Some(died) if !pinned => {
                    tally.held += 1;
                    tally.held_bytes += info.bytes;
                    tally.waste_bytes += info.bytes;
                    let (first, last) = tally.held_died.unwrap_or((died, died));
                    tally.held_died = Some((first.min(died), last.max(died)));
                }
                Some(_) => {}
                None => {
                    tally.plain_bytes += info.plain_bytes;
                    tally.live_bytes += info.live_bytes;
                    if !pinned {
                        tally.waste_bytes += waste_bytes(info);
                    }
                    if pinned || (self.is_emptied)(*sequence) {
                        // It stays.
                    } else if self.is_sparse(info) {
                        verdict.sparse.push(entry);
                    } else if info.bytes < self.tiny_bytes {
                        verdict.tiny.push(entry);
                    }
                }
            }
            verdict.tally.bytes += info.bytes;
        }
        let share =
            |entry: &Entry| (u128::from(entry.live_bytes) << 64) / u128::from(entry.plain_bytes.max(1));
        verdict.sparse.sort_by_key(share);
        if verdict.tiny.len() < TINY_MIN {
            verdict.tiny.clear();
        }
        verdict
    }

    fn is_sparse(&self, info: &ObjectInfo) -> bool {
        if self.thorough {
            info.live_bytes.saturating_mul(4) <= info.plain_bytes.saturating_mul(3)
        } else {
            info.live_bytes.saturating_mul(5) <= info.plain_bytes.saturating_mul(3)
        }
    }
}

/// The length of what is dead in an object, as far as its plaintext tells.
fn waste_bytes(info: &ObjectInfo) -> u64 {
    let dead_bytes = u128::from(info.plain_bytes.saturating_sub(info.live_bytes));
    let waste_bytes = u128::from(info.bytes) * dead_bytes / u128::from(info.plain_bytes.max(1));
    waste_bytes as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn info(born: u64, died: Option<u64>, live_bytes: u64) -> ObjectInfo {
        ObjectInfo {
            generation: Generation(1),
            bytes: 1000,
            plain_bytes: 1000,
            live_bytes,
            born: Epoch(born),
            died: died.map(Epoch),
        }
    }

    fn judge(horizon: u64, pins: &[(u64, u64)], entries: &[(Sequence, ObjectInfo)]) -> Verdict {
        let pinned = |born: Epoch, died: Option<Epoch>| {
            pins.iter().any(|pin| born.0 <= pin.0 && died.is_none_or(|died| died.0 > pin.1))
        };
        let judge = Judge {
            horizon: Epoch(horizon),
            pinned: &pinned,
            is_deleted: &|_| false,
            is_emptied: &|_| false,
            tiny_bytes: 0,
            thorough: false,
        };
        judge.judge(entries)
    }

    #[test]
    fn what_died_in_time_and_is_not_pinned_is_garbage() {
        let entries = [
            (Sequence(1), info(1, Some(5), 0)),
            (Sequence(2), info(1, Some(6), 0)),
            (Sequence(3), info(2, Some(4), 0)),
            (Sequence(4), info(1, None, 500)),
            (Sequence(5), info(4, None, 400)),
            (Sequence(6), info(4, None, 601)),
        ];
        let verdict = judge(5, &[(3, 4)], &entries);
        let numbers = |entries: &[Entry]| entries.iter().map(|entry| entry.sequence.0).collect::<Vec<_>>();
        assert_eq!(numbers(&verdict.garbage), [3], "1 and 2 died after the snapshot's roots");
        assert_eq!(numbers(&verdict.sparse), [5], "4 is the snapshot's, too");
        assert_eq!(numbers(&judge(5, &[], &entries).garbage), [1, 3]);
        let tally = judge(5, &[], &entries).tally;
        assert_eq!((tally.held, tally.held_bytes, tally.bytes), (1, 1000, 4000));
        assert_eq!(tally.held_died, Some((Epoch(6), Epoch(6))));
        assert_eq!((tally.plain_bytes, tally.live_bytes), (3000, 1501));
        assert_eq!((tally.waste_bytes, judge(5, &[(3, 4)], &entries).tally.waste_bytes), (2499, 999));
    }

    proptest! {
        #[test]
        fn an_object_is_garbage_only_if_no_manifest_and_no_snapshot_can_name_it(
            horizon in 0..20_u64,
            pins in prop::collection::vec((0..20_u64, 0..20_u64), 0..4),
            objects in prop::collection::vec((0..20_u64, prop::option::of(0..20_u64)), 1..40),
        ) {
            let pins: Vec<(u64, u64)> = pins.iter().map(|(a, b)| ((*a).max(*b), (*a).min(*b))).collect();
            let entries: Vec<_> = (1..)
                .map(Sequence)
                .zip(&objects)
                .map(|(sequence, (born, died))| {
                    (sequence, info(*born, died.map(|died| died.max(*born)), u64::from(died.is_none())))
                })
                .collect();
            let verdict = judge(horizon, &pins, &entries);
            for (sequence, info) in &entries {
                let is_garbage = verdict.garbage.iter().any(|entry| entry.sequence == *sequence);
                // A reader of epoch `e` with roots of `r` names what was born up to `e` and had not died by `r`.
                let names = |e: u64, r: u64| info.born.0 <= e && info.died.is_none_or(|died| died.0 > r);
                let needed = (horizon..30).any(|epoch| names(epoch, horizon)) || pins.iter().any(|p| names(p.0, p.1));
                let dead_in_time = info.died.is_some_and(|died| died.0 <= horizon);
                prop_assert!(!(is_garbage && needed));
                prop_assert!(is_garbage || !dead_in_time || needed);
            }
        }
    }
}
