//! Seals of log records: the LSN is the nonce, the salt of the tenure makes the key.

use super::{SealError, aead::Cipher, keys::Keys};
use crate::format::{ids::LogId, object::TAG_BYTES};

/// Seals records of one tenure of the log.
#[derive(Debug)]
pub struct LogSeal {
    cipher: Cipher,
}

impl LogSeal {
    /// With the salt that is also the tag of the tenure's segments; fresh and random at every open of the log.
    #[must_use]
    pub fn new(keys: &Keys, log: LogId, salt: &[u8; 32]) -> Self {
        Self { cipher: keys.log(log, salt).cipher() }
    }

    /// Bytes that sealing adds.
    #[must_use]
    pub fn overhead() -> usize {
        TAG_BYTES
    }

    /// Appends the sealed concatenation of `head` and `body` to `out`.
    pub fn seal(&self, lsn: u64, kind: u8, head: &[u8], body: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(head);
        out.extend_from_slice(body);
        self.cipher.seal_tail(lsn, &[kind], out, start);
    }

    /// Opens the payload of the record at `lsn`.
    pub fn open(&self, lsn: u64, kind: u8, payload: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut data = payload.to_vec();
        let length = self.cipher.open_in_place(lsn, &[kind], &mut data)?;
        data.truncate(length);
        Ok(data)
    }
}
