//! `kill -9`, with and without the local disk afterwards.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use super::{file_systems::assert_same, raw::Raw, stage};
use crate::support::{
    disk::{Disk, FileSystem, keep_mounts_private},
    fixture::Kind,
    host::{Host, Server},
    random::Seeded,
    run::{run, shell},
};

/// Uploads go on all the time, so that a kill hits them too.
const OFTEN: [&str; 2] = ["--commit-interval", "300ms"];
const BLOCK_BYTES: u64 = 4096;
/// Blocks of the volume that a known sequence is written to.
const BLOCKS: u64 = 4096;

const FLUSHED_EVERY: u64 = 7;

/// Write `n` of a sequence: where it begins and how long it is, in blocks. Every write is known by its number alone.
fn nth_range(seed: u64, n: u64) -> (u64, u64) {
    let mut random = Seeded::from(seed ^ n.wrapping_mul(0x5851_f42d_4c95_7f2d));
    let count = random.within(1..9);
    (random.within(0..BLOCKS - count), count)
}

/// A block of write `n`: its number, over and over.
fn nth_block(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(BLOCK_BYTES as usize / 8)
}

/// Where the writer was when the server died: numbers of writes.
#[derive(Clone, Copy, Debug, Default)]
struct Promised {
    sent: u64,
    flushed: u64,
}

/// Write `n` of the sequence, with a flush where it is due.
fn write_nth(client: &mut Raw, seed: u64, n: u64) -> std::io::Result<()> {
    let (start, count) = nth_range(seed, n);
    client.write(start * BLOCK_BYTES, &nth_block(n).repeat(count as usize))?;
    if n.is_multiple_of(FLUSHED_EVERY) { client.flush() } else { Ok(()) }
}

/// Writes the sequence from `first` on until the server dies.
fn write_sequence(socket: &Path, seed: u64, first: u64) -> Promised {
    let mut client = Raw::connect(socket).expect("a server");
    let mut promised = Promised { sent: first - 1, flushed: first - 1 };
    for n in first.. {
        promised.sent = n;
        if write_nth(&mut client, seed, n).is_err() {
            break;
        }
        if n.is_multiple_of(FLUSHED_EVERY) {
            promised.flushed = n;
        }
    }
    promised
}

/// The length of the prefix of the sequence that the volume holds. Panics where it holds no prefix.
fn prefix_held(server: &Server, seed: u64) -> u64 {
    let mut client = Raw::connect(&server.socket).expect("a server");
    let step = 256;
    let mut found = Vec::new();
    for first in (0..BLOCKS).step_by(step) {
        let bytes = client.read(first * BLOCK_BYTES, step as u32 * BLOCK_BYTES as u32).expect("data");
        for block in bytes.chunks(BLOCK_BYTES as usize) {
            let number = u64::from_le_bytes(block[..8].try_into().expect("eight bytes"));
            assert!(block == nth_block(number), "a torn block of write {number}");
            found.push(number);
        }
    }
    // The sequence counts from one, so nothing but an unwritten block holds zero.
    let held = found.iter().max().copied().unwrap_or(0);
    let mut expected = vec![0; BLOCKS as usize];
    for n in 1..=held {
        let (start, count) = nth_range(seed, n);
        expected[start as usize..(start + count) as usize].fill(n);
    }
    let wrong = (0..BLOCKS as usize).find(|&block| found[block] != expected[block]);
    if let Some(block) = wrong {
        panic!(
            "block {block} is of write {}, not {}, with writes up to {held}",
            found[block], expected[block]
        );
    }
    held
}

fn writes_survive_kills(kind: Kind, rounds: u64, arguments: &[&str]) {
    let (fixture, host, volume) = stage(kind);
    let mut random = Seeded::new();
    let seed = random.next();
    host.init(&volume, "64M");
    let arguments = [&OFTEN, arguments].concat();
    let mut promised = Promised::default();
    for round in 0..rounds {
        let server = host.open(&volume, &arguments);
        let held = prefix_held(&server, seed);
        assert!(
            (promised.flushed..=promised.sent).contains(&held),
            "round {round}: {promised:?}, and {held} writes are there"
        );
        assert_eq!(round == 0, !server.stderr().contains("was not closed"), "{}", server.stderr());
        let socket = server.socket.clone();
        let writer = std::thread::spawn(move || write_sequence(&socket, seed, held + 1));
        std::thread::sleep(Duration::from_millis(random.within(50..2000)));
        server.kill();
        promised = writer.join().expect("the writer ends with the server");
    }
    // Without the local disk: some cut that was published, so a prefix again.
    let other = Host::new(&fixture);
    other.fail_to_open(&volume, &[]).failed(5, &["--takeover", "has not closed it"]);
    let server = other.open(&volume, &["--takeover"]);
    let held = prefix_held(&server, seed);
    assert!(held > 0 && held <= promised.sent, "{promised:?}, and {held} writes are in the bucket");
    if arguments.contains(&"remote") {
        assert!(held >= promised.flushed, "{promised:?}, and {held} writes are in the bucket");
    }
    server.close();
    // The first host's log has lost, and is not dropped in silence.
    if held < promised.flushed {
        host.fail_to_open(&volume, &[]).failed(8, &["the local log holds", "--discard"]);
    }
}

pub(crate) fn writes_survive_three_kills(kind: Kind) {
    writes_survive_kills(kind, 3, &[]);
}

pub(crate) fn writes_survive_twenty_kills(kind: Kind) {
    writes_survive_kills(kind, 20, &[]);
}

/// nbdkit's retry filter connects again and repeats what was not answered, so its client sees no error.
pub(crate) fn a_client_behind_nbdkits_retry_filter_sees_no_kill(kind: Kind) {
    let (_fixture, host, volume) = stage(kind);
    let mut random = Seeded::new();
    let seed = random.next();
    host.init(&volume, "64M");
    let mut server = host.open(&volume, &OFTEN);
    let between = host.folder().join("between.sock");
    let mut nbdkit = Command::new("nbdkit")
        .args(["--foreground", "--exit-with-parent", "--filter=retry", "--unix"])
        .arg(&between)
        .arg("nbd")
        .arg(format!("socket={}", server.socket.display()))
        .args(["retries=60", "retry-delay=1", "retry-exponential=no"])
        .stderr(Stdio::null())
        .spawn()
        .expect("nbdkit starts");
    while !between.exists() {
        assert!(nbdkit.try_wait().expect("a child").is_none(), "nbdkit ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut client = Raw::connect(&between).expect("nbdkit");
    let (written, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    let server = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 1.. {
                write_nth(&mut client, seed, n).expect("it is repeated");
                written.store(n, Ordering::Relaxed);
                if ended.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(random.within(1..500)));
            server.kill();
            server = host.open(&volume, &OFTEN);
            let before = written.load(Ordering::Relaxed);
            while written.load(Ordering::Relaxed) == before && !writer.is_finished() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        ended.store(true, Ordering::Relaxed);
        server
    });
    nbdkit.kill().expect("a child");
    nbdkit.wait().expect("a child");
    assert_eq!(prefix_held(&server, seed), written.into_inner(), "what was acknowledged is there");
    server.close();
}

pub(crate) fn remote_flushes_survive_the_loss_of_the_host(kind: Kind) {
    writes_survive_kills(kind, 2, &["--durability", "remote"]);
}

fn fio_survives_kills(kind: Kind, rounds: u64) {
    let (_fixture, host, volume) = stage(kind);
    let mut random = Seeded::new();
    host.init(&volume, "256M");
    let folder = format!("--aux-path={}", host.folder().display());
    for round in 0..rounds {
        let server = host.open(&volume, &OFTEN);
        let (uri, seed) = (format!("--uri={}", server.uri), format!("--randseed={round}"));
        let job = [
            "--name=killed",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--bsrange=4k-128k",
            "--size=256M",
            "--iodepth=1",
            "--fsync=1",
            "--verify=crc32c",
            "--verify_fatal=1",
            &seed,
            &folder,
        ];
        let mut fio = Command::new("fio")
            .args([&job[..], &["--do_verify=0", "--verify_state_save=1"]].concat())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("fio starts");
        // It takes half a second to start.
        std::thread::sleep(Duration::from_millis(random.within(800..3000)));
        server.kill();
        assert!(!fio.wait().expect("a child").success(), "fio was done before the kill");
        let server = host.open(&volume, &OFTEN);
        let uri = format!("--uri={}", server.uri);
        let again = job.map(|word| if word.starts_with("--uri=") { &uri } else { word });
        let printed = run("fio", &[&again[..], &["--verify_only", "--verify_state_load=1"]].concat());
        assert!(printed.contains("read:"), "nothing was verified: {printed}");
        server.kill();
    }
}

pub(crate) fn what_fio_flushed_survives_three_kills(kind: Kind) {
    fio_survives_kills(kind, 3);
}

pub(crate) fn what_fio_flushed_survives_twenty_kills(kind: Kind) {
    fio_survives_kills(kind, 20);
}

/// File `n` of a known sequence.
fn nth_file(n: u64) -> Vec<u8> {
    let mut random = Seeded::from(n);
    let count = random.within(1..40_000);
    random.bytes(count as usize)
}

/// Writes files, each synced with its folder before the next, until the disk dies; counts them in `synced`.
fn write_files(folder: &Path, synced: &AtomicU64) {
    let write = |n: u64| -> std::io::Result<()> {
        use std::io::Write;
        let mut file = std::fs::File::create(folder.join(n.to_string()))?;
        file.write_all(&nth_file(n))?;
        file.sync_all()?;
        std::fs::File::open(folder)?.sync_all()
    };
    while write(synced.load(Ordering::SeqCst)).is_ok() {
        synced.fetch_add(1, Ordering::SeqCst);
    }
}

/// How many files of the sequence are there, whole and without a gap.
fn files_held(folder: &Path) -> u64 {
    let whole = |n: u64| std::fs::read(folder.join(n.to_string())).is_ok_and(|bytes| bytes == nth_file(n));
    let held = (0..).find(|&n| !whole(n)).expect("an end");
    // The next may have been under way; one after it was begun only when it was synced.
    let beyond = std::fs::read_dir(folder).expect("a folder").find_map(|entry| {
        let name = entry.expect("an entry").file_name();
        name.to_str().and_then(|name| name.parse::<u64>().ok()).filter(|&n| n > held)
    });
    assert_eq!(beyond, None, "file {held} is missing or torn, and a later one is there");
    held
}

fn file_system_survives_kills(kind: Kind, system: FileSystem, rounds: u64) {
    let (fixture, host, volume) = stage(kind);
    let mut random = Seeded::new();
    host.init(&volume, "2G");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let synced = AtomicU64::new(0);
    for round in 0..rounds {
        let server = host.open(&volume, &OFTEN);
        let mut disk = Disk::attach(&server.uri);
        if round == 0 {
            disk.format(system);
        }
        disk.mount();
        let (files, tree) = (disk.path().join("files"), disk.path().join(format!("tree-{round}")));
        std::fs::create_dir_all(&files).expect("a folder");
        let held = files_held(&files);
        let promised = synced.swap(held, Ordering::SeqCst);
        assert!(held >= promised, "round {round}: {promised} files were synced, {held} are there");
        let mut rsync = Command::new("rsync")
            .args(["-a".as_ref(), source.join("").as_os_str(), tree.join("").as_os_str()])
            .stderr(Stdio::null())
            .spawn()
            .expect("rsync starts");
        std::thread::scope(|scope| {
            scope.spawn(|| write_files(&files, &synced));
            std::thread::sleep(Duration::from_millis(random.within(300..3000)));
            server.kill();
        });
        let _ = rsync.wait();
        disk.abandon();
    }
    let server = host.open(&volume, &OFTEN);
    let mut disk = Disk::attach(&server.uri);
    disk.mount();
    let (promised, held) = (synced.load(Ordering::SeqCst), files_held(&disk.path().join("files")));
    assert!(held >= promised, "{promised} files were synced, {held} are there");
    // What the kills cut short can be finished.
    let tree = disk.path().join("tree-0");
    run("rsync", &["-ac".as_ref(), source.join("").as_os_str(), tree.join("").as_os_str()]);
    assert_same(&source, &tree);
    disk.unmount();
    disk.check(system);
    disk.mount();
    // And once more, with the local disk lost.
    let files = disk.path().join("files");
    synced.store(held, Ordering::SeqCst);
    std::thread::scope(|scope| {
        scope.spawn(|| write_files(&files, &synced));
        std::thread::sleep(Duration::from_millis(random.within(1000..2000)));
        server.kill();
    });
    disk.abandon();
    std::fs::remove_dir_all(host.state()).expect("a state directory");
    let other = Host::new(&fixture);
    let server = other.open(&volume, &["--takeover"]);
    let mut disk = Disk::attach(&server.uri);
    disk.mount();
    let held = files_held(&disk.path().join("files"));
    assert!(held <= synced.load(Ordering::SeqCst) + 1, "{held} files came from nowhere");
    disk.unmount();
    disk.check(system);
    disk.detach();
    server.close();
}

pub(crate) fn ext4_survives_three_kills_and_the_loss_of_the_host(kind: Kind) {
    file_system_survives_kills(kind, FileSystem::Ext4, 3);
}

pub(crate) fn btrfs_survives_two_kills_and_the_loss_of_the_host(kind: Kind) {
    file_system_survives_kills(kind, FileSystem::Btrfs, 2);
}

pub(crate) fn ext4_survives_twenty_kills_and_the_loss_of_the_host(kind: Kind) {
    file_system_survives_kills(kind, FileSystem::Ext4, 20);
}

pub(crate) fn btrfs_survives_ten_kills_and_the_loss_of_the_host(kind: Kind) {
    file_system_survives_kills(kind, FileSystem::Btrfs, 10);
}

/// An ext4 of 200 MB under the host's state directory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn under(host: &Host) -> Self {
        keep_mounts_private();
        let (image, state) = (host.folder().join("small"), host.state());
        let (image, path) = (image.display(), state.display());
        shell(&format!(
            "truncate -s 200M '{image}'; mkfs.ext4 -q '{image}'; mkdir -p '{path}'; mount -o loop '{image}' '{path}'"
        ));
        Self(state)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// What the cache holds is in the bucket, too: it must not keep the log from anything, be it open or to be opened.
pub(crate) fn on_a_full_disk_the_cache_gives_way_to_the_log(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    let _disk = SmallDisk::under(&host);
    let data = host.folder().join("data");
    shell(&format!("head -c 150M /dev/urandom >'{}'", data.display()));
    host.init(&volume, "150M");
    for _ in 0..3 {
        let server = host.open(&volume, &["--commit-interval", "1s"]);
        shell(&format!("timeout 250 nbdcopy --flush '{}' '{}'", data.display(), server.uri));
        shell(&format!("timeout 250 nbdcopy '{}' - | cmp - '{}'", server.uri, data.display()));
        server.close();
    }
    let other = Host::new(&fixture);
    let server = other.open(&volume, &[]);
    shell(&format!("timeout 250 nbdcopy '{}' - | cmp - '{}'", server.uri, data.display()));
    server.close();
}
