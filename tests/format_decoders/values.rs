//! Arbitrary valid values of everything that is stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::{collection::vec, option, prelude::*, sample::select};
use s3bd::format::{
    claim::{Claim, Writer},
    header::{Header, Protection},
    ids::{Codec, Epoch, FrameRef, Generation, LogId, LogPosition, ObjectRef, Sequence, VolumeId},
    index::{FRAME_PLAIN_BYTES_MAX, FrameKind, Index, IndexFrame, MapKind, Maps, Run},
    local::{LogIdentity, LogTenure, Seen},
    manifest::{
        CloneRef, Inherited, ListedObject, Manifest, ManifestLink, Owner, Root, Roots, Snapshot,
        SnapshotChange, Totals,
    },
    object::{Footer, HEADER_BYTES, TAG_BYTES},
    page::{Extent, FANOUT, LEVEL_MAX, ObjectInfo, Page, Target, span_bits},
    slot::{Argon2, Slot, Unlock},
};

pub const BLOCK_BYTES: u32 = 512;

/// Numbers at the ends of their ranges as often as others.
fn number() -> BoxedStrategy<u64> {
    prop_oneof![any::<u64>(), 0..1000_u64, select(vec![0, 1, u64::MAX - 1, u64::MAX])].boxed()
}

pub fn generation() -> BoxedStrategy<Generation> {
    number().prop_map(Generation).boxed()
}

/// One that another can follow.
pub fn epoch() -> BoxedStrategy<Epoch> {
    number().prop_map(|number| Epoch(number.min(u64::MAX - 1))).boxed()
}

pub fn sequence() -> BoxedStrategy<Sequence> {
    number().prop_map(Sequence).boxed()
}

fn codec() -> BoxedStrategy<Codec> {
    select(vec![Codec::Plain, Codec::Zstd, Codec::Lz4, Codec::Xz]).boxed()
}

fn text() -> BoxedStrategy<String> {
    prop_oneof![".{0,12}", "[a-z]{0,300}"].boxed()
}

prop_compose! {
    pub fn header()(
        volume: [u8; 16],
        bits in 9..=24_u32,
        protection in select(vec![Protection::Open, Protection::Secret]),
        created_ms in number(),
    ) -> Header {
        Header { volume: VolumeId(volume), block_bytes: 1 << bits, protection, compression: Codec::Zstd, created_ms }
    }
}

fn unlock() -> BoxedStrategy<Unlock> {
    let cost =
        (1..=64_u32, 1..=64_u32, 0..=4_u32 << 20).prop_map(|(passes, lanes, memory): (u32, u32, u32)| {
            Argon2 { passes, lanes, memory_kib: memory.max(8 * lanes) }
        });
    let others = prop_oneof![Just(Unlock::Nothing), Just(Unlock::KeyFile), Just(Unlock::RecoveryKey)];
    prop_oneof![others, cost.prop_map(Unlock::Password)].boxed()
}

prop_compose! {
    pub fn slot()(
        volume: [u8; 16],
        unlock in unlock(),
        salt: [u8; 32],
        check: [u8; 16],
        wrapped: [[u8; 16]; 3],
        label in text(),
        created_ms in number(),
    ) -> Slot {
        Slot { volume: VolumeId(volume), unlock, salt, check, wrapped, label, created_ms }
    }
}

fn writer() -> BoxedStrategy<Writer> {
    (text(), any::<u32>(), text()).prop_map(|(host, pid, version)| Writer { host, pid, version }).boxed()
}

prop_compose! {
    pub fn claim()(
        generation in generation(),
        nonce in number(),
        from in option::of((generation(), epoch())),
        writer in writer(),
        log: [u8; 16],
        time_ms in number(),
    ) -> Claim {
        Claim { generation, nonce, from, writer, log: LogId(log), time_ms }
    }
}

prop_compose! {
    pub fn object()(
        owner: [u8; 16],
        generation in generation(),
        sequence in sequence(),
        salt: [u8; 16],
    ) -> ObjectRef {
        ObjectRef { owner: VolumeId(owner), generation, sequence, salt }
    }
}

/// Lengths that a frame may have in its object.
fn stored_bytes() -> BoxedStrategy<u32> {
    let least = TAG_BYTES as u32;
    prop_oneof![4 => least..=u32::MAX, 1 => Just(least)].boxed()
}

/// Lengths that the plaintext of a frame may have.
fn plain_bytes() -> BoxedStrategy<u32> {
    prop_oneof![4 => 0..=FRAME_PLAIN_BYTES_MAX, 1 => Just(FRAME_PLAIN_BYTES_MAX)].boxed()
}

pub fn map() -> BoxedStrategy<MapKind> {
    select(vec![MapKind::Blocks, MapKind::Objects, MapKind::Snapshots]).boxed()
}

prop_compose! {
    pub fn frame()(
        object in object(),
        number: u32,
        // A frame ends where a number can say.
        offset in 0..u64::MAX / 2,
        stored_bytes in stored_bytes(),
        plain_bytes in plain_bytes(),
        codec in codec(),
    ) -> FrameRef {
        FrameRef { object, number, offset, stored_bytes, plain_bytes, codec }
    }
}

prop_compose! {
    fn root()(level in 0..=LEVEL_MAX, page in frame()) -> Root {
        Root::new(level, &page)
    }
}

prop_compose! {
    pub fn snapshot()(
        id in number(),
        name in text(),
        generation in generation(),
        epoch in epoch(),
        roots_epoch in epoch(),
        time_ms in number(),
        size_bytes in number(),
        clones in vec(clone_ref(), 0..3),
    ) -> Snapshot {
        Snapshot { id, name, generation, epoch, roots_epoch, time_ms, size_bytes, clones }
    }
}

prop_compose! {
    fn clone_ref()(volume: [u8; 16], name in text()) -> CloneRef {
        CloneRef { volume: VolumeId(volume), name }
    }
}

fn snapshot_change() -> BoxedStrategy<SnapshotChange> {
    prop_oneof![
        snapshot().prop_map(SnapshotChange::Taken),
        number().prop_map(SnapshotChange::Deleted),
        (number(), text()).prop_map(|(id, name)| SnapshotChange::Renamed(id, name)),
        (number(), clone_ref()).prop_map(|(id, clone)| SnapshotChange::Cloned(id, clone)),
        (number(), any::<[u8; 16]>()).prop_map(|(id, volume)| SnapshotChange::Released(id, VolumeId(volume))),
    ]
    .boxed()
}

prop_compose! {
    fn owner()(volume: [u8; 16], name in text(), object_key: [u8; 32]) -> Owner {
        Owner { volume: VolumeId(volume), name, object_key }
    }
}

prop_compose! {
    pub fn listed()(
        generation in generation(),
        sequence in sequence(),
        salt: [u8; 16],
        bytes in number(),
        index_bytes: u32,
        digest: [u8; 32],
    ) -> ListedObject {
        // `manifest` sets the epoch.
        ListedObject { generation, sequence, salt, epoch: Epoch(0), bytes, index_bytes, digest }
    }
}

prop_compose! {
    fn roots()(
        blocks in option::of(root()),
        objects in option::of(root()),
        snapshots in option::of(root()),
    ) -> Roots {
        // `manifest` sets the epoch.
        Roots { epoch: Epoch(0), blocks, objects, snapshots }
    }
}

prop_compose! {
    pub fn manifest()(
        (volume, generation, nonce) in (any::<[u8; 16]>(), generation(), number()),
        parent in option::of((generation(), any::<[u8; 32]>())),
        (oldest_kept, header) in (epoch(), any::<[u8; 32]>()),
        data_cut in option::of((generation(), epoch())),
        (log, lsn, writer) in (any::<[u8; 16]>(), number(), writer()),
        (time_ms, size_bytes, unpublished_bytes, next_snapshot) in (number(), number(), number(), number()),
        closed: bool,
        roots in roots(),
        roots_epoch in 0..1000_u64,
        (inherited, objects) in (0..4_usize, vec((0..3_u64, listed()), 0..20)),
        snapshots in vec(snapshot_change(), 0..5),
        owners in vec(owner(), 0..4),
        totals in (number(), number(), number()),
    ) -> Manifest {
        let mut newest = roots_epoch + 1;
        let mut numbers = BTreeSet::new();
        let objects: Vec<ListedObject> = objects.into_iter().map(|(step, listed)| {
            newest += step;
            let sequence = Sequence(listed.sequence.0.min(u64::MAX - 1));
            ListedObject { epoch: Epoch(newest), sequence, ..listed }
        }).filter(|listed| numbers.insert(listed.sequence)).collect();
        let (older, objects) = objects.split_at(inherited.min(objects.len()));
        let owner = VolumeId(volume);
        let inherited = older.iter().map(|object| Inherited { owner, object: *object }).collect();
        let next_sequence =
            older.iter().chain(objects).map(|listed| listed.sequence.next()).max().unwrap_or_default();
        let link = |(generation, digest)| ManifestLink { generation, epoch: Epoch(newest - 1), digest };
        Manifest {
            volume: VolumeId(volume),
            generation,
            nonce,
            epoch: Epoch(newest),
            parent: parent.map(link),
            oldest_kept: oldest_kept.min(Epoch(newest)),
            header,
            data_cut,
            log: LogPosition { log: LogId(log), lsn },
            writer,
            time_ms,
            size_bytes,
            next_sequence,
            closed,
            unpublished_bytes,
            roots: Roots { epoch: Epoch(roots_epoch), ..roots },
            objects: objects.to_vec(),
            inherited,
            snapshots,
            next_snapshot,
            owners,
            totals: Totals { objects: totals.0, object_bytes: totals.1, mapped_blocks: totals.2 },
        }
    }
}

/// Ascending runs, from gaps and lengths, each with a number that says where it goes.
fn runs() -> BoxedStrategy<Vec<(Run, usize)>> {
    vec((prop_oneof![Just(0), 0..1_u64 << 40], 1..50_u64, any::<usize>()), 0..40)
        .prop_map(|steps| {
            let mut end = 0;
            let next = |(gap, count, place)| {
                let run = Run { block: end + gap, count };
                end = run.block + count;
                (run, place)
            };
            steps.into_iter().map(next).collect()
        })
        .boxed()
}

/// What a frame holds; of data, no runs yet.
fn kind() -> BoxedStrategy<FrameKind> {
    prop_oneof![
        Just(FrameKind::Data(Vec::new())),
        (map(), any::<u8>(), number()).prop_map(|(map, level, first_key)| FrameKind::Page {
            map,
            level,
            first_key
        }),
    ]
    .boxed()
}

prop_compose! {
    pub fn index()(
        (generation, sequence, epoch) in (generation(), sequence(), epoch()),
        (part, further_parts) in (0..1000_u32, 1..1000_u32),
        of_pages: bool,
        parent in option::of((generation(), epoch())),
        (log, lsn, time_ms, size_bytes) in (any::<[u8; 16]>(), number(), number(), number()),
        frames in vec((stored_bytes(), plain_bytes(), codec(), kind()), 0..12),
        runs in runs(),
        maps in option::of((roots(), number())),
    ) -> Index {
        let mut offset = HEADER_BYTES as u64;
        let mut frames: Vec<IndexFrame> = frames.into_iter().map(|(stored_bytes, plain_bytes, codec, kind)| {
            let frame = IndexFrame { offset, stored_bytes, plain_bytes, codec, kind };
            offset += u64::from(stored_bytes);
            frame
        }).collect();
        // Each run goes to a frame with data, to the holes or to what is lost, so no block is in two of them.
        let (mut holes, mut lost) = (Vec::new(), Vec::new());
        let mut places: Vec<&mut Vec<Run>> = frames.iter_mut().filter_map(|frame| match &mut frame.kind {
            FrameKind::Data(runs) => Some(runs),
            FrameKind::Page { .. } => None,
        }).collect();
        places.extend([&mut holes, &mut lost]);
        for (run, place) in runs {
            let at = place % places.len();
            places[at].push(run);
        }
        for frame in &mut frames {
            if let FrameKind::Data(runs) = &frame.kind {
                frame.plain_bytes = runs.iter().map(|run| run.count as u32).sum::<u32>() * BLOCK_BYTES;
            }
        }
        Index {
            generation,
            sequence,
            epoch,
            part,
            parts: if of_pages { 0 } else { part + further_parts },
            parent,
            log: LogPosition { log: LogId(log), lsn },
            time_ms,
            size_bytes,
            frames,
            holes,
            lost,
            maps: maps.map(|(roots, mapped_blocks)| Maps { roots, mapped_blocks }),
        }
    }
}

/// Where the frames of an index end, and so where it begins in its object.
pub fn index_offset(index: &Index) -> u64 {
    let end = |frame: &IndexFrame| frame.offset.saturating_add(frame.stored_bytes.into());
    index.frames.last().map_or(HEADER_BYTES as u64, end)
}

prop_compose! {
    pub fn footer()(
        index_offset in HEADER_BYTES as u64..u64::MAX / 2,
        index_bytes: u32,
        index_plain_bytes in 0..=64_u32 << 20,
        index_codec in codec(),
    ) -> Footer {
        Footer { index_offset, index_bytes, index_plain_bytes, index_codec }
    }
}

/// A page, its map, its level and its first key.
pub type PlacedPage = (Page, MapKind, u8, u64);

/// Level, and the first key of a page there.
fn place(levels: std::ops::RangeInclusive<u8>) -> BoxedStrategy<(u8, u64)> {
    let align = |(level, key): (u8, u64)| {
        let bits = span_bits(level);
        (level, if bits < 64 { key >> bits << bits } else { 0 })
    };
    (levels, number()).prop_map(align).boxed()
}

pub fn page() -> BoxedStrategy<PlacedPage> {
    prop_oneof![inner(), blocks(), objects(), snapshots()].boxed()
}

fn inner() -> BoxedStrategy<PlacedPage> {
    let children = proptest::collection::btree_map(0..FANOUT as u16, frame(), 1..20);
    // A frame's number and object decide which frame it is.
    (place(1..=LEVEL_MAX), map(), children)
        .prop_map(|((level, first_key), map, children)| {
            let slots = if level == LEVEL_MAX { 2 } else { FANOUT as u16 };
            let children: BTreeMap<u16, FrameRef> =
                children.into_iter().map(|(slot, frame)| (slot % slots, frame)).collect();
            (Page::Inner(children.into_iter().collect()), map, level, first_key)
        })
        .boxed()
}

fn blocks() -> BoxedStrategy<PlacedPage> {
    let target = |frames: usize| (0..frames, 0..8_u32, 0..10_u8);
    (place(0..=0), vec(frame(), 1..4), vec((0..20_u64, 1..9_u64, target(3)), 1..20))
        .prop_map(|((level, first_key), frames, steps)| {
            let frames: Vec<_> = frames
                .into_iter()
                .map(|frame| Arc::new(FrameRef { plain_bytes: 64 * BLOCK_BYTES, ..frame }))
                .collect();
            let mut at = 0;
            let mut extents = Vec::new();
            for (gap, count, (frame, offset, lost)) in steps {
                if at + gap + count > FANOUT {
                    break;
                }
                let frame = Arc::clone(&frames[frame % frames.len()]);
                let target = if lost == 0 { Target::Lost } else { Target::Frame(frame, offset) };
                // The last block that has a number is never part of a run.
                if first_key.checked_add(at + gap + count).is_some() {
                    extents.push(Extent { block: first_key + at + gap, count, target });
                }
                at += gap + count;
            }
            (Page::Blocks(extents), MapKind::Blocks, level, first_key)
        })
        .boxed()
}

fn objects() -> BoxedStrategy<PlacedPage> {
    let info = (generation(), number(), number(), number(), epoch(), option::of(epoch())).prop_map(
        |(generation, bytes, plain_bytes, live_bytes, born, died)| ObjectInfo {
            generation,
            bytes,
            plain_bytes,
            live_bytes,
            born,
            died,
        },
    );
    (place(0..=0), proptest::collection::btree_map(0..FANOUT, info, 0..20))
        .prop_map(|((level, first_key), entries)| {
            let entries = entries.into_iter().map(|(at, info)| (Sequence(first_key + at), info));
            (Page::Objects(entries.collect()), MapKind::Objects, level, first_key)
        })
        .boxed()
}

fn snapshots() -> BoxedStrategy<PlacedPage> {
    (place(0..=0), proptest::collection::btree_map(0..FANOUT, snapshot(), 0..10))
        .prop_map(|((level, first_key), entries)| {
            let entries =
                entries.into_iter().map(|(at, snapshot)| Snapshot { id: first_key + at, ..snapshot });
            (Page::Snapshots(entries.collect()), MapKind::Snapshots, level, first_key)
        })
        .boxed()
}

pub fn log_identity() -> BoxedStrategy<LogIdentity> {
    let tenure = (generation(), number(), epoch()).prop_map(|(generation, nonce, from)| LogTenure {
        generation,
        nonce,
        from,
    });
    (any::<[u8; 16]>(), vec(tenure, 0..70))
        .prop_map(|(log, tenures)| LogIdentity { log: LogId(log), tenures })
        .boxed()
}

pub fn seen() -> BoxedStrategy<Seen> {
    (generation(), epoch(), any::<[u8; 32]>())
        .prop_map(|(generation, epoch, digest)| Seen { generation, epoch, digest })
        .boxed()
}
