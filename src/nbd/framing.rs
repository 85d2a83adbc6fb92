//! Replies, encoded: simple, structured or with extended headers; pure. Source: proto.md, "Simple reply message",
//! "Structured reply chunk message", "Extended reply chunk message", "Structured reply types".

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    DeviceExtent,
    proto::{EXTENDED_REPLY_MAGIC, Errno, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, allocation, chunk},
};

/// How requests and replies look, as negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Simple replies only.
    Simple,
    /// NBD_OPT_STRUCTURED_REPLY.
    Structured,
    /// NBD_OPT_EXTENDED_HEADERS.
    Extended,
}

/// Why a request failed: the number for programs, the text for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    pub(super) message: &'static str,
}

/// What a request that succeeded is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    /// What was read, in order; not empty.
    Data(Vec<Bytes>),
    /// From the request's offset on; not empty, and within the request's length.
    Extents(Vec<DeviceExtent>),
}

/// What a reply needs of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) cookie: u64,
    pub(super) offset: u64,
}

/// Encodes a whole reply behind what `head` holds, but for the data: that is returned, and follows on the wire.
pub(super) fn encode_reply(
    framing: Framing,
    to: Reference,
    result: Result<Answer, Refusal>,
    head: &mut BytesMut,
) -> Vec<Bytes> {
    match (framing, result) {
        (Framing::Simple, Ok(Answer::Data(parts))) => {
            put_simple(head, to, 0);
            return parts;
        }
        (Framing::Simple, Err(refusal)) => put_simple(head, to, refusal.errno as u32),
        // "Structured reply chunk message": what has no payload may be a simple reply, which is the shorter.
        (Framing::Simple | Framing::Structured, Ok(Answer::Done)) => put_simple(head, to, 0),
        (_, Ok(Answer::Data(parts))) => {
            let length: usize = parts.iter().map(Bytes::len).sum();
            put_chunk(head, framing, to, chunk::OFFSET_DATA, 8 + length);
            head.put_u64(to.offset);
            return parts;
        }
        (_, Ok(Answer::Done)) => put_chunk(head, framing, to, chunk::NONE, 0),
        (_, Ok(Answer::Extents(extents))) => put_extents(head, framing, to, &extents),
        (_, Err(refusal)) => {
            put_chunk(head, framing, to, chunk::ERROR, 6 + refusal.message.len());
            head.put_u32(refusal.errno as u32);
            head.put_u16(refusal.message.len() as u16);
            head.put_slice(refusal.message.as_bytes());
        }
    }
    Vec::new()
}

fn put_simple(head: &mut BytesMut, to: Reference, errno: u32) {
    head.put_u32(SIMPLE_REPLY_MAGIC);
    head.put_u32(errno);
    head.put_u64(to.cookie);
}

/// The header of the only, so last, chunk of a reply.
fn put_chunk(head: &mut BytesMut, framing: Framing, to: Reference, kind: u16, payload_bytes: usize) {
    let extended = framing == Framing::Extended;
    head.put_u32(if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC });
    head.put_u16(chunk::FLAG_DONE);
    head.put_u16(kind);
    head.put_u64(to.cookie);
    if extended {
        head.put_u64(to.offset);
        head.put_u64(payload_bytes as u64);
    } else {
        head.put_u32(payload_bytes as u32);
    }
}

fn put_extents(head: &mut BytesMut, framing: Framing, to: Reference, extents: &[DeviceExtent]) {
    let state = |extent: &DeviceExtent| {
        if extent.hole { allocation::STATE_HOLE | allocation::STATE_ZERO } else { 0 }
    };
    if framing == Framing::Extended {
        put_chunk(head, framing, to, chunk::BLOCK_STATUS_EXT, 8 + extents.len() * 16);
        head.put_u32(allocation::ID);
        head.put_u32(extents.len() as u32);
        for extent in extents {
            head.put_u64(extent.length);
            head.put_u64(u64::from(state(extent)));
        }
    } else {
        put_chunk(head, framing, to, chunk::BLOCK_STATUS, 4 + extents.len() * 8);
        head.put_u32(allocation::ID);
        for extent in extents {
            // A compact request asks for less than 4 GiB, and extents are within it.
            head.put_u32(u32::try_from(extent.length).expect("an extent within a compact request"));
            head.put_u32(state(extent));
        }
    }
}

#[cfg(test)]
mod tests;
