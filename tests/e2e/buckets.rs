//! Commands about whole volumes: what a bucket has, what changed since a snapshot, going back to it, removing it all.

use super::stage;
use crate::support::{
    fixture::Kind,
    host::{Ended, Host},
    run::qemu_io,
};

/// The bucket or the directory of a volume.
fn place(volume: &str) -> &str {
    volume.rsplit_once('/').expect("a volume in something").0
}

fn json(ended: &Ended) -> serde_json::Value {
    serde_json::from_str(&ended.stdout).expect("JSON")
}

pub(crate) fn a_bucket_is_listed_with_what_each_may_know(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    let nothing = host.run("list", &[place(&volume)]).done();
    assert!(nothing.stdout.is_empty() && nothing.stderr.contains("no volumes"), "{nothing:?}");
    host.init(&volume, "64M");
    let bare = fixture.location("bare");
    host.run("init", &[&bare, "--size", "32M", "--no-password"]).done();
    let stranger = Host::new(&fixture).without("S3BD_PASSWORD");
    let text = stranger.run("list", &[place(&volume)]).done().stdout;
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[1].starts_with("bare ") && lines[1].contains("32.0 MiB"), "{text}");
    assert!(lines[1].ends_with("closed") && lines[2].ends_with("locked"), "{text}");
    let told = json(&stranger.run("list", &[place(&volume), "--json"]).done());
    assert_eq!((&told[1]["volume"], &told[1]["state"]), (&"disk".into(), &"locked".into()), "{told}");
    assert_eq!((&told[1]["protected"], &told[1]["block_bytes"]), (&true.into(), &4096.into()), "{told}");
    assert_eq!(told[0]["info"]["size_bytes"], 32 << 20, "{told}");

    let server = host.open(&volume, &[]);
    host.run("snapshot", &["create", &format!("{volume}@first")]).done();
    let told = json(&host.run("list", &[place(&volume), "--json"]).done());
    assert_eq!(told[1]["state"], "open", "{told}");
    assert_eq!(told[1]["info"]["snapshots"][0]["name"], "first", "{told}");
    let text = host.run("list", &[place(&volume)]).done().stdout;
    assert!(text.contains("  @first") && text.contains("open by"), "{text}");
    server.close();
    for wrong in ["", "UPPER", "http://host"] {
        assert_eq!(host.run("list", &[wrong]).code, Some(2), "{wrong}");
    }
    assert!(!stranger.state().exists(), "a listing made a state directory");
}

pub(crate) fn a_snapshot_comes_back_and_what_changed_since_is_listed(kind: Kind) {
    let (_fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let first = format!("{volume}@first");
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["write -P 1 0 1M", "write -P 1 8M 1M", "flush"]);
    host.run("snapshot", &["create", &first]).done();
    qemu_io(&server.uri, &["write -P 2 512k 1M", "discard 8M 64k", "flush"]);
    host.run("sync", &[&volume]).done();
    let changed = host.run("diff", &[&first]).done();
    assert_eq!(changed.stdout, "524288 1048576 data\n8388608 65536 zero\n", "{changed:?}");
    assert!(changed.stderr.contains("2 ranges differ between @first and epoch"), "{changed:?}");
    let told = json(&host.run("diff", &[&first, "--json"]).done());
    assert_eq!(told["ranges"][0]["offset"], 524_288, "{told}");
    assert_eq!(
        (&told["ranges"][1]["now"], &told["changed_bytes"]),
        (&"zero".into(), &1_114_112.into()),
        "{told}"
    );
    host.run("diff", &[&volume]).failed(2, &["names no snapshot"]);
    host.run("diff", &[&format!("{volume}@none")]).failed(1, &["no snapshot \"none\""]);
    host.run("rollback", &[&first, "--yes"]).failed(5, &["disk", "open"]);
    server.close();

    host.run("rollback", &[&volume, "--yes"]).failed(2, &["names no snapshot"]);
    host.run("rollback", &[&format!("{volume}@none"), "--yes"]).failed(1, &["no snapshot \"none\""]);
    host.run("rollback", &[&first]).failed(1, &["--yes", "nothing was changed"]);
    let done = host.run("rollback", &[&first, "--yes"]).done().stdout;
    let kept = done.split_once("kept as @").expect("the name of what was before").1.trim();
    let server = host.open(&volume, &[]);
    qemu_io(
        &server.uri,
        &["read -P 1 0 1M", "read -P 0 1M 7M", "read -P 1 8M 1M", "write -P 3 0 4k", "flush"],
    );
    server.close();
    let back = host.run("diff", &[&format!("{volume}@{kept}"), "@first"]).done();
    assert_eq!(back.stdout, "524288 524288 data\n1048576 524288 zero\n8388608 65536 data\n", "{back:?}");
    host.run("rollback", &[&format!("{volume}@{kept}"), "--yes", "--no-snapshot"]).done();
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["read -P 1 0 512k", "read -P 2 512k 1M", "read -P 0 8M 64k"]);
    server.close();
    host.run("fsck", &[&volume, "--read-data"]).done();
}

pub(crate) fn a_volume_is_removed_from_bucket_and_host(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["write -P 1 0 8M", "flush"]);
    host.run("snapshot", &["create", &format!("{volume}@first")]).done();
    host.run("remove", &[&volume, "--yes"]).failed(5, &["disk", "open"]);
    let elsewhere = Host::new(&fixture);
    elsewhere.run("remove", &[&volume, "--yes"]).failed(5, &["has had this volume open", "--takeover"]);
    server.close();
    let before = fixture.contents();
    elsewhere.run("remove", &[&volume]).failed(1, &["1 snapshot", "--yes", "nothing was changed"]);
    elsewhere
        .with("S3BD_PASSWORD", "wrong")
        .run("remove", &[&volume, "--yes"])
        .failed(4, &["wrong password"]);
    assert!(fixture.contents() == before, "a refused removal changed the bucket");
    let removed = host.run("remove", &[&volume, "--yes"]).done();
    assert!(removed.stdout.contains("removed, with"), "{removed:?}");
    assert!(fixture.contents().is_empty(), "{:?}", fixture.contents().keys());
    let left = std::fs::read_dir(host.state()).expect("a folder").count();
    assert_eq!(left, 0, "the host keeps something");
    host.fail_to_open(&volume, &[]).failed(3, &["no volume here"]);
    host.run("remove", &[&volume, "--yes"]).failed(3, &["no volume here"]);
    host.init(&volume, "64M");

    // What the bucket does not have stays.
    let server = host.open(&volume, &["--commit-interval", "1h"]);
    qemu_io(&server.uri, &["write -P 1 0 1M", "flush"]);
    server.kill();
    let removed = host.run("remove", &[&volume, "--yes"]).done();
    assert!(removed.stderr.contains("stays: its log holds"), "{removed:?}");
    assert_eq!(std::fs::read_dir(host.state()).expect("a folder").count(), 1);
    assert!(fixture.contents().is_empty());
}
