//! Arbitrary bytes at each stage: the server neither panics nor hangs, and serves the next client.

use std::{path::Path, time::Duration};

use proptest::prelude::*;
use s3bd::nbd::Limits;
use tokio::{io::AsyncWriteExt, time::timeout};

#[allow(dead_code)]
#[path = "nbd/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "nbd/fixture.rs"]
mod fixture;
#[allow(dead_code)]
#[path = "nbd/memory.rs"]
mod memory;

use client::{Client, FRAMINGS, Framing, info, meta};
use fixture::Fixture;
use memory::Memory;

/// How far the client is before it goes mad.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Greeting,
    Haggling,
    Transmission(Framing),
}

/// A piece of what a client says.
#[derive(Clone, Debug)]
enum Piece {
    Bytes(Vec<u8>),
    /// An option whose length is true or a lie.
    Option {
        option: u32,
        length: Option<u32>,
        data: Vec<u8>,
    },
    /// A request, with as much payload as it says or another.
    Request {
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        payload: Option<usize>,
    },
}

fn option_data() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        Just(info("", &[])),
        Just(info("volume", &[0, 1, 2, 3, 4])),
        Just(meta("", &["base:allocation", "base:", "x:y"])),
        Just(vec![1; 70_000]),
        Just(vec![]),
    ]
}

fn piece() -> impl Strategy<Value = Piece> {
    let offset = prop_oneof![any::<u64>(), 0_u64..(1 << 20), Just((1 << 20) - 1)];
    let length = prop_oneof![any::<u32>(), 0_u32..70_000, Just(1 << 25)];
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200).prop_map(Piece::Bytes),
        (prop_oneof![0_u32..13, any::<u32>()], proptest::option::weighted(0.2, any::<u32>()), option_data())
            .prop_map(|(option, length, data)| Piece::Option { option, length, data }),
        (
            prop_oneof![8 => 0_u16..8, 1 => any::<u16>()],
            prop_oneof![8 => 0_u16..64, 1 => any::<u16>()],
            offset,
            length,
            proptest::option::weighted(0.2, 0_usize..5000)
        )
            .prop_map(|(command, flags, offset, length, payload)| Piece::Request {
                command,
                flags,
                offset,
                length,
                payload
            }),
    ]
}

fn stage() -> impl Strategy<Value = Stage> {
    prop_oneof![
        Just(Stage::Greeting),
        Just(Stage::Haggling),
        proptest::sample::select(&FRAMINGS[..]).prop_map(Stage::Transmission)
    ]
}

fn bytes_of(client: &Client, piece: &Piece) -> Vec<u8> {
    match piece {
        Piece::Bytes(bytes) => bytes.clone(),
        Piece::Option { option, length, data } => {
            let length = length.unwrap_or(data.len() as u32);
            [&b"IHAVEOPT"[..], &option.to_be_bytes(), &length.to_be_bytes(), data].concat()
        }
        Piece::Request { command, flags, offset, length, payload } => {
            let payload =
                if *command == client::WRITE { payload.unwrap_or(*length as usize % 70_000) } else { 0 };
            client.request((*command, *flags), 7, (*offset, u64::from(*length)), &vec![1; payload])
        }
    }
}

async fn go_mad(path: &Path, stage: Stage, pieces: &[Piece]) {
    let mut client = match stage {
        Stage::Greeting => Client::connect(path).await,
        Stage::Haggling => Client::greet(path, 3).await,
        Stage::Transmission(framing) => Client::go(path, framing).await,
    };
    let bytes: Vec<u8> = pieces.iter().flat_map(|piece| bytes_of(&client, piece)).collect();
    let (mut source, mut sink) = client.stream.split();
    let talk = async {
        // The server may close in the middle.
        let _ = sink.write_all(&bytes).await;
        let _ = sink.shutdown().await;
    };
    let listen = async {
        let _ = tokio::io::copy(&mut source, &mut tokio::io::sink()).await;
    };
    timeout(Duration::from_secs(60), async { tokio::join!(talk, listen) }).await.expect("the server closes");
}

proptest! {
    #[test]
    fn garbage_harms_nobody_else(
        clients in proptest::collection::vec((stage(), proptest::collection::vec(piece(), 0..12)), 1..4)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut fixture = Fixture::start(Memory::new(1 << 20), Limits::default()).await;
            for (stage, pieces) in &clients {
                go_mad(&fixture.path, *stage, pieces).await;
            }
            let mut client = Client::go(&fixture.path, Framing::Structured).await;
            assert_eq!(client.write(9, b"abc").await, 0);
            assert_eq!(client.read(9, 3).await, b"abc");
            drop(client);
            fixture.stop();
            fixture.stopped().await;
        });
    }
}
