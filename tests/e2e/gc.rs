//! What `gc` gives back, told by the bytes in the store.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::Instant;

use super::stage;
use crate::support::{
    fixture::{Fixture, Kind},
    host::{HANG, Host, PASSWORD, Server},
    random::Seeded,
    run::{qemu_io, run},
};

const SIZE: u64 = 40 << 20;
/// Within a tenth of so many images: they do not compress.
const SHARE: u64 = SIZE / 10;

fn stored(fixture: &Fixture) -> u64 {
    fixture.contents().values().map(|bytes| bytes.len() as u64).sum()
}

fn image(host: &Host, seed: u64) -> PathBuf {
    let path = host.folder().join(format!("image-{seed}"));
    std::fs::write(&path, Seeded::from(seed).bytes(SIZE as usize)).expect("an image");
    path
}

fn overwrite(server: &Server, image: &Path) {
    run("nbdcopy", &["--flush", &image.to_string_lossy(), &server.uri]);
}

fn assert_holds(host: &Host, server: &Server, image: &Path) {
    let copy = host.folder().join("copy");
    run("nbdcopy", &[&server.uri, &*copy.to_string_lossy()]);
    assert!(std::fs::read(image).expect("an image") == std::fs::read(copy).expect("a copy"), "not equal");
}

fn json(printed: &str) -> serde_json::Value {
    serde_json::from_str(printed).unwrap_or_else(|error| panic!("{error} in {printed}"))
}

/// Collects; fails unless what is left, but for what waits for readers elsewhere, is so many images.
fn assert_left(fixture: &Fixture, host: &Host, volume: &str, arguments: &[&str], images: u64) {
    let collected = json(&host.run("gc", &[&[volume, "--json"], arguments].concat()).done().stdout);
    let left = stored(fixture) - collected["waiting_bytes"].as_u64().expect("a number");
    let expected = images * SIZE..images * SIZE + SHARE;
    assert!(expected.contains(&left), "{left} bytes for {images} images: {collected}");
    if !arguments.is_empty() {
        assert_eq!(collected["stray_objects"], 0, "{collected}");
    }
}

pub(crate) fn gc_gives_back_what_was_overwritten_online_and_offline(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.run("gc", &[&volume]).failed(3, &["no volume here"]);
    host.init(&volume, "40M");
    let (kept, last) = (image(&host, 1), image(&host, 2));
    let snapshot = format!("{volume}@kept");
    let server = host.open(&volume, &[]);
    let bare = host.without("S3BD_PASSWORD");
    overwrite(&server, &kept);
    bare.run("snapshot", &["create", &snapshot]).done();
    for seed in 3..6 {
        overwrite(&server, &image(&bare, seed));
        bare.run("sync", &[&volume]).done();
    }
    overwrite(&server, &last);
    bare.run("sync", &[&volume]).done();

    // What the snapshot holds stays, and nothing else of what was there in between.
    assert_left(&fixture, &bare, &volume, &[], 2);
    let said = bare.run("gc", &[&volume]).done().stdout;
    assert!(said.contains("disk: deleted ") && said.contains(", moved "), "{said}");
    bare.run("snapshot", &["delete", &snapshot, "--yes"]).done();
    assert_left(&fixture, &bare, &volume, &[], 1);
    assert_holds(&bare, &server, &last);

    // Looking is for everybody who has the password; collecting is for who has it open.
    let elsewhere = Host::new(&fixture);
    elsewhere.run("gc", &[&volume]).failed(5, &["has had this volume open"]);
    let found = json(&elsewhere.run("gc", &[&volume, "--dry-run", "--json"]).done().stdout);
    assert!(found["now_bytes"].is_u64() && found["stray_bytes"].is_null(), "{found}");
    overwrite(&server, &kept);
    server.close();
    let host = bare.with("S3BD_PASSWORD", PASSWORD);
    host.run("fsck", &[&volume, "--read-data"]).done();

    host.run("snapshot", &["create", &snapshot]).done();
    let server = host.open(&volume, &[]);
    overwrite(&server, &last);
    server.close();
    let held = stored(&fixture);
    assert!(held >= 2 * SIZE, "{held} bytes for two images");
    host.run("snapshot", &["delete", &snapshot, "--yes"]).done();
    let before = fixture.contents();
    let said = host.run("gc", &[&volume, "--dry-run", "--strays"]).done().stdout;
    assert!(said.contains("strays: 0 objects") && said.contains("nothing was changed"), "{said}");
    assert!(fixture.contents() == before, "a look changed something");
    let wrong = host.with("S3BD_PASSWORD", "wrong");
    wrong.run("gc", &[&volume]).failed(4, &["wrong password"]);
    assert!(fixture.contents() == before, "who was refused changed something");
    let host = wrong.with("S3BD_PASSWORD", PASSWORD);
    assert_left(&fixture, &host, &volume, &["--strays"], 1);
    let server = host.open(&volume, &[]);
    assert_holds(&host, &server, &last);
    server.close();
    host.run("fsck", &[&volume, "--read-data"]).done();
}

pub(crate) fn gc_lets_go_of_clones_that_are_gone(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    let (gone, stays) = (fixture.location("gone"), fixture.location("stays"));
    host.init(&volume, "64M");
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["write -P 0x61 0 1M"]);
    for clone in [&gone, &stays] {
        host.run("clone", &[&volume, clone, "--same-secret"]).done();
    }
    let removed = host.run("remove", &[&gone, "--yes"]).done();
    let way_on = format!("s3bd snapshot delete {volume}@clone-gone");
    assert!(removed.stderr.contains(&way_on), "no {way_on:?} in {removed:?}");
    let collected = json(&host.run("gc", &[&volume, "--json"]).done().stdout);
    assert_eq!(collected["released_clones"], serde_json::json!(["gone"]), "{collected}");
    let listed = host.run("snapshot", &["list", &volume]).done().stdout;
    assert!(listed.contains("stays") && listed.contains("clone-gone"), "{listed}");
    server.close();
    host.run("remove", &[&stays, "--yes"]).done();
    let said = host.run("gc", &[&volume]).done().stdout;
    assert!(said.contains("the clone stays is gone"), "{said}");
    for clone in ["gone", "stays"] {
        host.run("snapshot", &["delete", &format!("{volume}@clone-{clone}"), "--yes"]).done();
    }
}

/// Names below `objects/`.
fn objects(fixture: &Fixture) -> BTreeSet<String> {
    fixture.contents().into_keys().filter(|name| name.contains("/objects/")).collect()
}

/// On a directory, whose files can be given any age.
pub(crate) fn gc_removes_a_stray_that_is_a_day_old_and_nothing_else(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    let folder = PathBuf::from(volume.strip_prefix("file:").expect("a directory"));
    host.init(&volume, "64M");
    let server = host.open(&volume, &["--commit-interval", "1h"]);
    qemu_io(&server.uri, &["write -P 0x61 0 1M"]);
    host.run("sync", &[&volume]).done();
    // The name of the next manifest is taken: its cut uploads, and is not published.
    let manifests = std::fs::read_dir(folder.join("manifests")).expect("a folder");
    let newest = manifests.map(|entry| entry.expect("an entry").file_name()).max().expect("a manifest");
    let newest = newest.into_string().expect("text");
    let (generation, epoch) = newest.split_once('-').expect("a generation and an epoch");
    let next = u64::from_str_radix(epoch, 16).expect("a number") + 1;
    let taken = folder.join(format!("manifests/{generation}-{next:016x}"));
    std::fs::create_dir(&taken).expect("a folder");
    // An empty one would be taken for a leftover, and go.
    std::fs::write(taken.join("taken"), "").expect("a file in it");
    let before = objects(&fixture);
    qemu_io(&server.uri, &["write -P 0x62 1M 1M", "flush"]);
    let mut syncing =
        host.command("sync", &[&volume]).stdout(std::process::Stdio::null()).spawn().expect("setpriv");
    let since = Instant::now();
    let stray = loop {
        if let Some(stray) = objects(&fixture).difference(&before).next() {
            break stray.clone();
        }
        assert!(since.elapsed() < HANG, "nothing is uploaded");
        std::thread::sleep(Duration::from_millis(5));
    };
    server.kill();
    syncing.wait().expect("its end");
    std::fs::remove_dir_all(&taken).expect("a folder");

    // The next tenure uploads the same once more, under another name.
    host.open(&volume, &[]).close();
    host.run("gc", &[&volume]).done();
    let strays =
        |host: &Host| json(&host.run("gc", &[&volume, "--dry-run", "--strays", "--json"]).done().stdout);
    let collect = |host: &Host| json(&host.run("gc", &[&volume, "--strays", "--json"]).done().stdout);
    let with_age = |hours: u64| {
        for name in objects(&fixture) {
            let file = folder.parent().expect("the bucket").join(name);
            run("touch", &["-d", &format!("{hours} hours ago"), &*file.to_string_lossy()]);
        }
    };
    for hours in [0, 23] {
        with_age(hours);
        assert_eq!(strays(&host)["stray_objects"], 0);
        assert_eq!(collect(&host)["stray_objects"], 0);
        assert!(objects(&fixture).contains(&stray), "removed after {hours} hours");
    }
    with_age(25);
    let bytes = fixture.contents()[&stray].len();
    let found = strays(&host);
    assert_eq!((&found["stray_objects"], &found["stray_bytes"]), (&1.into(), &bytes.into()), "{found}");
    let before = objects(&fixture);
    let done = collect(&host);
    assert_eq!((&done["stray_objects"], &done["stray_bytes"]), (&1.into(), &bytes.into()), "{done}");
    let (after, gone) = (objects(&fixture), BTreeSet::from([stray]));
    assert_eq!(before.difference(&after).cloned().collect::<BTreeSet<_>>(), gone);
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["read -P 0x61 0 1M", "read -P 0x62 1M 1M"]);
    server.close();
    host.run("fsck", &[&volume, "--read-data"]).done();
}
