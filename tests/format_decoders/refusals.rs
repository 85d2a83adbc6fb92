//! What decodes as a struct and is refused all the same: each rule of `docs/format.md` on values that break it alone,
//! beside the last value that does not.

use proptest::{collection::vec, prelude::*, strategy::ValueTree, test_runner::TestRunner};
use s3bd::{
    format::{
        FormatError,
        ids::{Codec, Epoch, FrameRef, Generation, LogId, Sequence, VolumeId},
        index::{FRAME_PLAIN_BYTES_MAX, FrameKind, Index, IndexFrame, MapKind, Run},
        manifest::{Manifest, ManifestLink, Root},
        object::{HEADER_BYTES, TAG_BYTES},
        page::{Extent, Page, Target},
    },
    seal::{aead::Key, keys::Keys, log::LogSeal},
    volume::{
        error::VolumeError,
        record::{self, LogRecord},
    },
};
use wal::Lsn;

use crate::values::{self, BLOCK_BYTES, index_offset};

const MAPS: [MapKind; 3] = [MapKind::Blocks, MapKind::Objects, MapKind::Snapshots];
/// The least and the most that a frame may be, and what is beyond: stored bytes, bytes of plaintext, whether it may be.
const LENGTHS: [(u32, u32, bool); 6] = [
    (TAG_BYTES as u32, 0, true),
    (u32::MAX, FRAME_PLAIN_BYTES_MAX, true),
    (TAG_BYTES as u32 - 1, 0, false),
    (0, 0, false),
    (100, FRAME_PLAIN_BYTES_MAX + 1, false),
    (100, u32::MAX, false),
];

/// Always the same value.
fn some<T: std::fmt::Debug>(strategy: impl Strategy<Value = T>) -> T {
    strategy.new_tree(&mut TestRunner::deterministic()).unwrap().current()
}

/// Why it was refused; none if it was not.
fn why<T: std::fmt::Debug>(found: Result<T, FormatError>) -> Option<&'static str> {
    match found {
        Ok(_) => None,
        Err(FormatError::Malformed { detail, .. }) => Some(detail),
        Err(error) => panic!("refused before it was looked at: {error}"),
    }
}

fn why_page(page: &Page, map: MapKind, level: u8) -> Option<&'static str> {
    why(Page::decode(&page.encode().unwrap(), map, level, 0, BLOCK_BYTES))
}

fn why_index_at(index: &Index, offset: u64) -> Option<&'static str> {
    why(Index::decode(&index.encode().unwrap(), offset, BLOCK_BYTES))
}

fn why_index(index: &Index) -> Option<&'static str> {
    why_index_at(index, index_offset(index))
}

fn why_manifest(manifest: &Manifest) -> Option<&'static str> {
    why(Manifest::decode(&manifest.encode().unwrap()))
}

fn frame(stored_bytes: u32, plain_bytes: u32) -> FrameRef {
    FrameRef {
        object: some(values::object()),
        number: 0,
        offset: 64,
        stored_bytes,
        plain_bytes,
        codec: Codec::Zstd,
    }
}

/// A page above the leaves with children in these slots.
fn inner(slots: &[u16]) -> Page {
    Page::Inner(
        slots.iter().map(|slot| (*slot, FrameRef { number: (*slot).into(), ..frame(90, 200) })).collect(),
    )
}

/// An index of nothing.
fn index() -> Index {
    Index { frames: Vec::new(), holes: Vec::new(), lost: Vec::new(), ..some(values::index()) }
}

fn data(offset: u64, runs: Vec<Run>) -> IndexFrame {
    let plain_bytes = runs.iter().map(|run| run.count as u32).sum::<u32>() * BLOCK_BYTES;
    IndexFrame { offset, stored_bytes: 40, plain_bytes, codec: Codec::Zstd, kind: FrameKind::Data(runs) }
}

/// A manifest of epoch 10, whose roots are of epoch 5, with objects 1 and 2 of epochs 6 and 10.
fn manifest() -> Manifest {
    let mut manifest = some(values::manifest());
    let listed = some(vec(values::listed(), 2));
    manifest.epoch = Epoch(10);
    manifest.parent = Some(ManifestLink { generation: Generation(1), epoch: Epoch(9), digest: [0; 32] });
    manifest.oldest_kept = Epoch(10);
    manifest.roots.epoch = Epoch(5);
    manifest.next_sequence = Sequence(3);
    manifest.objects = listed;
    for (listed, (sequence, epoch)) in manifest.objects.iter_mut().zip([(1, 6), (2, 10)]) {
        (listed.sequence, listed.epoch) = (Sequence(sequence), Epoch(epoch));
    }
    assert_eq!(why_manifest(&manifest), None);
    manifest
}

fn refused(kind: u8, plain: Vec<u8>) -> Option<&'static str> {
    match record::decode(Lsn(7), kind, plain.into(), 1 << 41) {
        Ok(_) => None,
        Err(VolumeError::LogRecord { detail, .. }) => Some(detail),
        Err(error) => panic!("{error}"),
    }
}

proptest! {
    #[test]
    fn a_leaf_of_another_map_or_above_level_0_is_refused((page, map, level, first_key) in values::page()) {
        let bytes = page.encode().unwrap();
        let kind = Some("kind of page for its map and level");
        for other in MAPS {
            let found = why(Page::decode(&bytes, other, level, first_key, BLOCK_BYTES));
            prop_assert_eq!(found, if other == map || level > 0 { None } else { kind });
            let moved = if level == 0 { 1 } else { 0 };
            prop_assert_eq!(why(Page::decode(&bytes, other, moved, first_key, BLOCK_BYTES)), kind);
        }
    }

    #[test]
    fn a_page_above_the_highest_level_is_refused((page, map, _, first_key) in values::page(), level in 8..=u8::MAX) {
        prop_assert_eq!(
            why(Page::decode(&page.encode().unwrap(), map, level, first_key, BLOCK_BYTES)),
            Some("level")
        );
    }

    #[test]
    fn an_index_somewhere_else_is_refused(index in values::index(), other: u64, near in -2..=2_i64) {
        let offset = index_offset(&index);
        for other in [other, offset.wrapping_add_signed(near)] {
            let expected = (other != offset).then_some("frames do not end where the index begins");
            prop_assert_eq!(why_index_at(&index, other), expected);
        }
    }

    #[test]
    fn an_index_with_one_of_its_blocks_once_more_is_refused(
        index in values::index(),
        (which, within) in any::<(prop::sample::Index, prop::sample::Index)>(),
        to_holes: bool,
    ) {
        let of_frame = |frame: &IndexFrame| match &frame.kind {
            FrameKind::Data(runs) => runs.clone(),
            FrameKind::Page { .. } => Vec::new(),
        };
        let in_frames: Vec<Run> = index.frames.iter().flat_map(of_frame).collect();
        prop_assume!(!in_frames.is_empty());
        let run = which.get(&in_frames);
        let block = run.block + within.index(run.count as usize) as u64;
        let mut doubled = index.clone();
        let list = if to_holes { &mut doubled.holes } else { &mut doubled.lost };
        list.push(Run { block, count: 1 });
        list.sort_unstable_by_key(|run| run.block);
        prop_assert_eq!(why_index(&doubled), Some("order of runs"));
    }

    #[test]
    fn records_of_another_length_are_refused(
        (offset, time_ms) in (0..1_u64 << 40, any::<u64>()),
        extra in vec(any::<u8>(), 1..40),
        cut in 0..24_usize,
    ) {
        let (zero, zero_head) = record::zero_head(offset, 512, time_ms);
        let (published, published_head) = record::published_head(Generation(7), Epoch(42), Lsn(time_ms));
        for (kind, head) in [(zero, zero_head), (published, published_head)] {
            prop_assert_eq!(refused(kind, head.to_vec()), None);
            prop_assert_eq!(refused(kind, [&head[..], &extra].concat()), Some("of a wrong length"));
            prop_assert_eq!(refused(kind, head[..cut].to_vec()), Some("of a wrong length"));
        }
        let (closed, _) = record::closed_head();
        prop_assert_eq!(refused(closed, Vec::new()), None);
        prop_assert_eq!(refused(closed, extra), Some("of a wrong length"));
    }

    #[test]
    fn a_record_opens_in_its_log_tenure_place_and_kind_only(
        (log, other_log) in any::<([u8; 16], [u8; 16])>(),
        (tag, other_tag) in any::<([u8; 32], [u8; 32])>(),
        (lsn, kind) in any::<(u64, u8)>(),
        data in vec(any::<u8>(), 0..100),
    ) {
        prop_assume!(log != other_log && tag != other_tag);
        let keys = Keys::new(VolumeId([1; 16]), &Key::new([2; 32]));
        let seal = |log, tag| LogSeal::new(&keys, LogId(log), tag);
        let mut sealed = Vec::new();
        seal(log, &tag).seal(lsn, kind, b"head", &data, &mut sealed);
        let plain = [&b"head"[..], &data].concat();
        prop_assert_eq!(seal(log, &tag).open(lsn, kind, &sealed), Ok(plain));
        prop_assert!(seal(other_log, &tag).open(lsn, kind, &sealed).is_err());
        prop_assert!(seal(log, &other_tag).open(lsn, kind, &sealed).is_err());
        prop_assert!(seal(log, &tag).open(lsn ^ 1, kind, &sealed).is_err());
        prop_assert!(seal(log, &tag).open(lsn, kind ^ 1, &sealed).is_err());
    }
}

#[test]
fn the_topmost_page_has_two_slots() {
    for map in MAPS {
        assert_eq!(why_page(&inner(&[0, 1]), map, 7), None);
        assert_eq!(why_page(&inner(&[0, 2]), map, 7), Some("slots of children"));
        assert_eq!(why_page(&inner(&[511]), map, 7), Some("slots of children"));
        assert_eq!(why_page(&inner(&[2, 511]), map, 6), None);
        assert_eq!(why_page(&inner(&[512]), map, 6), Some("slots of children"));
    }
}

#[test]
fn lengths_of_frames_are_bounded() {
    for (stored_bytes, plain_bytes, is_fine) in LENGTHS {
        let at = frame(stored_bytes, plain_bytes);
        let of_frame = (!is_fine).then_some("length of a frame");
        assert_eq!(why_page(&Page::Inner(vec![(0, at)]), MapKind::Blocks, 1), of_frame, "{at:?}");

        let kind = FrameKind::Page { map: MapKind::Blocks, level: 0, first_key: 0 };
        let frame = IndexFrame { offset: 64, stored_bytes, plain_bytes, codec: Codec::Zstd, kind };
        assert_eq!(why_index(&Index { frames: vec![frame], ..index() }), of_frame, "{at:?}");

        let root = Some(Root::new(1, &at));
        let of_root = (!is_fine).then_some("root of a map");
        for map in MAPS {
            assert_eq!(why_manifest(&with_root(map, root)), of_root, "{map:?} {at:?}");
        }
    }
}

/// A manifest with this root of this map, and none of the others.
fn with_root(map: MapKind, root: Option<Root>) -> Manifest {
    let mut manifest = manifest();
    let roots = &mut manifest.roots;
    (roots.blocks, roots.objects, roots.snapshots) = (None, None, None);
    match map {
        MapKind::Blocks => roots.blocks = root,
        MapKind::Objects => roots.objects = root,
        MapKind::Snapshots => roots.snapshots = root,
    }
    manifest
}

#[test]
fn a_root_above_the_highest_level_is_refused() {
    for map in MAPS {
        for (level, expected) in [(7, None), (8, Some("root of a map")), (255, Some("root of a map"))] {
            assert_eq!(why_manifest(&with_root(map, Some(Root::new(level, &frame(90, 200))))), expected);
        }
    }
}

#[test]
fn data_of_a_frame_is_bounded() {
    let most = u64::from(FRAME_PLAIN_BYTES_MAX / BLOCK_BYTES);
    let with = |count| Index { frames: vec![data(64, vec![Run { block: 0, count }])], ..index() };
    assert_eq!(why_index(&with(most)), None);
    assert_eq!(why_index(&with(most + 1)), Some("length of a frame"));
}

#[test]
fn a_data_leaf_names_bounded_frames() {
    for (stored_bytes, plain_bytes, is_fine) in LENGTHS.into_iter().filter(|lengths| lengths.1 > 0) {
        let target = Target::Frame(frame(stored_bytes, plain_bytes).into(), 0);
        let page = Page::Blocks(vec![Extent { block: 3, count: 1, target }]);
        assert_eq!(why_page(&page, MapKind::Blocks, 0), (!is_fine).then_some("length of a frame"));
    }
}

#[test]
fn a_block_in_two_runs_is_refused() {
    let whole = Run { block: 10, count: 4 };
    let beside = [Run { block: 8, count: 2 }, Run { block: 14, count: 1 }];
    let across = [
        whole,
        Run { block: 10, count: 1 },
        Run { block: 13, count: 1 },
        Run { block: 12, count: 9 },
        Run { block: 7, count: 4 },
        Run { block: 0, count: 100 },
    ];
    // Two frames, a frame and what it has no content of, and the two kinds of that.
    let places: [fn(Run, Run) -> Index; 4] = [
        |one, two| Index { frames: vec![data(64, vec![one]), data(104, vec![two])], ..index() },
        |one, two| Index { frames: vec![data(64, vec![one])], holes: vec![two], ..index() },
        |one, two| Index { frames: vec![data(64, vec![one])], lost: vec![two], ..index() },
        |one, two| Index { holes: vec![one], lost: vec![two], ..index() },
    ];
    for (at, place) in places.into_iter().enumerate() {
        for other in beside {
            assert_eq!(why_index(&place(whole, other)), None, "place {at}, {other:?}");
            assert_eq!(why_index(&place(other, whole)), None, "place {at}, {other:?}");
        }
        for other in across {
            assert_eq!(why_index(&place(whole, other)), Some("order of runs"), "place {at}, {other:?}");
            assert_eq!(why_index(&place(other, whole)), Some("order of runs"), "place {at}, {other:?}");
        }
    }
}

#[test]
fn an_index_without_frames_follows_the_header() {
    assert_eq!(why_index_at(&index(), HEADER_BYTES as u64), None);
    assert!(why_index_at(&index(), 0).is_some());
}

#[test]
fn a_number_of_two_objects_is_refused() {
    let mut manifest = manifest();
    manifest.objects[1].sequence = manifest.objects[0].sequence;
    assert_eq!(why_manifest(&manifest), Some("object number"));
    manifest.objects[1].generation = manifest.objects[0].generation.next();
    assert_eq!(why_manifest(&manifest), Some("object number"), "of another tenure");
    manifest.objects[1].sequence = Sequence(3);
    assert_eq!(why_manifest(&manifest), Some("object number"), "not below the next");
}

#[test]
fn epochs_of_a_manifest_are_in_order() {
    let with = |change: fn(&mut Manifest)| {
        let mut manifest = manifest();
        change(&mut manifest);
        why_manifest(&manifest)
    };
    assert_eq!(with(|manifest| manifest.oldest_kept = Epoch(11)), Some("epochs"));
    assert_eq!(with(|manifest| manifest.roots.epoch = Epoch(11)), Some("epochs"));
    assert_eq!(with(|manifest| manifest.roots.epoch = Epoch(6)), Some("epoch of an object"));
    assert_eq!(with(|manifest| manifest.objects[1].epoch = Epoch(11)), Some("epoch of an object"));
    assert_eq!(with(|manifest| manifest.objects.swap(0, 1)), Some("epoch of an object"));
    let parent = Some("its epoch does not follow its parent's");
    assert_eq!(with(|manifest| manifest.parent.as_mut().unwrap().epoch = Epoch(8)), parent);
    assert_eq!(with(|manifest| manifest.parent.as_mut().unwrap().epoch = Epoch(10)), parent);
    assert_eq!(with(|manifest| manifest.parent = None), None);
}

#[test]
fn a_manifest_after_the_last_epoch_is_refused() {
    let last = Epoch(u64::MAX);
    let mut manifest = manifest();
    manifest.objects.clear();
    manifest.roots.epoch = last;
    assert_eq!(why_manifest(&manifest), Some("epochs"));
    (manifest.parent, manifest.epoch) = (None, last);
    assert_eq!(why_manifest(&manifest), Some("epochs"), "nothing can come after the roots");
    manifest.roots.epoch = Epoch(5);
    assert_eq!(why_manifest(&manifest), None);
    for epoch in [Epoch(0), last] {
        manifest.parent = Some(ManifestLink { generation: Generation(1), epoch: last, digest: [0; 32] });
        manifest.epoch = epoch;
        assert!(why_manifest(&manifest).is_some());
    }
}

#[test]
fn a_write_has_data() {
    let (kind, head) = record::write_head(512, 0);
    assert!(refused(kind, head.to_vec()).is_some());
    assert!(refused(kind, head[..15].to_vec()).is_some());
    let found = record::decode(Lsn(7), kind, [&head[..], b"x"].concat().into(), 1 << 41).unwrap();
    assert_eq!(found, LogRecord::Write { offset: 512, time_ms: 0, data: bytes::Bytes::from_static(b"x") });
}

#[test]
fn a_size_is_more_than_nothing_and_less_than_8_eib() {
    for (size_bytes, fits) in
        [(0, false), (1, true), (i64::MAX as u64, true), (1 << 63, false), (u64::MAX, false)]
    {
        let (kind, head) = record::resize_head(size_bytes, 0);
        assert_eq!(refused(kind, head.to_vec()).is_none(), fits, "{size_bytes}");
        assert!(refused(kind, head[..15].to_vec()).is_some());
        assert!(refused(kind, [&head[..], b"x"].concat()).is_some());
    }
}
