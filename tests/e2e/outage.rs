//! The store is away for a while.

use std::time::Duration;

use super::{clients::fio, raw::Raw, stage};
use crate::support::{
    fixture::{Fixture, Kind},
    host::Host,
    run::{qemu_io, run},
};

/// More is written than the log holds, so that writers have to wait.
const SMALL: [&str; 6] = ["--wal-size", "64M", "--memory-size", "16M", "--commit-interval", "500ms"];

pub(crate) fn ten_seconds_without_the_store_lose_nothing(kind: Kind) {
    outage(kind, Duration::from_secs(10), Fixture::set_away_and_back);
}

pub(crate) fn two_minutes_without_the_store_lose_nothing(kind: Kind) {
    outage(kind, Duration::from_secs(120), Fixture::set_away_and_back);
}

pub(crate) fn a_store_that_dies_and_comes_back_loses_nothing(kind: Kind) {
    outage(kind, Duration::from_secs(3), |fixture, _| fixture.restart());
}

impl Fixture {
    fn set_away_and_back(&mut self, time: Duration) {
        self.set_away(true);
        std::thread::sleep(time);
        self.set_away(false);
    }
}

fn outage(kind: Kind, time: Duration, away: impl Fn(&mut Fixture, Duration)) {
    let (mut fixture, host, volume) = stage(kind);
    host.init(&volume, "512M");
    let server = host.open(&volume, &SMALL);
    std::thread::scope(|scope| {
        let (host, uri) = (&host, &server.uri);
        // Twice as much as the log holds; it cannot end before the store is back.
        let words =
            ["--rw=write", "--bs=256k", "--size=256M", "--iodepth=4", "--fsync=16", "--refill_buffers"];
        let writer = scope.spawn(move || fio(host, uri, &words));
        std::thread::sleep(Duration::from_millis(700));
        away(&mut fixture, time);
        writer.join().expect("no I/O error, and every byte is there");
    });
    qemu_io(&server.uri, &["write -P 0x51 400M 1M", "flush"]);
    server.close();
    let other = Host::new(&fixture);
    let server = other.open(&volume, &[]);
    qemu_io(&server.uri, &["read -P 0x51 400M 1M"]);
    let words = ["--rw=write", "--bs=256k", "--size=256M", "--verify_only"];
    run_verify(&host, &server.uri, &words);
    server.close();
}

fn run_verify(host: &Host, uri: &str, words: &[&str]) {
    fio(host, uri, words);
}

/// What is in memory, in the log or in the cache is served; `--read-timeout` gives the rest up.
pub(crate) fn reads_without_the_store_wait_or_fail_as_asked(kind: Kind) {
    let (mut fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["write -P 0x52 0 8M", "flush"]);
    server.close();

    let other = Host::new(&fixture);
    let server = other.open(&volume, &["--read-timeout", "1s"]);
    qemu_io(&server.uri, &["read -P 0x52 0 1M", "write -P 0x53 60M 1M"]);
    fixture.set_away(true);
    qemu_io(&server.uri, &["read -P 0x52 0 1M", "read -P 0x53 60M 1M", "write -P 0x53 61M 1M", "flush"]);
    let mut client = Raw::connect(&server.socket).expect("a server");
    let error = client.read(7 << 20, 4096).expect_err("the store is away");
    assert_eq!(error.raw_os_error(), Some(5));
    fixture.set_away(false);
    // The error was that read's alone.
    let bytes = client.read(7 << 20, 4096).expect("the store is back");
    assert!(bytes.iter().all(|&byte| byte == 0x52));
    server.close();

    let third = Host::new(&fixture);
    let server = third.open(&volume, &[]);
    let mut client = Raw::connect(&server.socket).expect("a server");
    fixture.set_away(true);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || client.read(7 << 20, 4096).expect("it waits"));
        std::thread::sleep(Duration::from_secs(3));
        assert!(!waiting.is_finished(), "a read without the store was answered");
        fixture.set_away(false);
        assert!(waiting.join().expect("an answer").iter().all(|&byte| byte == 0x52));
    });
    server.close();
}

/// SIGTERM while the store is away waits for it; a second one leaves, and nothing is lost.
pub(crate) fn closing_without_the_store_waits_and_a_second_signal_leaves(kind: Kind) {
    let (mut fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["write -P 0x54 0 8M", "flush"]);
    fixture.set_away(true);
    server.signal("TERM");
    std::thread::sleep(Duration::from_secs(2));
    server.signal("TERM");
    let ended = server.end();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("left at once: 8.0 MiB are in the local log only"), "{ended:?}");
    fixture.set_away(false);
    let server = host.open(&volume, &[]);
    assert!(server.stderr().contains("was not closed"), "{}", server.stderr());
    qemu_io(&server.uri, &["read -P 0x54 0 8M"]);
    server.close();
    let other = Host::new(&fixture);
    let server = other.open(&volume, &[]);
    qemu_io(&server.uri, &["read -P 0x54 0 8M"]);
    assert_eq!(run("nbdinfo", &["--size", &server.uri]).trim(), "67108864");
    server.close();
}
