//! What records of the log do to a volume, counted.

use std::{
    fmt,
    ops::{Add, AddAssign},
};

/// Records of the log by what they do. Shown in bytes; people who want other units use [`Tally::describe`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Writes.
    pub writes: u64,
    /// Bytes that the writes hold.
    pub bytes: u64,
    /// Trims and writes of zeroes. Their length is that of a range and no data, so it is counted nowhere.
    pub zeroes: u64,
    /// Changes of the volume's size.
    pub resizes: u64,
}

impl Tally {
    /// One trim or write of zeroes.
    pub const ZERO: Self = Self { writes: 0, bytes: 0, zeroes: 1, resizes: 0 };
    /// One change of the volume's size.
    pub const RESIZE: Self = Self { writes: 0, bytes: 0, zeroes: 0, resizes: 1 };

    /// One write of `bytes`.
    #[must_use]
    pub fn write(bytes: u64) -> Self {
        Self { writes: 1, bytes, ..Self::default() }
    }

    /// Records of all kinds.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.writes + self.zeroes + self.resizes
    }

    /// The same in words, with the writes' bytes as `show_bytes` has them.
    pub fn describe(&self, show_bytes: impl Fn(u64) -> String) -> String {
        let mut parts = Vec::new();
        if self.writes > 0 || self.records() == 0 {
            parts.push(format!("{} ({})", count(self.writes, "write"), show_bytes(self.bytes)));
        }
        if self.zeroes > 0 {
            // The log does not tell the two apart.
            let or = if self.zeroes == 1 { "zeroing" } else { "zeroings" };
            parts.push(format!("{} or {or}", count(self.zeroes, "trim")));
        }
        if self.resizes > 0 {
            parts.push(format!("{} of the size", count(self.resizes, "change")));
        }
        parts.join(", ")
    }
}

/// A number of things in words.
pub(crate) fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe(|bytes| format!("{bytes} bytes")))
    }
}

impl Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            writes: self.writes + other.writes,
            bytes: self.bytes + other.bytes,
            zeroes: self.zeroes + other.zeroes,
            resizes: self.resizes + other.resizes,
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_told_by_what_they_do() {
        let mut tally = Tally::default();
        assert_eq!(tally.to_string(), "0 writes (0 bytes)");
        tally += Tally::ZERO;
        assert_eq!(tally.to_string(), "1 trim or zeroing");
        tally += Tally::write(10) + Tally::RESIZE;
        assert_eq!(tally.to_string(), "1 write (10 bytes), 1 trim or zeroing, 1 change of the size");
        tally = tally + tally;
        assert_eq!(tally.to_string(), "2 writes (20 bytes), 2 trims or zeroings, 2 changes of the size");
        assert_eq!(tally.records(), 6);
    }
}
