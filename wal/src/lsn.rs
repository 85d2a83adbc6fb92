//! A position in the log: the byte's distance from the beginning of an endless file.

use std::fmt;

/// A byte position in an endless log; LSN order is log order. A position at which a
/// record was written is never given to another, whatever crashes; one that was queued and never written may
/// be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The beginning of every log.
    pub const ZERO: Lsn = Lsn(0);

    /// The position `bytes` further on. Saturates: a position read from a damaged file may be anything.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_add(bytes))
    }

    /// Bytes from `earlier` to here; zero if `earlier` is not earlier.
    #[must_use]
    pub fn since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The first multiple of `unit_bytes` at or after this position.
    #[must_use]
    pub fn round_up(self, unit_bytes: u64) -> Lsn {
        Lsn(self.0.div_ceil(unit_bytes).saturating_mul(unit_bytes))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lsn({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displays_as_hexadecimal() {
        assert_eq!(Lsn(0xabc0).to_string(), "0xabc0");
    }

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        assert_eq!(Lsn(u64::MAX).plus(1), Lsn(u64::MAX));
        assert_eq!(Lsn(3).since(Lsn(5)), 0);
        assert_eq!(Lsn(4097).round_up(4096), Lsn(8192));
        assert_eq!(Lsn(4096).round_up(4096), Lsn(4096));
        assert_eq!(Lsn(u64::MAX).round_up(4096), Lsn(u64::MAX));
    }
}
