//! Every decoder of what is stored: values come back, and no bytes make it panic or take more memory than they
//! warrant. Bytes are arbitrary, or valid ones with arbitrary damage, with the checksum put right where there is one.

mod allocations;
mod damage;
mod refusals;
mod values;

use std::sync::LazyLock;

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use s3bd::{
    format::{
        claim::Claim,
        codec,
        envelope::{self, Content},
        header::Header,
        ids::{Codec, FrameRef, Generation, LogId, ObjectRef, Sequence, VolumeId},
        index::{Index, MapKind},
        local::{LogIdentity, Seen},
        manifest::Manifest,
        names,
        object::{FOOTER_BYTES, Footer, HEADER_BYTES, decode_header, encode_header},
        page::Page,
        slot::Slot,
    },
    seal::{aead::Key, frame, keys::Keys, log::LogSeal, small},
    volume::record::{self, LogRecord},
};
use wal::{
    Lsn,
    disk::{Disk, sim::SimDisk},
};

use crate::{
    allocations::peak_bytes,
    damage::{apply, damages},
    values::BLOCK_BYTES,
};

/// Memory that a decoder may hold for each byte of its input. The most that a value takes up is a child of a page: 6
/// bytes stored, some 80 in memory, and twice that while its list grows.
const PEAK_FACTOR: usize = 40;
/// What it may hold beside: serde reserves up to 1 MiB for a list of any stated length, in each of two nested lists.
const PEAK_BYTES: usize = (2 << 20) + (64 << 10);

/// All contents of envelopes.
const CONTENTS: [Content; 6] =
    [Content::Header, Content::Slot, Content::Claim, Content::Manifest, Content::Seen, Content::LogIdentity];

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys::new(VolumeId([1; 16]), &Key::new([2; 32])));

/// Runs a decoder, whatever its answer, and checks what it held.
fn bounded(bytes: &[u8], decode: impl FnOnce(&[u8])) {
    LazyLock::force(&KEYS);
    let peak = peak_bytes(|| decode(bytes));
    let most = PEAK_FACTOR * bytes.len() + PEAK_BYTES;
    assert!(peak <= most, "{peak} bytes held for an input of {}", bytes.len());
}

/// All decoders of plaintext, on the same bytes.
fn decode_plain(bytes: &[u8], level: u8, first_key: u64) {
    bounded(bytes, |bytes| drop(codec::decode::<Claim>("claim", bytes)));
    bounded(bytes, |bytes| drop(Manifest::decode(bytes)));
    bounded(bytes, |bytes| drop(codec::decode::<LogIdentity>("log identity", bytes)));
    bounded(bytes, |bytes| drop(codec::decode::<Seen>("seen", bytes)));
    bounded(bytes, |bytes| drop(Index::decode(bytes, first_key, BLOCK_BYTES)));
    // And where its frames say that it is, so that what comes after is checked, too.
    if let Ok(index) = codec::decode::<Index>("object index", bytes) {
        let offset = values::index_offset(&index);
        bounded(bytes, |bytes| drop(Index::decode(bytes, offset, BLOCK_BYTES)));
    }
    for map in [MapKind::Blocks, MapKind::Objects, MapKind::Snapshots] {
        bounded(bytes, |bytes| drop(Page::decode(bytes, map, level, first_key, BLOCK_BYTES)));
    }
    for body in [Content::Header, Content::Slot] {
        bounded(&envelope::wrap(body, 1, bytes), decode_enveloped);
    }
    for kind in 0..=8 {
        let plain = Bytes::copy_from_slice(bytes);
        bounded(bytes, |_| drop(record::decode(Lsn(first_key), kind, plain, 1 << 40)));
    }
}

/// All decoders of bytes as they are stored, on the same bytes.
fn decode_stored(bytes: &[u8], number: u64) {
    bounded(bytes, decode_enveloped);
    bounded(bytes, |bytes| drop(decode_header(bytes)));
    bounded(bytes, |bytes| drop(Footer::decode(bytes, number)));
    bounded(bytes, |bytes| _ = Footer::find(bytes, number));
    bounded(bytes, |bytes| drop(Footer::decode(bytes, bytes.len() as u64)));
    let seal = LogSeal::new(&KEYS, LogId([5; 16]), &[3; 32]);
    bounded(bytes, |bytes| drop(seal.open(number, number as u8, bytes)));
    let cipher = Key::new([4; 32]).cipher();
    let object = ObjectRef {
        owner: VolumeId([1; 16]),
        generation: Generation(1),
        sequence: Sequence(1),
        salt: [0; 16],
    };
    for codec in [Codec::Plain, Codec::Zstd, Codec::Lz4, Codec::Xz] {
        let stored_bytes = bytes.len() as u32;
        let frame =
            FrameRef { object, number: 0, offset: number, stored_bytes, plain_bytes: u32::MAX, codec };
        bounded(bytes, |bytes| drop(frame::open(&cipher, &frame, bytes)));
    }
}

fn decode_enveloped(bytes: &[u8]) {
    for content in CONTENTS {
        drop(envelope::unwrap(content, 1, bytes));
        drop(small::open(&KEYS, content, "name", bytes));
    }
    drop(Header::decode(bytes));
    drop(Slot::decode(bytes));
}

/// Mends the checksum over `bytes`, as one would who can compute it.
fn mend(bytes: &mut [u8], crc_at: usize) {
    let crc = envelope::crc32c(&[&bytes[..crc_at]]);
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_decoded_in_bounds(
        bytes in vec(any::<u8>(), 0..400),
        level in 0..=8_u8,
        number: u64,
    ) {
        decode_plain(&bytes, level, number);
        decode_stored(&bytes, number);
    }

    #[test]
    fn long_lists_that_are_not_there_are_decoded_in_bounds(
        numbers in vec(prop_oneof![0..3_u64, (0..64_u32).prop_map(|bit| 1 << bit), Just(u64::MAX)], 0..60),
        level in 0..=8_u8,
    ) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        decode_plain(&bytes, level, 0);
    }

    #[test]
    fn arbitrary_bodies_with_valid_checksums_are_decoded_in_bounds(
        body in vec(any::<u8>(), 0..300),
        content in 0..CONTENTS.len(),
        version: u16,
        number: u64,
    ) {
        decode_stored(&envelope::wrap(CONTENTS[content], version, &body), number);
        decode_stored(&envelope::wrap(CONTENTS[content], 1, &body), number);
    }

    #[test]
    fn damaged_plaintext_is_decoded_in_bounds(
        claim in values::claim(),
        manifest in values::manifest(),
        identity in values::log_identity(),
        index in values::index(),
        (page, _, level, first_key) in values::page(),
        damages in damages(),
    ) {
        let encoded = [
            codec::encode("claim", &claim).unwrap(),
            manifest.encode().unwrap(),
            codec::encode("log identity", &identity).unwrap(),
            index.encode().unwrap(),
            page.encode().unwrap(),
        ];
        for bytes in encoded {
            decode_plain(&apply(&damages, &bytes), level, first_key);
        }
    }

    #[test]
    fn damaged_bodies_with_valid_checksums_are_decoded_in_bounds(
        header in values::header(),
        slot in values::slot(),
        damages in damages(),
    ) {
        let things = [(Content::Header, header.encode().unwrap()), (Content::Slot, slot.encode().unwrap())];
        for (content, whole) in things {
            let body = apply(&damages, &whole[envelope::ENVELOPE_BYTES..]);
            bounded(&envelope::wrap(content, 1, &body), decode_enveloped);
            bounded(&apply(&damages, &whole), decode_enveloped);
        }
    }

    #[test]
    fn damaged_headers_and_footers_with_valid_checksums_are_decoded_in_bounds(
        object in values::object(),
        footer in values::footer(),
        object_bytes: u64,
        damages in damages(),
    ) {
        let mut header = apply(&damages, &encode_header(&object));
        if header.len() >= HEADER_BYTES {
            mend(&mut header, HEADER_BYTES - 4);
        }
        bounded(&header, |bytes| drop(decode_header(bytes)));
        let mut foot = apply(&damages, &footer.encode());
        if foot.len() == FOOTER_BYTES {
            mend(&mut foot, FOOTER_BYTES - 4);
        }
        bounded(&foot, |bytes| drop(Footer::decode(bytes, object_bytes)));
        let whole = footer.index_offset + 2 * footer.end_bytes();
        bounded(&foot, |bytes| drop(Footer::decode(bytes, whole)));
        bounded(&foot, |bytes| _ = Footer::find(bytes, whole));
    }

    #[test]
    fn a_sealed_frame_of_damaged_packed_bytes_is_an_error_or_as_long_as_stated(
        plain in vec(0..4_u8, 1..2000),
        damages in damages(),
        plain_bytes in 0..5000_u32,
    ) {
        let key = Key::new([4; 32]);
        for codec in [Codec::Plain, Codec::Zstd, Codec::Lz4, Codec::Xz] {
            let (codec, packed) = frame::pack(frame::Compression { codec, level: 1 }, &plain);
            let packed = apply(&damages, &packed);
            let object = ObjectRef {
                owner: VolumeId([1; 16]),
                generation: Generation(1),
                sequence: Sequence(1),
                salt: [0; 16],
            };
            let place =
                FrameRef { object, number: 0, offset: 64, stored_bytes: packed.len() as u32 + 16, plain_bytes, codec };
            let mut stored = Vec::new();
            frame::seal(&key.cipher(), &place, &packed, &mut stored);
            if let Ok(found) = frame::open(&key.cipher(), &place, &stored) {
                prop_assert_eq!(found.len(), plain_bytes as usize);
            }
        }
    }

    #[test]
    fn arbitrary_state_files_are_loaded_in_bounds(
        seen in values::seen(),
        damages in damages(),
        arbitrary in vec(any::<u8>(), 0..200),
    ) {
        let plain = codec::encode("seen", &seen).unwrap();
        let sealed = small::seal(&KEYS, Content::Seen, "seen", [5; 16], &plain);
        // Sealed by one who has the key, but not what it should be.
        let other = small::seal(&KEYS, Content::Seen, "seen", [5; 16], &apply(&damages, &plain));
        for bytes in [&sealed[..], &apply(&damages, &sealed), &other, &arbitrary] {
            let disk = SimDisk::new();
            disk.create("seen", bytes.len() as u64).unwrap().write_at(bytes, 0).unwrap();
            let load = || s3bd::volume::local::load::<Seen>(&disk, &KEYS, Content::Seen, "seen");
            bounded(bytes, |_| drop(load()));
            if bytes == sealed {
                prop_assert_eq!(load().unwrap(), Some(seen));
            }
        }
    }

    #[test]
    fn headers_slots_and_small_things_come_back(
        header in values::header(),
        slot in values::slot(),
        claim in values::claim(),
        identity in values::log_identity(),
        seen in values::seen(),
    ) {
        prop_assert_eq!(Header::decode(&header.encode().unwrap()), Ok(header));
        prop_assert_eq!(Slot::decode(&slot.encode().unwrap()), Ok(slot));
        let bytes = codec::encode("claim", &claim).unwrap();
        prop_assert_eq!(codec::decode("claim", &bytes), Ok(claim));
        let bytes = codec::encode("log identity", &identity).unwrap();
        prop_assert_eq!(codec::decode("log identity", &bytes), Ok(identity));
        let bytes = codec::encode("seen", &seen).unwrap();
        prop_assert_eq!(codec::decode("seen", &bytes), Ok(seen));
    }

    #[test]
    fn manifests_come_back(manifest in values::manifest()) {
        prop_assert_eq!(Manifest::decode(&manifest.encode().unwrap()), Ok(manifest));
    }

    #[test]
    fn indexes_come_back(index in values::index()) {
        let offset = values::index_offset(&index);
        prop_assert_eq!(Index::decode(&index.encode().unwrap(), offset, BLOCK_BYTES), Ok(index));
    }

    #[test]
    fn pages_come_back((page, map, level, first_key) in values::page()) {
        let bytes = page.encode().unwrap();
        prop_assert_eq!(Page::decode(&bytes, map, level, first_key, BLOCK_BYTES), Ok(page));
    }

    #[test]
    fn object_headers_and_footers_come_back(object in values::object(), footer in values::footer()) {
        prop_assert_eq!(decode_header(&encode_header(&object)), Ok(object));
        let bytes = footer.index_offset + 2 * footer.end_bytes();
        prop_assert_eq!(Footer::decode(&footer.encode(), bytes), Ok(footer));
    }

    #[test]
    fn envelopes_come_back(body in vec(any::<u8>(), 0..300), content in 0..CONTENTS.len(), version in 1..=u16::MAX) {
        let bytes = envelope::wrap(CONTENTS[content], version, &body);
        prop_assert_eq!(envelope::unwrap(CONTENTS[content], version, &bytes), Ok((version, &body[..])));
    }

    #[test]
    fn small_things_open_as_what_they_are_and_under_their_own_name_only(
        plain in vec(any::<u8>(), 0..300),
        content in 0..CONTENTS.len(),
        name in "[a-z/]{0,20}",
        other in "[a-z/]{0,20}",
        salt: [u8; 16],
    ) {
        let bytes = small::seal(&KEYS, CONTENTS[content], &name, salt, &plain);
        let found = small::open(&KEYS, CONTENTS[content], &name, &bytes);
        prop_assert_eq!(found.as_deref(), Ok(&plain[..]));
        if other != name {
            prop_assert!(small::open(&KEYS, CONTENTS[content], &other, &bytes).is_err());
        }
        for other in CONTENTS.into_iter().filter(|other| *other != CONTENTS[content]) {
            let relabelled = envelope::wrap(other, 1, &bytes[envelope::ENVELOPE_BYTES..]);
            prop_assert!(small::open(&KEYS, other, &name, &relabelled).is_err());
        }
    }

    #[test]
    fn names_come_back(generation in values::generation(), epoch in values::epoch(), sequence in values::sequence()) {
        let name = names::claim(generation, epoch.0);
        prop_assert_eq!(names::parse_claim(&name), Some((generation, epoch.0)));
        prop_assert!(name < names::after_claims(generation));
        prop_assert_eq!(names::parse_manifest(&names::manifest(generation, epoch)), Some((generation, epoch)));
        prop_assert_eq!(names::parse_object(&names::object(generation, sequence)), Some((generation, sequence)));
    }

    #[test]
    fn a_name_that_parses_is_the_one_of_what_it_says(
        name in prop_oneof![
            ".{0,60}",
            "(claims|manifests|objects)/[0-9a-fA-F+]{15,17}-[0-9a-fA-Fg]{15,17}",
        ],
    ) {
        if let Some((generation, nonce)) = names::parse_claim(&name) {
            prop_assert_eq!(&names::claim(generation, nonce), &name);
        }
        if let Some((generation, epoch)) = names::parse_manifest(&name) {
            prop_assert_eq!(&names::manifest(generation, epoch), &name);
        }
        if let Some((generation, sequence)) = names::parse_object(&name) {
            prop_assert_eq!(&names::object(generation, sequence), &name);
        }
    }

    #[test]
    fn log_records_come_back(
        offset in 0..1_u64 << 40,
        data in vec(any::<u8>(), 1..100),
        length in 1..1_u64 << 40,
        (time_ms, lsn) in (any::<u64>(), any::<u64>()),
        (generation, epoch) in (values::generation(), values::epoch()),
    ) {
        let decode = |kind: u8, plain: Vec<u8>| record::decode(Lsn(7), kind, plain.into(), 1 << 41);
        let (kind, head) = record::write_head(offset, time_ms);
        let found = decode(kind, [&head[..], &data].concat()).unwrap();
        prop_assert_eq!(found, LogRecord::Write { offset, time_ms, data: data.into() });
        let (kind, head) = record::zero_head(offset, length, time_ms);
        prop_assert_eq!(decode(kind, head.to_vec()).unwrap(), LogRecord::Zero { offset, time_ms, length });
        let (kind, head) = record::resize_head(length, time_ms);
        let found = decode(kind, head.to_vec()).unwrap();
        prop_assert_eq!(found, LogRecord::Resize { size_bytes: length, time_ms });
        let (kind, head) = record::published_head(generation, epoch, Lsn(lsn));
        let found = decode(kind, head.to_vec()).unwrap();
        prop_assert_eq!(found, LogRecord::Published { generation, epoch, lsn: Lsn(lsn) });
        prop_assert_eq!(decode(record::closed_head().0, Vec::new()).unwrap(), LogRecord::Closed);
    }
}

#[test]
fn a_value_may_not_be_larger_than_the_bound() {
    let encoded = codec::encode("bytes", &vec![0_u8; codec::VALUE_BYTES_MAX as usize]);
    assert!(encoded.is_err(), "the length counts, too");
}

#[test]
fn a_stated_length_reserves_no_more_than_its_share() {
    for length in [1, 1 << 20, codec::VALUE_BYTES_MAX, codec::VALUE_BYTES_MAX + 1, u64::MAX] {
        let bytes = length.to_le_bytes();
        bounded(&bytes, |bytes| assert!(codec::decode::<Vec<FrameNumbers>>("list", bytes).is_err()));
        bounded(&bytes, |bytes| assert!(codec::decode::<String>("text", bytes).is_err()));
    }
}

/// Larger in memory than anything that is stored in a list.
type FrameNumbers = ([u64; 16], [u64; 16]);
