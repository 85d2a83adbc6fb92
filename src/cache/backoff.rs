//! When to try a disk again that failed, counted in calls: the cache has no clock.

/// Calls that are skipped after the first failure in a row; twice as many after each further one.
const SKIP_MIN: u32 = 8;
/// Most calls that are skipped: at a thousand frames a second, some seconds.
const SKIP_MAX: u32 = 4096;

/// Failures in a row, and what they make us skip.
#[derive(Debug)]
pub(super) struct Backoff {
    /// Failures in a row that are passed over before anything is skipped.
    patience: u32,
    failures: u32,
    skip: u32,
}

/// What a failure or success changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It had been well, and calls will be skipped from here on.
    Broke,
    /// It had been skipping, and is well again.
    Recovered,
    /// No news.
    Same,
}

impl Backoff {
    pub(super) fn new(patience: u32) -> Self {
        Self { patience, failures: 0, skip: 0 }
    }

    /// Whether the call is to be made.
    pub(super) fn admit(&mut self) -> bool {
        self.skip = match self.skip {
            0 => return true,
            skip => skip - 1,
        };
        false
    }

    pub(super) fn failed(&mut self) -> Change {
        self.failures = self.failures.saturating_add(1);
        let Some(over) = self.failures.checked_sub(self.patience + 1) else { return Change::Same };
        self.skip = SKIP_MIN.checked_shl(over).filter(|_| over < 16).unwrap_or(SKIP_MAX).min(SKIP_MAX);
        if over == 0 { Change::Broke } else { Change::Same }
    }

    pub(super) fn succeeded(&mut self) -> Change {
        let was_broken = self.failures > self.patience;
        self.failures = 0;
        self.skip = 0;
        if was_broken { Change::Recovered } else { Change::Same }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_never_gives_up_and_tells_each_change_once() {
        let mut backoff = Backoff::new(0);
        assert_eq!(backoff.failed(), Change::Broke);
        let mut skipped_most = 0;
        for _ in 0..100 {
            let skipped = (0..=SKIP_MAX).take_while(|_| !backoff.admit()).count() as u32;
            assert!((SKIP_MIN..=SKIP_MAX).contains(&skipped), "{skipped}");
            skipped_most = skipped_most.max(skipped);
            assert_eq!(backoff.failed(), Change::Same);
        }
        assert_eq!(skipped_most, SKIP_MAX);
        assert_eq!(backoff.succeeded(), Change::Recovered);
        assert_eq!(backoff.succeeded(), Change::Same);
        assert!(backoff.admit());
    }

    #[test]
    fn patience_passes_over_single_failures() {
        let mut backoff = Backoff::new(2);
        for _ in 0..10 {
            assert_eq!(backoff.failed(), Change::Same);
            assert_eq!(backoff.failed(), Change::Same);
            assert!(backoff.admit());
            assert_eq!(backoff.succeeded(), Change::Same);
        }
    }
}
