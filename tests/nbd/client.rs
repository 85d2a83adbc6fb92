//! A raw client: says what it is told to, right or wrong, and decodes what comes back.

use std::{path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

/// A test that waits this long for an answer hangs.
pub(crate) const HANG: Duration = Duration::from_secs(30);

pub(crate) const EINVAL: u32 = 22;
pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const ZERO: u16 = 6;
pub(crate) const STATUS: u16 = 7;
pub(crate) const FUA: u16 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Simple,
    Structured,
    Extended,
}

pub(crate) const FRAMINGS: [Framing; 3] = [Framing::Simple, Framing::Structured, Framing::Extended];

/// A reply to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
    pub(crate) errno: u32,
    pub(crate) data: Vec<u8>,
    /// Length and state.
    pub(crate) extents: Vec<(u64, u64)>,
}

/// A reply to an option: type and data.
pub(crate) type OptionReply = (u32, Vec<u8>);

pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    pub(crate) framing: Framing,
    pub(crate) flags: u16,
    pub(crate) size: u64,
}

impl Client {
    /// Through the greeting.
    pub(crate) async fn greet(path: &Path, flags: u32) -> Self {
        let mut client = Self::connect(path).await;
        let greeting = client.take(18).await;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(&greeting[16..], [0, 3]);
        client.send(&flags.to_be_bytes()).await;
        client
    }

    /// Before the greeting.
    pub(crate) async fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).await.expect("a server");
        Self { stream, framing: Framing::Simple, flags: 0, size: 0 }
    }

    /// In transmission, with block status where it can be had.
    pub(crate) async fn go(path: &Path, framing: Framing) -> Self {
        let mut client = Self::greet(path, 3).await;
        let option = match framing {
            Framing::Simple => None,
            Framing::Structured => Some(8),
            Framing::Extended => Some(11),
        };
        if let Some(option) = option {
            assert_eq!(client.option(option, b"").await, [(1, vec![])]);
            let replies = client.option(10, &meta("", &["base:allocation"])).await;
            assert_eq!(replies, [(4, b"\0\0\0\x01base:allocation".to_vec()), (1, vec![])]);
        }
        client.framing = framing;
        let replies = client.option(7, &info("", &[])).await;
        assert_eq!(replies.last(), Some(&(1, vec![])));
        client.size = u64::from_be_bytes(replies[0].1[2..10].try_into().unwrap());
        client.flags = u16::from_be_bytes(replies[0].1[10..12].try_into().unwrap());
        client
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        timeout(HANG, self.stream.write_all(bytes)).await.expect("the server reads").expect("connected");
    }

    pub(crate) async fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        timeout(HANG, self.stream.read_exact(&mut bytes)).await.expect("an answer").expect("connected");
        bytes
    }

    /// All that comes until the server closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset is a way to close.
        let _ = timeout(HANG, self.stream.read_to_end(&mut bytes)).await.expect("the server closes");
        bytes
    }

    pub(crate) async fn send_option(&mut self, option: u32, data: &[u8]) {
        let length = data.len() as u32;
        let header = [&b"IHAVEOPT"[..], &option.to_be_bytes(), &length.to_be_bytes()].concat();
        self.send(&[&header, data].concat()).await;
    }

    pub(crate) async fn take_option_reply(&mut self, option: u32) -> OptionReply {
        let header = self.take(20).await;
        assert_eq!(&header[..8], [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9]);
        assert_eq!(header[8..12], option.to_be_bytes());
        let length = u32::from_be_bytes(header[16..].try_into().unwrap());
        (u32::from_be_bytes(header[12..16].try_into().unwrap()), self.take(length as usize).await)
    }

    /// Sends an option; all replies to it.
    pub(crate) async fn option(&mut self, option: u32, data: &[u8]) -> Vec<OptionReply> {
        self.send_option(option, data).await;
        let mut replies = vec![self.take_option_reply(option).await];
        while matches!(replies.last(), Some((2..=4, _))) {
            replies.push(self.take_option_reply(option).await);
        }
        replies
    }

    /// A request as bytes; the length is that of the payload if there is one.
    pub(crate) fn request(
        &self,
        command: (u16, u16),
        cookie: u64,
        range: (u64, u64),
        payload: &[u8],
    ) -> Vec<u8> {
        let ((command, flags), (offset, length)) = (command, range);
        let mut bytes = Vec::new();
        let extended = self.framing == Framing::Extended;
        let flags = if extended && command == WRITE { flags | 32 } else { flags };
        bytes.extend(if extended { 0x21e4_1c71_u32 } else { 0x2560_9513 }.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        if extended {
            bytes.extend(length.to_be_bytes())
        } else {
            bytes.extend((length as u32).to_be_bytes())
        }
        bytes.extend(payload);
        bytes
    }

    pub(crate) async fn send_request(
        &mut self,
        command: (u16, u16),
        cookie: u64,
        range: (u64, u64),
        payload: &[u8],
    ) {
        let bytes = self.request(command, cookie, range, payload);
        self.send(&bytes).await;
    }

    /// Sends a request and takes its reply.
    pub(crate) async fn call(
        &mut self,
        command: (u16, u16),
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Reply {
        let cookie = offset ^ 0x1234_abcd_0000_5678;
        self.send_request(command, cookie, (offset, length), payload).await;
        let read_bytes = if command.0 == READ { length as usize } else { 0 };
        let reply = self.take_reply(|_| read_bytes).await;
        assert_eq!(reply.cookie, cookie);
        reply
    }

    pub(crate) async fn errno(&mut self, command: (u16, u16), offset: u64, length: u64) -> u32 {
        self.call(command, offset, length, b"").await.errno
    }

    pub(crate) async fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.call((WRITE, 0), offset, data.len() as u64, data).await.errno
    }

    pub(crate) async fn read(&mut self, offset: u64, length: u64) -> Vec<u8> {
        let reply = self.call((READ, 0), offset, length, b"").await;
        assert_eq!(reply.errno, 0);
        reply.data
    }

    /// The next reply; with simple replies only the caller knows how much data it has.
    pub(crate) async fn take_reply(&mut self, read_bytes: impl Fn(u64) -> usize) -> Reply {
        let magic = u32::from_be_bytes(self.take(4).await.try_into().unwrap());
        let mut reply = Reply { cookie: 0, errno: 0, data: vec![], extents: vec![] };
        if magic == 0x6744_6698 {
            assert_ne!(self.framing, Framing::Extended, "no simple replies with extended headers");
            reply.errno = u32::from_be_bytes(self.take(4).await.try_into().unwrap());
            reply.cookie = u64::from_be_bytes(self.take(8).await.try_into().unwrap());
            let count = if reply.errno == 0 { read_bytes(reply.cookie) } else { 0 };
            assert!(count == 0 || self.framing == Framing::Simple, "data in a simple reply");
            reply.data = self.take(count).await;
            return reply;
        }
        let extended = self.framing == Framing::Extended;
        assert_eq!(magic, if extended { 0x6e8a_278c } else { 0x668e_33ef });
        let header = self.take(if extended { 28 } else { 16 }).await;
        let number = |range: std::ops::Range<usize>| {
            header[range].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        assert_eq!(number(0..2), 1, "done");
        reply.cookie = number(4..12);
        let length = if extended { number(20..28) } else { number(12..16) };
        let payload = self.take(length as usize).await;
        decode_chunk(&mut reply, number(2..4), &payload);
        reply
    }
}

fn decode_chunk(reply: &mut Reply, kind: u64, payload: &[u8]) {
    let numbers = |bytes: &[u8]| bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    match kind {
        0 => assert!(payload.is_empty()),
        1 => reply.data = payload[8..].to_vec(),
        5 => reply.extents = payload[4..].chunks(8).map(|c| (numbers(&c[..4]), numbers(&c[4..]))).collect(),
        6 => reply.extents = payload[8..].chunks(16).map(|c| (numbers(&c[..8]), numbers(&c[8..]))).collect(),
        0x8001 => reply.errno = numbers(&payload[..4]) as u32,
        other => panic!("chunk type {other}"),
    }
}

/// Data of NBD_OPT_INFO and NBD_OPT_GO.
pub(crate) fn info(name: &str, types: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((types.len() as u16).to_be_bytes());
    data.extend(types.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

/// Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
pub(crate) fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}
