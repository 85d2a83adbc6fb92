//! NBD clients: libnbd's, QEMU's, fio.

use super::stage;
use crate::support::{
    disk::{Disk, FileSystem},
    fixture::Kind,
    host::{Host, Server},
    run::{output, qemu_io, run, shell},
};

/// A reproducible image of 256 MiB, a fifth of it data, as nbdkit's arguments.
const IMAGE: [&str; 4] = ["sparse-random", "256M", "seed=42", "percent=20"];

fn copy_image_to(uri: &str) {
    let source = [&["--flush", "--", "[", "nbdkit", "--exit-with-parent"][..], &IMAGE, &["]", uri]].concat();
    run("nbdcopy", &source);
}

fn assert_holds_image(server: &Server) {
    for uri in [&server.uri, &server.unix] {
        let compare = format!("qemu-img compare -f raw -F raw $uri '{uri}'");
        run("nbdkit", &[&["-r", "-U", "-"][..], &IMAGE, &["--run", &compare]].concat());
    }
}

pub(crate) fn nbdinfo_and_qemu_img_see_the_volume_by_name_and_by_default(kind: Kind) {
    let (_fixture, host, volume) = stage(kind);
    host.init(&volume, "256M");
    let server = host.open(&volume, &[]);
    for uri in [&server.uri, &server.unix, &server.default_uri()] {
        let info = run("nbdinfo", &["--json", uri]);
        for expected in ["\"export-size\": 268435456", "\"is_read_only\": false", "\"can_multi_conn\": true"]
        {
            assert!(info.contains(expected), "{expected} in {info}");
        }
        assert_eq!(run("nbdinfo", &["--size", uri]).trim(), "268435456");
        let info = run("qemu-img", &["info", "-f", "raw", uri]);
        assert!(info.contains("virtual size: 256 MiB (268435456 bytes)"), "{info}");
        let map = run("nbdinfo", &["--map", "--totals", uri]);
        assert!(map.contains("268435456 100.0%") && map.contains("hole,zero"), "{map}");
    }
    let list = run("nbdinfo", &["--list", &server.default_uri()]);
    assert!(list.contains("export=\"disk\""), "{list}");
    let unknown = format!("{}/other", server.default_uri());
    assert!(!output("nbdinfo", &[&unknown]).status.success());
    server.close();
}

pub(crate) fn an_image_copied_in_comes_out_equal_on_any_host(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "256M");
    let server = host.open(&volume, &[]);
    copy_image_to(&server.uri);
    assert_holds_image(&server);
    server.close();

    let server = host.open(&volume, &[]);
    assert_holds_image(&server);
    server.close();

    let other = Host::new(&fixture);
    let server = other.open(&volume, &["--cache-size", "0"]);
    let sum_of = |from: &str| shell(&format!("{from} | sha256sum"));
    let image = IMAGE.join(" ");
    let expected = sum_of(&format!("nbdkit -r -U - {image} --run 'nbdcopy \"$uri\" -'"));
    assert_eq!(sum_of(&format!("nbdcopy '{}' -", server.uri)), expected);
    let map = run("nbdinfo", &["--map", "--totals", &server.uri]);
    assert!(map.contains("data") && map.contains("hole,zero"), "{map}");
    server.close();
}

pub(crate) fn qemu_img_converts_in_and_out(kind: Kind) {
    let (_fixture, host, volume) = stage(kind);
    host.init(&volume, "256M");
    let server = host.open(&volume, &["--compression", "lz4"]);
    let path = |name: &str| host.folder().join(name).display().to_string();
    let (raw, qcow) = (path("raw"), path("qcow2"));
    run("nbdcopy", &[&["--", "[", "nbdkit", "--exit-with-parent"][..], &IMAGE, &["]", &raw]].concat());
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &raw, &server.uri]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &raw, &server.uri]);
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &server.unix, &qcow]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &raw, &qcow]);
    server.close();
}

/// Each place is within one block, over the border of two, or over several; nothing is aligned.
pub(crate) fn qemu_io_reads_what_it_wrote_at_odd_places(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "256M");
    let check = |server: &Server| {
        for uri in [&server.uri, &server.unix] {
            qemu_io(
                uri,
                &[
                    "read -P 0x41 1 1",
                    "read -P 0x42 513 7001",
                    "read -P 0 7514 678",
                    "read -P 0x43 1048575 2",
                    "read -P 0x44 2M 4097",
                    "read -P 0 2101249 100000",
                    "read -P 0x44 2201249 992607",
                    "read -P 0 3193856 99",
                    "read -P 0x45 268435455 1",
                    "read -P 0 5M 1M",
                    "read -P 0x46 5242879 1",
                ],
            );
        }
    };
    let server = host.open(&volume, &["--commit-interval", "500ms"]);
    qemu_io(
        &server.uri,
        &[
            "write -P 0x41 1 1",
            "write -P 0x42 513 7001",
            "write -P 0x43 -f 1048575 2",
            "write -P 0x44 2M 1096704",
            "write -z 2101249 100000",
            "discard 3193856 99",
            "write -z -u 3193856 99",
            "write -P 0x45 268435455 1",
            "write -P 0x46 4M 2M",
            "write -z -u 5M 1M",
            "flush",
        ],
    );
    check(&server);
    // What is in the bucket is read in another way than what waits for upload.
    std::thread::sleep(std::time::Duration::from_secs(2));
    check(&server);
    server.close();
    let other = Host::new(&fixture);
    let server = other.open(&volume, &[]);
    check(&server);
    // A request beyond the end is refused, and the connection lives on.
    let beyond = output("qemu-io", &["-f", "raw", "-c", "read 268435456 1", &server.uri]);
    assert!(String::from_utf8_lossy(&[beyond.stdout, beyond.stderr].concat()).contains("rror"));
    server.close();
}

pub(crate) fn fio_verifies_what_it_wrote_under_load(kind: Kind) {
    let (_fixture, host, volume) = stage(kind);
    host.init(&volume, "256M");
    // A small log and memory, and much more written than they hold.
    let small =
        ["--wal-size", "64M", "--memory-size", "16M", "--cache-size", "64M", "--commit-interval", "1s"];
    let server = host.open(&volume, &small);
    fio(
        &host,
        &server.uri,
        &[
            "--rw=randwrite",
            "--bsrange=512-128k",
            "--bs_unaligned",
            "--size=96M",
            "--iodepth=16",
            "--fsync=32",
        ],
    );
    fio(&host, &server.unix, &["--rw=write", "--bs=1M", "--size=128M", "--iodepth=4", "--end_fsync=1"]);
    server.close();
}

/// A job that writes, reads back and compares.
pub(crate) fn fio(host: &Host, uri: &str, arguments: &[&str]) {
    let folder = host.folder().display().to_string();
    let fixed = [
        "--name=e2e",
        "--ioengine=nbd",
        &format!("--uri={uri}"),
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--group_reporting",
        &format!("--aux-path={folder}"),
    ];
    run("fio", &[&fixed, arguments].concat());
}

/// Two programs with four connections each, on neighbouring halves whose border lies within a block.
pub(crate) fn two_clients_with_several_connections_keep_out_of_each_others_way(kind: Kind) {
    let (_fixture, host, volume) = stage(kind);
    host.init(&volume, "256M");
    let server = host.open(&volume, &["--commit-interval", "1s"]);
    let job = |number: u64, uri: &str| {
        let (uri, seed) = (format!("--uri={uri}"), format!("--randseed={number}"));
        let offset = format!("--offset={}", number * (64 << 20) + 2048 * number);
        let state = format!("--aux-path={}", host.folder().display());
        let words = [
            "--name=half",
            "--ioengine=nbd",
            "--rw=randwrite",
            "--bs=512",
            "--bssplit=512/30:1536/20:8192/50",
            "--size=16M",
            "--io_size=8M",
            "--iodepth=8",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--numjobs=4",
            "--offset_increment=16M",
        ];
        words.map(str::to_owned).into_iter().chain([uri, seed, offset, state]).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let jobs = [job(0, &server.uri), job(1, &server.unix)];
        let running: Vec<_> = jobs.map(|job| scope.spawn(move || run("fio", &job))).into_iter().collect();
        running.into_iter().for_each(|job| _ = job.join().expect("fio verifies"));
    });
    server.close();
}

pub(crate) fn a_reader_beside_a_writer_sees_a_published_cut(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let writer = host.open(&volume, &["--commit-interval", "500ms", "--durability", "remote"]);
    qemu_io(&writer.uri, &["write -P 0x61 0 1M", "flush"]);
    let reader_host = Host::new(&fixture);
    let reader = reader_host.open(&volume, &["--read-only"]);
    qemu_io(&writer.uri, &["write -P 0x62 0 1M", "flush"]);
    let info = run("nbdinfo", &["--json", &reader.uri]);
    assert!(info.contains("\"is_read_only\": true"), "{info}");
    run("qemu-io", &["-r", "-f", "raw", "-c", "read -P 0x61 0 1M", &reader.uri]);
    assert!(!output("qemu-io", &["-f", "raw", "-c", "write 0 4096", &reader.uri]).status.success());
    qemu_io(&writer.uri, &["read -P 0x62 0 1M"]);
    reader.close();
    let later = reader_host.open(&volume, &["--read-only"]);
    let printed = run("qemu-io", &["-r", "-f", "raw", "-c", "read -P 0x62 0 1M", &later.uri]);
    assert!(!printed.contains("fail"), "{printed}");
    later.close();
    writer.close();
}

/// mkfs discards the whole device: that must cost neither time nor memory nor requests in proportion to its size.
/// Both discard the whole device first.
pub(crate) fn a_volume_of_16_terabytes_is_formatted_and_mounted(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "16T");
    for system in [FileSystem::Ext4, FileSystem::Btrfs] {
        let server = host.open(&volume, &[]);
        let mut disk = Disk::attach(&server.uri);
        disk.format(system);
        disk.mount();
        std::fs::write(disk.path().join("file"), "far out").expect("a file");
        disk.detach();
        server.close();
        let other = Host::new(&fixture);
        let server = other.open(&volume, &[]);
        let mut disk = Disk::attach(&server.uri);
        disk.mount();
        assert_eq!(std::fs::read(disk.path().join("file")).expect("the file"), b"far out");
        disk.detach();
        server.close();
    }
}

pub(crate) fn an_exabyte_is_made_trimmed_and_written_at_both_ends(kind: Kind) {
    let (_fixture, host, volume) = stage(kind);
    host.init(&volume, "1E");
    let server = host.open(&volume, &[]);
    let last = (1_u64 << 60) - 4096;
    qemu_io(
        &server.uri,
        &[
            "write -P 0x71 0 4k",
            &format!("write -P 0x72 {last} 4k"),
            &format!("discard {} 1G", 1_u64 << 50),
            &format!("write -z -u {} 1G", 1_u64 << 51),
            "flush",
        ],
    );
    server.close();
    let server = host.open(&volume, &[]);
    qemu_io(&server.uri, &["read -P 0x71 0 4k", &format!("read -P 0x72 {last} 4k"), "read -P 0 1P 1M"]);
    server.close();
}
