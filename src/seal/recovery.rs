//! Recovery keys: 256 random bits in a form that a person can copy by hand (`docs/format.md`, "Recovery keys").
//!
//! # Invariants
//! - Eight groups of eight characters, each with four bytes of the key and a check of its own that depends on its place:
//!   a wrong character, two neighbours that were swapped and two groups that were swapped are always found, and the group
//!   is named.
//! - Other text is taken for a recovery key by accident once in 2^64.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Digits of Crockford's base 32: no I, L, O or U.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const GROUPS: usize = 8;
/// Digits of a group.
const DIGITS_OF_GROUP: usize = 8;
/// Bytes of the key in a group; the fifth byte is their check.
const BYTES_OF_GROUP: usize = 4;
/// With as many right groups it is a recovery key with an error in it, and not another text: by accident, once in 2^26.
const RIGHT_GROUPS_MIN: usize = 4;

/// A recovery key.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct RecoveryKey([u8; GROUPS * BYTES_OF_GROUP]);

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey(..)")
    }
}

/// What a text that was typed is.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    /// A recovery key.
    Key(RecoveryKey),
    /// A recovery key with errors in these groups, counted from 1.
    Mistyped(Vec<usize>),
    /// Something else.
    Other,
}

impl RecoveryKey {
    /// From its random bytes.
    #[must_use]
    pub fn new(bytes: [u8; GROUPS * BYTES_OF_GROUP]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; GROUPS * BYTES_OF_GROUP] {
        &self.0
    }

    /// The form to print: groups with hyphens between them.
    #[must_use]
    pub fn text(&self) -> Zeroizing<String> {
        // Allocated once, so that no copy is left behind.
        let mut text = Zeroizing::new(String::with_capacity(GROUPS * (DIGITS_OF_GROUP + 1)));
        for (place, bytes) in self.0.chunks_exact(BYTES_OF_GROUP).enumerate() {
            if place > 0 {
                text.push('-');
            }
            let number = bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
            let number = number << 8 | u64::from(check(place, bytes));
            for digit in (0..DIGITS_OF_GROUP).rev() {
                text.push(char::from(DIGITS[(number >> (5 * digit)) as usize % 32]));
            }
        }
        text
    }

    /// Reads what was typed: capital or small letters, with hyphens, spaces or nothing between the groups; O is read as 0,
    /// I and L as 1.
    #[must_use]
    pub fn read(text: &[u8]) -> Typed {
        let Some(groups) = split(text) else { return Typed::Other };
        let mut key = Self([0; GROUPS * BYTES_OF_GROUP]);
        let mut wrong = Vec::new();
        for (place, to) in key.0.chunks_exact_mut(BYTES_OF_GROUP).enumerate() {
            match read_group(place, groups[place]) {
                Some(bytes) => to.copy_from_slice(&bytes),
                None => wrong.push(place + 1),
            }
        }
        match wrong.len() {
            0 => Typed::Key(key),
            errors if GROUPS - errors >= RIGHT_GROUPS_MIN => Typed::Mistyped(wrong),
            _ => Typed::Other,
        }
    }
}

/// The groups as they are separated, or of eight digits each where nothing separates them.
fn split(text: &[u8]) -> Option<Vec<&[u8]>> {
    let is_separator = |byte: &u8| *byte == b'-' || byte.is_ascii_whitespace();
    let groups: Vec<_> = text.split(is_separator).filter(|group| !group.is_empty()).collect();
    match groups[..] {
        [all] if all.len() == GROUPS * DIGITS_OF_GROUP => Some(all.chunks(DIGITS_OF_GROUP).collect()),
        _ => (groups.len() == GROUPS).then_some(groups),
    }
}

fn read_group(place: usize, group: &[u8]) -> Option<[u8; BYTES_OF_GROUP]> {
    if group.len() != DIGITS_OF_GROUP {
        return None;
    }
    let mut number = 0_u64;
    for byte in group {
        let digit = match byte.to_ascii_uppercase() {
            b'O' => b'0',
            b'I' | b'L' => b'1',
            other => other,
        };
        number = number << 5 | DIGITS.iter().position(|known| *known == digit)? as u64;
    }
    let [_, _, _, bytes @ .., given] = number.to_be_bytes();
    (check(place, &bytes) == given).then_some(bytes)
}

/// CRC-8 with the primitive polynomial 0x11D, which finds every error within eight bits in a row, hence one wrong digit.
/// Of degree 8 and without factors, it finds swapped neighbours, too: their difference is five bits times x^5 + 1. The
/// initial value is the group's number, so a group does not pass for another.
fn check(place: usize, bytes: &[u8]) -> u8 {
    bytes.iter().fold(place as u8 + 1, |crc, byte| {
        (0..8).fold(crc ^ byte, |crc, _| if crc & 0x80 == 0 { crc << 1 } else { crc << 1 ^ 0x1D })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> RecoveryKey {
        RecoveryKey::new(std::array::from_fn(|at| (at as u8).wrapping_mul(83).wrapping_add(7)))
    }

    fn mistyped(text: &[u8]) -> Vec<usize> {
        match RecoveryKey::read(text) {
            Typed::Mistyped(groups) => groups,
            other => panic!("{other:?}: {}", String::from_utf8_lossy(text)),
        }
    }

    #[test]
    fn is_read_however_it_was_written_down() {
        let text = key().text();
        assert_eq!(text.len(), 71);
        let ways = [
            text.to_string(),
            text.to_lowercase(),
            text.replace('-', " "),
            text.replace('-', ""),
            text.replace('-', " - "),
            text.replace('0', "o").replace('1', "L"),
            format!("  {}\t", text.replace('1', "i")),
        ];
        for way in ways {
            assert_eq!(RecoveryKey::read(way.as_bytes()), Typed::Key(key()), "{way}");
        }
    }

    #[test]
    fn every_wrong_character_and_every_swap_is_found_in_its_group() {
        let text = key().text();
        let text = text.as_bytes();
        for at in (0..text.len()).filter(|at| text[*at] != b'-') {
            let group = at / 9 + 1;
            for digit in DIGITS.iter().chain(b"U!").filter(|digit| **digit != text[at]) {
                let mut wrong = text.to_vec();
                wrong[at] = *digit;
                assert_eq!(mistyped(&wrong), [group]);
            }
            let (left, right) = (text[at], text.get(at + 1).copied().unwrap_or(b'-'));
            if right != b'-' && left != right {
                let mut swapped = text.to_vec();
                swapped.swap(at, at + 1);
                assert_eq!(mistyped(&swapped), [group]);
            }
            let missing = [&text[..at], &text[at + 1..]].concat();
            assert_eq!(mistyped(&missing), [group]);
        }
        let groups: Vec<_> = text.split(|byte| *byte == b'-').collect();
        for (one, two) in (0..8).flat_map(|one| (0..one).map(move |two| (two, one))) {
            let mut swapped = groups.clone();
            swapped.swap(one, two);
            assert_eq!(mistyped(&swapped.join(&b'-')), [one + 1, two + 1]);
        }
    }

    #[test]
    fn passwords_are_something_else() {
        let hexadecimal = "0123456789abcdef".repeat(4);
        let words = "one two three four five six seven eight";
        for text in ["", "correct horse battery staple", &hexadecimal, words, "--------", &"A".repeat(64)] {
            assert_eq!(RecoveryKey::read(text.as_bytes()), Typed::Other, "{text}");
        }
    }
}
