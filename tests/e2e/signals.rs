//! Closing, leaving, and `recover`.

use super::stage;
use crate::support::{
    fixture::{Kind, files_below},
    host::Host,
    run::{qemu_io, run},
};

pub(crate) fn a_signal_uploads_everything_and_closes_clean(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    for (signal, pattern) in [("TERM", 0x11), ("INT", 0x12)] {
        let server = host.open(&volume, &["--commit-interval", "1h"]);
        qemu_io(&server.uri, &[&format!("write -P {pattern} 0 8M")]);
        server.signal(signal);
        let ended = server.end().done();
        assert!(!ended.stdout.contains("rror"), "{ended:?}");
        assert!(ended.stdout.contains(": closed: everything is in the bucket, as epoch "), "{ended:?}");
        // Clean, so another host needs no --takeover, and has nothing to say.
        let other = Host::new(&fixture);
        let server = other.open(&volume, &[]);
        assert!(!server.stderr().contains("was not closed"), "{}", server.stderr());
        qemu_io(&server.uri, &[&format!("read -P {pattern} 0 8M")]);
        server.close();
    }
}

/// As timeout(1) does it, which signals its child and then the child's group.
pub(crate) fn a_signal_that_comes_twice_at_once_is_one(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &["--commit-interval", "1h"]);
    qemu_io(&server.uri, &["write -P 0x13 0 32M"]);
    server.signal("TERM");
    server.signal("TERM");
    server.end().done();
    let other = Host::new(&fixture);
    let server = other.open(&volume, &[]);
    assert!(!server.stderr().contains("was not closed"), "{}", server.stderr());
    qemu_io(&server.uri, &["read -P 0x13 0 32M"]);
    server.close();
}

/// A client that stays connected and idle does not hold up the end.
pub(crate) fn an_idle_client_does_not_hold_up_the_close(kind: Kind) {
    let (_fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &[]);
    let mut client = super::raw::Raw::connect(&server.socket).expect("a server");
    client.write(0, &[1; 4096]).expect("a write");
    server.close();
    client.read(0, 4096).expect_err("the server is gone");
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["read -P 1 0 4k"]);
    server.close();
}

pub(crate) fn recover_uploads_what_a_killed_server_left(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &["--commit-interval", "1h"]);
    qemu_io(&server.uri, &["write -P 0x21 0 8M", "write -z 1M 1M", "discard 2M 1M", "flush"]);
    server.kill();

    let (bucket, state) = (fixture.contents(), files_below(&host.state()));
    let said = host.run("recover", &[&volume, "--dry-run"]).done();
    assert!(said.stdout.contains("which did not close the volume"), "{said:?}");
    assert!(said.stdout.contains("8 writes (8.0 MiB), 2 trims or zeroings that"), "{said:?}");
    assert!(said.stdout.ends_with("nothing was changed\n"), "{said:?}");
    assert!(fixture.contents() == bucket, "a dry run changed the bucket");
    assert!(files_below(&host.state()) == state, "a dry run changed the state directory");

    let did = host.run("recover", &[&volume]).done();
    assert!(did.stdout.contains("everything is in the bucket"), "{did:?}");
    // Once more, here or elsewhere, there is nothing to be done, and no epoch is published for it.
    let (bucket, state) = (fixture.contents(), files_below(&host.state()));
    for host in [&host, &Host::new(&fixture)] {
        let nothing = host.run("recover", &[&volume]).done();
        assert!(nothing.stdout.contains("which closed the volume"), "{nothing:?}");
        assert!(nothing.stdout.contains("held nothing that was not in the bucket"), "{nothing:?}");
        assert!(nothing.stdout.contains("nothing to recover"), "{nothing:?}");
        assert!(fixture.contents() == bucket, "a recovery of nothing changed the bucket");
    }
    assert!(files_below(&host.state()) == state, "a recovery of nothing changed the state directory");

    let other = Host::new(&fixture);
    let server = other.open(&volume, &[]);
    let reads = ["read -P 0x21 0 1M", "read -P 0 1M 2M", "read -P 0x21 3M 5M", "read -P 0 8M 1M"];
    qemu_io(&server.uri, &reads);
    server.close();
}

pub(crate) fn recover_elsewhere_changes_nothing_without_takeover(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &["--commit-interval", "1h"]);
    qemu_io(&server.uri, &["write -P 0x22 0 1M", "flush"]);
    let bucket = fixture.contents();
    let other = Host::new(&fixture);
    other.run("recover", &[&volume]).failed(5, &["has not closed it", "--takeover"]);
    other.run("recover", &[&volume, "--dry-run"]).failed(5, &["has not closed it", "--takeover"]);
    assert!(fixture.contents() == bucket, "a refused command changed the bucket");
    qemu_io(&server.uri, &["read -P 0x22 0 1M", "write -P 0x23 0 1M", "flush"]);
    server.close();
}

/// The other host wins; the first one says so, acknowledges nothing more, and keeps its log until told otherwise.
pub(crate) fn a_host_that_was_overtaken_stops_and_keeps_its_log(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let first = host.open(&volume, &["--commit-interval", "1h", "--durability", "local"]);
    qemu_io(&first.uri, &["write -P 0x31 0 1M", "flush"]);
    let other = Host::new(&fixture);
    let second = other.open(&volume, &["--takeover"]);
    qemu_io(&second.uri, &["read -P 0 0 1M", "write -P 0x32 2M 1M", "flush"]);
    first.signal("TERM");
    let ended = first.end();
    assert_eq!(ended.code, Some(8), "{ended:?}");
    assert!(ended.stderr.contains("took this volume over"), "{ended:?}");
    second.close();
    host.fail_to_open(&volume, &[]).failed(8, &["the local log holds", "--discard"]);
    host.run("recover", &[&volume]).failed(8, &["the local log holds", "--discard"]);
    let said = host.run("recover", &[&volume, "--discard", "--yes"]).done();
    assert!(said.stdout.contains("given up"), "{said:?}");
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["read -P 0 0 1M", "read -P 0x32 2M 1M"]);
    server.close();
}

/// What it holds was overtaken, by the same host: it must not be written over what is newer.
pub(crate) fn an_older_copy_of_the_state_directory_is_refused(kind: Kind) {
    let (_fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["write -P 0x41 0 1M", "flush"]);
    server.kill();
    let copy = host.folder().join("copy");
    run("cp", &["-a".as_ref(), host.state().as_os_str(), copy.as_os_str()]);
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["write -P 0x42 0 1M", "flush"]);
    server.close();
    std::fs::remove_dir_all(host.state()).expect("a folder");
    std::fs::rename(&copy, host.state()).expect("a folder");
    host.fail_to_open(&volume, &[]).failed(8, &["the local log holds", "--discard"]);
    host.run("recover", &[&volume, "--discard", "--yes"]).done();
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["read -P 0x42 0 1M"]);
    server.close();
}

/// A store that lets nobody claim the volume keeps an opening waiting; a signal ends it, and nothing is lost by that.
pub(crate) fn a_signal_ends_an_opening_that_waits_for_the_store(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    for signal in ["TERM", "INT"] {
        let before = fixture.count("PUT");
        fixture.refuse("PUT");
        let opening = host.begin_to_open(&volume);
        opening.until(|| fixture.count("PUT") > before);
        opening.signal(signal);
        opening.end().failed(1, &["disk", "interrupted before it was open"]);
        fixture.refuse_nothing();
        let server = host.open(&volume, &[]);
        qemu_io(&server.uri, &["write -P 0x51 0 1M"]);
        server.close();
    }
}
