//! Every failure is one line that says what to do, an exit code, and no change.

use super::stage;
use crate::support::{
    fixture::{Kind, files_below},
    host::{Ended, Host},
    run::{qemu_io, run},
};

/// Runs `open`, on a port that nobody else has, or `recover`: what both refuse in the same way.
fn attempt(host: &Host, command: &str, arguments: &[&str]) -> Ended {
    match command {
        "open" => host.fail_to_open(arguments[0], &arguments[1..]),
        _ => host.run(command, arguments),
    }
}

pub(crate) fn a_wrong_or_missing_password_is_refused(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let bucket = fixture.contents();
    let wrong = Host::new(&fixture).with("S3BD_PASSWORD", "wrong");
    let without = Host::new(&fixture).without("S3BD_PASSWORD");
    for command in ["open", "recover"] {
        attempt(&wrong, command, &[&volume]).failed(4, &["wrong password"]);
        attempt(&without, command, &[&volume]).failed(4, &["--password-file", "S3BD_PASSWORD"]);
        attempt(&without, command, &[&volume, "--no-password"]).failed(4, &["password"]);
        attempt(&without, command, &[&volume, "--password-command", "exit 3"])
            .failed(4, &["password command"]);
        attempt(&without, command, &[&volume, "--password-command", "true"]).failed(4, &["empty"]);
        attempt(&without, command, &[&volume, "--password-file", "/dev/null"]).failed(4, &["empty"]);
        attempt(&without, command, &[&volume, "--password-file", "/missing"]).failed(1, &["/missing"]);
    }
    without.run("init", &[&fixture.location("new"), "--size", "1G"]).failed(4, &["--no-password"]);
    assert!(fixture.contents() == bucket, "a refused command changed the bucket");
    for host in [&wrong, &without] {
        assert!(!host.state().exists(), "a refused command made a state directory");
    }
}

pub(crate) fn a_volume_without_a_password_says_so(kind: Kind) {
    let (_fixture, host, volume) = stage(kind);
    let host = host.without("S3BD_PASSWORD");
    let made = host.run("init", &[&volume, "--size", "64M", "--no-password"]).done();
    assert!(made.stdout.contains("without a password"), "{made:?}");
    host.fail_to_open(&volume, &[]).failed(4, &["--no-password"]);
    let server = host.open(&volume, &["--no-password"]);
    qemu_io(&server.uri, &["write -P 1 0 1M"]);
    server.close();
    let with = host.with("S3BD_PASSWORD", "some");
    with.fail_to_open(&volume, &[]).failed(4, &["has no password"]);
}

pub(crate) fn what_is_not_there_is_named(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    for command in ["open", "recover"] {
        attempt(&host, command, &[&volume]).failed(3, &["disk", "no volume here", "s3bd init"]);
    }
    let elsewhere = match kind {
        Kind::Directory => format!("file:{}/missing/disk", host.folder().display()),
        _ => "no-such-bucket/disk".to_owned(),
    };
    for command in ["open", "recover"] {
        attempt(&host, command, &[&elsewhere]).failed(3, &["disk"]);
    }
    host.run("init", &[&elsewhere, "--size", "1G"]).failed(3, &["disk"]);
    assert!(fixture.contents().is_empty(), "a refused command changed the bucket");
    assert!(!host.state().exists(), "a refused command made a state directory");
}

pub(crate) fn a_second_init_changes_nothing(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let bucket = fixture.contents();
    let again = host.run("init", &[&volume, "--size", "128M"]);
    again.failed(1, &["a volume here already", "nothing was changed"]);
    let other = Host::new(&fixture).with("S3BD_PASSWORD", "another");
    other.run("init", &[&volume, "--size", "64M"]).failed(1, &["a volume here already"]);
    assert!(fixture.contents() == bucket, "init changed a volume");
    // --create is content with what is there.
    let server = host.open(&volume, &["--create", "128M"]);
    assert_eq!(run("nbdinfo", &["--size", &server.uri]).trim(), "67108864");
    server.close();
}

pub(crate) fn open_makes_a_volume_when_told(kind: Kind) {
    let (_fixture, host, volume) = stage(kind);
    let server = host.open(&volume, &["--create", "64M"]);
    assert_eq!(run("nbdinfo", &["--size", &server.uri]).trim(), "67108864");
    server.close();
}

pub(crate) fn wrong_usage_is_exit_code_two_and_touches_nothing(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    for size in ["", "0", "-1", "1X", "1e30", "20000000000000000000", "lots"] {
        let ended = host.run("init", &[&volume, &format!("--size={size}")]);
        assert_eq!(ended.code, Some(2), "{size}: {ended:?}");
        assert!(ended.stdout.is_empty() && ended.stderr.contains("--size"), "{size}: {ended:?}");
    }
    host.run("init", &[&volume, "--size", "10000"]).failed(2, &["no multiple", "8192", "12288"]);
    host.run("init", &[&volume, "--size", "1M", "--block-size", "3000"]).failed(2, &["power of two"]);
    host.run("init", &[&volume, "--size", "1M", "--block-size", "256"]).failed(2, &["power of two"]);
    host.run("init", &[&volume, "--size", "1G", "--block-size", "32M"]).failed(2, &["16M"]);
    for name in ["disk", "", "/", "a/b", "UPPER/disk", "test-bucket/", "http://host/bucket/disk", "file:disk"]
    {
        let ended = host.run("init", &[name, "--size", "1M"]);
        assert_eq!(ended.code, Some(2), "{name}: {ended:?}");
    }
    host.run("init", &[&format!("{volume}@snapshot"), "--size", "1M"]).failed(2, &["snapshot"]);
    host.init(&volume, "64M");
    let bucket = fixture.contents();
    for (flag, value) in [
        ("--wal-size", "1M"),
        ("--memory-size", "1M"),
        ("--commit-interval", "0s"),
        ("--commit-interval", "soon"),
        ("--compression", "rar"),
        ("--port", "70000"),
        ("--bind", "nowhere"),
        ("--read-timeout", "0"),
        ("--max-lag", "10ms"),
        ("--max-lag", "1K"),
        ("--max-lag", "10"),
    ] {
        let ended = host.run("open", &[&volume, flag, value]);
        assert_eq!(ended.code, Some(2), "{flag} {value}: {ended:?}");
        assert!(ended.stderr.contains(flag), "{flag} {value}: {ended:?}");
    }
    let both = host.run("open", &[&volume, "--read-only", "--takeover"]);
    assert_eq!(both.code, Some(2), "{both:?}");
    assert!(fixture.contents() == bucket, "wrong usage changed the bucket");
    assert!(!host.state().exists(), "wrong usage made a state directory");
}

pub(crate) fn a_taken_port_or_socket_costs_nothing(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let bucket = fixture.contents();
    host.run("open", &[&volume, "--port", &port]).failed(5, &["cannot listen", &port]);
    let socket = host.folder().join("taken.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let path = socket.display().to_string();
    host.run("open", &[&volume, "--unix", &path]).failed(5, &["cannot listen", &path]);
    assert!(fixture.contents() == bucket, "a refused command changed the bucket");
    assert!(!host.state().exists(), "a refused command made a state directory");
}

/// What a killed server left at its address does not keep the next one out.
pub(crate) fn a_killed_servers_addresses_are_free_again(kind: Kind) {
    let (_fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &[]);
    let port = server.port().to_owned();
    // A connection that the server has closed lingers on the port.
    let _client = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).expect("a connection");
    server.kill();
    let socket = host.folder().join("nbd.sock").display().to_string();
    let mut again = host.command("open", &[&volume, "--port", &port, "--unix", &socket]);
    let mut child = again.stdout(std::process::Stdio::piped()).spawn().expect("setpriv starts");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("a pipe")));
    let line = lines.next().expect("a line").expect("text");
    assert!(line.contains("served at"), "{line}");
    child.kill().expect("a child");
    child.wait().expect("a child");
}

pub(crate) fn a_volume_in_use_is_refused_here_and_elsewhere(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let server = host.open(&volume, &["--commit-interval", "1h"]);
    qemu_io(&server.uri, &["write -P 5 0 1M", "flush"]);
    let (bucket, state) = (fixture.contents(), files_below(&host.state()));
    let folder = host.state().display().to_string();
    for command in ["open", "recover"] {
        attempt(&host, command, &[&volume]).failed(5, &["another process on this host", &folder]);
        let other = Host::new(&fixture);
        let name = run("uname", &["-n"]);
        attempt(&other, command, &[&volume]).failed(5, &[name.trim(), "--takeover"]);
    }
    assert!(fixture.contents() == bucket, "a refused command changed the bucket");
    assert!(files_below(&host.state()) == state, "a refused command changed the state directory");
    qemu_io(&server.uri, &["read -P 5 0 1M", "write -P 6 0 1M", "flush"]);
    server.close();
}

/// Only where there is a server to speak to.
pub(crate) fn a_store_that_cannot_be_reached_or_refuses_is_named(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    let flags: Vec<String> = fixture.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let bucket = fixture.contents();
    let hosts = [
        // The metadata service of Amazon's machines is asked otherwise, and takes its time not to answer.
        Host::new(&fixture)
            .without("AWS_ACCESS_KEY_ID")
            .without("AWS_SECRET_ACCESS_KEY")
            .with("AWS_EC2_METADATA_DISABLED", "true"),
        Host::new(&fixture).with("AWS_SECRET_ACCESS_KEY", "wrong"),
        Host::new(&fixture).with("AWS_ACCESS_KEY_ID", "nobody"),
        // Nothing listens at the port of discard.
        Host::new(&fixture).with_flags(&["--endpoint", "http://127.0.0.1:9"]),
        Host::new(&fixture).with_flags(&["--endpoint", "http://no-such-host.invalid"]),
        Host::new(&fixture).with_flags(&["--endpoint", "127.0.0.1:9"]),
        Host::new(&fixture).with_flags(&[&flags[..], &["--profile", "missing"]].concat()),
    ];
    std::thread::scope(|scope| {
        for host in &hosts {
            scope.spawn(|| {
                host.fail_to_open(&volume, &[]).failed(6, &["disk"]);
                let new = fixture.location("new");
                host.run("init", &[&new, "--size", "1M"]).failed(6, &["new"]);
                assert!(!host.state().exists(), "a refused command made a state directory");
            });
        }
    });
    assert!(fixture.contents() == bucket, "a refused command changed the bucket");
}

/// A policy that lets everything be read and nothing be removed: a command ends, and says which right is missing.
pub(crate) fn a_store_that_refuses_one_kind_of_call_for_good_ends_a_command(kind: Kind) {
    let (fixture, host, volume) = stage(kind);
    host.init(&volume, "64M");
    host.run("key", &["add", &volume, "--recovery-key"]).done();
    fixture.refuse("DELETE");
    let bucket = fixture.contents();
    let texts = ["delete ", "keys/", "refused for 30 s", "s3:DeleteObject"];
    host.run("key", &["remove", &volume, "recovery key", "--yes"]).failed(6, &texts);
    assert!(fixture.contents() == bucket, "a refused command changed the bucket");
}
