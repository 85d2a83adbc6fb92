//! Decoders of what is stored. Plain bodies get a valid envelope: one who can write to the bucket can make a checksum.
//! Sealed bodies are given as plaintext: the seal is the cipher's business.

use bytes::Bytes;
use s3bd::{
    format::{
        claim::Claim,
        codec,
        envelope::{self, Content},
        header::Header,
        independent::Independent,
        index::{Index, MapKind},
        local::{LogIdentity, Seen},
        manifest::Manifest,
        names,
        object::{Footer, decode_header, encode_header},
        page::Page,
        slot::Slot,
    },
    volume::record,
};
use wal::{
    Lsn,
    disk::{Disk, sim::SimDisk},
};

const BLOCK_BYTES: u32 = 4096;

/// Takes a number off the front; zero where there is none.
fn number(bytes: &[u8]) -> (u64, &[u8]) {
    match bytes.split_first_chunk() {
        Some((number, rest)) => (u64::from_le_bytes(*number), rest),
        None => (0, bytes),
    }
}

pub(crate) fn header(bytes: &[u8]) {
    let _ = Header::decode(bytes);
    let whole = envelope::wrap(Content::Header, 1, bytes);
    if let Ok(header) = Header::decode(&whole) {
        assert_eq!(header.encode().as_deref(), Ok(&whole[..]));
    }
    let whole = envelope::wrap(Content::Independent, 1, bytes);
    if let Ok(independent) = Independent::decode(&whole) {
        assert_eq!(independent.encode(), whole);
    }
}

pub(crate) fn slot(bytes: &[u8]) {
    let _ = Slot::decode(bytes);
    let whole = envelope::wrap(Content::Slot, 1, bytes);
    if let Ok(slot) = Slot::decode(&whole) {
        assert_eq!(slot.encode().as_deref(), Ok(&whole[..]));
    }
}

pub(crate) fn claim(bytes: &[u8]) {
    if let Ok(claim) = codec::decode::<Claim>("claim", bytes) {
        assert_eq!(codec::encode("claim", &claim).as_deref(), Ok(bytes));
    }
}

pub(crate) fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::decode(bytes) {
        assert_eq!(manifest.encode().as_deref(), Ok(bytes));
    }
}

/// The first eight bytes say where in its object the index lies.
pub(crate) fn index(bytes: &[u8]) {
    let (offset, plain) = number(bytes);
    if let Ok(index) = Index::decode(plain, offset, BLOCK_BYTES) {
        assert_eq!(index.encode().as_deref(), Ok(plain));
    }
    if let Ok(object) = decode_header(bytes) {
        // Not byte by byte: reserved ones are not looked at.
        assert_eq!(decode_header(&encode_header(&object)), Ok(object));
    }
    let _ = Footer::decode(bytes, offset);
    let _ = Footer::decode(bytes, bytes.len() as u64);
    let _ = Footer::find(bytes, bytes.len() as u64);
}

/// The first byte says which map and level, the next eight where the page begins.
pub(crate) fn page(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    let (first_key, plain) = number(rest);
    let map = [MapKind::Blocks, MapKind::Objects, MapKind::Snapshots][usize::from(kind >> 4) % 3];
    let decode = |plain: &[u8]| Page::decode(plain, map, kind & 0xf, first_key, BLOCK_BYTES);
    // Its tables may be in another order, or have what nobody uses: so it is the values that are compared.
    if let Ok(page) = decode(plain) {
        let again = page.encode().expect("it was small enough");
        assert_eq!(decode(&again), Ok(page));
    }
}

pub(crate) fn local(bytes: &[u8]) {
    if let Ok(seen) = codec::decode::<Seen>("seen", bytes) {
        assert_eq!(codec::encode("seen", &seen).as_deref(), Ok(bytes));
    }
    if let Ok(identity) = codec::decode::<LogIdentity>("log identity", bytes) {
        assert_eq!(codec::encode("log identity", &identity).as_deref(), Ok(bytes));
    }
}

pub(crate) fn names(bytes: &[u8]) {
    let Ok(name) = std::str::from_utf8(bytes) else { return };
    if let Some((generation, nonce)) = names::parse_claim(name) {
        assert_eq!(names::claim(generation, nonce), name);
    }
    if let Some((generation, epoch)) = names::parse_manifest(name) {
        assert_eq!(names::manifest(generation, epoch), name);
    }
    if let Some((generation, sequence)) = names::parse_object(name) {
        assert_eq!(names::object(generation, sequence), name);
    }
}

/// The first byte is the record's kind, the next eight the size of the volume.
pub(crate) fn log_record(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    let (volume_bytes, plain) = number(rest);
    let _ = record::decode(Lsn(0), kind, Bytes::copy_from_slice(plain), volume_bytes);
}

/// The bytes of the only segment of a log, from LSN 0x1000 on, as in docs/format.md.
pub(crate) fn log_segment(bytes: &[u8]) {
    let disk = SimDisk::new();
    let file = disk.create("0000000000001000.wal", 0).expect("a disk that works");
    file.write_at(bytes, 0).expect("a disk that works");
    let Ok(scan) = wal::scan(&disk) else { return };
    assert!(scan.start <= scan.end);
    let records = scan.records(scan.start).filter_map(Result::ok).count() as u64;
    assert!(scan.damage.is_some() || records == scan.records, "{records} records of {}", scan.records);
}
