//! The fixed inputs behind the examples of `docs/format.md`: one volume, its keys, and what is stored of it.

use std::sync::LazyLock;

use s3bd::{
    format::{
        claim::{Claim, Writer},
        header::{Header, Protection},
        ids::{Codec, Epoch, FrameRef, Generation, LogId, LogPosition, ObjectRef, Sequence, VolumeId},
        index::{FrameKind, Run},
        local::{LogIdentity, LogTenure, Seen},
        manifest::{
            CloneRef, Inherited, ListedObject, Manifest, ManifestLink, Owner, Root, Roots, Snapshot,
            SnapshotChange, Totals,
        },
        page::{Extent, ObjectInfo, Page, Target},
        slot::{Argon2, Slot},
    },
    seal::{
        aead::Key,
        frame::Compression,
        keys::Keys,
        recovery::RecoveryKey,
        slot::{NewSlot, Secret, wrap},
    },
    volume::{
        bucket::digest,
        object::{BuiltObject, CutFacts, ObjectBuilder},
    },
};

pub const PASSWORD: &str = "correct horse battery staple";
pub const KEY_FILE: &[u8] = b"the bytes of a key file";
/// Low, so that the test is fast; a real slot has `Argon2::RECOMMENDED`.
pub const COST: Argon2 = Argon2 { memory_kib: 64, passes: 1, lanes: 1 };
pub const BLOCK_BYTES: u32 = 512;
pub const TIME_MS: u64 = 1_750_000_000_000;
pub const GENERATION: Generation = Generation(7);
pub const NONCE: u64 = 0x0123_4567_89ab_cdef;
pub const EPOCH: Epoch = Epoch(42);
pub const VOLUME: VolumeId = VolumeId(counting(0xa0));
/// A clone of it.
pub const CLONE: VolumeId = VolumeId(counting(0xc0));
pub const LOG: LogId = LogId(counting(0xb0));
pub const MASTER: [u8; 32] = counting(0x00);
pub const OBJECT: ObjectRef =
    ObjectRef { owner: VOLUME, generation: GENERATION, sequence: Sequence(9), salt: counting(0xc0) };

/// Bytes that count up from `first`.
pub const fn counting<const N: usize>(first: u8) -> [u8; N] {
    let mut bytes = [0; N];
    let mut at = 0;
    while at < N {
        bytes[at] = first.wrapping_add(at as u8);
        at += 1;
    }
    bytes
}

pub static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys::new(VOLUME, &Key::new(MASTER)));

pub fn header() -> Header {
    Header {
        volume: VOLUME,
        block_bytes: BLOCK_BYTES,
        protection: Protection::Secret,
        compression: Codec::Zstd,
        created_ms: TIME_MS,
    }
}

pub fn password() -> Secret {
    Secret::password(PASSWORD)
}

pub fn key_file() -> Secret {
    Secret::KeyFile(KEY_FILE.to_vec().into())
}

pub fn recovery_key() -> RecoveryKey {
    RecoveryKey::new(counting(0xA0))
}

/// A slot with the bytes from `salt` on as its salt.
pub fn slot(secret: &Secret, salt: u8, label: &str) -> Slot {
    let new = NewSlot {
        volume: VOLUME,
        cost: COST,
        salt: counting(salt),
        label: label.to_owned(),
        created_ms: TIME_MS,
    };
    wrap(&Key::new(MASTER), secret, new).unwrap()
}

fn writer() -> Writer {
    Writer { host: "alpha".to_owned(), pid: 4242, version: "0.1.0".to_owned() }
}

pub fn claim() -> Claim {
    Claim {
        generation: GENERATION,
        nonce: NONCE,
        from: Some((Generation(6), Epoch(40))),
        writer: writer(),
        log: LOG,
        time_ms: TIME_MS,
    }
}

fn facts() -> CutFacts {
    CutFacts {
        epoch: EPOCH,
        part: 0,
        parts: 1,
        parent: Some((Generation(6), Epoch(40))),
        log: LogPosition { log: LOG, lsn: 0x14b0 },
        time_ms: TIME_MS,
        size_bytes: 1 << 20,
    }
}

/// The plaintext of the object's only frame: two blocks.
pub fn frame_plain() -> Vec<u8> {
    [[b'A'; 512], [b'B'; 512]].concat()
}

/// An object with one frame: blocks 3 and 8; blocks 16 to 19 read as zeros, block 64 is lost.
pub fn object() -> BuiltObject {
    let mut builder = ObjectBuilder::new(&KEYS, OBJECT, Compression::DEFAULT, facts());
    let runs = vec![Run { block: 3, count: 1 }, Run { block: 8, count: 1 }];
    builder.add(FrameKind::Data(runs), &frame_plain());
    builder.set_holes(vec![Run { block: 16, count: 4 }]);
    builder.set_lost(vec![Run { block: 64, count: 1 }]);
    builder.finish().unwrap()
}

fn page_frame(number: u32, offset: u64) -> FrameRef {
    let object =
        ObjectRef { sequence: Sequence(5), generation: Generation(6), salt: counting(0xe0), ..OBJECT };
    FrameRef { object, number, offset, stored_bytes: 90, plain_bytes: 200, codec: Codec::Zstd }
}

pub fn manifest() -> Manifest {
    let snapshot = snapshot();
    Manifest {
        volume: VOLUME,
        generation: GENERATION,
        nonce: NONCE,
        epoch: EPOCH,
        parent: Some(ManifestLink { generation: GENERATION, epoch: Epoch(41), digest: counting(0x80) }),
        oldest_kept: Epoch(26),
        header: digest(&header().encode().unwrap()),
        data_cut: Some((GENERATION, EPOCH)),
        log: LogPosition { log: LOG, lsn: 0x14b0 },
        writer: writer(),
        time_ms: TIME_MS,
        size_bytes: 1 << 20,
        next_sequence: Sequence(10),
        closed: false,
        unpublished_bytes: 4096,
        roots: Roots {
            epoch: Epoch(41),
            blocks: Some(Root::new(1, &page_frame(1, 154))),
            objects: None,
            snapshots: None,
        },
        objects: vec![object().new.listed],
        inherited: vec![Inherited {
            owner: VolumeId(counting(0x90)),
            object: ListedObject { sequence: Sequence(5), ..object().new.listed },
        }],
        snapshots: vec![
            SnapshotChange::Taken(snapshot),
            SnapshotChange::Renamed(1, "tuesday".to_owned()),
            SnapshotChange::Deleted(2),
            SnapshotChange::Cloned(
                3,
                CloneRef { volume: VolumeId(counting(0xd0)), name: "trial".to_owned() },
            ),
            SnapshotChange::Released(3, CLONE),
        ],
        next_snapshot: 4,
        owners: vec![Owner {
            volume: VolumeId(counting(0x90)),
            name: "parent".to_owned(),
            object_key: counting(0x40),
        }],
        totals: Totals { objects: 3, object_bytes: 70_000, mapped_blocks: 2 },
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        id: 3,
        name: "monday".to_owned(),
        generation: GENERATION,
        epoch: Epoch(41),
        roots_epoch: Epoch(40),
        time_ms: TIME_MS,
        size_bytes: 1 << 20,
        clones: vec![CloneRef { volume: CLONE, name: "copy".to_owned() }],
    }
}

pub fn page_inner() -> Page {
    Page::Inner(vec![(0, page_frame(0, 64)), (5, page_frame(2, 244))])
}

pub fn page_blocks() -> Page {
    let frame = std::sync::Arc::new(FrameRef {
        object: OBJECT,
        number: 0,
        offset: 64,
        stored_bytes: 50,
        plain_bytes: 2048,
        codec: Codec::Zstd,
    });
    let in_frame =
        |block, count, offset| Extent { block, count, target: Target::Frame(frame.clone(), offset) };
    Page::Blocks(vec![
        in_frame(3, 1, 0),
        in_frame(8, 3, 1),
        Extent { block: 64, count: 1, target: Target::Lost },
    ])
}

pub fn page_objects() -> Page {
    let info = |died: Option<Epoch>| ObjectInfo {
        generation: GENERATION,
        bytes: 271,
        plain_bytes: 1024,
        live_bytes: if died.is_none() { 512 } else { 0 },
        born: EPOCH,
        died,
    };
    Page::Objects(vec![(Sequence(9), info(None)), (Sequence(10), info(Some(Epoch(50))))])
}

pub fn page_snapshots() -> Page {
    Page::Snapshots(vec![snapshot()])
}

pub fn log_identity() -> LogIdentity {
    let earlier = LogTenure { generation: Generation(6), nonce: 0xfeed, from: Epoch(30) };
    let now = LogTenure { generation: GENERATION, nonce: NONCE, from: Epoch(40) };
    LogIdentity { log: LOG, tenures: vec![earlier, now] }
}

pub fn seen() -> Seen {
    Seen { generation: GENERATION, epoch: EPOCH, digest: counting(0x80) }
}
