//! Random numbers from a seed that a failing test shows; `S3BD_TEST_SEED` repeats it.

use std::ops::Range;

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Seeded {
    seed: u64,
    state: u64,
}

impl Seeded {
    /// From the environment, or a new one.
    pub fn new() -> Self {
        let given = std::env::var("S3BD_TEST_SEED").ok();
        let seed = match given {
            Some(text) => text.parse().expect("S3BD_TEST_SEED is a number"),
            None => getrandom::u64().expect("randomness"),
        };
        Self::from(seed)
    }

    /// From a number.
    pub fn from(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// Bytes that nothing compresses.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes: Vec<_> = (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(count);
        bytes
    }
}

impl Drop for Seeded {
    fn drop(&mut self) {
        if std::thread::panicking() {
            super::run::show(&format!("S3BD_TEST_SEED={}", self.seed));
        }
    }
}
