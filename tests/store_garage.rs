//! The claims of `store_suite` on a real Garage server, and what only a real server shows.

mod store_suite;
mod support;

use std::sync::Arc;

use s3bd::store::open::{OpenOptions, open_store, os_random};
use s3bd::store::retry::RetryOptions;
use s3bd::store::s3::S3;
use s3bd::store::{ErrorKind, PutMode, Store};
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
