//! Every example of `docs/format.md`: how the product writes it, what each byte is, and how the product reads it.

use std::fmt::Display;

use s3bd::{
    format::{
        claim::Claim,
        codec,
        envelope::{Content, ENVELOPE_BYTES},
        header::Header,
        ids::{Codec, ObjectRef, Sequence},
        independent::Independent,
        index::{Index, MapKind},
        local::{LogIdentity, Seen},
        manifest::{Manifest, Snapshot},
        names,
        object::{FOOTER_BYTES, Footer, HEADER_BYTES, TAG_BYTES, decode_header, frame_aad},
        page::{ObjectInfo, Page, StoredFrame},
        slot::Slot,
    },
    seal::{aead::Key, frame, slot::Secret, slot::unwrap, small},
    volume::record::{self, LogRecord},
};
use serde::Serialize;

use crate::{annotate::annotate, independent, lines::Lines, log, world};

/// What the product's decoder makes of bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// The value that it should.
    Same,
    /// Another value.
    Differs(String),
    /// Nothing.
    Refused(String),
}

/// What the product makes of the bytes of a block.
pub type Reader = Box<dyn Fn(&[u8]) -> Read>;

/// A block of the document.
pub struct Example {
    /// Its name there.
    pub name: &'static str,
    /// What the product writes.
    pub lines: Lines,
    /// How the product reads it.
    pub read: Reader,
    /// Whether a seal or a checksum covers every byte.
    pub is_guarded: bool,
}

fn compare<T: PartialEq + std::fmt::Debug, E: Display>(found: Result<T, E>, expected: &T) -> Read {
    match found {
        Ok(found) if found == *expected => Read::Same,
        Ok(found) => Read::Differs(format!("{found:?}")),
        Err(error) => Read::Refused(error.to_string()),
    }
}

fn guarded(name: &'static str, lines: Lines, read: impl Fn(&[u8]) -> Read + 'static) -> Example {
    Example { name, lines, read: Box::new(read), is_guarded: true }
}

fn plain(name: &'static str, lines: Lines, read: impl Fn(&[u8]) -> Read + 'static) -> Example {
    Example { name, lines, read: Box::new(read), is_guarded: false }
}

/// Bytes that follow from others: keys and associated data.
fn derived(name: &'static str, lines: Lines) -> Example {
    let expected = lines.bytes();
    plain(name, lines, move |bytes| compare(Ok::<_, String>(bytes.to_vec()), &expected))
}

/// All of them, in the order of the document.
pub fn all() -> Vec<Example> {
    let groups = [
        keys(),
        header(),
        slots(),
        claim(),
        manifest(),
        independence(),
        object(),
        pages(),
        log_records(),
        state(),
    ];
    groups.into_iter().flatten().collect()
}

/// The lines of a body that is encoded as a struct, checked against what the product encodes.
fn described<T: Serialize>(value: &T, encoded: &[u8]) -> Lines {
    let lines = annotate(value);
    assert_eq!(lines.bytes(), encoded, "the document's rules and the product's encoding differ");
    lines
}

/// An envelope's lines, and then those of its body.
fn enveloped(bytes: &[u8], body: Lines) -> Lines {
    let fields = [
        (4, "magic \"s3bd\""),
        (4, "what it is"),
        (2, "version"),
        (2, "reserved"),
        (8, "length of the body"),
        (4, "CRC-32C"),
    ];
    let mut lines = Lines::cut(&bytes[..ENVELOPE_BYTES], &fields);
    lines.append(body);
    assert_eq!(lines.bytes(), bytes);
    lines
}

/// A sealed envelope's lines.
fn sealed(bytes: &[u8]) -> Lines {
    let body = &bytes[ENVELOPE_BYTES..];
    let fields = [(16, "salt"), (body.len() - 32, "ciphertext"), (16, "tag")];
    enveloped(bytes, Lines::cut(body, &fields))
}

fn keys() -> Vec<Example> {
    let purpose = |name: &'static str, purpose: &str| {
        derived(name, Lines::cut(&independent::purpose(purpose), &[(32, "HKDF of the master key")]))
    };
    vec![
        derived("key-master", Lines::cut(&world::MASTER, &[(32, "the master key of the examples")])),
        purpose("key-object", "object"),
        purpose("key-small", "small"),
        purpose("key-log", "log"),
    ]
}

fn header() -> Vec<Example> {
    let header = world::header();
    let bytes = header.encode().unwrap();
    let lines = enveloped(&bytes, annotate(&header));
    vec![guarded("volume", lines, move |bytes| compare(Header::decode(bytes), &header))]
}

fn independence() -> Vec<Example> {
    let word = world::KEYS.word_of_independence(world::VOLUME, world::CLONE).unwrap();
    assert_eq!(word.0, independent::word_of_independence(&world::CLONE));
    let bytes = word.encode();
    let lines =
        enveloped(&bytes, Lines::cut(&bytes[ENVELOPE_BYTES..], &[(32, "HKDF of the key for objects")]));
    vec![guarded("independent", lines, move |bytes| compare(Independent::decode(bytes), &word))]
}

fn slots() -> Vec<Example> {
    let slot = |name, secret: fn() -> Secret, salt, label| {
        let slot = world::slot(&secret(), salt, label);
        let lines = enveloped(&slot.encode().unwrap(), annotate(&slot));
        guarded(name, lines, move |bytes| {
            let found = Slot::decode(bytes);
            if let Ok(found) = &found {
                assert_eq!(unwrap(found, &secret(), world::VOLUME), Ok(Key::new(world::MASTER)));
            }
            compare(found, &slot)
        })
    };
    let wrapping = independent::wrapping_key_of_password(world::PASSWORD, &world::counting::<32>(0x20));
    let aad = [
        (11, "\"s3bd 1 slot\""),
        (16, "volume"),
        (8, "created_ms"),
        (1, "unlock: Password"),
        (4, "memory_kib"),
        (4, "passes"),
        (4, "lanes"),
        (5, "label: \"first\""),
    ];
    vec![
        slot("slot-password", world::password, 0x20, "first"),
        derived("slot-password-key", Lines::cut(&wrapping, &[(32, "Argon2id of the password")])),
        derived("slot-password-aad", Lines::cut(&independent::slot_aad_of_password("first"), &aad)),
        slot("slot-key-file", world::key_file, 0x48, "vault"),
        slot("slot-recovery-key", || Secret::RecoveryKey(world::recovery_key()), 0x90, "drawer"),
        slot("slot-nothing", || Secret::Nothing, 0x70, "first"),
    ]
}

fn small_aad(tag: &str, name: &str) -> Lines {
    let bytes = independent::small_aad(tag, name);
    let (what, place) = (format!("what it is: {tag:?}"), format!("{name:?}"));
    Lines::cut(&bytes, &[(4, &*what), (2, "version"), (16, "volume"), (name.len(), &*place)])
}

/// The examples of one small sealed thing: its plaintext and its bytes.
fn small_thing<T: Serialize + PartialEq + std::fmt::Debug + Clone + 'static>(
    names: [&'static str; 2],
    content: Content,
    place: String,
    salt: u8,
    value: T,
    decode: fn(&[u8]) -> Result<T, s3bd::format::FormatError>,
) -> Vec<Example> {
    let encoded = codec::encode(names[0], &value).unwrap();
    let bytes = small::seal(&world::KEYS, content, &place, world::counting(salt), &encoded);
    let expected = value.clone();
    let read_plain = move |bytes: &[u8]| compare(decode(bytes), &expected);
    let lines = described(&value, &encoded);
    let read_sealed = move |bytes: &[u8]| match small::open(&world::KEYS, content, &place, bytes) {
        Ok(plain) => compare(decode(&plain), &value),
        Err(error) => Read::Refused(error.to_string()),
    };
    vec![plain(names[0], lines, read_plain), guarded(names[1], sealed(&bytes), read_sealed)]
}

pub fn claim_name() -> String {
    names::claim(world::GENERATION, world::NONCE)
}

pub fn manifest_name() -> String {
    names::manifest(world::GENERATION, world::EPOCH)
}

fn claim() -> Vec<Example> {
    let decode = |bytes: &[u8]| codec::decode::<Claim>("claim", bytes);
    let mut examples =
        small_thing(["claim-plain", "claim"], Content::Claim, claim_name(), 0x10, world::claim(), decode);
    examples.push(derived("claim-aad", small_aad("clai", &claim_name())));
    examples
}

fn manifest() -> Vec<Example> {
    let names = ["manifest-plain", "manifest"];
    let mut examples =
        small_thing(names, Content::Manifest, manifest_name(), 0x30, world::manifest(), Manifest::decode);
    examples.push(derived("manifest-aad", small_aad("mani", &manifest_name())));
    examples
}

fn object() -> Vec<Example> {
    let built = world::object();
    let bytes = built.bytes.to_vec();
    let index = (*built.new.index).clone();
    let place = index.place(world::OBJECT, 0).unwrap();
    let foot = Footer::decode(&bytes, bytes.len() as u64).unwrap();
    let key = independent::object_key(&world::OBJECT);
    let fields = vec![
        (8, "header: magic \"s3bdobje\""),
        (2, "version"),
        (2, "reserved"),
        (16, "owner"),
        (8, "generation"),
        (8, "sequence"),
        (16, "salt"),
        (4, "CRC-32C of the header so far"),
        (place.stored_bytes as usize - TAG_BYTES, "frame 0: ciphertext"),
        (TAG_BYTES, "frame 0: tag"),
        (foot.end_bytes() as usize, "mirror of index and footer: the same bytes as what follows"),
        (foot.index_bytes as usize - TAG_BYTES, "index: ciphertext"),
        (TAG_BYTES, "index: tag"),
        (8, "footer: magic \"s3bdfoot\""),
        (2, "version"),
        (1, "index_codec: Zstd"),
        (1, "reserved"),
        (8, "index_offset"),
        (4, "index_bytes"),
        (4, "index_plain_bytes"),
        (4, "CRC-32C of the footer so far"),
    ];
    let aad = |frame, number: &str| {
        let fields = [
            (HEADER_BYTES, "the object's header"),
            (4, number),
            (8, "offset"),
            (4, "stored_bytes"),
            (4, "plain_bytes"),
            (1, "codec: Zstd"),
        ];
        Lines::cut(&frame_aad(frame), &fields)
    };
    let index_lines = described(&index, &index.encode().unwrap());
    let (frame_aad, index_aad) =
        (aad(&place, "number: 0"), aad(&foot.index(world::OBJECT), "number: the index"));
    let object_lines = Lines::cut(&bytes, &fields);
    let read_index = index.clone();
    vec![
        guarded("object", object_lines, move |bytes| read_object(bytes, &index)),
        derived("object-key", Lines::cut(&key, &[(32, "HKDF of the key for objects")])),
        derived("object-frame-aad", frame_aad),
        derived("object-index-aad", index_aad),
        plain("object-index-plain", index_lines, move |bytes| {
            compare(Index::decode(bytes, foot.index_offset, world::BLOCK_BYTES), &read_index)
        }),
    ]
}

fn read_object(bytes: &[u8], expected: &Index) -> Read {
    let read = || -> Result<(ObjectRef, Index, Vec<u8>), String> {
        let object = decode_header(bytes).map_err(|error| error.to_string())?;
        let footer = Footer::decode(bytes, bytes.len() as u64).map_err(|error| error.to_string())?;
        let cipher = world::KEYS.object(&object).ok_or("another volume's object")?.cipher();
        let place = footer.index(object);
        let (mirror, last) = bytes[place.offset as usize..].split_at(footer.end_bytes() as usize);
        if mirror != last {
            return Err("index and footer are not those of their mirror".to_owned());
        }
        let stored = &last[..last.len() - FOOTER_BYTES];
        let plain = frame::open(&cipher, &place, stored).map_err(|error| error.to_string())?;
        let index =
            Index::decode(&plain, place.offset, world::BLOCK_BYTES).map_err(|error| error.to_string())?;
        let place = index.place(object, 0).ok_or("no frame")?;
        let stored = &bytes[place.offset as usize..][..place.stored_bytes as usize];
        let data = frame::open(&cipher, &place, stored).map_err(|error| error.to_string())?;
        Ok((object, index, data))
    };
    compare(read(), &(world::OBJECT, expected.clone(), world::frame_plain()))
}

/// A page as it is stored, as the document describes it.
#[derive(Serialize)]
struct StoredPage {
    objects: Vec<ObjectRef>,
    frames: Vec<StoredFrame>,
    body: StoredBody,
}

#[derive(Serialize)]
enum StoredBody {
    Inner(Vec<(u16, u32)>),
    Blocks(Vec<StoredExtent>),
    Objects(Vec<(Sequence, ObjectInfo)>),
    Snapshots(Vec<Snapshot>),
}

#[derive(Serialize)]
struct StoredExtent {
    block: u64,
    count: u16,
    frame: u32,
    offset: u32,
}

fn pages() -> Vec<Example> {
    let page = |name, page: Page, (map, level), stored: StoredPage| {
        let lines = described(&stored, &page.encode().unwrap());
        let decode = move |bytes: &[u8]| Page::decode(bytes, map, level, 0, world::BLOCK_BYTES);
        plain(name, lines, move |bytes| compare(decode(bytes), &page))
    };
    let extent = |block, count, frame, offset| StoredExtent { block, count, frame, offset };
    let (inner, blocks) = (world::page_inner(), world::page_blocks());
    let Page::Inner(children) = &inner else { unreachable!() };
    let stored_inner = StoredPage {
        objects: vec![children[0].1.object],
        frames: children.iter().map(|(_, frame)| StoredFrame::new(0, frame)).collect(),
        body: StoredBody::Inner(vec![(0, 0), (5, 1)]),
    };
    let stored_blocks = StoredPage {
        objects: vec![world::OBJECT],
        frames: vec![StoredFrame {
            object: 0,
            number: 0,
            offset: 64,
            stored_bytes: 50,
            plain_bytes: 2048,
            codec: Codec::Zstd,
        }],
        body: StoredBody::Blocks(vec![extent(3, 1, 0, 0), extent(8, 3, 0, 1), extent(64, 1, u32::MAX, 0)]),
    };
    let (objects, snapshots) = (world::page_objects(), world::page_snapshots());
    let Page::Objects(entries) = objects.clone() else { unreachable!() };
    let Page::Snapshots(taken) = snapshots.clone() else { unreachable!() };
    let bare = |body| StoredPage { objects: Vec::new(), frames: Vec::new(), body };
    vec![
        page("page-inner-plain", inner, (MapKind::Blocks, 1), stored_inner),
        page("page-blocks-plain", blocks, (MapKind::Blocks, 0), stored_blocks),
        page("page-objects-plain", objects, (MapKind::Objects, 0), bare(StoredBody::Objects(entries))),
        page("page-snapshots-plain", snapshots, (MapKind::Snapshots, 0), bare(StoredBody::Snapshots(taken))),
    ]
}

/// A log example: part of a segment, read by putting it back into the rest of the segment.
fn in_segment(name: &'static str, at: std::ops::Range<usize>, fields: &[(usize, &str)]) -> Example {
    let segment = log::segment();
    let lines = Lines::cut(&segment[at.clone()], fields);
    guarded(name, lines, move |bytes| {
        let mut found = segment.clone();
        found[at.clone()].copy_from_slice(bytes);
        let expected: Vec<_> = log::open(&segment).unwrap();
        match log::open(&found) {
            Ok(records) if records.len() < expected.len() => Read::Refused("no record".to_owned()),
            records => compare(records, &expected),
        }
    })
}

fn log_records() -> Vec<Example> {
    let header = [
        (8, "magic"),
        (2, "version"),
        (6, "reserved"),
        (8, "segment_bytes"),
        (8, "first"),
        (8, "previous_end"),
        (8, "trimmed"),
        (32, "tag"),
        (44, "reserved"),
        (4, "CRC-32C of bytes 0..124"),
    ];
    let mark = [
        (8, "magic"),
        (8, "first"),
        (8, "durable"),
        (4, "CRC-32C of the segment's header"),
        (4, "CRC-32C of bytes 0..28"),
    ];
    let mut examples = vec![
        in_segment("log-segment-header", 0..128, &header),
        in_segment("log-mark", log::MARK_OFFSET..log::MARK_OFFSET + 32, &mark),
        derived(
            "log-tenure-key",
            Lines::cut(&independent::log_key(&log::TAG), &[(32, "HKDF of the key for the log")]),
        ),
    ];
    let segment = log::segment();
    let names = [
        ["log-write-plain", "log-write"],
        ["log-zero-plain", "log-zero"],
        ["log-resize-plain", "log-resize"],
        ["log-published-plain", "log-published"],
        ["", "log-closed"],
    ];
    for ((record, place), [plain_name, name]) in
        log::records().into_iter().zip(log::places(&segment)).zip(names)
    {
        let (kind, head, data) = log::parts(&record);
        let opened = [&head[..], &data].concat();
        if !opened.is_empty() {
            examples.push(log_plain(plain_name, record, kind, &opened));
        }
        let used = 32 + opened.len() + TAG_BYTES;
        let fields = [
            (4, "magic \"wrec\""),
            (4, "CRC-32C"),
            (1, "version"),
            (1, "kind"),
            (2, "reserved"),
            (4, "length of the payload"),
            (8, "lsn"),
            (8, "durable"),
            (opened.len(), "ciphertext"),
            (TAG_BYTES, "tag"),
            (place.len() - used, "padding"),
        ];
        let fields: Vec<_> = fields.into_iter().filter(|field| field.0 > 0).collect();
        examples.push(in_segment(name, place, &fields));
    }
    examples
}

fn log_plain(name: &'static str, record: LogRecord, kind: u8, opened: &[u8]) -> Example {
    let fields: Vec<(usize, &str)> = match kind {
        1 => vec![(8, "offset"), (8, "time_ms"), (opened.len() - 16, "data")],
        2 => vec![(8, "offset"), (8, "time_ms"), (8, "length")],
        3 => vec![(8, "size_bytes"), (8, "time_ms")],
        _ => vec![(8, "generation"), (8, "epoch"), (8, "lsn")],
    };
    plain(name, Lines::cut(opened, &fields), move |bytes| {
        let plain = bytes::Bytes::copy_from_slice(bytes);
        compare(record::decode(wal::Lsn(0), kind, plain, 1 << 20), &record)
    })
}

fn state() -> Vec<Example> {
    let identity = |bytes: &[u8]| codec::decode::<LogIdentity>("log identity", bytes);
    let seen = |bytes: &[u8]| codec::decode::<Seen>("seen", bytes);
    let mut examples = small_thing(
        ["state-log-plain", "state-log"],
        Content::LogIdentity,
        "log".to_owned(),
        0x50,
        world::log_identity(),
        identity,
    );
    examples.push(derived("state-log-aad", small_aad("logi", "log")));
    examples.extend(small_thing(
        ["state-seen-plain", "state-seen"],
        Content::Seen,
        "seen".to_owned(),
        0x70,
        world::seen(),
        seen,
    ));
    examples.push(derived("state-seen-aad", small_aad("seen", "seen")));
    examples
}
