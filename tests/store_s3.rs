//! The S3 backend against a server that fails: what each answer is taken for, and what is never said.

mod store_suite;
mod support;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use s3bd::store::open::{OldVersions, OpenOptions, Opened, open_store, os_random};
use s3bd::store::retry::RetryOptions;
use s3bd::store::s3::S3;
use s3bd::store::s3_config::S3Options;
use s3bd::store::{ErrorKind, Put, PutMode, Range, Store, StoreError};
use store_suite::{body, get, put};
use support::s3_server::{ACCESS_KEY, BUCKET, Conditional, HttpCall, HttpFault, Reply, S3Server, SECRET_KEY};

async fn connect(server: &S3Server) -> S3 {
    S3::connect(BUCKET, &server.options()).await.unwrap()
}

async fn open(server: &S3Server) -> Opened {
    let retry = RetryOptions { wait_max: Duration::from_millis(200), ..RetryOptions::default() };
    let options = OpenOptions { s3: server.options(), retry, random: os_random() };
    open_store(&format!("{BUCKET}/v").parse().unwrap(), &options).await.unwrap()
}

fn any(_: &HttpCall) -> bool {
    true
}

fn message(status: u16, code: &'static str, message: &str) -> Reply {
    Reply { message: message.to_owned(), ..Reply::new(status, code) }
}

/// Makes one call of each kind against the same answer.
async fn each_call(server: &S3Server, fault: HttpFault) -> [(&'static str, StoreError); 5] {
    let store = connect(server).await;
    server.set_plan(move |_| fault.clone());
    let results = [
        ("put", store.put("k", &body("x"), PutMode::Replace).await.unwrap_err()),
        ("delete", store.delete(&["k".to_owned()]).await.unwrap_err()),
        ("bulk", store.delete(&["k".to_owned(), "l".to_owned()]).await.unwrap_err()),
        ("get", store.get("k", Range::Full).await.unwrap_err()),
        ("list", store.list("k", None, None).await.unwrap_err()),
    ];
    server.set_plan(|_| HttpFault::None);
    results
}

#[tokio::test]
async fn every_answer_has_its_kind() {
    use ErrorKind::{Archived, Denied, Invalid, OutcomeUnknown, Retry};
    let server = S3Server::start();
    for (status, code, for_changes, for_reads) in [
        (500, "InternalError", OutcomeUnknown, Retry),
        (500, "", OutcomeUnknown, Retry),
        (502, "", OutcomeUnknown, Retry),
        (503, "", OutcomeUnknown, Retry),
        (504, "", OutcomeUnknown, Retry),
        (503, "SlowDown", Retry, Retry),
        (503, "ServiceUnavailable", Retry, Retry),
        (429, "TooManyRequests", Retry, Retry),
        (429, "", Retry, Retry),
        (507, "XMinioStorageFull", Retry, Retry),
        (409, "OperationAborted", Retry, Retry),
        (400, "RequestTimeout", Retry, Retry),
        (400, "BadDigest", Retry, Retry),
        (403, "AccessDenied", Denied, Denied),
        (403, "SignatureDoesNotMatch", Denied, Denied),
        (403, "InvalidObjectState", Denied, Archived),
        (403, "RequestTimeTooSkewed", Denied, Denied),
        (401, "", Denied, Denied),
        (400, "ExpiredToken", Denied, Denied),
        (404, "", Denied, Denied),
        (404, "PageNotFound", Denied, Denied),
        (301, "PermanentRedirect", Invalid, Invalid),
        (400, "AuthorizationHeaderMalformed", Invalid, Invalid),
        (400, "InvalidArgument", Invalid, Invalid),
        (413, "EntityTooLarge", Invalid, Invalid),
    ] {
        for (call, error) in each_call(&server, HttpFault::Before(message(status, code, "words"))).await {
            let expected = if matches!(call, "get" | "list") { for_reads } else { for_changes };
            assert_eq!(error.kind, expected, "{status} {code} to a {call}: {error}");
            assert!(error.reason.contains(&status.to_string()) && error.reason.contains(code), "{error}");
            assert!(!error.reason.contains('\n'), "{error:?}");
        }
    }
    for (call, error) in each_call(&server, HttpFault::DropBefore).await {
        let expected = if matches!(call, "get" | "list") { Retry } else { OutcomeUnknown };
        assert_eq!(error.kind, expected, "a dropped connection to a {call}: {error}");
    }
}

#[tokio::test]
async fn a_refusal_says_what_to_do_about_it() {
    let server = S3Server::start();
    let denied = HttpFault::Before(message(403, "AccessDenied", "Access Denied"));
    for (call, error) in each_call(&server, denied).await {
        let right = match call {
            "get" => "s3:GetObject",
            "list" => "s3:ListBucket",
            "delete" | "bulk" => "s3:DeleteObject",
            _ => "s3:PutObject",
        };
        assert!(error.to_string().contains(right), "{call}: {error}");
    }
    let archived = HttpFault::Before(message(403, "InvalidObjectState", "The operation is not valid"));
    let errors = each_call(&server, archived).await;
    let (_, error) = errors.iter().find(|(call, _)| *call == "get").unwrap();
    assert!(error.to_string().contains("get k") && error.to_string().contains("restore it"), "{error}");
}

#[tokio::test]
async fn a_missing_bucket_is_no_missing_key() {
    let server = S3Server::start();
    let store = S3::connect("another-bucket", &server.options()).await.unwrap();
    for error in [
        store.get("k", Range::Full).await.unwrap_err(),
        store.head("k").await.unwrap_err(),
        store.list("", None, None).await.unwrap_err(),
        store.put("k", &[], PutMode::Create).await.unwrap_err(),
        store.delete(&["k".to_owned()]).await.unwrap_err(),
    ] {
        assert_eq!((error.kind, error.key.as_str()), (ErrorKind::NotFound, ""), "{error}");
        assert!(error.to_string().contains("create the bucket"), "{error}");
    }
}

#[tokio::test]
async fn nothing_was_sent_where_nobody_listens() {
    let mut server = S3Server::start();
    let store = connect(&server).await;
    server.stop();
    for error in [
        store.put("k", &body("x"), PutMode::Create).await.unwrap_err(),
        store.delete(&["k".to_owned()]).await.unwrap_err(),
        store.get("k", Range::Full).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Retry, "{error}");
    }
    server.start_again();
    store.put("k", &body("x"), PutMode::Create).await.unwrap();
    // A host that does not exist.
    let options = S3Options { endpoint: Some("http://s3.invalid:1".to_owned()), ..server.options() };
    let store = S3::connect(BUCKET, &options).await.unwrap();
    assert_eq!(store.put("k", &[], PutMode::Create).await.unwrap_err().kind, ErrorKind::Retry);
}

#[tokio::test]
async fn lost_answers_to_creates_are_read_back() {
    for fault in [
        HttpFault::DropAfter,
        HttpFault::After(Reply::new(500, "InternalError")),
        HttpFault::After(Reply::new(504, "")),
    ] {
        let server = S3Server::start();
        let opened = open(&server).await;
        server.fail_once(|call| call.method == "PUT", fault.clone());
        let put = opened.store().put("claim", &body("mine"), PutMode::Create).await.unwrap();
        assert_eq!(put, Put::Created, "{fault:?}");
        assert_eq!((server.count("PUT"), server.count("GET")), (1, 1), "{fault:?}");
    }
}

#[tokio::test]
async fn conditions_that_conflict_are_tried_again() {
    let server = S3Server::start();
    let store = connect(&server).await;
    server.fail_once(any, HttpFault::Before(Reply::new(409, "ConditionalRequestConflict")));
    let error = store.put("k", &body("x"), PutMode::Create).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Retry, "{error}");
    assert!(store.creates_conditionally());
    assert_eq!(store.put("k", &body("x"), PutMode::Create).await.unwrap(), Put::Created);
    assert_eq!(store.put("k", &body("y"), PutMode::Create).await.unwrap(), Put::Exists);
}

#[tokio::test]
async fn a_server_without_conditions_is_asked_once() {
    let server = S3Server::start();
    server.set_conditional(Conditional::Refused);
    let store = connect(&server).await;
    for n in 0..3 {
        assert_eq!(store.put("k", &body(&n.to_string()), PutMode::Create).await.unwrap(), Put::Created);
    }
    assert!(!store.creates_conditionally());
    assert_eq!(server.count("PUT"), 4);
    // A 412 for what is not there twice, and then for what is.
    server.set_conditional(Conditional::AlwaysFails);
    let store = connect(&server).await;
    assert_eq!(store.put("new", &body("1"), PutMode::Create).await.unwrap(), Put::Created);
    assert!(!store.creates_conditionally());
}

#[tokio::test]
async fn bodies_that_break_off_are_errors_and_never_short_data() {
    let server = S3Server::start();
    let store = connect(&server).await;
    let data = Bytes::from(vec![7; 300_000]);
    store.put("k", std::slice::from_ref(&data), PutMode::Create).await.unwrap();
    let part = Range::Part { offset: 1000, length: 200_000 };
    for range in [Range::Full, part, Range::Suffix { length: 100_000 }] {
        server.fail_once(any, HttpFault::CutBody);
        let error = store.get("k", range).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Retry, "{range:?}: {error}");
    }
    for range in [part, Range::Suffix { length: 100_000 }] {
        for (fault, kind) in [
            (HttpFault::HalveBody, ErrorKind::Retry),
            (HttpFault::Header("content-range", "bytes 0-199999/300000".to_owned()), ErrorKind::Retry),
            (HttpFault::Header("content-range", "bytes 1000-200999/*".to_owned()), ErrorKind::Invalid),
            (HttpFault::Header("content-range", "bytes 9-1/300000".to_owned()), ErrorKind::Retry),
            (HttpFault::Header("content-range", "nonsense".to_owned()), ErrorKind::Invalid),
            (HttpFault::Header("content-range", String::new()), ErrorKind::Invalid),
        ] {
            server.fail_once(any, fault.clone());
            let error = store.get("k", range).await.unwrap_err();
            assert_eq!(error.kind, kind, "{range:?} {fault:?}: {error}");
        }
    }
    // Through the layers it is only a delay.
    let opened = open(&server).await;
    opened.store().put("k", std::slice::from_ref(&data), PutMode::Create).await.unwrap();
    server.fail_once(any, HttpFault::CutBody);
    assert!(get(&opened.store(), "k").await == data);
}

/// The connection is up before the clock stops, so that only the answer's time limit is left to run out.
#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let server = S3Server::start();
    let store = connect(&server).await;
    for change in [true, false] {
        server.set_plan(|_| HttpFault::None);
        store.list("", None, None).await.unwrap();
        server.set_plan(|_| HttpFault::Delay(Duration::from_secs(3600)));
        tokio::time::pause();
        let started = tokio::time::Instant::now();
        let error = match change {
            true => store.put("k", &[Bytes::from(vec![0; 1 << 20])], PutMode::Create).await.unwrap_err(),
            false => store.get("k", Range::Full).await.unwrap_err(),
        };
        let (kind, seconds) =
            if change { (ErrorKind::OutcomeUnknown, 60 + 64) } else { (ErrorKind::Retry, 60) };
        assert_eq!((error.kind, started.elapsed().as_secs()), (kind, seconds), "{error}");
        tokio::time::resume();
    }
}

#[tokio::test]
async fn errors_within_a_200_are_errors() {
    let server = S3Server::start();
    let store = connect(&server).await;
    let keys = ["a".to_owned(), "b".to_owned()];
    for (code, kind) in [
        ("AccessDenied", Some(ErrorKind::Denied)),
        ("InternalError", Some(ErrorKind::OutcomeUnknown)),
        ("SlowDown", Some(ErrorKind::Retry)),
        ("NoSuchKey", None),
    ] {
        let document = format!(
            "<DeleteResult><Error><Key>b</Key><Code>{code}</Code><Message>m</Message></Error></DeleteResult>"
        );
        server.fail_once(any, HttpFault::Before(Reply { body: Some(document), ..Reply::new(200, "") }));
        let result = store.delete(&keys).await;
        assert_eq!(result.as_ref().err().map(|error| error.kind), kind, "{code}: {result:?}");
    }
    server
        .fail_once(any, HttpFault::Before(Reply { body: Some("<html>".to_owned()), ..Reply::new(200, "") }));
    let error = store.list("", None, None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Retry, "{error}");
}

#[tokio::test]
async fn the_wrong_region_is_named() {
    let server = S3Server::start();
    let store = connect(&server).await;
    let headers = vec![("x-amz-bucket-region", "eu-west-3".to_owned())];
    server.set_plan(move |_| {
        HttpFault::Before(Reply { headers: headers.clone(), ..Reply::new(301, "PermanentRedirect") })
    });
    let error = store.list("", None, None).await.unwrap_err();
    assert!(error.to_string().contains("--region eu-west-3"), "{error}");
    let error = store.head("k").await.unwrap_err();
    assert!(error.to_string().contains("--region eu-west-3"), "{error}");
}

#[tokio::test]
async fn refused_keys_are_denied_and_never_shown() {
    let server = S3Server::start();
    let secret = "another/secret+that/nobody+may/see+0000";
    let options = server.options_with_keys(move || (ACCESS_KEY.to_owned(), secret.to_owned()));
    let store = S3::connect(BUCKET, &options).await.unwrap();
    let error = store.list("", None, None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("403 SignatureDoesNotMatch"), "{error}");
    // A server that repeats what it should not.
    server.set_plan(move |_| {
        HttpFault::Before(message(403, "AccessDenied", &format!("your key {secret} is bad")))
    });
    let error = store.list("", None, None).await.unwrap_err();
    let opened = Opened::over(
        Arc::new(store),
        "v",
        &OpenOptions { s3: options.clone(), retry: RetryOptions::default(), random: os_random() },
    );
    for text in [error.to_string(), format!("{error:?}"), format!("{options:?}"), format!("{opened:?}")] {
        assert!(!text.contains("another/secret"), "{text}");
    }
    assert!(error.to_string().contains("[secret]"), "{error}");
}

#[tokio::test]
async fn rotated_keys_are_taken_up_without_an_error() {
    let server = S3Server::start();
    let keys = Arc::new(Mutex::new((ACCESS_KEY.to_owned(), SECRET_KEY.to_owned())));
    let provided = Arc::clone(&keys);
    let s3 = server.options_with_keys(move || provided.lock().unwrap().clone());
    let retry = RetryOptions { wait_max: Duration::from_millis(200), ..RetryOptions::default() };
    let options = OpenOptions { s3, retry, random: os_random() };
    let opened = open_store(&format!("{BUCKET}/v").parse().unwrap(), &options).await.unwrap();
    put(&opened.store(), "k", "1").await;
    let rotated = ("AKIAROTATED".to_owned(), "a-new-secret".to_owned());
    *keys.lock().unwrap() = rotated.clone();
    server.set_key(&rotated.0, &rotated.1);
    assert_eq!(get(&opened.store(), "k").await, "1");
    assert_eq!(opened.meter().get.calls, 2, "one refusal, one renewal");
}

#[tokio::test]
async fn an_expired_token_is_denied_unless_there_is_another() {
    let server = S3Server::start();
    let expired = Arc::new(AtomicBool::new(true));
    server.set_plan({
        let expired = Arc::clone(&expired);
        move |_| match expired.load(Ordering::SeqCst) {
            true => HttpFault::Before(message(400, "ExpiredToken", "The provided token has expired.")),
            false => HttpFault::None,
        }
    });
    let fresh = AtomicBool::new(false);
    let options = server.options_with_keys(move || {
        let secret = if fresh.swap(true, Ordering::SeqCst) { SECRET_KEY } else { "old" };
        (ACCESS_KEY.to_owned(), secret.to_owned())
    });
    let store = S3::connect(BUCKET, &options).await.unwrap();
    assert_eq!(store.list("", None, None).await.unwrap_err().kind, ErrorKind::Retry, "there are others");
    assert_eq!(store.list("", None, None).await.unwrap_err().kind, ErrorKind::Denied, "there are no others");
    expired.store(false, Ordering::SeqCst);
    store.list("", None, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_away_and_comes_back_is_only_slow() {
    let mut server = S3Server::start();
    let opened = open(&server).await;
    let store = opened.store();
    put(&store, "before", "1").await;
    server.set_away(true);
    let calls: Vec<_> = (0..20)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.put(&format!("k{n}"), &body("x"), PutMode::Create).await })
        })
        .collect();
    while opened.health().calls_waiting < 8 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.stop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.set_away(false);
    server.start_again();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), Put::Created);
    }
    assert_eq!(get(&store, "before").await, "1");
    assert_eq!(server.contents().snapshot().len(), 21);
    assert_eq!(opened.health().calls_waiting, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_calls_are_under_way_than_allowed() {
    let server = S3Server::start();
    server.set_plan(|_| HttpFault::Delay(Duration::from_millis(20)));
    let mut options =
        OpenOptions { s3: server.options(), retry: RetryOptions::default(), random: os_random() };
    options.s3.concurrency_max = 10;
    let opened = open_store(&format!("{BUCKET}/v").parse().unwrap(), &options).await.unwrap();
    let calls = (0..60).map(|n| {
        let store = opened.store();
        tokio::spawn(async move {
            match n % 2 {
                0 => _ = store.put(&n.to_string(), &[], PutMode::Create).await.unwrap(),
                _ => _ = store.head("x").await.unwrap(),
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    assert!(server.under_way_max() <= 10, "{}", server.under_way_max());
}

/// Started by the tests below with an environment of their own; does nothing without.
#[tokio::test]
#[allow(clippy::print_stderr, reason = "its result")]
async fn child_in_another_environment() {
    let Ok(profile) = std::env::var("S3BD_TEST_PROFILE") else { return };
    let options =
        S3Options { profile: Some(profile).filter(|name| !name.is_empty()), ..S3Options::default() };
    let outcome = match S3::connect(BUCKET, &options).await {
        Ok(store) => format!("{store:?} {:?}", store.list("", None, None).await),
        Err(error) => format!("{error:?}"),
    };
    eprintln!("OUTCOME {outcome}");
}

/// What a child says that has these variables, these AWS files, and nothing else.
fn in_environment(home: &Path, profile: &str, variables: &[(&str, &str)]) -> String {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child_in_another_environment", "--nocapture"]).env_clear();
    child.env("HOME", home).env("PATH", "/usr/bin:/bin").env("S3BD_TEST_PROFILE", profile);
    let output = child.envs(variables.iter().copied()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let outcome = text.split("OUTCOME ").nth(1).unwrap_or_else(|| panic!("no outcome: {text}"));
    assert!(!text.contains(SECRET_KEY), "{text}");
    outcome.lines().next().unwrap().to_owned()
}

#[test]
fn missing_credentials_are_said_so() {
    let home = tempfile::tempdir().unwrap();
    for variables in [&[][..], &[("AWS_EC2_METADATA_DISABLED", "true")], &[("AWS_ACCESS_KEY_ID", ACCESS_KEY)]]
    {
        let outcome = in_environment(home.path(), "", variables);
        assert!(outcome.contains("Invalid") || outcome.contains("Denied"), "{outcome}");
        assert!(outcome.contains("AWS_ACCESS_KEY_ID") || outcome.contains("credentials"), "{outcome}");
    }
    let outcome = in_environment(home.path(), "", &[("AWS_EC2_METADATA_DISABLED", "true")]);
    assert!(
        outcome.contains("Invalid") && outcome.contains("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        "{outcome}"
    );
}

#[test]
fn the_usual_variables_and_files_are_read() {
    let server = S3Server::start();
    let endpoint = server.endpoint();
    let home = tempfile::tempdir().unwrap();
    let aws = home.path().join(".aws");
    std::fs::create_dir(&aws).unwrap();
    let process = home.path().join("credentials.sh");
    let json = format!(
        r#"{{"Version":1,"AccessKeyId":"{ACCESS_KEY}","SecretAccessKey":"{SECRET_KEY}","Expiration":"2099-01-01T00:00:00Z"}}"#
    );
    std::fs::write(&process, format!("echo '{json}'")).unwrap();
    std::fs::write(
        aws.join("credentials"),
        format!("[keys]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n"),
    )
    .unwrap();
    let config = format!(
        "[profile keys]\nregion=eu-north-1\nendpoint_url={endpoint}\n[profile process]\ncredential_process=sh {}\n",
        process.display()
    );
    std::fs::write(aws.join("config"), config).unwrap();
    let keys = [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
    let wrong = [("AWS_ACCESS_KEY_ID", "AKIAWRONG"), ("AWS_SECRET_ACCESS_KEY", "wrong")];
    let general = ("AWS_ENDPOINT_URL", endpoint.as_str());
    let special = ("AWS_ENDPOINT_URL_S3", endpoint.as_str());
    let elsewhere = ("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    for (profile, variables, region) in [
        ("", [&keys[..], &[general]].concat(), "us-east-1"),
        ("", [&keys[..], &[special, elsewhere, ("AWS_REGION", "eu-west-1")]].concat(), "eu-west-1"),
        ("", [&keys[..], &[general, ("AWS_DEFAULT_REGION", "eu-west-2")]].concat(), "eu-west-2"),
        ("", vec![("AWS_PROFILE", "keys")], "eu-north-1"),
        ("keys", wrong.to_vec(), "eu-north-1"),
        ("process", vec![general], "us-east-1"),
    ] {
        let outcome = in_environment(home.path(), profile, &variables);
        assert!(outcome.contains("Ok([])") && outcome.contains(region), "{profile} {variables:?}: {outcome}");
    }
    assert_eq!(server.count("LIST"), 6);
}

#[tokio::test]
async fn a_bucket_says_whether_it_keeps_old_versions_or_nobody_knows() {
    let server = S3Server::start();
    let opened = open(&server).await;
    let status = |status: &str| {
        let namespace = "http://s3.amazonaws.com/doc/2006-03-01/";
        let xml =
            format!("<VersioningConfiguration xmlns=\"{namespace}\">{status}</VersioningConfiguration>");
        Reply { body: Some(xml), ..Reply::new(200, "") }
    };
    for (answer, expected) in [
        (status(""), OldVersions::Gone),
        (status("<Status>Enabled</Status>"), OldVersions::Kept),
        // What was kept before stays.
        (status("<Status>Suspended</Status>"), OldVersions::Kept),
        (message(403, "AccessDenied", "no"), OldVersions::Unknown),
        (message(501, "NotImplemented", "what?"), OldVersions::Unknown),
        (message(500, "InternalError", "later"), OldVersions::Unknown),
    ] {
        let shown = format!("{answer:?}");
        server.set_plan(move |_| HttpFault::Before(answer.clone()));
        assert_eq!(opened.old_versions().await, expected, "{shown}");
    }
}
