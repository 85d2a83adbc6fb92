//! A record as it comes out of the log, and the hook that seals what goes in.

use bytes::Bytes;

use crate::Lsn;

/// A record read back and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its LSN.
    pub lsn: Lsn,
    /// LSN after it, padding included.
    pub end: Lsn,
    /// The application's kind.
    pub kind: u8,
    /// The payload as stored, sealed.
    pub payload: Bytes,
    /// The tag of its segment.
    pub tag: [u8; 32],
}

/// Seals payloads before they reach the log, which knows nothing about keys.
pub trait Seal: Send {
    /// Bytes that sealing adds: the same for every payload.
    fn overhead(&self) -> usize;

    /// Appends `head` and `body`, sealed as one payload, to `out`: `head.len() + body.len() + overhead()`
    /// bytes.
    /// Called once for each record, in LSN order.
    fn seal(&mut self, lsn: Lsn, kind: u8, head: &[u8], body: &[u8], out: &mut Vec<u8>);
}

/// No seal at all, for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainSeal;

impl Seal for PlainSeal {
    fn overhead(&self) -> usize {
        0
    }

    fn seal(&mut self, _lsn: Lsn, _kind: u8, head: &[u8], body: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(head);
        out.extend_from_slice(body);
    }
}
