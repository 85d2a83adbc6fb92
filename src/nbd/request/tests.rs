use proptest::prelude::*;

use super::*;

const COMPACT: Terms = Terms { framing: Framing::Simple, allocation_context: false };
const FULL: Terms = Terms { framing: Framing::Structured, allocation_context: true };
const EXTENDED: Terms = Terms { framing: Framing::Extended, allocation_context: true };
const SIZE: u64 = 1 << 40;

fn device(read_only: bool) -> DeviceInfo {
    DeviceInfo { size_bytes: SIZE, preferred_block_bytes: 4096, read_only }
}

fn request(command: u16, flags: u16, offset: u64, length: u64) -> Request {
    let payload_bytes = if command == command::WRITE { length } else { 0 };
    Request { flags, command, cookie: 7, offset, length, payload_bytes }
}

/// "Request message": magic, flags, type, cookie, offset, length.
#[test]
fn compact_request_is_28_bytes() {
    let header = b"\x25\x60\x95\x13\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x10\0\0\0\x02\0";
    let expected = Request {
        flags: 1,
        command: 1,
        cookie: 0x0102_0304_0506_0708,
        offset: 4096,
        length: 512,
        payload_bytes: 512,
    };
    assert_eq!(Framing::Simple.decode_request(header).unwrap(), expected);
    assert_eq!(Framing::Structured.decode_request(header).unwrap(), expected);
}

/// "Request message" of extension-ext-header: 64 bits of length, and a payload where the flag says so.
#[test]
fn extended_request_is_32_bytes() {
    let header =
        b"\x21\xe4\x1c\x71\0\x20\0\x01\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x02\0".to_owned();
    let decoded = Framing::Extended.decode_request(&header).unwrap();
    assert_eq!((decoded.length, decoded.payload_bytes, decoded.cookie), (512, 512, 9));
    let mut without_flag = header;
    without_flag[5] = 0;
    // A write has a payload all the same: qemu 10.
    assert_eq!(Framing::Extended.decode_request(&without_flag).unwrap().payload_bytes, 512);
    let mut without_payload = without_flag;
    without_payload[7] = 4;
    without_payload[24] = 1;
    let decoded = Framing::Extended.decode_request(&without_payload).unwrap();
    assert_eq!((decoded.length, decoded.payload_bytes), ((1 << 56) + 512, 0));
}

#[test]
fn other_magic_is_no_request() {
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let mut header = vec![0; framing.request_bytes()];
        assert!(framing.decode_request(&header).is_err());
        // The magic of the other kind of header is no better.
        let other = if framing == Framing::Extended { REQUEST_MAGIC } else { EXTENDED_REQUEST_MAGIC };
        header[..4].copy_from_slice(&other.to_be_bytes());
        assert!(framing.decode_request(&header).is_err());
    }
}

/// "Error values", and the errors that "Request types" gives.
#[test]
fn each_mistake_has_its_errno() {
    let check = |request: Request, read_only| request.check(device(read_only), FULL).map_err(|e| e.errno);
    let max = u64::from(PAYLOAD_BYTES_MAX);
    let rows = [
        (request(8, 0, 0, 1), false, Errno::Invalid),
        (request(u16::MAX, 0, 0, 1), true, Errno::Invalid),
        (request(command::READ, 0, SIZE, 1), false, Errno::Invalid),
        (request(command::READ, 0, u64::MAX, 1), false, Errno::Invalid),
        (request(command::READ, 0, 0, max + 1), false, Errno::Invalid),
        (request(command::READ, flag::NO_HOLE, 0, 1), false, Errno::Invalid),
        (request(command::READ, 1 << 15, 0, 1), false, Errno::Invalid),
        (request(command::WRITE, 0, SIZE - 1, 2), false, Errno::NoSpace),
        (request(command::WRITE, 0, u64::MAX, 2), false, Errno::NoSpace),
        (request(command::WRITE, 0, 0, max + 1), false, Errno::Invalid),
        (request(command::WRITE, flag::DF, 0, 1), false, Errno::Invalid),
        (request(command::WRITE, flag::PAYLOAD_LEN, 0, 1), false, Errno::Invalid),
        (request(command::WRITE, 0, 0, 1), true, Errno::Perm),
        (request(command::WRITE, 0, SIZE, 1), true, Errno::Perm),
        (request(command::TRIM, 0, SIZE, 1), false, Errno::Invalid),
        (request(command::TRIM, 0, 0, 1), true, Errno::Perm),
        (request(command::WRITE_ZEROES, 0, SIZE, 1), false, Errno::NoSpace),
        (request(command::WRITE_ZEROES, flag::REQ_ONE, 0, 1), false, Errno::Invalid),
        (request(command::WRITE_ZEROES, 0, 0, 1), true, Errno::Perm),
        (request(command::CACHE, 0, SIZE, 1), false, Errno::Invalid),
        (request(command::CACHE, flag::DF, 0, 1), false, Errno::Invalid),
        (request(command::FLUSH, 0, 1, 0), false, Errno::Invalid),
        (request(command::FLUSH, 0, 0, 1), false, Errno::Invalid),
        (request(command::BLOCK_STATUS, 0, SIZE, 1), false, Errno::Invalid),
        (request(command::BLOCK_STATUS, 0, 0, 0), false, Errno::Invalid),
        (request(command::BLOCK_STATUS, flag::DF, 0, 1), false, Errno::Invalid),
    ];
    for (row, read_only, errno) in rows {
        assert_eq!(check(row, read_only), Err(errno), "{row:?}");
    }
}

#[test]
fn what_was_not_negotiated_is_invalid() {
    let dont_fragment = request(command::READ, flag::DF, 0, 1);
    assert!(dont_fragment.check(device(false), COMPACT).is_err());
    assert!(dont_fragment.check(device(false), FULL).is_ok());
    let status = request(command::BLOCK_STATUS, 0, 0, 1);
    assert!(status.check(device(false), COMPACT).is_err());
    assert!(status.check(device(false), FULL).is_ok());
    let write = request(command::WRITE, flag::PAYLOAD_LEN, 0, 1);
    assert!(write.check(device(false), EXTENDED).is_ok());
    assert!(Request { flags: 0, ..write }.check(device(false), EXTENDED).is_ok());
    assert!(Request { command: command::TRIM, ..write }.check(device(false), EXTENDED).is_err());
}

/// "Command flags": NBD_CMD_FLAG_FUA must be accepted on all commands.
#[test]
fn fua_is_accepted_everywhere() {
    for command in 0..=7 {
        if command == command::DISC {
            continue;
        }
        let length = u64::from(command != command::FLUSH);
        assert!(request(command, flag::FUA, 0, length).check(device(false), FULL).is_ok(), "{command}");
    }
}

#[test]
fn zero_bytes_are_answered_without_the_device() {
    for command in [command::READ, command::WRITE, command::TRIM, command::CACHE, command::WRITE_ZEROES] {
        for offset in [0, 1, SIZE] {
            assert_eq!(request(command, 0, offset, 0).check(device(false), FULL), Ok(Operation::Nothing));
        }
        assert!(request(command, 0, SIZE + 1, 0).check(device(false), FULL).is_err());
    }
}

proptest! {
    /// What passes the checks is inside the device, and changes nothing that is read-only.
    #[test]
    fn what_passes_is_within_the_device(
        flags in prop_oneof![Just(0), any::<u16>(), 0_u16..64],
        command in prop_oneof![0_u16..9, any::<u16>()],
        offset in prop_oneof![any::<u64>(), SIZE - 9..SIZE + 9],
        length in prop_oneof![any::<u64>(), 0_u64..20, Just(u64::from(PAYLOAD_BYTES_MAX))],
        has_payload: bool,
        read_only: bool,
        terms in prop_oneof![Just(COMPACT), Just(FULL), Just(EXTENDED)],
    ) {
        let request =
            Request { flags, command, cookie: 0, offset, length, payload_bytes: if has_payload { length } else { 0 } };
        if command == command::DISC {
            return Ok(());
        }
        let Ok(operation) = request.check(device(read_only), terms) else { return Ok(()) };
        let modifies = matches!(
            operation,
            Operation::Write { .. } | Operation::Zero { .. } | Operation::Trim { .. }
        );
        prop_assert!(!(modifies && read_only));
        if operation != Operation::Flush {
            prop_assert!(offset.checked_add(length).is_some_and(|end| end <= SIZE));
        }
        if let Operation::Read { length, .. } | Operation::Write { length, .. } = operation {
            prop_assert!(0 < length && length <= PAYLOAD_BYTES_MAX);
        }
    }
}
