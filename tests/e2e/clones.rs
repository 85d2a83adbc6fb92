//! Clones, made by the program beside servers and without.

use super::stage;
use crate::support::{fixture::Kind, host::Host, run::qemu_io};

fn sound(host: &Host, volume: &str) {
    let checked = host.run("fsck", &[volume, "--read-data"]).done();
    assert!(!checked.stdout.contains("warning"), "{checked:?}");
}

pub(crate) fn a_clone_shares_what_its_origin_holds_and_each_goes_its_own_way(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    let clone = fixture.location("clone");
    host.init(&volume, "64M");
    let server = host.open(&volume, &["--commit-interval", "1h"]);
    qemu_io(&server.uri, &["write -P 0x61 0 2M"]);
    // While it is served, and with what the bucket does not have yet.
    let making = Host::new(&fixture).with("S3BD_NEW_PASSWORD", "another");
    let elsewhere = making.run("clone", &[&volume, &clone]);
    elsewhere.failed(5, &["has had this volume open"]);
    assert!(
        !fixture.contents().keys().any(|key| key.starts_with("clone/")),
        "a refused clone left something"
    );
    let host = host.with("S3BD_NEW_PASSWORD", "another");
    let said = host.run("clone", &[&volume, &clone]).done().stdout;
    for part in ["made a clone of", "@clone-clone", "64.0 MiB", "protected by a password"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert!(!fixture.contents().keys().any(|key| key.starts_with("clone/objects/")), "blocks were copied");
    qemu_io(&server.uri, &["write -P 0x62 0 1M"]);

    let other = Host::new(&fixture).with("S3BD_PASSWORD", "another");
    let served = other.open(&clone, &[]);
    qemu_io(
        &served.uri,
        &["read -P 0x61 0 2M", "write -P 0x63 1M 1M", "write -P 0x64 8M 4k", "read -P 0x61 0 1M"],
    );
    qemu_io(&server.uri, &["read -P 0x62 0 1M", "read -P 0x61 1M 1M", "read -P 0 8M 4k"]);
    served.close();
    server.close();
    sound(&host, &volume);
    sound(&other, &clone);

    let snapshot = format!("{volume}@clone-clone");
    host.run("snapshot", &["delete", &snapshot, "--yes"]).failed(1, &["the clone clone depends on it"]);
    // A clone of a snapshot of the clone, while nobody serves it, with its password.
    other.run("snapshot", &["create", &format!("{clone}@here")]).done();
    let second = fixture.location("second");
    other.run("clone", &[&format!("{clone}@here"), &second, "--same-secret"]).done();
    let served = other.open(&second, &[]);
    qemu_io(
        &served.uri,
        &["read -P 0x61 0 1M", "read -P 0x63 1M 1M", "read -P 0x64 8M 4k", "write -P 0x65 0 4k"],
    );
    served.close();
    sound(&other, &second);
}

pub(crate) fn a_flattened_clone_outlives_its_origin(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    let clone = fixture.location("clone");
    host.init(&volume, "64M");
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["write -P 0x61 0 8M", "write -P 0x62 16M 64k"]);
    let host = host.with("S3BD_NEW_PASSWORD", "another");
    host.run("clone", &[&volume, &clone]).done();
    server.close();
    let other = Host::new(&fixture).with("S3BD_PASSWORD", "another");
    other.run("snapshot", &["create", &format!("{clone}@here")]).done();
    other.run("flatten", &[&clone]).failed(1, &["there is the snapshot \"here\"", "s3bd snapshot delete"]);
    other.run("snapshot", &["delete", &format!("{clone}@here"), "--yes"]).done();

    // By the server, which goes on.
    let served = other.open(&clone, &[]);
    qemu_io(&served.uri, &["write -P 0x63 1M 1M"]);
    let said = other.run("flatten", &[&clone]).done().stdout;
    for part in ["depends on nothing any more", "7.1 MiB copied", "the snapshot of disk"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    qemu_io(
        &served.uri,
        &["read -P 0x61 0 1M", "read -P 0x63 1M 1M", "read -P 0x62 16M 64k", "write -P 0x64 0 4k"],
    );
    served.close();
    let again = other.run("flatten", &[&clone]).done().stdout;
    assert!(again.contains("depends on nothing; nothing was changed"), "{again}");
    sound(&host, &volume);
    let info = other.run("info", &[&clone]).done().stdout;
    assert!(!info.contains("clone of"), "{info}");

    host.run("snapshot", &["delete", &format!("{volume}@clone-clone"), "--yes"]).done();
    host.run("remove", &[&volume, "--yes"]).done();
    let elsewhere = Host::new(&fixture).with("S3BD_PASSWORD", "another");
    let served = elsewhere.open(&clone, &[]);
    qemu_io(
        &served.uri,
        &["read -P 0x64 0 4k", "read -P 0x61 2M 6M", "read -P 0x63 1M 1M", "read -P 0x62 16M 64k"],
    );
    served.close();
    sound(&elsewhere, &clone);
    elsewhere.run("remove", &[&clone, "--yes"]).done();
    assert!(fixture.contents().is_empty(), "{:?}", fixture.contents().keys().collect::<Vec<_>>());
}

pub(crate) fn a_full_clone_depends_on_nothing(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    let copy = fixture.location("copy");
    host.init(&volume, "64M");
    let server = host.open(&volume, &["--commit-interval", "1h"]);
    qemu_io(&server.uri, &["write -P 0x61 1M 2M"]);
    let said = host.run("clone", &[&volume, &copy, "--full", "--new-no-password"]).done().stdout;
    assert!(said.contains("2.0 MiB copied") && said.contains("depends on nothing"), "{said}");
    qemu_io(&server.uri, &["write -P 0x62 1M 2M"]);
    server.close();
    let left = host.run("snapshot", &["list", &volume]).done().stdout;
    assert!(left.contains("no snapshots"), "{left}");
    let other = Host::new(&fixture).without("S3BD_PASSWORD");
    let served = other.open(&copy, &["--no-password"]);
    qemu_io(&served.uri, &["read -P 0 0 1M", "read -P 0x61 1M 2M"]);
    served.close();
    let checked = other.run("fsck", &[&copy, "--no-password", "--read-data"]).done();
    assert!(checked.stdout.contains("copy"), "{checked:?}");
}

pub(crate) fn what_cannot_be_cloned_is_named_and_leaves_nothing(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "1M");
    let taken = fixture.location("taken");
    host.init(&taken, "1M");
    let before = fixture.contents();
    let unchanged = || assert!(fixture.contents() == before, "something was changed");
    let new = fixture.location("new");
    let same = "--same-secret";
    let nowhere = format!("{volume}@nowhere");
    host.run("clone", &[&nowhere, &new, same]).failed(1, &["no snapshot \"nowhere\"", "snapshot list"]);
    host.run("clone", &[&volume, &taken, same]).failed(1, &["there is a volume here already"]);
    host.run("clone", &[&volume, "elsewhere/new", same]).failed(2, &["in the same bucket", "--full"]);
    host.run("clone", &[&volume, &format!("{new}@x"), same]).failed(2, &["names a snapshot"]);
    host.run("clone", &[&volume, &new]).failed(4, &["no new secret"]);
    host.run("clone", &[&fixture.location("gone"), &new, same]).failed(3, &["no volume here"]);
    unchanged();
}
