//! The store seam's test tool: a [`Store`] that fails as told, over one that does not.
//!
//! # Fault model
//! - A call fails before it reaches the store, or after the store applied it (a lost answer).
//! - A change lands late, after its caller was told that the outcome is unknown; or lands a second time later.
//! - A call is slow, or never answered.
//! - A body is cut short or has one bit flipped, and nothing says so: what reads it has to notice.
//! - The store refuses listings; it is away; it is away for ever after the n-th change (a crash point).
//!
//! Within these faults the store keeps its promises: what it acknowledged is seen by every later call that is answered.
//!
//! # Concurrency
//! Calls are numbered in the order they are made. Late changes run as tasks of the tokio runtime, so with its clock
//! paused a run with one seed is the same each time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{ErrorKind, Folder, Got, Listed, Put, PutMode, Range, Store, StoreError};

/// What a plan decides by.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Number of this call, from 0.
    pub index: u64,
    /// Number of this change (put or delete), from 0; `None` for a read.
    pub change_index: Option<u64>,
    /// "put", "get", "head", "list" or "delete".
    pub operation: &'static str,
    /// The key, the prefix, or the first of the keys to delete.
    pub key: &'a str,
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It goes through.
    None,
    /// It fails with this kind and changes nothing.
    Before(ErrorKind),
    /// It is applied and the answer is lost: OutcomeUnknown for a change, Retry for a read.
    After,
    /// A change: answered OutcomeUnknown at once, applied this much later. A read fails with Retry.
    Late(Duration),
    /// A change: applied and answered, and applied once more this much later. A read goes through.
    Twice(Duration),
    /// It goes through, this much later.
    Delay(Duration),
    /// It is applied, and never answered.
    Hang,
    /// A get answers with half of the bytes, as if the object were shorter. Anything else goes through.
    CutShort,
    /// A get answers with this bit flipped (modulo the length). Anything else goes through.
    FlipBit(u64),
}

/// Decides for each call what happens to it.
pub trait Plan: Send + Sync {
    /// The fault of one call.
    fn decide(&self, call: &Call<'_>) -> Fault;
}

impl<F: Fn(&Call<'_>) -> Fault + Send + Sync> Plan for F {
    fn decide(&self, call: &Call<'_>) -> Fault {
        self(call)
    }
}

/// Faults by chance, out of a seed; each rate in calls out of a thousand. They add up to a thousand at most.
#[derive(Clone, Copy, Debug, Default)]
pub struct SeededPlan {
    /// Decides everything; a seed gives the same faults to the same calls.
    pub seed: u64,
    /// [`Fault::Before`] with [`ErrorKind::Retry`].
    pub before: u64,
    /// [`Fault::Before`] with [`ErrorKind::Denied`].
    pub denied: u64,
    /// [`Fault::After`].
    pub after: u64,
    /// [`Fault::Late`].
    pub late: u64,
    /// [`Fault::Twice`].
    pub twice: u64,
    /// [`Fault::Delay`].
    pub delay: u64,
    /// [`Fault::CutShort`].
    pub cut_short: u64,
    /// [`Fault::FlipBit`].
    pub flip_bit: u64,
    /// Longest time of the faults that have one.
    pub delay_max: Duration,
}

impl Plan for SeededPlan {
    fn decide(&self, call: &Call<'_>) -> Fault {
        let random = mix(self.seed ^ mix(call.index));
        let detail = mix(random);
        let delay_ms = u64::try_from(self.delay_max.as_millis()).unwrap_or(u64::MAX).max(1);
        let delay = Duration::from_millis(detail % delay_ms + 1);
        let table = [
            (self.before, Fault::Before(ErrorKind::Retry)),
            (self.denied, Fault::Before(ErrorKind::Denied)),
            (self.after, Fault::After),
            (self.late, Fault::Late(delay)),
            (self.twice, Fault::Twice(delay)),
            (self.delay, Fault::Delay(delay)),
            (self.cut_short, Fault::CutShort),
            (self.flip_bit, Fault::FlipBit(detail)),
        ];
        let mut draw = random % 1000;
        for (rate, fault) in table {
            if draw < rate {
                return fault;
            }
            draw -= rate;
        }
        Fault::None
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): one step from a state to an output.
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Calls made so far, failed ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallCounts {
    /// Puts.
    pub puts: u64,
    /// Gets.
    pub gets: u64,
    /// Heads.
    pub heads: u64,
    /// Listings.
    pub lists: u64,
    /// Deletes, whatever their number of keys.
    pub deletes: u64,
}

impl CallCounts {
    /// Puts and deletes: the points at which a crash may fall.
    pub fn changes(&self) -> u64 {
        self.puts + self.deletes
    }

    /// All calls.
    pub fn total(&self) -> u64 {
        self.changes() + self.gets + self.heads + self.lists
    }
}

/// A [`Store`] with faults; clones share plan, switches and counts.
pub struct Faulty<S> {
    inner: Arc<S>,
    control: Arc<Control>,
}

struct Control {
    plan: std::sync::RwLock<Arc<dyn Plan>>,
    away: AtomicBool,
    list_refused: AtomicBool,
    changes_max: AtomicU64,
    crashed: AtomicBool,
    late_pending: AtomicU64,
    counts: Counters,
}

#[derive(Default)]
struct Counters {
    total: AtomicU64,
    changes: AtomicU64,
    puts: AtomicU64,
    gets: AtomicU64,
    heads: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
}

impl<S> Clone for Faulty<S> {
    fn clone(&self) -> Faulty<S> {
        Faulty { inner: Arc::clone(&self.inner), control: Arc::clone(&self.control) }
    }
}

impl<S: fmt::Debug> fmt::Debug for Faulty<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty")
            .field("inner", &self.inner)
            .field("counts", &self.control.counts.load())
            .finish()
    }
}

impl<S: Store + 'static> Faulty<S> {
    /// Wraps `inner`, without any fault yet.
    pub fn new(inner: S) -> Faulty<S> {
        Faulty::with_plan(inner, |_: &Call<'_>| Fault::None)
    }

    /// Wraps `inner` with a plan.
    pub fn with_plan(inner: S, plan: impl Plan + 'static) -> Faulty<S> {
        let control = Control {
            plan: std::sync::RwLock::new(Arc::new(plan)),
            away: AtomicBool::new(false),
            list_refused: AtomicBool::new(false),
            changes_max: AtomicU64::new(u64::MAX),
            crashed: AtomicBool::new(false),
            late_pending: AtomicU64::new(0),
            counts: Counters::default(),
        };
        Faulty { inner: Arc::new(inner), control: Arc::new(control) }
    }

    /// Another plan for the calls from here on.
    pub fn set_plan(&self, plan: impl Plan + 'static) {
        let mut slot = self.control.plan.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        *slot = Arc::new(plan);
    }

    /// While `true`, every call fails with [`ErrorKind::Retry`]. What is under way still lands.
    pub fn set_away(&self, away: bool) {
        self.control.away.store(away, Ordering::SeqCst);
    }

    /// While `true`, listings are [`ErrorKind::Denied`].
    pub fn set_list_refused(&self, refused: bool) {
        self.control.list_refused.store(refused, Ordering::SeqCst);
    }

    /// Lets `changes_max` more changes through; the one after them and every call that follows fails with
    /// [`ErrorKind::Retry`], as if the program had died there. `None` lifts it.
    pub fn set_crash_after(&self, changes_max: Option<u64>) {
        let made = self.control.counts.changes.load(Ordering::SeqCst);
        let last = changes_max.map_or(u64::MAX, |more| made.saturating_add(more));
        self.control.changes_max.store(last, Ordering::SeqCst);
        self.control.crashed.store(false, Ordering::SeqCst);
    }

    /// Whether the crash point was reached.
    pub fn has_crashed(&self) -> bool {
        self.control.crashed.load(Ordering::SeqCst)
    }

    /// Late changes that have not landed yet.
    pub fn late_pending(&self) -> u64 {
        self.control.late_pending.load(Ordering::SeqCst)
    }

    /// Calls made so far.
    pub fn counts(&self) -> CallCounts {
        self.control.counts.load()
    }

    /// The store without faults.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// Numbers the call, applies the switches, asks the plan.
    fn decide(&self, operation: &'static str, key: &str) -> Fault {
        let control = &self.control;
        let (index, change_index) = control.counts.count(operation);
        if change_index.is_some_and(|index| index >= control.changes_max.load(Ordering::SeqCst)) {
            control.crashed.store(true, Ordering::SeqCst);
        }
        if control.crashed.load(Ordering::SeqCst) || control.away.load(Ordering::SeqCst) {
            return Fault::Before(ErrorKind::Retry);
        }
        if operation == "list" && control.list_refused.load(Ordering::SeqCst) {
            return Fault::Before(ErrorKind::Denied);
        }
        let plan = Arc::clone(&control.plan.read().unwrap_or_else(|poisoned| poisoned.into_inner()));
        plan.decide(&Call { index, change_index, operation, key })
    }

    /// Runs a change with a fault; `apply` is called once for each time that it lands.
    async fn change<T, F>(
        &self,
        fault: Fault,
        operation: &'static str,
        key: &str,
        apply: impl Fn(Arc<S>) -> F + Send + 'static,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let unknown =
            || StoreError::new(ErrorKind::OutcomeUnknown, operation, key, "injected: the answer was lost");
        match fault {
            Fault::None | Fault::CutShort | Fault::FlipBit(_) => apply(Arc::clone(&self.inner)).await,
            Fault::Before(kind) => Err(before(kind, operation, key)),
            Fault::After => {
                apply(Arc::clone(&self.inner)).await?;
                Err(unknown())
            }
            Fault::Late(after) => {
                self.land_later(after, apply);
                Err(unknown())
            }
            Fault::Twice(after) => {
                let answer = apply(Arc::clone(&self.inner)).await?;
                self.land_later(after, apply);
                Ok(answer)
            }
            Fault::Delay(by) => {
                tokio::time::sleep(by).await;
                apply(Arc::clone(&self.inner)).await
            }
            Fault::Hang => {
                apply(Arc::clone(&self.inner)).await?;
                std::future::pending().await
            }
        }
    }

    fn land_later<T, F>(&self, after: Duration, apply: impl Fn(Arc<S>) -> F + Send + 'static)
    where
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let control = Arc::clone(&self.control);
        let inner = Arc::clone(&self.inner);
        control.late_pending.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            // Whatever comes of it, there is nobody left to tell.
            let _ = apply(inner).await;
            control.late_pending.fetch_sub(1, Ordering::SeqCst);
        });
    }

    /// What happens to a read before its bytes are seen.
    async fn read<T>(
        &self,
        fault: Fault,
        operation: &'static str,
        key: &str,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        match fault {
            Fault::None | Fault::Twice(_) | Fault::CutShort | Fault::FlipBit(_) => call.await,
            Fault::Before(kind) => Err(before(kind, operation, key)),
            Fault::After | Fault::Late(_) => Err(before(ErrorKind::Retry, operation, key)),
            Fault::Delay(by) => {
                tokio::time::sleep(by).await;
                call.await
            }
            Fault::Hang => std::future::pending().await,
        }
    }
}

fn before(kind: ErrorKind, operation: &'static str, key: &str) -> StoreError {
    StoreError::new(kind, operation, key, format!("injected: {kind:?}"))
}

fn damage(fault: Fault, got: Got) -> Got {
    match fault {
        Fault::CutShort => {
            let bytes = got.bytes.slice(..got.bytes.len() / 2);
            let object_bytes = got.object_bytes - (got.bytes.len() - bytes.len()) as u64;
            Got { bytes, object_bytes }
        }
        Fault::FlipBit(bit) if !got.bytes.is_empty() => {
            let mut bytes = got.bytes.to_vec();
            let bit = (bit % (bytes.len() as u64 * 8)) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
            Got { bytes: bytes.into(), ..got }
        }
        _ => got,
    }
}

impl Counters {
    fn count(&self, operation: &'static str) -> (u64, Option<u64>) {
        let (counter, change) = match operation {
            "put" => (&self.puts, true),
            "delete" => (&self.deletes, true),
            "get" => (&self.gets, false),
            "head" => (&self.heads, false),
            _ => (&self.lists, false),
        };
        counter.fetch_add(1, Ordering::SeqCst);
        let index = self.total.fetch_add(1, Ordering::SeqCst);
        (index, change.then(|| self.changes.fetch_add(1, Ordering::SeqCst)))
    }

    fn load(&self) -> CallCounts {
        CallCounts {
            puts: self.puts.load(Ordering::SeqCst),
            gets: self.gets.load(Ordering::SeqCst),
            heads: self.heads.load(Ordering::SeqCst),
            lists: self.lists.load(Ordering::SeqCst),
            deletes: self.deletes.load(Ordering::SeqCst),
        }
    }
}

#[async_trait]
impl<S: Store + 'static> Store for Faulty<S> {
    async fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError> {
        let fault = self.decide("put", key);
        let (owned_key, owned_body) = (key.to_owned(), body.to_vec());
        self.change(fault, "put", key, move |inner| {
            let (key, body) = (owned_key.clone(), owned_body.clone());
            async move { inner.put(&key, &body, mode).await }
        })
        .await
    }

    async fn get(&self, key: &str, range: Range) -> Result<Got, StoreError> {
        let fault = self.decide("get", key);
        let got = self.read(fault, "get", key, self.inner.get(key, range)).await?;
        Ok(damage(fault, got))
    }

    async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let fault = self.decide("head", key);
        self.read(fault, "head", key, self.inner.head(key)).await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Listed>, StoreError> {
        let fault = self.decide("list", prefix);
        self.read(fault, "list", prefix, self.inner.list(prefix, start_after, limit)).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Folder, StoreError> {
        let fault = self.decide("list", prefix);
        self.read(fault, "list", prefix, self.inner.list_folder(prefix)).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let first_key = keys.first().cloned().unwrap_or_default();
        let fault = self.decide("delete", &first_key);
        let owned_keys = keys.to_vec();
        self.change(fault, "delete", &first_key, move |inner| {
            let keys = owned_keys.clone();
            async move { inner.delete(&keys).await }
        })
        .await
    }
}
