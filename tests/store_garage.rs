//! The claims of `store_suite` on a real Garage server, and what only a real server shows.

mod store_suite;
mod support;

use std::sync::Arc;

use bytes::Bytes;
use s3bd::store::open::{OpenOptions, open_store, os_random};
use s3bd::store::retry::RetryOptions;
use s3bd::store::s3::S3;
use s3bd::store::{ErrorKind, PutMode, Range, Store};
use store_suite::{DynStore, Traits, check, get, put};
use support::garage::{BUCKET, Garage};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garage_conforms() {
    let garage = Garage::start();
    let store: DynStore = Arc::new(S3::connect(BUCKET, &garage.options()).await.unwrap());
    check(store, Traits { create_honoured: false, key_may_be_folder: true }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_told_apart() {
    let garage = Garage::start();
    let options = garage.options();
    let no_bucket = S3::connect("no-such-bucket", &options).await.unwrap();
    let error = no_bucket.list("", None, None).await.unwrap_err();
    assert_eq!((error.kind, error.key.as_str()), (ErrorKind::NotFound, ""), "{error}");
    let mut region = options.clone();
    region.region = Some("us-east-1".to_owned());
    let error = S3::connect(BUCKET, &region).await.unwrap().list("", None, None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("--region"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_is_waited_for() {
    let mut garage = Garage::start();
    let location = format!("{BUCKET}/v").parse().unwrap();
    let options = OpenOptions { s3: garage.options(), retry: RetryOptions::default(), random: os_random() };
    let opened = open_store(&location, &options).await.unwrap();
    let store = opened.store();
    put(&store, "before", "1").await;
    garage.kill();
    let waiting = {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.put("during", &store_suite::body("2"), PutMode::Create).await })
    };
    while opened.health().calls_waiting == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    garage.start_again();
    waiting.await.unwrap().unwrap();
    assert_eq!(get(&store, "before").await, "1");
    assert_eq!(get(&store, "during").await, "2");
    assert_eq!(opened.health().calls_waiting, 0);
}

/// Prints megabytes a second; nothing depends on them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
#[allow(clippy::print_stderr, reason = "its result")]
async fn throughput() {
    const OBJECTS: usize = 16;
    const OBJECT_BYTES: usize = 16 << 20;
    let garage = Garage::start();
    let store = Arc::new(S3::connect(BUCKET, &garage.options()).await.unwrap());
    let body = Bytes::from((0..OBJECT_BYTES).map(|n| ((n * 7919) >> 3) as u8).collect::<Vec<_>>());
    for parallel in [1, 4] {
        use futures::StreamExt;
        let megabytes = (OBJECTS * OBJECT_BYTES) as f64 / 1e6;
        let started = tokio::time::Instant::now();
        let parts = [body.clone()];
        let keys: Vec<_> = (0..OBJECTS).map(|n| format!("{parallel}/{n}")).collect();
        let puts = keys.iter().map(|key| store.put(key, &parts, PutMode::Create));
        futures::stream::iter(puts).buffer_unordered(parallel).for_each(async |put| _ = put.unwrap()).await;
        let put_seconds = started.elapsed().as_secs_f64();
        let started = tokio::time::Instant::now();
        let gets = keys.iter().map(|key| store.get(key, Range::Full));
        futures::stream::iter(gets)
            .buffer_unordered(parallel)
            .for_each(async |got| assert!(got.unwrap().bytes == body))
            .await;
        let get_seconds = started.elapsed().as_secs_f64();
        eprintln!(
            "{parallel} at once: put {:.0} MB/s, get {:.0} MB/s",
            megabytes / put_seconds,
            megabytes / get_seconds
        );
        let started = tokio::time::Instant::now();
        let gets = (0..500).map(|n| {
            let offset = (n * 65536 % OBJECT_BYTES) as u64;
            store.get(&keys[0], Range::Part { offset, length: 65536 })
        });
        futures::stream::iter(gets).buffer_unordered(parallel).for_each(async |got| _ = got.unwrap()).await;
        eprintln!(
            "{parallel} at once: {:.0} ranged gets of 64 KiB a second",
            500.0 / started.elapsed().as_secs_f64()
        );
    }
}
