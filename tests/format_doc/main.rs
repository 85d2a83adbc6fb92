//! `docs/format.md` and the code say the same: each hex block there is decoded by the product's decoders, and is byte
//! for byte, comments included, what the product's encoders write for fixed inputs.
//!
//! To see the blocks as they should be: `S3BD_PRINT_HEX=1 cargo test --test format_doc print -- --nocapture`. The bytes of
//! a version never change; print only what is new.

mod annotate;
mod document;
mod examples;
mod independent;
mod lines;
mod log;
mod world;

use std::collections::BTreeSet;

use s3bd::{
    format::{
        envelope::Content,
        ids::{Epoch, Generation, LogId, Sequence},
    },
    seal::{
        slot::{Secret, UnlockError, unwrap},
        small,
    },
};

use crate::{
    document::{hex_blocks, text_block},
    examples::{Example, Read, all, claim_name, manifest_name},
    lines::parse,
};

fn bytes(name: &str) -> Vec<u8> {
    let found = hex_blocks().into_iter().find(|block| block.name == name);
    parse(&found.unwrap_or_else(|| panic!("no block {name}")).text)
}

fn bytes_array<const N: usize>(name: &str) -> [u8; N] {
    bytes(name).try_into().unwrap()
}

#[test]
#[allow(clippy::print_stdout, reason = "asked for by S3BD_PRINT_HEX")]
fn print() {
    if std::env::var_os("S3BD_PRINT_HEX").is_some() {
        for Example { name, lines, .. } in all() {
            println!("```hex name={name}\n{}```\n", lines.text());
        }
    }
}

#[test]
fn document_has_each_example_once_and_no_other() {
    let there: Vec<String> = hex_blocks().into_iter().map(|block| block.name).collect();
    let once: BTreeSet<&str> = there.iter().map(String::as_str).collect();
    assert_eq!(there.len(), once.len(), "a name occurs twice: {there:?}");
    let known: BTreeSet<&str> = all().iter().map(|example| example.name).collect();
    assert_eq!(once, known);
}

#[test]
fn document_shows_what_the_encoders_write() {
    let blocks = hex_blocks();
    for Example { name, lines, .. } in all() {
        let shown = &blocks.iter().find(|block| block.name == name).expect(name).text;
        assert_eq!(parse(shown), lines.bytes(), "bytes of {name}");
        assert_eq!(*shown, lines.text(), "comments of {name}");
    }
}

#[test]
fn decoders_read_what_the_document_shows() {
    for Example { name, read, .. } in all() {
        assert_eq!(read(&bytes(name)), Read::Same, "{name}");
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    for Example { name, read, is_guarded, .. } in all() {
        let whole = bytes(name);
        for at in (0..whole.len()).filter(|_| is_guarded) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            let found = read(&damaged);
            assert!(matches!(found, Read::Refused(_)), "{name}, byte {at}: {found:?}");
        }
    }
}

#[test]
fn bytes_after_an_end_and_missing_bytes_are_refused() {
    let enveloped = [
        "volume",
        "slot-password",
        "slot-key-file",
        "slot-recovery-key",
        "slot-nothing",
        "claim",
        "manifest",
        "independent",
        "state-log",
        "state-seen",
    ];
    for Example { name, read, .. } in all().into_iter().filter(|example| enveloped.contains(&example.name)) {
        let whole = bytes(name);
        let longer = [&whole[..], &[0]].concat();
        assert!(matches!(read(&longer), Read::Refused(_)), "{name}, longer");
        for length in 0..whole.len() {
            assert!(matches!(read(&whole[..length]), Read::Refused(_)), "{name}, cut to {length}");
        }
    }
}

/// Salt and ciphertext of a sealed envelope.
fn sealed_body(name: &str) -> ([u8; 16], Vec<u8>) {
    let bytes = bytes(name);
    (bytes[24..40].try_into().unwrap(), bytes[40..].to_vec())
}

#[test]
fn small_seals_open_by_the_document_alone() {
    let things = [
        ("claim", "claim-plain", "claim-aad"),
        ("manifest", "manifest-plain", "manifest-aad"),
        ("state-log", "state-log-plain", "state-log-aad"),
        ("state-seen", "state-seen-plain", "state-seen-aad"),
    ];
    for (name, plain, aad) in things {
        let (salt, sealed) = sealed_body(name);
        let key = independent::hkdf(&bytes("key-small"), &salt, &world::VOLUME.0);
        assert_eq!(key, independent::small_key(&salt));
        assert_eq!(independent::open(&key, 0, &bytes(aad), &sealed), bytes(plain), "{name}");
    }
}

#[test]
fn slots_open_by_the_document_alone() {
    let password_key = bytes_array("slot-password-key");
    let key_file = |salt: &[u8]| independent::hkdf(world::KEY_FILE, salt, b"s3bd 1 key file");
    let recovery_key =
        |salt: &[u8]| independent::hkdf(&world::counting::<32>(0xA0), salt, b"s3bd 1 recovery key");
    let nothing = |salt: &[u8]| independent::hkdf(b"", salt, b"s3bd 1 no secret");
    // Where the salt begins: after envelope, volume, and how it unlocks, which has a cost for a password.
    let slots = [
        ("slot-password", 24 + 16 + 4 + 12, bytes("slot-password-aad")),
        ("slot-key-file", 24 + 16 + 4, independent::slot_aad(&[2], "vault")),
        ("slot-recovery-key", 24 + 16 + 4, independent::slot_aad(&[3], "drawer")),
        ("slot-nothing", 24 + 16 + 4, independent::slot_aad(&[0], "first")),
    ];
    for (name, at, aad) in slots {
        let bytes = bytes(name);
        let salt = &bytes[at..at + 32];
        let wrapping = match name {
            "slot-password" => password_key,
            "slot-key-file" => key_file(salt),
            "slot-recovery-key" => recovery_key(salt),
            _ => nothing(salt),
        };
        assert_eq!(bytes[at + 32..at + 48], independent::check(&wrapping), "check of {name}");
        let master = independent::open(&wrapping, 0, &aad, &bytes[at + 48..at + 96]);
        assert_eq!(master, world::MASTER, "{name}");
    }
}

#[test]
fn a_slot_with_another_label_time_or_volume_does_not_open() {
    let recovery_key = || Secret::RecoveryKey(world::recovery_key());
    let slots = [
        (world::slot(&world::password(), 1, "first"), world::password()),
        (world::slot(&world::key_file(), 2, "vault"), world::key_file()),
        (world::slot(&recovery_key(), 4, "drawer"), recovery_key()),
        (world::slot(&Secret::Nothing, 3, ""), Secret::Nothing),
    ];
    for (slot, secret) in slots {
        assert!(unwrap(&slot, &secret, world::VOLUME).is_ok());
        let mut relabelled = slot.clone();
        relabelled.label.push('x');
        assert_eq!(unwrap(&relabelled, &secret, world::VOLUME), Err(UnlockError::Damaged));
        let mut later = slot.clone();
        later.created_ms += 1;
        assert_eq!(unwrap(&later, &secret, world::VOLUME), Err(UnlockError::Damaged));
        let mut moved = slot.clone();
        moved.volume.0[0] ^= 1;
        assert_eq!(unwrap(&moved, &secret, moved.volume), Err(UnlockError::Damaged));
    }
}

#[test]
fn the_recovery_key_of_the_document_is_read_and_written() {
    use s3bd::seal::recovery::{RecoveryKey, Typed};
    let shown = &text_block("recovery-key")[0];
    let key = RecoveryKey::new(std::array::from_fn(|at| 0xA0 + at as u8));
    assert_eq!(**shown, **key.text());
    assert_eq!(RecoveryKey::read(shown.as_bytes()), Typed::Key(key.clone()));
    assert!(world::recovery_key() == key, "the slot of the document is its slot");
}

#[test]
fn a_small_thing_sealed_as_another_version_does_not_open() {
    use aes_gcm::{
        Aes256Gcm, KeyInit,
        aead::{Aead, Payload},
    };
    let name = claim_name();
    let plain = bytes("claim-plain");
    let (salt, _) = sealed_body("claim");
    let sealed_as = |aad: &[u8]| {
        let cipher = Aes256Gcm::new(&independent::small_key(&salt).into());
        let sealed = cipher.encrypt(&[0; 12].into(), Payload { msg: &plain, aad }).unwrap();
        let bytes = s3bd::format::envelope::wrap(Content::Claim, 1, &[&salt[..], &sealed].concat());
        small::open(&world::KEYS, Content::Claim, &name, &bytes)
    };
    let mut aad = bytes("claim-aad");
    assert_eq!(sealed_as(&aad), Ok(plain.clone()));
    aad[4] = 2;
    assert!(sealed_as(&aad).is_err(), "the version in the envelope was lowered");
}

#[test]
fn a_manifest_of_a_size_that_is_not_whole_blocks_is_refused() {
    use s3bd::{
        store::{PutMode, Store, memory::Memory},
        volume::bucket::{Bucket, digest},
    };
    let load = |size_bytes| {
        let manifest = s3bd::format::manifest::Manifest { size_bytes, ..world::manifest() };
        let plain = manifest.encode().unwrap();
        let sealed = small::seal(&world::KEYS, Content::Manifest, &manifest_name(), [0; 16], &plain);
        let store = std::sync::Arc::new(Memory::new());
        let bucket = Bucket {
            store: store.clone(),
            header: world::header(),
            header_digest: digest(&world::header().encode().unwrap()),
            keys: log::keys(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            store.put(&manifest_name(), &[sealed.into()], PutMode::Create).await.unwrap();
            bucket.load_manifest(world::GENERATION, world::EPOCH).await
        })
    };
    assert!(load(1 << 20).is_ok());
    assert!(load((1 << 20) + 1).is_err());
}

#[test]
fn an_object_opens_by_the_document_alone() {
    let object = bytes("object");
    let key = bytes_array("object-key");
    let footer = &object[object.len() - 32..];
    let offset = u64::from_le_bytes(footer[12..20].try_into().unwrap()) as usize;
    let frame = independent::open(&key, 0, &bytes("object-frame-aad"), &object[64..offset]);
    assert_eq!(zstd::bulk::decompress(&frame, 1024).unwrap(), world::frame_plain());
    let index_bytes = u32::from_le_bytes(footer[20..24].try_into().unwrap()) as usize;
    let (mirror, end) = object[offset..].split_at(index_bytes + 32);
    assert_eq!(mirror, end);
    let sealed = &end[..index_bytes];
    let index = independent::open(&key, u32::MAX.into(), &bytes("object-index-aad"), sealed);
    assert_eq!(zstd::bulk::decompress(&index, 4096).unwrap(), bytes("object-index-plain"));
    assert_eq!(world::KEYS.object(&world::OBJECT).unwrap().bytes(), &key);
}

#[test]
fn log_records_open_by_the_document_alone() {
    let key = bytes_array("log-tenure-key");
    let segment_crc = &bytes("log-segment-header")[124..];
    for name in ["log-write", "log-zero", "log-resize", "log-published", "log-closed"] {
        let record = bytes(name);
        let payload_bytes = u32::from_le_bytes(record[12..16].try_into().unwrap()) as usize;
        let lsn = u64::from_le_bytes(record[16..24].try_into().unwrap());
        let plain = independent::open(&key, lsn, &[record[9]], &record[32..32 + payload_bytes]);
        let expected = if name == "log-closed" { Vec::new() } else { bytes(&format!("{name}-plain")) };
        assert_eq!(plain, expected, "{name}");
        let crc = s3bd::format::envelope::crc32c(&[segment_crc, &record[8..]]);
        assert_eq!(record[4..8], crc.to_le_bytes(), "{name}");
        assert_eq!(record.len(), (32 + payload_bytes).next_multiple_of(16), "{name}");
    }
}

#[test]
fn a_segment_of_another_log_does_not_open() {
    let segment = log::segment();
    assert!(log::open_as(world::LOG, &segment).is_ok());
    let mut other: LogId = world::LOG;
    other.0[15] ^= 1;
    let error = log::open_as(other, &segment).unwrap_err();
    assert!(error.contains("its seal does not open"), "{error}");
}

#[test]
fn scan_of_the_log_finds_what_its_headers_say() {
    let segment = log::segment();
    let places = log::places(&segment);
    let end = wal::Lsn(0x1000 + places[4].end as u64);
    let scan = log::scan(&segment);
    assert_eq!((scan.trimmed, scan.end, scan.durable), (wal::Lsn(0x400), end, end));
    // Where the records of the tenure before end.
    assert_eq!(scan.start, wal::Lsn(0x400 + 80));
    let opened: Vec<_> = log::open(&segment).unwrap().into_iter().map(|(_, _, record)| record).collect();
    assert_eq!(opened, log::records());
    assert_eq!(places[0].start, log::DATA_OFFSET);
}

#[test]
fn names_are_those_of_the_document() {
    use s3bd::format::names;
    let shown = [
        names::HEADER.to_owned(),
        names::slot(7),
        claim_name(),
        manifest_name(),
        names::object(world::GENERATION, Sequence(9)),
    ];
    assert_eq!(text_block("bucket"), shown);
    assert_eq!(names::parse_claim(&shown[2]), Some((world::GENERATION, world::NONCE)));
    assert_eq!(names::parse_manifest(&shown[3]), Some((Generation(7), Epoch(42))));
    assert_eq!(names::parse_object(&shown[4]), Some((Generation(7), Sequence(9))));
    let host = [s3bd::format::local::LOG, s3bd::format::local::SEEN, log::SEGMENT_NAME];
    let shown = text_block("host");
    for name in host {
        assert!(shown.iter().any(|line| line.ends_with(name)), "{name}");
    }
}

#[test]
fn bounds_are_those_of_the_document() {
    use s3bd::format::{codec, envelope, header, index, local, object, page};
    let bounds = [
        ("bytes of an encoded value", codec::VALUE_BYTES_MAX),
        ("bytes of an envelope before its body", envelope::ENVELOPE_BYTES as u64),
        ("bytes of a block, least", header::BLOCK_BYTES_MIN.into()),
        ("bytes of a block, most", header::BLOCK_BYTES_MAX.into()),
        ("bytes of an object's header", object::HEADER_BYTES as u64),
        ("bytes of an object's footer", object::FOOTER_BYTES as u64),
        ("bytes of a tag", object::TAG_BYTES as u64),
        ("number that stands for the index", index::INDEX_NUMBER.into()),
        ("bytes of a manifest", envelope::MANIFEST_BYTES_MAX),
        ("bytes of a header, slot or claim", envelope::SMALL_BYTES_MAX),
        ("bytes of plaintext in a frame", index::FRAME_PLAIN_BYTES_MAX.into()),
        ("keys of a leaf, children of a page", page::FANOUT),
        ("highest level of a page", page::LEVEL_MAX.into()),
        ("tenures in a log identity", local::TENURES_MAX as u64),
        ("bytes of data in a log record", s3bd::volume::log::RECORD_BYTES_MAX as u64),
    ];
    let expected: Vec<String> = bounds.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    assert_eq!(text_block("bounds"), expected);
}
