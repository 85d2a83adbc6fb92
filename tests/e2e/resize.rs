//! Volumes that grow and shrink, closed and in use.

use serde_json::Value;

use super::stage;
use crate::support::{
    disk::{Disk, FileSystem},
    fixture::Kind,
    host::{Host, Server},
    run::{output, qemu_io, run, shell},
};

const MIB: u64 = 1 << 20;

fn resize(host: &Host, volume: &str, size: &str) -> Value {
    let said = host.run("resize", &[volume, "-s", size, "--yes", "--json"]).done();
    serde_json::from_str(&said.stdout).expect("JSON")
}

fn size_of(server: &Server) -> u64 {
    run("nbdinfo", &["--size", &server.uri]).trim().parse().expect("a number")
}

fn assert_sound(host: &Host, volume: &str) {
    host.run("fsck", &[volume, "--read-data"]).done();
}

pub(crate) fn a_volume_is_resized_while_clients_write(kind: Kind) {
    let (_fixture, host, volume) = stage(kind);
    host.run("resize", &[&volume, "-s", "1G"]).failed(3, &["no volume"]);
    host.init(&volume, "64M");
    for (size, code, part) in [
        ("1000", 1, "multiple of 4096"),
        ("-64M", 2, "leaves no size"),
        ("9E", 1, "8 EiB"),
        ("63M", 2, "no data lies beyond the new end"),
    ] {
        host.run("resize", &[&volume, "-s", size]).failed(code, &[part]);
    }
    let done = host.run("resize", &[&volume, "-s", "+64M"]).done();
    assert!(done.stdout.contains("resized from 64.0 MiB to 128.0 MiB (134217728 bytes)"), "{done:?}");
    assert!(done.stdout.contains("resize2fs"), "{done:?}");
    let again = host.run("resize", &[&volume, "-s", "128M"]).done();
    assert!(again.stdout.contains("already"), "{again:?}");

    let server = host.open(&volume, &["--commit-interval", "1s"]);
    let verify = std::thread::scope(|scope| {
        let fio = scope.spawn(|| {
            let uri = format!("--uri={}", server.uri);
            let words = "--name=v --ioengine=nbd --rw=randwrite --bsrange=4k-128k --size=48M --iodepth=8 \
                --verify=crc32c --verify_fatal=1 --do_verify=1 --fsync=32 --time_based=0 --loops=3";
            output("fio", &words.split_whitespace().chain([uri.as_str()]).collect::<Vec<_>>())
        });
        let mut seen = 0;
        for round in 0.. {
            let larger = resize(&host, &volume, "+64M");
            assert_eq!(
                (larger["size_bytes"].as_u64(), &larger["online"]),
                (Some(192 * MIB), &Value::Bool(true))
            );
            assert_eq!(size_of(&server), 192 * MIB, "a new connection sees it");
            qemu_io(&server.uri, &["write -P 0x71 126M 4M", "read -P 0x71 126M 4M", "read -P 0 130M 62M"]);
            if round % 2 == 0 {
                host.run("sync", &[&volume]).done();
            }
            seen = seen.max(larger["clients"].as_array().expect("a list").len());
            let smaller = resize(&host, &volume, "128M");
            assert_eq!(smaller["discarded_bytes"].as_u64(), Some(2 * MIB), "{smaller}");
            if fio.is_finished() {
                break;
            }
        }
        assert!(seen > 0, "fio was never there");
        fio.join().expect("an end")
    });
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
    // Nobody is asked, and nobody said yes.
    let asked = host.run("resize", &[&volume, "-s", "127M"]);
    asked.failed(2, &["this discards 1.0 MiB (1048576 bytes) of data beyond the new end", "--yes"]);
    let beyond = output("qemu-io", &["-f", "raw", "-c", "write 128M 4k", &server.uri]);
    assert!(!beyond.status.success(), "a write beyond the end");
    resize(&host, &volume, "1T");
    qemu_io(&server.uri, &["read -P 0 128M 64M", "write -P 0x72 1099511623680 4k"]);
    server.close();
    assert_sound(&host, &volume);
    let server = host.open(&volume, &[]);
    assert_eq!(size_of(&server), 1 << 40);
    qemu_io(&server.uri, &["read -P 0 128M 64M", "read -P 0x72 1099511623680 4k", "read -P 0x71 126M 2M"]);
    server.kill();
    let done = host.run("resize", &[&volume, "-s", "64M", "--yes"]).done();
    assert!(done.stdout.contains("discarding 2.0 MiB"), "{done:?}");
    assert_sound(&host, &volume);
}

pub(crate) fn ext4_goes_on_while_its_volume_grows_and_shrinks_with_it(kind: Kind) {
    let (_fixture, host, volume) = stage(kind);
    host.init(&volume, "256M");
    let server = host.open(&volume, &["--commit-interval", "1s"]);
    let mut disk = Disk::attach(&server.uri);
    disk.format(FileSystem::Ext4);
    disk.mount();
    let fill = |disk: &Disk, name: &str, mib: u32| {
        let (path, source) = (disk.path().join(name), host.folder().join(name));
        let (path, source) = (path.display(), source.display());
        shell(&format!("head -c {mib}M /dev/urandom >'{source}'; cp '{source}' '{path}'; sync '{path}'"));
    };
    let compare = |disk: &Disk, name: &str| {
        run("cmp", &[disk.path().join(name), host.folder().join(name)]);
    };
    fill(&disk, "first", 100);
    // Under a file system in use; its client keeps to what it knows.
    let said = host.run("resize", &[&volume, "-s", "1G"]).done().stdout;
    assert!(said.contains("connected, and learn"), "{said}");
    fill(&disk, "second", 60);
    disk.detach();

    let mut disk = Disk::attach(&server.uri);
    run("e2fsck", &["-fy", disk.device()]);
    run("resize2fs", &[disk.device()]);
    disk.mount();
    fill(&disk, "third", 200);
    disk.unmount();
    disk.check(FileSystem::Ext4);
    disk.mount();
    ["first", "second", "third"].iter().for_each(|name| compare(&disk, name));
    run("rm", &[disk.path().join("third")]);
    run("fstrim", &[disk.path()]);
    disk.unmount();
    run("e2fsck", &["-fy", disk.device()]);
    run("resize2fs", &[disk.device(), "300M"]);
    disk.detach();
    resize(&host, &volume, "300M");
    let mut disk = Disk::attach(&server.uri);
    disk.check(FileSystem::Ext4);
    disk.mount();
    ["first", "second"].iter().for_each(|name| compare(&disk, name));
    disk.detach();
    server.close();
    assert_sound(&host, &volume);
}
