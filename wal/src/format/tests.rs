use super::*;

fn header() -> SegmentHeader {
    let mut tag = [0; 32];
    tag.iter_mut().zip(0xa0..).for_each(|(byte, value)| *byte = value);
    SegmentHeader {
        segment_bytes: 0x0040_0000,
        first: Lsn(0x0123_0040_0000),
        previous_end: Lsn(0x0123_003f_fe10),
        trimmed: Lsn(0x0123_0000_0000),
        tag,
    }
}

fn hex(bytes: &[u8]) -> Vec<String> {
    let lines =
        bytes.chunks(16).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    lines.collect()
}

fn record(payload: &[u8], kind: u8, crc: u32) -> (RecordHeader, Vec<u8>) {
    let header = RecordHeader {
        kind,
        payload_bytes: payload.len() as u32,
        lsn: Lsn(0x0123_0040_0400),
        durable: Lsn(0x0123_003f_fe10),
    };
    let mut buffer = vec![0; RECORD_HEADER_BYTES];
    buffer.extend_from_slice(payload);
    finish_record(&mut buffer, 0, &header, crc);
    (header, buffer)
}

fn verify(bytes: &[u8], lsn: Lsn, crc: u32) -> Result<RecordHeader, RecordFault> {
    let header = RecordHeader::decode(bytes.first_chunk().unwrap(), lsn, bytes.len() as u64)?;
    verify_record(&bytes[..record_bytes(u64::from(header.payload_bytes)) as usize], &header, crc)?;
    Ok(header)
}

#[test]
fn checksum_is_crc32c() {
    // RFC 3720, B.4: 32 bytes of zeros; and the usual check value.
    assert_eq!(crc32c(&[&[0; 32]]), 0x8a91_36aa);
    assert_eq!(crc32c(&[b"1234", b"56789"]), 0xe306_9283);
}

#[test]
fn segment_header_has_these_bytes() {
    let golden = [
        // magic; version 1, six bytes reserved
        "8b57414c5345470a0100000000000000",
        // segment_bytes; first
        "00004000000000000000400023010000",
        // previous_end; trimmed
        "10fe3f00230100000000000023010000",
        // tag
        "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf",
        // tag
        "b0b1b2b3b4b5b6b7b8b9babbbcbdbebf",
        // reserved
        "00000000000000000000000000000000",
        // reserved
        "00000000000000000000000000000000",
        // reserved; CRC32C of bytes 0 to 123
        "00000000000000000000000012ac4cc2",
    ];
    assert_eq!(hex(&header().encode()), golden);
}

#[test]
fn record_has_these_bytes() {
    let golden = [
        // magic; CRC32C; version 1; kind 7; two bytes reserved; payload length 17
        "77726563dae24f460107000011000000",
        // lsn; durable
        "000440002301000010fe3f0023010000",
        // payload
        "736576656e7465656e20627974657321",
        // payload; padding
        "21000000000000000000000000000000",
    ];
    let (_, bytes) = record(b"seventeen bytes!!", 7, 0x1234_5678);
    assert_eq!(hex(&bytes), golden);
}

#[test]
fn mark_has_these_bytes() {
    let golden = [
        // magic; first LSN of the segment
        "8b57414c4d524b0a0000400023010000",
        // durable; the segment header's CRC32C; CRC32C of bytes 0 to 27
        "40044000230100007856341295594c5d",
    ];
    assert_eq!(hex(&encode_mark(Lsn(0x0123_0040_0000), 0x1234_5678, Lsn(0x0123_0040_0440))), golden);
}

#[test]
fn segment_header_comes_back() {
    let encoded = header().encode();
    let (decoded, crc) = SegmentHeader::decode(&encoded, header().first).unwrap();
    assert_eq!(decoded, header());
    assert_eq!(crc.to_le_bytes(), encoded[124..]);
}

#[test]
fn every_flipped_bit_of_a_segment_header_is_refused() {
    let encoded = header().encode();
    for bit in 0..encoded.len() * 8 {
        let mut flipped = encoded;
        flipped[bit / 8] ^= 1 << (bit % 8);
        SegmentHeader::decode(&flipped, header().first).unwrap_err();
    }
}

#[test]
fn every_flipped_bit_of_a_mark_is_refused() {
    let encoded = encode_mark(Lsn(4096), 99, Lsn(5000));
    assert_eq!(decode_mark(&encoded, Lsn(4096), 99), Some(Lsn(5000)));
    assert_eq!(decode_mark(&encoded, Lsn(8192), 99), None);
    assert_eq!(decode_mark(&encoded, Lsn(4096), 98), None);
    for bit in 0..encoded.len() * 8 {
        let mut flipped = encoded;
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode_mark(&flipped, Lsn(4096), 99), None);
    }
}

#[test]
fn every_flipped_bit_of_a_record_is_refused() {
    for payload in [&b""[..], b"x", b"exactly sixteen.", b"seventeen bytes!!"] {
        let (header, bytes) = record(payload, 7, 42);
        assert_eq!(verify(&bytes, header.lsn, 42), Ok(header));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            verify(&flipped, header.lsn, 42).unwrap_err();
        }
    }
}

#[test]
fn a_record_verifies_only_in_its_segment_and_at_its_lsn() {
    let (header, bytes) = record(b"payload", 1, 42);
    assert_eq!(verify(&bytes, header.lsn, 43), Err(RecordFault::Checksum));
    assert_eq!(verify(&bytes, header.lsn.plus(16), 42), Err(RecordFault::Absent));
}

#[test]
fn a_header_that_could_not_have_been_written_is_refused() {
    let sane = header();
    let broken = [
        SegmentHeader { segment_bytes: 0, ..sane.clone() },
        SegmentHeader { segment_bytes: 4097, ..sane.clone() },
        SegmentHeader { segment_bytes: SEGMENT_BYTES_MAX * 2, ..sane.clone() },
        SegmentHeader { previous_end: sane.first.plus(1), ..sane.clone() },
        SegmentHeader { trimmed: sane.first.plus(1), ..sane.clone() },
    ];
    for header in broken {
        assert_eq!(SegmentHeader::decode(&header.encode(), header.first), Err(HeaderFault::Values));
    }
    let other = SegmentHeader::decode(&sane.encode(), Lsn(0));
    assert_eq!(other, Err(HeaderFault::Name(sane.first)));
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_are_decoded_without_panic(bytes: [[u8; 32]; 4], lsn: u64, room: u64) {
        let whole: Vec<u8> = bytes.concat();
        let _ = SegmentHeader::decode(whole.first_chunk().unwrap(), Lsn(lsn));
        let _ = decode_mark(&bytes[0], Lsn(lsn), 7);
        let mut claimed = bytes[0];
        claimed[..4].copy_from_slice(b"wrec");
        claimed[16..24].copy_from_slice(&lsn.to_le_bytes());
        if let Ok(header) = RecordHeader::decode(&claimed, Lsn(lsn), room) {
            let _ = verify_record(&whole, &header, 7);
        }
    }
}
