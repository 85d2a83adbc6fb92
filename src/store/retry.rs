//! The layer that waits: calls again what may pass, for as long as it takes, and settles what is unknown.
//!
//! # Invariants
//! - `Ok(Put::Created)` means that the bytes were seen under the name or that the store acknowledged them;
//!   `Ok(Put::Exists)` means that other bytes were seen there, or that the store said so of a put that no lost answer
//!   preceded.
//! - A put or delete that was given up after its outcome became unknown ends in [`ErrorKind::OutcomeUnknown`],
//!   whatever came last.
//!
//! # Errors and retries
//!
//! | kind | before the first answer | afterwards |
//! |---|---|---|
//! | Retry | waits, up to `first_answer_deadline` | waits |
//! | OutcomeUnknown | reads back or calls again | the same |
//! | Denied, NotFound of the bucket | returned | waits, up to `refusal_deadline`: credentials rotate, folders are mounted again |
//! | Invalid, Archived, NotFound of a key, Short | returned | returned |
//!
//! # Not handled
//! On a store that ignores [`PutMode::Create`], a put whose answer was lost may land after this layer saw other bytes
//! and said [`Put::Exists`]; only the protocol above (claims) can deal with that.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::health::{Health, HealthSnapshot, Waiting};
use super::{ErrorKind, Folder, Got, Listed, Put, PutMode, Range, Store, StoreError};

/// Where waiting times get their randomness: any 64 bits.
pub type Random = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How long to wait, and for how long in all.
#[derive(Clone, Debug)]
pub struct RetryOptions {
    /// Upper bound of the first waiting time; it doubles with each failure.
    pub wait_min: Duration,
    /// Upper bound of every waiting time.
    pub wait_max: Duration,
    /// After this long a get, head or list gives its error back; `None` waits for ever.
    pub read_deadline: Option<Duration>,
    /// After this long a put or delete gives its error back; `None` waits for ever.
    pub change_deadline: Option<Duration>,
    /// As long as the store has never answered, no call waits longer than this; `None` waits for ever.
    pub first_answer_deadline: Option<Duration>,
    /// A call that the store refuses gives its error back this long after the first refusal; `None` waits for ever.
    pub refusal_deadline: Option<Duration>,
}

impl Default for RetryOptions {
    /// 100 ms to 30 s, as the AWS SDKs wait, and no deadlines.
    fn default() -> RetryOptions {
        RetryOptions {
            wait_min: Duration::from_millis(100),
            wait_max: Duration::from_secs(30),
            read_deadline: None,
            change_deadline: None,
            first_answer_deadline: None,
            refusal_deadline: None,
        }
    }
}

/// A [`Store`] that retries the calls of another. Clones share the inner store and what is known of its health.
pub struct Retrying<S> {
    inner: Arc<S>,
    options: RetryOptions,
    random: Random,
    health: Arc<Health>,
}

impl<S> Clone for Retrying<S> {
    fn clone(&self) -> Retrying<S> {
        Retrying {
            inner: Arc::clone(&self.inner),
            options: self.options.clone(),
            random: Arc::clone(&self.random),
            health: Arc::clone(&self.health),
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for Retrying<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retrying").field("inner", &self.inner).field("options", &self.options).finish()
    }
}

impl<S: Store> Retrying<S> {
    /// Wraps `inner`; `random` spreads the waiting times.
    pub fn new(inner: S, options: RetryOptions, random: Random) -> Retrying<S> {
        Retrying { inner: Arc::new(inner), options, random, health: Arc::new(Health::default()) }
    }

    /// The same store with another patience for reads; health is shared.
    pub fn with_read_deadline(&self, read_deadline: Option<Duration>) -> Retrying<S> {
        let mut other = self.clone();
        other.options.read_deadline = read_deadline;
        other
    }

    /// Whether the store answers, and who waits for it.
    pub fn health(&self) -> HealthSnapshot {
        self.health.snapshot()
    }

    fn patience(&self, operation: &'static str, key: &str) -> Patience<'_> {
        let change = matches!(operation, "put" | "delete");
        Patience {
            operation,
            key: key.to_owned(),
            change,
            options: &self.options,
            random: &self.random,
            health: &self.health,
            started: Instant::now(),
            deadline: if change { self.options.change_deadline } else { self.options.read_deadline },
            failures: 0,
            waiting: None,
            refused_since: None,
            outcome_unknown: false,
            last_reason: None,
        }
    }

    /// Calls again until there is an answer.
    async fn until_answered<T, F>(
        &self,
        operation: &'static str,
        key: &str,
        call: impl Fn() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        let mut patience = self.patience(operation, key);
        loop {
            match patience.attempt(call()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => patience.wait(error).await?,
            }
        }
    }

    /// Calls `put` until the outcome is known.
    async fn put_until_known(
        &self,
        patience: &mut Patience<'_>,
        key: &str,
        body: &[Bytes],
        mode: PutMode,
    ) -> Result<Put, StoreError> {
        loop {
            match patience.attempt(self.inner.put(key, body, mode)).await {
                // An earlier try of ours may be what is there.
                Ok(Put::Exists) if patience.outcome_unknown => {}
                Ok(put) => return Ok(put),
                Err(error) => patience.wait(error).await?,
            }
            if mode == PutMode::Create && patience.outcome_unknown {
                match self.read_back(patience, key, body).await? {
                    ReadBack::Ours => return Ok(Put::Created),
                    ReadBack::Other => return Ok(Put::Exists),
                    ReadBack::Absent => {}
                }
            }
        }
    }

    /// What is under the name now.
    async fn read_back(
        &self,
        patience: &mut Patience<'_>,
        key: &str,
        body: &[Bytes],
    ) -> Result<ReadBack, StoreError> {
        loop {
            match patience.attempt(self.inner.get(key, Range::Full)).await {
                Ok(got) if is_concatenation(&got.bytes, body) => return Ok(ReadBack::Ours),
                Ok(_) => return Ok(ReadBack::Other),
                Err(error) if is_absent(&error) => return Ok(ReadBack::Absent),
                Err(error) => patience.wait(error).await?,
            }
        }
    }
}

enum ReadBack {
    Ours,
    Other,
    Absent,
}

fn is_absent(error: &StoreError) -> bool {
    error.kind == ErrorKind::NotFound && !error.key.is_empty()
}

fn is_concatenation(whole: &[u8], parts: &[Bytes]) -> bool {
    let mut rest = whole;
    for part in parts {
        match rest.strip_prefix(part.as_ref()) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    rest.is_empty()
}

/// The waiting of one call: its attempts, its deadline, its place among the calls that wait.
struct Patience<'a> {
    operation: &'static str,
    key: String,
    change: bool,
    options: &'a RetryOptions,
    random: &'a Random,
    health: &'a Arc<Health>,
    started: Instant,
    deadline: Option<Duration>,
    failures: u32,
    waiting: Option<Waiting>,
    /// When the store first refused this call.
    refused_since: Option<Instant>,
    /// A change was sent whose answer never came.
    outcome_unknown: bool,
    last_reason: Option<String>,
}

impl Patience<'_> {
    /// One try, cut off at the deadline.
    async fn attempt<T>(
        &mut self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let result = match self.deadline_at() {
            None => call.await,
            Some(at) => match tokio::time::timeout_at(at, call).await {
                Ok(result) => result,
                Err(_) => Err(self.cut_off()),
            },
        };
        match &result {
            Ok(_) => self.answered(),
            Err(error) if error.kind == ErrorKind::Short || is_absent(error) => self.answered(),
            Err(error) => self.outcome_unknown |= self.change && error.kind == ErrorKind::OutcomeUnknown,
        }
        result
    }

    /// Returns when it is time to try again.
    ///
    /// # Errors
    /// What the caller gets, where waiting is no use or the deadline has come.
    async fn wait(&mut self, error: StoreError) -> Result<(), StoreError> {
        if !self.may_pass(&error) {
            return Err(self.give_up(error));
        }
        let waiting = self.waiting.get_or_insert_with(|| Health::begin_waiting(self.health));
        waiting.failed(&error);
        let wake_at = Instant::now() + self.next_wait();
        if let Some(deadline_at) = self.deadline_at().filter(|at| *at <= wake_at) {
            tokio::time::sleep_until(deadline_at).await;
            return Err(self.give_up(error));
        }
        if let Some(deadline_at) = self.refusal_deadline_at(&error).filter(|at| *at <= wake_at) {
            tokio::time::sleep_until(deadline_at).await;
            return Err(self.give_up(self.refused(error)));
        }
        self.last_reason = Some(error.reason);
        tokio::time::sleep_until(wake_at).await;
        Ok(())
    }

    fn may_pass(&self, error: &StoreError) -> bool {
        match error.kind {
            ErrorKind::Retry | ErrorKind::OutcomeUnknown => true,
            ErrorKind::Denied => self.health.has_answered(),
            ErrorKind::NotFound => error.key.is_empty() && self.health.has_answered(),
            ErrorKind::Short | ErrorKind::Archived | ErrorKind::Invalid => false,
        }
    }

    /// When to give up a call that was refused just now; none of one that failed otherwise.
    fn refusal_deadline_at(&mut self, error: &StoreError) -> Option<Instant> {
        let deadline = self.options.refusal_deadline?;
        let refused = matches!(error.kind, ErrorKind::Denied | ErrorKind::NotFound);
        refused.then(|| *self.refused_since.get_or_insert_with(Instant::now) + deadline)
    }

    fn refused(&self, error: StoreError) -> StoreError {
        let seconds = self.refused_since.map_or(0, |since| since.elapsed().as_secs());
        let reason = format!("refused for {seconds} s: {}", error.reason);
        StoreError { reason, ..error }
    }

    /// Full jitter: anything from zero to the bound, which doubles each time.
    fn next_wait(&mut self) -> Duration {
        let doubled = self.options.wait_min.saturating_mul(1 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        let bound = doubled.min(self.options.wait_max);
        let bound_us = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros((self.random)() % bound_us.saturating_add(1).max(1))
    }

    fn deadline_at(&self) -> Option<Instant> {
        let first = match self.health.has_answered() {
            true => None,
            false => self.options.first_answer_deadline,
        };
        let shortest = [self.deadline, first].into_iter().flatten().min()?;
        Some(self.started + shortest)
    }

    fn answered(&mut self) {
        self.health.set_answered();
        if let Some(waiting) = self.waiting.take() {
            waiting.answered();
        }
    }

    fn cut_off(&self) -> StoreError {
        let kind = if self.change { ErrorKind::OutcomeUnknown } else { ErrorKind::Retry };
        let last = self.last_reason.as_deref().unwrap_or("the first try has not ended");
        let reason = format!("no answer within {} s: {last}", self.started.elapsed().as_secs());
        StoreError::new(kind, self.operation, &self.key, reason)
    }

    /// An error that the caller gets: names the call, and never hides that a change may have happened.
    fn give_up(&self, error: StoreError) -> StoreError {
        let kind = if self.outcome_unknown { ErrorKind::OutcomeUnknown } else { error.kind };
        StoreError { kind, operation: self.operation, ..error }
    }
}

#[async_trait]
impl<S: Store> Store for Retrying<S> {
    async fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError> {
        let mut patience = self.patience("put", key);
        self.put_until_known(&mut patience, key, body, mode).await
    }

    async fn get(&self, key: &str, range: Range) -> Result<Got, StoreError> {
        self.until_answered("get", key, || self.inner.get(key, range)).await
    }

    async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        self.until_answered("head", key, || self.inner.head(key)).await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Listed>, StoreError> {
        self.until_answered("list", prefix, || self.inner.list(prefix, start_after, limit)).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Folder, StoreError> {
        self.until_answered("list", prefix, || self.inner.list_folder(prefix)).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let first_key = keys.first().map_or("", String::as_str);
        self.until_answered("delete", first_key, || self.inner.delete(keys)).await
    }
}
