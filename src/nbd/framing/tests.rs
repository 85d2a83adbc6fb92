use super::*;

const TO: Reference = Reference { cookie: 0x0102_0304_0506_0708, offset: 0x1000 };
const REFUSED: Refusal = Refusal { errno: Errno::NoSpace, message: "no" };

fn encoded(framing: Framing, result: Result<Answer, Refusal>) -> Vec<u8> {
    let mut head = BytesMut::new();
    let data = encode_reply(framing, TO, result, &mut head);
    [&head[..], &data.concat()].concat()
}

fn data() -> Result<Answer, Refusal> {
    Ok(Answer::Data(vec![Bytes::from_static(b"ab"), Bytes::from_static(b"c")]))
}

fn extents() -> Result<Answer, Refusal> {
    Ok(Answer::Extents(vec![
        DeviceExtent { length: 512, hole: false },
        DeviceExtent { length: 1024, hole: true },
    ]))
}

/// "Simple reply message": magic, error, cookie, data.
#[test]
fn simple_replies() {
    let done = b"\x67\x44\x66\x98\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08";
    assert_eq!(encoded(Framing::Simple, Ok(Answer::Done)), done);
    assert_eq!(encoded(Framing::Simple, data()), [&done[..], b"abc"].concat());
    let refused = b"\x67\x44\x66\x98\0\0\0\x1c\x01\x02\x03\x04\x05\x06\x07\x08";
    assert_eq!(encoded(Framing::Simple, Err(REFUSED)), refused);
}

/// "Structured reply chunk message": magic, flags (done), type, cookie, length, payload by type.
#[test]
fn structured_replies() {
    let done = b"\x67\x44\x66\x98\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08";
    assert_eq!(encoded(Framing::Structured, Ok(Answer::Done)), done);
    let read = b"\x66\x8e\x33\xef\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x0b\0\0\0\0\0\0\x10\0abc";
    assert_eq!(encoded(Framing::Structured, data()), read);
    let refused =
        b"\x66\x8e\x33\xef\0\x01\x80\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x08\0\0\0\x1c\0\x02no";
    assert_eq!(encoded(Framing::Structured, Err(REFUSED)), refused);
    let status = b"\x66\x8e\x33\xef\0\x01\0\x05\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x14\0\0\0\x01\
        \0\0\x02\0\0\0\0\0\0\0\x04\0\0\0\0\x03";
    assert_eq!(encoded(Framing::Structured, extents()), status);
}

/// "Extended reply chunk message": magic, flags, type, cookie, offset, 64 bits of length, payload by type.
#[test]
fn extended_replies() {
    let done =
        b"\x6e\x8a\x27\x8c\0\x01\0\0\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\0";
    assert_eq!(encoded(Framing::Extended, Ok(Answer::Done)), done);
    let read =
        b"\x6e\x8a\x27\x8c\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\x0b\
        \0\0\0\0\0\0\x10\0abc";
    assert_eq!(encoded(Framing::Extended, data()), read);
    let refused = b"\x6e\x8a\x27\x8c\0\x01\x80\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x10\0\
        \0\0\0\0\0\0\0\x08\0\0\0\x1c\0\x02no";
    assert_eq!(encoded(Framing::Extended, Err(REFUSED)), refused);
    let status = b"\x6e\x8a\x27\x8c\0\x01\0\x06\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x10\0\
        \0\0\0\0\0\0\0\x28\0\0\0\x01\0\0\0\x02\
        \0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\0\x03";
    assert_eq!(encoded(Framing::Extended, extents()), status);
}
