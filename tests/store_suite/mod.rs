//! What every store has to do, as one function: the same claims for memory, directory and S3 servers.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::sync::Arc;

use bytes::Bytes;
use s3bd::store::{ErrorKind, Folder, Put, PutMode, Range, Store, StoreError};

pub type DynStore = Arc<dyn Store>;

/// What differs between stores.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// A create-only put leaves what is there alone.
    pub create_honoured: bool,
    /// A key may be the beginning of another up to a slash.
    pub key_may_be_folder: bool,
}

pub fn body(text: &str) -> Vec<Bytes> {
    vec![Bytes::copy_from_slice(text.as_bytes())]
}

pub async fn put(store: &DynStore, key: &str, text: &str) {
    assert_eq!(store.put(key, &body(text), PutMode::Replace).await.unwrap(), Put::Created, "{key}");
}

pub async fn get(store: &DynStore, key: &str) -> Bytes {
    let got = store.get(key, Range::Full).await.unwrap();
    assert_eq!(got.object_bytes, got.bytes.len() as u64);
    got.bytes
}

pub async fn keys(store: &DynStore, prefix: &str, after: Option<&str>, limit: Option<usize>) -> Vec<String> {
    store.list(prefix, after, limit).await.unwrap().into_iter().map(|line| line.key).collect()
}

fn kind<T: std::fmt::Debug>(result: Result<T, StoreError>) -> ErrorKind {
    result.unwrap_err().kind
}

/// All claims, each on keys of its own; the store is empty before and afterwards.
pub async fn check(store: DynStore, traits: Traits) {
    assert!(keys(&store, "", None, None).await.is_empty(), "the store is not empty");
    what_was_put_is_seen(&store).await;
    ranges_lie_within(&store).await;
    create_and_replace(&store, traits).await;
    absence_is_an_answer(&store).await;
    listings_are_in_byte_order(&store, traits).await;
    folders_are_listed_without_what_lies_below(&store, traits).await;
    nasty_keys_come_back(&store, traits).await;
    many_are_listed_and_deleted(&store).await;
    racing_creates(&store, traits).await;
    reads_see_whole_objects(&store).await;
    assert!(keys(&store, "", None, None).await.is_empty(), "something is left");
}

async fn what_was_put_is_seen(store: &DynStore) {
    let parts = [
        Bytes::from_static(b"one "),
        Bytes::new(),
        Bytes::from_static(b"two "),
        Bytes::from_static(b"three"),
    ];
    store.put("seen/parts", &parts, PutMode::Create).await.unwrap();
    assert_eq!(get(store, "seen/parts").await, "one two three");
    store.put("seen/empty", &[], PutMode::Create).await.unwrap();
    assert_eq!(get(store, "seen/empty").await, "");
    assert_eq!(store.head("seen/empty").await.unwrap(), Some(0));
    let big: Bytes = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>().into();
    store.put("seen/big", &[big.slice(..5), big.slice(5..)], PutMode::Create).await.unwrap();
    assert!(get(store, "seen/big").await == big, "12 MB came back changed");
    assert_eq!(store.head("seen/big").await.unwrap(), Some(12_000_000));
    let listed = store.list("seen/", None, None).await.unwrap();
    let sizes: Vec<_> = listed.iter().map(|line| (line.key.as_str(), line.bytes)).collect();
    assert_eq!(sizes, [("seen/big", 12_000_000), ("seen/empty", 0), ("seen/parts", 13)]);
    store.delete(&["seen/big", "seen/empty", "seen/parts"].map(str::to_owned)).await.unwrap();
}

async fn ranges_lie_within(store: &DynStore) {
    put(store, "range", "0123456789").await;
    put(store, "range-empty", "").await;
    let part = |offset, length| Range::Part { offset, length };
    for (range, expected) in [
        (Range::Full, "0123456789"),
        (part(0, 10), "0123456789"),
        (part(0, 1), "0"),
        (part(9, 1), "9"),
        (part(3, 4), "3456"),
        (Range::Suffix { length: 1 }, "9"),
        (Range::Suffix { length: 10 }, "0123456789"),
        (Range::Suffix { length: 11 }, "0123456789"),
        (Range::Suffix { length: u64::MAX / 4 }, "0123456789"),
    ] {
        let got = store.get("range", range).await.unwrap();
        assert_eq!((got.bytes, got.object_bytes), (Bytes::from(expected), 10), "{range:?}");
    }
    for range in [part(0, 11), part(9, 2), part(10, 1), part(11, 1), part(1 << 40, 1), part(u64::MAX, 2)] {
        assert_eq!(kind(store.get("range", range).await), ErrorKind::Short, "{range:?}");
    }
    let got = store.get("range-empty", Range::Suffix { length: 5 }).await.unwrap();
    assert_eq!((got.bytes.len(), got.object_bytes), (0, 0));
    assert_eq!(kind(store.get("range-empty", part(0, 1)).await), ErrorKind::Short);
    store.delete(&["range".to_owned(), "range-empty".to_owned()]).await.unwrap();
}

async fn create_and_replace(store: &DynStore, traits: Traits) {
    assert_eq!(store.put("mode", &body("first"), PutMode::Create).await.unwrap(), Put::Created);
    let second = store.put("mode", &body("second"), PutMode::Create).await.unwrap();
    let (expected, left) =
        if traits.create_honoured { (Put::Exists, "first") } else { (Put::Created, "second") };
    assert_eq!(second, expected);
    assert_eq!(get(store, "mode").await, left);
    assert_eq!(store.put("mode", &body("3"), PutMode::Replace).await.unwrap(), Put::Created);
    assert_eq!(get(store, "mode").await, "3");
    store.delete(&["mode".to_owned()]).await.unwrap();
    assert_eq!(store.put("mode", &body("again"), PutMode::Create).await.unwrap(), Put::Created);
    store.delete(&["mode".to_owned()]).await.unwrap();
}

async fn absence_is_an_answer(store: &DynStore) {
    let error = store.get("absent/x", Range::Full).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.key.ends_with("absent/x"), "{error}");
    let range = Range::Part { offset: 0, length: 1 };
    assert_eq!(kind(store.get("absent/x", range).await), ErrorKind::NotFound);
    assert_eq!(kind(store.get("absent/x", Range::Suffix { length: 1 }).await), ErrorKind::NotFound);
    assert_eq!(store.head("absent/x").await.unwrap(), None);
    assert!(store.list("absent/", None, None).await.unwrap().is_empty());
    store.delete(&["absent/x".to_owned(), "absent/y".to_owned()]).await.unwrap();
    store.delete(&["absent/x".to_owned()]).await.unwrap();
    store.delete(&[]).await.unwrap();
    // A folder is no object, and what lies below an object is none either.
    put(store, "absent/folder/file", "x").await;
    assert_eq!(kind(store.get("absent/folder", Range::Full).await), ErrorKind::NotFound);
    assert_eq!(store.head("absent/folder").await.unwrap(), None);
    assert_eq!(store.head("absent/folder/file/below").await.unwrap(), None);
    assert_eq!(kind(store.get("absent/folder/file/below", Range::Full).await), ErrorKind::NotFound);
    store.delete(&["absent/folder".to_owned(), "absent/folder/file/below".to_owned()]).await.unwrap();
    assert_eq!(get(store, "absent/folder/file").await, "x");
    store.delete(&["absent/folder/file".to_owned()]).await.unwrap();
    assert_eq!(kind(store.put("", &[], PutMode::Replace).await), ErrorKind::Invalid);
}

async fn listings_are_in_byte_order(store: &DynStore, traits: Traits) {
    // '!' and '-' and '.' sort before '/', digits and letters after it.
    let mut all = vec![
        "o/a!", "o/a-b", "o/a.b", "o/a/!", "o/a/b/c", "o/a/b0", "o/a0", "o/aa", "o/a~", "o/b", "o/B", "o/0",
        "o/é", "o/z/z/z",
    ];
    if traits.key_may_be_folder {
        all.extend(["o/a", "o/a/b"]);
    }
    for key in &all {
        put(store, key, key).await;
    }
    all.sort_unstable();
    assert_eq!(keys(store, "", None, None).await, all);
    assert_eq!(keys(store, "o/", None, None).await, all);
    for prefix in ["o", "o/a", "o/a/", "o/a/b", "o/a/b/", "o/z/z", "o/x", "x", "o/é", "o//", "/"] {
        let expected: Vec<_> = all.iter().filter(|key| key.starts_with(prefix)).copied().collect();
        assert_eq!(keys(store, prefix, None, None).await, expected, "prefix {prefix}");
    }
    for after in [
        "", "o", "o/", "o/a", "o/a!", "o/a-", "o/a/", "o/a/b", "o/a/b/c", "o/a0", "o/z", "o/z/z/z", "p",
        "o/é",
    ] {
        let beyond: Vec<_> = all.iter().filter(|key| **key > after).copied().collect();
        assert_eq!(keys(store, "", Some(after), None).await, beyond, "after {after}");
        for limit in [0, 1, 3, 100] {
            let expected: Vec<_> =
                beyond.iter().filter(|key| key.starts_with("o/a")).take(limit).copied().collect();
            assert_eq!(keys(store, "o/a", Some(after), Some(limit)).await, expected, "{after} {limit}");
        }
    }
    store.delete(&all.into_iter().map(str::to_owned).collect::<Vec<_>>()).await.unwrap();
}

async fn folders_are_listed_without_what_lies_below(store: &DynStore, traits: Traits) {
    let mut all = vec![
        "f/b",
        "f/a!",
        "f/a/1",
        "f/a/2",
        "f/a/b/c",
        "f/a0/x",
        "f/ü +%/&/deep",
        "f/z/y/x",
        "g/a/x",
        "top",
    ];
    if traits.key_may_be_folder {
        all.push("f/a");
    }
    let many: Vec<_> = (0..30).map(|n| format!("f/many/{n:02}/{n}")).collect();
    let all: Vec<String> = all.into_iter().map(str::to_owned).chain(many).collect();
    for key in &all {
        put(store, key, key).await;
    }
    for prefix in ["", "f/", "f/a/", "f/a/b/", "f/many/", "f/ü +%/", "f/x/", "x/", "g/", "/", "f//"] {
        let below = all.iter().filter_map(|key| key.strip_prefix(prefix).map(|below| (key, below)));
        let mut objects = Vec::new();
        let mut folders = std::collections::BTreeSet::new();
        for (key, below) in below {
            match below.find('/') {
                Some(at) => _ = folders.insert(key[..=prefix.len() + at].to_owned()),
                None => objects.push((key.clone(), key.len() as u64)),
            }
        }
        objects.sort_unstable();
        let found = store.list_folder(prefix).await.unwrap();
        let lines: Vec<_> = found.objects.into_iter().map(|line| (line.key, line.bytes)).collect();
        assert_eq!(lines, objects, "objects of {prefix:?}");
        assert_eq!(found.folders, folders.into_iter().collect::<Vec<_>>(), "folders of {prefix:?}");
    }
    store.delete(&all).await.unwrap();
    assert_eq!(store.list_folder("f/").await.unwrap(), Folder::default());
}

async fn nasty_keys_come_back(store: &DynStore, traits: Traits) {
    let mut nasty = vec![
        "n/a b+c%20d".to_owned(),
        "n/&amp;<tag>\"quote'".to_owned(),
        "n/ü/日本語/🦀".to_owned(),
        "n/back\\slash?query#fragment".to_owned(),
        "n/~!@$^*()_={}|[];:,".to_owned(),
        "n/ leading and trailing ".to_owned(),
        format!("n/{}", "l".repeat(250)),
        format!("n/{}", ["part"; 150].join("/")),
        "n/...".to_owned(),
        "n/.hidden".to_owned(),
    ];
    if traits.key_may_be_folder {
        nasty.push(format!("n/{}", "x".repeat(1000)));
    }
    for key in &nasty {
        put(store, key, key).await;
    }
    nasty.sort_unstable();
    assert_eq!(keys(store, "n/", None, None).await, nasty);
    for key in &nasty {
        assert_eq!(get(store, key).await, key.as_bytes(), "{key}");
        assert_eq!(store.head(key).await.unwrap(), Some(key.len() as u64), "{key}");
    }
    assert_eq!(keys(store, "n/a b+", Some("n/a b+"), Some(1)).await, ["n/a b+c%20d"]);
    store.delete(&nasty).await.unwrap();
    assert!(keys(store, "n/", None, None).await.is_empty());
}

async fn many_are_listed_and_deleted(store: &DynStore) {
    let all: Vec<_> = (0..1205).map(|n| format!("many/{n:08x}")).collect();
    let puts = all.iter().map(|key| store.put(key, &[], PutMode::Create));
    use futures::StreamExt;
    let results: Vec<_> = futures::stream::iter(puts).buffer_unordered(16).collect().await;
    assert!(
        results.iter().all(|result| matches!(result, Ok(Put::Created))),
        "{:?}",
        results.iter().find(|r| r.is_err())
    );
    assert_eq!(keys(store, "many/", None, None).await, all);
    assert_eq!(keys(store, "many/", None, Some(1001)).await, all[..1001]);
    assert_eq!(keys(store, "many/", Some(&all[1199]), None).await, all[1200..]);
    store.delete(&all[..1203]).await.unwrap();
    assert_eq!(keys(store, "many/", None, None).await, all[1203..]);
    store.delete(&all).await.unwrap();
}

async fn racing_creates(store: &DynStore, traits: Traits) {
    for round in 0..10 {
        let key = format!("race/{round}");
        let racers = (0..8).map(|racer| {
            let (store, key) = (Arc::clone(store), key.clone());
            tokio::spawn(
                async move { (racer, store.put(&key, &body(&racer.to_string()), PutMode::Create).await) },
            )
        });
        let mut winners = Vec::new();
        for racer in racers.collect::<Vec<_>>() {
            let (racer, result) = racer.await.unwrap();
            match result {
                Ok(Put::Created) => winners.push(racer.to_string()),
                Ok(Put::Exists) => {}
                // A server may say 409 to racing conditional puts.
                Err(error) => assert_eq!(error.kind, ErrorKind::Retry, "{error}"),
            }
        }
        let stored = get(store, &key).await;
        assert!(winners.iter().any(|winner| winner.as_bytes() == stored), "{winners:?} {stored:?}");
        if traits.create_honoured {
            assert_eq!(winners.len(), 1, "{winners:?}");
        }
        store.delete(&[key]).await.unwrap();
    }
}

/// A reader beside a writer that replaces sees one version or the other, whole, and never nothing.
async fn reads_see_whole_objects(store: &DynStore) {
    let versions = [vec![b'a'; 70_000], vec![b'b'; 30_000]];
    store.put("whole", &[versions[0].clone().into()], PutMode::Create).await.unwrap();
    let writer = {
        let (store, versions) = (Arc::clone(store), versions.clone());
        tokio::spawn(async move {
            for round in 0..30 {
                store.put("whole", &[versions[round % 2].clone().into()], PutMode::Replace).await.unwrap();
            }
        })
    };
    while !writer.is_finished() {
        let got = store.get("whole", Range::Full).await.unwrap();
        assert!(
            versions.iter().any(|version| *version == got.bytes),
            "a mixture of {} bytes",
            got.bytes.len()
        );
        assert!(store.head("whole").await.unwrap().is_some());
    }
    writer.await.unwrap();
    store.delete(&["whole".to_owned()]).await.unwrap();
}
