//! Real clients against a disk in memory. They have to be installed: nbdkit, libnbd-bin, python3-libnbd, qemu-utils, fio.

use std::{path::PathBuf, process::Output, sync::Arc, time::Duration};

use s3bd::nbd::{Export, Limits, Listener, Server};
use tokio::{process::Command, sync::oneshot, task::JoinHandle, time::timeout};

#[allow(dead_code)]
#[path = "nbd/memory.rs"]
mod memory;

use memory::Memory;

const SIZE: u64 = 256 << 20;
/// A client that takes this long hangs.
const HANG: Duration = Duration::from_secs(120);

/// A server on a TCP port and a Unix socket at once.
struct Served {
    device: Arc<Memory>,
    /// The default export by TCP.
    tcp: String,
    /// The export's own name by the Unix socket.
    unix: String,
    folder: tempfile::TempDir,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Served {
    async fn start(device: Memory) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("nbd.sock");
        let tcp = Listener::bind_tcp("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let unix = Listener::bind_unix(&path).await.expect("a socket");
        let tcp_uri = format!("nbd://{}/", tcp.tcp_address().expect("an address"));
        let device = Arc::new(device);
        let export =
            Export { name: "volume".to_owned(), description: "a disk".to_owned(), device: device.clone() };
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            let shutdown = async move {
                let _ = stopped.await;
            };
            Server::new(Arc::new(export), Limits::default()).serve(vec![tcp, unix], shutdown).await;
        });
        let unix_uri = format!("nbd+unix:///volume?socket={}", path.display());
        Self { device, tcp: tcp_uri, unix: unix_uri, folder, stop, server }
    }

    fn uris(&self) -> [&str; 2] {
        [&self.tcp, &self.unix]
    }

    async fn stopped(self) {
        let _ = self.stop.send(());
        self.server.await.expect("the server does not panic");
    }
}

/// Runs a client; what it printed.
async fn run(program: &str, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = output(program, arguments).await;
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{program} {arguments:?}: {status}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

async fn output(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    // nbdsh wants the distribution's Python.
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(arguments).env("PATH", format!("/usr/bin:{path}")).kill_on_drop(true);
    let output = timeout(HANG, command.output()).await.expect("the client ends");
    output.unwrap_or_else(|error| panic!("{program} has to be installed: {error}"))
}

/// Runs qemu-io, which exits with success whatever happened to the requests before the last.
async fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut arguments = vec!["-f", "raw"];
    arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
    arguments.push(uri);
    let printed = run("qemu-io", &arguments).await;
    for line in printed.lines() {
        assert!(!line.contains("fail") && !line.contains("mismatch"), "{commands:?}: {printed}");
    }
    printed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdinfo_sees_what_is_offered() {
    let served = Served::start(Memory::new(SIZE)).await;
    for uri in served.uris() {
        let info = run("nbdinfo", &["--json", uri]).await;
        for expected in [
            "\"export-size\": 268435456",
            "\"is_read_only\": false",
            "\"can_cache\": true",
            "\"can_df\": true",
            "\"can_fast_zero\": true",
            "\"can_flush\": true",
            "\"can_fua\": true",
            "\"can_multi_conn\": true",
            "\"can_trim\": true",
            "\"can_zero\": true",
            "\"block_size_minimum\": 1",
            "\"block_size_preferred\": 4096",
            "\"block_size_maximum\": 33554432",
            "\"description\": \"a disk\"",
            "base:allocation",
        ] {
            assert!(info.contains(expected), "{expected} in {info}");
        }
        let list = run("nbdinfo", &["--list", uri]).await;
        assert!(list.contains("export=\"volume\""), "{list}");
        let map = run("nbdinfo", &["--map", "--totals", uri]).await;
        assert!(map.contains("268435456 100.0%") && map.contains("hole,zero"), "{map}");
    }
    let unknown = format!("{}other", served.tcp);
    assert!(!output("nbdinfo", &[&unknown]).await.status.success());
    served.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdinfo_sees_read_only() {
    let served = Served::start(Memory::new(SIZE).read_only()).await;
    let info = run("nbdinfo", &["--json", &served.unix]).await;
    assert!(info.contains("\"is_read_only\": true"), "{info}");
    assert!(!output("qemu-io", &["-f", "raw", "-c", "write 0 1", &served.unix]).await.status.success());
    served.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdcopy_in_and_out_gives_the_same_image() {
    let served = Served::start(Memory::new(SIZE)).await;
    let source = ["[", "nbdkit", "--exit-with-parent", "sparse-random", "256M", "seed=42", "percent=20", "]"];
    for uri in served.uris() {
        run("nbdcopy", &[&["--flush", "--"][..], &source, &[uri]].concat()).await;
        let compare = format!("qemu-img compare -f raw -F raw $uri '{uri}'");
        let same = ["-r", "-U", "-", "sparse-random", "256M", "seed=42", "percent=20", "--run", &compare];
        run("nbdkit", &same).await;
        let image = served.folder.path().join("image").display().to_string();
        run("nbdcopy", &["--", uri, &image]).await;
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, uri]).await;
    }
    assert!(served.device.flushes.load(std::sync::atomic::Ordering::SeqCst) > 0);
    let map = run("nbdinfo", &["--map", "--totals", &served.unix]).await;
    assert!(map.contains("data") && map.contains("hole,zero"), "{map}");
    served.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_img_converts_and_maps() {
    let served = Served::start(Memory::new(SIZE)).await;
    for uri in served.uris() {
        let info = run("qemu-img", &["info", "-f", "raw", uri]).await;
        assert!(info.contains("256 MiB"), "{info}");
        let image: PathBuf = served.folder.path().join("image.raw");
        let bytes: Vec<u8> =
            (0..SIZE as usize).map(|i| if i % 9_000_000 < 100_001 { i as u8 } else { 0 }).collect();
        std::fs::write(&image, &bytes).expect("a file");
        let image = image.display().to_string();
        run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &image, uri]).await;
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, uri]).await;
        let back = served.folder.path().join("back.qcow2").display().to_string();
        run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", uri, &back]).await;
        run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &image, &back]).await;
        let map = run("qemu-img", &["map", "--output=json", "-f", "raw", uri]).await;
        assert!(map.contains("\"zero\": true") && map.contains("\"data\": true"), "{map}");
    }
    run(
        "qemu-img",
        &[
            "bench",
            "-f",
            "raw",
            "-c",
            "2000",
            "-d",
            "16",
            "-s",
            "4096",
            "-w",
            "--flush-interval=100",
            &served.tcp,
        ],
    )
    .await;
    served.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_io_reads_what_it_wrote_at_odd_offsets() {
    let served = Served::start(Memory::new(SIZE)).await;
    for uri in served.uris() {
        qemu_io(
            uri,
            &[
                "write -P 0x41 -f 0 64k",
                "write -P 0x42 513 1",
                "write -P 0x43 65535 70001",
                "read -P 0x41 0 513",
                "read -P 0x42 513 1",
                "read -P 0x41 514 65021",
                "read -P 0x43 65535 70001",
                "write -z -u 1M 1M",
                "write -z 70000 5",
                "read -P 0 70000 5",
                "read -P 0x43 70005 99",
                "discard 2M 1M",
                "read -P 0 1M 2M",
                "aio_write -P 0x44 4M 3M",
                "aio_write -P 0x45 8M 31M",
                "aio_flush",
                "read -P 0x44 4M 3M",
                "read -P 0x45 8M 31M",
                "write -P 0x46 268435455 1",
                "read -P 0x46 268435455 1",
                "flush",
            ],
        )
        .await;
    }
    served.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdsh_sees_errors_as_errno() {
    let device = Memory::new(SIZE).bad(1 << 20..(1 << 20) + 1);
    let served = Served::start(device).await;
    let script = "
import errno, os
def fails(expected, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except nbd.Error as error:
        assert error.errnum == expected, (error, expected)
    else:
        assert False, 'no error'
h.set_strict_mode(0)
size = h.get_size()
fails(errno.EIO, h.pread, 1, 1 << 20)
fails(errno.EIO, h.pwrite, b'x' * 9, (1 << 20) - 1)
fails(errno.EINVAL, h.pread, 2, size - 1)
fails(errno.ENOSPC, h.pwrite, b'xy', size - 1)
fails(errno.ENOSPC, h.zero, 2, size - 1)
fails(errno.EINVAL, h.trim, 2, size - 1)
h.pwrite(b'x' * 77777, 13, nbd.CMD_FLAG_FUA)
assert h.pread(77777, 13) == b'x' * 77777
h.cache(4096, 0)
extents = []
h.block_status(1 << 20, 0, lambda context, offset, entries, error: extents.extend(entries))
assert extents == [77824, 0, (1 << 20) - 77824, 3], extents
";
    for uri in served.uris() {
        run("nbdsh", &["--base-allocation", "-u", uri, "-c", script]).await;
    }
    served.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fio_verifies_what_it_wrote() {
    let served = Served::start(Memory::new(SIZE)).await;
    for uri in served.uris() {
        let uri = format!("--uri={uri}");
        let state = format!("--aux-path={}", served.folder.path().display());
        let arguments = [
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            &state,
            "--rw=randwrite",
            "--bsrange=4k-128k",
            "--size=64M",
            "--iodepth=16",
            "--verify=crc32c",
            "--verify_backlog=256",
            "--verify_fatal=1",
            "--fsync=32",
            "--verify_state_save=0",
        ];
        let printed = run("fio", &arguments).await;
        assert!(printed.contains("err= 0"), "{printed}");
    }
    served.stopped().await;
}
