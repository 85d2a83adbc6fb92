//! Damaged files of a bucket: what a check says of them, what a repair makes of them, and what clients read then.

use std::{fs, path::PathBuf};

use s3bd::format::object::FOOTER_BYTES;

use super::{raw::Raw, stage};
use crate::support::{
    fixture::Kind,
    host::{Ended, Host},
    run::qemu_io,
};

const MIB: u64 = 1 << 20;
/// In the first frame of an object of data, which begins after the header of 64 bytes.
const IN_FRAME: usize = 70;

fn objects(volume: &str) -> Vec<PathBuf> {
    let folder = PathBuf::from(volume.strip_prefix("file:").expect("a directory")).join("objects");
    let mut names: Vec<PathBuf> =
        fs::read_dir(folder).expect("objects").map(|entry| entry.expect("an entry").path()).collect();
    names.sort();
    names
}

fn flip(path: &PathBuf) {
    let mut bytes = fs::read(path).expect("an object");
    bytes[IN_FRAME] ^= 1;
    fs::write(path, bytes).expect("a directory that can be written");
}

/// The last bit of the index at the object's end; its mirror stays as it is.
fn flip_index(path: &PathBuf) {
    let mut bytes = fs::read(path).expect("an object");
    let at = bytes.len() - FOOTER_BYTES - 1;
    bytes[at] ^= 1;
    fs::write(path, bytes).expect("a directory that can be written");
}

fn fsck(host: &Host, volume: &str, flags: &[&str]) -> Ended {
    host.run("fsck", &[&[volume, "--read-data"], flags].concat())
}

fn ended(ended: &Ended, code: i32, texts: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    let printed = format!("{}{}", ended.stdout, ended.stderr);
    texts.iter().for_each(|text| assert!(printed.contains(text), "no {text:?} in {ended:?}"));
}

pub(crate) fn a_damaged_frame_is_found_mended_or_marked_and_overwritten(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["write -P 1 0 1M", "write -P 2 8M 1M"]);
    server.close();
    ended(&fsck(&host, &volume, &[]), 0, &["clean"]);
    let first = objects(&volume)[0].clone();
    flip(&first);
    let damaged = fixture.contents();

    // Found, with its place; the check alone changes nothing.
    let name = format!("objects/{}", first.file_name().expect("a name").display());
    ended(&host.run("fsck", &[&volume]), 0, &["clean"]);
    ended(&fsck(&host, &volume, &[]), 4, &["DAMAGED", &name, "frame 0", "blocks 0 to 15", "--repair"]);
    let json = fsck(&host, &volume, &["--json"]);
    let report: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!((json.code, &report["findings"][0]["finding"]), (Some(4), &"frame".into()), "{report:#}");
    assert_eq!(report["findings"][0]["remedy"], "repair", "{report:#}");
    ended(
        &fsck(&host, &volume, &["--repair", "--dry-run"]),
        4,
        &["this host's cache", "nothing was changed"],
    );
    ended(&fsck(&host, &volume, &["--repair"]), 16, &["--yes"]);
    assert!(fixture.contents() == damaged, "a check changed the bucket");

    // Mended from the cache.
    ended(&fsck(&host, &volume, &["--repair", "--yes"]), 1, &["this host's cache", "clean"]);
    ended(&fsck(&host, &volume, &[]), 0, &["clean"]);
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["read -P 1 0 1M", "read -P 2 8M 1M"]);
    ended(&fsck(&host, &volume, &["--repair", "--yes"]), 0, &["clean"]);
    server.close();

    // Without the cache: the frame that was damaged before is in another object now, and every object has one like it.
    fs::remove_dir_all(host.state()).expect("a state directory");
    objects(&volume).iter().for_each(flip);
    // The page of the map first; what is damaged below it, the check after that finds, and the next repair marks.
    ended(&fsck(&host, &volume, &["--repair", "--yes"]), 5, &["manifests/", "blocks 0 to 15"]);
    let marked = fsck(&host, &volume, &["--repair", "--yes", "--json"]);
    let outcome: serde_json::Value = serde_json::from_str(&marked.stdout).expect("JSON");
    assert_eq!(marked.code, Some(5), "{outcome:#}");
    let after = outcome["after"]["findings"].as_array().expect("a list");
    assert!(after.iter().any(|finding| finding["finding"] == "lost_blocks"), "{outcome:#}");
    let server = host.open(&volume, &[]);
    let mut client = Raw::connect(&server.socket).expect("a connection");
    let error = client.read(0, 4096).expect_err("lost data was read");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    // A part of a block whose rest is gone: who syncs is told, once.
    client.write(100, &[5; 10]).expect("a write");
    ended(&host.run("sync", &[&volume]), 7, &["block 0:", "unreadable until overwritten"]);
    ended(&host.run("sync", &[&volume]), 0, &["is in the bucket"]);
    client.write(0, &[3; 2 * MIB as usize]).expect("a write");
    client.write(8 * MIB, &[4; MIB as usize]).expect("a write");
    assert_eq!(client.read(0, 4096).expect("what was overwritten"), [3; 4096]);
    drop(client);
    server.close();
    ended(&fsck(&host, &volume, &[]), 0, &["clean"]);
    ended(&host.run("recover", &[&volume, "--fall-back"]), 2, &["is whole: leave --fall-back out"]);
}

pub(crate) fn a_damaged_index_is_read_from_its_mirror_and_mended(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["write -P 1 0 1M", "flush", "write -P 2 8M 1M", "discard 8M 64k", "flush"]);
    host.run("sync", &[&volume]).done();
    // Not closed: the newest manifest lists the objects, and whoever opens it reads their indexes.
    server.kill();
    objects(&volume).iter().for_each(flip_index);
    let damaged = fixture.contents();
    let other = Host::new(&fixture);
    let checked = fsck(&other, &volume, &[]);
    ended(&checked, 4, &["object index", "its mirror is whole", "--repair"]);
    ended(&host.run("fsck", &[&volume, "--quick"]), 4, &["its mirror is whole"]);
    assert!(fixture.contents() == damaged, "a check changed the bucket");
    ended(&fsck(&host, &volume, &["--repair", "--yes"]), 1, &["put back as it was written", "clean"]);
    ended(&fsck(&other, &volume, &[]), 0, &["clean"]);
    let server = other.open(&volume, &[]);
    qemu_io(&server.uri, &["read -P 1 0 1M", "read -P 0 8M 64k", "read -P 2 8256k 960k"]);
    server.close();
}
