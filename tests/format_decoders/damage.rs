//! What happens to bytes: arbitrary damage of valid ones.

use proptest::{collection::vec, prelude::*, sample::Index};

/// One change.
#[derive(Clone, Debug)]
pub enum Damage {
    /// A bit.
    Flip(Index, u8),
    /// Eight bytes, as far as there are so many: lengths, counts and numbers become extreme.
    Number(Index, u64),
    /// The rest is gone.
    Cut(Index),
    /// Bytes that were not there.
    Insert(Index, Vec<u8>),
    /// A piece once more, somewhere else.
    Repeat(Index, Index, u8),
}

fn damage() -> BoxedStrategy<Damage> {
    let number = prop_oneof![
        any::<u64>(),
        (0..64_u32).prop_map(|bit| 1 << bit),
        (0..64_u32).prop_map(|bit| u64::MAX >> bit),
        0..300_u64,
    ];
    prop_oneof![
        4 => (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        4 => (any::<Index>(), number).prop_map(|(at, number)| Damage::Number(at, number)),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => (any::<Index>(), vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => (any::<Index>(), any::<Index>(), any::<u8>()).prop_map(|(from, to, length)| Damage::Repeat(from, to, length)),
    ]
    .boxed()
}

/// Some changes, one after the other.
pub fn damages() -> BoxedStrategy<Vec<Damage>> {
    vec(damage(), 1..4).boxed()
}

/// Applies them.
pub fn apply(damages: &[Damage], bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for damage in damages {
        match damage {
            Damage::Flip(at, bit) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            Damage::Number(at, number) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at..].iter_mut().zip(number.to_le_bytes()).for_each(|(to, from)| *to = from);
            }
            Damage::Flip(..) | Damage::Number(..) => {}
            Damage::Cut(at) => bytes.truncate(at.index(bytes.len() + 1)),
            Damage::Insert(at, new) => {
                let at = at.index(bytes.len() + 1);
                bytes.splice(at..at, new.iter().copied());
            }
            Damage::Repeat(from, to, length) => {
                let from = from.index(bytes.len() + 1);
                let piece = bytes[from..bytes.len().min(from + usize::from(*length))].to_vec();
                let to = to.index(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
        }
    }
    bytes
}
