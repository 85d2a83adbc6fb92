//! What commands learn from, and tell, a server that runs on the same host.

use std::{os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use super::{raw::Raw, stage};
use crate::support::{
    fixture::{Fixture, Kind},
    host::{Ended, HANG, Host},
    run::qemu_io,
};

fn status(host: &Host, volume: &str) -> serde_json::Value {
    let said = host.run("status", &[volume, "--json"]).done();
    serde_json::from_str(&said.stdout).expect("JSON")
}

/// The only socket in the state directory.
fn socket(host: &Host) -> Option<PathBuf> {
    let folders = std::fs::read_dir(host.state()).expect("a folder");
    folders.map(|folder| folder.expect("an entry").path().join("control.sock")).find(|path| path.exists())
}

fn not_open(ended: Ended) {
    ended.failed(9, &["disk", "not open on this host", "s3bd info"]);
}

pub(crate) fn status_says_how_far_behind_the_bucket_is_and_sync_brings_it_up(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    not_open(host.run("status", &[&volume]));
    not_open(host.run("sync", &[&volume]));
    assert!(!host.state().exists(), "a question made a state directory");
    host.init(&volume, "64M");
    let server = host.open(&volume, &["--commit-interval", "1h", "--max-lag", "2h", "--max-lag", "1G"]);
    qemu_io(&server.uri, &["write -P 0x61 0 1M"]);
    let text = host.run("status", &[&volume]).done().stdout;
    for part in [
        "64.0 MiB",
        "serving",
        "1.0 MiB, the oldest write",
        "writes wait at 2 h 0 min or 1.0 GiB",
        "0 failed",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert_eq!(text.contains("US dollars"), kind != Kind::Directory, "{text}");
    let before = status(&host, &volume);
    assert_eq!(before["volume"]["unpublished"]["bytes"], 1 << 20, "{before}");
    assert_eq!(before["volume"]["state"]["name"], "serving", "{before}");
    assert!(!text.contains("unix ("), "qemu-io has left: {text}");

    let path = socket(&host).expect("a socket");
    let mode = |path: &std::path::Path| path.metadata().expect("a file").permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().expect("a folder"))), (0o600, 0o700));
    // Nothing but the socket is needed: neither the password nor the store.
    let bare = host.run("sync", &[&volume, "--region", "nowhere"]).done();
    assert!(bare.stdout.contains("in the bucket"), "{bare:?}");
    let after = status(&host, &volume);
    assert_eq!(after["volume"]["unpublished"]["oldest_age_ms"], serde_json::Value::Null, "{after}");
    let other = Host::new(&fixture);
    let reader = other.open(&volume, &["--read-only"]);
    let mut client = Raw::connect(&reader.socket).expect("a server");
    assert!(client.read(0, 4096).expect("data").iter().all(|&byte| byte == 0x61));
    drop(client);
    assert_eq!(status(&other, &volume)["volume"]["read_only"], true);
    reader.close();

    std::thread::scope(|scope| {
        let watching = scope.spawn(|| host.run("status", &[&volume, "--watch", "--json"]));
        let seen = host.printed().matches("\"unpublished\"").count();
        while host.printed().matches("\"unpublished\"").count() <= seen {
            std::thread::sleep(Duration::from_millis(5));
        }
        server.close();
        let ended = watching.join().expect("an end");
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("the server ended"), "{ended:?}");
    });
    assert_eq!(socket(&host), None, "the socket goes with the server");
    not_open(host.run("status", &[&volume]));
}

pub(crate) fn a_killed_servers_control_socket_is_nobody_and_the_next_one_answers(kind: Kind) {
    let (_fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &["--commit-interval", "1h"]);
    qemu_io(&server.uri, &["write -P 0x62 0 1M", "flush"]);
    server.kill();
    assert!(socket(&host).is_some(), "a killed server leaves its socket");
    not_open(host.run("status", &[&volume]));
    host.run("sync", &[&volume]).failed(9, &["not open on this host", "s3bd recover"]);
    let server = host.open(&volume, &["--commit-interval", "1h"]);
    assert_eq!(status(&host, &volume)["volume"]["unpublished"]["bytes"], 1 << 20);
    host.run("sync", &[&volume]).done();
    server.close();
}

pub(crate) fn a_fenced_server_says_by_whom_and_cannot_sync(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let first = host.open(&volume, &["--commit-interval", "1h"]);
    qemu_io(&first.uri, &["write -P 0x63 0 1M", "flush"]);
    let other = Host::new(&fixture);
    let second = other.open(&volume, &["--takeover"]);
    host.run("sync", &[&volume]).failed(8, &["fenced", "took this volume over"]);
    let since = tokio::time::Instant::now();
    // Whose claim it is gets known a moment after the fence.
    while status(&host, &volume)["volume"]["state"]["by"].is_null() {
        assert!(since.elapsed() < HANG, "it never finds out");
        std::thread::sleep(Duration::from_millis(5));
    }
    let text = host.run("status", &[&volume]).done().stdout;
    for part in ["fenced by generation", "which claimed the volume", "1.0 MiB, the oldest write"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    second.close();
}

/// The answer comes while the store is away, and `sync` waits for it.
pub(crate) fn whoever_waits_for_the_server_is_told_that_the_store_is_away(kind: Kind) {
    let (mut fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &["--commit-interval", "1h"]);
    qemu_io(&server.uri, &["write -P 0x64 0 1M", "flush"]);
    let taken = format!("{volume}@one");
    fixture.set_away(true);
    std::thread::scope(|scope| {
        let commands = [
            ["sync", &volume].to_vec(),
            ["snapshot", "list", &volume].to_vec(),
            ["snapshot", "create", &taken].to_vec(),
        ];
        let host = &host;
        let running: Vec<_> =
            commands.into_iter().map(|words| scope.spawn(move || host.run(words[0], &words[1..]))).collect();
        while !host.run("status", &[&volume]).done().stdout.contains("the store has been away for") {
            std::thread::sleep(Duration::from_millis(5));
        }
        let told = |host: &Host| host.printed().matches("the store has not answered for").count();
        while told(host) < running.len() {
            assert!(running.iter().all(|command| !command.is_finished()), "answered without the store");
            std::thread::sleep(Duration::from_millis(20));
        }
        fixture.set_away(false);
        for command in running {
            command.join().expect("an end").done();
        }
    });
    let after = status(&host, &volume);
    assert_eq!(after["volume"]["unpublished"]["bytes"], 0, "{after}");
    assert!(after["store"]["last_failure"]["error"].is_string(), "{after}");
    server.close();
}

pub(crate) fn of_two_stores_with_a_bucket_of_one_name_the_right_server_is_asked(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    let other = Fixture::start(kind);
    let host = host.with_flags(&[]);
    let (here, there) = (fixture.flags(), other.flags());
    let (here, there) = ([&volume, &here[0][..], &here[1]], [&volume, &there[0][..], &there[1]]);
    host.run("init", &[&here[..], &["--size", "64M"]].concat()).done();
    let server = host.open(&volume, &here[1..]);
    host.run("sync", &here).done();
    // The server of the other store is asked for, although it is not there.
    let said = host.run("sync", &there);
    said.failed(9, &["not open on this host", "one of that name at", here[2], "s3bd info"]);
    server.close();
}
