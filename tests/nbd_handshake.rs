//! The handshake as a raw client sees it, option by option. Sections are those of proto.md.

use std::time::Duration;

use s3bd::nbd::{Limits, Listener};

#[allow(dead_code)]
#[path = "nbd/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "nbd/fixture.rs"]
mod fixture;
#[allow(dead_code)]
#[path = "nbd/memory.rs"]
mod memory;

use client::{Client, Framing, READ, STATUS, info, meta};
use fixture::Fixture;
use memory::Memory;

const ACK: (u32, Vec<u8>) = (1, vec![]);
const UNSUP: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;
const UNKNOWN: u32 = 0x8000_0006;
const TOO_BIG: u32 = 0x8000_0009;
const EXT_HEADER_REQD: u32 = 0x8000_000a;
/// All but READ_ONLY, ROTATIONAL, SEND_DF and what is not offered ("Transmission flags").
const FLAGS: u16 = 0b1101_0110_1101 & !(1 << 7) & !(1 << 9);

/// "Newstyle negotiation": size, flags, and zeroes unless they were declined.
#[tokio::test]
async fn export_name_enters_transmission() {
    let fixture = Fixture::small().await;
    for (client_flags, zeroes) in [(0, 124), (1, 124), (3, 0)] {
        for name in ["", "volume"] {
            let mut client = Client::greet(&fixture.path, client_flags).await;
            client.send_option(1, name.as_bytes()).await;
            let answer = client.take(10 + zeroes).await;
            assert_eq!(answer[..8], (1_u64 << 20).to_be_bytes());
            assert_eq!(answer[8..10], FLAGS.to_be_bytes(), "{:#b}", answer[9]);
            assert!(answer[10..].iter().all(|byte| *byte == 0));
            assert_eq!(client.read(0, 3).await, [0; 3]);
        }
    }
}

#[tokio::test]
async fn export_name_that_is_not_there_ends_the_session() {
    let fixture = Fixture::small().await;
    for name in [&b"other"[..], b"\xff\xfe", &[b'x'; 5000], &[b'x'; 70_000]] {
        let mut client = Client::greet(&fixture.path, 3).await;
        client.send_option(1, name).await;
        assert_eq!(client.rest().await, b"");
    }
}

/// "Client flags": an unknown flag ends the session.
#[tokio::test]
async fn unknown_client_flags_end_the_session() {
    let fixture = Fixture::small().await;
    for flags in [4, 1 << 31, u32::MAX] {
        assert_eq!(Client::greet(&fixture.path, flags).await.rest().await, b"");
    }
}

#[tokio::test]
async fn info_answers_what_was_asked() {
    let fixture = Fixture::small().await;
    let mut client = Client::greet(&fixture.path, 3).await;
    let export = |flags: u16| (3, [&[0, 0], &(1_u64 << 20).to_be_bytes()[..], &flags.to_be_bytes()].concat());
    assert_eq!(client.option(6, &info("", &[])).await, [export(FLAGS), ACK]);
    // An unknown type is ignored, one asked for twice is answered once.
    assert_eq!(
        client.option(6, &info("volume", &[2, 0, 99, 1, 3, 1])).await,
        [
            export(FLAGS),
            (3, b"\0\x01volume".to_vec()),
            (3, b"\0\x02a disk".to_vec()),
            (3, b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0".to_vec()),
            ACK
        ]
    );
    assert_eq!(client.option(6, &info("other", &[])).await[0].0, UNKNOWN);
    assert_eq!(client.option(8, b"").await, [ACK]);
    // "Transmission flags": DF comes with structured replies.
    assert_eq!(client.option(6, &info("", &[])).await, [export(FLAGS | 1 << 7), ACK]);
    for malformed in [&b""[..], b"\0\0\0\x09volume\0\0", b"\0\0\0\0\0\x02\0\0", b"\0\0\0\0\0\0\0"] {
        assert_eq!(client.option(6, malformed).await[0].0, INVALID);
        assert_eq!(client.option(7, malformed).await[0].0, INVALID);
    }
    assert_eq!(client.option(7, &info("other", &[])).await[0].0, UNKNOWN);
    assert_eq!(client.option(7, &info("volume", &[])).await, [export(FLAGS | 1 << 7), ACK]);
    client.framing = Framing::Structured;
    assert_eq!(client.read(5, 1).await, [0]);
}

#[tokio::test]
async fn read_only_shows_in_the_flags() {
    let fixture = Fixture::start(Memory::new(4096).read_only(), Limits::default()).await;
    let client = Client::go(&fixture.path, Framing::Simple).await;
    assert_eq!(client.flags, FLAGS | 2);
}

#[tokio::test]
async fn list_names_the_exports() {
    let fixture = Fixture::small().await;
    let mut client = Client::greet(&fixture.path, 3).await;
    assert_eq!(client.option(3, b"").await, [(2, b"\0\0\0\x06volume".to_vec()), ACK]);
    assert_eq!(client.option(3, b"x").await[0].0, INVALID);
}

/// "Baseline": what is not known is answered as such, and the next message is understood.
#[tokio::test]
async fn unknown_options_are_skipped() {
    let fixture = Fixture::small().await;
    let mut client = Client::greet(&fixture.path, 3).await;
    // STARTTLS, the withdrawn PEEK_EXPORT, and numbers of nobody.
    for option in [5, 4, 0, 12, 999, u32::MAX] {
        for length in [0, 1, 4096, 65_536] {
            assert_eq!(client.option(option, &vec![7; length]).await[0].0, UNSUP);
        }
    }
    assert_eq!(client.option(999, &vec![7; 65_537]).await[0].0, TOO_BIG);
    assert_eq!(client.option(6, &vec![7; 1 << 20]).await[0].0, TOO_BIG);
    assert_eq!(client.option(3, b"").await.len(), 2);
    client.send_option(999, b"").await;
    assert_eq!(client.take_option_reply(999).await.0, UNSUP);
    // More than that is nobody's option; the data is never sent.
    client.send(b"IHAVEOPT\0\0\0\x06\xff\xff\xff\xff").await;
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn abort_is_acknowledged() {
    let fixture = Fixture::small().await;
    for data in [&b""[..], b"bye"] {
        let mut client = Client::greet(&fixture.path, 3).await;
        assert_eq!(client.option(2, data).await, [ACK]);
        assert_eq!(client.rest().await, b"");
    }
}

#[tokio::test]
async fn wrong_option_magic_ends_the_session() {
    let fixture = Fixture::small().await;
    let mut client = Client::greet(&fixture.path, 3).await;
    client.send(b"IHAVEOPT\0\0\0\x03\0\0\0\0").await;
    assert_eq!(client.take_option_reply(3).await.0, 2);
    assert_eq!(client.take_option_reply(3).await, ACK);
    client.send(b"IHAVEOPS\0\0\0\x03\0\0\0\0").await;
    assert_eq!(client.rest().await, b"");
}

/// "NBD_OPT_LIST_META_CONTEXT", "NBD_OPT_SET_META_CONTEXT", "The `base:` metadata namespace".
#[tokio::test]
async fn meta_contexts_are_listed_and_set() {
    let fixture = Fixture::small().await;
    let mut client = Client::greet(&fixture.path, 3).await;
    let listed = (4, b"\0\0\0\0base:allocation".to_vec());
    let set = (4, b"\0\0\0\x01base:allocation".to_vec());
    for option in [9, 10] {
        assert_eq!(client.option(option, &meta("", &["base:allocation"])).await[0].0, INVALID);
    }
    assert_eq!(client.option(8, b"x").await[0].0, INVALID);
    assert_eq!(client.option(8, b"").await, [ACK]);
    for queries in [&[][..], &["base:"], &["base:allocation"], &["x-a:b", "base:allocation", "base:"]] {
        assert_eq!(client.option(9, &meta("", queries)).await, [listed.clone(), ACK]);
    }
    for queries in [&["base:other"][..], &["x-a:"], &["nonsense", ""]] {
        assert_eq!(client.option(9, &meta("volume", queries)).await, [ACK]);
        assert_eq!(client.option(10, &meta("volume", queries)).await, [ACK]);
    }
    assert_eq!(client.option(10, &meta("", &[])).await, [ACK]);
    assert_eq!(client.option(10, &meta("", &["base:"])).await, [ACK]);
    assert_eq!(client.option(10, &meta("other", &["base:allocation"])).await[0].0, UNKNOWN);
    assert_eq!(client.option(10, b"\0\0\0\0\0\0\0\x01\0\0\0\xff").await[0].0, INVALID);
    assert_eq!(client.option(10, &meta("", &["base:allocation", "base:allocation"])).await, [set, ACK]);
    assert_eq!(client.option(7, &info("", &[])).await.len(), 2);
    client.framing = Framing::Structured;
    assert_eq!(client.call((STATUS, 0), 0, 4096, b"").await.extents, [(4096, 3)]);
}

#[tokio::test]
async fn meta_context_is_lost_by_a_failed_set_and_by_another_name() {
    let fixture = Fixture::small().await;
    for spoiler in [meta("other", &["base:allocation"]), meta("volume", &["base:allocation"]), meta("", &[])]
    {
        let mut client = Client::greet(&fixture.path, 3).await;
        assert_eq!(client.option(8, b"").await, [ACK]);
        assert_eq!(client.option(10, &meta("", &["base:allocation"])).await.len(), 2);
        client.option(10, &spoiler).await;
        assert_eq!(client.option(7, &info("", &[])).await.len(), 2);
        client.framing = Framing::Structured;
        assert_eq!(client.errno((STATUS, 0), 0, 4096).await, client::EINVAL);
    }
}

/// "NBD_OPT_EXTENDED_HEADERS" of extension-ext-header.
#[tokio::test]
async fn extended_headers_cannot_be_taken_back() {
    let fixture = Fixture::small().await;
    let mut client = Client::greet(&fixture.path, 3).await;
    assert_eq!(client.option(11, b"x").await[0].0, INVALID);
    assert_eq!(client.option(8, b"").await, [ACK]);
    assert_eq!(client.option(11, b"").await, [ACK]);
    assert_eq!(client.option(8, b"").await[0].0, EXT_HEADER_REQD);
    assert_eq!(client.option(7, &info("", &[])).await.len(), 2);
    client.framing = Framing::Extended;
    assert_eq!(client.call((READ, 0), 9, 2, b"").await.data, [0; 2]);
}

#[tokio::test]
async fn a_client_that_sends_all_at_once_is_served() {
    let fixture = Fixture::small().await;
    let mut client = Client::connect(&fixture.path).await;
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(b"IHAVEOPT\0\0\0\x01\0\0\0\0");
    bytes.extend(client.request((READ, 0), 1, (0, 2), b""));
    client.send(&bytes).await;
    assert_eq!(client.take(18 + 10 + 16 + 2).await[44..], [0, 0]);
}

/// Time stands still but for sleepers, so this takes none.
#[tokio::test(start_paused = true)]
async fn unfinished_handshake_is_dropped() {
    let fixture = Fixture::small().await;
    for begun in [&b""[..], b"\0\0", b"\0\0\0\x03IHAVE", b"\0\0\0\x03IHAVEOPT\0\0\0\x06\0\0\0\x09abc"] {
        let mut client = Client::connect(&fixture.path).await;
        client.send(begun).await;
        assert_eq!(client.rest().await.len(), 18);
    }
}

#[tokio::test]
async fn connections_beyond_the_cap_are_closed() {
    let limits = Limits { connections_max: 2, ..Limits::default() };
    let fixture = Fixture::start(Memory::new(4096), limits).await;
    let first = Client::go(&fixture.path, Framing::Simple).await;
    let mut second = Client::go(&fixture.path, Framing::Simple).await;
    assert_eq!(Client::connect(&fixture.path).await.rest().await, b"");
    assert_eq!(second.read(0, 1).await, [0]);
    drop(first);
    // The place is free as soon as the server has noticed.
    loop {
        let mut third = Client::connect(&fixture.path).await;
        let mut byte = [0];
        if tokio::io::AsyncReadExt::read(&mut third.stream, &mut byte).await.is_ok_and(|count| count == 1) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn socket_file_is_replaced_only_if_nobody_listens() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let first = Listener::bind_unix(&path).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Listener::bind_unix(&path).await.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    drop(first);
    assert!(!path.exists());
    // As a killed server leaves it.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let second = Listener::bind_unix(&path).await.unwrap();
    // A listener leaves a file alone that has taken the place of its own.
    std::fs::rename(&path, folder.path().join("moved")).unwrap();
    std::fs::write(&path, "data").unwrap();
    drop(second);
    assert_eq!(std::fs::read(&path).unwrap(), b"data");
    assert_eq!(Listener::bind_unix(&path).await.unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
}

#[tokio::test]
async fn tcp_port_can_be_taken_again_at_once() {
    let first = Listener::bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = first.tcp_address().unwrap();
    assert!(Listener::bind_tcp(address).is_err());
    let client = tokio::net::TcpStream::connect(address).await.unwrap();
    drop(first);
    drop(client);
    Listener::bind_tcp(address).unwrap();
}
