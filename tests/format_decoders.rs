//! Decoders take whatever comes, and give back what was encoded.

use std::sync::Arc;

use proptest::prelude::*;
use s3bd::format::{
    claim::{Claim, Writer},
    codec,
    header::Header,
    ids::{Codec, Epoch, FrameRef, Generation, LogId, LogPosition, ObjectRef, Sequence, VolumeId},
    index::{FrameKind, Index, IndexFrame, MapKind, Run},
    local::{LogIdentity, Seen},
    manifest::{ListedObject, Manifest, ManifestLink, Root, Roots, Totals},
    object::{Footer, HEADER_BYTES, decode_header},
    page::{Extent, Page, Target},
    slot::Slot,
};

const BLOCK_BYTES: u32 = 512;

fn object(sequence: u64) -> ObjectRef {
    ObjectRef {
        owner: VolumeId([7; 16]),
        generation: Generation(3),
        sequence: Sequence(sequence),
        salt: [sequence as u8; 16],
    }
}

fn frame(sequence: u64, number: u32, blocks: u32) -> FrameRef {
    FrameRef {
        object: object(sequence),
        number,
        offset: 64 + u64::from(number) * 1000,
        stored_bytes: 900,
        plain_bytes: blocks * BLOCK_BYTES,
        codec: Codec::Zstd,
    }
}

prop_compose! {
    /// A leaf of the block map from `first` on.
    fn leaf(first: u64)(cells in prop::collection::vec((0..6_u64, 1..8_u64, 0..4_u64, 0..9_u32), 0..40)) -> Page {
        let mut at = first;
        let mut extents = Vec::new();
        for (gap, count, sequence, number) in cells {
            let block = at + gap;
            at = block + count;
            if at > first + 512 {
                break;
            }
            let target = match number {
                0 => Target::Lost,
                _ => Target::Frame(Arc::new(frame(sequence, number, 10)), number.min(2)),
            };
            extents.push(Extent { block, count, target });
        }
        Page::Blocks(extents)
    }
}

prop_compose! {
    fn inner()(slots in prop::collection::btree_map(0..512_u16, 0..1000_u32, 1..512)) -> Page {
        Page::Inner(slots.into_iter().map(|(slot, number)| (slot, frame(u64::from(slot) % 9, number, 1))).collect())
    }
}

prop_compose! {
    fn index()(
        runs in prop::collection::vec(prop::collection::vec((0..9_u64, 1..9_u64), 1..5), 0..20),
        holes in prop::collection::vec((0..9_u64, 1..u64::from(u32::MAX)), 0..5),
        part in 0..4_u32,
    ) -> Index {
        let ascending = |cells: &[(u64, u64)]| -> Vec<Run> {
            let mut at = 0;
            cells.iter().map(|(gap, count)| {
                let block = at + gap;
                at = block + count;
                Run { block, count: *count }
            }).collect()
        };
        let mut offset = HEADER_BYTES as u64;
        let frames = runs.iter().map(|cells| {
            let runs = ascending(cells);
            let blocks: u64 = runs.iter().map(|run| run.count).sum();
            offset += 100;
            IndexFrame {
                offset: offset - 100,
                stored_bytes: 100,
                plain_bytes: blocks as u32 * BLOCK_BYTES,
                codec: Codec::Lz4,
                kind: FrameKind::Data(runs),
            }
        }).collect();
        Index {
            generation: Generation(1),
            sequence: Sequence(2),
            epoch: Epoch(3),
            part,
            parts: 4,
            parent: Some((Generation(1), Epoch(2))),
            log: LogPosition { log: LogId([5; 16]), lsn: 77 },
            time_ms: 9,
            size_bytes: 1 << 40,
            frames,
            holes: ascending(&holes),
            lost: Vec::new(),
        }
    }
}

prop_compose! {
    fn manifest()(epoch in 5..100_u64, objects in 0..20_u64, level in 0..=7_u8, closed in any::<bool>()) -> Manifest {
        let listed = |sequence| ListedObject {
            generation: Generation(2),
            sequence: Sequence(sequence),
            salt: [1; 16],
            epoch: Epoch(epoch),
            bytes: 1000,
            index_bytes: 100,
            digest: [3; 32],
        };
        Manifest {
            volume: VolumeId([7; 16]),
            generation: Generation(2),
            nonce: 4,
            epoch: Epoch(epoch),
            parent: Some(ManifestLink { generation: Generation(1), epoch: Epoch(epoch - 1), digest: [9; 32] }),
            oldest_kept: Epoch(0),
            header: [1; 32],
            data_cut: None,
            log: LogPosition { log: LogId([5; 16]), lsn: 77 },
            writer: Writer { host: "h".to_owned(), pid: 1, version: "0".to_owned() },
            time_ms: 5,
            size_bytes: 1 << 30,
            next_sequence: Sequence(20),
            closed,
            unpublished_bytes: 0,
            roots: Roots { epoch: Epoch(4), blocks: Some(Root::new(level, &frame(1, 2, 3))), objects: None, snapshots: None },
            objects: (0..objects).map(listed).collect(),
            snapshots: Vec::new(),
            next_snapshot: 1,
            owners: Vec::new(),
            totals: Totals::default(),
        }
    }
}

/// Overwrites bytes here and there with what makes decoders stumble: extremes.
fn mutate(mut bytes: Vec<u8>, edits: &[(prop::sample::Index, u8, usize)]) -> Vec<u8> {
    for (at, value, length) in edits {
        let at = at.index(bytes.len().max(1));
        bytes.iter_mut().skip(at).take(*length).for_each(|byte| *byte = *value);
    }
    bytes
}

fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, usize)>> {
    let value = prop_oneof![Just(0), Just(1), Just(0x7f), Just(0x80), Just(0xff), any::<u8>()];
    prop::collection::vec((any::<prop::sample::Index>(), value, 1..9_usize), 1..5)
}

/// Decodes as everything there is. Nothing may panic; what decodes as a page also has to be of use.
fn decode_all(bytes: &[u8]) {
    for (level, first_key) in [(0, 0), (0, 512), (1, 0), (7, 0)] {
        if let Ok(page) = Page::decode(bytes, level, first_key, BLOCK_BYTES) {
            let again = Page::decode(&page.encode().unwrap(), level, first_key, BLOCK_BYTES).unwrap();
            assert_eq!(again, page);
        }
    }
    if let Ok(index) = Index::decode(bytes, BLOCK_BYTES) {
        (0..index.frames.len() as u32).for_each(|number| assert!(index.place(object(1), number).is_some()));
    }
    if let Ok(manifest) = Manifest::decode(bytes) {
        assert_eq!(Manifest::decode(&manifest.encode().unwrap()), Ok(manifest));
    }
    let _ = Header::decode(bytes);
    let _ = Slot::decode(bytes);
    let _ = decode_header(bytes);
    for object_bytes in [0, bytes.len() as u64, u64::MAX] {
        let _ = Footer::decode(bytes, object_bytes);
    }
    let _ = codec::decode::<Claim>("claim", bytes);
    let _ = codec::decode::<LogIdentity>("log", bytes);
    let _ = codec::decode::<Seen>("seen", bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        decode_all(&bytes);
    }

    #[test]
    fn leaves_come_back_and_their_damage_is_survived(page in leaf(512), edits in edits()) {
        let bytes = page.encode().unwrap();
        prop_assert_eq!(Page::decode(&bytes, 0, 512, BLOCK_BYTES), Ok(page));
        decode_all(&mutate(bytes, &edits));
    }

    #[test]
    fn inner_pages_come_back_and_their_damage_is_survived(page in inner(), edits in edits()) {
        let bytes = page.encode().unwrap();
        prop_assert_eq!(Page::decode(&bytes, 1, 0, BLOCK_BYTES), Ok(page));
        decode_all(&mutate(bytes, &edits));
    }

    #[test]
    fn indexes_come_back_and_their_damage_is_survived(index in index(), edits in edits()) {
        let bytes = index.encode().unwrap();
        prop_assert_eq!(Index::decode(&bytes, BLOCK_BYTES), Ok(index));
        decode_all(&mutate(bytes, &edits));
    }

    #[test]
    fn manifests_come_back_and_their_damage_is_survived(manifest in manifest(), edits in edits()) {
        let bytes = manifest.encode().unwrap();
        prop_assert_eq!(Manifest::decode(&bytes), Ok(manifest));
        decode_all(&mutate(bytes, &edits));
    }
}

#[test]
fn a_page_of_a_map_is_an_index_frame_of_its_level() {
    let kind = FrameKind::Page { map: MapKind::Objects, level: 3, first_key: 1 << 40 };
    let frame = IndexFrame { offset: 64, stored_bytes: 10, plain_bytes: 7, codec: Codec::Plain, kind };
    let bytes = codec::encode("frame", &frame).unwrap();
    assert_eq!(codec::decode::<IndexFrame>("frame", &bytes), Ok(frame));
}
