//! What the retrying layer does about each failure, with tokio's clock paused.

mod store_suite;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::StreamExt;
use proptest::prelude::*;
use s3bd::store::faulty::{Call, Fault, Faulty, SeededPlan};
use s3bd::store::limited::{Limited, Limits};
use s3bd::store::memory::Memory;
use s3bd::store::metered::{Meter, Metered};
use s3bd::store::retry::{Random, RetryOptions, Retrying};
use s3bd::store::{ErrorKind, Folder, Got, Listed, Put, PutMode, Range, Store, StoreError};
use store_suite::body;
use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(3600);

/// SplitMix64 from a fixed seed.
fn random() -> Random {
    let state = AtomicU64::new(1);
    Arc::new(move || {
        let mut z = state.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

struct Setup {
    memory: Memory,
    faulty: Faulty<Memory>,
    retrying: Retrying<Faulty<Memory>>,
}

fn setup_with(options: RetryOptions) -> Setup {
    let memory = Memory::new();
    let faulty = Faulty::new(memory.clone());
    let retrying = Retrying::new(faulty.clone(), options, random());
    Setup { memory, faulty, retrying }
}

fn setup() -> Setup {
    setup_with(RetryOptions::default())
}

/// The store has answered before.
async fn answered(setup: &Setup) {
    setup.retrying.list("", None, None).await.unwrap();
}

/// The n-th call gets the n-th fault, later ones none.
fn in_turn<const N: usize>(faults: [Fault; N]) -> impl Fn(&Call<'_>) -> Fault + Send + Sync {
    let next = AtomicUsize::new(0);
    move |_| faults.get(next.fetch_add(1, Ordering::SeqCst)).copied().unwrap_or(Fault::None)
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_to_a_create_is_no_conflict() {
    let s = setup();
    s.faulty.set_plan(in_turn([Fault::After]));
    assert_eq!(s.retrying.put("claim", &body("mine"), PutMode::Create).await.unwrap(), Put::Created);
    assert_eq!((s.faulty.counts().puts, s.faulty.counts().gets), (1, 1), "read back, not put again");
}

#[tokio::test(start_paused = true)]
async fn a_lost_create_that_never_arrived_is_put_again() {
    let s = setup();
    s.faulty.set_plan(in_turn([Fault::Before(ErrorKind::OutcomeUnknown)]));
    assert_eq!(s.retrying.put("claim", &body("mine"), PutMode::Create).await.unwrap(), Put::Created);
    assert_eq!(s.memory.snapshot().get("claim").unwrap(), "mine");
}

#[tokio::test(start_paused = true)]
async fn a_lost_create_of_a_taken_name_is_a_conflict() {
    let s = setup();
    s.memory.put("claim", &body("theirs"), PutMode::Create).await.unwrap();
    s.faulty.set_plan(in_turn([Fault::After]));
    // Applied, refused, and the refusal lost: faulty answers what the store said only to the tries that are answered.
    assert_eq!(s.retrying.put("claim", &body("mine"), PutMode::Create).await.unwrap(), Put::Exists);
    assert_eq!(s.memory.snapshot().get("claim").unwrap(), "theirs");
}

#[tokio::test(start_paused = true)]
async fn a_create_that_lands_between_two_tries_is_ours() {
    let s = setup();
    // Read back before it lands, put again after it has: the store says Exists of our own bytes.
    let landing = Duration::from_secs(10);
    s.faulty.set_plan(in_turn([Fault::Late(landing), Fault::None, Fault::Delay(2 * landing)]));
    assert_eq!(s.retrying.put("claim", &body("mine"), PutMode::Create).await.unwrap(), Put::Created);
    assert_eq!(s.faulty.counts().puts, 2);
    assert_eq!(s.faulty.late_pending(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_parts_of_a_body_are_compared_as_one() {
    for (stored, expected) in
        [("abc", Put::Created), ("ab", Put::Exists), ("abcd", Put::Exists), ("abx", Put::Exists)]
    {
        let s = setup();
        s.memory.put("k", &body(stored), PutMode::Create).await.unwrap();
        s.faulty.set_plan(in_turn([Fault::Before(ErrorKind::OutcomeUnknown)]));
        let parts = [Bytes::from_static(b"a"), Bytes::new(), Bytes::from_static(b"bc")];
        assert_eq!(s.retrying.put("k", &parts, PutMode::Create).await.unwrap(), expected, "{stored}");
    }
}

#[tokio::test(start_paused = true)]
async fn lost_answers_to_replace_and_delete_are_repeated() {
    let s = setup();
    s.faulty.set_plan(in_turn([Fault::After, Fault::Before(ErrorKind::OutcomeUnknown)]));
    assert_eq!(s.retrying.put("k", &body("1"), PutMode::Replace).await.unwrap(), Put::Created);
    assert_eq!((s.faulty.counts().puts, s.faulty.counts().gets), (3, 0));
    s.faulty.set_plan(in_turn([Fault::After, Fault::Before(ErrorKind::Retry)]));
    s.retrying.delete(&["k".to_owned()]).await.unwrap();
    assert_eq!(s.faulty.counts().deletes, 3);
    assert!(s.memory.snapshot().is_empty());
}

#[tokio::test(start_paused = true)]
async fn refusals_at_the_start_come_back_at_once() {
    for kind in [ErrorKind::Denied, ErrorKind::Invalid] {
        let s = setup();
        s.faulty.set_plan(move |_: &Call<'_>| Fault::Before(kind));
        assert_eq!(s.retrying.list("", None, None).await.unwrap_err().kind, kind);
        assert_eq!(s.retrying.put("k", &[], PutMode::Create).await.unwrap_err().kind, kind);
        assert_eq!(s.faulty.counts().total(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_403_in_mid_life_is_waited_out() {
    let s = setup();
    answered(&s).await;
    s.faulty.set_plan(in_turn([Fault::Before(ErrorKind::Denied); 5]));
    s.retrying.put("k", &body("1"), PutMode::Create).await.unwrap();
    s.faulty.set_plan(in_turn([Fault::Before(ErrorKind::Denied); 5]));
    assert_eq!(s.retrying.get("k", Range::Full).await.unwrap().bytes, "1");
    s.faulty.set_plan(in_turn([Fault::Before(ErrorKind::Invalid)]));
    assert_eq!(s.retrying.get("k", Range::Full).await.unwrap_err().kind, ErrorKind::Invalid, "never passes");
}

/// As commands that come to an end have it.
#[tokio::test(start_paused = true)]
async fn a_lasting_refusal_ends_a_call_after_a_bounded_time_where_that_is_asked_for() {
    let minute = Duration::from_secs(60);
    let options = RetryOptions { refusal_deadline: Some(minute), ..RetryOptions::default() };
    let s = setup_with(options);
    answered(&s).await;
    s.faulty.set_plan(|call: &Call<'_>| match call.operation {
        "delete" => Fault::Before(ErrorKind::Denied),
        _ => Fault::None,
    });
    let started = Instant::now();
    let error = s.retrying.delete(&["k".to_owned()]).await.unwrap_err();
    assert_eq!(
        (error.kind, error.operation, error.key.as_str(), started.elapsed()),
        (ErrorKind::Denied, "delete", "k", minute)
    );
    assert!(error.to_string().contains("delete k: refused for 60 s: "), "{error}");
    // What passes is waited out, and a store that is away is none that refuses.
    s.faulty.set_plan(in_turn([Fault::Before(ErrorKind::Denied); 5]));
    s.retrying.put("k", &body("1"), PutMode::Create).await.unwrap();
    s.faulty.set_plan(|_: &Call<'_>| Fault::Before(ErrorKind::Retry));
    let get = s.retrying.get("k", Range::Full);
    assert!(tokio::time::timeout(HOUR, get).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_object_in_an_archive_is_an_error_at_once_and_no_outage() {
    let s = setup();
    answered(&s).await;
    s.faulty.set_plan(in_turn([Fault::Before(ErrorKind::Archived)]));
    assert_eq!(s.retrying.get("k", Range::Full).await.unwrap_err().kind, ErrorKind::Archived);
    assert_eq!((s.faulty.counts().gets, s.retrying.health().away_ms), (1, None));
}

#[tokio::test(start_paused = true)]
async fn an_hour_away_is_an_hour_of_waiting() {
    let s = setup();
    answered(&s).await;
    s.faulty.set_away(true);
    let started = Instant::now();
    let calls: Vec<_> = (0..4)
        .map(|n| {
            let retrying = s.retrying.clone();
            tokio::spawn(async move { retrying.put(&format!("k{n}"), &body("1"), PutMode::Create).await })
        })
        .collect();
    tokio::time::sleep(HOUR).await;
    let health = s.retrying.health();
    assert_eq!(health.calls_waiting, 4);
    assert!(health.away_ms.is_some_and(|ms| (3_599_000..=3_600_000).contains(&ms)), "{health:?}");
    s.faulty.set_away(false);
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), Put::Created);
    }
    assert!(
        started.elapsed() <= HOUR + RetryOptions::default().wait_max,
        "noticed late: {:?}",
        started.elapsed()
    );
    let tries = s.faulty.counts().puts;
    assert!((4 * 120..4 * 400).contains(&tries), "{tries} tries in an hour");
    assert_eq!(s.retrying.health().calls_waiting, 0);
    assert_eq!(s.retrying.health().away_ms, None);
}

#[tokio::test(start_paused = true)]
async fn deadlines_end_reads_and_leave_changes_waiting() {
    let options = RetryOptions { read_deadline: Some(Duration::from_secs(30)), ..RetryOptions::default() };
    let s = setup_with(options);
    answered(&s).await;
    s.faulty.set_away(true);
    let started = Instant::now();
    let error = s.retrying.get("k", Range::Full).await.unwrap_err();
    assert_eq!((error.kind, error.operation, error.key.as_str()), (ErrorKind::Retry, "get", "k"));
    assert_eq!(started.elapsed(), Duration::from_secs(30));
    let one = body("1");
    let put = s.retrying.put("k", &one, PutMode::Create);
    assert!(tokio::time::timeout(HOUR, put).await.is_err());
    let patient = s.retrying.with_read_deadline(None);
    assert!(tokio::time::timeout(HOUR, patient.list("", None, None)).await.is_err());
    assert_eq!(s.retrying.health().calls_waiting, 0, "calls that were dropped do not wait");
}

#[tokio::test(start_paused = true)]
async fn a_read_that_hangs_ends_at_its_deadline() {
    let s =
        setup_with(RetryOptions { read_deadline: Some(Duration::from_secs(9)), ..RetryOptions::default() });
    s.faulty.set_plan(|_: &Call<'_>| Fault::Hang);
    let started = Instant::now();
    let error = s.retrying.head("k").await.unwrap_err();
    assert_eq!((error.kind, error.operation), (ErrorKind::Retry, "head"));
    assert!(error.reason.contains("9 s"), "{error}");
    assert_eq!(started.elapsed(), Duration::from_secs(9));
}

#[tokio::test(start_paused = true)]
async fn a_change_that_was_given_up_is_never_said_to_have_failed() {
    let deadline = Some(Duration::from_secs(60));
    let s = setup_with(RetryOptions { change_deadline: deadline, ..RetryOptions::default() });
    answered(&s).await;
    // The answer lost once, then refusals until the end: the first try may have been applied.
    for faults in [ErrorKind::Retry, ErrorKind::Denied, ErrorKind::Invalid] {
        let first = AtomicUsize::new(0);
        s.faulty.set_plan(move |_: &Call<'_>| match first.fetch_add(1, Ordering::SeqCst) {
            0 => Fault::After,
            _ => Fault::Before(faults),
        });
        for mode in [PutMode::Create, PutMode::Replace] {
            let error = s.retrying.put("k", &body("1"), mode).await.unwrap_err();
            let expected = if mode == PutMode::Create { ErrorKind::OutcomeUnknown } else { faults };
            assert_eq!(error.kind, expected, "{faults:?}: {error}");
        }
    }
    s.faulty.set_plan(|_: &Call<'_>| Fault::Hang);
    let error = s.retrying.put("hang", &body("1"), PutMode::Create).await.unwrap_err();
    assert_eq!((error.kind, error.operation), (ErrorKind::OutcomeUnknown, "put"));
    assert_eq!(s.retrying.delete(&["hang".to_owned()]).await.unwrap_err().kind, ErrorKind::OutcomeUnknown);
    s.faulty.set_plan(|_: &Call<'_>| Fault::Before(ErrorKind::Retry));
    assert_eq!(s.retrying.put("no", &body("1"), PutMode::Create).await.unwrap_err().kind, ErrorKind::Retry);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answered_is_given_up_when_asked_to() {
    let first_answer_deadline = Some(Duration::from_secs(20));
    let s = setup_with(RetryOptions { first_answer_deadline, ..RetryOptions::default() });
    s.faulty.set_away(true);
    let started = Instant::now();
    assert_eq!(s.retrying.list("", None, None).await.unwrap_err().kind, ErrorKind::Retry);
    assert_eq!(started.elapsed(), Duration::from_secs(20));
    s.faulty.set_away(false);
    answered(&s).await;
    s.faulty.set_away(true);
    assert!(
        tokio::time::timeout(HOUR, s.retrying.list("", None, None)).await.is_err(),
        "it has answered by now"
    );
}

#[tokio::test(start_paused = true)]
async fn a_bucket_that_vanished_is_waited_for_and_one_that_never_was_is_not() {
    #[derive(Debug, Default)]
    struct NoBucket(Mutex<bool>);
    #[async_trait]
    impl Store for NoBucket {
        async fn put(&self, _: &str, _: &[Bytes], _: PutMode) -> Result<Put, StoreError> {
            unreachable!()
        }
        async fn get(&self, key: &str, _: Range) -> Result<Got, StoreError> {
            let key = if *self.0.lock().unwrap() { key } else { "" };
            Err(StoreError::new(ErrorKind::NotFound, "get", key, "gone"))
        }
        async fn head(&self, _: &str) -> Result<Option<u64>, StoreError> {
            unreachable!()
        }
        async fn list(&self, _: &str, _: Option<&str>, _: Option<usize>) -> Result<Vec<Listed>, StoreError> {
            unreachable!()
        }
        async fn list_folder(&self, _: &str) -> Result<Folder, StoreError> {
            unreachable!()
        }
        async fn delete(&self, _: &[String]) -> Result<(), StoreError> {
            unreachable!()
        }
    }
    let inner = Arc::new(NoBucket::default());
    let retrying = Retrying::new(Arc::clone(&inner), RetryOptions::default(), random());
    let error = retrying.get("k", Range::Full).await.unwrap_err();
    assert_eq!((error.kind, error.key.as_str()), (ErrorKind::NotFound, ""));
    *inner.0.lock().unwrap() = true;
    assert_eq!(retrying.get("k", Range::Full).await.unwrap_err().key, "k");
    *inner.0.lock().unwrap() = false;
    assert!(tokio::time::timeout(HOUR, retrying.get("k", Range::Full)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_leaves_nothing_behind() {
    let s = setup();
    answered(&s).await;
    s.faulty.set_plan(in_turn([Fault::Hang]));
    let one = body("1");
    let put = s.retrying.put("k", &one, PutMode::Create);
    assert!(tokio::time::timeout(HOUR, put).await.is_err());
    assert_eq!(s.retrying.health().calls_waiting, 0);
    assert_eq!(
        s.retrying.put("k", &body("1"), PutMode::Create).await.unwrap(),
        Put::Exists,
        "as by anybody else"
    );
}

/// Holds every call until told, and knows how many it holds.
#[derive(Debug)]
struct Gate {
    now: Mutex<BTreeMap<&'static str, usize>>,
    open: tokio::sync::Semaphore,
}

impl Gate {
    async fn pass(&self, kind: &'static str) {
        *self.now.lock().unwrap().entry(kind).or_default() += 1;
        self.open.acquire().await.unwrap().forget();
        *self.now.lock().unwrap().get_mut(kind).unwrap() -= 1;
    }

    fn held(&self, kind: &'static str) -> usize {
        self.now.lock().unwrap().get(kind).copied().unwrap_or(0)
    }
}

#[async_trait]
impl Store for Gate {
    async fn put(&self, _: &str, _: &[Bytes], _: PutMode) -> Result<Put, StoreError> {
        self.pass("change").await;
        Ok(Put::Created)
    }
    async fn get(&self, key: &str, _: Range) -> Result<Got, StoreError> {
        self.pass("read").await;
        Err(StoreError::new(ErrorKind::NotFound, "get", key, "gate"))
    }
    async fn head(&self, _: &str) -> Result<Option<u64>, StoreError> {
        self.pass("read").await;
        Ok(None)
    }
    async fn list(&self, _: &str, _: Option<&str>, _: Option<usize>) -> Result<Vec<Listed>, StoreError> {
        self.pass("read").await;
        Ok(Vec::new())
    }
    async fn list_folder(&self, _: &str) -> Result<Folder, StoreError> {
        self.pass("read").await;
        Ok(Folder::default())
    }
    async fn delete(&self, _: &[String]) -> Result<(), StoreError> {
        self.pass("change").await;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn uploads_never_starve_reads() {
    let gate = Arc::new(Gate { now: Mutex::default(), open: tokio::sync::Semaphore::new(0) });
    let limited = Limited::new(Arc::clone(&gate), Limits { reads_max: 3, changes_max: 2 });
    let mut calls = Vec::new();
    for n in 0..40 {
        let limited = limited.clone();
        calls.push(tokio::spawn(async move {
            match n % 5 {
                0 => _ = limited.put("k", &[], PutMode::Create).await,
                1 => _ = limited.delete(&["k".to_owned()]).await,
                2 => _ = limited.get("k", Range::Full).await,
                3 => _ = limited.head("k").await,
                _ => _ = limited.list("", None, None).await,
            }
        }));
    }
    for round in 0..40 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(gate.held("read") <= 3 && gate.held("change") <= 2);
        let all_used = gate.held("read") == 3 && gate.held("change") == 2;
        assert!(all_used || round > 20, "permits lie unused while calls wait");
        gate.open.add_permits(1);
    }
    for call in calls {
        call.await.unwrap();
    }
    // A call that is dropped gives its permit back.
    for _ in 0..10 {
        let held = limited.put("k", &[], PutMode::Create);
        assert!(tokio::time::timeout(Duration::from_secs(1), held).await.is_err());
    }
    gate.open.add_permits(1);
    limited.put("k", &[], PutMode::Create).await.unwrap();
}

/// Who takes one answer of several that are on their way, and asks for something more, looks at none of the others meanwhile.
#[tokio::test(start_paused = true)]
async fn calls_that_nobody_looks_at_keep_no_permit_from_others() {
    let faulty = Faulty::new(Memory::new());
    faulty.put("k", &body("12345"), PutMode::Create).await.unwrap();
    faulty.set_plan(|_: &Call<'_>| Fault::Delay(Duration::from_secs(1)));
    let limited = Limited::new(faulty, Limits { reads_max: 2, changes_max: 1 });
    let get = || limited.get("k", Range::Full);
    let asked_for_each = async {
        let mut gets = futures::stream::iter((0..20).map(|_| get())).buffered(5);
        while let Some(got) = gets.next().await {
            got.unwrap();
            get().await.unwrap();
        }
    };
    tokio::time::timeout(HOUR, asked_for_each).await.expect("all of them are answered");
}

#[tokio::test(start_paused = true)]
async fn every_try_is_counted() {
    let faulty = Faulty::new(Memory::new());
    let meter = Meter::default();
    let retrying =
        Retrying::new(Metered::new(faulty.clone(), meter.clone()), RetryOptions::default(), random());
    faulty.set_plan(in_turn([Fault::Before(ErrorKind::Retry), Fault::Before(ErrorKind::Retry)]));
    retrying.put("a", &body("12345"), PutMode::Replace).await.unwrap();
    retrying.get("a", Range::Suffix { length: 2 }).await.unwrap();
    retrying.get("b", Range::Full).await.unwrap_err();
    retrying.list("", None, None).await.unwrap();
    retrying.delete(&["a".to_owned(), "b".to_owned()]).await.unwrap();
    let json = serde_json::to_value(meter.snapshot()).unwrap();
    let line = |calls: u64, failed: u64, bytes: u64, entries: u64| serde_json::json!({"calls": calls, "failed": failed, "bytes": bytes, "entries": entries});
    assert_eq!(json["put"], line(3, 2, 5, 0));
    assert_eq!(json["get"], line(2, 0, 2, 0));
    assert_eq!(json["head"], line(0, 0, 0, 0));
    assert_eq!(json["list"], line(1, 0, 0, 1));
    assert_eq!(json["delete"], line(1, 0, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_crash_point_lets_exactly_so_many_changes_through() {
    for changes_max in 0..4 {
        let faulty = Faulty::new(Memory::new());
        faulty.set_crash_after(Some(changes_max));
        for n in 0..4 {
            let result = faulty.put(&n.to_string(), &[], PutMode::Create).await;
            assert_eq!(result.is_ok(), n < changes_max);
        }
        assert!(faulty.has_crashed());
        assert!(faulty.head("0").await.is_err(), "the dead read nothing");
        assert_eq!(faulty.inner().snapshot().len() as u64, changes_max);
    }
}

#[tokio::test(start_paused = true)]
async fn damage_and_refusals_come_as_told() {
    let s = setup();
    s.memory.put("k", &body("abcd"), PutMode::Create).await.unwrap();
    s.faulty.set_plan(in_turn([Fault::FlipBit(9), Fault::CutShort, Fault::Twice(Duration::from_secs(5))]));
    assert_eq!(s.faulty.get("k", Range::Full).await.unwrap().bytes, [b'a', b'b' ^ 2, b'c', b'd'][..]);
    let got = s.faulty.get("k", Range::Full).await.unwrap();
    assert_eq!((got.bytes, got.object_bytes), (Bytes::from("ab"), 2));
    s.faulty.put("twice", &body("1"), PutMode::Replace).await.unwrap();
    s.memory.delete(&["twice".to_owned()]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(s.memory.snapshot().get("twice").unwrap(), "1", "landed a second time");
    s.faulty.set_list_refused(true);
    assert_eq!(s.faulty.list("", None, None).await.unwrap_err().kind, ErrorKind::Denied);
    assert!(s.faulty.get("k", Range::Full).await.is_ok());
}

#[derive(Clone, Debug)]
enum Step {
    Create(u8, u8),
    Replace(u8, u8),
    Get(u8),
    Delete(u8),
    List,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..4u8, any::<u8>()).prop_map(|(key, value)| Step::Create(key, value)),
        2 => (0..4u8, any::<u8>()).prop_map(|(key, value)| Step::Replace(key, value)),
        2 => (0..4u8).prop_map(Step::Get),
        1 => (0..4u8).prop_map(Step::Delete),
        1 => Just(Step::List),
    ];
    proptest::collection::vec(step, 1..40)
}

async fn run_against_model(seed: u64, steps: Vec<Step>) -> Result<(), TestCaseError> {
    // No late or doubled changes: with one caller, whoever gives up waiting is the only one who could see them.
    let plan = SeededPlan {
        seed,
        before: 200,
        denied: 50,
        after: 200,
        delay: 100,
        delay_max: Duration::from_secs(5),
        ..SeededPlan::default()
    };
    let faulty = Faulty::new(Memory::new());
    let retrying = Retrying::new(faulty.clone(), RetryOptions::default(), random());
    retrying.list("", None, None).await.unwrap();
    faulty.set_plan(plan);
    let mut model = BTreeMap::<String, Vec<u8>>::new();
    for (number, step) in steps.into_iter().enumerate() {
        // As in the product, no two creates put the same bytes: claims have a nonce.
        let bytes = |value: u8| vec![value, number as u8];
        match step {
            Step::Create(key, value) => {
                let (key, bytes) = (key.to_string(), bytes(value));
                let put = retrying.put(&key, &[bytes.clone().into()], PutMode::Create).await.unwrap();
                let expected = if model.contains_key(&key) { Put::Exists } else { Put::Created };
                prop_assert_eq!(put, expected);
                model.entry(key).or_insert(bytes);
            }
            Step::Replace(key, value) => {
                let bytes = bytes(value);
                retrying.put(&key.to_string(), &[bytes.clone().into()], PutMode::Replace).await.unwrap();
                model.insert(key.to_string(), bytes);
            }
            Step::Get(key) => {
                let got = retrying.get(&key.to_string(), Range::Full).await;
                prop_assert_eq!(got.ok().map(|got| got.bytes.to_vec()), model.get(&key.to_string()).cloned());
            }
            Step::Delete(key) => {
                retrying.delete(&[key.to_string()]).await.unwrap();
                model.remove(&key.to_string());
            }
            Step::List => {
                let listed = retrying.list("", None, None).await.unwrap();
                let keys: Vec<_> = listed.into_iter().map(|line| line.key).collect();
                prop_assert_eq!(keys, model.keys().cloned().collect::<Vec<_>>());
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_faulty_store_behind_retries_is_a_plain_one(seed: u64, steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run_against_model(seed, steps))?;
    }
}
