//! Names of objects below a volume's prefix. Numbers are fixed-width hexadecimal: byte order is number order.

use super::ids::{Epoch, Generation, Sequence};

/// The volume header.
pub const HEADER: &str = "volume";
/// The header of a volume that is still being made by a rescue; it gets its name at the end.
pub const HEADER_UNFINISHED: &str = "volume.unfinished";
/// Of a volume that was a clone: that it depends on its origin no more.
pub const INDEPENDENT: &str = "independent";
/// Prefix of the key slots.
pub const KEYS: &str = "keys/";
/// Prefix of the claims.
pub const CLAIMS: &str = "claims/";
/// Prefix of the manifests.
pub const MANIFESTS: &str = "manifests/";
/// Prefix of the block objects.
pub const OBJECTS: &str = "objects/";

/// All prefixes below a volume's own: nothing else lies there.
pub const FOLDERS: [&str; 4] = [KEYS, CLAIMS, MANIFESTS, OBJECTS];

/// Name of a key slot.
#[must_use]
pub fn slot(id: u32) -> String {
    format!("{KEYS}{id:08x}")
}

/// Name of a claim.
#[must_use]
pub fn claim(generation: Generation, nonce: u64) -> String {
    format!("{CLAIMS}{:016x}-{nonce:016x}", generation.0)
}

/// A name that sorts after every claim of `generation` and before those of the next.
#[must_use]
pub fn after_claims(generation: Generation) -> String {
    format!("{CLAIMS}{:016x}-g", generation.0)
}

/// Name of a manifest.
#[must_use]
pub fn manifest(generation: Generation, epoch: Epoch) -> String {
    format!("{MANIFESTS}{:016x}-{:016x}", generation.0, epoch.0)
}

/// A name that sorts before every manifest of `generation` and after those of the one before.
#[must_use]
pub fn first_manifest(generation: Generation) -> String {
    format!("{MANIFESTS}{:016x}", generation.0)
}

/// Name of a block object.
#[must_use]
pub fn object(generation: Generation, sequence: Sequence) -> String {
    format!("{OBJECTS}{:016x}-{:016x}", generation.0, sequence.0)
}

fn pair(key: &str, prefix: &str) -> Option<(u64, u64)> {
    let (first, second) = key.strip_prefix(prefix)?.split_once('-')?;
    Some((number(first)?, number(second)?))
}

fn number(text: &str) -> Option<u64> {
    let is_number = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_number.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// Generation and nonce in a claim's name.
#[must_use]
pub fn parse_claim(key: &str) -> Option<(Generation, u64)> {
    pair(key, CLAIMS).map(|(generation, nonce)| (Generation(generation), nonce))
}

/// Generation and epoch in a manifest's name.
#[must_use]
pub fn parse_manifest(key: &str) -> Option<(Generation, Epoch)> {
    pair(key, MANIFESTS).map(|(generation, epoch)| (Generation(generation), Epoch(epoch)))
}

/// Generation and number in an object's name.
#[must_use]
pub fn parse_object(key: &str) -> Option<(Generation, Sequence)> {
    pair(key, OBJECTS).map(|(generation, sequence)| (Generation(generation), Sequence(sequence)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_format_says() {
        assert_eq!(manifest(Generation(1), Epoch(0x2a)), "manifests/0000000000000001-000000000000002a");
        assert_eq!(object(Generation(1), Sequence(2)), "objects/0000000000000001-0000000000000002");
        assert_eq!(slot(7), "keys/00000007");
    }

    #[test]
    fn byte_order_is_number_order() {
        let names = [1, 9, 10, 255, 256, u64::MAX].map(|n| object(Generation(n), Sequence(n)));
        assert!(names.is_sorted());
        assert!(claim(Generation(7), u64::MAX) < after_claims(Generation(7)));
        assert!(after_claims(Generation(7)) < claim(Generation(8), 0));
    }

    #[test]
    fn only_exact_names_parse() {
        assert_eq!(parse_manifest(&manifest(Generation(3), Epoch(4))), Some((Generation(3), Epoch(4))));
        assert_eq!(parse_claim(&claim(Generation(3), 4)), Some((Generation(3), 4)));
        assert_eq!(parse_object(&object(Generation(3), Sequence(4))), Some((Generation(3), Sequence(4))));
        for wrong in ["manifests/1-2", "manifests/", "manifests/000000000000000G-0000000000000000", "x"] {
            assert_eq!(parse_manifest(wrong), None, "{wrong}");
        }
        assert_eq!(parse_manifest("manifests/+000000000000001-0000000000000002"), None);
    }
}
