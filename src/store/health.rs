//! Whether the object store answers: who waits for it, since when, and what the log says of it.
//!
//! An outage begins when a call fails while none is waiting and ends when no call waits any more, so a store that
//! refuses one kind of call is away although others succeed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::StoreError;

/// Time between two warnings about one outage, and between the first warnings of two: one line a minute does not
/// drown a log, and a store that fails one call in a hundred does not either.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// How the store does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthSnapshot {
    /// Whether any call was ever answered.
    pub has_answered: bool,
    /// Calls that failed and wait to be made again.
    pub calls_waiting: u64,
    /// How long ago the first of them failed, milliseconds.
    pub away_ms: Option<u64>,
    /// The last call that failed, whether or not it was answered since.
    pub last_failure: Option<Failure>,
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What the store said, or did not.
    pub error: String,
    /// How long ago, milliseconds.
    pub ago_ms: u64,
}

#[derive(Debug, Default)]
pub(super) struct Health {
    answered: AtomicBool,
    outage: Mutex<Outage>,
}

#[derive(Debug, Default)]
struct Outage {
    calls_waiting: u64,
    since: Option<Instant>,
    warned_at: Option<Instant>,
    warned_in_this: bool,
    last_failure: Option<(Instant, String)>,
}

impl Health {
    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }

    pub(super) fn set_answered(&self) {
        self.answered.store(true, Ordering::Release);
    }

    pub(super) fn begin_waiting(health: &Arc<Health>) -> Waiting {
        let mut outage = health.lock();
        if outage.calls_waiting == 0 {
            outage.since = Some(Instant::now());
            outage.warned_in_this = false;
        }
        outage.calls_waiting += 1;
        Waiting { health: Arc::clone(health) }
    }

    pub(super) fn snapshot(&self) -> HealthSnapshot {
        let outage = self.lock();
        HealthSnapshot {
            has_answered: self.has_answered(),
            calls_waiting: outage.calls_waiting,
            away_ms: outage.since.map(elapsed_ms),
            last_failure: outage
                .last_failure
                .as_ref()
                .map(|(at, error)| Failure { error: error.clone(), ago_ms: elapsed_ms(*at) }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// One call's place among those that wait; given up when dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    health: Arc<Health>,
}

impl Waiting {
    /// Notes that a call failed, and says so in the log if it is time to say so again.
    pub(super) fn failed(&self, error: &StoreError) {
        let mut outage = self.health.lock();
        outage.last_failure = Some((Instant::now(), error.to_string()));
        let due = outage.warned_at.is_none_or(|at| at.elapsed() >= WARN_INTERVAL);
        if !due {
            tracing::debug!(%error, "object store call failed, trying again");
            return;
        }
        let away_s = outage.since.map_or(0, |since| since.elapsed().as_secs());
        let calls_waiting = outage.calls_waiting;
        if !self.health.has_answered() {
            // At the start the caller waits for a while only, and gets the error itself.
            tracing::info!(%error, "object store does not answer yet");
        } else if away_s == 0 {
            tracing::warn!(%error, "object store call failed, trying again");
        } else {
            tracing::warn!(%error, away_s, calls_waiting, "object store away for {away_s} s, {calls_waiting} calls waiting");
        }
        outage.warned_at = Some(Instant::now());
        outage.warned_in_this = true;
    }

    /// The call got its answer.
    pub(super) fn answered(self) {
        let outage = self.health.lock();
        if outage.calls_waiting == 1 && outage.warned_in_this {
            let away_s = outage.since.map_or(0, |since| since.elapsed().as_secs());
            // As loud as the warning that it ends.
            tracing::warn!(away_s, "object store answers again after {away_s} s");
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut outage = self.health.lock();
        outage.calls_waiting = outage.calls_waiting.saturating_sub(1);
        if outage.calls_waiting == 0 {
            outage.since = None;
        }
    }
}
