//! What `open` and `recover` say and do on a bad day. On a directory, whose files can be damaged by hand.

use std::path::PathBuf;

use super::{raw::Raw, stage};
use crate::support::{
    fixture::{Kind, files_below},
    host::{Ended, HANG, Host},
    run::qemu_io,
};

/// Files of the volume below this prefix, oldest first.
fn files(volume: &str, prefix: &str) -> Vec<PathBuf> {
    let folder = PathBuf::from(volume.strip_prefix("file:").expect("a directory")).join(prefix);
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

fn damage(file: &PathBuf) {
    let mut bytes = std::fs::read(file).expect("a file");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(file, bytes).expect("a file");
}

/// It said what it would do, and wanted a word for it.
fn asked(ended: &Ended, code: i32, text: &str) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert!(ended.stderr.contains("--yes"), "{ended:?}");
    assert!(ended.stdout.contains(text) || ended.stderr.contains(text), "{ended:?}");
}

pub(crate) fn recover_falls_back_to_the_newest_whole_epoch_and_asks(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["write -P 0x51 0 4M", "flush"]);
    server.close();
    let newest = files(&volume, "manifests").pop().expect("a manifest");
    damage(&newest);
    let bucket = fixture.contents();
    host.fail_to_open(&volume, &[]).failed(7, &["manifests/", "s3bd recover"]);
    let said = host.run("recover", &[&volume, "--dry-run"]).done();
    assert!(said.stdout.contains("is the newest whole one"), "{said:?}");
    asked(&host.run("recover", &[&volume]), 7, "is the newest whole one");
    assert!(fixture.contents() == bucket, "a question changed the bucket");
    host.run("recover", &[&volume, "--yes"]).done();
    let other = Host::new(&fixture);
    let server = other.open(&volume, &[]);
    qemu_io(&server.uri, &["read -P 0x51 0 4M"]);
    server.close();
    // Nothing is left to find but the damaged manifest itself.
    let checked = other.run("fsck", &[&volume]);
    let name = newest.file_name().expect("a name").to_string_lossy();
    let mut errors = checked.stdout.lines().filter(|line| line.contains("error: "));
    assert!(errors.all(|line| line.contains(&*name)), "{checked:?}");
}

pub(crate) fn recover_scan_rebuilds_a_volume_without_manifests(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["write -P 0x52 0 4M", "write -P 0x53 8M 1M", "discard 1M 1M", "flush"]);
    server.close();
    let whole = host.run("recover", &[&volume, "--scan"]);
    assert_eq!(whole.code, Some(2), "there is a whole manifest: {whole:?}");
    for file in files(&volume, "manifests") {
        std::fs::remove_file(file).expect("a file");
    }
    host.fail_to_open(&volume, &[]).failed(7, &["no usable manifest", "s3bd recover"]);
    host.run("recover", &[&volume]).failed(7, &["--scan"]);
    let checked = host.run("fsck", &[&volume]).stdout;
    assert!(checked.contains("1 finding: s3bd recover --scan makes the maps anew"), "{checked}");
    assert!(!checked.contains("goes back"), "{checked}");
    // This host has seen the manifest of the close, which no object tells of.
    let refused = host.run("recover", &[&volume, "--scan"]);
    assert!(refused.code == Some(8) && refused.stderr.contains("--accept-rollback"), "{refused:?}");
    let scan = [&*volume, "--scan", "--accept-rollback"];
    asked(&host.run("recover", &scan), 7, "4.0 MiB of it used");
    host.run("recover", &[&scan[..], &["--yes"]].concat()).done();
    let other = Host::new(&fixture);
    let server = other.open(&volume, &[]);
    qemu_io(
        &server.uri,
        &["read -P 0x52 0 1M", "read -P 0 1M 1M", "read -P 0x52 2M 2M", "read -P 0x53 8M 1M"],
    );
    server.close();
    let checked = other.run("fsck", &[&volume, "--read-data"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
}

/// Of the newest manifests only the first few are whole, and all objects are: nothing is lost.
pub(crate) fn recover_scan_goes_beyond_damaged_manifests(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &["--commit-interval", "1h"]);
    for number in 0..4 {
        qemu_io(&server.uri, &[&format!("write -P {} {number}M 1M", number + 1), "flush"]);
        host.run("sync", &[&volume]).done();
    }
    server.close();
    files(&volume, "manifests").iter().skip(2).for_each(damage);
    let other = Host::new(&fixture);
    let takes = [&*volume, "--takeover"];
    let said = other.run("recover", &[&takes[..], &["--dry-run"]].concat()).done();
    assert!(said.stdout.contains("s3bd recover --scan --dry-run says"), "{said:?}");
    let scan = [&*volume, "--takeover", "--scan"];
    let asked_for = other.run("recover", &scan);
    asked(&asked_for, 7, "4.0 MiB of it used");
    assert!(asked_for.stdout.contains("the newest whole manifest is that of epoch"), "{asked_for:?}");
    other.run("recover", &[&scan[..], &["--yes"]].concat()).done();
    let server = other.open(&volume, &[]);
    qemu_io(&server.uri, &["read -P 1 0 1M", "read -P 2 1M 1M", "read -P 3 2M 1M", "read -P 4 3M 1M"]);
    server.close();
    let again = other.run("recover", &[&volume, "--scan"]);
    assert!(again.code == Some(2) && again.stderr.contains("and no later cut is"), "{again:?}");
}

/// What has no second copy is named, whatever is done; nothing is put over what is left.
pub(crate) fn without_its_header_or_its_key_a_volume_is_damaged(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    host.open(&volume, &[]).close();
    for slot in files(&volume, "keys") {
        std::fs::remove_file(slot).expect("a file");
    }
    host.fail_to_open(&volume, &[]).failed(7, &["no key slot is usable"]);
    host.run("key", &["list", &volume]).failed(7, &["no key slot is usable"]);
    std::fs::remove_file(volume.strip_prefix("file:").expect("a directory").to_owned() + "/volume")
        .expect("a file");
    let left = fixture.contents();
    host.fail_to_open(&volume, &[]).failed(7, &["the object \"volume\" is missing", "put it back"]);
    host.run("init", &[&volume, "-s", "64M", "--no-password"]).failed(7, &["put it back"]);
    let checked = host.run("fsck", &[&volume]);
    assert!(checked.code == Some(4) && checked.stdout.contains("put the object back"), "{checked:?}");
    host.run("remove", &[&volume, "--yes"]).failed(7, &["put it back"]);
    assert!(fixture.contents() == left, "something was put over it");
}

/// Who only looks is not refused, and told.
pub(crate) fn an_older_bucket_is_said_to_those_who_only_read(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    host.open(&volume, &[]).close();
    let newest = files(&volume, "manifests").into_iter().max().expect("a manifest");
    std::fs::remove_file(newest).expect("a file");
    let other = Host::new(&fixture);
    for (host, warned) in [(&host, true), (&other, false)] {
        let said = host.run("info", &[&volume]).done();
        assert_eq!(said.stderr.contains("this host has seen epoch"), warned, "{said:?}");
        // Who checks asks whether all is well.
        let said = host.run("fsck", &[&volume]);
        assert_eq!(said.code, Some(if warned { 4 } else { 0 }), "{said:?}");
        assert_eq!(said.stdout.contains("this host has seen epoch"), warned, "{said:?}");
        assert_eq!(said.stdout.contains("--accept-rollback"), warned, "{said:?}");
        let server = host.open(&volume, &["--read-only"]);
        assert_eq!(server.stderr().contains("this host has seen epoch"), warned, "{}", server.stderr());
        server.close();
    }
}

pub(crate) fn what_a_fenced_host_held_becomes_a_volume_of_its_own(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    let new = fixture.location("rescued");
    host.init(&volume, "64M");
    let first = host.open(&volume, &["--commit-interval", "1h"]);
    qemu_io(&first.uri, &["write -P 0x61 0 4M", "flush"]);
    first.close();
    host.run("recover", &[&volume, "--rescue-to", &new]).failed(1, &["nothing to rescue"]);
    let first = host.open(&volume, &["--commit-interval", "1h"]);
    qemu_io(&first.uri, &["write -P 0x62 1M 1M", "discard 2M 1M", "flush"]);
    let other = Host::new(&fixture);
    let second = other.open(&volume, &["--takeover"]);
    qemu_io(&second.uri, &["read -P 0x61 0 4M", "write -P 0x63 3M 1M", "flush"]);
    first.signal("TERM");
    assert_eq!(first.end().code, Some(8));
    second.close();
    let (bucket, state) = (fixture.contents(), files_below(&host.state()));
    let said = host.run("recover", &[&volume, "--rescue-to", &new]).done();
    assert!(said.stdout.contains("1 write (1.0 MiB), 1 trim or zeroing of the local log"), "{said:?}");
    let unchanged = |(name, bytes): (&String, &bytes::Bytes)| fixture.contents().get(name) == Some(bytes);
    assert!(bucket.iter().all(unchanged), "the old volume was changed");
    assert!(state.iter().all(|(name, bytes)| files_below(&host.state()).get(name) == Some(bytes)));
    host.run("recover", &[&volume, "--rescue-to", &new]).failed(1, &["a volume here already"]);
    let server = other.open(&new, &[]);
    qemu_io(
        &server.uri,
        &["read -P 0x61 0 1M", "read -P 0x62 1M 1M", "read -P 0 2M 1M", "read -P 0x61 3M 1M"],
    );
    server.close();
    let checked = other.run("fsck", &[&new, "--read-data"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    asked(&host.run("recover", &[&volume, "--discard"]), 8, "give up 1 write (1.0 MiB), 1 trim");
    host.run("recover", &[&volume, "--discard", "--yes"]).done();
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["read -P 0x61 0 3M", "read -P 0x63 3M 1M"]);
    server.close();
}

/// Nothing is acknowledged after the publish at which it finds out; requests are answered, with errors.
pub(crate) fn a_fenced_server_answers_every_request_with_an_error(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let first = host.open(&volume, &["--commit-interval", "1s"]);
    let mut client = Raw::connect(&first.socket).expect("a server");
    client.write(0, &[1; 4096]).expect("a write");
    let other = Host::new(&fixture);
    let refused = other.fail_to_open(&volume, &[]);
    refused.failed(5, &["has had this volume open since", "--takeover"]);
    let second = other.open(&volume, &["--takeover"]);
    let since = tokio::time::Instant::now();
    while client.write(0, &[2; 4096]).is_ok() {
        assert!(since.elapsed() < HANG, "it goes on acknowledging");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    client.write(8192, &[3; 4096]).expect_err("a write after fencing");
    client.flush().expect_err("a flush after fencing");
    // Others may have written since: what it would read may be old.
    client.read(0, 4096).expect_err("a read after fencing");
    assert!(first.stderr().contains("took this volume over"), "{}", first.stderr());
    second.close();
    first.kill();
}

/// A page of the map is damaged, and so is what it could be made from once more: `--fall-back` goes to where both are whole.
pub(crate) fn recover_fall_back_goes_behind_a_page_that_cannot_be_mended(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &[]);
    // What checkpoints find to write pages of: gc makes one at once.
    for write in ["write -P 0x51 0 4M", "write -P 0x52 4M 4M"] {
        qemu_io(&server.uri, &[write, "flush"]);
        host.run("gc", &[&volume]).done();
    }
    let before = files(&volume, "objects").len();
    qemu_io(&server.uri, &["write -P 0x53 8M 4M", "write -P 0x54 0 1M", "flush"]);
    host.run("gc", &[&volume]).done();
    server.close();
    let newer = files(&volume, "objects").split_off(before);
    let [data, pages] = &newer[..] else { panic!("{newer:?}") };
    std::fs::remove_file(data).expect("a file");
    let mut bytes = std::fs::read(pages).expect("a file");
    // The first frame begins after the header of 64 bytes.
    bytes[70] ^= 1;
    std::fs::write(pages, bytes).expect("a file");
    let (data, bucket) =
        (format!("objects/{}", data.file_name().expect("a name").display()), fixture.contents());

    // Its cache is gone with the host. What needs no page can be done: the volume opens.
    let other = Host::new(&fixture);
    let checked = other.run("fsck", &[&volume]);
    assert!(checked.code == Some(4) && checked.stdout.contains("a page of the block map"), "{checked:?}");
    // The epoch before was not closed, and its log is not here.
    let flags = [&*volume, "--fall-back", "--takeover"];
    let said = other.run("recover", &[&flags[..], &["--dry-run"]].concat()).done();
    for text in [
        "is not whole: objects/",
        &*format!("{data}: a manifest lists it, and it is missing"),
        "is the newest whole one: epochs ",
        " are lost, but for what the log of its writer still holds",
        "nothing was changed",
    ] {
        assert!(said.stdout.contains(text), "no {text:?}: {said:?}");
    }
    asked(&other.run("recover", &flags), 7, "go on from it?");
    assert!(fixture.contents() == bucket, "a question changed the bucket");
    other.run("recover", &[&flags[..], &["--yes"]].concat()).done();
    // What came after that epoch is lost, and nothing else.
    let server = other.open(&volume, &[]);
    qemu_io(
        &server.uri,
        &["read -P 0x51 0 4M", "read -P 0x52 4M 4M", "read -P 0 8M 4M", "write -P 0x55 8M 1M"],
    );
    server.close();
    let checked = other.run("fsck", &[&volume, "--read-data"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
}

/// Without a manifest and without a whole cut there is nothing to go on from: why, and nothing is changed.
pub(crate) fn recover_scan_says_what_is_missing(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["write -P 0x51 0 4M"]);
    server.close();
    let objects = files(&volume, "objects");
    for file in files(&volume, "manifests").into_iter().chain(objects) {
        std::fs::remove_file(file).expect("a file");
    }
    let bucket = fixture.contents();
    let texts = ["no usable manifest", "no object belongs to a whole cut of the last writer's line"];
    let refused = host.run("recover", &[&volume, "--scan", "--accept-rollback", "--yes"]);
    refused.failed(7, &texts);
    assert!(fixture.contents() == bucket, "a refusal changed the bucket");
}

/// Of a log that is damaged in the middle, what is before the damage becomes a volume, and the rest is named.
pub(crate) fn of_a_fenced_log_with_damage_the_certain_part_becomes_a_volume(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    let new = fixture.location("rescued");
    host.init(&volume, "64M");
    let first = host.open(&volume, &["--commit-interval", "1h"]);
    for byte in 1..5 {
        qemu_io(&first.uri, &[&*format!("write -P {byte} {}M 1M", byte - 1), "flush"]);
    }
    let other = Host::new(&fixture);
    let second = other.open(&volume, &["--takeover"]);
    qemu_io(&second.uri, &["write -P 9 8M 1M"]);
    first.signal("TERM");
    assert_eq!(first.end().code, Some(8));
    second.close();
    let log = files_below(&host.state()).into_keys().find(|path| path.ends_with(".wal")).expect("a segment");
    let mut bytes = std::fs::read(&log).expect("a file");
    // In the third record of a megabyte.
    bytes[5 << 19] ^= 1;
    std::fs::write(&log, bytes).expect("a file");

    host.fail_to_open(&volume, &[])
        .failed(7, &["log damaged at", "recover --rescue-to", "recover --discard"]);
    let bucket = fixture.contents();
    let said = host.run("recover", &[&volume, "--rescue-to", &new]);
    assert_eq!(said.code, Some(7), "{said:?}");
    assert!(said.stdout.contains("and 2 writes (2.0 MiB) of the local log"), "{said:?}");
    for text in [
        "whole before the damage: 2 writes (2097152 bytes)",
        "readable beyond it: 1 write (1048576 bytes), of blocks 768 to 1023",
        "which blocks the lost ones wrote cannot be known",
        "rescued ends before the damage",
    ] {
        assert!(said.stderr.contains(text), "no {text:?}: {said:?}");
    }
    let unchanged = |(name, bytes): (&String, &bytes::Bytes)| fixture.contents().get(name) == Some(bytes);
    assert!(bucket.iter().all(unchanged), "the old volume was changed");
    let server = other.open(&new, &[]);
    qemu_io(&server.uri, &["read -P 1 0 1M", "read -P 2 1M 1M", "read -P 0 2M 62M"]);
    server.close();
    let said = host.run("recover", &[&volume, "--discard", "--dry-run"]).done();
    assert!(
        said.stdout.contains("to be given up: the local log") && !said.stdout.contains("held nothing"),
        "{said:?}"
    );
    asked(&host.run("recover", &[&volume, "--discard"]), 8, "give up the local log");
    host.run("recover", &[&volume, "--discard", "--yes"]).done();
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["read -P 0 0 8M", "read -P 9 8M 1M"]);
    server.close();
}
