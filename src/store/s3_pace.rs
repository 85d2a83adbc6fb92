//! How long an upload is waited for: long enough for a slow link, and no longer than that on a fast one, where one that hangs
//! would hold up all that comes after it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::s3::ANSWER_TIMEOUT;

/// Slowest upload that is ever waited for, bytes a second: 1 Mbit/s among eight.
const SLOWEST: u64 = 16 << 10;
/// An upload may be this many times slower than those before it: eight of them share what one had.
const SLACK: u64 = 16;
/// Smaller ones say more of latency than of the link.
const TELLING_BYTES: u64 = 256 << 10;

/// What recent uploads took.
#[derive(Debug, Default)]
pub(super) struct UploadPace {
    /// Bytes a second, of one upload; 0 where none is known.
    seen: AtomicU64,
}

impl UploadPace {
    /// How long an upload of so many bytes is waited for.
    pub(super) fn limit(&self, bytes: u64) -> Duration {
        let slowest = (self.seen.load(Ordering::Relaxed) / SLACK).max(SLOWEST);
        ANSWER_TIMEOUT + Duration::from_secs(bytes / slowest)
    }

    /// One was answered.
    pub(super) fn answered(&self, bytes: u64, took: Duration) {
        if bytes < TELLING_BYTES {
            return;
        }
        let now = (bytes as f64 / took.as_secs_f64().max(1e-3)) as u64;
        let mixed = |seen: u64| if seen == 0 { now } else { seen - seen / 4 + now / 4 };
        let _ = self.seen.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |seen| Some(mixed(seen)));
    }

    /// One was not, in its time: if it is the link that is slower now, the next gets more.
    pub(super) fn ran_out(&self) {
        let _ = self.seen.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |seen| Some(seen / 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: u64 = 16 << 20;

    #[test]
    fn an_upload_that_hangs_is_given_up_sooner_where_others_are_fast() {
        let pace = UploadPace::default();
        assert_eq!(pace.limit(0), ANSWER_TIMEOUT);
        assert_eq!(pace.limit(OBJECT), ANSWER_TIMEOUT + Duration::from_secs(1024));
        pace.answered(OBJECT, Duration::from_secs(2));
        assert_eq!(pace.limit(OBJECT), ANSWER_TIMEOUT + Duration::from_secs(32));
        pace.answered(100, Duration::from_secs(50));
        assert_eq!(pace.limit(OBJECT), ANSWER_TIMEOUT + Duration::from_secs(32));
    }

    #[test]
    fn a_link_that_becomes_slow_is_waited_for_after_a_few_tries() {
        let pace = UploadPace::default();
        pace.answered(OBJECT, Duration::from_millis(100));
        // From 1.3 Gbit/s to 1 Mbit/s among eight.
        let needed = Duration::from_secs(OBJECT / SLOWEST);
        let mut tries = 0;
        while pace.limit(OBJECT) < needed {
            pace.ran_out();
            tries += 1;
        }
        assert!(tries <= 5, "{tries}");
        pace.answered(OBJECT, needed);
        assert!(pace.limit(OBJECT) >= needed);
    }
}
