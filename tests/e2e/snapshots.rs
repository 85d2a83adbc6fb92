//! Snapshots with real clients: taken while the volume is written to, read as exports of the server, and alone.

use super::stage;
use crate::support::{
    fixture::Kind,
    host::{Host, PASSWORD},
    run::{output, qemu_io, run},
};

fn read_only(uri: &str, command: &str) {
    let printed = run("qemu-io", &["-r", "-f", "raw", "-c", command, uri]);
    assert!(!printed.contains("fail") && !printed.contains("rror"), "{command}: {printed}");
}

pub(crate) fn snapshots_are_taken_read_renamed_and_deleted_online_and_offline(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let at = |name: &str| format!("{volume}@{name}");
    host.run("snapshot", &["create", &at("empty")]).done();
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["write -P 0x11 1M 1M", "flush"]);
    // The server knows the way in: no secret is needed beside it.
    let bare = host.without("S3BD_PASSWORD");
    let taken = bare.run("snapshot", &["create", &at("one")]).done();
    assert!(taken.stdout.contains("@one: taken at epoch "), "{}", taken.stdout);
    qemu_io(&server.uri, &["write -P 0x22 1M 1M", "flush"]);
    let list = run("nbdinfo", &["--list", &server.default_uri()]);
    for export in ["\"disk\"", "\"disk@empty\"", "\"disk@one\""] {
        assert!(list.contains(&format!("export={export}")), "{export} in {list}");
    }
    let export = |name: &str| format!("{}/disk@{name}", server.default_uri());
    read_only(&export("one"), "read -P 0x11 1M 1M");
    read_only(&export("empty"), "read -P 0 1M 1M");
    qemu_io(&server.uri, &["read -P 0x22 1M 1M"]);
    assert!(run("nbdinfo", &[&export("one")]).contains("is_read_only: true"));
    assert!(!output("nbdinfo", &[&export("none")]).status.success());
    for (arguments, words) in [
        (["create", &at("one")[..]], "there is a snapshot \"one\" of this volume already"),
        (["create", &volume], "names no snapshot"),
        (["create", &at("a@b")], "must not contain @ or /"),
        (["delete", &at("none")], "there is no snapshot \"none\""),
    ] {
        let yes: &[&str] = if arguments[0] == "delete" { &["--yes"] } else { &[] };
        let refused = bare.run("snapshot", &[&arguments[..], yes].concat());
        assert!(
            refused.code != Some(0) && refused.stderr.contains(words),
            "{arguments:?}: {}",
            refused.stderr
        );
    }
    bare.run("snapshot", &["rename", &at("one"), "two"]).done();
    let listed = bare.run("snapshot", &["list", &volume, "--json"]).done().stdout;
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["empty", "two"]);
    server.close();
    let host = bare.with("S3BD_PASSWORD", PASSWORD);

    // From the bucket alone, on a host that never had it open.
    let other = Host::new(&fixture);
    let offline = other.run("snapshot", &["list", &volume]).done().stdout;
    assert!(offline.contains("ONLY HERE") && offline.contains("two"), "{offline}");
    let server = other.open(&at("two"), &[]);
    read_only(&server.uri, "read -P 0x11 1M 1M");
    let written = output("qemu-io", &["-f", "raw", "-c", "write 0 4k", &server.uri]);
    assert!(!written.status.success());
    server.close();
    host.run("snapshot", &["delete", &at("two"), "--yes"]).done();
    host.run("snapshot", &["delete", &at("empty"), "--yes"]).done();
    let none = host.run("snapshot", &["list", &volume]).done().stdout;
    assert!(none.contains("no snapshots"), "{none}");
    host.run("fsck", &[&volume, "--read-data"]).done();
}
