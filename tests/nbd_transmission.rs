//! The transmission phase as a raw client sees it. Sections are those of proto.md.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use s3bd::nbd::Limits;
use tokio::time::sleep;

#[allow(dead_code)]
#[path = "nbd/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "nbd/fixture.rs"]
mod fixture;
#[allow(dead_code)]
#[path = "nbd/memory.rs"]
mod memory;

use client::{
    CACHE, Client, DISC, EINVAL, FLUSH, FRAMINGS, FUA, Framing, READ, Reply, STATUS, TRIM, WRITE, ZERO,
};
use fixture::Fixture;
use memory::Memory;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;
const ESHUTDOWN: u32 = 108;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;
const MIB: u64 = 1 << 20;
/// "Size constraints".
const PAYLOAD_BYTES_MAX: u64 = 32 * MIB;

/// Waits for what another task is about to do.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        sleep(Duration::from_millis(1)).await;
    }
}

fn pattern(length: u64) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8 + 1).collect()
}

#[tokio::test]
async fn every_command_does_what_it_says() {
    for framing in FRAMINGS {
        let fixture = Fixture::small().await;
        let mut client = Client::go(&fixture.path, framing).await;
        assert_eq!(client.size, MIB);
        let data = pattern(70_000);
        assert_eq!(client.write(13, &data).await, 0);
        assert_eq!(client.read(13, 70_000).await, data);
        assert_eq!(client.read(12, 3).await, [0, 1, 2]);
        assert_eq!(client.errno((ZERO, 0), 14, 9).await, 0);
        assert_eq!(client.read(13, 12).await, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11, 12]);
        assert_eq!(client.errno((TRIM, 0), 0, 8192).await, 0);
        assert_eq!(client.read(0, 8193).await[8191..], [0, data[8192 - 13]]);
        assert_eq!(client.errno((CACHE, 0), 1, 99).await, 0);
        assert_eq!(client.errno((FLUSH, 0), 0, 0).await, 0);
        assert_eq!(fixture.device.flushes.load(SeqCst), 1);
        assert_eq!(client.read(MIB - 1, 1).await, [0]);
        client.send_request((DISC, 0), 0, (0, 0), b"").await;
        assert_eq!(client.rest().await, b"");
    }
}

#[tokio::test]
async fn fua_reaches_the_device() {
    let fixture = Fixture::small().await;
    let mut client = Client::go(&fixture.path, Framing::Simple).await;
    assert_eq!(client.call((WRITE, FUA), 5, 3, b"abc").await.errno, 0);
    assert_eq!(client.errno((ZERO, FUA), 5, 3).await, 0);
    assert_eq!(client.errno((TRIM, FUA), 5, 3).await, 0);
    assert_eq!(fixture.device.forced.load(SeqCst), 3);
    // "Command flags": accepted on what does not write, too.
    assert_eq!(client.call((READ, FUA), 5, 3, b"").await.data, [0; 3]);
    assert_eq!(client.errno((FLUSH, FUA), 0, 0).await, 0);
    assert_eq!(client.errno((CACHE, FUA), 0, 1).await, 0);
    assert_eq!(client.write(5, b"x").await, 0);
    assert_eq!(fixture.device.forced.load(SeqCst), 3);
}

/// "Error values", one row for each mistake; the connection goes on after each.
#[tokio::test]
async fn each_mistake_has_its_errno() {
    for framing in FRAMINGS {
        let fixture = Fixture::start(Memory::new(64 * MIB).bad(8192..8193), Limits::default()).await;
        let mut client = Client::go(&fixture.path, framing).await;
        let end = 64 * MIB;
        let rows = [
            ((8, 0), 0, 1, EINVAL),
            ((999, 0), 0, 1, EINVAL),
            ((READ, 0), end, 1, EINVAL),
            ((READ, 0), end - 1, 2, EINVAL),
            ((READ, 0), u64::MAX, 2, EINVAL),
            ((READ, 0), 0, PAYLOAD_BYTES_MAX + 1, EINVAL),
            ((READ, 0), 0, 0xffff_ffff, EINVAL),
            ((READ, NO_HOLE), 0, 1, EINVAL),
            ((READ, 1 << 15), 0, 1, EINVAL),
            ((READ, 0), 8000, 1000, EIO),
            ((TRIM, 0), end, 1, EINVAL),
            ((TRIM, DF), 0, 1, EINVAL),
            ((TRIM, 0), 8192, 1, EIO),
            ((CACHE, 0), end, 1, EINVAL),
            ((CACHE, REQ_ONE), 0, 1, EINVAL),
            ((CACHE, 0), 8192, 1, EIO),
            ((ZERO, 0), end, 1, ENOSPC),
            ((ZERO, DF), 0, 1, EINVAL),
            ((ZERO, 0), 8192, 1, EIO),
            ((FLUSH, 0), 1, 0, EINVAL),
            ((FLUSH, 0), 0, 1, EINVAL),
            ((FLUSH, REQ_ONE), 0, 0, EINVAL),
            ((STATUS, 0), 0, 0, EINVAL),
            ((STATUS, 0), end, 1, EINVAL),
            ((STATUS, DF), 0, 1, EINVAL),
        ];
        for (command, offset, length, errno) in rows {
            assert_eq!(client.errno(command, offset, length).await, errno, "{command:?} {offset} {length}");
        }
        assert_eq!(client.write(end, b"x").await, ENOSPC);
        assert_eq!(client.write(end - 1, b"xy").await, ENOSPC);
        assert_eq!(client.write(u64::MAX, b"xy").await, ENOSPC);
        assert_eq!(client.write(8190, b"xyz").await, EIO);
        assert_eq!(client.call((WRITE, DF), 0, 2, b"xy").await.errno, EINVAL);
        assert_eq!(client.write(0, &vec![1; PAYLOAD_BYTES_MAX as usize + 1]).await, EINVAL);
        assert_eq!(client.read(0, 3).await, [0; 3]);
        let expected = if framing == Framing::Simple { EINVAL } else { 0 };
        assert_eq!(client.errno((STATUS, 0), 0, 1).await, expected);
        assert_eq!(client.call((READ, DF), 0, 1, b"").await.errno, expected);
        // The whole of a maximum payload is fine.
        let data = pattern(PAYLOAD_BYTES_MAX);
        assert_eq!(client.write(MIB + 1, &data).await, 0);
        assert!(client.read(MIB + 1, PAYLOAD_BYTES_MAX).await == data);
    }
}

#[tokio::test]
async fn zero_bytes_succeed_without_the_device() {
    for framing in FRAMINGS {
        let fixture = Fixture::small().await;
        let mut client = Client::go(&fixture.path, framing).await;
        for command in [READ, TRIM, CACHE, ZERO] {
            assert_eq!(client.errno((command, 0), 7, 0).await, 0);
            assert_eq!(client.errno((command, 0), MIB, 0).await, 0);
            assert_ne!(client.errno((command, 0), MIB + 1, 0).await, 0);
        }
        assert_eq!(client.write(7, b"").await, 0);
        assert_eq!(fixture.device.begun.load(SeqCst), 0);
    }
}

#[tokio::test]
async fn read_only_export_refuses_writes() {
    for framing in FRAMINGS {
        let fixture = Fixture::start(Memory::new(MIB).read_only(), Limits::default()).await;
        let mut client = Client::go(&fixture.path, framing).await;
        assert_eq!(client.write(0, &[1; 100_000]).await, EPERM);
        assert_eq!(client.write(MIB, b"x").await, EPERM);
        assert_eq!(client.errno((ZERO, 0), 0, 1).await, EPERM);
        assert_eq!(client.errno((TRIM, 0), 0, 1).await, EPERM);
        assert_eq!(client.errno((FLUSH, 0), 0, 0).await, 0);
        assert_eq!(client.read(0, 2).await, [0, 0]);
    }
}

/// "NBD_CMD_WRITE_ZEROES": ENOTSUP is for fast zeroes alone; "NBD_CMD_TRIM" and "NBD_CMD_CACHE" are hints.
#[tokio::test]
async fn what_the_device_cannot_do_is_done_or_let_be() {
    let fixture = Fixture::start(Memory::new(2 * MIB), Limits::default()).await;
    let mut client = Client::go(&fixture.path, Framing::Structured).await;
    assert_eq!(client.errno((ZERO, FAST_ZERO | NO_HOLE), 0, MIB).await, 0);
    fixture.device.unsupported.store(true, SeqCst);
    assert_eq!(client.write(0, &pattern(MIB)).await, 0);
    assert_eq!(client.errno((ZERO, FAST_ZERO), 0, MIB).await, ENOTSUP);
    assert_eq!(client.read(0, 2).await, [1, 2]);
    assert_eq!(client.errno((ZERO, FUA), 1, 600_000).await, 0);
    assert_eq!(client.read(0, 600_002).await[600_000..], [0, pattern(600_002)[600_001]]);
    assert_eq!(client.read(0, 2).await, [1, 0]);
    assert_eq!(client.errno((TRIM, 0), 0, 1).await, 0);
    assert_eq!(client.errno((CACHE, 0), 0, 1).await, 0);
}

/// "NBD_CMD_BLOCK_STATUS", "`base:allocation` metadata context".
#[tokio::test]
async fn block_status_tells_holes_from_data() {
    for framing in [Framing::Structured, Framing::Extended] {
        let fixture = Fixture::small().await;
        let mut client = Client::go(&fixture.path, framing).await;
        assert_eq!(client.write(8192, &[1; 4096]).await, 0);
        assert_eq!(client.errno((ZERO, NO_HOLE), 65536, 4096).await, 0);
        let all = client.call((STATUS, 0), 0, MIB, b"").await.extents;
        let rest = MIB - 69632;
        assert_eq!(all, [(8192, 3), (4096, 0), (53248, 3), (4096, 0), (rest, 3)]);
        assert_eq!(client.call((STATUS, REQ_ONE), 100, 99, b"").await.extents, [(99, 3)]);
        assert_eq!(client.call((STATUS, REQ_ONE), 8191, MIB - 8191, b"").await.extents, [(1, 3)]);
        assert_eq!(client.call((STATUS, 0), 8193, 4096, b"").await.extents, [(4095, 0), (1, 3)]);
    }
}

#[tokio::test]
async fn garbage_after_the_handshake_ends_the_connection() {
    let fixture = Fixture::small().await;
    for framing in FRAMINGS {
        let mut client = Client::go(&fixture.path, framing).await;
        assert_eq!(client.write(0, b"abc").await, 0);
        client.send(&[0x25; 32]).await;
        assert_eq!(client.rest().await, b"");
    }
    // A payload that cannot sensibly be skipped.
    let mut client = Client::go(&fixture.path, Framing::Simple).await;
    client.send_request((WRITE, 0), 1, (0, 0xffff_ffff), b"").await;
    assert_eq!(client.rest().await, b"");
    assert_eq!(Client::go(&fixture.path, Framing::Simple).await.read(0, 3).await, *b"abc");
}

#[tokio::test]
async fn unexpected_payload_is_skipped_with_extended_headers() {
    let fixture = Fixture::small().await;
    let mut client = Client::go(&fixture.path, Framing::Extended).await;
    let reply = client.call((STATUS, 32), 0, 12, b"\0\0\0\0\0\0\x10\0\0\0\0\x01").await;
    assert_eq!(reply.errno, EINVAL);
    assert_eq!(client.call((READ, 32), 0, 3, b"abc").await.errno, EINVAL);
    assert_eq!(client.read(0, 3).await, [0; 3]);
    // A length of 64 bits without payload.
    assert_eq!(client.errno((TRIM, 0), 0, u64::MAX).await, EINVAL);
    assert_eq!(client.errno((ZERO, 0), 1, u64::MAX).await, ENOSPC);
}

#[tokio::test]
async fn thousand_requests_at_once_are_all_answered() {
    for framing in FRAMINGS {
        let fixture = Fixture::start(Memory::new(8 * MIB), Limits::default()).await;
        let mut client = Client::go(&fixture.path, framing).await;
        let mut bytes = Vec::new();
        for index in 0..1000_u64 {
            bytes.extend(client.request((WRITE, 0), index, (index * 4096, 4096), &[index as u8; 4096]));
        }
        client.send(&bytes).await;
        let mut seen = vec![false; 1000];
        for _ in 0..1000 {
            let reply = client.take_reply(|_| 0).await;
            assert_eq!(reply.errno, 0);
            assert!(!std::mem::replace(&mut seen[reply.cookie as usize], true));
        }
        let reads: Vec<_> =
            (0..1000).map(|i| client.request((READ, 0), i, (i * 4096 + 1, 100), b"")).collect();
        client.send(&reads.concat()).await;
        for _ in 0..1000 {
            let reply = client.take_reply(|_| 100).await;
            assert_eq!(reply.data, [reply.cookie as u8; 100]);
        }
    }
}

#[tokio::test]
async fn replies_come_in_the_order_in_which_requests_end() {
    for (command, payload) in [(READ, &b""[..]), (WRITE, b"abcde")] {
        let fixture = Fixture::start(Memory::new(MIB).waiting(), Limits::default()).await;
        let mut client = Client::go(&fixture.path, Framing::Simple).await;
        client.send_request((command, 0), 1, (0, 5), payload).await;
        until(|| fixture.device.begun.load(SeqCst) == 1).await;
        fixture.device.waits.store(false, SeqCst);
        client.send_request((READ, 0), 2, (7, 1), b"").await;
        assert_eq!(client.take_reply(|_| 1).await.cookie, 2);
        fixture.device.gate.add_permits(1);
        assert_eq!(client.take_reply(|_| if command == READ { 5 } else { 0 }).await.cookie, 1);
    }
}

/// Requests that wait are woken one by one from elsewhere, after their first poll without a waker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_waiting_request_is_woken() {
    let fixture = Fixture::start(Memory::new(4 * MIB).waiting(), Limits::default()).await;
    let mut client = Client::go(&fixture.path, Framing::Structured).await;
    for round in 0..20_u64 {
        let mut bytes = Vec::new();
        for index in 0..100 {
            match index % 3 {
                0 => bytes.extend(client.request((READ, 0), index, (index, 9), b"")),
                1 => bytes.extend(client.request((WRITE, 0), index, (index, 3), b"abc")),
                _ => bytes.extend(client.request((FLUSH, 0), index, (0, 0), b"")),
            }
        }
        client.send(&bytes).await;
        let device = fixture.device.clone();
        let waker = tokio::spawn(async move {
            for _ in 0..100 {
                device.gate.add_permits(1);
                tokio::task::yield_now().await;
            }
        });
        let mut cookies: Vec<u64> = Vec::new();
        for _ in 0..100 {
            cookies.push(client.take_reply(|_| 0).await.cookie);
        }
        cookies.sort_unstable();
        assert_eq!(cookies, (0..100).collect::<Vec<_>>(), "round {round}");
        waker.await.unwrap();
    }
}

#[tokio::test]
async fn panic_in_the_device_fails_one_request() {
    for waits in [false, true] {
        let fixture = Fixture::start(Memory::new(MIB), Limits::default()).await;
        fixture.device.waits.store(waits, SeqCst);
        fixture.device.gate.add_permits(9);
        let mut client = Client::go(&fixture.path, Framing::Structured).await;
        fixture.device.panics.store(true, SeqCst);
        assert_eq!(client.write(0, b"abc").await, EIO);
        assert_eq!(client.errno((READ, 0), 0, 3).await, EIO);
        fixture.device.panics.store(false, SeqCst);
        assert_eq!(client.write(0, b"abc").await, 0);
        assert_eq!(client.read(0, 3).await, b"abc");
    }
}

#[tokio::test]
async fn connections_see_each_others_writes() {
    let fixture = Fixture::small().await;
    let mut clients = Vec::new();
    for framing in FRAMINGS {
        clients.push(Client::go(&fixture.path, framing).await);
    }
    for writer in 0..clients.len() {
        assert_eq!(clients[writer].write(writer as u64, &[writer as u8 + 1]).await, 0);
        for reader in &mut clients {
            assert_eq!(reader.read(writer as u64, 1).await, [writer as u8 + 1]);
        }
    }
}

#[tokio::test]
async fn requests_under_way_are_bounded() {
    let limits = Limits { requests_max: 10, ..Limits::default() };
    let fixture = Fixture::start(Memory::new(MIB).waiting(), limits).await;
    let mut client = Client::go(&fixture.path, Framing::Simple).await;
    let requests: Vec<_> = (0..50).map(|i| client.request((WRITE, 0), i, (i, 1), b"x")).collect();
    client.send(&requests.concat()).await;
    until(|| fixture.device.begun.load(SeqCst) == 10).await;
    sleep(Duration::from_millis(20)).await;
    assert_eq!(fixture.device.begun.load(SeqCst), 10);
    for done in 1..=50 {
        fixture.device.gate.add_permits(1);
        assert_eq!(client.take_reply(|_| 0).await.errno, 0);
        until(|| fixture.device.begun.load(SeqCst) == (done + 10).min(50)).await;
    }
}

#[tokio::test]
async fn bytes_under_way_are_bounded() {
    let limits = Limits { bytes_max: MIB, ..Limits::default() };
    let fixture = Fixture::start(Memory::new(4 * MIB).waiting(), limits).await;
    let mut client = Client::go(&fixture.path, Framing::Simple).await;
    // The second does not fit beside the first; alone it is taken, although it is beyond the bound.
    client.send_request((READ, 0), 1, (0, MIB / 2), b"").await;
    client.send_request((READ, 0), 2, (0, 2 * MIB), b"").await;
    until(|| fixture.device.begun.load(SeqCst) == 1).await;
    sleep(Duration::from_millis(20)).await;
    assert_eq!(fixture.device.begun.load(SeqCst), 1);
    fixture.device.gate.add_permits(2);
    let length = |cookie| if cookie == 1 { MIB / 2 } else { 2 * MIB } as usize;
    assert_eq!(client.take_reply(length).await.cookie, 1);
    assert_eq!(client.take_reply(length).await.cookie, 2);
}

/// A client that asks and does not read is not served into memory without end.
#[tokio::test]
async fn unread_replies_hold_requests_back() {
    let fixture = Fixture::start(Memory::new(4 * MIB), Limits::default()).await;
    let mut client = Client::go(&fixture.path, Framing::Simple).await;
    let requests: Vec<_> = (0..400).map(|i| client.request((READ, 0), i, (0, MIB), b"")).collect();
    client.send(&requests.concat()).await;
    sleep(Duration::from_millis(50)).await;
    let begun = fixture.device.begun.load(SeqCst);
    assert!(begun <= 64, "{begun} reads of a mebibyte without a reader");
    for _ in 0..400 {
        client.take_reply(|_| MIB as usize).await;
    }
}

#[tokio::test]
async fn a_client_that_vanishes_takes_nothing_along() {
    let fixture = Fixture::start(Memory::new(4 * MIB).waiting(), Limits::default()).await;
    // In a header, in a small payload, in a big one.
    for (length, sent) in [(100, 10), (100, 78), (3 * MIB, 28 + 2_000_000)] {
        let mut client = Client::go(&fixture.path, Framing::Simple).await;
        let request = client.request((WRITE, 0), 1, (0, length), &vec![7; length as usize]);
        client.send(&request[..sent]).await;
    }
    // With requests under way, which go on to their end.
    let mut client = Client::go(&fixture.path, Framing::Simple).await;
    client.send_request((WRITE, 0), 1, (0, 3), b"abc").await;
    client.send_request((READ, 0), 2, (0, 3), b"").await;
    until(|| fixture.device.begun.load(SeqCst) == 2).await;
    drop(client);
    sleep(Duration::from_millis(20)).await;
    assert_eq!(fixture.device.ended.load(SeqCst), 0);
    fixture.device.waits.store(false, SeqCst);
    fixture.device.gate.add_permits(2);
    until(|| fixture.device.ended.load(SeqCst) == 2).await;
    // The half payloads were never written.
    assert_eq!(Client::go(&fixture.path, Framing::Simple).await.read(0, 5).await, *b"abc\0\0");
}

/// "Terminating the transmission phase": outstanding requests are handled.
#[tokio::test]
async fn disconnect_waits_for_requests_under_way() {
    let fixture = Fixture::start(Memory::new(MIB).waiting(), Limits::default()).await;
    let mut client = Client::go(&fixture.path, Framing::Simple).await;
    client.send_request((WRITE, 0), 1, (0, 3), b"abc").await;
    client.send_request((DISC, 0), 0, (0, 0), b"").await;
    until(|| fixture.device.begun.load(SeqCst) == 1).await;
    fixture.device.gate.add_permits(1);
    assert_eq!(client.take_reply(|_| 0).await.cookie, 1);
    assert_eq!(client.rest().await, b"");
}

/// "Terminating the transmission phase", its paragraph on shutdown.
#[tokio::test]
async fn shutdown_answers_what_is_under_way_and_refuses_the_rest() {
    for framing in FRAMINGS {
        let mut fixture = Fixture::start(Memory::new(MIB).waiting(), Limits::default()).await;
        let mut idle = Client::go(&fixture.path, framing).await;
        let mut client = Client::go(&fixture.path, framing).await;
        client.send_request((WRITE, 0), 1, (0, 3), b"abc").await;
        client.send_request((READ, 0), 2, (4, 3), b"").await;
        until(|| fixture.device.begun.load(SeqCst) == 2).await;
        fixture.stop();
        assert_eq!(idle.rest().await, b"");
        client.send_request((WRITE, 0), 3, (9, 3), b"def").await;
        client.send_request((READ, 0), 4, (0, 3), b"").await;
        for cookie in [3, 4] {
            let reply = client.take_reply(|_| 3).await;
            assert_eq!((reply.cookie, reply.errno), (cookie, ESHUTDOWN));
        }
        fixture.device.gate.add_permits(2);
        let mut replies = [client.take_reply(read_of_two).await, client.take_reply(read_of_two).await];
        replies.sort_by_key(|reply| reply.cookie);
        let reply = |cookie, data: &[u8]| Reply { cookie, errno: 0, data: data.to_vec(), extents: vec![] };
        assert_eq!(replies, [reply(1, b""), reply(2, &[0; 3])]);
        assert_eq!(client.rest().await, b"");
        drop(client);
        let path = fixture.path.clone();
        fixture.stopped().await;
        assert!(!path.exists());
    }
}

fn read_of_two(cookie: u64) -> usize {
    if cookie == 2 { 3 } else { 0 }
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_ever() {
    let mut fixture = Fixture::start(Memory::new(MIB).waiting(), Limits::default()).await;
    let mut client = Client::go(&fixture.path, Framing::Simple).await;
    client.send_request((WRITE, 0), 1, (0, 3), b"abc").await;
    // Nor for a payload that does not come.
    let mut slow = Client::go(&fixture.path, Framing::Simple).await;
    slow.send_request((WRITE, 0), 1, (0, 3), b"a").await;
    until(|| fixture.device.begun.load(SeqCst) == 1).await;
    fixture.stop();
    let device = fixture.device.clone();
    fixture.stopped().await;
    assert_eq!(client.rest().await, b"");
    // The write outlives its client.
    assert_eq!(device.ended.load(SeqCst), 0);
    device.gate.add_permits(1);
    until(|| device.ended.load(SeqCst) == 1).await;
}
