//! The claims of `store_suite` on memory, directory and S3 servers of every kind, with and without the layers.

mod store_suite;
mod support;

use std::sync::Arc;

use s3bd::store::directory::Directory;
use s3bd::store::faulty::Faulty;
use s3bd::store::limited::Limits;
use s3bd::store::memory::Memory;
use s3bd::store::open::{OpenOptions, Opened, open_store, os_random};
use s3bd::store::prefixed::Prefixed;
use s3bd::store::retry::RetryOptions;
use s3bd::store::s3::S3;
use s3bd::store::s3_config::S3Options;
use store_suite::{DynStore, Traits, check};
use support::s3_server::{BUCKET, Conditional, HttpFault, Reply, S3Server};

const HONOURED: Traits = Traits { create_honoured: true, key_may_be_folder: true };
const IGNORED: Traits = Traits { create_honoured: false, key_may_be_folder: true };
const DIRECTORY: Traits = Traits { create_honoured: true, key_may_be_folder: false };

async fn s3(server: &S3Server) -> DynStore {
    Arc::new(S3::connect(BUCKET, &server.options()).await.unwrap())
}

fn open_options(s3: S3Options) -> OpenOptions {
    OpenOptions { s3, retry: RetryOptions::default(), random: os_random() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_conforms() {
    check(Arc::new(Memory::new()), HONOURED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_without_creates_conforms() {
    let memory = Memory::new();
    memory.set_create_honoured(false);
    check(Arc::new(memory), IGNORED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faulty_without_faults_conforms() {
    check(Arc::new(Faulty::new(Memory::new())), HONOURED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directory_conforms() {
    let folder = tempfile::tempdir().unwrap();
    check(Arc::new(Directory::open(folder.path()).unwrap()), DIRECTORY).await;
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [".s3bd-tmp"], "emptied folders stay behind");
    assert_eq!(std::fs::read_dir(folder.path().join(".s3bd-tmp")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_with_conditional_puts_conforms() {
    let server = S3Server::start();
    check(s3(&server).await, HONOURED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_that_ignores_conditions_conforms() {
    let server = S3Server::start();
    server.set_conditional(Conditional::Ignored);
    check(s3(&server).await, IGNORED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_that_refuses_conditions_conforms() {
    let server = S3Server::start();
    server.set_conditional(Conditional::Refused);
    check(s3(&server).await, IGNORED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_that_fails_every_condition_conforms() {
    let server = S3Server::start();
    server.set_conditional(Conditional::AlwaysFails);
    check(s3(&server).await, IGNORED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_with_small_pages_conforms() {
    let server = S3Server::start();
    server.set_page_keys_max(7);
    check(s3(&server).await, HONOURED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_that_wants_an_md5_for_deletes_conforms() {
    let server = S3Server::start();
    server.set_plan(|call| match call.method.as_str() {
        "POST" => {
            let message = "Missing required header for this request: Content-MD5".to_owned();
            HttpFault::Before(Reply { message, ..Reply::new(400, "InvalidRequest") })
        }
        _ => HttpFault::None,
    });
    check(s3(&server).await, HONOURED).await;
    assert_eq!(server.count("POST"), 1, "asked once, and remembered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_layers_over_s3_conform() {
    let server = S3Server::start();
    let location = format!("{BUCKET}/some/disk").parse().unwrap();
    let opened = open_store(&location, &open_options(server.options())).await.unwrap();
    check(opened.store(), HONOURED).await;
    let meter = opened.meter();
    assert!(meter.put.calls > 1205 && meter.put.failed == 0, "{meter:?}");
    assert!(
        server.under_way_max() <= Limits::default().reads_max as u64 + Limits::default().changes_max as u64
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_layers_over_a_directory_conform() {
    let folder = tempfile::tempdir().unwrap();
    let location = format!("file:{}/volume", folder.path().display()).parse().unwrap();
    let opened = open_store(&location, &open_options(S3Options::default())).await.unwrap();
    check(opened.store(), DIRECTORY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_of_a_bucket_do_not_see_each_other() {
    let memory: DynStore = Arc::new(Memory::new());
    let neighbours = ["v", "v0", "w"].map(|volume| Prefixed::new(Arc::clone(&memory), format!("{volume}/")));
    for neighbour in &neighbours {
        store_suite::put(&(Arc::new(neighbour.clone()) as DynStore), "k", "x").await;
    }
    store_suite::put(&memory, "v/", "made by a console").await;
    let opened = Opened::over(Arc::clone(&memory), "v", &open_options(S3Options::default()));
    assert_eq!(store_suite::keys(&opened.store(), "", None, None).await, ["k"]);
    assert_eq!(store_suite::keys(&opened.store_of("v0"), "", None, None).await, ["k"]);
    assert_eq!(store_suite::keys(&opened.bucket(), "", None, None).await, ["v/", "v/k", "v0/k", "w/k"]);
    opened.store().delete(&["k".to_owned()]).await.unwrap();
    assert_eq!(store_suite::keys(&memory, "", None, None).await, ["v/", "v0/k", "w/k"]);
}
