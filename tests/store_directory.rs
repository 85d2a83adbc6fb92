//! The directory store against a model, between processes, and after crashes.

mod store_suite;

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use s3bd::store::directory::Directory;
use s3bd::store::{ErrorKind, Put, PutMode, Range, Store};
use store_suite::{DynStore, body, get, keys, put};

fn open(folder: &Path) -> Directory {
    Directory::open(folder).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Put(String, PutMode, Vec<u8>),
    Get(String),
    Delete(Vec<String>),
    List(String, Option<String>, Option<usize>),
    Reopen,
}

/// Few parts of few characters, so that keys meet; among them what sorts around the slash.
fn key() -> impl Strategy<Value = String> {
    "[a!.0é-]{1,2}(/[a!.0 ]{1,2}){0,2}"
}

fn step() -> impl Strategy<Value = Step> {
    let mode = prop_oneof![Just(PutMode::Create), Just(PutMode::Replace)];
    let data = proptest::collection::vec(any::<u8>(), 0..20);
    prop_oneof![
        6 => (key(), mode, data).prop_map(|(key, mode, data)| Step::Put(key, mode, data)),
        2 => key().prop_map(Step::Get),
        2 => proptest::collection::vec(key(), 0..3).prop_map(Step::Delete),
        2 => ("[a!./0]{0,3}", proptest::option::of("[a!./0]{0,3}"), proptest::option::of(0..4usize))
            .prop_map(|(prefix, after, limit)| Step::List(prefix, after, limit)),
        1 => Just(Step::Reopen),
    ]
}

/// What a directory cannot hold beside what it holds.
fn is_refused(model: &BTreeMap<String, Vec<u8>>, key: &str) -> bool {
    let bad_part = key.split('/').any(|part| matches!(part, "" | "." | ".."));
    let below = format!("{key}/");
    let is_folder = model.keys().any(|other| other.starts_with(&below));
    bad_part || is_folder || key.match_indices('/').any(|(at, _)| model.contains_key(&key[..at]))
}

fn has_bad_part(key: &str) -> bool {
    key.split('/').any(|part| matches!(part, "" | "." | ".."))
}

async fn run_against_model(folder: &Path, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut store = open(folder);
    let mut model = BTreeMap::<String, Vec<u8>>::new();
    for step in steps {
        match step {
            Step::Put(key, mode, data) => {
                let result = store.put(&key, &[Bytes::from(data.clone())], mode).await;
                if is_refused(&model, &key) {
                    prop_assert_eq!(result.unwrap_err().kind, ErrorKind::Invalid);
                } else if mode == PutMode::Create && model.contains_key(&key) {
                    prop_assert_eq!(result.unwrap(), Put::Exists);
                } else {
                    prop_assert_eq!(result.unwrap(), Put::Created);
                    model.insert(key, data);
                }
            }
            Step::Get(key) => {
                let got = store.get(&key, Range::Full).await;
                match model.get(&key) {
                    Some(data) => prop_assert_eq!(&got.unwrap().bytes, data),
                    None if has_bad_part(&key) => prop_assert_eq!(got.unwrap_err().kind, ErrorKind::Invalid),
                    None => prop_assert_eq!(got.unwrap_err().kind, ErrorKind::NotFound),
                }
            }
            Step::Delete(keys) => match store.delete(&keys).await {
                Ok(()) => keys.iter().for_each(|key| _ = model.remove(key)),
                Err(error) => prop_assert!(keys.iter().any(|key| has_bad_part(key)), "{}", error),
            },
            Step::List(prefix, after, limit) => {
                let listed = store.list(&prefix, after.as_deref(), limit).await.unwrap();
                let listed: Vec<_> = listed.into_iter().map(|line| (line.key, line.bytes)).collect();
                let expected: Vec<_> = model
                    .iter()
                    .filter(|(key, _)| {
                        key.starts_with(&prefix) && after.as_ref().is_none_or(|after| *key > after)
                    })
                    .map(|(key, data)| (key.clone(), data.len() as u64))
                    .take(limit.unwrap_or(usize::MAX))
                    .collect();
                prop_assert_eq!(listed, expected);
            }
            Step::Reopen => store = open(folder),
        }
    }
    let all: Vec<_> = store.list("", None, None).await.unwrap().into_iter().map(|line| line.key).collect();
    prop_assert_eq!(all, model.into_keys().collect::<Vec<_>>());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_directory_is_an_ordered_map(steps in proptest::collection::vec(step(), 1..30)) {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run_against_model(folder.path(), steps))?;
    }
}

#[tokio::test]
async fn keys_that_are_no_paths_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("."));
    std::fs::write(folder.path().join("secret"), "outside").unwrap();
    let (long, deep) = ("x".repeat(256), "x/".repeat(2048) + "x");
    for key in [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "../secret",
        "a/../../secret",
        "a/./b",
        "a\0b",
        ".s3bd-tmp",
        ".s3bd-tmp/x",
        &long,
        &deep,
    ] {
        let shown = &key[..key.len().min(20)];
        assert_eq!(
            store.put(key, &[], PutMode::Replace).await.unwrap_err().kind,
            ErrorKind::Invalid,
            "{shown:?}"
        );
        assert_eq!(store.get(key, Range::Full).await.unwrap_err().kind, ErrorKind::Invalid, "{shown:?}");
        assert_eq!(store.head(key).await.unwrap_err().kind, ErrorKind::Invalid, "{shown:?}");
        assert_eq!(store.delete(&[key.to_owned()]).await.unwrap_err().kind, ErrorKind::Invalid, "{shown:?}");
    }
    for prefix in ["../", "..", "/", "a//", ".s3bd-tmp/", "a/../"] {
        assert!(store.list(prefix, None, None).await.unwrap().is_empty(), "{prefix}");
    }
}

#[test]
fn a_missing_or_wrong_root_is_said_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = Directory::open(&folder.path().join("missing")).unwrap_err();
    assert_eq!((error.kind, error.key.as_str()), (ErrorKind::NotFound, ""));
    assert!(
        error.to_string().contains("missing") && error.to_string().contains("create it first"),
        "{error}"
    );
    std::fs::write(folder.path().join("file"), "").unwrap();
    assert_eq!(Directory::open(&folder.path().join("file")).unwrap_err().kind, ErrorKind::Invalid);
}

#[tokio::test]
async fn a_removed_root_is_not_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let store = open(&root);
    store.put("a/b", &body("1"), PutMode::Create).await.unwrap();
    std::fs::remove_dir_all(&root).unwrap();
    std::fs::create_dir(&root).unwrap();
    for error in [
        store.list("", None, None).await.unwrap_err(),
        store.list("a/", None, None).await.unwrap_err(),
        store.get("a/b", Range::Full).await.unwrap_err(),
        store.head("a/b").await.unwrap_err(),
        store.put("a/b", &body("1"), PutMode::Create).await.unwrap_err(),
        store.delete(&["a/b".to_owned()]).await.unwrap_err(),
    ] {
        assert_eq!((error.kind, error.key.as_str()), (ErrorKind::NotFound, ""), "{error}");
    }
}

#[tokio::test]
async fn what_dead_writers_left_is_removed_and_what_living_ones_write_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let temporary = folder.path().join(".s3bd-tmp");
    let store: DynStore = Arc::new(open(folder.path()));
    put(&store, "k", "1").await;
    let mut dead = std::fs::File::create(temporary.join("dead")).unwrap();
    dead.write_all(b"half of an obj").unwrap();
    drop(dead);
    let living = std::fs::File::create(temporary.join("living")).unwrap();
    living.lock().unwrap();
    assert_eq!(keys(&store, "", None, None).await, ["k"], "temporary files are invisible");
    let _other = open(folder.path());
    assert!(!temporary.join("dead").exists());
    assert!(temporary.join("living").exists());
    assert_eq!(get(&store, "k").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openers_never_take_a_living_writers_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let opener = {
        let path = folder.path().to_owned();
        std::thread::spawn(move || (0..300).for_each(|_| drop(open(&path))))
    };
    let mut n = 0;
    while !opener.is_finished() {
        let key = format!("k/{n}");
        assert_eq!(store.put(&key, &body(&key), PutMode::Create).await.unwrap(), Put::Created);
        n += 1;
    }
    opener.join().unwrap();
    assert_eq!(store.list("k/", None, None).await.unwrap().len(), n);
}

/// Puts and deletes of two handles in one folder: each delete empties the folder and removes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_that_come_and_go_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let store = open(folder.path());
            tokio::spawn(async move {
                for round in 0..100 {
                    let key = format!("a/b/{worker}-{round}");
                    assert_eq!(store.put(&key, &body("x"), PutMode::Create).await.unwrap(), Put::Created);
                    assert_eq!(store.get(&key, Range::Full).await.unwrap().bytes, "x");
                    store.delete(&[key]).await.unwrap();
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    assert!(open(folder.path()).list("", None, None).await.unwrap().is_empty());
}

/// Started by [`racing_processes_have_one_winner`] with the folder in its environment; does nothing without.
#[tokio::test]
async fn child_that_races() {
    let Some(folder) = std::env::var_os("S3BD_TEST_RACE_FOLDER") else { return };
    let store = open(Path::new(&folder));
    let mine = std::process::id().to_string();
    for round in 0..200 {
        let created = store.put(&format!("race/{round}"), &body(&mine), PutMode::Create).await.unwrap();
        let seen = store.get(&format!("race/{round}"), Range::Full).await.unwrap().bytes;
        assert_eq!(created == Put::Created, seen == mine.as_bytes());
    }
}

#[tokio::test]
async fn racing_processes_have_one_winner() {
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child_that_races"]).env("S3BD_TEST_RACE_FOLDER", folder.path());
        command.stdout(std::process::Stdio::null()).spawn().unwrap()
    };
    let children: Vec<_> = (0..3).map(|_| start()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(open(folder.path()).list("race/", None, None).await.unwrap().len(), 200);
}

#[tokio::test]
async fn foreign_files_do_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let store: DynStore = Arc::new(open(folder.path()));
    put(&store, "b", "1").await;
    use std::os::unix::ffi::OsStrExt;
    std::fs::write(folder.path().join(std::ffi::OsStr::from_bytes(b"bad\xff")), "").unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path().join("dangling")).unwrap();
    std::os::unix::fs::symlink("loop", folder.path().join("loop")).unwrap();
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    assert_eq!(keys(&store, "", None, None).await, ["b"]);
    assert_eq!(
        store.put("empty", &body("2"), PutMode::Create).await.unwrap(),
        Put::Created,
        "an empty folder makes way"
    );
    assert_eq!(keys(&store, "", None, None).await, ["b", "empty"]);
    assert_eq!(store.get("dangling", Range::Full).await.unwrap_err().kind, ErrorKind::NotFound);
}

/// A file system of one megabyte: full, then not.
#[tokio::test]
async fn a_full_disk_may_pass() {
    let folder = tempfile::tempdir().unwrap();
    // Only root may make a disk to fill; elsewhere there is nothing to check.
    let Some(mounted) = Mounted::tmpfs(folder.path(), "1m") else { return };
    let store = open(folder.path());
    let big = [Bytes::from(vec![1; 700 << 10])];
    store.put("a", &big, PutMode::Create).await.unwrap();
    let error = store.put("b", &big, PutMode::Create).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Retry, "{error}");
    assert_eq!(store.head("b").await.unwrap(), None);
    store.delete(&["a".to_owned()]).await.unwrap();
    assert_eq!(
        store.put("b", &big, PutMode::Create).await.unwrap(),
        Put::Created,
        "the failed try left its space"
    );
    drop((store, mounted));
}

struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(path: &Path, size: &str) -> Option<Mounted> {
        let size = format!("size={size}");
        let mut mount = std::process::Command::new("mount");
        let status = mount
            .args(["-t", "tmpfs", "-o", &size, "s3bd-test"])
            .arg(path)
            .stderr(std::process::Stdio::null());
        status.status().ok()?.success().then(|| Mounted(path.to_owned()))
    }
}

impl Mounted {
    fn set_read_only(&self) {
        let mut mount = std::process::Command::new("mount");
        assert!(mount.args(["-o", "remount,ro"]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_directory_that_may_not_be_written_is_denied() {
    let folder = tempfile::tempdir().unwrap();
    // Permissions do not hold root back, a read-only file system does.
    let mounted = Mounted::tmpfs(folder.path(), "1m");
    let store = open(folder.path());
    store.put("a", &body("1"), PutMode::Create).await.unwrap();
    match &mounted {
        Some(mounted) => mounted.set_read_only(),
        None => {
            std::fs::set_permissions(folder.path().join(".s3bd-tmp"), Permissions::from_mode(0o500)).unwrap()
        }
    }
    for error in [
        store.put("b", &[], PutMode::Create).await.unwrap_err(),
        store.put("a", &[], PutMode::Replace).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    }
    assert_eq!(store.get("a", Range::Full).await.unwrap().bytes, "1");
    if mounted.is_none() {
        std::fs::set_permissions(folder.path().join(".s3bd-tmp"), Permissions::from_mode(0o700)).unwrap();
    }
}
